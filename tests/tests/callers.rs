//! Who may do what: each kind of caller and each bad credential on each route of the deployed stack, and two operators
//! that must not see each other's data.

use std::{collections::BTreeSet, env, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use contracts::{Metric, SiteId, Timestamp};
use futures_util::{future::try_join_all, try_join};
use keys::{ApiKey, Kind};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, Response},
    sites::{DECLINED_CARD, GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// An operator with keys of each scope, an active site and a sensor that has a reading. Every text that it chose contains
/// the marker.
#[derive(Debug)]
struct Operator {
    id: String,
    marker: String,
    full_key: String,
    read_key: String,
    logger_key: String,
    /// A logger key for a site that does not exist.
    other_logger_key: String,
    /// The id of a key that nobody uses.
    unused_key: String,
    site: SiteId,
    sensor: String,
    /// A site whose onboarding was undone, so that its deletion changes nothing.
    rejected_site: String,
}

/// The operators A and B of this process, and a connection of one test. (A connection belongs to a test's runtime.)
#[derive(Debug)]
struct Operators {
    stack: Stack,
    a: &'static Operator,
    b: &'static Operator,
}

fn unique() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Creates a key with the credential of another caller, or of an administrator. Returns the response's body.
async fn create_key(stack: &Stack, by: Option<&str>, body: Value) -> Result<Value> {
    let call = Call::new(Method::POST, "/keys").key(&unique()).text(body.to_string());
    let call = match by {
        Some(key) => call.bearing(key),
        None => call,
    };
    let response = stack.call(call).await?;
    ensure!(response.status == 201, "{response}");
    Ok(response.body)
}

fn text(value: &Value, field: &str) -> Result<String> {
    Ok(value[field].as_str().with_context(|| format!("no {field} in {value}"))?.to_owned())
}

impl Operator {
    /// Creates the operator and its keys, onboards its site, and sends a reading with its logger key.
    async fn create(stack: &Stack, name: &str) -> Result<Self> {
        let marker = format!("{name}{}", unique());
        let body = json!({ "name": marker, "plan": "standard" });
        let call = Call::new(Method::POST, "/operators").key(&marker).text(body.to_string());
        let created = stack.call(call).await?;
        ensure!(created.status == 201, "{created}");
        let id = text(&created.body, "operatorId")?;
        let body = json!({ "name": marker, "scope": "operator", "operatorId": id });
        let full_key = text(&create_key(stack, None, body).await?, "key")?;

        let key = async |scope: &str| {
            create_key(stack, Some(&full_key), json!({ "name": marker, "scope": scope })).await
        };
        let read_key = text(&key("read").await?, "key")?;
        let unused_key = text(&key("read").await?, "keyId")?;
        let other_logger_key = text(&key(&format!("logger:{}", Uuid::new_v4())).await?, "key")?;

        let rejected = onboard(stack, &full_key, &marker, DECLINED_CARD, "REJECTED").await?;
        let rejected_site = text(&rejected, "siteId")?;
        let site = onboard(stack, &full_key, &marker, GOOD_CARD, "ACTIVE").await?;
        let site_id = site["siteId"].as_str().context("no siteId")?.parse()?;
        let sensor = text(&site["sensors"][0], "sensorId")?;
        let logger_key = text(&key(&format!("logger:{site_id}")).await?, "key")?;
        let operator = Self {
            id,
            marker,
            full_key,
            read_key,
            logger_key,
            other_logger_key,
            unused_key,
            site: site_id,
            sensor,
            rejected_site,
        };
        operator.send_reading(stack).await?;
        let appended = stack.call(operator.event("1").bearing(&operator.full_key)).await?;
        ensure!(appended.status == 201, "{appended}");
        Ok(operator)
    }

    /// Returns a request that appends an event of the operator.
    fn event(&self, id: &str) -> Call {
        let event = json!({
            "specversion": "1.0", "id": id, "source": format!("test.{}", self.marker), "type": "TestDone",
            "subject": "test.instrument/1", "correlationid": "run-1", "data": { "note": self.marker },
        });
        Call::new(Method::POST, "/events").text(event.to_string())
    }

    /// Returns a bundle of one reading of the operator's sensor.
    fn bundle(&self, at: Timestamp, value: f64) -> Value {
        json!({
            "bundleId": unique(), "siteId": self.site,
            "series": [{ "sensorId": self.sensor, "samples": [[at, value]] }],
        })
    }

    /// Sends readings with the logger key until one is stored. A sensor can send a moment after its site is active.
    async fn send_reading(&self, stack: &Stack) -> Result<()> {
        let at = Timestamp::now().plus_millis(-3_600_000);
        let bundle = self.bundle(at, 21.5).to_string();
        until("a reading to be stored", TIMEOUT, async || {
            let call = Call::post_readings(bundle.clone()).bearing(&self.logger_key);
            let sent = stack.call(call).await?;
            ensure!(sent.status == 202, "{sent}");
            let read = stack.call(self.readings().bearing(&self.read_key)).await?;
            Ok(match read.body["samples"].as_array() {
                Some(samples) if !samples.is_empty() => Poll::Ready(()),
                _ => Poll::Pending(read),
            })
        })
        .await
    }

    fn readings(&self) -> Call {
        Call::get(format!("/sensors/{}/readings", self.sensor))
    }
}

/// Registers a site of the key's operator, and waits until it has the status. Returns the response of
/// `GET /sites/{siteId}`.
async fn onboard(
    stack: &Stack,
    key: &str,
    marker: &str,
    card: &str,
    status: &str,
) -> Result<Value> {
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    let mut body = registration(marker, &[Metric::AirTemperature], card);
    body["operator"] = json!(marker);
    let created = stack.call(Call::post_site(&unique(), &body).bearing(key)).await?;
    ensure!(created.status == 202, "{created}");
    let site = text(&created.body, "siteId")?;
    until(&format!("site {site} to be {status}"), TIMEOUT, async || {
        let response = stack.call(Call::get(format!("/sites/{site}")).bearing(key)).await?;
        Ok(match response.body["status"].as_str() {
            Some(actual) if actual == status => Poll::Ready(response.body),
            _ => Poll::Pending(response),
        })
    })
    .await
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
/// With a 400 or a 409 the caller may call the route: the test's body is wrong on purpose, or the site is closed, so that
/// nothing is changed. An administrator belongs to the default operator, so A's sites are unknown to it, too. The readings of a
/// site of another operator are accepted, and their sensor is then unknown to the consumer of the stream.
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
    document(&found)
}

/// Compares the table in docs/access.md with the statuses. `UPDATE_DOCS=1 make e2e-test` rewrites it.
fn document(found: &[(&str, [u16; CALLERS.len()])]) -> Result<()> {
    let columns = "---|".repeat(CALLERS.len());
    let mut lines = vec![format!("| route | {} |\n|---|{columns}\n", CALLERS.join(" | "))];
    for (route, statuses) in found {
        let cells = statuses.map(|status| match status {
            200..300 | 400 | 409 => "yes".to_owned(),
            refused => refused.to_string(),
        });
        lines.push(format!("| `{route}` | {} |\n", cells.join(" | ")));
    }
    let table = lines.concat();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/access.md");
    let page = fs::read_to_string(&path)?;
    let (start, end) = ("<!-- generated -->\n", "<!-- /generated -->\n");
    let (head, rest) = page.split_once(start).context("docs/access.md has no start marker")?;
    let (current, tail) = rest.split_once(end).context("docs/access.md has no end marker")?;
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [head, start, &table, end, tail].concat())?;
        return Ok(());
    }
    assert_eq!(table, current, "docs/access.md is outdated; UPDATE_DOCS=1 rewrites it");
    Ok(())
}

/// Returns a JWT with this header and payload, and a signature that no key made.
fn jwt(header: &Value) -> String {
    let now = Timestamp::now().millis() / 1000;
    let payload = json!({ "iss": "https://issuer.example", "aud": "fieldstation", "sub": "x",
        "iat": now, "exp": now + 600, "fieldstation_scope": "admin" });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{}", part(header), part(&payload), URL_SAFE_NO_PAD.encode([7; 64]))
}

/// Returns `Authorization` headers that must be refused, each with its name.
async fn bad_credentials(
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

    let bearer = |key: &str| vec![format!("Bearer {key}")];
    Ok(vec![
        ("no header", Vec::new()),
        ("an empty header", vec![String::new()]),
        ("no scheme", vec![a.full_key.clone()]),
        ("another scheme", vec![format!("Basic {}", a.full_key)]),
        ("no credential", vec!["Bearer ".to_owned()]),
        ("two credentials", vec![format!("Bearer {} {}", a.full_key, a.full_key)]),
        ("two headers", [bearer(&a.full_key), bearer(&a.full_key)].concat()),
        ("a wrong checksum", bearer(&wrong_checksum)),
        ("a key of another stage", bearer(&unknown)),
        ("a key that was replaced and has expired", bearer(&text(&rotated, "key")?)),
        ("a revoked key", bearer(&text(&revoked, "key")?)),
        ("another secret", bearer(&format!("fsb_{}", "x".repeat(48)))),
        ("10 kB", bearer(&"x".repeat(10_000))),
        ("a JWT without a signature", bearer(&jwt(&json!({ "alg": "none" })))),
        ("a JWT of an unknown issuer", bearer(&jwt(&json!({ "alg": "ES256", "kid": "k" })))),
    ])
}

#[tokio::test]
async fn every_bad_credential_is_refused_on_every_route() -> Result<()> {
    let all = &operators().await?;
    let mut details = BTreeSet::new();
    for (what, credential) in bad_credentials(all).await? {
        for (route, call) in routes(all.a) {
            let response = all.stack.call(with(&call, &credential)).await?;
            assert_eq!(response.status, 401, "{what}, {route}: {response}");
            assert_eq!(response.header("www-authenticate"), "Bearer", "{what}, {route}");
            assert_eq!(response.header("content-type"), "application/problem+json", "{what}");
            details.insert(response.body["detail"].to_string());
        }
    }
    // The response does not depend on what is wrong.
    assert_eq!(details.len(), 1, "{details:?}");
    Ok(())
}

/// Returns a response's status and body without what is different in each response.
fn comparable(response: &Response, id: &str) -> (u16, String) {
    let mut body = response.body.clone();
    if let Some(body) = body.as_object_mut() {
        body.remove("requestId");
    }
    (response.status, body.to_string().replace(id, "<id>"))
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
        assert_eq!(comparable(&foreign, id), comparable(&missing, &unknown));
    }
    // The site is still in service.
    let response = stack.call(Call::get(format!("/sites/{site}")).bearing(&a.read_key)).await?;
    assert_eq!(response.body["status"], "ACTIVE", "{response}");
    Ok(())
}

#[tokio::test]
async fn no_response_to_an_operator_has_a_marker_of_another() -> Result<()> {
    let Operators { stack, a, b } = operators().await?;
    // A second site gives operator A a page token.
    onboard(&stack, &a.full_key, &a.marker, GOOD_CARD, "ACTIVE").await?;
    let first = stack.call(Call::get("/sites?status=ACTIVE&limit=1").bearing(&a.read_key)).await?;
    let token = text(&first.body, "next")?;
    let mut calls: Vec<_> = routes(a).into_iter().map(|(_, call)| call).collect();
    calls.extend([
        Call::get(format!("/sites?status=ACTIVE&limit=1&next={token}")),
        Call::get("/sites?status=ACTIVE&limit=100"),
        Call::get("/sites?limit=100"),
        Call::get("/keys?limit=100"),
        Call::get("/audit?limit=100"),
        Call::get("/events?type=TestDone"),
        Call::get("/events?type=SiteCreated"),
        Call::get("/events?entity=test.instrument/1&after=0"),
        Call::get("/events?correlationId=run-1"),
        a.readings(),
        Call::get(format!("/sensors/{}/readings?aggregate=day", a.sensor)),
    ]);
    let keys = [&b.full_key, &b.read_key, &b.logger_key, &b.other_logger_key];
    let sent = calls.iter().flat_map(|call| keys.map(|key| call.clone().bearing(key)));
    let responses = try_join_all(sent.map(|call| stack.call(call))).await?;
    for response in responses {
        let all = format!("{response} {:?}", response.headers);
        assert!(!all.contains(&a.marker), "{all}");
        assert!(!all.contains("21.5"), "{all}");
    }
    let own = stack.call(Call::get("/sites?status=ACTIVE").bearing(&b.read_key)).await?;
    assert!(own.to_string().contains(&b.marker), "operator B does not see its own site: {own}");
    let foreign = Call::get(format!("/sites?status=ACTIVE&limit=1&next={token}"));
    assert_eq!(stack.call(foreign.bearing(&b.read_key)).await?.status, 400);
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
        // API Gateway can't choose the response by the method then.
        (Method::PUT, "/sites", "text/plain", 404),
        (Method::POST, "/nothing", "application/json", 404),
        (Method::POST, "/nothing", "text/plain", 404),
    ] {
        let call = Call::new(method, path).text("{}").content_type(kind);
        let response = stack.call(call).await?;
        assert_eq!(response.status, expected, "{path} {kind}: {response}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{response}");
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
