//! A client of the stack's HTTP API. It calls the API with the key of [`crate::api_key`].

use std::time::Duration;

use contracts::SiteId;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Uri, body::Bytes, header};
use serde_json::Value;

use crate::{
    api_key::Credential,
    error::{CliError, Exit},
    stack::Stack,
};

/// The maximum size of a response: above API Gateway's own limit of 10 MB.
const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// The timeout of a call. API Gateway responds within 29 s.
const TIMEOUT: Duration = Duration::from_secs(35);
/// The delay before the first retry. Each further delay is twice as long.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRIES: u32 = 5;
/// The maximum delay before a retry that `Retry-After` can cause. A longer `Retry-After` counts as this delay.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);
/// The maximum page size of the API.
pub const MAX_PAGE_SIZE: usize = 100;

/// A request to the API.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    idempotency_key: Option<String>,
    if_match: Option<String>,
    body: Bytes,
}

impl Call {
    fn new(method: Method, path: impl Into<String>) -> Self {
        let (idempotency_key, if_match) = (None, None);
        Self { method, path: path.into(), idempotency_key, if_match, body: Bytes::new() }
    }

    /// Creates a `GET` request. `path` is relative to the stage and includes the query.
    #[must_use]
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// Creates a `DELETE` request.
    #[must_use]
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Creates a `POST` request with a JSON body.
    #[must_use]
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(Method::POST, path) }
    }

    /// Creates a `PATCH` request with a JSON body.
    #[must_use]
    pub fn patch(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(Method::PATCH, path) }
    }

    /// Sets the `Idempotency-Key`.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sets `If-Match` to an entity tag, which is given without its quotes.
    #[must_use]
    pub fn if_match(mut self, tag: &str) -> Self {
        self.if_match = Some(format!("\"{tag}\""));
        self
    }
}

/// Returns the query string of a path. Pairs without a value are left out.
#[must_use]
pub fn query(pairs: &[(&str, Option<String>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}

/// A response of the API.
#[derive(Debug)]
pub struct ApiResponse {
    /// The HTTP status.
    pub status: u16,
    /// The body. A body that is not JSON becomes a JSON string.
    pub body: Value,
    /// The `ETag`, without its quotes.
    pub etag: Option<String>,
    /// The delay after which the caller may try again.
    retry_after: Option<Duration>,
}

impl ApiResponse {
    /// Returns the error for a response that is a refusal.
    #[must_use]
    pub fn refusal(&self) -> CliError {
        let error = CliError::refused(self.status, &self.body);
        if !is_busy(self.status) {
            return error;
        }
        let advice = format!(
            "fieldctl tried {} times; wait a minute, then run the command again",
            MAX_RETRIES + 1
        );
        error.advise(advice).after_sending()
    }
}

impl Stack {
    /// Calls `GET /sites/{siteId}`.
    pub async fn site(&self, site: SiteId) -> Result<Value, CliError> {
        self.call(Call::get(format!("/sites/{site}"))).await
    }

    /// Reads all pages of a list. The path may have a query. `member` is the name of the list in a page.
    pub async fn all(&self, path: &str, member: &str) -> Result<Vec<Value>, CliError> {
        let (mut entries, mut next) = (Vec::new(), None);
        loop {
            let query = query(&[("limit", Some(MAX_PAGE_SIZE.to_string())), ("next", next)]);
            let separator = if path.contains('?') { '&' } else { '?' };
            let mut page = self.call(Call::get(format!("{path}{separator}{query}"))).await?;
            if let Value::Array(more) = page[member].take() {
                entries.extend(more);
            }
            next = page["next"].as_str().map(str::to_owned);
            if next.is_none() {
                return Ok(entries);
            }
        }
    }

    /// Calls the API and returns the body of the response. Returns an error if the API refuses.
    pub async fn call(&self, call: Call) -> Result<Value, CliError> {
        self.success(call).await.map(|response| response.body)
    }

    /// Calls the API and returns the response. Returns an error if the API refuses.
    pub async fn success(&self, call: Call) -> Result<ApiResponse, CliError> {
        let response = self.answer(&call).await?;
        if (200..300).contains(&response.status) { Ok(response) } else { Err(response.refusal()) }
    }

    /// Calls the API and returns the response, which may be a refusal. If the API does not accept the stored
    /// administrator's key, the call is repeated once with a new key. That is safe, because every call of the API is idempotent.
    pub async fn answer(&self, call: &Call) -> Result<ApiResponse, CliError> {
        let mut key = self.api_key().await?;
        let mut response = self.retried(call, &key.credential).await?;
        if response.status == 401 {
            key = self.api_key_after(&key).await?;
            response = self.retried(call, &key.credential).await?;
        }
        if response.status == 401 { Err(key.not_accepted()) } else { Ok(response) }
    }

    /// Calls the API with that credential. Returns an error if the service is still busy after the retries.
    pub(crate) async fn exchange(
        &self,
        call: &Call,
        credential: &Credential,
    ) -> Result<ApiResponse, CliError> {
        let response = self.retried(call, credential).await?;
        if is_busy(response.status) { Err(response.refusal()) } else { Ok(response) }
    }

    /// Sends a call. While the service is busy, retries the call up to five times. A retry waits at least as long as
    /// `Retry-After` says, up to [`MAX_RETRY_AFTER`].
    async fn retried(&self, call: &Call, credential: &Credential) -> Result<ApiResponse, CliError> {
        let mut delay = FIRST_RETRY_DELAY;
        for _ in 0..MAX_RETRIES {
            let response = self.send(call, credential).await?;
            if !is_busy(response.status) {
                return Ok(response);
            }
            let retry_after = response.retry_after.unwrap_or_default().min(MAX_RETRY_AFTER);
            tokio::time::sleep(delay.max(retry_after)).await;
            delay *= 2;
        }
        self.send(call, credential).await
    }

    async fn send(&self, call: &Call, credential: &Credential) -> Result<ApiResponse, CliError> {
        let request = self.request(call, credential)?;
        let unreachable = |error: String| {
            CliError::new(Exit::Aws, format!("the API can't be reached: {error}"))
                .advise("check the network, and whether every service of the stack is deployed")
                .after_sending()
        };
        let exchange = async {
            let response = self.http.0.request(request).await.map_err(|error| {
                unreachable(std::error::Error::source(&error).unwrap_or(&error).to_string())
            })?;
            let status = response.status().as_u16();
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
            let etag = header(header::ETAG).map(|tag| tag.trim_matches('"').to_owned());
            let retry_after = header(header::RETRY_AFTER).and_then(|text| text.parse().ok());
            let retry_after = retry_after.map(Duration::from_secs);
            let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
            let body = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            let body = serde_json::from_slice(&body)
                .unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
            Ok(ApiResponse { status, body, etag, retry_after })
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(exchange) => exchange,
            Err(_) => Err(unreachable(format!("no response within {} s", TIMEOUT.as_secs()))),
        }
    }

    /// Returns the base URL of the API, stage included. On AWS it is the output `ApiUrl`. On an emulator the host is a
    /// subdomain of `localhost` instead.
    pub fn api_url(&self) -> Result<String, CliError> {
        let api = self.output("ApiUrl")?.trim_end_matches('/');
        let Some(emulator) = self.emulator() else { return Ok(api.to_owned()) };
        let stage = api.rsplit('/').next().unwrap_or_default();
        let port = emulator.port_u16().unwrap_or(80);
        Ok(format!("http://{}.execute-api.localhost:{port}/{stage}", self.output("ApiId")?))
    }

    /// Creates a request. On an emulator it is sent to the emulator's address, with the API's name as `Host`, because not
    /// every system resolves subdomains of `localhost`.
    fn request(
        &self,
        call: &Call,
        credential: &Credential,
    ) -> Result<Request<Full<Bytes>>, CliError> {
        let invalid = |error: &dyn std::fmt::Display| {
            CliError::usage(format!("the request is not valid: {error}"))
        };
        let api: Uri = self.api_url()?.parse().map_err(|error| invalid(&error))?;
        let host = api.authority().map_or("", |authority| authority.as_str());
        let emulator = self.emulator();
        let address = emulator.as_ref().and_then(Uri::authority).map_or(host, |it| it.as_str());
        let scheme = api.scheme_str().unwrap_or("https");
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(format!("{scheme}://{address}{}{}", api.path(), call.path))
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, credential.header()?)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("fieldctl/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(tag) = &call.if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        request.body(Full::new(call.body.clone())).map_err(|error| invalid(&error))
    }
}

/// Returns whether the service may accept the same request later.
fn is_busy(status: u16) -> bool {
    matches!(status, 429 | 502..=504)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_leaves_out_pairs_without_a_value() {
        let pairs =
            [("status", Some("A B".to_owned())), ("limit", None), ("next", Some("=".into()))];
        assert_eq!(query(&pairs), "status=A+B&next=%3D");
    }
}
