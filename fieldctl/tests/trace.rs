//! Tests `fieldctl trace` and `fieldctl sagas` with the real binary and histories in Step Functions' own format.

mod cloud;

use cloud::{Cloud, ReceivedRequest};
use contracts::{
    OnboardingFailure, OnboardingId, OperatorId, ReservationId, SagaContext, SiteId,
    SubscriptionId, Timestamp,
    events::{KitsReleased, KitsReserved, SiteRejected, SubscriptionFailed},
};
use ledger::{AffectedIds, ErrorInfo, FailureId};
use serde_json::{Value, json};
use store::{EventRow, NewEvent};
use testkit::dynamo::{EVENTS, FAILURES};

/// 2026-01-01T00:00:00Z in epoch seconds, as Step Functions writes times.
const BEGUN: f64 = 1_767_225_600.0;

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", "key-1")
}

fn arn(machine: &str, name: &str) -> String {
    format!("arn:aws:states:us-east-1:000000000000:execution:test-{machine}:{name}")
}

/// Returns a task's history: the event of entering it, and further events, given as seconds, type and details.
fn task(name: &str, entered: f64, events: &[(f64, &str, Value)]) -> Vec<Value> {
    let details = json!({ "stateEnteredEventDetails": { "name": name } });
    let mut history = vec![event(entered, "TaskStateEntered", &details)];
    history.extend(events.iter().map(|(at, kind, details)| event(*at, kind, details)));
    history
}

fn event(at: f64, kind: &str, details: &Value) -> Value {
    let mut event = json!({ "id": 1, "timestamp": BEGUN + at, "type": kind });
    for (name, value) in details.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event
}

fn succeeded(name: &str, entered: f64, left: f64) -> Vec<Value> {
    let none = || json!({});
    task(
        name,
        entered,
        &[
            (entered, "TaskScheduled", none()),
            (left, "TaskSucceeded", none()),
            (left, "TaskStateExited", none()),
        ],
    )
}

fn failed(error: &str, cause: &str) -> Value {
    json!({ "taskFailedEventDetails": {
        "resource": "invoke", "resourceType": "lambda", "error": error, "cause": cause,
    } })
}

const DECLINED: &str = "The card was declined.";

/// Returns the history of an onboarding whose first step was throttled and whose card was declined, or of its nested
/// teardown.
fn history(requested_arn: &str, teardown: &str) -> Vec<Value> {
    let none = || json!({});
    if requested_arn == teardown {
        return [
            succeeded("RemoveAlerting", 3.2, 3.3),
            succeeded("CancelSubscription", 3.3, 4.0),
            succeeded("DeprovisionSensors", 4.0, 4.1),
            succeeded("ReleaseKits", 4.1, 4.25),
            succeeded("CloseSite", 4.25, 4.4),
        ]
        .concat();
    }
    let cause = json!({ "errorMessage": "throttled", "errorType": "Transient" }).to_string();
    let started = json!({ "taskSubmittedEventDetails": {
        "resource": "startExecution.sync:2", "resourceType": "states",
        "output": json!({ "ExecutionArn": teardown, "StartDate": 1 }).to_string(),
    } });
    [
        task(
            "ReserveKits",
            0.3,
            &[
                (0.3, "TaskScheduled", none()),
                (0.5, "TaskFailed", failed("Transient", &cause)),
                (1.5, "TaskScheduled", none()),
                (1.7, "TaskSucceeded", none()),
                (1.7, "TaskStateExited", none()),
            ],
        ),
        succeeded("ProvisionSensors", 1.7, 1.9),
        task(
            "InitializeSubscription",
            1.9,
            &[
                (1.9, "TaskScheduled", none()),
                (1.95, "TaskSubmitted", none()),
                (3.0, "TaskFailed", failed("CardDeclined", DECLINED)),
                (3.0, "TaskStateExited", none()),
            ],
        ),
        task(
            "Compensate",
            3.0,
            &[
                (3.0, "TaskScheduled", none()),
                (3.1, "TaskSubmitted", started),
                (4.5, "TaskSucceeded", none()),
                (4.5, "TaskStateExited", none()),
            ],
        ),
    ]
    .concat()
}

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn respond(request: &ReceivedRequest) -> FakeResponse {
    let onboarding = OnboardingId::from_site(site()).to_string();
    let own = arn("site-onboarding", &onboarding);
    let teardown = arn("site-teardown", "nested");
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let arn_in_request = body["executionArn"].as_str().unwrap_or_default();
    let known = arn_in_request == own || arn_in_request == teardown;
    let response = match request.operation.as_str() {
        what if what.ends_with("ListExecutions") => json!({ "executions": [
            { "executionArn": teardown, "stateMachineArn": "m", "name": "nested",
                "status": "SUCCEEDED", "startDate": BEGUN + 3.15 },
            { "executionArn": arn("site-teardown", "another"), "stateMachineArn": "m",
                "name": "another", "status": "SUCCEEDED", "startDate": BEGUN + 3.2 },
        ] }),
        what if what.ends_with("Execution") && !known => {
            return (400, json!({ "__type": "ExecutionDoesNotExist", "message": "none" }), vec![]);
        }
        what if what.ends_with("DescribeExecution") => {
            let (began, ended, status) = if arn_in_request == own {
                (0.25, 4.55, "FAILED")
            } else {
                (3.15, 4.42, "SUCCEEDED")
            };
            let machine = arn_in_request.replace(":execution:", ":stateMachine:");
            let (machine, name) = machine.rsplit_once(':').expect("an ARN");
            let mut response = json!({
                "executionArn": arn_in_request, "stateMachineArn": machine, "name": name, "status": status,
                "startDate": BEGUN + began, "stopDate": BEGUN + ended,
                "input": json!({ "onboardingId": onboarding, "siteId": site(),
                    "paymentMethod": "pm_1" }).to_string(),
            });
            if arn_in_request == own {
                response["error"] = "CardDeclined".into();
                response["cause"] = format!(
                    "InitializeSubscription failed: CardDeclined: {DECLINED} Everything was undone."
                )
                .into();
            }
            response
        }
        what if what.ends_with("GetExecutionHistory") => {
            json!({ "events": history(arn_in_request, &teardown) })
        }
        what if what.contains("/sites/") => json!({
            "siteId": site(), "name": "Desert Rock, Nevada", "operator": "NOAA SURFRAD",
            "status": "REJECTED", "onboarding": { "onboardingId": onboarding },
        }),
        what => panic!("unexpected request: {what}"),
    };
    (200, response, vec![])
}

async fn log(cloud: &Cloud) {
    let site_id = site();
    let saga = SagaContext::for_site(OperatorId::DEFAULT, site_id, None);
    let at = |millis: i64| Timestamp::from_millis(1_767_225_600_000 + millis);
    let subscription = SubscriptionId::from_onboarding(saga.onboarding_id);
    let reservation = ReservationId::from_onboarding(saga.onboarding_id);
    let failure = OnboardingFailure {
        step: "InitializeSubscription".to_owned(),
        error: "CardDeclined".to_owned(),
        message: DECLINED.to_owned(),
    };
    let declined = SubscriptionFailed {
        site_id,
        plan: contracts::Plan::Standard,
        error: "CardDeclined".to_owned(),
        message: DECLINED.to_owned(),
    };
    let reserved = KitsReserved { site_id, kits: vec![] };
    let released = KitsReleased { site_id, kits: vec![] };
    let rows = [
        NewEvent::in_saga(saga, reservation, 1, at(1650), reserved).row(),
        NewEvent::in_saga(saga, subscription, 1, at(2950), declined).row(),
        NewEvent::in_saga(saga, reservation, 2, at(4200), released).row(),
        NewEvent::in_saga(saga, site_id, 2, at(4390), SiteRejected { site_id, failure }).row(),
    ];
    for row in rows {
        let row =
            EventRow { unpublished: None, published_at: Some(at(5000)), ..row.expect("a row") };
        cloud.dynamo.put(EVENTS, json!(row)).await;
    }
}

#[tokio::test]
async fn the_trace_of_a_declined_card_fits_on_one_screen() {
    let cloud = Cloud::start(respond).await;
    log(&cloud).await;
    for id in [site().to_string(), OnboardingId::from_site(site()).to_string()] {
        let (code, out, err) = cloud.run(&["trace", &id]).await;
        assert_eq!((code, err.as_str()), (0, ""));
        insta::assert_snapshot!("declined", out);
    }
    let (_, out, _) = cloud.run(&["trace", &site().to_string(), "--color", "always"]).await;
    assert!(out.contains("\u{1b}[31m"), "{out}");
}

/// Answers as a teardown whose first undo failed, and whose second undo was running when the execution got
/// that status.
fn broken_teardown(status: &'static str) -> impl Fn(&ReceivedRequest) -> FakeResponse {
    move |request| {
        let (code, mut body, headers) = respond(request);
        let teardown = arn("site-teardown", "nested");
        if request.operation.ends_with("DescribeExecution")
            && body["executionArn"] == json!(teardown)
        {
            body["status"] = status.into();
            if status == "RUNNING" {
                body.as_object_mut().expect("an object").remove("stopDate");
            }
        }
        if request.operation.ends_with("GetExecutionHistory") && request.body.contains(&teardown) {
            let none = || json!({});
            let failed = failed("Transient", "busy");
            let mut events = task(
                "RemoveAlerting",
                3.2,
                &[
                    (3.2, "TaskScheduled", none()),
                    (3.3, "TaskFailed", failed),
                    (3.3, "TaskStateExited", none()),
                ],
            );
            events.extend(task("CancelSubscription", 3.3, &[(3.3, "TaskScheduled", none())]));
            if status != "RUNNING" {
                events.push(event(4.0, "ExecutionAborted", &none()));
            }
            body = json!({ "events": events });
        }
        (code, body, headers)
    }
}

#[tokio::test]
async fn an_onboarding_is_undone_only_after_its_teardown_has_succeeded() {
    for (status, expected, undo) in [
        ("RUNNING", "in progress: site-teardown is running; failed: RemoveAlerting", "running"),
        ("ABORTED", "incomplete: fix the cause", "incomplete"),
        ("TIMED_OUT", "incomplete: fix the cause", "incomplete"),
    ] {
        let cloud = Cloud::start(broken_teardown(status)).await;
        log(&cloud).await;
        let (_, out, _) = cloud.run(&["trace", &site().to_string()]).await;
        assert!(out.contains(expected), "{status}: {out}");
        assert!(!out.contains("complete: the last"), "{status}: {out}");
        assert!(!out.contains("✔ CancelSubscription"), "{status}: {out}");
        assert_eq!(out.contains("■ CancelSubscription"), status != "RUNNING", "{status}: {out}");
        let (_, out, _) = cloud.run(&["--json", "trace", &site().to_string()]).await;
        let story: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(story["undo"], undo, "{status}");
        assert_eq!(story["incomplete"], undo == "incomplete", "{status}");
    }
}

#[tokio::test]
async fn an_onboarding_that_a_later_teardown_repaired_is_not_incomplete() {
    for (recovery, listed) in [("SUCCEEDED", 0), ("FAILED", 1)] {
        let onboarding = OnboardingId::from_site(site()).to_string();
        let own = arn("site-onboarding", &onboarding);
        let later = arn("site-teardown", &format!("operator-{onboarding}"));
        let cloud = Cloud::start(move |request| {
            let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
            let execution = |arn: &str, status: &str, began: f64| {
                let (machine, name) = arn.rsplit_once(':').expect("an ARN");
                json!({
                    "executionArn": arn, "name": name, "status": status,
                    "stateMachineArn": machine.replace(":execution:", ":stateMachine:"),
                    "startDate": BEGUN + began, "stopDate": BEGUN + began + 1.0,
                    "input": json!({ "onboardingId": onboarding, "siteId": site() }).to_string(),
                })
            };
            let response = match request.operation.as_str() {
                what if what.ends_with("ListExecutions") => {
                    let machine = body["stateMachineArn"].as_str().unwrap_or_default();
                    let failed = body["statusFilter"].as_str().is_none_or(|it| it == "FAILED");
                    let listed = match (machine.contains("site-onboarding"), failed) {
                        (true, true) => vec![execution(&own, "FAILED", 0.0)],
                        (false, true) => vec![execution(&later, recovery, 9.0)],
                        _ => vec![],
                    };
                    json!({ "executions": listed })
                }
                what if what.ends_with("DescribeExecution") && body["executionArn"] == *own => {
                    let mut own = execution(&own, "FAILED", 0.0);
                    own["error"] = "CompensationIncomplete".into();
                    own
                }
                what if what.ends_with("DescribeExecution") => execution(&later, recovery, 9.0),
                _ => json!({ "events": [] }),
            };
            (200, response, vec![])
        })
        .await;
        let (code, out, err) = cloud.run(&["--json", "sagas", "list", "--incomplete"]).await;
        assert_eq!(code, 0, "{err}");
        assert_eq!(out.lines().count(), listed, "{recovery}: {out}");
    }
}

#[tokio::test]
async fn a_trace_is_one_json_document() {
    let cloud = Cloud::start(respond).await;
    log(&cloud).await;
    let (_, out, _) = cloud.run(&["--json", "trace", &site().to_string()]).await;
    let story: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (&story["standing"], &story["step"]),
        (&json!("failed"), &json!("InitializeSubscription"))
    );
    assert_eq!(story["incomplete"], false);
    let entries = story["timeline"].as_array().expect("a timeline");
    assert!(entries.is_sorted_by_key(|entry| entry["at"].as_str().map(str::to_owned)));
    assert_eq!(entries.len(), 4 + 2 + 4 + 2 + 5);
}

#[tokio::test]
async fn quarantined_readings_of_the_site_are_in_its_trace() {
    let cloud = Cloud::start(respond).await;
    log(&cloud).await;
    let other = SiteId::registered(OperatorId::DEFAULT, "http", "key-2");
    let poison = |number: u8, site: SiteId| {
        let affected_ids = AffectedIds { site_id: Some(site), ..AffectedIds::default() };
        let error =
            ErrorInfo { affected_ids: Some(affected_ids), ..ErrorInfo::new("InvalidInput", "no") };
        let at = Timestamp::from_millis(1_767_225_610_000 + i64::from(number));
        json!({
            "id": FailureId::new("store-readings", [number; 32]), "source": "store-readings",
            "kind": "QUARANTINED", "status": "OPEN", "error": error, "fingerprint": "0123456789ab",
            "attempts": 1, "replays": 0, "payload": "{}", "firstAt": at, "lastAt": at,
        })
    };
    for (number, site) in [(1, site()), (2, site()), (3, other)] {
        cloud.dynamo.put(FAILURES, poison(number, site)).await;
    }
    let (code, out, err) = cloud.run(&["trace", &site().to_string()]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("failures      2 open"), "{out}");
    assert_eq!(out.matches('⚠').count(), 1, "{out}");
    let line = out.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    assert!(line.contains("OPEN InvalidInput: no, and 1 older of group 0123456789ab-"), "{out}");
    let (_, out, _) = cloud.run(&["--json", "trace", &site().to_string()]).await;
    let story: Value = serde_json::from_str(&out).expect("JSON");
    let entries = story["timeline"].as_array().expect("a timeline");
    let failures = entries.iter().filter(|entry| entry["source"] == "store-readings").count();
    assert_eq!(failures, 2, "{out}");
}

#[tokio::test]
async fn an_unknown_id_is_reported() {
    let cloud = Cloud::start(respond).await;
    let (code, _, err) = cloud.run(&["trace", "00000000-0000-4000-8000-000000000000"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("no site and no onboarding"), "{err}");
}

#[tokio::test]
async fn an_execution_is_shown_without_secrets() {
    let cloud = Cloud::start(respond).await;
    let (code, out, _) =
        cloud.run(&["sagas", "show", &OnboardingId::from_site(site()).to_string()]).await;
    assert_eq!(code, 0);
    assert!(out.contains("Compensate") && !out.contains("pm_1"), "{out}");
}
