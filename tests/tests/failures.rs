//! Tests failures from their cause to the replay. Each failure is caused on the stack and found in the failures
//! table. After the cause is removed, `fieldctl` replays the failure, and the test checks that the work was
//! done exactly once.
//!
//! | Source                              | Cause                                | Resolution           | Real? |
//! |-------------------------------------|--------------------------------------|----------------------|-------|
//! | import-site                         | a malformed row in the site's place  | the row is deleted   | yes |
//! | import-site, not delivered          | EventBridge could not call it        | -                    | message by the test |
//! | receive-kits                        | a malformed row of the same delivery | the row is deleted   | yes |
//! | project-site                        | its table is unreachable             | rollback             | yes |
//! | start-onboarding                    | its state machine is unreachable     | rollback             | yes |
//! | project-sensors                     | its table is unreachable             | rollback             | yes |
//! | store-readings, quarantine          | a sensor is not yet in the register  | replay of project-sensors | yes |
//! | store-readings, quarantine, large   | a sensor's row is missing            | the row is restored  | yes |
//! | sweep-events, report-failures       | their table is unreachable           | rollback             | call by the test |
//! | check-sagas, check-consumers        | does not start                       | rollback             | call by the test |
//! | reconcile-subscriptions             | its table is unreachable             | rollback             | call by the test |
//! | recover-onboarding                  | its state machine is unreachable     | rollback             | yes |
//! | initialize-subscription, cancel-subscription | do not start                | rollback             | yes |
//! | publish-events, quarantine          | a row that is not an event           | none: it is discarded | yes |
//! | publish-events, quarantine          | an event that EventBridge refuses    | -                    | message by the test |
//! | store-readings, retries exhausted   | its table is unreachable, or it does not start | rollback   | yes |
//! | detect-breaches, publish-events, retries exhausted | their table is unreachable | rollback          | yes |
//! | site-teardown                       | a step's table is unreachable        | rollback             | yes |
//!
//! Where the last column says "by the test", the test makes the message or the schedule's call itself.
//!
//! A resource is unreachable, or a function does not start, because of a simulated bad deployment: the alias
//! `live` temporarily points to a version with a wrong setting. The rollback ends it.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "not every fault is brought about here")]
mod faults;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use aws_sdk_sqs::types::MessageAttributeValue;
use contracts::{
    Event, Metric, SensorId, SiteId, Timestamp,
    events::ReadingBreachedThreshold,
    names,
    readings::{Bundle, Sample, Series},
    saga::STEPS,
};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, sign},
    capture::{Capture, event_id},
    failures::Failure,
    inventory::{Inventory, SUPPLIER, delivery_id},
    log::{self, LoggedEvent},
    logger::send,
    readings::Quarantined,
    sites::{DECLINED_CARD, FORWARD, GOOD_CARD, Ids, UNDO, registration, residue},
    wait::{Look, TIMEOUT, until},
};
use tokio::sync::RwLock;
use uuid::Uuid;

use crate::faults::{Broken, Frozen, Visibility, WaitScale};

/// A broken function is broken for the whole stack, so a test that breaks one holds the write lock.
static STACK: RwLock<()> = RwLock::const_new(());

const METRIC: Metric = Metric::AirTemperature;
/// A metric that no site in this file has.
const DELIVERED: Metric = Metric::WindFromDirection;

const NO_TABLE: &str = "no-such-table";
const NO_MACHINE: &str = "arn:aws:states:us-east-1:000000000000:stateMachine:no-such-machine";

fn key() -> String {
    Uuid::new_v4().to_string()
}

async fn register(stack: &Stack, what: &str, card: &str) -> Result<Ids> {
    let name = format!("{what} {}", Uuid::new_v4().simple());
    stack.deliver(&[METRIC], 1).await?;
    let mut registration = registration(&name, &[METRIC], card);
    registration["sensors"][0]["max"] = json!(30.0);
    stack.register(&key(), &registration).await
}

/// Onboards a site, and returns it with its sensor once the sensor is in the register.
async fn in_service(stack: &Stack, what: &str) -> Result<(Ids, SensorId)> {
    let ids = register(stack, what, GOOD_CARD).await?;
    stack.site_active(ids.site_id).await?;
    log::published_story(stack, ids.onboarding_id).await?;
    let sensor = sensor(stack, ids).await?;
    stack.sensors_known([sensor]).await?;
    Ok((ids, sensor))
}

async fn sensor(stack: &Stack, ids: Ids) -> Result<SensorId> {
    let sensors = stack.sensors(ids.site_id).await?;
    Ok(sensors.first().context("a sensor")?.sensor_id)
}

/// Returns a bundle with one value for each minute.
fn bundle(ids: Ids, sensor_id: SensorId, id: &str, values: &[f64]) -> Result<Bundle> {
    let start: Timestamp = format!("2016-01-01T{id}:00Z").parse()?;
    let at = |minute: i64| start.plus_millis(minute * 60_000);
    let samples = (0..).map(at).zip(values).map(|(at, value)| Sample(at, *value)).collect();
    let series = vec![Series { sensor_id, samples }];
    Ok(Bundle { bundle_id: id.replace(':', "-").parse()?, site_id: ids.site_id, series })
}

/// Waits until the sensor has as many samples as these bundles. Checks that they are equal and that each bundle
/// has its own row.
async fn assert_stored(stack: &Stack, sensor: SensorId, bundles: &[&Bundle]) -> Result<()> {
    let sent: Vec<_> = bundles.iter().flat_map(|bundle| bundle.series[0].samples.clone()).collect();
    let samples = until(&format!("{} samples", sent.len()), TIMEOUT, async || {
        let samples = stack.samples(sensor, "limit=10000").await?;
        Ok(if samples.len() >= sent.len() {
            Look::Found(samples)
        } else {
            Look::Saw(samples.len())
        })
    })
    .await?;
    assert_eq!(samples, sent);
    assert_eq!(stack.series_rows(sensor).await?.len(), bundles.len());
    Ok(())
}

/// Checks that the main pipeline works: a site is onboarded and its readings are stored.
async fn assert_all_else_runs(stack: &Stack) -> Result<()> {
    let (ids, sensor) = in_service(stack, "the main road").await?;
    let bundle = bundle(ids, sensor, "00:00", &[1.0, 2.0])?;
    send(stack, &[&bundle]).await?;
    assert_stored(stack, sensor, &[&bundle]).await
}

/// Checks that the failure is new and has that kind and error.
fn assert_new(failure: &Failure, kind: &str, error: &str) -> Result<()> {
    failure.stands("OPEN", 1, 0)?;
    ensure!((failure.kind.as_str(), failure.error.name.as_str()) == (kind, error), "{failure}");
    ensure!(!failure.error.message.is_empty(), "{failure} tells no reason");
    Ok(())
}

async fn put_row(stack: &Stack, table: &str, row: &Value) -> Result<()> {
    let item = serde_dynamo::to_item(row)?;
    let put = stack.dynamodb().put_item().table_name(stack.named(table));
    put.set_item(Some(item)).send().await?;
    Ok(())
}

async fn delete_row(stack: &Stack, table: &str, key: &Value) -> Result<()> {
    let key = serde_dynamo::to_item(key)?;
    let delete = stack.dynamodb().delete_item().table_name(stack.named(table));
    delete.set_key(Some(key)).send().await?;
    Ok(())
}

/// Calls an AWS service whose SDK would take too long to compile for these few calls, and returns the response
/// body.
async fn call(
    stack: &Stack,
    service: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Result<String> {
    let client = reqwest::Client::new();
    let mut request = client.request(method, stack.endpoint().join(path)?).body(body.clone());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.build()?;
    sign(&mut request, service, body.as_bytes())?;
    let answer = client.execute(request).await?;
    ensure!(answer.status().is_success(), "{path}: {answer:?}");
    Ok(answer.text().await?)
}

/// Sends a message to a queue of the stack.
async fn send_message(
    stack: &Stack,
    queue: &str,
    body: &Value,
    attributes: &[(&str, &str)],
) -> Result<()> {
    let url = stack.queue_url(queue).await?;
    let mut message = stack.sqs().send_message().queue_url(url).message_body(body.to_string());
    for (name, value) in attributes {
        let text = MessageAttributeValue::builder().data_type("String").string_value(*value);
        message = message.message_attributes(*name, text.build()?);
    }
    message.send().await?;
    Ok(())
}

/// Returns an event of another system in the form in which EventBridge passes it to a function.
fn event_of(source: &str, detail_type: &str, detail: &Value) -> Value {
    json!({
        "version": "0",
        "id": key(),
        "detail-type": detail_type,
        "source": source,
        "account": "000000000000",
        "time": "2026-11-21T09:00:00Z",
        "region": "us-east-1",
        "resources": [],
        "detail": detail,
    })
}

#[tokio::test]
async fn a_registration_that_meets_a_malformed_row_is_replayed() -> Result<()> {
    let _turn = STACK.read().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let number = key();
    let site_id = SiteId::registered("noaa.surfrad", &number);
    let row_key = json!({ "siteId": site_id, "row": "SITE" });
    let broken = json!({ "siteId": site_id, "row": "SITE", "nonsense": "of a defect of ours" });
    put_row(&stack, names::SITES, &broken).await?;
    let site = registration("in front of a broken row", &[METRIC], GOOD_CARD);
    let detail = json!({ "registrationId": number, "site": site });
    let event = stack.put_event("noaa.surfrad", "SiteRegistrationRequested", &detail).await?;

    let failure = stack.failure_about("import-site", &number).await?;
    assert_new(&failure, "FUNCTION_FAILED", "Internal")?;
    let payload = failure.payload()?;
    assert_eq!((&payload["id"], &payload["detail"]), (&json!(event), &detail), "whole");
    assert_all_else_runs(&stack).await?;

    delete_row(&stack, names::SITES, &row_key).await?;
    stack.replay_well(&failure).await?;
    let site = stack.site_active(site_id).await?;
    let ids: Ids = serde_json::from_value(json!({
        "siteId": site_id,
        "onboardingId": site["onboarding"]["onboardingId"],
    }))?;
    stack.onboarded_once(ids).await?;
    // A failure that was replayed is not replayed again.
    assert_eq!(stack.replay(&[&failure.id])?[&failure.id], "SKIPPED");
    stack.failure(&failure.id).await?.stands("REPLAYED", 1, 1)
}

#[tokio::test]
async fn a_registration_that_was_not_delivered_is_replayed() -> Result<()> {
    let _turn = STACK.read().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let number = key();
    let site = registration("not delivered", &[METRIC], GOOD_CARD);
    let detail = json!({ "registrationId": number, "site": site });
    let event = event_of("noaa.surfrad", "SiteRegistrationRequested", &detail);
    let function = stack.function_arn("import-site");
    let attributes = [
        ("ERROR_CODE", "NO_PERMISSIONS"),
        ("ERROR_MESSAGE", "Lambda refused the call"),
        ("RULE_ARN", "arn:aws:events:us-east-1:000000000000:rule/bus/import-site"),
        ("TARGET_ARN", &function),
        ("EXHAUSTED_RETRY_CONDITION", "MaximumRetryAttempts"),
        ("RETRY_ATTEMPTS", "185"),
    ];
    send_message(&stack, "sites-failures", &event, &attributes).await?;

    let failure = stack.failure_about("import-site", &number).await?;
    assert_new(&failure, "NOT_DELIVERED", "NO_PERMISSIONS")?;
    assert!(failure.error.message.contains("Lambda refused the call"), "{failure}");
    assert_eq!(failure.payload()?, event, "whole");

    stack.replay_well(&failure).await?;
    let site_id = SiteId::registered("noaa.surfrad", &number);
    let site = stack.site_active(site_id).await?;
    let onboarding = site["onboarding"]["onboardingId"].clone();
    let ids = json!({ "siteId": site_id, "onboardingId": onboarding });
    stack.onboarded_once(serde_json::from_value(ids)?).await?;
    Ok(())
}

#[tokio::test]
async fn a_delivery_is_replayed_into_the_stock_once() -> Result<()> {
    let _turn = STACK.read().await;
    let stack = Stack::connect().await?;
    let number = key();
    let id = delivery_id(&number);
    // The row lacks the time of the delivery.
    put_row(&stack, names::INVENTORY, &json!({ "id": id, "kits": [] })).await?;
    let kits = async || {
        let inventory = Inventory::read(&stack).await?;
        anyhow::Ok(inventory.stock.get(DELIVERED.name()).copied().unwrap_or_default())
    };
    let before = kits().await?;
    let detail = json!({ "deliveryId": number, "kits": [{ "metric": DELIVERED, "quantity": 3 }] });
    stack.put_event(SUPPLIER, contracts::inbound::KITS_DELIVERED, &detail).await?;

    let failure = stack.failure_about("receive-kits", &number).await?;
    assert_new(&failure, "FUNCTION_FAILED", "Internal")?;
    assert!(failure.error.message.contains(&id), "the row is not named in {failure}");
    assert_eq!(failure.payload()?["detail"], detail, "whole");
    assert_eq!(kits().await?, before);

    delete_row(&stack, names::INVENTORY, &json!({ "id": id })).await?;
    stack.replay_well(&failure).await?;
    assert_eq!(kits().await?, before + 3);
    Ok(())
}

#[tokio::test]
async fn step_events_that_the_read_model_missed_are_replayed() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let broken = Broken::version(&stack, "project-site", "SITES_TABLE", NO_TABLE).await?;
    let (ids, failures) = broken
        .during(async || {
            let ids = register(&stack, "missed", GOOD_CARD).await?;
            let onboarding = ids.onboarding_id.to_string();
            Ok((ids, stack.failures_until("project-site", &onboarding, 4).await?))
        })
        .await?;

    let mut told: BTreeMap<String, &Failure> = BTreeMap::new();
    for failure in &failures {
        assert_new(failure, "FUNCTION_FAILED", "Internal")?;
        assert_eq!(failure.correlation_id, Some(ids.onboarding_id.to_string()), "{failure}");
        let kind = failure.payload()?["detail-type"].as_str().unwrap_or_default().to_owned();
        told.insert(kind, failure);
    }
    let kinds: Vec<_> = told.keys().map(String::as_str).collect();
    let mut projected: Vec<_> =
        STEPS.iter().filter(|step| !step.is_of_site()).map(|step| step.done).collect();
    projected.sort_unstable();
    assert_eq!(kinds, projected);
    // The onboarding still succeeds. Only the read model lags behind.
    let execution = stack.onboarding_over(ids.onboarding_id).await?;
    assert_eq!(execution.status, ExecutionStatus::Succeeded, "{execution:?}");

    let onboarding = ids.onboarding_id.to_string();
    let which = ["--source", "project-site", "--correlation", &onboarding];
    let outcomes = stack.replay(&which)?;
    assert_eq!(outcomes.len(), failures.len(), "{outcomes:?}");
    for failure in &failures {
        assert_eq!(outcomes.get(&failure.id).map(String::as_str), Some("REPLAYED"));
        stack.failure(&failure.id).await?.stands("REPLAYED", 1, 1)?;
    }
    stack.onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn an_onboarding_that_was_not_started_is_replayed() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let broken = Broken::version(&stack, "start-onboarding", "SITE_ONBOARDING_ARN", NO_MACHINE);
    let (ids, failure) = broken
        .await?
        .during(async || {
            let ids = register(&stack, "not started", GOOD_CARD).await?;
            let onboarding = ids.onboarding_id.to_string();
            Ok((ids, stack.failure_about("start-onboarding", &onboarding).await?))
        })
        .await?;
    assert_new(&failure, "FUNCTION_FAILED", "Internal")?;
    assert_eq!(failure.payload()?["detail"]["data"]["siteId"], json!(ids.site_id));
    assert_eq!(failure.correlation_id, Some(ids.onboarding_id.to_string()));
    assert!(stack.onboarding(ids.onboarding_id).await?.is_none());
    assert_all_else_runs(&stack).await?;

    stack.replay_well(&failure).await?;
    stack.onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn readings_of_an_unknown_sensor_stay_open_until_it_is_registered() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let broken = Broken::version(&stack, "project-sensors", "READINGS_TABLE", NO_TABLE).await?;
    let (ids, unheard) = broken
        .during(async || {
            let ids = register(&stack, "not known", GOOD_CARD).await?;
            let onboarding = ids.onboarding_id.to_string();
            Ok((ids, stack.failure_about("project-sensors", &onboarding).await?))
        })
        .await?;
    assert_new(&unheard, "FUNCTION_FAILED", "Internal")?;
    let sensor = sensor(&stack, ids).await?;
    assert_eq!(unheard.payload()?["detail"]["data"]["sensors"][0]["sensorId"], json!(sensor));
    stack.onboarded_once(ids).await?;

    let bundle = bundle(ids, sensor, "00:00", &[1.0, 2.0])?;
    send(&stack, &[&bundle]).await?;
    let unknown = stack.quarantined(&ids.site_id.to_string(), 1).await?;
    let [unknown] = &unknown[..] else { anyhow::bail!("not one: {unknown:?}") };
    assert_eq!(serde_json::from_slice::<Bundle>(&unknown.payload()?)?, bundle, "whole");
    let unknown = &unknown.failure;
    assert_new(unknown, "QUARANTINED", "UnknownSensor")?;

    // The replay comes too early: it reports the failure itself, and the row keeps its error.
    assert_eq!(stack.replay(&[&unknown.id])?[&unknown.id], "FAILED");
    let again = stack.failure(&unknown.id).await?;
    again.stands("OPEN", 1, 1)?;
    assert_eq!((&again.first_at, &again.error), (&unknown.first_at, &unknown.error));
    let of_site = stack.failures_about("store-readings", &ids.site_id.to_string()).await?;
    assert_eq!(of_site.len(), 1, "it is the same failure: {of_site:?}");

    stack.replay_well(&unheard).await?;
    stack.sensors_known([sensor]).await?;
    stack.replay_well(&again).await?;
    assert_stored(&stack, sensor, &[&bundle]).await
}

#[tokio::test]
async fn readings_too_large_for_a_row_are_replayed_from_their_file() -> Result<()> {
    let _turn = STACK.read().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = in_service(&stack, "large").await?;
    let rows = stack.rows_with(names::READINGS, "sensorId", &sensor.to_string()).await?;
    let [register] = &rows[..] else { anyhow::bail!("more than the register: {rows:?}") };
    let row_key = json!({ "sensorId": sensor, "row": "SENSOR" });
    delete_row(&stack, names::READINGS, &row_key).await?;
    let values: Vec<_> = (0..12_000).map(f64::from).collect();
    let bundle = bundle(ids, sensor, "00:00", &values)?;
    send(&stack, &[&bundle]).await?;

    let site = ids.site_id.to_string();
    let quarantined = stack.quarantined(&site, 1).await?;
    assert_eq!(serde_json::from_slice::<Bundle>(&quarantined[0].payload()?)?, bundle, "whole");
    let failure = &quarantined[0].failure;
    assert_new(failure, "QUARANTINED", "UnknownSensor")?;
    assert!(failure.payload_file.is_some(), "{failure} is in its row");

    put_row(&stack, names::READINGS, register).await?;
    stack.replay_well(failure).await?;
    let samples = stack.samples(sensor, "limit=10000").await?;
    assert_eq!(samples, bundle.series[0].samples);
    Ok(())
}

/// Makes a scheduled function fail, and replays the failure after the rollback.
async fn assert_schedule_is_replayed(
    stack: &Stack,
    function: &str,
    (variable, value): (&str, &str),
    meanwhile: impl AsyncFn() -> Result<()>,
    error: &str,
) -> Result<()> {
    let event = event_of("aws.events", "Scheduled Event", &json!({}));
    let id = event["id"].as_str().unwrap_or_default();
    let name = stack.named(function);
    let broken = Broken::version(stack, function, variable, value).await?;
    let failure = broken
        .during(async || {
            meanwhile().await?;
            let path = format!("/2015-03-31/functions/{name}:live/invocations");
            let headers = [("x-amz-invocation-type", "Event")];
            call(stack, "lambda", Method::POST, &path, &headers, event.to_string()).await?;
            stack.failure_about(function, id).await
        })
        .await?;
    assert_new(&failure, "FUNCTION_FAILED", error)?;
    assert_eq!(failure.payload()?, event, "whole");
    stack.replay_well(&failure).await
}

#[tokio::test]
async fn checks_that_failed_are_replayed() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let nothing = async || Ok(());
    let check = "check-sagas";
    let no_budget = ("SAGA_BUDGET_SECONDS", "a while");
    // On AWS the error is `Runtime.ExitError`.
    assert_schedule_is_replayed(&stack, check, no_budget, nothing, "Runtime.Unknown").await?;
    let consumers = "check-consumers";
    let no_url = ("QUEUES_URL", "");
    assert_schedule_is_replayed(&stack, consumers, no_url, nothing, "Runtime.Unknown").await?;
    let reconcile = "reconcile-subscriptions";
    let no_table = ("BILLING_TABLE", NO_TABLE);
    assert_schedule_is_replayed(&stack, reconcile, no_table, nothing, "Internal").await?;
    let report = "report-failures";
    let no_table = ("FAILURES_TABLE", NO_TABLE);
    assert_schedule_is_replayed(&stack, report, no_table, nothing, "Internal").await
}

/// Marks an event as unpublished, as if EventBridge had not accepted it, and returns its row.
async fn unpublish(stack: &Stack, event: &LoggedEvent, occurred_at: &str) -> Result<Value> {
    let rows = stack.rows_with(names::EVENTS, "entity", &event.entity).await?;
    let row = rows.into_iter().find(|row| row["sequence"] == event.sequence);
    let mut row = row.context("the event's row")?;
    let fields = row.as_object_mut().context("a row")?;
    fields.remove("publishedAt");
    fields.insert("unpublished".to_owned(), json!("0"));
    fields.insert("occurredAt".to_owned(), json!(occurred_at));
    put_row(stack, names::EVENTS, &row).await?;
    Ok(row)
}

/// Checks that each of these events is now marked as published and was delivered once on the bus.
async fn assert_published_once(
    stack: &Stack,
    capture: Capture,
    ids: Ids,
    events: &[&LoggedEvent],
) -> Result<()> {
    let story = log::story(stack, ids.onboarding_id).await?;
    let waiting: Vec<_> = story.iter().filter(|event| !event.is_published()).collect();
    assert!(waiting.is_empty(), "the replay published less: {waiting:?}");
    let mut must_be = events.iter().map(|event| event.id()).collect::<Result<Vec<_>>>()?;
    let heard = |captured: &[Value]| -> Vec<String> {
        let of_ours = |id: &&str| must_be.iter().any(|event| event == id);
        captured.iter().map(event_id).filter(of_ours).map(str::to_owned).collect()
    };
    let enough = |captured: &[Value]| heard(captured).len() >= events.len();
    let mut captured = capture.take_until(stack, TIMEOUT, enough).await?;
    // A duplicate would arrive during this time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    captured.extend(capture.take(stack).await?);
    capture.stop(stack).await?;
    let mut heard = heard(&captured);
    heard.sort();
    must_be.sort();
    assert_eq!(heard, must_be);
    Ok(())
}

#[tokio::test]
async fn a_sweep_is_replayed_and_publishes_once() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let (ids, _) = in_service(&stack, "swept").await?;
    let story = log::published_story(&stack, ids.onboarding_id).await?;
    let event = story.last().context("an event")?;
    let capture = Capture::start(&stack).await?;
    // A sweep publishes events that are older than a minute.
    let long_ago = Timestamp::now().plus_millis(-3_600_000).to_string();
    let meanwhile = async || unpublish(&stack, event, &long_ago).await.map(drop);
    let sweep = "sweep-events";
    let no_table = ("EVENTS_TABLE", NO_TABLE);
    assert_schedule_is_replayed(&stack, sweep, no_table, meanwhile, "Internal").await?;
    assert_published_once(&stack, capture, ids, &[event]).await
}

/// Returns the record of the events table's stream for the insertion of a row.
fn inserted(row: &Value) -> Result<Value> {
    let typed = |value: &Value| match value {
        Value::Number(number) => json!({ "N": number.to_string() }),
        value => json!({ "S": value }),
    };
    let fields = row.as_object().context("a row")?;
    let image: serde_json::Map<_, _> =
        fields.iter().map(|(name, value)| (name.clone(), typed(value))).collect();
    Ok(json!({
        "eventID": Uuid::new_v4().simple().to_string(),
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_795_251_600,
            "Keys": { "entity": image["entity"], "sequence": image["sequence"] },
            "NewImage": image,
            "SequenceNumber": "4421584500000000017450439091",
            "SizeBytes": 812,
            "StreamViewType": "NEW_IMAGE",
        },
        "eventSourceARN": "arn:aws:dynamodb:us-east-1:000000000000:table/events/stream/2026-11-21",
    }))
}

/// A consumer of a stream: its name in the failures table, and its name in the template.
type Consumer<'a> = (&'a str, &'a str);

const STORE_READINGS: Consumer = ("store-readings", "StoreReadings");
const DETECT_BREACHES: Consumer = ("detect-breaches", "DetectBreaches");
const PUBLISH_EVENTS: Consumer = ("publish-events", "PublishEvents");

/// Runs the work while a stream's mapping gives up on records after one retry.
async fn with_one_retry<T>(
    stack: &Stack,
    mapping: &str,
    work: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    let id = stack.physical_id(mapping).await?;
    let path = format!("/2015-03-31/event-source-mappings/{id}");
    let settings = call(stack, "lambda", Method::GET, &path, &[], String::new()).await?;
    let before = serde_json::from_str::<Value>(&settings)?["MaximumRetryAttempts"].clone();
    let set = async |retries: &Value| {
        let body = json!({ "MaximumRetryAttempts": retries }).to_string();
        call(stack, "lambda", Method::PUT, &path, &[], body).await
    };
    set(&json!(1)).await?;
    let outcome = work().await;
    set(&before).await?;
    outcome
}

/// Breaks a consumer with a wrong setting and starts some work. Returns the failures once the stream's mapping
/// has given up on `count` records. `begin` returns an id that these records contain.
async fn given_up(
    stack: &Stack,
    (source, name): Consumer<'_>,
    (variable, value): (&str, &str),
    count: usize,
    begin: impl AsyncFnOnce() -> Result<String>,
) -> Result<Vec<Failure>> {
    let broken = Broken::version(stack, source, variable, value).await?;
    let failures = broken
        .during(async || {
            with_one_retry(stack, &format!("{name}Mapping"), async || {
                let about = begin().await?;
                stack.failures_until(source, &about, count).await
            })
            .await
        })
        .await?;
    for failure in &failures {
        assert_new(failure, "GIVEN_UP", "RetryAttemptsExhausted")?;
    }
    Ok(failures)
}

/// Returns the failures of these bundles, on which the mapping of `store-readings` or `detect-breaches` gave
/// up. Checks that the records are as they were sent.
async fn bundles_given_up(
    stack: &Stack,
    consumer: Consumer<'_>,
    setting: (&str, &str),
    bundles: &[&Bundle],
) -> Result<Vec<Failure>> {
    let site = bundles[0].site_id.to_string();
    let begin = async || {
        send(stack, bundles).await?;
        Ok(site.clone())
    };
    let failures = given_up(stack, consumer, setting, bundles.len(), begin).await?;
    for failure in &failures {
        assert_eq!(failure.site_id.as_ref(), Some(&site), "{failure}");
        let bundle = Quarantined::of(failure.clone())?.payload()?;
        let bundle: Bundle = serde_json::from_slice(&bundle)?;
        assert!(bundles.contains(&&bundle), "no bundle like that was sent: {bundle:?}");
    }
    Ok(failures)
}

/// Returns the files of the records on which a mapping gave up, by their keys.
async fn failure_files(stack: &Stack, mapping: &str) -> Result<BTreeMap<String, Value>> {
    let bucket = stack.failures_bucket();
    let get = async |path: String| call(stack, "s3", Method::GET, &path, &[], String::new()).await;
    let listing = get(format!("/{bucket}?list-type=2&prefix=aws%2Flambda%2F{mapping}%2F")).await?;
    let mut files = BTreeMap::new();
    let keys = listing.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
    for key in keys {
        let file = get(format!("/{bucket}/{key}")).await?;
        files.insert(key.to_owned(), serde_json::from_str(&file)?);
    }
    Ok(files)
}

#[tokio::test]
async fn a_row_that_is_not_an_event_fails_its_replay_and_is_discarded() -> Result<()> {
    let _turn = STACK.read().await;
    let stack = Stack::connect().await?;
    let entity = format!("site#{}", key());
    let row = json!({ "entity": entity, "sequence": 1, "nonsense": "of a defect of ours" });
    put_row(&stack, names::EVENTS, &row).await?;
    let failure = stack.failure_about("publish-events", &entity).await?;
    assert_new(&failure, "QUARANTINED", "InvalidInput")?;
    let image = &failure.payload()?["dynamodb"]["NewImage"];
    assert_eq!(image["nonsense"]["S"], row["nonsense"], "whole: {image}");

    assert_eq!(stack.replay(&[&failure.id])?[&failure.id], "FAILED");
    stack.failure(&failure.id).await?.stands("OPEN", 1, 1)?;
    let discard = ["discard", &failure.id, "--note", "no event; the writer is mended", "--yes"];
    let told = stack.fieldctl_failures(&discard)?;
    assert_eq!(told[0]["discarded"], 1, "{told:?}");
    stack.failure(&failure.id).await?.stands("DISCARDED", 1, 1)?;
    let row_key = json!({ "entity": entity, "sequence": 1 });
    delete_row(&stack, names::EVENTS, &row_key).await
}

#[tokio::test]
async fn an_event_that_was_refused_is_replayed_and_published_once() -> Result<()> {
    let _turn = STACK.read().await;
    let stack = Stack::connect().await?;
    let (ids, _) = in_service(&stack, "refused").await?;
    let story = log::published_story(&stack, ids.onboarding_id).await?;
    let refused = story.first().context("an event")?;
    let capture = Capture::start(&stack).await?;

    // Too new to be published by a sweep.
    let ahead = Timestamp::now().plus_millis(3_600_000).to_string();
    let record = inserted(&unpublish(&stack, refused, &ahead).await?)?;
    let message = json!({
        "source": "publish-events",
        "error": "EventRefused",
        "reason": "NotAuthorizedForSourceException: Not authorized for the source.",
        "record": record,
    });
    send_message(&stack, "events-failures", &message, &[]).await?;
    let quarantined = stack.failure_about("publish-events", &refused.id()?).await?;
    assert_new(&quarantined, "QUARANTINED", "EventRefused")?;
    assert_eq!(quarantined.payload()?, record, "whole");
    stack.replay_well(&quarantined).await?;
    assert_published_once(&stack, capture, ids, &[refused]).await
}

#[tokio::test]
async fn an_event_that_was_given_up_on_is_replayed_and_published_once() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let name = format!("unpublished {}", Uuid::new_v4().simple());
    let registration = registration(&name, &[METRIC], GOOD_CARD);
    let mut registered = None;
    let begin = async || {
        let ids = stack.register(&key(), &registration).await?;
        registered = Some(ids);
        Ok(ids.onboarding_id.to_string())
    };
    let setting = ("EVENTS_TABLE", NO_TABLE);
    let failures = given_up(&stack, PUBLISH_EVENTS, setting, 1, begin).await?;
    let ids = registered.context("a site")?;
    assert!(stack.onboarding(ids.onboarding_id).await?.is_none(), "the event was published");

    stack.replay_well(&failures[0]).await?;
    stack.onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn readings_that_were_given_up_on_are_replayed_and_stored_once() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = in_service(&stack, "given up on").await?;
    let bundles = ["00:00", "01:00"].map(|id| bundle(ids, sensor, id, &[1.0, 2.0]));
    let bundles = bundles.into_iter().collect::<Result<Vec<_>>>()?;
    let bundles: Vec<_> = bundles.iter().collect();
    let setting = ("READINGS_TABLE", NO_TABLE);
    let failures = bundles_given_up(&stack, STORE_READINGS, setting, &bundles).await?;
    assert_eq!(stack.samples(sensor, "").await?, []);
    // The mapping continues with the next record.
    let next = bundle(ids, sensor, "02:00", &[3.0])?;
    send(&stack, &[&next]).await?;
    assert_stored(&stack, sensor, &[&next]).await?;

    for failure in &failures {
        stack.replay_well(failure).await?;
    }
    assert_stored(&stack, sensor, &[bundles, vec![&next]].concat()).await
}

#[tokio::test]
async fn a_batch_that_fails_is_split_and_given_up_record_by_record() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = in_service(&stack, "split").await?;
    let bundles = ["00:00", "01:00", "02:00"].map(|id| bundle(ids, sensor, id, &[1.0, 2.0]));
    let bundles = bundles.into_iter().collect::<Result<Vec<_>>>()?;
    let bundles: Vec<_> = bundles.iter().collect();
    let mapping = stack.physical_id("StoreReadingsMapping").await?;
    let before = failure_files(&stack, &mapping).await?;
    // The function does not start.
    let setting = ("READINGS_TABLE", "");
    let failures = bundles_given_up(&stack, STORE_READINGS, setting, &bundles).await?;

    let mut files = failure_files(&stack, &mapping).await?;
    files.retain(|key, _| !before.contains_key(key));
    assert_eq!(files.len(), bundles.len(), "{files:?}");
    for (key, file) in &files {
        assert!(key.starts_with(&format!("aws/lambda/{mapping}/shardId-")), "{key}");
        assert_eq!(file["KinesisBatchInfo"]["batchSize"], 1, "{file}");
        assert_eq!(file["requestContext"]["approximateInvokeCount"], 2, "{file}");
        assert_eq!(file["responseContext"]["functionError"], "Unhandled", "{file}");
    }
    for failure in &failures {
        stack.replay_well(failure).await?;
    }
    assert_stored(&stack, sensor, &bundles).await
}

#[tokio::test]
async fn a_breach_that_was_given_up_on_is_replayed_and_published_once() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = in_service(&stack, "unjudged").await?;
    let breach = bundle(ids, sensor, "00:00", &[20.0, 40.0])?;
    let setting = ("ALERTING_TABLE", NO_TABLE);
    let failures = bundles_given_up(&stack, DETECT_BREACHES, setting, &[&breach]).await?;
    assert_stored(&stack, sensor, &[&breach]).await?;
    let alerts = async || {
        let story = log::published_story(&stack, ids.onboarding_id).await?;
        let told = story.iter().filter(|event| event.kind == ReadingBreachedThreshold::TYPE);
        let told = told.map(|event| serde_json::from_str::<Value>(&event.detail));
        anyhow::Ok(told.collect::<std::result::Result<Vec<_>, _>>()?)
    };
    assert_eq!(alerts().await?, [] as [Value; 0]);

    stack.replay_well(&failures[0]).await?;
    let told = alerts().await?;
    assert_eq!(told.len(), 1, "{told:?}");
    let data = &told[0]["data"];
    assert_eq!((&data["value"], &data["at"]), (&json!(40.0), &json!("2016-01-01T00:01:00.000Z")));
    Ok(())
}

/// Causes a command of billing to become a dead letter, because its function does not start. The visibility
/// timeout is set to seconds, so that the test does not wait for the minutes of production.
async fn dead_letter(
    stack: &Stack,
    source: &str,
    begin: impl AsyncFn() -> Result<Ids>,
) -> Result<(Ids, Failure)> {
    // The queue has the same name as the function.
    let visibility = Visibility::set(stack, source, 2).await?;
    let broken = Broken::version(stack, source, "BILLING_TABLE", "").await?;
    let outcome = broken
        .during(async || {
            let ids = begin().await?;
            Ok((ids, stack.failure_about(source, &ids.onboarding_id.to_string()).await?))
        })
        .await;
    visibility.restore(stack).await?;
    let (ids, failure) = outcome?;
    assert_new(&failure, "DEAD_LETTER", "ReceivesExhausted")?;
    let payload = failure.payload()?;
    assert_eq!(payload["command"]["onboardingId"], json!(ids.onboarding_id), "whole: {payload}");
    assert!(payload["taskToken"].is_string(), "whole: {payload}");
    Ok((ids, failure))
}

#[tokio::test]
async fn a_dead_letter_of_a_subscription_is_replayed_and_paid_once() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let begin = async || register(&stack, "dead letter", GOOD_CARD).await;
    let (ids, failure) = dead_letter(&stack, names::INITIALIZE_SUBSCRIPTION, begin).await?;
    let execution = stack.onboarding(ids.onboarding_id).await?.context("an execution")?;
    assert_eq!(execution.status, ExecutionStatus::Running, "it waits: {execution:?}");
    assert_all_else_runs(&stack).await?;

    stack.replay_well(&failure).await?;
    stack.onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_cancellation_is_replayed() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    let (ids, _) = in_service(&stack, "dead cancellation").await?;
    let begin = async || {
        let answer = stack.call(Call::delete(format!("/sites/{}", ids.site_id))).await?;
        ensure!(answer.status == 202, "{answer}");
        Ok(ids)
    };
    let (_, failure) = dead_letter(&stack, names::CANCEL_SUBSCRIPTION, begin).await?;

    stack.replay_well(&failure).await?;
    stack.site_as(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE"))).await?;
    assert_eq!(residue(&stack, ids).await?, []);
    let story = log::published_story(&stack, ids.onboarding_id).await?;
    let told = vec!["SubscriptionInitialized", "SubscriptionCancelled"];
    assert_eq!(log::by_entity(&story).get("subscription"), Some(&told));
    Ok(())
}

/// Checks that a site was rejected, that nothing is left of it, and that each of its events was written once.
async fn assert_undone(stack: &Stack, ids: Ids) -> Result<()> {
    until("the site to be undone", TIMEOUT, async || {
        let left = residue(stack, ids).await?;
        Ok(if left.is_empty() { Look::Found(()) } else { Look::Saw(format!("{left:?}")) })
    })
    .await?;
    until("the site to be rejected", TIMEOUT, async || {
        let site = stack.site(ids.site_id).await?;
        Ok(if site.body["status"] == "REJECTED" { Look::Found(()) } else { Look::Saw(site) })
    })
    .await?;
    let story = log::published_story(stack, ids.onboarding_id).await?;
    assert_eq!(log::gaps(&story), [""; 0]);
    for (entity, events) in log::by_entity(&story) {
        let distinct: BTreeSet<_> = events.iter().collect();
        assert_eq!(distinct.len(), events.len(), "{entity}: {events:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_recovery_that_could_not_start_is_replayed() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    // After this, each function has a process.
    assert_all_else_runs(&stack).await?;
    let held = Frozen::processes(&stack, "provision-sensors")?;
    let broken = Broken::version(&stack, "recover-onboarding", "SITE_TEARDOWN_ARN", NO_MACHINE);
    let (ids, arn, failure) = broken
        .await?
        .during(async || {
            let ids = register(&stack, "not recovered", GOOD_CARD).await?;
            let arn = until("the saga to be at ProvisionSensors", TIMEOUT, async || {
                let execution = stack.onboarding(ids.onboarding_id).await?;
                let current = execution.as_ref().and_then(|execution| execution.current());
                Ok(match (&execution, current) {
                    (Some(execution), Some(task)) if task.name == "ProvisionSensors" => {
                        Look::Found(execution.arn.clone())
                    }
                    _ => Look::Saw(format!("{execution:?}")),
                })
            })
            .await?;
            stack.stop(&arn).await?;
            drop(held);
            Ok((ids, arn.clone(), stack.failure_about("recover-onboarding", &arn).await?))
        })
        .await?;
    assert_new(&failure, "FUNCTION_FAILED", "Internal")?;
    let detail = &failure.payload()?["detail"];
    assert_eq!((&detail["executionArn"], &detail["status"]), (&json!(arn), &json!("ABORTED")));
    assert_eq!(failure.correlation_id, Some(ids.onboarding_id.to_string()), "{failure}");
    assert!(stack.teardown(ids.onboarding_id).await?.is_none(), "it was torn down all the same");

    stack.replay_well(&failure).await?;
    assert_undone(&stack, ids).await?;
    assert_eq!(stack.teardowns_of(ids.onboarding_id).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_incomplete_teardown_is_replayed_until_nothing_is_left() -> Result<()> {
    let _turn = STACK.write().await;
    let stack = Stack::connect().await?;
    // The waits between eight retries last three minutes, which is too long for a test.
    let scale = WaitScale::set(&stack, 0.01).await?;
    let broken = Broken::version(&stack, "deprovision-sensors", "DEVICES_TABLE", NO_TABLE).await?;
    let over = broken.during(async || teardown_that_fails_twice(&stack).await).await;
    scale.restore(&stack).await?;
    let (ids, failure) = over?;
    let left = residue(&stack, ids).await?;
    let places: Vec<_> = left.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(places, [names::DEVICES], "{left:?}");

    stack.replay_well(&failure).await?;
    // The replay waits for the end of the teardown.
    let name = format!("replay-{}-2", failure.id);
    let teardown = stack.teardown_named(&name).await?.context("the teardown")?;
    assert_eq!(teardown.status, ExecutionStatus::Succeeded, "{teardown:?}");
    assert_undone(&stack, ids).await?;
    stack.failure(&failure.id).await?.stands("REPLAYED", 2, 2)
}

/// Runs a teardown that fails, and fails again when it is replayed. The emulator sends an event only for
/// executions that are not nested: the onboarding's own teardown is nested, and the one of its recovery is not.
async fn teardown_that_fails_twice(stack: &Stack) -> Result<(Ids, Failure)> {
    let ids = register(stack, "left something", DECLINED_CARD).await?;
    let onboarding = ids.onboarding_id.to_string();
    let failure = stack.failure_about("site-teardown", &onboarding).await?;
    assert_new(&failure, "EXECUTION_FAILED", "CompensationIncomplete")?;
    assert!(failure.error.message.contains("DeprovisionSensors"), "{failure}");
    assert_eq!(failure.correlation_id, Some(onboarding), "{failure}");
    let arn = failure.execution.as_deref().context("an execution")?;
    let teardown = stack.execution(arn).await?.context("the execution")?;
    assert_eq!(teardown.status, ExecutionStatus::Failed, "{teardown:?}");
    let others = UNDO.into_iter().filter(|step| *step != "DeprovisionSensors");
    assert_eq!(teardown.succeeded(), others.collect::<Vec<_>>());
    // The site has the reason why its onboarding failed, not the failure of the undo.
    assert_eq!(failure.payload()?["failure"]["error"], "CardDeclined");

    assert_eq!(stack.replay(&[&failure.id])?[&failure.id], "FAILED");
    let again = stack.failure_again(&failure.id, 2).await?;
    again.stands("OPEN", 2, 1)?;
    assert_eq!(again.first_at, failure.first_at);
    assert_ne!(again.execution, failure.execution);
    Ok((ids, again))
}
