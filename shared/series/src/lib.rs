//! The rows that telemetry writes and fieldctl reads, too: the samples of a bundle ([`SeriesRow`]), and
//! the counters of refused bundles ([`RefusalRow`]).

pub mod packing;
mod refusal;

use contracts::{SensorId, Timestamp, readings::BundleId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use store::{Item, Key, StoreError, Table};

pub use refusal::{RefusalRow, UNKNOWN_SITE, hour_of};

/// Sorts behind the times of all rows, and before the row `SENSOR`.
pub const BEHIND_ALL_TIMES: &str = ":";
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
        let query = readings
            .query("sensorId = :sensor AND #row < :end")
            .text("sensor", sensor)
            .text("end", BEHIND_ALL_TIMES)
            .descending(true)
            .limit(PAGE_ROWS);
        let mut rows = Vec::new();
        let mut start = None;
        loop {
            let page = query.page(start).await?;
            for item in page.items {
                let row = Self::from_item(sensor, item)?;
                let enough = rows.len() >= least && row.start().is_some_and(|start| start < since);
                if enough || rows.len() >= most {
                    return Ok(rows);
                }
                rows.push(row);
            }
            start = page.next;
            if start.is_none() {
                return Ok(rows);
            }
        }
    }

    /// Reads a row of that sensor.
    pub fn from_item(sensor: SensorId, item: Item) -> Result<Self, StoreError> {
        let row = item.get("row").and_then(|row| row.as_s().ok()).cloned().unwrap_or_default();
        store::from_item(item, || Self::key(sensor, &row).to_string())
    }
}
