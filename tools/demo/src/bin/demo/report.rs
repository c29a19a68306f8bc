//! The report of the onboardings: collects the results, checks them, formats them and writes them to a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use aws_sdk_sfn::types::ExecutionStatus;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL};
use contracts::{Metric, Timestamp, names, saga::STEPS};
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::Value;
use tests::{
    Stack,
    api::Call,
    capture::{self, Capture},
    executions::{Execution, Task},
    inventory::{Inventory, KitCounts},
    log::{self, LoggedEvent},
    sites::{FORWARD, Ids, UNDO, residue, table_of},
    stripe,
    wait::{Poll, until},
};

use crate::{
    readings::{self, SensorDay},
    stations::{Station, Via},
    watch::Onboarded,
};

/// The timeout for the last events after the sagas have ended.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(15);
/// The time after the last event in which a second delivery would arrive.
pub const DUPLICATE_WAIT: Duration = Duration::from_millis(1500);

/// The report of the demo, in `target/demo/report.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OnboardingReport {
    sites: Vec<SiteReport>,
    residue: Residue,
    events_published: usize,
    onboarding_millis: DurationMillis,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SiteReport {
    name: String,
    site_id: String,
    onboarding_id: String,
    via: Via,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Value>,
    steps: Vec<Step>,
    /// The time from `SiteCreated` to the final event.
    millis: i64,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    status: &'static str,
    millis: Option<i64>,
}

/// What is left of the two failed onboardings. All numbers must be zero.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Residue {
    /// The number of rows that are not tombstones, by table.
    rows: BTreeMap<String, usize>,
    /// The number of customers and subscriptions at the payment provider.
    payment_provider: usize,
    /// The stock minus the expected stock, for each metric with a difference. The expected stock is the delivered kits
    /// minus those of ACTIVE sites.
    stock: KitCounts,
}

#[derive(Debug, Serialize)]
struct DurationMillis {
    p50: i64,
    p95: i64,
    max: i64,
}

/// The report, and the results that are not as expected.
pub struct OnboardingFindings {
    pub report: OnboardingReport,
    pub violations: Vec<String>,
}

/// A site with its executions and events.
struct SiteResult {
    ids: Ids,
    site: Value,
    onboarding: Execution,
    teardown: Option<Execution>,
    saga_events: Vec<LoggedEvent>,
}

/// Waits until the site's read model and event log are final. After the timeout, returns the current state.
async fn settled(stack: &Stack, ids: Ids) -> Result<(Value, Vec<LoggedEvent>)> {
    let read = async || {
        let response = stack.site(ids.site_id).await?;
        let saga_events = log::saga_events(stack, ids.onboarding_id).await?;
        anyhow::Ok((response.body, saga_events))
    };
    let settled = until("the read model to be complete", SETTLE_TIMEOUT, async || {
        let (site, saga_events) = read().await?;
        let steps = site["onboarding"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
        let settled = match site["status"].as_str() {
            Some("ACTIVE") => steps.len() == FORWARD.len(),
            Some("REJECTED") => {
                !steps.is_empty() && steps.iter().all(|step| step["status"] != "COMPLETED")
            }
            _ => false,
        };
        let published = saga_events.iter().all(LoggedEvent::is_published);
        Ok(if settled && published {
            Poll::Ready((site, saga_events))
        } else {
            Poll::Pending("it is incomplete")
        })
    })
    .await;
    match settled {
        Ok(settled) => Ok(settled),
        Err(_) => read().await,
    }
}

async fn read_result(stack: &Stack, ids: Ids) -> Result<SiteResult> {
    let (site, saga_events) = settled(stack, ids).await?;
    let onboarding =
        stack.onboarding(ids.onboarding_id).await?.context("the onboarding has no execution")?;
    let teardown = stack.teardown(ids.onboarding_id).await?;
    Ok(SiteResult { ids, site, onboarding, teardown, saga_events })
}

/// Returns the time from `SiteCreated` to the final event.
fn millis(saga_events: &[LoggedEvent]) -> Option<i64> {
    let at = |kinds: &[&str]| -> Option<i64> {
        let event = saga_events.iter().find(|event| kinds.contains(&event.kind.as_str()))?;
        Some(event.occurred_at.parse::<Timestamp>().ok()?.millis())
    };
    Some(at(&["SiteActivated", "SiteRejected"])? - at(&["SiteCreated"])?)
}

fn step(task: &Task, done: &'static str) -> Step {
    let status = if task.succeeded { done } else { "FAILED" };
    Step { name: task.name.clone(), status, millis: task.millis() }
}

fn steps(result: &SiteResult) -> Vec<Step> {
    let forward = result.onboarding.tasks.iter().filter(|task| task.name != "Compensate");
    let undo = result.teardown.iter().flat_map(|teardown| &teardown.tasks);
    forward
        .map(|task| step(task, "COMPLETED"))
        .chain(undo.map(|task| step(task, "UNDONE")))
        .collect()
}

/// Compares one site with the expected result of its station.
fn check(station: &Station, result: &SiteResult, violations: &mut Vec<String>) {
    let name = &station.name;
    let mut require = |holds: bool, what: String| {
        if !holds {
            violations.push(format!("{name}: {what}"));
        }
    };
    let SiteResult { site, onboarding, teardown, saga_events, .. } = result;
    let actual: Vec<_> = site["onboarding"]["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| (step["name"].as_str().unwrap_or("?"), step["status"].as_str().unwrap_or("?")))
        .collect();
    match station.fails {
        None => {
            require(
                site["status"] == "ACTIVE",
                format!("its status is {}, expected ACTIVE", site["status"]),
            );
            require(
                onboarding.status == ExecutionStatus::Succeeded,
                format!("its saga ended as {}: {:?}", onboarding.status, onboarding.cause),
            );
            require(
                actual == FORWARD.map(|step| (step, "COMPLETED")),
                format!("GET /sites/{{siteId}} returns the steps {actual:?}"),
            );
            require(teardown.is_none(), "a teardown was started".to_owned());
        }
        Some((step, error)) => {
            require(
                site["status"] == "REJECTED",
                format!("its status is {}, expected REJECTED", site["status"]),
            );
            let failure = &site["onboarding"]["failure"];
            require(
                failure["step"] == step && failure["error"] == error,
                format!("its failure is {failure}, expected {error} of {step}"),
            );
            require(
                onboarding.task(step).and_then(Task::failure) == Some(error)
                    && onboarding.error.as_deref() == Some(error),
                format!("its saga ended as {}: {:?}", onboarding.status, onboarding.cause),
            );
            // Every step before the failed step must be shown as undone, and the failed step as failed.
            let mut expected: Vec<_> = FORWARD
                .into_iter()
                .take_while(|name| *name != step)
                .map(|name| (name, "UNDONE"))
                .collect();
            expected.push((step, "FAILED"));
            require(
                actual == expected,
                format!("GET /sites/{{siteId}} returns the steps {actual:?}"),
            );
            let undone = teardown.as_ref().map(Execution::succeeded).unwrap_or_default();
            require(
                undone == UNDO,
                format!("the completed undos are {undone:?}, expected {UNDO:?}"),
            );
        }
    }
    for gap in log::gaps(saga_events) {
        require(false, gap);
    }
    for event in saga_events.iter().filter(|event| !event.is_published()) {
        require(false, format!("{} {} is not published", event.entity, event.kind));
    }
}

/// Checks that every logged event was delivered exactly once in each published version, and that no other event was
/// delivered.
fn check_deliveries(logged: &BTreeSet<String>, captured: &[Value], violations: &mut Vec<String>) {
    let mut times = BTreeMap::<(&str, &str), usize>::new();
    for event in captured {
        let detail_type = event["detail-type"].as_str().unwrap_or_default();
        *times.entry((capture::event_id(event), detail_type)).or_default() += 1;
    }
    for ((id, detail_type), times) in times.iter().filter(|(_, times)| **times > 1) {
        violations.push(format!("{detail_type} {id} was delivered {times} times, expected once"));
    }
    let delivered: BTreeSet<_> = times.keys().map(|(id, _)| *id).collect();
    let logged: BTreeSet<_> = logged.iter().map(String::as_str).collect();
    violations.extend(
        logged.difference(&delivered).map(|id| format!("event {id} was logged, but not delivered")),
    );
    violations.extend(
        delivered
            .difference(&logged)
            .map(|id| format!("event {id} was delivered, but is not logged")),
    );
}

/// Returns the expected stock: all delivered kits minus one for each sensor of an active site.
fn expected_stock(inventory: &Inventory, results: &[SiteResult]) -> KitCounts {
    let mut expected = inventory.delivered.clone();
    for site in results.iter().map(|result| &result.site) {
        if site["status"] == "ACTIVE" {
            for sensor in site["sensors"].as_array().into_iter().flatten() {
                let metric = sensor["metric"].as_str().unwrap_or("?");
                *expected.entry(metric.to_owned()).or_default() -= 1;
            }
        }
    }
    expected
}

/// Returns the smallest value that at least `percent` % of the sorted values do not exceed.
fn percentile(sorted: &[i64], percent: usize) -> i64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Collects the results of all stations and checks them.
pub async fn collect(
    stack: &Stack,
    capture: &Capture,
    stations: &[Station],
    onboarded: &Onboarded,
) -> Result<OnboardingFindings> {
    let results = onboarded.ids.iter().map(|ids| read_result(stack, *ids));
    let results = try_join_all(results).await?;
    let mut violations = Vec::new();
    let mut residue_report = Residue::default();
    for step in STEPS.iter().filter(|step| !step.is_of_site()) {
        residue_report.rows.insert(table_of(step), 0);
    }
    for (station, result) in stations.iter().zip(&results) {
        check(station, result, &mut violations);
        let onboarding = result.ids.onboarding_id.to_string();
        let objects = stripe::billing_objects(stack, &onboarding).await?;
        if station.fails.is_none() {
            if objects.subscriptions.len() != 1 || objects.customers.len() != 1 {
                let name = &station.name;
                violations.push(format!("{name}: the payment provider has {objects:?}, expected one customer with one subscription"));
            }
            continue;
        }
        residue_report.payment_provider += objects.count();
        for (place, what) in residue(stack, result.ids).await? {
            if let Some(rows) = residue_report.rows.get_mut(&place) {
                *rows += 1;
            }
            violations.push(format!("{}: residue in {place}: {what}", station.name));
        }
    }
    let inventory = Inventory::read(stack).await?;
    residue_report.stock =
        Inventory::difference(&inventory.stock, &expected_stock(&inventory, &results));
    if !residue_report.stock.is_empty() {
        violations.push(format!("the stock differs by {:?}", residue_report.stock));
    }
    for (status, expected) in [("ACTIVE", 6), ("REJECTED", 2)] {
        let listed = stack.call(Call::get(format!("/sites?status={status}"))).await?;
        let count = listed.body["sites"].as_array().map(Vec::len);
        if count != Some(expected) {
            violations
                .push(format!("GET /sites returns {count:?} {status} sites, expected {expected}"));
        }
    }

    let mut logged = BTreeSet::new();
    let mut published = 0;
    for event in results.iter().flat_map(|result| &result.saga_events) {
        published += usize::from(event.is_published());
        logged.insert(event.id()?);
    }
    let mut captured = onboarded.captured.clone();
    let all_are_in = |events: &[Value]| {
        let ids = onboarded.captured.iter().chain(events).map(capture::event_id);
        let ids: BTreeSet<_> = ids.collect();
        logged.iter().all(|id| ids.contains(id.as_str()))
    };
    captured.extend(capture.take_until(stack, SETTLE_TIMEOUT, all_are_in).await?);
    tokio::time::sleep(DUPLICATE_WAIT).await;
    captured.extend(capture.take(stack).await?);
    // Other events belong to no onboarding, such as those of the stock.
    let onboardings: BTreeSet<_> =
        results.iter().map(|result| result.ids.onboarding_id.to_string()).collect();
    captured.retain(|event| onboardings.contains(capture::correlation(event)));
    check_deliveries(&logged, &captured, &mut violations);

    let mut times: Vec<_> = results.iter().filter_map(|site| millis(&site.saga_events)).collect();
    times.sort_unstable();
    let report = OnboardingReport {
        residue: residue_report,
        events_published: published,
        onboarding_millis: DurationMillis {
            p50: percentile(&times, 50),
            p95: percentile(&times, 95),
            max: percentile(&times, 100),
        },
        sites: stations
            .iter()
            .zip(&results)
            .map(|(station, result)| SiteReport {
                name: station.name.clone(),
                site_id: result.ids.site_id.to_string(),
                onboarding_id: result.ids.onboarding_id.to_string(),
                via: station.via,
                status: result.site["status"].as_str().unwrap_or("?").to_owned(),
                failure: result.site["onboarding"].get("failure").cloned(),
                steps: steps(result),
                millis: millis(&result.saga_events).unwrap_or_default(),
            })
            .collect(),
    };
    Ok(OnboardingFindings { report, violations })
}

/// Returns the table of the sites.
pub fn table(report: &OnboardingReport) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL).set_content_arrangement(ContentArrangement::Dynamic);
    // Without a terminal the table has no width.
    if table.width().is_none() {
        table.set_width(140);
    }
    table.set_header(["Site", "Via", "Status", "ms", "Steps (ms)"]);
    for site in &report.sites {
        let steps = site.steps.iter().filter(|step| step.status != "UNDONE");
        let mut cell = step_list(steps);
        if let Some(failure) = &site.failure {
            let undone = site.steps.iter().filter(|step| step.status == "UNDONE");
            cell = format!(
                "{cell}\nfailed: {}: {}: {}\nundone: {}",
                failure["step"].as_str().unwrap_or("?"),
                failure["error"].as_str().unwrap_or("?"),
                failure["message"].as_str().unwrap_or("?"),
                step_list(undone)
            );
        }
        let via = match site.via {
            Via::Http => "HTTP",
            Via::Event => "event",
        };
        let millis = site.millis.to_string();
        table.add_row([&site.name, via, &site.status, &millis, &cell]);
    }
    table
}

fn step_list<'a>(steps: impl Iterator<Item = &'a Step>) -> String {
    let each: Vec<_> = steps
        .map(|step| match step.millis {
            Some(millis) => format!("{} {millis}", step.name),
            None => format!("{} ...", step.name),
        })
        .collect();
    each.join(", ")
}

/// Returns the summary: the residue, the number of events and the durations.
pub fn summary(report: &OnboardingReport) -> String {
    let rows: Vec<_> =
        report.residue.rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
    let stock = if report.residue.stock.is_empty() {
        "correct (delivered kits minus those of ACTIVE sites)".to_owned()
    } else {
        format!("differs by {:?}", report.residue.stock)
    };
    let DurationMillis { p50, p95, max } = report.onboarding_millis;
    format!(
        "Residue of the two failed onboardings (0 is correct; tombstones are not counted): rows in {}; customers \
         and subscriptions at the payment provider: {}; stock: {stock}.\n\
         Published events: {}. Time from registration to the end of the onboarding: p50 {p50} ms, p95 {p95} ms, \
         max {max} ms.",
        rows.join(", "),
        report.residue.payment_provider,
        report.events_published,
    )
}

/// The content of `target/demo/report.json`.
#[derive(Serialize)]
struct ReportFile<'a> {
    #[serde(flatten)]
    onboarding: &'a OnboardingReport,
    readings: Option<&'a readings::ReadingsReport>,
}

/// Writes `target/demo/report.json` and returns its path.
pub fn write(
    onboarding: &OnboardingReport,
    readings: Option<&readings::ReadingsReport>,
) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("target/demo");
    fs::create_dir_all(&folder)?;
    let path = folder.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&ReportFile { onboarding, readings })? + "\n")?;
    Ok(path.strip_prefix(root).unwrap_or(&path).to_owned())
}

/// Returns commands for exploring the stack.
pub fn next_commands(
    stack: &Stack,
    report: &OnboardingReport,
    readings: Option<&readings::ReadingsReport>,
    path: &Path,
) -> Result<String> {
    let failed = report.sites.iter().find(|site| site.failure.is_some());
    let site = failed.or(report.sites.first()).context("the report has no site")?;
    let curl = |path: String| {
        format!(
            "curl -sS -H \"Authorization: Bearer $FIELDSTATION_API_KEY\" \"$API_URL/{path}\"\n  "
        )
    };
    let mut calls = curl(format!("sites/{}", site.site_id));
    // The air temperature, because its values are easy to understand.
    let thermometer = readings.and_then(|readings| {
        readings.sensors.iter().find(|sensor| sensor.metric == Metric::AirTemperature)
    });
    if let Some(SensorDay { sensor_id, .. }) = thermometer {
        calls += &curl(format!("sensors/{sensor_id}/readings?aggregate=hour"));
    }
    Ok(format!(
        "The stack keeps running. The report as JSON: {}. Commands to explore the stack:\n  \
         eval \"$(make -s env)\"   (settings for the next commands and for fieldctl; next in README.md: Your own site)\n  \
         {calls}\
         aws dynamodb scan --table-name {}   (if you have the AWS CLI)\n  \
         make logs NAME=publish-events   (any function; the emulator's log is target/local/ministack.log)\n  \
         make down   (stops the stack and deletes its data)",
        path.display(),
        stack.named(names::EVENTS),
    ))
}
