//! check-consumers reports each mapping that does not run, and reports none only if it has seen all.

use std::{collections::BTreeMap, time::Duration};

use failures::check_consumers::CheckConsumers;
use lambda::ErrorKind;
use serde_json::{Value, json};
use testkit::{
    http::{Call, SILENCE, Stub},
    measured::measured,
    saga::{Outcome, run},
    sample,
};

const METRIC: &str = "ConsumersNotRunning";
const MAPPINGS: &str =
    "StoreReadingsMapping=uuid-1,FailureFilesMapping=uuid-2,PublishEventsMapping=uuid-3";

/// What Lambda's API answers about a mapping of a queue or of a stream.
fn described(source: &str, state: &str) -> (u16, Value) {
    let mapping = json!({
        "UUID": "a UUID",
        "EventSourceArn": source,
        "FunctionArn": "arn:aws:lambda:eu-central-1:123456789012:function:f:live",
        "State": state,
        "StateTransitionReason": "USER_INITIATED",
        "LastModified": 1_795_251_600.5,
        "LastProcessingResult": "No records processed",
    });
    (200, mapping)
}

const QUEUE: &str = "arn:aws:sqs:eu-central-1:123456789012:stack-FailureFiles-1";
const STREAM: &str = "arn:aws:kinesis:eu-central-1:123456789012:stream/readings";

/// Lambda and SQS. All mappings are enabled, and three messages are in each queue, unless `other` answers.
async fn cloud(other: impl Fn(&Call) -> Option<(u16, Value)> + Send + Sync + 'static) -> Stub {
    Stub::start(move |call| {
        if let Some(answer) = other(call) {
            return answer;
        }
        if call.operation() == "GetQueueAttributes" {
            let url = "https://sqs.eu-central-1.amazonaws.com/123456789012/stack-FailureFiles-1";
            assert_eq!(call.json()["QueueUrl"], url);
            let counts = json!({
                "ApproximateNumberOfMessages": "1",
                "ApproximateNumberOfMessagesNotVisible": "2",
                "ApproximateNumberOfMessagesDelayed": "0",
            });
            return (200, json!({ "Attributes": counts }));
        }
        assert_eq!(call.method, "GET", "{call:?}");
        described(if is_of(call, "uuid-2") { QUEUE } else { STREAM }, "Enabled")
    })
    .await
}

fn is_of(call: &Call, uuid: &str) -> bool {
    call.path.contains(&format!("/event-source-mappings/{uuid}"))
}

fn step(stub: &Stub) -> CheckConsumers {
    CheckConsumers {
        lambda: aws_sdk_lambda::Client::new(&stub.config()),
        sqs: aws_sdk_sqs::Client::new(&stub.config()),
        mappings: MAPPINGS.parse().expect("mappings"),
        queues_url: "https://sqs.eu-central-1.amazonaws.com/123456789012/".to_owned(),
        pause: Duration::ZERO,
        time: Duration::from_secs(5),
    }
}

/// The outcome, and the metric: none if nothing was reported.
async fn check(step: &CheckConsumers) -> (Outcome, Option<f64>) {
    let event = sample::event("check-consumers");
    let (outcome, metrics): (_, BTreeMap<_, _>) = measured(run(step, &event)).await;
    (outcome, metrics.get(METRIC).copied())
}

fn throttled() -> (u16, Value) {
    (429, json!({ "__type": "TooManyRequestsException" }))
}

#[tokio::test]
async fn if_all_mappings_run_0_is_reported_and_no_queue_is_asked() {
    let stub = cloud(|_| None).await;
    let reply = json!({ "checked": 3, "notRunning": [] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(0.0)));
    let calls = stub.take_calls();
    assert_eq!(calls.len(), 3, "one for each mapping: {calls:?}");
}

#[tokio::test]
async fn each_state_but_enabled_is_reported() {
    for state in ["Creating", "Enabling", "Disabling", "Disabled", "Updating", "Deleting"] {
        let stub = cloud(move |call| is_of(call, "uuid-1").then(|| described(STREAM, state))).await;
        let stopped = json!({ "mapping": "StoreReadingsMapping", "state": state, "waiting": null });
        let reply = json!({ "checked": 3, "notRunning": [stopped] });
        assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(1.0)), "{state}");
    }
}

#[tokio::test]
async fn what_waits_in_the_queue_of_a_disabled_mapping_is_reported() {
    let stub = cloud(|call| is_of(call, "uuid-2").then(|| described(QUEUE, "Disabled"))).await;
    let stopped = json!({ "mapping": "FailureFilesMapping", "state": "Disabled", "waiting": 3 });
    let reply = json!({ "checked": 3, "notRunning": [stopped] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(1.0)));

    // A queue that can't be counted does not hide the mapping.
    let stub = cloud(|call| match call.operation() {
        "GetQueueAttributes" => Some((403, json!({ "__type": "AccessDenied" }))),
        _ => is_of(call, "uuid-2").then(|| described(QUEUE, "Disabled")),
    })
    .await;
    let stopped = json!({ "mapping": "FailureFilesMapping", "state": "Disabled", "waiting": null });
    let reply = json!({ "checked": 3, "notRunning": [stopped] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(1.0)));
}

#[tokio::test]
async fn a_mapping_that_lambda_does_not_know_is_reported() {
    let unknown = || (404, json!({ "__type": "ResourceNotFoundException" }));
    let stub = cloud(move |call| is_of(call, "uuid-3").then(unknown)).await;
    let stopped = json!({ "mapping": "PublishEventsMapping", "state": "Missing", "waiting": null });
    let reply = json!({ "checked": 3, "notRunning": [stopped] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(1.0)));
}

#[tokio::test]
async fn nothing_is_reported_if_a_mapping_was_not_seen() {
    let refused = || (403, json!({ "__type": "AccessDeniedException" }));
    for (answer, kind) in [
        (throttled as fn() -> (u16, Value), ErrorKind::Transient),
        (|| (500, json!({ "__type": "ServiceException" })), ErrorKind::Transient),
        (refused, ErrorKind::Internal),
    ] {
        let stub = cloud(move |call| is_of(call, "uuid-1").then(answer)).await;
        assert_eq!(check(&step(&stub)).await, (Err(kind), None), "0 would say that all run");
        assert_eq!(stub.take_calls().len(), 3, "the others are looked at");
    }
    let stub = cloud(|call| is_of(call, "uuid-3").then_some((SILENCE, Value::Null))).await;
    let hurried = CheckConsumers { time: Duration::from_millis(300), ..step(&stub) };
    assert_eq!(check(&hurried).await, (Err(ErrorKind::Transient), None), "the time ran out");
}

#[tokio::test]
async fn a_mapping_that_does_not_run_is_reported_though_another_was_not_seen() {
    let stub = cloud(|call| {
        if is_of(call, "uuid-1") {
            return Some(throttled());
        }
        is_of(call, "uuid-2").then(|| described(QUEUE, "Disabled"))
    })
    .await;
    assert_eq!(check(&step(&stub)).await, (Err(ErrorKind::Transient), Some(1.0)));
}

#[test]
fn a_wrong_list_of_mappings_is_refused_at_the_start() {
    for text in ["", "StoreReadingsMapping", "=uuid", "StoreReadingsMapping=", "A=1,,B=2"] {
        let error = text.parse::<failures::check_consumers::Mappings>().expect_err(text);
        assert!(error.to_string().contains("<name>=<UUID>"), "{error}");
    }
}
