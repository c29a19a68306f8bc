//! Registration, read model and end of life of sites.
//!
//! This crate owns the sites table. Its key is `siteId` and `row`. The row `SITE` is the site itself
//! ([`SiteRow`]). Rows `STEP#<name>` hold the state of the onboarding's other steps, projected from their events
//! ([`StepRow`]). The state of the step `ActivateSite` is in the row `SITE`. Rows `SENSOR#<sensor id>` hold the sensors that
//! were changed after the registration ([`ChangedSensorRow`]). The crate emits the events of the entity
//! `site`.
//!
//! A site's status goes ONBOARDING -> ACTIVE -> DECOMMISSIONING -> DECOMMISSIONED, or ONBOARDING -> REJECTED.
//! The teardown also closes a site that is ACTIVE. The site becomes REJECTED if its onboarding failed after the
//! activation was committed. It becomes DECOMMISSIONED if `decommission-site` has started the teardown but not yet set
//! DECOMMISSIONING. REJECTED and DECOMMISSIONED are final. Rows with these statuses are tombstones: a late activation
//! finds them and changes nothing.
//!
//! The name, the contact and the location of an ACTIVE site can be changed ([`update_site`]). Each write of a row
//! `SITE` that exists replaces the whole row. It is conditional on the status and the sequence. The activation is
//! conditional on the status only, because nothing else changes a site that is ONBOARDING without changing its status.
//! Only DECOMMISSIONING is set without an event, so the sequence stays. The contact is removed when the site is closed.
//! It is personal data, and a closed site can't be changed, so nobody could remove it later.

pub mod activate_site;
pub mod close_site;
pub mod create_site;
pub mod decommission_site;
pub mod get_site;
pub mod import_site;
pub mod project_site;
pub mod registration;
pub mod update_site;

use contracts::{
    Contact, IdMismatch, Location, OnboardingFailure, OnboardingId, OperatorId, Plan, Sensor,
    SensorId, SiteId, Timestamp, UtcOffset,
    input::{FieldError, join_errors},
    names::operator_status,
};
use fault::{ErrorKind, Fault};
use machines::MachineError;
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The maximum number of attempts to write a site's row that other requests change at the same time.
const MAX_ATTEMPTS: usize = 10;

/// The status of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// The onboarding is running.
    Onboarding,
    /// In service.
    Active,
    /// The onboarding failed, and its undos have run. This status is final.
    Rejected,
    /// The teardown is taking the site out of service.
    Decommissioning,
    /// Out of service. This status is final.
    Decommissioned,
}

impl Status {
    /// All statuses.
    pub const ALL: [Self; 5] = [
        Self::Onboarding,
        Self::Active,
        Self::Rejected,
        Self::Decommissioning,
        Self::Decommissioned,
    ];

    /// Returns the name that requests, responses and rows use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Onboarding => "ONBOARDING",
            Self::Active => "ACTIVE",
            Self::Rejected => "REJECTED",
            Self::Decommissioning => "DECOMMISSIONING",
            Self::Decommissioned => "DECOMMISSIONED",
        }
    }
}

/// The owner of a site and its status. A row also has both in one attribute, `operatorStatus`, which is the partition key
/// of the index `byOperator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredStatus", into = "StoredStatus")]
pub struct OwnedStatus {
    /// The operator that owns the site. It never changes.
    pub operator_id: OperatorId,
    /// The status.
    pub status: Status,
}

/// The attributes of [`OwnedStatus`]. Rows of releases before there were operators have only the status.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredStatus {
    status: Status,
    #[serde(default)]
    operator_id: OperatorId,
    #[serde(default)]
    operator_status: String,
}

impl From<StoredStatus> for OwnedStatus {
    fn from(stored: StoredStatus) -> Self {
        Self { operator_id: stored.operator_id, status: stored.status }
    }
}

impl From<OwnedStatus> for StoredStatus {
    fn from(OwnedStatus { operator_id, status }: OwnedStatus) -> Self {
        Self { status, operator_id, operator_status: operator_status(operator_id, status.name()) }
    }
}

/// The row `SITE`: the site itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteRow {
    /// The owner and the status.
    #[serde(flatten)]
    pub owned: OwnedStatus,
    /// The name of the site.
    pub name: String,
    /// The name of the organisation that operates the site.
    pub operator: String,
    /// The position of the site.
    pub location: Location,
    /// Whom to contact about the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    /// The sensors of the site.
    pub sensors: Vec<Sensor>,
    /// The subscription plan.
    pub plan: Plan,
    /// The id of the site's only onboarding.
    pub onboarding_id: OnboardingId,
    /// SHA-256 of the registration. It distinguishes a repeated request from another request with the same
    /// idempotency key.
    pub request_hash: String,
    /// The sequence number of the site's last event.
    pub sequence: u64,
    /// The time of the registration; sort key of the index `byOperator`.
    pub created_at: Timestamp,
    /// The time of the activation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<Timestamp>,
    /// The time of the rejection or the decommissioning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// The failure that caused the rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<OnboardingFailure>,
}

impl SiteRow {
    /// Returns the key of the site's row.
    #[must_use]
    pub fn key(site: SiteId) -> Key {
        Key::pair(("siteId", site.to_string()), ("row", "SITE"))
    }

    /// Returns the fixed UTC offset that was declared for the site. Its sensors have it.
    #[must_use]
    pub fn utc_offset(&self) -> Option<UtcOffset> {
        self.sensors.first().and_then(|sensor| sensor.utc_offset)
    }

    /// Returns the site's status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.owned.status
    }

    /// Returns the row with another status.
    #[must_use]
    pub fn with_status(self, status: Status) -> Self {
        Self { owned: OwnedStatus { status, ..self.owned }, ..self }
    }
}

/// The row `STEP#<name>`: the last known state of one step, projected from the step's events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRow {
    /// The step's name in the saga.
    pub name: String,
    /// The step's state.
    pub status: StepStatus,
    /// The time of the event.
    pub at: Timestamp,
    /// The sequence number of the event.
    pub sequence: u64,
}

impl StepRow {
    /// Returns the key of the step's row.
    #[must_use]
    pub fn key(site: SiteId, name: &str) -> Key {
        Key::pair(("siteId", site.to_string()), ("row", format!("STEP#{name}")))
    }
}

/// The row `SENSOR#<sensor id>`: a sensor that was changed after the registration, projected from `SensorChanged`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangedSensorRow {
    /// The sensor after the change.
    pub sensor: Sensor,
    /// The sequence number of the event.
    pub sequence: u64,
}

impl ChangedSensorRow {
    /// Returns the key of the sensor's row.
    #[must_use]
    pub fn key(site: SiteId, sensor: SensorId) -> Key {
        Key::pair(("siteId", site.to_string()), ("row", format!("SENSOR#{sensor}")))
    }
}

/// The state of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepStatus {
    /// The step is done.
    Completed,
    /// The step refused the onboarding, or failed.
    Failed,
    /// The step's effects were undone.
    Undone,
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum SitesError {
    /// The registration is invalid.
    #[error("{}", join_errors(.0))]
    Invalid(Vec<FieldError>),
    /// The ids in an event belong to different sites.
    #[error(transparent)]
    WrongSite(#[from] IdMismatch),
    /// The idempotency key was used before, with another registration.
    #[error(
        "this idempotency key was used for site {0} with a different registration; use a new key"
    )]
    KeyReused(SiteId),
    /// The site does not exist.
    #[error("there is no site {0}")]
    Unknown(SiteId),
    /// The site is closed or being decommissioned, so it can't be activated.
    #[error("site {0} is closed or is being closed")]
    Superseded(SiteId),
    /// Another writer changed the site at the same time.
    #[error("another writer changed site {0}")]
    Busy(SiteId),
    /// A call to the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The teardown could not be started.
    #[error(transparent)]
    Teardown(#[from] MachineError),
}

impl Fault for SitesError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) | Self::WrongSite(_) | Self::KeyReused(_) | Self::Unknown(_) => {
                ErrorKind::InvalidInput
            }
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::Busy(_) => ErrorKind::Transient,
            Self::Teardown(error) => error.kind(),
            Self::Store(error) => error.into(),
        }
    }
}
