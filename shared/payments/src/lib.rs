//! Rows about the payment provider that billing writes and fieldctl also reads.

mod circuit;
mod report;

pub use circuit::{CallError, CircuitState};
pub use report::{Finding, FindingKind, Report};
