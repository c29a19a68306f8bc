//! A fake of a service with an HTTP API: an AWS service or the payment provider.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_smithy_http_client::Builder;
use aws_types::SdkConfig;
use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::AppendHeaders,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex as Gate, OwnedMutexGuard, mpsc::UnboundedSender, oneshot},
};

/// The maximum size of a request's body. No test sends more: `PutRecords` accepts 5 MiB of data, and base64 makes them
/// a third larger.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// Returns the configuration of AWS clients in tests: plain HTTP to this endpoint, dummy credentials, and no retries,
/// so that a test sees every call.
#[must_use]
pub fn config(endpoint: &str) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::from_keys(
            "test", "test", None,
        )))
        .endpoint_url(endpoint)
        .http_client(Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .build()
}

/// A request to the fake.
#[derive(Clone, Debug)]
pub struct Call {
    /// The HTTP method, e.g. `POST`.
    pub method: String,
    /// The path with the query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body's text.
    pub body: String,
}

impl Call {
    /// Returns the name of the AWS operation, or an empty text.
    #[must_use]
    pub fn operation(&self) -> &str {
        let target = self.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        target.and_then(|target| target.rsplit('.').next()).unwrap_or_default()
    }

    /// Parses the body as JSON. Returns null if it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Names and values of response headers.
pub type Headers = Vec<(&'static str, &'static str)>;

/// A status that means: send no response. The caller can then be dropped while it waits.
pub const NO_RESPONSE: u16 = 0;

/// A call that waits for its response. If `response` is dropped, the caller gets no response.
#[derive(Debug)]
pub struct PendingCall {
    /// The call.
    pub call: Call,
    /// The channel for the response's status and body.
    pub response: oneshot::Sender<(u16, Value)>,
}

/// A running fake.
#[derive(Debug)]
pub struct Stub {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    gate: Arc<Gate<()>>,
}

impl Stub {
    /// Starts a fake that responds to every call with the status and body that `respond` returns.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start(respond: impl Fn(&Call) -> (u16, Value) + Send + Sync + 'static) -> Self {
        Self::with_headers(move |call| {
            let (status, body) = respond(call);
            (status, Vec::new(), body)
        })
        .await
    }

    /// Starts a fake of both outlets of publish-events: a bus and a stream that accept every event.
    pub async fn of_outlets() -> Self {
        Self::start(|call| {
            let body = call.json();
            let count = |list: &str| body[list].as_array().map_or(0, Vec::len);
            if call.operation() == "PutRecords" {
                let taken =
                    vec![json!({ "SequenceNumber": "1", "ShardId": "1" }); count("Records")];
                return (200, json!({ "FailedRecordCount": 0, "Records": taken }));
            }
            let taken = vec![json!({ "EventId": "1" }); count("Entries")];
            (200, json!({ "FailedEntryCount": 0, "Entries": taken }))
        })
        .await
    }

    /// Starts a fake whose responses also have headers.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn with_headers(
        respond: impl Fn(&Call) -> (u16, Headers, Value) + Send + Sync + 'static,
    ) -> Self {
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let gate = Arc::<Gate<()>>::default();
        let (recorded, closed_gate, respond) =
            (Arc::clone(&calls), Arc::clone(&gate), Arc::new(respond));
        let router = Router::new().fallback(move |request: Request| {
            let (recorded, closed_gate, respond) =
                (Arc::clone(&recorded), Arc::clone(&closed_gate), Arc::clone(&respond));
            async move {
                let call = read(request).await;
                recorded.lock().expect("the calls").push(call.clone());
                drop(closed_gate.lock().await);
                let (status, headers, body) = respond(&call);
                if status == NO_RESPONSE {
                    std::future::pending::<()>().await;
                }
                let status = StatusCode::from_u16(status).expect("an HTTP status");
                (status, AppendHeaders(headers), body.to_string())
            }
        });
        Self { address: serve(router).await, calls, gate }
    }

    /// Starts a fake that sends every call to `calls` and returns the response that it gets from there.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn forwarding_to(calls: UnboundedSender<PendingCall>) -> Self {
        let router = Router::new().fallback(move |request: Request| {
            let calls = calls.clone();
            async move {
                let (response, receiver) = oneshot::channel();
                let call = read(request).await;
                // If the receiver or the sender of the response is dropped, the caller gets no response.
                drop(calls.send(PendingCall { call, response }));
                let Ok((status, body)) = receiver.await else {
                    return std::future::pending().await;
                };
                (StatusCode::from_u16(status).expect("an HTTP status"), body.to_string())
            }
        });
        Self { address: serve(router).await, calls: Arc::default(), gate: Arc::default() }
    }

    /// Returns the fake's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns a configuration for AWS clients of this fake.
    #[must_use]
    pub fn config(&self) -> SdkConfig {
        config(&self.url())
    }

    /// Holds all calls until the returned guard is dropped. They are recorded, but get no response before that.
    pub async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.gate).lock_owned().await
    }

    /// Returns the calls since this function was last called.
    ///
    /// # Panics
    /// If the fake panicked.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().expect("the calls"))
    }
}

/// Starts serving and returns the address. The server runs as long as the runtime.
async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn read(request: Request) -> Call {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY_BYTES).await.expect("the whole body");
    Call {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}
