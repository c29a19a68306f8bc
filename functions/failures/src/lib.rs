//! Failures: records what failed for good, and reports what needs an operator.
//!
//! Each service sends what failed to its failure queue. record-failure makes rows of it in the ledger,
//! report-failures counts the open ones, and check-consumers finds event source mappings that do not run.

pub mod check_consumers;
pub mod parse;
pub mod record_failure;
pub mod report_failures;
