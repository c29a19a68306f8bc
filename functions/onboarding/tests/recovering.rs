//! A stopped saga is undone once.

use aws_sdk_sfn::Client;
use contracts::{OperatorId, saga::TeardownInput};
use fault::{ErrorKind, Fault};
use lambda::Step;
use machines::StateMachine;
use onboarding::recover_onboarding::RecoverOnboarding;
use serde_json::{Value, json};
use testkit::{
    http::{Call, Stub},
    saga::{Outcome, correlation, run},
    sample,
};

const ONBOARDING: &str =
    "arn:aws:states:eu-central-1:123456789012:stateMachine:fieldstation-prod-site-onboarding";
const TEARDOWN: &str =
    "arn:aws:states:eu-central-1:123456789012:stateMachine:fieldstation-prod-site-teardown";

/// Starts a stub of Step Functions with an execution that ended in `state`. The stub refuses to start two executions
/// with the same name.
async fn step_functions(state: Option<&'static str>) -> Stub {
    let names = std::sync::Mutex::new(Vec::new());
    Stub::start(move |call| match call.operation() {
        "GetExecutionHistory" => {
            let mut events = vec![json!({ "id": 9, "timestamp": 2.0, "type": "ExecutionFailed" })];
            if let Some(name) = state {
                let entered = json!({ "name": name });
                events.push(json!({
                    "id": 8, "timestamp": 1.0, "type": "FailStateEntered",
                    "stateEnteredEventDetails": entered,
                }));
                events.push(json!({
                    "id": 2, "timestamp": 0.0, "type": "TaskStateEntered",
                    "stateEnteredEventDetails": { "name": "ReserveKits" },
                }));
            }
            (200, json!({ "events": events }))
        }
        "DescribeExecution" => {
            let described = json!({
                "executionArn": call.json()["executionArn"],
                "stateMachineArn": ONBOARDING,
                "status": "ABORTED",
                "startDate": 1.0,
                "input": ended()["detail"]["input"],
            });
            (200, described)
        }
        "StartExecution" => {
            let mut names = names.lock().expect("names");
            let name = call.json()["name"].clone();
            if names.contains(&name) {
                return (400, json!({ "__type": "ExecutionAlreadyExists" }));
            }
            names.push(name);
            (200, json!({ "executionArn": "arn", "startDate": 1.0 }))
        }
        _ => (400, json!({ "__type": "AccessDeniedException" })),
    })
    .await
}

/// The name of a nested teardown, in the form that Step Functions chooses.
const NESTED: &str = "7a1f0e4e-4d0c-4f63-9d1f-0d7c5a3b2e11";

fn recover_onboarding(stub: &Stub) -> RecoverOnboarding {
    let client = Client::new(&stub.config());
    RecoverOnboarding {
        onboarding: StateMachine { client: client.clone(), arn: ONBOARDING.to_owned() },
        teardown: StateMachine { client, arn: TEARDOWN.to_owned() },
    }
}

/// Returns the sample event: an onboarding that was aborted.
fn ended() -> Value {
    sample::event("recover-onboarding")
}

fn onboarding_id() -> String {
    ended()["detail"]["name"].as_str().expect("a name").to_owned()
}

/// Returns the event of a teardown with this name and status. The teardown [`NESTED`] was started by the onboarding.
fn ended_teardown(name: &str, status: &str) -> Value {
    let mut event = ended();
    let detail = &mut event["detail"];
    let mut input = json!({
        "onboardingId": detail["name"],
        "siteId": "36525261-64d3-5f8c-93d1-fb195ff9fe73",
        "causationId": null,
        "failure": { "step": "ReserveKits", "error": "KitsOutOfStock", "message": "None left." },
    });
    if name == NESTED {
        input["AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID"] = detail["executionArn"].clone();
    }
    detail["input"] = input.to_string().into();
    detail["name"] = name.into();
    detail["status"] = status.into();
    detail["stateMachineArn"] = TEARDOWN.into();
    detail["executionArn"] =
        format!("{}:{name}", TEARDOWN.replace(":stateMachine:", ":execution:")).into();
    event
}

async fn recover(event: &Value, state: Option<&'static str>) -> (Outcome, Vec<Call>) {
    let stub = step_functions(state).await;
    (run(&recover_onboarding(&stub), event).await, stub.take_calls())
}

/// Returns the name and the input of the only teardown that was started.
fn started(calls: &[Call]) -> (String, Value) {
    let starts: Vec<_> =
        calls.iter().filter(|call| call.operation() == "StartExecution").map(Call::json).collect();
    let [start] = &starts[..] else { panic!("one start: {calls:?}") };
    assert_eq!(start["stateMachineArn"], TEARDOWN);
    let input = serde_json::from_str(start["input"].as_str().expect("text")).expect("JSON");
    (start["name"].as_str().expect("a name").to_owned(), input)
}

#[tokio::test]
async fn a_stopped_onboarding_is_undone_and_its_state_is_reported() {
    for (status, error, words) in
        [("ABORTED", "Aborted", "was stopped"), ("TIMED_OUT", "TimedOut", "timed out")]
    {
        let mut event = ended();
        event["detail"]["status"] = status.into();
        let (outcome, calls) = recover(&event, Some("ConfigureAlerting")).await;
        assert_eq!(outcome, Ok(json!("Started")), "{status}");
        let (name, input) = started(&calls);
        assert_eq!(name, format!("recovery-{}", onboarding_id()));
        assert_eq!(correlation::<RecoverOnboarding>(&event), Some(onboarding_id()));
        let original: Value =
            serde_json::from_str(event["detail"]["input"].as_str().expect("text")).expect("JSON");
        let message =
            format!("The onboarding {words} in the state ConfigureAlerting and was then undone.");
        let expected = json!({
            "onboardingId": original["onboardingId"],
            "siteId": original["siteId"],
            // The input of an execution that started before there were operators has none.
            "operatorId": OperatorId::DEFAULT,
            "causationId": original["causationId"],
            "failure": { "step": "ConfigureAlerting", "error": error, "message": message },
        });
        assert_eq!(input, expected);
    }
}

#[tokio::test]
async fn a_failed_onboarding_is_undone_unless_it_undid_itself() {
    let mut event = ended();
    event["detail"]["status"] = "FAILED".into();
    event["detail"]["error"] = "CardDeclined".into();
    let (outcome, calls) = recover(&event, Some("OnboardingFailed")).await;
    assert_eq!(outcome, Ok(json!("NotNeeded")));
    let history = calls.iter().map(Call::json).collect::<Vec<_>>();
    let [request] = &history[..] else { panic!("one call: {calls:?}") };
    assert_eq!(
        (&request["reverseOrder"], &request["includeExecutionData"]),
        (&json!(true), &json!(false))
    );

    for (error, state, step) in [
        ("CompensationIncomplete", Some("CompensationIncomplete"), "CompensationIncomplete"),
        ("States.QueryEvaluationError", Some("Compensate"), "Compensate"),
        ("States.Runtime", None, "Start"),
    ] {
        event["detail"]["error"] = error.into();
        let (outcome, calls) = recover(&event, state).await;
        assert_eq!(outcome, Ok(json!("Started")), "{error}");
        let failure = started(&calls).1["failure"].clone();
        assert_eq!((&failure["step"], &failure["error"]), (&json!(step), &json!(error)));
    }

    // If the cause contains the failure of the step, the site shows that failure.
    let first = json!({ "step": "ActivateSite", "error": "Internal", "message": "Broken." });
    event["detail"]["cause"] =
        json!({ "message": "...", "onboardingFailure": first }).to_string().into();
    let (_, calls) = recover(&event, Some("CompensationIncomplete")).await;
    assert_eq!(started(&calls).1["failure"], first);
}

#[tokio::test]
async fn a_repeated_event_starts_nothing() {
    let stub = step_functions(Some("ReserveKits")).await;
    let step = recover_onboarding(&stub);
    let (first, second) = (run(&step, &ended()).await, run(&step, &ended()).await);
    assert_eq!((first, second), (Ok(json!("Started")), Ok(json!("Already"))));

    // If an onboarding is stopped while it compensates, its nested teardown is stopped with it. The two events start
    // one recovery.
    let nested = ended_teardown(NESTED, "ABORTED");
    assert_eq!(run(&step, &nested).await, Ok(json!("Already")));
}

#[tokio::test]
async fn a_stopped_teardown_is_started_again_with_the_same_input() {
    let recovery = format!("recovery-{}", onboarding_id());
    // Each teardown that is not nested has a recovery of its own, even if its onboarding was recovered before.
    let (decommission, operator) =
        (format!("decommission-{}", onboarding_id()), format!("operator-{}-x", onboarding_id()));
    for (ended_name, status, expected) in [
        (NESTED.to_owned(), "ABORTED", recovery.clone()),
        (decommission, "TIMED_OUT", format!("{recovery}-4fcdee2c")),
        (operator, "ABORTED", format!("{recovery}-c4fdcd64")),
        (recovery.clone(), "ABORTED", format!("{recovery}-2")),
        (format!("{recovery}-2"), "TIMED_OUT", format!("{recovery}-3")),
        (format!("{recovery}-0f3c2d1e"), "ABORTED", format!("{recovery}-0f3c2d1e-2")),
    ] {
        let event = ended_teardown(&ended_name, status);
        let (outcome, calls) = recover(&event, None).await;
        assert_eq!(outcome, Ok(json!("Started")), "{ended_name}");
        let (name, input) = started(&calls);
        assert_eq!(name, expected);
        let original = event["detail"]["input"].as_str().expect("text");
        let original: TeardownInput = serde_json::from_str(original).expect("a teardown's input");
        assert_eq!(input, json!(TeardownInput { started_by: None, ..original }));
    }
}

#[tokio::test]
async fn no_recovery_follows_the_last_one() {
    let stub = step_functions(None).await;
    for last_recovery in ["3", "0f3c2d1e-3"] {
        let last_recovery =
            ended_teardown(&format!("recovery-{}-{last_recovery}", onboarding_id()), "ABORTED");
        let command = fault::decode(&last_recovery.to_string()).expect("an event");
        let error = recover_onboarding(&stub)
            .run(command, sample::noon(0))
            .await
            .expect_err("no further recovery");
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("no further recovery"), "{error}");
    }
    assert_eq!(stub.take_calls().len(), 0);
}

#[tokio::test]
async fn a_teardown_that_failed_by_itself_is_not_recovered() {
    let (outcome, calls) = recover(&ended_teardown("decommission-x", "FAILED"), None).await;
    assert_eq!(outcome, Ok(json!("NotNeeded")));
    assert_eq!(calls.len(), 0);
}

#[tokio::test]
async fn an_input_that_the_event_omits_is_read_from_the_execution() {
    let mut event = ended();
    event["detail"]["input"] = Value::Null;
    event["detail"]["inputDetails"]["included"] = false.into();
    let (outcome, calls) = recover(&event, Some("ReserveKits")).await;
    assert_eq!(outcome, Ok(json!("Started")));
    let operations: Vec<_> = calls.iter().map(Call::operation).collect();
    assert_eq!(operations, ["GetExecutionHistory", "DescribeExecution", "StartExecution"]);
    assert_eq!(calls[1].json()["executionArn"], event["detail"]["executionArn"]);
    assert_eq!(started(&calls).1["onboardingId"], onboarding_id());
}

#[tokio::test]
async fn an_execution_that_is_not_a_saga_is_refused() {
    let mut event = ended();
    event["detail"]["stateMachineArn"] = format!("{ONBOARDING}-of-another-stack").into();
    let (outcome, calls) = recover(&event, None).await;
    assert_eq!(outcome, Err(ErrorKind::InvalidInput));
    assert_eq!(calls.len(), 0);

    let mut event = ended();
    event["detail"]["input"] = r#"{"siteId": "36525261-64d3-5f8c-93d1-fb195ff9fe73"}"#.into();
    let (outcome, calls) = recover(&event, None).await;
    assert_eq!(outcome, Err(ErrorKind::InvalidInput));
    assert!(calls.iter().all(|call| call.operation() != "StartExecution"));

    let mut event = ended();
    event["detail"]["status"] = "SUCCEEDED".into();
    let command = serde_json::from_value::<<RecoverOnboarding as Step>::Command>(event);
    assert!(command.is_err(), "a successful execution needs no recovery");
}

#[tokio::test]
async fn errors_of_step_functions_are_classified() {
    for (status, error, kind) in [
        (400, "ThrottlingException", ErrorKind::Transient),
        (500, "InternalFailure", ErrorKind::Transient),
        (400, "ExecutionDoesNotExist", ErrorKind::Internal),
    ] {
        let stub = Stub::start(move |_| (status, json!({ "__type": error }))).await;
        assert_eq!(run(&recover_onboarding(&stub), &ended()).await, Err(kind), "{error}");
    }
}
