//! What tests counted, as they write it into `counted/`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `onboarding.json`, by testkit's `write_units`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Onboardings {
    /// One that goes through, with three sensors: its effects, in their order.
    pub done: Vec<Effect>,
    /// One that fails at its last step, and is undone.
    pub undone: Vec<Effect>,
}

/// What a function does in an onboarding, all its invocations together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Effect {
    /// By its binary's name.
    pub function: String,
    /// How often it is invoked.
    pub invocations: u32,
    /// Of DynamoDB.
    pub write_units: f64,
    /// Calls to DynamoDB, by operation.
    pub calls: BTreeMap<String, u32>,
}

/// `readings.json`, by testkit's `reading_units`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Readings {
    /// The real day of a station, by the length of its bundles, the shortest first.
    pub bundles: Vec<Bundles>,
    /// An hour of it, in bundles of one reading.
    pub single: Bundles,
    /// A sensor leaves its limits.
    pub alert: Alert,
}

/// A station's readings, in bundles of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundles {
    /// The length, in minutes.
    pub minutes: u32,
    /// How many there are.
    pub bundles: u32,
    /// In all of them.
    pub readings: u32,
    /// That they became.
    pub rows: u32,
    /// Of the rows.
    pub write_units: f64,
    /// Of the rows, as DynamoDB counts them for storage.
    pub row_bytes: u64,
    /// The records of the stream, plain.
    pub plain: Records,
    /// The same as gzip.
    pub gzip: Records,
    /// Units that detect-breaches read, and wrote nothing.
    pub alerting_read_units: u64,
}

/// Records of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Records {
    /// Data and partition keys.
    pub bytes: u64,
    /// Of the largest.
    pub largest: u64,
    /// What a stream on demand charges for.
    pub kilobytes: u64,
    /// What a stream with provisioned shards charges for.
    pub put_payload_units: u64,
}

/// What one event of detect-breaches takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Alert {
    /// Of the change of state with its event.
    pub detect_write_units: f64,
    /// Of marking the event as published.
    pub publish_write_units: f64,
}

/// `stack.json`, by `tests/tools/cost.rs`, on the deployed local stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stack {
    /// One that goes through.
    pub done: Execution,
    /// One whose card is declined: it fails at its third step.
    pub declined: Execution,
}

/// An onboarding, with its teardown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Execution {
    /// States entered and tries repeated, of the saga and its teardown.
    pub transitions: u32,
    /// Published.
    pub events: u32,
    /// How often each function was invoked for it, by its binary's name.
    pub invocations: BTreeMap<String, u32>,
}

impl Records {
    /// Takes note of a record: its data and its partition key.
    pub fn add(&mut self, data: &[u8], key: &str) {
        let bytes = data.len() as u64 + key.len() as u64;
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
        self.kilobytes += crate::units::stream_kilobytes(bytes);
        self.put_payload_units += crate::units::put_payload_units(bytes);
    }
}
