//! Whatever is in a message or a file: it is read as failures, and nothing of it is lost.

use aws_lambda_events::event::sqs::SqsMessage;
use failures::{
    Kind, PayloadFile,
    reading::{self, Failure, Notification, Payload},
};
use proptest::{prelude::*, test_runner::RngSeed};
use serde_json::{Value, json};
use testkit::sample::saga;

/// JSON out of the words of the known forms, in any order and place.
fn told() -> impl Strategy<Value = Value> {
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

/// The known forms, each with anything where a piece of work belongs.
fn known() -> impl Strategy<Value = Value> {
    (told(), told(), any::<String>(), 0..5_u8).prop_map(|(work, more, text, form)| match form {
        0 => json!({
            "requestContext": { "condition": text }, "requestPayload": work, "responsePayload": more,
        }),
        1 => json!({ "taskToken": text, "command": work }),
        2 => json!({ "error": text, "reason": text, "record": work, "source": more }),
        3 => json!({
            "detail-type": "Step Functions Execution Status Change",
            "detail": { "executionArn": text, "name": text, "status": "FAILED", "input": text },
        }),
        _ => json!({
            "requestContext": { "condition": text }, "payload": { "Records": [work, more] },
        }),
    })
}

fn message(body: &str) -> SqsMessage {
    let mut message = SqsMessage::default();
    message.body = Some(body.to_owned());
    message
}

fn payload_is_kept(failure: &Failure, body: &str) -> Result<(), TestCaseError> {
    let Payload::Text(payload) = &failure.payload else { panic!("a message is no file") };
    match failure.kind {
        Kind::Unreadable | Kind::DeadLetter => prop_assert_eq!(payload, body),
        Kind::FunctionFailed | Kind::Quarantined => prop_assert!(body.contains(payload)),
        Kind::ExecutionFailed => {
            let body: Value = serde_json::from_str(body).expect("JSON");
            prop_assert_eq!(payload, body["detail"]["input"].as_str().expect("text"));
        }
        Kind::NotDelivered | Kind::GivenUp => panic!("not from a bare message"),
    }
    Ok(())
}

fn nothing_is_lost(body: &str) -> Result<(), TestCaseError> {
    let teardown = reading::message("site-teardown", &message(body));
    let failure = reading::message("a-function", &message(body));
    for failure in [teardown, failure.clone()] {
        payload_is_kept(&failure, body)?;
    }
    prop_assert_eq!(failure.id, reading::message("a-function", &message(body)).id);
    prop_assert_ne!(failure.id, reading::message("b-function", &message(body)).id);

    let file = PayloadFile { bucket: "b".to_owned(), key: "k".to_owned() };
    let failures = reading::file("a-function", &file, body.as_bytes());
    prop_assert!(!failures.is_empty());
    for failure in failures {
        match failure.payload {
            Payload::Text(record) => prop_assert!(body.contains(&record)),
            Payload::File(kept) => prop_assert_eq!(&kept, &file),
        }
    }
    prop_assert_ne!(reading::notification(body), Notification::Test);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_a_failure(bytes: Vec<u8>) {
        let file = PayloadFile { bucket: "b".to_owned(), key: "k".to_owned() };
        prop_assert_eq!(reading::file("a-function", &file, &bytes).len(), 1);
        nothing_is_lost(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn any_json_is_a_failure(told in told()) {
        nothing_is_lost(&told.to_string())?;
    }

    #[test]
    fn any_work_in_a_known_form_is_kept_as_it_came(told in known()) {
        nothing_is_lost(&told.to_string())?;
    }
}

#[test]
fn json_too_deep_to_look_into_is_kept_all_the_same() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let quarantined = format!(r#"{{"error": "e", "reason": "r", "record": {deep}}}"#);
    for body in [&deep, &quarantined] {
        nothing_is_lost(body).expect("nothing lost");
    }
}

#[test]
fn a_sagas_teardowns_are_one_piece_of_work_however_they_are_told_of() {
    let ended = |name: &str, onboarding: &str| {
        let detail = json!({
            "executionArn": format!("arn:{name}"),
            "status": "FAILED",
            "input": json!({ "onboardingId": onboarding }).to_string(),
        });
        let kind = "Step Functions Execution Status Change";
        message(&json!({ "detail-type": kind, "detail": detail }).to_string())
    };
    let one = reading::message("site-teardown", &ended("nested", "a"));
    let mut undelivered = ended("recovery", "a");
    undelivered
        .message_attributes
        .insert("ERROR_CODE".to_owned(), serde_json::from_value(json!({ "stringValue": "SDK_CLIENT_ERROR", "dataType": "String", "stringListValues": [], "binaryListValues": [] })).expect("an attribute"));
    let same = reading::message("site-teardown", &undelivered);
    assert_eq!((same.id, same.kind), (one.id, Kind::ExecutionFailed));
    assert_ne!(same.execution, one.execution);
    let other = reading::message("site-teardown", &ended("nested", "b"));
    assert_ne!(other.id, one.id);
}

#[test]
fn the_site_is_found_in_lists_and_in_texts_of_json() {
    let site = saga("a").site_id;
    for told in [
        json!([{ "note": "x" }, { "kinesis": { "partitionKey": site } }]),
        json!({ "Records": [{ "body": json!({ "siteId": site }).to_string() }] }),
    ] {
        let failure = reading::message("project-site", &message(&told.to_string()));
        assert_eq!(failure.site_id, Some(site), "{told}");
    }
}
