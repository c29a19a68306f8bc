//! Onboarding: one saga a site, the state machine `site-onboarding`. It has no table: the execution
//! itself, named after the onboarding, is its record.

pub mod start_onboarding;

use lambda::{ErrorKind, Fault};

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum OnboardingError {
    /// Step Functions can't start an execution now.
    #[error("the saga can't be started now: {0}")]
    Transient(String),
    /// Step Functions refused.
    #[error("the saga can't be started: {0}")]
    Internal(String),
}

impl Fault for OnboardingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Transient(_) => ErrorKind::Transient,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}
