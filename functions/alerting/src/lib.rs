//! Alerting on the limits of a site's sensors.
//!
//! This crate owns the alerting table. Its key is `id`, with values `alerting#<uuid>` ([`AlertingRow`]). The crate
//! emits the events of the entity `alerting`. A removed configuration stays as a tombstone, which prevents a late
//! configuration.

pub mod configure_alerting;
pub mod detect_breaches;
pub mod judging;
pub mod remove_alerting;
pub mod watermarks;

use contracts::{AlertingId, SagaContext, Sensor, Timestamp, events::Limit};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The alerting configuration of one onboarding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AlertingRow {
    /// The saga of the onboarding.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// The state of the configuration.
    #[serde(flatten)]
    pub state: Alerting,
    /// The sequence number of its last event.
    pub sequence: u64,
    /// The time of the last change.
    pub at: Timestamp,
}

impl AlertingRow {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(alerting: AlertingId) -> Key {
        Key::id(format!("alerting#{alerting}"))
    }
}

/// The state of an alerting configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Alerting {
    /// The limits are watched.
    Configured {
        /// The rules of the sensors that have limits.
        rules: Vec<Rule>,
    },
    /// A tombstone: the limits are not watched and will never be watched again.
    Removed,
}

impl Alerting {
    /// Returns the name of the state in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Configured { .. } => "CONFIGURED",
            Self::Removed => "REMOVED",
        }
    }
}

/// A sensor with limits, and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The sensor and its limits.
    #[serde(flatten)]
    pub sensor: Sensor,
    /// The state after the judged readings. Rows of earlier releases have no state and are read as `Normal`.
    #[serde(default)]
    pub state: State,
    /// The time of the reading that last changed the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
}

impl Rule {
    /// Returns a rule in the state `Normal`, before any reading was judged.
    #[must_use]
    pub fn new(sensor: Sensor) -> Self {
        Self { sensor, state: State::Normal, changed_at: None }
    }
}

/// The state of a sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum State {
    /// Within the limits.
    #[default]
    Normal,
    /// Beyond a limit, or not yet back within it by the deadband.
    Breached {
        /// The limit that was breached.
        limit: Limit,
        /// The time of the reading that breached it.
        breached_at: Timestamp,
    },
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum AlertingError {
    /// The configuration is already removed, so it can't be created.
    #[error("alerting {0} is already removed")]
    Superseded(AlertingId),
    /// Another writer changed the row between the read and the conditional write.
    #[error("another writer changed alerting {0}")]
    Busy(AlertingId),
    /// A call to the table failed.
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
