//! check-consumers reports each mapping that does not run. It reports 0 only if it has seen all mappings.

use std::{collections::BTreeMap, time::Duration};

use contracts::names::{CONSUMERS, Consumer, Source};
use failures::check_consumers::CheckConsumers;
use fault::ErrorKind;
use serde_json::{Value, json};
use testkit::{
    http::{Call, NO_RESPONSE, Stub},
    measured::measured,
    saga::{Outcome, run},
    sample::{self, event_source_mapping},
};

const METRIC: &str = "ConsumersNotRunning";
const REGION: &str = "eu-central-1:123456789012";
const QUEUES_URL: &str = "https://sqs.eu-central-1.amazonaws.com/123456789012/";

/// Returns the mappings of `fieldstation-prod`, all enabled.
fn enabled() -> Vec<Value> {
    CONSUMERS.iter().map(|it| event_source_mapping("fieldstation-prod", *it, "Enabled")).collect()
}

/// Returns the same mappings with one of them in another state.
fn with_state(consumer: &str, state: &str) -> Vec<Value> {
    let mut mappings = enabled();
    let index = CONSUMERS.iter().position(|it| it.to_string() == consumer).expect("a consumer");
    mappings[index]["State"] = state.into();
    mappings
}

/// Starts a stub of Lambda and SQS. Lambda has these pages of mappings, and each queue has three messages.
async fn start_stub(pages: Vec<Result<Vec<Value>, (u16, Value)>>) -> Stub {
    Stub::start(move |call| {
        if call.operation() == "GetQueueAttributes" {
            return queue(call);
        }
        assert_eq!(call.method, "GET", "{call:?}");
        assert!(call.path.contains("/event-source-mappings"), "{call:?}");
        let marker = call.path.split_once("Marker=page-").map(|(_, page)| page);
        let page: usize = marker.map_or(0, |page| page.parse().expect("a page"));
        match &pages[page] {
            Ok(mappings) => {
                let next = (page + 1 < pages.len()).then(|| format!("page-{}", page + 1));
                // Lambda and the emulator mark the last page in different ways.
                let next = if page == 0 { json!(next) } else { json!(next.unwrap_or_default()) };
                (200, json!({ "EventSourceMappings": mappings, "NextMarker": next }))
            }
            Err(response) => response.clone(),
        }
    })
    .await
}

fn queue(call: &Call) -> (u16, Value) {
    let url = call.json()["QueueUrl"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with(&format!("{QUEUES_URL}fieldstation-prod-")), "{url}");
    if url.ends_with("-telemetry-failures") {
        return (403, json!({ "__type": "AccessDenied" }));
    }
    let counts = json!({
        "ApproximateNumberOfMessages": "1",
        "ApproximateNumberOfMessagesNotVisible": "2",
        "ApproximateNumberOfMessagesDelayed": "0",
    });
    (200, json!({ "Attributes": counts }))
}

fn step(stub: &Stub) -> CheckConsumers {
    CheckConsumers {
        lambda: aws_sdk_lambda::Client::new(&stub.config()),
        sqs: aws_sdk_sqs::Client::new(&stub.config()),
        environment: "fieldstation-prod".to_owned(),
        queues_url: QUEUES_URL.to_owned(),
        pause: Duration::ZERO,
        timeout: Duration::from_secs(5),
    }
}

/// Returns the outcome and the metric. The metric is `None` if it was not reported.
async fn check(step: &CheckConsumers) -> (Outcome, Option<f64>) {
    let event = sample::event("check-consumers");
    let (outcome, metrics): (_, BTreeMap<_, _>) = measured(run(step, &event)).await;
    (outcome, metrics.get(METRIC).copied())
}

/// Returns the outcome and the metric for one mapping that does not run.
fn reply_with_stopped(
    checked: usize,
    name: &str,
    state: &str,
    waiting: Option<u64>,
) -> (Outcome, Option<f64>) {
    let mapping = json!({ "mapping": name, "state": state, "waiting": waiting });
    (Ok(json!({ "checked": checked, "notRunning": [mapping] })), Some(1.0))
}

fn expected_count() -> usize {
    CONSUMERS.len()
}

#[tokio::test]
async fn zero_is_reported_if_all_mappings_run_and_no_queue_is_read() {
    let stub = start_stub(vec![Ok(enabled())]).await;
    let reply = json!({ "checked": expected_count(), "notRunning": [] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(0.0)));
    let calls = stub.take_calls();
    assert_eq!(calls.len(), 1, "one call per page: {calls:?}");
}

#[tokio::test]
async fn all_pages_are_read_and_other_environments_are_ignored() {
    let other = |it: &Consumer<'_>| event_source_mapping("fieldstation-staging", *it, "Disabled");
    let others: Vec<_> = CONSUMERS.iter().map(other).collect();
    let mut mappings = enabled();
    let last = mappings.split_off(expected_count() - 2);
    let stub = start_stub(vec![Ok(mappings), Ok(others), Ok(last)]).await;
    let reply = json!({ "checked": expected_count(), "notRunning": [] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(0.0)));
    assert_eq!(stub.take_calls().len(), 3);
}

#[tokio::test]
async fn each_state_but_enabled_is_reported() {
    let name = "store-readings <- stream readings";
    for state in ["Creating", "Enabling", "Disabling", "Disabled", "Updating", "Deleting"] {
        let stub = start_stub(vec![Ok(with_state(name, state))]).await;
        assert_eq!(
            check(&step(&stub)).await,
            reply_with_stopped(expected_count(), name, state, None),
            "{state}"
        );
    }
}

#[tokio::test]
async fn the_number_of_messages_of_a_disabled_mapping_is_reported() {
    let name = "record-failure <- queue failure-files";
    let stub = start_stub(vec![Ok(with_state(name, "Disabled"))]).await;
    assert_eq!(
        check(&step(&stub)).await,
        reply_with_stopped(expected_count(), name, "Disabled", Some(3))
    );

    // A queue whose messages can't be counted does not hide the mapping.
    let name = "record-failure <- queue telemetry-failures";
    let stub = start_stub(vec![Ok(with_state(name, "Disabled"))]).await;
    assert_eq!(
        check(&step(&stub)).await,
        reply_with_stopped(expected_count(), name, "Disabled", None)
    );
}

#[tokio::test]
async fn an_expected_mapping_that_does_not_exist_is_reported() {
    for (index, consumer) in CONSUMERS.iter().enumerate() {
        let mut mappings = enabled();
        mappings.remove(index);
        let stub = start_stub(vec![Ok(mappings)]).await;
        let waiting = match consumer.source {
            Source::Queue("telemetry-failures") | Source::Stream(_) | Source::Table(_) => None,
            Source::Queue(_) => Some(3),
        };
        let expected =
            reply_with_stopped(expected_count() - 1, &consumer.to_string(), "Missing", waiting);
        assert_eq!(check(&step(&stub)).await, expected);
    }
}

#[tokio::test]
async fn an_unexpected_mapping_is_reported_only_if_it_does_not_run() {
    let consumer = Consumer { function: "new-function", source: Source::Queue("new-commands") };
    let mut mappings = enabled();
    mappings.push(event_source_mapping("fieldstation-prod", consumer, "Enabled"));
    let stub = start_stub(vec![Ok(mappings.clone())]).await;
    let reply = json!({ "checked": expected_count() + 1, "notRunning": [] });
    assert_eq!(check(&step(&stub)).await, (Ok(reply), Some(0.0)));

    mappings[expected_count()]["State"] = "Disabled".into();
    let stub = start_stub(vec![Ok(mappings.clone())]).await;
    let name = "new-function <- queue new-commands";
    assert_eq!(
        check(&step(&stub)).await,
        reply_with_stopped(expected_count() + 1, name, "Disabled", Some(3))
    );

    // A source of another environment is named by its ARN, and its messages are not counted.
    let arn = format!("arn:aws:sqs:{REGION}:another-queue");
    mappings[expected_count()]["EventSourceArn"] = arn.as_str().into();
    let stub = start_stub(vec![Ok(mappings)]).await;
    let name = format!("new-function <- {arn}");
    assert_eq!(
        check(&step(&stub)).await,
        reply_with_stopped(expected_count() + 1, &name, "Disabled", None)
    );
}

#[tokio::test]
async fn nothing_is_reported_if_not_all_mappings_were_listed() {
    let mut first = enabled();
    let _last = first.split_off(3);
    for (status, code, kind) in [
        (429, "TooManyRequestsException", ErrorKind::Transient),
        (500, "ServiceException", ErrorKind::Transient),
        (403, "AccessDeniedException", ErrorKind::Internal),
    ] {
        let refused = Err((status, json!({ "__type": code })));
        let stub = start_stub(vec![Ok(first.clone()), refused]).await;
        assert_eq!(
            check(&step(&stub)).await,
            (Err(kind), None),
            "0 would mean that all mappings run"
        );
    }
    let stub = start_stub(vec![Ok(first), Err((NO_RESPONSE, Value::Null))]).await;
    let short_timeout = CheckConsumers { timeout: Duration::from_millis(300), ..step(&stub) };
    assert_eq!(
        check(&short_timeout).await,
        (Err(ErrorKind::Transient), None),
        "the check timed out"
    );
}

#[tokio::test]
async fn a_mapping_that_does_not_run_is_reported_even_if_others_were_not_listed() {
    let first = with_state("initialize-subscription <- queue initialize-subscription", "Disabled");
    let throttled = Err((429, json!({ "__type": "TooManyRequestsException" })));
    let stub = start_stub(vec![Ok(first), throttled]).await;
    assert_eq!(check(&step(&stub)).await, (Err(ErrorKind::Transient), Some(1.0)));
}
