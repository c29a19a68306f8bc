//! From what a queue or a bucket holds to the failures that it tells of. Nothing is refused: what has
//! no known form is kept as it came.

use std::{borrow::Cow, fmt};

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::{OnboardingId, SensorId, SiteId};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest, Sha256};

use crate::{Concerns, ErrorInfo, FailureId, Kind, PayloadFile, sources::SITE_TEARDOWN};

/// A failed piece of work, as a message tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The row's key.
    pub id: FailureId,
    /// The function, or state machine, that failed.
    pub source: String,
    /// How.
    pub kind: Kind,
    /// What a replay sends.
    pub payload: Payload,
    /// Why.
    pub error: ErrorInfo,
    /// The onboarding that it belongs to.
    pub correlation_id: Option<OnboardingId>,
    /// The site.
    pub site_id: Option<SiteId>,
    /// ARN of the execution that failed.
    pub execution: Option<String>,
}

/// What a replay sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// As it came.
    Text(String),
    /// It stays where it is.
    File(PayloadFile),
}

/// What a message that is no failure itself asks to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// These files are new.
    Files(Vec<PayloadFile>),
    /// S3 tried whether it may send: once, when the bucket was set up.
    Test,
    /// It is no notification.
    Other,
}

/// What a function's failure destination gets.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Invocation<'a> {
    request_context: RequestContext,
    #[serde(borrow)]
    request_payload: &'a RawValue,
    response_context: Option<ResponseContext>,
    response_payload: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext {
    request_id: Option<String>,
    condition: String,
    #[serde(default)]
    approximate_invoke_count: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResponseContext {
    function_error: Option<String>,
}

/// What sends a command and waits for its token.
#[derive(Deserialize)]
struct Command {
    #[serde(rename = "taskToken")]
    _task_token: String,
    #[serde(rename = "command")]
    _command: IgnoredAny,
}

/// What a stream's consumer set aside.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Quarantined<'a> {
    error: String,
    reason: String,
    #[serde(default)]
    sensor_id: Option<SensorId>,
    #[serde(default)]
    sensor_site_id: Option<SiteId>,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// What EventBridge tells of an execution.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct StatusChange {
    detail_type: String,
    detail: Execution,
}

#[derive(Deserialize)]
struct Execution {
    #[serde(rename = "executionArn")]
    arn: String,
    status: String,
    input: String,
    error: Option<String>,
    cause: Option<String>,
}

/// The file of a batch that a stream's mapping gave up on.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenUp<'a> {
    request_context: RequestContext,
    response_context: Option<ResponseContext>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(rename = "Records", borrow)]
    records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Notified {
    #[serde(rename = "Records", default)]
    records: Vec<NewFile>,
    #[serde(rename = "Event", default)]
    event: String,
}

#[derive(Deserialize)]
struct NewFile {
    s3: NewObject,
}

#[derive(Deserialize)]
struct NewObject {
    bucket: Bucket,
    object: Object,
}

#[derive(Deserialize)]
struct Bucket {
    name: String,
}

#[derive(Deserialize)]
struct Object {
    key: String,
}

/// The longest key that S3 takes, in bytes, and the longest name of a bucket.
const MAX_KEY_BYTES: usize = 1_024;
const MAX_BUCKET_BYTES: usize = 63;
/// The most records of a batch that Lambda delivers.
const MAX_RECORDS: usize = 10_000;
/// Characters of a partition key that is no site's id.
const MAX_SENDER: usize = 100;

/// The failure that a queue's message tells of.
#[must_use]
pub fn message(source: &str, message: &SqsMessage) -> Failure {
    let body = message.body.as_deref().unwrap_or_default();
    let read = if source == SITE_TEARDOWN {
        // However it got into the queue, it is the execution that failed.
        execution(source, body)
    } else if message.message_attributes.contains_key("ERROR_CODE") {
        // Before the others: an event may have any form, the attributes are EventBridge's own.
        not_delivered(source, message, body)
    } else {
        invocation(source, body)
            .or_else(|| quarantined(source, body))
            .or_else(|| dead_letter(source, message, body))
    };
    read.unwrap_or_else(|| unreadable(source, body))
}

/// A message in no known form.
#[must_use]
pub fn unreadable(source: &str, body: &str) -> Failure {
    let error = ErrorInfo::new("Unreadable", "the message has no known form");
    let work = Sha256::digest(body).into();
    Failure::of(source, Kind::Unreadable, body, work, error)
}

/// A failure whose row the table refuses for good, and why it does. The row has the payload and nothing that
/// was read from it.
#[must_use]
pub fn refused(failure: Failure, reason: &str) -> Failure {
    let Failure { id, source, kind, payload, error, .. } = failure;
    let text = format!("the table refused its row as {kind:?} of {}: {reason}", error.name);
    let unreadable = ErrorInfo::new("Unreadable", &text);
    Failure {
        id: FailureId::of(&source, work(&json!(["refused", id]))),
        source,
        kind: Kind::Unreadable,
        payload,
        error: ErrorInfo { concerns: Some(Concerns::default()), ..unreadable },
        correlation_id: None,
        site_id: None,
        execution: None,
    }
}

/// The failures that a file tells of, one a record.
#[must_use]
pub fn file(source: &str, file: &PayloadFile, content: &[u8]) -> Vec<Failure> {
    match str::from_utf8(content).ok().and_then(|text| given_up(source, text)) {
        Some(failures) => failures,
        None => vec![unreadable_file(source, file, "has no known form")],
    }
}

/// A file that can't be recorded record by record, and what is wrong with it.
#[must_use]
pub fn unreadable_file(source: &str, file: &PayloadFile, problem: &str) -> Failure {
    let text = format!("file {:?} of bucket {:?} {problem}", file.key, file.bucket);
    let error = ErrorInfo::new("UnreadableFile", &text);
    let work = work(&json!(["file", file.bucket, file.key]));
    let failure = Failure::of(source, Kind::Unreadable, "", work, error);
    Failure { payload: Payload::File(file.clone()), ..failure }
}

/// What a message of a bucket's queue asks to read.
#[must_use]
pub fn notification(body: &str) -> Notification {
    match serde_json::from_str::<Notified>(body) {
        Ok(notified) if notified.event == "s3:TestEvent" => Notification::Test,
        Ok(Notified { records, .. }) if !records.is_empty() => {
            let files = records.into_iter().map(|NewFile { s3 }| PayloadFile {
                bucket: s3.bucket.name,
                key: decoded(&s3.object.key),
            });
            let files: Vec<_> = files.collect();
            if files.iter().all(may_exist) {
                Notification::Files(files)
            } else {
                Notification::Other
            }
        }
        _ => Notification::Other,
    }
}

/// Whether S3 could have such a file.
fn may_exist(file: &PayloadFile) -> bool {
    (1..=MAX_BUCKET_BYTES).contains(&file.bucket.len())
        && (1..=MAX_KEY_BYTES).contains(&file.key.len())
}

/// S3 encodes a key in its notifications as a form's value.
fn decoded(key: &str) -> String {
    let form = format!("key={key}");
    let value = form_urlencoded::parse(form.as_bytes()).next();
    value.map_or_else(|| key.to_owned(), |(_, value)| value.into_owned())
}

fn invocation(source: &str, body: &str) -> Option<Failure> {
    let told: Invocation = serde_json::from_str(body).ok()?;
    let answer = |name: &str| told.response_payload.as_ref()?.get(name)?.as_str();
    let named = answer("errorType").or(function_error(told.response_context.as_ref()));
    let name = named.unwrap_or(&told.request_context.condition);
    let message = match answer("errorMessage") {
        Some(message) => message.to_owned(),
        None => told.request_context.to_string(),
    };
    let event = told.request_payload.get();
    let error = ErrorInfo::new(name, &message);
    Some(Failure::of(source, Kind::FunctionFailed, event, canonical(event), error))
}

fn not_delivered(source: &str, message: &SqsMessage, body: &str) -> Option<Failure> {
    serde_json::from_str::<IgnoredAny>(body).ok()?;
    let attribute = |name: &str| {
        let attribute = message.message_attributes.get(name)?;
        attribute.string_value.as_deref()
    };
    let name = attribute("ERROR_CODE").unwrap_or("NotDelivered");
    let told = ["ERROR_MESSAGE", "EXHAUSTED_RETRY_CONDITION"].into_iter().filter_map(attribute);
    let error = ErrorInfo::new(name, &told.collect::<Vec<_>>().join("; "));
    Some(Failure::of(source, Kind::NotDelivered, body, canonical(body), error))
}

fn dead_letter(source: &str, message: &SqsMessage, body: &str) -> Option<Failure> {
    serde_json::from_str::<Command>(body).ok()?;
    let received = message.attributes.get("ApproximateReceiveCount");
    let text = format!(
        "received {} times and never done; the function's log tells why",
        received.map_or("too many", String::as_str)
    );
    let error = ErrorInfo::new("ReceivesExhausted", &text);
    Some(Failure::of(source, Kind::DeadLetter, body, canonical(body), error))
}

fn quarantined(source: &str, body: &str) -> Option<Failure> {
    let told: Quarantined = serde_json::from_str(body).ok()?;
    let error = ErrorInfo::new(&told.error, &told.reason);
    let mut failure = record(source, Kind::Quarantined, told.record, error);
    if let Some(concerns) = &mut failure.error.concerns {
        concerns.sensor_id = told.sensor_id;
        concerns.sensor_site_id = told.sensor_site_id;
    }
    Some(failure)
}

/// An execution that did the work of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The failure's id, whether or not there is such a row.
    pub id: FailureId,
    /// The execution's ARN.
    pub execution: String,
}

/// The repair that a message of a teardown that succeeded tells of; `None` for any other message.
#[must_use]
pub fn repair(source: &str, body: &str) -> Option<Repair> {
    let detail = status_change(body).filter(|detail| detail.status == "SUCCEEDED")?;
    Some(Repair { id: FailureId::of(source, teardown_of(&detail)), execution: detail.arn })
}

fn status_change(body: &str) -> Option<Execution> {
    let StatusChange { detail_type, detail } = serde_json::from_str(body).ok()?;
    (detail_type == "Step Functions Execution Status Change").then_some(detail)
}

/// What identifies the work of an execution. A saga's teardowns do the same work, whichever of them failed.
fn teardown_of(execution: &Execution) -> [u8; 32] {
    let input: Value = serde_json::from_str(&execution.input).unwrap_or_default();
    let saga = input["onboardingId"].as_str().unwrap_or(&execution.arn);
    work(&json!(["execution", saga]))
}

fn execution(source: &str, body: &str) -> Option<Failure> {
    let detail = status_change(body)?;
    let work = teardown_of(&detail);
    // A function's error comes as what the function answered.
    let cause = detail.cause.map(|cause| match serde_json::from_str::<Value>(&cause) {
        Ok(answer) => answer["errorMessage"].as_str().map_or(cause, str::to_owned),
        Err(_) => cause,
    });
    let text = cause.unwrap_or_else(|| format!("the execution ended as {}", detail.status));
    let error = ErrorInfo::new(detail.error.as_deref().unwrap_or(&detail.status), &text);
    let failure = Failure::of(source, Kind::ExecutionFailed, &detail.input, work, error);
    Some(Failure { execution: Some(detail.arn), ..failure })
}

fn given_up(source: &str, content: &str) -> Option<Vec<Failure>> {
    let told: GivenUp = serde_json::from_str(content).ok()?;
    let event = told.payload.get();
    let event = match serde_json::from_str::<String>(event) {
        Ok(text) => Cow::Owned(text),
        Err(_) => Cow::Borrowed(event),
    };
    let batch: Batch = serde_json::from_str(&event).ok()?;
    if batch.records.len() > MAX_RECORDS {
        return None;
    }
    let request = &told.request_context;
    let text = match function_error(told.response_context.as_ref()) {
        Some(error) => format!("{request}; function error {error}"),
        None => request.to_string(),
    };
    let error = ErrorInfo::new(&request.condition, &text);
    let failures = batch.records.iter();
    let failures = failures.map(|told| record(source, Kind::GivenUp, told, error.clone()));
    Some(failures.collect()).filter(|failures: &Vec<_>| !failures.is_empty())
}

/// A stream's record: the same data, or the same new row, is the same work, wherever in the stream it is and
/// whoever set it aside.
fn record(source: &str, kind: Kind, record: &RawValue, error: ErrorInfo) -> Failure {
    let text = record.get();
    let told: Value = serde_json::from_str(text).unwrap_or_default();
    let (kinesis, event) = (&told["kinesis"], &told["eventID"]);
    let mut row = told["dynamodb"]["Keys"].clone();
    let work = if kinesis["data"].is_string() {
        work(&json!(["kinesis", kinesis["partitionKey"], kinesis["data"], told["part"]]))
    } else if row.is_object() && told["eventName"] == "INSERT" {
        row.sort_all_objects();
        work(&json!(["inserted", row]))
    } else if event.is_string() {
        work(&json!(["dynamodb", event]))
    } else {
        canonical(text)
    };
    let mut failure = Failure::of(source, kind, text, work, error);
    if failure.site_id.is_none()
        && let (Some(concerns), Some(key)) =
            (&mut failure.error.concerns, kinesis["partitionKey"].as_str())
    {
        concerns.sender = Some(key.chars().take(MAX_SENDER).collect());
    }
    failure
}

impl Failure {
    fn of(source: &str, kind: Kind, payload: &str, work: [u8; 32], error: ErrorInfo) -> Self {
        let told = serde_json::from_str(payload).unwrap_or_default();
        // A bundle's partition key is its site.
        let site_id = find(&told, &["siteId", "partitionKey"]);
        let concerns = Some(Concerns { site_id, ..Concerns::default() });
        Self {
            id: FailureId::of(source, work),
            source: source.to_owned(),
            kind,
            payload: Payload::Text(payload.to_owned()),
            error: ErrorInfo { concerns, ..error },
            correlation_id: find(&told, &["correlationId", "onboardingId"]),
            site_id,
            execution: None,
        }
    }
}

impl fmt::Display for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = self.request_id.as_deref().unwrap_or("unknown");
        let count = self.approximate_invoke_count;
        write!(f, "given up after {count} tries; the function's log has more of request {request}")
    }
}

fn function_error(context: Option<&ResponseContext>) -> Option<&str> {
    context?.function_error.as_deref()
}

/// SHA-256 of what tells the work.
fn work(told: &Value) -> [u8; 32] {
    Sha256::digest(told.to_string()).into()
}

/// The same for JSON that says the same.
fn canonical(json: &str) -> [u8; 32] {
    match serde_json::from_str::<Value>(json) {
        Ok(mut value) => {
            value.sort_all_objects();
            work(&value)
        }
        Err(_) => Sha256::digest(json).into(),
    }
}

/// The first id under one of the names, however deep: as it is, as DynamoDB's attribute, or in JSON
/// inside a text.
fn find<I: std::str::FromStr>(told: &Value, names: &[&str]) -> Option<I> {
    match told {
        Value::Object(fields) => {
            let mut here = names.iter().filter_map(|name| fields.get(*name));
            let id = |value: &Value| value.as_str().or(value["S"].as_str())?.parse().ok();
            here.find_map(id).or_else(|| fields.values().find_map(|value| find(value, names)))
        }
        Value::Array(values) => values.iter().find_map(|value| find(value, names)),
        Value::String(text) if text.starts_with('{') => {
            find(&serde_json::from_str(text).ok()?, names)
        }
        _ => None,
    }
}
