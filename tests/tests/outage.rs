//! Tests an outage of the payment provider during many onboardings: none fails because of it, few calls are
//! made, and after the outage all sites are activated and billed once each.
//!
//! The outage affects the whole stack, so this test has a binary of its own.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
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

use crate::faults::{Outage, RefusingProvider};

const METRIC: Metric = Metric::WindFromDirection;
/// The number of onboardings in progress.
const SITES: usize = 200;
/// The number of concurrent registrations.
const CONCURRENT_REGISTRATIONS: usize = 4;
/// The number of consecutive failures after which the circuit opens (`Rules::default` of billing's circuit).
const FAILURES_UNTIL_OPEN: usize = 5;
/// The minimum number of failed probes before the outage ends.
const FAILED_PROBES: usize = 3;
/// The timeout for all sites to have an event, on a machine with two cores.
const ALL_SITES_TIMEOUT: Duration = Duration::from_secs(150);

async fn register(stack: &Stack) -> Result<Ids> {
    let name = format!("outage {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], GOOD_CARD)).await
}

/// Returns the onboardings among `onboardings` that have an event of this type.
async fn with_event(
    stack: &Stack,
    onboardings: &BTreeSet<String>,
    kind: &str,
) -> Result<Vec<String>> {
    let rows = stack.rows_with(names::EVENTS, "type", kind).await?;
    let with_event = rows.iter().filter_map(|row| row["correlationId"].as_str());
    Ok(with_event.filter(|id| onboardings.contains(*id)).map(str::to_owned).collect())
}

/// Waits until each of `onboardings` has exactly one event of this type.
async fn wait_for_events(
    stack: &Stack,
    onboardings: &BTreeSet<String>,
    kind: &str,
    timeout: Duration,
) -> Result<()> {
    until_true(&format!("{kind} of all onboardings"), timeout, async || {
        let found = with_event(stack, onboardings, kind).await?;
        ensure!(found.len() <= onboardings.len(), "there are more {kind} than onboardings");
        // Each poll scans a large table, and the machine is busy.
        tokio::time::sleep(Duration::from_millis(850)).await;
        Ok((found.len() == onboardings.len(), format!("{} of {}", found.len(), onboardings.len())))
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
    let started = Instant::now();
    let log = |what: &str| eprintln!("{:5.1} s: {what}", started.elapsed().as_secs_f64());
    stack.deliver(&[METRIC], u32::try_from(SITES)? + 1).await?;
    let before = register(&stack).await?;
    stack.wait_until_active(before.site_id).await?;

    let outage_at = SystemTime::now();
    let outage = Outage::start()?;
    let refusing = RefusingProvider::start(503)?;
    log("the outage of the provider has started");
    let sites: Vec<Ids> = stream::iter((0..SITES).map(|_| register(&stack)))
        .buffer_unordered(CONCURRENT_REGISTRATIONS)
        .try_collect()
        .await?;
    let onboardings: BTreeSet<_> = sites.iter().map(|ids| ids.onboarding_id.to_string()).collect();
    log("all sites are registered");
    wait_for_events(&stack, &onboardings, "SensorsProvisioned", ALL_SITES_TIMEOUT).await?;
    log("all sagas are at InitializeSubscription");
    until_true("the provider to be probed", TIMEOUT, async || {
        let row = circuit(&stack).await?;
        let opened = row["opened"].as_u64().unwrap_or_default();
        Ok((opened > u64::try_from(FAILED_PROBES)?, row))
    })
    .await?;

    // No onboarding gave up, and no command became a dead letter.
    let running = stack.onboardings_with(ExecutionStatus::Running).await?;
    assert!(
        onboardings.is_subset(&running),
        "{:?} are not running",
        onboardings.difference(&running)
    );
    for kind in ["SubscriptionInitialized", "SubscriptionFailed", "SiteRejected"] {
        assert_eq!(with_event(&stack, &onboardings, kind).await?, [""; 0], "{kind}");
    }
    let queue = stack.queue_url(names::INITIALIZE_SUBSCRIPTION).await?;
    until_true("a command of each site in the queue", TIMEOUT, async || {
        let (visible, delayed) = stack.queue_depth(&queue).await?;
        Ok((
            visible + delayed == u32::try_from(SITES)?,
            format!("{visible} visible, {delayed} in flight or delayed"),
        ))
    })
    .await?;
    let row = circuit(&stack).await?;
    let calls = refusing.calls();
    drop(refusing);
    outage.end()?;
    log(&format!("the outage has ended after {} calls; the circuit was {row}", calls.len()));

    // The allowed calls: those while the circuit was closed, and one probe for each period in which it was open. If the
    // circuit breaker can't read or write its row in time, the command runs without it. A busy emulator can cause this.
    let text = "continuing without the circuit breaker";
    let unguarded = stack.log_lines("initialize-subscription", outage_at, text).await?;
    let consumers = faults::pids(&stack, "initialize-subscription")?.len();
    let probes = usize::try_from(row["opened"].as_u64().context("the circuit has no row")?)?;
    let max_calls = FAILURES_UNTIL_OPEN + consumers - 1 + probes + unguarded;
    let first_call = calls[0];
    let at: Vec<_> = calls.iter().map(|call| (*call - first_call).as_secs_f64()).collect();
    assert!(calls.len() <= max_calls, "more than {max_calls} calls, at (s): {at:.1?}");
    assert!(calls.len() >= FAILURES_UNTIL_OPEN + FAILED_PROBES, "too few calls, at (s): {at:.1?}");

    wait_for_events(&stack, &onboardings, "SiteActivated", ALL_SITES_TIMEOUT).await?;
    log("all sites are active");
    until_true("all executions to succeed", TIMEOUT, async || {
        let succeeded = stack.onboardings_with(ExecutionStatus::Succeeded).await?;
        Ok((onboardings.is_subset(&succeeded), format!("{} succeeded", succeeded.len())))
    })
    .await?;
    for kind in STEPS.map(|step| step.done) {
        assert_eq!(with_event(&stack, &onboardings, kind).await?.len(), SITES, "{kind}");
    }
    let all_objects = stripe::all_billing_objects(&stack).await?;
    for onboarding in &onboardings {
        let objects = all_objects.get(onboarding).cloned().unwrap_or_default();
        let count = (objects.customers.len(), objects.subscriptions.len());
        assert_eq!(count, (1, 1), "{onboarding}: {objects:?}");
    }
    let row = circuit(&stack).await?;
    assert_eq!(row.get("openUntil"), None, "the circuit is not closed: {row}");
    let failed = stack.rows(names::FAILURES).await?.into_iter().map(|row| row.to_string());
    let failed: Vec<_> =
        failed.filter(|row| onboardings.iter().any(|id| row.contains(id))).collect();
    assert_eq!(failed, [""; 0]);
    log("done");
    Ok(())
}
