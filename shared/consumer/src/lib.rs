//! Two of the three modes of consuming Fieldstation's events. (Mode `command` needs no code here.)
//! [`contracts::consumers::EVENT_CONSUMERS`] lists all consumers with their modes.
//!
//! - [`latest`]: only the newest event of an entity counts. The projected row has the sequence of that event. Older
//!   events are skipped, and missing events are not read. A consumer in this mode may read from the event bus.
//! - [`every`]: each event takes effect exactly once, in the order of its entity. A consumer in this mode reads the
//!   stream of all events without a filter. [`rebuild`] rebuilds the rows of such a consumer from the log.
//!
//! In mode `every`, a cursor is the sequence of the last applied event of an entity. An effect outside DynamoDB can't
//! be part of the transaction that moves a cursor. So far no consumer has such an effect, and [`every::Effect`] has no
//! method for one. A consumer that needs one must perform it before the cursor moves, under an idempotency record with
//! a lock ([`store::Idempotency`]). The key of the record is the event id. While [`every::Run::replay`] is true, the
//! consumer must not perform the effect.

pub mod every;
pub mod latest;
pub mod rebuild;
mod serve;

pub use serve::{Consumer, serve};
