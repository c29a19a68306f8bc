//! Tests how `fieldctl` finds an environment: by a root stack, or by one stack per service.

mod cloud;

use cloud::{Cloud, ReceivedRequest, Stacks};
use serde_json::{Value, json};

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn no_sites(_: &ReceivedRequest) -> FakeResponse {
    (200, json!({ "sites": [] }), vec![])
}

const PER_SERVICE: Stacks =
    Stacks { per_service: true, missing: &[], denied: None, no_audit: false, status: None };

#[tokio::test]
async fn both_ways_of_deploying_give_the_same_names() {
    let mut shown = Vec::new();
    for stacks in [Stacks::default(), PER_SERVICE] {
        let cloud = Cloud::with(stacks, no_sites).await;
        let (code, out, err) = cloud.run(&["--json", "outputs"]).await;
        assert_eq!(code, 0, "{err}");
        let mut outputs: Value = serde_json::from_str(&out).expect("JSON");
        // The URL contains the port of the fake.
        let url = outputs.as_object_mut().expect("an object").remove("ApiUrl").expect("a URL");
        assert!(url.as_str().expect("a text").ends_with("/local"), "{url}");
        shown.push(outputs);
        let (code, _, err) = cloud.run(&["sites", "list"]).await;
        assert_eq!(code, 0, "{err}");
        assert_eq!(cloud.requests("/local/sites").len(), 1, "the API is called");
    }
    assert_eq!(shown[0], shown[1]);
    for (output, value) in [
        ("ApiId", "api"),
        ("EventBusName", "test-events"),
        ("InventoryTable", "test-inventory"),
        ("FailuresBucket", "test-failures-000000000000-us-east-1"),
        ("OnCallTopicArn", "arn:aws:sns:us-east-1:000000000000:test-on-call"),
        (
            "SiteTeardownArn",
            "arn:aws:states:us-east-1:000000000000:stateMachine:test-site-teardown",
        ),
    ] {
        assert_eq!(shown[0][output], value, "{output}");
    }
}

#[tokio::test]
async fn a_missing_environment_is_reported() {
    for stacks in [Stacks::default(), PER_SERVICE] {
        let cloud = Cloud::with(stacks, no_sites).await;
        let (code, out, err) = cloud.run(&["--stack", "nothing", "outputs"]).await;
        assert_eq!((code, out.as_str()), (3, ""));
        for part in ["nothing nor nothing-gateway in us-east-1", "--stack", "--region"] {
            assert!(err.contains(part), "{part}: {err}");
        }
    }
}

#[tokio::test]
async fn the_stack_of_a_service_is_not_an_environment() {
    for (stacks, stack) in [(Stacks::default(), "test-Billing-1X2Y"), (PER_SERVICE, "test-billing")]
    {
        let cloud = Cloud::with(stacks, no_sites).await;
        let (code, _, err) = cloud.run(&["--stack", stack, "outputs"]).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("a stack of the environment test"), "{err}");
        assert!(err.contains("--stack test"), "{err}");
    }
}

#[tokio::test]
async fn without_a_gateway_only_the_api_is_missing() {
    let stacks = Stacks { missing: &["gateway"], ..PER_SERVICE };
    let cloud = Cloud::with(stacks, no_sites).await;
    let (code, out, err) = cloud.run(&["failures", "list"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let (code, _, err) = cloud.run(&["sites", "list"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("the stack test-gateway has no output ApiUrl"), "{err}");
    assert!(err.contains("deploy the gateway"), "{err}");
}
