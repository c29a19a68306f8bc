//! Parses the messages of the failure queues and the files of the failure bucket. Nothing is refused: an input in
//! no known format is kept unchanged.
//!
//! The functions of a service share one queue, so each message in it must name the function or state machine that
//! failed. A message that does not is unreadable, and its source is the queue. The queue is also the source of an event
//! that EventBridge could not publish to a topic. Each dead-letter queue of billing has the commands of one function,
//! which is the source.

use std::{borrow::Cow, fmt};

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::{
    names::{self, FAILURE_FILES, SITE_TEARDOWN, without_environment},
    quarantine::Quarantined,
    stream::Record,
};
use ledger::{AffectedIds, ErrorInfo, FailedWork, FailureId, Kind, Payload, PayloadFile};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest, Sha256};

/// The meaning of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// Work failed.
    Failed(Box<FailedWork>),
    /// An execution repaired an earlier failure.
    Repaired(Repair),
    /// These files of failures were created.
    Files(Vec<PayloadFile>),
    /// A test notification of S3.
    Test,
}

/// An execution that did the work of an earlier failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The id of the failure. A row with this id need not exist.
    pub id: FailureId,
    /// The ARN of the execution.
    pub execution: String,
}

/// The record that Lambda sends to a function's failure destination.
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
    /// The ARN of the function, with or without a version or an alias.
    #[serde(default)]
    function_arn: String,
    condition: String,
    #[serde(default)]
    approximate_invoke_count: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResponseContext {
    function_error: Option<String>,
}

/// A command of a saga. The saga waits for the task token.
#[derive(Deserialize)]
struct Command {
    #[serde(rename = "taskToken")]
    _task_token: String,
    #[serde(rename = "command")]
    _command: IgnoredAny,
}

/// The event about an execution's new status.
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
    #[serde(rename = "stateMachineArn")]
    state_machine_arn: String,
    status: String,
    input: String,
    error: Option<String>,
    cause: Option<String>,
}

/// The file of a batch that a stream's mapping gave up on.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GivenUpBatch<'a> {
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
struct S3Notification {
    #[serde(rename = "Records", default)]
    records: Vec<NotificationRecord>,
    #[serde(rename = "Event", default)]
    event: String,
}

#[derive(Deserialize)]
struct NotificationRecord {
    s3: ObjectEvent,
}

#[derive(Deserialize)]
struct ObjectEvent {
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

/// The maximum length of an S3 key, in bytes.
const MAX_KEY_BYTES: usize = 1_024;
/// The maximum length of a bucket name, in bytes.
const MAX_BUCKET_BYTES: usize = 63;
/// The maximum number of records in a batch that Lambda delivers.
const MAX_RECORDS: usize = 10_000;
/// The number of characters that are kept of a partition key that is not a site's id.
const MAX_SENDER_CHARS: usize = 100;
/// The attribute in which EventBridge says why it does not try again.
const RETRY_CONDITION: &str = "EXHAUSTED_RETRY_CONDITION";
/// The maximum length of a function's name.
const MAX_SOURCE_CHARS: usize = 64;

/// Parses a message of a failure queue.
#[must_use]
pub fn message(environment: &str, message: &SqsMessage) -> Parsed {
    let arn = message.event_source_arn.as_deref().unwrap_or_default();
    let name = arn.rsplit(':').next().unwrap_or(arn);
    let queue = without_environment(environment, name).unwrap_or(name);
    let body = message.body.as_deref().unwrap_or_default();
    if queue == FAILURE_FILES {
        return notification(body);
    }
    let failed = if let Some(function) = names::function_of_dead_letters(queue) {
        dead_letter(function, message, body).unwrap_or_else(|| unreadable(function, body))
    } else if let Some(repair) = repair(environment, message, body) {
        return Parsed::Repaired(repair);
    } else {
        failed(environment, queue, message, body).unwrap_or_else(|| unreadable(queue, body))
    };
    Parsed::Failed(Box::new(failed))
}

/// Parses a message of a service's failure queue that names its source or the topic of an event.
fn failed(environment: &str, queue: &str, message: &SqsMessage, body: &str) -> Option<FailedWork> {
    // The attributes are checked first, because the body may be any event.
    match undelivered_target(message) {
        Some(target) => match names::function_of_arn(environment, target) {
            Some(function) => not_delivered(source(function)?, message, body),
            // The target is not a function of this environment, but may be this queue: a rule sends the events of
            // executions to this queue, and the queue is also the dead-letter queue of that rule.
            None => match names::topic_of_arn(environment, target) {
                Some(topic) => Some(not_published(queue, topic, message, body)),
                None => execution(environment, body),
            },
        },
        None => invocation(environment, body)
            .or_else(|| quarantined(body))
            .or_else(|| execution(environment, body)),
    }
}

/// Returns the ARN of the target to which EventBridge could not deliver an event, or an empty text if the message
/// does not name it. Returns `None` if the message is not a dead letter of EventBridge.
fn undelivered_target(message: &SqsMessage) -> Option<&str> {
    attribute(message, "ERROR_CODE")?;
    Some(attribute(message, "TARGET_ARN").unwrap_or_default())
}

fn attribute<'m>(message: &'m SqsMessage, name: &str) -> Option<&'m str> {
    message.message_attributes.get(name)?.string_value.as_deref()
}

/// Returns the text if it is a function's name in kebab case.
fn source(name: &str) -> Option<&str> {
    let kebab = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ((1..=MAX_SOURCE_CHARS).contains(&name.len()) && name.bytes().all(kebab)).then_some(name)
}

/// Returns the failure of a message in no known format. Its source is `queue`: the queue of the message, or for a dead
/// letter the function that consumes the commands.
#[must_use]
pub fn unreadable(queue: &str, body: &str) -> FailedWork {
    let error = ErrorInfo::new("Unreadable", "the message has no known format");
    let work = Sha256::digest(body).into();
    failed_work(queue, Kind::Unreadable, body, work, error)
}

/// Returns a replacement for a failure whose row the table refuses permanently for this reason. It has the payload, but
/// nothing that was parsed from it.
#[must_use]
pub fn refused(failed: FailedWork, reason: &str) -> FailedWork {
    let FailedWork { id, source, kind, payload, error, .. } = failed;
    let text =
        format!("the table refused the row of this {kind:?} failure ({}): {reason}", error.name);
    let unreadable = ErrorInfo::new("Unreadable", &text);
    FailedWork {
        id: FailureId::new(&source, work(&json!(["refused", id]))),
        source,
        kind: Kind::Unreadable,
        payload,
        error: ErrorInfo { affected_ids: Some(AffectedIds::default()), ..unreadable },
        correlation_id: None,
        site_id: None,
        execution: None,
    }
}

/// Parses a file of Lambda. Returns a failure for each record.
#[must_use]
pub fn file(environment: &str, file: &PayloadFile, content: &[u8]) -> Vec<FailedWork> {
    match str::from_utf8(content).ok().and_then(|text| given_up(environment, text)) {
        Some(failures) => failures,
        None => vec![unreadable_file(
            FAILURE_FILES,
            file,
            "has no known format, or does not name a function of this environment",
        )],
    }
}

/// Returns the failure of a file that can't be recorded record by record, with the problem.
#[must_use]
pub fn unreadable_file(queue: &str, file: &PayloadFile, problem: &str) -> FailedWork {
    let text = format!("file {:?} of bucket {:?} {problem}", file.key, file.bucket);
    let error = ErrorInfo::new("UnreadableFile", &text);
    let work = work(&json!(["file", file.bucket, file.key]));
    let failed = failed_work(queue, Kind::Unreadable, "", work, error);
    FailedWork { payload: Payload::File(file.clone()), ..failed }
}

/// Parses a notification of S3.
fn notification(body: &str) -> Parsed {
    let files = match serde_json::from_str::<S3Notification>(body) {
        Ok(notification) if notification.event == "s3:TestEvent" => return Parsed::Test,
        Ok(notification) => notification.records,
        Err(_) => Vec::new(),
    };
    let files = files.into_iter().map(|NotificationRecord { s3 }| PayloadFile {
        bucket: s3.bucket.name,
        key: decode_key(&s3.object.key),
    });
    let files: Vec<_> = files.collect();
    if !files.is_empty() && files.iter().all(may_exist) {
        Parsed::Files(files)
    } else {
        Parsed::Failed(Box::new(unreadable(FAILURE_FILES, body)))
    }
}

/// Returns whether a file with this bucket and key can exist in S3.
fn may_exist(file: &PayloadFile) -> bool {
    (1..=MAX_BUCKET_BYTES).contains(&file.bucket.len())
        && (1..=MAX_KEY_BYTES).contains(&file.key.len())
}

/// Decodes a key in a notification. S3 encodes it like the value of a form.
fn decode_key(key: &str) -> String {
    let form = format!("key={key}");
    let value = form_urlencoded::parse(form.as_bytes()).next();
    value.map_or_else(|| key.to_owned(), |(_, value)| value.into_owned())
}

fn invocation(environment: &str, body: &str) -> Option<FailedWork> {
    let invocation: Invocation = serde_json::from_str(body).ok()?;
    let source = function(environment, &invocation.request_context)?;
    let response_field = |name: &str| invocation.response_payload.as_ref()?.get(name)?.as_str();
    let error_type =
        response_field("errorType").or(function_error(invocation.response_context.as_ref()));
    let name = error_type.unwrap_or(&invocation.request_context.condition);
    let message = match response_field("errorMessage") {
        Some(message) => message.to_owned(),
        None => invocation.request_context.to_string(),
    };
    let event = invocation.request_payload.get();
    let error = ErrorInfo::new(name, &message);
    Some(failed_work(source, Kind::FunctionFailed, event, canonical(event), error))
}

/// Returns the name of the function that Lambda invoked, if it belongs to this environment.
fn function<'r>(environment: &str, request: &'r RequestContext) -> Option<&'r str> {
    source(names::function_of_arn(environment, &request.function_arn)?)
}

fn not_delivered(function: &str, message: &SqsMessage, body: &str) -> Option<FailedWork> {
    serde_json::from_str::<IgnoredAny>(body).ok()?;
    let name = attribute(message, "ERROR_CODE").unwrap_or("NotDelivered");
    let error = ErrorInfo::new(name, &attributes(message, &["ERROR_MESSAGE", RETRY_CONDITION]));
    Some(failed_work(function, Kind::NotDelivered, body, canonical(body), error))
}

/// Returns the failure of an event that EventBridge could not publish to a topic. It has the kind `Unreadable`, because no
/// function can be called with it.
fn not_published(queue: &str, topic: &str, message: &SqsMessage, body: &str) -> FailedWork {
    let reasons = attributes(message, &["ERROR_CODE", "ERROR_MESSAGE", RETRY_CONDITION]);
    let text = format!("EventBridge could not publish the event to the topic {topic}: {reasons}");
    let error = ErrorInfo::new("NotPublished", &text);
    failed_work(queue, Kind::Unreadable, body, canonical(body), error)
}

/// Returns the values of the attributes that the message has.
fn attributes(message: &SqsMessage, names: &[&str]) -> String {
    let values: Vec<_> = names.iter().filter_map(|name| attribute(message, name)).collect();
    values.join("; ")
}

fn dead_letter(function: &str, message: &SqsMessage, body: &str) -> Option<FailedWork> {
    serde_json::from_str::<Command>(body).ok()?;
    let received = message.attributes.get("ApproximateReceiveCount");
    let text = format!(
        "received {} times without success; see the function's log for the reason",
        received.map_or("too many", String::as_str)
    );
    let error = ErrorInfo::new("ReceivesExhausted", &text);
    Some(failed_work(function, Kind::DeadLetter, body, canonical(body), error))
}

fn quarantined(body: &str) -> Option<FailedWork> {
    let quarantined: Quarantined<&RawValue> = serde_json::from_str(body).ok()?;
    let error = ErrorInfo::new(&quarantined.error, &quarantined.reason);
    let mut failed =
        record(source(&quarantined.source)?, Kind::Quarantined, quarantined.record, error);
    if let Some(affected_ids) = &mut failed.error.affected_ids {
        affected_ids.sensor_id = quarantined.sensor_id;
        affected_ids.sensor_site_id = quarantined.sensor_site_id;
    }
    Some(failed)
}

/// Returns the repair that a message reports. Only the event of a teardown that succeeded reports a repair. Returns
/// `None` for any other message.
fn repair(environment: &str, message: &SqsMessage, body: &str) -> Option<Repair> {
    let target = undelivered_target(message).unwrap_or_default();
    if names::function_of_arn(environment, target).is_some() {
        // A dead letter for a function is a failure of that function, whatever its event reports.
        return None;
    }
    let detail = teardown(environment, body).filter(|detail| detail.status == "SUCCEEDED")?;
    Some(Repair {
        id: FailureId::new(SITE_TEARDOWN, teardown_work(&detail)),
        execution: detail.arn,
    })
}

/// Returns the execution in an event about this environment's site-teardown. Executions of other state machines can't
/// be replayed.
fn teardown(environment: &str, body: &str) -> Option<Execution> {
    let StatusChange { detail_type, detail } = serde_json::from_str(body).ok()?;
    let machine = names::state_machine_of_arn(environment, &detail.state_machine_arn);
    (detail_type == "Step Functions Execution Status Change" && machine == Some(SITE_TEARDOWN))
        .then_some(detail)
}

/// Returns the identity of an execution's work. All teardowns of a saga do the same work.
fn teardown_work(execution: &Execution) -> [u8; 32] {
    let input: Value = serde_json::from_str(&execution.input).unwrap_or_default();
    let saga = input["onboardingId"].as_str().unwrap_or(&execution.arn);
    work(&json!(["execution", saga]))
}

fn execution(environment: &str, body: &str) -> Option<FailedWork> {
    let detail = teardown(environment, body)?;
    let work = teardown_work(&detail);
    // The cause of a function's error is the JSON that the function returned.
    let cause = detail.cause.map(|cause| match serde_json::from_str::<Value>(&cause) {
        Ok(response) => response["errorMessage"].as_str().map_or(cause, str::to_owned),
        Err(_) => cause,
    });
    let text = cause.unwrap_or_else(|| format!("the execution ended as {}", detail.status));
    let error = ErrorInfo::new(detail.error.as_deref().unwrap_or(&detail.status), &text);
    let failed = failed_work(SITE_TEARDOWN, Kind::ExecutionFailed, &detail.input, work, error);
    Some(FailedWork { execution: Some(detail.arn), ..failed })
}

fn given_up(environment: &str, content: &str) -> Option<Vec<FailedWork>> {
    let given_up: GivenUpBatch = serde_json::from_str(content).ok()?;
    let source = function(environment, &given_up.request_context)?;
    let event = given_up.payload.get();
    let event = match serde_json::from_str::<String>(event) {
        Ok(text) => Cow::Owned(text),
        Err(_) => Cow::Borrowed(event),
    };
    let batch: Batch = serde_json::from_str(&event).ok()?;
    if batch.records.len() > MAX_RECORDS {
        return None;
    }
    let request = &given_up.request_context;
    let text = match function_error(given_up.response_context.as_ref()) {
        Some(error) => format!("{request}; function error {error}"),
        None => request.to_string(),
    };
    let error = ErrorInfo::new(&request.condition, &text);
    let failures = batch.records.iter();
    let failures = failures.map(|json| record(source, Kind::GivenUp, json, error.clone()));
    Some(failures.collect()).filter(|failures: &Vec<_>| !failures.is_empty())
}

/// Returns the failure of a stream's record. Kinesis records with the same partition key, data and part number are the
/// same work. Two records of a table's stream are the same work if both report the insertion of the same row. The
/// position in the stream and the error do not matter.
fn record(source: &str, kind: Kind, record: &RawValue, error: ErrorInfo) -> FailedWork {
    let text = record.get();
    let stream_record = serde_json::from_str::<Record>(text).ok();
    let work = match &stream_record {
        Some(Record { kinesis, part, .. }) => {
            work(&json!(["kinesis", kinesis.partition_key, kinesis.data, part]))
        }
        None => table_work(text),
    };
    let mut failed = failed_work(source, kind, text, work, error);
    if failed.site_id.is_none()
        && let (Some(affected_ids), Some(record)) = (&mut failed.error.affected_ids, stream_record)
    {
        let key = record.kinesis.partition_key.chars();
        affected_ids.sender = Some(key.take(MAX_SENDER_CHARS).collect());
    }
    failed
}

/// Returns the identity of the work of a table stream's record, or of a record in no known format.
fn table_work(text: &str) -> [u8; 32] {
    let record: Value = serde_json::from_str(text).unwrap_or_default();
    let event = &record["eventID"];
    let mut row = record["dynamodb"]["Keys"].clone();
    if row.is_object() && record["eventName"] == "INSERT" {
        row.sort_all_objects();
        work(&json!(["inserted", row]))
    } else if event.is_string() {
        work(&json!(["dynamodb", event]))
    } else {
        canonical(text)
    }
}

fn failed_work(
    source: &str,
    kind: Kind,
    payload: &str,
    work: [u8; 32],
    error: ErrorInfo,
) -> FailedWork {
    let content = serde_json::from_str(payload).unwrap_or_default();
    // The partition key of a bundle begins with the site's id.
    let site_id = find(&content, &["siteId", "partitionKey"]);
    let affected_ids = Some(AffectedIds { site_id, ..AffectedIds::default() });
    FailedWork {
        id: FailureId::new(source, work),
        source: source.to_owned(),
        kind,
        payload: Payload::Text(payload.to_owned()),
        error: ErrorInfo { affected_ids, ..error },
        correlation_id: find(&content, &["correlationId", "onboardingId"]),
        site_id,
        execution: None,
    }
}

impl fmt::Display for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let request = self.request_id.as_deref().unwrap_or("unknown");
        let count = self.approximate_invoke_count;
        write!(f, "given up after {count} attempts; see request {request} in the function's log")
    }
}

fn function_error(context: Option<&ResponseContext>) -> Option<&str> {
    context?.function_error.as_deref()
}

/// Returns the SHA-256 of the value that identifies the work.
fn work(work: &Value) -> [u8; 32] {
    Sha256::digest(work.to_string()).into()
}

/// Returns a hash that is the same for equal JSON, whatever its formatting and the order of its fields.
fn canonical(json: &str) -> [u8; 32] {
    match serde_json::from_str::<Value>(json) {
        Ok(mut value) => {
            value.sort_all_objects();
            work(&value)
        }
        Err(_) => Sha256::digest(json).into(),
    }
}

/// Returns the first id in a field with one of the names, at any depth. The id may be a text or its part before a slash,
/// an attribute in DynamoDB's format, or inside JSON that is embedded in a text.
fn find<I: std::str::FromStr>(value: &Value, names: &[&str]) -> Option<I> {
    match value {
        Value::Object(fields) => {
            let mut candidates = names.iter().filter_map(|name| fields.get(*name));
            let id = |value: &Value| {
                let text = value.as_str().or(value["S"].as_str())?;
                text.split('/').next()?.parse().ok()
            };
            candidates.find_map(id).or_else(|| fields.values().find_map(|value| find(value, names)))
        }
        Value::Array(values) => values.iter().find_map(|value| find(value, names)),
        Value::String(text) if text.starts_with('{') => {
            find(&serde_json::from_str(text).ok()?, names)
        }
        _ => None,
    }
}
