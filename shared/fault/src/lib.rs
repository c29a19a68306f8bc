//! The errors of the services. State machines, alarms and people rely on the names of these errors.
//!
//! Both the functions and fieldctl use this crate. So it must not depend on the Lambda runtime.

mod aws;
mod input;
mod kind;
mod replay;

pub use aws::{AwsErrorKind, describe, summary};
pub use input::{InvalidInput, decode};
pub use kind::{ErrorKind, Fault, InvocationError};
pub use replay::ReplayResponse;
