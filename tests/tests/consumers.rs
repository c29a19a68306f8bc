//! Tests that check-consumers reports a disabled event source mapping with its backlog. After the mapping is enabled,
//! it is no longer reported, and the backlog is processed.
//!
//! This is a single test, because a disabled mapping affects the whole stack.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contracts::{
    Metric, Timestamp,
    readings::{Bundle, Series},
    sample::Sample,
};
use serde_json::{Value, json};
use tests::{
    Stack,
    data_logger::send,
    log,
    readings::first_day,
    sites::{GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};
use uuid::Uuid;

/// The logical id of each mapping, and its name in the report of check-consumers.
const RECORD_FAILURE: (&str, &str) =
    ("SitesFailuresMapping", "record-failure <- queue sites-failures");
const PUBLISH_EVENTS: (&str, &str) = ("PublishEventsMapping", "publish-events <- table events");
const STORE_READINGS: (&str, &str) = ("StoreReadingsMapping", "store-readings <- stream readings");

const METRIC: Metric = Metric::AirTemperature;
/// More than the time that an enabled consumer needs for a message.
const PROCESSING_TIME: Duration = Duration::from_secs(3);

async fn assert_all_run(stack: &Stack) -> Result<()> {
    let check = stack.check_consumers().await?;
    ensure!(check.response["notRunning"] == json!([]), "{check:?}");
    ensure!(check.response["checked"].as_u64().is_some_and(|checked| checked >= 15), "{check:?}");
    ensure!(*check.metric()? == json!([0.0]), "{check:?}");
    let status = consumers_of_status(stack)?;
    ensure!(status["health"] == "good", "{status}");
    Ok(())
}

/// Returns the check `consumers` of `fieldctl status`.
fn consumers_of_status(stack: &Stack) -> Result<Value> {
    let output = stack.fieldctl(&["--json", "status"])?;
    let status = output.document()?;
    let checks = status["checks"].as_array().context("the status has no checks")?;
    let check = checks
        .iter()
        .find(|check| check["name"] == "consumers")
        .context("no check named consumers")?;
    ensure!(check["health"] == "good" || output.code == 1, "{output:?}");
    Ok(check.clone())
}

/// Checks that only this mapping is reported.
async fn assert_reported(
    stack: &Stack,
    (mapping, consumer): (&str, &str),
    waiting: Value,
) -> Result<()> {
    let check = stack.check_consumers().await?;
    let stopped = json!({ "mapping": consumer, "state": "Disabled", "waiting": waiting });
    ensure!(check.response["notRunning"] == json!([stopped]), "{check:?}");
    ensure!(*check.metric()? == json!([1.0]), "{check:?}");
    let line =
        check.line(consumer).with_context(|| format!("no log line about {consumer}: {check:?}"))?;
    ensure!(line["level"] == "ERROR" && line["state"] == "Disabled", "{line}");
    let uuid = stack.physical_id(mapping).await?;
    ensure!(line["uuid"] == json!(uuid), "{line}");
    let status = consumers_of_status(stack)?;
    let next = format!("aws lambda update-event-source-mapping --uuid {uuid} --enabled");
    ensure!(status["health"] == "problem" && status["next"] == json!(next), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_disabled_consumer_is_reported_until_it_is_enabled() -> Result<()> {
    let stack = Stack::connect().await?;
    assert_all_run(&stack).await?;

    // record-failure: the failure is not recorded.
    let about = Uuid::new_v4().to_string();
    stack
        .with_mapping_disabled(RECORD_FAILURE.0, async || {
            let url = stack.queue_url("sites-failures").await?;
            stack.sqs().send_message().queue_url(url).message_body(&about).send().await?;
            tokio::time::sleep(PROCESSING_TIME).await;
            ensure!(
                stack.failures_about("sites-failures", &about).await?.is_empty(),
                "recorded without its consumer"
            );
            assert_reported(&stack, RECORD_FAILURE, json!(1)).await
        })
        .await?;
    assert_all_run(&stack).await?;
    let failure = stack.failure_about("sites-failures", &about).await?;
    stack.fieldctl_failures(&["discard", &failure.id, "--note", "sent by a test", "--yes"])?;

    // publish-events: the events are not published.
    stack.deliver(&[METRIC], 1).await?;
    let name = format!("no events {}", Uuid::new_v4().simple());
    let site = registration(&name, &[METRIC], GOOD_CARD);
    let ids = stack
        .with_mapping_disabled(PUBLISH_EVENTS.0, async || {
            let ids = stack.register(&Uuid::new_v4().to_string(), &site).await?;
            tokio::time::sleep(PROCESSING_TIME).await;
            let saga_events = log::saga_events(&stack, ids.onboarding_id).await?;
            ensure!(!saga_events.is_empty(), "no events of {ids:?}");
            ensure!(saga_events.iter().all(|event| !event.is_published()), "{saga_events:?}");
            assert_reported(&stack, PUBLISH_EVENTS, Value::Null).await?;
            Ok(ids)
        })
        .await?;
    assert_all_run(&stack).await?;
    stack.assert_onboarded_once(ids).await?;

    // store-readings: the readings are accepted and not stored.
    let sensors = stack.sensors(ids.site_id).await?;
    let sensor_id = sensors.first().context("the site has no sensor")?.sensor_id;
    stack.wait_for_sensors([sensor_id]).await?;
    let start: Timestamp = first_day("00:00:00").parse()?;
    let series = Series::new(sensor_id, vec![Sample::new(start, 1.0)]);
    let bundle = Bundle::new("waiting".parse()?, ids.site_id, vec![series]);
    stack
        .with_mapping_disabled(STORE_READINGS.0, async || {
            send(&stack, &[&bundle]).await?;
            tokio::time::sleep(PROCESSING_TIME).await;
            ensure!(
                stack.samples(sensor_id, "limit=10").await?.is_empty(),
                "stored without its consumer"
            );
            assert_reported(&stack, STORE_READINGS, Value::Null).await
        })
        .await?;
    assert_all_run(&stack).await?;
    until("the readings to be stored", TIMEOUT, async || {
        let samples = stack.samples(sensor_id, "limit=10").await?;
        Ok(if samples == bundle.series[0].samples {
            Poll::Ready(())
        } else {
            Poll::Pending(format!("{samples:?}"))
        })
    })
    .await
}
