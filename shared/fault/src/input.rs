//! Errors of invalid input.

use contracts::{
    IdMismatch,
    input::{self, FieldError, MAX_LINE},
};
use serde::Deserialize;

/// The error for an invalid field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", path_prefix(.at))]
pub struct InvalidInput {
    /// Path of the field, e.g. `sensors[2].unit`. `.` is the whole input.
    pub at: String,
    /// What is wrong, and which value is expected.
    pub problem: String,
}

impl From<Vec<FieldError>> for InvalidInput {
    /// Converts the errors. A single error keeps its field. Several errors become one line, and the field is `.`.
    fn from(mut errors: Vec<FieldError>) -> Self {
        match errors.pop() {
            Some(FieldError { field, message, .. }) if errors.is_empty() => {
                let at = if field.is_empty() { ".".to_owned() } else { cut(field) };
                Self { at, problem: cut(message) }
            }
            last => {
                errors.extend(last);
                Self { at: ".".to_owned(), problem: input::join_errors(&errors) }
            }
        }
    }
}

fn path_prefix(at: &str) -> String {
    if at == "." { String::new() } else { format!("{at}: ") }
}

/// Parses JSON that AWS or Fieldstation wrote. The error names the first invalid field.
///
/// For JSON from outside, use [`contracts::input`], which reports all invalid fields.
pub fn decode<'de, T: Deserialize<'de>>(json: &'de str) -> Result<T, InvalidInput> {
    // Tracking the path costs as much as parsing, and valid input does not need it.
    if let Ok(value) = serde_json::from_str(json) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let problem = cut(error.inner().to_string());
        // Text that is not JSON has no fields.
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

/// Truncates a path or a message. Such a text may quote the input, which can have any length.
fn cut(text: String) -> String {
    input::truncate(text, MAX_LINE)
}

/// Returns the path of the field that a message is about. For a missing or unknown field, serde reports the path of
/// the object that contains it.
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

impl From<IdMismatch> for InvalidInput {
    fn from(mismatch: IdMismatch) -> Self {
        Self { at: ".".to_owned(), problem: mismatch.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Step {
        #[expect(dead_code, reason = "only deserialized")]
        name: String,
        #[expect(dead_code, reason = "only deserialized")]
        sensors: Vec<Sensor>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sensor {
        #[expect(dead_code, reason = "only deserialized")]
        metric: contracts::Metric,
    }

    #[test]
    fn an_error_names_the_field() {
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
}
