//! The bodies that manage operators and keys: golden files, schemas and error messages.

use std::fs;

use contracts::{
    OperatorId, Plan, Scope, SiteId,
    input::{self, FieldError},
    operators::{KEY_REQUEST, KeyId, KeyRequest, OPERATOR_REGISTRATION, OperatorRegistration},
};
use serde_json::{Value, json};
use testkit::golden;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn is_valid(schema: &str, document: &Value) -> bool {
    let file = format!("{HERE}/schemas/{schema}.json");
    let text = fs::read_to_string(&file).expect(&file);
    let schema = serde_json::from_str(&text).expect("a schema is JSON");
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .expect("a schema")
        .is_valid(document)
}

fn key_request() -> KeyRequest {
    KeyRequest {
        name: "Logger of Alamosa".to_owned(),
        scope: Scope::Logger(SiteId::registered(OperatorId::DEFAULT, "", "alamosa")),
        expires_in_days: Some(365),
        replaces: Some(KeyId::from_request(OperatorId::DEFAULT, "old")),
        overlap_seconds: Some(86_400),
        operator_id: Some(OperatorId::registered("noaa")),
    }
}

fn key_errors(body: &Value) -> Vec<String> {
    let errors = input::read::<KeyRequest>(&body.to_string()).expect_err("wrong input");
    errors.iter().map(FieldError::to_string).collect()
}

#[test]
fn bodies_match_their_golden_files_and_schemas() {
    let operator = OperatorRegistration { name: "NOAA".to_owned(), plan: Plan::Standard };
    let (operator, key) = (json!(operator), json!(key_request()));
    golden::check(HERE, OPERATOR_REGISTRATION, &operator);
    golden::check(HERE, KEY_REQUEST, &key);
    assert!(is_valid(OPERATOR_REGISTRATION, &operator));
    assert!(is_valid(KEY_REQUEST, &key));
    assert_eq!(input::read::<KeyRequest>(&key.to_string()), Ok(key_request()));
}

#[test]
fn a_key_needs_only_a_name_and_a_scope() {
    let body = json!({ "name": "A reader", "scope": "read" });
    assert!(is_valid(KEY_REQUEST, &body));
    let expected = KeyRequest {
        name: "A reader".to_owned(),
        scope: Scope::Read,
        expires_in_days: None,
        replaces: None,
        overlap_seconds: None,
        operator_id: None,
    };
    assert_eq!(input::read(&body.to_string()), Ok(expected));
}

#[test]
fn values_outside_the_schema_are_refused_with_the_field() {
    let body = json!({
        "name": "",
        "scope": "root",
        "expiresInDays": 0,
        "replaces": "fso_",
        "overlapSeconds": 2_592_001,
        "operatorId": "default",
        "hash": "x",
    });
    assert!(!is_valid(KEY_REQUEST, &body));
    assert_eq!(
        key_errors(&body),
        [
            "hash: is not known; the fields are name, scope, expiresInDays, replaces, overlapSeconds, operatorId",
            "name: has 0 characters; give a string of 1 to 200 characters",
            "scope: is \"root\"; give admin, operator, read or logger:<site id>",
            "expiresInDays: is 0; give a whole number from 1 to 3650",
            "replaces: is \"fso_\"; give the UUID of a key",
            "overlapSeconds: is 2592001; give a whole number from 0 to 2592000",
            "operatorId: is \"default\"; give the UUID of an operator",
        ]
    );
}

#[test]
fn nobody_can_ask_for_the_bootstrap_scope() {
    let body = json!({ "name": "A", "scope": "bootstrap" });
    assert!(!is_valid(KEY_REQUEST, &body));
    let expected = "scope: is \"bootstrap\"; give admin, operator, read or logger:<site id>";
    assert_eq!(key_errors(&body), [expected]);
}

#[test]
fn an_overlap_needs_a_replaced_key() {
    let body = json!({ "name": "A", "scope": "read", "overlapSeconds": 60 });
    let expected =
        "overlapSeconds: is only for a key that replaces another one; give replaces, too";
    assert_eq!(key_errors(&body), [expected]);
}

#[test]
fn a_keys_id_depends_on_the_operator_and_the_idempotency_key() {
    let other = OperatorId::registered("other");
    let id = KeyId::from_request(OperatorId::DEFAULT, "a");
    assert_eq!(id, KeyId::from_request(OperatorId::DEFAULT, "a"));
    assert_ne!(id, KeyId::from_request(OperatorId::DEFAULT, "b"));
    assert_ne!(id, KeyId::from_request(other, "a"));
}
