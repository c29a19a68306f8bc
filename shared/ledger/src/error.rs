//! Why a failure can't be read or recorded.

use fault::{ErrorKind, Fault};
use store::StoreError;

use crate::FailureId;

/// An error of the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file can't be read or written.
    #[error("file {key} of bucket {bucket}: {reason}")]
    File {
        /// Its bucket.
        bucket: String,
        /// Its key.
        key: String,
        /// What S3 answered.
        reason: String,
    },
    /// Other writers changed the row each time.
    #[error("failure {0} is changed by others all the time; try again")]
    Overtaken(FailureId),
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for LedgerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. } | Self::Overtaken(_) => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
