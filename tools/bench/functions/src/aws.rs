//! Stub of the AWS endpoints and of Stripe.
//!
//! When it records, it forwards `DynamoDB` calls to an embedded `DynamoDB`, and stores every call with its response.
//! When it replays, each invocation of a process gets the recorded responses.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::{
    other_services,
    server::{Handler, HttpRequest, HttpResponse, Server, response},
};

const JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.0");
/// The operations that consume write units.
const WRITES: [&str; 5] =
    ["PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"];

/// The lease of tokens for the rate limit. The first invocation needs none, so it may not be recorded. A later
/// invocation makes one from time to time. It is answered, but not counted: a busy execution environment makes one in
/// about 100 requests.
const LEASE: &str = "dynamodb UpdateItem LimitsTable";

/// A recorded call with its response.
#[derive(Clone, Debug)]
pub struct RecordedCall {
    /// Service, operation and tables, such as `dynamodb PutItem SitesTable`.
    pub call: String,
    status: u16,
    body: Bytes,
    /// Consumed write units of a `DynamoDB` call; 0 for other calls.
    pub write_units: f64,
    /// Consumed read units of a `DynamoDB` call; 0 for other calls.
    pub read_units: f64,
}

/// Recorded calls, in order.
pub type Recording = Vec<RecordedCall>;

/// The source of the responses.
#[derive(Clone, Debug)]
pub enum Source {
    /// Responses of the `DynamoDB` at this address and of [`other_services`]. They are recorded.
    Real(String),
    /// The recorded responses. A call without one is an error.
    Recording(Arc<Recording>),
    /// The recorded responses. Other calls get status 200 and `{}`.
    RecordingOrEmpty(Arc<Recording>),
    /// Accepts every write. `BatchGetItem` finds these rows, by sensor id.
    Rows(Arc<HashMap<String, Value>>),
}

/// The number of calls of each operation.
pub type Calls = BTreeMap<String, u64>;

/// A running stub.
#[derive(Debug)]
pub struct Aws {
    /// The endpoint with TLS, for AWS.
    pub tls: Server,
    /// The endpoint without TLS, for Stripe. Stripe's client trusts only Mozilla's root certificates, so it would
    /// refuse the certificate of the stub.
    pub plain: Server,
    state: Arc<StubState>,
}

#[derive(Debug)]
struct StubState {
    source: Source,
    client: Client<HttpConnector, Full<Bytes>>,
    log: Mutex<CallLog>,
}

/// The calls that the stub received. `calls` and `used` are reset when an invocation starts.
#[derive(Debug, Default)]
struct CallLog {
    calls: Calls,
    recorded: Recording,
    used: Vec<bool>,
    error: Option<String>,
    pings: u64,
}

impl Aws {
    /// Starts a stub with this source.
    pub async fn start(tls: TlsAcceptor, source: Source) -> Result<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let state = Arc::new(StubState { source, client, log: Mutex::default() });
        let tls = Server::start(Some(tls), Arc::clone(&state)).await?;
        let plain = Server::start(None, Arc::clone(&state)).await?;
        Ok(Self { tls, plain, state })
    }

    /// Resets the calls and the recording for a new invocation.
    pub fn start_invocation(&self) {
        let mut log = self.state.log();
        log.calls.clear();
        log.used.clear();
    }

    /// Returns the calls since [`Self::start_invocation`], or the first error of a call.
    pub fn calls(&self) -> Result<Calls, String> {
        let mut log = self.state.log();
        match log.error.take() {
            Some(error) => Err(error),
            None => Ok(log.calls.clone()),
        }
    }

    /// Returns the number of requests that only opened a connection.
    pub fn pings(&self) -> u64 {
        self.state.log().pings
    }

    /// Returns all calls since the start, with their responses.
    pub fn recording(&self) -> Recording {
        self.state.log().recorded.clone()
    }
}

impl Handler for StubState {
    async fn respond(&self, request: HttpRequest) -> HttpResponse {
        let Some(call) = call_name(&request) else {
            self.log().pings += 1;
            return response(200, "healthy");
        };
        let (status, body) = match &self.source {
            Source::Real(dynamo) => match self.real(dynamo, &call, request).await {
                Ok(recorded) => {
                    let response = (recorded.status, recorded.body.clone());
                    self.log().recorded.push(recorded);
                    response
                }
                Err(error) => self.error(format!("{call}: {error:#}")),
            },
            Source::Recording(recording) => match self.recorded(recording, &call) {
                Some(response) => response,
                // An empty response grants the tokens.
                None if call == LEASE => return response(200, "{}"),
                None => self.error(format!("{call} was not recorded")),
            },
            Source::RecordingOrEmpty(recording) => {
                self.recorded(recording, &call).unwrap_or((200, Bytes::from_static(b"{}")))
            }
            Source::Rows(rows) => (200, rows_response(rows, &call, &request)),
        };
        *self.log().calls.entry(call).or_default() += 1;
        let mut response = response(status, body);
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        response
    }
}

impl StubState {
    fn log(&self) -> MutexGuard<'_, CallLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, error: String) -> (u16, Bytes) {
        self.log().error.get_or_insert(error);
        // The SDK does not retry this error.
        (400, Bytes::from_static(br#"{"__type":"ValidationException","message":"bench"}"#))
    }

    /// Returns the next unused response for this call.
    fn recorded(&self, recording: &Recording, call: &str) -> Option<(u16, Bytes)> {
        let mut log = self.log();
        log.used.resize(recording.len(), false);
        let next = recording
            .iter()
            .zip(&log.used)
            .position(|(recorded, used)| !used && recorded.call == call);
        let next = next?;
        log.used[next] = true;
        Some((recording[next].status, recording[next].body.clone()))
    }

    async fn real(&self, dynamo: &str, call: &str, request: HttpRequest) -> Result<RecordedCall> {
        if !call.starts_with("dynamodb ") {
            let (status, body) = other_services::response(call, &request)
                .context("no response is defined for this call")?;
            let call = call.to_owned();
            return Ok(RecordedCall { call, status, body, write_units: 0.0, read_units: 0.0 });
        }
        let (mut head, body) = request.into_parts();
        let mut body: Value = serde_json::from_slice(&body)?;
        body["ReturnConsumedCapacity"] = json!("TOTAL");
        head.uri = dynamo.parse()?;
        head.headers.remove("host");
        head.headers.remove("content-length");
        let body = Full::new(Bytes::from(serde_json::to_vec(&body)?));
        let response = self.client.request(Request::from_parts(head, body)).await?;
        let status = response.status().as_u16();
        let mut body: Value =
            serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        let consumed = body.as_object_mut().and_then(|body| body.remove("ConsumedCapacity"));
        let writes = WRITES.iter().any(|operation| call.split(' ').nth(1) == Some(*operation));
        let units = units(&consumed.unwrap_or_default());
        Ok(RecordedCall {
            call: call.to_owned(),
            status,
            body: serde_json::to_vec(&body)?.into(),
            write_units: if writes { units } else { 0.0 },
            read_units: if writes { 0.0 } else { units },
        })
    }
}

/// Returns the consumed units of one table, or the sum over several tables.
fn units(consumed: &Value) -> f64 {
    match consumed {
        Value::Array(tables) => tables.iter().map(units).sum(),
        // A transaction reports `WriteCapacityUnits`, a single call only `CapacityUnits`.
        table => table["WriteCapacityUnits"]
            .as_f64()
            .or(table["CapacityUnits"].as_f64())
            .unwrap_or_default(),
    }
}

/// Returns service, operation and tables of a request, or `None` if the request only opens a connection.
fn call_name(request: &HttpRequest) -> Option<String> {
    let path = request.uri().path();
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let Some((version, operation)) = target.and_then(|target| target.rsplit_once('.')) else {
        return match path {
            "/" | "/ping" if request.method() == Method::GET => None,
            "/2015-03-31/event-source-mappings" | "/2015-03-31/event-source-mappings/" => {
                Some("lambda ListEventSourceMappings".to_owned())
            }
            _ if path.starts_with("/v1/") => Some(format!("stripe {} {path}", request.method())),
            _ => Some(format!("s3 {}", request.method())),
        };
    };
    Some(match version {
        "DynamoDB_20120810" => {
            let body = serde_json::from_slice(request.body()).unwrap_or_default();
            let mut call = format!("dynamodb {operation}");
            for table in tables(&body) {
                call.push(' ');
                call.push_str(&table);
            }
            call
        }
        "AWSEvents" => format!("events {operation}"),
        "AWSStepFunctions" => format!("states {operation}"),
        "AmazonSQS" => format!("sqs {operation}"),
        "Kinesis_20131202" => format!("kinesis {operation}"),
        other => format!("{other} {operation}"),
    })
}

/// Returns the tables of a `DynamoDB` call.
fn tables(body: &Value) -> BTreeSet<String> {
    if let Some(table) = body["TableName"].as_str() {
        return BTreeSet::from([table.to_owned()]);
    }
    if let Some(by_table) = body["RequestItems"].as_object() {
        return by_table.keys().cloned().collect();
    }
    let items = body["TransactItems"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_object()?.values().next()?["TableName"].as_str())
        .map(str::to_owned)
        .collect()
}

/// Returns the response to `BatchGetItem` or to a write.
fn rows_response(rows: &HashMap<String, Value>, call: &str, request: &HttpRequest) -> Bytes {
    if !call.starts_with("dynamodb BatchGetItem") {
        return Bytes::from_static(b"{}");
    }
    let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let tables = body["RequestItems"].as_object().into_iter().flatten();
    let responses = tables.map(|(table, body)| {
        let keys = body["Keys"].as_array().into_iter().flatten();
        let found = keys.filter_map(|key| rows.get(key["sensorId"]["S"].as_str()?).cloned());
        (table.clone(), found.collect::<Value>())
    });
    let responses: serde_json::Map<_, _> = responses.collect();
    json!({ "Responses": responses, "UnprocessedKeys": {} }).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(call: &str, body: &'static str) -> RecordedCall {
        let body = Bytes::from_static(body.as_bytes());
        RecordedCall { call: call.to_owned(), status: 200, body, write_units: 0.0, read_units: 0.0 }
    }

    #[tokio::test]
    async fn each_invocation_gets_every_recorded_response_once_and_in_order() {
        let recording = vec![recorded("a", "1"), recorded("b", "2"), recorded("a", "3")];
        let recording = Arc::new(recording);
        let acceptor =
            crate::server::Certificates::new().expect("certificates can be generated").acceptor;
        let aws = Aws::start(acceptor, Source::Recording(Arc::clone(&recording)))
            .await
            .expect("the stub starts");
        let replay = |call: &str| aws.state.recorded(&recording, call).map(|(_, body)| body);
        for _ in 0..2 {
            aws.start_invocation();
            assert_eq!(replay("a").as_deref(), Some(&b"1"[..]));
            assert_eq!(replay("a").as_deref(), Some(&b"3"[..]));
            assert_eq!(replay("a"), None, "only two calls were recorded");
            assert_eq!(replay("b").as_deref(), Some(&b"2"[..]));
            assert_eq!(replay("c"), None);
        }
    }

    #[test]
    fn the_units_of_a_transaction_are_the_sum_over_its_tables() {
        let one = json!({ "TableName": "a", "CapacityUnits": 3.0 });
        let other = json!({ "TableName": "b", "CapacityUnits": 9.0, "WriteCapacityUnits": 4.0 });
        assert!((units(&one) - 3.0).abs() < f64::EPSILON);
        assert!((units(&json!([one, other])) - 7.0).abs() < f64::EPSILON);
    }
}
