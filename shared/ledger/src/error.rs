//! Errors of reading and recording failures.

use fault::{ErrorKind, Fault};
use store::StoreError;

use crate::FailureId;

/// An error of the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file can't be read or written.
    #[error("file {key} of bucket {bucket}: {reason}")]
    File {
        /// The file's bucket.
        bucket: String,
        /// The file's key.
        key: String,
        /// The error of the call to S3.
        reason: String,
    },
    /// Other writers changed the row during each attempt.
    #[error("failure {0} was changed concurrently too often; try again")]
    Contended(FailureId),
    /// A read or write of the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for LedgerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. } | Self::Contended(_) => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
