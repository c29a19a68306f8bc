//! Failures: everything that the stack gave up on, as rows to look at, to replay and to discard.
//!
//! Owns the failures table: key `id`, a row a failed piece of work. The id is derived from the work
//! itself, so that what fails again, also after a replay, is the same row with one attempt more.
//! Index `byStatus` lists the rows of a status by their last attempt.

pub mod check_consumers;
pub mod files;
pub mod fingerprint;
pub mod ledger;
pub mod reading;
pub mod record_failure;
pub mod report_failures;
pub mod sources;

use std::{collections::BTreeSet, fmt, str::FromStr};

use contracts::{OnboardingId, SensorId, SiteId, Timestamp};
use lambda::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};
use uuid::Uuid;

/// A failure is replayed so often, unless the operator insists.
pub const MOST_REPLAYS: u32 = 5;

/// In bytes: what is longer is kept in a file beside the row, which takes 400 KB in all.
pub const LONGEST_PAYLOAD: usize = 300_000;

/// Characters of an error's message, and of its name.
const LONGEST_MESSAGE: usize = 2_000;
const LONGEST_NAME: usize = 200;

/// Root of the ids.
const FAILURES: Uuid = Uuid::from_u128(0x0fa1_1e55_a710_4e00_9a5e_0fa1_1e55_a710);

/// A failed piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FailureId(Uuid);

impl FailureId {
    /// The id of a function's (or state machine's) piece of work, told by the SHA-256 of what would
    /// be replayed.
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

/// How a piece of work failed; it decides how it is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// An asynchronous function failed at its event, all retries included.
    FunctionFailed,
    /// EventBridge could not hand its event to the function.
    NotDelivered,
    /// A queue's command was received as often as it may be.
    DeadLetter,
    /// A stream's record that the function can never work on.
    Quarantined,
    /// A stream's record that Lambda gave up on, with its batch.
    GivenUp,
    /// A state machine's execution failed.
    ExecutionFailed,
    /// A message in no known form, kept as it came; there is no replay of it.
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
            name: name.chars().take(LONGEST_NAME).collect(),
            message: message.chars().take(LONGEST_MESSAGE).collect(),
            concerns: None,
        }
    }
}

/// Where a payload is that is too long for a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadFile {
    /// Of S3.
    pub bucket: String,
    /// The object's.
    pub key: String,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplayState {
    /// Claimed: it is being sent, or whoever sent it was interrupted.
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

/// A row of the failures table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureRow {
    /// Its key.
    pub id: FailureId,
    /// The function, or state machine, that failed, e.g. `project-site`.
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
    /// When the first message told of it.
    pub first_at: Timestamp,
    /// When the last message told of it.
    pub last_at: Timestamp,
    /// The same for failures of the same cause, as far as source and error tell.
    pub fingerprint: String,
    /// What is to be done about it.
    pub status: Status,
    /// The onboarding that it belongs to, where its payload tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OnboardingId>,
    /// The site, where its payload tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_id: Option<SiteId>,
    /// ARN of the execution that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// The messages that told of it; one that comes again is known by it.
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

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum FailuresError {
    /// A file can't be read or written.
    #[error("file {key} of bucket {bucket}: {reason}")]
    File {
        /// Of S3.
        bucket: String,
        /// The object's.
        key: String,
        /// S3's words.
        reason: String,
    },
    /// Others changed the row, time and again.
    #[error("failure {0} is changed by others all the time; try again")]
    Overtaken(FailureId),
    /// Lambda can't describe a mapping now: throttled, timed out, out of reach.
    #[error("mapping {mapping} could not be checked: {reason}")]
    Unchecked {
        /// Its name in the template.
        mapping: String,
        /// Why.
        reason: String,
    },
    /// Lambda refuses to describe a mapping, and would again.
    #[error("mapping {mapping} may not be checked: {reason}")]
    Refused {
        /// Its name in the template.
        mapping: String,
        /// Lambda's code and message.
        reason: String,
    },
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for FailuresError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. } | Self::Overtaken(_) | Self::Unchecked { .. } => ErrorKind::Transient,
            Self::Refused { .. } => ErrorKind::Internal,
            Self::Store(error) => error.into(),
        }
    }
}
