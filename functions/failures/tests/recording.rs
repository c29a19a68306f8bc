//! Messages of the failure queues and files of the failure bucket become one row per piece of work, even if they are
//! repeated, incomplete or unreadable.

use std::{collections::BTreeMap, time::Duration};

use aws_lambda_events::event::sqs::SqsMessage;
use aws_types::SdkConfig;
use contracts::{SensorId, SiteId};
use failures::{parse, record_failure::RecordFailure};
use fault::{ErrorKind, Fault};
use lambda::Deadline;
use ledger::{
    AffectedIds, ClaimOptions, ErrorInfo, FailedWork, FailureRow, Ledger, LedgerError,
    MAX_PAYLOAD_BYTES, PayloadFile, ReplayOutcome, Status,
    files::{Files, MAX_FILE_BYTES},
};
use serde_json::{Value, json};
use store::Table;
use testkit::{
    Dynamo,
    buckets::Buckets,
    cloud::{self, Cloud},
    dynamo::FAILURES,
    golden, http,
    rng::Rng,
    sample::{self, noon, saga},
};
use uuid::Uuid;

const ENVIRONMENT: &str = "fieldstation-prod";
const QUEUES: &str = "arn:aws:sqs:eu-central-1:123456789012:fieldstation-prod-";
const FUNCTIONS: &str = "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-prod-";
const BUCKET: &str = "fieldstation-prod-failures-123456789012-eu-central-1";
/// A key like those that Lambda writes, plus a space and a `+`, which S3 encodes.
const KEY: &str =
    "aws/lambda/6f1e1d57/shardId-000000000000/2026/01/01/2026-01-01T12.00.00-a b+c.json";

struct World {
    dynamo: Dynamo,
    buckets: Buckets,
}

impl World {
    async fn start() -> Self {
        Self { dynamo: Dynamo::start().await, buckets: Buckets::start().await }
    }

    fn ledger(&self) -> Ledger {
        Ledger { failures: self.dynamo.table(FAILURES) }
    }

    async fn record(&self, message: &SqsMessage) -> Result<(), LedgerError> {
        step(self.dynamo.table(FAILURES), &self.buckets.config()).handle(message, noon(9)).await
    }

    async fn rows(&self) -> Vec<Value> {
        self.dynamo.rows(FAILURES).await
    }

    /// Returns the only row.
    async fn row(&self) -> FailureRow {
        let rows = self.rows().await;
        assert_eq!(rows.len(), 1, "{rows:#?}");
        let id = rows[0]["id"].as_str().expect("an id").parse().expect("an id");
        self.ledger().get(id).await.expect("a table").expect("the row")
    }
}

fn step(failures: Table, s3: &SdkConfig) -> RecordFailure {
    let s3 = aws_sdk_s3::config::Builder::from(s3).force_path_style(true).build();
    RecordFailure {
        environment: ENVIRONMENT.to_owned(),
        ledger: Ledger { failures },
        files: Files { client: aws_sdk_s3::Client::from_conf(s3) },
        bucket: BUCKET.to_owned(),
    }
}

/// Returns a message that was sent `seconds` seconds after noon.
fn message(queue: &str, id: &str, seconds: i64, body: impl Into<String>) -> SqsMessage {
    let message = json!({
        "messageId": id,
        "body": body.into(),
        "attributes": {
            "ApproximateReceiveCount": "4",
            "SentTimestamp": noon(seconds).millis().to_string(),
        },
        "eventSourceARN": format!("{QUEUES}{queue}"),
    });
    serde_json::from_value(message).expect("a message")
}

/// Returns the notification of a file in S3's format.
fn notification(id: &str, key: &str) -> SqsMessage {
    notification_of(id, BUCKET, key)
}

fn notification_of(id: &str, bucket: &str, key: &str) -> SqsMessage {
    let key = key.replace('+', "%2B").replace(' ', "+");
    let body = json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-central-1",
        "eventTime": "2026-01-01T12:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "FailureFiles",
            "bucket": { "name": bucket, "arn": format!("arn:aws:s3:::{bucket}") },
            "object": { "key": key, "size": 1024, "eTag": "d41d8cd98f00b204e9800998ecf8427e" },
        },
    }]});
    message("failure-files", id, 0, body.to_string())
}

fn event() -> Value {
    sample::event("project-sensors")
}

/// Returns Lambda's record after project-sensors failed with this event.
fn invocation(event: &Value, error: Option<&str>) -> Value {
    invocation_of("project-sensors:live", event, error)
}

/// Returns Lambda's record after a function failed with this event. `function` may end with an alias.
fn invocation_of(function: &str, event: &Value, error: Option<&str>) -> Value {
    let mut invocation = json!({
        "version": "1.0",
        "timestamp": "2026-01-01T12:05:00.000Z",
        "requestContext": {
            "requestId": "e4b46cbf-b738-xmpl-8880-a18cdf61200e",
            "functionArn": format!("{FUNCTIONS}{function}"),
            "condition": if error.is_some() { "RetriesExhausted" } else { "EventAgeExceeded" },
            "approximateInvokeCount": 3,
        },
        "requestPayload": event,
    });
    if let Some(error) = error {
        invocation["responseContext"] =
            json!({ "statusCode": 200, "executedVersion": "7", "functionError": "Unhandled" });
        invocation["responsePayload"] = json!({ "errorMessage": error, "errorType": "Transient" });
    }
    invocation
}

fn failed(id: &str, seconds: i64) -> SqsMessage {
    let body = invocation(&event(), Some("DynamoDB can't answer now"));
    message("telemetry-failures", id, seconds, body.to_string())
}

fn not_delivered() -> SqsMessage {
    let target = format!("{FUNCTIONS}project-sensors:live");
    undelivered(message("telemetry-failures", "m-1", 0, event().to_string()), &target)
}

/// Returns the message as a dead letter of EventBridge, for this target of a rule.
fn undelivered(mut message: SqsMessage, target: &str) -> SqsMessage {
    let attributes = json!({
        "RULE_ARN": "arn:aws:events:eu-central-1:123456789012:rule/fieldstation-prod-events/telemetry-Project",
        "TARGET_ARN": target,
        "ERROR_CODE": "NO_PERMISSIONS",
        "ERROR_MESSAGE": "User is not authorized to perform: lambda:InvokeFunction",
        "EXHAUSTED_RETRY_CONDITION": "MaximumRetryAttempts",
        "RETRY_ATTEMPTS": "3",
    });
    for (name, value) in attributes.as_object().expect("attributes") {
        let attribute = json!({ "stringValue": value, "dataType": "String" });
        let attribute = serde_json::from_value(attribute).expect("an attribute");
        message.message_attributes.insert(name.clone(), attribute);
    }
    message
}

fn record(sequence_number: &str, data: &str) -> Value {
    let mut record = sample::event("store-readings")["Records"][0].take();
    record["kinesis"]["sequenceNumber"] = sequence_number.into();
    record["kinesis"]["data"] = data.into();
    record
}

fn quarantined(source: &str, record: &Value) -> Value {
    json!({
        "source": source,
        "error": "UnknownSensor",
        "reason": "sensor 737de119-a774-5662-91c7-51fffae3b74b is not in the register",
        "record": record,
    })
}

fn execution(name: &str) -> Value {
    let states = "arn:aws:states:eu-central-1:123456789012";
    let onboarding = saga("a").onboarding_id;
    json!({
        "version": "0",
        "id": "315c1398-40ff-a850-213b-158f73e60175",
        "detail-type": "Step Functions Execution Status Change",
        "source": "aws.states",
        "account": "123456789012",
        "time": "2026-01-01T12:00:00Z",
        "region": "eu-central-1",
        "resources": [format!("{states}:execution:fieldstation-prod-site-teardown:{name}")],
        "detail": {
            "executionArn": format!("{states}:execution:fieldstation-prod-site-teardown:{name}"),
            "stateMachineArn": format!("{states}:stateMachine:fieldstation-prod-site-teardown"),
            "name": name,
            "status": "FAILED",
            "startDate": 1_767_268_000_000_u64,
            "stopDate": 1_767_268_800_000_u64,
            "input": json!({ "onboardingId": onboarding, "siteId": saga("a").site_id }).to_string(),
            "output": null,
            "inputDetails": { "included": true },
            "outputDetails": null,
            "error": "Internal",
            "cause": "{\"errorMessage\":\"a defect\",\"errorType\":\"Internal\"}",
        },
    })
}

/// Returns the file of a batch that a mapping gave up on.
fn file(records: &[Value]) -> String {
    json!({
        "requestContext": {
            "requestId": "c9b8fa9f-5a7f-xmpl-af9c-0c604cde93a5",
            "functionArn": "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-prod-store-readings:live",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 100,
        },
        "responseContext":
            { "statusCode": 200, "executedVersion": "7", "functionError": "Unhandled" },
        "version": "1.0",
        "timestamp": "2026-01-01T12:00:00.021Z",
        "KinesisBatchInfo": {
            "shardId": "shardId-000000000000",
            "startSequenceNumber": "1",
            "endSequenceNumber": "3",
            "approximateArrivalOfFirstRecord": "2026-01-01T11:00:00.835Z",
            "approximateArrivalOfLastRecord": "2026-01-01T11:00:01.580Z",
            "batchSize": records.len(),
            "streamArn": "arn:aws:kinesis:eu-central-1:123456789012:stream/readings",
        },
        "payload": json!({ "Records": records }).to_string(),
    })
    .to_string()
}

#[tokio::test]
async fn each_format_becomes_a_row_and_a_repetition_changes_nothing() {
    let command = json!({
        "taskToken": "AQCEAAAAKgAAAAMAAAAAAAAAAsample",
        "command": { "onboardingId": saga("a").onboarding_id, "siteId": saga("a").site_id },
    });
    let mut part = record("1", "H4sIAAAAAAAA");
    part["part"] = "1/2".into();
    let table_record = sample::event("publish-events")["Records"][0].take();
    let mut invalid_event = table_record.clone();
    invalid_event["dynamodb"]["NewImage"]["detail"]["S"] = "no event".into();
    let no_response = invocation(&event(), None);
    for (name, message) in [
        ("function-failed", failed("m-1", 0)),
        ("no-answer", message("telemetry-failures", "m-1", 0, no_response.to_string())),
        ("not-delivered", not_delivered()),
        ("dead-letter", message("initialize-subscription-failures", "m-1", 0, command.to_string())),
        (
            "quarantined",
            message(
                "events-failures",
                "m-1",
                0,
                quarantined("publish-events", &table_record).to_string(),
            ),
        ),
        (
            "quarantined-no-event",
            message(
                "events-failures",
                "m-1",
                0,
                quarantined("publish-events", &invalid_event).to_string(),
            ),
        ),
        (
            "quarantined-part",
            message(
                "telemetry-failures",
                "m-1",
                0,
                quarantined("store-readings", &part).to_string(),
            ),
        ),
        (
            "execution-failed",
            message("onboarding-failures", "m-1", 0, execution("an-onboarding").to_string()),
        ),
        ("given-up", notification("m-1", KEY)),
        ("unreadable", message("sites-failures", "m-1", 0, "no \u{1f321} JSON")),
        ("unreadable-json", message("sites-failures", "m-1", 0, json!({ "a": 1 }).to_string())),
        ("unknown-queue", message("Other", "m-1", 0, json!({ "a": 1 }).to_string())),
        ("file-gone", notification("m-1", "aws/lambda/gone")),
        ("file-broken", notification("m-1", "aws/lambda/broken")),
        ("file-elsewhere", notification("m-1", "elsewhere/a.json")),
        ("file-of-another-bucket", notification_of("m-1", "other", KEY)),
    ] {
        let world = World::start().await;
        world.buckets.put(BUCKET, KEY, file(&[record("1", "e30=")]));
        world.buckets.put(BUCKET, "aws/lambda/broken", vec![b'{', 0xff]);
        world.buckets.put(BUCKET, "elsewhere/a.json", file(&[record("1", "e30=")]));
        world.record(&message).await.expect(name);
        let row = world.rows().await;
        golden::check(env!("CARGO_MANIFEST_DIR"), name, &row[0]);
        assert_eq!(json!(world.row().await.status), "OPEN", "{name} is a valid row");
        world.record(&message).await.expect(name);
        assert_eq!(world.rows().await, row, "{name}");
    }
}

#[tokio::test]
async fn the_sample_event_is_recorded_and_the_test_event_of_s3_is_not() {
    let world = World::start().await;
    let test = json!({ "Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET });
    world.record(&message("failure-files", "m-1", 0, test.to_string())).await.expect("no failure");
    assert_eq!(world.rows().await, [json!(null); 0]);

    let sample = sample::event("record-failure")["Records"][0].take();
    world.record(&serde_json::from_value(sample).expect("a message")).await.expect("recorded");
    assert_eq!(world.row().await.source, "project-sensors");
}

#[tokio::test]
async fn work_that_fails_again_after_a_replay_is_the_same_failure() {
    let world = World::start().await;
    world.record(&failed("m-1", 0)).await.expect("recorded");
    let first = world.row().await;
    let (ledger, replay) = (world.ledger(), Uuid::from_u128(1));
    let claim = ledger.claim(first.id, replay, None, ClaimOptions::default(), noon(60)).await;
    assert!(claim.is_ok(), "{claim:?}");
    let finish = ledger.finish(first.id, replay, &ReplayOutcome::Done).await.expect("finished");
    assert_eq!(world.row().await.status, Status::Replayed, "{finish:?}");

    // The work fails again in another way, for another reason, with its fields in another order.
    let mut repeated = not_delivered();
    let event = event();
    let fields = event.as_object().expect("an event").iter().rev();
    let fields: Vec<_> = fields.map(|(name, value)| format!("{name:?}: {value}")).collect();
    repeated.body = Some(format!("{{{}}}", fields.join(", ")));
    repeated.message_id = Some("m-2".to_owned());
    repeated.attributes.insert("SentTimestamp".to_owned(), noon(120).millis().to_string());
    world.record(&repeated).await.expect("recorded");
    let reopened = world.row().await;
    assert_eq!((reopened.status, reopened.attempts, reopened.replays), (Status::Open, 2, 1));
    assert_eq!((reopened.first_at, reopened.last_at), (noon(0), noon(120)));
    assert_eq!(reopened.replay.expect("the last replay").id, replay);
    assert_eq!(reopened.error.name, "NO_PERMISSIONS");
    assert_ne!(reopened.fingerprint, first.fingerprint);
    // The first message is redelivered late and changes nothing.
    world.record(&failed("m-1", 0)).await.expect("no change");
    assert_eq!(world.row().await.attempts, 2);
}

#[tokio::test]
async fn a_replayed_execution_that_fails_again_is_the_same_failure() {
    let world = World::start().await;
    let first = message("onboarding-failures", "m-1", 0, execution("an-onboarding").to_string());
    world.record(&first).await.expect("recorded");
    let name = world.row().await.execution_name();
    let second = message("onboarding-failures", "m-2", 9, execution(&name).to_string());
    world.record(&second).await.expect("recorded");
    let row = world.row().await;
    assert_eq!(row.attempts, 2);
    assert!(row.execution.expect("an ARN").ends_with(&name));
}

#[tokio::test]
async fn a_teardown_that_succeeds_closes_the_failure_of_earlier_ones() {
    let world = World::start().await;
    let succeeded = |id: &str, name: &str| {
        let mut status_change = execution(name);
        status_change["detail"]["status"] = "SUCCEEDED".into();
        status_change["detail"]["error"] = Value::Null;
        status_change["detail"]["cause"] = Value::Null;
        message("onboarding-failures", id, 60, status_change.to_string())
    };
    // Most teardowns succeed at once. Then there is no failure, and none is recorded.
    world.record(&succeeded("m-0", "decommission")).await.expect("no failure");
    assert_eq!(world.rows().await, [json!(null); 0]);

    let failure = message("onboarding-failures", "m-1", 0, execution("nested").to_string());
    world.record(&failure).await.expect("recorded");
    for _ in 0..2 {
        world.record(&succeeded("m-2", "recovery-1")).await.expect("repaired");
        let row = world.row().await;
        assert_eq!((row.status, row.attempts), (Status::Replayed, 1));
        let note = row.note.expect("a note");
        assert!(note.starts_with("repaired by execution arn:") && note.ends_with("recovery-1"));
    }
    // A discarded failure stays discarded.
    let other = message("onboarding-failures", "m-3", 90, execution("again").to_string());
    world.record(&other).await.expect("recorded");
    let id = world.row().await.id;
    world.ledger().discard(id, "known").await.map(drop).expect("discarded");
    world.record(&succeeded("m-4", "recovery-2")).await.expect("no failure");
    let row = world.row().await;
    assert_eq!((row.status, row.note.as_deref()), (Status::Discarded, Some("known")));
}

#[tokio::test]
async fn a_row_names_its_site_sensor_and_sender() {
    let sensor: SensorId = "737de119-a774-5662-91c7-51fffae3b74b".parse().expect("an id");
    let (site, other) = (saga("a").site_id, saga("b").site_id);
    let mut bundle = record("1", "e30=");
    bundle["kinesis"]["partitionKey"] = json!(site);
    let mut unknown_sender = record("2", "W10=");
    unknown_sender["kinesis"]["partitionKey"] = "logger-7".into();
    let mut unknown = quarantined("store-readings", &bundle);
    unknown["sensorId"] = json!(sensor);
    let mut elsewhere = unknown.clone();
    elsewhere["sensorSiteId"] = json!(other);
    let affected = |site_id, sensor_id, sensor_site_id, sender: Option<&str>| AffectedIds {
        site_id,
        sensor_id,
        sensor_site_id,
        sender: sender.map(str::to_owned),
    };
    for (body, affected_ids) in [
        (quarantined("store-readings", &bundle), affected(Some(site), None, None, None)),
        (unknown, affected(Some(site), Some(sensor), None, None)),
        (elsewhere, affected(Some(site), Some(sensor), Some(other), None)),
        (
            quarantined("store-readings", &unknown_sender),
            affected(None, None, None, Some("logger-7")),
        ),
    ] {
        let world = World::start().await;
        let message = message("telemetry-failures", "m-1", 0, body.to_string());
        world.record(&message).await.expect("recorded");
        let row = world.row().await;
        assert_eq!(row.affected_ids(), affected_ids);
        // The index has the same data, so that the row need not be read.
        let (page, _) = world.ledger().page(Status::Open, true, None, 9).await.expect("a page");
        assert_eq!(page[0].affected_ids, affected_ids);
        // The data is kept when a replay fails again.
        let (ledger, replay) = (world.ledger(), Uuid::from_u128(1));
        ledger
            .claim(row.id, replay, None, ClaimOptions::default(), noon(60))
            .await
            .map(drop)
            .expect("a claim");
        let failed = ReplayOutcome::Failed(ErrorInfo::new("RetiredSensor", "no"));
        ledger.finish(row.id, replay, &failed).await.map(drop).expect("finished");
        assert_eq!(world.row().await.affected_ids(), affected_ids);
    }
}

#[tokio::test]
async fn a_file_that_is_notified_repeatedly_becomes_one_row_per_piece_of_work() {
    let world = World::start().await;
    // The last two records are the same work, like a repeated bundle of a logger.
    let records = [record("1", "e30="), record("2", "W10="), record("3", "W10=")];
    world.buckets.put(BUCKET, KEY, file(&records));
    world.record(&notification("m-1", KEY)).await.expect("recorded");
    let rows = world.rows().await;
    let mut attempts: Vec<_> = rows.iter().map(|row| row["attempts"].as_i64()).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [Some(1), Some(2)]);
    let site: Option<SiteId> = rows[0]["siteId"].as_str().and_then(|site| site.parse().ok());
    assert_eq!(json!(site), records[0]["kinesis"]["partitionKey"], "{rows:#?}");

    // The notification is repeated, as the same message and as another one.
    world.record(&notification("m-1", KEY)).await.expect("no change");
    world.record(&notification("m-2", KEY)).await.expect("no change");
    assert_eq!(world.rows().await, rows);
    // The quarantine and a second file have the same work.
    let body = quarantined("store-readings", &record("4", "e30="));
    world
        .record(&message("telemetry-failures", "m-3", 0, body.to_string()))
        .await
        .expect("recorded");
    world.buckets.put(BUCKET, "aws/lambda/second", file(&records[..1]));
    world.record(&notification("m-4", "aws/lambda/second")).await.expect("recorded");
    let max = world.rows().await.iter().filter_map(|row| row["attempts"].as_i64()).max();
    assert_eq!((world.rows().await.len(), max), (2, Some(3)));
}

#[tokio::test]
async fn a_long_payload_is_written_to_a_file_before_the_row() {
    let world = World::start().await;
    let data = "e30=".repeat(MAX_PAYLOAD_BYTES / 4);
    world.buckets.put(BUCKET, KEY, file(&[record("1", &data), record("2", "e30=")]));
    // The file is written but not the row, so the message fails and is delivered again.
    let broken =
        http::Stub::start(|_| (400, json!({ "__type": "ProvisionedThroughputExceededException" })));
    let broken = Table::new(aws_sdk_dynamodb::Client::new(&broken.await.config()), FAILURES);
    let error =
        step(broken, &world.buckets.config()).handle(&notification("m-1", KEY), noon(0)).await;
    assert_eq!(error.expect_err("throttled").kind(), ErrorKind::Transient);
    let content = world.buckets.file(BUCKET, KEY).expect("the file");
    let id = parse_file(str::from_utf8(&content).expect("text"))[0].id;
    assert!(world.buckets.file(BUCKET, &format!("payloads/{id}")).is_some());

    world.record(&notification("m-1", KEY)).await.expect("recorded");
    let rows = world.rows().await;
    let row = rows.iter().find(|row| row.get("payloadFile").is_some()).expect("a row with a file");
    assert_eq!((rows.len(), row.get("payload")), (2, None));
    let location = &row["payloadFile"];
    let key = format!("payloads/{}", row["id"].as_str().expect("an id"));
    assert_eq!(*location, json!({ "bucket": BUCKET, "key": key }));
    let payload = world.buckets.file(BUCKET, &key);
    let payload: Value = serde_json::from_slice(&payload.expect("the file")).expect("JSON");
    assert_eq!(payload, record("1", &data));
    world.record(&notification("m-1", KEY)).await.expect("no change");
    assert_eq!(world.rows().await, rows);
}

#[tokio::test]
async fn no_row_is_written_if_the_file_can_not_be_written_or_read() {
    let world = World::start().await;
    let long = json!({ "a": "x".repeat(MAX_PAYLOAD_BYTES) });
    let message =
        message("telemetry-failures", "m-1", 0, invocation(&long, Some("no")).to_string());
    world.buckets.put(BUCKET, KEY, file(&[record("1", "e30=")]));
    world.buckets.down(true);
    for message in [&message, &notification("m-2", KEY)] {
        let error = world.record(message).await.expect_err("an unavailable bucket");
        assert!(error.to_string().contains("SlowDown"), "{error}");
    }
    assert_eq!(world.rows().await, [json!(null); 0]);
    world.buckets.down(false);
    world.record(&message).await.expect("recorded");
    assert!(world.row().await.payload_file.is_some());
}

/// Returns the row's kind, error message and payload file.
fn unreadable(row: &FailureRow) -> (Value, &str, Option<&PayloadFile>) {
    assert_eq!(row.attempts, 1, "{row:?}");
    (json!(row.kind), &row.error.message, row.payload_file.as_ref())
}

#[tokio::test]
async fn a_file_that_s3_refuses_is_recorded_once_as_unreadable() {
    for (status, code, is_recorded) in [
        (403, "AccessDenied", true),
        (403, "InvalidObjectState", true),
        (404, "NoSuchBucket", true),
        (301, "PermanentRedirect", true),
        (400, "KMS.DisabledException", true),
        // These concern the credentials, or are transient.
        (400, "ExpiredToken", false),
        (403, "RequestTimeTooSkewed", false),
        (503, "SlowDown", false),
        (500, "InternalError", false),
    ] {
        let world = World::start().await;
        world.buckets.refuse(Some((status, code)));
        let message = notification("m-1", KEY);
        let recorded = world.record(&message).await;
        assert_eq!(recorded.is_ok(), is_recorded, "{code}: {recorded:?}");
        if !is_recorded {
            assert_eq!(world.rows().await, [json!(null); 0], "{code}");
            continue;
        }
        world.record(&message).await.expect("no change");
        let row = world.row().await;
        let (kind, message, file) = unreadable(&row);
        assert_eq!(kind, "UNREADABLE");
        assert!(message.contains(KEY) && message.contains(BUCKET), "{message}");
        assert!(message.contains(code), "{message}");
        assert_eq!(file.expect("a location").key, KEY);
        // Once the file can be read, another notification records its content.
        world.buckets.refuse(None);
        world.buckets.put(BUCKET, KEY, file_with_one_record());
        world.record(&notification("m-2", KEY)).await.expect("recorded");
        assert_eq!(world.rows().await.len(), 2, "{code}");
    }
}

fn file_with_one_record() -> String {
    file(&[record("1", "e30=")])
}

#[tokio::test]
async fn a_file_that_s3_does_not_return_is_unreadable_after_20_receives() {
    let world = World::start().await;
    world.buckets.down(true);
    let mut message = notification("m-1", KEY);
    let count = "ApproximateReceiveCount".to_owned();
    message.attributes.insert(count.clone(), "19".to_owned());
    let error = world.record(&message).await.expect_err("a retry");
    assert!(error.to_string().contains("SlowDown"), "{error}");
    message.attributes.insert(count, "20".to_owned());
    world.record(&message).await.expect("recorded");
    let row = world.row().await;
    let (kind, message, file) = unreadable(&row);
    assert_eq!((kind, file.expect("a location").key.as_str()), (json!("UNREADABLE"), KEY));
    assert!(message.contains("could not be read in 20 attempts"), "{message}");
}

#[tokio::test]
async fn a_file_that_is_too_large_or_has_too_many_records_is_unreadable() {
    let max = vec![json!({}); 10_000];
    let too_many = vec![json!({}); 10_001];
    assert_eq!(parse_file(&file(&max)).len(), 10_000);
    assert_eq!(parse_file(&file(&too_many)).len(), 1);

    let world = World::start().await;
    world.buckets.put(BUCKET, KEY, vec![b' '; MAX_FILE_BYTES + 1]);
    world.record(&notification("m-1", KEY)).await.expect("recorded");
    let row = world.row().await;
    let (kind, message, _) = unreadable(&row);
    assert_eq!(kind, "UNREADABLE");
    assert!(message.contains("has more than 16777216 bytes"), "{message}");
}

fn parse_file(content: &str) -> Vec<FailedWork> {
    let location = PayloadFile { bucket: BUCKET.to_owned(), key: KEY.to_owned() };
    parse::file(ENVIRONMENT, &location, content.as_bytes())
}

#[tokio::test]
async fn a_notification_of_a_file_that_can_not_exist_is_kept_unchanged() {
    for (bucket, key) in
        [("", KEY), (BUCKET, ""), (BUCKET, &*"k".repeat(1_025)), (&*"b".repeat(64), KEY)]
    {
        let world = World::start().await;
        let message = notification_of("m-1", bucket, key);
        world.record(&message).await.expect("recorded");
        let row = world.row().await;
        assert_eq!((json!(row.kind), &row.payload), (json!("UNREADABLE"), &message.body));
    }
}

#[tokio::test]
async fn a_message_whose_row_the_table_refuses_is_recorded_as_unreadable() {
    // The execution's ARN alone is too large for a row.
    let world = World::start().await;
    let body = execution(&"x".repeat(500_000)).to_string();
    let message = message("onboarding-failures", "m-1", 0, body);
    world.record(&message).await.expect("recorded");
    world.record(&message).await.expect("no change");
    let row = world.row().await;
    let (kind, message, _) = unreadable(&row);
    assert_eq!(kind, "UNREADABLE");
    assert!(
        message.starts_with("the table refused the row of this ExecutionFailed failure"),
        "{message}"
    );
    let input: Value =
        serde_json::from_str(row.payload.as_deref().expect("the input")).expect("JSON");
    assert_eq!(input["siteId"], json!(saga("a").site_id));

    // The existing row can't be read.
    let world = World::start().await;
    world.record(&failed("m-1", 0)).await.expect("recorded");
    let mut broken = world.rows().await.remove(0);
    broken["firstAt"] = "yesterday".into();
    world.dynamo.put(FAILURES, broken).await;
    world.record(&failed("m-1", 0)).await.expect("recorded");
    assert_eq!(world.rows().await.len(), 2);
}

#[test]
fn only_the_message_that_can_not_be_recorded_fails() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let step = step(cloud.table(FAILURES), &http::config("http://nowhere"));
        cloud.throttle(vec!["site-b".to_owned()], Duration::from_mins(1));
        let batch = ["site-a", "site-b", "site-c"].map(|site| {
            let body = invocation(&json!({ "site": site }), Some("no"));
            (site, message("telemetry-failures", site, 0, body.to_string()))
        });
        let failed = lambda::process_each(
            batch,
            Deadline::after(Duration::from_secs(20)),
            async |message| step.handle(&message, noon(0)).await.map_err(|error| error.to_string()),
        );
        let failed = Box::pin(failed).await;
        let ids: Vec<_> = failed.iter().map(|failed| failed.id).collect();
        assert_eq!(ids, ["site-b"], "{failed:?}");
        assert_eq!(cloud.rows(FAILURES).len(), 2);
    });
}

#[tokio::test]
async fn a_row_keeps_a_limited_number_of_message_ids() {
    let world = World::start().await;
    for index in 0..250 {
        world.record(&failed(&format!("m-{index}"), index)).await.expect("recorded");
    }
    world.record(&failed("m-249", 249)).await.expect("no change");
    let row = world.row().await;
    assert_eq!(row.attempts, 250);
    assert!(row.messages.len() <= 100, "{}", row.messages.len());
}

/// Records a message and returns the only row, with its kind and source.
async fn recorded_as(message: &SqsMessage) -> (FailureRow, String, String) {
    let world = World::start().await;
    world.record(message).await.expect("recorded");
    let row = world.row().await;
    let kind = json!(row.kind).as_str().expect("a kind").to_owned();
    (row.clone(), kind, row.source)
}

#[tokio::test]
async fn an_event_that_could_not_be_published_to_a_topic_is_kept_with_the_reason() {
    let body = json!({
        "detail-type": "StockLow",
        "source": "fieldstation.inventory",
        "detail": { "data": { "metric": "water_ph", "quantity": 3, "limit": 10 } },
    });
    let topic = "arn:aws:sns:eu-central-1:123456789012:fieldstation-prod-stock";
    let dead_letter =
        |id: &str| undelivered(message("inventory-failures", id, 0, body.to_string()), topic);
    let world = World::start().await;
    world.record(&dead_letter("m-1")).await.expect("recorded");
    world.record(&dead_letter("m-2")).await.expect("the same event");
    let row = world.row().await;
    assert_eq!((row.source.as_str(), json!(row.kind)), ("inventory-failures", json!("UNREADABLE")));
    assert_eq!(row.payload.as_deref(), Some(body.to_string().as_str()));
    let error = json!(row.error);
    assert_eq!(error["name"], "NotPublished");
    let text = error["message"].as_str().expect("a message");
    assert!(text.contains("the topic stock: "), "{text}");
    assert!(text.contains("NO_PERMISSIONS"), "{text}");

    // A topic of another environment is not ours, so the message is not interpreted.
    let other = topic.replace("fieldstation-prod", "another");
    let (row, ..) = recorded_as(&undelivered(dead_letter("m-1"), &other)).await;
    assert_eq!(json!(row.error)["name"], "Unreadable");
}

#[tokio::test]
async fn messages_in_one_queue_become_failures_of_the_functions_that_they_name() {
    let body = event();
    let failed = |queue: &str, function: &str| {
        message(queue, "m-1", 0, invocation_of(function, &body, Some("no")).to_string())
    };
    let teardown = || message("onboarding-failures", "m-1", 0, execution("nested").to_string());
    let quarantine_message = |queue: &str, source: &str| {
        message(queue, "m-1", 0, quarantined(source, &record("1", "e30=")).to_string())
    };
    let command = json!({ "taskToken": "AQC", "command": { "siteId": saga("a").site_id } });
    let command = |queue: &str| message(queue, "m-1", 0, command.to_string());
    for (message, kind, source, id) in [
        // One queue has messages of three functions and a state machine. The alias may be missing.
        (
            failed("onboarding-failures", "start-onboarding:live"),
            "FUNCTION_FAILED",
            "start-onboarding",
            "b6bc2527-5048-5a79-9555-5f5afcbdaff0",
        ),
        (
            failed("onboarding-failures", "check-sagas"),
            "FUNCTION_FAILED",
            "check-sagas",
            "44beaa36-227f-57e6-95e4-e50ccb899ac0",
        ),
        // EventBridge could not deliver the event of an execution to a function.
        (
            undelivered(teardown(), &format!("{FUNCTIONS}recover-onboarding:live")),
            "NOT_DELIVERED",
            "recover-onboarding",
            "def30d84-c7af-560f-9a28-0e4917a9e8dc",
        ),
        (teardown(), "EXECUTION_FAILED", "site-teardown", "baee367f-d952-5495-a63a-9c4e65882b8b"),
        // The target of the rule is the queue itself.
        (
            undelivered(teardown(), &format!("{QUEUES}onboarding-failures")),
            "EXECUTION_FAILED",
            "site-teardown",
            "baee367f-d952-5495-a63a-9c4e65882b8b",
        ),
        (
            failed("telemetry-failures", "project-sensors:7"),
            "FUNCTION_FAILED",
            "project-sensors",
            "4096b341-0edd-52ca-938c-8a69a16c1253",
        ),
        (
            quarantine_message("telemetry-failures", "store-readings"),
            "QUARANTINED",
            "store-readings",
            "28c357d5-90c5-59c5-9990-f5385b9e0574",
        ),
        (
            quarantine_message("events-failures", "publish-events"),
            "QUARANTINED",
            "publish-events",
            "476fde72-0232-5731-8281-774fc6b4807d",
        ),
        (
            command("initialize-subscription-failures"),
            "DEAD_LETTER",
            "initialize-subscription",
            "b3f94040-3440-5475-9032-391075735b1b",
        ),
        (
            command("cancel-subscription-failures"),
            "DEAD_LETTER",
            "cancel-subscription",
            "19e5f156-35d1-5cb4-82a7-0dfc1040cc77",
        ),
    ] {
        let (row, as_kind, as_source) = recorded_as(&message).await;
        assert_eq!((&*as_kind, &*as_source), (kind, source), "{row:?}");
        // Version 1, which had a queue per function, used the same id for the same work.
        assert_eq!(row.id.to_string(), id, "{source}");
    }
}

#[tokio::test]
async fn a_message_that_names_no_source_of_the_environment_is_unreadable() {
    let body = event();
    let failed = |function: &str| invocation_of(function, &body, Some("no"));
    let staging = |arn: &Value| arn.as_str().expect("text").replace("-prod-", "-staging-");
    let mut other_environment = failed("import-site:live");
    let arn = staging(&other_environment["requestContext"]["functionArn"]);
    other_environment["requestContext"]["functionArn"] = arn.into();
    let mut no_function = failed("import-site");
    no_function["requestContext"].as_object_mut().expect("fields").remove("functionArn");
    let mut other_machine = execution("a");
    let arn = format!("{}", other_machine["detail"]["stateMachineArn"]);
    other_machine["detail"]["stateMachineArn"] =
        arn.trim_matches('"').replace("site-teardown", "site-onboarding").into();
    let mut no_source = quarantined("store-readings", &record("1", "e30="));
    no_source.as_object_mut().expect("fields").remove("source");
    for body in [
        other_environment,
        no_function,
        failed("Import_Site"),
        other_machine,
        no_source,
        quarantined("", &record("1", "e30=")),
        quarantined("../store-readings", &record("1", "e30=")),
        quarantined(&"x".repeat(65), &record("1", "e30=")),
        // A command in a queue that has no commands.
        json!({ "taskToken": "AQC", "command": {} }),
        // A notification of S3 in a queue that has none.
        serde_json::from_str(notification("m-1", KEY).body.as_deref().expect("a body"))
            .expect("JSON"),
    ] {
        let message = message("billing-failures", "m-1", 0, body.to_string());
        let (row, kind, source) = recorded_as(&message).await;
        assert_eq!((&*kind, &*source), ("UNREADABLE", "billing-failures"), "{row:?}");
        assert_eq!(row.payload, Some(body.to_string()));
    }
    // EventBridge could not deliver to a function of another environment, or does not name the target.
    for target in ["arn:aws:lambda:eu-central-1:123456789012:function:import-site", ""] {
        let message = undelivered(message("sites-failures", "m-1", 0, body.to_string()), target);
        let (_, kind, source) = recorded_as(&message).await;
        assert_eq!((&*kind, &*source), ("UNREADABLE", "sites-failures"), "{target}");
    }
    // The source is the function whose command queue has these dead letters.
    let message = message("cancel-subscription-failures", "m-1", 0, "no command");
    let (_, kind, source) = recorded_as(&message).await;
    assert_eq!((&*kind, &*source), ("UNREADABLE", "cancel-subscription"));
}

#[tokio::test]
async fn a_teardown_event_that_was_for_a_function_repairs_nothing() {
    let world = World::start().await;
    let failure = message("onboarding-failures", "m-1", 0, execution("nested").to_string());
    world.record(&failure).await.expect("recorded");
    let mut ended = execution("recovery");
    ended["detail"]["status"] = "SUCCEEDED".into();
    let ended = message("onboarding-failures", "m-2", 9, ended.to_string());
    let target = format!("{FUNCTIONS}recover-onboarding:live");
    world.record(&undelivered(ended.clone(), &target)).await.expect("recorded");
    let statuses = async || -> BTreeMap<String, Value> {
        let rows = world.rows().await;
        let status = |row: &Value| {
            (row["source"].as_str().expect("a source").to_owned(), row["status"].clone())
        };
        rows.iter().map(status).collect()
    };
    let expected = |teardown: &str| {
        BTreeMap::from([
            ("recover-onboarding".to_owned(), json!("OPEN")),
            ("site-teardown".to_owned(), json!(teardown)),
        ])
    };
    assert_eq!(statuses().await, expected("OPEN"));
    // The target is the queue, which now has the event.
    let target = format!("{QUEUES}onboarding-failures");
    world.record(&undelivered(ended, &target)).await.expect("repaired");
    assert_eq!(statuses().await, expected("REPLAYED"));
}

#[tokio::test]
async fn a_file_is_recorded_for_the_function_that_it_names() {
    let file_of = |function: &str| {
        let mut content: Value = serde_json::from_str(&file_with_one_record()).expect("JSON");
        content["requestContext"]["functionArn"] = function.into();
        content.to_string()
    };
    // The model of a mapping, which is compared with AWS's documentation, writes such files.
    let model = include_str!("../../../tests/testkit/tests/goldens/failure-destination.json");
    for (content, source) in [
        (file_of(&format!("{FUNCTIONS}store-readings:live")), "store-readings"),
        (file_of(&format!("{FUNCTIONS}detect-breaches")), "detect-breaches"),
        (model.replace(":function:", ":function:fieldstation-prod-"), "consumer"),
    ] {
        let failures = parse_file(&content);
        let sources: Vec<_> = failures.iter().map(|it| (it.source.as_str(), it.kind)).collect();
        assert_eq!(sources, [(source, ledger::Kind::GivenUp)], "{content}");
    }
    for function in ["", "arn:aws:lambda:eu-central-1:123456789012:function:store-readings"] {
        let failures = parse_file(&file_of(function));
        let sources: Vec<_> = failures.iter().map(|it| (it.source.as_str(), it.kind)).collect();
        assert_eq!(sources, [("failure-files", ledger::Kind::Unreadable)], "{function}");
    }
}
