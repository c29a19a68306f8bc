//! DynamoDB as the services use it.
//!
//! One effect is one [`Transaction`]: business row, guard and event row commit together or not at
//! all. A row's own existence, status or `sequence` is the guard (a natural key beats a marker);
//! [`Idempotency`] is for effects outside DynamoDB.

mod error;
mod idempotency;
mod outbox;
mod read;
mod table;
mod transaction;

pub use error::StoreError;
pub use idempotency::{Begin, Idempotency, Lock};
pub use outbox::{EventRow, NewEvent, Outbox, UNPUBLISHED_SHARDS};
pub use read::{BatchGet, Item, Page, Query, from_item};
pub use table::{Key, Table};
pub use transaction::{Commit, Refused, Transaction, jittered};
