//! The faults, and the errors in each service's own words.

use std::fmt;

use hyper::{StatusCode, body::Bytes};
use serde_json::json;

/// Where a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// One of AWS's.
    Aws,
    /// The payment provider.
    Stripe,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal;)*) => {
        /// What goes wrong with a call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault { $($(#[$doc])* $fault,)* }

        impl Fault {
            /// Every fault.
            pub const ALL: &'static [Self] = &[$(Self::$fault),*];

            /// Its name in cases and docs.
            pub fn name(self) -> &'static str {
                match self { $(Self::$fault => $name,)* }
            }
        }
    };
}

faults! {
    /// An error; nothing was done.
    ErrorBefore = "error-before";
    /// An error; all was done.
    ErrorAfter = "error-after";
    /// The service has too much to do.
    Throttle = "throttle";
    /// No answer until the client gives up; the effect comes after the client's repeat.
    Late = "late";
    /// The connection breaks; nothing was done.
    CutBefore = "cut-before";
    /// The connection breaks; all was done.
    CutAfter = "cut-after";
    /// While the call hangs, the function is given the same event again.
    Duplicate = "duplicate";
    /// The process is killed; nothing was done.
    KillBefore = "kill-before";
    /// The process is killed; all was done.
    KillAfter = "kill-after";
    /// [`Fault::ErrorBefore`], at every try of this invocation.
    ErrorBeforeLasting = "error-before-lasting";
    /// [`Fault::ErrorAfter`], at every try of this invocation.
    ErrorAfterLasting = "error-after-lasting";
    /// [`Fault::Throttle`], at every try of this invocation.
    ThrottleLasting = "throttle-lasting";
    /// [`Fault::ErrorBefore`], and the provider keeps it under the call's idempotency key.
    StoredErrorBefore = "stored-error-before";
    /// [`Fault::ErrorAfter`], and the provider keeps it under the call's idempotency key.
    StoredErrorAfter = "stored-error-after";
    /// No answer until the client gives up, and a final error to its repeat; the effect comes when
    /// all was undone.
    LateAfterUndo = "late-after-undo";
}

impl Fault {
    /// Whether every try of the invocation meets it.
    pub fn lasts(self) -> bool {
        matches!(self, Self::ErrorBeforeLasting | Self::ErrorAfterLasting | Self::ThrottleLasting)
    }

    /// Whether the function's process ends: a step of a state machine that crashes is undone.
    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter)
    }

    /// Whether no try again can heal it.
    pub fn is_final(self) -> bool {
        self == Self::LateAfterUndo
    }

    /// Whether the effect comes when nobody waits for it any more.
    pub fn is_late(self) -> bool {
        matches!(self, Self::Late | Self::LateAfterUndo)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a service says when it fails.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// It broke.
    Broken,
    /// It has too much to do.
    Throttled,
    /// It won't, ever.
    Denied,
}

/// Status and body of an error; `target` is AWS's `X-Amz-Target`.
pub fn error(service: Service, target: &str, word: Word) -> (StatusCode, Bytes) {
    if service == Service::Stripe {
        let (status, kind, code) = match word {
            Word::Broken => (500, "api_error", None),
            Word::Throttled => (429, "invalid_request_error", Some("rate_limit")),
            Word::Denied => (400, "invalid_request_error", Some("parameter_unknown")),
        };
        let body =
            json!({ "error": { "type": kind, "code": code, "message": "made by the matrix" } });
        return answer(status, &body.to_string());
    }
    let (namespace, broken, throttled) = match target.split('.').next().unwrap_or_default() {
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
    let (status, code) = match word {
        Word::Broken => (500, broken),
        Word::Throttled => (400, throttled),
        Word::Denied => (400, "AccessDeniedException"),
    };
    let body = json!({ "__type": format!("{namespace}{code}"), "message": "made by the matrix" });
    answer(status, &body.to_string())
}

fn answer(status: u16, body: &str) -> (StatusCode, Bytes) {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Bytes::copy_from_slice(body.as_bytes()))
}
