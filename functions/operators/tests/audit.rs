//! Tests of the audit trail and of `GET /audit`.

mod support;

use audit::Trail;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{OperatorId, Scope, SiteId, operators::KeyId};
use lambda::http::Caller;
use operators::{get_audit::GetAudit, get_key::GetKey};
use serde_json::{Value, json};
use support::{
    admin, api_response, bootstrap, check, create_key, create_operator, list, new_key, operator,
    post, post_key, revoke_key, trail, with_path,
};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, KEYS},
    sample::{caller, noon},
};

fn get_audit(dynamo: &Dynamo) -> GetAudit {
    GetAudit { audit: dynamo.table(AUDIT), trail: trail(dynamo) }
}

fn get_key(dynamo: &Dynamo) -> GetKey {
    GetKey { keys: dynamo.table(KEYS), trail: trail(dynamo) }
}

/// Returns the entries that the caller sees.
async fn entries(dynamo: &Dynamo, by: &Caller, query: &[(&str, &str)]) -> Vec<Value> {
    let request = list("get-audit", query);
    let sent = api_response(get_audit(dynamo).handle(by, &request, noon(60)).await);
    assert_eq!(sent["statusCode"], 200, "{sent}");
    sent["body"]["entries"].as_array().expect("entries").clone()
}

/// Returns the number of entries of all operators.
async fn count(dynamo: &Dynamo) -> usize {
    dynamo.rows(AUDIT).await.len()
}

fn named(caller: &Caller, actor: &str) -> Caller {
    Caller { actor: actor.to_owned(), ..caller.clone() }
}

async fn revoke(dynamo: &Dynamo, by: &Caller, key: &Value) -> Value {
    let request = with_path("revoke-key", "keyId", key["keyId"].as_str().expect("an id"));
    api_response(revoke_key(dynamo).handle(by, &request, noon(40)).await)
}

#[tokio::test]
async fn each_action_is_one_entry_with_its_actor_and_a_repeated_one_is_none() {
    let dynamo = Dynamo::start().await;
    let step = get_audit(&dynamo);
    check("get-audit.none", step.handle(&admin(), &list("get-audit", &[]), noon(0)).await);

    let ada = named(&admin(), "key:fsa_Ada00000");
    let registration = json!({ "name": "NOAA", "plan": "standard" }).to_string();
    let request = post("create-operator", Some("noaa"), &registration);
    for _ in 0..2 {
        let sent = create_operator(&dynamo).handle(&ada, &request, noon(10)).await;
        assert_eq!(api_response(sent)["statusCode"], 201);
        assert_eq!(count(&dynamo).await, 1);
    }

    let noaa = OperatorId::registered("noaa");
    let body = json!({ "name": "A", "scope": "operator", "operatorId": noaa });
    let old = post_key(&dynamo, &ada, "old", &body, noon(20)).await["body"].take();
    assert_eq!(post_key(&dynamo, &ada, "old", &body, noon(20)).await["statusCode"], 409);
    assert_eq!(count(&dynamo).await, 2);

    let own = named(&caller(noaa, Scope::Operator), "jwt:bob");
    let body = json!({ "name": "A", "scope": "read", "replaces": old["keyId"] });
    let new = post_key(&dynamo, &own, "new", &body, noon(30)).await["body"].take();
    assert_eq!(post_key(&dynamo, &own, "new", &body, noon(30)).await["statusCode"], 409);
    assert_eq!(count(&dynamo).await, 3);

    for _ in 0..2 {
        assert_eq!(revoke(&dynamo, &own, &new).await["statusCode"], 200);
        assert_eq!(count(&dynamo).await, 4);
    }

    // All of them concern the new operator, also those of the administrator.
    assert!(entries(&dynamo, &admin(), &[]).await.is_empty());
    check("get-audit.entries", step.handle(&own, &list("get-audit", &[]), noon(50)).await);
    let id = noaa.to_string();
    let own_view = entries(&dynamo, &own, &[]).await;
    assert_eq!(entries(&dynamo, &admin(), &[("operatorId", &id)]).await, own_view);
    // What the key does later has the actor that the details name.
    let prefix = old["prefix"].as_str().expect("a prefix");
    assert_eq!(own_view[2]["details"], format!("key:{prefix}, scope operator"));
    let text = json!(dynamo.rows(AUDIT).await).to_string();
    for key in [&old["key"], &new["key"]] {
        assert!(!text.contains(&key.as_str().expect("a key")[4..]), "{text}");
    }
}

#[tokio::test]
async fn the_entry_of_the_first_administrators_key_has_the_actor_bootstrap() {
    let dynamo = Dynamo::start().await;
    let body = json!({ "name": "Ada", "scope": "admin" });
    let key = new_key(&dynamo, &bootstrap(), "first", &body).await;
    let seen = entries(&dynamo, &admin(), &[]).await;
    assert_eq!(seen.len(), 1);
    assert_eq!((&seen[0]["actor"], &seen[0]["action"]), (&json!("bootstrap"), &json!("CreateKey")));
    let details = format!("key:{}, scope admin", key["prefix"].as_str().expect("a prefix"));
    assert_eq!(seen[0]["details"], details);
}

#[tokio::test]
async fn a_refused_action_is_no_entry() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let key = new_key(&dynamo, &admin(), "admin", &json!({ "name": "A", "scope": "admin" })).await;
    let before = dynamo.rows(AUDIT).await;
    let reader = caller(OperatorId::DEFAULT, Scope::Read);
    let by = caller(OperatorId::DEFAULT, Scope::Operator);
    let other = caller(own, Scope::Operator);

    // Refused by the scope.
    let request = post("create-operator", Some("x"), r#"{"name": "X", "plan": "standard"}"#);
    let sent = create_operator(&dynamo).handle(&by, &request, noon(0)).await;
    assert_eq!(api_response(sent)["statusCode"], 403);
    let read = json!({ "name": "A", "scope": "read" });
    assert_eq!(post_key(&dynamo, &reader, "x", &read, noon(0)).await["statusCode"], 403);
    assert_eq!(revoke(&dynamo, &by, &key).await["statusCode"], 403);
    // Refused by what exists.
    let request = post("create-operator", Some("own"), r#"{"name": "X", "plan": "standard"}"#);
    let sent = create_operator(&dynamo).handle(&admin(), &request, noon(0)).await;
    assert_eq!(api_response(sent)["statusCode"], 409);
    assert_eq!(revoke(&dynamo, &other, &key).await["statusCode"], 404);
    let unknown = json!({ "keyId": KeyId::from_request(own, "unknown") });
    let body = json!({ "name": "A", "scope": "read", "replaces": unknown["keyId"] });
    assert_eq!(post_key(&dynamo, &admin(), "x", &body, noon(0)).await["statusCode"], 400);
    assert_eq!(post_key(&dynamo, &admin(), "admin", &read, noon(0)).await["statusCode"], 409);
    // An invalid request.
    let request = post("create-key", Some("y"), "{}");
    let sent = create_key(&dynamo).handle(&admin(), &request, noon(0)).await;
    assert_eq!(api_response(sent)["statusCode"], 400);
    assert_eq!(dynamo.rows(AUDIT).await, before);
}

#[tokio::test]
async fn another_operators_entries_are_not_listed() {
    let dynamo = Dynamo::start().await;
    let (own, other) = (operator(&dynamo, "own").await, operator(&dynamo, "other").await);
    let by = caller(own, Scope::Operator);
    let body = json!({ "name": "A", "scope": "read" });
    new_key(&dynamo, &caller(other, Scope::Operator), "k", &body).await;
    assert_eq!(entries(&dynamo, &by, &[]).await.len(), 1);

    let (own_id, other_id) = (own.to_string(), other.to_string());
    assert_eq!(entries(&dynamo, &by, &[("operatorId", &own_id)]).await.len(), 1);
    drop(dynamo.take_usage());
    let step = get_audit(&dynamo);
    let logger = Scope::Logger(SiteId::registered(own, "", "a"));
    for by in [&by, &caller(own, Scope::Read), &caller(own, logger), &bootstrap()] {
        let request = list("get-audit", &[("operatorId", &other_id)]);
        let sent = api_response(step.handle(by, &request, noon(0)).await);
        assert_eq!(sent["statusCode"], 403, "{}: {sent}", by.scope);
    }
    for scope in [Scope::Read, logger, Scope::Bootstrap] {
        let sent = step.handle(&caller(own, scope), &list("get-audit", &[]), noon(0)).await;
        assert_eq!(api_response(sent)["statusCode"], 403, "{scope}");
    }
    assert!(dynamo.take_usage().calls.is_empty(), "a forbidden call reads no table");
    assert_eq!(entries(&dynamo, &admin(), &[("operatorId", &other_id)]).await.len(), 2);
}

#[tokio::test]
async fn an_administrators_read_of_another_operators_data_is_an_entry() {
    let dynamo = Dynamo::start().await;
    let (id, ada) = (operator(&dynamo, "own").await, named(&admin(), "key:fsa_Ada00000"));
    let operator = id.to_string();
    let (keys, audit) = (get_key(&dynamo), get_audit(&dynamo));
    let before = dynamo.rows(AUDIT).await;

    // Reads of the caller's own data and refused ones are no entries.
    let own = caller(id, Scope::Operator);
    let of_own = ("operatorId", &*operator);
    let stranger = caller(OperatorId::registered("stranger"), Scope::Operator);
    for (by, query, status) in [
        (&own, &[][..], 200),
        (&own, &[of_own], 200),
        (&ada, &[], 200),
        (&ada, &[("operatorId", "x")], 400),
        (&ada, &[of_own, ("limit", "0")], 400),
        (&stranger, &[of_own], 403),
    ] {
        for sent in [
            keys.handle(by, &list("get-key", query), noon(10)).await,
            audit.handle(by, &list("get-audit", query), noon(10)).await,
        ] {
            assert_eq!(api_response(sent)["statusCode"], status, "{query:?}");
        }
    }
    assert_eq!(dynamo.rows(AUDIT).await, before);

    // Each read is one entry of the operator whose data it shows.
    for (seconds, sent) in [
        (20, keys.handle(&ada, &list("get-key", &[of_own]), noon(20)).await),
        (30, audit.handle(&ada, &list("get-audit", &[of_own]), noon(30)).await),
    ] {
        assert_eq!(api_response(sent)["statusCode"], 200, "{seconds}");
    }
    assert_eq!(count(&dynamo).await, before.len() + 2);
    let seen = entries(&dynamo, &own, &[("limit", "2")]).await;
    assert_eq!(seen.len(), 2);
    for (entry, (action, seconds)) in seen.iter().zip([("ReadAudit", 30), ("ListKeys", 20)]) {
        let expected = json!({
            "at": noon(seconds), "action": action, "actor": "key:fsa_Ada00000",
            "operatorId": operator, "target": operator,
        });
        assert_eq!(*entry, expected);
    }
}

#[tokio::test]
async fn another_operators_data_is_not_shown_without_an_entry() {
    let dynamo = Dynamo::start().await;
    let id = operator(&dynamo, "own").await.to_string();
    let nowhere = || Trail::new(dynamo.table("NoTable"));
    let keys = GetKey { trail: nowhere(), ..get_key(&dynamo) };
    let audit = GetAudit { trail: nowhere(), ..get_audit(&dynamo) };
    for (query, status) in [(&[("operatorId", &*id)][..], 500), (&[], 200)] {
        for sent in [
            keys.handle(&admin(), &list("get-key", query), noon(0)).await,
            audit.handle(&admin(), &list("get-audit", query), noon(0)).await,
        ] {
            assert_eq!(api_response(sent)["statusCode"], status, "{query:?}");
        }
    }
}

#[tokio::test]
async fn a_page_token_is_valid_for_one_operator() {
    let dynamo = Dynamo::start().await;
    let (own, other) = (operator(&dynamo, "own").await, operator(&dynamo, "other").await);
    let [own, foreign] = [own, other].map(|id| caller(id, Scope::Operator));
    for by in [&own, &foreign] {
        for key in ["a", "b"] {
            new_key(&dynamo, by, key, &json!({ "name": key, "scope": "read" })).await;
        }
    }
    let (keys, audit) = (get_key(&dynamo), get_audit(&dynamo));
    let other = other.to_string();
    let of_other = ("operatorId", &*other);
    for function in ["get-key", "get-audit"] {
        let get = async |by: &Caller, query: &[(&str, &str)]| {
            let request = list(function, query);
            api_response(match function {
                "get-key" => keys.handle(by, &request, noon(0)).await,
                _ => audit.handle(by, &request, noon(0)).await,
            })
        };
        let sent = get(&foreign, &[("limit", "1")]).await;
        let token = sent["body"]["next"].as_str().expect("a next page");
        let next = ("next", token);
        // The operator itself, and an administrator that names it, get the next page.
        for (by, query) in [(&foreign, &[next][..]), (&admin(), &[of_other, next])] {
            let sent = get(by, query).await;
            assert_eq!(sent["statusCode"], 200, "{function} {query:?}: {sent}");
        }
        // A position without an operator is a token of an earlier release.
        let decoded = URL_SAFE_NO_PAD.decode(token).expect("base64");
        let position = decoded.splitn(2, |byte| *byte == b'/').nth(1).expect("a position");
        let earlier = URL_SAFE_NO_PAD.encode(position);
        let old = ("next", &*earlier);
        for (by, query) in [
            (&own, &[next][..]),
            (&admin(), &[next]),
            (&foreign, &[old]),
            (&admin(), &[of_other, old]),
        ] {
            let sent = get(by, query).await;
            assert_eq!(sent["statusCode"], 400, "{function} {query:?}: {sent}");
            assert_eq!(sent["body"]["errors"][0]["field"], "query next", "{sent}");
        }
    }
}

#[tokio::test]
async fn entries_are_listed_page_by_page_newest_first() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let by = caller(own, Scope::Operator);
    for (index, seconds) in [10, 30, 20, 30].into_iter().enumerate() {
        let body = json!({ "name": "A", "scope": "read" });
        let sent = post_key(&dynamo, &by, &index.to_string(), &body, noon(seconds)).await;
        assert_eq!(sent["statusCode"], 201, "{sent}");
    }
    let step = get_audit(&dynamo);
    let (mut times, mut targets) = (Vec::new(), Vec::new());
    let mut next: Option<String> = None;
    for page in 0..3 {
        let mut query = vec![("limit", "2")];
        query.extend(next.as_deref().map(|next| ("next", next)));
        let sent = api_response(step.handle(&by, &list("get-audit", &query), noon(0)).await);
        let entries = sent["body"]["entries"].as_array().expect("entries");
        assert!(entries.len() <= 2, "page {page}: {sent}");
        times.extend(entries.iter().map(|entry| entry["at"].clone()));
        targets.extend(entries.iter().map(|entry| entry["target"].to_string()));
        next = sent["body"]["next"].as_str().map(str::to_owned);
    }
    assert_eq!(next, None);
    assert_eq!(times, [30, 30, 20, 10, 0].map(|seconds| json!(noon(seconds))));
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 5);
    let wrong = [("limit", "0"), ("next", "eA"), ("operatorId", "noaa"), ("actor", "x")];
    check(
        "get-audit.wrong-query",
        step.handle(&admin(), &list("get-audit", &wrong), noon(0)).await,
    );
}
