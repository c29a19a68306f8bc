//! Reads the objects of the local payment provider.

use std::{collections::BTreeMap, env};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Stack;

/// Returns the URL of the local payment provider. `FIELDSTATION_STRIPE_PORT` is its port (8420).
fn base() -> String {
    let port = env::var("FIELDSTATION_STRIPE_PORT").unwrap_or_else(|_| "8420".into());
    format!("http://127.0.0.1:{port}")
}

/// The provider's objects of one onboarding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BillingObjects {
    /// The ids of the customers that are not deleted.
    pub customers: Vec<String>,
    /// The ids of those customers' subscriptions that are not cancelled.
    pub subscriptions: Vec<String>,
}

impl BillingObjects {
    /// Returns the total number of objects.
    #[must_use]
    pub fn count(&self) -> usize {
        self.customers.len() + self.subscriptions.len()
    }
}

/// Returns whether the object's metadata contains the onboarding's id.
fn belongs_to(object: &Value, onboarding: &str) -> bool {
    let metadata = object["metadata"].as_object();
    metadata.is_some_and(|metadata| metadata.values().any(|value| value == onboarding))
}

async fn list(stack: &Stack, path: &str) -> Result<Vec<Value>> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let after = all.last().and_then(|last| last["id"].as_str());
        let after = after.map(|id| format!("&starting_after={id}")).unwrap_or_default();
        let url = format!("{}{path}limit=100{after}", base());
        let response = stack
            .http
            .get(&url)
            .basic_auth("sk_test_local", Some(""))
            .send()
            .await
            .with_context(|| format!("the payment provider does not respond at {}", base()))?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("the payment provider returned {status} for {url}: {text}");
        }
        let mut page: Value = serde_json::from_str(&text)?;
        let Value::Array(data) = page["data"].take() else {
            bail!("the response has no list: {text}")
        };
        let more = page["has_more"] == true && !data.is_empty();
        all.extend(data);
        if !more {
            return Ok(all);
        }
    }
}

/// Returns the provider's objects of the onboarding with this id.
pub async fn billing_objects(stack: &Stack, onboarding: &str) -> Result<BillingObjects> {
    let mut objects = BillingObjects::default();
    for customer in list(stack, "/v1/customers?").await? {
        if !belongs_to(&customer, onboarding) || customer["deleted"] == true {
            continue;
        }
        let id = customer["id"].as_str().context("a customer without an id")?;
        for subscription in list(stack, &format!("/v1/subscriptions?customer={id}&")).await? {
            if subscription["status"] != "canceled" {
                objects.subscriptions.push(subscription["id"].as_str().unwrap_or("?").to_owned());
            }
        }
        objects.customers.push(id.to_owned());
    }
    Ok(objects)
}

/// Returns the provider's objects of all onboardings, by the onboarding's id.
pub async fn all_billing_objects(stack: &Stack) -> Result<BTreeMap<String, BillingObjects>> {
    let mut all = BTreeMap::<String, BillingObjects>::new();
    let mut owners = BTreeMap::new();
    for customer in list(stack, "/v1/customers?").await? {
        let Some(onboarding) = customer["metadata"]["onboardingId"].as_str() else { continue };
        if customer["deleted"] != true {
            let id = customer["id"].as_str().context("a customer without an id")?.to_owned();
            owners.insert(id.clone(), onboarding.to_owned());
            all.entry(onboarding.to_owned()).or_default().customers.push(id);
        }
    }
    for subscription in list(stack, "/v1/subscriptions?").await? {
        let owner = owners.get(subscription["customer"].as_str().unwrap_or_default());
        if let Some(onboarding) = owner.filter(|_| subscription["status"] != "canceled") {
            let id =
                subscription["id"].as_str().context("a subscription without an id")?.to_owned();
            all.entry(onboarding.clone()).or_default().subscriptions.push(id);
        }
    }
    Ok(all)
}
