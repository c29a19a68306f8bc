//! Sites: their registration, their read model, their end.
//!
//! Owns the sites table. Key `siteId` and `row`: row `SITE` is the site itself ([`SiteRow`]), rows
//! `STEP#<name>` are what it heard of its onboarding's steps ([`StepRow`]). Emits the events of the
//! entity `site`. A site's status goes ONBOARDING -> ACTIVE -> DECOMMISSIONING -> DECOMMISSIONED, or
//! ONBOARDING -> REJECTED; REJECTED and DECOMMISSIONED are final, and are the tombstones that a late
//! activation finds.

pub mod activate_site;
pub mod close_site;
pub mod create_site;
pub mod decommission_site;
pub mod get_site;
pub mod import_site;
pub mod project_site;
pub mod registration;

use contracts::{
    Failure, IdMismatch, Location, OnboardingId, Plan, Sensor, SiteId, Timestamp,
    input::{FieldError, in_one_line},
};
use fault::{ErrorKind, Fault};
use machines::MachineError;
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// Where a site is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// The saga runs.
    Onboarding,
    /// In service.
    Active,
    /// The onboarding failed and was undone.
    Rejected,
    /// Being taken out of service.
    Decommissioning,
    /// Out of service for good.
    Decommissioned,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Onboarding,
        Self::Active,
        Self::Rejected,
        Self::Decommissioning,
        Self::Decommissioned,
    ];

    /// The name on every wire and in every row.
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

/// The site itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteRow {
    /// Where it is in its life; partition key of the index `byStatus`.
    pub status: Status,
    /// Its name.
    pub name: String,
    /// Who runs it.
    pub operator: String,
    /// Where it stands.
    pub location: Location,
    /// What it measures.
    pub sensors: Vec<Sensor>,
    /// What the operator subscribes to.
    pub plan: Plan,
    /// Its one saga.
    pub onboarding_id: OnboardingId,
    /// SHA-256 of the registration: tells a repeated request from another one with its key.
    pub request_hash: String,
    /// Its events so far.
    pub sequence: u64,
    /// When it was registered; sort key of the index `byStatus`.
    pub created_at: Timestamp,
    /// When it went into service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<Timestamp>,
    /// When it was rejected or decommissioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// Why it was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl SiteRow {
    /// Its key.
    #[must_use]
    pub fn key(site: SiteId) -> Key {
        Key::pair(("siteId", site.to_string()), ("row", "SITE"))
    }
}

/// What became of one step of the saga, as the steps' events told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRow {
    /// The saga's name for it.
    pub name: String,
    /// What became of it.
    pub status: StepStatus,
    /// When.
    pub at: Timestamp,
    /// Of the event that told it.
    pub sequence: u64,
}

impl StepRow {
    /// Its key.
    #[must_use]
    pub fn key(site: SiteId, name: &str) -> Key {
        Key::pair(("siteId", site.to_string()), ("row", format!("STEP#{name}")))
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StepStatus {
    /// Done.
    Completed,
    /// Refused.
    Failed,
    /// Done, and undone since.
    Undone,
}

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum SitesError {
    /// The registration is wrong.
    #[error("{}", in_one_line(.0))]
    Invalid(Vec<FieldError>),
    /// An event's ids belong to different sites.
    #[error(transparent)]
    WrongSite(#[from] IdMismatch),
    /// The same idempotency key came with another registration.
    #[error(
        "this key already made site {0} from another registration; use a new key for a new site"
    )]
    KeyReused(SiteId),
    /// There is no such site.
    #[error("there is no site {0}")]
    Unknown(SiteId),
    /// The site was closed before.
    #[error("site {0} was closed before it was activated")]
    Superseded(SiteId),
    /// The site changed while the decision was made, again and again.
    #[error("site {0} is being changed by others")]
    Busy(SiteId),
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The teardown can't be started.
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
