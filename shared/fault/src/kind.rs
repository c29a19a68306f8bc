//! The names of errors.

use std::fmt;

use crate::InvalidInput;

/// Every error name that a Fieldstation function answers with. Stable: state machines match on
/// them, alarms and runbooks name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The payment provider declined. Final.
    CardDeclined,
    /// There are too few kits in stock. Final.
    KitsOutOfStock,
    /// The step's undo ran before the step; nothing was changed. Final.
    Superseded,
    /// Throttled, timed out or busy: a later attempt may succeed.
    Transient,
    /// The input is not valid; the message names the field. Final.
    InvalidInput,
    /// A defect of the code or of the deployment.
    Internal,
}

impl ErrorKind {
    /// The `errorType` on the wire.
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

/// A service's error enum. Each of its cases has one of the stable names.
pub trait Fault: std::error::Error {
    /// Its name on the wire.
    fn kind(&self) -> ErrorKind;
}

/// The error that a failed invocation answers with.
#[derive(Debug)]
pub struct Failure {
    /// Its name on the wire.
    pub kind: ErrorKind,
    /// For a human.
    pub message: String,
}

impl Failure {
    /// The answer for this fault.
    #[must_use]
    pub fn of(fault: &impl Fault) -> Self {
        Self { kind: fault.kind(), message: fault.to_string() }
    }
}

impl From<InvalidInput> for Failure {
    fn from(error: InvalidInput) -> Self {
        Self { kind: ErrorKind::InvalidInput, message: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_a_name_and_a_message() {
        let input = InvalidInput { at: "a.b".to_owned(), problem: "is wrong".to_owned() };
        assert_eq!(Failure::from(input).to_string(), "InvalidInput: a.b: is wrong");
    }
}
