//! Tests an outage of the payment provider during many onboardings: none fails because of it, few calls are
//! made, and after the outage all sites are activated and billed once each.
//!
//! The outage affects the whole stack, so this test has a binary of its own.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "not every fault is brought about here")]
mod faults;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{Metric, names, saga::STEPS};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tests::{
    Stack,
    sites::{GOOD_CARD, Ids, registration},
    stripe,
    wait::{TIMEOUT, until_true},
};
use uuid::Uuid;

use crate::faults::{Outage, Refusing};

const METRIC: Metric = Metric::WindFromDirection;
/// The number of onboardings in progress.
const SITES: usize = 200;
/// The number of concurrent registrations.
const SIDE_BY_SIDE: usize = 4;
/// The number of consecutive failures after which the circuit opens (`Rules::default` of billing's circuit).
const FAILURES: usize = 5;
/// The number of failed probes after which the outage ends.
const PROBES: usize = 3;
/// The time for all sites to be activated, on a machine with two cores.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(150);

async fn register(stack: &Stack) -> Result<Ids> {
    let name = format!("outage {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], GOOD_CARD)).await
}

/// Returns the onboardings among `ours` that have an event of that type.
async fn with_event(stack: &Stack, ours: &BTreeSet<String>, kind: &str) -> Result<Vec<String>> {
    let rows = stack.rows_with(names::EVENTS, "type", kind).await?;
    let of = rows.iter().filter_map(|row| row["correlationId"].as_str());
    Ok(of.filter(|id| ours.contains(*id)).map(str::to_owned).collect())
}

/// Waits until each of `ours` has exactly one event of that type.
async fn all_have(
    stack: &Stack,
    ours: &BTreeSet<String>,
    kind: &str,
    patience: Duration,
) -> Result<()> {
    until_true(&format!("{kind} of all"), patience, async || {
        let with = with_event(stack, ours, kind).await?;
        ensure!(with.len() <= ours.len(), "more {kind} than onboardings");
        // Each look scans a large table, and the machine is busy.
        tokio::time::sleep(Duration::from_millis(850)).await;
        Ok((with.len() == ours.len(), format!("{} of {}", with.len(), ours.len())))
    })
    .await
}

/// Returns the circuit breaker's row.
async fn circuit(stack: &Stack) -> Result<Value> {
    let rows = stack.rows_with(names::BILLING, "id", "circuit#provider").await?;
    Ok(rows.into_iter().next().unwrap_or_default())
}

#[tokio::test]
async fn an_outage_fails_no_onboarding_and_causes_few_calls() -> Result<()> {
    let stack = Stack::connect().await?;
    let begun = Instant::now();
    let tell = |what: &str| eprintln!("{:5.1} s: {what}", begun.elapsed().as_secs_f64());
    stack.deliver(&[METRIC], u32::try_from(SITES)? + 1).await?;
    let before = register(&stack).await?;
    stack.site_active(before.site_id).await?;

    let outage_at = SystemTime::now();
    let outage = Outage::begin()?;
    let unwell = Refusing::begin(503)?;
    tell("the provider is out");
    let sites: Vec<Ids> = stream::iter((0..SITES).map(|_| register(&stack)))
        .buffer_unordered(SIDE_BY_SIDE)
        .try_collect()
        .await?;
    let ours: BTreeSet<_> = sites.iter().map(|ids| ids.onboarding_id.to_string()).collect();
    tell("all are registered");
    all_have(&stack, &ours, "SensorsProvisioned", PATIENCE_FOR_ALL).await?;
    tell("all are before their subscription");
    until_true("the provider to be probed", TIMEOUT, async || {
        let row = circuit(&stack).await?;
        let opened = row["opened"].as_u64().unwrap_or_default();
        Ok((opened > u64::try_from(PROBES)?, row))
    })
    .await?;

    // No onboarding gave up, and no command became a dead letter.
    let running = stack.onboardings_with(ExecutionStatus::Running).await?;
    assert!(ours.is_subset(&running), "{:?} do not run", ours.difference(&running));
    for kind in ["SubscriptionInitialized", "SubscriptionFailed", "SiteRejected"] {
        assert_eq!(with_event(&stack, &ours, kind).await?, [""; 0], "{kind}");
    }
    let queue = stack.queue_url(names::INITIALIZE_SUBSCRIPTION).await?;
    until_true("a command of each in the queue", TIMEOUT, async || {
        let (waiting, held) = stack.depth(&queue).await?;
        Ok((waiting + held == u32::try_from(SITES)?, format!("{waiting} + {held} held back")))
    })
    .await?;
    let row = circuit(&stack).await?;
    let calls = unwell.calls();
    drop(unwell);
    outage.end()?;
    tell(&format!("the provider is back after {} calls; the circuit was {row}", calls.len()));

    // The calls that found the circuit closed, and one probe for each pause after them. A command whose circuit
    // breaker can't read or write its row in time runs without it; a busy emulator can cause this.
    let text = "goes on without the circuit breaker";
    let unguarded = stack.log_lines("initialize-subscription", outage_at, text).await?;
    let consumers = faults::pids(&stack, "initialize-subscription")?.len();
    let probes = usize::try_from(row["opened"].as_u64().context("the circuit's row")?)?;
    let most = FAILURES + consumers - 1 + probes + unguarded;
    let since = calls[0];
    let at: Vec<_> = calls.iter().map(|call| (*call - since).as_secs_f64()).collect();
    assert!(calls.len() <= most, "more than {most} calls, in seconds: {at:.1?}");
    assert!(calls.len() >= FAILURES + PROBES, "calls in seconds: {at:.1?}");

    all_have(&stack, &ours, "SiteActivated", PATIENCE_FOR_ALL).await?;
    tell("all are in service");
    until_true("all executions to be over", TIMEOUT, async || {
        let succeeded = stack.onboardings_with(ExecutionStatus::Succeeded).await?;
        Ok((ours.is_subset(&succeeded), format!("{} succeeded", succeeded.len())))
    })
    .await?;
    for kind in STEPS.map(|step| step.done) {
        assert_eq!(with_event(&stack, &ours, kind).await?.len(), SITES, "{kind}");
    }
    let billed = stripe::all_billed(&stack).await?;
    for onboarding in &ours {
        let billed = billed.get(onboarding).cloned().unwrap_or_default();
        let count = (billed.customers.len(), billed.subscriptions.len());
        assert_eq!(count, (1, 1), "{onboarding}: {billed:?}");
    }
    let row = circuit(&stack).await?;
    assert_eq!(row.get("openUntil"), None, "the circuit is closed: {row}");
    let failed = stack.rows(names::FAILURES).await?.into_iter().map(|row| row.to_string());
    let failed: Vec<_> = failed.filter(|row| ours.iter().any(|id| row.contains(id))).collect();
    assert_eq!(failed, [""; 0]);
    tell("done");
    Ok(())
}
