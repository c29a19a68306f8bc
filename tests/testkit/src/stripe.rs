//! Fakes of the payment provider. [`success_body`] is the response of one that accepts every card and finds every
//! object. [`serve`] starts one that sends prepared responses unchanged.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

/// How long the fake with prepared responses waits for a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// A task that returns the requests to the fake with prepared responses.
pub type Requests = JoinHandle<io::Result<Vec<String>>>;

/// Returns the body of a successful response to a call, given as method and path: `GET /v1/subscriptions`.
#[must_use]
pub fn success_body(call: &str) -> Value {
    let id = match call.split('/').nth(2) {
        Some("customers") => "cus_NffrFeUfNV2Hib",
        Some("payment_methods") => "pm_1MqLiJLkdIwHu7ixUEgbFdYF",
        _ => "sub_1MowQVLkdIwHu7ixeRlqHVzs",
    };
    let one = json!({ "id": id, "status": "active" });
    if call.starts_with("GET /v1/subscriptions") {
        json!({ "object": "list", "data": [one], "has_more": false })
    } else if call.starts_with("DELETE") {
        json!({ "id": id, "status": "canceled", "deleted": true })
    } else {
        one
    }
}

/// Returns a prepared response with a request id.
#[must_use]
pub fn response(status: u16, body: &str) -> String {
    response_with_header(status, "request-id: req_7", body)
}

/// Returns a prepared response with this header.
#[must_use]
pub fn response_with_header(status: u16, header: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} x\r\n{header}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}

/// Starts a fake that returns these responses, one per connection. Returns its base URL, and a task that ends with the
/// requests when all responses were sent.
///
/// # Errors
/// If it can't listen.
pub async fn serve(responses: Vec<String>) -> io::Result<(String, Requests)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}/", listener.local_addr()?);
    let requests = tokio::spawn(async move {
        let mut requests = Vec::new();
        for response in responses {
            // If a call is missing, the test fails instead of hanging.
            let (mut socket, _) = timeout(CALL_TIMEOUT, listener.accept()).await??;
            requests.push(read_request(&mut socket).await?);
            socket.write_all(response.as_bytes()).await?;
        }
        Ok(requests)
    });
    Ok((base, requests))
}

/// Reads a request up to the end of its body.
async fn read_request(socket: &mut TcpStream) -> io::Result<String> {
    let mut read = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = socket.read(&mut piece).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&read).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let expected = head.split("content-length: ").nth(1).and_then(|t| t.lines().next());
        if body.len() >= expected.and_then(|n| n.parse().ok()).unwrap_or(0) {
            return Ok(String::from_utf8_lossy(&read).into_owned());
        }
    }
}
