//! Errors of calls to DynamoDB.

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};
use fault::{AwsErrorKind, ErrorKind, Fault};

/// An error of a call to DynamoDB. A condition that does not hold is not an error: see [`crate::Commit`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The call was throttled, was in conflict with another transaction, or got no usable response (timeout, broken
    /// connection, server error). The same call may succeed later.
    #[error("DynamoDB is temporarily unavailable: {0}")]
    Transient(String),
    /// A row can't be read or written in the format of this service, or it is the idempotency record of another
    /// request.
    #[error("row {row} can't be used: {reason}")]
    Corrupt {
        /// The row's key.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The call is invalid or not allowed. A retry would fail again.
    #[error("DynamoDB refused the call: {0}")]
    Internal(String),
}

impl Fault for StoreError {
    fn kind(&self) -> ErrorKind {
        self.into()
    }
}

impl From<&StoreError> for ErrorKind {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Transient(_) => Self::Transient,
            StoreError::Corrupt { .. } | StoreError::Internal(_) => Self::Internal,
        }
    }
}

impl<E> From<SdkError<E>> for StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let mut text = fault::summary(&error);
        if let Some(service) = error.as_service_error() {
            let request = service.meta().request_id().unwrap_or("-");
            text = format!("{text} (request {request})");
        }
        if AwsErrorKind::classify(&error).is_transient() {
            Self::Transient(text)
        } else {
            Self::Internal(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::operation::put_item::PutItemError;

    use super::*;

    #[test]
    fn a_call_that_can_not_be_made_is_internal_and_a_timeout_is_transient() {
        let error = SdkError::<PutItemError>::construction_failure("no such region");
        assert!(matches!(StoreError::from(error), StoreError::Internal(_)));
        let error = SdkError::<PutItemError>::timeout_error("too slow");
        assert!(matches!(StoreError::from(error), StoreError::Transient(_)));
    }

    #[test]
    fn each_error_has_its_stable_name() {
        let text = String::new;
        for (error, name) in [
            (StoreError::Transient(text()), "Transient"),
            (StoreError::Internal(text()), "Internal"),
            (StoreError::Corrupt { row: text(), reason: text() }, "Internal"),
        ] {
            assert_eq!(error.kind().name(), name);
        }
    }
}
