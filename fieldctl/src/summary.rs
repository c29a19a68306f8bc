//! What an event says, in a few words.

use serde_json::Value;

/// Summarizes an event's data. None for a type that is not known here.
///
/// Every type of `contracts::events` has a summary; a test checks that.
#[must_use]
pub fn of_event(kind: &str, data: &Value) -> Option<String> {
    let text = |name: &str| shown(&data[name]);
    Some(match kind {
        "SiteCreated" => format!(
            "{} of {}, {}, plan {}",
            text("name"),
            text("operator"),
            counted(&data["sensors"], "sensor"),
            text("plan")
        ),
        "SiteActivated" => "in service".to_owned(),
        "SiteRejected" => {
            let failure = &data["failure"];
            let part = |name: &str| shown(&failure[name]);
            format!("{}: {}: {}", part("step"), part("error"), part("message"))
        }
        "SiteDecommissioned" => "out of service".to_owned(),
        "KitsReserved" | "KitsReleased" => listed(&data["kits"], |kit| {
            format!("{} {}", shown(&kit["quantity"]), shown(&kit["metric"]))
        }),
        "StockDepleted" => listed(&data["shortages"], |shortage| {
            let part = |name: &str| shown(&shortage[name]);
            format!("{}: {} of {} in stock", part("metric"), part("available"), part("requested"))
        }),
        "SensorsProvisioned" => listed(&data["sensors"], |sensor| shown(&sensor["metric"])),
        "SensorsDeprovisioned" => counted(&data["sensorIds"], "sensor"),
        "SubscriptionInitialized" => {
            format!("plan {}, {}", text("plan"), text("providerSubscriptionId"))
        }
        "SubscriptionFailed" => {
            format!("plan {}: {}: {}", text("plan"), text("error"), text("message"))
        }
        "SubscriptionCancelled" => text("providerSubscriptionId"),
        "AlertingConfigured" => format!("sensors with limits: {}", text("rules")),
        "AlertingRemoved" => "no limits any more".to_owned(),
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
        _ => return None,
    })
}

/// A value as text, without quotation marks; `?` where there is none.
fn shown(value: &Value) -> String {
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

    use super::*;

    /// The data of the event type's golden file.
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
            let summary = of_event(kind, &golden(kind, version));
            let summary = summary.unwrap_or_else(|| panic!("{kind} has no summary"));
            assert!(
                !summary.contains('?'),
                "{kind} names a field that it does not have: {summary}"
            );
            writeln!(summaries, "{kind}: {summary}").expect("text");
        }
        insta::assert_snapshot!(summaries, @r"
        SiteCreated: Alamosa, Colorado of NOAA, 2 sensors, plan standard
        SiteActivated: in service
        SiteRejected: InitializeSubscription: CardDeclined: Your card was declined.
        SiteDecommissioned: out of service
        KitsReserved: 2 air_temperature, 1 air_pressure
        KitsReleased: 2 air_temperature, 1 air_pressure
        StockDepleted: air_temperature: 1 of 2 in stock
        SensorsProvisioned: air_temperature, surface_downwelling_shortwave_flux_in_air
        SensorsDeprovisioned: 2 sensors
        SubscriptionInitialized: plan standard, sub_1
        SubscriptionFailed: plan professional: CardDeclined: Your card was declined.
        SubscriptionCancelled: sub_1
        AlertingConfigured: sensors with limits: 1
        AlertingRemoved: no limits any more
        ReadingBreachedThreshold: air_temperature 45.6 Cel, above 45.5, at 2026-01-01T11:59:00.000Z
        ReadingBackToNormal: air_temperature 44.9 Cel at 2026-01-01T11:59:30.000Z, breached since 2026-01-01T11:59:00.000Z
        ");
    }

    #[test]
    fn an_unknown_type_has_none_and_missing_data_is_no_panic() {
        assert_eq!(of_event("SiteFellSilent", &Value::Null), None);
        for (kind, _, _) in contracts::events::schemas() {
            assert!(of_event(kind, &Value::Null).is_some(), "{kind}");
        }
    }
}
