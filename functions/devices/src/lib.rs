//! Devices: a site's sensors, as one entity.
//!
//! Owns the devices table, key `id`: `sensors#<uuid>` ([`SensorsRow`]). Emits the events of the
//! entity `sensors`. Deprovisioned sensors stay as a tombstone: it fences off a provisioning that
//! comes late.

pub mod deprovision_sensors;
pub mod provision_sensors;

use contracts::{Saga, Sensor, SensorsId, Timestamp};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The sensors of one onboarding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorsRow {
    /// Whose they are.
    #[serde(flatten)]
    pub saga: Saga,
    /// Where they stand.
    #[serde(flatten)]
    pub state: Sensors,
    /// Their events so far.
    pub sequence: u64,
    /// When it came to this.
    pub at: Timestamp,
}

impl SensorsRow {
    /// Its key.
    #[must_use]
    pub fn key(sensors: SensorsId) -> Key {
        Key::id(format!("sensors#{sensors}"))
    }
}

/// The sensors' state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Sensors {
    /// They exist and may report.
    Provisioned {
        /// All of them.
        sensors: Vec<Sensor>,
    },
    /// Tombstone: there are none, nor ever will be.
    Deprovisioned,
}

impl Sensors {
    /// The name in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Provisioned { .. } => "PROVISIONED",
            Self::Deprovisioned => "DEPROVISIONED",
        }
    }
}

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The sensors were deprovisioned before they were provisioned.
    #[error("sensors {0} were deprovisioned before they were provisioned")]
    Superseded(SensorsId),
    /// The row changed while the decision was made.
    #[error("sensors {0} are being changed by others")]
    Busy(SensorsId),
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for DevicesError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::Busy(_) => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
