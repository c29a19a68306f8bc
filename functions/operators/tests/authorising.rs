//! Tests of the authorizer: who is accepted, and that every bad credential is refused in the same way.

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_secretsmanager::Client;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{OperatorId, Plan, Scope, SiteId, Timestamp, operators::KeyId};
use jsonwebtoken::{Algorithm, EncodingKey, Header, crypto, encode, jwk::Jwk};
use keys::{ApiKey, Kind, SharedSecret};
use lambda::{Step, http::Caller};
use operators::{
    KeyRow, OperatorsError,
    authorise_caller::{AuthoriseCaller, CachedOperators, bootstrap_secret},
    issuer::Issuer,
};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
};
use secret::Source;
use serde_json::{Value, json};
use store::{Commit, Table, Transaction};
use support::{admin, new_key, operator, post_key};
use testkit::{
    Dynamo,
    dynamo::{KEYS, OPERATORS},
    golden,
    http::Stub,
    issuer::{self, KeySet},
    measured::measured,
    sample::{self, caller, noon},
};

const SECRET: &str = "0123456789012345678901234567890123456789";
const AUDIENCE: &str = "fieldstation";
/// The length of the PKCS#8 header before the PKCS#1 key, for an RSA key of 2048 bits.
const PKCS8_HEADER: usize = 26;

fn step(dynamo: &Dynamo, issuer: Option<Issuer>) -> AuthoriseCaller {
    AuthoriseCaller {
        keys: dynamo.table(KEYS),
        operators: dynamo.table(OPERATORS),
        bootstrap: bootstrap_secret(Source::Fixed(SharedSecret::new(&format!("fsb_{SECRET}")))),
        issuer,
        cached_operators: CachedOperators::default(),
    }
}

/// Returns the request with these values of the header `Authorization`.
fn request(values: &[&str]) -> Value {
    let mut event = sample::event("authorise-caller");
    event["headers"]["Authorization"] = values.last().copied().into();
    event["multiValueHeaders"]["Authorization"] = json!(values);
    if values.is_empty() {
        for headers in ["headers", "multiValueHeaders"] {
            event[headers].as_object_mut().expect("headers").remove("Authorization");
        }
    }
    event
}

/// Returns the decision about an event at a time.
async fn decide_at(
    step: &AuthoriseCaller,
    event: &Value,
    now: Timestamp,
) -> Result<Value, OperatorsError> {
    let command = serde_json::from_value(event.clone()).expect("a request");
    let reply = step.run(command, now).await?;
    Ok(serde_json::to_value(reply).expect("JSON"))
}

async fn decide(step: &AuthoriseCaller, event: &Value) -> Result<Value, OperatorsError> {
    decide_at(step, event, noon(0)).await
}

/// Returns the reply at a time. The function must not fail.
async fn reply_at(step: &AuthoriseCaller, values: &[&str], now: Timestamp) -> Value {
    decide_at(step, &request(values), now).await.expect("a decision")
}

/// The reply to every bad credential.
const REFUSED: &str = include_str!("goldens/authorise-caller.refused.json");

/// Asserts that the credential is refused like every other one.
async fn assert_refused_at(step: &AuthoriseCaller, values: &[&str], now: Timestamp) {
    let expected: Value = serde_json::from_str(REFUSED).expect("a golden file");
    assert_eq!(reply_at(step, values, now).await, expected);
}

async fn assert_refused(step: &AuthoriseCaller, credential: &str) {
    assert_refused_at(step, &[&format!("Bearer {credential}")], noon(0)).await;
}

/// Returns the caller that the functions get, at a time.
async fn accepted_at(step: &AuthoriseCaller, credential: &str, now: Timestamp) -> Caller {
    let reply = reply_at(step, &[&format!("Bearer {credential}")], now).await;
    let statement = &reply["policyDocument"]["Statement"][0];
    assert_eq!(statement["Effect"], "Allow", "{reply}");
    assert_eq!(statement["Resource"], "arn:aws:execute-api:eu-central-1:123456789012:example/v1/*");
    let request = json!({
        "httpMethod": "GET",
        "headers": {},
        "multiValueHeaders": {},
        "requestContext": { "httpMethod": "GET", "authorizer": reply["context"] },
    });
    let request = serde_json::from_value(request).expect("a request");
    Caller::from_request(&request).expect("a caller")
}

async fn accepted(step: &AuthoriseCaller, credential: &str) -> Caller {
    accepted_at(step, credential, noon(0)).await
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn calls(dynamo: &Dynamo) -> BTreeMap<String, u32> {
    dynamo.take_usage().calls
}

fn one_read() -> BTreeMap<String, u32> {
    BTreeMap::from([("GetItem".to_owned(), 1)])
}

fn day(days: i64) -> Timestamp {
    noon(days * 86_400)
}

// ---- Keys

#[tokio::test]
async fn a_key_identifies_its_operator_and_scope_with_one_read() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let site = SiteId::registered(own, "", "alamosa");
    let step = step(&dynamo, None);
    for scope in [Scope::Admin, Scope::Operator, Scope::Logger(site), Scope::Read] {
        let body = json!({ "name": "A", "scope": scope, "operatorId": own });
        let key = new_key(&dynamo, &admin(), &scope.to_string(), &body).await;
        let credential = text(&key["key"]);
        let actor = format!("key:{}", text(&key["prefix"]));
        let expected = Caller { operator: own, scope, actor, plan: Plan::Standard };
        assert_eq!(accepted(&step, credential).await, expected);
        drop(calls(&dynamo));
        assert_eq!(accepted(&step, credential).await, expected);
        assert_eq!(calls(&dynamo), one_read());
        // Scheme names are case-insensitive.
        let reply = reply_at(&step, &[&format!("bearer {credential}")], noon(0)).await;
        assert_eq!(reply["context"]["scope"], json!(scope));
    }
}

#[tokio::test]
async fn the_default_operator_has_the_largest_plan() {
    let dynamo = Dynamo::start().await;
    let body = json!({ "name": "A", "scope": "operator" });
    let key = new_key(&dynamo, &admin(), "a", &body).await;
    let caller = accepted(&step(&dynamo, None), text(&key["key"])).await;
    assert_eq!((caller.operator, caller.plan), (OperatorId::DEFAULT, Plan::Professional));
}

/// Stores keys of the operator that were used today, in batches. Returns them.
async fn many_keys(dynamo: &Dynamo, operator: OperatorId, count: usize) -> Vec<ApiKey> {
    let table = dynamo.table(KEYS);
    let keys: Vec<_> =
        (0..count).map(|_| ApiKey::generate(Kind::Read).expect("random numbers")).collect();
    for batch in keys.chunks(100) {
        let mut transaction = Transaction::on(&table);
        for key in batch {
            let key_id = KeyId::from_request(operator, key.visible_prefix());
            let row = KeyRow {
                key_id,
                operator_id: operator,
                name: "A".to_owned(),
                scope: Scope::Read,
                prefix: key.visible_prefix().to_owned(),
                created_at: noon(0),
                listed: format!("{}/{key_id}", noon(0)),
                expires_at: None,
                revoked_at: None,
                last_used_on: Some("2026-01-01".to_owned()),
            };
            transaction = transaction.create(&table, &KeyRow::key(&key.hash()), &row);
        }
        assert!(matches!(transaction.commit().await, Ok(Commit::Done)));
    }
    keys
}

#[tokio::test]
async fn with_ten_thousand_keys_each_check_is_one_read() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let step = step(&dynamo, None);
    let keys = many_keys(&dynamo, own, 10_000).await;
    drop(calls(&dynamo));
    let some: Vec<_> = keys.iter().step_by(100).collect();
    for key in &some {
        accepted(&step, key.reveal()).await;
    }
    // In addition to a read for each check, the operator is read once in a minute.
    assert_eq!(calls(&dynamo), BTreeMap::from([("GetItem".to_owned(), 101)]));
    for key in &some {
        accepted(&step, key.reveal()).await;
    }
    assert_eq!(calls(&dynamo), BTreeMap::from([("GetItem".to_owned(), 100)]));
    advance(Duration::from_mins(1)).await;
    for key in &some {
        accepted(&step, key.reveal()).await;
    }
    assert_eq!(calls(&dynamo), BTreeMap::from([("GetItem".to_owned(), 101)]));
    let unknown = ApiKey::generate(Kind::Read).expect("a key");
    assert_refused(&step, unknown.reveal()).await;
    assert_eq!(calls(&dynamo), one_read());
}

#[tokio::test]
async fn an_accepted_key_matches_the_golden_file() {
    let dynamo = Dynamo::start().await;
    let body = json!({ "name": "A", "scope": "operator" });
    let key = new_key(&dynamo, &admin(), "a", &body).await;
    let step = step(&dynamo, None);
    let reply = reply_at(&step, &[&format!("Bearer {}", text(&key["key"]))], noon(0)).await;
    let shown = reply.to_string().replace(text(&key["prefix"]), "<prefix>");
    let shown = serde_json::from_str(&shown).expect("JSON");
    golden::check(env!("CARGO_MANIFEST_DIR"), "authorise-caller.accepted", &shown);
}

#[tokio::test]
async fn every_bad_credential_gets_the_same_refusal_without_a_read() {
    let dynamo = Dynamo::start().await;
    let key = new_key(&dynamo, &admin(), "a", &json!({ "name": "A", "scope": "read" })).await;
    let key = text(&key["key"]);
    let step = step(&dynamo, None);
    let valid = format!("Bearer {key}");
    let typo = format!("Bearer {}{}", &key[..39], if key.ends_with('0') { '1' } else { '0' });
    drop(calls(&dynamo));
    for (values, reason) in [
        (&[][..], "Missing"),
        (&[valid.as_str(), valid.as_str()], "Several"),
        (&[""], "Malformed"),
        (&["Bearer"], "Malformed"),
        (&["Basic dXNlcjpwYXNz"], "Malformed"),
        (&[key], "Malformed"),
        (&[&typo], "WrongChecksum"),
        (&[&valid[..valid.len() - 1]], "Malformed"),
        (&[&format!("{valid}, {valid}")], "Malformed"),
        (&[&format!("Bearer {}", "x".repeat(10_000))], "TooLong"),
        (&["Bearer fsa_"], "Malformed"),
        (&["Bearer fsb_"], "WrongSecret"),
        (&["Bearer a.b.c"], "TokensNotAccepted"),
        (&["Bearer \u{1b}[2J"], "Malformed"),
    ] {
        let ((), metrics) = measured(assert_refused_at(&step, values, noon(0))).await;
        let expected = BTreeMap::from([(format!("CredentialsRefused reason={reason}"), 1.0)]);
        assert_eq!(metrics, expected, "{values:?}");
    }
    assert!(calls(&dynamo).is_empty(), "a malformed credential is refused without a read");
    // An HTTP/2 client sends the name in lower case. A request with both spellings has two values.
    let mut event = request(&[&valid]);
    event["multiValueHeaders"]["authorization"] = json!([valid]);
    let reply = decide(&step, &event).await.expect("a decision");
    assert_eq!(reply["policyDocument"]["Statement"][0]["Effect"], "Deny");
    event["multiValueHeaders"] = Value::Null;
    let reply = decide(&step, &event).await.expect("a decision");
    assert_eq!(reply["policyDocument"]["Statement"][0]["Effect"], "Deny");
    // The same key is accepted.
    accepted(&step, key).await;
}

#[tokio::test]
async fn an_unknown_expired_or_revoked_key_is_refused() {
    let dynamo = Dynamo::start().await;
    let step = step(&dynamo, None);
    // A key of another environment has a valid checksum.
    let unknown = ApiKey::generate(Kind::Admin).expect("a key");
    assert_refused(&step, unknown.reveal()).await;

    let body = json!({ "name": "A", "scope": "read", "expiresInDays": 1 });
    let key = new_key(&dynamo, &admin(), "expiring", &body).await;
    let credential = text(&key["key"]);
    accepted_at(&step, credential, day(1).plus_millis(-1)).await;
    assert_refused_at(&step, &[&format!("Bearer {credential}")], day(1)).await;

    let key = new_key(&dynamo, &admin(), "b", &json!({ "name": "A", "scope": "read" })).await;
    let credential = text(&key["key"]);
    accepted(&step, credential).await;
    let revoke = support::revoke_key(&dynamo);
    let request = support::with_path("revoke-key", "keyId", text(&key["keyId"]));
    revoke.handle(&admin(), &request, noon(0)).await.expect("revoked");
    assert_refused(&step, credential).await;
}

#[tokio::test]
async fn a_rotated_key_is_accepted_until_the_overlap_ends() {
    let dynamo = Dynamo::start().await;
    let step = step(&dynamo, None);
    let old = new_key(&dynamo, &admin(), "old", &json!({ "name": "A", "scope": "read" })).await;
    let body = json!({
        "name": "A", "scope": "read", "replaces": old["keyId"], "overlapSeconds": 60,
    });
    let new = post_key(&dynamo, &admin(), "new", &body, noon(0)).await;
    accepted_at(&step, text(&old["key"]), noon(59)).await;
    accepted_at(&step, text(&new["body"]["key"]), noon(0)).await;
    assert_refused_at(&step, &[&format!("Bearer {}", text(&old["key"]))], noon(60)).await;
    accepted_at(&step, text(&new["body"]["key"]), noon(60)).await;
}

#[tokio::test]
async fn a_change_of_an_operator_counts_for_its_existing_keys_after_a_minute() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let step = step(&dynamo, None);
    let key = async |name: &str| {
        let body = json!({ "name": name, "scope": "read", "operatorId": own });
        text(&new_key(&dynamo, &admin(), name, &body).await["key"]).to_owned()
    };
    let (used, unused) = (key("used").await, key("unused").await);
    assert_eq!(accepted(&step, &used).await.plan, Plan::Standard);
    let change = async |change: Value| {
        let request = support::patch_operator(&own.to_string(), &change.to_string());
        let step = support::update_operator(&dynamo);
        step.handle(&admin(), &request, noon(0)).await.expect("changed");
    };
    change(json!({ "plan": "professional" })).await;
    assert_eq!(accepted(&step, &used).await.plan, Plan::Standard);
    advance(Duration::from_mins(1)).await;
    for key in [&used, &unused] {
        assert_eq!(accepted(&step, key).await.plan, Plan::Professional);
    }
    change(json!({ "status": "SUSPENDED" })).await;
    accepted(&step, &used).await;
    advance(Duration::from_mins(1)).await;
    for key in [&used, &unused] {
        assert_refused(&step, key).await;
    }
    change(json!({ "status": "ACTIVE" })).await;
    advance(Duration::from_mins(1)).await;
    for key in [&used, &unused] {
        accepted(&step, key).await;
    }
}

#[tokio::test]
async fn the_keys_of_an_operator_without_a_row_are_refused() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let body = json!({ "name": "A", "scope": "read", "operatorId": own });
    let key = new_key(&dynamo, &admin(), "a", &body).await;
    let empty = Dynamo::start().await;
    let step = AuthoriseCaller { operators: empty.table(OPERATORS), ..step(&dynamo, None) };
    assert_refused(&step, text(&key["key"])).await;
}

#[tokio::test]
async fn the_last_use_is_written_once_a_day() {
    let dynamo = Dynamo::start().await;
    let step = step(&dynamo, None);
    let key = new_key(&dynamo, &admin(), "a", &json!({ "name": "A", "scope": "read" })).await;
    let credential = text(&key["key"]);
    let hash = ApiKey::parse(credential).expect("a key").hash();
    let last_use = async || {
        dynamo.row(KEYS, &hash).await.expect("the row")["lastUsedOn"].as_str().map(str::to_owned)
    };
    drop(calls(&dynamo));
    for (now, written, expected) in [
        (noon(0), true, "2026-01-01"),
        (noon(5), false, "2026-01-01"),
        (day(1), true, "2026-01-02"),
        (day(1), false, "2026-01-02"),
        // A slow clock does not move the day back.
        (noon(9), false, "2026-01-02"),
    ] {
        accepted_at(&step, credential, now).await;
        let usage = dynamo.take_usage();
        assert_eq!(usage.calls.contains_key("UpdateItem"), written, "{now}");
        // The row, and its copy in the index byOperator. The cost model (tools/cost) has the same number.
        let expected_units = if written { 2.0 } else { 0.0 };
        assert!((usage.write_units - expected_units).abs() < f64::EPSILON, "{usage:?}");
        assert_eq!(last_use().await.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn a_failed_write_of_the_last_use_does_not_refuse_the_caller() {
    let dynamo = Dynamo::start().await;
    let key = new_key(&dynamo, &admin(), "a", &json!({ "name": "A", "scope": "read" })).await;
    let hash = ApiKey::parse(text(&key["key"])).expect("a key").hash();
    let row = dynamo.row(KEYS, &hash).await.expect("the row");
    let item = json!({
        "id": { "S": hash },
        "keyId": { "S": row["keyId"] },
        "operatorId": { "S": row["operatorId"] },
        // An earlier version stored a copy of the operator's state.
        "operator": { "M": { "status": { "S": "SUSPENDED" }, "plan": { "S": "standard" } } },
        "name": { "S": "A" },
        "scope": { "S": "read" },
        "prefix": { "S": row["prefix"] },
        "createdAt": { "S": row["createdAt"] },
        "listed": { "S": row["listed"] },
    });
    let stub = Stub::start(move |call| match call.operation() {
        "GetItem" => (200, json!({ "Item": item })),
        _ => (400, json!({ "__type": "ProvisionedThroughputExceededException" })),
    })
    .await;
    let client = aws_sdk_dynamodb::Client::new(&stub.config());
    let step = AuthoriseCaller { keys: Table::new(client, "keys"), ..step(&dynamo, None) };
    assert_eq!(accepted(&step, text(&key["key"])).await.scope, Scope::Read);
    let operations: Vec<_> =
        stub.take_calls().iter().map(|call| call.operation().to_owned()).collect();
    assert_eq!(operations, ["GetItem", "UpdateItem"]);
}

#[tokio::test]
async fn an_error_of_the_table_is_an_error_and_no_refusal() {
    let dynamo = Dynamo::start().await;
    let stub =
        Stub::start(|_| (400, json!({ "__type": "ProvisionedThroughputExceededException" }))).await;
    let client = aws_sdk_dynamodb::Client::new(&stub.config());
    let step = AuthoriseCaller { keys: Table::new(client, "keys"), ..step(&dynamo, None) };
    let key = ApiKey::generate(Kind::Read).expect("a key");
    let event = request(&[&format!("Bearer {}", key.reveal())]);
    let error = decide(&step, &event).await.expect_err("no decision");
    assert!(!error.to_string().contains(&key.reveal()[12..]), "{error}");
    let mut event = event;
    event["methodArn"] = "x".into();
    decide(&step, &event).await.expect_err("no policy is possible");
}

// ---- The first administrator's secret

#[tokio::test]
async fn the_first_administrators_secret_is_accepted_without_a_read() {
    let dynamo = Dynamo::start().await;
    let step = step(&dynamo, None);
    let expected = support::bootstrap();
    assert_eq!(accepted(&step, &format!("fsb_{SECRET}")).await, expected);
    for wrong in [&SECRET[1..], "", &format!("{SECRET}0"), "fsb_"] {
        assert_refused(&step, &format!("fsb_{wrong}")).await;
    }
    assert_refused(&step, SECRET).await;
    assert!(calls(&dynamo).is_empty());
}

#[tokio::test]
async fn a_new_secret_counts_within_minutes() {
    let dynamo = Dynamo::start().await;
    let current = Arc::new(Mutex::new(SECRET.to_owned()));
    let served = Arc::clone(&current);
    let stub = Stub::start(move |_| match served.lock().expect("a text").as_str() {
        "" => (400, json!({ "__type": "DecryptionFailure", "message": "no" })),
        text => (200, json!({ "ARN": "arn", "Name": "name", "SecretString": text })),
    })
    .await;
    let source =
        Source::SecretsManager { secrets: Client::new(&stub.config()), id: "arn".to_owned() };
    let step = AuthoriseCaller { bootstrap: bootstrap_secret(source), ..step(&dynamo, None) };
    let other = "z".repeat(40);
    accepted(&step, &format!("fsb_{SECRET}")).await;
    current.lock().expect("a text").clone_from(&other);
    accepted(&step, &format!("fsb_{SECRET}")).await;
    advance(Duration::from_mins(2)).await;
    assert_refused(&step, &format!("fsb_{SECRET}")).await;
    accepted(&step, &format!("fsb_{other}")).await;
    // A secret that can't be read, or is too short to be one, is an error.
    for broken in ["", "short"] {
        broken.clone_into(&mut current.lock().expect("a text"));
        advance(Duration::from_mins(2)).await;
        let event = request(&["Bearer fsb_short"]);
        decide(&step, &event).await.expect_err("no decision");
    }
}

/// Advances the time. The clock is paused only here, because it must run during calls.
async fn advance(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

// ---- Tokens

/// The key of an issuer: it signs tokens, and its public part is in the key set.
struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    pair: KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        Self {
            id,
            algorithm: Algorithm::ES256,
            pair: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key"),
        }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key_raw();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (curve, size) = match self.algorithm {
            Algorithm::EdDSA => {
                return json!({
                    "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": part(point), "alg": "EdDSA",
                });
            }
            Algorithm::ES384 => ("P-384", 48),
            Algorithm::RS256 => {
                let key = EncodingKey::from_rsa_der(&self.pair.serialize_der()[PKCS8_HEADER..]);
                let jwk = Jwk::from_encoding_key(&key, self.algorithm).expect("a key");
                let mut jwk = serde_json::to_value(jwk).expect("JSON");
                jwk["kid"] = self.id.into();
                return jwk;
            }
            _ => ("P-256", 32),
        };
        let (x, y) = (&point[1..=size], &point[size + 1..]);
        json!({ "kty": "EC", "crv": curve, "kid": self.id, "use": "sig", "x": part(x), "y": part(y) })
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        encode(&header, claims, &self.key()).expect("a token")
    }

    /// Returns a token with any header, also one that no library makes. The signature is valid.
    fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", part(header), part(claims));
        let signature = crypto::sign(message.as_bytes(), &self.key(), self.algorithm);
        format!("{message}.{}", signature.expect("a signature"))
    }

    fn key(&self) -> EncodingKey {
        let der = self.pair.serialize_der();
        match self.algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
            Algorithm::RS256 => EncodingKey::from_rsa_der(&der[PKCS8_HEADER..]),
            _ => EncodingKey::from_ec_der(&der),
        }
    }
}

/// Returns the part of a token with this JSON.
fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A fake of an issuer. Its key set can be changed. Without one, it answers with status 500.
struct FakeIssuer {
    stub: Stub,
    keys: KeySet,
}

impl FakeIssuer {
    async fn start(keys: Vec<Value>) -> Self {
        let keys = Arc::new(Mutex::new(Some(keys)));
        let stub = issuer::serve(Arc::clone(&keys)).await;
        Self { stub, keys }
    }

    fn issuer(&self) -> Issuer {
        Issuer::new(&self.stub.url(), AUDIENCE).expect("an issuer")
    }

    fn set(&self, keys: Option<Vec<Value>>) {
        *self.keys.lock().expect("keys") = keys;
    }

    /// Returns the number of reads of the key set since the last call.
    fn reads(&self) -> usize {
        self.stub.take_calls().iter().filter(|call| call.path == "/keys").count()
    }

    /// Returns the number of attempts to read the configuration, and with it the key set, since the last call.
    fn attempts(&self) -> usize {
        let calls = self.stub.take_calls();
        calls.iter().filter(|call| call.path.starts_with("/.well-known/")).count()
    }

    /// Returns valid claims for this operator.
    fn claims(&self, operator: OperatorId) -> Value {
        let now = Timestamp::now().seconds();
        json!({
            "iss": self.stub.url(),
            "aud": AUDIENCE,
            "sub": "auth0|ada",
            "exp": now + 300,
            "nbf": now - 5,
            "fieldstation_operator": operator,
            "fieldstation_scope": "operator",
        })
    }
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    claims.as_object_mut().expect("claims").remove(name);
    claims
}

#[tokio::test]
async fn a_token_identifies_its_operator_and_scope() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    drop(calls(&dynamo));
    let claims = fake.claims(own);
    let actor = "jwt:auth0|ada".to_owned();
    let expected = Caller { operator: own, scope: Scope::Operator, actor, plan: Plan::Standard };
    assert_eq!(accepted(&step, &signer.sign(&claims)).await, expected);
    for (scope, expected) in
        [("read", Scope::Read), ("admin", Scope::Admin), ("operator", Scope::Operator)]
    {
        let token = signer.sign(&with(&claims, "fieldstation_scope", scope.into()));
        assert_eq!(accepted(&step, &token).await.scope, expected);
    }
    let token = signer.sign(&without(&claims, "fieldstation_scope"));
    assert_eq!(accepted(&step, &token).await.scope, Scope::Read);
    let token = signer.sign(&with(&claims, "aud", json!(["other", AUDIENCE])));
    accepted(&step, &token).await;
    let token = signer.sign(&with(&claims, "sub", "a\u{1b}ü".into()));
    assert_eq!(accepted(&step, &token).await.actor, "jwt:a??");
    // The state of the operator and the key set are cached.
    assert_eq!(calls(&dynamo), one_read());
    assert_eq!(fake.reads(), 1);
    // The default operator needs no row.
    let token = signer.sign(&fake.claims(OperatorId::DEFAULT));
    assert_eq!(accepted(&step, &token).await.operator, OperatorId::DEFAULT);
    assert!(calls(&dynamo).is_empty());
}

#[tokio::test]
async fn tokens_of_each_kind_of_key_are_verified() {
    let dynamo = Dynamo::start().await;
    let signer = |id, algorithm, of| Signer {
        id,
        algorithm,
        pair: KeyPair::generate_for(of).expect("a key"),
    };
    let signers = [
        Signer::new("p256"),
        signer("p384", Algorithm::ES384, &PKCS_ECDSA_P384_SHA384),
        signer("ed25519", Algorithm::EdDSA, &PKCS_ED25519),
        signer("rsa", Algorithm::RS256, &PKCS_RSA_SHA256),
    ];
    let fake = FakeIssuer::start(signers.iter().map(Signer::jwk).collect()).await;
    let step = step(&dynamo, Some(fake.issuer()));
    for signer in signers {
        accepted(&step, &signer.sign(&fake.claims(OperatorId::DEFAULT))).await;
    }
}

#[tokio::test]
async fn a_token_with_a_wrong_claim_is_refused() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let claims = fake.claims(OperatorId::DEFAULT);
    let now = Timestamp::now().seconds();
    accepted(&step, &signer.sign(&claims)).await;
    for (name, wrong) in [
        ("aud", json!("another")),
        ("aud", json!(["another"])),
        ("aud", json!(7)),
        ("iss", json!("https://other.example")),
        ("exp", json!(now - 120)),
        ("exp", json!("tomorrow")),
        ("exp", Value::Null),
        ("nbf", json!(now + 120)),
        ("nbf", json!("yesterday")),
        ("sub", json!(7)),
        ("fieldstation_operator", json!(OperatorId::registered("unknown"))),
        ("fieldstation_operator", json!("default")),
        ("fieldstation_operator", json!([OperatorId::DEFAULT])),
        ("fieldstation_scope", json!("bootstrap")),
        ("fieldstation_scope", json!("root")),
        ("fieldstation_scope", json!(["admin"])),
        ("fieldstation_scope", json!(format!("logger:{}", OperatorId::DEFAULT))),
    ] {
        let token = signer.sign(&with(&claims, name, wrong.clone()));
        let reply = reply_at(&step, &[&format!("Bearer {token}")], noon(0)).await;
        let effect = &reply["policyDocument"]["Statement"][0]["Effect"];
        assert_eq!(effect, "Deny", "{name}: {wrong}");
        assert_refused(&step, &token).await;
    }
    for name in ["aud", "iss", "exp", "sub", "fieldstation_operator"] {
        assert_refused(&step, &signer.sign(&without(&claims, name))).await;
    }
    // A difference of half a minute between the clocks is accepted.
    accepted(&step, &signer.sign(&with(&claims, "exp", json!(now - 30)))).await;
    accepted(&step, &signer.sign(&with(&claims, "nbf", json!(now + 30)))).await;
    accepted(&step, &signer.sign(&without(&claims, "nbf"))).await;
}

#[tokio::test]
async fn a_token_with_a_forged_signature_is_refused() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let claims = fake.claims(OperatorId::DEFAULT);
    for algorithm in ["none", "None", "nOnE"] {
        for signature in ["", "c2ln"] {
            let header = part(&json!({ "alg": algorithm, "typ": "JWT", "kid": "one" }));
            assert_refused(&step, &format!("{header}.{}.{signature}", part(&claims))).await;
        }
    }
    // The public key as the secret of an HMAC, in each form that a verifier may take it.
    let x = signer.jwk()["x"].as_str().expect("a number").to_owned();
    for secret in
        [signer.pair.public_key_raw(), signer.pair.public_key_pem().as_bytes(), x.as_bytes()]
    {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let mut header = Header::new(algorithm);
            header.kid = Some("one".to_owned());
            let key = EncodingKey::from_secret(secret).expect("a key");
            assert_refused(&step, &encode(&header, &claims, &key).expect("a token")).await;
        }
    }
    // Another key with the same id, and other claims with a valid signature.
    let forger = Signer::new("one");
    assert_refused(&step, &forger.sign(&claims)).await;
    let valid = signer.sign(&claims);
    let parts: Vec<_> = valid.split('.').collect();
    let raised = part(&with(&claims, "fieldstation_scope", "admin".into()));
    assert_refused(&step, &format!("{}.{raised}.{}", parts[0], parts[2])).await;
    assert_refused(&step, &format!("{}.{}.", parts[0], parts[1])).await;
    accepted(&step, &valid).await;
}

#[tokio::test]
async fn a_signed_token_with_a_wrong_header_is_refused() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let claims = fake.claims(OperatorId::DEFAULT);
    let header = json!({ "alg": "ES256", "kid": "one" });
    accepted(&step, &signer.sign_with(&header, &claims)).await;
    accepted(&step, &signer.sign_with(&with(&header, "x", json!(1)), &claims)).await;
    for wrong in [
        // A critical header must be understood, and a list of critical headers is not empty (RFC 7515).
        json!({ "alg": "ES256", "kid": "one", "crit": ["x"], "x": 1 }),
        json!({ "alg": "ES256", "kid": "one", "crit": [] }),
        // The key id is required.
        json!({ "alg": "ES256" }),
        json!({ "alg": "ES256", "kid": 7 }),
        json!({ "alg": "ES256", "kid": "two" }),
        // The algorithm is that of the key.
        json!({ "alg": "RS256", "kid": "one" }),
        json!({ "alg": "HS256", "kid": "one" }),
        json!({ "alg": "none", "kid": "one" }),
    ] {
        assert_refused(&step, &signer.sign_with(&wrong, &claims)).await;
    }
}

#[tokio::test]
async fn symmetric_and_unusable_keys_of_the_set_are_skipped() {
    let dynamo = Dynamo::start().await;
    let secret = b"a secret of thirty-two characters";
    let signer = Signer::new("one");
    let mut for_encryption = Signer::new("encrypting").jwk();
    for_encryption["use"] = "enc".into();
    let mut other_algorithm = signer.jwk();
    other_algorithm["kid"] = "hmac".into();
    other_algorithm["alg"] = "HS256".into();
    let fake = FakeIssuer::start(vec![
        json!({ "kty": "oct", "kid": "shared", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(secret) }),
        json!({ "kty": "new", "kid": "future" }),
        json!("not a key"),
        for_encryption,
        other_algorithm,
        signer.jwk(),
    ])
    .await;
    let step = step(&dynamo, Some(fake.issuer()));
    let claims = fake.claims(OperatorId::DEFAULT);
    for id in ["shared", "future", "encrypting", "hmac"] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(id.to_owned());
        let key = EncodingKey::from_secret(secret).expect("a key");
        let token = encode(&header, &claims, &key).expect("a token");
        assert_refused(&step, &token).await;
    }
    accepted(&step, &signer.sign(&claims)).await;
}

#[tokio::test]
async fn a_new_key_of_the_issuer_is_found_and_unknown_ones_are_not_read_again_and_again() {
    let dynamo = Dynamo::start().await;
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let fake = FakeIssuer::start(vec![old.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let claims = fake.claims(OperatorId::DEFAULT);
    accepted(&step, &old.sign(&claims)).await;
    fake.set(Some(vec![old.jwk(), new.jwk()]));
    // The set was read a moment ago.
    for _ in 0..5 {
        assert_refused(&step, &new.sign(&claims)).await;
    }
    assert_eq!(fake.reads(), 1);
    advance(Duration::from_mins(1)).await;
    accepted(&step, &new.sign(&claims)).await;
    accepted(&step, &old.sign(&claims)).await;
    for _ in 0..5 {
        assert_refused(&step, &Signer::new("unknown").sign(&claims)).await;
    }
    assert_eq!(fake.reads(), 1);
    // A key that the issuer removes is refused when the set is old.
    fake.set(Some(vec![new.jwk()]));
    accepted(&step, &old.sign(&claims)).await;
    advance(Duration::from_mins(15)).await;
    assert_refused(&step, &old.sign(&claims)).await;
    assert_eq!(fake.reads(), 1);
}

#[tokio::test]
async fn an_unreachable_issuer_is_an_error_and_no_refusal() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let token = signer.sign(&fake.claims(OperatorId::DEFAULT));
    let event = request(&[&format!("Bearer {token}")]);
    fake.set(None);
    let error = decide(&step, &event).await.expect_err("no decision").to_string();
    assert!(error.starts_with("the key set of http://127.0.0.1:"), "{error}");
    assert!(!error.contains(&token), "{error}");
    fake.set(Some(vec![signer.jwk()]));
    advance(Duration::from_secs(1)).await;
    accepted(&step, &token).await;
    // Keys are accepted during an outage of the issuer.
    fake.set(None);
    let key = new_key(&dynamo, &admin(), "a", &json!({ "name": "A", "scope": "read" })).await;
    accepted(&step, text(&key["key"])).await;
}

#[tokio::test]
async fn the_cached_key_set_is_used_for_a_day_while_the_issuer_is_unreachable() {
    let dynamo = Dynamo::start().await;
    let (signer, other) = (Signer::new("one"), Signer::new("two"));
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    // The clock of the tests moves, but not the system's, which the claims are compared with.
    let claims = fake.claims(OperatorId::DEFAULT);
    let token = signer.sign(&claims);
    accepted(&step, &token).await;
    fake.set(None);
    assert_eq!(fake.attempts(), 1);
    // A set of less than 15 minutes is not read again.
    advance(Duration::from_mins(14)).await;
    accepted(&step, &token).await;
    assert_eq!(fake.attempts(), 0);
    advance(Duration::from_mins(1)).await;
    for _ in 0..5 {
        accepted(&step, &token).await;
    }
    assert_eq!(fake.attempts(), 1, "the next attempt waits");
    for seconds in [1, 2, 4] {
        advance(Duration::from_secs(seconds)).await;
        accepted(&step, &token).await;
        assert_eq!(fake.attempts(), 1, "{seconds}");
        accepted(&step, &token).await;
        assert_eq!(fake.attempts(), 0, "{seconds}");
    }
    // It is not known whether the issuer has this key now.
    let event = request(&[&format!("Bearer {}", other.sign(&claims))]);
    decide(&step, &event).await.expect_err("no decision");
    // When the issuer is back, its new key is found, and a key that it removed is refused.
    fake.set(Some(vec![other.jwk()]));
    advance(Duration::from_mins(1)).await;
    accepted(&step, &other.sign(&claims)).await;
    assert_refused(&step, &token).await;
    // After a day, nothing is known about any token.
    let event = request(&[&format!("Bearer {}", other.sign(&claims))]);
    fake.set(None);
    advance(Duration::from_hours(24).saturating_sub(Duration::from_mins(1))).await;
    accepted(&step, &other.sign(&claims)).await;
    advance(Duration::from_mins(1)).await;
    decide(&step, &event).await.expect_err("no decision");
}

#[tokio::test]
async fn without_a_key_set_the_attempts_to_read_it_wait() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let token = signer.sign(&fake.claims(OperatorId::DEFAULT));
    let event = request(&[&format!("Bearer {token}")]);
    fake.set(None);
    for _ in 0..5 {
        decide(&step, &event).await.expect_err("no decision");
    }
    assert_eq!(fake.attempts(), 1);
    fake.set(Some(vec![signer.jwk()]));
    decide(&step, &event).await.expect_err("the next attempt waits");
    assert_eq!(fake.attempts(), 0);
    advance(Duration::from_secs(1)).await;
    accepted(&step, &token).await;
}

#[tokio::test]
async fn unknown_key_ids_cause_an_attempt_a_minute_while_the_issuer_is_unreachable() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let claims = fake.claims(OperatorId::DEFAULT);
    let token = signer.sign(&claims);
    accepted(&step, &token).await;
    fake.set(None);
    assert_eq!(fake.attempts(), 1);
    let event = request(&[&format!("Bearer {}", Signer::new("unknown").sign(&claims))]);
    for seconds in [60, 30, 29] {
        advance(Duration::from_secs(seconds)).await;
        decide(&step, &event).await.expect_err("no decision");
        accepted(&step, &token).await;
    }
    assert_eq!(fake.attempts(), 1);
    advance(Duration::from_secs(1)).await;
    decide(&step, &event).await.expect_err("no decision");
    assert_eq!(fake.attempts(), 1);
}

#[tokio::test]
async fn an_issuer_that_names_another_one_or_an_insecure_key_set_is_not_trusted() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    for (issuer, key_set) in
        [("https://other.example", "/keys"), ("<own>", "http://other.example/keys")]
    {
        let address = Arc::new(Mutex::new(String::new()));
        let own = Arc::clone(&address);
        let stub = Stub::start(move |_| {
            let url = own.lock().expect("a URL").clone();
            let key_set = if key_set.starts_with('/') {
                format!("{url}{key_set}")
            } else {
                key_set.to_owned()
            };
            (
                200,
                json!({ "issuer": issuer.replace("<own>", &url), "jwks_uri": key_set, "keys": [] }),
            )
        })
        .await;
        stub.url().clone_into(&mut address.lock().expect("a URL"));
        let issuer = Issuer::new(&stub.url(), AUDIENCE).expect("an issuer");
        let step = step(&dynamo, Some(issuer));
        let event =
            request(&[&format!("Bearer {}", signer.sign(&fake.claims(OperatorId::DEFAULT)))]);
        decide(&step, &event).await.expect_err("no decision");
        assert_eq!(stub.take_calls().len(), 1, "only the configuration is read");
    }
    Issuer::new("http://issuer.example", AUDIENCE).expect_err("plain HTTP");
}

#[tokio::test]
async fn without_an_issuer_tokens_are_refused() {
    let dynamo = Dynamo::start().await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let token = signer.sign(&fake.claims(OperatorId::DEFAULT));
    assert_refused(&step(&dynamo, None), &token).await;
    assert_eq!(fake.reads(), 0);
}

#[tokio::test]
async fn the_tokens_of_a_suspended_operator_are_refused_after_a_minute() {
    let dynamo = Dynamo::start().await;
    let own = operator(&dynamo, "own").await;
    let signer = Signer::new("one");
    let fake = FakeIssuer::start(vec![signer.jwk()]).await;
    let step = step(&dynamo, Some(fake.issuer()));
    let token = signer.sign(&fake.claims(own));
    accepted(&step, &token).await;
    support::set_status(&dynamo, own, "SUSPENDED").await;
    accepted(&step, &token).await;
    advance(Duration::from_mins(1)).await;
    assert_refused(&step, &token).await;
    // It does not affect others.
    assert_eq!(caller(own, Scope::Read).operator, own);
    accepted(&step, &signer.sign(&fake.claims(OperatorId::DEFAULT))).await;
}
