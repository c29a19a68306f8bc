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

fn checking(stub: &Stub) -> CheckSagas {
    CheckSagas {
        machines: [machine(stub, "onboarding"), machine(stub, "teardown")],
        budget: BUDGET,
        time: Duration::from_secs(5),
    }
}

fn before(seconds: i64) -> i64 {
    noon(-seconds).seconds()
}

/// Starts a stub of Step Functions with these executions. Each onboarding is on a separate page. If `trouble`
/// returns an answer for a call, the stub gives that answer.
async fn step_functions(
    onboardings: &'static [Execution],
    teardowns: &'static [Execution],
    trouble: fn(&Call) -> Option<(u16, Value)>,
) -> Stub {
    Stub::start(move |call| {
        if let Some(answer) = trouble(call) {
            return answer;
        }
        let asked = call.json();
        let named = |name: &Value| {
            let all = onboardings.iter().chain(teardowns);
            *all.clone().find(|execution| *name == execution.0).expect("an execution")
        };
        match call.operation() {
            "ListExecutions" => {
                assert_eq!(asked["statusFilter"], "RUNNING");
                let listed = |execution: &Execution| {
                    json!({
                        "executionArn": execution.0,
                        "stateMachineArn": asked["stateMachineArn"],
                        "name": execution.0,
                        "status": "RUNNING",
                        "startDate": before(execution.1),
                    })
                };
                if asked["stateMachineArn"] == "arn:machine:teardown" {
                    let all: Vec<_> = teardowns.iter().map(listed).collect();
                    return (200, json!({ "executions": all }));
                }
                let page: usize =
                    asked["nextToken"].as_str().map_or(0, |page| page.parse().expect("a page"));
                let next = (page + 1 < onboardings.len()).then(|| (page + 1).to_string());
                let page: Vec<_> = onboardings.get(page).map(listed).into_iter().collect();
                (200, json!({ "executions": page, "nextToken": next }))
            }
            "GetExecutionHistory" => {
                let last = before(named(&asked["executionArn"]).2);
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
                    "executionArn": asked["executionArn"],
                    "stateMachineArn": "arn:machine:onboarding",
                    "status": "RUNNING",
                    "startDate": 1,
                    "input": payload(saga("a")).to_string(),
                });
                (200, described)
            }
            other => panic!("no call for this: {other}"),
        }
    })
    .await
}

async fn check(stub: &Stub) -> Outcome {
    run(&checking(stub), &sample::event("check-sagas")).await
}

fn asked_for(calls: &[Call], operation: &str) -> Vec<String> {
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
    assert_eq!(asked_for(&calls, "ListExecutions").len(), 5, "every page of both machines");
    assert_eq!(asked_for(&calls, "GetExecutionHistory"), ["moving", "stuck", "stuck-teardown"]);
    assert_eq!(asked_for(&calls, "DescribeExecution"), ["stuck", "stuck-teardown"]);
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
    assert_eq!(reported(check(&stub)).await, None, "its history was not read");
    let stub = step_functions(&[], &[("a", 3000, 1000), ("b", 2000, 1000)], no_history).await;
    assert_eq!(reported(check(&stub)).await, Some(1.0), "at least one is stuck");

    let silent = |call: &Call| {
        (call.operation() == "GetExecutionHistory").then_some((NO_RESPONSE, Value::Null))
    };
    let stub = step_functions(&[], &[("a", 3000, 1)], silent).await;
    let step = CheckSagas { time: Duration::from_millis(500), ..checking(&stub) };
    assert_eq!(reported(run(&step, &event)).await, None, "the time ran out");
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
    assert_eq!(asked_for(&stub.take_calls(), "DescribeExecution"), ["b"]);
}

#[tokio::test]
async fn sagas_that_miss_the_deadline_are_counted() {
    // The calls for the two oldest of three executions are not answered.
    let stub = step_functions(&[], &[("a", 3000, 1), ("b", 2000, 1), ("c", 1000, 901)], |call| {
        let silent = call.json()["executionArn"] == "a" || call.json()["executionArn"] == "b";
        silent.then_some((NO_RESPONSE, Value::Null))
    })
    .await;
    let step = CheckSagas { time: Duration::from_millis(1500), ..checking(&stub) };
    let told = run(&step, &sample::event("check-sagas")).await.expect("what was found");
    assert_eq!((&told["stuck"], &told["unread"]), (&json!(1), &json!(2)));

    let silent = Stub::start(|_| (NO_RESPONSE, Value::Null)).await;
    let step = CheckSagas { time: Duration::from_millis(200), ..checking(&silent) };
    let told = run(&step, &sample::event("check-sagas")).await.expect("what was found");
    assert_eq!(told["incomplete"], json!(true));
}
