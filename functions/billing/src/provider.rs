//! The payment provider as billing's steps use it: configured, and cleaned up after.

use std::{collections::BTreeMap, fmt, time::Duration};

use aws_sdk_secretsmanager::Client;
use contracts::{Plan, Timestamp};
use lambda::{Aws, ConfigError};
use payments::CallError;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    BillingError,
    circuit::{Health, LastCall},
    stripe::{ApiKey, CustomerId, Stripe, StripeError, Subscription},
};

/// A key is read again when it is older. So every environment of a function uses a new key a few minutes after
/// it was stored, and not only when the old one is refused.
const KEY_MAX_AGE: Duration = Duration::from_mins(5);

/// Where the API key comes from.
pub enum KeySource {
    /// Secrets Manager: the secret's ARN or name.
    Secret {
        /// The client.
        secrets: Client,
        /// The secret.
        id: String,
    },
    /// Given, for tests.
    Given(ApiKey),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { id, .. } => f.debug_struct("Secret").field("id", id).finish(),
            Self::Given(_) => f.write_str("Given(hidden)"),
        }
    }
}

/// The provider.
#[derive(Debug)]
pub struct Provider {
    base_url: String,
    key: KeySource,
    prices: Prices,
    client: Mutex<Option<(Stripe, Instant)>>,
    key_max_age: Duration,
    last_call: LastCall,
}

impl Provider {
    /// As the function's environment says.
    pub fn of(aws: &Aws) -> Result<Self, ConfigError> {
        let key = KeySource::Secret {
            secrets: Client::new(aws.config()),
            id: lambda::env("STRIPE_SECRET_ARN")?,
        };
        let prices = Prices::parse("STRIPE_PRICES", &lambda::env("STRIPE_PRICES")?)?;
        Ok(Self::new(lambda::env("STRIPE_API_BASE")?, key, prices))
    }

    /// `base_url` is `https://api.stripe.com`, or a local stand-in.
    #[must_use]
    pub fn new(base_url: String, key: KeySource, prices: Prices) -> Self {
        let (client, last_call) = (Mutex::new(None), LastCall::default());
        Self { base_url, key, prices, client, key_max_age: KEY_MAX_AGE, last_call }
    }

    /// The result of its last call, for the circuit breaker.
    #[must_use]
    pub fn last_call(&self) -> LastCall {
        self.last_call.clone()
    }

    /// The price of a plan.
    #[must_use]
    pub fn price(&self, plan: Plan) -> &str {
        self.prices.0.get(plan.name()).map_or("", String::as_str)
    }

    /// The client, with a key that was read in the last five minutes. If the key can't be read again, the old one
    /// is used: it may still be valid.
    pub async fn client(&self) -> Result<Stripe, BillingError> {
        let mut client = self.client.lock().await;
        if let Some((client, read)) = &*client
            && read.elapsed() < self.key_max_age
        {
            return Ok(client.clone());
        }
        match (self.read_key().await, &*client) {
            (Ok(key), _) => {
                let stripe =
                    Stripe::new(&self.base_url, key)?.recording(self.last_call(), Timestamp::now());
                *client = Some((stripe.clone(), Instant::now()));
                Ok(stripe)
            }
            (Err(reason), Some((old, _))) => {
                tracing::warn!(%reason, "goes on with the API key that was read before");
                Ok(old.clone())
            }
            (Err(reason), None) => {
                self.last_call.record(Health::Down(CallError {
                    name: "KeyUnreadable".to_owned(),
                    message: reason.clone(),
                    at: Timestamp::now(),
                    key_read_at: None,
                }));
                Err(BillingError::ProviderUnavailable(reason))
            }
        }
    }

    /// The key, or why it can't be read. A secret without a key is like an unreadable one: the operator stores
    /// the right key, and then it goes on.
    async fn read_key(&self) -> Result<ApiKey, String> {
        match &self.key {
            KeySource::Given(key) => Ok(key.clone()),
            KeySource::Secret { secrets, id } => {
                let secret = secrets.get_secret_value().secret_id(id).send().await;
                let secret = secret.map_err(|error| {
                    format!("its API key can't be read: {}", fault::describe(&error))
                })?;
                ApiKey::new(secret.secret_string().unwrap_or_default())
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Forgets a key that was refused: the next call reads it again, for it may have been rotated. Called with
    /// every failed call.
    pub async fn failed(&self, error: &StripeError) {
        if let StripeError::Unauthorized(_) = error {
            *self.client.lock().await = None;
        }
    }

    /// Lists every subscription of the account that has not ended, page by page.
    pub async fn running(&self) -> Result<Vec<Subscription>, BillingError> {
        let stripe = self.client().await?;
        let mut found: Vec<Subscription> = Vec::new();
        let mut after = None;
        loop {
            let page = match stripe.subscriptions(after.as_ref()).await {
                Ok(page) => page,
                Err(error) => {
                    self.failed(&error).await;
                    return Err(error.into());
                }
            };
            after = page.data.last().map(|last| last.id.clone()).filter(|_| page.has_more);
            found.extend(page.data.into_iter().filter(Subscription::is_running));
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    /// Takes everything of a customer away. Deleting the customer is also a fence: Stripe makes no
    /// subscription for a deleted one.
    pub async fn clean_up(&self, customer: &CustomerId) -> Result<(), BillingError> {
        let stripe = self.client().await?;
        let cleaned = async {
            for subscription in stripe.subscriptions_of(customer).await? {
                stripe.cancel_subscription(&subscription.id).await?;
            }
            stripe.delete_customer(customer).await
        };
        match cleaned.await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.failed(&error).await;
                Err(error.into())
            }
        }
    }
}

/// The provider's price of each plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, String>);

impl Prices {
    /// From `plan=price,plan=price`; every plan must have one.
    pub fn parse(variable: &'static str, text: &str) -> Result<Self, ConfigError> {
        let prices: BTreeMap<String, String> = text
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(plan, price)| (plan.trim().to_owned(), price.trim().to_owned()))
            .collect();
        for plan in [Plan::Community, Plan::Standard, Plan::Professional] {
            if prices.get(plan.name()).is_none_or(String::is_empty) {
                return Err(ConfigError {
                    name: variable,
                    problem: format!(
                        "has no price for {}: write {}=price_...",
                        plan.name(),
                        plan.name()
                    ),
                });
            }
        }
        Ok(Self(prices))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use serde_json::json;
    use testkit::http::Stub;

    use super::*;

    #[tokio::test]
    async fn a_key_is_read_once_and_again_when_it_was_refused() {
        let secret = json!({ "ARN": "arn", "Name": "stripe", "SecretString": "sk_test_1" });
        let secrets = Stub::start(move |_| (200, secret.clone())).await;
        let key =
            KeySource::Secret { secrets: Client::new(&secrets.config()), id: "arn".to_owned() };
        let prices = Prices(BTreeMap::new());
        let provider = Provider::new("http://127.0.0.1:9".to_owned(), key, prices);
        for (error, reads) in [
            (StripeError::Unavailable("out".to_owned()), 1),
            (StripeError::Unauthorized(401), 0),
            (StripeError::Unauthorized(403), 1),
            (StripeError::Unavailable("out".to_owned()), 1),
        ] {
            provider.client().await.expect("a client");
            assert_eq!(secrets.take_calls().len(), reads);
            provider.failed(&error).await;
        }
    }

    #[tokio::test]
    async fn an_old_key_is_read_again_and_used_while_the_secret_is_unreadable() {
        let secret = json!({ "ARN": "arn", "Name": "stripe", "SecretString": "sk_test_1" });
        let readable = Arc::new(AtomicBool::new(true));
        let answers = readable.clone();
        let secrets = Stub::start(move |_| {
            if answers.load(Ordering::Relaxed) {
                (200, secret.clone())
            } else {
                (400, json!({ "__type": "DecryptionFailure", "message": "no" }))
            }
        })
        .await;
        let key =
            KeySource::Secret { secrets: Client::new(&secrets.config()), id: "arn".to_owned() };
        let prices = Prices(BTreeMap::new());
        let provider = Provider {
            key_max_age: Duration::ZERO,
            ..Provider::new("http://127.0.0.1:9".to_owned(), key, prices)
        };
        for readable_now in [true, true, false] {
            readable.store(readable_now, Ordering::Relaxed);
            provider.client().await.expect("a client");
            assert_eq!(secrets.take_calls().len(), 1, "read again");
        }
    }

    #[test]
    fn a_key_does_not_show() {
        let source = KeySource::Given(ApiKey::new("sk_test_1").expect("a key"));
        assert_eq!(format!("{source:?}"), "Given(hidden)");
    }

    #[test]
    fn every_plan_needs_a_price() {
        let all = "community=price_1, standard=price_2,professional=price_3";
        assert!(Prices::parse("STRIPE_PRICES", all).is_ok());
        let error = Prices::parse("STRIPE_PRICES", "community=price_1,standard=,professional=p")
            .expect_err("standard has none");
        assert!(error.to_string().contains("no price for standard"), "{error}");
    }
}
