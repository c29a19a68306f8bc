//! The eight stations of NOAA's SURFRAD network, and what each of them asks for.

use anyhow::{Context, Result};
use contracts::Metric;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::sites::{DECLINED_CARD, GOOD_CARD};

/// The other system, as the source of its events.
pub const SOURCE: &str = "noaa.surfrad";
/// Kits of each metric that are delivered: enough for eight stations.
pub const DELIVERED: u32 = 10;
/// Its day of readings is sent.
pub const ALAMOSA: &str = "SLV";
/// Its bank declines the card.
const DECLINED: &str = "DRA";
/// It wants a field of pyranometers, more than are delivered.
const TOO_MANY: &str = "PSU";

/// What every station of the network measures.
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

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A signed `POST /sites`.
    Http,
    /// `SiteRegistrationRequested` of another system.
    Event,
}

/// A station with what it asks for and what must become of it.
#[derive(Debug)]
pub struct Station {
    /// As NOAA abbreviates it.
    pub code: String,
    /// Its name.
    pub name: String,
    /// Its way in.
    pub via: Via,
    /// What it sends.
    pub registration: Value,
    /// The step that must fail and its error; nothing where all goes well.
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

/// A sensor with the limits that its operator wants to hear about, in its usual unit.
fn sensor(code: &str, metric: Metric) -> Value {
    let (min, max) = match (code, metric) {
        // What its winter days cross: frost that heating must be on for, wind that lifts the snow,
        // more sun than its power supply can store.
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

/// All eight, the first half over HTTP and the second by event.
pub fn all() -> Result<Vec<Station>> {
    let text = include_str!("../../../../../tests/data/surfrad-stations.json");
    let entries: Vec<Entry> = serde_json::from_str(text).context("the stations' file")?;
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
        if entry.code == TOO_MANY {
            let field = (0..DELIVERED).map(|_| sensor(TOO_MANY, Metric::DownwellingShortwave));
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
