//! Tests of `POST /operators` and `GET /operators` with requests and responses in API Gateway's format.

mod support;

use contracts::{OperatorId, Scope, SiteId};
use futures_util::future::join_all;
use operators::get_operator::GetOperator;
use serde_json::{Value, json};
use support::{admin, api_response, check, create_operator, list, operator, post, with_path};
use testkit::{
    Dynamo,
    dynamo::OPERATORS,
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
        // Two pairs with equal times.
        let at = noon(i64::try_from(index / 2).expect("a small number"));
        api_response(create_operator(&dynamo).handle(&admin(), &request, at).await);
    }
    let mut names = Vec::new();
    let mut next: Option<String> = None;
    for page in 0..3 {
        let mut query = vec![("limit", "2")];
        query.extend(next.as_deref().map(|next| ("next", next)));
        let sent = api_response(step.handle(&admin(), &list("get-operator", &query)).await);
        let operators = sent["body"]["operators"].as_array().expect("operators");
        assert!(operators.len() <= 2, "page {page}: {sent}");
        names.extend(operators.iter().map(|it| it["name"].as_str().expect("a name").to_owned()));
        next = sent["body"]["next"].as_str().map(str::to_owned);
    }
    assert_eq!(next, None);
    names.sort();
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    let wrong = [("limit", "0"), ("next", "eA"), ("status", "ACTIVE")];
    check("list-operators.wrong-query", step.handle(&admin(), &list("get-operator", &wrong)).await);
}
