//! The network at a glance: counts of sites by status, and of events by day and type, for each operator.
//!
//! This crate owns the network table. Its key is `id` and `row`. All rows except one belong to a generation
//! ([`consumer::rebuild`]), whose number is the first part of `id`:
//!
//! - `state`, `state`: the current generation and the one that is being built ([`consumer::rebuild::State`]).
//! - `<generation>/cursor#<log key>`, `cursor`: how far the events of an entity are counted. For a site, `state` is its
//!   status.
//! - `<generation>/<operator>`, `sites#<shard>`: the number of sites by status.
//! - `<generation>/<operator>`, `day#<YYYY-MM-DD>#<shard>`: the number of events of that day (UTC) by type. The attribute
//!   of a type is `type_` and the type, in which `_xx` stands for a byte that is neither a letter nor a digit.
//!
//! The counts of an entity are always in the same shard, so that concurrent executions rarely write the same row. Their
//! sum is never negative: each site is counted in exactly one status.

pub mod get_summary;
pub mod watch_network;

use std::fmt::Write;

use consumer::rebuild;
use contracts::{OperatorId, open::OpenEnvelope};
use fault::{ErrorKind, Fault};
use store::{Key, StoreError};

/// The status of a site, as its events tell. A site that is being decommissioned is still ACTIVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The onboarding has not ended.
    Onboarding,
    /// The site accepts readings.
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

/// Returns the key of the row that counts an operator's sites.
pub(crate) fn sites_key(generation: u64, operator: OperatorId, shard: u8) -> Key {
    rebuild::key(generation, &operator.to_string(), &format!("sites#{shard}"))
}

/// Returns the key of the row that counts an operator's events of a day.
pub(crate) fn day_key(generation: u64, operator: OperatorId, day: &str, shard: u8) -> Key {
    rebuild::key(generation, &operator.to_string(), &format!("day#{day}#{shard}"))
}

const TYPE: &str = "type_";

/// Returns the attribute that counts an event type. Types of other systems may contain any character.
pub(crate) fn attribute(kind: &str) -> String {
    let mut name = TYPE.to_owned();
    for byte in kind.bytes() {
        if byte.is_ascii_alphanumeric() {
            name.push(char::from(byte));
        } else {
            // Writing to a `String` never fails.
            write!(name, "_{byte:02x}").unwrap_or_default();
        }
    }
    name
}

/// Returns the event type that an attribute counts. Returns `None` for an attribute that counts no type.
pub(crate) fn kind(attribute: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = attribute.strip_prefix(TYPE)?.split('_');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(bytes).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_an_attribute_of_its_own() {
        for text in ["SiteCreated", "com.acme/sample taken", "a_b", "a.b", "ä", "", "_5f"] {
            let name = attribute(text);
            assert!(name.chars().all(|it| it == '_' || it.is_ascii_alphanumeric()), "{name}");
            assert_eq!(kind(&name).as_deref(), Some(text));
        }
        assert_eq!(attribute("a.b"), "type_a_2eb");
        for other in ["id", "row", "type_a_", "type_a_zz"] {
            assert_eq!(kind(other), None, "{other}");
        }
    }
}
