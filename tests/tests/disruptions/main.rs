//! Tests disruptions from outside the code: an outage, failing functions and killed processes. Each test
//! affects the whole stack, so they run one at a time. Each test checks that its fault happened where it was
//! intended before it checks the result.

#[expect(dead_code, reason = "not every fault is brought about here")]
mod faults;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{
    Metric, SensorId, SiteId, Timestamp, names,
    readings::{Bundle, Sample, Series},
};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tests::{
    Stack,
    capture::{Capture, event_id},
    executions::Task,
    inventory::Inventory,
    log,
    logger::send,
    readings::Item,
    sites::{DECLINED_CARD, GOOD_CARD, Ids, UNDO, registration, residue},
    stripe,
    wait::{Look, TIMEOUT, until, until_true},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::{Broken, Frozen, Outage, Visibility, WaitScale};

static TURN: Mutex<()> = Mutex::const_new(());

const METRIC: Metric = Metric::AirPressure;

async fn register(stack: &Stack, what: &str, card: &str) -> Result<Ids> {
    let name = format!("{what} {}", Uuid::new_v4().simple());
    stack.register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], card)).await
}

/// Onboards a site. After it, every function of the onboarding has a warm process.
async fn warm_up(stack: &Stack) -> Result<()> {
    stack.deliver(&[METRIC], 20).await?;
    let ids = register(stack, "warm-up", GOOD_CARD).await?;
    stack.site_active(ids.site_id).await?;
    log::published_story(stack, ids.onboarding_id).await?;
    Ok(())
}

/// Waits until the saga is at that step and the step was tried at least once.
async fn at_step(stack: &Stack, ids: Ids, step: &str) -> Result<()> {
    until(&format!("the saga to be at {step}"), TIMEOUT, async || {
        let execution = stack.onboarding(ids.onboarding_id).await?;
        let current = execution.as_ref().and_then(|execution| execution.current());
        Ok(match current {
            Some(task) if task.name == step && task.tries > 0 => Look::Found(()),
            _ => Look::Saw(format!("{execution:?}")),
        })
    })
    .await
}

/// Checks that the site was rejected because of that step and that nothing is left of it. Returns the name of
/// the error.
async fn assert_undone(stack: &Stack, ids: Ids, step: &str) -> Result<String> {
    let execution = stack.onboarding_over(ids.onboarding_id).await?;
    assert_eq!(execution.status, ExecutionStatus::Failed, "{execution:?}");
    let error = execution.task(step).and_then(Task::failure);
    let error = error.with_context(|| format!("{step} did not fail: {execution:?}"))?.to_owned();
    let teardown = stack.teardown(ids.onboarding_id).await?.context("a teardown")?;
    assert_eq!(teardown.succeeded(), UNDO, "{teardown:?}");
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "REJECTED", "{site}");
    assert_eq!(site.body["onboarding"]["failure"]["step"], step, "{site}");
    let story = log::published_story(stack, ids.onboarding_id).await?;
    assert_eq!(log::gaps(&story), [""; 0]);
    assert_eq!(residue(stack, ids).await?, []);
    assert_stock_adds_up(stack).await?;
    Ok(error)
}

async fn assert_stock_adds_up(stack: &Stack) -> Result<()> {
    let inventory = Inventory::read(stack).await?;
    let off = Inventory::off(&inventory.stock, &inventory.unreserved);
    assert!(off.is_empty(), "the stock is off by {off:?}");
    Ok(())
}

#[tokio::test]
async fn an_outage_of_the_provider_fills_the_queue_which_then_drains() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let queue = stack.queue_url(names::INITIALIZE_SUBSCRIPTION).await?;
    let held = async || {
        let (waiting, in_work) = stack.depth(&queue).await?;
        anyhow::Ok((waiting + in_work, format!("{waiting} waiting, {in_work} in work or delayed")))
    };

    let outage = Outage::begin()?;
    let sites = try_join_all((0..3).map(|_| register(&stack, "outage", GOOD_CARD))).await?;
    for ids in &sites {
        at_step(&stack, *ids, "InitializeSubscription").await?;
    }
    until_true("the queue to hold three commands", TIMEOUT, async || {
        let (count, saw) = held().await?;
        Ok((count == 3, saw))
    })
    .await?;
    // Longer than the first tries, after which the commands return to the queue.
    tokio::time::sleep(Duration::from_secs(4)).await;
    until_true("the queue to hold three commands still", TIMEOUT, async || {
        let (count, saw) = held().await?;
        Ok((count == 3, saw))
    })
    .await?;
    for ids in &sites {
        let execution = stack.onboarding(ids.onboarding_id).await?.context("an execution")?;
        assert_eq!(execution.status, ExecutionStatus::Running, "{execution:?}");
        let site = stack.site(ids.site_id).await?;
        assert_eq!(site.body["status"], "ONBOARDING", "{site}");
    }

    outage.end()?;
    for ids in &sites {
        stack.onboarded_once(*ids).await?;
    }
    until_true("the queue to be empty", TIMEOUT, async || {
        let (count, saw) = held().await?;
        Ok((count == 0, saw))
    })
    .await?;
    for ids in &sites {
        let onboarding = ids.onboarding_id.to_string();
        let dead = stack.failures_about("initialize-subscription", &onboarding).await?;
        assert_eq!(dead, [], "dead letters");
    }
    Ok(())
}

#[tokio::test]
async fn a_step_that_fails_with_an_unknown_error_is_undone() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    // A version that can't start, because the name of its table is empty.
    let broken = Broken::version(&stack, "configure-alerting", "ALERTING_TABLE", "").await?;
    let ids = broken
        .during(async || {
            let ids = register(&stack, "unknown error", GOOD_CARD).await?;
            stack.onboarding_over(ids.onboarding_id).await?;
            Ok(ids)
        })
        .await?;
    let error = assert_undone(&stack, ids, "ConfigureAlerting").await?;
    let known =
        ["CardDeclined", "KitsOutOfStock", "Superseded", "Transient", "InvalidInput", "Internal"];
    assert!(!known.contains(&error.as_str()), "{error} is no unknown error");
    Ok(())
}

#[tokio::test]
async fn an_undo_that_fails_once_is_retried() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let broken =
        Broken::version(&stack, "release-kits", "INVENTORY_TABLE", "no-such-table").await?;
    let ids = broken
        .during(async || {
            let ids = register(&stack, "undo fails once", DECLINED_CARD).await?;
            until("the undo to fail", TIMEOUT, async || {
                let teardown = stack.teardown(ids.onboarding_id).await?;
                let task = teardown.as_ref().and_then(|teardown| teardown.task("ReleaseKits"));
                Ok(match task {
                    Some(task) if !task.failures.is_empty() => Look::Found(()),
                    _ => Look::Saw(format!("{teardown:?}")),
                })
            })
            .await?;
            Ok(ids)
        })
        .await?;
    let error = assert_undone(&stack, ids, "InitializeSubscription").await?;
    assert_eq!(error, "CardDeclined");
    let teardown = stack.teardown(ids.onboarding_id).await?.context("a teardown")?;
    assert_eq!(teardown.status, ExecutionStatus::Succeeded);
    let task = teardown.task("ReleaseKits").context("the undo")?;
    assert!(task.succeeded && !task.failures.is_empty(), "{task:?}");
    Ok(())
}

#[tokio::test]
async fn an_undo_that_fails_permanently_is_reported_and_the_others_run() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    // The waits between eight retries last three minutes, which is too long for a test.
    let scale = WaitScale::set(&stack, 0.01).await?;
    let broken =
        Broken::version(&stack, "deprovision-sensors", "DEVICES_TABLE", "no-such-table").await?;
    let over = broken
        .during(async || {
            let ids = register(&stack, "undo fails for good", DECLINED_CARD).await?;
            let execution = stack.onboarding_over(ids.onboarding_id).await?;
            // It is recovered once, as if it had been stopped. That fails too.
            until("the recovery to fail", TIMEOUT, async || {
                let name = format!("recovery-{}", ids.onboarding_id);
                let recovery = stack.teardown_named(&name).await?;
                Ok(match &recovery {
                    Some(recovery) if recovery.status == ExecutionStatus::Failed => Look::Found(()),
                    _ => Look::Saw(format!("{recovery:?}")),
                })
            })
            .await?;
            Ok((ids, execution))
        })
        .await;
    scale.restore(&stack).await?;
    let (ids, execution) = over?;

    assert_eq!(execution.status, ExecutionStatus::Failed, "{execution:?}");
    assert_eq!(execution.error.as_deref(), Some("CompensationIncomplete"), "{execution:?}");
    let cause: Value = serde_json::from_str(execution.cause.as_deref().unwrap_or_default())?;
    assert_eq!(cause["onboardingFailure"]["error"], "CardDeclined", "{cause:#}");
    assert!(cause["teardownCause"].to_string().contains("DeprovisionSensors"), "{cause:#}");
    let teardown = stack.teardown(ids.onboarding_id).await?.context("a teardown")?;
    assert_eq!(teardown.error.as_deref(), Some("CompensationIncomplete"), "{teardown:?}");
    let others: Vec<_> = UNDO.into_iter().filter(|step| *step != "DeprovisionSensors").collect();
    assert_eq!(teardown.succeeded(), others);
    let failed = teardown.task("DeprovisionSensors").context("the undo")?;
    assert!(failed.failures.len() > 5, "it was not tried often enough: {failed:?}");
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "REJECTED", "{site}");
    let left = residue(&stack, ids).await?;
    let places: Vec<_> = left.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(places, [names::DEVICES], "{left:?}");

    // After the rollback, the operator starts the teardown again with the input from the cause, as the alarm
    // says.
    let input = cause["teardownInput"].to_string();
    let arn = stack.start_teardown(&input).await?;
    until("the teardown to be over", TIMEOUT, async || {
        let teardown = stack.teardown(ids.onboarding_id).await?.context("a teardown")?;
        ensure!(teardown.arn == arn, "the newest teardown is another one: {teardown:?}");
        Ok(match teardown.status {
            ExecutionStatus::Running => Look::Saw(format!("{teardown:?}")),
            _ => Look::Found(()),
        })
    })
    .await?;
    let error = assert_undone(&stack, ids, "InitializeSubscription").await?;
    assert_eq!(error, "CardDeclined");
    Ok(())
}

/// The number of attempts. A moment of a few milliseconds can be missed on a busy machine; the test then tries
/// again with other sites.
const CHANCES: usize = 5;

#[tokio::test]
async fn publish_events_killed_during_a_batch_loses_nothing() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    for _ in 0..CHANCES {
        warm_up(&stack).await?;
        let capture = Capture::start(&stack).await?;
        let frozen = Frozen::processes(&stack, "publish-events")?;
        let killed = frozen.pids();
        let sites = try_join_all((0..6).map(|_| register(&stack, "killed", GOOD_CARD))).await?;

        // During the batch: events are on the bus, and the table does not have them as published yet.
        let of_ours: BTreeSet<_> = sites.iter().map(|ids| ids.onboarding_id.to_string()).collect();
        let ahead = async || {
            let rows = stack.rows(names::EVENTS).await?;
            let ours = rows
                .iter()
                .filter(|row| row["correlationId"].as_str().is_some_and(|id| of_ours.contains(id)));
            let marked = ours.filter(|row| row["publishedAt"].is_string()).count();
            let delivered = usize::try_from(capture.waiting(&stack).await?)?;
            anyhow::Ok(delivered.saturating_sub(marked))
        };
        frozen
            .step_until("events on the bus that are not marked", async || {
                Ok(if ahead().await? > 0 { Ok(()) } else { Err("none") })
            })
            .await?;
        frozen.kill().await?;
        // Calls that left the process before it was killed have completed by now.
        let ahead = ahead().await?;

        for ids in &sites {
            stack.onboarded_once(*ids).await?;
        }
        let running = faults::pids(&stack, "publish-events")?;
        assert!(running.iter().all(|pid| !killed.contains(pid)), "{killed:?} was not killed");
        let twice = assert_all_heard(&stack, &capture, &sites).await?;
        assert!(twice <= ahead, "{twice} events came twice, of {ahead} that were not marked");
        capture.stop(&stack).await?;
        assert_stock_adds_up(&stack).await?;
        if ahead > 0 {
            return Ok(());
        }
    }
    bail!("publish-events was never killed in mid-batch");
}

/// Checks that exactly the events of these sites were delivered. Returns the number of duplicate deliveries.
async fn assert_all_heard(stack: &Stack, capture: &Capture, sites: &[Ids]) -> Result<usize> {
    let mut logged = BTreeSet::new();
    for ids in sites {
        for event in log::published_story(stack, ids.onboarding_id).await? {
            logged.insert(event.id()?);
        }
    }
    let heard = |events: &[Value]| {
        events.iter().map(|event| event_id(event).to_owned()).collect::<BTreeSet<_>>()
    };
    let captured = capture
        .take_until(stack, Duration::from_secs(15), |events| heard(events).is_superset(&logged))
        .await?;
    assert_eq!(heard(&captured), logged, "every event was delivered, and no other");
    Ok(captured.len() - logged.len())
}

#[tokio::test]
async fn a_step_killed_before_its_effect_is_undone() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    warm_up(&stack).await?;
    let frozen = Frozen::processes(&stack, "provision-sensors")?;
    let ids = register(&stack, "killed before", GOOD_CARD).await?;
    at_step(&stack, ids, "ProvisionSensors").await?;
    let onboarding = ids.onboarding_id.to_string();
    let rows = stack.rows_with(names::DEVICES, "onboardingId", &onboarding).await?;
    assert_eq!(rows, [] as [Value; 0], "the effect was there before the kill");
    frozen.kill().await?;

    assert_undone(&stack, ids, "ProvisionSensors").await?;
    let story = log::story(&stack, ids.onboarding_id).await?;
    assert_eq!(log::by_entity(&story).get("sensors"), None, "{story:?}");
    Ok(())
}

#[tokio::test]
async fn a_step_killed_after_its_effect_is_undone() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    for _ in 0..CHANCES {
        warm_up(&stack).await?;
        let frozen = Frozen::processes(&stack, "provision-sensors")?;
        let ids = register(&stack, "killed after", GOOD_CARD).await?;
        at_step(&stack, ids, "ProvisionSensors").await?;
        let onboarding = ids.onboarding_id.to_string();
        frozen
            .step_until("the sensors in the table", async || {
                let rows = stack.rows_with(names::DEVICES, "onboardingId", &onboarding).await?;
                Ok(if rows.is_empty() { Err("none") } else { Ok(()) })
            })
            .await?;
        frozen.kill().await?;

        let execution = stack.onboarding_over(ids.onboarding_id).await?;
        if execution.task("ProvisionSensors").is_some_and(|task| task.succeeded) {
            continue; // It had answered before it was killed.
        }
        assert_undone(&stack, ids, "ProvisionSensors").await?;
        let story = log::story(&stack, ids.onboarding_id).await?;
        let both = vec!["SensorsProvisioned", "SensorsDeprovisioned"];
        assert_eq!(log::by_entity(&story).get("sensors"), Some(&both));
        return Ok(());
    }
    bail!("provision-sensors was never killed between its effect and its answer");
}

#[tokio::test]
async fn billing_killed_between_the_payment_and_its_commit_pays_once() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    // The message of a killed invocation returns after the visibility timeout, which is two minutes in
    // production.
    let visibility = Visibility::set(&stack, names::INITIALIZE_SUBSCRIPTION, 5).await?;
    let outcome = billing_killed(&stack).await;
    visibility.restore(&stack).await?;
    outcome
}

async fn billing_killed(stack: &Stack) -> Result<()> {
    for _ in 0..CHANCES {
        warm_up(stack).await?;
        let frozen = Frozen::processes(stack, "initialize-subscription")?;
        let ids = register(stack, "killed while paying", GOOD_CARD).await?;
        at_step(stack, ids, "InitializeSubscription").await?;
        let onboarding = ids.onboarding_id.to_string();
        frozen
            .step_until("a subscription at the provider", async || {
                let billed = stripe::billed(stack, &onboarding).await?;
                let paid = !billed.subscriptions.is_empty();
                Ok(if paid { Ok(()) } else { Err(format!("{billed:?}")) })
            })
            .await?;
        frozen.kill().await?;
        let row = async || {
            let rows = stack.rows_with(names::BILLING, "onboardingId", &onboarding).await?;
            anyhow::Ok(rows.into_iter().next())
        };
        let was_in_time = row().await?.is_none();

        stack.onboarded_once(ids).await?;
        let billed = stripe::billed(stack, &onboarding).await?;
        let row = row().await?.context("a subscription's row")?;
        assert_eq!(row["providerSubscriptionId"], json!(billed.subscriptions[0]), "{row}");
        if was_in_time {
            return Ok(());
        }
    }
    bail!("initialize-subscription was never killed between the payment and its commit");
}

/// Returns a day of a site in bundles of an hour. Each bundle has a series for each sensor, which is stored as
/// one row.
fn hours(site: SiteId, sensors: &[SensorId]) -> Result<Vec<Bundle>> {
    let midnight: Timestamp = "2016-01-01T00:00:00Z".parse()?;
    let bundle = |hour: i64| {
        let start = midnight.plus_millis(hour * 60 * 60 * 1000);
        let minute = |minute: u32| {
            Sample(start.plus_millis(i64::from(minute) * 60 * 1000), f64::from(minute))
        };
        let series = |sensor: &SensorId| Series {
            sensor_id: *sensor,
            samples: (0..60).map(minute).collect(),
        };
        Ok(Bundle {
            bundle_id: format!("hour-{hour}").parse()?,
            site_id: site,
            series: sensors.iter().map(series).collect(),
        })
    };
    (0..24).map(bundle).collect()
}

/// Waits for that many rows of these sensors' samples, and returns all of them.
async fn rows(stack: &Stack, sensors: &[SensorId], count: usize) -> Result<Vec<Item>> {
    until(&format!("{count} rows of samples"), TIMEOUT, async || {
        let rows = try_join_all(sensors.iter().map(|sensor| stack.series_rows(*sensor)));
        let rows = rows.await?.concat();
        Ok(if rows.len() >= count { Look::Found(rows) } else { Look::Saw(rows.len()) })
    })
    .await
}

#[tokio::test]
async fn store_readings_killed_during_a_batch_stores_everything_once() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    for _ in 0..CHANCES {
        stack.deliver(&[METRIC], 3).await?;
        let registration = registration("killed while storing", &[METRIC; 3], GOOD_CARD);
        let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
        stack.site_active(ids.site_id).await?;
        let sensors = stack.sensors(ids.site_id).await?;
        let sensors: Vec<_> = sensors.iter().map(|sensor| sensor.sensor_id).collect();
        stack.sensors_known(sensors.iter().copied()).await?;
        let bundles = hours(ids.site_id, &sensors)?;
        let all = bundles.len() * sensors.len();
        let (first, others) = bundles.split_first().context("a bundle")?;
        // After this, the function has a warm process.
        send(&stack, &[first]).await?;
        rows(&stack, &sensors, sensors.len()).await?;

        let frozen = Frozen::processes(&stack, "store-readings")?;
        let killed = frozen.pids();
        send(&stack, &others.iter().collect::<Vec<_>>()).await?;
        frozen
            .step_until("the first rows of the batch", async || {
                let count = rows(&stack, &sensors, 0).await?.len();
                Ok(if count > sensors.len() { Ok(()) } else { Err(count) })
            })
            .await?;
        frozen.kill().await?;
        let at_the_kill = rows(&stack, &sensors, 0).await?;

        let at_last = rows(&stack, &sensors, all).await?;
        let running = faults::pids(&stack, "store-readings")?;
        assert!(running.iter().all(|pid| !killed.contains(pid)), "{killed:?} was not killed");
        assert_eq!(at_last.len(), all, "a row for each series of a bundle");
        for row in &at_the_kill {
            assert!(at_last.contains(row), "written again: {row:?}");
        }
        for (index, sensor) in sensors.iter().enumerate() {
            let sent = bundles.iter().flat_map(|bundle| bundle.series[index].samples.clone());
            let samples = stack.samples(*sensor, "limit=10000").await?;
            assert_eq!(samples, sent.collect::<Vec<_>>());
        }
        let quarantine = stack.quarantine().await?;
        let of_site = ids.site_id.to_string();
        assert!(quarantine.iter().all(|record| record.partition_key() != of_site));
        if at_the_kill.len() < all {
            return Ok(());
        }
    }
    bail!("store-readings was never killed in mid-batch");
}
