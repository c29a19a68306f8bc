//! The ledger of failures: one row for each failed piece of work.
//!
//! The failures table has the key `id`. The id is derived from the work itself: work that fails again, also
//! after a replay, is the same row with one attempt more. The index `byStatus` lists the rows of a status by
//! their last attempt. The functions of the service failures write the rows; operators read, replay and
//! discard them with fieldctl.

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
pub use table::{Claim, Cursor, Discard, Finish, Insist, Ledger, Outcome, Recorded, Summary};

/// The most replays of a failure, unless the operator insists.
pub const MAX_REPLAYS: u32 = 5;

/// The longest payload, in bytes, that a row has. A longer one is in a file, since an item of DynamoDB has
/// 400 KB at most.
pub const MAX_PAYLOAD_BYTES: usize = 300_000;

/// Characters of an error's message, and of its name.
const MAX_MESSAGE: usize = 2_000;
const MAX_NAME: usize = 200;

/// The namespace of the ids.
const FAILURES: Uuid = Uuid::from_u128(0x0fa1_1e55_a710_4e00_9a5e_0fa1_1e55_a710);

/// A failed piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailureId(Uuid);

impl FailureId {
    /// The id of a piece of work of a function or state machine. `work` is the SHA-256 of what identifies
    /// the work.
    #[must_use]
    pub fn of(source: &str, work: [u8; 32]) -> Self {
        // The hash has a fixed length, so nothing can be shifted from the one into the other.
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

/// How a piece of work failed; it decides how it is replayed. The descriptions are also fieldctl's help texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum), value(rename_all = "SCREAMING_SNAKE_CASE"))]
pub enum Kind {
    /// An asynchronous function failed at its event, after all retries.
    FunctionFailed,
    /// EventBridge could not deliver an event to the function.
    NotDelivered,
    /// A queue's command was received the maximum number of times.
    DeadLetter,
    /// A stream's record that the function can never process.
    Quarantined,
    /// A stream's record that Lambda gave up on, with its batch.
    GivenUp,
    /// A state machine's execution failed.
    ExecutionFailed,
    /// A message in no known form. It is kept as it came and can't be replayed.
    Unreadable,
}

/// What an operator has to know first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Somebody has to see to it.
    Open,
    /// A replay went well.
    Replayed,
    /// An operator decided that it needs none.
    Discarded,
}

impl Status {
    /// Its name in the table.
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
    /// Stable, of up to 200 characters.
    pub name: String,
    /// For a human, of up to 2,000 characters.
    pub message: String,
    /// Whom the failure concerns. It is a part of the error because the index `byStatus` has the errors, and
    /// an index's attributes can't be changed in place. Rows of earlier versions don't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concerns: Option<Concerns>,
}

/// The site, sensor and sender that a failure concerns, as far as its message names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Concerns {
    /// The site that the payload names. Of readings it is what their sender claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_id: Option<SiteId>,
    /// The sensor that the error is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_id: Option<SensorId>,
    /// The site at which the register has that sensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_site_id: Option<SiteId>,
    /// The partition key of a stream's record, if it is no site's id; up to 100 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
}

impl Concerns {
    /// Whether the site is one of them.
    #[must_use]
    pub fn site(&self, site: SiteId) -> bool {
        [self.site_id, self.sensor_site_id].contains(&Some(site))
    }
}

impl ErrorInfo {
    /// Cuts what is too long.
    #[must_use]
    pub fn new(name: &str, message: &str) -> Self {
        Self {
            name: name.chars().take(MAX_NAME).collect(),
            message: message.chars().take(MAX_MESSAGE).collect(),
            concerns: None,
        }
    }
}

/// A file of S3: a payload that is too long for a row, or a batch that Lambda gave up on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadFile {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplayState {
    /// Claimed: it is being sent, or its sender was interrupted.
    Sending,
    /// Its outcome is in the row.
    Ended,
}

/// The last replay of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Of the one who claimed.
    pub id: Uuid,
    /// When it was claimed.
    pub at: Timestamp,
    /// Who claimed, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How far it is.
    pub state: ReplayState,
    /// The row's attempts when it was claimed: more of them tell that the failure came back.
    pub attempts: u32,
}

/// A failed piece of work, as a message or a file describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedWork {
    /// The row's key.
    pub id: FailureId,
    /// The function, or state machine, that failed. Of work that can't be read: the queue.
    pub source: String,
    /// How it failed.
    pub kind: Kind,
    /// What a replay sends.
    pub payload: Payload,
    /// Why it failed.
    pub error: ErrorInfo,
    /// The onboarding that it belongs to.
    pub correlation_id: Option<OnboardingId>,
    /// The site.
    pub site_id: Option<SiteId>,
    /// ARN of the execution that failed.
    pub execution: Option<String>,
}

/// What a replay sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The text, as it came.
    Text(String),
    /// A file that holds it.
    File(PayloadFile),
}

/// A row of the failures table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureRow {
    /// Its key.
    pub id: FailureId,
    /// The function, or state machine, that failed, such as `project-site`. Of work that can't be read: the
    /// queue.
    pub source: String,
    /// How it failed last.
    pub kind: Kind,
    /// What a replay sends, as text; nothing where it is in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The payload's file, where it is too long for the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_file: Option<PayloadFile>,
    /// Why it failed last.
    pub error: ErrorInfo,
    /// How often it was recorded.
    pub attempts: u32,
    /// Time of the first message about it.
    pub first_at: Timestamp,
    /// Time of the last message about it.
    pub last_at: Timestamp,
    /// The same for failures of the same cause, as far as source and error tell.
    pub fingerprint: String,
    /// What is to be done about it.
    pub status: Status,
    /// The onboarding that it belongs to, if its payload names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OnboardingId>,
    /// The site, if its payload names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_id: Option<SiteId>,
    /// ARN of the execution that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// Ids of the messages about it: a redelivered message is recognized by its id.
    #[serde(default, serialize_with = "serde_dynamo::string_set::serialize")]
    pub messages: BTreeSet<String>,
    /// How often it was claimed for a replay.
    pub replays: u32,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Why it was discarded, or what did its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl FailureRow {
    /// Its key.
    #[must_use]
    pub fn key(id: FailureId) -> Key {
        Key::id(id.to_string())
    }

    /// Whom it concerns; of old rows, as far as they say it.
    #[must_use]
    pub fn concerns(&self) -> Concerns {
        let old = || Concerns { site_id: self.site_id, ..Concerns::default() };
        self.error.concerns.clone().unwrap_or_else(old)
    }

    /// The name for the execution that replays a failed one, once it is claimed: each replay has
    /// its own, and starts once.
    #[must_use]
    pub fn execution_name(&self) -> String {
        format!("replay-{}-{}", self.id, self.replays)
    }
}
