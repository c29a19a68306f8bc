//! Calls of the HTTP API, signed with AWS Signature Version 4 or unsigned.

use std::fmt;

use anyhow::{Context, Result};
use aws_credential_types::Credentials;
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue},
};
use serde_json::Value;
use signing::Signer;

use crate::{Stack, stack::REGION};

/// A response of the API.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body. If it is not JSON, a JSON string with its text.
    pub body: Value,
}

impl Response {
    /// Returns a header's value, or an empty text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Returns the fields of a problem's errors.
    #[must_use]
    pub fn fields(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().into_iter().flatten();
        errors.map(|error| error["field"].as_str().unwrap_or_default()).collect()
    }
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.header("content-type"), self.body)
    }
}

/// A request that is not sent yet.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
    signed: bool,
}

impl Call {
    /// Creates a call of a path below the stage, with the query, such as `/sites?limit=1`.
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Vec::new(), signed: true }
    }

    /// Creates a `GET` call.
    #[must_use]
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// Creates a `DELETE` call.
    #[must_use]
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Creates a `POST /sites` call with a registration.
    #[must_use]
    pub fn post_site(key: &str, registration: &Value) -> Self {
        Self::new(Method::POST, "/sites").key(key).text(registration.to_string())
    }

    /// Creates a `POST /readings` call with a bundle or a list of bundles.
    #[must_use]
    pub fn post_readings(body: impl Into<Vec<u8>>) -> Self {
        Self::new(Method::POST, "/readings").text(body)
    }

    /// Adds an `Idempotency-Key`.
    ///
    /// # Panics
    /// If the key is not a valid header value.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        let value = HeaderValue::from_str(key).expect("the key is a valid header value");
        self.headers.push((HeaderName::from_static("idempotency-key"), value));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn text(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.headers.retain(|(name, _)| *name != CONTENT_TYPE);
        self.headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
        self.body = body.into();
        self
    }

    /// Sends the call without a signature.
    #[must_use]
    pub fn unsigned(mut self) -> Self {
        self.signed = false;
        self
    }
}

impl Stack {
    /// Returns the host name of the REST API, with the emulator's port.
    pub fn api_host(&self) -> Result<String> {
        let port = self.endpoint().port_or_known_default().context("the endpoint has no port")?;
        Ok(format!("{}.execute-api.localhost:{port}", self.output("ApiId")?))
    }

    /// Returns the stage, which is the last segment of the API's URL.
    pub fn api_stage(&self) -> Result<&str> {
        let url = self.output("ApiUrl")?;
        url.trim_end_matches('/').rsplit('/').next().context("ApiUrl has no stage")
    }

    /// Sends a call to the API.
    pub async fn call(&self, call: Call) -> Result<Response> {
        let url = self.endpoint().join(&format!("/{}{}", self.api_stage()?, call.path))?;
        let mut request = self
            .http
            .request(call.method, url)
            .header(HOST, self.api_host()?)
            .headers(call.headers.into_iter().collect())
            .body(call.body.clone())
            .build()?;
        if call.signed {
            sign(&mut request, "execute-api", &call.body)?;
        }
        let response = self.http.execute(request).await.context("the API can't be reached")?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Response { status, headers, body })
    }
}

/// Signs a request to an AWS service with the local stack's credentials.
pub fn sign(request: &mut reqwest::Request, service: &str, body: &[u8]) -> Result<()> {
    let credentials = Credentials::new("test", "test", None, None, "local stack");
    sign_as(credentials, request, service, body)
}

/// Signs a request to an AWS service with these credentials.
pub fn sign_as(
    credentials: Credentials,
    request: &mut reqwest::Request,
    service: &str,
    body: &[u8],
) -> Result<()> {
    let (method, uri) = (request.method().clone(), request.url().to_string());
    let signer = Signer { credentials, region: REGION, service };
    Ok(signer.sign(&method, &uri, request.headers_mut(), body)?)
}
