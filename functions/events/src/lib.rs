//! Events: publishes the outbox to EventBridge.
//!
//! Owns the events table: key `entity` and `sequence`, a row per domain event ([`store::EventRow`]). The
//! services' transactions insert the rows. These functions only mark them as published or refused. Rows
//! are kept for good. No other function calls PutEvents.

pub mod publish_events;
pub mod publisher;
pub mod sweep_events;

use fault::{ErrorKind, Fault};
use store::StoreError;

/// An error of these functions.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// Some events could not be published now. They stay marked as unpublished.
    #[error("{unpublished} of {found} events could not be published, the first because: {reason}")]
    Unpublished {
        /// How many.
        unpublished: usize,
        /// Of how many.
        found: usize,
        /// Why the first of them.
        reason: String,
    },
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for EventsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unpublished { .. } => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
