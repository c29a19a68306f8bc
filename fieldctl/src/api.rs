//! A client of the stack's HTTP API. It signs requests with AWS Signature Version 4.

use std::time::Duration;

use aws_credential_types::provider::ProvideCredentials;
use contracts::SiteId;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Uri, body::Bytes, header};
use serde_json::Value;
use signing::Signer;

use crate::{
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

/// A request to the API.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    idempotency_key: Option<String>,
    body: Bytes,
}

impl Call {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), idempotency_key: None, body: Bytes::new() }
    }

    /// Creates a `GET` request. `path` is below the stage and includes the query.
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

    /// Sets the `Idempotency-Key`.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
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
}

impl Stack {
    /// Calls `GET /sites/{siteId}`.
    pub async fn site(&self, site: SiteId) -> Result<Value, CliError> {
        self.call(Call::get(format!("/sites/{site}"))).await
    }

    /// Calls the API and returns the body of the response. Returns an error if the API refuses. While the service is
    /// busy, the call is retried up to five times. Every call of the API is idempotent.
    pub async fn call(&self, call: Call) -> Result<Value, CliError> {
        let mut delay = FIRST_RETRY_DELAY;
        for _ in 0..MAX_RETRIES {
            let response = self.send(&call).await?;
            match response.status {
                200..300 => return Ok(response.body),
                429 | 502..=504 => tokio::time::sleep(delay).await,
                status => return Err(CliError::refused(status, &response.body)),
            }
            delay *= 2;
        }
        let response = self.send(&call).await?;
        match response.status {
            200..300 => Ok(response.body),
            status => Err(CliError::refused(status, &response.body).advise(format!(
                "fieldctl tried {} times; wait a minute, then run the command again",
                MAX_RETRIES + 1
            ))),
        }
    }

    async fn send(&self, call: &Call) -> Result<ApiResponse, CliError> {
        let request = self.request(call).await?;
        let unreachable = |error: String| {
            CliError::new(Exit::Aws, format!("the API can't be reached: {error}"))
                .advise("check the network, and whether every service of the stack is deployed")
        };
        let exchange = async {
            let response = self.http.0.request(request).await.map_err(|error| {
                unreachable(std::error::Error::source(&error).unwrap_or(&error).to_string())
            })?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
            let body = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            let body = serde_json::from_slice(&body)
                .unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into());
            Ok(ApiResponse { status, body })
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

    /// Creates a signed request. On an emulator it is sent to the emulator's address, with the API's name as `Host`,
    /// because not every system resolves subdomains of `localhost`.
    async fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, CliError> {
        let invalid = |error: &dyn std::fmt::Display| {
            CliError::usage(format!("the request is not valid: {error}"))
        };
        let api: Uri = self.api_url()?.parse().map_err(|error| invalid(&error))?;
        let host = api.authority().map_or("", |authority| authority.as_str());
        let emulator = self.emulator();
        let address = emulator.as_ref().and_then(Uri::authority).map_or(host, |it| it.as_str());
        let scheme = api.scheme_str().unwrap_or("https");
        let uri = format!("{scheme}://{address}{}{}", api.path(), call.path);
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&uri)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("fieldctl/", env!("CARGO_PKG_VERSION")));
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let mut request = request.body(Full::new(call.body.clone())).map_err(|e| invalid(&e))?;
        self.sign(&uri, &mut request, &call.body).await?;
        Ok(request)
    }

    async fn sign(
        &self,
        uri: &str,
        request: &mut Request<Full<Bytes>>,
        body: &[u8],
    ) -> Result<(), CliError> {
        let cannot_sign =
            |what: String| CliError::new(Exit::Aws, format!("the request can't be signed: {what}"));
        let provider = self
            .config()
            .credentials_provider()
            .ok_or_else(|| cannot_sign("there are no AWS credentials".to_owned()))?;
        let credentials =
            provider.provide_credentials().await.map_err(|e| cannot_sign(e.to_string()))?;
        let signer = Signer { credentials, region: self.region(), service: "execute-api" };
        let method = request.method().clone();
        signer
            .sign(&method, uri, request.headers_mut(), body)
            .map_err(|e| cannot_sign(e.to_string()))
    }
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
