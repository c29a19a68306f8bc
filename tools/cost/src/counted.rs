//! The counts that tests write into `counted/`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `onboarding.json`, written by testkit's test `write_units`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Onboardings {
    /// The effects of a successful onboarding with three sensors, in order.
    pub done: Vec<Effect>,
    /// The effects of an onboarding that fails at its last step and is undone.
    pub undone: Vec<Effect>,
}

/// The effects of a function in an onboarding, for all its invocations together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Effect {
    /// The name of the function's binary.
    pub function: String,
    /// The number of invocations.
    pub invocations: u32,
    /// DynamoDB's write units.
    pub write_units: f64,
    /// Calls to DynamoDB, by operation.
    pub calls: BTreeMap<String, u32>,
}

/// `readings.json`, written by testkit's test `reading_units`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Readings {
    /// The real day of a station, by the length of its bundles, shortest first.
    pub bundles: Vec<Bundles>,
    /// An hour of that day, in bundles of one reading.
    pub single: Bundles,
    /// The cost of an alert.
    pub alert: Alert,
}

/// A station's readings in bundles of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundles {
    /// The length in minutes.
    pub minutes: u32,
    /// The number of bundles.
    pub bundles: u32,
    /// The number of readings in all bundles.
    pub readings: u32,
    /// The number of rows.
    pub rows: u32,
    /// The write units of the rows.
    pub write_units: f64,
    /// The size of the rows by DynamoDB's rules for storage.
    pub row_bytes: u64,
    /// The same without what version 1 of the contract did not store: arrivals, and rows without a value.
    pub row_bytes_version_1: u64,
    /// The records of the stream, as plain JSON.
    pub plain: Records,
    /// The records of the stream, as gzip.
    pub gzip: Records,
    /// The read units of detect-breaches if no state changes.
    pub alerting_read_units: u64,
}

/// Records of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Records {
    /// The size of data and partition keys.
    pub bytes: u64,
    /// The size of the largest record.
    pub largest: u64,
    /// The kilobytes that an on-demand stream charges.
    pub kilobytes: u64,
    /// The PUT payload units that a stream with provisioned shards charges.
    pub put_payload_units: u64,
}

/// The cost of one event of detect-breaches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Alert {
    /// The write units of the state change and its event.
    pub detect_write_units: f64,
    /// The write units of marking the event as published.
    pub publish_write_units: f64,
}

/// `consumers.json`, written by testkit's test `consumer_units`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Consumers {
    /// Batches of watch-network, the smallest first.
    pub watch_network: Vec<ConsumedBatch>,
    /// The effects of watch-stock.
    pub watch_stock: Stock,
}

/// A batch of appended events of one type, each of another entity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumedBatch {
    /// The number of events.
    pub events: u32,
    /// The write units of all of them.
    pub write_units: f64,
}

/// The write units of a change of the stock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stock {
    /// If it changes no level.
    pub unchanged: f64,
    /// If it changes the level: the write of the level and its event. The later write that marks the event as published
    /// is not included.
    pub crossing: f64,
}

impl Consumers {
    /// Returns the write units per event of watch-network, for batches of this number of events.
    ///
    /// They are those of the largest counted batch that is not larger. If all counted batches are larger, they are
    /// those of the smallest one.
    #[must_use]
    pub fn write_units(&self, batch: f64) -> f64 {
        let fitting = self.watch_network.iter().rfind(|it| f64::from(it.events) <= batch);
        let counted = fitting.or(self.watch_network.first());
        counted.map_or(0.0, |it| it.write_units / f64::from(it.events))
    }
}

/// `stack.json`, written by `tests/tests/cost.rs` on the deployed local stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stack {
    /// A successful onboarding.
    pub done: Execution,
    /// An onboarding whose card is declined. It fails at its third step.
    pub declined: Execution,
}

/// An onboarding with its teardown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Execution {
    /// The state transitions of the saga and its teardown, including retries.
    pub transitions: u32,
    /// The number of published events.
    pub events: u32,
    /// The number of invocations of each function, by the name of its binary.
    pub invocations: BTreeMap<String, u32>,
}

impl Records {
    /// Counts a record with this data and partition key.
    pub fn add(&mut self, data: &[u8], key: &str) {
        let bytes = data.len() as u64 + key.len() as u64;
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
        self.kilobytes += crate::units::stream_kilobytes(bytes);
        self.put_payload_units += crate::units::put_payload_units(bytes);
    }
}
