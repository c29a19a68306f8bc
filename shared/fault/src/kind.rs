//! The names of errors.

use std::fmt;

use crate::InvalidInput;

/// The kind of an error that a function returns. The names must not change: state machines match them, and alarms and
/// runbooks contain them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The payment provider declined the payment. Not retried.
    CardDeclined,
    /// There are too few kits in stock. Not retried.
    KitsOutOfStock,
    /// The undo of the step ran before the step, so the step changed nothing. Not retried.
    Superseded,
    /// Throttling, a timeout or a busy service. A retry may succeed.
    Transient,
    /// The input is invalid. The message names the field. Not retried.
    InvalidInput,
    /// A defect of the code or of the deployment.
    Internal,
}

impl ErrorKind {
    /// Returns the name, which is Lambda's `errorType`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CardDeclined => "CardDeclined",
            Self::KitsOutOfStock => "KitsOutOfStock",
            Self::Superseded => "Superseded",
            Self::Transient => "Transient",
            Self::InvalidInput => "InvalidInput",
            Self::Internal => "Internal",
        }
    }
}

/// An error type of a service. It assigns an [`ErrorKind`] to each of its errors.
pub trait Fault: std::error::Error {
    /// Returns the kind, which determines the error's name.
    fn kind(&self) -> ErrorKind;
}

/// The error of a failed invocation.
#[derive(Debug)]
pub struct InvocationError {
    /// The kind, which determines the error's name.
    pub kind: ErrorKind,
    /// The message for people.
    pub message: String,
}

impl InvocationError {
    /// Creates the error from a service's error.
    #[must_use]
    pub fn from_fault(fault: &impl Fault) -> Self {
        Self { kind: fault.kind(), message: fault.to_string() }
    }
}

impl From<InvalidInput> for InvocationError {
    fn from(error: InvalidInput) -> Self {
        Self { kind: ErrorKind::InvalidInput, message: error.to_string() }
    }
}

impl fmt::Display for InvocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_name_and_a_message() {
        let input = InvalidInput { at: "a.b".to_owned(), problem: "is wrong".to_owned() };
        assert_eq!(InvocationError::from(input).to_string(), "InvalidInput: a.b: is wrong");
    }
}
