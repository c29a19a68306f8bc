//! Verification of the tokens of one `OpenID` Connect issuer.
//!
//! The signature is verified locally with the issuer's key set, which is found by `OpenID` Connect Discovery and
//! cached. The algorithm is that of the key, never that of the token's header. Otherwise a public key could be used as
//! the secret of an HMAC. Symmetric keys are skipped, and so are keys whose `alg` does not fit their type.
//!
//! An outage of the issuer does not lock its users out: while the key set can't be read again, the cached one is used for
//! up to a day.

use std::{collections::HashMap, time::Duration};

use contracts::{OperatorId, Scope};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};
use web::{Bytes, Limits, Request, Web};

use crate::authorise_caller::Refusal;

/// The age at which the cached key set is read again.
const REFRESH_AGE: Duration = Duration::from_mins(15);
/// The maximum age of a key set that can't be read again. A key that the issuer removes during its own outage is accepted
/// until then.
const MAX_AGE: Duration = Duration::from_hours(24);
/// The minimum time between two reads of the key set because of an unknown key id.
const MIN_REFRESH: Duration = Duration::from_mins(1);
/// The time after a failed read until the next one. It doubles with each failure, up to the maximum.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_mins(1);
/// The limits of each call. Reading the key set takes two calls.
const LIMITS: Limits = Limits { time: Duration::from_secs(3), body: 256 * 1024 };
/// The accepted difference between the issuer's clock and ours, in seconds.
const LEEWAY_SECONDS: u64 = 60;

/// The issuer's key set can't be read. This is not the caller's fault.
#[derive(Debug, thiserror::Error)]
#[error("the key set of {issuer}: {problem}")]
pub struct KeySetError {
    issuer: String,
    problem: String,
}

/// An `OpenID` Connect issuer whose tokens are accepted.
#[derive(Debug)]
pub struct Issuer {
    /// The URL, exactly as in the claim `iss`.
    url: String,
    audience: String,
    web: Web,
    cached: Mutex<Cache>,
}

/// Who a valid token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The claim `sub`.
    pub subject: String,
    /// The claim `fieldstation_operator`. Whether this operator exists is not checked here.
    pub operator: OperatorId,
    /// The claim `fieldstation_scope`.
    pub scope: Scope,
}

/// Why a token is not accepted.
#[derive(Debug)]
pub enum TokenError {
    /// The token is not valid.
    Refused(Refusal),
    /// Nothing is known about the token, because the key set can't be read.
    KeySet(KeySetError),
}

impl From<Refusal> for TokenError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The last key set that was read, and the reads that have failed since.
#[derive(Debug, Default)]
struct Cache {
    set: Option<KeySet>,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct KeySet {
    keys: HashMap<String, VerificationKey>,
    read: Instant,
}

/// Consecutive failed reads.
#[derive(Debug)]
struct Failure {
    count: u32,
    last: Instant,
    problem: String,
}

impl Failure {
    /// Returns the time from the last failure until the next read.
    fn wait(&self) -> Duration {
        FIRST_RETRY.saturating_mul(2_u32.saturating_pow(self.count - 1)).min(MAX_RETRY)
    }
}

impl Cache {
    /// Returns whether the key set must be read before the key with this id is looked up.
    fn is_read_due(&self, id: &str) -> bool {
        let since_failure = self.failure.as_ref().map(|failure| failure.last.elapsed());
        match &self.set {
            Some(set) if set.read.elapsed() < REFRESH_AGE => {
                !set.keys.contains_key(id)
                    && set.read.elapsed() >= MIN_REFRESH
                    && since_failure.is_none_or(|time| time >= MIN_REFRESH)
            }
            _ => {
                self.failure.as_ref().is_none_or(|failure| failure.last.elapsed() >= failure.wait())
            }
        }
    }

    fn add_failure(&mut self, problem: String) {
        let count = self.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
        self.failure = Some(Failure { count, last: Instant::now(), problem });
    }
}

#[derive(Clone, Debug)]
struct VerificationKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    fieldstation_operator: Value,
    #[serde(default)]
    fieldstation_scope: Value,
}

impl Issuer {
    /// Creates the verification of the tokens that `issuer` makes for `audience`.
    pub fn new(issuer: &str, audience: &str) -> Result<Self, web::ConfigError> {
        web::secure_url(issuer)?;
        Ok(Self {
            url: issuer.to_owned(),
            audience: audience.to_owned(),
            web: Web::new()?,
            cached: Mutex::default(),
        })
    }

    /// Verifies a token and reads its claims.
    pub async fn verify(&self, token: &str) -> Result<Subject, TokenError> {
        let header = decode_header(token).map_err(|_| Refusal::InvalidToken)?;
        let key_id = header.kid.ok_or(Refusal::InvalidToken)?;
        let key = self.key(&key_id).await.map_err(TokenError::KeySet)?;
        let VerificationKey { algorithm, key } = key.ok_or(Refusal::UnknownTokenKey)?;
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.url]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(token, &key, &validation).map_err(|error| {
            TokenError::Refused(match error.kind() {
                ErrorKind::ExpiredSignature => Refusal::ExpiredToken,
                ErrorKind::ImmatureSignature => Refusal::TokenNotYetValid,
                ErrorKind::InvalidAudience => Refusal::WrongAudience,
                ErrorKind::InvalidIssuer => Refusal::WrongIssuer,
                _ => Refusal::InvalidToken,
            })
        })?;
        subject(claims.claims).map_err(TokenError::Refused)
    }

    /// Returns the key with this id. If it is not in the cached set, the issuer may have a new key, so the set is read
    /// again.
    ///
    /// A failed read is an error only if the key is not in the cached set: the issuer may have that key.
    async fn key(&self, id: &str) -> Result<Option<VerificationKey>, KeySetError> {
        let mut cache = self.cached.lock().await;
        if cache.is_read_due(id) {
            match self.read().await {
                Ok(set) => *cache = Cache { set: Some(set), failure: None },
                Err(error) => {
                    tracing::warn!(%error, "the key set was not read");
                    cache.add_failure(error.problem);
                }
            }
        }
        let set = cache.set.as_ref().filter(|set| set.read.elapsed() < MAX_AGE);
        match (set.and_then(|set| set.keys.get(id)), &cache.failure) {
            (Some(key), _) => Ok(Some(key.clone())),
            (None, Some(failure)) => Err(self.error(failure.problem.clone())),
            (None, None) => Ok(None),
        }
    }

    async fn read(&self) -> Result<KeySet, KeySetError> {
        let issuer = self.url.trim_end_matches('/');
        let discovery: Discovery =
            self.get(&format!("{issuer}/.well-known/openid-configuration")).await?;
        if discovery.issuer != self.url {
            return Err(self.error("its configuration names another issuer".to_owned()));
        }
        if !is_as_secure(&discovery.jwks_uri, &self.url) {
            return Err(self.error("its key set has no https URL".to_owned()));
        }
        let set: Keys = self.get(&discovery.jwks_uri).await?;
        let keys = set.keys.into_iter().filter_map(verification_key).collect();
        Ok(KeySet { keys, read: Instant::now() })
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, KeySetError> {
        let uri = web::secure_url(url).map_err(|error| self.error(error.to_string()))?;
        let request = Request::get(uri).body(Bytes::new());
        let request = request.map_err(|error| self.error(error.to_string()))?;
        let response = self.web.send(request, LIMITS).await;
        let response = response.map_err(|error| self.error(error.to_string()))?;
        if !response.status().is_success() {
            return Err(self.error(format!("status {} of {url}", response.status().as_u16())));
        }
        serde_json::from_slice(response.body())
            .map_err(|error| self.error(format!("the response of {url}: {error}")))
    }

    fn error(&self, problem: String) -> KeySetError {
        KeySetError { issuer: self.url.clone(), problem }
    }
}

/// Returns whether the key set of an https issuer has an https URL. [`web::secure_url`] accepts plain HTTP to a loopback
/// host, which only a local issuer may name.
fn is_as_secure(key_set: &str, issuer: &str) -> bool {
    let is_https =
        |url: &str| web::secure_url(url).is_ok_and(|uri| uri.scheme_str() == Some("https"));
    is_https(key_set) || !is_https(issuer)
}

/// Returns the key and its id. Returns `None` for a key that can't verify signatures, or that this code does not know.
fn verification_key(key: Value) -> Option<(String, VerificationKey)> {
    let jwk: Jwk = serde_json::from_value(key).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|it| *it != PublicKeyUse::Signature) {
        return None;
    }
    let usual = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Algorithm::ES256,
            EllipticCurve::P384 => Algorithm::ES384,
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
        _ => return None,
    };
    let algorithm = match jwk.common.key_algorithm {
        Some(named) => Algorithm::try_from(named).ok()?,
        None => usual,
    };
    // A key on an elliptic curve fits exactly one algorithm. An RSA key fits several.
    let is_possible = match usual {
        Algorithm::RS256 => algorithm.family() == usual.family(),
        _ => algorithm == usual,
    };
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| is_possible)?;
    Some((jwk.common.key_id?, VerificationKey { algorithm, key }))
}

fn subject(claims: Claims) -> Result<Subject, Refusal> {
    let operator = claims.fieldstation_operator.as_str().and_then(|text| text.parse().ok());
    let scope = match &claims.fieldstation_scope {
        Value::Null => Some(Scope::Read),
        claim => claim.as_str().and_then(|text| text.parse().ok()),
    };
    let is_for_people =
        |scope: &Scope| matches!(scope, Scope::Admin | Scope::Operator | Scope::Read);
    Ok(Subject {
        subject: claims.sub,
        operator: operator.ok_or(Refusal::InvalidOperatorClaim)?,
        scope: scope.filter(is_for_people).ok_or(Refusal::InvalidScopeClaim)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_https_issuer_has_an_https_key_set() {
        let (https, local) = ("https://issuer.example", "http://127.0.0.1:8000");
        assert!(is_as_secure("https://keys.example/set", https));
        assert!(is_as_secure("HTTPS://keys.example/set", "HTTPS://issuer.example"));
        assert!(!is_as_secure("http://127.0.0.1:8000/set", https));
        assert!(!is_as_secure("http://localhost/set", "HTTPS://issuer.example"));
        assert!(!is_as_secure("", https));
        assert!(is_as_secure("http://127.0.0.1:8000/set", local));
        assert!(is_as_secure("https://keys.example/set", local));
    }

    #[test]
    fn the_time_between_failed_reads_doubles_up_to_a_minute() {
        let wait = |count| {
            Failure { count, last: Instant::now(), problem: String::new() }.wait().as_secs()
        };
        assert_eq!([1, 2, 3, 6, 7, 40, u32::MAX].map(wait), [1, 2, 4, 32, 60, 60, 60]);
    }
}
