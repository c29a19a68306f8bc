//! Telemetry: readings, from the data logger to the query.
//!
//! Owns the readings stream and the readings table, key `sensorId` and `row`: a row
//! `<first sample's time>/<bundleId>` for each series of a bundle ([`series::SeriesRow`]), and a row `SENSOR` for
//! the sensor itself ([`SensorRow`]). Also owns the refusals table, key `siteId` and `row`: counters of the
//! bundles that `POST /readings` refused ([`refusals`]). Emits no events.

pub mod accept_readings;
mod aggregation;
pub mod get_readings;
pub mod paging;
pub mod project_sensors;
mod query;
mod range_merge;
pub mod refusals;
pub mod register;
pub mod store_readings;

use contracts::{IdMismatch, Sensor, SensorId, SiteId, Timestamp};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// A sensor as the telemetry knows it. Events may come in any order: each sets attributes of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorRow {
    /// The site that it stands at.
    pub site_id: SiteId,
    /// Metric, unit, limits; absent as long as only its retirement was heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor: Option<Sensor>,
    /// Since when its readings are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
}

impl SensorRow {
    /// Its key.
    #[must_use]
    pub fn key(sensor: SensorId) -> Key {
        Key::pair(("sensorId", sensor.to_string()), ("row", "SENSOR"))
    }
}

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// No sensor of that id was ever provisioned.
    #[error("sensor {0} is not in the register; compare it with the ids in SensorsProvisioned")]
    UnknownSensor(SensorId),
    /// It was deprovisioned.
    #[error("sensor {sensor} was retired at {at}; its readings are no longer taken")]
    RetiredSensor {
        /// The sensor.
        sensor: SensorId,
        /// Where it stood.
        site: SiteId,
        /// Since when.
        at: Timestamp,
    },
    /// It stands elsewhere.
    #[error("sensor {sensor} belongs to site {site}, not to the bundle's")]
    SensorOfAnotherSite {
        /// The sensor.
        sensor: SensorId,
        /// Where it stands.
        site: SiteId,
    },
    /// The same bundle id and first time, but other samples.
    #[error("{sensor} has other samples under {row}; a changed bundle needs a new bundleId")]
    BundleConflict {
        /// The sensor.
        sensor: SensorId,
        /// Where it stands.
        site: SiteId,
        /// The row that is there.
        row: String,
    },
    /// An event's ids belong to different sites.
    #[error(transparent)]
    WrongSite(#[from] IdMismatch),
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TelemetryError {
    /// The sensor that the error is about, and the site at which the register has it.
    #[must_use]
    pub fn sensor(&self) -> Option<(SensorId, Option<SiteId>)> {
        match self {
            Self::UnknownSensor(sensor) => Some((*sensor, None)),
            Self::RetiredSensor { sensor, site, .. }
            | Self::SensorOfAnotherSite { sensor, site }
            | Self::BundleConflict { sensor, site, .. } => Some((*sensor, Some(*site))),
            Self::WrongSite(_) | Self::Store(_) => None,
        }
    }

    /// The stable name of what no retry can mend; nothing for trouble that passes.
    #[must_use]
    pub fn permanent(&self) -> Option<&'static str> {
        match self {
            Self::UnknownSensor(_) => Some("UnknownSensor"),
            Self::RetiredSensor { .. } => Some("RetiredSensor"),
            Self::SensorOfAnotherSite { .. } => Some("SensorOfAnotherSite"),
            Self::BundleConflict { .. } => Some("BundleConflict"),
            Self::WrongSite(_) => Some("InvalidInput"),
            Self::Store(StoreError::Corrupt { .. }) => Some("CorruptRow"),
            Self::Store(_) => None,
        }
    }
}

impl Fault for TelemetryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.into(),
            _ => ErrorKind::InvalidInput,
        }
    }
}
