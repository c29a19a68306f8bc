//! Tests that check-consumers reports a disabled event source mapping and what waits behind it, and that the
//! report ends and the waiting work is done when the mapping is enabled again.
//!
//! This is a single test, because a disabled mapping affects the whole stack.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contracts::{
    Metric, Timestamp,
    readings::{Bundle, Sample, Series},
};
use serde_json::{Value, json};
use tests::{
    Stack, log,
    logger::send,
    sites::{GOOD_CARD, registration},
    wait::{Look, TIMEOUT, until},
};
use uuid::Uuid;

/// The logical id of each mapping, and its name in the report of check-consumers.
const RECORD_FAILURE: (&str, &str) =
    ("SitesFailuresMapping", "record-failure <- queue sites-failures");
const PUBLISH_EVENTS: (&str, &str) = ("PublishEventsMapping", "publish-events <- table events");
const STORE_READINGS: (&str, &str) = ("StoreReadingsMapping", "store-readings <- stream readings");

const METRIC: Metric = Metric::AirTemperature;
/// Longer than an enabled consumer needs to process a message.
const A_WHILE: Duration = Duration::from_secs(3);

async fn all_run(stack: &Stack) -> Result<()> {
    let check = stack.check_consumers().await?;
    ensure!(check.answer["notRunning"] == json!([]), "{check:?}");
    ensure!(check.answer["checked"].as_u64().is_some_and(|checked| checked >= 15), "{check:?}");
    ensure!(*check.metric()? == json!([0.0]), "{check:?}");
    let shown = consumers_of_status(stack)?;
    ensure!(shown["health"] == "good", "{shown}");
    Ok(())
}

/// Returns the check `consumers` of `fieldctl status`.
fn consumers_of_status(stack: &Stack) -> Result<Value> {
    let printed = stack.fieldctl(&["--json", "status"])?;
    let status = printed.document()?;
    let checks = status["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["name"] == "consumers").context("the check")?;
    ensure!(check["health"] == "good" || printed.code == 1, "{printed:?}");
    Ok(check.clone())
}

/// Checks that this mapping is the only one that is reported.
async fn is_reported(
    stack: &Stack,
    (mapping, consumer): (&str, &str),
    waiting: Value,
) -> Result<()> {
    let check = stack.check_consumers().await?;
    let stopped = json!({ "mapping": consumer, "state": "Disabled", "waiting": waiting });
    ensure!(check.answer["notRunning"] == json!([stopped]), "{check:?}");
    ensure!(*check.metric()? == json!([1.0]), "{check:?}");
    let line = check.line(consumer).with_context(|| format!("no line about it: {check:?}"))?;
    ensure!(line["level"] == "ERROR" && line["state"] == "Disabled", "{line}");
    let uuid = stack.physical_id(mapping).await?;
    ensure!(line["uuid"] == json!(uuid), "{line}");
    let shown = consumers_of_status(stack)?;
    let next = format!("aws lambda update-event-source-mapping --uuid {uuid} --enabled");
    ensure!(shown["health"] == "problem" && shown["next"] == json!(next), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_disabled_consumer_is_reported_until_it_is_enabled() -> Result<()> {
    let stack = Stack::connect().await?;
    all_run(&stack).await?;

    // record-failure: the failure is not recorded.
    let about = Uuid::new_v4().to_string();
    stack
        .with_mapping_disabled(RECORD_FAILURE.0, async || {
            let url = stack.queue_url("sites-failures").await?;
            stack.sqs().send_message().queue_url(url).message_body(&about).send().await?;
            tokio::time::sleep(A_WHILE).await;
            ensure!(stack.failures_about("sites-failures", &about).await?.is_empty(), "recorded");
            is_reported(&stack, RECORD_FAILURE, json!(1)).await
        })
        .await?;
    all_run(&stack).await?;
    let failure = stack.failure_about("sites-failures", &about).await?;
    stack.fieldctl_failures(&["discard", &failure.id, "--note", "sent by a test", "--yes"])?;

    // publish-events: the events are not published.
    stack.deliver(&[METRIC], 1).await?;
    let name = format!("no events {}", Uuid::new_v4().simple());
    let site = registration(&name, &[METRIC], GOOD_CARD);
    let ids = stack
        .with_mapping_disabled(PUBLISH_EVENTS.0, async || {
            let ids = stack.register(&Uuid::new_v4().to_string(), &site).await?;
            tokio::time::sleep(A_WHILE).await;
            let story = log::story(&stack, ids.onboarding_id).await?;
            ensure!(!story.is_empty(), "no event of {ids:?}");
            ensure!(story.iter().all(|event| !event.is_published()), "{story:?}");
            is_reported(&stack, PUBLISH_EVENTS, Value::Null).await?;
            Ok(ids)
        })
        .await?;
    all_run(&stack).await?;
    stack.onboarded_once(ids).await?;

    // store-readings: the readings are accepted and not stored.
    let sensors = stack.sensors(ids.site_id).await?;
    let sensor_id = sensors.first().context("a sensor")?.sensor_id;
    stack.sensors_known([sensor_id]).await?;
    let start: Timestamp = "2016-01-01T00:00:00Z".parse()?;
    let series = Series { sensor_id, samples: vec![Sample(start, 1.0)] };
    let bundle =
        Bundle { bundle_id: "waiting".parse()?, site_id: ids.site_id, series: vec![series] };
    stack
        .with_mapping_disabled(STORE_READINGS.0, async || {
            send(&stack, &[&bundle]).await?;
            tokio::time::sleep(A_WHILE).await;
            ensure!(stack.samples(sensor_id, "limit=10").await?.is_empty(), "stored");
            is_reported(&stack, STORE_READINGS, Value::Null).await
        })
        .await?;
    all_run(&stack).await?;
    until("the readings to be stored", TIMEOUT, async || {
        let samples = stack.samples(sensor_id, "limit=10").await?;
        Ok(if samples == bundle.series[0].samples {
            Look::Found(())
        } else {
            Look::Saw(format!("{samples:?}"))
        })
    })
    .await
}
