//! Sagas, sensors and times as the tests use them.

use contracts::{Entity, EntityType, Metric, Saga, Sensor, SensorId, SiteId, Timestamp};
use serde_json::{Value, json};

/// Noon of a day, and so many seconds.
#[must_use]
pub fn noon(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_767_268_800_000 + 1000 * seconds)
}

/// The saga of a site of that name.
#[must_use]
pub fn saga(name: &str) -> Saga {
    Saga::of_site(SiteId::registered("test", name), None)
}

/// Sensors of a saga's site: the first with both limits, the second with one, the others with none.
#[must_use]
pub fn sensors(saga: Saga, metrics: &[Metric]) -> Vec<Sensor> {
    let limits = [(Some(-50.0), Some(50.0)), (None, Some(99.5))];
    metrics
        .iter()
        .enumerate()
        .map(|(index, &metric)| {
            let (min, max) = limits.get(index).copied().unwrap_or_default();
            Sensor {
                sensor_id: SensorId::of(saga.onboarding_id, index),
                metric,
                unit: metric.units()[0].to_owned(),
                min,
                max,
            }
        })
        .collect()
}

/// A weather station's four sensors, of three metrics.
pub const WEATHER: [Metric; 4] =
    [Metric::AirTemperature, Metric::AirTemperature, Metric::RelativeHumidity, Metric::AirPressure];

/// The payload of a step, as the state machine writes it: what undo steps get.
#[must_use]
pub fn payload(saga: Saga) -> Value {
    json!({
        "onboardingId": saga.onboarding_id,
        "siteId": saga.site_id,
        "causationId": saga.causation_id,
    })
}

/// The same with the sensors, for the forward steps that need them.
#[must_use]
pub fn payload_with_sensors(saga: Saga, metrics: &[Metric]) -> Value {
    let mut payload = payload(saga);
    payload["sensors"] = json!(sensors(saga, metrics));
    payload
}

/// A sample event of `tests/events`, by the function's name.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn event(function: &str) -> Value {
    let file = format!("{}/../events/{function}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).expect(&file);
    serde_json::from_str(&text).expect(&file)
}

/// The same sample with other data, as an event of the saga's entity of that kind.
///
/// # Panics
/// Where there is no such sample.
#[must_use]
pub fn event_of(function: &str, saga: Saga, kind: EntityType, data: Value) -> Value {
    let mut event = event(function);
    let metadata = &mut event["detail"]["metadata"];
    metadata["correlationId"] = json!(saga.onboarding_id);
    metadata["entity"] = json!(Entity::of_site(kind, saga.site_id));
    event["detail"]["data"] = data;
    event
}
