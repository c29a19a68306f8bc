//! Stuck sagas are reported. Recent sagas cost no call per execution.

use std::time::Duration;

use aws_sdk_sfn::Client;
use fault::ErrorKind;
use machines::StateMachine;
use onboarding::check_sagas::CheckSagas;
use serde_json::{Value, json};
use testkit::{
    http::{Call, NO_RESPONSE, Stub},
    measured::measured,
    saga::{Outcome, run},
    sample::{self, noon, payload, saga},
};

const BUDGET: Duration = Duration::from_mins(15);

/// An execution: its name, the seconds since its start, and the seconds since its last event.
type Execution = (&'static str, i64, i64);

fn machine(stub: &Stub, name: &str) -> StateMachine {
    StateMachine { client: Client::new(&stub.config()), arn: format!("arn:machine:{name}") }
}

fn check_sagas(stub: &Stub) -> CheckSagas {
    CheckSagas {
        machines: [machine(stub, "onboarding"), machine(stub, "teardown")],
        budget: BUDGET,
        timeout: Duration::from_secs(5),
    }
}

fn before(seconds: i64) -> i64 {
    noon(-seconds).seconds()
}

/// Starts a stub of Step Functions with these executions. Each onboarding is on a separate page. If `override_response`
/// returns a response for a call, the stub sends that response.
async fn step_functions(
    onboardings: &'static [Execution],
    teardowns: &'static [Execution],
    override_response: fn(&Call) -> Option<(u16, Value)>,
) -> Stub {
    Stub::start(move |call| {
        if let Some(response) = override_response(call) {
            return response;
        }
        let request = call.json();
        let find_execution = |name: &Value| {
            let mut executions = onboardings.iter().chain(teardowns);
            *executions.find(|execution| *name == execution.0).expect("an execution")
        };
        match call.operation() {
            "ListExecutions" => {
                assert_eq!(request["statusFilter"], "RUNNING");
                let list_entry = |execution: &Execution| {
                    json!({
                        "executionArn": execution.0,
                        "stateMachineArn": request["stateMachineArn"],
                        "name": execution.0,
                        "status": "RUNNING",
                        "startDate": before(execution.1),
                    })
                };
                if request["stateMachineArn"] == "arn:machine:teardown" {
                    let executions: Vec<_> = teardowns.iter().map(list_entry).collect();
                    return (200, json!({ "executions": executions }));
                }
                let page: usize =
                    request["nextToken"].as_str().map_or(0, |page| page.parse().expect("a page"));
                let next = (page + 1 < onboardings.len()).then(|| (page + 1).to_string());
                let page: Vec<_> = onboardings.get(page).map(list_entry).into_iter().collect();
                (200, json!({ "executions": page, "nextToken": next }))
            }
            "GetExecutionHistory" => {
                let last = before(find_execution(&request["executionArn"]).2);
                let events = json!([
                    { "id": 3, "timestamp": last, "type": "TaskScheduled" },
                    {
                        "id": 2, "timestamp": last - 1, "type": "TaskStateEntered",
                        "stateEnteredEventDetails": { "name": "ConfigureAlerting" },
                    },
                ]);
                (200, json!({ "events": events }))
            }
            "DescribeExecution" => {
                let described = json!({
                    "executionArn": request["executionArn"],
                    "stateMachineArn": "arn:machine:onboarding",
                    "status": "RUNNING",
                    "startDate": 1,
                    "input": payload(saga("a")).to_string(),
                });
                (200, described)
            }
            other => panic!("unexpected call: {other}"),
        }
    })
    .await
}

async fn check(stub: &Stub) -> Outcome {
    run(&check_sagas(stub), &sample::event("check-sagas")).await
}

fn executions_of(calls: &[Call], operation: &str) -> Vec<String> {
    let calls = calls.iter().filter(|call| call.operation() == operation);
    let mut executions: Vec<_> = calls
        .map(|call| call.json()["executionArn"].as_str().unwrap_or_default().to_owned())
        .collect();
    executions.sort();
    executions
}

#[tokio::test]
async fn old_sagas_without_progress_are_stuck_and_recent_ones_are_not_read() {
    let stub = step_functions(
        &[("fresh", 10, 10), ("stuck", 2000, 901), ("moving", 1000, 899), ("young", 900, 900)],
        &[("stuck-teardown", 5000, 4000)],
        |_| None,
    )
    .await;
    let expected = json!({
        "running": 5, "stuck": 2, "oldestAgeSeconds": 5000, "unread": 0, "incomplete": false,
    });
    assert_eq!(check(&stub).await, Ok(expected));
    let calls = stub.take_calls();
    assert_eq!(executions_of(&calls, "ListExecutions").len(), 5, "every page of both machines");
    assert_eq!(executions_of(&calls, "GetExecutionHistory"), ["moving", "stuck", "stuck-teardown"]);
    assert_eq!(executions_of(&calls, "DescribeExecution"), ["stuck", "stuck-teardown"]);
}

/// Returns the reported value of the alarm's metric, and `None` if it was not reported.
async fn reported(check: impl Future<Output = Outcome>) -> Option<f64> {
    let (_, metrics) = measured(check).await;
    metrics.get("StuckSagas").copied()
}

#[tokio::test]
async fn zero_stuck_sagas_are_reported_only_if_every_saga_was_checked() {
    let event = sample::event("check-sagas");
    let stub = step_functions(&[("moving", 1000, 1)], &[], |_| None).await;
    assert_eq!(reported(check(&stub)).await, Some(0.0));

    let throttled = (400, json!({ "__type": "ThrottlingException" }));
    let stub = Stub::start(move |_| throttled.clone()).await;
    assert_eq!(reported(check(&stub)).await, None, "nothing was listed");

    let no_history = |call: &Call| {
        let throttled = (400, json!({ "__type": "ThrottlingException" }));
        (call.operation() == "GetExecutionHistory" && call.json()["executionArn"] == "a")
            .then_some(throttled)
    };
    let stub = step_functions(&[], &[("a", 3000, 1000)], no_history).await;
    assert_eq!(reported(check(&stub)).await, None, "the history was not read");
    let stub = step_functions(&[], &[("a", 3000, 1000), ("b", 2000, 1000)], no_history).await;
    assert_eq!(reported(check(&stub)).await, Some(1.0), "at least one saga is stuck");

    let no_response = |call: &Call| {
        (call.operation() == "GetExecutionHistory").then_some((NO_RESPONSE, Value::Null))
    };
    let stub = step_functions(&[], &[("a", 3000, 1)], no_response).await;
    let step = CheckSagas { timeout: Duration::from_millis(500), ..check_sagas(&stub) };
    assert_eq!(reported(run(&step, &event)).await, None, "the check timed out");
}

#[tokio::test]
async fn without_executions_no_saga_is_stuck() {
    let stub = step_functions(&[], &[], |_| None).await;
    let expected = json!({
        "running": 0, "stuck": 0, "oldestAgeSeconds": 0, "unread": 0, "incomplete": false,
    });
    assert_eq!(check(&stub).await, Ok(expected));
}

#[tokio::test]
async fn a_throttle_is_transient_and_the_other_sagas_are_checked() {
    let stub =
        step_functions(&[], &[], |_| Some((400, json!({ "__type": "ThrottlingException" }))));
    assert_eq!(check(&stub.await).await, Err(ErrorKind::Transient));

    let stub = step_functions(&[], &[("a", 3000, 1000), ("b", 2000, 1000)], |call| {
        let history = call.operation() == "GetExecutionHistory";
        (history && call.json()["executionArn"] == "a")
            .then(|| (400, json!({ "__type": "ThrottlingException" })))
    })
    .await;
    assert_eq!(check(&stub).await, Err(ErrorKind::Transient));
    assert_eq!(executions_of(&stub.take_calls(), "DescribeExecution"), ["b"]);
}

#[tokio::test]
async fn sagas_that_miss_the_deadline_are_counted() {
    // The calls for the two oldest of three executions get no response.
    let stub = step_functions(&[], &[("a", 3000, 1), ("b", 2000, 1), ("c", 1000, 901)], |call| {
        let no_response = call.json()["executionArn"] == "a" || call.json()["executionArn"] == "b";
        no_response.then_some((NO_RESPONSE, Value::Null))
    })
    .await;
    let step = CheckSagas { timeout: Duration::from_millis(1500), ..check_sagas(&stub) };
    let reply = run(&step, &sample::event("check-sagas")).await.expect("a partial result");
    assert_eq!((&reply["stuck"], &reply["unread"]), (&json!(1), &json!(2)));

    let no_response = Stub::start(|_| (NO_RESPONSE, Value::Null)).await;
    let step = CheckSagas { timeout: Duration::from_millis(200), ..check_sagas(&no_response) };
    let reply = run(&step, &sample::event("check-sagas")).await.expect("a partial result");
    assert_eq!(reply["incomplete"], json!(true));
}
