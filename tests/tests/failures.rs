//! Tests failures from their cause to the replay. Each test causes a failure on the stack and finds it in the failures
//! table. After the cause is removed, `fieldctl` replays the failure, and the test checks that the work was done
//! exactly once.
//!
//! | Source                              | Cause                                | Resolution           | Real? |
//! |-------------------------------------|--------------------------------------|----------------------|-------|
//! | import-site                         | a malformed row with the site's key  | the row is deleted   | yes |
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
//! "By the test" means that the test sends the message, or makes the call of the schedule, itself.
//!
//! A simulated bad deployment makes a resource unreachable, or prevents the start of a function: the alias `live`
//! temporarily points to a version with a wrong setting. The rollback ends it.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use aws_sdk_sqs::types::MessageAttributeValue;
use contracts::{
    Event, Metric, OperatorId, SensorId, SiteId, Timestamp,
    events::ReadingBreachedThreshold,
    names,
    readings::{Bundle, Series},
    saga::STEPS,
    sample::Sample,
};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, sign},
    capture::{Capture, event_id},
    data_logger::send,
    failures::Failure,
    inventory::{Inventory, SUPPLIER, delivery_id},
    log::{self, LoggedEvent},
    readings::{QuarantinedRecord, days_ago, first_day},
    sites::{DECLINED_CARD, FORWARD, GOOD_CARD, Ids, UNDO, registration, residue},
    wait::{Poll, TIMEOUT, until},
};
use tokio::sync::RwLock;
use uuid::Uuid;

use crate::faults::{BrokenFunction, FrozenProcesses, VisibilityTimeout, WaitScale};

/// A test that breaks a function holds the write lock, because the function is broken for the whole stack.
static STACK_LOCK: RwLock<()> = RwLock::const_new(());

const METRIC: Metric = Metric::AirTemperature;
/// A metric that no site in this file has.
const UNUSED_METRIC: Metric = Metric::WindFromDirection;

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

/// Onboards a site. Returns its ids and its sensor after the sensor is registered with telemetry.
async fn onboard(stack: &Stack, what: &str) -> Result<(Ids, SensorId)> {
    let ids = register(stack, what, GOOD_CARD).await?;
    stack.wait_until_active(ids.site_id).await?;
    log::published_saga_events(stack, ids.onboarding_id).await?;
    let sensor = sensor(stack, ids).await?;
    stack.wait_for_sensors([sensor]).await?;
    Ok((ids, sensor))
}

async fn sensor(stack: &Stack, ids: Ids) -> Result<SensorId> {
    let sensors = stack.sensors(ids.site_id).await?;
    Ok(sensors.first().context("the site has no sensor")?.sensor_id)
}

/// Returns a bundle with one value for each minute.
fn bundle(ids: Ids, sensor_id: SensorId, id: &str, values: &[f64]) -> Result<Bundle> {
    let start: Timestamp = first_day(&format!("{id}:00")).parse()?;
    let at = |minute: i64| start.plus_millis(minute * 60_000);
    let samples = (0..).map(at).zip(values).map(|(at, value)| Sample::new(at, *value)).collect();
    let series = vec![Series::new(sensor_id, samples)];
    Ok(Bundle::new(id.replace(':', "-").parse()?, ids.site_id, series))
}

/// Waits until the sensor has as many samples as these bundles. Checks that they are equal, and that each bundle has
/// its own row.
async fn assert_stored(stack: &Stack, sensor: SensorId, bundles: &[&Bundle]) -> Result<()> {
    let sent: Vec<_> = bundles.iter().flat_map(|bundle| bundle.series[0].samples.clone()).collect();
    let samples = until(&format!("{} samples", sent.len()), TIMEOUT, async || {
        let samples = stack.samples(sensor, "limit=10000").await?;
        Ok(if samples.len() >= sent.len() {
            Poll::Ready(samples)
        } else {
            Poll::Pending(samples.len())
        })
    })
    .await?;
    assert_eq!(samples, sent);
    assert_eq!(stack.series_rows(sensor).await?.len(), bundles.len());
    Ok(())
}

/// Checks that the main pipeline works: a site is onboarded and its readings are stored.
async fn assert_pipeline_works(stack: &Stack) -> Result<()> {
    let (ids, sensor) = onboard(stack, "main pipeline").await?;
    let bundle = bundle(ids, sensor, "00:00", &[1.0, 2.0])?;
    send(stack, &[&bundle]).await?;
    assert_stored(stack, sensor, &[&bundle]).await
}

/// Checks that the failure is new, and has this kind and error.
fn assert_new_failure(failure: &Failure, kind: &str, error: &str) -> Result<()> {
    failure.assert_state("OPEN", 1, 0)?;
    ensure!((failure.kind.as_str(), failure.error.name.as_str()) == (kind, error), "{failure}");
    ensure!(!failure.error.message.is_empty(), "{failure} has no message");
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

/// Calls an AWS service, and returns the response body. The SDKs would take too long to compile for these few calls.
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
    let response = client.execute(request).await?;
    ensure!(response.status().is_success(), "{path} returned {response:?}");
    Ok(response.text().await?)
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

/// Returns an event of another system, as EventBridge passes it to a function.
fn eventbridge_event(source: &str, detail_type: &str, detail: &Value) -> Value {
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
async fn a_registration_that_fails_on_a_malformed_row_is_replayed() -> Result<()> {
    let _lock = STACK_LOCK.read().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let number = key();
    let site_id = SiteId::registered(OperatorId::DEFAULT, "noaa.surfrad", &number);
    let row_key = json!({ "siteId": site_id, "row": "SITE" });
    let broken = json!({ "siteId": site_id, "row": "SITE", "nonsense": "written by a defect" });
    put_row(&stack, names::SITES, &broken).await?;
    let site = registration("malformed row", &[METRIC], GOOD_CARD);
    let detail = json!({ "registrationId": number, "site": site });
    let event = stack.put_event("noaa.surfrad", "SiteRegistrationRequested", &detail).await?;

    let failure = stack.failure_about("import-site", &number).await?;
    assert_new_failure(&failure, "FUNCTION_FAILED", "Internal")?;
    let payload = failure.payload()?;
    assert_eq!(
        (&payload["id"], &payload["detail"]),
        (&json!(event), &detail),
        "incomplete payload"
    );
    assert_pipeline_works(&stack).await?;

    delete_row(&stack, names::SITES, &row_key).await?;
    stack.replay_successfully(&failure).await?;
    let site = stack.wait_until_active(site_id).await?;
    let ids: Ids = serde_json::from_value(json!({
        "siteId": site_id,
        "onboardingId": site["onboarding"]["onboardingId"],
    }))?;
    stack.assert_onboarded_once(ids).await?;
    // A failure that was replayed is not replayed again.
    assert_eq!(stack.replay(&[&failure.id])?[&failure.id], "SKIPPED");
    stack.failure(&failure.id).await?.assert_state("REPLAYED", 1, 1)
}

#[tokio::test]
async fn a_registration_that_was_not_delivered_is_replayed() -> Result<()> {
    let _lock = STACK_LOCK.read().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let number = key();
    let site = registration("not delivered", &[METRIC], GOOD_CARD);
    let detail = json!({ "registrationId": number, "site": site });
    let event = eventbridge_event("noaa.surfrad", "SiteRegistrationRequested", &detail);
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
    assert_new_failure(&failure, "NOT_DELIVERED", "NO_PERMISSIONS")?;
    assert!(failure.error.message.contains("Lambda refused the call"), "{failure}");
    assert_eq!(failure.payload()?, event, "incomplete payload");

    stack.replay_successfully(&failure).await?;
    let site_id = SiteId::registered(OperatorId::DEFAULT, "noaa.surfrad", &number);
    let site = stack.wait_until_active(site_id).await?;
    let onboarding = site["onboarding"]["onboardingId"].clone();
    let ids = json!({ "siteId": site_id, "onboardingId": onboarding });
    stack.assert_onboarded_once(serde_json::from_value(ids)?).await?;
    Ok(())
}

#[tokio::test]
async fn a_delivery_is_replayed_into_the_stock_once() -> Result<()> {
    let _lock = STACK_LOCK.read().await;
    let stack = Stack::connect().await?;
    let number = key();
    let id = delivery_id(&number);
    // The row lacks the time of the delivery.
    put_row(&stack, names::INVENTORY, &json!({ "id": id, "kits": [] })).await?;
    let kits_in_stock = async || {
        let inventory = Inventory::read(&stack).await?;
        anyhow::Ok(inventory.stock.get(UNUSED_METRIC.name()).copied().unwrap_or_default())
    };
    let before = kits_in_stock().await?;
    let detail =
        json!({ "deliveryId": number, "kits": [{ "metric": UNUSED_METRIC, "quantity": 3 }] });
    stack.put_event(SUPPLIER, contracts::inbound::KITS_DELIVERED, &detail).await?;

    let failure = stack.failure_about("receive-kits", &number).await?;
    assert_new_failure(&failure, "FUNCTION_FAILED", "Internal")?;
    assert!(failure.error.message.contains(&id), "the error does not name the row: {failure}");
    assert_eq!(failure.payload()?["detail"], detail, "incomplete payload");
    assert_eq!(kits_in_stock().await?, before);

    delete_row(&stack, names::INVENTORY, &json!({ "id": id })).await?;
    stack.replay_successfully(&failure).await?;
    assert_eq!(kits_in_stock().await?, before + 3);
    Ok(())
}

#[tokio::test]
async fn step_events_that_the_read_model_missed_are_replayed() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let broken = BrokenFunction::deploy(&stack, "project-site", "SITES_TABLE", NO_TABLE).await?;
    let (ids, failures) = broken
        .during(async || {
            let ids = register(&stack, "missed", GOOD_CARD).await?;
            let onboarding = ids.onboarding_id.to_string();
            Ok((ids, stack.wait_for_failures("project-site", &onboarding, 4).await?))
        })
        .await?;

    let mut failed_events: BTreeMap<String, &Failure> = BTreeMap::new();
    for failure in &failures {
        assert_new_failure(failure, "FUNCTION_FAILED", "Internal")?;
        assert_eq!(failure.correlation_id, Some(ids.onboarding_id.to_string()), "{failure}");
        let kind = failure.payload()?["detail-type"].as_str().unwrap_or_default().to_owned();
        failed_events.insert(kind, failure);
    }
    let kinds: Vec<_> = failed_events.keys().map(String::as_str).collect();
    let mut projected: Vec<_> =
        STEPS.iter().filter(|step| !step.is_of_site()).map(|step| step.done).collect();
    projected.sort_unstable();
    assert_eq!(kinds, projected);
    // The onboarding still succeeds. Only the read model lags behind.
    let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
    assert_eq!(execution.status, ExecutionStatus::Succeeded, "{execution:?}");

    let onboarding = ids.onboarding_id.to_string();
    let filter = ["--source", "project-site", "--correlation", &onboarding];
    let outcomes = stack.replay(&filter)?;
    assert_eq!(outcomes.len(), failures.len(), "{outcomes:?}");
    for failure in &failures {
        assert_eq!(outcomes.get(&failure.id).map(String::as_str), Some("REPLAYED"));
        stack.failure(&failure.id).await?.assert_state("REPLAYED", 1, 1)?;
    }
    stack.assert_onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn an_onboarding_that_was_not_started_is_replayed() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let broken =
        BrokenFunction::deploy(&stack, "start-onboarding", "SITE_ONBOARDING_ARN", NO_MACHINE);
    let (ids, failure) = broken
        .await?
        .during(async || {
            let ids = register(&stack, "not started", GOOD_CARD).await?;
            let onboarding = ids.onboarding_id.to_string();
            Ok((ids, stack.failure_about("start-onboarding", &onboarding).await?))
        })
        .await?;
    assert_new_failure(&failure, "FUNCTION_FAILED", "Internal")?;
    assert_eq!(failure.payload()?["detail"]["data"]["siteId"], json!(ids.site_id));
    assert_eq!(failure.correlation_id, Some(ids.onboarding_id.to_string()));
    assert!(stack.onboarding(ids.onboarding_id).await?.is_none());
    assert_pipeline_works(&stack).await?;

    stack.replay_successfully(&failure).await?;
    stack.assert_onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn readings_of_an_unknown_sensor_stay_open_until_it_is_registered() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let broken =
        BrokenFunction::deploy(&stack, "project-sensors", "READINGS_TABLE", NO_TABLE).await?;
    let (ids, missed_event) = broken
        .during(async || {
            let ids = register(&stack, "unknown sensor", GOOD_CARD).await?;
            let onboarding = ids.onboarding_id.to_string();
            Ok((ids, stack.failure_about("project-sensors", &onboarding).await?))
        })
        .await?;
    assert_new_failure(&missed_event, "FUNCTION_FAILED", "Internal")?;
    let sensor = sensor(&stack, ids).await?;
    assert_eq!(missed_event.payload()?["detail"]["data"]["sensors"][0]["sensorId"], json!(sensor));
    stack.assert_onboarded_once(ids).await?;

    let bundle = bundle(ids, sensor, "00:00", &[1.0, 2.0])?;
    send(&stack, &[&bundle]).await?;
    let unknown = stack.wait_for_quarantined(&ids.site_id.to_string(), 1).await?;
    let [unknown] = &unknown[..] else { anyhow::bail!("expected one record: {unknown:?}") };
    assert_eq!(
        serde_json::from_slice::<Bundle>(&unknown.payload()?)?,
        bundle,
        "incomplete payload"
    );
    let unknown = &unknown.failure;
    assert_new_failure(unknown, "QUARANTINED", "UnknownSensor")?;

    // The replay is too early: it returns the error, and the row keeps its first error.
    assert_eq!(stack.replay(&[&unknown.id])?[&unknown.id], "FAILED");
    let again = stack.failure(&unknown.id).await?;
    again.assert_state("OPEN", 1, 1)?;
    assert_eq!((&again.first_at, &again.error), (&unknown.first_at, &unknown.error));
    let failures = stack.failures_about("store-readings", &ids.site_id.to_string()).await?;
    assert_eq!(failures.len(), 1, "a second failure was recorded: {failures:?}");

    stack.replay_successfully(&missed_event).await?;
    stack.wait_for_sensors([sensor]).await?;
    stack.replay_successfully(&again).await?;
    assert_stored(&stack, sensor, &[&bundle]).await
}

#[tokio::test]
async fn readings_too_large_for_a_row_are_replayed_from_their_file() -> Result<()> {
    let _lock = STACK_LOCK.read().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = onboard(&stack, "large").await?;
    let rows = stack.rows_with(names::READINGS, "sensorId", &sensor.to_string()).await?;
    let [register] = &rows[..] else { anyhow::bail!("expected only the register entry: {rows:?}") };
    let row_key = json!({ "sensorId": sensor, "row": "SENSOR" });
    delete_row(&stack, names::READINGS, &row_key).await?;
    // 12,000 minutes are nine days.
    let start: Timestamp = days_ago(30, "00:00:00").parse()?;
    let at = |minute: u32| start.plus_millis(i64::from(minute) * 60_000);
    let samples = (0..12_000).map(|minute| Sample::new(at(minute), f64::from(minute)));
    let series = vec![Series::new(sensor, samples.collect())];
    let bundle = Bundle::new("large".parse()?, ids.site_id, series);
    send(&stack, &[&bundle]).await?;

    let site = ids.site_id.to_string();
    let quarantined = stack.wait_for_quarantined(&site, 1).await?;
    assert_eq!(
        serde_json::from_slice::<Bundle>(&quarantined[0].payload()?)?,
        bundle,
        "incomplete payload"
    );
    let failure = &quarantined[0].failure;
    assert_new_failure(failure, "QUARANTINED", "UnknownSensor")?;
    assert!(failure.payload_file.is_some(), "the payload of {failure} is in its row");

    put_row(&stack, names::READINGS, register).await?;
    stack.replay_successfully(failure).await?;
    let samples = stack.samples(sensor, "limit=10000").await?;
    assert_eq!(samples, bundle.series[0].samples);
    Ok(())
}

/// Makes a scheduled function fail, and checks that the replay after the rollback succeeds. `prepare` runs while the
/// function is broken, before it is called.
async fn assert_scheduled_call_is_replayed(
    stack: &Stack,
    function: &str,
    (variable, value): (&str, &str),
    prepare: impl AsyncFn() -> Result<()>,
    error: &str,
) -> Result<()> {
    let event = eventbridge_event("aws.events", "Scheduled Event", &json!({}));
    let id = event["id"].as_str().unwrap_or_default();
    let name = stack.named(function);
    let broken = BrokenFunction::deploy(stack, function, variable, value).await?;
    let failure = broken
        .during(async || {
            prepare().await?;
            let path = format!("/2015-03-31/functions/{name}:live/invocations");
            let headers = [("x-amz-invocation-type", "Event")];
            call(stack, "lambda", Method::POST, &path, &headers, event.to_string()).await?;
            stack.failure_about(function, id).await
        })
        .await?;
    assert_new_failure(&failure, "FUNCTION_FAILED", error)?;
    assert_eq!(failure.payload()?, event, "incomplete payload");
    stack.replay_successfully(&failure).await
}

#[tokio::test]
async fn checks_that_failed_are_replayed() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let no_preparation = async || Ok(());
    let check = "check-sagas";
    let no_budget = ("SAGA_BUDGET_SECONDS", "not a number");
    // On AWS the error is `Runtime.ExitError`.
    assert_scheduled_call_is_replayed(&stack, check, no_budget, no_preparation, "Runtime.Unknown")
        .await?;
    let consumers = "check-consumers";
    let no_url = ("QUEUES_URL", "");
    assert_scheduled_call_is_replayed(&stack, consumers, no_url, no_preparation, "Runtime.Unknown")
        .await?;
    let reconcile = "reconcile-subscriptions";
    let no_table = ("BILLING_TABLE", NO_TABLE);
    assert_scheduled_call_is_replayed(&stack, reconcile, no_table, no_preparation, "Internal")
        .await?;
    let report = "report-failures";
    let no_table = ("FAILURES_TABLE", NO_TABLE);
    assert_scheduled_call_is_replayed(&stack, report, no_table, no_preparation, "Internal").await
}

/// Marks an event as unpublished, as if EventBridge had not accepted it, and changes its time to `occurred_at`. Returns
/// its row.
async fn unpublish(stack: &Stack, event: &LoggedEvent, occurred_at: &str) -> Result<Value> {
    let rows = stack.rows_with(names::EVENTS, "entity", &event.entity).await?;
    let row = rows.into_iter().find(|row| row["sequence"] == event.sequence);
    let mut row = row.context("the event has no row")?;
    let fields = row.as_object_mut().context("a row is not an object")?;
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
    let saga_events = log::saga_events(stack, ids.onboarding_id).await?;
    let unpublished: Vec<_> = saga_events.iter().filter(|event| !event.is_published()).collect();
    assert!(unpublished.is_empty(), "the replay did not publish {unpublished:?}");
    let mut expected = events.iter().map(|event| event.id()).collect::<Result<Vec<_>>>()?;
    let delivered = |captured: &[Value]| -> Vec<String> {
        let is_expected = |id: &&str| expected.iter().any(|event| event == id);
        captured.iter().map(event_id).filter(is_expected).map(str::to_owned).collect()
    };
    let enough = |captured: &[Value]| delivered(captured).len() >= events.len();
    let captured = capture.take_all(stack, TIMEOUT, enough).await?;
    let mut received = delivered(&captured);
    received.sort();
    expected.sort();
    assert_eq!(received, expected);
    Ok(())
}

#[tokio::test]
async fn a_sweep_is_replayed_and_publishes_once() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let (ids, _) = onboard(&stack, "swept").await?;
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    let event = saga_events.last().context("no events")?;
    let capture = Capture::start(&stack).await?;
    // A sweep publishes events that are older than a minute.
    let long_ago = Timestamp::now().plus_millis(-3_600_000).to_string();
    let prepare = async || unpublish(&stack, event, &long_ago).await.map(drop);
    let sweep = "sweep-events";
    let no_table = ("EVENTS_TABLE", NO_TABLE);
    assert_scheduled_call_is_replayed(&stack, sweep, no_table, prepare, "Internal").await?;
    assert_published_once(&stack, capture, ids, &[event]).await
}

/// Returns the record of the events table's stream for the insertion of a row.
fn inserted(row: &Value) -> Result<Value> {
    let typed = |value: &Value| match value {
        Value::Number(number) => json!({ "N": number.to_string() }),
        value => json!({ "S": value }),
    };
    let fields = row.as_object().context("a row is not an object")?;
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

/// Runs `work` while a stream's mapping has a maximum of one retry.
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
    let result = work().await;
    set(&before).await?;
    result
}

/// Breaks a consumer with a wrong setting, and starts some work. Returns the failures after the retries of `count`
/// records are exhausted. `start` starts the work, and returns an id that these records contain.
async fn exhaust_retries(
    stack: &Stack,
    (source, name): Consumer<'_>,
    (variable, value): (&str, &str),
    count: usize,
    start: impl AsyncFnOnce() -> Result<String>,
) -> Result<Vec<Failure>> {
    let broken = BrokenFunction::deploy(stack, source, variable, value).await?;
    let failures = broken
        .during(async || {
            with_one_retry(stack, &format!("{name}Mapping"), async || {
                let about = start().await?;
                stack.wait_for_failures(source, &about, count).await
            })
            .await
        })
        .await?;
    for failure in &failures {
        assert_new_failure(failure, "GIVEN_UP", "RetryAttemptsExhausted")?;
    }
    Ok(failures)
}

/// Sends these bundles and exhausts the retries of `store-readings` or `detect-breaches`. Returns the failures. Checks
/// that their records are unchanged.
async fn exhaust_retries_of_bundles(
    stack: &Stack,
    consumer: Consumer<'_>,
    setting: (&str, &str),
    bundles: &[&Bundle],
) -> Result<Vec<Failure>> {
    let site = bundles[0].site_id.to_string();
    let start = async || {
        send(stack, bundles).await?;
        Ok(site.clone())
    };
    let failures = exhaust_retries(stack, consumer, setting, bundles.len(), start).await?;
    for failure in &failures {
        assert_eq!(failure.site_id.as_ref(), Some(&site), "{failure}");
        let bundle = QuarantinedRecord::from_failure(failure.clone())?.payload()?;
        let bundle: Bundle = serde_json::from_slice(&bundle)?;
        assert!(bundles.contains(&&bundle), "this bundle was not sent: {bundle:?}");
    }
    Ok(failures)
}

/// Returns the files that a mapping wrote for records with exhausted retries, by their keys.
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
    let _lock = STACK_LOCK.read().await;
    let stack = Stack::connect().await?;
    let entity = format!("site#{}", key());
    let row = json!({ "entity": entity, "sequence": 1, "nonsense": "written by a defect" });
    put_row(&stack, names::EVENTS, &row).await?;
    let failure = stack.failure_about("publish-events", &entity).await?;
    assert_new_failure(&failure, "QUARANTINED", "InvalidInput")?;
    let image = &failure.payload()?["dynamodb"]["NewImage"];
    assert_eq!(image["nonsense"]["S"], row["nonsense"], "incomplete payload: {image}");

    assert_eq!(stack.replay(&[&failure.id])?[&failure.id], "FAILED");
    stack.failure(&failure.id).await?.assert_state("OPEN", 1, 1)?;
    let discard = ["discard", &failure.id, "--note", "not an event; the writer is fixed", "--yes"];
    let output = stack.fieldctl_failures(&discard)?;
    assert_eq!(output[0]["discarded"], 1, "{output:?}");
    stack.failure(&failure.id).await?.assert_state("DISCARDED", 1, 1)?;
    let row_key = json!({ "entity": entity, "sequence": 1 });
    delete_row(&stack, names::EVENTS, &row_key).await
}

#[tokio::test]
async fn an_event_that_was_refused_is_replayed_and_published_once() -> Result<()> {
    let _lock = STACK_LOCK.read().await;
    let stack = Stack::connect().await?;
    let (ids, _) = onboard(&stack, "refused").await?;
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    let refused = saga_events.first().context("no events")?;
    let capture = Capture::start(&stack).await?;

    // Too new for a sweep to publish it.
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
    assert_new_failure(&quarantined, "QUARANTINED", "EventRefused")?;
    assert_eq!(quarantined.payload()?, record, "incomplete payload");
    stack.replay_successfully(&quarantined).await?;
    assert_published_once(&stack, capture, ids, &[refused]).await
}

#[tokio::test]
async fn an_event_with_exhausted_retries_is_replayed_and_published_once() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let name = format!("unpublished {}", Uuid::new_v4().simple());
    let registration = registration(&name, &[METRIC], GOOD_CARD);
    let mut registered = None;
    let start = async || {
        let ids = stack.register(&key(), &registration).await?;
        registered = Some(ids);
        Ok(ids.onboarding_id.to_string())
    };
    let setting = ("EVENTS_TABLE", NO_TABLE);
    let failures = exhaust_retries(&stack, PUBLISH_EVENTS, setting, 1, start).await?;
    let ids = registered.context("no site was registered")?;
    assert!(stack.onboarding(ids.onboarding_id).await?.is_none(), "the event was published");

    stack.replay_successfully(&failures[0]).await?;
    stack.assert_onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn readings_with_exhausted_retries_are_replayed_and_stored_once() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = onboard(&stack, "exhausted retries").await?;
    let bundles = ["00:00", "01:00"].map(|id| bundle(ids, sensor, id, &[1.0, 2.0]));
    let bundles = bundles.into_iter().collect::<Result<Vec<_>>>()?;
    let bundles: Vec<_> = bundles.iter().collect();
    let setting = ("READINGS_TABLE", NO_TABLE);
    let failures = exhaust_retries_of_bundles(&stack, STORE_READINGS, setting, &bundles).await?;
    assert_eq!(stack.samples(sensor, "").await?, []);
    // The mapping continues with the next record.
    let next = bundle(ids, sensor, "02:00", &[3.0])?;
    send(&stack, &[&next]).await?;
    assert_stored(&stack, sensor, &[&next]).await?;

    for failure in &failures {
        stack.replay_successfully(failure).await?;
    }
    assert_stored(&stack, sensor, &[bundles, vec![&next]].concat()).await
}

#[tokio::test]
async fn a_failing_batch_is_split_and_recorded_record_by_record() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = onboard(&stack, "split").await?;
    let bundles = ["00:00", "01:00", "02:00"].map(|id| bundle(ids, sensor, id, &[1.0, 2.0]));
    let bundles = bundles.into_iter().collect::<Result<Vec<_>>>()?;
    let bundles: Vec<_> = bundles.iter().collect();
    let mapping = stack.physical_id("StoreReadingsMapping").await?;
    let before = failure_files(&stack, &mapping).await?;
    // The function does not start.
    let setting = ("READINGS_TABLE", "");
    let failures = exhaust_retries_of_bundles(&stack, STORE_READINGS, setting, &bundles).await?;

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
        stack.replay_successfully(failure).await?;
    }
    assert_stored(&stack, sensor, &bundles).await
}

#[tokio::test]
async fn a_breach_with_exhausted_retries_is_replayed_and_published_once() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let (ids, sensor) = onboard(&stack, "unevaluated").await?;
    let breach = bundle(ids, sensor, "00:00", &[20.0, 40.0])?;
    let setting = ("ALERTING_TABLE", NO_TABLE);
    let failures = exhaust_retries_of_bundles(&stack, DETECT_BREACHES, setting, &[&breach]).await?;
    assert_stored(&stack, sensor, &[&breach]).await?;
    let alerts = async || {
        let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
        let alerts =
            saga_events.iter().filter(|event| event.kind == ReadingBreachedThreshold::TYPE);
        let alerts = alerts.map(|event| serde_json::from_str::<Value>(&event.detail));
        anyhow::Ok(alerts.collect::<std::result::Result<Vec<_>, _>>()?)
    };
    assert_eq!(alerts().await?, [] as [Value; 0]);

    stack.replay_successfully(&failures[0]).await?;
    let alerts = alerts().await?;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    let data = &alerts[0]["data"];
    assert_eq!((&data["value"], &data["at"]), (&json!(40.0), &json!(first_day("00:01:00.000"))));
    Ok(())
}

/// Makes a command of billing a dead letter: its function does not start. The visibility timeout is set to seconds, so
/// that the test does not wait for the minutes of production.
async fn dead_letter(
    stack: &Stack,
    source: &str,
    start: impl AsyncFn() -> Result<Ids>,
) -> Result<(Ids, Failure)> {
    // The queue has the same name as the function.
    let visibility = VisibilityTimeout::set(stack, source, 2).await?;
    let broken = BrokenFunction::deploy(stack, source, "BILLING_TABLE", "").await?;
    let outcome = broken
        .during(async || {
            let ids = start().await?;
            Ok((ids, stack.failure_about(source, &ids.onboarding_id.to_string()).await?))
        })
        .await;
    visibility.restore(stack).await?;
    let (ids, failure) = outcome?;
    assert_new_failure(&failure, "DEAD_LETTER", "ReceivesExhausted")?;
    let payload = failure.payload()?;
    assert_eq!(
        payload["command"]["onboardingId"],
        json!(ids.onboarding_id),
        "incomplete payload: {payload}"
    );
    assert!(payload["taskToken"].is_string(), "incomplete payload: {payload}");
    Ok((ids, failure))
}

#[tokio::test]
async fn a_dead_letter_of_a_subscription_is_replayed_and_paid_once() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let start = async || register(&stack, "dead letter", GOOD_CARD).await;
    let (ids, failure) = dead_letter(&stack, names::INITIALIZE_SUBSCRIPTION, start).await?;
    let execution =
        stack.onboarding(ids.onboarding_id).await?.context("no execution was started")?;
    assert_eq!(execution.status, ExecutionStatus::Running, "the saga must wait: {execution:?}");
    assert_pipeline_works(&stack).await?;

    stack.replay_successfully(&failure).await?;
    stack.assert_onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_cancellation_is_replayed() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    let (ids, _) = onboard(&stack, "dead cancellation").await?;
    let start = async || {
        let response = stack.call(Call::delete(format!("/sites/{}", ids.site_id))).await?;
        ensure!(response.status == 202, "{response}");
        Ok(ids)
    };
    let (_, failure) = dead_letter(&stack, names::CANCEL_SUBSCRIPTION, start).await?;

    stack.replay_successfully(&failure).await?;
    stack.wait_for_site(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE"))).await?;
    assert_eq!(residue(&stack, ids).await?, []);
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    let expected = vec!["SubscriptionInitialized", "SubscriptionCancelled"];
    assert_eq!(log::by_entity(&saga_events).get("subscription"), Some(&expected));
    Ok(())
}

/// Checks that a site was rejected, that nothing is left of it, and that each of its events was written once.
async fn assert_undone(stack: &Stack, ids: Ids) -> Result<()> {
    until("the site to be undone", TIMEOUT, async || {
        let residue = residue(stack, ids).await?;
        Ok(if residue.is_empty() { Poll::Ready(()) } else { Poll::Pending(format!("{residue:?}")) })
    })
    .await?;
    until("the site to be rejected", TIMEOUT, async || {
        let site = stack.site(ids.site_id).await?;
        Ok(if site.body["status"] == "REJECTED" { Poll::Ready(()) } else { Poll::Pending(site) })
    })
    .await?;
    let saga_events = log::published_saga_events(stack, ids.onboarding_id).await?;
    assert_eq!(log::gaps(&saga_events), [""; 0]);
    for (entity, events) in log::by_entity(&saga_events) {
        let distinct: BTreeSet<_> = events.iter().collect();
        assert_eq!(distinct.len(), events.len(), "{entity}: {events:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_recovery_that_could_not_start_is_replayed() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    // After this, each function has a process.
    assert_pipeline_works(&stack).await?;
    let frozen = FrozenProcesses::stop(&stack, "provision-sensors")?;
    let broken =
        BrokenFunction::deploy(&stack, "recover-onboarding", "SITE_TEARDOWN_ARN", NO_MACHINE);
    let (ids, arn, failure) = broken
        .await?
        .during(async || {
            let ids = register(&stack, "failed recovery", GOOD_CARD).await?;
            let arn = until("the saga to be at ProvisionSensors", TIMEOUT, async || {
                let execution = stack.onboarding(ids.onboarding_id).await?;
                let current = execution.as_ref().and_then(|execution| execution.current());
                Ok(match (&execution, current) {
                    (Some(execution), Some(task)) if task.name == "ProvisionSensors" => {
                        Poll::Ready(execution.arn.clone())
                    }
                    _ => Poll::Pending(format!("{execution:?}")),
                })
            })
            .await?;
            stack.stop(&arn).await?;
            drop(frozen);
            Ok((ids, arn.clone(), stack.failure_about("recover-onboarding", &arn).await?))
        })
        .await?;
    assert_new_failure(&failure, "FUNCTION_FAILED", "Internal")?;
    let detail = &failure.payload()?["detail"];
    assert_eq!((&detail["executionArn"], &detail["status"]), (&json!(arn), &json!("ABORTED")));
    assert_eq!(failure.correlation_id, Some(ids.onboarding_id.to_string()), "{failure}");
    assert!(stack.teardown(ids.onboarding_id).await?.is_none(), "a teardown has started");

    stack.replay_successfully(&failure).await?;
    assert_undone(&stack, ids).await?;
    assert_eq!(stack.teardowns_of(ids.onboarding_id).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_incomplete_teardown_is_replayed_until_nothing_is_left() -> Result<()> {
    let _lock = STACK_LOCK.write().await;
    let stack = Stack::connect().await?;
    // The waits between eight retries last three minutes, which is too long for a test.
    let scale = WaitScale::set(&stack, 0.01).await?;
    let broken =
        BrokenFunction::deploy(&stack, "deprovision-sensors", "DEVICES_TABLE", NO_TABLE).await?;
    let result = broken.during(async || teardown_that_fails_twice(&stack).await).await;
    scale.restore(&stack).await?;
    let (ids, failure) = result?;
    let residue = residue(&stack, ids).await?;
    let tables: Vec<_> = residue.iter().map(|(table, _)| table.as_str()).collect();
    assert_eq!(tables, [names::DEVICES], "{residue:?}");

    stack.replay_successfully(&failure).await?;
    // The replay waits for the end of the teardown.
    let name = format!("replay-{}-2", failure.id);
    let teardown = stack.teardown_named(&name).await?.context("no teardown was started")?;
    assert_eq!(teardown.status, ExecutionStatus::Succeeded, "{teardown:?}");
    assert_undone(&stack, ids).await?;
    stack.failure(&failure.id).await?.assert_state("REPLAYED", 2, 2)
}

/// Runs a teardown that fails, and fails again when it is replayed. The emulator sends events only for executions that
/// are not nested. The onboarding's own teardown is nested, and the recovery's teardown is not.
async fn teardown_that_fails_twice(stack: &Stack) -> Result<(Ids, Failure)> {
    let ids = register(stack, "left something", DECLINED_CARD).await?;
    let onboarding = ids.onboarding_id.to_string();
    let failure = stack.failure_about("site-teardown", &onboarding).await?;
    assert_new_failure(&failure, "EXECUTION_FAILED", "CompensationIncomplete")?;
    assert!(failure.error.message.contains("DeprovisionSensors"), "{failure}");
    assert_eq!(failure.correlation_id, Some(onboarding), "{failure}");
    let arn = failure.execution.as_deref().context("no execution was started")?;
    let teardown = stack.execution(arn).await?.context("the execution does not exist")?;
    assert_eq!(teardown.status, ExecutionStatus::Failed, "{teardown:?}");
    let others = UNDO.into_iter().filter(|step| *step != "DeprovisionSensors");
    assert_eq!(teardown.succeeded(), others.collect::<Vec<_>>());
    // The input has the failure of the onboarding, not the failure of the undo.
    assert_eq!(failure.payload()?["failure"]["error"], "CardDeclined");

    assert_eq!(stack.replay(&[&failure.id])?[&failure.id], "FAILED");
    let again = stack.wait_for_attempts(&failure.id, 2).await?;
    again.assert_state("OPEN", 2, 1)?;
    assert_eq!(again.first_at, failure.first_at);
    assert_ne!(again.execution, failure.execution);
    Ok((ids, again))
}
