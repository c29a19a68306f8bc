//! Answers of the HTTP API; errors are RFC 9457 problem details.

use aws_lambda_events::{
    apigw::{ApiGatewayProxyRequest, ApiGatewayProxyResponse},
    encodings::Body,
    http::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Serialize;

use crate::{Error, ErrorKind, Failure, Fault, InvalidInput, decode, serve_raw};

/// The request as API Gateway's proxy integration sends it.
pub type Request = ApiGatewayProxyRequest;

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field, e.g. `sensors[2].unit`, or `header Idempotency-Key`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub message: String,
}

/// RFC 9457 problem details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `urn:fieldstation:problem:<name>`: stable, for programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here and what to do.
    pub detail: String,
    /// Field by field, where fields are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl Problem {
    /// A problem of that kind.
    #[must_use]
    pub fn new(status: u16, name: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:fieldstation:problem:{name}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    /// 400: the fields that are wrong.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        let detail = format!("Correct {} and send the request again.", fields.join(", "));
        Self { errors, ..Self::new(400, "invalid-request", "The request is not valid", detail) }
    }

    /// 404: nothing has that id.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(404, "not-found", "Not found", detail)
    }

    /// 409: it does not go together with what is there.
    #[must_use]
    pub fn conflict(name: &str, detail: impl Into<String>) -> Self {
        Self::new(409, name, "The request conflicts with what is there", detail)
    }

    /// What a fault is to a caller: try again later, or our mistake. The inside stays in the log.
    #[must_use]
    pub fn of(fault: &impl Fault) -> Self {
        tracing::error!(error = fault.kind().name(), reason = %fault, "request failed");
        match fault.kind() {
            ErrorKind::Transient => Self::new(
                503,
                "unavailable",
                "Not available now",
                "Send the same request again in a moment; with the same Idempotency-Key it takes \
                 effect once.",
            ),
            _ => Self::new(
                500,
                "internal",
                "Our mistake",
                "The request was not carried out. Tell the operator the time and your request id.",
            ),
        }
    }
}

impl From<InvalidInput> for Problem {
    fn from(error: InvalidInput) -> Self {
        let field = if error.at == "." { "body".to_owned() } else { error.at };
        Self::invalid(vec![FieldError { field, message: error.problem }])
    }
}

/// A good answer.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    body: serde_json::Value,
    location: Option<String>,
}

impl Answer {
    /// An answer with that body.
    pub fn new(status: u16, body: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_value(body)
            .map_err(|error| Problem::new(500, "internal", "Our mistake", error.to_string()))?;
        Ok(Self { status, body, location: None })
    }

    /// With a `Location` header.
    #[must_use]
    pub fn at(self, location: String) -> Self {
        Self { location: Some(location), ..self }
    }
}

/// A request's body as text, at most `limit` bytes of it.
pub fn body(request: &Request, limit: usize) -> Result<&str, Problem> {
    let body = request.body.as_deref().unwrap_or_default();
    if body.len() > limit {
        return Err(Problem::new(
            413,
            "too-large",
            "The body is too large",
            format!("The body has {} bytes; send at most {limit}.", body.len()),
        ));
    }
    if request.is_base64_encoded {
        return Err(Problem::invalid(vec![FieldError {
            field: "body".to_owned(),
            message: "is binary; send JSON as text with Content-Type: application/json".to_owned(),
        }]));
    }
    Ok(body)
}

/// A header's value, whatever the case of its name.
#[must_use]
pub fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

/// Turns what a handler came to into the response that API Gateway passes on.
#[must_use]
pub fn response(answer: Result<Answer, Problem>) -> ApiGatewayProxyResponse {
    let (status, kind, location, body) = match answer {
        Ok(answer) => {
            (answer.status, "application/json", answer.location, answer.body.to_string())
        }
        Err(problem) => {
            let body = serde_json::to_string(&problem).unwrap_or_else(|_| "{}".to_owned());
            (problem.status, "application/problem+json", None, body)
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("content-type"), HeaderValue::from_static(kind));
    if let Some(location) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(HeaderName::from_static("location"), location);
    }
    let mut response = ApiGatewayProxyResponse::default();
    response.status_code = i64::from(status);
    response.headers = headers;
    response.body = Some(Body::Text(body));
    response
}

/// Serves the handler behind API Gateway. A handler that fails still answers with a problem; one
/// that runs out of time with a 503.
pub async fn serve_http(
    handler: impl AsyncFn(Request) -> Result<Answer, Problem>,
) -> Result<(), Error> {
    let handler = &handler;
    serve_raw(async |payload, deadline| {
        let request: Request = decode(payload.get())?;
        let answer = tokio::time::timeout(deadline.left(), Box::pin(handler(request))).await;
        Ok::<_, Failure>(response(answer.unwrap_or_else(|_| {
            Err(Problem::new(
                503,
                "unavailable",
                "Not available now",
                "The answer took too long. Send the same request again in a moment.",
            ))
        })))
    })
    .await
}
