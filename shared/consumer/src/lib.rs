//! Consumers of Fieldstation's events. [`contracts::consumers::EVENT_CONSUMERS`] lists them.
//!
//! - [`latest`]: a projection of the newest event of an entity. The sequence is kept in the projected row, older events
//!   are skipped, and missing events are not read. It may read from the event bus.
//! - [`every`]: each event takes effect exactly once, in the order of its entity. A consumer in this mode reads the stream
//!   of all events, unfiltered. [`rebuild`] rebuilds its rows from the log.
//!
//! An effect outside DynamoDB can't be part of the transaction that moves a cursor. Such a consumer uses the fenced
//! idempotency record ([`store::Idempotency`]) with the event id as its key, before the cursor moves. It does nothing
//! outside DynamoDB while [`every::Run::replay`] is true.

pub mod every;
pub mod latest;
pub mod rebuild;
mod serve;

pub use serve::{Consumer, serve};
