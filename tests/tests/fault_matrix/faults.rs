//! The faults, and the error responses of each service.

use std::fmt;

use hyper::{StatusCode, body::Bytes};
use serde_json::json;

/// The service that a call goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A service of AWS.
    Aws,
    /// The payment provider.
    Stripe,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal;)*) => {
        /// A fault that is injected at a call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($(#[$doc])* $fault,)* }

        impl Fault {
            /// All faults.
            pub const ALL: &'static [Self] = &[$(Self::$fault),*];

            /// Returns the fault's name in cases and in the documentation.
            pub fn name(self) -> &'static str {
                match self { $(Self::$fault => $name,)* }
            }
        }
    };
}

faults! {
    /// An error response without an effect.
    ErrorBefore = "error-before";
    /// An error response after the effect.
    ErrorAfter = "error-after";
    /// A throttling response.
    Throttle = "throttle";
    /// No response until the client times out. The effect comes after the client's retry.
    Late = "late";
    /// The connection breaks before the effect.
    CutBefore = "cut-before";
    /// The connection breaks after the effect.
    CutAfter = "cut-after";
    /// While the call hangs, the function gets the same event a second time.
    Duplicate = "duplicate";
    /// The process is killed before the effect.
    KillBefore = "kill-before";
    /// The process is killed after the effect.
    KillAfter = "kill-after";
    /// [`Fault::ErrorBefore`] at every attempt of this invocation.
    ErrorBeforeLasting = "error-before-lasting";
    /// [`Fault::ErrorAfter`] at every attempt of this invocation.
    ErrorAfterLasting = "error-after-lasting";
    /// [`Fault::Throttle`] at every attempt of this invocation.
    ThrottleLasting = "throttle-lasting";
    /// [`Fault::ErrorBefore`], which the provider stores under the call's idempotency key.
    StoredErrorBefore = "stored-error-before";
    /// [`Fault::ErrorAfter`], which the provider stores under the call's idempotency key.
    StoredErrorAfter = "stored-error-after";
    /// No response until the client times out, and a permanent error for its retry. The effect comes after everything
    /// was undone.
    LateAfterUndo = "late-after-undo";
}

impl Fault {
    /// Returns whether every attempt of the invocation meets the fault.
    pub fn is_lasting(self) -> bool {
        matches!(self, Self::ErrorBeforeLasting | Self::ErrorAfterLasting | Self::ThrottleLasting)
    }

    /// Returns whether the function's process ends. A step of a state machine that crashes is undone.
    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter)
    }

    /// Returns whether a retry can't succeed.
    pub fn is_permanent(self) -> bool {
        self == Self::LateAfterUndo
    }

    /// Returns whether the effect comes after the client has stopped waiting.
    pub fn is_late(self) -> bool {
        matches!(self, Self::Late | Self::LateAfterUndo)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The kind of an error response.
#[derive(Clone, Copy, Debug)]
pub enum ErrorKind {
    /// An internal error.
    Internal,
    /// Throttling.
    Throttled,
    /// A permanent refusal.
    Denied,
}

/// Returns the status and the body of an error response. `target` is AWS's `X-Amz-Target`.
pub fn error_response(service: Service, target: &str, error: ErrorKind) -> (StatusCode, Bytes) {
    if service == Service::Stripe {
        let (status, kind, code) = match error {
            ErrorKind::Internal => (500, "api_error", None),
            ErrorKind::Throttled => (429, "invalid_request_error", Some("rate_limit")),
            ErrorKind::Denied => (400, "invalid_request_error", Some("parameter_unknown")),
        };
        let body = json!({ "error": { "type": kind, "code": code, "message": "injected by the fault matrix" } });
        return response(status, &body.to_string());
    }
    let (namespace, internal, throttled) = match target.split('.').next().unwrap_or_default() {
        "DynamoDB_20120810" => (
            "com.amazonaws.dynamodb.v20120810#",
            "InternalServerError",
            "ProvisionedThroughputExceededException",
        ),
        "AmazonSQS" => ("com.amazonaws.sqs#", "InternalFailure", "RequestThrottled"),
        "AWSStepFunctions" => ("", "InternalServerError", "ThrottlingException"),
        "AWSEvents" => ("", "InternalException", "ThrottlingException"),
        "secretsmanager" => ("", "InternalServiceError", "ThrottlingException"),
        _ => ("", "InternalFailure", "ThrottlingException"),
    };
    let (status, code) = match error {
        ErrorKind::Internal => (500, internal),
        ErrorKind::Throttled => (400, throttled),
        ErrorKind::Denied => (400, "AccessDeniedException"),
    };
    let body = json!({ "__type": format!("{namespace}{code}"), "message": "injected by the fault matrix" });
    response(status, &body.to_string())
}

fn response(status: u16, body: &str) -> (StatusCode, Bytes) {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Bytes::copy_from_slice(body.as_bytes()))
}
