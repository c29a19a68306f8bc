//! Errors of commands: a message of one sentence, advice for the user, and an exit code for scripts.

use std::{error::Error, fmt, io};

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use fault::AwsErrorKind;
use ledger::LedgerError;
use serde_json::Value;
use store::StoreError;

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The work failed, at least in part.
    Failed = 1,
    /// The command line, or a file that it names, is wrong.
    Usage = 2,
    /// The named thing does not exist.
    NotFound = 3,
    /// The service refused the request.
    Refused = 4,
    /// AWS or the API can't be reached, or denies access.
    Aws = 5,
    /// The work was sent, and its outcome is not known yet.
    Unknown = 6,
}

/// The error with which a command ends.
#[derive(Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// What happened, in a sentence. Empty if there is nothing to print.
    pub message: String,
    /// Further lines, such as the invalid fields with the reasons, or the candidates for an ambiguous name.
    pub details: Vec<String>,
    /// What to do.
    pub advice: Option<String>,
    /// Whether a request was sent, and the API may have executed it.
    pub may_be_done: bool,
}

impl CliError {
    /// Creates an error with an exit code and a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            details: Vec::new(),
            advice: None,
            may_be_done: false,
        }
    }

    /// Creates an error for a mistake on the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Creates an error for something that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }

    /// Adds advice.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Marks the error of a request that the API may have executed.
    #[must_use]
    pub fn after_sending(self) -> Self {
        Self { may_be_done: true, ..self }
    }

    /// Creates an error from a refusal of the API: a problem (RFC 9457), or any other body.
    #[must_use]
    pub fn refused(status: u16, body: &Value) -> Self {
        let text = |name: &str| body[name].as_str().filter(|text| !text.is_empty());
        let title = text("title").or_else(|| text("message")).or(body.as_str());
        let mut message = format!("the API returned {status}");
        for part in [title, text("detail")].into_iter().flatten() {
            message = format!("{message}: {}", part.trim_end_matches('.'));
        }
        // A 503 of `POST /readings` names the bundles to send again in `errors`, and what is not valid in `refused`.
        let errors = ["errors", "refused"].into_iter().filter_map(|name| body[name].as_array());
        let details = errors.flatten().map(field_problem);
        let error = match status {
            404 => Self::not_found(message),
            401 | 403 => Self::new(Exit::Aws, message)
                .advise("the key's scope does not allow this: docs/fieldctl.md lists what each scope may do"),
            500.. => Self::new(Exit::Refused, message)
                .advise("the functions' logs have the reason: fieldctl logs --errors --since 10m"),
            _ => Self::new(Exit::Refused, message),
        };
        Self { details: details.collect(), ..error }
    }
}

impl fmt::Display for CliError {
    /// Writes the message, the details and the advice, one line each. All of them are escaped, so line ends in the
    /// data start no new line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&terminal::line(&self.message))?;
        for detail in &self.details {
            write!(f, "\n  {}", terminal::line(detail))?;
        }
        match &self.advice {
            Some(advice) => write!(f, "\n{}", terminal::line(advice)),
            None => Ok(()),
        }
    }
}

impl Error for CliError {}

impl From<io::Error> for CliError {
    /// Converts an error of writing to standard output. A closed pipe is a success: the reader has read enough.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Done, ""),
            _ => Self::new(Exit::Failed, format!("the output can't be written: {error}")),
        }
    }
}

/// Returns the path of a field that the API refused, and what is wrong with it.
#[must_use]
pub fn field_problem(error: &Value) -> String {
    let part = |name: &str| error[name].as_str().unwrap_or_default();
    format!("{}: {}", part("field"), part("message"))
}

/// Creates an error for a row or a response that can't be read.
pub fn unreadable(what: &str, error: &dyn fmt::Display) -> CliError {
    CliError::new(Exit::Failed, format!("{what} can't be read: {error}"))
        .advise("a newer version may have written it: use the fieldctl of that version")
}

/// Returns an error and all its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = vec![error];
    let mut error = error;
    while let Some(cause) = error.source() {
        causes.push(cause);
        error = cause;
    }
    causes
}

/// Returns the whole chain of an error in a line, each cause once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

const SIGN_IN: &str = "sign in (`aws sso login`), choose a profile with --profile, or set \
                       AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";

/// Converts an error of an AWS service. `failed` says what failed.
pub fn aws<E>(failed: &str) -> impl FnOnce(SdkError<E, HttpResponse>) -> CliError + '_
where
    E: Error + aws_smithy_runtime_api::client::result::CreateUnhandledError + 'static,
    SdkError<E, HttpResponse>: aws_sdk_dynamodb::error::ProvideErrorMetadata + Error + 'static,
{
    move |error| {
        use aws_sdk_dynamodb::error::ProvideErrorMetadata;

        if let Some(code) = error.code() {
            let message = error.message().unwrap_or("no reason given").trim_end_matches('.');
            return service_error(failed, code, message);
        }
        if causes(&error).iter().any(|cause| cause.is::<CredentialsError>()) {
            return CliError::new(Exit::Aws, format!("{failed}: there are no AWS credentials"))
                .advise(SIGN_IN);
        }
        CliError::new(Exit::Aws, format!("{failed}: {}", chain(&error)))
            .advise("check the network, --region and --endpoint-url")
    }
}

fn service_error(failed: &str, code: &str, message: &str) -> CliError {
    let error = CliError::new(Exit::Aws, format!("{failed}: {message} ({code})"));
    let not_found = ["ResourceNotFound", "ExecutionDoesNotExist", "StateMachineDoesNotExist"];
    match AwsErrorKind::from_code(code) {
        AwsErrorKind::Denied => error.advise(
            "your role lacks this permission: docs/fieldctl.md lists what each command needs",
        ),
        AwsErrorKind::Credentials => {
            error.advise(format!("AWS does not accept the credentials: {SIGN_IN}"))
        }
        AwsErrorKind::Busy => {
            error.advise("AWS throttles the call: wait a moment, then run the command again")
        }
        AwsErrorKind::Refused if not_found.iter().any(|name| code.starts_with(name)) => {
            CliError { exit: Exit::NotFound, ..error }
        }
        AwsErrorKind::NoResponse => error.advise("run the command again"),
        AwsErrorKind::Refused => error,
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { row, reason } => unreadable(&format!("row {row}"), &reason),
            error => Self::new(
                Exit::Aws,
                format!("the table can't be read or written: {}", chain(&error)),
            )
            .advise("check the network and your role's permissions (docs/fieldctl.md)"),
        }
    }
}

impl From<LedgerError> for CliError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => error.into(),
            error => Self::new(Exit::Aws, chain(&error))
                .advise("check the network and your role's permissions (docs/fieldctl.md)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_is_shown_field_by_field() {
        let problem = json!({
            "title": "The request is not valid", "status": 400,
            "detail": "Correct location.latitude and send the request again.",
            "errors": [{"field": "location.latitude", "message": "is 91"}],
        });
        let error = CliError::refused(400, &problem);
        assert_eq!(error.exit, Exit::Refused);
        assert_eq!(
            error.to_string(),
            "the API returned 400: The request is not valid: Correct location.latitude and send \
             the request again\n  location.latitude: is 91"
        );
        assert_eq!(CliError::refused(404, &json!({})).exit, Exit::NotFound);
        let forbidden = CliError::refused(403, &json!({"title": "Forbidden"}));
        assert_eq!(forbidden.exit, Exit::Aws);
        assert!(forbidden.advice.is_some_and(|advice| advice.starts_with("the key's scope")));
        assert_eq!(
            CliError::refused(502, &json!("bad gateway")).message,
            "the API returned 502: bad gateway"
        );
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure() {
        let closed = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((closed.exit, closed.message.as_str()), (Exit::Done, ""));
    }
}
