//! Decides on a row and commits the decision, if no other writer has changed the row in the meantime.

use serde::de::DeserializeOwned;

use crate::{Commit, Key, StoreError, Transaction};

/// What a writer does with a row.
#[derive(Debug)]
pub enum Decision<T> {
    /// Leaves the row as it is. Holds the result.
    Keep(T),
    /// Commits the transaction, which must have the condition that the row is unchanged. Holds what is returned once
    /// it is committed.
    Change(Transaction, T),
}

/// Decides on a row that the caller has read or assumes, and commits the decision. If another writer has changed the
/// row, decides again on the row that the refusal returned. `decide` is called at most `attempts` times.
///
/// Returns `None` if other writers were faster each time, if the transaction was refused for another reason than this
/// row, or if the row does not exist any more. Returns the first error of `decide` or of a commit.
pub async fn decide_and_commit<R: DeserializeOwned, T, E: From<StoreError>>(
    attempts: usize,
    key: &Key,
    mut row: R,
    mut decide: impl FnMut(&R) -> Result<Decision<T>, E>,
) -> Result<Option<T>, E> {
    for _ in 0..attempts {
        let (transaction, result) = match decide(&row)? {
            Decision::Keep(result) => return Ok(Some(result)),
            Decision::Change(transaction, result) => (transaction, result),
        };
        match transaction.commit().await? {
            Commit::Done => return Ok(Some(result)),
            Commit::Refused(refused) => match refused.row(key)? {
                Some(newer) => row = newer,
                None => break,
            },
        }
    }
    Ok(None)
}
