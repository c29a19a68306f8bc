//! Telemetry: readings, from the data logger to the query.
//!
//! Owns the readings stream and the readings table, key `sensorId` and `row`: a row
//! `<first sample's time>/<bundleId>` for each series of a bundle ([`SeriesRow`]), and a row `SENSOR` for
//! the sensor itself ([`SensorRow`]). Also owns the refusals table, key `siteId` and `row`: counters of the
//! bundles that `POST /readings` refused ([`refusals`]). Emits no events.

pub mod accept_readings;
pub mod get_readings;
mod merging;
pub mod packing;
pub mod paging;
pub mod project_sensors;
pub mod refusals;
pub mod register;
pub mod store_readings;

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{IdMismatch, Sensor, SensorId, SiteId, Timestamp, readings::BundleId};
use lambda::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use store::{Key, StoreError, Table};

/// Sorts behind the times of all rows, and before the row `SENSOR`.
const BEHIND_ALL_TIMES: &str = ":";
/// Rows of a call of [`SeriesRow::newest`].
const PAGE_ROWS: i32 = 100;

/// The samples of one sensor, of one bundle: a reading costs its share of this row's write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeriesRow {
    /// The first sample's time and the bundle: the row's sort key.
    pub row: String,
    /// The last sample's time, in milliseconds since the epoch.
    pub end: i64,
    /// When it was stored, in milliseconds since the epoch: of two samples of one instant, the one
    /// that was stored last counts.
    pub stored_at: i64,
    /// [`packing`]'s bytes.
    pub samples: ByteBuf,
    /// Of the samples, however they are packed: tells a repeated bundle from a changed one.
    pub hash: ByteBuf,
}

impl SeriesRow {
    /// No row spans more, in milliseconds, so that a query knows how far back to look.
    pub const LONGEST_MILLIS: i64 = 24 * 60 * 60 * 1000;
    /// No row holds more: packed in whatever way, that is far from the 400 KB that DynamoDB takes.
    pub const MOST_SAMPLES: usize = 10_000;

    /// The sort key of a series that starts at that time.
    #[must_use]
    pub fn sort_key(start: Timestamp, bundle: &BundleId) -> String {
        format!("{start}/{bundle}")
    }

    /// Its key.
    #[must_use]
    pub fn key(sensor: SensorId, row: &str) -> Key {
        Key::pair(("sensorId", sensor.to_string()), ("row", row))
    }

    /// The time of the first sample, from the sort key.
    #[must_use]
    pub fn start(&self) -> Option<Timestamp> {
        self.row.split_once('/')?.0.parse().ok()
    }

    /// Reads a sensor's newest rows, the newest first: all that start at `since` or later, at least `least`
    /// rows if there are so many, and at most `most`.
    pub async fn newest(
        readings: &Table,
        sensor: SensorId,
        since: Timestamp,
        least: usize,
        most: usize,
    ) -> Result<Vec<Self>, StoreError> {
        let mut rows = Vec::new();
        let mut behind = None;
        loop {
            let answer = readings
                .client()
                .query()
                .table_name(readings.name())
                .key_condition_expression("sensorId = :sensor AND #row < :end")
                .expression_attribute_names("#row", "row")
                .expression_attribute_values(":sensor", AttributeValue::S(sensor.to_string()))
                .expression_attribute_values(":end", AttributeValue::S(BEHIND_ALL_TIMES.to_owned()))
                .scan_index_forward(false)
                .limit(PAGE_ROWS)
                .set_exclusive_start_key(behind)
                .send()
                .await?;
            for item in answer.items.unwrap_or_default() {
                let row = get_readings::read(sensor, item)?;
                let enough = rows.len() >= least && row.start().is_some_and(|start| start < since);
                if enough || rows.len() >= most {
                    return Ok(rows);
                }
                rows.push(row);
            }
            behind = answer.last_evaluated_key;
            if behind.is_none() {
                return Ok(rows);
            }
        }
    }
}

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
