//! The payment provider, as billing's steps use it: its configuration, its client, and the clean-up of a customer.

use std::{collections::BTreeMap, time::Duration};

use aws_sdk_secretsmanager::Client;
use contracts::{Plan, Timestamp};
use lambda::{Aws, ConfigError, Deadline};
use payments::CallError;
use secret::{Secret, SecretError, Source, Value};
use tokio::sync::Mutex;

use crate::{
    BillingError,
    circuit::Health,
    stripe::{ApiKey, CustomerId, Stripe, StripeError, Subscription},
};

/// The time after which an API key is read again. Every execution environment therefore uses a new key within minutes,
/// even if the provider still accepts the old one.
const KEY_MAX_AGE: Duration = Duration::from_mins(5);

/// The source of the API key.
pub type KeySource = Source<ApiKey>;

/// The payment provider.
#[derive(Debug)]
pub struct Provider {
    base_url: String,
    key: Secret<ApiKey, StripeError>,
    prices: Prices,
    client: Mutex<Option<(Stripe, Value<ApiKey>)>>,
}

impl Provider {
    /// Creates the provider from the function's environment variables.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        let key = KeySource::SecretsManager {
            secrets: Client::new(aws.config()),
            id: lambda::env("STRIPE_SECRET_ARN")?,
        };
        let prices = Prices::parse("STRIPE_PRICES", &lambda::env("STRIPE_PRICES")?)?;
        Ok(Self::new(lambda::env("STRIPE_API_BASE")?, key, prices))
    }

    /// Creates the provider. `base_url` is `https://api.stripe.com` or the URL of a local fake.
    #[must_use]
    pub fn new(base_url: String, key: KeySource, prices: Prices) -> Self {
        let key = Secret::new(key, KEY_MAX_AGE, ApiKey::new);
        Self { base_url, key, prices, client: Mutex::new(None) }
    }

    /// Starts a session for one run of a step. Each call of the session ends by `deadline`. With `None`, each call has
    /// only its own timeout.
    #[must_use]
    pub fn session(&self, deadline: Option<Deadline>) -> Session<'_> {
        Session { provider: self, deadline, stripe: None, key_error: None }
    }

    /// Returns the provider's id of the plan's price.
    #[must_use]
    pub fn price(&self, plan: Plan) -> &str {
        self.prices.0.get(plan.name()).map_or("", String::as_str)
    }

    /// Returns the client, with a key that was read in the last five minutes. If the key can't be read again, the old
    /// one is used, because it may still be valid.
    async fn client(&self) -> Result<Stripe, BillingError> {
        let key = self.key.get_or_stale(|error| {
            let reason = reason(error);
            tracing::warn!(%reason, "continuing with the previous API key");
        });
        // A secret without a valid key is treated like an unreadable one: a retry succeeds when an engineer on call has
        // stored the key.
        let key = key.await.map_err(|error| BillingError::KeyUnreadable(reason(&error)))?;
        let mut client = self.client.lock().await;
        if let Some((client, made_with_key)) = &*client
            && made_with_key.is_same_read(&key)
        {
            return Ok(client.clone());
        }
        let stripe = Stripe::new(&self.base_url, key.secret.clone())?.with_key_read_at(key.at);
        *client = Some((stripe.clone(), key));
        Ok(stripe)
    }
}

/// The access to the provider during one run of a step. It keeps the result of the last call.
#[derive(Debug)]
pub struct Session<'a> {
    provider: &'a Provider,
    deadline: Option<Deadline>,
    /// Created for the first call.
    stripe: Option<Stripe>,
    /// Why the API key can't be read, if that prevented a call.
    key_error: Option<CallError>,
}

impl Session<'_> {
    /// Returns the client. All calls of the session use the same one.
    pub async fn client(&mut self) -> Result<&mut Stripe, BillingError> {
        let stripe = match self.stripe.take() {
            Some(stripe) => stripe,
            None => match self.provider.client().await {
                Ok(stripe) => stripe.with_deadline(self.deadline),
                Err(error) => {
                    if let BillingError::KeyUnreadable(message) = &error {
                        self.key_error = Some(CallError {
                            name: "KeyUnreadable".to_owned(),
                            message: message.clone(),
                            at: Timestamp::now(),
                            key_read_at: None,
                        });
                    }
                    return Err(error);
                }
            },
        };
        Ok(self.stripe.insert(stripe))
    }

    /// Returns the result of the session's last call, or `None` if no call was made. A key that can't be read
    /// counts as a failed call.
    #[must_use]
    pub fn into_health(self) -> Option<Health> {
        let key_error = self.key_error.map(Health::Down);
        key_error.or_else(|| self.stripe.and_then(Stripe::into_health))
    }

    /// Drops the API key if `error` says that the provider refused it. The next session reads it again, because it may
    /// have been rotated. Call this for every failed call.
    pub async fn forget_refused_key(&self, error: &StripeError) {
        if let StripeError::Unauthorized(_) = error {
            self.provider.key.invalidate().await;
        }
    }

    /// Reads all pages of the account's subscriptions, and returns those that have not ended.
    pub async fn running_subscriptions(&mut self) -> Result<Vec<Subscription>, BillingError> {
        let stripe = self.client().await?;
        let mut subscriptions: Vec<Subscription> = Vec::new();
        let mut after = None;
        loop {
            let page = match stripe.subscriptions(after.as_ref()).await {
                Ok(page) => page,
                Err(error) => {
                    self.forget_refused_key(&error).await;
                    return Err(error.into());
                }
            };
            after = page.data.last().map(|last| last.id.clone()).filter(|_| page.has_more);
            subscriptions.extend(page.data.into_iter().filter(Subscription::is_running));
            if after.is_none() {
                return Ok(subscriptions);
            }
        }
    }

    /// Cancels all subscriptions of a customer and deletes the customer. Deleting the customer is also a fence:
    /// Stripe creates no subscription for a deleted customer.
    pub async fn clean_up(&mut self, customer: &CustomerId) -> Result<(), BillingError> {
        let stripe = self.client().await?;
        let cleaned = async {
            for subscription in stripe.customer_subscriptions(customer).await? {
                stripe.cancel_subscription(&subscription.id).await?;
            }
            stripe.delete_customer(customer).await
        };
        match cleaned.await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.forget_refused_key(&error).await;
                Err(error.into())
            }
        }
    }
}

fn reason(error: &SecretError<StripeError>) -> String {
    match error {
        SecretError::ReadFailed { message, .. } => format!("the API key can't be read: {message}"),
        SecretError::Invalid(error) => error.to_string(),
    }
}

/// The provider's id of each plan's price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices(BTreeMap<String, String>);

impl Prices {
    /// Parses `plan=price,plan=price`. Every plan must have a price.
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

    fn test_key() -> KeySource {
        KeySource::Fixed(ApiKey::new("sk_test_1").expect("a key"))
    }

    #[tokio::test]
    async fn a_key_is_read_once_and_again_after_it_was_refused() {
        let secret = json!({ "ARN": "arn", "Name": "stripe", "SecretString": "sk_test_1" });
        let secrets = Stub::start(move |_| (200, secret.clone())).await;
        let key = KeySource::SecretsManager {
            secrets: Client::new(&secrets.config()),
            id: "arn".to_owned(),
        };
        let prices = Prices(BTreeMap::new());
        let provider = Provider::new("http://127.0.0.1:9".to_owned(), key, prices);
        for (error, reads) in [
            (StripeError::Unavailable("out".to_owned()), 1),
            (StripeError::Unauthorized(401), 0),
            (StripeError::Unauthorized(403), 1),
            (StripeError::Unavailable("out".to_owned()), 1),
        ] {
            let mut session = provider.session(None);
            session.client().await.expect("a client");
            assert_eq!(secrets.take_calls().len(), reads);
            session.forget_refused_key(&error).await;
        }
    }

    #[tokio::test]
    async fn an_old_key_is_read_again_and_stays_in_use_while_the_secret_is_unreadable() {
        let secret = json!({ "ARN": "arn", "Name": "stripe", "SecretString": "sk_test_1" });
        let readable = Arc::new(AtomicBool::new(true));
        let readable_now = readable.clone();
        let secrets = Stub::start(move |_| {
            if readable_now.load(Ordering::Relaxed) {
                (200, secret.clone())
            } else {
                (400, json!({ "__type": "DecryptionFailure", "message": "no" }))
            }
        })
        .await;
        let key = KeySource::SecretsManager {
            secrets: Client::new(&secrets.config()),
            id: "arn".to_owned(),
        };
        let prices = Prices(BTreeMap::new());
        let provider = Provider {
            key: Secret::new(key, Duration::ZERO, ApiKey::new),
            ..Provider::new("http://127.0.0.1:9".to_owned(), test_key(), prices)
        };
        for is_readable in [true, true, false] {
            readable.store(is_readable, Ordering::Relaxed);
            provider.session(None).client().await.expect("a client");
            assert_eq!(secrets.take_calls().len(), 1, "read again");
        }
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
