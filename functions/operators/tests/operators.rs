//! Tests of `POST /operators`, `GET /operators` and `PATCH /operators/{operatorId}` with requests and responses in API Gateway's format.

mod support;

use contracts::{OperatorId, Scope, SiteId};
use futures_util::future::join_all;
use operators::get_operator::GetOperator;
use serde_json::{Value, json};
use support::{
    admin, api_response, check, create_operator, list, operator, patch_operator, post,
    update_operator, with_path,
};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, OPERATORS},
    sample::{caller, noon},
};

fn get_operator(dynamo: &Dynamo) -> GetOperator {
    GetOperator { operators: dynamo.table(OPERATORS) }
}

fn registration() -> Value {
    json!({ "name": " NOAA SURFRAD ", "plan": "professional" })
}

#[tokio::test]
async fn repeated_requests_create_one_operator_and_get_the_same_response() {
    let dynamo = Dynamo::start().await;
    let step = create_operator(&dynamo);
    let request = post("create-operator", Some("key-1"), &registration().to_string());
    check("create-operator.created", step.handle(&admin(), &request, noon(0)).await);
    let after = dynamo.all_rows().await;
    check("create-operator.created", step.handle(&admin(), &request, noon(5)).await);
    assert_eq!(dynamo.all_rows().await, after);
    let other = post("create-operator", Some("key-1"), r#"{"name": "NASA", "plan": "standard"}"#);
    check("create-operator.key-reused", step.handle(&admin(), &other, noon(5)).await);
    assert_eq!(dynamo.all_rows().await, after);
    let admin = admin();
    for sent in join_all((0..5).map(|_| step.handle(&admin, &request, noon(7)))).await {
        assert_eq!(api_response(sent)["statusCode"], 201);
    }
    assert_eq!(dynamo.rows(OPERATORS).await.len(), 1);
}

#[tokio::test]
async fn an_invalid_registration_is_refused() {
    let dynamo = Dynamo::start().await;
    let step = create_operator(&dynamo);
    let valid = registration().to_string();
    let large = format!("{valid}{}", " ".repeat(5_000));
    for (name, key, body) in [
        ("create-operator.no-key", None, valid.as_str()),
        ("create-operator.wrong-fields", Some("k"), r#"{"name": "", "plan": "gold", "x": 1}"#),
        ("create-operator.too-large", Some("k"), &large),
    ] {
        let request = post("create-operator", key, body);
        check(name, step.handle(&admin(), &request, noon(0)).await);
    }
    assert!(dynamo.rows(OPERATORS).await.is_empty());
}

#[tokio::test]
async fn only_an_administrator_may_see_or_create_operators() {
    let dynamo = Dynamo::start().await;
    let id = operator(&dynamo, "noaa").await;
    let logger = Scope::Logger(SiteId::registered(OperatorId::DEFAULT, "", "a"));
    let before = dynamo.all_rows().await;
    drop(dynamo.take_usage());
    for scope in [Scope::Operator, Scope::Read, logger, Scope::Bootstrap] {
        let caller = caller(id, scope);
        let create = post("create-operator", Some("k"), &registration().to_string());
        let get = with_path("get-operator", "operatorId", &id.to_string());
        let step = get_operator(&dynamo);
        for sent in [
            create_operator(&dynamo).handle(&caller, &create, noon(0)).await,
            step.handle(&caller, &get).await,
            step.handle(&caller, &list("get-operator", &[])).await,
            update_operator(&dynamo)
                .handle(&caller, &patch_operator(&id.to_string(), r#"{"name": "x"}"#), noon(0))
                .await,
        ] {
            let sent = api_response(sent);
            assert_eq!(sent["statusCode"], 403, "{scope}: {sent}");
            assert_eq!(sent["body"]["type"], "urn:fieldstation:problem:forbidden");
        }
    }
    assert!(dynamo.take_usage().calls.is_empty(), "a forbidden call reads no table");
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn an_operator_is_returned_by_its_id() {
    let dynamo = Dynamo::start().await;
    let step = get_operator(&dynamo);
    let request = post("create-operator", Some("key-1"), &registration().to_string());
    let created = api_response(create_operator(&dynamo).handle(&admin(), &request, noon(0)).await);
    let get = async |id: &str| {
        let request = with_path("get-operator", "operatorId", id);
        step.handle(&admin(), &request).await
    };
    let found = api_response(get(&OperatorId::registered("key-1").to_string()).await);
    assert_eq!((&found["statusCode"], &found["body"]), (&json!(200), &created["body"]));
    check("get-operator.default", get(&OperatorId::DEFAULT.to_string()).await);
    check("get-operator.unknown", get(&OperatorId::registered("x").to_string()).await);
    check("get-operator.no-id", get("noaa").await);
}

#[tokio::test]
async fn operators_are_listed_page_by_page_in_the_order_of_creation() {
    let dynamo = Dynamo::start().await;
    let step = get_operator(&dynamo);
    check("list-operators.none", step.handle(&admin(), &list("get-operator", &[])).await);
    for (index, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let body = json!({ "name": key, "plan": "standard" }).to_string();
        let request = post("create-operator", Some(key), &body);
        // Two pairs with equal times. Pages divide both.
        let at = noon(i64::try_from(index.div_ceil(2)).expect("a small number"));
        api_response(create_operator(&dynamo).handle(&admin(), &request, at).await);
    }
    let mut listed: Vec<(String, String)> = Vec::new();
    let mut next: Option<String> = None;
    for page in 0..3 {
        let mut query = vec![("limit", "2")];
        query.extend(next.as_deref().map(|next| ("next", next)));
        let sent = api_response(step.handle(&admin(), &list("get-operator", &query)).await);
        let operators = sent["body"]["operators"].as_array().expect("operators");
        assert!(operators.len() <= 2, "page {page}: {sent}");
        let text = |it: &Value, name: &str| it[name].as_str().expect("a text").to_owned();
        listed.extend(operators.iter().map(|it| (text(it, "createdAt"), text(it, "name"))));
        next = sent["body"]["next"].as_str().map(str::to_owned);
    }
    assert_eq!(next, None);
    assert!(listed.is_sorted_by_key(|(created_at, _)| created_at.clone()), "{listed:?}");
    let mut names: Vec<_> = listed.into_iter().map(|(_, name)| name).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    // A page token belongs to its caller's operator.
    let sent = api_response(step.handle(&admin(), &list("get-operator", &[("limit", "2")])).await);
    let query = [("next", sent["body"]["next"].as_str().expect("a next page"))];
    for (operator, status) in [(OperatorId::DEFAULT, 200), (OperatorId::registered("a"), 400)] {
        let by = caller(operator, Scope::Admin);
        let sent = api_response(step.handle(&by, &list("get-operator", &query)).await);
        assert_eq!(sent["statusCode"], status, "{sent}");
    }
    let wrong = [("limit", "0"), ("next", "eA"), ("status", "ACTIVE")];
    check("list-operators.wrong-query", step.handle(&admin(), &list("get-operator", &wrong)).await);
}

async fn patch(dynamo: &Dynamo, operator: &str, body: &Value, seconds: i64) -> Value {
    let request = patch_operator(operator, &body.to_string());
    api_response(update_operator(dynamo).handle(&admin(), &request, noon(seconds)).await)
}

#[tokio::test]
async fn a_change_is_stored_once_with_an_entry_of_the_audit_trail() {
    let dynamo = Dynamo::start().await;
    let id = operator(&dynamo, "noaa").await.to_string();
    let before = dynamo.row(OPERATORS, &id).await.expect("the row");
    let change = json!({ "name": " NOAA ", "plan": "professional", "status": "SUSPENDED" });
    let request = patch_operator(&id, &change.to_string());
    let step = update_operator(&dynamo);
    check("update-operator.changed", step.handle(&admin(), &request, noon(5)).await);
    let mut expected = before;
    expected["name"] = "NOAA".into();
    expected["plan"] = "professional".into();
    expected["status"] = "SUSPENDED".into();
    assert_eq!(dynamo.row(OPERATORS, &id).await, Some(expected));
    let get = with_path("get-operator", "operatorId", &id);
    check("update-operator.changed", get_operator(&dynamo).handle(&admin(), &get).await);

    // What is left out stays, and what changes nothing writes nothing.
    let after = dynamo.all_rows().await;
    for same in [json!({}), json!({ "name": "NOAA" }), change] {
        drop(dynamo.take_usage());
        assert_eq!(patch(&dynamo, &id, &same, 6).await["statusCode"], 200);
        let calls = dynamo.take_usage().calls;
        assert_eq!(calls.keys().collect::<Vec<_>>(), ["GetItem"]);
    }
    assert_eq!(dynamo.all_rows().await, after);

    let active = patch(&dynamo, &id, &json!({ "status": "ACTIVE" }), 7).await;
    assert_eq!(active["body"]["plan"], "professional");
    assert_eq!(active["body"]["status"], "ACTIVE");
    let mut entries = dynamo.rows(AUDIT).await;
    entries.sort_by_key(|entry| entry["at"].to_string());
    let details: Vec<_> = entries
        .iter()
        .filter(|entry| entry["action"] == "UpdateOperator")
        .map(|entry| (&entry["operatorId"], &entry["target"], &entry["details"]))
        .collect();
    let id = json!(id);
    let first = json!("name, plan standard to professional, status ACTIVE to SUSPENDED");
    let second = json!("status SUSPENDED to ACTIVE");
    assert_eq!(details, [(&id, &id, &first), (&id, &id, &second)]);
}

#[tokio::test]
async fn an_invalid_change_is_refused() {
    let dynamo = Dynamo::start().await;
    let id = operator(&dynamo, "noaa").await.to_string();
    let before = dynamo.all_rows().await;
    let unknown = OperatorId::registered("x").to_string();
    let default = OperatorId::DEFAULT.to_string();
    let wrong = r#"{"name": "", "plan": null, "status": "CLOSED", "x": 1}"#;
    for (name, operator, body) in [
        ("update-operator.wrong-fields", &*id, wrong),
        ("update-operator.no-object", &id, "[]"),
        ("update-operator.unknown", &unknown, "{}"),
        ("update-operator.default", &default, r#"{"status": "SUSPENDED"}"#),
        ("update-operator.no-id", "noaa", "{}"),
    ] {
        let request = patch_operator(operator, body);
        check(name, update_operator(&dynamo).handle(&admin(), &request, noon(0)).await);
    }
    // Another administrator has changed the operator since it was read.
    let mut request = patch_operator(&id, r#"{"name": "A"}"#);
    request.headers.insert("if-match", "\"0123\"".parse().expect("a header"));
    check(
        "update-operator.changed-since",
        update_operator(&dynamo).handle(&admin(), &request, noon(0)).await,
    );
    // An administrator may belong to any operator.
    let own = caller(id.parse().expect("an id"), Scope::Admin);
    let request = patch_operator(&id, r#"{"status": "SUSPENDED"}"#);
    check("update-operator.own", update_operator(&dynamo).handle(&own, &request, noon(0)).await);
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn of_concurrent_changes_none_is_lost_without_an_error() {
    let dynamo = Dynamo::start().await;
    let id = operator(&dynamo, "noaa").await.to_string();
    let changes = [json!({ "name": "A" }), json!({ "plan": "community" }), json!({ "name": "B" })];
    let sent = join_all(changes.iter().map(|change| patch(&dynamo, &id, change, 1))).await;
    let statuses: Vec<_> = sent.iter().map(|sent| sent["statusCode"].clone()).collect();
    let done = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| *status == 200 || *status == 503), "{sent:?}");
    let entries = dynamo.rows(AUDIT).await;
    let entries = entries.iter().filter(|entry| entry["action"] == "UpdateOperator").count();
    assert!(done >= 1 && entries == done, "{done} done, {entries} entries");
}
