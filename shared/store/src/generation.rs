//! The generations of a consumer that can be rebuilt: the keys of its rows, and the row that names the generations.
//!
//! The consumer's table has the partition key `id` and the sort key `row`. All rows except the state row belong to a
//! generation, whose number is the first part of `id`. `shared/consumer` changes the generations; fieldctl reads them.

use std::collections::BTreeSet;

use contracts::Timestamp;
use serde::Deserialize;

use crate::{Key, StoreError, Table};

/// The generation of a consumer that was never rebuilt.
const FIRST: u64 = 1;
/// The beginning of a cursor's partition key, after the generation.
const CURSOR: &str = "cursor#";

/// The generations that exist.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The generation that readers see.
    pub current: u64,
    /// The generation that is being built.
    pub building: Option<u64>,
    /// The last generation whose build was aborted. Its number is not used again, because some of its rows may be left.
    pub aborted: Option<u64>,
    /// The entities with a live event that could not be applied to the generation that is being built, by their keys in
    /// the log. The generation can't become the current one while there are any.
    #[serde(default)]
    pub unapplied: BTreeSet<String>,
    /// From when on the rows of other generations may be deleted. Absent if there are none.
    pub clean_after: Option<Timestamp>,
    /// Where the deletion continues.
    pub clean_from: Option<[String; 2]>,
}

impl State {
    /// Returns the key of the row.
    #[must_use]
    pub fn key() -> Key {
        Key::pair(("id", "state"), ("row", "state"))
    }

    /// Reads the state. A consumer that was never rebuilt has no state row.
    pub async fn read(table: &Table) -> Result<Self, StoreError> {
        Ok(table.get(&Self::key()).await?.unwrap_or(Self {
            current: FIRST,
            building: None,
            aborted: None,
            unapplied: BTreeSet::new(),
            clean_after: None,
            clean_from: None,
        }))
    }

    /// Returns the generations to which live events are applied.
    pub fn live(&self) -> impl Iterator<Item = u64> {
        [Some(self.current), self.building].into_iter().flatten()
    }

    /// Returns whether live events are applied to the generation.
    #[must_use]
    pub fn is_live(&self, generation: u64) -> bool {
        self.live().any(|live| live == generation)
    }
}

/// Returns the partition key of a row of a generation.
#[must_use]
pub fn id(generation: u64, id: &str) -> String {
    format!("{generation}/{id}")
}

/// Returns the key of a row of a generation.
#[must_use]
pub fn key(generation: u64, id: &str, row: &str) -> Key {
    Key::pair(("id", self::id(generation, id)), ("row", row))
}

/// Returns the key of an entity's cursor row. The row's attribute `sequence` is the sequence of the last applied event.
#[must_use]
pub fn cursor_key(generation: u64, log_key: &str) -> Key {
    key(generation, &format!("{CURSOR}{log_key}"), "cursor")
}

/// Returns the entity's key in the log, if the row with this partition key is a cursor.
#[must_use]
pub fn entity_of_cursor(id: &str) -> Option<&str> {
    id.split_once('/')?.1.strip_prefix(CURSOR)
}

/// Returns the generation of the row with this partition key. Returns `None` for the state row.
#[must_use]
pub fn of_row(id: &str) -> Option<u64> {
    id.split_once('/')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_key_has_the_generation_and_a_cursor_has_the_entity() {
        let key = cursor_key(12, "site#a/b").item();
        let id = key["id"].as_s().expect("a text");
        assert_eq!((of_row(id), entity_of_cursor(id)), (Some(12), Some("site#a/b")));
        let other = super::id(3, "events#1");
        assert_eq!((of_row(&other), entity_of_cursor(&other)), (Some(3), None));
        assert_eq!((of_row("state"), entity_of_cursor("state")), (None, None));
    }
}
