//! Records work that failed permanently, and reports what needs an engineer on call.
//!
//! Failed work arrives in the failure queues of the services, in the dead-letter queues of billing's commands, and as
//! files in the failure bucket. record-failure writes it as rows of the ledger, report-failures counts the open
//! failures, and check-consumers finds event source mappings that do not run.

pub mod check_consumers;
pub mod parse;
pub mod record_failure;
pub mod report_failures;
