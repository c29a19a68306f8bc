//! Counts what an onboarding uses on the deployed stack (state transitions, events and invocations) for the
//! cost model, which computes the transitions from the definitions.
//!
//! `UPDATE_DOCS=1 cargo test -p tests --test cost` writes the new counts.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::HistoryEventType;
use contracts::{Metric, OnboardingId};
use cost::{
    counted::{Effect, Execution, Onboardings, Stack as Counted},
    docs::check_or_update_json,
    machine::transitions,
};
use serde_json::{Value, json};
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

/// Calls CloudWatch Logs, for which the tests have no client. The emulator does not check signatures of its own
/// account.
async fn logs(stack: &Stack, operation: &str, request: &Value) -> Result<Value> {
    let authorization = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/logs/aws4_request, \
                         SignedHeaders=host, Signature=0";
    let call = reqwest::Client::builder().no_proxy().build()?.post(stack.endpoint().clone());
    let call = call
        .header("x-amz-target", format!("Logs_20140328.{operation}"))
        .header("content-type", "application/x-amz-json-1.1")
        .header("authorization", authorization)
        .body(request.to_string());
    let response = call.send().await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status.is_success(), "{operation} returned {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// Returns the JSON lines of a log group.
async fn lines(stack: &Stack, group: &str) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    let mut request = json!({ "logGroupName": group, "limit": 10_000 });
    loop {
        let page = logs(stack, "FilterLogEvents", &request).await?;
        let events = page["events"].as_array().context("no log lines")?.iter();
        // Lambda's own lines are not JSON on the emulator.
        lines.extend(events.filter_map(|it| serde_json::from_str(it["message"].as_str()?).ok()));
        match &page["nextToken"] {
            Value::Null => return Ok(lines),
            token => request["nextToken"] = token.clone(),
        }
    }
}

/// Counts how often each function logged `done` or `failed` for this onboarding.
async fn invocations(stack: &Stack, onboarding: OnboardingId) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    let prefix = format!("/aws/lambda/{}/", stack.name());
    let request = json!({ "logGroupNamePrefix": prefix, "limit": 50 });
    let groups = logs(stack, "DescribeLogGroups", &request).await?;
    for group in groups["logGroups"].as_array().context("no log groups")? {
        let group = group["logGroupName"].as_str().context("a group without a name")?;
        let lines = lines(stack, group).await?;
        let ended = lines.iter().filter(|line| {
            let has_ended = line["message"] == "done" || line["message"] == "failed";
            has_ended && line["span"]["correlationId"] == onboarding.to_string()
        });
        let count = u32::try_from(ended.count())?;
        if count > 0 {
            let function = group.strip_prefix(&prefix).context("a log group of another stack")?;
            counts.insert(function.to_owned(), count);
        }
    }
    Ok(counts)
}

/// Counts what an onboarding used, after it has ended and the expected number of invocations is logged.
async fn count_usage(
    stack: &Stack,
    ids: Ids,
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
        let logged = invocations(stack, ids.onboarding_id).await?;
        Ok(if logged == *expected {
            Poll::Ready(logged)
        } else {
            Poll::Pending(format!("{logged:?}"))
        })
    })
    .await?;
    Ok(Execution { transitions: count, events: u32::try_from(saga_events.len())?, invocations })
}

/// Returns the invocations that can be counted in the logs. create-site and publish-events know no onboarding
/// when they start, so their lines have no correlation id.
fn countable_invocations(effects: &[Effect]) -> BTreeMap<String, u32> {
    let unlogged = ["create-site", "publish-events"];
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
    let done = onboard(&stack, GOOD_CARD).await?;
    let declined = onboard(&stack, DECLINED_CARD).await?;
    let done = count_usage(&stack, done, &countable_invocations(&modelled.done)).await?;
    assert_eq!(done.transitions, transitions(&saga, &teardown, None)?);

    // The fourth and the fifth step did not run, so there are no events of them.
    let mut expected = countable_invocations(&modelled.undone);
    for step in ["configure-alerting", "activate-site"] {
        expected.remove(step);
    }
    // Three steps: kits, sensors and the failure. Two undos: sensors and kits.
    expected.insert("project-site".to_owned(), 5);
    let declined = count_usage(&stack, declined, &expected).await?;
    assert_eq!(declined.transitions, transitions(&saga, &teardown, Some(PAYMENT_STEP))?);

    let events = cost::onboarding::events(&modelled.done);
    assert!(
        (f64::from(done.events) - events).abs() < f64::EPSILON,
        "{done:?}, expected {events} events"
    );
    let file = root.join("tools/cost/counted/stack.json");
    check_or_update_json(&file, &Counted { done, declined })
}
