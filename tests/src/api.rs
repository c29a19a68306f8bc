//! Calls of the HTTP API, with the key of an administrator, with another credential, or with none.

use std::fmt;

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use contracts::names;
use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, IF_MATCH},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{Stack, signing::Signer, stack::REGION};

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
    credential: Credential,
}

/// What a call sends in the header `Authorization`.
#[derive(Clone, Debug)]
enum Credential {
    /// The key of an administrator of the default operator.
    Administrator,
    /// These values, each in its own header. If the list is empty, the call has no such header.
    Given(Vec<HeaderValue>),
}

impl Call {
    /// Creates a call of a path below the stage, with the query, such as `/sites?limit=1`.
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Vec::new(),
            credential: Credential::Administrator,
        }
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

    /// Creates a `PATCH` call with this body.
    #[must_use]
    pub fn patch(path: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self::new(Method::PATCH, path).text(body)
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

    /// Adds an `If-None-Match`.
    ///
    /// # Panics
    /// If the tag is not a valid header value.
    #[must_use]
    pub fn if_none_match(mut self, tag: &str) -> Self {
        let value = HeaderValue::from_str(tag).expect("the tag is a valid header value");
        self.headers.push((HeaderName::from_static("if-none-match"), value));
        self
    }

    /// Adds an `If-Match`.
    ///
    /// # Panics
    /// If the tag is not a valid header value.
    #[must_use]
    pub fn if_match(mut self, tag: &str) -> Self {
        let value = HeaderValue::from_str(tag).expect("the tag is a valid header value");
        self.headers.push((IF_MATCH, value));
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

    /// Sets the type of the body.
    ///
    /// # Panics
    /// If the type is not a valid header value.
    #[must_use]
    pub fn content_type(mut self, kind: &str) -> Self {
        self.headers.retain(|(name, _)| *name != CONTENT_TYPE);
        self.headers.push((CONTENT_TYPE, kind.parse().expect("a valid header value")));
        self
    }

    /// Sets the key or token of the call. With `None`, the call keeps the administrator's key.
    #[must_use]
    pub fn bearing_or_admin(self, credential: Option<&str>) -> Self {
        match credential {
            Some(credential) => self.bearing(credential),
            None => self,
        }
    }

    /// Sets the key or token of the call.
    #[must_use]
    pub fn bearing(self, credential: &str) -> Self {
        self.authorizations(&[&format!("Bearer {credential}")])
    }

    /// Sets the `Authorization` headers of the call.
    ///
    /// # Panics
    /// If a value is not a valid header value.
    #[must_use]
    pub fn authorizations(self, values: &[&str]) -> Self {
        let values = values.iter().map(|value| value.parse().expect("a valid header value"));
        Self { credential: Credential::Given(values.collect()), ..self }
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

    /// Returns the secret of the first administrator.
    pub async fn first_administrator_secret(&self) -> Result<String> {
        let input = json!({ "SecretId": self.named(names::FIRST_ADMINISTRATOR) });
        let secret =
            self.json_call("secretsmanager", "secretsmanager.GetSecretValue", &input).await?;
        let secret = secret["SecretString"].as_str().context("the secret is not a text")?;
        Ok(secret.to_owned())
    }

    /// Returns the key of an administrator of the default operator. Each process creates one, with the secret of the
    /// first administrator.
    pub async fn api_key(&self) -> Result<&'static str> {
        static KEY: OnceCell<String> = OnceCell::const_new();
        let key = KEY.get_or_try_init(async || {
            let secret = self.first_administrator_secret().await?;
            let body = json!({ "name": "End-to-end tests", "scope": "admin", "expiresInDays": 1 });
            let call = Call::new(Method::POST, "/keys")
                .key(&Uuid::new_v4().to_string())
                .text(body.to_string())
                .bearing(&format!("fsb_{secret}"));
            let response = Box::pin(self.call(call)).await?;
            let key = response.body["key"].as_str().map(str::to_owned);
            key.with_context(|| format!("no key was created: {response}"))
        });
        Ok(key.await?)
    }

    /// Calls an operation of an AWS service that takes JSON, without an SDK.
    pub async fn json_call(&self, service: &str, target: &str, input: &Value) -> Result<Value> {
        let body = input.to_string();
        let mut request = self
            .http
            .post(self.endpoint().clone())
            .header(CONTENT_TYPE, "application/x-amz-json-1.0")
            .header("x-amz-target", target)
            .body(body.clone())
            .build()?;
        sign(&mut request, service, body.as_bytes())?;
        let response = self.http.execute(request).await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{target}: {status}: {text}");
        if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
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
        let authorizations = match call.credential {
            Credential::Administrator => vec![format!("Bearer {}", self.api_key().await?).parse()?],
            Credential::Given(values) => values,
        };
        for value in authorizations {
            request.headers_mut().append(AUTHORIZATION, value);
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
