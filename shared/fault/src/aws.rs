//! Classification of the errors of AWS calls.

use std::error::Error;

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::{display::DisplayErrorContext, metadata::ProvideErrorMetadata};

/// The reason why an AWS call failed. The reasons are the same for all AWS services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AwsErrorKind {
    /// The service throttles calls, or the call conflicts with another one. The call had no effect. A later call may
    /// succeed.
    Busy,
    /// No usable response: a server error, a timeout or a broken connection. The call may have had its effect. A later
    /// call may succeed.
    NoResponse,
    /// The credentials are invalid or have expired.
    Credentials,
    /// The caller lacks a permission.
    Denied,
    /// The call could not be made, or the service refused it for another reason. A retry would fail again.
    Refused,
}

/// The beginnings of the codes of [`AwsErrorKind::Busy`]. Codes that contain `Throttl` are also of this kind.
const BUSY_CODES: [&str; 8] = [
    "ExecutionLimitExceeded",
    "LimitExceededException",
    "ProvisionedThroughputExceeded",
    "RequestLimitExceeded",
    "SlowDown",
    "TooManyRequestsException",
    "TransactionConflict",
    "TransactionInProgressException",
];
/// The beginnings of the codes of [`AwsErrorKind::NoResponse`] that may come with a client error status or without a
/// status.
const NO_RESPONSE_CODES: [&str; 4] =
    ["InternalFailure", "InternalServerError", "RequestTimeout", "ServiceUnavailable"];
const CREDENTIALS_CODES: [&str; 10] = [
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignature",
    "InvalidToken",
    "MissingAuthenticationToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClient",
];
const DENIED_CODES: [&str; 3] = ["AccessDenied", "NotAuthorized", "UnauthorizedOperation"];

impl AwsErrorKind {
    /// Classifies an error of a call by its code. If the code is unknown, classifies the error by its HTTP status.
    pub fn classify<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Self {
        match error {
            SdkError::ServiceError(service) => {
                let code = service.err().code().unwrap_or_default();
                match (Self::from_code(code), service.raw().status().as_u16()) {
                    (Self::Refused, 429) => Self::Busy,
                    (Self::Refused, 408 | 500..) => Self::NoResponse,
                    (kind, _) => kind,
                }
            }
            SdkError::ConstructionFailure(_) => Self::Refused,
            _ => Self::NoResponse,
        }
    }

    /// Classifies an error code, such as that of one entry of a batch. A code may have the suffix `Exception` or
    /// `Error`.
    #[must_use]
    pub fn from_code(code: &str) -> Self {
        let is_in = |codes: &[&str]| codes.iter().any(|known| code.starts_with(known));
        if code.contains("Throttl") || is_in(&BUSY_CODES) {
            Self::Busy
        } else if is_in(&NO_RESPONSE_CODES) {
            Self::NoResponse
        } else if is_in(&CREDENTIALS_CODES) {
            Self::Credentials
        } else if is_in(&DENIED_CODES) {
            Self::Denied
        } else {
            Self::Refused
        }
    }

    /// Returns whether the same call may succeed later without any change.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Busy | Self::NoResponse)
    }
}

/// Formats the error with all its causes in one line.
pub fn describe(error: &impl Error) -> String {
    DisplayErrorContext(error).to_string()
}

/// Formats the service's code and message. Without a response, formats the error with all its causes.
pub fn summary<E, R>(error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata + Error + 'static,
    R: std::fmt::Debug,
{
    match error.as_service_error() {
        Some(service) => format!(
            "{} {}",
            service.code().unwrap_or("unnamed error"),
            service.message().unwrap_or_default()
        ),
        None => describe(error),
    }
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    fn service_error(code: &str, status: u16) -> SdkError<ErrorMetadata, HttpResponse> {
        let error = ErrorMetadata::builder().code(code).message("why").build();
        let status = StatusCode::try_from(status).expect("a status");
        SdkError::service_error(error, HttpResponse::new(status, SdkBody::empty()))
    }

    #[test]
    fn an_error_is_classified_by_its_code_then_by_its_status() {
        use AwsErrorKind::{Busy, Credentials, Denied, NoResponse, Refused};
        for (code, status, kind) in [
            // DynamoDB.
            ("ProvisionedThroughputExceededException", 400, Busy),
            ("RequestLimitExceeded", 400, Busy),
            ("ThrottlingException", 400, Busy),
            ("TransactionConflictException", 400, Busy),
            ("TransactionInProgressException", 400, Busy),
            ("InternalServerError", 500, NoResponse),
            ("ValidationException", 400, Refused),
            ("ResourceNotFoundException", 400, Refused),
            ("AccessDeniedException", 400, Denied),
            ("UnrecognizedClientException", 400, Credentials),
            // Kinesis, SQS, Step Functions, Lambda, S3.
            ("KMSThrottlingException", 400, Busy),
            ("LimitExceededException", 400, Busy),
            ("InternalFailureException", 400, NoResponse),
            ("RequestThrottled", 400, Busy),
            ("ExecutionLimitExceeded", 400, Busy),
            ("ExecutionDoesNotExist", 400, Refused),
            ("TooManyRequestsException", 429, Busy),
            ("EC2ThrottledException", 502, Busy),
            ("ServiceException", 500, NoResponse),
            ("SlowDown", 503, Busy),
            ("RequestTimeout", 400, NoResponse),
            ("ExpiredToken", 400, Credentials),
            ("NoSuchKey", 404, Refused),
            // Unknown codes.
            ("", 429, Busy),
            ("", 408, NoResponse),
            ("", 503, NoResponse),
            ("", 403, Refused),
        ] {
            assert_eq!(
                AwsErrorKind::classify(&service_error(code, status)),
                kind,
                "{code} {status}"
            );
        }
    }

    #[test]
    fn codes_of_cancellation_reasons_are_classified() {
        for code in ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"] {
            assert_eq!(AwsErrorKind::from_code(code), AwsErrorKind::Busy);
        }
        for code in ["ConditionalCheckFailed", "ValidationError", "None"] {
            assert!(!AwsErrorKind::from_code(code).is_transient(), "{code}");
        }
    }

    #[test]
    fn a_call_that_can_not_be_made_is_refused_and_one_without_a_response_is_transient() {
        type Error = SdkError<ErrorMetadata, HttpResponse>;
        let error: Error = SdkError::construction_failure("no such region");
        assert_eq!(AwsErrorKind::classify(&error), AwsErrorKind::Refused);
        let error: Error = SdkError::timeout_error("too slow");
        assert_eq!(AwsErrorKind::classify(&error), AwsErrorKind::NoResponse);
        assert!(AwsErrorKind::classify(&error).is_transient());
    }

    #[test]
    fn a_summary_is_the_code_and_the_message() {
        assert_eq!(summary(&service_error("Busy", 400)), "Busy why");
        let error: SdkError<ErrorMetadata, HttpResponse> = SdkError::timeout_error("too slow");
        assert!(summary(&error).contains("too slow"));
    }
}
