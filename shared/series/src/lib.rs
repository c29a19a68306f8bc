//! Rows that telemetry writes and fieldctl also reads: the samples of a bundle ([`SeriesRow`]) and the counters of
//! refused bundles ([`RefusalRow`]).

pub mod packing;
mod refusal;

use contracts::{SensorId, Timestamp, readings::BundleId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use store::{Item, Key, StoreError, Table};

pub use refusal::{RefusalRow, partition, start_of_hour};

/// A sort key after the times of all rows and before the row `SENSOR`.
pub const AFTER_ALL_TIMES: &str = ":";
/// The page size of [`SeriesRow::newest`], in rows.
const PAGE_ROWS: i32 = 100;

/// One sensor's samples of one bundle. All of them cost one write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeriesRow {
    /// The sort key: the first sample's time and the bundle's id.
    pub row: String,
    /// The last sample's time, in milliseconds since the epoch.
    pub end: i64,
    /// The time of storage, in milliseconds since the epoch. Of two samples with the same time, the one stored last
    /// counts.
    pub stored_at: i64,
    /// The samples, encoded by [`packing`].
    pub samples: ByteBuf,
    /// A hash of the samples, independent of the encoding. It distinguishes a repeated bundle from a changed one.
    pub hash: ByteBuf,
}

impl SeriesRow {
    /// The maximum time span of a row, in milliseconds. It limits how far back a query must look.
    pub const MAX_SPAN_MILLIS: i64 = 24 * 60 * 60 * 1000;
    /// The maximum number of samples in a row. In any encoding, that is far below DynamoDB's limit of 400 KB.
    pub const MAX_SAMPLES: usize = 10_000;

    /// Returns the sort key of a series that starts at this time.
    #[must_use]
    pub fn sort_key(start: Timestamp, bundle: &BundleId) -> String {
        format!("{start}/{bundle}")
    }

    /// Returns the key of a row.
    #[must_use]
    pub fn key(sensor: SensorId, row: &str) -> Key {
        Key::pair(("sensorId", sensor.to_string()), ("row", row))
    }

    /// Returns the time of the first sample, from the sort key.
    #[must_use]
    pub fn start(&self) -> Option<Timestamp> {
        self.row.split_once('/')?.0.parse().ok()
    }

    /// Reads a sensor's newest rows, newest first.
    ///
    /// Returns all rows that start at `since` or later. If these are fewer than `min_rows`, older rows follow.
    /// Returns at most `max_rows` rows.
    pub async fn newest(
        readings: &Table,
        sensor: SensorId,
        since: Timestamp,
        min_rows: usize,
        max_rows: usize,
    ) -> Result<Vec<Self>, StoreError> {
        let query = readings
            .query("sensorId = :sensor AND #row < :end")
            .text("sensor", sensor)
            .text("end", AFTER_ALL_TIMES)
            .descending(true)
            .limit(PAGE_ROWS);
        let mut rows = Vec::new();
        let mut start = None;
        loop {
            let page = query.page(start).await?;
            for item in page.items {
                let row = Self::from_item(sensor, item)?;
                let enough =
                    rows.len() >= min_rows && row.start().is_some_and(|start| start < since);
                if enough || rows.len() >= max_rows {
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

    /// Parses a row of this sensor.
    pub fn from_item(sensor: SensorId, item: Item) -> Result<Self, StoreError> {
        let row = item.get("row").and_then(|row| row.as_s().ok()).cloned().unwrap_or_default();
        store::from_item(item, || Self::key(sensor, &row).to_string())
    }
}
