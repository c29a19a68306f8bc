//! The revisions of a sensor's readings.

use contracts::{
    SensorId, Timestamp,
    readings::{BundleId, TimeRange},
    stream::Arrival,
};
use serde::{Deserialize, Serialize};
use store::{Item, Key, StoreError, Table};

/// The beginning of the sort keys of all revisions.
const PREFIX: &str = "REVISION/";
/// A sort key after all revisions: `0` is the character after `/`.
const AFTER_ALL: &str = "REVISION0";

/// The row of a revision of a series, from the second revision on. It is written in one transaction with the revision's
/// samples. If the samples do not fit into one transaction, the row is written after them. A series that is sent again
/// with the same sensor, bundle id and revision must repeat or extend the stored one. Otherwise it is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionRow {
    /// The id of the bundle.
    pub bundle_id: BundleId,
    /// The number of the revision.
    pub revision: u32,
    /// Why the readings were revised.
    pub reason: String,
    /// The time range that the revision replaces. Absent if the revision replaces no range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<TimeRange>,
    /// The times of the first and the last sample. Absent if the revision has no samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<(Timestamp, Timestamp)>,
    /// The number of samples.
    pub samples: usize,
    /// The first arrival of the revision. Absent if the record's arrival is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<Arrival>,
    /// The time of storage, in milliseconds since the epoch.
    pub stored_at: i64,
}

/// What a query needs to know about a revision that replaces a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The replaced time range. Queries do not return the samples in this range that belong to smaller revisions.
    pub replaces: TimeRange,
    /// The number of the revision.
    pub revision: u32,
}

/// Returns the time ranges in which greater revisions replace the samples of this revision.
#[must_use]
pub fn replaced(markers: &[Marker], revision: u32) -> Vec<TimeRange> {
    let greater = markers.iter().filter(|marker| marker.revision > revision);
    greater.map(|marker| marker.replaces).collect()
}

impl RevisionRow {
    /// Returns the sort key of a revision.
    #[must_use]
    pub fn sort_key(bundle: &BundleId, revision: u32) -> String {
        format!("{PREFIX}{bundle}/{revision}")
    }

    /// Returns the key of a sensor's revision.
    #[must_use]
    pub fn key(sensor: SensorId, bundle: &BundleId, revision: u32) -> Key {
        Key::pair(("sensorId", sensor.to_string()), ("row", Self::sort_key(bundle, revision)))
    }

    /// Returns when the revision first arrived. If the arrival is unknown, returns the time of storage.
    #[must_use]
    pub fn arrived_at(&self) -> Timestamp {
        let arrived_at = self.arrival.as_ref().and_then(Arrival::at);
        arrived_at.unwrap_or(Timestamp::from_millis(self.stored_at))
    }

    /// Parses a row of this sensor.
    pub fn from_item(sensor: SensorId, item: Item) -> Result<Self, StoreError> {
        let row = item.get("row").and_then(|row| row.as_s().ok()).cloned().unwrap_or_default();
        store::from_item(item, || format!("{sensor}/{row}"))
    }

    /// Reads a page of a sensor's revisions, in the order of their sort keys. `after` is the last sort key of the
    /// previous page. Returns the last sort key of this page if there may be more.
    pub async fn page(
        readings: &Table,
        sensor: SensorId,
        limit: i32,
        after: Option<&str>,
    ) -> Result<(Vec<Self>, Option<String>), StoreError> {
        let query = readings
            .query("sensorId = :sensor AND #row BETWEEN :first AND :last")
            .text("sensor", sensor)
            .text("first", PREFIX)
            .text("last", AFTER_ALL)
            .limit(limit);
        let start = after.map(|row| Key::pair(("sensorId", sensor.to_string()), ("row", row)));
        let page = query.page(start.map(|key| key.item())).await?;
        let rows = page.items.into_iter().map(|item| Self::from_item(sensor, item));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let last = rows.last().filter(|_| page.next.is_some());
        let last = last.map(|last| Self::sort_key(&last.bundle_id, last.revision));
        Ok((rows, last))
    }

    /// Reads all revisions of a sensor that replace a range.
    pub async fn markers(readings: &Table, sensor: SensorId) -> Result<Vec<Marker>, StoreError> {
        #[derive(Deserialize)]
        struct Projected {
            revision: u32,
            #[serde(default)]
            replaces: Option<TimeRange>,
        }

        let query = readings
            .query("sensorId = :sensor AND #row BETWEEN :first AND :last")
            .text("sensor", sensor)
            .text("first", PREFIX)
            .text("last", AFTER_ALL)
            .project("#revision, #replaces");
        let mut markers = Vec::new();
        for item in query.all().await? {
            let Projected { revision, replaces } =
                store::from_item(item, || format!("of the revisions of {sensor}"))?;
            markers.extend(replaces.map(|replaces| Marker { replaces, revision }));
        }
        Ok(markers)
    }
}
