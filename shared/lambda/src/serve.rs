//! One invocation: parses the input, runs the step within the deadline, and returns the response or a named error.

use std::{future::Future, panic::AssertUnwindSafe};

use contracts::{OnboardingId, Timestamp};
use fault::{ErrorKind, Fault, InvocationError, decode};
use futures_util::FutureExt;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tracing::{Instrument, Span, field::Empty, info_span};

use crate::{Deadline, Error, batch::panic_message, telemetry};

/// A step. Its struct holds its dependencies. [`Step::run`] decides and commits.
pub trait Step {
    /// The invocation's payload.
    type Command: DeserializeOwned;
    /// The response.
    type Reply: Serialize;
    /// The service's error enum.
    type Error: Fault;

    /// Returns the saga that the command belongs to, for the logs.
    fn correlation(command: &Self::Command) -> Option<OnboardingId>;

    /// Runs the step. It takes effect once, even if the command is delivered several times.
    fn run(
        &self,
        command: Self::Command,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Reply, Self::Error>>;
}

/// Serves a step to state machines, EventBridge rules, schedules and, for authorise-caller, API Gateway.
pub async fn serve_step<S: Step>(step: S) -> Result<(), Error> {
    let step = &step;
    serve_raw(async |payload, deadline| {
        let command: S::Command = decode(payload.get())?;
        if let Some(correlation) = S::correlation(&command) {
            Span::current().record("correlationId", tracing::field::display(correlation));
        }
        match tokio::time::timeout(
            deadline.remaining(),
            Box::pin(step.run(command, Timestamp::now())),
        )
        .await
        {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(fault)) => Err(InvocationError::from_fault(&fault)),
            // The caller gets an error before Lambda's timeout. The step may or may not have taken effect.
            Err(_) => Err(InvocationError {
                kind: ErrorKind::Transient,
                message: "the function's deadline passed".to_owned(),
            }),
        }
    })
    .await
}

/// Serves a handler that takes the raw payload.
pub async fn serve_raw<R: Serialize>(
    handler: impl AsyncFn(Box<RawValue>, Deadline) -> Result<R, InvocationError>,
) -> Result<(), Error> {
    let handler = &handler;
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Box<RawValue>>| {
        let request_id = event.context.request_id.clone();
        let span = info_span!(
            "invocation",
            requestId = %request_id,
            correlationId = Empty,
            siteId = Empty,
            sensorId = Empty
        );
        async move {
            // Boxed, because the compiler limits the depth of nested future types.
            let attempt = Box::pin(handler(event.payload, Deadline::from_context(&event.context)));
            // A panic becomes the error `Internal`. Otherwise the runtime would report the name of a Rust type.
            let result = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or_else(|panic| {
                Err(InvocationError {
                    kind: ErrorKind::Internal,
                    message: format!("panicked: {}", panic_message(&*panic)),
                })
            });
            match &result {
                Ok(_) => tracing::info!("done"),
                Err(error) => tracing::error!(
                    error = error.kind.name(),
                    reason = %error.message,
                    "failed"
                ),
            }
            telemetry::flush(&request_id);
            result.map_err(diagnostic)
        }
        .instrument(span)
    }))
    .await
}

/// Converts the error to the form that the runtime sends to Lambda.
fn diagnostic(error: InvocationError) -> Diagnostic {
    Diagnostic { error_type: error.kind.name().to_owned(), error_message: error.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_has_the_name_and_the_message() {
        let message = "a.b: is wrong".to_owned();
        let diagnostic = diagnostic(InvocationError { kind: ErrorKind::InvalidInput, message });
        assert_eq!(diagnostic.error_type, "InvalidInput");
        assert_eq!(diagnostic.error_message, "a.b: is wrong");
    }
}
