//! The errors of the services. State machines, alarms and people rely on the names of these errors.
//!
//! fieldctl uses this crate as well as the functions, so the crate must not depend on the Lambda runtime.

mod aws;
mod input;
mod kind;
mod replay;

pub use aws::{AwsErrorKind, describe, summary};
pub use input::{InvalidInput, decode};
pub use kind::{ErrorKind, Fault, InvocationError};
pub use replay::ReplayResponse;
