//! A stand-in for a service that is spoken to over HTTP: an AWS service, or the payment provider.

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
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{Mutex as Gate, OwnedMutexGuard, mpsc::UnboundedSender, oneshot},
};

/// Above what a test sends: `PutRecords` takes 5 MiB, a third more as base64.
const LARGEST_BODY: usize = 8 * 1024 * 1024;

/// What any AWS client is made of here: plain HTTP to that endpoint, dummy credentials, and no
/// retries, so that a test sees every call.
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

/// A request that the stand-in got.
#[derive(Clone, Debug)]
pub struct Call {
    /// `POST`, ...
    pub method: String,
    /// With the query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body's text.
    pub body: String,
}

impl Call {
    /// The AWS operation that is asked for, or nothing.
    #[must_use]
    pub fn operation(&self) -> &str {
        let target = self.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        target.and_then(|target| target.rsplit('.').next()).unwrap_or_default()
    }

    /// The body as JSON, null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Names and values.
pub type Headers = Vec<(&'static str, &'static str)>;

/// Given as a status: the call is not answered, ever. Whoever called can be dropped in the middle.
pub const SILENCE: u16 = 0;

/// A call that waits until somebody else says what becomes of it; dropped, it is never answered.
#[derive(Debug)]
pub struct Asked {
    /// The call.
    pub call: Call,
    /// Where its status and body go.
    pub answer: oneshot::Sender<(u16, Value)>,
}

/// A running stand-in.
#[derive(Debug)]
pub struct Stub {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    gate: Arc<Gate<()>>,
}

impl Stub {
    /// Starts one that answers every call with the status and body that `answer` gives.
    ///
    /// # Panics
    /// Where no port is free.
    pub async fn start(answer: impl Fn(&Call) -> (u16, Value) + Send + Sync + 'static) -> Self {
        Self::with_headers(move |call| {
            let (status, body) = answer(call);
            (status, Vec::new(), body)
        })
        .await
    }

    /// Starts one whose answers have headers, too.
    ///
    /// # Panics
    /// Where no port is free.
    pub async fn with_headers(
        answer: impl Fn(&Call) -> (u16, Headers, Value) + Send + Sync + 'static,
    ) -> Self {
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let gate = Arc::<Gate<()>>::default();
        let (seen, shut, answer) = (Arc::clone(&calls), Arc::clone(&gate), Arc::new(answer));
        let router = Router::new().fallback(move |request: Request| {
            let (seen, shut, answer) = (Arc::clone(&seen), Arc::clone(&shut), Arc::clone(&answer));
            async move {
                let call = read(request).await;
                seen.lock().expect("no panic in the stub").push(call.clone());
                drop(shut.lock().await);
                let (status, headers, body) = answer(&call);
                if status == SILENCE {
                    std::future::pending::<()>().await;
                }
                let status = StatusCode::from_u16(status).expect("an HTTP status");
                (status, AppendHeaders(headers), body.to_string())
            }
        });
        Self { address: serve(router).await, calls, gate }
    }

    /// Starts one that passes every call on, and answers what comes back.
    ///
    /// # Panics
    /// Where no port is free.
    pub async fn passing_on(calls: UnboundedSender<Asked>) -> Self {
        let router = Router::new().fallback(move |request: Request| {
            let calls = calls.clone();
            async move {
                let (answer, answered) = oneshot::channel();
                let call = read(request).await;
                // Both sides may be gone: a call that nobody answers stays without an answer.
                drop(calls.send(Asked { call, answer }));
                let Ok((status, body)) = answered.await else {
                    return std::future::pending().await;
                };
                (StatusCode::from_u16(status).expect("an HTTP status"), body.to_string())
            }
        });
        Self { address: serve(router).await, calls: Arc::default(), gate: Arc::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A configuration for AWS clients that speak to it.
    #[must_use]
    pub fn config(&self) -> SdkConfig {
        config(&self.url())
    }

    /// Until what it gives is dropped, calls come in but nothing is done or answered.
    pub async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.gate).lock_owned().await
    }

    /// The calls since it was last asked.
    ///
    /// # Panics
    /// Where the stand-in panicked.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().expect("no panic in the stub"))
    }
}

/// Serves for as long as the runtime lives, at the address that it gives.
async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn read(request: Request) -> Call {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.expect("a whole body");
    Call {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}
