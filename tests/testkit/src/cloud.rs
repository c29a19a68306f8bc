//! DynamoDB, SQS, EventBridge and Kinesis within the test's thread, without sockets, and with faults that depend on a seed.
//!
//! With the paused clock of [`run`], minutes of throttling take no time, and a seed always results in the same run.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_dynamodb::config::{
    BehaviorVersion, Region,
    http::{HttpRequest, HttpResponse},
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    result::ConnectorError,
};
use aws_types::SdkConfig;
use base64::{Engine, engine::general_purpose::STANDARD};
use dynoxide::{Database, DynoxideError};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use store::{Outbox, Table};
use tokio::{
    runtime::Builder,
    sync::oneshot,
    task::LocalSet,
    time::{Instant, sleep},
};

use crate::{
    dynamo::{EVENTS, database},
    rng::Rng,
};

/// The attempt timeout of production's clients.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// The response time of a slow service: just below the attempt timeout.
const SLOW_RESPONSE_TIME: Duration = Duration::from_millis(2_900);
/// The maximum size of an SQS message, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// The maximum latency from the client to the service, or back, in milliseconds.
const MAX_LATENCY_MILLIS: u64 = 15;

/// A fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallFault {
    /// The call is throttled.
    Throttled,
    /// Status 500, without effect.
    ServerError,
    /// The request is lost: a timeout, without effect.
    LostRequest,
    /// The response is lost: a timeout, after the effect.
    LostResponse,
    /// The call takes effect after the caller's timeout.
    Late,
    /// The connection breaks after the effect.
    Disconnected,
    /// The response comes just before the timeout.
    Slow,
    /// The client panics.
    Panic,
    /// `BatchGetItem` leaves one key unprocessed, or `PutEvents` or `PutRecords` refuses one entry.
    Unprocessed,
}

impl CallFault {
    /// All faults.
    pub const ALL: [Self; 9] = [
        Self::Throttled,
        Self::ServerError,
        Self::LostRequest,
        Self::LostResponse,
        Self::Late,
        Self::Disconnected,
        Self::Slow,
        Self::Panic,
        Self::Unprocessed,
    ];
}

/// An entry of the cloud's log.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A call left the function.
    Called {
        /// When.
        at: Instant,
        /// E.g. `PutItem`.
        operation: String,
        /// The request.
        body: Arc<Value>,
        /// The fault of the call.
        fault: Option<CallFault>,
    },
    /// A call took effect: it wrote rows, or sent a message, an event or a record.
    Effect {
        /// E.g. `PutItem`.
        operation: String,
        /// The request.
        body: Arc<Value>,
    },
}

/// A record that the Kinesis stream accepted.
#[derive(Clone, Debug)]
pub struct StreamRecord {
    /// The partition key.
    pub partition_key: String,
    /// The data.
    pub data: Vec<u8>,
    /// When the stream accepted it.
    pub at: Instant,
}

/// The cloud, with all tables of the templates. Clones share the same cloud.
#[derive(Clone)]
pub struct Cloud(Arc<Inner>);

struct Inner {
    database: Database,
    state: Mutex<State>,
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cloud")
    }
}

struct State {
    rng: Rng,
    fault_percent: u64,
    throttled: Option<Throttled>,
    log: Vec<Entry>,
    /// The messages of all queues, each with the URL of its queue.
    messages: Vec<(String, Value)>,
    /// The entries that the bus accepted.
    published: Vec<Value>,
    /// The detail types that the bus refuses with a permanent error.
    refused_types: Vec<String>,
    /// The records that the stream accepted.
    records: Vec<StreamRecord>,
    /// The stream refuses calls with a record that contains one of these texts.
    refused_texts: Vec<String>,
    outages: Vec<Outage>,
    write_units: f64,
}

/// Every call of this operation meets the fault until this time.
struct Outage {
    operation: &'static str,
    fault: CallFault,
    until: Instant,
}

/// Calls whose body contains one of these texts are throttled until this time.
struct Throttled {
    texts: Vec<String>,
    until: Instant,
}

impl Cloud {
    /// Creates an empty cloud without faults.
    ///
    /// # Panics
    /// If the database can't be created.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self::on(database(|_| true), rng)
    }

    /// Creates an empty cloud with these tables, for simulations with many seeds: creating all tables takes time.
    ///
    /// # Panics
    /// If the database can't be created.
    #[must_use]
    pub fn with_tables(names: &[&str], rng: Rng) -> Self {
        Self::on(database(|table| names.contains(&table)), rng)
    }

    fn on(database: Database, rng: Rng) -> Self {
        let state = State {
            rng,
            fault_percent: 0,
            throttled: None,
            log: Vec::new(),
            messages: Vec::new(),
            published: Vec::new(),
            refused_types: Vec::new(),
            records: Vec::new(),
            refused_texts: Vec::new(),
            outages: Vec::new(),
            write_units: 0.0,
        };
        Self(Arc::new(Inner { database, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the percentage of calls with a fault.
    pub fn inject_faults(&self, percent: u64) {
        self.state().fault_percent = percent;
    }

    /// Throttles every call whose body contains one of these texts, e.g. keys of a partition, for this time.
    pub fn throttle(&self, texts: Vec<String>, time: Duration) {
        let until = Instant::now() + time;
        self.state().throttled = Some(Throttled { texts, until });
    }

    /// Makes every call of an operation meet this fault for this time. [`CallFault::LostRequest`] makes the service hang.
    pub fn interrupt(&self, operation: &'static str, fault: CallFault, time: Duration) {
        let until = Instant::now() + time;
        self.state().outages.push(Outage { operation, fault, until });
    }

    /// Ends all faults.
    pub fn stop_faults(&self) {
        let mut state = self.state();
        state.fault_percent = 0;
        state.outages.clear();
        state.throttled = None;
    }

    /// Returns the length of the log.
    #[must_use]
    pub fn log_length(&self) -> usize {
        self.state().log.len()
    }

    /// Returns the log from this index on.
    #[must_use]
    pub fn log_from(&self, line: usize) -> Vec<Entry> {
        self.state().log[line..].to_vec()
    }

    /// Returns the bodies of the messages in all queues.
    #[must_use]
    pub fn messages(&self) -> Vec<Value> {
        self.state().messages.iter().map(|(_, body)| body.clone()).collect()
    }

    /// Returns the bodies of the messages that were sent to this queue.
    #[must_use]
    pub fn messages_of(&self, url: &str) -> Vec<Value> {
        let state = self.state();
        let of_queue = state.messages.iter().filter(|(queue, _)| queue == url);
        of_queue.map(|(_, body)| body.clone()).collect()
    }

    /// Returns the entries that the bus accepted, in their order.
    #[must_use]
    pub fn published(&self) -> Vec<Value> {
        self.state().published.clone()
    }

    /// Returns the records that the stream accepted, in their order.
    #[must_use]
    pub fn records(&self) -> Vec<StreamRecord> {
        self.state().records.clone()
    }

    /// Makes the stream refuse, with a permanent error, each call with a record that contains this text.
    pub fn refuse_records(&self, text: &str) {
        self.state().refused_texts.push(text.to_owned());
    }

    /// Makes the bus refuse, with a permanent error, entries of this detail type.
    pub fn refuse_events(&self, detail_type: &str) {
        self.state().refused_types.push(detail_type.to_owned());
    }

    /// Makes the bus accept entries of all types again.
    pub fn accept_all_events(&self) {
        self.state().refused_types.clear();
    }

    /// Returns the write units that successful calls consumed so far.
    #[must_use]
    pub fn write_units(&self) -> f64 {
        self.state().write_units
    }

    /// Returns the number of calls so far, by operation.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<String, u32> {
        let mut calls = BTreeMap::new();
        for entry in &self.state().log {
            if let Entry::Called { operation, .. } = entry {
                *calls.entry(operation.clone()).or_default() += 1;
            }
        }
        calls
    }

    /// Returns the number of faults so far, by kind.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<CallFault, u32> {
        let mut faults = BTreeMap::new();
        for entry in &self.state().log {
            if let Entry::Called { fault: Some(fault), .. } = entry {
                *faults.entry(*fault).or_default() += 1;
            }
        }
        faults
    }

    /// Returns a configuration for AWS clients of this cloud.
    ///
    /// It has production's timeouts but not its retries, because their delays do not depend on the seed. It has no
    /// credentials, because signing would take a sixth of a simulation's time.
    #[must_use]
    pub fn config(&self) -> SdkConfig {
        let connector = SharedHttpConnector::new(Connector(self.clone()));
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-central-1"))
            .endpoint_url("http://cloud")
            .http_client(http_client_fn(move |_, _| connector.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build(),
            )
            .build()
    }

    /// Returns an SQS client. A queue exists as soon as a message is sent to its URL.
    #[must_use]
    pub fn queues(&self) -> aws_sdk_sqs::Client {
        let config = aws_sdk_sqs::config::Builder::from(&self.config()).allow_no_auth();
        aws_sdk_sqs::Client::from_conf(config.build())
    }

    /// Returns one of the tables.
    #[must_use]
    pub fn table(&self, name: &str) -> Table {
        let config = aws_sdk_dynamodb::config::Builder::from(&self.config()).allow_no_auth();
        Table::new(aws_sdk_dynamodb::Client::from_conf(config.build()), name)
    }

    /// Returns the outbox.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.table(EVENTS))
    }

    /// Returns all rows of a table in DynamoDB's JSON, sorted by their text. Bypasses the faults and the log. Use
    /// [`read`] to parse a row.
    ///
    /// # Panics
    /// If they can't be read.
    #[must_use]
    pub fn rows(&self, table: &str) -> Vec<Value> {
        let request = json!({ "TableName": table, "ConsistentRead": true });
        let request = serde_json::from_value(request).expect("Scan's request");
        let response = self.0.database.scan(request).expect("a scan");
        let mut response = serde_json::to_value(response).expect("a scan's response");
        assert_eq!(response["LastEvaluatedKey"], Value::Null, "more rows than one page of a scan");
        let Value::Array(mut rows) = response["Items"].take() else { return Vec::new() };
        rows.iter_mut().for_each(Value::sort_all_objects);
        rows.sort_by_cached_key(Value::to_string);
        rows
    }

    /// Stores a row unchanged. Bypasses the faults and the log.
    ///
    /// # Panics
    /// If it can't be stored.
    pub fn put(&self, table: &str, row: impl Serialize) {
        let item: serde_dynamo::Item = serde_dynamo::to_item(row).expect("a row");
        let request = json!({ "TableName": table, "Item": item });
        let request = serde_json::from_value(request).expect("PutItem's request");
        self.0.database.put_item(request).expect("the row put");
    }

    /// Performs a call at once, without faults, and returns status and body. It is for tests that decide themselves in
    /// which order calls take effect.
    #[must_use]
    pub fn perform(&self, operation: &str, body: &Arc<Value>) -> (u16, Value) {
        let Response { status, body } = self.perform_now(operation, body);
        (status, body)
    }

    /// Returns the fault of this call, if any.
    fn fault(&self, operation: &str, body: &str) -> Option<CallFault> {
        let state = &mut *self.state();
        let matches_text =
            |throttled: &Throttled| throttled.texts.iter().any(|text| body.contains(text));
        let throttled = state.throttled.as_ref();
        if throttled.is_some_and(|it| Instant::now() < it.until && matches_text(it)) {
            return Some(CallFault::Throttled);
        }
        let now = Instant::now();
        let outage = state.outages.iter().find(|it| it.operation == operation && now < it.until);
        if let Some(outage) = outage {
            return Some(outage.fault);
        }
        if !state.rng.percent(state.fault_percent) {
            return None;
        }
        let fault = *state.rng.pick(&CallFault::ALL);
        let is_possible = fault != CallFault::Unprocessed
            || ["BatchGetItem", "PutEvents", "PutRecords"].contains(&operation);
        is_possible.then_some(fault)
    }

    /// Performs the service's part of a call. It continues even if the caller gave up.
    async fn serve(
        self,
        operation: String,
        body: Arc<Value>,
        fault: Option<CallFault>,
    ) -> Response {
        let latency =
            |cloud: &Self| Duration::from_millis(1 + cloud.state().rng.below(MAX_LATENCY_MILLIS));
        let (outbound, inbound) = (latency(&self), latency(&self));
        sleep(outbound).await;
        match fault {
            Some(CallFault::Throttled) => return throttled(),
            Some(CallFault::ServerError) => {
                let kind = "com.amazonaws.dynamodb.v20120810#InternalServerError";
                return Response { status: 500, body: json!({ "__type": kind }) };
            }
            Some(CallFault::Late) => {
                let late = self.state().rng.below(10_000);
                sleep(ATTEMPT_TIMEOUT + Duration::from_millis(late)).await;
            }
            _ => {}
        }
        let response = match fault {
            Some(CallFault::Unprocessed) if operation == "PutEvents" => {
                self.put_all_but_one(&operation, "Entries", &body)
            }
            Some(CallFault::Unprocessed) if operation == "PutRecords" => {
                self.put_all_but_one(&operation, "Records", &body)
            }
            Some(CallFault::Unprocessed) => {
                leave_one_unprocessed(self.perform_now(&operation, &body), &body)
            }
            _ => self.perform_now(&operation, &body),
        };
        if fault == Some(CallFault::Slow) {
            sleep(SLOW_RESPONSE_TIME).await;
        }
        sleep(inbound).await;
        response
    }

    /// Performs `PutEvents`, with a result for each entry.
    fn put_events(&self, body: &Value) -> Value {
        let state = &mut *self.state();
        let entries = body["Entries"].as_array().map_or(&[][..], Vec::as_slice);
        let results = entries.iter().map(|entry| {
            if state.refused_types.iter().any(|refused| entry["DetailType"] == *refused) {
                return json!({ "ErrorCode": "MalformedDetail", "ErrorMessage": "refused" });
            }
            state.published.push(entry.clone());
            json!({ "EventId": format!("event-{}", state.published.len()) })
        });
        put_response("PutEvents", &results.collect::<Vec<_>>())
    }

    /// Performs `PutRecords`. It puts the records of a call in any order. The call fails if a record is refused.
    fn put_records(&self, body: &Value) -> Result<Value, Response> {
        let state = &mut *self.state();
        let records = body["Records"].as_array().map_or(&[][..], Vec::as_slice);
        let decode = |record: &Value| StreamRecord {
            partition_key: record["PartitionKey"].as_str().unwrap_or_default().to_owned(),
            data: STANDARD.decode(record["Data"].as_str().unwrap_or_default()).unwrap_or_default(),
            at: Instant::now(),
        };
        let mut records: Vec<_> = records.iter().map(decode).collect();
        let is_refused = |record: &StreamRecord| {
            let data = String::from_utf8_lossy(&record.data);
            state.refused_texts.iter().any(|text| data.contains(text))
        };
        if records.iter().any(is_refused) {
            let body = json!({ "__type": "ValidationException", "message": "a record is refused" });
            return Err(Response { status: 400, body });
        }
        let result = json!({ "SequenceNumber": "1", "ShardId": "shardId-000000000000" });
        let results = vec![result; records.len()];
        while !records.is_empty() {
            let index = state.rng.index(records.len());
            state.records.push(records.swap_remove(index));
        }
        Ok(put_response("PutRecords", &results))
    }

    /// Performs `PutEvents` or `PutRecords`, which fails for the first entry and accepts the others.
    fn put_all_but_one(&self, operation: &str, list: &str, body: &Value) -> Response {
        let mut body = body.clone();
        if let Some(entries) = body[list].as_array_mut().filter(|it| !it.is_empty()) {
            entries.remove(0);
        }
        let mut response = self.perform_now(operation, &Arc::new(body));
        let failed = json!({ "ErrorCode": "InternalFailure", "ErrorMessage": "busy" });
        let Value::Array(mut results) = response.body[list].take() else { return response };
        results.insert(0, failed);
        response.body = put_response(operation, &results);
        response
    }

    /// Performs a call at once.
    fn perform_now(&self, operation: &str, body: &Arc<Value>) -> Response {
        let response = if operation == "SendMessage" {
            let text = body["MessageBody"].as_str().unwrap_or_default();
            if text.len() > MAX_MESSAGE_BYTES {
                let kind = "com.amazonaws.sqs#InvalidParameterValue";
                let message = "One or more parameters are invalid. Reason: Message must be shorter";
                return Response {
                    status: 400,
                    body: json!({ "__type": kind, "message": message }),
                };
            }
            let mut state = self.state();
            let queue = body["QueueUrl"].as_str().unwrap_or_default().to_owned();
            state.messages.push((queue, serde_json::from_str(text).unwrap_or_default()));
            Ok(json!({ "MessageId": format!("message-{}", state.messages.len()) }))
        } else if operation == "PutEvents" {
            Ok(self.put_events(body))
        } else if operation == "PutRecords" {
            match self.put_records(body) {
                Ok(response) => Ok(response),
                Err(response) => return response,
            }
        } else {
            query_database(&self.0.database, operation, body)
        };
        match response {
            Ok(response) => {
                let reads = ["BatchGetItem", "GetItem", "Query", "Scan", "TransactGetItems"];
                if !reads.contains(&operation) {
                    let mut state = self.state();
                    state.write_units += write_units(&response);
                    let body = Arc::clone(body);
                    state.log.push(Entry::Effect { operation: operation.to_owned(), body });
                }
                Response { status: 200, body: response }
            }
            Err(error) => Response {
                status: error.status_code(),
                body: serde_json::from_str(&error.to_json()).unwrap_or_default(),
            },
        }
    }
}

/// Parses a row of [`Cloud::rows`].
///
/// # Panics
/// If the row has another format.
#[must_use]
pub fn read<R: DeserializeOwned>(row: &Value) -> R {
    let item: serde_dynamo::Item = serde_json::from_value(row.clone()).expect("DynamoDB's JSON");
    serde_dynamo::from_item(item).expect("a row of this format")
}

/// Runs the work on this thread with a paused clock. The clock jumps to the next timer when no task can run.
///
/// # Panics
/// If the runtime can't be created.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), work)
}

#[derive(Debug)]
struct Response {
    status: u16,
    body: Value,
}

fn throttled() -> Response {
    let kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException";
    Response { status: 400, body: json!({ "__type": kind, "message": "slow down" }) }
}

/// Performs the operation on the database, with the consumed capacity in the response.
fn query_database(
    database: &Database,
    operation: &str,
    body: &Value,
) -> Result<Value, DynoxideError> {
    let mut body = body.clone();
    body["ReturnConsumedCapacity"] = "TOTAL".into();
    match operation {
        "BatchGetItem" => to_json(database.batch_get_item(parse_request(body)?)?),
        "BatchWriteItem" => to_json(database.batch_write_item(parse_request(body)?)?),
        "DeleteItem" => to_json(database.delete_item(parse_request(body)?)?),
        "GetItem" => to_json(database.get_item(parse_request(body)?)?),
        "PutItem" => to_json(database.put_item(parse_request(body)?)?),
        "Query" => to_json(database.query(parse_request(body)?)?),
        "Scan" => to_json(database.scan(parse_request(body)?)?),
        "TransactGetItems" => to_json(database.transact_get_items(parse_request(body)?)?),
        "TransactWriteItems" => to_json(database.transact_write_items(parse_request(body)?)?),
        "UpdateItem" => to_json(database.update_item(parse_request(body)?)?),
        _ => Err(DynoxideError::ValidationException(format!("{operation} is not simulated"))),
    }
}

fn parse_request<R: DeserializeOwned>(body: Value) -> Result<R, DynoxideError> {
    serde_json::from_value(body)
        .map_err(|error| DynoxideError::SerializationException(error.to_string()))
}

fn to_json(response: impl Serialize) -> Result<Value, DynoxideError> {
    serde_json::to_value(response)
        .map_err(|error| DynoxideError::SerializationException(error.to_string()))
}

fn write_units(response: &Value) -> f64 {
    let consumed = &response["ConsumedCapacity"];
    let units_of = |consumed: &Value| consumed["CapacityUnits"].as_f64().unwrap_or_default();
    consumed.as_array().map_or_else(|| units_of(consumed), |all| all.iter().map(units_of).sum())
}

/// Returns the response of `PutEvents` or `PutRecords` with these results of its entries.
fn put_response(operation: &str, results: &[Value]) -> Value {
    let failed = results.iter().filter(|response| response.get("ErrorCode").is_some()).count();
    if operation == "PutRecords" {
        json!({ "FailedRecordCount": failed, "Records": results })
    } else {
        json!({ "FailedEntryCount": failed, "Entries": results })
    }
}

/// Returns `BatchGetItem`'s response with the first key unprocessed. A request with only one key is throttled, because
/// DynamoDB reports throttling if it processes no key at all.
fn leave_one_unprocessed(mut response: Response, request_body: &Value) -> Response {
    let Some((table, request)) =
        request_body["RequestItems"].as_object().and_then(|all| all.iter().next())
    else {
        return response;
    };
    let [unprocessed, _, ..] = request["Keys"].as_array().map_or(&[][..], Vec::as_slice) else {
        return throttled();
    };
    if let Some(rows) = response.body["Responses"][table].as_array_mut() {
        let has_key = |row: &Value| {
            unprocessed
                .as_object()
                .is_some_and(|key| key.iter().all(|(name, value)| row[name] == *value))
        };
        rows.retain(|row| !has_key(row));
    }
    response.body["UnprocessedKeys"] = json!({ table: { "Keys": [unprocessed] } });
    response
}

/// The HTTP connector of AWS clients.
#[derive(Debug)]
struct Connector(Cloud);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let cloud = self.0.clone();
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let text = request.body().bytes().map(String::from_utf8_lossy).unwrap_or_default();
        let body: Arc<Value> = Arc::new(serde_json::from_str(&text).unwrap_or_default());
        let fault = cloud.fault(&operation, &text);
        let (at, called_operation) = (Instant::now(), operation.clone());
        let called =
            Entry::Called { at, operation: called_operation, body: Arc::clone(&body), fault };
        cloud.state().log.push(called);
        HttpConnectorFuture::new(async move {
            match fault {
                // Unlike panic!, resume_unwind prints nothing. A simulation has thousands of intended panics.
                Some(CallFault::Panic) => {
                    std::panic::resume_unwind(Box::new("a panic in the client"))
                }
                Some(CallFault::LostRequest) => return std::future::pending().await,
                _ => {}
            }
            let (sender, response) = oneshot::channel();
            tokio::spawn(async move {
                let response = cloud.serve(operation, body, fault).await;
                // The caller may have given up.
                drop(sender.send(response));
            });
            let response =
                response.await.map_err(|error| ConnectorError::other(error.into(), None))?;
            match fault {
                Some(CallFault::LostResponse | CallFault::Late) => std::future::pending().await,
                Some(CallFault::Disconnected) => {
                    Err(ConnectorError::io("the connection was reset".into()))
                }
                _ => {
                    let status = response.status.try_into();
                    let status =
                        status.map_err(|error| ConnectorError::other(Box::from(error), None))?;
                    Ok(HttpResponse::new(status, response.body.to_string().into()))
                }
            }
        })
    }
}
