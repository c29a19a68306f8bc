//! Stub of the AWS endpoints and of Stripe.
//!
//! To record, it forwards `DynamoDB` calls to an embedded `DynamoDB`, and stores every call with its answer on a
//! tape. To replay, it answers from a tape, so that each invocation of a process gets the recorded answers.

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
    server::{Answer, Asked, Handler, Server, answer},
};

const JSON: HeaderValue = HeaderValue::from_static("application/x-amz-json-1.0");
/// The operations that consume write units.
const WRITES: [&str; 5] =
    ["PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"];

/// A recorded call with its answer.
#[derive(Clone, Debug)]
pub struct Taped {
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
pub type Tape = Vec<Taped>;

/// The source of the answers.
#[derive(Clone, Debug)]
pub enum Source {
    /// Answers from the `DynamoDB` at this address and from [`other_services`], and records them.
    Real(String),
    /// Answers from the tape. A call that is not on the tape is an error.
    Tape(Arc<Tape>),
    /// Answers from the tape, and other calls with status 200 and `{}`.
    TapeOrPlain(Arc<Tape>),
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
    /// The endpoint without TLS, for Stripe: its client trusts only Mozilla's root certificates.
    pub plain: Server,
    world: Arc<World>,
}

#[derive(Debug)]
struct World {
    source: Source,
    client: Client<HttpConnector, Full<Bytes>>,
    seen: Mutex<Seen>,
}

/// State of the stub. `calls` and `used` are reset when an invocation begins.
#[derive(Debug, Default)]
struct Seen {
    calls: Calls,
    recorded: Tape,
    used: Vec<bool>,
    problem: Option<String>,
    pings: u64,
}

impl Aws {
    /// Starts a stub with this source.
    pub async fn start(tls: TlsAcceptor, source: Source) -> Result<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let world = Arc::new(World { source, client, seen: Mutex::default() });
        let tls = Server::start(Some(tls), Arc::clone(&world)).await?;
        let plain = Server::start(None, Arc::clone(&world)).await?;
        Ok(Self { tls, plain, world })
    }

    /// Resets the calls and rewinds the tape for a new invocation.
    pub fn begin(&self) {
        let mut seen = self.world.seen();
        seen.calls.clear();
        seen.used.clear();
    }

    /// Returns the calls since [`Self::begin`], or the first problem with a call.
    pub fn calls(&self) -> Result<Calls, String> {
        let mut seen = self.world.seen();
        match seen.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(seen.calls.clone()),
        }
    }

    /// Returns the number of requests that only opened a connection.
    pub fn pings(&self) -> u64 {
        self.world.seen().pings
    }

    /// Returns all calls since the start, with their answers.
    pub fn tape(&self) -> Tape {
        self.world.seen().recorded.clone()
    }
}

impl Handler for World {
    async fn answer(&self, request: Asked) -> Answer {
        let Some(call) = named(&request) else {
            self.seen().pings += 1;
            return answer(200, "healthy");
        };
        *self.seen().calls.entry(call.clone()).or_default() += 1;
        let (status, body) = match &self.source {
            Source::Real(dynamo) => match self.real(dynamo, &call, request).await {
                Ok(taped) => {
                    let given = (taped.status, taped.body.clone());
                    self.seen().recorded.push(taped);
                    given
                }
                Err(error) => self.problem(format!("{call}: {error:#}")),
            },
            Source::Tape(tape) => match self.taped(tape, &call) {
                Some(answer) => answer,
                None => self.problem(format!("{call}: not among the recorded calls")),
            },
            Source::TapeOrPlain(tape) => {
                self.taped(tape, &call).unwrap_or((200, Bytes::from_static(b"{}")))
            }
            Source::Rows(rows) => (200, found(rows, &call, &request)),
        };
        let mut given = answer(status, body);
        given.headers_mut().insert(CONTENT_TYPE, JSON);
        given
    }
}

impl World {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn problem(&self, problem: String) -> (u16, Bytes) {
        self.seen().problem.get_or_insert(problem);
        // The SDK does not retry this error.
        (400, Bytes::from_static(br#"{"__type":"ValidationException","message":"bench"}"#))
    }

    /// Returns the next unused answer to this call.
    fn taped(&self, tape: &Tape, call: &str) -> Option<(u16, Bytes)> {
        let mut seen = self.seen();
        seen.used.resize(tape.len(), false);
        let next =
            tape.iter().zip(&seen.used).position(|(taped, used)| !used && taped.call == call);
        let next = next?;
        seen.used[next] = true;
        Some((tape[next].status, tape[next].body.clone()))
    }

    async fn real(&self, dynamo: &str, call: &str, request: Asked) -> Result<Taped> {
        if !call.starts_with("dynamodb ") {
            let (status, body) =
                other_services::answer(call, &request).context("no such answer")?;
            let call = call.to_owned();
            return Ok(Taped { call, status, body, write_units: 0.0, read_units: 0.0 });
        }
        let (mut head, body) = request.into_parts();
        let mut asked: Value = serde_json::from_slice(&body)?;
        asked["ReturnConsumedCapacity"] = json!("TOTAL");
        head.uri = dynamo.parse()?;
        head.headers.remove("host");
        head.headers.remove("content-length");
        let body = Full::new(Bytes::from(serde_json::to_vec(&asked)?));
        let answer = self.client.request(Request::from_parts(head, body)).await?;
        let status = answer.status().as_u16();
        let mut body: Value =
            serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
        let consumed = body.as_object_mut().and_then(|body| body.remove("ConsumedCapacity"));
        let writes = WRITES.iter().any(|operation| call.split(' ').nth(1) == Some(*operation));
        let units = units(&consumed.unwrap_or_default());
        Ok(Taped {
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
fn named(request: &Asked) -> Option<String> {
    let path = request.uri().path();
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok());
    let Some((version, operation)) = target.and_then(|target| target.rsplit_once('.')) else {
        return match path {
            "/" | "/ping" if request.method() == Method::GET => None,
            _ if path.starts_with("/v1/") => Some(format!("stripe {} {path}", request.method())),
            _ => Some(format!("s3 {}", request.method())),
        };
    };
    Some(match version {
        "DynamoDB_20120810" => {
            let asked = serde_json::from_slice(request.body()).unwrap_or_default();
            let mut call = format!("dynamodb {operation}");
            for table in tables(&asked) {
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
fn tables(asked: &Value) -> BTreeSet<String> {
    if let Some(table) = asked["TableName"].as_str() {
        return BTreeSet::from([table.to_owned()]);
    }
    if let Some(by_table) = asked["RequestItems"].as_object() {
        return by_table.keys().cloned().collect();
    }
    let items = asked["TransactItems"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_object()?.values().next()?["TableName"].as_str())
        .map(str::to_owned)
        .collect()
}

/// Returns the answer to `BatchGetItem` or to a write.
fn found(rows: &HashMap<String, Value>, call: &str, request: &Asked) -> Bytes {
    if !call.starts_with("dynamodb BatchGetItem") {
        return Bytes::from_static(b"{}");
    }
    let asked: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let tables = asked["RequestItems"].as_object().into_iter().flatten();
    let responses = tables.map(|(table, asked)| {
        let keys = asked["Keys"].as_array().into_iter().flatten();
        let found = keys.filter_map(|key| rows.get(key["sensorId"]["S"].as_str()?).cloned());
        (table.clone(), found.collect::<Value>())
    });
    let responses: serde_json::Map<_, _> = responses.collect();
    json!({ "Responses": responses, "UnprocessedKeys": {} }).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taped(call: &str, body: &'static str) -> Taped {
        let body = Bytes::from_static(body.as_bytes());
        Taped { call: call.to_owned(), status: 200, body, write_units: 0.0, read_units: 0.0 }
    }

    #[tokio::test]
    async fn each_invocation_gets_every_recorded_answer_once_and_in_order() {
        let tape = vec![taped("a", "1"), taped("b", "2"), taped("a", "3")];
        let tape = Arc::new(tape);
        let acceptor = crate::server::Trust::new().expect("certificates").acceptor;
        let aws = Aws::start(acceptor, Source::Tape(Arc::clone(&tape))).await.expect("a stand-in");
        let ask = |call: &str| aws.world.taped(&tape, call).map(|(_, body)| body);
        for _ in 0..2 {
            aws.begin();
            assert_eq!(ask("a").as_deref(), Some(&b"1"[..]));
            assert_eq!(ask("a").as_deref(), Some(&b"3"[..]));
            assert_eq!(ask("a"), None, "it was called twice when it was recorded");
            assert_eq!(ask("b").as_deref(), Some(&b"2"[..]));
            assert_eq!(ask("c"), None);
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
