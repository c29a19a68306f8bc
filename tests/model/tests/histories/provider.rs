//! A fake of the payment provider. It stores customers and subscriptions, and supports idempotency keys like Stripe.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use testkit::http::Call;

/// The provider's state.
#[derive(Debug, Default)]
pub struct ProviderState {
    /// Active subscriptions, by customer.
    customers: BTreeMap<String, BTreeSet<String>>,
    /// The onboarding of each subscription.
    onboardings: BTreeMap<String, String>,
    /// Request and response, by idempotency key.
    responses: BTreeMap<String, (String, (u16, Value))>,
    /// The number of changes, for unique ids.
    changes: u32,
}

/// Returns a short name of a call.
pub fn name(call: &Call) -> &'static str {
    let path = call.path.split('?').next().unwrap_or_default();
    let parts: Vec<_> = path.trim_start_matches("/v1/").split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("POST", ["customers"]) => "create customer",
        ("POST", ["customers", _]) => "set default method",
        ("POST", ["payment_methods", _, "attach"]) => "attach method",
        ("POST", ["subscriptions"]) => "create subscription",
        ("GET", ["subscriptions"]) => "list subscriptions",
        ("DELETE", ["subscriptions", _]) => "cancel subscription",
        ("DELETE", ["customers", _]) => "delete customer",
        _ => "unknown call",
    }
}

fn not_found(what: &str) -> (u16, Value) {
    let message = format!("No such {what}");
    (400, json!({ "error": { "code": "resource_missing", "message": message } }))
}

impl ProviderState {
    /// Returns the active subscriptions of an onboarding.
    pub fn active_subscriptions(&self, onboarding: &str) -> Vec<&str> {
        let all = self.customers.values().flatten();
        let subscriptions =
            all.filter(|id| self.onboardings.get(*id).is_some_and(|of| of == onboarding));
        subscriptions.map(String::as_str).collect()
    }

    pub fn has_subscription(&self, customer: &str, subscription: &str) -> bool {
        self.customers
            .get(customer)
            .is_some_and(|subscriptions| subscriptions.contains(subscription))
    }

    /// Performs a call.
    pub fn perform(&mut self, call: &Call) -> (u16, Value) {
        let key = call.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        let Some(key) = key else { return self.execute(call) };
        let request = format!("{} {} {}", call.method, call.path, call.body);
        match self.responses.get(key) {
            Some((before, response)) if *before == request => response.clone(),
            Some(_) => {
                let message = "Keys can only be used with the same parameters again.";
                (400, json!({ "error": { "type": "idempotency_error", "message": message } }))
            }
            None => {
                let response = self.execute(call);
                self.responses.insert(key.to_owned(), (request, response.clone()));
                response
            }
        }
    }

    fn execute(&mut self, call: &Call) -> (u16, Value) {
        let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
        let last = path.rsplit('/').next().unwrap_or_default();
        let form = if call.method == "GET" { query } else { &call.body };
        let fields: BTreeMap<_, _> = form_urlencoded::parse(form.as_bytes()).collect();
        let field = |name: &str| fields.get(name).map(ToString::to_string).unwrap_or_default();
        self.changes += 1;
        match name(call) {
            "create customer" => {
                let id = format!("cus_{}", self.changes);
                self.customers.insert(id.clone(), BTreeSet::new());
                (200, json!({ "id": id }))
            }
            "attach method" if path.contains("Declined") => {
                let message = "Your card was declined.";
                (402, json!({ "error": { "code": "card_declined", "message": message } }))
            }
            "attach method" if path.contains("nobody") => not_found("PaymentMethod: 'pm_nobody'"),
            "attach method" if self.customers.contains_key(&field("customer")) => {
                (200, json!({ "id": "pm_attached" }))
            }
            "set default method" if self.customers.contains_key(last) => {
                (200, json!({ "id": last }))
            }
            "create subscription" => {
                let id = format!("sub_{}", self.changes);
                let Some(subscriptions) = self.customers.get_mut(&field("customer")) else {
                    return not_found("customer");
                };
                subscriptions.insert(id.clone());
                self.onboardings.insert(id.clone(), field("metadata[onboardingId]"));
                (200, json!({ "id": id, "status": "active" }))
            }
            "list subscriptions" => {
                let subscriptions = self.customers.get(&field("customer")).into_iter().flatten();
                let subscriptions: Vec<_> =
                    subscriptions.map(|id| json!({ "id": id, "status": "active" })).collect();
                (200, json!({ "data": subscriptions, "has_more": false }))
            }
            "cancel subscription"
                if self.customers.values_mut().any(|subscriptions| subscriptions.remove(last)) =>
            {
                (200, json!({ "id": last, "status": "canceled" }))
            }
            "delete customer" if self.customers.remove(last).is_some() => {
                (200, json!({ "id": last, "deleted": true }))
            }
            _ => (404, not_found("object").1),
        }
    }
}
