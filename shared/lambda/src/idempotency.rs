//! The header `Idempotency-Key`.

use std::fmt::Display;

use contracts::{
    inbound::MAX_ID,
    input::{FieldError, Reason},
};

use crate::http::{Problem, Request};

/// Returns the value of the header `Idempotency-Key`: 1 to 128 printable ASCII characters.
///
/// `what` is what the request creates, such as `site`, for the message of a 400.
pub fn idempotency_key<'a>(request: &'a Request, what: &str) -> Result<&'a str, Problem> {
    let invalid = |problem: String| {
        let message = format!(
            "{problem}; send 1 to {MAX_ID} ASCII characters of your choice, a new UUID for each \
             new {what}, and the same one when you repeat the request"
        );
        FieldError::new("header Idempotency-Key", message)
    };
    let Some(value) = request.headers.get("Idempotency-Key") else {
        let missing = invalid("is missing".to_owned()).with_reason(Reason::MissingField);
        return Err(Problem::invalid(vec![missing]));
    };
    let invalid = |problem: String| Problem::invalid(vec![invalid(problem)]);
    let is_printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    match value.to_str() {
        Ok(key) if !key.as_bytes().iter().all(is_printable) => {
            Err(invalid("holds a control character".to_owned()))
        }
        Ok(key) if key.trim().is_empty() || key.len() > MAX_ID => {
            Err(invalid(format!("has {} characters", key.trim().len())))
        }
        Ok(key) => Ok(key),
        Err(_) => Err(invalid("holds characters outside ASCII".to_owned())),
    }
}

/// Creates a 409 for a reused key. An earlier request sent the same key with another registration, and created the
/// `what` with this id.
pub fn idempotency_key_reused(what: &str, id: impl Display) -> Problem {
    let detail = format!(
        "Send a new Idempotency-Key for a new {what}. To repeat the earlier request, send its registration \
         unchanged."
    );
    let message = format!("was used before, for {what} {id} with a different registration");
    Problem {
        errors: vec![FieldError::new("header Idempotency-Key", message)],
        ..Problem::conflict("idempotency-key-reused", detail)
    }
}
