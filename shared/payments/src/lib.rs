//! Rows about the payment provider that the service billing writes and that fieldctl reads too.

mod circuit;
mod report;

pub use circuit::{CallError, CircuitState};
pub use report::{Finding, FindingKind, Report};
