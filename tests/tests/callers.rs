//! Who may do what: each kind of caller and each bad credential on each route of the deployed stack, and two operators
//! that must not see each other's data.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;
#[path = "disruptions/issuer.rs"]
#[expect(dead_code, reason = "this binary signs with one algorithm")]
mod issuer;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{Metric, Timestamp, names};
use futures_util::{StreamExt, TryStreamExt, stream, try_join};
use keys::{ApiKey, Kind};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::template::{Template, is_mock};
use tests::{
    Stack,
    api::{Call, Response},
    operators::{Operator, create_key, text, unique},
    sites::{GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    faults::BrokenFunction,
    issuer::{AUDIENCE, Signer, claims, flawed, serve},
};

/// The number of requests at the same time. The emulator starts a process for each concurrent request.
const CONCURRENCY: usize = 8;

/// The operators A and B of this process, and a connection of one test. (A connection belongs to a test's runtime.)
#[derive(Debug)]
struct Operators {
    stack: Stack,
    a: &'static Operator,
    b: &'static Operator,
}

async fn operators() -> Result<Operators> {
    static OPERATORS: OnceCell<(Operator, Operator)> = OnceCell::const_new();
    let stack = Stack::connect().await?;
    let create = async || {
        // The first digits differ, so no marker contains the other.
        try_join!(Operator::create(&stack, "aa"), Operator::create(&stack, "bb"))
    };
    let (a, b) = OPERATORS.get_or_try_init(create).await?;
    Ok(Operators { stack, a, b })
}

/// Returns a call of every route with the ids of an operator. None of them changes anything that another test uses.
fn routes(of: &Operator) -> Vec<(&'static str, Call)> {
    let empty = |path: &str| Call::new(Method::POST, path).key(&unique()).text("{}");
    vec![
        ("POST /sites", empty("/sites")),
        ("GET /sites", Call::get("/sites")),
        ("GET /sites/{siteId}", Call::get(format!("/sites/{}", of.site))),
        ("PATCH /sites/{siteId}", Call::patch(format!("/sites/{}", of.rejected_site), "{}")),
        ("DELETE /sites/{siteId}", Call::delete(format!("/sites/{}", of.rejected_site))),
        ("POST /readings", Call::post_readings(of.bundle(Timestamp::now(), 1.0).to_string())),
        ("PATCH /sensors/{sensorId}", Call::patch(format!("/sensors/{}", of.sensor), "{}")),
        ("GET /sensors/{sensorId}/readings", of.readings()),
        (
            "GET /sensors/{sensorId}/revisions",
            Call::get(format!("/sensors/{}/revisions", of.sensor)),
        ),
        ("POST /events", empty("/events")),
        ("GET /events", Call::get(format!("/events?entity=site/{}", of.site))),
        ("GET /network/summary", Call::get("/network/summary")),
        ("POST /operators", empty("/operators")),
        ("GET /operators", Call::get("/operators")),
        ("GET /operators/{operatorId}", Call::get(format!("/operators/{}", of.id))),
        // The change has no field, so it changes nothing.
        ("PATCH /operators/{operatorId}", Call::patch(format!("/operators/{}", of.id), "{}")),
        ("POST /keys", empty("/keys")),
        ("GET /keys", Call::get("/keys")),
        ("DELETE /keys/{keyId}", Call::delete(format!("/keys/{}", of.unused_key))),
        ("GET /audit", Call::get("/audit")),
    ]
}

/// The kinds of callers, as the docs name them. Each calls with the ids of operator A.
const CALLERS: [&str; 10] = [
    "nobody",
    "first administrator's secret",
    "reader of B",
    "operator B",
    "logger of B",
    "logger of another site of A",
    "logger of the site",
    "reader of A",
    "operator A",
    "administrator",
];

/// The expected status of each route, by caller, in the order of [`CALLERS`].
///
/// A 400 or a 409 means that the caller may call the route. The body of the test is wrong on purpose, or the site is
/// closed, so that the call changes nothing. The administrator's key is of the default operator, so A's sites are unknown
/// to it, too. Readings for a site of another operator are accepted, but the consumer of the stream finds that their
/// sensor is unknown.
const EXPECTED: [(&str, [u16; 10]); 20] = [
    ("POST /sites", [401, 403, 403, 400, 403, 403, 403, 403, 400, 400]),
    ("GET /sites", [401, 403, 200, 200, 403, 403, 403, 200, 200, 200]),
    ("GET /sites/{siteId}", [401, 403, 404, 404, 403, 403, 403, 200, 200, 404]),
    ("PATCH /sites/{siteId}", [401, 403, 403, 404, 403, 403, 403, 403, 409, 404]),
    ("DELETE /sites/{siteId}", [401, 403, 403, 404, 403, 403, 403, 403, 409, 404]),
    ("POST /readings", [401, 403, 403, 202, 403, 403, 202, 403, 202, 202]),
    ("PATCH /sensors/{sensorId}", [401, 403, 403, 404, 403, 403, 403, 403, 200, 404]),
    ("GET /sensors/{sensorId}/readings", [401, 403, 404, 404, 403, 403, 403, 200, 200, 404]),
    ("GET /sensors/{sensorId}/revisions", [401, 403, 404, 404, 403, 403, 403, 200, 200, 404]),
    ("POST /events", [401, 403, 403, 400, 403, 403, 403, 403, 400, 400]),
    ("GET /events", [401, 403, 200, 200, 403, 403, 403, 200, 200, 200]),
    ("GET /network/summary", [401, 403, 200, 200, 403, 403, 403, 200, 200, 200]),
    ("POST /operators", [401, 403, 403, 403, 403, 403, 403, 403, 403, 400]),
    ("GET /operators", [401, 403, 403, 403, 403, 403, 403, 403, 403, 200]),
    ("GET /operators/{operatorId}", [401, 403, 403, 403, 403, 403, 403, 403, 403, 200]),
    ("PATCH /operators/{operatorId}", [401, 403, 403, 403, 403, 403, 403, 403, 403, 200]),
    ("POST /keys", [401, 400, 403, 400, 403, 403, 403, 403, 400, 400]),
    ("GET /keys", [401, 403, 403, 200, 403, 403, 403, 403, 200, 200]),
    ("DELETE /keys/{keyId}", [401, 403, 403, 404, 403, 403, 403, 403, 200, 404]),
    ("GET /audit", [401, 403, 403, 200, 403, 403, 403, 403, 200, 200]),
];

/// Returns the `Authorization` headers of each caller.
async fn credentials(Operators { stack, a, b }: &Operators) -> Result<[Vec<String>; 10]> {
    let secret = format!("fsb_{}", stack.first_administrator_secret().await?);
    let bearer = |key: &str| vec![format!("Bearer {key}")];
    Ok([
        Vec::new(),
        bearer(&secret),
        bearer(&b.read_key),
        bearer(&b.full_key),
        bearer(&b.logger_key),
        bearer(&a.other_logger_key),
        bearer(&a.logger_key),
        bearer(&a.read_key),
        bearer(&a.full_key),
        bearer(stack.api_key().await?),
    ])
}

fn with(call: &Call, authorizations: &[String]) -> Call {
    let values: Vec<_> = authorizations.iter().map(String::as_str).collect();
    call.clone().authorizations(&values)
}

#[tokio::test]
async fn each_caller_gets_what_its_scope_allows() -> Result<()> {
    let all = &operators().await?;
    let credentials = credentials(all).await?;
    let mut found = Vec::new();
    for (route, call) in routes(all.a) {
        let mut statuses = [0; CALLERS.len()];
        for (status, credential) in statuses.iter_mut().zip(&credentials) {
            *status = all.stack.call(with(&call, credential)).await?.status;
        }
        found.push((route, statuses));
    }
    assert_eq!(found, EXPECTED, "callers: {CALLERS:?}");
    document("callers", &table_of_callers(&found))
}

/// Returns the table of the callers.
fn table_of_callers(found: &[(&str, [u16; CALLERS.len()])]) -> String {
    let columns = "---|".repeat(CALLERS.len());
    let mut lines = vec![format!("| route | {} |\n|---|{columns}\n", CALLERS.join(" | "))];
    for (route, statuses) in found {
        let cells = statuses.map(|status| match status {
            200..300 | 400 | 409 => "yes".to_owned(),
            refused => refused.to_string(),
        });
        lines.push(format!("| `{route}` | {} |\n", cells.join(" | ")));
    }
    lines.concat()
}

/// Compares a table in docs/access.md with what was seen. `UPDATE_DOCS=1 make e2e-test` rewrites it.
fn document(name: &str, table: &str) -> Result<()> {
    // Two tests write to the page.
    static PAGE: Mutex<()> = Mutex::new(());
    let _page = PAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/access.md");
    let page = fs::read_to_string(&path)?;
    let (start, end) = (format!("<!-- generated: {name} -->\n"), "<!-- /generated -->\n");
    let no_marker = || format!("docs/access.md has no markers of the table of {name}");
    let (head, rest) = page.split_once(&start).with_context(no_marker)?;
    let (current, tail) = rest.split_once(end).with_context(no_marker)?;
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [head, &start, table, end, tail].concat())?;
        return Ok(());
    }
    assert_eq!(table, current, "docs/access.md is outdated; UPDATE_DOCS=1 rewrites it");
    Ok(())
}

#[test]
fn the_tables_have_every_route_of_the_template() {
    let gateway = Template::services().remove("gateway").expect("the template of the gateway");
    let served = gateway.routes().into_iter().filter(|(_, _, route)| !is_mock(route));
    let served: BTreeSet<_> = served.map(|(name, ..)| name).collect();
    let tested: BTreeSet<_> = EXPECTED.iter().map(|(route, _)| (*route).to_owned()).collect();
    assert_eq!(tested, served, "add the route to EXPECTED and to routes()");
}

/// Lets a key expire a second ago. The shortest lifetime of a key is a day.
async fn expire(stack: &Stack, key: &str) -> Result<()> {
    let end = Timestamp::now().plus_millis(-1000).to_string();
    let update = stack.dynamodb().update_item().table_name(stack.named(names::KEYS));
    let update = update.key("id", AttributeValue::S(ApiKey::parse(key)?.hash()));
    let update = update.update_expression("SET expiresAt = :end");
    let update = update.condition_expression("attribute_exists(id)");
    update.expression_attribute_values(":end", AttributeValue::S(end)).send().await?;
    Ok(())
}

/// Returns `Authorization` headers without a valid key, each with its name.
async fn bad_keys(
    Operators { stack, a, .. }: &Operators,
) -> Result<Vec<(&'static str, Vec<String>)>> {
    let unknown = ApiKey::generate(Kind::Admin)?.reveal().to_owned();
    let mut wrong_checksum = a.full_key.clone();
    let last = if wrong_checksum.pop() == Some('0') { '1' } else { '0' };
    wrong_checksum.push(last);

    let create = async |body: Value| create_key(stack, Some(&a.full_key), body).await;
    let rotated = create(json!({ "name": "rotated", "scope": "operator" })).await?;
    create(json!({ "name": "next", "scope": "operator", "replaces": rotated["keyId"], "overlapSeconds": 0 }))
        .await?;
    let revoked = create(json!({ "name": "revoked", "scope": "operator" })).await?;
    let path = format!("/keys/{}", text(&revoked, "keyId")?);
    let response = stack.call(Call::delete(path).bearing(&a.full_key)).await?;
    ensure!(response.status == 200, "{response}");
    let expired =
        create(json!({ "name": "expired", "scope": "operator", "expiresInDays": 1 })).await?;
    let expired = text(&expired, "key")?;
    expire(stack, &expired).await?;

    let bearer = |key: &str| vec![format!("Bearer {key}")];
    Ok(vec![
        ("no header", Vec::new()),
        ("an empty header", vec![String::new()]),
        ("no scheme", vec![a.full_key.clone()]),
        ("another scheme", vec![format!("Basic {}", a.full_key)]),
        ("no credential", vec!["Bearer ".to_owned()]),
        ("two credentials", vec![format!("Bearer {} {}", a.full_key, a.full_key)]),
        ("two headers", [bearer(&a.full_key), bearer(&a.full_key)].concat()),
        ("a header of 10 kB", bearer(&"x".repeat(10_000))),
        ("key: a wrong checksum", bearer(&wrong_checksum)),
        ("key: of another stage", bearer(&unknown)),
        ("key: expired", bearer(&expired)),
        ("key: revoked", bearer(&text(&revoked, "key")?)),
        ("key: replaced, after the overlap", bearer(&text(&rotated, "key")?)),
        ("another first administrator's secret", bearer(&format!("fsb_{}", "x".repeat(48)))),
    ])
}

/// Sends a bad credential to every route. Returns the status and the body, which are the same for each route.
async fn refusal(
    stack: &Stack,
    routes: &[(&'static str, Call)],
    what: &str,
    credential: &[String],
) -> Result<(u16, Value)> {
    let sent = stream::iter(routes.to_vec()).map(async |(route, call)| {
        let response = stack.call(with(&call, credential)).await?;
        Ok::<_, anyhow::Error>((route, response))
    });
    let responses: Vec<_> = sent.buffer_unordered(CONCURRENCY).try_collect().await?;
    let mut seen = BTreeMap::new();
    for (route, response) in responses {
        ensure!(matches!(response.status, 401 | 403), "{what}, {route}: {response}");
        assert_eq!(response.header("www-authenticate"), "Bearer", "{what}, {route}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{what}, {route}");
        assert_eq!(response.header("cache-control"), "no-store", "{what}, {route}");
        let (status, body) = comparable(&response);
        seen.entry(format!("{status} {body}")).or_insert((status, body, Vec::new())).2.push(route);
    }
    assert_eq!(seen.len(), 1, "{what}: the response depends on the route: {seen:?}");
    let (_, (status, body, _)) = seen.pop_first().context("the API has no route")?;
    Ok((status, body))
}

#[tokio::test]
async fn every_bad_credential_is_refused_on_every_route() -> Result<()> {
    let all = &operators().await?;
    let Operators { stack, a, .. } = all;
    let routes = &routes(a);
    let signer = Signer::es256("one")?;
    let issuer = serve(vec![signer.jwk()?]).await;
    let url = issuer.url();
    let valid = &claims(&url, &a.id, "operator");
    let settings = [("OIDC_ISSUER", url.as_str()), ("OIDC_AUDIENCE", AUDIENCE)];
    let changed = BrokenFunction::deploy_with(stack, "authorise-caller", &settings).await?;
    let mut found = Vec::new();
    changed
        .during(async || {
            // Without a flaw, the token is accepted.
            let good = Call::get("/sites").bearing(&signer.sign(valid)?);
            ensure!(stack.call(good).await?.status == 200, "a valid token was refused");
            let tokens = flawed(&signer, valid)?.into_iter();
            let tokens = tokens
                .map(|(flaw, token)| (format!("token: {flaw}"), vec![format!("Bearer {token}")]));
            for (what, credential) in tokens {
                let refused = refusal(stack, routes, &what, &credential).await?;
                found.push((what, refused));
            }
            Ok(())
        })
        .await?;
    for (what, credential) in bad_keys(all).await? {
        let refused = refusal(stack, routes, what, &credential).await?;
        found.push((what.to_owned(), refused));
    }
    // The response does not depend on what is wrong, so it is no hint about what exists.
    let bodies: BTreeSet<_> = found.iter().map(|(_, (_, body))| body.to_string()).collect();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let head = format!("| credential | each of the {} routes |\n|---|---|\n", routes.len());
    let rows = found.iter().map(|(what, (status, _))| format!("| {what} | {status} |\n"));
    let lines: Vec<_> = [head].into_iter().chain(rows).collect();
    document("bad credentials", &lines.concat())
}

/// Returns a response's status and body without what is different in each response.
fn comparable(response: &Response) -> (u16, Value) {
    let mut body = response.body.clone();
    if let Some(body) = body.as_object_mut() {
        body.remove("requestId");
    }
    (response.status, body)
}

#[tokio::test]
async fn another_operators_resources_are_unknown() -> Result<()> {
    let Operators { stack, a, b } = operators().await?;
    let unknown = Uuid::new_v4().to_string();
    let site = a.site.to_string();
    for (method, path, id) in [
        (Method::GET, "/sites/<id>", &site),
        (Method::PATCH, "/sites/<id>", &site),
        (Method::DELETE, "/sites/<id>", &site),
        (Method::PATCH, "/sensors/<id>", &a.sensor),
        (Method::GET, "/sensors/<id>/readings?aggregate=hour", &a.sensor),
        (Method::GET, "/sensors/<id>/revisions", &a.sensor),
        (Method::DELETE, "/keys/<id>", &a.unused_key),
    ] {
        let call = |id: &str| {
            let call = Call::new(method.clone(), path.replace("<id>", id));
            if method == Method::PATCH { call.text("{}") } else { call }
        };
        let foreign = stack.call(call(id).bearing(&b.full_key)).await?;
        let missing = stack.call(call(&unknown).bearing(&b.full_key)).await?;
        assert_eq!(foreign.status, 404, "{foreign}");
        let without = |response: &Response, id: &str| {
            let (status, body) = comparable(response);
            (status, body.to_string().replace(id, "<id>"))
        };
        assert_eq!(without(&foreign, id), without(&missing, &unknown));
    }
    // The site is still in service.
    let response = stack.call(Call::get(format!("/sites/{site}")).bearing(&a.read_key)).await?;
    assert_eq!(response.body["status"], "ACTIVE", "{response}");
    Ok(())
}

#[tokio::test]
async fn two_operators_can_use_the_same_idempotency_key() -> Result<()> {
    let Operators { stack, a, b } = operators().await?;
    let key = unique();
    let register = async |operator: &Operator, name: &str| {
        let body = registration(name, &[Metric::WaterLevel], GOOD_CARD);
        stack.call(Call::post_site(&key, &body).bearing(&operator.full_key)).await
    };
    let (of_a, of_b) = (register(a, "one").await?, register(b, "two").await?);
    assert_eq!((of_a.status, of_b.status), (202, 202), "{of_a} {of_b}");
    assert_ne!(of_a.body["siteId"], of_b.body["siteId"]);
    assert_eq!(register(a, "one").await?.body["siteId"], of_a.body["siteId"]);
    // The conflict names the caller's own site.
    let conflict = register(b, "three").await?;
    assert_eq!(conflict.status, 409, "{conflict}");
    assert!(conflict.to_string().contains(&text(&of_b.body, "siteId")?), "{conflict}");
    assert!(!conflict.to_string().contains(&text(&of_a.body, "siteId")?), "{conflict}");
    Ok(())
}

#[tokio::test]
async fn readings_for_another_operators_sensor_are_not_stored() -> Result<()> {
    let Operators { stack, a, b } = operators().await?;
    let at = Timestamp::now().plus_millis(-7_200_000);
    let bundle = a.bundle(at, 987.25);
    let call = Call::post_readings(bundle.to_string()).bearing(&b.full_key);
    assert_eq!(stack.call(call).await?.status, 202);
    // The bundle is set aside as that of an unknown sensor, with its payload.
    let data = STANDARD.encode(bundle.to_string());
    let failure = stack.failure_about("store-readings", &data).await?;
    assert_eq!(failure.error.name, "UnknownSensor", "{failure}");
    assert!(failure.payload()?.to_string().contains(&b.id), "{failure}");
    let read = stack.call(a.readings().bearing(&a.read_key)).await?;
    assert!(!read.to_string().contains("987.25"), "{read}");
    Ok(())
}

#[tokio::test]
async fn only_an_operator_may_import_readings() -> Result<()> {
    let Operators { stack, a, .. } = operators().await?;
    let at = "2019-06-01T12:00:00Z".parse()?;
    let mut bundle = a.bundle(at, 12.25);
    bundle["origin"] = json!("import");
    let call = Call::post_readings(bundle.to_string());
    let refused = stack.call(call.clone().bearing(&a.logger_key)).await?;
    assert_eq!((refused.status, refused.fields()), (403, vec!["origin"]), "{refused}");
    assert_eq!(stack.call(call.bearing(&a.full_key)).await?.status, 202);
    until("the import to be stored", TIMEOUT, async || {
        let read = stack.call(a.readings().bearing(&a.read_key)).await?;
        Ok(if read.to_string().contains("12.25") { Poll::Ready(()) } else { Poll::Pending(read) })
    })
    .await
}

#[tokio::test]
async fn an_appended_event_is_listed_for_its_operator_only() -> Result<()> {
    let Operators { stack, a, b } = operators().await?;
    // The same request again has the same response, and the source belongs to operator A.
    let [first, repeated] = [
        stack.call(a.event("1").bearing(&a.full_key)).await?,
        stack.call(a.event("1").bearing(&a.full_key)).await?,
    ];
    assert_eq!((first.status, &first.body), (201, &repeated.body), "{first}");
    let taken = stack.call(a.event("1").bearing(&b.full_key)).await?;
    assert_eq!(taken.status, 409, "{taken}");
    for query in [
        "entity=test.instrument/1".to_owned(),
        "entity=test.instrument/1&after=0".to_owned(),
        "type=TestDone".to_owned(),
        "correlationId=run-1".to_owned(),
    ] {
        // An index has a new event a moment later.
        let listed = until("the event to be listed", TIMEOUT, async || {
            let call = Call::get(format!("/events?{query}")).bearing(&a.read_key);
            let listed = stack.call(call).await?;
            ensure!(listed.status == 200, "{listed}");
            Ok(match listed.body["events"].as_array() {
                Some(events) if !events.is_empty() => Poll::Ready(events.clone()),
                _ => Poll::Pending(listed),
            })
        })
        .await?;
        assert_eq!(listed.len(), 1, "{query}: {listed:?}");
        assert_eq!(listed[0]["metadata"]["eventId"], first.body["eventId"], "{query}");
        assert_eq!(listed[0]["data"]["note"], json!(a.marker), "{query}");
        let theirs = stack.call(Call::get(format!("/events?{query}")).bearing(&b.read_key)).await?;
        assert!(!theirs.to_string().contains(&a.marker), "{query}: {theirs}");
        assert!(theirs.to_string().contains(&b.marker), "{query}: {theirs}");
    }
    Ok(())
}

#[tokio::test]
async fn a_path_or_a_method_that_no_route_has_is_never_a_415() -> Result<()> {
    let stack = Stack::connect().await?;
    for (method, path, kind, expected) in [
        (Method::PUT, "/sites", "application/json", 405),
        // For a type without a mapping template, API Gateway can't choose the response by the method.
        (Method::PUT, "/sites", "text/plain", 404),
        (Method::POST, "/nothing", "application/json", 404),
        (Method::POST, "/nothing", "text/plain", 404),
    ] {
        let call = Call::new(method, path).text("{}").content_type(kind);
        let response = stack.call(call).await?;
        assert_eq!(response.status, expected, "{path} {kind}: {response}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{response}");
        assert_eq!(response.header("cache-control"), "no-store", "{response}");
        assert_eq!(response.body["status"], expected, "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn the_keys_of_a_suspended_operator_are_refused_until_it_is_active_again() -> Result<()> {
    let stack = Stack::connect().await?;
    let name = unique();
    let body = json!({ "name": name, "plan": "standard" }).to_string();
    let created = stack.call(Call::new(Method::POST, "/operators").key(&name).text(body)).await?;
    let id = text(&created.body, "operatorId")?;
    let path = format!("/operators/{id}");
    let key_of_operator = json!({ "name": name, "scope": "read", "operatorId": id });
    // Nothing has cached the operator before the first use of its key.
    let key = text(&create_key(&stack, None, key_of_operator.clone()).await?, "key")?;
    let suspended = stack.call(Call::patch(&path, r#"{"status": "SUSPENDED"}"#)).await?;
    assert_eq!((suspended.status, &suspended.body["status"]), (200, &json!("SUSPENDED")));
    let refused = stack.call(Call::get("/sites").bearing(&key)).await?;
    assert_eq!(refused.status, 401, "{refused}");
    let call = Call::new(Method::POST, "/keys").key(&unique()).text(key_of_operator.to_string());
    let refused = stack.call(call).await?;
    assert_eq!(refused.status, 409, "{refused}");

    let body = r#"{"status": "ACTIVE", "plan": "professional"}"#;
    let active = stack.call(Call::patch(&path, body)).await?;
    assert_eq!((active.status, &active.body["plan"]), (200, &json!("professional")));
    let audit = stack.call(Call::get(format!("/audit?operatorId={id}&limit=2"))).await?;
    let details: Vec<_> =
        audit.body["entries"].as_array().into_iter().flatten().map(|it| &it["details"]).collect();
    let expected = [
        json!("plan standard to professional, status SUSPENDED to ACTIVE"),
        json!("status ACTIVE to SUSPENDED"),
    ];
    assert_eq!(details, expected.iter().collect::<Vec<_>>());
    // The refusal and the status are cached, each for a minute.
    until("the key to be accepted", Duration::from_mins(3), async || {
        let response = stack.call(Call::get("/sites").bearing(&key)).await?;
        Ok(if response.status == 200 { Poll::Ready(()) } else { Poll::Pending(response) })
    })
    .await
}
