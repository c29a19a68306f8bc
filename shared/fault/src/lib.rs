//! The errors of the services, by names that state machines, alarms and people can rely on.
//!
//! Functions and fieldctl both use this crate, so it must not depend on the Lambda runtime.

mod aws;
mod input;
mod kind;
mod replay;

pub use aws::{AwsErrorKind, describe, summary};
pub use input::{InvalidInput, decode};
pub use kind::{ErrorKind, Failure, Fault};
pub use replay::Replayed;
