//! Rows that the service telemetry writes and that devices or fieldctl read too: the samples of a bundle
//! ([`SeriesRow`]), the revisions of a sensor's readings ([`RevisionRow`]), the counters of refused bundles
//! ([`RefusalRow`]), and a sensor's site in the register ([`register`]).

pub mod packing;
mod refusal;
pub mod register;
mod revision;

use contracts::{
    SensorId, Timestamp,
    readings::{BundleId, FIRST_REVISION},
    stream::Arrival,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use store::{Item, Key, StoreError, Table};

pub use refusal::{RefusalRow, partition, start_of_hour};
pub use revision::{Marker, RevisionRow, replaced};

/// A sort key after the times of all rows and before the rows `REVISION/` and `SENSOR`.
pub const AFTER_ALL_TIMES: &str = ":";
/// The page size of [`SeriesRow::newest`], in rows.
const PAGE_ROWS: i32 = 100;
/// The maximum number of entries in [`SeriesRow::earlier`].
const MAX_EARLIER: usize = 100;

/// The samples of one sensor in one bundle, as one row. So all samples of the row cost one write.
///
/// A series that spans [`Self::MAX_SPAN_MILLIS`] or more, or that has more than [`Self::MAX_SAMPLES`] samples, has
/// several rows. A bundle that was sent again with more samples has a further row for the new samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeriesRow {
    /// The sort key; see [`RowKey`].
    pub row: String,
    /// The last sample's time, in milliseconds since the epoch.
    pub end: i64,
    /// The time of storage, in milliseconds since the epoch.
    pub stored_at: i64,
    /// The first arrival of a record that had all samples of the row. Rows of earlier releases have no arrival;
    /// `storedAt` takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival: Option<Arrival>,
    /// The first arrivals of records that had only the first samples of the row and arrived before `arrival`. An entry
    /// is the number of samples and the arrival. Both ascend from entry to entry. Nearly all rows have no entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<(usize, Arrival)>,
    /// The samples, encoded by [`packing`].
    pub samples: ByteBuf,
    /// The hash of the samples ([`packing::hash`]). A repeated bundle has the same hash. If the hashes differ, the
    /// samples are compared.
    pub hash: ByteBuf,
}

impl SeriesRow {
    /// The maximum time span of a row, in milliseconds. It limits how far back a query must look.
    pub const MAX_SPAN_MILLIS: i64 = 24 * 60 * 60 * 1000;
    /// The maximum number of samples in a row. In any encoding, a row is smaller than DynamoDB's limit of 400 KB.
    pub const MAX_SAMPLES: usize = 10_000;

    /// Returns the key of a row.
    #[must_use]
    pub fn key(sensor: SensorId, row: &str) -> Key {
        Key::pair(("sensorId", sensor.to_string()), ("row", row))
    }

    /// Returns the time of the first sample, from the sort key.
    #[must_use]
    pub fn start(&self) -> Option<Timestamp> {
        RowKey::parse(&self.row).map(|key| key.start)
    }

    /// Returns the first arrival of all samples of the row.
    #[must_use]
    pub fn first_arrival(&self) -> Arrival {
        let stored_at = || Arrival::unrecorded(Timestamp::from_millis(self.stored_at));
        self.arrival.clone().unwrap_or_else(stored_at)
    }

    /// Returns the first arrival of the sample with this index.
    #[must_use]
    pub fn arrival_of(&self, index: usize) -> Arrival {
        let earlier = self.earlier.iter().find(|(count, _)| *count > index);
        earlier.map_or_else(|| self.first_arrival(), |(_, arrival)| arrival.clone())
    }

    /// Returns the row with its arrivals updated for another record that contains some of its samples. That record has
    /// the first `samples` samples of the row, and `all` is the number of samples of the row. Returns `None` if the
    /// arrival changes nothing, or if the row has no room for another entry in `earlier`.
    #[must_use]
    pub fn with_arrival(&self, samples: usize, all: usize, arrival: &Arrival) -> Option<Self> {
        if *arrival >= self.arrival_of(samples.checked_sub(1)?) {
            return None;
        }
        let mut row = self.clone();
        // An entry for at most as many samples is obsolete if it did not arrive before this record.
        row.earlier.retain(|(count, earlier)| *count > samples || earlier < arrival);
        if samples >= all {
            row.arrival = Some(arrival.clone());
        } else if row.earlier.len() < MAX_EARLIER {
            let index = row.earlier.partition_point(|(count, _)| *count <= samples);
            row.earlier.insert(index, (samples, arrival.clone()));
        } else {
            return None;
        }
        Some(row)
    }

    /// Reads a sensor's newest rows, newest first.
    ///
    /// Returns all rows that start at `since` or later. If there are fewer than `min_rows` of them, adds older rows.
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

/// The sort key of a [`SeriesRow`]: `<first sample's time>/<bundleId>`. From the second revision on, `/<revision>`
/// follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowKey<'a> {
    /// The time of the first sample.
    pub start: Timestamp,
    /// The id of the bundle.
    pub bundle: &'a str,
    /// The revision of the bundle.
    pub revision: u32,
}

impl<'a> RowKey<'a> {
    /// Returns the sort key of a bundle's row.
    #[must_use]
    pub fn text(start: Timestamp, bundle: &BundleId, revision: u32) -> String {
        match revision {
            FIRST_REVISION => format!("{start}/{bundle}"),
            revision => format!("{start}/{bundle}/{revision}"),
        }
    }

    /// Parses a sort key. Returns `None` for the key of another kind of row.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (start, bundle) = text.split_once('/')?;
        let (bundle, revision) = match bundle.split_once('/') {
            Some((bundle, revision)) => (bundle, revision.parse().ok()?),
            None => (bundle, FIRST_REVISION),
        };
        Some(Self { start: start.parse().ok()?, bundle, revision })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

    use super::*;

    fn arrival(millis: i64) -> Arrival {
        Arrival::new(Timestamp::from_millis(millis), "7")
    }

    fn row(arrival: Option<Arrival>) -> SeriesRow {
        SeriesRow {
            row: "2026-01-01T12:00:00.000Z/b-1".to_owned(),
            end: 0,
            stored_at: 1_000,
            arrival,
            earlier: Vec::new(),
            samples: ByteBuf::new(),
            hash: ByteBuf::new(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 1_000,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn each_sample_has_its_first_arrival_in_any_order(
            records in vec((1..9_usize, 0..20_i64), 0..12),
            first in 0..20_i64,
        ) {
            let mut stored = row(Some(arrival(first)));
            let mut expected = vec![arrival(first); 8];
            for (samples, millis) in records {
                let lowered = stored.with_arrival(samples, 8, &arrival(millis));
                let changes = expected[..samples].iter().any(|it| *it > arrival(millis));
                prop_assert_eq!(lowered.is_some(), changes);
                for sample in &mut expected[..samples] {
                    *sample = sample.clone().min(arrival(millis));
                }
                stored = lowered.unwrap_or(stored);
                let arrivals: Vec<_> = (0..8).map(|index| stored.arrival_of(index)).collect();
                prop_assert_eq!(&arrivals, &expected);
                prop_assert!(stored.earlier.is_sorted());
                prop_assert!(stored.earlier.iter().all(|(_, it)| *it < stored.first_arrival()));
            }
        }
    }

    #[test]
    fn the_time_of_storage_takes_the_place_of_an_unknown_arrival() {
        let old = row(None);
        assert_eq!(old.with_arrival(8, 8, &arrival(1_000)), None);
        let lowered = old.with_arrival(8, 8, &arrival(999)).expect("an earlier arrival");
        assert_eq!(lowered.arrival, Some(arrival(999)));
    }

    #[test]
    fn a_row_keeps_a_limited_number_of_arrivals() {
        let mut stored = row(Some(arrival(1_000)));
        for n in 0..200 {
            let millis = 900 - i64::try_from(n).expect("a small number");
            stored = stored.with_arrival(400 - n, 500, &arrival(millis)).unwrap_or(stored);
        }
        // Each record had fewer samples than the previous one and arrived before it.
        assert_eq!(stored.earlier.len(), MAX_EARLIER);
    }

    #[test]
    fn a_sort_key_is_parsed_as_it_is_written() {
        let start: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let id: BundleId = "a:b-1".parse().expect("an id");
        for (revision, text) in [
            (1, "2026-01-01T12:00:00.000Z/a:b-1"),
            (2, "2026-01-01T12:00:00.000Z/a:b-1/2"),
            (1_000_000, "2026-01-01T12:00:00.000Z/a:b-1/1000000"),
        ] {
            assert_eq!(RowKey::text(start, &id, revision), text);
            assert_eq!(RowKey::parse(text), Some(RowKey { start, bundle: "a:b-1", revision }));
        }
        for other in ["SENSOR", "REVISION/a:b-1/2", "2026-01-01T12:00:00.000Z", "noon/b-1"] {
            assert_eq!(RowKey::parse(other), None, "{other}");
        }
        let revision = RevisionRow::sort_key(&id, 2);
        assert!(AFTER_ALL_TIMES < revision.as_str() && revision.as_str() < "SENSOR");
    }
}
