//! Counts what an onboarding uses on the deployed stack (state transitions, events and invocations) for the
//! cost model, which computes the transitions from the definitions.
//!
//! `UPDATE_DOCS=1 cargo test -p tests --test cost` writes the new counts.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, ensure};
use aws_sdk_sfn::types::HistoryEventType;
use contracts::{Metric, OnboardingId, Timestamp};
use cost::{
    counted::{Effect, Execution, Onboardings, Stack as Counted},
    docs::check_or_update_json,
    machine::transitions,
};
use serde_json::Value;
use tests::{
    Stack, log,
    sites::{DECLINED_CARD, GOOD_CARD, Ids, registration},
    wait::{Poll, TIMEOUT, until},
};
use uuid::Uuid;

const SENSORS: [Metric; 3] =
    [Metric::AirTemperature, Metric::RelativeHumidity, Metric::AirTemperature];
/// The step that fails when a card is declined.
const PAYMENT_STEP: &str = "InitializeSubscription";

async fn onboard(stack: &Stack, card: &str) -> Result<Ids> {
    stack.deliver(&[Metric::AirTemperature, Metric::RelativeHumidity], 2).await?;
    let name = format!("counted {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &SENSORS, card)).await
}

/// Counts the states that were entered and the retries of tasks.
async fn counted_transitions(stack: &Stack, arn: &str) -> Result<u32> {
    let client = aws_sdk_sfn::Client::new(stack.config());
    let (mut entered, mut tasks, mut attempts) = (0, 0, 0);
    for event in machines::events(&client, arn).await? {
        if event.state_entered_event_details().is_some() {
            entered += 1;
        }
        match event.r#type() {
            HistoryEventType::TaskStateEntered => tasks += 1,
            HistoryEventType::TaskScheduled => attempts += 1,
            _ => {}
        }
    }
    ensure!(attempts >= tasks, "{attempts} attempts of {tasks} tasks in {arn}");
    Ok(entered + attempts - tasks)
}

/// Counts how often each function logged `done` or `failed` for this onboarding, which began after `since`.
async fn invocations(
    stack: &Stack,
    onboarding: OnboardingId,
    since: Timestamp,
) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for log in stack.function_logs(since).await? {
        let ended = log.entries().filter(|line| {
            let has_ended = line["message"] == "done" || line["message"] == "failed";
            has_ended && line["span"]["correlationId"] == onboarding.to_string()
        });
        let count = u32::try_from(ended.count())?;
        if count > 0 {
            counts.insert(log.function, count);
        }
    }
    Ok(counts)
}

/// Counts what an onboarding used, after it has ended and the expected number of invocations is logged.
async fn count_usage(
    stack: &Stack,
    ids: Ids,
    since: Timestamp,
    expected: &BTreeMap<String, u32>,
) -> Result<Execution> {
    stack.wait_for_onboarding_end(ids.onboarding_id).await?;
    let arn = stack.onboarding_arn(ids.onboarding_id)?;
    let mut count = counted_transitions(stack, &arn).await?;
    for arn in stack.teardowns_of(ids.onboarding_id).await? {
        count += counted_transitions(stack, &arn).await?;
    }
    let saga_events = log::published_saga_events(stack, ids.onboarding_id).await?;
    let invocations = until("all invocations to be logged", TIMEOUT, async || {
        let logged = invocations(stack, ids.onboarding_id, since).await?;
        Ok(if logged == *expected {
            Poll::Ready(logged)
        } else {
            Poll::Pending(format!("{logged:?}"))
        })
    })
    .await?;
    Ok(Execution { transitions: count, events: u32::try_from(saga_events.len())?, invocations })
}

/// Returns the invocations that can be counted in the logs. create-site, publish-events and watch-stock know no
/// onboarding when they start, so their lines have no correlation id.
fn countable_invocations(effects: &[Effect]) -> BTreeMap<String, u32> {
    let unlogged = ["create-site", "publish-events", "watch-stock"];
    let logged = effects.iter().filter(|effect| !unlogged.contains(&effect.function.as_str()));
    logged.map(|effect| (effect.function.clone(), effect.invocations)).collect()
}

#[tokio::test]
async fn an_onboarding_uses_what_the_cost_model_predicts() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let machine = |name: &str| -> Result<Value> {
        let file = root.join(format!("statemachines/{name}.asl.json"));
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    };
    let (saga, teardown) = (machine("site-onboarding")?, machine("site-teardown")?);
    let file = root.join("tools/cost/counted/onboarding.json");
    let modelled: Onboardings = serde_json::from_str(&fs::read_to_string(file)?)?;

    let stack = Stack::connect().await?;
    let since = Timestamp::now();
    let done = onboard(&stack, GOOD_CARD).await?;
    let declined = onboard(&stack, DECLINED_CARD).await?;
    let done = count_usage(&stack, done, since, &countable_invocations(&modelled.done)).await?;
    assert_eq!(done.transitions, transitions(&saga, &teardown, None)?);

    // The fourth and the fifth step did not run, so they have no invocations.
    let mut expected = countable_invocations(&modelled.undone);
    for step in ["configure-alerting", "activate-site"] {
        expected.remove(step);
    }
    // project-site gets five events: of three steps (kits, sensors and the failed payment) and of two undos.
    expected.insert("project-site".to_owned(), 5);
    let declined = count_usage(&stack, declined, since, &expected).await?;
    assert_eq!(declined.transitions, transitions(&saga, &teardown, Some(PAYMENT_STEP))?);

    let events = cost::onboarding::events(&modelled.done);
    assert!(
        (f64::from(done.events) - events).abs() < f64::EPSILON,
        "{done:?}, expected {events} events"
    );
    let file = root.join("tools/cost/counted/stack.json");
    check_or_update_json(&file, &Counted { done, declined })
}
