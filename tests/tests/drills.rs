//! Drills of an engineer on call: a test causes a failure on the deployed stack. `fieldctl` must show the right state
//! before, during and after the failure, and must name the cause and the next action. The drills with a disabled
//! consumer are in consumers.rs.
//!
//! Each drill affects the whole stack, so they run one at a time.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contracts::{
    Metric, OnboardingId, SensorId, Timestamp,
    readings::{Bundle, MAX_SERIES, Series},
    sample::Sample,
};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    data_logger::send,
    fieldctl::CommandOutput,
    readings::first_day,
    sites::{GOOD_CARD, Ids, registration},
    wait::{Poll, TIMEOUT, until},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::{BrokenFunction, Outage, RefusingProvider, WaitScale};

static STACK_LOCK: Mutex<()> = Mutex::const_new(());

const MINUTE: i64 = 60_000;

const METRIC: Metric = Metric::RelativeHumidity;

/// Longer than the open period of the circuit on the local stack plus a probe.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(90);

/// Registers a site with a unique name.
async fn register(stack: &Stack, what: &str) -> Result<(String, Ids)> {
    let name = format!("{what} {}", &Uuid::new_v4().simple().to_string()[..8]);
    let key = Uuid::new_v4().to_string();
    let ids = stack.register(&key, &registration(&name, &[METRIC], GOOD_CARD)).await?;
    Ok((name, ids))
}

/// Runs a command until it prints all of these texts.
async fn wait_for_output(
    stack: &Stack,
    arguments: &[&str],
    texts: &[&str],
) -> Result<CommandOutput> {
    until(
        &format!("fieldctl {} to show {texts:?}", arguments.join(" ")),
        PROVIDER_TIMEOUT,
        async || {
            let output = stack.fieldctl(arguments)?;
            // The output is wrapped at 80 columns.
            let text = output.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            Ok(if texts.iter().all(|expected| text.contains(expected)) {
                Poll::Ready(output)
            } else {
                Poll::Pending(format!("{}\n{}", output.stdout, output.stderr))
            })
        },
    )
    .await
}

/// Waits until a check of `fieldctl status` has this result.
async fn wait_for_health(stack: &Stack, name: &str, health: &str) -> Result<Value> {
    until(&format!("{name} to be {health}"), PROVIDER_TIMEOUT, async || {
        let output = stack.fieldctl(&["--json", "status"])?;
        let status = output.document()?;
        let checks = status["checks"].as_array().context("the status has no checks")?;
        let check = checks
            .iter()
            .find(|check| check["name"] == name)
            .with_context(|| format!("no check named {name}"))?;
        // The exit code follows from the checks.
        let all_good = checks.iter().all(|check| check["health"] == "good");
        ensure!(all_good == (output.code == 0), "exit code {} with {checks:?}", output.code);
        Ok(if check["health"] == health {
            Poll::Ready(check.clone())
        } else {
            Poll::Pending(check.to_string())
        })
    })
    .await
}

/// Waits until a check of `fieldctl status` is a problem whose details contain this text. If `named` is false, waits
/// until it is no such problem. Other tests may leave problems of their own on the stack.
async fn wait_for_problem(stack: &Stack, name: &str, text: &str, named: bool) -> Result<Value> {
    until(&format!("{name} to contain {text}: {named}"), PROVIDER_TIMEOUT, async || {
        let status = stack.fieldctl(&["--json", "status"])?.document()?;
        let checks = status["checks"].as_array().context("the status has no checks")?;
        let check = checks
            .iter()
            .find(|check| check["name"] == name)
            .with_context(|| format!("no check named {name}"))?;
        let is_named = check["health"] == "problem" && check["details"].to_string().contains(text);
        Ok(if is_named == named {
            Poll::Ready(check.clone())
        } else {
            Poll::Pending(check.to_string())
        })
    })
    .await
}

/// Checks that every line fits on a terminal of 80 columns, is not truncated, and has no colours.
fn assert_fits_terminal(output: &CommandOutput) -> Result<()> {
    for line in output.stdout.lines() {
        ensure!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        ensure!(!line.contains('\u{1b}') && !line.ends_with('…'), "{line:?}");
    }
    Ok(())
}

/// Onboards a site, which shows that the provider responds. Waits until `fieldctl status` shows it too.
async fn assert_provider_responds(stack: &Stack) -> Result<()> {
    stack.deliver(&[METRIC], 5).await?;
    let (_, ids) = register(stack, "provider responds").await?;
    stack.wait_until_active(ids.site_id).await?;
    wait_for_health(stack, "provider", "good").await.map(drop)
}

async fn provider_drill(stack: &Stack, error: &str, status: Option<u16>) -> Result<()> {
    assert_provider_responds(stack).await?;
    let outage = Outage::start()?;
    let refusing = status.map(RefusingProvider::start).transpose()?;
    let (name, ids) = register(stack, "provider drill").await?;
    let texts = ["site-onboarding: InitializeSubscription", "circuit open", error, "next"];
    assert_fits_terminal(&wait_for_output(stack, &["trace", &name], &texts).await?)?;
    let check = wait_for_health(stack, "provider", "problem").await?;
    ensure!(check.to_string().contains(error), "{check}");
    ensure!(check["next"].is_string(), "{check}");
    drop(refusing);
    outage.end()?;
    stack.wait_until_active(ids.site_id).await?;
    wait_for_health(stack, "provider", "good").await?;
    let id = ids.site_id.to_string();
    until("the trace without problems", TIMEOUT, async || {
        let trace = stack.fieldctl(&["--json", "trace", &id])?.document()?;
        Ok(if trace["provider"].is_null() && trace["standing"] == "ended" {
            Poll::Ready(())
        } else {
            Poll::Pending(trace.to_string())
        })
    })
    .await
}

#[tokio::test]
async fn the_provider_is_stopped() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    provider_drill(&Stack::connect().await?, "NoAnswer", None).await
}

#[tokio::test]
async fn the_providers_key_is_refused() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    provider_drill(&Stack::connect().await?, "KeyRefused", Some(401)).await
}

#[tokio::test]
async fn an_undo_fails_for_good() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 5).await?;
    let (name, ids) = register(&stack, "undo drill").await?;
    stack.wait_until_active(ids.site_id).await?;
    let scale = WaitScale::set(&stack, 0.02).await?;
    let broken =
        BrokenFunction::deploy(&stack, "remove-alerting", "ALERTING_TABLE", "no-such-table")
            .await?;
    let result = broken
        .during(async || {
            let teardown = stack.fieldctl(&["sites", "teardown", &name, "--yes"])?;
            ensure!(teardown.code == 0, "{teardown:?}");
            // While the teardown still retries, nothing is reported as undone.
            let trace = wait_for_output(&stack, &["trace", &name], &["RemoveAlerting"]).await?;
            ensure!(!trace.stdout.contains("complete: the last"), "{}", trace.stdout);
            let trace = wait_for_output(
                &stack,
                &["trace", &name],
                &["undo incomplete", "fieldctl sagas recover"],
            )
            .await?;
            assert_fits_terminal(&trace)?;
            let listed = stack.fieldctl(&["sagas", "list", "--incomplete"])?;
            ensure!(listed.stdout.contains("CompensationIncomplete"), "{listed:?}");
            let id = ids.onboarding_id.to_string();
            wait_for_problem(&stack, "incomplete sagas", &id, true).await?;
            wait_for_health(&stack, "failures", "problem").await.map(drop)
        })
        .await;
    scale.restore(&stack).await?;
    result?;

    let recovered = stack.fieldctl(&["sagas", "recover", &name, "--yes"])?;
    ensure!(recovered.code == 0, "{recovered:?}");
    let listed = stack.fieldctl(&["--json", "sagas", "list", "--incomplete"])?;
    let id = ids.onboarding_id.to_string();
    ensure!(
        !listed.stdout.contains(&id),
        "a recovered onboarding is still listed: {}",
        listed.stdout
    );
    wait_for_output(
        &stack,
        &["trace", &name],
        &["undo complete: the last site-teardown succeeded"],
    )
    .await?;
    let open = stack.fieldctl(&["--json", "failures", "list", "--correlation", &id])?;
    ensure!(open.stdout.is_empty(), "the recovery left failures open: {}", open.stdout);
    wait_for_problem(&stack, "incomplete sagas", &id, false).await.map(drop)
}

#[tokio::test]
async fn an_execution_is_aborted_during_the_saga() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 5).await?;
    let outage = Outage::start()?;
    let (name, ids) = register(&stack, "abort drill").await?;
    wait_for_output(&stack, &["trace", &name], &["site-onboarding: InitializeSubscription"])
        .await?;
    stack.stop(&stack.onboarding_arn(ids.onboarding_id)?).await?;
    outage.end()?;
    // Nothing is reported as undone before the teardown has succeeded.
    until("the saga to be undone", PROVIDER_TIMEOUT, async || {
        let trace = stack.fieldctl(&["--json", "trace", &name])?.document()?;
        let timeline = trace["timeline"].as_array().context("the trace has no timeline")?;
        let succeeded = timeline
            .iter()
            .any(|entry| entry["machine"] == "site-teardown" && entry["status"] == "SUCCEEDED");
        ensure!((trace["undo"] == "complete") == succeeded, "{trace}");
        let step = timeline.iter().find(|entry| entry["name"] == "InitializeSubscription");
        ensure!(step.context("the timeline has no such step")?["succeeded"] == false, "{trace}");
        Ok(if succeeded { Poll::Ready(()) } else { Poll::Pending(trace.to_string()) })
    })
    .await?;
    wait_for_output(
        &stack,
        &["trace", &name],
        &["undo complete: the last site-teardown succeeded"],
    )
    .await?;
    assert_provider_responds(&stack).await
}

#[tokio::test]
async fn a_bad_version_is_deployed_and_rolled_back() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 5).await?;
    let (_, ids) = register(&stack, "version drill").await?;
    stack.wait_until_active(ids.site_id).await?;
    let sensor =
        stack.sensors(ids.site_id).await?.first().context("the site has no sensor")?.sensor_id;
    stack.wait_for_sensors([sensor]).await?;
    let live = |status: &Value| {
        let functions = status["functions"].as_array().into_iter().flatten();
        functions.filter(|it| it["name"] == "StoreReadings").map(|it| it["version"].clone()).next()
    };
    let before = live(&stack.fieldctl(&["--json", "status"])?.document()?)
        .context("the function has no live version")?;
    let broken =
        BrokenFunction::deploy(&stack, "store-readings", "READINGS_TABLE", "no-such-table").await?;
    broken
        .during(async || {
            let bundle = json!([{
                "bundleId": Uuid::new_v4(), "siteId": ids.site_id,
                "series": [{ "sensorId": sensor, "samples": [[first_day("00:00:00"), 50.0]] }],
            }]);
            let sent = stack.call(Call::post_readings(bundle.to_string())).await?;
            ensure!(sent.status == 202, "{sent}");
            let check = wait_for_problem(&stack, "functions", "StoreReadings", true).await?;
            ensure!(check["next"].to_string().contains("--errors"), "{check}");
            let during = live(&stack.fieldctl(&["--json", "status"])?.document()?);
            ensure!(during.as_ref() != Some(&before), "the live version is {during:?}");
            let logs = wait_for_output(
                &stack,
                &["logs", "--function", "store-readings", "--errors", "--since", "5m"],
                &["record failed", "is not authorized"],
            );
            assert_fits_terminal(&logs.await?)
        })
        .await?;
    let after = live(&stack.fieldctl(&["--json", "status"])?.document()?);
    ensure!(after == Some(before), "the live version after the rollback is {after:?}");
    until("the reading to be stored after the rollback", TIMEOUT, async || {
        let samples = stack.samples(sensor, "").await?;
        Ok(if samples.len() == 1 { Poll::Ready(()) } else { Poll::Pending(format!("{samples:?}")) })
    })
    .await
}

#[tokio::test]
async fn one_logger_sends_poison_among_others() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 2).await?;
    let mut sites = Vec::new();
    for _ in 0..2 {
        let (name, ids) = register(&stack, "poison drill").await?;
        stack.wait_until_active(ids.site_id).await?;
        sites.push((name, ids));
    }
    // Each logger sends readings of a sensor that is not registered.
    for (_, ids) in &sites {
        // No site can have this sensor, so the record is not on hold first.
        let sensor_id = SensorId::from_onboarding(OnboardingId::from_site(ids.site_id), MAX_SERIES);
        let samples = vec![Sample::new(Timestamp::now().plus_millis(-MINUTE), 1.0)];
        let series = vec![Series::new(sensor_id, samples)];
        let bundle_id = Uuid::new_v4().to_string().parse()?;
        send(&stack, &[&Bundle::new(bundle_id, ids.site_id, series)]).await?;
    }
    let groups_of =
        |name: &str| stack.fieldctl(&["--json", "failures", "groups", "--site", name])?.documents();
    let mut groups = Vec::new();
    for (name, ids) in &sites {
        let group = until("the poison to be recorded", TIMEOUT, async || {
            let mut groups = groups_of(name)?;
            Ok(match groups.pop() {
                Some(group) if groups.is_empty() => Poll::Ready(group),
                other => Poll::Pending(format!("{groups:?} {other:?}")),
            })
        })
        .await?;
        ensure!(group["siteId"] == json!(ids.site_id) && group["count"] == 1, "{group:#}");
        ensure!(group["error"]["name"] == "UnknownSensor", "{group:#}");
        ensure!(group["advice"].is_object(), "{group:#}");
        groups.push(group["group"].clone());
    }
    ensure!(groups[0] != groups[1], "the loggers have the same group: {groups:?}");
    let (first, _) = &sites[0];
    assert_fits_terminal(
        &wait_for_output(
            &stack,
            &["failures", "groups", "--site", first],
            &["UnknownSensor", "command"],
        )
        .await?,
    )?;
    assert_fits_terminal(&wait_for_output(&stack, &["trace", first], &["UnknownSensor"]).await?)?;

    let discard = ["failures", "discard", "--site", first, "--note", "wrong sensor id", "--yes"];
    let discarded = stack.fieldctl(&discard)?;
    ensure!(discarded.code == 0, "{discarded:?}");
    ensure!(groups_of(first)?.is_empty(), "the first logger's failures were not discarded");
    let (second, ids) = &sites[1];
    ensure!(groups_of(second)?.len() == 1, "the other logger's failures are not open");
    let site = ids.site_id.to_string();
    let discarded =
        stack.fieldctl(&["failures", "discard", "--site", &site, "--note", "drill", "--yes"])?;
    ensure!(discarded.code == 0, "{discarded:?}");
    Ok(())
}

#[tokio::test]
async fn a_station_that_never_reported_sends_readings_with_a_wrong_clock() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let (name, ids) = register(&stack, "silent").await?;
    stack.wait_until_active(ids.site_id).await?;
    let sensor = stack.sensors(ids.site_id).await?[0].sensor_id;
    stack.wait_for_sensors([sensor]).await?;
    let bundle = |id: &str, ahead: i64| -> Result<Bundle> {
        let sample = Sample::new(Timestamp::now().plus_millis(ahead), 1.0);
        let series = vec![Series::new(sensor, vec![sample])];
        Ok(Bundle::new(id.parse()?, ids.site_id, series))
    };
    let health = || -> Result<(i32, Value)> {
        let output = stack.fieldctl(&["--json", "sites", "health", &name])?;
        Ok((output.code, output.document()?))
    };
    let (code, document) = health()?;
    ensure!(code == 1 && document["verdict"] == "NEVER_REPORTED", "{document:#}");

    // The logger's clock is an hour ahead.
    let refused_body = serde_json::to_vec(&bundle("ahead", 60 * MINUTE)?)?;
    let document = until("the refusal to be counted", TIMEOUT, async || {
        // Counters are written at most once per interval, so a later request may write them.
        let response = stack.call(Call::post_readings(refused_body.clone())).await?;
        ensure!(response.status == 400, "{response}");
        let (code, document) = health()?;
        ensure!(code == 1, "{document:#}");
        let is_counted = document["verdict"] == "REFUSED";
        Ok(if is_counted { Poll::Ready(document) } else { Poll::Pending(document) })
    })
    .await?;
    let refusal = &document["refused"][0];
    ensure!(refusal["reason"] == "ClockAhead", "{document:#}");
    ensure!(refusal["field"] == "series[].samples[]", "{document:#}");
    ensure!(refusal["sensorId"] == json!(sensor), "{document:#}");
    let output = wait_for_output(
        &stack,
        &["sites", "health", &name],
        &[
            "readings refused",
            "15 minutes ahead",
            "Tell the sender what to correct",
            "never reported",
        ],
    )
    .await?;
    assert_fits_terminal(&output)?;

    // The clock is corrected.
    send(&stack, &[&bundle("now", -MINUTE)?]).await?;
    let document = until("the sensor to report", TIMEOUT, async || {
        let (_, document) = health()?;
        let reports = document["sensors"][0]["verdict"] == "REPORTING";
        Ok(if reports { Poll::Ready(document) } else { Poll::Pending(document) })
    })
    .await?;
    ensure!(document["sensors"][0]["accepted"] == json!({ "bundles": 1, "samples": 1 }));
    ensure!(document["unknown"] == json!([]), "{document:#}");
    Ok(())
}
