//! Functions that the tests of the API for events share.

// Each test file uses only some of them.
#![allow(dead_code)]

use contracts::{OperatorId, Scope, SourceOperators, Timestamp};
use events::{append_event::AppendEvent, guards::Sources, list_events::ListEvents};
use lambda::http::{Caller, Problem, Request, Response, response};
use serde_json::{Value, json};
use store::Table;
use testkit::{
    Dynamo,
    dynamo::{EVENT_GUARDS, EVENTS},
    golden,
    sample::{self, caller},
};

/// Returns the function `append-event` as a new execution environment.
pub fn append_event(dynamo: &Dynamo) -> AppendEvent {
    append_with(dynamo.table(EVENTS), dynamo.table(EVENT_GUARDS), "")
}

/// Returns the function `append-event` with these tables and this value of `SOURCE_OPERATORS`.
pub fn append_with(events: Table, guards: Table, operators: &str) -> AppendEvent {
    let operators: SourceOperators = operators.parse().expect("operators of sources");
    AppendEvent { events, sources: Sources::new(guards.clone(), operators), guards }
}

pub fn list_events(dynamo: &Dynamo) -> ListEvents {
    ListEvents { events: dynamo.table(EVENTS) }
}

/// Returns a caller that may append events for this operator.
pub fn writer(operator: OperatorId) -> Caller {
    caller(operator, Scope::Operator)
}

/// Returns an event of another system.
pub fn event(id: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "com.example.lims",
        "type": "com.example.CalibrationDone",
        "subject": "example.instrument/SN-4711",
        "data": { "gas": "zero" },
    })
}

/// Returns an event of this entity.
pub fn event_of(entity: &str, id: &str) -> Value {
    let mut event = event(id);
    event["subject"] = entity.into();
    event
}

/// Returns `POST /events` with this body.
pub fn post(body: &str) -> Request {
    post_as("application/cloudevents+json", body)
}

pub fn post_as(kind: &str, body: &str) -> Request {
    let mut request = sample::event("append-event");
    request["headers"]["Content-Type"] = kind.into();
    request["multiValueHeaders"]["Content-Type"] = json!([kind]);
    request["body"] = body.into();
    serde_json::from_value(request).expect("a request")
}

/// Returns `GET /events` with this query.
pub fn get(query: &[(&str, &str)]) -> Request {
    let mut request = sample::event("list-events");
    request["queryStringParameters"] = json!({});
    request["multiValueQueryStringParameters"] = json!({});
    for (name, value) in query {
        request["queryStringParameters"][name] = (*value).into();
        request["multiValueQueryStringParameters"][name] = json!([value]);
    }
    serde_json::from_value(request).expect("a request")
}

/// Returns the response that API Gateway gets, with the body parsed as JSON.
pub fn api_response(result: Result<Response, Problem>) -> Value {
    let mut sent = serde_json::to_value(response(result)).expect("a response as JSON");
    let body = sent["body"].as_str().expect("a body");
    sent["body"] = serde_json::from_str(body).expect("a body of JSON");
    sent
}

/// Compares a response with a golden file.
pub fn check(name: &str, result: Result<Response, Problem>) -> Value {
    let sent = api_response(result);
    golden::check(env!("CARGO_MANIFEST_DIR"), name, &sent);
    sent
}

/// Appends an event and returns the body of the response.
pub async fn append(step: &AppendEvent, by: &Caller, event: &Value, now: Timestamp) -> Value {
    let sent = api_response(step.handle(by, &post(&event.to_string()), now).await);
    assert_eq!(sent["statusCode"], 201, "{sent}");
    sent["body"].clone()
}

/// Returns the body of a page.
pub async fn list(dynamo: &Dynamo, by: &Caller, query: &[(&str, &str)], now: Timestamp) -> Value {
    let sent = api_response(list_events(dynamo).handle(by, &get(query), now).await);
    assert_eq!(sent["statusCode"], 200, "{sent}");
    sent["body"].clone()
}

/// Returns the events of all pages, and asserts that no page is larger than `limit`.
pub async fn all_pages(
    dynamo: &Dynamo,
    by: &Caller,
    query: &[(&str, &str)],
    limit: usize,
    now: Timestamp,
) -> Vec<Value> {
    let (mut events, mut token, size) = (Vec::new(), String::new(), limit.to_string());
    loop {
        let mut query = query.to_vec();
        query.push(("limit", &size));
        if !token.is_empty() {
            query.push(("pageToken", &token));
        }
        // Time passes between the pages.
        let mut page = list(dynamo, by, &query, now.plus_millis(1_000)).await;
        let Value::Array(found) = page["events"].take() else { panic!("no list: {page}") };
        assert!(found.len() <= limit, "{} events", found.len());
        events.extend(found);
        match page["nextPageToken"].as_str() {
            Some(next) => next.clone_into(&mut token),
            None => return events,
        }
    }
}
