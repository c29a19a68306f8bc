//! Tests of `PATCH /sites/{siteId}`.

mod support;

use std::time::Duration;

use audit::Trail;
use aws_sdk_sfn::Client;
use contracts::{OperatorId, SagaContext, Scope};
use futures_util::future::join_all;
use lambda::http::Caller;
use machines::StateMachine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sites::{
    SiteRow, activate_site::ActivateSite, close_site::CloseSite,
    decommission_site::DecommissionSite, get_site::GetSite, update_site::UpdateSite,
};
use store::Table;
use support::{
    api_response, check, create, list, on_site, patch_site, project, saga_for_key, step_event,
    trail, update_site,
};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, EVENTS, SITES},
    golden,
    http::Stub,
    saga::run,
    sample::{caller, default_caller, noon, other_operator, payload},
};

const CONTACT: [&str; 3] = ["Jane Roe", "jane.roe@example.org", "+1 303 555 0100"];

fn contact() -> Value {
    let [name, email, phone] = CONTACT;
    json!({ "name": name, "email": email, "phone": phone })
}

/// Registers and activates a site of the default operator. Its events have the sequences 1 and 2.
async fn active_site(dynamo: &Dynamo) -> SagaContext {
    let saga = create(dynamo, "key-1").await;
    project(dynamo, &step_event(saga, "KitsReserved", 1)).await;
    let step = ActivateSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
    run(&step, &payload(saga)).await.expect("an active site");
    saga
}

async fn close(dynamo: &Dynamo, saga: SagaContext, failure: Value) {
    let step = CloseSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
    let mut payload = payload(saga);
    payload["failure"] = failure;
    run(&step, &payload).await.expect("a closed site");
}

/// Sends a patch of the saga's site.
async fn patch_as(dynamo: &Dynamo, by: &Caller, saga: SagaContext, body: &Value) -> Value {
    let request = patch_site(&saga.site_id.to_string(), &body.to_string());
    api_response(update_site(dynamo).handle(by, &request, noon(60)).await)
}

async fn patch(dynamo: &Dynamo, saga: SagaContext, body: &Value) -> Value {
    patch_as(dynamo, &default_caller(), saga, body).await
}

async fn get_as(dynamo: &Dynamo, by: &Caller, saga: SagaContext) -> Value {
    let step = GetSite { sites: dynamo.table(SITES) };
    api_response(step.handle(by, &on_site("get-site", &saga.site_id.to_string())).await)
}

async fn row(dynamo: &Dynamo, saga: SagaContext) -> SiteRow {
    let key = SiteRow::key(saga.site_id);
    dynamo.table(SITES).get(&key).await.expect("a read").expect("the site's row")
}

/// Checks that the site's events have no gap, and that the row is what the last `SiteChanged` says.
async fn check_events(dynamo: &Dynamo, saga: SagaContext, changes: usize) {
    let events = dynamo.events(saga.site_id).await;
    let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
    let row = row(dynamo, saga).await;
    assert_eq!(sequences, (1..=row.sequence).collect::<Vec<_>>());
    let updates: Vec<_> = events.iter().filter(|event| event.kind == "SiteChanged").collect();
    assert_eq!(updates.len(), changes);
    if let Some(last) = updates.last() {
        let data = last.envelope().expect("an envelope").data;
        assert_eq!(data["name"], json!(row.name));
        assert_eq!(data["location"], json!(row.location));
    }
    let entries = dynamo.rows(AUDIT).await;
    assert_eq!(entries.iter().filter(|it| it["action"] == "UpdateSite").count(), changes);
}

#[tokio::test]
async fn a_change_is_one_event_and_one_entry_and_a_repeated_request_writes_nothing() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let body = json!({
        "name": " Alamosa, San Luis Valley ",
        "contact": contact(),
        "location": { "elevationM": 2318 },
    });
    let request = patch_site(&saga.site_id.to_string(), &body.to_string());
    let step = update_site(&dynamo);
    check("update-site.changed", step.handle(&default_caller(), &request, noon(60)).await);

    let event = &dynamo.events(saga.site_id).await[2];
    assert_eq!(
        event.envelope().expect("an envelope").data,
        json!({
            "siteId": saga.site_id,
            "changed": ["name", "contact", "location"],
            "name": "Alamosa, San Luis Valley",
            "location": { "latitude": 37.7, "longitude": -105.92, "elevationM": 2318.0 },
        })
    );
    assert_eq!(event.correlation_id, Some(saga.onboarding_id.to_string()));
    let entries = dynamo.rows(AUDIT).await;
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!(entry["operatorId"], json!(saga.operator_id));
    assert_eq!(entry["actor"], json!(default_caller().actor));
    assert_eq!(entry["action"], "UpdateSite");
    assert_eq!(entry["target"], json!(saga.site_id));
    assert_eq!(entry["details"], "name, contact, location");

    let after = dynamo.all_rows().await;
    check("update-site.changed", step.handle(&default_caller(), &request, noon(90)).await);
    for nothing in [json!({}), json!({ "contact": {}, "location": {} })] {
        assert_eq!(patch(&dynamo, saga, &nothing).await["statusCode"], 200);
    }
    assert_eq!(dynamo.all_rows().await, after);
    check_events(&dynamo, saga, 1).await;

    // The response to the change is what a read returns.
    let read = get_as(&dynamo, &default_caller(), saga).await;
    assert_eq!(read["body"], patch(&dynamo, saga, &json!({})).await["body"]);
    let listed = GetSite { sites: dynamo.table(SITES) };
    let listed = api_response(listed.handle(&default_caller(), &list(&[])).await);
    assert_eq!(listed["body"]["sites"][0]["name"], "Alamosa, San Luis Valley");
}

#[tokio::test]
async fn a_patch_changes_only_its_fields_and_null_removes_what_is_optional() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    patch(&dynamo, saga, &json!({ "contact": contact() })).await;
    let sent = patch(&dynamo, saga, &json!({ "contact": { "phone": null } })).await;
    let [name, email, _] = CONTACT;
    assert_eq!(sent["body"]["contact"], json!({ "name": name, "email": email }));
    assert_eq!(sent["body"]["name"], "Alamosa, Colorado");
    let sent = patch(&dynamo, saga, &json!({ "location": { "latitude": 38 } })).await;
    let moved = json!({ "latitude": 38.0, "longitude": -105.92, "elevationM": 2317.0 });
    assert_eq!(sent["body"]["location"], moved);
    let sent = patch(&dynamo, saga, &json!({ "contact": null })).await;
    assert!(sent["body"].get("contact").is_none(), "{sent}");
    check_events(&dynamo, saga, 4).await;
    let row = dynamo.rows(SITES).await;
    assert!(row.iter().all(|row| row.get("contact").is_none()), "{row:?}");
}

#[tokio::test]
async fn a_contact_is_only_in_the_sites_row_and_only_shown_to_callers_that_may_change_it() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let sent = patch(&dynamo, saga, &json!({ "contact": contact() })).await;
    assert_eq!(sent["body"]["contact"], contact());
    for (table, rows) in dynamo.all_rows().await {
        let text = json!(rows).to_string();
        let has_contact = CONTACT.iter().any(|part| text.contains(part));
        assert_eq!(has_contact, table == SITES, "{table}: {text}");
    }
    for (scope, is_shown) in [(Scope::Admin, true), (Scope::Operator, true), (Scope::Read, false)] {
        let read = get_as(&dynamo, &caller(OperatorId::DEFAULT, scope), saga).await;
        assert_eq!(read["body"].get("contact").is_some(), is_shown, "{scope}: {read}");
    }
    let shown = format!("{:?}", row(&dynamo, saga).await);
    assert!(!CONTACT.iter().any(|part| shown.contains(part)), "{shown}");

    close(&dynamo, saga, Value::Null).await;
    assert_eq!(row(&dynamo, saga).await.contact, None, "nobody could remove it any more");
}

#[tokio::test]
async fn concurrent_patches_are_all_applied_one_after_the_other() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let bodies = [
        json!({ "name": "Alamosa A" }),
        json!({ "name": "Alamosa B" }),
        json!({ "contact": { "name": "Jane Roe" } }),
        json!({ "contact": { "email": "jane.roe@example.org" } }),
        json!({ "location": { "latitude": 38 } }),
        json!({ "location": { "longitude": -106 } }),
    ];
    let sent = join_all(bodies.iter().map(|body| patch(&dynamo, saga, body))).await;
    for sent in sent {
        assert_eq!(sent["statusCode"], 200, "{sent}");
    }
    check_events(&dynamo, saga, bodies.len()).await;
    let SiteRow { name, contact, location, .. } = row(&dynamo, saga).await;
    assert!(["Alamosa A", "Alamosa B"].contains(&name.as_str()), "{name}");
    let both = json!({ "name": "Jane Roe", "email": "jane.roe@example.org" });
    assert_eq!(json!(contact), both);
    let moved = json!({ "latitude": 38.0, "longitude": -106.0, "elevationM": 2317.0 });
    assert_eq!(json!(location), moved);
}

#[tokio::test]
async fn concurrent_repetitions_of_a_patch_are_one_change() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let body = json!({ "name": "Alamosa A" });
    for sent in join_all((0..6).map(|_| patch(&dynamo, saga, &body))).await {
        assert_eq!(sent["statusCode"], 200, "{sent}");
        assert_eq!(sent["body"]["name"], "Alamosa A");
    }
    check_events(&dynamo, saga, 1).await;
}

#[tokio::test]
async fn only_an_active_site_can_be_changed() {
    let dynamo = Dynamo::start().await;
    let saga = create(&dynamo, "key-1").await;
    let body = json!({ "name": "Alamosa A" });
    let request = patch_site(&saga.site_id.to_string(), &body.to_string());
    let step = update_site(&dynamo);
    check("update-site.onboarding", step.handle(&default_caller(), &request, noon(60)).await);
    let before = dynamo.all_rows().await;
    // It is refused even if it would change nothing.
    assert_eq!(patch(&dynamo, saga, &json!({})).await["statusCode"], 409);
    assert_eq!(dynamo.all_rows().await, before);

    active_site(&dynamo).await;
    assert_eq!(patch(&dynamo, saga, &body).await["statusCode"], 200);
    close(&dynamo, saga, Value::Null).await;
    check("update-site.decommissioned", step.handle(&default_caller(), &request, noon(60)).await);

    let rejected = create(&dynamo, "key-2").await;
    let failure = json!({ "step": "ReserveKits", "error": "KitsOutOfStock", "message": "none" });
    close(&dynamo, rejected, failure).await;
    let request = patch_site(&rejected.site_id.to_string(), &body.to_string());
    check("update-site.rejected", step.handle(&default_caller(), &request, noon(60)).await);
    check_events(&dynamo, saga, 1).await;
}

#[tokio::test]
async fn an_invalid_patch_is_refused_with_instructions_and_without_quoting_the_contact() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let before = dynamo.all_rows().await;
    let site = saga.site_id.to_string();
    let step = update_site(&dynamo);
    let wrong = json!({
        "name": null,
        "contact": { "name": "Jane\u{202e} Roe", "email": "jane.roe", "phone": "Jane", "fax": 1 },
        "location": { "latitude": 91, "longitude": null },
        "status": "ACTIVE",
        "utcOffset": "-07:00",
    });
    let large = format!("{}{}", json!({ "name": "A" }), " ".repeat(8 * 1024));
    for (name, body) in [
        ("update-site.wrong-fields", wrong.to_string()),
        ("update-site.no-object", json!([]).to_string()),
        ("update-site.no-body", String::new()),
        ("update-site.too-large", large),
    ] {
        let request = patch_site(&site, &body);
        let sent = api_response(step.handle(&default_caller(), &request, noon(60)).await);
        let text = sent.to_string();
        assert!(!text.contains("Jane") && !text.contains("jane.roe"), "{text}");
        golden::check(env!("CARGO_MANIFEST_DIR"), name, &sent);
    }
    let mut request = patch_site(&site, "{}");
    request.headers.insert("content-type", "text/plain".parse().expect("a header"));
    let sent = api_response(step.handle(&default_caller(), &request, noon(60)).await);
    assert_eq!(sent["statusCode"], 415, "{sent}");
    let mut request = patch_site(&site, "{}");
    request.query_string_parameters =
        std::collections::HashMap::from([("colour".to_owned(), "red".to_owned())]).into();
    let sent = api_response(step.handle(&default_caller(), &request, noon(60)).await);
    assert_eq!(sent["body"]["errors"][0]["field"], "query colour");
    let sent =
        api_response(step.handle(&default_caller(), &patch_site("42", "{}"), noon(60)).await);
    assert_eq!(sent["body"]["errors"][0]["field"], "path siteId");
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn a_site_of_another_operator_is_unknown_and_a_reader_may_not_change_sites() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let before = dynamo.all_rows().await;
    let body = json!({ "name": "Alamosa A" });
    let unknown = saga_for_key("unknown");
    let mut answers = Vec::new();
    for (by, saga) in [
        (caller(other_operator(), Scope::Operator), saga),
        (caller(other_operator(), Scope::Operator), unknown),
    ] {
        drop(dynamo.take_usage());
        let sent = patch_as(&dynamo, &by, saga, &body).await;
        let text = sent.to_string().replace(&saga.site_id.to_string(), "<id>");
        answers.push((text, dynamo.take_usage().calls));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].0.contains("404"), "{answers:?}");

    for (scope, status) in [
        (Scope::Read, 403),
        (Scope::Logger(saga.site_id), 403),
        (Scope::Bootstrap, 403),
        (Scope::Operator, 200),
        (Scope::Admin, 200),
    ] {
        if status == 200 {
            assert_eq!(dynamo.all_rows().await, before);
        }
        let by = caller(OperatorId::DEFAULT, scope);
        let body = if status == 200 { json!({}) } else { body.clone() };
        assert_eq!(patch_as(&dynamo, &by, saga, &body).await["statusCode"], status, "{scope}");
    }
}

/// Returns the `ETag` of the site, as the caller of `GET` gets it.
async fn etag(dynamo: &Dynamo, saga: SagaContext) -> String {
    let step = GetSite { sites: dynamo.table(SITES) };
    let request = on_site("get-site", &saga.site_id.to_string());
    let response = lambda::http::response(step.handle(&default_caller(), &request).await);
    let body = serde_json::to_value(&response).expect("JSON")["body"].take();
    let hash = Sha256::digest(body.as_str().expect("a body"));
    let tag = hash[..16].iter().fold(String::new(), |tag, byte| tag + &format!("{byte:02x}"));
    format!("\"{tag}\"")
}

#[tokio::test]
async fn with_if_match_only_the_version_that_was_read_is_changed() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let site = saga.site_id.to_string();
    let step = update_site(&dynamo);
    let request = |name: &str, tag: &str| {
        let mut request = patch_site(&site, &json!({ "name": name }).to_string());
        request.headers.insert("if-match", tag.parse().expect("a header"));
        request
    };
    let read = etag(&dynamo, saga).await;
    let weak = format!("W/{read}");
    for refused in ["\"other\"", &weak, ""] {
        let sent = step.handle(&default_caller(), &request("A", refused), noon(60)).await;
        check("update-site.changed-meanwhile", sent);
    }
    check_events(&dynamo, saga, 0).await;
    let several = format!("\"other\", {read}");
    let sent = step.handle(&default_caller(), &request("A", &several), noon(60)).await;
    assert_eq!(api_response(sent)["statusCode"], 200);
    let sent = step.handle(&default_caller(), &request("B", &read), noon(60)).await;
    assert_eq!(api_response(sent)["statusCode"], 412);

    // Of two requests with the same tag, one is refused, also if both read the site before either changes it.
    let tag = etag(&dynamo, saga).await;
    let (a, b) = (request("C", &tag), request("D", &tag));
    let by = default_caller();
    let sent = [&a, &b].into_iter().map(|request| step.handle(&by, request, noon(60)));
    let mut statuses: Vec<_> = join_all(sent)
        .await
        .into_iter()
        .map(|sent| api_response(sent)["statusCode"].as_i64().expect("a status"))
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412]);
    let sent = step.handle(&by, &request("E", "*"), noon(60)).await;
    assert_eq!(api_response(sent)["statusCode"], 200);
    check_events(&dynamo, saga, 3).await;
}

#[tokio::test]
async fn without_an_entry_or_an_event_nothing_changes() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let before = dynamo.all_rows().await;
    let missing = |name: &str| Table::new(dynamo.client(), format!("missing-{name}"));
    let request = patch_site(&saga.site_id.to_string(), &json!({ "name": "A" }).to_string());
    for step in [
        UpdateSite { trail: Trail::new(missing(AUDIT)), ..update_site(&dynamo) },
        UpdateSite { outbox: store::Outbox::new(missing(EVENTS)), ..update_site(&dynamo) },
    ] {
        let sent = api_response(step.handle(&default_caller(), &request, noon(60)).await);
        assert!(sent["statusCode"].as_i64().is_some_and(|status| status >= 500), "{sent}");
        assert_eq!(dynamo.all_rows().await, before);
    }
}

#[tokio::test]
async fn a_change_while_the_site_is_being_decommissioned_is_kept() {
    let dynamo = Dynamo::start().await;
    let saga = active_site(&dynamo).await;
    let machines = Stub::start(|_| (200, json!({ "executionArn": "arn", "startDate": 1.0 }))).await;
    let teardown = StateMachine {
        client: Client::new(&machines.config()),
        arn: "arn:aws:states:eu-central-1:111122223333:stateMachine:site-teardown".to_owned(),
    };
    let step = DecommissionSite { sites: dynamo.table(SITES), teardown, trail: trail(&dynamo) };
    let request = on_site("decommission-site", &saga.site_id.to_string());
    let caller = default_caller();
    // The site changes after the function has read it, and before it sets the status.
    let start = machines.hold().await;
    let change = async {
        while machines.take_calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let sent = patch(&dynamo, saga, &json!({ "name": "Alamosa A" })).await;
        assert_eq!(sent["statusCode"], 200, "{sent}");
        drop(start);
    };
    let (sent, ()) = tokio::join!(step.handle(&caller, &request, noon(60)), change);
    let sent = api_response(sent);
    assert_eq!(sent["statusCode"], 202, "{sent}");

    let row = row(&dynamo, saga).await;
    assert_eq!((row.name.as_str(), row.sequence), ("Alamosa A", 3));
    assert_eq!(row.status(), sites::Status::Decommissioning);
    check_events(&dynamo, saga, 1).await;
    assert_eq!(patch(&dynamo, saga, &json!({ "name": "B" })).await["statusCode"], 409);
    close(&dynamo, saga, Value::Null).await;
    check_events(&dynamo, saga, 1).await;
    assert_eq!(
        dynamo.event_types(saga.site_id).await,
        ["SiteCreated", "SiteActivated", "SiteChanged", "SiteDecommissioned"]
    );
}

#[tokio::test]
async fn changes_and_the_end_of_a_teardown_do_not_overwrite_each_other() {
    for seed in 0..20 {
        let dynamo = Dynamo::start().await;
        let saga = active_site(&dynamo).await;
        let body = json!({ "name": "Alamosa A" });
        let closing = async {
            // Other numbers of turns of the runtime give other interleavings.
            for _ in 0..seed {
                tokio::task::yield_now().await;
            }
            let step = CloseSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
            // The state machine retries a step that another writer disturbed.
            while run(&step, &payload(saga)).await.is_err() {}
        };
        let (sent, ()) = tokio::join!(patch(&dynamo, saga, &body), closing);
        let changed = match sent["statusCode"].as_i64() {
            Some(200) => 1,
            Some(409) => 0,
            _ => panic!("{sent}"),
        };
        check_events(&dynamo, saga, changed).await;
        let row = row(&dynamo, saga).await;
        assert_eq!(row.status(), sites::Status::Decommissioned);
        assert_eq!(row.name == "Alamosa A", changed == 1, "seed {seed}");
    }
}
