//! Alerting: the limits that a site's sensors are watched for.
//!
//! Owns the alerting table, key `id`: `alerting#<uuid>` ([`AlertingRow`]). Emits the events of the
//! entity `alerting`. A removed configuration stays as a tombstone: it fences off a configuration
//! that comes late.

pub mod configure_alerting;
pub mod remove_alerting;

use contracts::{AlertingId, Saga, Sensor, Timestamp};
use lambda::{ErrorKind, Fault};
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
        rules: Vec<Sensor>,
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
