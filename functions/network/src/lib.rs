//! The network at a glance: counts of sites by status, and of events by day and type, for each operator.
//!
//! This crate owns the network table. Its key is `id` and `row`. All rows except one belong to a generation
//! ([`store::generation`]), whose number is the first part of `id`:
//!
//! - `state`, `state`: the current generation and the one that is being built ([`store::generation::State`]).
//! - `<generation>/cursor#<log key>`, `cursor`: how far the events of an entity are counted. In the cursor of a site,
//!   the attribute `state` is the site's status.
//! - `<generation>/<operator>`, `sites#<shard>`: the number of sites by status.
//! - `<generation>/<operator>/events#<shard>`, `<YYYY-MM-DD>#<event type>`: `count` is the number of events of that day (UTC)
//!   and type. One query of a shard reads any number of days. Each type has a row of its own, because an operator may
//!   invent any number of types with up to 128 characters: a row of all types could become larger than DynamoDB allows.
//!
//! The counts are spread over [`store::SHARDS`] shards, so that concurrent executions rarely write the same row at the
//! same time. The counts of an entity are always in the same shard. No count is ever negative: each site is counted in
//! exactly one status, and its changes are always in the same row.

pub mod get_summary;
pub mod watch_network;

use contracts::{OperatorId, open::OpenEnvelope};
use fault::{ErrorKind, Fault};
use store::StoreError;

/// The status of a site, as its events tell. A site that is being decommissioned is still ACTIVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The onboarding has not ended.
    Onboarding,
    /// The onboarding succeeded, and the decommissioning, if there is one, has not ended.
    Active,
    /// The onboarding failed.
    Rejected,
    /// The site was taken out of service.
    Decommissioned,
}

impl Status {
    /// All statuses.
    pub const ALL: [Self; 4] =
        [Self::Onboarding, Self::Active, Self::Rejected, Self::Decommissioned];

    /// Returns the name in rows and responses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Onboarding => "ONBOARDING",
            Self::Active => "ACTIVE",
            Self::Rejected => "REJECTED",
            Self::Decommissioned => "DECOMMISSIONED",
        }
    }

    /// Returns the status with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Returns the status of a site after an event. Returns `None` for an event that does not change a site's status.
    #[must_use]
    pub fn after(event: &OpenEnvelope) -> Option<Self> {
        if event.metadata.entity.own_type() != Some(contracts::EntityType::Site) {
            return None;
        }
        match event.metadata.kind.as_str() {
            "SiteCreated" => Some(Self::Onboarding),
            "SiteActivated" => Some(Self::Active),
            "SiteRejected" => Some(Self::Rejected),
            "SiteDecommissioned" => Some(Self::Decommissioned),
            _ => None,
        }
    }
}

/// The attribute of a type's row with the number of events.
pub(crate) const COUNT: &str = "count";

/// Returns the partition of the rows that count an operator's sites. The generation is not included.
pub(crate) fn sites_id(operator: OperatorId) -> String {
    operator.to_string()
}

/// Returns the partition of the rows that count an operator's events. The generation is not included.
pub(crate) fn events_id(operator: OperatorId, shard: u8) -> String {
    format!("{operator}/events#{shard}")
}

/// Returns the sort key of the row that counts the events of a day and type.
pub(crate) fn events_row(day: &str, kind: &str) -> String {
    format!("{day}#{kind}")
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A call to the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row has an attribute that is not a count.
    #[error("row {row} can't be used: {attribute} is not a count")]
    NotACount {
        /// The row's sort key.
        row: String,
        /// The attribute.
        attribute: String,
    },
}

impl Fault for NetworkError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.into(),
            Self::NotACount { .. } => ErrorKind::Internal,
        }
    }
}
