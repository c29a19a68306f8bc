//! A stand-in for the AWS endpoints and for Stripe.
//!
//! It either lets `DynamoDB`'s calls through to an embedded one, and keeps every call and its answer (the
//! tape), or answers from such a tape: each invocation of a process then meets the world that the
//! recorded one met.

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
/// Operations whose units are write units.
const WRITES: [&str; 5] =
    ["PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"];

/// A call and its answer.
#[derive(Clone, Debug)]
pub struct Taped {
    /// Service, operation and tables: `dynamodb PutItem SitesTable`.
    pub call: String,
    status: u16,
    body: Bytes,
    /// Of `DynamoDB`: the units that it took.
    pub write_units: f64,
    /// Of `DynamoDB`: the units that it took.
    pub read_units: f64,
}

/// What is called, in the order of the calls.
pub type Tape = Vec<Taped>;

/// Where the answers come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From the `DynamoDB` at that address, and from [`other_services`]; all of it is put on tape.
    Real(String),
    /// From the tape; what is not on it is a problem.
    Tape(Arc<Tape>),
    /// From the tape, or with the plainest answer there is.
    TapeOrPlain(Arc<Tape>),
    /// Every write is taken, and these rows, by their sensors, are found.
    Rows(Arc<HashMap<String, Value>>),
}

/// How often each operation was called.
pub type Calls = BTreeMap<String, u64>;

/// A running stand-in.
#[derive(Debug)]
pub struct Aws {
    /// Its endpoint with TLS: AWS.
    pub tls: Server,
    /// The same without: Stripe, whose client trusts nobody but Mozilla's roots.
    pub plain: Server,
    world: Arc<World>,
}

#[derive(Debug)]
struct World {
    source: Source,
    client: Client<HttpConnector, Full<Bytes>>,
    seen: Mutex<Seen>,
}

/// What was called since the last invocation began.
#[derive(Debug, Default)]
struct Seen {
    calls: Calls,
    recorded: Tape,
    used: Vec<bool>,
    problem: Option<String>,
    pings: u64,
}

impl Aws {
    /// Starts one.
    pub async fn start(tls: TlsAcceptor, source: Source) -> Result<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let world = Arc::new(World { source, client, seen: Mutex::default() });
        let tls = Server::start(Some(tls), Arc::clone(&world)).await?;
        let plain = Server::start(None, Arc::clone(&world)).await?;
        Ok(Self { tls, plain, world })
    }

    /// An invocation begins: the tape is wound back.
    pub fn begin(&self) {
        let mut seen = self.world.seen();
        seen.calls.clear();
        seen.used.clear();
    }

    /// The calls since then, or what was wrong with one.
    pub fn calls(&self) -> Result<Calls, String> {
        let mut seen = self.world.seen();
        match seen.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(seen.calls.clone()),
        }
    }

    /// How often only a connection was opened.
    pub fn pings(&self) -> u64 {
        self.world.seen().pings
    }

    /// The calls since its start, with their answers.
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
        // No error that is tried again.
        (400, Bytes::from_static(br#"{"__type":"ValidationException","message":"bench"}"#))
    }

    /// The next answer to such a call.
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

/// The units of one table, or of several.
fn units(consumed: &Value) -> f64 {
    match consumed {
        Value::Array(tables) => tables.iter().map(units).sum(),
        // A transaction's are told as write units, a single call's as units.
        table => table["WriteCapacityUnits"]
            .as_f64()
            .or(table["CapacityUnits"].as_f64())
            .unwrap_or_default(),
    }
}

/// What is asked for; nothing where only a connection is opened.
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

/// The tables that a call of `DynamoDB` is about.
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

/// The answer to `BatchGetItem`, or to a write.
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
    async fn an_invocation_meets_each_recorded_answer_once_and_in_order() {
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
    fn a_transactions_units_are_those_of_all_its_tables() {
        let one = json!({ "TableName": "a", "CapacityUnits": 3.0 });
        let other = json!({ "TableName": "b", "CapacityUnits": 9.0, "WriteCapacityUnits": 4.0 });
        assert!((units(&one) - 3.0).abs() < f64::EPSILON);
        assert!((units(&json!([one, other])) - 7.0).abs() < f64::EPSILON);
    }
}
