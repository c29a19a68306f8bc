//! The payment provider as billing's steps use it: configured, and cleaned up after.

use std::{collections::BTreeMap, fmt};

use aws_sdk_secretsmanager::{Client, error::DisplayErrorContext};
use contracts::Plan;
use lambda::{Aws, ConfigError};
use tokio::sync::Mutex;

use crate::{
    BillingError,
    circuit::Pulse,
    stripe::{ApiKey, CustomerId, Stripe, StripeError, Subscription},
};

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
    client: Mutex<Option<Stripe>>,
    pulse: Pulse,
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
        Self { base_url, key, prices, client: Mutex::new(None), pulse: Pulse::default() }
    }

    /// What its calls hear, for the circuit breaker.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// The price of a plan.
    #[must_use]
    pub fn price(&self, plan: Plan) -> &str {
        self.prices.0.get(plan.name()).map_or("", String::as_str)
    }

    /// The client, with the key that was last read.
    pub async fn client(&self) -> Result<Stripe, BillingError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let key = match &self.key {
            KeySource::Given(key) => key.clone(),
            KeySource::Secret { secrets, id } => {
                let secret = secrets.get_secret_value().secret_id(id).send().await;
                let secret = secret.map_err(|error| {
                    let text = DisplayErrorContext(&error).to_string();
                    BillingError::ProviderUnavailable(format!("its API key can't be read: {text}"))
                })?;
                // As good as missing: someone has to put the right one there, and then it goes on.
                ApiKey::new(secret.secret_string().unwrap_or_default())
                    .map_err(|error| BillingError::ProviderUnavailable(error.to_string()))?
            }
        };
        let stripe = Stripe::new(&self.base_url, key)?.with_pulse(self.pulse());
        Ok(client.insert(stripe).clone())
    }

    /// Called with every failure: a refused key is read anew for the next call, for it may have
    /// been rotated.
    pub async fn heard(&self, error: &StripeError) {
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
                    self.heard(&error).await;
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
                self.heard(&error).await;
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
        for (heard, reads) in [
            (StripeError::Unavailable("out".to_owned()), 1),
            (StripeError::Unauthorized(401), 0),
            (StripeError::Unauthorized(403), 1),
            (StripeError::Unavailable("out".to_owned()), 1),
        ] {
            provider.client().await.expect("a client");
            assert_eq!(secrets.take_calls().len(), reads);
            provider.heard(&heard).await;
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
