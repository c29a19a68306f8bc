//! Requests and responses of the HTTP API. Errors are RFC 9457 problem details.

use std::time::Duration;

use aws_lambda_events::{
    apigw::{ApiGatewayProxyRequest, ApiGatewayProxyResponse},
    encodings::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, VARY},
    },
};
pub use contracts::input::FieldError;
use contracts::{
    OperatorId, SiteId, Timestamp,
    input::{self, Input, Reason},
};
use fault::{ErrorKind, Fault, InvocationError, decode};
use limits::{Holder, Limits, Refusal};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tracing::{Span, field::display};

use crate::{Deadline, Error, serve_raw};
pub use crate::{
    caller::Caller,
    idempotency::{idempotency_key, idempotency_key_reused},
};

/// Time between the deadline that a handler gets and the timeout that cancels the handler. In this time the handler can
/// return a partial result.
const PARTIAL_RESULT_MARGIN: Duration = Duration::from_millis(250);
/// The maximum length of a caller's text in a log line, in characters.
const MAX_LOGGED: usize = 200;

/// A request in the format of API Gateway's proxy integration.
pub type Request = ApiGatewayProxyRequest;

/// RFC 9457 problem details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `urn:fieldstation:problem:<name>`. Stable, for programs.
    #[serde(rename = "type")]
    pub kind: String,
    /// A short description of the kind, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, and what the caller can do.
    pub detail: String,
    /// The invalid fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Extension members: further data of this kind of problem, for programs.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Box<Map<String, Value>>>,
    /// Seconds after which the caller may retry: the header `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<u16>,
}

impl Problem {
    /// Creates a problem with the type `urn:fieldstation:problem:<name>`.
    #[must_use]
    pub fn new(status: u16, name: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:fieldstation:problem:{name}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            errors: Vec::new(),
            extensions: None,
            retry_after: None,
        }
    }

    /// Adds an extension member.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.extensions.get_or_insert_default().insert(member.to_owned(), value.into());
        self
    }

    /// Creates a 400 with the invalid fields. An error without a field is reported for the field `body`.
    #[must_use]
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        for error in errors.iter_mut().filter(|error| error.field.is_empty()) {
            "body".clone_into(&mut error.field);
        }
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        let detail = format!("Correct {} and send the request again.", fields.join(", "));
        Self { errors, ..Self::new(400, "invalid-request", "The request is not valid", detail) }
    }

    /// Creates a 404.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(404, "not-found", "Not found", detail)
    }

    /// Creates a 409: the request conflicts with the current state.
    #[must_use]
    pub fn conflict(name: &str, detail: impl Into<String>) -> Self {
        Self::new(409, name, "The request conflicts with the current state", detail)
    }

    /// Creates a 429: the caller, or all callers together, send more than the rate limit allows.
    fn rate_limited(refusal: &Refusal) -> Self {
        let (seconds, limit) = (refusal.retry_after, refusal.limit);
        let (of, what) = match refusal.of {
            Holder::Operator => ("Your operator's plan allows", "requests"),
            Holder::LoggerKey => ("A logger key may send", "requests"),
            Holder::OperatorSagas => ("Your operator may create or delete", "sites"),
            Holder::AllSagas => ("All operators together may create or delete", "sites"),
        };
        let detail = format!(
            "{of} {} {what} per second, and up to {} at once after a pause. Wait {seconds} s, then send the \
             request again, and send more slowly.",
            limit.per_second(),
            limit.burst(),
        );
        let problem = Self::new(429, "rate-limited", "Too many requests", detail);
        Self { retry_after: Some(seconds), ..problem }
    }

    /// Returns why the request was refused: for a 400 the reason of the first field error, otherwise the problem's
    /// name in `PascalCase`. There are few values, so refusals can be counted by them.
    #[must_use]
    pub fn reason(&self) -> String {
        match self.errors.first() {
            Some(error) if self.status == 400 => error.reason.name().to_owned(),
            _ => {
                let name = self.kind.rsplit(':').next().unwrap_or_default();
                let capitalized = |word: &str| match word.split_at_checked(1) {
                    Some((first, rest)) => first.to_ascii_uppercase() + rest,
                    None => String::new(),
                };
                name.split('-').map(capitalized).collect()
            }
        }
    }

    /// Hides credentials in the texts for people. They quote the request, and callers put credentials into wrong fields by
    /// mistake. Extension members are data for programs and stay as they are.
    fn masked(mut self) -> Self {
        self.detail = keys::mask(&self.detail).into_owned();
        self.errors = self.errors.iter().map(masked).collect();
        self
    }

    /// Creates a 500. Its cause is only logged.
    fn internal() -> Self {
        Self::new(
            500,
            "internal",
            "Internal error",
            "The request was not carried out. Tell the people who run Fieldstation the time and your request id.",
        )
    }
}

/// Hides credentials in a field error.
#[must_use]
pub fn masked(error: &FieldError) -> FieldError {
    let mask = |text: &str| keys::mask(text).into_owned();
    FieldError { field: mask(&error.field), message: mask(&error.message), reason: error.reason }
}

/// Converts a fault to a 503 (retry later) or a 500. The fault's details are only logged.
impl<F: Fault> From<F> for Problem {
    fn from(fault: F) -> Self {
        tracing::error!(error = fault.kind().name(), reason = %fault, "request failed");
        match fault.kind() {
            ErrorKind::Transient => Self::new(
                503,
                "unavailable",
                "Temporarily unavailable",
                "Send the same request again in a moment; with the same Idempotency-Key it takes \
                 effect once.",
            ),
            _ => Self::internal(),
        }
    }
}

/// A successful response.
#[derive(Debug)]
pub struct Response {
    status: u16,
    /// JSON.
    body: String,
    location: Option<String>,
    version: Option<u64>,
}

impl Response {
    /// Creates a response with this body.
    pub fn new(status: u16, body: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_value(body)
            .map_err(|error| Problem::new(500, "internal", "Internal error", error.to_string()))?;
        Ok(Self::json(status, body.to_string()))
    }

    /// Creates a response with this body, which is JSON already. Its numbers are sent as they are.
    #[must_use]
    pub fn json(status: u16, body: String) -> Self {
        Self { status, body, location: None, version: None }
    }

    /// Adds a `Location` header: a reference relative to the request's URL ([`relative_location`]). The client resolves
    /// it, so the prefix of the API's paths (the stage, or the base path of a custom domain) is kept.
    #[must_use]
    pub fn at(self, location: String) -> Self {
        Self { location: Some(location), ..self }
    }

    /// Adds the version of the resource to its `ETag`: `"<version>-<hash of the body>"`.
    #[must_use]
    pub fn version(self, version: u64) -> Self {
        Self { version: Some(version), ..self }
    }
}

/// Returns the relative reference from the URL of `request` to `target`. `resource` is the route of the request.
/// `resource` and `target` are paths below the API's root, such as `/sites` or `/sites/{siteId}`.
#[must_use]
pub fn relative_location(request: &Request, resource: &str, target: &str) -> String {
    let path = request.path.as_deref().unwrap_or_default();
    // A relative reference replaces the last segment of the path. API Gateway also accepts a trailing slash, which
    // adds an empty segment.
    let below_root = resource.matches('/').count() - 1 + usize::from(path.ends_with('/'));
    "../".repeat(below_root) + target.trim_start_matches('/')
}

/// Returns a request's body as text. Refuses a body of another type than JSON (415), one of more than `limit` bytes
/// (413) and a binary one (400). A request without a `Content-Type` is taken as JSON.
pub fn body(request: &Request, limit: usize) -> Result<&str, Problem> {
    if let Some(kind) = request.headers.get(CONTENT_TYPE)
        && !is_json(kind)
    {
        let detail = "Send the body as JSON, with Content-Type: application/json.";
        return Err(Problem::new(415, "unsupported-media-type", "Unsupported media type", detail));
    }
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
        let message = "is binary; send JSON as text with Content-Type: application/json";
        let error = FieldError::new("body", message).with_reason(Reason::InvalidJson);
        return Err(Problem::invalid(vec![error]));
    }
    Ok(body)
}

/// Returns whether a media type is `application/json` or `application/<format>+json`. Parameters are ignored.
fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Parses a body of at most `limit` bytes.
pub fn read<T: Input>(request: &Request, limit: usize) -> Result<T, Problem> {
    input::read(body(request, limit)?).map_err(Problem::invalid)
}

/// Refuses all query parameters, for a route that has none.
pub fn reject_query(request: &Request) -> Result<(), Problem> {
    let mut names: Vec<_> =
        request.query_string_parameters.iter().map(|(name, _)| name.to_owned()).collect();
    if names.is_empty() {
        return Ok(());
    }
    names.sort();
    let error = |name: String| {
        let message = "is not known; this call has no query parameters";
        FieldError::new(format!("query {name}"), message).with_reason(Reason::UnknownField)
    };
    Err(Problem::invalid(names.into_iter().map(error).collect()))
}

/// Returns the error of a query parameter that the route does not have. `known` lists those that it has, such as
/// `limit or next`.
#[must_use]
pub fn unknown_parameter(name: &str, known: &str) -> FieldError {
    FieldError::new(format!("query {name}"), format!("is not known; give {known}"))
        .with_reason(Reason::UnknownField)
}

/// Returns a header's value. The name is case-insensitive.
#[must_use]
pub fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

/// Converts a handler's result to the response for API Gateway.
#[must_use]
pub fn response(result: Result<Response, Problem>) -> ApiGatewayProxyResponse {
    let mut headers = HeaderMap::new();
    let (status, kind, body) = match result {
        Ok(response) => {
            if let Some(location) = response.location.and_then(|at| HeaderValue::try_from(at).ok())
            {
                headers.insert(HeaderName::from_static("location"), location);
            }
            (response.status, "application/json", response.body)
        }
        Err(problem) => {
            if let Some(seconds) = problem.retry_after {
                headers.insert(HeaderName::from_static("retry-after"), seconds.into());
            }
            let problem = problem.masked();
            let body = serde_json::to_string(&problem).unwrap_or_else(|_| "{}".to_owned());
            (problem.status, "application/problem+json", body)
        }
    };
    headers.insert(HeaderName::from_static("content-type"), HeaderValue::from_static(kind));
    let mut response = ApiGatewayProxyResponse::default();
    response.status_code = i64::from(status);
    response.headers = headers;
    response.body = Some(Body::Text(body));
    response
}

/// Serves the handler behind API Gateway, to callers within their rate limit. An error becomes a problem response, a
/// timeout a 503.
pub async fn serve_http(
    limits: Limits,
    handler: impl AsyncFn(Request, Caller) -> Result<Response, Problem>,
) -> Result<(), Error> {
    serve_http_with_deadline(limits, async |request, caller, _| handler(request, caller).await)
        .await
}

/// Serves a handler that can return a partial result. The handler's deadline is shortly before the timeout.
pub async fn serve_http_with_deadline(
    limits: Limits,
    handler: impl AsyncFn(Request, Caller, Deadline) -> Result<Response, Problem>,
) -> Result<(), Error> {
    let (limits, handler) = (&limits, &handler);
    serve_raw(async |payload, deadline| {
        let mut request: Request = decode(payload.get())?;
        // The authorizer has read the credential. Nothing after it may read, log or store it.
        request.headers.remove(AUTHORIZATION);
        request.multi_value_headers.remove(AUTHORIZATION);
        Ok::<_, InvocationError>(respond(limits, handler, request, deadline).await)
    })
    .await
}

/// Responds to a request that passed the authorizer.
async fn respond(
    limits: &Limits,
    handler: &impl AsyncFn(Request, Caller, Deadline) -> Result<Response, Problem>,
    request: Request,
    deadline: Deadline,
) -> ApiGatewayProxyResponse {
    let caching = Caching::new(&request);
    let mut origin = RequestOrigin::new(&request);
    let caller = match Caller::from_request(&request) {
        Ok(caller) => caller,
        Err(error) => {
            tracing::error!(reason = %error, "a request did not pass the authorizer");
            return caching.apply(Err(Problem::internal()));
        }
    };
    origin.operator = Some(caller.operator);
    if let Err(refusal) = limits.check(caller.sender(), Timestamp::now()).await {
        origin.log_rate_limited(&refusal, &caller.actor);
        return caching.apply(Err(Problem::rate_limited(&refusal)));
    }
    let remaining = deadline.remaining().saturating_sub(PARTIAL_RESULT_MARGIN);
    let work = handler(request, caller, Deadline::after(remaining));
    let result = tokio::time::timeout(deadline.remaining(), Box::pin(work)).await;
    let result = result.unwrap_or_else(|_| {
        Err(Problem::new(
            503,
            "unavailable",
            "Temporarily unavailable",
            "The response took too long. Send the same request again in a moment.",
        ))
    });
    if let Err(problem) = &result {
        origin.log_refusal(problem);
    }
    caching.apply(result)
}

/// What the headers for caches depend on.
///
/// A response belongs to its caller, so only the caller's own cache may keep it. It must ask before each use, with the
/// `ETag` of its copy. Nobody may keep the response to a change, or an error.
#[derive(Debug)]
struct Caching {
    method: Method,
    if_none_match: Option<HeaderValue>,
}

impl Caching {
    fn new(request: &Request) -> Self {
        let if_none_match = request.headers.get(IF_NONE_MATCH).cloned();
        Self { method: request.http_method.clone(), if_none_match }
    }

    /// Adds the headers for caches. A caller that has the current response gets a 304 without a body. The response to
    /// `HEAD` has no body either.
    fn apply(&self, result: Result<Response, Problem>) -> ApiGatewayProxyResponse {
        let version = result.as_ref().map_or(None, |response| response.version);
        let mut response = response(result);
        let is_read = self.method == Method::GET || self.method == Method::HEAD;
        response.headers.insert(VARY, HeaderValue::from_static("Authorization"));
        let cache = if is_read && response.status_code == 200 {
            let text = match &response.body {
                Some(Body::Text(text)) => text.as_bytes(),
                _ => &[],
            };
            let tag = entity_tag(text, version);
            if self.if_none_match.as_ref().is_some_and(|known| matches(known, &tag)) {
                response.status_code = 304;
                response.headers.remove(CONTENT_TYPE);
                response.body = None;
            }
            if let Ok(tag) = HeaderValue::try_from(tag) {
                response.headers.insert(ETAG, tag);
            }
            "private, no-cache"
        } else {
            "no-store"
        };
        response.headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
        if self.method == Method::HEAD {
            response.body = None;
        }
        response
    }
}

/// Returns the entity tag of a response with this body. If the resource has a version, the tag begins with it.
fn entity_tag(body: &[u8], version: Option<u64>) -> String {
    let hash = &Sha256::digest(body)[..16];
    let tag = hash.iter().fold(String::new(), |tag, byte| tag + &format!("{byte:02x}"));
    let version = version.map_or_else(String::new, |version| format!("{version}-"));
    format!("\"{version}{tag}\"")
}

/// Refuses a change (412) if `If-Match` does not have the tag of the resource as it is now. A request without the header is
/// not refused. `current` is the response to the caller's `GET` of the resource.
pub fn require_match(request: &Request, current: &Response) -> Result<(), Problem> {
    let mut known = request.headers.get_all(IF_MATCH).iter().peekable();
    if known.peek().is_none() {
        return Ok(());
    }
    let tag = entity_tag(current.body.as_bytes(), current.version);
    // RFC 9110 asks for a strong comparison: a weak tag never matches.
    let is_current = |known: &HeaderValue| {
        let mut known = known.to_str().unwrap_or_default().split(',').map(str::trim);
        known.any(|known| known == "*" || known == tag)
    };
    if known.any(is_current) {
        return Ok(());
    }
    let detail = "The resource was changed since you read it. Read it again, and send the change with the new ETag in \
                  If-Match.";
    Err(Problem::new(412, "precondition-failed", "The resource was changed", detail))
}

/// Returns whether `If-None-Match` contains the tag. The comparison is weak, as RFC 9110 asks for.
fn matches(if_none_match: &HeaderValue, tag: &str) -> bool {
    let mut known = if_none_match.to_str().unwrap_or_default().split(',').map(str::trim);
    known.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// The origin of a request, for the log of refusals.
#[derive(Debug)]
struct RequestOrigin {
    method: String,
    /// The route's path in the template, without the caller's values.
    resource: String,
    site: Option<SiteId>,
    operator: Option<OperatorId>,
}

impl RequestOrigin {
    fn new(request: &Request) -> Self {
        let site = request.path_parameters.get("siteId").and_then(|text| text.parse().ok());
        Self {
            method: request.http_method.to_string(),
            resource: request.resource.clone().unwrap_or_default(),
            site,
            operator: None,
        }
    }

    /// Logs one line and counts the metric `RequestsRefused` if the caller was refused (4xx).
    ///
    /// The line contains neither the body nor headers. The message may quote the request, so it is escaped and
    /// truncated.
    fn log_refusal(&self, problem: &Problem) {
        if !(400..500).contains(&problem.status) {
            return;
        }
        if let Some(site) = self.site {
            Span::current().record("siteId", display(site));
        }
        let reason = problem.reason();
        let first = problem.errors.first();
        let message = first.map_or(problem.detail.as_str(), |error| &error.message);
        tracing::warn!(
            operatorId = self.operator.map(display),
            method = self.method,
            resource = self.resource,
            status = problem.status,
            reason,
            field = first.map(|error| loggable(&error.field)),
            problem = loggable(message),
            problems = problem.errors.len(),
            "request refused"
        );
        metrics::counter!("RequestsRefused", "reason" => reason).increment(1);
    }

    /// Counts the metric `RequestsRefused` for a request beyond the rate limit.
    ///
    /// A caller that sends too much would fill the log, so one line per minute reports the refusals since the last one.
    fn log_rate_limited(&self, refusal: &Refusal, actor: &str) {
        let reason = "RateLimited";
        if let Some(refused) = refusal.to_log {
            tracing::warn!(
                operatorId = self.operator.map(display),
                actor = loggable(actor),
                method = self.method,
                resource = self.resource,
                status = 429,
                reason,
                holder = ?refusal.of,
                refused,
                "requests refused"
            );
        }
        metrics::counter!("RequestsRefused", "reason" => reason).increment(1);
    }
}

/// Prepares a text that may contain a caller's input for the log. The text is truncated, credentials are hidden, and
/// control and invisible characters are escaped.
#[must_use]
pub fn loggable(text: &str) -> String {
    let mut escaped = String::new();
    for character in keys::mask(text).chars().take(MAX_LOGGED + 1) {
        let mut as_debug = character.escape_debug();
        if character.is_control() || as_debug.clone().nth(1) == Some('u') {
            escaped.extend(as_debug.by_ref());
        } else {
            escaped.push(character);
        }
    }
    input::truncate(escaped, MAX_LOGGED)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;
    use store::StoreError;

    use super::*;

    fn request(body: &str) -> Request {
        let mut request = Request::default();
        request.body = Some(body.to_owned());
        request
    }

    fn sent(result: Result<Response, Problem>) -> Value {
        serde_json::to_value(response(result)).expect("a response as JSON")
    }

    #[test]
    fn a_problem_follows_rfc_9457() {
        let problem = Problem::invalid(vec![FieldError::new("sensors[2].unit", "is missing")]);
        let sent = sent(Err(problem));
        assert_eq!(sent["statusCode"], 400);
        assert_eq!(sent["headers"], json!({ "content-type": "application/problem+json" }));
        let body: Value = serde_json::from_str(sent["body"].as_str().expect("text")).expect("JSON");
        assert_eq!(
            body,
            json!({
                "type": "urn:fieldstation:problem:invalid-request",
                "title": "The request is not valid",
                "status": 400,
                "detail": "Correct sensors[2].unit and send the request again.",
                "errors": [{ "field": "sensors[2].unit", "message": "is missing", "reason": "InvalidValue" }],
            })
        );
    }

    #[test]
    fn a_problem_can_have_extension_members_and_a_retry_after_header() {
        let busy = Problem::new(503, "busy", "Busy", "Later.").with("accepted", 2);
        let sent = sent(Err(Problem { retry_after: Some(5), ..busy }));
        assert_eq!(
            sent["headers"],
            json!({ "content-type": "application/problem+json", "retry-after": "5" })
        );
        let body: Value = serde_json::from_str(sent["body"].as_str().expect("text")).expect("JSON");
        assert_eq!(
            body,
            json!({
                "type": "urn:fieldstation:problem:busy",
                "title": "Busy",
                "status": 503,
                "detail": "Later.",
                "accepted": 2,
            })
        );
    }

    #[test]
    fn an_error_without_a_field_is_reported_for_the_body() {
        let whole = FieldError::new("", "is not JSON");
        let problem = Problem::invalid(vec![whole]);
        assert_eq!(problem.errors[0].field, "body");
        assert_eq!(problem.detail, "Correct body and send the request again.");
    }

    #[test]
    fn the_details_of_a_fault_are_not_in_the_response() {
        let inside = || "arn:aws:dynamodb:::table/T".to_owned();
        for (fault, status) in
            [(StoreError::Transient(inside()), 503), (StoreError::Internal(inside()), 500)]
        {
            let problem = Problem::from(fault);
            assert_eq!(problem.status, status);
            assert!(!format!("{problem:?}").contains("arn:"), "{problem:?}");
        }
    }

    #[test]
    fn a_successful_response_has_its_headers() {
        let result =
            Response::new(202, &json!({ "a": 1 })).expect("JSON").at("/sites/1".to_owned());
        let sent = sent(Ok(result));
        assert_eq!(sent["statusCode"], 202);
        assert_eq!(
            sent["headers"],
            json!({ "content-type": "application/json", "location": "/sites/1" })
        );
        assert_eq!(sent["body"], r#"{"a":1}"#);
        assert_eq!(sent["isBase64Encoded"], false);
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused() {
        assert_eq!(body(&request("1234"), 4), Ok("1234"));
        assert_eq!(body(&Request::default(), 4), Ok(""));
        assert_eq!(body(&request("12345"), 4).expect_err("too large").status, 413);
        // The limit counts bytes, not characters.
        assert_eq!(body(&request("ää1"), 4).expect_err("too large").status, 413);
        let mut binary = request("1234");
        binary.is_base64_encoded = true;
        assert_eq!(body(&binary, 4).expect_err("binary").status, 400);
    }

    #[test]
    fn a_body_of_another_type_is_refused() {
        let typed = |kind: &'static str| {
            let mut request = request("{}");
            request.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            body(&request, 10).map(str::to_owned).map_err(|problem| problem.status)
        };
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/a+json"] {
            assert_eq!(typed(kind).as_deref(), Ok("{}"), "{kind}");
        }
        for kind in ["text/plain", "", "application/x-www-form-urlencoded", "text/a+json"] {
            assert_eq!(typed(kind), Err(415), "{kind}");
        }
    }

    #[test]
    fn a_refusal_has_a_stable_reason() {
        let field =
            |reason| Problem::invalid(vec![FieldError::new("a", "is bad").with_reason(reason)]);
        assert_eq!(field(Reason::ClockAhead).reason(), "ClockAhead");
        assert_eq!(field(Reason::InvalidJson).reason(), "InvalidJson");
        assert_eq!(
            Problem::conflict("idempotency-key-reused", "").reason(),
            "IdempotencyKeyReused"
        );
        assert_eq!(Problem::not_found("").reason(), "NotFound");
    }

    #[test]
    fn logged_input_is_escaped_and_truncated() {
        let logged = loggable(&format!("is \u{1b}[2J\u{202e}{}", "x".repeat(1_000)));
        assert!(logged.starts_with("is \\u{1b}[2J\\u{202e}xx"), "{logged}");
        assert!(logged.chars().count() <= MAX_LOGGED + 4, "{logged}");
    }

    #[test]
    fn a_credential_in_a_wrong_field_is_neither_returned_nor_logged() {
        let key = "fso_0123456789abcdefghijklmnopqrstuvwxyz";
        let error = FieldError::new(format!("query {key}"), format!("is \"{key}\"; give a UUID"));
        let problem = Problem::invalid(vec![error]).with("bundles", vec!["fso_a", "eyJ"]);
        let origin = RequestOrigin::new(&request(""));
        let lines = logged(|| origin.log_refusal(&problem));
        let response = serde_json::to_string(&response(Err(problem))).expect("JSON");
        for text in [json!(lines).to_string(), response] {
            assert!(text.contains("fso_01234567…") && !text.contains("fso_012345678"), "{text}");
        }
    }

    /// Returns the JSON lines that the work logs within an invocation.
    fn logged(work: impl FnOnce()) -> Vec<Value> {
        let invocation = async {
            tracing::info_span!("invocation", siteId = tracing::field::Empty).in_scope(work);
        };
        let ((), lines) = testkit::logged::logged(invocation).now_or_never().expect("no waiting");
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn a_refusal_is_logged_in_one_line_without_the_body() {
        let mut request = request(r#"{"name": "Alamosa", "paymentMethod": "pm_secret"}"#);
        request.http_method = "POST".parse().expect("a method");
        request.resource = Some("/sites/{siteId}".to_owned());
        let site = SiteId::registered(OperatorId::DEFAULT, "http", "key-1");
        request.path_parameters.insert("siteId".to_owned(), site.to_string());
        let origin = RequestOrigin::new(&request);
        let lines = logged(|| {
            let error =
                FieldError::new("sensors[2].unit", "is missing").with_reason(Reason::MissingField);
            origin.log_refusal(&Problem::invalid(vec![error]));
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        for (field, expected) in [
            ("level", "WARN"),
            ("message", "request refused"),
            ("method", "POST"),
            ("resource", "/sites/{siteId}"),
            ("reason", "MissingField"),
            ("field", "sensors[2].unit"),
            ("problem", "is missing"),
        ] {
            assert_eq!(line[field], expected, "{line}");
        }
        assert_eq!(line["status"], 400);
        assert_eq!(line["span"]["siteId"], json!(site));
        let text = line.to_string();
        assert!(!text.contains("pm_secret") && !text.contains("Alamosa"), "{text}");

        // A 5xx is not the caller's fault, so it is not logged as a refusal.
        let server_error = logged(|| origin.log_refusal(&Problem::new(503, "unavailable", "", "")));
        assert!(server_error.is_empty(), "{server_error:?}");
    }

    #[test]
    fn header_names_are_case_insensitive() {
        let name = HeaderName::from_bytes(b"IDEMPOTENCY-key").expect("a name");
        let mut request = Request::default();
        request.headers.insert(name, HeaderValue::from_static("k"));
        assert_eq!(header(&request, "Idempotency-Key"), Some("k"));
        assert_eq!(header(&request, "Other"), None);
    }
}
