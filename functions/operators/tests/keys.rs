//! Tests of `POST /keys`, `GET /keys` and `DELETE /keys/{keyId}`.

mod support;

use std::collections::{BTreeMap, HashMap};

use contracts::{OperatorId, Scope, SiteId, operators::KeyId};
use keys::ApiKey;
use lambda::http::{Caller, Request};
use operators::get_key::GetKey;
use serde_json::{Value, json};
use support::{
    admin, api_response, bootstrap, check, create_key, list, new_key, operator, post, post_key,
    revoke_key, set_status, trail, with_path,
};
use testkit::{
    Dynamo,
    dynamo::KEYS,
    sample::{caller, noon},
};

fn get_key(dynamo: &Dynamo) -> GetKey {
    GetKey { keys: dynamo.table(KEYS), trail: trail(dynamo) }
}

async fn listed(dynamo: &Dynamo, by: &Caller) -> Vec<Value> {
    let sent = api_response(get_key(dynamo).handle(by, &list("get-key", &[]), noon(0)).await);
    sent["body"]["keys"].as_array().expect("keys").clone()
}

async fn revoke(dynamo: &Dynamo, by: &Caller, key: &str, seconds: i64) -> Value {
    let request = with_path("revoke-key", "keyId", key);
    api_response(revoke_key(dynamo).handle(by, &request, noon(seconds)).await)
}

fn logger() -> Scope {
    Scope::Logger(SiteId::registered(OperatorId::DEFAULT, "", "alamosa"))
}

#[tokio::test]
async fn a_key_is_shown_once_and_stored_as_its_hash() {
    let dynamo = Dynamo::start().await;
    let step = create_key(&dynamo);
    let body = json!({ "name": " Dashboard ", "scope": "read", "expiresInDays": 30 }).to_string();
    let request = post("create-key", Some("key-1"), &body);
    let sent = check("create-key.created", step.handle(&admin(), &request, noon(0)).await);
    let text = sent["body"]["key"].as_str().expect("a key");
    let key = ApiKey::parse(text).expect("a valid key");
    assert_eq!(sent["body"]["prefix"], key.visible_prefix());
    let rows = json!(dynamo.all_rows().await).to_string();
    assert!(!rows.contains(&text[12..]), "the key is stored");
    assert!(dynamo.row(KEYS, &key.hash()).await.is_some());

    let after = dynamo.all_rows().await;
    let repeated = check("create-key.exists", step.handle(&admin(), &request, noon(5)).await);
    assert_eq!(repeated["body"]["prefix"], key.visible_prefix());
    assert!(!repeated.to_string().contains(&text[12..]), "the key is shown again");
    assert_eq!(dynamo.all_rows().await, after);
}

#[tokio::test]
async fn a_suspended_operator_gets_no_key() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    set_status(&dynamo, own, "SUSPENDED").await;
    let before = dynamo.all_rows().await;
    let body = json!({ "name": "A", "scope": "read", "operatorId": own }).to_string();
    let step = create_key(&dynamo);
    let response = step.handle(&admin(), &post("create-key", Some("k"), &body), noon(0)).await;
    check("create-key.suspended", response);
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn an_invalid_request_is_refused() {
    let dynamo = Dynamo::start().await;
    let step = create_key(&dynamo);
    let valid = json!({ "name": "A", "scope": "read" });
    let with = |field: &str, value: Value| {
        let mut body = valid.clone();
        body[field] = value;
        body.to_string()
    };
    let nobody = OperatorId::registered("nobody");
    let no_key = KeyId::from_request(nobody, "x");
    for (name, key, body) in [
        ("create-key.no-key", None, valid.to_string()),
        ("create-key.wrong-fields", Some("k"), r#"{"scope": "bootstrap", "days": 3}"#.to_owned()),
        ("create-key.unknown-operator", Some("k"), with("operatorId", json!(nobody))),
        ("create-key.unknown-replaced", Some("k"), with("replaces", json!(no_key))),
    ] {
        check(name, step.handle(&admin(), &post("create-key", key, &body), noon(0)).await);
    }
    assert!(dynamo.rows(KEYS).await.is_empty());
}

#[tokio::test]
async fn each_scope_may_create_only_its_kinds_of_keys() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let other = operator(&dynamo, "other").await;
    let scopes = [Scope::Admin, Scope::Operator, logger(), Scope::Read];
    for (by, may_create) in [
        (caller(own, Scope::Admin), [true, true, true, true]),
        (caller(own, Scope::Operator), [false, true, true, true]),
        (caller(own, Scope::Read), [false; 4]),
        (caller(own, logger()), [false; 4]),
        (bootstrap(), [true, false, false, false]),
    ] {
        for (scope, allowed) in scopes.into_iter().zip(may_create) {
            let body = json!({ "name": "A", "scope": scope });
            let key = format!("{} {scope}", by.scope);
            let sent = post_key(&dynamo, &by, &key, &body, noon(0)).await;
            let expected = if allowed { 201 } else { 403 };
            assert_eq!(sent["statusCode"], expected, "{} creates {scope}: {sent}", by.scope);
            if allowed {
                assert_eq!(sent["body"]["operatorId"], json!(by.operator));
                assert_eq!(sent["body"]["scope"], json!(scope));
            }
            let body = json!({ "name": "A", "scope": scope, "operatorId": other });
            let sent = post_key(&dynamo, &by, &key, &body, noon(0)).await;
            let expected = if by.scope == Scope::Admin { 201 } else { 403 };
            assert_eq!(sent["statusCode"], expected, "{} creates {scope} of another", by.scope);
        }
    }
    // The operator may name itself.
    let body = json!({ "name": "A", "scope": "read", "operatorId": own });
    let sent = post_key(&dynamo, &caller(own, Scope::Operator), "self", &body, noon(0)).await;
    assert_eq!(sent["statusCode"], 201, "{sent}");
}

#[tokio::test]
async fn the_first_administrators_secret_creates_keys_for_at_most_90_days() {
    let dynamo = Dynamo::start().await;
    let body = json!({ "name": "Ada", "scope": "admin" });
    let sent = new_key(&dynamo, &bootstrap(), "default", &body).await;
    assert_eq!(sent["expiresAt"], json!(noon(90 * 86_400)));
    let body = json!({ "name": "Ada", "scope": "admin", "expiresInDays": 1 });
    let sent = new_key(&dynamo, &bootstrap(), "short", &body).await;
    assert_eq!(sent["expiresAt"], json!(noon(86_400)));
    let body = json!({
        "name": "Ada", "scope": "admin", "expiresInDays": 91, "replaces": sent["keyId"],
    });
    let request = post("create-key", Some("long"), &body.to_string());
    let step = create_key(&dynamo);
    check("create-key.bootstrap", step.handle(&bootstrap(), &request, noon(0)).await);
}

#[tokio::test]
async fn a_replaced_key_expires_after_the_overlap_in_the_same_transaction() {
    let dynamo = Dynamo::start().await;
    let expiry = async |id: &Value| {
        let keys = listed(&dynamo, &admin()).await;
        keys.into_iter().find(|key| key["keyId"] == *id).expect("the key")["expiresAt"].clone()
    };
    let old = new_key(&dynamo, &admin(), "old", &json!({ "name": "A", "scope": "read" })).await;
    assert_eq!(expiry(&old["keyId"]).await, Value::Null);
    let body = json!({
        "name": "A", "scope": "read", "replaces": old["keyId"], "overlapSeconds": 60,
    });
    let request = post("create-key", Some("new"), &body.to_string());
    drop(dynamo.take_usage());
    let sent = create_key(&dynamo).handle(&admin(), &request, noon(10)).await;
    let sent = check("create-key.replaced", sent);
    let calls = BTreeMap::from([("GetItem".to_owned(), 2), ("TransactWriteItems".to_owned(), 1)]);
    assert_eq!(dynamo.take_usage().calls, calls);
    assert_eq!(expiry(&old["keyId"]).await, json!(noon(70)));
    assert_eq!(expiry(&sent["body"]["keyId"]).await, Value::Null);

    // A later rotation does not extend the old key.
    let body = json!({
        "name": "A", "scope": "read", "replaces": old["keyId"], "overlapSeconds": 600,
    });
    let sent = post_key(&dynamo, &admin(), "again", &body, noon(20)).await;
    assert_eq!(sent["body"]["replaced"]["expiresAt"], json!(noon(70)), "{sent}");
    assert_eq!(expiry(&old["keyId"]).await, json!(noon(70)));

    // Without an overlap in the request, it is an hour.
    let body = json!({ "name": "A", "scope": "read", "replaces": sent["body"]["keyId"] });
    let sent = post_key(&dynamo, &admin(), "hour", &body, noon(30)).await;
    assert_eq!(sent["body"]["replaced"]["expiresAt"], json!(noon(3630)), "{sent}");

    // A key that has expired can't be replaced, nor one that was revoked.
    let body = json!({ "name": "A", "scope": "read", "replaces": old["keyId"] });
    let request = post("create-key", Some("late"), &body.to_string());
    check("create-key.not-active", create_key(&dynamo).handle(&admin(), &request, noon(70)).await);
    let revoked = sent["body"]["keyId"].as_str().expect("an id");
    assert_eq!(revoke(&dynamo, &admin(), revoked, 80).await["statusCode"], 200);
    let body = json!({ "name": "A", "scope": "read", "replaces": revoked });
    let sent = post_key(&dynamo, &admin(), "revoked", &body, noon(90)).await;
    assert_eq!(sent["statusCode"], 409, "{sent}");
}

#[tokio::test]
async fn a_repeated_rotation_changes_nothing() {
    let dynamo = Dynamo::start().await;
    let old = new_key(&dynamo, &admin(), "old", &json!({ "name": "A", "scope": "read" })).await;
    let body = json!({ "name": "A", "scope": "read", "replaces": old["keyId"] });
    assert_eq!(post_key(&dynamo, &admin(), "new", &body, noon(0)).await["statusCode"], 201);
    let after = dynamo.all_rows().await;
    let sent = post_key(&dynamo, &admin(), "new", &body, noon(5)).await;
    assert_eq!(sent["statusCode"], 409, "{sent}");
    assert_eq!(sent["body"]["type"], "urn:fieldstation:problem:key-exists");
    assert_eq!(dynamo.all_rows().await, after);
}

#[tokio::test]
async fn an_operators_key_can_not_replace_or_revoke_an_administrators_key() {
    let dynamo = Dynamo::start().await;
    let old = new_key(&dynamo, &admin(), "old", &json!({ "name": "A", "scope": "admin" })).await;
    let by = caller(OperatorId::DEFAULT, Scope::Operator);
    let before = dynamo.all_rows().await;
    let body = json!({ "name": "A", "scope": "read", "replaces": old["keyId"] });
    assert_eq!(post_key(&dynamo, &by, "new", &body, noon(0)).await["statusCode"], 403);
    let id = old["keyId"].as_str().expect("an id");
    assert_eq!(revoke(&dynamo, &by, id, 0).await["statusCode"], 403);
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn a_key_is_revoked_once_and_the_response_is_repeated() {
    let dynamo = Dynamo::start().await;
    let key = new_key(&dynamo, &admin(), "a", &json!({ "name": "A", "scope": "read" })).await;
    let id = key["keyId"].as_str().expect("an id");
    let sent = revoke(&dynamo, &admin(), id, 5).await;
    assert_eq!(sent["statusCode"], 200, "{sent}");
    let expected =
        json!({ "keyId": id, "prefix": key["prefix"], "revokedAt": "2026-01-01T12:00:05.000Z" });
    assert_eq!(sent["body"], expected);
    let after = dynamo.all_rows().await;
    assert_eq!(revoke(&dynamo, &admin(), id, 9).await["body"], expected);
    assert_eq!(dynamo.all_rows().await, after);
    assert_eq!(listed(&dynamo, &admin()).await[0]["revokedAt"], expected["revokedAt"]);
    for scope in [Scope::Read, logger(), Scope::Bootstrap] {
        let by = caller(OperatorId::DEFAULT, scope);
        assert_eq!(revoke(&dynamo, &by, id, 9).await["statusCode"], 403, "{scope}");
    }
    let step = revoke_key(&dynamo);
    let request = with_path("revoke-key", "keyId", key["key"].as_str().expect("a key"));
    check("revoke-key.no-id", step.handle(&admin(), &request, noon(0)).await);
}

#[tokio::test]
async fn another_operators_key_looks_like_an_unknown_one() {
    let dynamo = Dynamo::start().await;
    let (own, other) = (operator(&dynamo, "own").await, operator(&dynamo, "other").await);
    let by = caller(own, Scope::Operator);
    let body = json!({ "name": "Other", "scope": "read" });
    let foreign = new_key(&dynamo, &caller(other, Scope::Operator), "k", &body).await;
    let foreign = foreign["keyId"].as_str().expect("an id");
    let unknown = KeyId::from_request(own, "unknown").to_string();
    let before = dynamo.all_rows().await;
    let mut seen = Vec::new();
    for id in [foreign, unknown.as_str()] {
        drop(dynamo.take_usage());
        let revoked = revoke(&dynamo, &by, id, 0).await;
        assert_eq!(revoked["statusCode"], 404, "{revoked}");
        let body = json!({ "name": "A", "scope": "read", "replaces": id });
        let replaced = post_key(&dynamo, &by, "r", &body, noon(0)).await;
        assert_eq!(replaced["statusCode"], 400, "{replaced}");
        let text = format!("{revoked} {replaced}").replace(id, "<id>");
        seen.push((text, dynamo.take_usage().calls));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].1.get("GetItem"), Some(&3), "{:?}", seen[0].1);
    assert_eq!(dynamo.all_rows().await, before);
    assert!(listed(&dynamo, &by).await.is_empty());
}

#[tokio::test]
async fn keys_are_listed_page_by_page_without_their_hashes() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let by = caller(own, Scope::Operator);
    for index in 0..5 {
        // All of the same time: the position in the list is unique nevertheless.
        let body = json!({ "name": format!("{index}"), "scope": "read" });
        new_key(&dynamo, &by, &index.to_string(), &body).await;
        new_key(&dynamo, &admin(), &index.to_string(), &body).await;
    }
    let hashes: Vec<_> = dynamo.rows(KEYS).await.into_iter().map(|row| row["id"].clone()).collect();
    let mut names = Vec::new();
    let mut next: Option<String> = None;
    for _ in 0..3 {
        let mut query = vec![("limit", "2")];
        query.extend(next.as_deref().map(|next| ("next", next)));
        let sent =
            api_response(get_key(&dynamo).handle(&by, &list("get-key", &query), noon(0)).await);
        let keys = sent["body"]["keys"].as_array().expect("keys");
        names.extend(keys.iter().map(|key| key["name"].as_str().expect("a name").to_owned()));
        next = sent["body"]["next"].as_str().map(str::to_owned);
        let text = sent.to_string();
        for hash in hashes.iter().filter_map(Value::as_str).filter(|id| !id.starts_with("key#")) {
            assert!(!text.contains(hash), "{text}");
        }
    }
    assert_eq!(next, None);
    names.sort();
    assert_eq!(names, ["0", "1", "2", "3", "4"]);
    let keys = listed(&dynamo, &by).await;
    let fields: Vec<_> = keys[0].as_object().expect("an object").keys().cloned().collect();
    assert_eq!(fields, ["createdAt", "keyId", "name", "prefix", "scope"]);
    for scope in [Scope::Read, logger(), Scope::Bootstrap] {
        let sent =
            get_key(&dynamo).handle(&caller(own, scope), &list("get-key", &[]), noon(0)).await;
        assert_eq!(api_response(sent)["statusCode"], 403, "{scope}");
    }
}

#[tokio::test]
async fn an_administrator_lists_and_revokes_the_keys_of_the_operator_that_it_names() {
    let dynamo = Dynamo::start().await;
    let operator = operator(&dynamo, "other").await;
    let own = caller(operator, Scope::Operator);
    let body = json!({ "name": "one", "scope": "read" });
    let key = post_key(&dynamo, &own, "key-1", &body, noon(0)).await["body"]["keyId"].clone();
    let key = key.as_str().expect("a key id");
    let named = operator.to_string();
    let query = [("operatorId", named.as_str())];

    let keys = async |by: &Caller, query: &[(&str, &str)]| {
        api_response(get_key(&dynamo).handle(by, &list("get-key", query), noon(50)).await)
    };
    let listed = keys(&admin(), &query).await;
    assert_eq!(listed["body"]["keys"][0]["keyId"], key, "{listed}");
    let stranger = caller(OperatorId::registered("stranger"), Scope::Operator);
    assert_eq!(keys(&stranger, &query).await["statusCode"], 403);
    assert_eq!(keys(&admin(), &[("operatorId", "x")]).await["statusCode"], 400);

    let mut request = with_path("revoke-key", "keyId", key);
    let revoked = async |by: &Caller, request: &Request| {
        api_response(revoke_key(&dynamo).handle(by, request, noon(60)).await)
    };
    // Without the operator, the key is unknown to the administrator.
    assert_eq!(revoked(&admin(), &request).await["statusCode"], 404);
    let parameters = HashMap::from([("operatorId".to_owned(), vec![named.clone()])]);
    request.query_string_parameters = parameters.into();
    assert_eq!(revoked(&stranger, &request).await["statusCode"], 403);
    let sent = revoked(&admin(), &request).await;
    assert_eq!((&sent["statusCode"], &sent["body"]["keyId"]), (&json!(200), &json!(key)), "{sent}");
}
