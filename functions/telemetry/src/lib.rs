//! Ingestion, storage and queries of readings.
//!
//! This crate owns the readings stream and the readings table. The table's key is `sensorId` and `row`. It has three kinds
//! of rows:
//!
//! - `<first sample's time>/<bundleId>`: a part of a series ([`series::SeriesRow`]). A long series, and one that grew, has
//!   several rows. In a revision above the first one, `/<revision>` is at the end.
//! - `REVISION/<bundleId>/<revision>`: a series of a revision above the first one ([`series::RevisionRow`]).
//! - `SENSOR`: a sensor in the register ([`SensorRow`]).
//!
//! A record of the stream contains one bundle. A piece is a part of a series within the limits of a row (24 hours,
//! 10,000 samples). The arrival of a record is its approximate arrival time and its sequence number. Several records
//! can contain the same sample. Its row keeps the earliest of their arrivals. A marker is the range that a revision
//! replaces, with the number of the revision.
//!
//! The crate also owns the refusals table, with the key `siteId` and `row`. It counts the bundles that
//! `POST /readings` refused ([`refusals`]).
//!
//! The crate emits the events of the entity `readings`: `ReadingsRevised`, when a revision is stored
//! ([`series_store`]), and when a change of a sensor's metadata changes what queries return for stored readings
//! ([`project_sensors`]).

pub mod accept_readings;
mod aggregation;
pub mod get_readings;
pub mod get_revisions;
pub mod hold;
pub mod paging;
pub mod project_sensors;
mod query;
mod range_merge;
pub mod refusals;
pub mod register;
mod rereading;
pub mod series_store;
mod set_aside;
pub mod store_readings;

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{IdMismatch, OperatorId, Sensor, SensorId, SiteId, Timestamp};
use fault::{ErrorKind, Fault, InvalidInput};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The row `SENSOR` of the sensor register.
///
/// Events may arrive in any order. `retiredAt` is an attribute of its own, and `sensorSequence` keeps an older definition
/// from replacing a newer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorRow {
    /// The site of the sensor.
    pub site_id: SiteId,
    /// The operator that owns the sensor. Rows of releases before there were operators have none.
    #[serde(default)]
    pub operator_id: OperatorId,
    /// Metric, unit, limits and metadata. Absent if only the sensor's `SensorsDeprovisioned` has arrived so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor: Option<Sensor>,
    /// The sequence of the `SensorChanged` that `sensor` is from. Absent if it is from `SensorsProvisioned`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_sequence: Option<u64>,
    /// When the sensor was deprovisioned. Samples from this time on are refused, once the cached entries of the sensor
    /// have expired. Earlier samples are still stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
    /// The sequence of the sensor's last `ReadingsRevised`. It counts the changes of what queries return for stored
    /// readings. Absent if there was none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub changes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl SensorRow {
    /// Returns the key of the sensor's row.
    #[must_use]
    pub fn key(sensor: SensorId) -> Key {
        series::register::key(sensor)
    }

    /// Returns the assignment, the condition and the values that add `further` to the counter `changes` in an update of
    /// the row. The caller commits that update together with the events. The condition does not hold if another change
    /// was counted since the row was read.
    pub(crate) fn count(
        &self,
        further: u64,
    ) -> (&'static str, &'static str, Vec<(&'static str, AttributeValue)>) {
        let number = |value: u64| AttributeValue::N(value.to_string());
        let mut values = vec![("changes", number(self.changes + further))];
        let condition = if self.changes == 0 {
            "attribute_not_exists(#changes)"
        } else {
            values.push(("changesBefore", number(self.changes)));
            "#changes = :changesBefore"
        };
        ("#changes = :changes", condition, values)
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Some series of the bundle are not valid.
    #[error(transparent)]
    InvalidSeries(InvalidInput),
    /// The times of a series have no UTC offset. Either its site declares no offset, or the times are not valid after
    /// the conversion to UTC.
    #[error("sensor {sensor}: {problem}")]
    InvalidTimes {
        /// The sensor.
        sensor: SensorId,
        /// The site of the sensor.
        site: SiteId,
        /// What is wrong, with the path in the series.
        problem: String,
    },
    /// The register does not have the sensor (yet), or it belongs to another operator than the sender.
    #[error("sensor {0} is not in the register; compare it with the ids in SensorsProvisioned")]
    UnknownSensor(SensorId),
    /// The sensor was deprovisioned.
    #[error("sensor {sensor} was retired at {at}; only its earlier readings are stored")]
    RetiredSensor {
        /// The sensor.
        sensor: SensorId,
        /// The site of the sensor.
        site: SiteId,
        /// The time of the deprovisioning.
        at: Timestamp,
    },
    /// The sensor belongs to another site.
    #[error("sensor {sensor} belongs to site {site}, not to the bundle's site")]
    SensorOfAnotherSite {
        /// The sensor.
        sensor: SensorId,
        /// The site of the sensor in the register.
        site: SiteId,
    },
    /// The series differs from what is stored under the same bundle id and revision: in its samples, flags or
    /// qualifiers. Above the first revision, also in its first time or in `replaces`.
    #[error(
        "sensor {sensor} has a row {row} with different samples; a changed bundle needs a greater revision, or a new bundleId"
    )]
    BundleConflict {
        /// The sensor.
        sensor: SensorId,
        /// The site of the sensor.
        site: SiteId,
        /// The sort key of the existing row.
        row: String,
    },
    /// The ids in an event belong to different sites.
    #[error(transparent)]
    WrongSite(#[from] IdMismatch),
    /// A call to the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TelemetryError {
    /// Returns the sensor that the error is about, and the sensor's site in the register.
    #[must_use]
    pub fn sensor(&self) -> Option<(SensorId, Option<SiteId>)> {
        match self {
            Self::UnknownSensor(sensor) => Some((*sensor, None)),
            Self::RetiredSensor { sensor, site, .. }
            | Self::SensorOfAnotherSite { sensor, site }
            | Self::InvalidTimes { sensor, site, .. }
            | Self::BundleConflict { sensor, site, .. } => Some((*sensor, Some(*site))),
            Self::InvalidSeries(_) | Self::WrongSite(_) | Self::Store(_) => None,
        }
    }

    /// Returns the stable name of a permanent error, and `None` for an error that a retry can resolve.
    #[must_use]
    pub fn permanent(&self) -> Option<&'static str> {
        match self {
            Self::UnknownSensor(_) => Some("UnknownSensor"),
            Self::RetiredSensor { .. } => Some("RetiredSensor"),
            Self::SensorOfAnotherSite { .. } => Some("SensorOfAnotherSite"),
            Self::BundleConflict { .. } => Some("BundleConflict"),
            Self::InvalidSeries(_) | Self::InvalidTimes { .. } | Self::WrongSite(_) => {
                Some("InvalidInput")
            }
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
