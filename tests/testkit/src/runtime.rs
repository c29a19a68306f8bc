//! A fake of Lambda's Runtime API, which a function gets its payloads from.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{AppendHeaders, IntoResponse},
    routing::{get, post},
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::Notify};

/// The state of the fake: the payloads to deliver, and the responses that it received.
struct RuntimeApi {
    timeout: Duration,
    payloads: Mutex<Vec<Value>>,
    received: Mutex<Vec<(String, Value)>>,
    done: Notify,
}

async fn next(State(api): State<Arc<RuntimeApi>>) -> impl IntoResponse {
    let payload = api.payloads.lock().expect("the state").pop();
    let Some(payload) = payload else {
        api.done.notify_one();
        return std::future::pending().await;
    };
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time") + api.timeout;
    let headers = AppendHeaders([
        ("Lambda-Runtime-Aws-Request-Id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd".to_owned()),
        ("Lambda-Runtime-Deadline-Ms", deadline.as_millis().to_string()),
        ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-central-1:1:function:f".into()),
    ]);
    (headers, payload.to_string())
}

async fn receive(
    State(api): State<Arc<RuntimeApi>>,
    Path((_, outcome)): Path<(String, String)>,
    body: String,
) -> StatusCode {
    let body = serde_json::from_str(&body).expect("JSON");
    api.received.lock().expect("the state").push((outcome, body));
    StatusCode::ACCEPTED
}

/// Runs a function until it has responded to each payload. Returns the responses: `response` or `error`, and the body.
///
/// # Panics
/// If the function ends, or no port is free.
pub async fn run_function<E: Debug>(
    function: impl Future<Output = Result<(), E>>,
    timeout: Duration,
    payloads: impl IntoIterator<Item = Value>,
) -> Vec<(String, Value)> {
    let mut payloads: Vec<_> = payloads.into_iter().collect();
    payloads.reverse();
    let api = Arc::new(RuntimeApi {
        timeout,
        payloads: Mutex::new(payloads),
        received: Mutex::default(),
        done: Notify::new(),
    });
    let app = Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/{id}/{outcome}", post(receive))
        .with_state(Arc::clone(&api));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = tokio::spawn(async { axum::serve(listener, app).await });
    let variables = [
        ("AWS_LAMBDA_RUNTIME_API", Some(address.as_str())),
        ("AWS_LAMBDA_FUNCTION_NAME", Some("f")),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", Some("128")),
        ("AWS_LAMBDA_FUNCTION_VERSION", Some("7")),
    ];
    temp_env::async_with_vars(variables, async {
        tokio::select! {
            ended = function => panic!("the function ended: {ended:?}"),
            () = api.done.notified() => {}
        }
    })
    .await;
    server.abort();
    api.received.lock().expect("the state").clone()
}
