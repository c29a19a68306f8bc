//! Errors by the names that state machines, queues and people know them by.

use std::fmt;

use contracts::{
    IdMismatch,
    input::{self, FieldError, MAX_LINE},
};
use lambda_runtime::Diagnostic;
use serde::Deserialize;
use store::StoreError;

/// Every error name that a Fieldstation function answers with. Stable: state machines match on
/// them, alarms and runbooks name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The payment provider declined. Final.
    CardDeclined,
    /// Too few kits in stock. Final.
    KitsOutOfStock,
    /// The step's undo came before it; nothing was changed. Final.
    Superseded,
    /// It may go through later: throttled, timed out, busy.
    Transient,
    /// The input is wrong and says where. Final.
    InvalidInput,
    /// A defect of ours, or of the deployment.
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

impl From<&StoreError> for ErrorKind {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Transient(_) => Self::Transient,
            StoreError::Corrupt { .. } | StoreError::Internal(_) => Self::Internal,
        }
    }
}

/// What a service's closed error enum tells of each of its cases.
pub trait Fault: std::error::Error {
    /// Its name on the wire.
    fn kind(&self) -> ErrorKind;
}

impl Fault for StoreError {
    fn kind(&self) -> ErrorKind {
        self.into()
    }
}

/// Input that does not read as what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", place(.at))]
pub struct InvalidInput {
    /// Path of the field, e.g. `sensors[2].unit`; `.` for the whole.
    pub at: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl From<Vec<FieldError>> for InvalidInput {
    /// One error keeps its field; several become one line.
    fn from(mut errors: Vec<FieldError>) -> Self {
        match errors.pop() {
            Some(FieldError { field, message, .. }) if errors.is_empty() => {
                let at = if field.is_empty() { ".".to_owned() } else { cut(field) };
                Self { at, problem: cut(message) }
            }
            last => {
                errors.extend(last);
                Self { at: ".".to_owned(), problem: input::in_one_line(&errors) }
            }
        }
    }
}

fn place(at: &str) -> String {
    if at == "." { String::new() } else { format!("{at}: ") }
}

/// Reads JSON that AWS or another step wrote, naming the first field that does not fit. What other
/// systems write is read by [`contracts::input`], which names all of them.
pub fn decode<'de, T: Deserialize<'de>>(json: &'de str) -> Result<T, InvalidInput> {
    // Keeping track of the path costs as much as reading, and good input needs none.
    if let Ok(value) = serde_json::from_str(json) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let problem = cut(error.inner().to_string());
        // What is no JSON has no fields.
        if !error.inner().is_data() {
            return InvalidInput { at: ".".to_owned(), problem: format!("is not JSON: {problem}") };
        }
        InvalidInput { at: cut(field(&error.path().to_string(), &problem)), problem }
    })?;
    deserializer
        .end()
        .map_err(|error| InvalidInput { at: ".".to_owned(), problem: error.to_string() })?;
    Ok(value)
}

/// Serde quotes the input, however long it is.
fn cut(text: String) -> String {
    input::cut(text, MAX_LINE)
}

/// The path of the field that a message is about. Of a field that is missing or unknown, serde
/// gives the path of the object that it should, or should not, be in.
fn field(path: &str, problem: &str) -> String {
    let named = ["missing field `", "unknown field `"]
        .into_iter()
        .find_map(|start| problem.strip_prefix(start)?.split('`').next());
    match named {
        Some(name) if path == "." => name.to_owned(),
        Some(name) if path.rsplit('.').next() != Some(name) => format!("{path}.{name}"),
        _ => path.to_owned(),
    }
}

/// What the runtime sends to Lambda when an invocation fails.
#[derive(Debug)]
pub struct Failure {
    /// Its name on the wire.
    pub kind: ErrorKind,
    /// For a human.
    pub message: String,
}

impl Failure {
    /// The fault as Lambda is told of it.
    #[must_use]
    pub fn of(fault: &impl Fault) -> Self {
        Self { kind: fault.kind(), message: fault.to_string() }
    }
}

impl From<IdMismatch> for InvalidInput {
    fn from(mismatch: IdMismatch) -> Self {
        Self { at: ".".to_owned(), problem: mismatch.to_string() }
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

impl From<Failure> for Diagnostic {
    fn from(failure: Failure) -> Self {
        Self { error_type: failure.kind.name().to_owned(), error_message: failure.message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        #[expect(dead_code, reason = "read, and not used")]
        name: String,
        #[expect(dead_code, reason = "read, and not used")]
        sensors: Vec<Sensor>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sensor {
        #[expect(dead_code, reason = "read, and not used")]
        metric: contracts::Metric,
    }

    #[test]
    fn input_that_does_not_read_is_named_by_its_field() {
        let of = |sensor: &str| format!(r#"{{"name": "n", "sensors": [{sensor}]}}"#);
        for (json, at, problem) in [
            ("", ".", "is not JSON: EOF while parsing"),
            (r#"{"name": "#, ".", "is not JSON: EOF while parsing"),
            ("[]", ".", "invalid length 0"),
            (r#"{"name": 1}"#, "name", "invalid type: integer `1`, expected a string"),
            (r#"{"name": "n"}"#, "sensors", "missing field `sensors`"),
            (&of("{}"), "sensors[0].metric", "missing field `metric`"),
            (&of(r#"{"metric": "heat"}"#), "sensors[0].metric", "unknown variant `heat`"),
            (&of(r#"{"units": "K"}"#), "sensors[0].units", "unknown field `units`"),
            (&format!("{} x", of(r#"{"metric": "water_turbidity"}"#)), ".", "trailing"),
        ] {
            let error = decode::<Step>(json).expect_err("wrong input");
            assert_eq!(error.at, at, "{json}: {error}");
            assert!(error.problem.starts_with(problem), "{json}: {error}");
        }
    }

    #[test]
    fn several_errors_become_one_line() {
        let error = |field: &str| FieldError::new(field, "is wrong");
        for (errors, line) in [
            (vec![error("a.b")], "a.b: is wrong"),
            (vec![error("")], "is wrong"),
            (vec![error("a"), error(""), error("b")], "a: is wrong; is wrong; b: is wrong"),
        ] {
            assert_eq!(InvalidInput::from(errors).to_string(), line);
        }
        let many = InvalidInput::from(vec![error("a"); 1_000]);
        assert_eq!(many.problem.chars().count(), MAX_LINE + 4);
    }

    #[test]
    fn lambda_is_told_the_name_and_the_message() {
        let input = InvalidInput { at: "a.b".to_owned(), problem: "is wrong".to_owned() };
        let failure = Failure::from(input);
        assert_eq!(failure.to_string(), "InvalidInput: a.b: is wrong");
        let diagnostic = Diagnostic::from(failure);
        assert_eq!(diagnostic.error_type, "InvalidInput");
        assert_eq!(diagnostic.error_message, "a.b: is wrong");
    }

    #[test]
    fn only_what_passes_by_itself_is_transient() {
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
