//! A whole key in any position of a request: no log line, no row and no response has more of it than its visible prefix.

mod support;

use std::time::Duration;

use contracts::Timestamp;
use keys::{ApiKey, Kind, SharedSecret};
use lambda::{serve_http, serve_step};
use limits::Limits;
use operators::authorise_caller::{AuthoriseCaller, CachedOperators, bootstrap_secret};
use secret::Source;
use serde_json::{Value, json};
use store::Table;
use support::{admin, create_key, create_operator, new_key, patch_operator, post, update_operator};
use testkit::{
    Dynamo,
    dynamo::{KEYS, LIMITS, OPERATORS},
    http::Stub,
    logged::logged,
    runtime::run_function,
    sample::{self, noon},
};

const TIMEOUT: Duration = Duration::from_mins(1);
const MAP_PAIRS: [(&str, &str); 2] = [
    ("headers", "multiValueHeaders"),
    ("queryStringParameters", "multiValueQueryStringParameters"),
];

/// Asserts that the text has at most the visible prefix of the key.
fn assert_hidden(text: &str, key: &ApiKey) {
    let (whole, visible) = (key.reveal(), key.visible_prefix().len());
    assert!(!text.contains(&whole[..=visible]), "more than the prefix of {key:?}: {text}");
    // Eight characters are too many to be equal by chance.
    for start in visible..=whole.len() - 8 {
        assert!(!text.contains(&whole[start..start + 8]), "a part of {key:?}: {text}");
    }
}

/// Returns the event with a header or a query parameter.
fn with_parameter(event: &Value, (one, several): (&str, &str), name: &str, value: &str) -> Value {
    let mut event = event.clone();
    event[one][name] = value.into();
    event[several][name] = json!([value]);
    event
}

/// Returns five events. Each has the key in one place: as the value or the name of a header, as the value or the name
/// of a query parameter, or in the path.
fn with_key_around(event: &Value, key: &str) -> Vec<Value> {
    let mut events: Vec<_> = MAP_PAIRS
        .into_iter()
        .flat_map(|maps| [("X-Other", key), (key, "x")].map(|(name, value)| (maps, name, value)))
        .map(|(maps, name, value)| with_parameter(event, maps, name, value))
        .collect();
    let mut in_path = event.clone();
    in_path["path"] = format!("/keys/{key}").into();
    in_path["pathParameters"] = json!({ "keyId": key, "operatorId": key });
    in_path["requestContext"]["path"] = format!("/v1/keys/{key}").into();
    events.push(in_path);
    events
}

fn authoriser(dynamo: &Dynamo) -> AuthoriseCaller {
    let secret = SharedSecret::new("fsb_0123456789012345678901234567890123456789");
    AuthoriseCaller {
        keys: dynamo.table(KEYS),
        operators: dynamo.table(OPERATORS),
        bootstrap: bootstrap_secret(Source::Fixed(secret)),
        issuer: None,
        cached_operators: CachedOperators::default(),
    }
}

/// Returns requests to the authorizer with the key in every position.
fn requests_to_authorise(key: &ApiKey) -> Vec<Value> {
    let whole = key.reveal();
    let event = sample::event("authorise-caller");
    let authorization = |value: &str| with_parameter(&event, MAP_PAIRS[0], "Authorization", value);
    let mut requests: Vec<_> = [
        format!("Bearer {whole}"),
        whole.to_owned(),
        format!("Basic {whole}"),
        format!("Bearer {whole}, Bearer {whole}"),
        format!("Bearer {whole}0"),
        format!("Bearer {}", &whole[..39]),
        format!("Bearer fsb_{whole}"),
        format!("Bearer a.{whole}.b"),
    ]
    .iter()
    .map(|value| authorization(value))
    .collect();
    requests.extend(with_key_around(&authorization(&format!("Bearer {whole}")), whole));
    let mut twice = authorization(whole);
    twice["multiValueHeaders"]["authorization"] = json!([whole]);
    let method = event["methodArn"].as_str().expect("an ARN");
    let (mut in_method, mut no_method) = (authorization(whole), authorization(whole));
    in_method["methodArn"] = format!("{method}/{whole}").into();
    no_method["methodArn"] = whole.into();
    requests.extend([twice, in_method, no_method]);
    requests
}

#[tokio::test]
async fn the_authorizer_shows_only_the_prefix_of_a_key() {
    let dynamo = Dynamo::start().await;
    let body = json!({ "name": "A", "scope": "read" });
    let known = new_key(&dynamo, &admin(), "known", &body).await;
    let known = ApiKey::parse(known["key"].as_str().expect("a key")).expect("a key");
    let unknown = ApiKey::generate(Kind::Operator).expect("a key");
    let failing = Stub::start(|_| (400, json!({ "__type": "AccessDeniedException" }))).await;
    let failing = Table::new(aws_sdk_dynamodb::Client::new(&failing.config()), "keys");
    let accepted = format!("key:{}", known.visible_prefix());
    for (step, key, expected) in [
        (authoriser(&dynamo), &known, accepted.as_str()),
        (authoriser(&dynamo), &unknown, "UnknownKey"),
        (AuthoriseCaller { keys: failing, ..authoriser(&dynamo) }, &known, "AccessDenied"),
    ] {
        let requests = requests_to_authorise(key);
        let count = requests.len();
        let (received, lines) =
            logged(Box::pin(run_function(serve_step(step), TIMEOUT, requests))).await;
        let responses: Vec<_> = received.iter().map(|it| format!("{it:?}")).collect();
        let all = [lines.as_slice(), &responses].concat();
        for text in &all {
            assert_hidden(text, key);
        }
        // The lines were captured, and the key was read.
        assert_eq!(responses.len(), count);
        for expected in [expected, "Several", "Malformed", "WrongSecret", "TokensNotAccepted"] {
            assert!(all.iter().any(|text| text.contains(expected)), "{expected}: {all:?}");
        }
    }
}

/// Returns requests to create a key, each with the key in a position of its own.
fn requests_to_create_a_key(key: &str) -> Vec<Value> {
    let mut event = sample::event("create-key");
    let valid = json!({ "name": "A", "scope": "read" });
    event["body"] = valid.to_string().into();
    let with_header = |name: &str, value: &str| {
        let event = with_parameter(&event, MAP_PAIRS[0], "Idempotency-Key", value);
        with_parameter(&event, MAP_PAIRS[0], name, value)
    };
    let mut requests = with_key_around(&event, key);
    requests.extend([
        with_header("Authorization", &format!("Bearer {key}")),
        with_header("Content-Type", key),
        with_header("If-Match", key),
    ]);
    let with_field = |name: &str, value: &str| {
        let mut body = valid.clone();
        body[name] = value.into();
        body.to_string()
    };
    let mut bodies = vec![key.to_owned(), format!("\"{key}\""), format!("[\"{key}\"]")];
    bodies.extend(
        ["name", "scope", "replaces", "operatorId", "expiresInDays", "overlapSeconds", "other"]
            .map(|name| with_field(name, key)),
    );
    bodies.extend([
        with_field("name", &format!("the key {key} of the old logger")),
        with_field("scope", &format!("logger:{key}")),
        with_field(key, "x"),
    ]);
    requests.extend(bodies.into_iter().map(|body| {
        let mut event = event.clone();
        event["body"] = body.into();
        event
    }));
    requests
}

#[tokio::test]
async fn create_key_shows_and_stores_only_the_prefix_of_a_key_that_it_does_not_create() {
    let dynamo = Dynamo::start().await;
    let key = ApiKey::generate(Kind::Operator).expect("a key");
    let requests = requests_to_create_a_key(key.reveal());
    let count = requests.len();
    let step = create_key(&dynamo);
    let served = serve_http(Limits::new(dynamo.table(LIMITS)), async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    });
    let (received, lines) = logged(Box::pin(run_function(served, TIMEOUT, requests))).await;
    let rows = format!("{:?}", dynamo.all_rows().await);
    for text in lines.iter().chain([&rows]) {
        assert_hidden(text, &key);
    }
    let refused = lines.iter().filter(|line| line.contains("request refused")).count();
    let mut created = 0;
    for (_, response) in &received {
        assert_hidden(&response.to_string(), &key);
        if response["statusCode"] == 201 {
            created += 1;
            let body = response["body"].as_str().expect("a body");
            let body: Value = serde_json::from_str(body).expect("JSON");
            let new = ApiKey::parse(body["key"].as_str().expect("a key")).expect("a valid key");
            for text in lines.iter().chain([&rows]) {
                assert_hidden(text, &new);
            }
        }
    }
    // Three keys are created: one with the sample's Idempotency-Key, and two whose Idempotency-Key contains `key`.
    assert_eq!((created, received.len()), (3, count));
    assert_eq!(refused, count - created, "{lines:?}");
}

#[tokio::test]
async fn a_name_with_a_credential_is_refused() {
    let dynamo = Dynamo::start().await;
    let id = support::operator(&dynamo, "noaa").await.to_string();
    let before = dynamo.all_rows().await;
    let key = ApiKey::generate(Kind::Read).expect("a key");
    let name = format!("key {}", key.reveal());
    let registration = json!({ "name": name, "plan": "standard" }).to_string();
    let patch = patch_operator(&id, &json!({ "name": name }).to_string());
    let request = json!({ "name": name, "scope": "read" }).to_string();
    for sent in [
        create_operator(&dynamo)
            .handle(&admin(), &post("create-operator", Some("k"), &registration), noon(0))
            .await,
        update_operator(&dynamo).handle(&admin(), &patch, noon(0)).await,
        create_key(&dynamo)
            .handle(&admin(), &post("create-key", Some("k"), &request), noon(0))
            .await,
    ] {
        let sent = support::api_response(sent);
        assert_eq!(sent["statusCode"], 400, "{sent}");
        assert_eq!(sent["body"]["errors"][0]["field"], "name", "{sent}");
        assert_hidden(&sent.to_string(), &key);
    }
    assert_eq!(dynamo.all_rows().await, before);
}
