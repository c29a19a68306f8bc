//! Sagas, sensors and times as the tests use them.

use contracts::{Metric, OnboardingId, Saga, Sensor, SensorId, SiteId, Timestamp};
use serde_json::{Value, json};

/// Noon of a day, and so many seconds.
#[must_use]
pub fn noon(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_767_268_800_000 + 1000 * seconds)
}

/// The saga of a site of that name.
#[must_use]
pub fn saga(name: &str) -> Saga {
    let site_id = SiteId::registered("test", name);
    Saga { onboarding_id: OnboardingId::of(site_id), site_id, causation_id: None }
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
