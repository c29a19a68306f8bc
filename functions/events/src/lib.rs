//! Events: the outbox's way to EventBridge.
//!
//! Owns the events table: key `entity` and `sequence`, a row per domain event
//! ([`store::EventRow`]), put there by the services' transactions, never changed but for being
//! marked published, kept for good. No other function calls PutEvents.

pub mod publish_events;
pub mod publisher;
pub mod sweep_events;

use lambda::{ErrorKind, Fault};
use store::StoreError;

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// Some events could not be published; they stay marked as unpublished.
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
