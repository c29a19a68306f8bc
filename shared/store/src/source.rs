//! The claims of sources: which operator the appended events of a `source` belong to. They are rows of the guards table.

use contracts::{OperatorId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::Key;

/// The beginning of a claim's key.
const PREFIX: &str = "source#";

/// The claim of a source: the operator that used it first, or to which an engineer on call gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRow {
    /// The operator that owns the source.
    pub operator_id: OperatorId,
    /// When it used the source for the first time, or got it.
    pub claimed_at: Timestamp,
}

impl SourceRow {
    /// The index of the claims, by operator. No other rows of the table are in it.
    pub const INDEX: &str = "sources";

    /// Returns the key of the claim.
    #[must_use]
    pub fn key(source: &str) -> Key {
        Key::id(format!("{PREFIX}{source}"))
    }

    /// Returns the source of the claim with this key.
    #[must_use]
    pub fn source(id: &str) -> Option<&str> {
        id.strip_prefix(PREFIX)
    }
}
