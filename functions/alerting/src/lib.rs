//! Alerting: the limits that a site's sensors are watched for.
//!
//! Owns the alerting table, key `id`: `alerting#<uuid>` ([`AlertingRow`]). Emits the events of the
//! entity `alerting`. A removed configuration stays as a tombstone: it fences off a configuration
//! that comes late.

pub mod configure_alerting;
pub mod detect_breaches;
pub mod judging;
pub mod memory;
pub mod remove_alerting;

use contracts::{AlertingId, Saga, Sensor, Timestamp, events::Limit};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The alerting configuration of one onboarding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AlertingRow {
    /// Whose it is.
    #[serde(flatten)]
    pub saga: Saga,
    /// Where it stands.
    #[serde(flatten)]
    pub state: Alerting,
    /// Its events so far.
    pub sequence: u64,
    /// When it came to this.
    pub at: Timestamp,
}

impl AlertingRow {
    /// Its key.
    #[must_use]
    pub fn key(alerting: AlertingId) -> Key {
        Key::id(format!("alerting#{alerting}"))
    }
}

/// A configuration's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Alerting {
    /// The limits are watched.
    Configured {
        /// The sensors that have any, each with its own.
        rules: Vec<Rule>,
    },
    /// Tombstone: nothing is watched, nor ever will be.
    Removed,
}

impl Alerting {
    /// The name in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Configured { .. } => "CONFIGURED",
            Self::Removed => "REMOVED",
        }
    }
}

/// A sensor with limits, and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The sensor and its limits.
    #[serde(flatten)]
    pub sensor: Sensor,
    /// What its readings came to. Rows of earlier releases have none: nothing was judged then.
    #[serde(default)]
    pub state: State,
    /// When the reading was taken that last changed the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
}

impl Rule {
    /// A sensor of which nothing was judged yet.
    #[must_use]
    pub fn new(sensor: Sensor) -> Self {
        Self { sensor, state: State::Normal, changed_at: None }
    }
}

/// What a sensor's readings came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum State {
    /// Within the limits.
    #[default]
    Normal,
    /// Beyond one of them, or not yet back by the deadband.
    Breached {
        /// Which.
        limit: Limit,
        /// When the reading was taken that went beyond it.
        breached_at: Timestamp,
    },
}

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum AlertingError {
    /// The configuration was removed before it was made.
    #[error("alerting {0} was removed before it was configured")]
    Superseded(AlertingId),
    /// The row changed while the decision was made.
    #[error("alerting {0} is being changed by others")]
    Busy(AlertingId),
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for AlertingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::Busy(_) => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
