//! Tests disruptions from outside the code: an outage, failing functions and killed processes. Each test
//! affects the whole stack, so they run one at a time. Each test checks that its fault happened where it was
//! intended before it checks the result.

#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{
    AlertingId, Metric, SensorId, SiteId, Timestamp, names,
    readings::{Bundle, Series},
    sample::Sample,
};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    capture::{Capture, event_id},
    data_logger::send,
    executions::Task,
    inventory::Inventory,
    log,
    readings::{Item, first_day},
    sites::{DECLINED_CARD, GOOD_CARD, Ids, UNDO, registration, residue},
    stripe,
    wait::{Poll, TIMEOUT, until, until_true},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::{BrokenFunction, FrozenProcesses, Outage, VisibilityTimeout, WaitScale};

static STACK_LOCK: Mutex<()> = Mutex::const_new(());

const METRIC: Metric = Metric::AirPressure;

async fn register(stack: &Stack, what: &str, card: &str) -> Result<Ids> {
    let name = format!("{what} {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], card)).await
}

/// Onboards a site. After it, every function of the onboarding has a warm process.
async fn warm_up(stack: &Stack) -> Result<()> {
    stack.deliver(&[METRIC], 20).await?;
    let ids = register(stack, "warm-up", GOOD_CARD).await?;
    stack.wait_until_active(ids.site_id).await?;
    log::published_saga_events(stack, ids.onboarding_id).await?;
    Ok(())
}

/// Waits until the saga is at this step and has attempted it at least once.
async fn wait_for_step(stack: &Stack, ids: Ids, step: &str) -> Result<()> {
    until(&format!("the saga to be at {step}"), TIMEOUT, async || {
        let execution = stack.onboarding(ids.onboarding_id).await?;
        let current = execution.as_ref().and_then(|execution| execution.current());
        Ok(match current {
            Some(task) if task.name == step && task.attempts > 0 => Poll::Ready(()),
            _ => Poll::Pending(format!("{execution:?}")),
        })
    })
    .await
}

/// Checks that the site was rejected because of this step, and that nothing is left of it. Returns the name of the
/// error.
async fn assert_undone(stack: &Stack, ids: Ids, step: &str) -> Result<String> {
    let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
    assert_eq!(execution.status, ExecutionStatus::Failed, "{execution:?}");
    let error = execution.task(step).and_then(Task::failure);
    let error = error.with_context(|| format!("{step} did not fail: {execution:?}"))?.to_owned();
    let teardown = stack.teardown(ids.onboarding_id).await?.context("no teardown was started")?;
    assert_eq!(teardown.succeeded(), UNDO, "{teardown:?}");
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "REJECTED", "{site}");
    assert_eq!(site.body["onboarding"]["failure"]["step"], step, "{site}");
    let saga_events = log::published_saga_events(stack, ids.onboarding_id).await?;
    assert_eq!(log::gaps(&saga_events), [""; 0]);
    assert_eq!(residue(stack, ids).await?, []);
    assert_stock_adds_up(stack).await?;
    Ok(error)
}

async fn assert_stock_adds_up(stack: &Stack) -> Result<()> {
    let inventory = Inventory::read(stack).await?;
    let difference = Inventory::difference(&inventory.stock, &inventory.unreserved);
    assert!(difference.is_empty(), "the stock differs by {difference:?}");
    Ok(())
}

#[tokio::test]
async fn an_outage_of_the_provider_fills_the_queue_which_then_drains() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let queue = stack.queue_url(names::INITIALIZE_SUBSCRIPTION).await?;
    let queued = async || {
        let (visible, in_flight) = stack.queue_depth(&queue).await?;
        anyhow::Ok((
            visible + in_flight,
            format!("{visible} visible, {in_flight} in flight or delayed"),
        ))
    };

    let outage = Outage::start()?;
    let sites = try_join_all((0..3).map(|_| register(&stack, "outage", GOOD_CARD))).await?;
    for ids in &sites {
        wait_for_step(&stack, *ids, "InitializeSubscription").await?;
    }
    until_true("the queue to hold three commands", TIMEOUT, async || {
        let (count, state) = queued().await?;
        Ok((count == 3, state))
    })
    .await?;
    // Longer than the first attempts, after which the commands return to the queue.
    tokio::time::sleep(Duration::from_secs(4)).await;
    until_true("the queue to still hold three commands", TIMEOUT, async || {
        let (count, state) = queued().await?;
        Ok((count == 3, state))
    })
    .await?;
    for ids in &sites {
        let execution =
            stack.onboarding(ids.onboarding_id).await?.context("no execution was started")?;
        assert_eq!(execution.status, ExecutionStatus::Running, "{execution:?}");
        let site = stack.site(ids.site_id).await?;
        assert_eq!(site.body["status"], "ONBOARDING", "{site}");
    }

    outage.end()?;
    for ids in &sites {
        stack.assert_onboarded_once(*ids).await?;
    }
    until_true("the queue to be empty", TIMEOUT, async || {
        let (count, state) = queued().await?;
        Ok((count == 0, state))
    })
    .await?;
    for ids in &sites {
        let onboarding = ids.onboarding_id.to_string();
        let failures = stack.failures_about("initialize-subscription", &onboarding).await?;
        assert_eq!(failures, [], "commands became dead letters");
    }
    Ok(())
}

#[tokio::test]
async fn a_sensor_that_is_changed_during_the_onboarding_keeps_its_change() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let outage = Outage::start()?;
    let name = format!("changed early {}", Uuid::new_v4().simple());
    let mut registration = registration(&name, &[METRIC], GOOD_CARD);
    registration["sensors"][0]["max"] = json!(1100);
    let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
    wait_for_step(&stack, ids, "InitializeSubscription").await?;

    // The saga has passed the sensors to configure-alerting as they were registered.
    let sensor = stack.sensors(ids.site_id).await?[0].sensor_id;
    let body = json!({ "noDataValues": [-9999.9], "validFrom": null }).to_string();
    until("the register to know the sensor", TIMEOUT, async || {
        let path = format!("/sensors/{sensor}");
        let response = stack.call(Call::patch(path, body.as_str())).await?;
        Ok(if response.status == 200 { Poll::Ready(()) } else { Poll::Pending(response) })
    })
    .await?;
    let row = async || {
        let id = format!("alerting#{}", AlertingId::from_onboarding(ids.onboarding_id));
        let rows = stack.rows_with(names::ALERTING, "id", &id).await?;
        anyhow::Ok(rows.into_iter().next().unwrap_or_default())
    };
    until_true("the change to be kept", TIMEOUT, async || {
        let row = row().await?;
        Ok((row["status"] == "NOT_CONFIGURED", row))
    })
    .await?;

    outage.end()?;
    stack.wait_until_active(ids.site_id).await?;
    let row = row().await?;
    assert_eq!(row["status"], "CONFIGURED", "{row}");
    assert_eq!(row["rules"][0]["noDataValues"], json!([{ "values": [-9999.9] }]), "{row}");
    let failures = stack.failures_about("project-rules", &ids.site_id.to_string()).await?;
    assert_eq!(failures, [], "changes became failures");
    Ok(())
}

#[tokio::test]
async fn a_step_that_fails_with_an_unknown_error_is_undone() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    // A version that can't start, because the name of its table is empty.
    let broken = BrokenFunction::deploy(&stack, "configure-alerting", "ALERTING_TABLE", "").await?;
    let ids = broken
        .during(async || {
            let ids = register(&stack, "unknown error", GOOD_CARD).await?;
            stack.wait_for_onboarding_end(ids.onboarding_id).await?;
            Ok(ids)
        })
        .await?;
    let error = assert_undone(&stack, ids, "ConfigureAlerting").await?;
    let known =
        ["CardDeclined", "KitsOutOfStock", "Superseded", "Transient", "InvalidInput", "Internal"];
    assert!(!known.contains(&error.as_str()), "{error} is a known error");
    Ok(())
}

#[tokio::test]
async fn an_undo_that_fails_once_is_retried() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let broken =
        BrokenFunction::deploy(&stack, "release-kits", "INVENTORY_TABLE", "no-such-table").await?;
    let ids = broken
        .during(async || {
            let ids = register(&stack, "undo fails once", DECLINED_CARD).await?;
            until("the undo to fail", TIMEOUT, async || {
                let teardown = stack.teardown(ids.onboarding_id).await?;
                let task = teardown.as_ref().and_then(|teardown| teardown.task("ReleaseKits"));
                Ok(match task {
                    Some(task) if !task.failures.is_empty() => Poll::Ready(()),
                    _ => Poll::Pending(format!("{teardown:?}")),
                })
            })
            .await?;
            Ok(ids)
        })
        .await?;
    let error = assert_undone(&stack, ids, "InitializeSubscription").await?;
    assert_eq!(error, "CardDeclined");
    let teardown = stack.teardown(ids.onboarding_id).await?.context("no teardown was started")?;
    assert_eq!(teardown.status, ExecutionStatus::Succeeded);
    let task = teardown.task("ReleaseKits").context("the teardown has no such task")?;
    assert!(task.succeeded && !task.failures.is_empty(), "{task:?}");
    Ok(())
}

#[tokio::test]
async fn an_undo_that_fails_permanently_is_reported_and_the_others_run() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    // The waits between eight retries last three minutes, which is too long for a test.
    let scale = WaitScale::set(&stack, 0.01).await?;
    let broken =
        BrokenFunction::deploy(&stack, "deprovision-sensors", "DEVICES_TABLE", "no-such-table")
            .await?;
    let result = broken
        .during(async || {
            let ids = register(&stack, "undo fails permanently", DECLINED_CARD).await?;
            let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
            // One recovery starts, as it does after a stopped saga. It fails too.
            until("the recovery to fail", TIMEOUT, async || {
                let name = format!("recovery-{}", ids.onboarding_id);
                let recovery = stack.teardown_named(&name).await?;
                Ok(match &recovery {
                    Some(recovery) if recovery.status == ExecutionStatus::Failed => Poll::Ready(()),
                    _ => Poll::Pending(format!("{recovery:?}")),
                })
            })
            .await?;
            Ok((ids, execution))
        })
        .await;
    scale.restore(&stack).await?;
    let (ids, execution) = result?;

    assert_eq!(execution.status, ExecutionStatus::Failed, "{execution:?}");
    assert_eq!(execution.error.as_deref(), Some("CompensationIncomplete"), "{execution:?}");
    let cause: Value = serde_json::from_str(execution.cause.as_deref().unwrap_or_default())?;
    assert_eq!(cause["onboardingFailure"]["error"], "CardDeclined", "{cause:#}");
    assert!(cause["teardownCause"].to_string().contains("DeprovisionSensors"), "{cause:#}");
    let teardown = stack.teardown(ids.onboarding_id).await?.context("no teardown was started")?;
    assert_eq!(teardown.error.as_deref(), Some("CompensationIncomplete"), "{teardown:?}");
    let others: Vec<_> = UNDO.into_iter().filter(|step| *step != "DeprovisionSensors").collect();
    assert_eq!(teardown.succeeded(), others);
    let failed = teardown.task("DeprovisionSensors").context("the teardown has no such task")?;
    assert!(failed.failures.len() > 5, "too few attempts: {failed:?}");
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "REJECTED", "{site}");
    let residue = residue(&stack, ids).await?;
    let tables: Vec<_> = residue.iter().map(|(table, _)| table.as_str()).collect();
    assert_eq!(tables, [names::DEVICES], "{residue:?}");

    // After the rollback, the engineer on call starts the teardown again with the input from the cause, as the alarm's
    // description says.
    let input = cause["teardownInput"].to_string();
    let arn = stack.start_teardown(&input).await?;
    until("the teardown to end", TIMEOUT, async || {
        let teardown =
            stack.teardown(ids.onboarding_id).await?.context("no teardown was started")?;
        ensure!(teardown.arn == arn, "another teardown is newer: {teardown:?}");
        Ok(match teardown.status {
            ExecutionStatus::Running => Poll::Pending(format!("{teardown:?}")),
            _ => Poll::Ready(()),
        })
    })
    .await?;
    let error = assert_undone(&stack, ids, "InitializeSubscription").await?;
    assert_eq!(error, "CardDeclined");
    Ok(())
}

/// The maximum number of attempts. On a busy machine, the test can miss an interval of a few milliseconds. Then it
/// tries again with other sites.
const MAX_ATTEMPTS: usize = 5;

#[tokio::test]
async fn publish_events_killed_during_a_batch_loses_nothing() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    for _ in 0..MAX_ATTEMPTS {
        warm_up(&stack).await?;
        let capture = Capture::start(&stack).await?;
        let frozen = FrozenProcesses::stop(&stack, "publish-events")?;
        let killed = frozen.pids();
        let sites = try_join_all((0..6).map(|_| register(&stack, "killed", GOOD_CARD))).await?;

        // The batch is in progress when events are on the bus but not yet marked as published in the table.
        let onboardings: BTreeSet<_> =
            sites.iter().map(|ids| ids.onboarding_id.to_string()).collect();
        let count_unmarked = async || {
            let rows = stack.rows(names::EVENTS).await?;
            let events = rows.iter().filter(|row| {
                row["correlationId"].as_str().is_some_and(|id| onboardings.contains(id))
            });
            let marked = events.filter(|row| row["publishedAt"].is_string()).count();
            let delivered = usize::try_from(capture.pending(&stack).await?)?;
            anyhow::Ok(delivered.saturating_sub(marked))
        };
        frozen
            .step_until("unmarked events on the bus", async || {
                Ok(if count_unmarked().await? > 0 { Ok(()) } else { Err("none") })
            })
            .await?;
        frozen.kill().await?;
        // Calls that left the process before it was killed have completed by now.
        let unmarked = count_unmarked().await?;

        for ids in &sites {
            stack.assert_onboarded_once(*ids).await?;
        }
        let running = faults::pids(&stack, "publish-events")?;
        assert!(running.iter().all(|pid| !killed.contains(pid)), "{killed:?} was not killed");
        let duplicates = assert_all_delivered(&stack, &capture, &sites).await?;
        assert!(duplicates <= unmarked, "{duplicates} duplicates of {unmarked} unmarked events");
        capture.stop(&stack).await?;
        assert_stock_adds_up(&stack).await?;
        if unmarked > 0 {
            return Ok(());
        }
    }
    bail!("publish-events was never killed during a batch");
}

/// Checks that exactly the events of these sites were delivered. Returns the number of duplicate deliveries.
async fn assert_all_delivered(stack: &Stack, capture: &Capture, sites: &[Ids]) -> Result<usize> {
    let mut logged = BTreeSet::new();
    for ids in sites {
        for event in log::published_saga_events(stack, ids.onboarding_id).await? {
            logged.insert(event.id()?);
        }
    }
    let event_ids = |events: &[Value]| {
        events.iter().map(|event| event_id(event).to_owned()).collect::<BTreeSet<_>>()
    };
    let captured = capture
        .take_until(stack, Duration::from_secs(15), |events| event_ids(events).is_superset(&logged))
        .await?;
    assert_eq!(event_ids(&captured), logged, "exactly the logged events must be delivered");
    // An event of which two versions are published is delivered once in each.
    let forms: BTreeSet<_> =
        captured.iter().map(|event| (event_id(event), event["detail-type"].to_string())).collect();
    Ok(captured.len() - forms.len())
}

#[tokio::test]
async fn a_step_killed_before_its_effect_is_undone() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let frozen = FrozenProcesses::stop(&stack, "provision-sensors")?;
    let ids = register(&stack, "killed before", GOOD_CARD).await?;
    wait_for_step(&stack, ids, "ProvisionSensors").await?;
    let onboarding = ids.onboarding_id.to_string();
    let rows = stack.rows_with(names::DEVICES, "onboardingId", &onboarding).await?;
    assert_eq!(rows, [] as [Value; 0], "the step took effect before the kill");
    frozen.kill().await?;

    assert_undone(&stack, ids, "ProvisionSensors").await?;
    let saga_events = log::saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(log::by_entity(&saga_events).get("sensors"), None, "{saga_events:?}");
    Ok(())
}

#[tokio::test]
async fn a_step_killed_after_its_effect_is_undone() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    for _ in 0..MAX_ATTEMPTS {
        warm_up(&stack).await?;
        let frozen = FrozenProcesses::stop(&stack, "provision-sensors")?;
        let ids = register(&stack, "killed after", GOOD_CARD).await?;
        wait_for_step(&stack, ids, "ProvisionSensors").await?;
        let onboarding = ids.onboarding_id.to_string();
        frozen
            .step_until("the sensors in the table", async || {
                let rows = stack.rows_with(names::DEVICES, "onboardingId", &onboarding).await?;
                Ok(if rows.is_empty() { Err("none") } else { Ok(()) })
            })
            .await?;
        frozen.kill().await?;

        let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
        if execution.task("ProvisionSensors").is_some_and(|task| task.succeeded) {
            continue; // It responded before it was killed.
        }
        assert_undone(&stack, ids, "ProvisionSensors").await?;
        let saga_events = log::saga_events(&stack, ids.onboarding_id).await?;
        let both = vec!["SensorsProvisioned", "SensorsDeprovisioned"];
        assert_eq!(log::by_entity(&saga_events).get("sensors"), Some(&both));
        return Ok(());
    }
    bail!("provision-sensors was never killed between its effect and its response");
}

#[tokio::test]
async fn billing_killed_between_the_payment_and_its_commit_pays_once() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    // The message of a killed invocation returns after the visibility timeout, which is two minutes in
    // production.
    let visibility = VisibilityTimeout::set(&stack, names::INITIALIZE_SUBSCRIPTION, 5).await?;
    let result = billing_killed(&stack).await;
    visibility.restore(&stack).await?;
    result
}

async fn billing_killed(stack: &Stack) -> Result<()> {
    for _ in 0..MAX_ATTEMPTS {
        warm_up(stack).await?;
        let frozen = FrozenProcesses::stop(stack, "initialize-subscription")?;
        let ids = register(stack, "killed while paying", GOOD_CARD).await?;
        wait_for_step(stack, ids, "InitializeSubscription").await?;
        let onboarding = ids.onboarding_id.to_string();
        frozen
            .step_until("a subscription at the provider", async || {
                let objects = stripe::billing_objects(stack, &onboarding).await?;
                let paid = !objects.subscriptions.is_empty();
                Ok(if paid { Ok(()) } else { Err(format!("{objects:?}")) })
            })
            .await?;
        frozen.kill().await?;
        let row = async || {
            let rows = stack.rows_with(names::BILLING, "onboardingId", &onboarding).await?;
            anyhow::Ok(rows.into_iter().next())
        };
        let killed_before_commit = row().await?.is_none();

        stack.assert_onboarded_once(ids).await?;
        let objects = stripe::billing_objects(stack, &onboarding).await?;
        let row = row().await?.context("the subscription has no row")?;
        assert_eq!(row["providerSubscriptionId"], json!(objects.subscriptions[0]), "{row}");
        if killed_before_commit {
            return Ok(());
        }
    }
    bail!("initialize-subscription was never killed between the payment and its commit");
}

/// Returns a day of readings in bundles of an hour. Each bundle has a series for each sensor, which is stored as one
/// row.
fn hours(site: SiteId, sensors: &[SensorId]) -> Result<Vec<Bundle>> {
    let midnight: Timestamp = first_day("00:00:00").parse()?;
    let bundle = |hour: i64| {
        let start = midnight.plus_millis(hour * 60 * 60 * 1000);
        let minute = |minute: u32| {
            Sample::new(start.plus_millis(i64::from(minute) * 60 * 1000), f64::from(minute))
        };
        let series = |sensor: &SensorId| Series::new(*sensor, (0..60).map(minute).collect());
        let series = sensors.iter().map(series).collect();
        Ok(Bundle::new(format!("hour-{hour}").parse()?, site, series))
    };
    (0..24).map(bundle).collect()
}

/// Waits for `count` rows of these sensors' samples, and returns all rows.
async fn rows(stack: &Stack, sensors: &[SensorId], count: usize) -> Result<Vec<Item>> {
    until(&format!("{count} rows of samples"), TIMEOUT, async || {
        let rows = try_join_all(sensors.iter().map(|sensor| stack.series_rows(*sensor)));
        let rows = rows.await?.concat();
        Ok(if rows.len() >= count { Poll::Ready(rows) } else { Poll::Pending(rows.len()) })
    })
    .await
}

#[tokio::test]
async fn store_readings_killed_during_a_batch_stores_everything_once() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    for _ in 0..MAX_ATTEMPTS {
        stack.deliver(&[METRIC], 3).await?;
        let registration = registration("killed while storing", &[METRIC; 3], GOOD_CARD);
        let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
        stack.wait_until_active(ids.site_id).await?;
        let sensors = stack.sensors(ids.site_id).await?;
        let sensors: Vec<_> = sensors.iter().map(|sensor| sensor.sensor_id).collect();
        stack.wait_for_sensors(sensors.iter().copied()).await?;
        let bundles = hours(ids.site_id, &sensors)?;
        let total = bundles.len() * sensors.len();
        let (first, others) = bundles.split_first().context("no bundles")?;
        // After this, the function has a warm process.
        send(&stack, &[first]).await?;
        rows(&stack, &sensors, sensors.len()).await?;

        let frozen = FrozenProcesses::stop(&stack, "store-readings")?;
        let killed = frozen.pids();
        send(&stack, &others.iter().collect::<Vec<_>>()).await?;
        frozen
            .step_until("the first rows of the batch", async || {
                let count = rows(&stack, &sensors, 0).await?.len();
                Ok(if count > sensors.len() { Ok(()) } else { Err(count) })
            })
            .await?;
        frozen.kill().await?;
        let rows_at_kill = rows(&stack, &sensors, 0).await?;

        let final_rows = rows(&stack, &sensors, total).await?;
        let running = faults::pids(&stack, "store-readings")?;
        assert!(running.iter().all(|pid| !killed.contains(pid)), "{killed:?} was not killed");
        assert_eq!(final_rows.len(), total, "one row for each series of a bundle");
        for row in &rows_at_kill {
            assert!(final_rows.contains(row), "the row was changed: {row:?}");
        }
        for (index, sensor) in sensors.iter().enumerate() {
            let sent = bundles.iter().flat_map(|bundle| bundle.series[index].samples.clone());
            let samples = stack.samples(*sensor, "limit=10000").await?;
            assert_eq!(samples, sent.collect::<Vec<_>>());
        }
        let quarantine = stack.quarantine().await?;
        let site_id = ids.site_id.to_string();
        assert!(quarantine.iter().all(|record| record.partition_key() != site_id));
        if rows_at_kill.len() < total {
            return Ok(());
        }
    }
    bail!("store-readings was never killed during a batch");
}
