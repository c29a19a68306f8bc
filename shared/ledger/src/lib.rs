//! The ledger of failures: one row for each failed piece of work.
//!
//! The failures table has the key `id`. The id is derived from the work itself. If the work fails again, even
//! after a replay, the same row gets one more attempt. The index `byStatus` lists the rows of each status,
//! ordered by the time of their last attempt. The function `record-failure` writes the rows. Engineers on call read,
//! replay and discard failures with fieldctl.

mod error;
pub mod files;
pub mod fingerprint;
pub mod sources;
mod table;

use std::{collections::BTreeSet, fmt, str::FromStr};

use contracts::{OnboardingId, SensorId, SiteId, Timestamp};
use serde::{Deserialize, Serialize};
use store::Key;
use uuid::Uuid;

pub use error::LedgerError;
pub use table::{
    ClaimOptions, ClaimResult, Cursor, DiscardResult, FailureSummary, FinishResult, Ledger,
    RecordResult, ReplayOutcome,
};

/// The maximum number of replays of a failure. An engineer on call can force further replays.
pub const MAX_REPLAYS: u32 = 5;

/// The maximum size of a payload in a row, in bytes. A longer payload is stored in a file, since an item of DynamoDB
/// has at most 400 KB.
pub const MAX_PAYLOAD_BYTES: usize = 300_000;

/// The maximum lengths of an error's message and name, in characters.
const MAX_MESSAGE_LENGTH: usize = 2_000;
const MAX_NAME_LENGTH: usize = 200;

/// The UUID namespace of the ids of failures.
const FAILURES: Uuid = Uuid::from_u128(0x0fa1_1e55_a710_4e00_9a5e_0fa1_1e55_a710);

/// The id of a failed piece of work: a UUID that is derived from the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailureId(Uuid);

impl FailureId {
    /// Returns the id of a piece of work of a function or state machine. `work` is the SHA-256 of what identifies
    /// the work.
    #[must_use]
    pub fn new(source: &str, work: [u8; 32]) -> Self {
        // The hash has a fixed length, so the concatenation is unambiguous.
        Self(Uuid::new_v5(&FAILURES, &[&work, source.as_bytes()].concat()))
    }
}

impl fmt::Display for FailureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FailureId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// How a piece of work failed. The kind determines how the work is replayed. The doc comments of the variants are also
/// fieldctl's help texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "SCREAMING_SNAKE_CASE"))]
pub enum Kind {
    /// An asynchronously invoked function failed to process an event, after all retries.
    FunctionFailed,
    /// EventBridge could not deliver an event to the function.
    NotDelivered,
    /// A command was received from its queue the maximum number of times.
    DeadLetter,
    /// A stream record that the function can never process.
    Quarantined,
    /// A stream record that Lambda gave up on, with its batch.
    GivenUp,
    /// A state machine's execution failed.
    ExecutionFailed,
    /// A message or a file that can't be read, work whose row the table refuses, or an event that could not be
    /// published to a topic. The payload is stored unchanged. Such a failure can't be replayed.
    Unreadable,
}

/// The status of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// The failure needs attention.
    Open,
    /// A replay succeeded, or the work was done in another way.
    Replayed,
    /// An engineer on call decided that the failure needs no replay.
    Discarded,
}

impl Status {
    /// Returns the status as it is in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Replayed => "REPLAYED",
            Self::Discarded => "DISCARDED",
        }
    }
}

/// Why the work failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// A stable name of up to 200 characters.
    pub name: String,
    /// A message for people, of up to 2,000 characters.
    pub message: String,
    /// The site, sensor and sender that the failure concerns. They are part of the error so that the index `byStatus`
    /// contains them: the index projects the errors, and its projection can't be changed in place. Rows of earlier
    /// versions don't have these ids.
    #[serde(rename = "concerns", default, skip_serializing_if = "Option::is_none")]
    pub affected_ids: Option<AffectedIds>,
}

/// The site, sensor and sender that a failure concerns, as far as its message names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AffectedIds {
    /// The site that the payload names. In readings, this site is only the sender's claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_id: Option<SiteId>,
    /// The sensor that the error is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_id: Option<SensorId>,
    /// The site to which the sensor register assigns the sensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_site_id: Option<SiteId>,
    /// The partition key of the stream record, truncated to 100 characters. `None` if the record names a site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
}

impl AffectedIds {
    /// Returns whether the payload names the site, or the register assigns the sensor to the site.
    #[must_use]
    pub fn include_site(&self, site: SiteId) -> bool {
        [self.site_id, self.sensor_site_id].contains(&Some(site))
    }
}

impl ErrorInfo {
    /// Creates an error. Truncates a name or message that is too long.
    #[must_use]
    pub fn new(name: &str, message: &str) -> Self {
        Self {
            name: name.chars().take(MAX_NAME_LENGTH).collect(),
            message: message.chars().take(MAX_MESSAGE_LENGTH).collect(),
            affected_ids: None,
        }
    }
}

/// A file in S3: a payload that is too long for a row, or a batch that Lambda gave up on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadFile {
    /// The file's bucket.
    pub bucket: String,
    /// The file's key.
    pub key: String,
}

/// The state of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplayState {
    /// The replay is claimed. It is being sent, or its sender was interrupted.
    Sending,
    /// The claim has ended. If the outcome of the replay is known, it is in the row.
    Ended,
}

/// The last replay of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The id that the claimant chose for the replay.
    pub id: Uuid,
    /// When the replay was claimed.
    pub at: Timestamp,
    /// Who claimed the replay, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The state of the replay.
    pub state: ReplayState,
    /// The row's number of attempts when the replay was claimed. If the row now has more attempts, the work has failed
    /// again since.
    pub attempts: u32,
}

/// A failed piece of work, as a message or a file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedWork {
    /// The row's key.
    pub id: FailureId,
    /// The function or state machine that failed. If it is not known: the queue.
    pub source: String,
    /// How the work failed.
    pub kind: Kind,
    /// The payload that a replay sends.
    pub payload: Payload,
    /// Why the work failed.
    pub error: ErrorInfo,
    /// The onboarding that the work belongs to.
    pub correlation_id: Option<OnboardingId>,
    /// The site that the work belongs to.
    pub site_id: Option<SiteId>,
    /// The ARN of the failed execution.
    pub execution: Option<String>,
}

/// The payload that a replay sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The text, as it was received.
    Text(String),
    /// A file that contains the payload.
    File(PayloadFile),
}

/// A row of the failures table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureRow {
    /// The row's key.
    pub id: FailureId,
    /// The function or state machine that failed, such as `project-site`. If it is not known: the queue.
    pub source: String,
    /// How the work failed last.
    pub kind: Kind,
    /// The payload that a replay sends. `None` if it is in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The file with the payload, if the payload is too long for the row, or if it is itself a file that can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_file: Option<PayloadFile>,
    /// Why the work failed last.
    pub error: ErrorInfo,
    /// How often the failure was recorded.
    pub attempts: u32,
    /// The time of the first message about the failure.
    pub first_at: Timestamp,
    /// The time of the last message about the failure.
    pub last_at: Timestamp,
    /// The fingerprint. Failures of the same cause have the same fingerprint, as far as the source and the error show
    /// the cause.
    pub fingerprint: String,
    /// The status.
    pub status: Status,
    /// The onboarding that the work belongs to, if its payload names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OnboardingId>,
    /// The site that the work belongs to, if its payload names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_id: Option<SiteId>,
    /// The ARN of the failed execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// The ids of the messages about the failure, by which a redelivered message is recognized. At most 100.
    #[serde(default, serialize_with = "serde_dynamo::string_set::serialize")]
    pub messages: BTreeSet<String>,
    /// The number of replays that were claimed and not withdrawn. A replay that was not sent is withdrawn.
    pub replays: u32,
    /// The last replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Why the failure was discarded, or how its work was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl FailureRow {
    /// Returns the key of a failure's row.
    #[must_use]
    pub fn key(id: FailureId) -> Key {
        Key::id(id.to_string())
    }

    /// Returns the site, sensor and sender that the failure concerns. Rows of earlier versions have only the site.
    #[must_use]
    pub fn affected_ids(&self) -> AffectedIds {
        let site_only = || AffectedIds { site_id: self.site_id, ..AffectedIds::default() };
        self.error.affected_ids.clone().unwrap_or_else(site_only)
    }

    /// Returns the name of the execution that replays this failed execution. The name contains the number of the
    /// replay, so one replay starts at most one execution. Call this on the row after the claim, because the claim
    /// counts the replay.
    #[must_use]
    pub fn execution_name(&self) -> String {
        format!("replay-{}-{}", self.id, self.replays)
    }
}
