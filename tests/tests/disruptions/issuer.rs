//! An `OpenID` Connect issuer for tests: keys that sign tokens, a server with the configuration and the key set, and
//! tokens that must be refused.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{OperatorId, Timestamp};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, PublicKeyUse},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use testkit::http::Stub;
use uuid::Uuid;

/// The audience of valid tokens.
pub const AUDIENCE: &str = "fieldstation-tests";
/// The length of the PKCS#8 header before the PKCS#1 key, for an RSA key of 2048 bits.
const PKCS8_HEADER: usize = 26;

/// A key that signs tokens.
#[derive(Clone)]
pub struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    pub fn es256(id: &'static str) -> Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        Ok(Self { id, algorithm: Algorithm::ES256, key })
    }

    pub fn rs256(id: &'static str) -> Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256)?;
        let der = pair.serialize_der();
        let key = der.get(PKCS8_HEADER..).context("the key is too short")?;
        Ok(Self { id, algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(key) })
    }

    /// Returns the public key for the key set.
    pub fn jwk(&self) -> Result<Value> {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm)?;
        jwk.common.key_id = Some(self.id.to_owned());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(serde_json::to_value(jwk)?)
    }

    pub fn sign(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        Ok(encode(&header, claims, &self.key)?)
    }
}

/// Starts an issuer with this key set.
pub async fn serve(keys: Vec<Value>) -> Stub {
    testkit::issuer::serve(Arc::new(Mutex::new(Some(keys)))).await
}

/// Returns valid claims of a token with this scope.
pub fn claims(issuer: &str, operator: &str, scope: &str) -> Value {
    let now = Timestamp::now().seconds();
    json!({
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "auth0|ada",
        "jti": Uuid::new_v4(),
        "exp": now + 600,
        "nbf": now - 5,
        "fieldstation_operator": operator,
        "fieldstation_scope": scope,
    })
}

pub fn with(claims: &Value, name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims.clone();
    claims[name] = value.into();
    claims
}

pub fn without(claims: &Value, name: &str) -> Value {
    let mut claims = claims.clone();
    if let Some(claims) = claims.as_object_mut() {
        claims.remove(name);
    }
    claims
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// Returns tokens that must be refused, each with its flaw. `valid` are claims that are accepted.
///
/// The first token becomes valid after a minute, because the issuer's clock may differ by a minute. Send it at once.
pub fn flawed(signer: &Signer, valid: &Value) -> Result<Vec<(&'static str, String)>> {
    let now = Timestamp::now().seconds();
    let good = signer.sign(valid)?;
    let parts: Vec<_> = good.split('.').collect();
    let [header, _, signature] = parts[..] else { bail!("not a token: {good}") };
    let unsigned = part(&json!({ "alg": "none", "typ": "JWT", "kid": signer.id }));
    let raised = part(&with(valid, "fieldstation_scope", "admin"));
    let of = |claims: Value| signer.sign(&claims);
    let unknown = OperatorId::registered(&Uuid::new_v4().to_string()).to_string();
    Ok(vec![
        ("valid in two minutes", of(with(valid, "nbf", now + 120))?),
        ("valid in an hour", of(with(valid, "nbf", now + 3600))?),
        ("expired two minutes ago", of(with(valid, "exp", now - 120))?),
        ("expired an hour ago", of(with(valid, "exp", now - 3600))?),
        ("no end", of(without(valid, "exp"))?),
        ("alg none", format!("{unsigned}.{}.", part(valid))),
        ("alg none with a signature", format!("{unsigned}.{}.{signature}", part(valid))),
        ("changed claims", format!("{header}.{raised}.{signature}")),
        ("another key with the same id", Signer::es256(signer.id)?.sign(valid)?),
        ("an unknown key id", Signer { id: "unknown", ..signer.clone() }.sign(valid)?),
        ("another audience", of(with(valid, "aud", "another"))?),
        ("no audience", of(without(valid, "aud"))?),
        ("another issuer", of(with(valid, "iss", "https://issuer.example"))?),
        ("no issuer", of(without(valid, "iss"))?),
        ("no subject", of(without(valid, "sub"))?),
        ("no operator", of(without(valid, "fieldstation_operator"))?),
        ("an operator that is not an id", of(with(valid, "fieldstation_operator", "default"))?),
        ("an unknown operator", of(with(valid, "fieldstation_operator", unknown))?),
        (
            "the scope of the first administrator",
            of(with(valid, "fieldstation_scope", "bootstrap"))?,
        ),
        ("an unknown scope", of(with(valid, "fieldstation_scope", "root"))?),
    ])
}
