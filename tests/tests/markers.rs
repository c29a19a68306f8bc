//! One operator asks for what another one stored, with the other's ids in every place of every route. Each text that
//! the other operator can store is a marker, and no response may contain one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contracts::Timestamp;
use futures_util::{StreamExt, TryStreamExt, stream, try_join};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, Response},
    operators::{Operator, text, unique},
    wait::{TIMEOUT, until_true},
};
use uuid::Uuid;

/// The number of requests at the same time.
const CONCURRENCY: usize = 8;
/// A reading of the operator that stores the markers. No other test sends this value.
const READING: f64 = 6543.125;
/// The texts of an operator that have a marker of their own, beside the names ([`Operator::marker`]) and the telephone
/// number, which can have only digits.
const FIELDS: [&str; 16] = [
    "contact",
    "email",
    "label",
    "datum",
    "system",
    "external id",
    "bundle",
    "reason",
    "qualifier",
    "event id",
    "source",
    "type",
    "subject",
    "correlation",
    "extension",
    "data",
];
/// The lists that have pages: the path for a page of one item, and the name of the parameter for the token.
const LISTS: [(&str, &str); 6] = [
    ("/sites?limit=1", "next"),
    ("/keys?limit=1", "next"),
    ("/audit?limit=1", "next"),
    ("/sensors/<sensor>/readings?limit=1", "next"),
    ("/sensors/<sensor>/revisions?limit=1", "next"),
    ("/events?entity=site/<site>&after=0&limit=1", "pageToken"),
];

/// A request of operator A, with all text that it sends. A response may repeat what was sent.
struct Probe {
    sent: String,
    call: Call,
    /// Whether the request is also sent with the other keys of A, and not only with that of the scope `operator`.
    is_for_all_keys: bool,
}

impl Probe {
    fn get(path: impl Into<String>) -> Self {
        let path = path.into();
        Self { call: Call::get(path.clone()), sent: path, is_for_all_keys: false }
    }

    fn send(method: Method, path: &str, body: &Value) -> Self {
        let body = body.to_string();
        let sent = format!("{path} {body}");
        let call = Call::new(method, path).key(&unique()).text(body);
        Self { call, sent, is_for_all_keys: false }
    }

    fn for_all_keys(self, is_for_all_keys: bool) -> Self {
        Self { is_for_all_keys, ..self }
    }
}

/// Returns the id of a marker: the same for each call with these arguments.
fn mark_id(of: &Operator, field: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {field}", of.marker).as_bytes())
}

/// Returns the marker of a field: 32 letters and digits.
fn mark(of: &Operator, field: &str) -> String {
    mark_id(of, field).simple().to_string()
}

/// Returns the telephone number, which is a marker.
fn phone(of: &Operator) -> String {
    mark_id(of, "phone").as_u128().to_string()
}

/// Returns all markers of an operator, each with what it marks.
fn marks(of: &Operator) -> Vec<(&'static str, String)> {
    let names = [("a name", of.marker.clone()), ("phone", phone(of))];
    let fields = FIELDS.map(|field| (field, mark(of, field)));
    names.into_iter().chain(fields).chain([("a reading", READING.to_string())]).collect()
}

/// Sends a request, and again while the operator's rate limit refuses it.
async fn answered(stack: &Stack, call: &Call, key: &str) -> Result<Response> {
    loop {
        let response = stack.call(call.clone().bearing(key)).await?;
        if response.status != 429 {
            return Ok(response);
        }
        let seconds = response.header("retry-after").parse().context("no Retry-After")?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

/// Sends a request with the key of the scope `operator`. Fails if the response has another status.
async fn accepted(stack: &Stack, of: &Operator, call: Call, status: u16) -> Result<Response> {
    let response = answered(stack, &call, &of.full_key).await?;
    ensure!(response.status == status, "{response}");
    Ok(response)
}

/// Stores a marker in every text that an operator can store.
async fn store_marks(stack: &Stack, of: &Operator) -> Result<()> {
    let mark = |field| mark(of, field);
    let email = format!("{}@example.org", mark("email"));
    let contact = json!({ "name": mark("contact"), "email": email, "phone": phone(of) });
    let body = json!({ "contact": contact }).to_string();
    accepted(stack, of, Call::patch(format!("/sites/{}", of.site), body), 200).await?;

    let external_ids = json!({ mark("system"): mark("external id") });
    let body =
        json!({ "label": mark("label"), "datum": mark("datum"), "externalIds": external_ids });
    let call = Call::patch(format!("/sensors/{}", of.sensor), body.to_string());
    accepted(stack, of, call, 200).await?;

    let start = Timestamp::now().plus_millis(-1_800_000);
    for revision in [2, 3] {
        let sample = |minute: i64| {
            let at = start.plus_millis(minute * 60_000);
            json!([at, READING, 1, [mark("qualifier")]])
        };
        let bundle = json!({
            "bundleId": mark("bundle"), "siteId": of.site, "revision": revision,
            "reason": mark("reason"),
            "series": [{ "sensorId": of.sensor, "samples": [sample(0), sample(1)] }],
        });
        accepted(stack, of, Call::post_readings(bundle.to_string()), 202).await?;
    }

    let event = json!({
        "specversion": "1.0", "id": mark("event id"), "source": format!("test.{}", mark("source")),
        "type": format!("Test.{}", mark("type")), "subject": subject(of),
        "correlationid": mark("correlation"), "causationid": mark("correlation"),
        "extension": mark("extension"), "data": { "note": mark("data") },
    });
    let call = Call::new(Method::POST, "/events").text(event.to_string());
    accepted(stack, of, call, 201).await?;
    Ok(())
}

fn subject(of: &Operator) -> String {
    format!("test.instrument/{}", mark(of, "subject"))
}

/// Waits until the operator itself, and an administrator, read every marker. Without this, a response without a marker
/// would prove nothing.
async fn wait_for_marks(stack: &Stack, of: &Operator) -> Result<()> {
    let own = [
        format!("/sites/{}", of.site),
        "/keys?limit=100".to_owned(),
        format!("/sensors/{}/readings?flags=true", of.sensor),
        format!("/sensors/{}/revisions", of.sensor),
        format!("/events?entity={}&after=0", subject(of)),
    ];
    until_true("the operator to read its markers", TIMEOUT, async || {
        let mut seen = String::new();
        for path in &own {
            seen += &accepted(stack, of, Call::get(path), 200).await?.to_string();
        }
        let missing: Vec<_> = marks(of).into_iter().filter(|(_, it)| !seen.contains(it)).collect();
        Ok((missing.is_empty(), format!("not read: {missing:?} in {seen}")))
    })
    .await?;
    let operator = stack.call(Call::get(format!("/operators/{}", of.id))).await?;
    ensure!(operator.to_string().contains(&of.marker), "{operator}");
    Ok(())
}

/// Returns a path of [`LISTS`] with the operator's ids.
fn list_of(of: &Operator, path: &str) -> String {
    path.replace("<sensor>", &of.sensor).replace("<site>", &of.site.to_string())
}

/// Returns the operator's page token of each list.
async fn page_tokens(stack: &Stack, of: &Operator) -> Result<Vec<String>> {
    let mut tokens = Vec::new();
    for (path, _) in LISTS {
        let page = accepted(stack, of, Call::get(list_of(of, path)), 200).await?;
        let next = &page.body["next"];
        let next = if next.is_null() { &page.body["nextPageToken"] } else { next };
        let next = next.as_str().with_context(|| format!("{path} has one page: {page}"))?;
        tokens.push(next.to_owned());
    }
    Ok(tokens)
}

/// Returns a text and slight changes of it. The first one is the text itself.
fn forms(text: &str) -> [String; 4] {
    let mut shorter = text.to_owned();
    shorter.pop();
    [text.to_owned(), text.to_uppercase(), format!("{text}x"), shorter]
}

/// Returns requests of A with an id of B in each path and in each query.
fn with_id_in_url(a: &Operator, id: &str) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (index, id) in forms(id).into_iter().enumerate() {
        let is_valid = index == 0;
        for path in [
            format!("/sites/{id}"),
            format!("/sensors/{id}/readings"),
            format!("/sensors/{id}/readings?aggregate=day"),
            format!("/sensors/{id}/revisions"),
            format!("/operators/{id}"),
            format!("/sites?operatorId={id}"),
            format!("/sites?next={id}"),
            format!("/keys?operatorId={id}"),
            format!("/audit?operatorId={id}"),
            format!("/network/summary?operatorId={id}"),
            format!("/sensors/{}/readings?next={id}", a.sensor),
            format!("/sensors/{}/revisions?next={id}", a.sensor),
            format!("/events?entity=site/{id}"),
            format!("/events?entity=site/{id}&after=0"),
            format!("/events?entity=sensors/{id}&after=0"),
            format!("/events?correlationId={id}"),
        ] {
            probes.push(Probe::get(path).for_all_keys(is_valid));
        }
        for path in [format!("/sites/{id}"), format!("/keys/{id}")] {
            let probe = Probe { call: Call::delete(&path), ..Probe::get(path) };
            probes.push(probe.for_all_keys(is_valid));
        }
        for path in [format!("/sites/{id}"), format!("/sensors/{id}"), format!("/operators/{id}")] {
            probes.push(Probe::send(Method::PATCH, &path, &json!({})).for_all_keys(is_valid));
        }
    }
    probes
}

/// Returns requests of A with an id of B in each body.
fn with_id_in_body(a: &Operator, id: &str) -> Vec<Probe> {
    let post = |path: &str, body: Value| Probe::send(Method::POST, path, &body);
    let mut probes = Vec::new();
    // Only once, because each request for a new site takes a token of the lower limit for sagas.
    probes.push(post("/sites", json!({ "siteId": id, "name": "A" })));
    for (index, id) in forms(id).into_iter().enumerate() {
        let event = |name: &str, value: String| {
            let mut event = json!({
                "specversion": "1.0", "id": unique(), "source": format!("test.{}", a.marker),
                "type": "TestAsked", "subject": "test.question/1", "data": {},
            });
            event[name] = value.into();
            event
        };
        let (site, sensor) = (format!("/sites/{}", a.site), format!("/sensors/{}", a.sensor));
        let new = [
            post("/keys", json!({ "name": "A", "scope": "read", "replaces": id })),
            post("/keys", json!({ "name": "A", "scope": "read", "operatorId": id })),
            post("/events", event("subject", format!("site/{id}"))),
            post("/operators", json!({ "operatorId": id, "name": "A", "plan": "standard" })),
            Probe::send(Method::PATCH, &site, &json!({ "siteId": id })),
            Probe::send(Method::PATCH, &sensor, &json!({ "sensorId": id })),
        ];
        probes.extend(new.into_iter().map(|probe| probe.for_all_keys(index == 0)));
    }
    probes
}

/// Returns requests of A that name what only some fields can name: B's site and sensor in a bundle, B's site in the scope of
/// a key, and the texts of B's event and bundle.
fn with_names(a: &Operator, b: &Operator) -> Vec<Probe> {
    let at = Timestamp::now().plus_millis(-600_000);
    let bundle = |site: String, sensor: &str| {
        json!({
            "bundleId": mark(b, "bundle"), "siteId": site,
            "series": [{ "sensorId": sensor, "samples": [[at, 1.0]] }],
        })
    };
    let (own, foreign) = (a.site.to_string(), b.site.to_string());
    let bodies = [
        ("/readings", bundle(foreign.clone(), &b.sensor)),
        ("/readings", bundle(foreign.clone(), &a.sensor)),
        ("/readings", bundle(own.clone(), &b.sensor)),
        ("/readings", bundle(foreign.to_uppercase(), &b.sensor.to_uppercase())),
        ("/readings", bundle(format!("{foreign}x"), &format!("{}x", b.sensor))),
        ("/keys", json!({ "name": "A", "scope": format!("logger:{foreign}") })),
        ("/keys", json!({ "name": "A", "scope": format!("logger:{foreign}x") })),
        (
            "/events",
            json!({
                "specversion": "1.0", "id": mark(b, "event id"),
                "source": format!("test.{}", mark(b, "source")), "type": "TestAsked",
                "subject": subject(b), "data": {},
            }),
        ),
    ];
    let mut probes: Vec<_> =
        bodies.iter().map(|(path, body)| Probe::send(Method::POST, path, body)).collect();
    for text in forms(&subject(b)) {
        probes.push(Probe::get(format!("/events?entity={text}")));
        probes.push(Probe::get(format!("/events?entity={text}&after=0")));
    }
    for text in forms(&format!("Test.{}", mark(b, "type"))) {
        probes.push(Probe::get(format!("/events?type={text}")));
    }
    for text in forms(&mark(b, "correlation")) {
        probes.push(Probe::get(format!("/events?correlationId={text}")));
    }
    probes
}

/// Returns requests of A for its own lists and for B's, with B's page tokens.
fn with_tokens(a: &Operator, b: &Operator, tokens: &[String]) -> Vec<Probe> {
    let mut probes = Vec::new();
    for ((path, parameter), token) in LISTS.iter().zip(tokens) {
        for of in [a, b] {
            for token in forms(token) {
                let path = list_of(of, path);
                probes.push(Probe::get(format!("{path}&{parameter}={token}")).for_all_keys(true));
            }
        }
    }
    probes
}

/// Returns requests of A for everything that it may list.
fn lists() -> Vec<Probe> {
    let paths = [
        "/sites?limit=100",
        "/sites?status=ACTIVE&limit=100",
        "/keys?limit=100",
        "/audit?limit=100",
        "/operators?limit=100",
        "/network/summary",
        "/events?type=TestDone",
        "/events?type=SiteCreated",
        "/events?type=SensorChanged",
        "/events?type=ReadingsRevised",
        "/events?entity=test.instrument/1&after=0",
        "/events?correlationId=run-1",
    ];
    paths.map(|path| Probe::get(path).for_all_keys(true)).into()
}

#[tokio::test]
async fn no_response_to_an_operator_has_a_marker_of_another() -> Result<()> {
    let stack = &Stack::connect().await?;
    // The first letters differ, so no marker contains the other.
    let (a, b) = try_join!(Operator::create(stack, "aa"), Operator::create(stack, "bb"))?;
    store_marks(stack, &b).await?;
    wait_for_marks(stack, &b).await?;
    let site = accepted(stack, &b, Call::get(format!("/sites/{}", b.site)), 200).await?;
    let onboarding = text(&site.body["onboarding"], "onboardingId")?;
    let tokens = page_tokens(stack, &b).await?;

    let (site, key) = (b.site.to_string(), &b.unused_key);
    let ids = [&site, &b.rejected_site, &b.sensor, key, &b.id, &onboarding];
    let mut probes: Vec<_> = ids.into_iter().flat_map(|id| with_id_in_url(&a, id)).collect();
    probes.extend(ids.into_iter().flat_map(|id| with_id_in_body(&a, id)));
    probes.extend(with_names(&a, &b));
    probes.extend(with_tokens(&a, &b, &tokens));
    probes.extend(lists());

    let others = [&a.read_key, &a.logger_key, &a.other_logger_key];
    let requests = probes.iter().flat_map(|probe| {
        let others = others.into_iter().filter(|_| probe.is_for_all_keys);
        [&a.full_key].into_iter().chain(others).map(move |key| (probe, key))
    });
    let requests: Vec<_> = requests.collect();
    let marks = &marks(&b);
    let responses = stream::iter(requests).map(async |(probe, key)| {
        let response = answered(stack, &probe.call, key).await?;
        let Probe { sent, .. } = probe;
        ensure!(response.status < 500, "{sent}: {response}");
        let all = format!("{response} {:?}", response.headers);
        for (what, mark) in marks.iter().filter(|(_, mark)| !sent.contains(mark)) {
            ensure!(!all.contains(mark), "{sent}: the response has the marker of {what}: {all}");
        }
        Ok((sent, response.status))
    });
    let seen: Vec<_> = responses.buffer_unordered(CONCURRENCY).try_collect().await?;
    // A's own lists have responses, so the requests were not all refused.
    ensure!(seen.iter().any(|(sent, status)| *sent == "/sites?limit=100" && *status == 200));
    for (path, parameter) in LISTS {
        let own = format!("{}&{parameter}=", list_of(&a, path));
        let with_token = seen.iter().filter(|(sent, _)| sent.starts_with(&own));
        for (sent, status) in with_token {
            ensure!(*status >= 400, "a page token of another operator was accepted: {sent}");
        }
    }
    // B's site, key and operator are as before.
    wait_for_marks(stack, &b).await?;
    let site = accepted(stack, &b, Call::get(format!("/sites/{}", b.site)), 200).await?;
    ensure!(site.body["status"] == "ACTIVE", "{site}");
    Ok(())
}
