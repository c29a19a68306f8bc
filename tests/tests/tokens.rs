//! Tokens of an `OpenID` Connect issuer on the deployed stack: who is accepted as whom, and that a token with any flaw
//! is refused. The issuer is a server of this test. The function authorise-caller gets its address as its issuer, and
//! its own settings again at the end.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{Metric, OperatorId, Timestamp};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, PublicKeyUse},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::http::Stub;
use tests::{
    Stack,
    api::{Call, Response},
    sites::{DECLINED_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};
use uuid::Uuid;

use crate::faults::BrokenFunction;

const AUDIENCE: &str = "fieldstation-tests";
/// The length of the PKCS#8 header before the PKCS#1 key, for an RSA key of 2048 bits.
const PKCS8_HEADER: usize = 26;

fn unique() -> String {
    Uuid::new_v4().simple().to_string()
}

/// A key that signs tokens.
#[derive(Clone)]
struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    fn es256(id: &'static str) -> Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        Ok(Self { id, algorithm: Algorithm::ES256, key })
    }

    fn rs256(id: &'static str) -> Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let der = pair.serialize_der();
        let key = der.get(PKCS8_HEADER..).context("the key is too short")?;
        Ok(Self { id, algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(key) })
    }

    /// Returns the public key for the key set.
    fn jwk(&self) -> Result<Value> {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm)?;
        jwk.common.key_id = Some(self.id.to_owned());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(serde_json::to_value(jwk)?)
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        Ok(encode(&header, claims, &self.key)?)
    }
}

/// A server with the configuration and the key set of an issuer.
async fn serve(keys: Vec<Value>) -> Stub {
    // The configuration contains the address, which is known only after the start.
    let address = Arc::new(Mutex::new(String::new()));
    let served = Arc::clone(&address);
    let stub = Stub::start(move |call| {
        let url = served.lock().expect("no thread panics while it holds the lock").clone();
        match call.path.as_str() {
            "/.well-known/openid-configuration" => {
                (200, json!({ "issuer": url, "jwks_uri": format!("{url}/keys") }))
            }
            "/keys" => (200, json!({ "keys": keys })),
            _ => (404, json!({})),
        }
    })
    .await;
    *address.lock().expect("no thread panics while it holds the lock") = stub.url();
    stub
}

/// Returns valid claims of a token with this scope.
fn claims(issuer: &str, operator: &str, scope: &str) -> Value {
    let now = Timestamp::now().seconds();
    json!({
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "auth0|ada",
        "jti": unique(),
        "exp": now + 600,
        "nbf": now - 5,
        "fieldstation_operator": operator,
        "fieldstation_scope": scope,
    })
}

fn with(claims: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims.clone();
    claims[name] = value.into();
    claims
}

fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    if let Some(claims) = claims.as_object_mut() {
        claims.remove(name);
    }
    claims
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

async fn create_operator(stack: &Stack) -> Result<String> {
    let name = unique();
    let body = json!({ "name": name, "plan": "standard" });
    let call = Call::new(Method::POST, "/operators").key(&name).text(body.to_string());
    let created = stack.call(call).await?;
    let id = created.body["operatorId"].as_str();
    Ok(id.with_context(|| format!("no operator was created: {created}"))?.to_owned())
}

async fn get(stack: &Stack, path: &str, token: &str) -> Result<Response> {
    stack.call(Call::get(path).bearing(token)).await
}

/// Sends a registration without fields, which a caller that may register sites gets a 400 for.
async fn post_nothing(stack: &Stack, token: &str) -> Result<Response> {
    let call = Call::new(Method::POST, "/sites").key(&unique()).text("{}");
    stack.call(call.bearing(token)).await
}

#[tokio::test]
async fn tokens_of_the_issuer_are_accepted_and_tokens_with_a_flaw_are_refused() -> Result<()> {
    let stack = Stack::connect().await?;
    let (signer, rsa) = (Signer::es256("one")?, Signer::rs256("two")?);
    let issuer = serve(vec![signer.jwk()?, rsa.jwk()?]).await;
    let url = issuer.url();
    let own = create_operator(&stack).await?;
    let other = create_operator(&stack).await?;

    let settings = [("OIDC_ISSUER", url.as_str()), ("OIDC_AUDIENCE", AUDIENCE)];
    let changed = BrokenFunction::deploy_with(&stack, "authorise-caller", &settings).await?;
    changed
        .during(async || {
            scopes_are_those_of_the_claims(&stack, &signer, &rsa, &url, &own).await?;
            operators_see_only_their_sites(&stack, &signer, &url, [&own, &other]).await?;
            flawed_tokens_are_refused(&stack, &signer, &claims(&url, &own, "operator")).await
        })
        .await?;
    let key_set_reads = issuer.take_calls().iter().filter(|call| call.path == "/keys").count();
    // Each process of the function reads the key set once, and once more for an unknown key id after a minute.
    assert!((1..10).contains(&key_set_reads), "{key_set_reads} reads of the key set");

    // Without an issuer, the same claims are refused. The token is new, because API Gateway caches decisions.
    let token = signer.sign(&claims(&url, &own, "operator"))?;
    assert_eq!(get(&stack, "/sites", &token).await?.status, 401);
    Ok(())
}

/// Asserts that each scope allows what it allows a key, with the leeway for the issuer's clock.
async fn scopes_are_those_of_the_claims(
    stack: &Stack,
    signer: &Signer,
    rsa: &Signer,
    issuer: &str,
    own: &str,
) -> Result<()> {
    let now = Timestamp::now().seconds();
    let operator = claims(issuer, own, "operator");
    // The statuses of GET /sites, POST /sites with a wrong body, and GET /operators.
    for (what, token, expected) in [
        ("an operator", signer.sign(&operator)?, [200, 400, 403]),
        ("an operator, RS256", rsa.sign(&operator)?, [200, 400, 403]),
        ("a reader", signer.sign(&with(&operator, "fieldstation_scope", "read"))?, [200, 403, 403]),
        ("no scope", signer.sign(&without(&operator, "fieldstation_scope"))?, [200, 403, 403]),
        (
            "an administrator",
            signer.sign(&claims(issuer, &OperatorId::DEFAULT.to_string(), "admin"))?,
            [200, 400, 200],
        ),
        (
            "several audiences",
            signer.sign(&with(&operator, "aud", json!(["another", AUDIENCE])))?,
            [200, 400, 403],
        ),
        (
            "expired half a minute ago",
            signer.sign(&with(&operator, "exp", now - 30))?,
            [200, 400, 403],
        ),
        (
            "valid in half a minute",
            signer.sign(&with(&operator, "nbf", now + 30))?,
            [200, 400, 403],
        ),
        ("no start", signer.sign(&without(&operator, "nbf"))?, [200, 400, 403]),
    ] {
        let responses = [
            get(stack, "/sites", &token).await?,
            post_nothing(stack, &token).await?,
            get(stack, "/operators", &token).await?,
        ];
        let statuses = responses.each_ref().map(|response| response.status);
        assert_eq!(statuses, expected, "{what}: {responses:?}");
    }
    // Keys are accepted beside tokens.
    assert_eq!(stack.call(Call::get("/sites")).await?.status, 200);
    Ok(())
}

/// Registers a site with a token, and asserts that the other operator's token does not see it.
async fn operators_see_only_their_sites(
    stack: &Stack,
    signer: &Signer,
    issuer: &str,
    [own, other]: [&str; 2],
) -> Result<()> {
    let own = signer.sign(&claims(issuer, own, "operator"))?;
    let other = signer.sign(&claims(issuer, other, "operator"))?;
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    // The card is declined, so the saga is undone and leaves nothing in service.
    let body = registration(&unique(), &[Metric::AirTemperature], DECLINED_CARD);
    let created = stack.call(Call::post_site(&unique(), &body).bearing(&own)).await?;
    ensure!(created.status == 202, "{created}");
    let site = created.body["siteId"].as_str().context("no siteId")?;
    let path = format!("/sites/{site}");
    until("the site to be undone and listed", TIMEOUT, async || {
        let read = get(stack, &path, &own).await?;
        let list = get(stack, "/sites?limit=100", &own).await?;
        let is_done = read.body["status"] == "REJECTED" && list.to_string().contains(site);
        Ok(if is_done { Poll::Ready(()) } else { Poll::Pending(format!("{read} {list}")) })
    })
    .await?;
    assert_eq!(get(stack, &path, &other).await?.status, 404);
    let list = get(stack, "/sites?limit=100", &other).await?;
    assert_eq!(list.status, 200, "{list}");
    assert!(!list.to_string().contains(site), "{list}");
    Ok(())
}

/// Asserts that each token with one flaw gets the same 401. `valid` are claims that are accepted.
async fn flawed_tokens_are_refused(stack: &Stack, signer: &Signer, valid: &Value) -> Result<()> {
    let now = Timestamp::now().seconds();
    let good = signer.sign(valid)?;
    assert_eq!(get(stack, "/sites", &good).await?.status, 200);
    let parts: Vec<_> = good.split('.').collect();
    let [header, _, signature] = parts[..] else { anyhow::bail!("not a token: {good}") };
    let unsigned = part(&json!({ "alg": "none", "typ": "JWT", "kid": signer.id }));
    let raised = part(&with(valid, "fieldstation_scope", "admin"));
    let of = |claims: Value| signer.sign(&claims);
    let unknown = OperatorId::registered(&unique()).to_string();
    let flawed = [
        ("alg none", format!("{unsigned}.{}.", part(valid))),
        ("alg none with a signature", format!("{unsigned}.{}.{signature}", part(valid))),
        ("changed claims", format!("{header}.{raised}.{signature}")),
        ("another key with the same id", Signer::es256(signer.id)?.sign(valid)?),
        ("an unknown key id", Signer { id: "unknown", ..signer.clone() }.sign(valid)?),
        ("another audience", of(with(valid, "aud", "another"))?),
        ("no audience", of(without(valid, "aud"))?),
        ("another issuer", of(with(valid, "iss", "https://issuer.example"))?),
        ("no issuer", of(without(valid, "iss"))?),
        ("expired", of(with(valid, "exp", now - 90))?),
        ("no end", of(without(valid, "exp"))?),
        ("not yet valid", of(with(valid, "nbf", now + 150))?),
        ("no subject", of(without(valid, "sub"))?),
        ("no operator", of(without(valid, "fieldstation_operator"))?),
        ("an operator that is not an id", of(with(valid, "fieldstation_operator", "default"))?),
        ("an unknown operator", of(with(valid, "fieldstation_operator", unknown))?),
        (
            "the scope of the first administrator",
            of(with(valid, "fieldstation_scope", "bootstrap"))?,
        ),
        ("an unknown scope", of(with(valid, "fieldstation_scope", "root"))?),
    ];
    let mut details = Vec::new();
    for (what, token) in flawed {
        let response = get(stack, "/sites", &token).await?;
        assert_eq!(response.status, 401, "{what}: {response}");
        assert_eq!(response.header("www-authenticate"), "Bearer", "{what}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{what}");
        details.push(response.body["detail"].clone());
    }
    details.dedup();
    assert_eq!(details.len(), 1, "the response shows what is wrong: {details:?}");
    Ok(())
}
