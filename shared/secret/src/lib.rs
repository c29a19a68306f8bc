//! Secrets from AWS Secrets Manager, cached in memory up to a maximum age.

use std::{fmt, time::Duration};

use aws_sdk_secretsmanager::Client;
use contracts::Timestamp;
use fault::AwsErrorKind;
use tokio::{sync::Mutex, time::Instant};

/// The source of a secret.
pub enum Source<T> {
    /// Secrets Manager.
    SecretsManager {
        /// The client.
        secrets: Client,
        /// The secret's ARN or name.
        id: String,
    },
    /// A fixed value, for tests.
    Fixed(T),
}

/// Prints the source without the secret.
impl<T> fmt::Debug for Source<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecretsManager { id, .. } => {
                f.debug_struct("SecretsManager").field("id", id).finish()
            }
            Self::Fixed(_) => f.write_str("Fixed(hidden)"),
        }
    }
}

/// Why a secret can't be used. The error never contains the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError<E> {
    /// Secrets Manager did not return the secret.
    #[error("{message}")]
    ReadFailed {
        /// The kind of the error.
        kind: AwsErrorKind,
        /// The error with its causes.
        message: String,
    },
    /// The secret's text is not valid.
    #[error("{0}")]
    Invalid(E),
}

/// A secret and the time when it was read.
#[derive(Clone, Debug)]
pub struct Value<T> {
    /// The secret.
    pub secret: T,
    /// When it was read.
    pub at: Timestamp,
    read: Instant,
}

/// The last value that was read, and the last attempt to read it.
struct Cached<T> {
    value: Value<T>,
    attempted: Instant,
}

/// A cached secret. The first use reads it. The `Debug` output of `T` must not contain the secret, because [`Value`]
/// prints it.
pub struct Secret<T, E> {
    source: Source<T>,
    parse: fn(&str) -> Result<T, E>,
    max_age: Duration,
    cached: Mutex<Option<Cached<T>>>,
}

impl<T, E> fmt::Debug for Secret<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl<T: Clone, E> Secret<T, E> {
    /// Creates a secret whose text is parsed by `parse`. It is read again when it is older than `max_age`.
    #[must_use]
    pub fn new(source: Source<T>, max_age: Duration, parse: fn(&str) -> Result<T, E>) -> Self {
        Self { source, parse, max_age, cached: Mutex::new(None) }
    }

    /// Returns the secret. Fails if the cached value is too old and reading it again fails.
    pub async fn get(&self) -> Result<Value<T>, SecretError<E>> {
        let mut cached = self.cached.lock().await;
        if let Some(Cached { value, .. }) = &*cached
            && value.read.elapsed() < self.max_age
        {
            return Ok(value.clone());
        }
        let value = self.read().await?;
        *cached = Some(Cached { attempted: value.read, value: value.clone() });
        Ok(value)
    }

    /// Returns the secret. If reading it again fails, calls `failed` with the error and returns the cached value.
    pub async fn get_or_stale(
        &self,
        failed: impl FnOnce(&SecretError<E>),
    ) -> Result<Value<T>, SecretError<E>> {
        let error = match self.get().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match &*self.cached.lock().await {
            Some(old) => {
                failed(&error);
                Ok(old.value.clone())
            }
            None => Err(error),
        }
    }

    /// Reads the secret again. Returns `None` if the last successful read, or the last call of `refresh` that read, is
    /// less than `min_age` ago, or if no value is cached. After a failed attempt, the cached value stays as old as it
    /// was.
    pub async fn refresh(&self, min_age: Duration) -> Result<Option<Value<T>>, SecretError<E>> {
        let mut cached = self.cached.lock().await;
        match &mut *cached {
            Some(cached) if cached.attempted.elapsed() >= min_age => {
                // The time is set before the call, so that a failed call is not repeated at once.
                cached.attempted = Instant::now();
                cached.value = self.read().await?;
                Ok(Some(cached.value.clone()))
            }
            _ => Ok(None),
        }
    }

    /// Removes the cached secret. The next use reads it again.
    pub async fn invalidate(&self) {
        *self.cached.lock().await = None;
    }

    async fn read(&self) -> Result<Value<T>, SecretError<E>> {
        let secret = match &self.source {
            Source::Fixed(secret) => secret.clone(),
            Source::SecretsManager { secrets, id } => {
                let response = secrets.get_secret_value().secret_id(id).send().await;
                let response = response.map_err(|error| SecretError::ReadFailed {
                    kind: AwsErrorKind::classify(&error),
                    message: fault::describe(&error),
                })?;
                let text = response.secret_string().unwrap_or_default();
                (self.parse)(text).map_err(SecretError::Invalid)?
            }
        };
        Ok(Value { secret, at: Timestamp::now(), read: Instant::now() })
    }
}

impl<T> Value<T> {
    /// Returns whether both values come from the same read.
    #[must_use]
    pub fn is_same_read(&self, other: &Self) -> bool {
        self.read == other.read
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;
    use testkit::http::Stub;

    use super::*;

    const MAX_AGE: Duration = Duration::from_mins(5);
    const MIN_AGE: Duration = Duration::from_mins(1);

    fn parse(text: &str) -> Result<String, &'static str> {
        if text == "wrong" { Err("it is wrong") } else { Ok(text.to_owned()) }
    }

    /// Returns a secret whose text can be changed. While the text is empty, reading fails.
    async fn secret(text: &str) -> (Arc<Mutex<String>>, Stub, Secret<String, &'static str>) {
        let text = Arc::new(Mutex::new(text.to_owned()));
        let current = Arc::clone(&text);
        let stub = Stub::start(move |_| match current.lock().expect("a text").as_str() {
            "" => (400, json!({ "__type": "DecryptionFailure", "message": "no" })),
            text => (200, json!({ "ARN": "arn", "Name": "name", "SecretString": text })),
        })
        .await;
        let source =
            Source::SecretsManager { secrets: Client::new(&stub.config()), id: "arn".to_owned() };
        (text, stub, Secret::new(source, MAX_AGE, parse))
    }

    fn set(text: &Mutex<String>, to: &str) {
        to.clone_into(&mut text.lock().expect("a text"));
    }

    /// Advances tokio's clock. The clock is paused only here, because it must run during calls.
    async fn advance(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn a_secret_is_read_again_when_it_is_old() {
        let (text, stub, secret) = secret("one").await;
        let get = async || secret.get().await.expect("a secret").secret;
        assert_eq!(get().await, "one");
        set(&text, "two");
        assert_eq!(get().await, "one");
        assert_eq!(stub.take_calls().len(), 1);
        advance(MAX_AGE).await;
        assert_eq!(get().await, "two");
        assert_eq!(stub.take_calls().len(), 1);
        secret.invalidate().await;
        assert_eq!(get().await, "two");
        assert_eq!(stub.take_calls().len(), 1);
    }

    #[tokio::test]
    async fn values_of_different_reads_are_different_even_if_the_secret_is_the_same() {
        let (_text, _stub, secret) = secret("one").await;
        let first = secret.get().await.expect("a secret");
        assert!(first.is_same_read(&secret.get().await.expect("the cached secret")));
        secret.invalidate().await;
        assert!(!first.is_same_read(&secret.get().await.expect("a secret")));
    }

    #[tokio::test]
    async fn only_get_or_stale_returns_an_old_secret() {
        let (text, _stub, secret) = secret("").await;
        secret.get_or_stale(|_| panic!("there is no cached secret")).await.expect_err("unread");
        set(&text, "one");
        secret.get().await.expect("a secret");
        for broken in ["", "wrong"] {
            set(&text, broken);
            advance(MAX_AGE).await;
            let error = secret.get().await.expect_err("unread").to_string();
            let mut seen = None;
            let old = secret.get_or_stale(|error| seen = Some(error.to_string())).await;
            assert_eq!(old.expect("the cached secret").secret, "one");
            assert!(seen.is_some_and(|seen| seen[..8] == error[..8]), "{error}");
        }
    }

    #[tokio::test]
    async fn a_newer_secret_is_read_at_most_once_per_minimum_age() {
        let (text, stub, secret) = secret("one").await;
        let newer = async || secret.refresh(MIN_AGE).await.map(|it| it.map(|it| it.secret));
        assert_eq!(newer().await.expect("no secret was read yet"), None);
        secret.get().await.expect("a secret");
        assert_eq!(newer().await.expect("it was read a moment ago"), None);
        assert_eq!(stub.take_calls().len(), 1);
        set(&text, "two");
        advance(MIN_AGE).await;
        assert_eq!(newer().await.expect("a secret").as_deref(), Some("two"));
        assert_eq!(newer().await.expect("it was read a moment ago"), None);
        set(&text, "");
        advance(MIN_AGE).await;
        newer().await.expect_err("unread");
        drop(stub.take_calls());
        assert_eq!(newer().await.expect("it was tried a moment ago"), None);
        assert_eq!(stub.take_calls().len(), 0);
        assert_eq!(secret.get().await.expect("the cached secret").secret, "two");
        // The failed attempt did not make the value newer.
        advance(MAX_AGE).await;
        secret.get().await.expect_err("the cached secret is too old");
    }

    #[test]
    fn debug_output_hides_a_secret() {
        let fixed = Secret::new(Source::Fixed("hush".to_owned()), MAX_AGE, parse);
        assert_eq!(format!("{fixed:?}"), "Fixed(hidden)");
    }
}
