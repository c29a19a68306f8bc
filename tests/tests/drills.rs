//! Drills of an engineer on call: a test stages a failure on the deployed stack, and `fieldctl` must name its
//! cause and the next action, before, during and after the failure. The drills with a disabled consumer are in
//! consumers.rs.
//!
//! Each drill affects the whole stack, so they run one at a time.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "not every fault is brought about here")]
mod faults;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use contracts::{
    Metric, OnboardingId, SensorId, Timestamp,
    readings::{Bundle, Sample, Series},
};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    fieldctl::Printed,
    logger::send,
    sites::{GOOD_CARD, Ids, registration},
    wait::{Look, TIMEOUT, until},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::{Broken, Outage, Refusing, WaitScale};

static TURN: Mutex<()> = Mutex::const_new(());

const MINUTE: i64 = 60_000;

const METRIC: Metric = Metric::RelativeHumidity;

/// Longer than the pause of the circuit on the local stack plus a probe.
const FOR_THE_PROVIDER: Duration = Duration::from_secs(90);

/// Registers a site with a unique name.
async fn register(stack: &Stack, what: &str) -> Result<(String, Ids)> {
    let name = format!("{what} {}", &Uuid::new_v4().simple().to_string()[..8]);
    let key = Uuid::new_v4().to_string();
    let ids = stack.register(&key, &registration(&name, &[METRIC], GOOD_CARD)).await?;
    Ok((name, ids))
}

/// Runs a command until it prints all of the texts.
async fn shows(stack: &Stack, arguments: &[&str], texts: &[&str]) -> Result<Printed> {
    until(
        &format!("fieldctl {} to show {texts:?}", arguments.join(" ")),
        FOR_THE_PROVIDER,
        async || {
            let printed = stack.fieldctl(arguments)?;
            // The output is wrapped at 80 columns.
            let out = printed.out.split_whitespace().collect::<Vec<_>>().join(" ");
            Ok(if texts.iter().all(|text| out.contains(text)) {
                Look::Found(printed)
            } else {
                Look::Saw(format!("{}\n{}", printed.out, printed.err))
            })
        },
    )
    .await
}

/// Waits until a check of `fieldctl status` has that result.
async fn check_is(stack: &Stack, name: &str, health: &str) -> Result<Value> {
    until(&format!("{name} to be {health}"), FOR_THE_PROVIDER, async || {
        let printed = stack.fieldctl(&["--json", "status"])?;
        let status = printed.document()?;
        let checks = status["checks"].as_array().context("checks")?;
        let check = checks.iter().find(|check| check["name"] == name).context("the check")?;
        // The verdict of the whole stack and the exit code follow from the checks.
        let all_good = checks.iter().all(|check| check["health"] == "good");
        ensure!(all_good == (printed.code == 0), "exit code {} with {checks:?}", printed.code);
        Ok(if check["health"] == health {
            Look::Found(check.clone())
        } else {
            Look::Saw(check.to_string())
        })
    })
    .await
}

/// Waits until a check of `fieldctl status` is a problem that names that text, or no longer names it. Other
/// tests may leave problems of their own on the stack.
async fn check_names(stack: &Stack, name: &str, text: &str, named: bool) -> Result<Value> {
    until(&format!("{name} to name {text}: {named}"), FOR_THE_PROVIDER, async || {
        let status = stack.fieldctl(&["--json", "status"])?.document()?;
        let checks = status["checks"].as_array().context("checks")?;
        let check = checks.iter().find(|check| check["name"] == name).context("the check")?;
        let is_named = check["health"] == "problem" && check["details"].to_string().contains(text);
        Ok(if is_named == named {
            Look::Found(check.clone())
        } else {
            Look::Saw(check.to_string())
        })
    })
    .await
}

/// Checks that every line fits on a terminal of 80 columns, is not truncated, and has no colours.
fn fits(printed: &Printed) -> Result<()> {
    for line in printed.out.lines() {
        ensure!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        ensure!(!line.contains('\u{1b}') && !line.ends_with('…'), "{line:?}");
    }
    Ok(())
}

/// Waits until the provider is known to answer, which an onboarded site proves.
async fn provider_answers(stack: &Stack) -> Result<()> {
    stack.deliver(&[METRIC], 5).await?;
    let (_, ids) = register(stack, "provider answers").await?;
    stack.site_active(ids.site_id).await?;
    check_is(stack, "provider", "good").await.map(drop)
}

async fn provider_drill(stack: &Stack, error: &str, status: Option<u16>) -> Result<()> {
    provider_answers(stack).await?;
    let outage = Outage::begin()?;
    let refusing = status.map(Refusing::begin).transpose()?;
    let (name, ids) = register(stack, "provider drill").await?;
    let texts = ["site-onboarding: InitializeSubscription", "circuit open", error, "next"];
    fits(&shows(stack, &["trace", &name], &texts).await?)?;
    let check = check_is(stack, "provider", "problem").await?;
    ensure!(check.to_string().contains(error), "{check}");
    ensure!(check["next"].is_string(), "{check}");
    drop(refusing);
    outage.end()?;
    stack.site_active(ids.site_id).await?;
    check_is(stack, "provider", "good").await?;
    let id = ids.site_id.to_string();
    until("nothing to be wrong in the trace", TIMEOUT, async || {
        let trace = stack.fieldctl(&["--json", "trace", &id])?.document()?;
        Ok(if trace["provider"].is_null() && trace["standing"] == "ended" {
            Look::Found(())
        } else {
            Look::Saw(trace.to_string())
        })
    })
    .await
}

#[tokio::test]
async fn the_provider_is_stopped() -> Result<()> {
    let _turn = TURN.lock().await;
    provider_drill(&Stack::connect().await?, "NoAnswer", None).await
}

#[tokio::test]
async fn the_providers_key_is_refused() -> Result<()> {
    let _turn = TURN.lock().await;
    provider_drill(&Stack::connect().await?, "KeyRefused", Some(401)).await
}

#[tokio::test]
async fn an_undo_fails_for_good() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 5).await?;
    let (name, ids) = register(&stack, "undo drill").await?;
    stack.site_active(ids.site_id).await?;
    let scale = WaitScale::set(&stack, 0.02).await?;
    let broken =
        Broken::version(&stack, "remove-alerting", "ALERTING_TABLE", "no-such-table").await?;
    let during = broken
        .during(async || {
            let torn = stack.fieldctl(&["sites", "teardown", &name, "--yes"])?;
            ensure!(torn.code == 0, "{torn:?}");
            // While the teardown still retries, nothing is reported as undone.
            let trace = shows(&stack, &["trace", &name], &["RemoveAlerting"]).await?;
            ensure!(!trace.out.contains("everything"), "{}", trace.out);
            let trace =
                shows(&stack, &["trace", &name], &["left behind", "fieldctl sagas recover"])
                    .await?;
            fits(&trace)?;
            let listed = stack.fieldctl(&["sagas", "list", "--incomplete"])?;
            ensure!(listed.out.contains("CompensationIncomplete"), "{listed:?}");
            let id = ids.onboarding_id.to_string();
            check_names(&stack, "incomplete sagas", &id, true).await?;
            check_is(&stack, "failures", "problem").await.map(drop)
        })
        .await;
    scale.restore(&stack).await?;
    during?;

    let recovered = stack.fieldctl(&["sagas", "recover", &name, "--yes"])?;
    ensure!(recovered.code == 0, "{recovered:?}");
    let listed = stack.fieldctl(&["--json", "sagas", "list", "--incomplete"])?;
    let id = ids.onboarding_id.to_string();
    ensure!(!listed.out.contains(&id), "a repaired onboarding is listed: {}", listed.out);
    shows(&stack, &["trace", &name], &["everything; the last site-teardown succeeded"]).await?;
    let open = stack.fieldctl(&["--json", "failures", "list", "--correlation", &id])?;
    ensure!(open.out.is_empty(), "the recovery closes what it repaired: {}", open.out);
    check_names(&stack, "incomplete sagas", &id, false).await.map(drop)
}

#[tokio::test]
async fn an_execution_is_aborted_during_the_saga() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 5).await?;
    let outage = Outage::begin()?;
    let (name, ids) = register(&stack, "abort drill").await?;
    shows(&stack, &["trace", &name], &["site-onboarding: InitializeSubscription"]).await?;
    stack.stop(&stack.onboarding_arn(ids.onboarding_id)?).await?;
    outage.end()?;
    // Nothing is reported as undone before the teardown has succeeded.
    until("the saga to be undone", FOR_THE_PROVIDER, async || {
        let trace = stack.fieldctl(&["--json", "trace", &name])?.document()?;
        let timeline = trace["timeline"].as_array().context("a timeline")?;
        let succeeded = timeline
            .iter()
            .any(|entry| entry["machine"] == "site-teardown" && entry["status"] == "SUCCEEDED");
        ensure!((trace["undo"] == "complete") == succeeded, "{trace}");
        let step = timeline.iter().find(|entry| entry["name"] == "InitializeSubscription");
        ensure!(step.context("the step")?["succeeded"] == false, "{trace}");
        Ok(if succeeded { Look::Found(()) } else { Look::Saw(trace.to_string()) })
    })
    .await?;
    shows(&stack, &["trace", &name], &["everything; the last site-teardown succeeded"]).await?;
    provider_answers(&stack).await
}

#[tokio::test]
async fn a_bad_version_is_deployed_and_rolled_back() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 5).await?;
    let (_, ids) = register(&stack, "version drill").await?;
    stack.site_active(ids.site_id).await?;
    let sensor = stack.sensors(ids.site_id).await?.first().context("a sensor")?.sensor_id;
    stack.sensors_known([sensor]).await?;
    let live = |status: &Value| {
        let functions = status["functions"].as_array().into_iter().flatten();
        functions.filter(|it| it["name"] == "StoreReadings").map(|it| it["version"].clone()).next()
    };
    let before = live(&stack.fieldctl(&["--json", "status"])?.document()?).context("a version")?;
    let broken =
        Broken::version(&stack, "store-readings", "READINGS_TABLE", "no-such-table").await?;
    broken
        .during(async || {
            let bundle = json!([{
                "bundleId": Uuid::new_v4(), "siteId": ids.site_id,
                "series": [{ "sensorId": sensor, "samples": [["2026-01-01T00:00:00Z", 50.0]] }],
            }]);
            let sent = stack.call(Call::post_readings(bundle.to_string())).await?;
            ensure!(sent.status == 202, "{sent}");
            let check = check_names(&stack, "functions", "StoreReadings", true).await?;
            ensure!(check["next"].to_string().contains("--errors"), "{check}");
            let during = live(&stack.fieldctl(&["--json", "status"])?.document()?);
            ensure!(during.as_ref() != Some(&before), "the live version is {during:?}");
            let logs = shows(
                &stack,
                &["logs", "--function", "store-readings", "--errors", "--since", "5m"],
                &["record failed", "is not authorized"],
            );
            fits(&logs.await?)
        })
        .await?;
    let after = live(&stack.fieldctl(&["--json", "status"])?.document()?);
    ensure!(after == Some(before), "rolled back to {after:?}");
    until("the reading that waited", TIMEOUT, async || {
        let samples = stack.samples(sensor, "").await?;
        Ok(if samples.len() == 1 { Look::Found(()) } else { Look::Saw(format!("{samples:?}")) })
    })
    .await
}

#[tokio::test]
async fn one_logger_sends_poison_among_others() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 2).await?;
    let mut sites = Vec::new();
    for _ in 0..2 {
        let (name, ids) = register(&stack, "poison drill").await?;
        stack.site_active(ids.site_id).await?;
        sites.push((name, ids));
    }
    // Each logger sends readings of a sensor that is not registered.
    for (_, ids) in &sites {
        let sensor_id = SensorId::from_onboarding(OnboardingId::from_site(ids.site_id), 7);
        let samples = vec![Sample(Timestamp::now().plus_millis(-MINUTE), 1.0)];
        let series = vec![Series { sensor_id, samples }];
        let bundle_id = Uuid::new_v4().to_string().parse()?;
        send(&stack, &[&Bundle { bundle_id, site_id: ids.site_id, series }]).await?;
    }
    let groups_of =
        |name: &str| stack.fieldctl(&["--json", "failures", "groups", "--site", name])?.documents();
    let mut groups = Vec::new();
    for (name, ids) in &sites {
        let group = until("the poison to be recorded", TIMEOUT, async || {
            let mut groups = groups_of(name)?;
            Ok(match groups.pop() {
                Some(group) if groups.is_empty() => Look::Found(group),
                other => Look::Saw(format!("{groups:?} {other:?}")),
            })
        })
        .await?;
        ensure!(group["siteId"] == json!(ids.site_id) && group["count"] == 1, "{group:#}");
        ensure!(group["error"]["name"] == "UnknownSensor", "{group:#}");
        ensure!(group["advice"].is_object(), "{group:#}");
        groups.push(group["group"].clone());
    }
    ensure!(groups[0] != groups[1], "two loggers, two groups: {groups:?}");
    let (first, _) = &sites[0];
    fits(
        &shows(&stack, &["failures", "groups", "--site", first], &["UnknownSensor", "command"])
            .await?,
    )?;
    fits(&shows(&stack, &["trace", first], &["UnknownSensor"]).await?)?;

    let discard = ["failures", "discard", "--site", first, "--note", "wrong sensor id", "--yes"];
    let discarded = stack.fieldctl(&discard)?;
    ensure!(discarded.code == 0, "{discarded:?}");
    ensure!(groups_of(first)?.is_empty(), "the first logger's is discarded");
    let (second, ids) = &sites[1];
    ensure!(groups_of(second)?.len() == 1, "the other logger's is still open");
    let site = ids.site_id.to_string();
    let discarded =
        stack.fieldctl(&["failures", "discard", "--site", &site, "--note", "drill", "--yes"])?;
    ensure!(discarded.code == 0, "{discarded:?}");
    Ok(())
}

#[tokio::test]
async fn a_station_that_never_reported_sends_readings_with_a_wrong_clock() -> Result<()> {
    let _turn = TURN.lock().await;
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let (name, ids) = register(&stack, "silent").await?;
    stack.site_active(ids.site_id).await?;
    let sensor = stack.sensors(ids.site_id).await?[0].sensor_id;
    stack.sensors_known([sensor]).await?;
    let bundle = |id: &str, ahead: i64| -> Result<Bundle> {
        let sample = Sample(Timestamp::now().plus_millis(ahead), 1.0);
        let series = vec![Series { sensor_id: sensor, samples: vec![sample] }];
        Ok(Bundle { bundle_id: id.parse()?, site_id: ids.site_id, series })
    };
    let health = || -> Result<(i32, Value)> {
        let printed = stack.fieldctl(&["--json", "sites", "health", &name])?;
        Ok((printed.code, printed.document()?))
    };
    let (code, document) = health()?;
    ensure!(code == 1 && document["verdict"] == "NEVER_REPORTED", "{document:#}");

    // The logger's clock is an hour ahead.
    let refused = serde_json::to_vec(&bundle("ahead", 60 * MINUTE)?)?;
    let document = until("the refusal to be counted", TIMEOUT, async || {
        // Counters that were not yet due are written with a later request.
        let answer = stack.call(Call::post_readings(refused.clone())).await?;
        ensure!(answer.status == 400, "{answer}");
        let (code, document) = health()?;
        ensure!(code == 1, "{document:#}");
        let is_counted = document["verdict"] == "REFUSED";
        Ok(if is_counted { Look::Found(document) } else { Look::Saw(document) })
    })
    .await?;
    let refusal = &document["refused"][0];
    ensure!(refusal["reason"] == "ClockAhead", "{document:#}");
    ensure!(refusal["field"] == "series[].samples[]", "{document:#}");
    ensure!(refusal["sensorId"] == json!(sensor), "{document:#}");
    let shown = shows(
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
    fits(&shown)?;

    // The clock is corrected.
    send(&stack, &[&bundle("now", -MINUTE)?]).await?;
    let document = until("the sensor to report", TIMEOUT, async || {
        let (_, document) = health()?;
        let reports = document["sensors"][0]["verdict"] == "REPORTING";
        Ok(if reports { Look::Found(document) } else { Look::Saw(document) })
    })
    .await?;
    ensure!(document["sensors"][0]["accepted"] == json!({ "bundles": 1, "samples": 1 }));
    ensure!(document["unknown"] == json!([]), "{document:#}");
    Ok(())
}
