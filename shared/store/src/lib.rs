//! Access to DynamoDB for the services and fieldctl.
//!
//! A step commits one [`Transaction`]: the business row and the event row are written together or not at all. A
//! condition on the existence, the status or the `sequence` of the business row prevents duplicates, so no marker row
//! is needed. [`Idempotency`] is for effects outside DynamoDB.

mod decision;
mod error;
pub mod generation;
mod idempotency;
mod outbox;
mod read;
mod source;
mod table;
mod transaction;

pub use decision::{Decision, decide_and_commit};
pub use error::StoreError;
pub use idempotency::{BeginResult, Idempotency, Lock};
pub use outbox::{EventRow, NewEvent, Outbox, SHARDS, shard, type_bucket};
pub use read::{BatchGet, Item, Page, Query, from_item};
pub use source::SourceRow;
pub use table::{Key, Table, to_item};
pub use transaction::{Commit, FailedConditions, Transaction, jittered};
