//! The saga of a new site is started once, even if the event is repeated.

use aws_sdk_sfn::Client;
use contracts::{
    Metric, OnboardingId, SensorId,
    inbound::{MAX_NAME, MAX_PAYMENT_METHOD, MAX_SENSORS},
};
use fault::ErrorKind;
use machines::StateMachine;
use onboarding::start_onboarding::StartOnboarding;
use serde_json::{Value, json};
use testkit::{
    http::Stub,
    saga::{Outcome, correlation, run},
    sample,
};

const MACHINE: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:site-onboarding";

/// Runs the step with a stub of Step Functions that returns this response. Returns the outcome and the calls.
async fn start(event: &Value, status: u16, response: Value) -> (Outcome, Vec<Value>) {
    let machines = Stub::start(move |_| (status, response.clone())).await;
    let step = StartOnboarding {
        onboarding: StateMachine {
            client: Client::new(&machines.config()),
            arn: MACHINE.to_owned(),
        },
    };
    let outcome = run(&step, event).await;
    let calls = machines.take_calls();
    assert!(calls.iter().all(|call| call.operation() == "StartExecution"));
    (outcome, calls.iter().map(testkit::http::Call::json).collect())
}

#[tokio::test]
async fn the_saga_is_started_with_its_name_and_the_data_of_its_steps() {
    let mut event = sample::event("start-onboarding");
    event["detail"]["metadata"]["operatorId"] = json!(sample::other_operator());
    let (outcome, calls) =
        start(&event, 200, json!({ "executionArn": "arn", "startDate": 1.0 })).await;
    assert_eq!(outcome, Ok(json!("Started")));
    let [call] = &calls[..] else { panic!("one call: {calls:?}") };
    let data = &event["detail"]["data"];
    assert_eq!(call["stateMachineArn"], MACHINE);
    assert_eq!(call["name"], data["onboardingId"]);
    assert_eq!(correlation::<StartOnboarding>(&event).as_deref(), data["onboardingId"].as_str());
    let input: Value = serde_json::from_str(call["input"].as_str().expect("text")).expect("JSON");
    assert_eq!(input["causationId"], event["detail"]["metadata"]["eventId"]);
    assert_eq!(input["operatorId"], json!(sample::other_operator()));
    for field in ["onboardingId", "siteId", "name", "plan", "paymentMethod"] {
        assert_eq!(input[field], data[field], "{field}");
    }
    let sensors = input["sensors"].as_array().expect("sensors");
    let expected = data["sensors"].as_array().expect("sensors");
    for (sensor, expected) in sensors.iter().zip(expected) {
        assert_eq!(sensor["sensorId"], expected["sensorId"]);
    }
    assert_eq!(sensors.len(), expected.len());
    assert_eq!(input.as_object().expect("an object").len(), 8, "no other fields of the site");
}

/// The maximum size of the input of `StartExecution`, 256 KiB. The limit of `PutEvents` for an entry is not lower.
const MAX_INPUT: usize = 256 * 1024;

#[tokio::test]
async fn the_largest_site_fits_into_an_event_and_into_the_input_of_the_saga() {
    let mut event = sample::event("start-onboarding");
    let data = &mut event["detail"]["data"];
    // A character of four bytes, the maximum in UTF-8.
    let long_name = "\u{1f52c}".repeat(MAX_NAME);
    data["name"] = long_name.as_str().into();
    data["operator"] = long_name.into();
    data["paymentMethod"] = "p".repeat(MAX_PAYMENT_METHOD).into();
    let metric = Metric::ALL.iter().max_by_key(|metric| metric.name().len()).expect("metrics");
    let onboarding: OnboardingId =
        data["onboardingId"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    let sensor = |index| {
        json!({
            "sensorId": SensorId::from_onboarding(onboarding, index),
            "metric": metric,
            "unit": metric.units()[0],
            "min": -1.234_567_890_123_456_7e-100,
            "max": 1.234_567_890_123_456_7e100,
        })
    };
    data["sensors"] = (0..MAX_SENSORS).map(sensor).collect();
    let detail = event["detail"].to_string();
    assert!(detail.len() < MAX_INPUT, "{} bytes", detail.len());

    let (outcome, calls) =
        start(&event, 200, json!({ "executionArn": "arn", "startDate": 1.0 })).await;
    assert_eq!(outcome, Ok(json!("Started")));
    let input = calls[0]["input"].as_str().expect("text");
    assert!((20_000..MAX_INPUT).contains(&input.len()), "{} bytes", input.len());
}

#[tokio::test]
async fn responses_of_step_functions_are_classified() {
    let event = sample::event("start-onboarding");
    for (status, error, outcome) in [
        (400, "ExecutionAlreadyExists", Ok(json!("Already"))),
        (400, "ThrottlingException", Err(ErrorKind::Transient)),
        (500, "InternalFailure", Err(ErrorKind::Transient)),
        (400, "ExecutionLimitExceeded", Err(ErrorKind::Transient)),
        (400, "StateMachineDoesNotExist", Err(ErrorKind::Internal)),
        (400, "AccessDeniedException", Err(ErrorKind::Internal)),
    ] {
        let (result, _) = start(&event, status, json!({ "__type": error })).await;
        assert_eq!(result, outcome, "{error}");
    }
}

#[tokio::test]
async fn an_event_with_ids_of_another_site_starts_nothing() {
    let other = sample::saga("another site");
    let sensor = SensorId::from_onboarding(other.onboarding_id, 0);
    for (path, id) in [
        ("/detail/data/onboardingId", json!(other.onboarding_id)),
        ("/detail/data/siteId", json!(other.site_id)),
        ("/detail/metadata/correlationId", json!(other.onboarding_id)),
        ("/detail/metadata/entity/id", json!(other.site_id)),
        ("/detail/data/sensors/0/sensorId", json!(sensor)),
    ] {
        let mut event = sample::event("start-onboarding");
        *event.pointer_mut(path).expect(path) = id;
        let (outcome, calls) =
            start(&event, 200, json!({ "executionArn": "arn", "startDate": 1.0 })).await;
        assert_eq!(outcome, Err(ErrorKind::InvalidInput), "{path}");
        assert_eq!(calls, [Value::Null; 0], "{path}");
    }
}
