//! The rows about the payment provider that billing writes and fieldctl reads, too.

mod circuit;
mod report;

pub use circuit::{CallError, CircuitState};
pub use report::{Finding, FindingKind, Report};
