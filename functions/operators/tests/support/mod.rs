//! Helpers that the tests of operators share.

// Each test file uses a part of the helpers.
#![allow(dead_code)]

use audit::Trail;
use contracts::{OperatorId, Scope, Timestamp};
use lambda::http::{Caller, Problem, Request, Response, response};
use operators::{
    create_key::CreateKey, create_operator::CreateOperator, revoke_key::RevokeKey,
    update_operator::UpdateOperator,
};
use serde_json::{Value, json};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, KEYS, OPERATORS},
    golden,
    sample::{self, caller, noon},
};

pub fn admin() -> Caller {
    caller(OperatorId::DEFAULT, Scope::Admin)
}

pub fn bootstrap() -> Caller {
    let actor = "bootstrap".to_owned();
    Caller { actor, ..caller(OperatorId::DEFAULT, Scope::Bootstrap) }
}

/// Returns `POST` of a body in API Gateway's format.
pub fn post(function: &str, key: Option<&str>, body: &str) -> Request {
    let mut event = sample::event(function);
    for headers in ["headers", "multiValueHeaders"] {
        event[headers].as_object_mut().expect("headers").remove("Idempotency-Key");
    }
    if let Some(key) = key {
        event["headers"]["idempotency-key"] = key.into();
        event["multiValueHeaders"]["idempotency-key"] = json!([key]);
    }
    event["body"] = body.into();
    read(&event)
}

/// Returns the sample event with another path parameter.
pub fn with_path(function: &str, parameter: &str, value: &str) -> Request {
    let mut event = sample::event(function);
    event["pathParameters"] = json!({ parameter: value });
    read(&event)
}

/// Returns the sample event without a path parameter, with a query.
pub fn list(function: &str, query: &[(&str, &str)]) -> Request {
    let mut event = sample::event(function);
    event["pathParameters"] = Value::Null;
    for (name, value) in query {
        event["queryStringParameters"][name] = (*value).into();
        event["multiValueQueryStringParameters"][name] = json!([value]);
    }
    read(&event)
}

fn read(event: &Value) -> Request {
    serde_json::from_value(event.clone()).expect("an event of API Gateway")
}

/// Returns the response that API Gateway gets, with the body parsed as JSON.
pub fn api_response(result: Result<Response, Problem>) -> Value {
    let mut sent = serde_json::to_value(response(result)).expect("a response as JSON");
    let body = sent["body"].as_str().expect("a body");
    sent["body"] = serde_json::from_str(body).expect("a body of JSON");
    sent
}

/// Compares a response with a golden file. A new key and its prefix are random, so they are replaced.
pub fn check(name: &str, result: Result<Response, Problem>) -> Value {
    let sent = api_response(result);
    let mut shown = sent.clone();
    for field in ["key", "prefix"] {
        if let Some(value) = shown["body"].get_mut(field) {
            *value = format!("<{field}>").into();
        }
    }
    let entries = shown["body"].get_mut("entries").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten() {
        let details = entry["details"].as_str().unwrap_or_default();
        if let Some((_, rest)) = details.strip_prefix("key:").and_then(|it| it.split_once(", ")) {
            entry["details"] = format!("key:<prefix>, {rest}").into();
        }
    }
    let errors = shown["body"].get_mut("errors").and_then(Value::as_array_mut);
    for error in errors.into_iter().flatten() {
        let message = error["message"].as_str().expect("a message");
        if let Some((start, _)) = message.split_once("which begins with ") {
            error["message"] = format!("{start}which begins with <prefix>").into();
        }
    }
    golden::check(env!("CARGO_MANIFEST_DIR"), name, &shown);
    sent
}

pub fn trail(dynamo: &Dynamo) -> Trail {
    Trail::new(dynamo.table(AUDIT))
}

pub fn revoke_key(dynamo: &Dynamo) -> RevokeKey {
    RevokeKey { keys: dynamo.table(KEYS), trail: trail(dynamo) }
}

pub fn create_operator(dynamo: &Dynamo) -> CreateOperator {
    CreateOperator { operators: dynamo.table(OPERATORS), trail: trail(dynamo) }
}

pub fn create_key(dynamo: &Dynamo) -> CreateKey {
    CreateKey { keys: dynamo.table(KEYS), operators: dynamo.table(OPERATORS), trail: trail(dynamo) }
}

pub fn update_operator(dynamo: &Dynamo) -> UpdateOperator {
    UpdateOperator { operators: dynamo.table(OPERATORS), trail: trail(dynamo) }
}

/// Returns `PATCH /operators/{operatorId}` of a body in API Gateway's format.
pub fn patch_operator(operator: &str, body: &str) -> Request {
    let mut event = sample::event("update-operator");
    event["pathParameters"] = json!({ "operatorId": operator });
    event["body"] = body.into();
    read(&event)
}

/// Suspends an operator or lets it work again.
pub async fn set_status(dynamo: &Dynamo, operator: OperatorId, status: &str) {
    let body = json!({ "status": status }).to_string();
    let request = patch_operator(&operator.to_string(), &body);
    let sent = api_response(update_operator(dynamo).handle(&admin(), &request, noon(0)).await);
    assert_eq!(sent["statusCode"], 200, "{sent}");
}

/// Registers an operator under this idempotency key.
pub async fn operator(dynamo: &Dynamo, key: &str) -> OperatorId {
    let body = json!({ "name": key, "plan": "standard" }).to_string();
    let request = post("create-operator", Some(key), &body);
    let sent = api_response(create_operator(dynamo).handle(&admin(), &request, noon(0)).await);
    assert_eq!(sent["statusCode"], 201, "{sent}");
    OperatorId::registered(key)
}

/// Calls `POST /keys` and returns the response.
pub async fn post_key(
    dynamo: &Dynamo,
    by: &Caller,
    key: &str,
    body: &Value,
    now: Timestamp,
) -> Value {
    let request = post("create-key", Some(key), &body.to_string());
    api_response(create_key(dynamo).handle(by, &request, now).await)
}

/// Creates a key at noon and returns the body of the response.
pub async fn new_key(dynamo: &Dynamo, by: &Caller, key: &str, body: &Value) -> Value {
    let mut sent = post_key(dynamo, by, key, body, noon(0)).await;
    assert_eq!(sent["statusCode"], 201, "{sent}");
    sent["body"].take()
}
