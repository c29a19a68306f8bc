//! The eight stations of NOAA's SURFRAD network and their registrations.

use anyhow::{Context, Result};
use contracts::Metric;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::sites::{DECLINED_CARD, GOOD_CARD};

/// The `source` of the registration events.
pub const SOURCE: &str = "noaa.surfrad";
/// The number of kits of each metric that are delivered. It is enough for eight stations.
pub const DELIVERED: u32 = 10;
/// The station whose day of readings is sent.
pub const ALAMOSA: &str = "SLV";
/// The station whose card is declined.
const DECLINED: &str = "DRA";
/// The station that registers more pyranometers than kits are delivered.
const TOO_MANY_SENSORS: &str = "PSU";

/// The metrics of every station of the network.
pub const SENSORS: [Metric; 13] = [
    Metric::DownwellingShortwave,
    Metric::UpwellingShortwave,
    Metric::DirectShortwave,
    Metric::DiffuseShortwave,
    Metric::DownwellingLongwave,
    Metric::UpwellingLongwave,
    Metric::UvbFlux,
    Metric::PhotosyntheticFlux,
    Metric::AirTemperature,
    Metric::RelativeHumidity,
    Metric::AirPressure,
    Metric::WindSpeed,
    Metric::WindFromDirection,
];

/// The channel of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// `POST /sites` with an API key.
    Http,
    /// `SiteRegistrationRequested` of another system.
    Event,
}

/// A station, its registration and the expected result.
#[derive(Debug)]
pub struct Station {
    /// NOAA's abbreviation.
    pub code: String,
    /// Its name.
    pub name: String,
    /// The channel of its registration.
    pub via: Via,
    /// The body of its registration.
    pub registration: Value,
    /// The step that must fail and its error. `None` if the onboarding must succeed.
    pub fails: Option<(&'static str, &'static str)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    code: String,
    name: String,
    latitude: f64,
    longitude: f64,
    elevation_m: f64,
}

/// Returns a sensor in the metric's usual unit, with the operator's limits.
fn sensor(code: &str, metric: Metric) -> Value {
    let (min, max) = match (code, metric) {
        // Limits that a winter day in Alamosa crosses: frost that needs heating, wind that lifts the snow, more sun
        // than the power supply can store.
        (ALAMOSA, Metric::AirTemperature) => (Some(-15.0), None),
        (ALAMOSA, Metric::WindSpeed) => (None, Some(3.5)),
        (ALAMOSA, Metric::DownwellingShortwave) => (None, Some(500.0)),
        (_, Metric::AirTemperature) => (Some(-60.0), Some(60.0)),
        (_, Metric::RelativeHumidity) => (Some(0.0), Some(100.0)),
        (_, Metric::WindSpeed) => (None, Some(50.0)),
        (_, Metric::DownwellingShortwave) => (Some(-10.0), Some(1500.0)),
        _ => (None, None),
    };
    let mut sensor = json!({ "metric": metric, "unit": metric.units()[0] });
    for (name, limit) in [("min", min), ("max", max)] {
        if let Some(limit) = limit {
            sensor[name] = json!(limit);
        }
    }
    sensor
}

/// Returns all eight stations. The first half registers over HTTP, the second half by event.
pub fn all() -> Result<Vec<Station>> {
    let text = include_str!("../../../../../tests/data/surfrad-stations.json");
    let entries: Vec<Entry> =
        serde_json::from_str(text).context("can't parse the stations' file")?;
    let half = entries.len() / 2;
    let stations = entries.into_iter().enumerate().map(|(index, entry)| {
        let mut sensors: Vec<_> =
            SENSORS.into_iter().map(|metric| sensor(&entry.code, metric)).collect();
        let mut card = GOOD_CARD;
        let mut fails = None;
        if entry.code == DECLINED {
            card = DECLINED_CARD;
            fails = Some(("InitializeSubscription", "CardDeclined"));
        }
        if entry.code == TOO_MANY_SENSORS {
            let field =
                (0..DELIVERED).map(|_| sensor(TOO_MANY_SENSORS, Metric::DownwellingShortwave));
            sensors.extend(field);
            fails = Some(("ReserveKits", "KitsOutOfStock"));
        }
        Station {
            registration: json!({
                "name": entry.name,
                "operator": "NOAA Global Monitoring Laboratory",
                "location": {
                    "latitude": entry.latitude,
                    "longitude": entry.longitude,
                    "elevationM": entry.elevation_m,
                },
                "sensors": sensors,
                "plan": "standard",
                "paymentMethod": card,
            }),
            name: entry.name,
            code: entry.code,
            via: if index < half { Via::Http } else { Via::Event },
            fails,
        }
    });
    Ok(stations.collect())
}
