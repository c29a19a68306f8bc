//! Tests `fieldctl status` and `fieldctl logs` with the real binary: AWS's answers decide the verdict, and what can't
//! be read is never good.

mod cloud;
mod schemas;

use cloud::{ALARM, Cloud, ReceivedRequest, Stacks};
use contracts::{OnboardingId, OperatorId, SiteId, Timestamp, names::SERVICES};
use serde_json::{Value, json};
use testkit::dynamo::{BILLING, EVENTS};

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn ok(body: Value) -> FakeResponse {
    (200, body, vec![])
}

/// Returns a metric's newest value, under the id of its query. The queries are in the order of the resources.
fn measured(metric: &str, value: f64) -> Value {
    let id = match metric {
        "Invocations" => "m0",
        "Errors" => "m1",
        "IteratorAge" => "m2",
        "QueueAge" => "m3",
        "IncomingRecords" => "m4",
        "FailedItems" => "m5",
        other => panic!("{other}"),
    };
    json!({ "Id": id, "Values": [value] })
}

/// Answers as a stack without problems.
fn healthy(request: &ReceivedRequest) -> FakeResponse {
    let what = request.operation.rsplit('.').next().unwrap_or_default();
    ok(match what {
        "ListExecutions" => json!({ "executions": [] }),
        "GetQueueAttributes" => json!({ "Attributes": {
            "ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesDelayed": "0",
            "ApproximateNumberOfMessagesNotVisible": "0" } }),
        "DescribeSecret" => json!({ "LastChangedDate": 1_767_225_600.0 }),
        path if path.contains("/event-source-mappings/") => json!({
            "UUID": "u-1", "State": "Enabled", "LastProcessingResult": "OK",
            "FunctionArn": "arn:aws:lambda:us-east-1:1:function:test-store-readings:live",
            "EventSourceArn": "arn:aws:kinesis:us-east-1:1:stream/test-readings" }),
        path if path.ends_with("/aliases/live") => json!({ "FunctionVersion": "7" }),
        path if path.ends_with("/configuration") => {
            json!({ "LastModified": "2026-01-01T00:00:00.000+0000" })
        }
        path if path.ends_with("/DescribeAlarms") => json!({ "MetricAlarms": [
            { "AlarmName": ALARM, "StateValue": "OK" }] }),
        path if path.ends_with("/GetMetricData") => json!({ "MetricDataResults": [
            measured("Invocations", 100.0), measured("Errors", 0.0),
            measured("IteratorAge", 40.0), measured("IncomingRecords", 90.0)] }),
        other => panic!("{other} is not expected"),
    })
}

/// Answers as a stack without problems, but answers the given operation with another body.
fn healthy_except(request: &ReceivedRequest, what: &str, body: Value) -> FakeResponse {
    if request.operation.ends_with(what) { ok(body) } else { healthy(request) }
}

fn healthy_except_metrics(request: &ReceivedRequest, values: &[(&str, f64)]) -> FakeResponse {
    let results: Vec<_> = values.iter().map(|(metric, value)| measured(metric, *value)).collect();
    healthy_except(request, "/GetMetricData", json!({ "MetricDataResults": results }))
}

fn without_mapping(request: &ReceivedRequest) -> FakeResponse {
    if request.operation.contains("/event-source-mappings/") {
        let body = json!({ "Type": "User", "message": "gone" });
        return (404, body, vec![("x-amzn-errortype", "ResourceNotFoundException")]);
    }
    healthy(request)
}

/// Stores the report of a comparison of the subscriptions. Without it their check would be unknown.
async fn compared(cloud: &Cloud) {
    let report = json!({
        "id": "reconciliation#provider", "at": Timestamp::now(), "sequence": 1, "running": 1, "active": 1,
        "foreign": 0, "found": 0, "findings": [],
    });
    cloud.dynamo.put(BILLING, report).await;
}

/// Runs `status`. Returns the exit code and the document, after checking it against its schema.
async fn status(cloud: &Cloud) -> (i32, Value) {
    let (code, out, err) = cloud.run(&["--json", "status"]).await;
    let document: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(schemas::violations("status", &document), [""; 0], "{document:#}");
    assert_eq!(code, i32::from(document["health"] != "good"), "{document:#}");
    (code, document)
}

fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
    let checks = document["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Returns the names of the checks with that result.
fn with(document: &Value, health: &str) -> Vec<String> {
    let checks = document["checks"].as_array().expect("checks");
    let with = checks.iter().filter(|check| check["health"] == health);
    with.map(|check| check["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn a_stack_without_problems_is_good() {
    let cloud = Cloud::start(healthy).await;
    compared(&cloud).await;
    let (code, document) = status(&cloud).await;
    assert_eq!(code, 0, "{document:#}");
    assert_eq!(document["functions"][0]["invocations"], 100.0);
    assert_eq!(document["consumers"][0]["source"], "readings");
    assert_eq!(document["consumers"][0]["function"], "store-readings");
    assert_eq!(document["queues"][0]["name"], "telemetry-failures");
    let (code, out, _) = cloud.run(&["status", "--all"]).await;
    assert!(code == 0 && out.contains("no problems found"), "{out}");
    for line in out.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    let mut less = document.clone();
    less.as_object_mut().expect("an object").remove("checks");
    assert!(!schemas::violations("status", &less).is_empty(), "the schema can refuse");
}

#[tokio::test]
async fn each_problem_is_found_by_its_check() {
    type Case = (&'static str, fn(&ReceivedRequest) -> FakeResponse, &'static str);
    let cases: [Case; 9] = [
        (
            "consumers",
            |request| match healthy(request) {
                (200, mut body, more) if request.operation.contains("/event-source-mappings/") => {
                    body["State"] = "Disabled".into();
                    (200, body, more)
                }
                other => other,
            },
            "aws lambda update-event-source-mapping --uuid u-1 --enabled",
        ),
        ("consumers", without_mapping, "consumersnotrunning"),
        (
            "alarms",
            |request| {
                let alarms = json!([{ "AlarmName": ALARM, "StateValue": "ALARM" }]);
                healthy_except(request, "/DescribeAlarms", json!({ "MetricAlarms": alarms }))
            },
            "docs/operations.md",
        ),
        (
            "alarms",
            |request| healthy_except(request, "/DescribeAlarms", json!({ "MetricAlarms": [] })),
            "deploy the stacks again",
        ),
        (
            "queues",
            |request| {
                let mut depth = healthy(request).1;
                depth["Attributes"]["ApproximateNumberOfMessages"] = "3".into();
                healthy_except(request, "GetQueueAttributes", depth)
            },
            "fieldctl logs",
        ),
        (
            "streams",
            |request| healthy_except_metrics(request, &[("IncomingRecords", 9.0)]),
            "consumers",
        ),
        (
            "streams",
            |request| healthy_except_metrics(request, &[("IteratorAge", 60_001.0)]),
            "fieldctl logs",
        ),
        (
            "functions",
            |request| healthy_except_metrics(request, &[("Invocations", 10.0), ("Errors", 3.0)]),
            "#rolling-back",
        ),
        (
            "functions",
            |request| {
                healthy_except_metrics(request, &[("Invocations", 10.0), ("FailedItems", 3.0)])
            },
            "#rolling-back",
        ),
    ];
    for (name, respond, next) in cases {
        let cloud = Cloud::start(respond).await;
        compared(&cloud).await;
        let (_, document) = status(&cloud).await;
        assert_eq!(with(&document, "problem"), [name], "{document:#}");
        let shown = check(&document, name)["next"].as_str().expect("what to do next");
        assert!(shown.contains(next), "{name}: {shown}");
    }
}

#[tokio::test]
async fn rows_that_need_attention_are_found() {
    let cloud = Cloud::start(healthy).await;
    compared(&cloud).await;
    let now = Timestamp::now();
    let error =
        json!({ "name": "KeyRefused", "message": "HTTP status 401", "at": now, "keyReadAt": now });
    cloud
        .dynamo
        .put(
            BILLING,
            json!({
                "id": "circuit#provider", "sequence": 9, "failures": 5, "opened": 1,
                "openUntil": now.plus_millis(60_000), "lastError": error,
            }),
        )
        .await;
    cloud
        .dynamo
        .put(EVENTS, json!({
            "entity": "site#1", "sequence": 1, "unpublished": "3", "occurredAt": now.plus_millis(-61_000),
        }))
        .await;
    let (_, document) = status(&cloud).await;
    assert_eq!(with(&document, "problem"), ["events", "provider"], "{document:#}");
    let provider = check(&document, "provider").to_string();
    for part in
        ["circuit open", "next probe in", "KeyRefused: HTTP status 401", "the secret was changed"]
    {
        assert!(provider.contains(part), "{part}: {provider}");
    }
}

/// If AWS refuses a service, the checks that need it are unknown, and the verdict is not good.
#[tokio::test]
async fn what_can_not_be_read_is_unknown() {
    type Case = (&'static str, &'static [&'static str]);
    let cases: [Case; 6] = [
        ("/event-source-mappings/", &["consumers"]),
        ("/DescribeAlarms", &["alarms"]),
        ("/GetMetricData", &["streams", "functions"]),
        ("/aliases/live", &["functions"]),
        ("GetQueueAttributes", &["queues"]),
        ("ListExecutions", &["stuck sagas", "incomplete sagas"]),
    ];
    for (refused, unknown) in cases {
        let cloud = Cloud::start(move |request| {
            if request.operation.contains(refused) {
                let body = json!({ "__type": "AccessDeniedException", "message": "not you" });
                (403, body, vec![("x-amzn-errortype", "AccessDeniedException")])
            } else {
                healthy(request)
            }
        })
        .await;
        compared(&cloud).await;
        let (code, document) = status(&cloud).await;
        assert_eq!(
            (code, with(&document, "unknown")),
            (1, unknown.iter().map(|it| (*it).to_owned()).collect()),
            "{refused}: {document:#}"
        );
        assert!(with(&document, "problem").is_empty(), "{document:#}");
    }
    let cloud = Cloud::start(healthy).await;
    let (code, document) = status(&cloud).await;
    assert_eq!((code, with(&document, "unknown")), (1, vec!["subscriptions".to_owned()]));
}

#[tokio::test]
async fn one_stack_per_service_has_the_same_status_as_a_root_stack() {
    let mut documents = Vec::new();
    for per_service in [false, true] {
        let cloud = Cloud::with(Stacks { per_service, ..Stacks::default() }, healthy).await;
        compared(&cloud).await;
        let (code, mut document) = status(&cloud).await;
        assert_eq!(code, 0, "{document:#}");
        // The check of the stacks, the time, and the ages of the comparisons differ.
        let document = document.as_object_mut().expect("an object");
        document.retain(|name, _| ["consumers", "queues", "functions", "stack"].contains(&&**name));
        documents.push(document.clone());
    }
    assert_eq!(documents[0], documents[1]);
    assert_eq!(documents[0]["functions"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_service_whose_stack_is_missing_is_a_problem() {
    for per_service in [false, true] {
        let missing = &["billing", "gateway"];
        let stacks = Stacks { per_service, missing, ..Stacks::default() };
        let cloud = Cloud::with(stacks, healthy).await;
        compared(&cloud).await;
        let (_, document) = status(&cloud).await;
        assert_eq!(with(&document, "problem"), ["stack"], "{document:#}");
        let check = check(&document, "stack");
        assert_eq!(check["summary"], format!("2 of {} services have no stack", SERVICES.len()));
        let details = check["details"].as_array().expect("details");
        assert!(details[0].as_str().expect("a text").starts_with("billing: "), "{check}");
        assert!(check["next"].as_str().expect("a text").starts_with("deploy billing, gateway: "));
    }
}

/// The root stack still contains the nested stack, and `CloudFormation` still lists its resources by its ARN.
#[tokio::test]
async fn a_nested_stack_that_was_deleted_by_hand_is_missing() {
    let stacks = Stacks { status: Some(("billing", "DELETE_COMPLETE")), ..Stacks::default() };
    let cloud = Cloud::with(stacks, healthy).await;
    compared(&cloud).await;
    let (_, document) = status(&cloud).await;
    assert_eq!(with(&document, "problem"), ["stack"], "{document:#}");
    let expected = format!("1 of {} services have no stack", SERVICES.len());
    assert_eq!(check(&document, "stack")["summary"], expected);
}

#[tokio::test]
async fn a_stack_whose_deployment_failed_is_a_problem() {
    for per_service in [false, true] {
        let status_of = Some(("telemetry", "UPDATE_ROLLBACK_COMPLETE"));
        let stacks = Stacks { per_service, status: status_of, ..Stacks::default() };
        let cloud = Cloud::with(stacks, healthy).await;
        compared(&cloud).await;
        let (_, document) = status(&cloud).await;
        assert_eq!(with(&document, "problem"), ["stack"], "{document:#}");
        let check = check(&document, "stack").to_string();
        for part in ["elemetry", "UPDATE_ROLLBACK_COMPLETE", "describe-stack-events"] {
            assert!(check.contains(part), "{part}: {check}");
        }
    }
}

#[tokio::test]
async fn resources_that_can_not_be_listed_make_every_check_of_them_unknown() {
    for per_service in [false, true] {
        let stacks = Stacks { per_service, denied: Some("billing"), ..Stacks::default() };
        let cloud = Cloud::with(stacks, healthy).await;
        compared(&cloud).await;
        let (_, document) = status(&cloud).await;
        let unknown = ["stack", "alarms", "consumers", "streams", "queues", "functions"];
        assert_eq!(with(&document, "unknown"), unknown, "{document:#}");
    }
}

#[tokio::test]
async fn logs_of_a_site_are_shown_in_the_order_of_time() {
    let site = SiteId::registered(OperatorId::DEFAULT, "http", "key-1");
    let onboarding = OnboardingId::from_site(site).to_string();
    let cloud = Cloud::start(move |request| {
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        ok(match request.operation.rsplit('.').next().unwrap_or_default() {
            "FilterLogEvents" => {
                let group = body["logGroupName"].as_str().expect("a group");
                let (at, level) = if group.ends_with("store-readings") { (2000, "ERROR") } else { (1000, "INFO") };
                let line = |about: &str| json!({
                    "level": level, "message": group, "span": { "correlationId": about } }).to_string();
                json!({ "events": [
                    { "timestamp": at, "eventId": format!("{group} 1"), "message": line(&onboarding) },
                    { "timestamp": at, "eventId": format!("{group} 2"), "message": line("another") },
                    { "timestamp": at, "eventId": format!("{group} 3"), "message": "START RequestId: 1" }] })
            }
            _ => json!({ "executions": [] }),
        })
    })
    .await;
    let id = site.to_string();
    let lines = async |more: &[&str]| {
        let (code, out, err) =
            cloud.run(&[&["--json", "logs", "--since", "100000d"], more].concat()).await;
        assert_eq!(code, 0, "{err}");
        let lines: Vec<Value> = serde_json::Deserializer::from_str(&out)
            .into_iter()
            .map(|it| it.expect("JSON"))
            .collect();
        for line in &lines {
            assert_eq!(schemas::violations("logs", line), [""; 0], "{line}");
        }
        lines
            .iter()
            .map(|line| line["function"].as_str().expect("a function").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&[&id]).await, ["check-sagas", "store-readings"]);
    assert_eq!(lines(&[&id, "--errors"]).await, ["store-readings"]);
    assert_eq!(lines(&["--function", "StoreReadings"]).await.len(), 2, "also another's");
    let (code, _, err) = cloud.run(&["logs", "--function", "nothing"]).await;
    assert!(code == 3 && err.contains("check-sagas, store-readings"), "{err}");
    let (code, out, _) =
        cloud.run(&["logs", "--function", "check-sagas", "--errors", "--since", "100000d"]).await;
    assert!(code == 0 && out.starts_with("There are no warnings or errors since"), "{out}");
}
