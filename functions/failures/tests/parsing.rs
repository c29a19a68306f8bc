//! Any content of a message or a file becomes failures, and none of it is lost.

use aws_lambda_events::event::sqs::SqsMessage;
use failures::parse::{self, Parsed};
use ledger::{FailedWork, Kind, Payload, PayloadFile};
use proptest::{prelude::*, test_runner::RngSeed};
use serde_json::{Value, json};
use testkit::sample::saga;

const ENVIRONMENT: &str = "fieldstation-prod";
const QUEUES: &str = "arn:aws:sqs:eu-central-1:123456789012:fieldstation-prod-";
const FUNCTION: &str =
    "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-prod-a-function:live";
const MACHINE: &str =
    "arn:aws:states:eu-central-1:123456789012:stateMachine:fieldstation-prod-site-teardown";

/// Generates JSON from the words of the known formats, in any order and nesting.
fn any_json() -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec![
        "requestContext",
        "condition",
        "requestPayload",
        "responsePayload",
        "errorType",
        "errorMessage",
        "taskToken",
        "command",
        "source",
        "error",
        "reason",
        "record",
        "kinesis",
        "data",
        "partitionKey",
        "eventID",
        "dynamodb",
        "detail-type",
        "detail",
        "executionArn",
        "name",
        "status",
        "input",
        "payload",
        "Records",
        "s3",
        "siteId",
        "correlationId",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("Step Functions Execution Status Change")),
        Just(json!("{\"Records\": [{}, 1]}")),
        Just(json!("replay-äöü")),
    ];
    leaf.prop_recursive(4, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..8)
                .prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

/// Generates the known formats with any content as the work.
fn known_format() -> impl Strategy<Value = Value> {
    (any_json(), any_json(), any::<String>(), 0..5_u8).prop_map(|(work, more, text, form)| match form {
        0 => json!({
            "requestContext": { "condition": text, "functionArn": FUNCTION }, "requestPayload": work,
            "responsePayload": more,
        }),
        1 => json!({ "taskToken": text, "command": work }),
        2 => json!({
            "error": text, "reason": text, "record": work, "source": "a-function", "more": more,
        }),
        3 => json!({
            "detail-type": "Step Functions Execution Status Change",
            "detail": {
                "executionArn": text, "stateMachineArn": MACHINE, "name": text, "status": "FAILED",
                "input": text,
            },
        }),
        _ => json!({
            "requestContext": { "condition": text, "functionArn": FUNCTION },
            "payload": { "Records": [work, more] },
        }),
    })
}

fn message(queue: &str, body: &str) -> SqsMessage {
    let mut message = SqsMessage::default();
    message.body = Some(body.to_owned());
    message.event_source_arn = Some(format!("{QUEUES}{queue}"));
    message
}

/// Returns the failure that is parsed from a message in this queue.
fn failed(queue: &str, body: &str) -> FailedWork {
    match parse::message(ENVIRONMENT, &message(queue, body)) {
        Parsed::Failed(work) => *work,
        other => panic!("{other:?}"),
    }
}

fn check_payload_is_kept(failure: &FailedWork, body: &str) -> Result<(), TestCaseError> {
    let Payload::Text(payload) = &failure.payload else {
        panic!("the payload of a message is not a file")
    };
    match failure.kind {
        Kind::Unreadable | Kind::DeadLetter => prop_assert_eq!(payload, body),
        Kind::FunctionFailed | Kind::Quarantined => prop_assert!(body.contains(payload)),
        Kind::ExecutionFailed => {
            let body: Value = serde_json::from_str(body).expect("JSON");
            prop_assert_eq!(payload, body["detail"]["input"].as_str().expect("text"));
        }
        Kind::NotDelivered | Kind::GivenUp => {
            panic!("unexpected kind for a message without attributes")
        }
    }
    Ok(())
}

fn check_nothing_is_lost(body: &str) -> Result<(), TestCaseError> {
    for queue in ["sites-failures", "cancel-subscription-failures", "failure-files", "other"] {
        let failure = failed(queue, body);
        check_payload_is_kept(&failure, body)?;
        prop_assert_eq!(failure.id, failed(queue, body).id);
    }

    let file = PayloadFile { bucket: "b".to_owned(), key: "k".to_owned() };
    let failures = parse::file(ENVIRONMENT, &file, body.as_bytes());
    prop_assert!(!failures.is_empty());
    for failure in failures {
        match failure.payload {
            Payload::Text(record) => prop_assert!(body.contains(&record)),
            Payload::File(kept) => prop_assert_eq!(&kept, &file),
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_become_a_failure(bytes: Vec<u8>) {
        let file = PayloadFile { bucket: "b".to_owned(), key: "k".to_owned() };
        prop_assert_eq!(parse::file(ENVIRONMENT, &file, &bytes).len(), 1);
        check_nothing_is_lost(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn any_json_becomes_a_failure(work in any_json()) {
        check_nothing_is_lost(&work.to_string())?;
    }

    #[test]
    fn any_work_in_a_known_format_is_kept_unchanged(work in known_format()) {
        check_nothing_is_lost(&work.to_string())?;
    }
}

#[test]
fn json_that_is_nested_too_deeply_is_kept_unchanged() {
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let quarantined =
        format!(r#"{{"source": "a-function", "error": "e", "reason": "r", "record": {nested}}}"#);
    for body in [&nested, &quarantined] {
        check_nothing_is_lost(body).expect("nothing lost");
    }
}

#[test]
fn the_known_formats_are_recognised() {
    for (queue, body, kind, source) in [
        (
            "sites-failures",
            json!({
                "requestContext": { "condition": "x", "functionArn": FUNCTION },
                "requestPayload": 1,
            }),
            Kind::FunctionFailed,
            "a-function",
        ),
        (
            "sites-failures",
            json!({ "source": "a-function", "error": "e", "reason": "r", "record": 1 }),
            Kind::Quarantined,
            "a-function",
        ),
        (
            "cancel-subscription-failures",
            json!({ "taskToken": "t", "command": 1 }),
            Kind::DeadLetter,
            "cancel-subscription",
        ),
    ] {
        let failure = failed(queue, &body.to_string());
        assert_eq!((failure.kind, failure.source.as_str()), (kind, source));
    }
}

#[test]
fn all_teardowns_of_a_saga_are_the_same_work() {
    let teardown_failure = |name: &str, onboarding: &str| {
        let detail = json!({
            "executionArn": format!("arn:{name}"),
            "stateMachineArn": MACHINE,
            "status": "FAILED",
            "input": json!({ "onboardingId": onboarding }).to_string(),
        });
        let kind = "Step Functions Execution Status Change";
        failed("onboarding-failures", &json!({ "detail-type": kind, "detail": detail }).to_string())
    };
    let (one, other) = (teardown_failure("nested", "a"), teardown_failure("recovery", "a"));
    assert_eq!((other.id, other.kind), (one.id, Kind::ExecutionFailed));
    assert_ne!(other.execution, one.execution);
    assert_ne!(teardown_failure("nested", "b").id, one.id);
}

#[test]
fn the_site_is_found_in_lists_and_in_embedded_json() {
    let site = saga("a").site_id;
    for content in [
        json!([{ "note": "x" }, { "kinesis": { "partitionKey": site } }]),
        json!({ "Records": [{ "body": json!({ "siteId": site }).to_string() }] }),
    ] {
        assert_eq!(failed("sites-failures", &content.to_string()).site_id, Some(site), "{content}");
    }
}
