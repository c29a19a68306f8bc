//! What can go wrong between a service and its table.

use aws_sdk_dynamodb::{
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

/// A refused condition is no error: see [`crate::Commit`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Throttled, timed out, in conflict with another transaction: the same call may go through
    /// later.
    #[error("DynamoDB can't answer now: {0}")]
    Transient(String),
    /// A row is not what this service writes.
    #[error("row {row} can't be read: {reason}")]
    Corrupt {
        /// Its key.
        row: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The call is wrong, or not allowed; it would fail again.
    #[error("DynamoDB refused the call: {0}")]
    Internal(String),
}

const TRANSIENT: &[&str] = &[
    "InternalServerError",
    "LimitExceededException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "ThrottlingException",
    "ThrottledException",
    "TransactionConflictException",
    "TransactionInProgressException",
];

/// Whether DynamoDB's error (or cancellation) code is one that passes by itself.
pub(crate) fn passes_by_itself(code: &str) -> bool {
    TRANSIENT.contains(&code)
        || matches!(
            code,
            "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded"
        )
}

impl<E> From<SdkError<E>> for StoreError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let text = match error.as_service_error() {
            Some(service) => format!(
                "{} {} (request {})",
                service.code().unwrap_or("unnamed error"),
                service.message().unwrap_or_default(),
                error.as_service_error().and_then(|e| e.meta().request_id()).unwrap_or("-"),
            ),
            None => DisplayErrorContext(&error).to_string(),
        };
        match &error {
            SdkError::ServiceError(context) => {
                let status = context.raw().status().as_u16();
                let code = context.err().code().unwrap_or_default();
                if status >= 500 || passes_by_itself(code) {
                    Self::Transient(text)
                } else {
                    Self::Internal(text)
                }
            }
            SdkError::ConstructionFailure(_) => Self::Internal(text),
            _ => Self::Transient(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::operation::put_item::PutItemError;

    use super::*;

    #[test]
    fn a_call_that_can_not_be_made_will_not_be_later() {
        let error = SdkError::<PutItemError>::construction_failure("no such region");
        assert!(matches!(StoreError::from(error), StoreError::Internal(_)));
        let error = SdkError::<PutItemError>::timeout_error("too slow");
        assert!(matches!(StoreError::from(error), StoreError::Transient(_)));
    }
}
