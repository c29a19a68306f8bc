//! Tests of reading executions and their histories, against a stub of Step Functions.

use aws_sdk_sfn::Client;
use serde_json::{Value, json};
use testkit::http::{Call, Stub};

const EXECUTION: &str = "arn:aws:states:eu-central-1:111122223333:execution:saga:1";

fn event(id: i64) -> Value {
    json!({ "id": id, "type": "WaitStateEntered", "timestamp": 1_767_225_600.0 })
}

#[tokio::test]
async fn all_pages_of_a_history_are_fetched_in_order() {
    let stub = Stub::start(|call: &Call| match call.json()["nextToken"].as_str() {
        None => (200, json!({ "events": [event(1), event(2)], "nextToken": "second" })),
        Some(_) => (200, json!({ "events": [event(3)] })),
    })
    .await;
    let events = machines::events(&Client::new(&stub.config()), EXECUTION).await;
    let ids: Vec<_> = events.expect("a history").iter().map(|event| event.id).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert!(stub.take_calls().iter().all(|call| call.json()["executionArn"] == EXECUTION));
}

#[tokio::test]
async fn only_an_execution_that_does_not_exist_is_none() {
    for (error, is_none) in [("ExecutionDoesNotExist", true), ("AccessDeniedException", false)] {
        let stub = Stub::start(move |_: &Call| (400, json!({ "__type": error }))).await;
        let described = machines::describe(&Client::new(&stub.config()), EXECUTION).await;
        assert_eq!(matches!(described, Ok(None)), is_none, "{described:?}");
        assert_eq!(described.is_err(), !is_none, "{error}");
    }
}
