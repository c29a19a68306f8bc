//! Summarizes an event in a few words.

use serde_json::Value;

use crate::render::mask_secrets;

/// Summarizes an event's data. A type without a summary of its own is summarized by its fields.
#[must_use]
pub fn summarize_event(kind: &str, data: &Value) -> String {
    let text = |name: &str| display_value(&data[name]);
    match kind {
        "SiteCreated" => format!(
            "{} of {}, {}, plan {}",
            text("name"),
            text("operator"),
            counted(&data["sensors"], "sensor"),
            text("plan")
        ),
        "SiteActivated" => "in service".to_owned(),
        "SiteChanged" => {
            let changed = listed(&data["changed"], display_value);
            format!("{}: {changed} changed", text("name"))
        }
        "SensorChanged" => {
            let sensor = &data["sensor"];
            let part = |name: &str| display_value(&sensor[name]);
            format!("{} {}", part("metric"), part("sensorId"))
        }
        "ReadingsRevised" => {
            let (revision, reason) = (text("revision"), text("reason"));
            format!("revision {revision}, {} to {}: {reason}", text("from"), text("to"))
        }
        "SiteRejected" => {
            let failure = &data["failure"];
            let part = |name: &str| display_value(&failure[name]);
            format!("{}: {}: {}", part("step"), part("error"), part("message"))
        }
        "SiteDecommissioned" => "out of service".to_owned(),
        "KitsReserved" | "KitsReleased" => listed(&data["kits"], |kit| {
            format!("{} {}", display_value(&kit["quantity"]), display_value(&kit["metric"]))
        }),
        "StockDepleted" => listed(&data["shortages"], |shortage| {
            let part = |name: &str| display_value(&shortage[name]);
            format!("{}: {} of {} in stock", part("metric"), part("available"), part("requested"))
        }),
        "StockLow" => {
            format!("{}: {} left, the limit is {}", text("metric"), text("quantity"), text("limit"))
        }
        "StockSoldOut" => format!("{}: none left", text("metric")),
        "StockReplenished" => format!("{}: {} in stock", text("metric"), text("quantity")),
        "SensorsProvisioned" => listed(&data["sensors"], |sensor| display_value(&sensor["metric"])),
        "SensorsDeprovisioned" => counted(&data["sensorIds"], "sensor"),
        "SubscriptionInitialized" => {
            format!("plan {}, {}", text("plan"), text("providerSubscriptionId"))
        }
        "SubscriptionFailed" => {
            format!("plan {}: {}: {}", text("plan"), text("error"), text("message"))
        }
        "SubscriptionCancelled" => text("providerSubscriptionId"),
        "AlertingConfigured" => match data["limits"].as_array() {
            Some(limits) => format!("sensors with limits: {}", limits.len()),
            None => format!("sensors with limits: {}", text("rules")),
        },
        "AlertingRemoved" => "all limits removed".to_owned(),
        "ReadingBreachedThreshold" => {
            let side = match data["limit"].as_str() {
                Some("min") => "below",
                Some("max") => "above",
                _ => "beyond",
            };
            format!(
                "{} {} {}, {side} {}, at {}",
                text("metric"),
                text("value"),
                text("unit"),
                text("threshold"),
                text("at")
            )
        }
        "ReadingBackToNormal" => {
            let (metric, value, unit) = (text("metric"), text("value"), text("unit"));
            format!(
                "{metric} {value} {unit} at {}, breached since {}",
                text("at"),
                text("breachedAt")
            )
        }
        _ => fields(data),
    }
}

/// The maximum length of a summary of fields, in characters.
const MAX_SUMMARY_CHARS: usize = 80;

/// Returns the fields that are neither objects nor lists, as `name value`, up to the maximum length. Ids are left out:
/// they are long, and `--json` shows them.
fn fields(data: &Value) -> String {
    let mut data = data.clone();
    mask_secrets(&mut data);
    let mut text = String::new();
    for (name, value) in data.as_object().into_iter().flatten() {
        if name.ends_with("Id") || value.is_object() || value.is_array() {
            continue;
        }
        let gap = if text.is_empty() { "" } else { ", " };
        let field = format!("{gap}{name} {}", display_value(value));
        if text.chars().count() + field.chars().count() <= MAX_SUMMARY_CHARS {
            text += &field;
        }
    }
    text
}

/// Returns a value as text, without quotation marks, or `?` if there is none.
fn display_value(value: &Value) -> String {
    match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn listed(values: &Value, entry: impl Fn(&Value) -> String) -> String {
    values.as_array().into_iter().flatten().map(entry).collect::<Vec<_>>().join(", ")
}

fn counted(values: &Value, what: &str) -> String {
    match values.as_array().map_or(0, Vec::len) {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use serde_json::json;

    use super::*;

    /// Returns the data of the event type's golden file.
    fn golden(kind: &str, version: u32) -> Value {
        let file = format!(
            "{}/../shared/contracts/tests/goldens/{kind}.v{version}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(&file).expect(&file);
        serde_json::from_str::<Value>(&text).expect("JSON")["data"].take()
    }

    #[test]
    fn every_type_of_event_has_a_summary() {
        let mut summaries = String::new();
        for (kind, version, _) in contracts::events::schemas() {
            let summary = summarize_event(kind, &golden(kind, version));
            assert!(
                !summary.contains('?'),
                "{kind} names a field that it does not have: {summary}"
            );
            writeln!(summaries, "{kind}: {summary}").expect("text");
        }
        // INSTA_UPDATE=always writes the snapshot.
        insta::assert_snapshot!("summaries", summaries);
    }

    #[test]
    fn a_type_without_a_summary_of_its_own_is_summarized_by_its_fields() {
        let data = json!({
            "siteId": "0b1c", "radio": "lora", "channel": 3, "kits": [1], "paymentMethod": "pm_1",
            "note": "n".repeat(MAX_SUMMARY_CHARS),
        });
        let summary = summarize_event("RadioConfigured", &data);
        for field in ["radio lora", "channel 3", "paymentMethod ***"] {
            assert!(summary.contains(field), "{summary}");
        }
        assert!(!summary.contains("0b1c") && !summary.contains("kits"), "{summary}");
        assert!(!summary.contains("note"), "{summary}");
    }

    #[test]
    fn missing_data_causes_no_panic() {
        for (kind, _, _) in contracts::events::schemas() {
            assert!(!summarize_event(kind, &Value::Null).contains("null"), "{kind}");
        }
        assert_eq!(summarize_event("SiteFellSilent", &Value::Null), "");
    }
}
