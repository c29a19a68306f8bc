//! The sensors of a site, as one entity.
//!
//! This crate owns the devices table. Its key is `id`, with values `sensors#<uuid>` ([`SensorsRow`]). The crate
//! emits the events of the entity `sensors`. Deprovisioned sensors stay as a tombstone, which prevents a late
//! provisioning.
//!
//! A request to change a sensor contains only the sensor's id. The key of the row is derived from the site's id, and a
//! sensor's id does not tell its site. So `update-sensor` first reads the sensor's site in telemetry's register
//! ([`series::register`]).

pub mod deprovision_sensors;
pub mod provision_sensors;
pub mod update_sensor;

use contracts::{SagaContext, Sensor, SensorsId, Timestamp};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The sensors of one onboarding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorsRow {
    /// The saga of the onboarding.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// The state of the sensors.
    #[serde(flatten)]
    pub state: Sensors,
    /// The sequence number of their last event.
    pub sequence: u64,
    /// The time of the last change.
    pub at: Timestamp,
}

impl SensorsRow {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(sensors: SensorsId) -> Key {
        Key::id(format!("sensors#{sensors}"))
    }
}

/// The state of a site's sensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Sensors {
    /// The sensors exist and may send readings.
    Provisioned {
        /// All sensors of the site.
        sensors: Vec<Sensor>,
    },
    /// A tombstone: there are no sensors and will never be any again.
    Deprovisioned,
}

impl Sensors {
    /// Returns the name of the state in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Provisioned { .. } => "PROVISIONED",
            Self::Deprovisioned => "DEPROVISIONED",
        }
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The sensors are already deprovisioned, so they can't be provisioned.
    #[error("sensors {0} are already deprovisioned")]
    Superseded(SensorsId),
    /// Other writers changed the row at the same time.
    #[error("another writer changed sensors {0}")]
    Busy(SensorsId),
    /// A call to the table failed.
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
