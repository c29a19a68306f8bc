//! Mode `latest`: projects the newest event of an entity.

use serde::Serialize;
use store::{Commit, Key, StoreError, Table, Transaction};

/// The result of projecting one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// The event is newer than the row and was stored.
    Stored,
    /// The event is a duplicate, or older than the row.
    Stale,
}

/// Replaces the row at `key`, unless it already has the same or a higher sequence.
///
/// `row` must have an attribute `sequence` with the value of `sequence`. All events that are projected into one row
/// must belong to the same entity.
pub async fn project<R: Serialize>(
    table: &Table,
    key: &Key,
    row: &R,
    sequence: u64,
) -> Result<Projection, StoreError> {
    let commit = Transaction::on(table).put_if_newer(table, key, row, sequence).commit().await?;
    Ok(match commit {
        Commit::Done => Projection::Stored,
        Commit::Refused(_) => Projection::Stale,
    })
}
