//! Stub of the Lambda Runtime API. It delivers events, and reports the requests of the function.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use hyper::{
    Method,
    body::Bytes,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::sync::{
    Mutex,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::server::{Handler, HttpRequest, HttpResponse, Server, response};

const INVOCATION: &str = "/2018-06-01/runtime/invocation/";
/// The time until an invocation's deadline. It is long enough for valgrind and for the CPU share of 128 MB.
const DEADLINE: Duration = Duration::from_mins(15);

/// A request of a function to the Runtime API.
#[derive(Debug)]
pub enum RuntimeRequest {
    /// It requested the next event.
    Next(Instant),
    /// It sent its response.
    Response(Instant, Bytes),
    /// It reported an error of the initialization or of an invocation.
    Error(String),
}

/// The stub for one process.
#[derive(Debug)]
pub struct RuntimeApi {
    /// The HTTP server.
    pub server: Server,
    /// Receives the requests of the process.
    pub requests: UnboundedReceiver<RuntimeRequest>,
    /// Sends the events to the process.
    pub events: UnboundedSender<Bytes>,
}

struct RuntimeHandler {
    name: String,
    requests: UnboundedSender<RuntimeRequest>,
    events: Mutex<UnboundedReceiver<Bytes>>,
    invocations: AtomicU64,
}

impl RuntimeApi {
    /// Starts a stub for the function with this name.
    pub async fn start(name: &str) -> Result<Self> {
        let (sender, requests) = unbounded_channel();
        let (events, event_receiver) = unbounded_channel();
        let handler = RuntimeHandler {
            name: name.to_owned(),
            requests: sender,
            events: Mutex::new(event_receiver),
            invocations: AtomicU64::new(0),
        };
        let server = Server::start(None, Arc::new(handler)).await?;
        Ok(Self { server, requests, events })
    }
}

impl Handler for RuntimeHandler {
    async fn respond(&self, request: HttpRequest) -> HttpResponse {
        let now = Instant::now();
        let path = request.uri().path().to_owned();
        if request.method() == Method::GET && path == format!("{INVOCATION}next") {
            self.report(RuntimeRequest::Next(now));
            // The sender is dropped only after the process has ended.
            let Some(event) = self.events.lock().await.recv().await else {
                return response(500, "");
            };
            let mut response = response(200, event);
            let number = self.invocations.fetch_add(1, Ordering::Relaxed);
            *response.headers_mut() = self.headers(number);
            return response;
        }
        let body = request.into_body();
        if path.starts_with(INVOCATION) && path.ends_with("/response") {
            self.report(RuntimeRequest::Response(now, body));
        } else {
            self.report(RuntimeRequest::Error(format!(
                "{path}: {}",
                String::from_utf8_lossy(&body)
            )));
        }
        response(202, r#"{"status":"OK"}"#)
    }
}

impl RuntimeHandler {
    fn report(&self, request: RuntimeRequest) {
        // The receiver is closed when the process is being terminated.
        drop(self.requests.send(request));
    }

    fn headers(&self, number: u64) -> HeaderMap {
        let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + DEADLINE;
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("lambda-runtime-aws-request-id", format!("8476a536-e9f4-41e8-9739-{number:012}")),
            ("lambda-runtime-deadline-ms", deadline.as_millis().to_string()),
            (
                "lambda-runtime-invoked-function-arn",
                format!("arn:aws:lambda:eu-central-1:123456789012:function:{}", self.name),
            ),
            (
                "lambda-runtime-trace-id",
                "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1".into(),
            ),
        ];
        let pairs = headers.into_iter().filter_map(|(name, value)| {
            Some((HeaderName::from_static(name), HeaderValue::from_str(&value).ok()?))
        });
        pairs.collect()
    }
}
