//! A payment provider that accepts every card and has whatever is asked for.

use serde_json::{Value, json};

/// What it answers to a call, given as method and path: `GET /v1/subscriptions`.
#[must_use]
pub fn accepting(call: &str) -> Value {
    let id = match call.split('/').nth(2) {
        Some("customers") => "cus_NffrFeUfNV2Hib",
        Some("payment_methods") => "pm_1MqLiJLkdIwHu7ixUEgbFdYF",
        _ => "sub_1MowQVLkdIwHu7ixeRlqHVzs",
    };
    let one = json!({ "id": id, "status": "active" });
    if call.starts_with("GET /v1/subscriptions") {
        json!({ "object": "list", "data": [one], "has_more": false })
    } else if call.starts_with("DELETE") {
        json!({ "id": id, "status": "canceled", "deleted": true })
    } else {
        one
    }
}
