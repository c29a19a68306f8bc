//! Tests the exit codes of `fieldctl`: a command ends with each of them, and the help and the docs name them.

mod cloud;

use cloud::{Cloud, ReceivedRequest};
use contracts::{OnboardingId, OperatorId, SiteId};
use serde_json::{Value, json};
use testkit::dynamo::SITES;

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", "key-1")
}

/// Answers as a stack whose site has that status, and whose executions never end.
fn with_site(request: &ReceivedRequest, status: &str) -> FakeResponse {
    let onboarding = OnboardingId::from_site(site());
    let arn = format!("arn:aws:states:us-east-1:0:execution:site-onboarding:{onboarding}");
    let input = json!({ "onboardingId": onboarding, "siteId": site(), "causationId": null });
    let body = match request.operation.rsplit('.').next().unwrap_or_default() {
        "ListExecutions" => json!({ "executions": [] }),
        "DescribeExecution" => json!({
            "executionArn": arn, "stateMachineArn": "m", "name": onboarding, "status": "RUNNING",
            "startDate": 1_767_225_600.0, "input": input.to_string() }),
        "GetExecutionHistory" => json!({ "events": [] }),
        "StartExecution" => json!({ "executionArn": arn, "startDate": 1_767_225_600.0 }),
        _ => json!({ "siteId": site(), "name": "n", "operator": "o", "status": status,
            "onboarding": { "onboardingId": onboarding, "steps": [], "failure": {
                "step": "ReserveKits", "error": "KitsOutOfStock", "message": "too few" } },
            "sensors": [], "location": {} }),
    };
    (200, body, vec![])
}

fn onboarding(request: &ReceivedRequest) -> FakeResponse {
    with_site(request, "ONBOARDING")
}

fn active(request: &ReceivedRequest) -> FakeResponse {
    with_site(request, "ACTIVE")
}

fn rejected(request: &ReceivedRequest) -> FakeResponse {
    with_site(request, "REJECTED")
}

fn denied(_: &ReceivedRequest) -> FakeResponse {
    (403, json!({ "message": "Forbidden" }), vec![])
}

#[tokio::test]
async fn each_exit_code_has_a_command_that_ends_with_it() {
    /// The exit code, what the API answers, the status in the site's row if it has one, and the arguments.
    type Case<'a> = (i32, fn(&ReceivedRequest) -> FakeResponse, Option<&'a str>, &'a [&'a str]);
    let site = site().to_string();
    let registration = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/events/import-site.json");
    let cases: [Case; 10] = [
        (0, active, None, &["sites", "show", &site]),
        (1, rejected, None, &["sites", "onboard", registration, "--wait"]),
        (2, active, None, &["sites", "show"]),
        (2, active, None, &["sites", "onboard", "/nonexistent"]),
        (3, active, None, &["--stack", "nothing", "outputs"]),
        (3, active, None, &["sites", "show", "no such name"]),
        (3, active, None, &["sagas", "recover", &site, "--yes"]),
        (4, active, Some("ACTIVE"), &["sagas", "recover", &site, "--yes"]),
        (5, denied, None, &["sites", "show", &site]),
        (6, onboarding, Some("ONBOARDING"), &["sagas", "recover", &site, "--yes", "--wait", "1s"]),
    ];
    for (code, respond, row_status, arguments) in cases {
        let cloud = Cloud::start(respond).await;
        if let Some(status) = row_status {
            let row = json!({ "siteId": site, "row": "SITE", "name": "n", "status": status });
            cloud.dynamo.put(SITES, row).await;
        }
        let (exit, out, err) = cloud.run(arguments).await;
        assert_eq!(exit, code, "{arguments:?}: {out}{err}");
        assert_eq!(
            err.is_empty(),
            matches!(code, 0 | 1 | 6),
            "errors have a message on standard error: {err}"
        );
    }
}

#[tokio::test]
async fn the_help_and_the_docs_name_every_exit_code() {
    let cloud = Cloud::start(active).await;
    let (_, help, _) = cloud.run(&["--help"]).await;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fieldctl.md");
    let docs = std::fs::read_to_string(file).expect(file);
    for code in 0..=6 {
        assert!(help.contains(&format!("{code} ")), "{code}: {help}");
        assert!(docs.contains(&format!("\n| {code} | ")), "{code} is not in docs/fieldctl.md");
    }
}
