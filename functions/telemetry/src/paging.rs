//! Signed page tokens. Clients can neither make a token nor change one.
//!
//! A token is the base64url encoding (without padding) of an HMAC-SHA256 and a payload. The MAC covers the payload
//! and a scope. The scope is everything that the token is valid for, and is not part of the token.

use std::{fmt, time::Duration};

use aws_sdk_secretsmanager::Client;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fault::{ErrorKind, Fault};
use hmac::{Hmac, KeyInit, Mac};
use lambda::{Aws, ConfigError};
use secret::{Secret, SecretError, Source};
use sha2::Sha256;

/// The minimum length of the key, in characters. 32 random letters and digits have 190 bits of entropy.
const MIN_KEY_LENGTH: usize = 32;
/// The minimum time between two reads of the secret that are caused by a token whose signature does not match.
/// It bounds the calls that forged tokens cause.
const REFRESH_INTERVAL: Duration = Duration::from_mins(1);
/// The time after which the key is read again even if it still works, so that a rotation invalidates a leaked key.
const KEY_MAX_AGE: Duration = Duration::from_mins(15);
/// The length of an HMAC-SHA256, in bytes.
const SIGNATURE_BYTES: usize = 32;

/// The key that signs page tokens. It never appears in `Debug` output, errors or logs.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Creates a key from the text of the secret: a random text of at least 32 characters.
    pub fn new(text: &str) -> Result<Self, PagingError> {
        let key = Some(text).filter(|text| text.len() >= MIN_KEY_LENGTH);
        key.and_then(|text| Hmac::new_from_slice(text.as_bytes()).ok())
            .map(Self)
            .ok_or(PagingError::WeakKey)
    }

    fn mac(&self, scope: &str, payload: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // The length comes first, so that no byte can be moved from the scope into the payload.
        mac.update(&(scope.len() as u64).to_be_bytes());
        mac.update(scope.as_bytes());
        mac.update(payload);
        mac
    }

    fn token(&self, scope: &str, payload: &str) -> String {
        let signature = self.mac(scope, payload.as_bytes()).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode([&signature[..], payload.as_bytes()].concat())
    }

    /// Returns the token's payload if this key signed it for the scope.
    fn payload(&self, scope: &str, token: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signature, payload) = bytes.split_at_checked(SIGNATURE_BYTES)?;
        self.mac(scope, payload).verify_slice(signature).ok()?;
        String::from_utf8(payload.to_vec()).ok()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(hidden)")
    }
}

/// The source of the signing key.
pub type KeySource = Source<SigningKey>;

/// An error while a token is made or verified. No variant contains the key.
#[derive(Debug, thiserror::Error)]
pub enum PagingError {
    /// Secrets Manager throttled the call, timed out or was unavailable. A retry may succeed.
    #[error("the paging secret can't be read now: {0}")]
    Unavailable(String),
    /// Secrets Manager refused the call. A retry would be refused again.
    #[error("the paging secret can't be read: {0}")]
    Refused(String),
    /// The key is too short and could be guessed.
    #[error(
        "the paging secret is too short; store a random text of at least {MIN_KEY_LENGTH} characters"
    )]
    WeakKey,
}

impl Fault for PagingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(_) => ErrorKind::Transient,
            Self::Refused(_) | Self::WeakKey => ErrorKind::Internal,
        }
    }
}

impl From<SecretError<PagingError>> for PagingError {
    fn from(error: SecretError<PagingError>) -> Self {
        match error {
            SecretError::Invalid(error) => error,
            SecretError::ReadFailed { kind, message } if kind.is_transient() => {
                Self::Unavailable(message)
            }
            SecretError::ReadFailed { message, .. } => Self::Refused(message),
        }
    }
}

/// Makes and verifies page tokens.
#[derive(Debug)]
pub struct Paging {
    key: Secret<SigningKey, PagingError>,
}

impl Paging {
    /// Creates the signer of page tokens. Its key is the secret that `PAGING_SECRET_ARN` names.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        let secrets = Client::new(aws.config());
        Ok(Self::new(KeySource::SecretsManager { secrets, id: lambda::env("PAGING_SECRET_ARN")? }))
    }

    /// Creates the signer of page tokens from a key source. The key is read when it is first needed.
    #[must_use]
    pub fn new(source: KeySource) -> Self {
        Self { key: Secret::new(source, KEY_MAX_AGE, SigningKey::new) }
    }

    /// Returns a token for the payload. The token is valid for this scope only.
    pub async fn token(&self, scope: &str, payload: &str) -> Result<String, PagingError> {
        Ok(self.key.get().await?.secret.token(scope, payload))
    }

    /// Returns the payload of a token that was made for this scope, and `None` for any other text.
    pub async fn payload(&self, scope: &str, token: &str) -> Result<Option<String>, PagingError> {
        let key = self.key.get().await?.secret;
        if let Some(payload) = key.payload(scope, token) {
            return Ok(Some(payload));
        }
        // The token may be signed with a key that was stored after the cached key was read.
        let newer = self.key.refresh(REFRESH_INTERVAL).await?;
        Ok(newer.and_then(|key| key.secret.payload(scope, token)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use testkit::http::Stub;

    use super::*;

    const KEY: &str = "0123456789abcdefghijklmnopqrstuv";

    fn paging_with(key: &str) -> Paging {
        Paging::new(KeySource::Fixed(SigningKey::new(key).expect("a key")))
    }

    /// Starts a stub of Secrets Manager with a secret that can be changed. Two kinds of secrets make the call fail: an
    /// empty secret causes an internal error, and the name of an exception causes this exception.
    async fn secret(text: &str) -> (Arc<Mutex<String>>, Stub, Paging) {
        let secret = Arc::new(Mutex::new(text.to_owned()));
        let stored = Arc::clone(&secret);
        let stub = Stub::start(move |_| match stored.lock().expect("a text").as_str() {
            "" => (500, json!({ "__type": "InternalServiceError" })),
            error if error.ends_with("Exception") => (400, json!({ "__type": error })),
            text => (200, json!({ "ARN": "arn", "Name": "paging", "SecretString": text })),
        })
        .await;
        let secrets = Client::new(&stub.config());
        let paging =
            Paging::new(KeySource::SecretsManager { secrets, id: "arn:secret".to_owned() });
        (secret, stub, paging)
    }

    #[tokio::test]
    async fn a_token_is_valid_for_its_scope_only() {
        let paging = paging_with(KEY);
        let token = paging.token("a b", "17 row").await.expect("a token");
        let read =
            async |scope, token: &str| paging.payload(scope, token).await.expect("a verdict");
        assert_eq!(read("a b", &token).await.as_deref(), Some("17 row"));
        assert_eq!(read("a c", &token).await, None);
        assert_eq!(read("a", &token).await, None);
        assert_eq!(read("", &token).await, None);
        // A byte that moves from the scope to the payload changes the signature.
        let shifted = paging.token("a b1", "7 row").await.expect("a token");
        assert_ne!(shifted[..40], token[..40]);
        for text in ["", "x", "%%%", &token[..42], &token[..token.len() - 1]] {
            assert_eq!(read("a b", text).await, None, "{text}");
        }
        let other = paging_with(&KEY.to_uppercase()).token("a b", "17 row").await.expect("a token");
        assert_eq!(read("a b", &other).await, None);
    }

    #[tokio::test]
    async fn a_token_with_any_bit_changed_is_refused() {
        let paging = paging_with(KEY);
        let token = paging.token("a", "17 row").await.expect("a token");
        let bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64");
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let changed = URL_SAFE_NO_PAD.encode(changed);
            assert_eq!(paging.payload("a", &changed).await.expect("a verdict"), None, "bit {bit}");
        }
    }

    #[tokio::test]
    async fn a_short_key_is_refused_and_no_key_appears_in_debug_output_or_errors() {
        assert!(matches!(SigningKey::new(&KEY[1..]), Err(PagingError::WeakKey)));
        let (_secret, _stub, paging) = secret(KEY).await;
        paging.token("a", "b").await.expect("a token");
        assert!(!format!("{paging:?} {:?}", paging_with(KEY)).contains("0123"), "{paging:?}");
        assert!(
            format!("{paging:?}").contains("SecretsManager { id: \"arn:secret\" }"),
            "{paging:?}"
        );
        let key = SigningKey::new(KEY).expect("a key");
        assert_eq!(format!("{key:?}"), "SigningKey(hidden)");
        let (_secret, _stub, paging) = secret("weak key").await;
        let error = paging.token("a", "b").await.expect_err("a weak key");
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(!error.to_string().contains("weak key"), "{error}");
    }

    #[tokio::test]
    async fn the_secret_is_read_once() {
        let (_secret, stub, paging) = secret(KEY).await;
        let token = paging.token("a", "b").await.expect("a token");
        assert!(paging.payload("a", &token).await.expect("a verdict").is_some());
        let calls = stub.take_calls();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].operation(), "GetSecretValue");
        assert_eq!(calls[0].json()["SecretId"], "arn:secret");
    }

    #[tokio::test]
    async fn a_token_with_another_signature_reads_the_secret_again_at_most_once_a_minute() {
        let (secret, stub, paging) = secret(KEY).await;
        let old = paging.token("a", "b").await.expect("a token");
        let rotated = KEY.to_uppercase();
        rotated.clone_into(&mut secret.lock().expect("a text"));
        let new = paging_with(&rotated).token("a", "b").await.expect("a token");
        let read = async |token: &str| paging.payload("a", token).await.expect("a verdict");

        assert_eq!(read(&new).await, None, "the secret was read less than a minute ago");
        assert_eq!(stub.take_calls().len(), 1);
        advance_clock(REFRESH_INTERVAL).await;
        assert_eq!(read(&old).await.as_deref(), Some("b"), "the cached key verifies it");
        assert_eq!(stub.take_calls().len(), 0);
        assert_eq!(read(&new).await.as_deref(), Some("b"));
        assert_eq!(stub.take_calls().len(), 1);
        assert_eq!(read(&old).await, None);
        assert_eq!(stub.take_calls().len(), 0, "at most one read a minute");
        assert_eq!(paging.token("a", "b").await.expect("a token"), new);
    }

    #[tokio::test]
    async fn tokens_of_a_rotated_key_are_refused_after_the_cache_expires() {
        let (secret, stub, paging) = secret(KEY).await;
        let old = paging.token("a", "b").await.expect("a token");
        KEY.to_uppercase().clone_into(&mut secret.lock().expect("a text"));
        let read = async || paging.payload("a", &old).await.expect("a verdict");
        assert_eq!(read().await.as_deref(), Some("b"));
        assert_eq!(stub.take_calls().len(), 1);
        advance_clock(KEY_MAX_AGE).await;
        assert_eq!(read().await, None);
        assert_eq!(stub.take_calls().len(), 1);
    }

    #[tokio::test]
    async fn an_unreadable_secret_is_a_transient_or_an_internal_error() {
        for (response, kind) in [
            ("", ErrorKind::Transient),
            ("ThrottlingException", ErrorKind::Transient),
            ("AccessDeniedException", ErrorKind::Internal),
            ("ResourceNotFoundException", ErrorKind::Internal),
        ] {
            let (secret, _stub, paging) = secret(response).await;
            let error = paging.payload("a", "x").await.expect_err(response);
            assert_eq!(error.kind(), kind, "{error}");
            KEY.clone_into(&mut secret.lock().expect("a text"));
            assert!(paging.token("a", "b").await.is_ok(), "the next call reads the key");
        }
    }

    /// Advances the clock without leaving it paused, because calls to the stub need a running clock.
    async fn advance_clock(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }
}
