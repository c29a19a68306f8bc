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
    inventory::{Count, Inventory},
    log::{self, LoggedEvent},
    sites::{FORWARD, Ids, UNDO, residue, table_of},
    stripe,
    wait::{Look, until},
};

use crate::{
    readings::{self, SensorDay},
    stations::{Station, Via},
    watch::Onboarded,
};

/// The timeout for the last events after the sagas have ended.
pub const SETTLING: Duration = Duration::from_secs(15);
/// The time after the last event in which a second delivery would arrive.
pub const LISTENING: Duration = Duration::from_millis(1500);

/// The report of the demo, in `target/demo/report.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    sites: Vec<SiteReport>,
    residue: Residue,
    events_published: usize,
    onboarding_millis: Millis,
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

/// What is left of the two undone onboardings. All of it must be zero.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Residue {
    /// The number of rows that are not tombstones, by table.
    rows: BTreeMap<String, usize>,
    /// The number of customers and subscriptions at the payment provider.
    payment_provider: usize,
    /// Stock minus (delivered minus kits of ACTIVE sites), for the metrics where it is not 0.
    stock: Count,
}

#[derive(Debug, Serialize)]
struct Millis {
    p50: i64,
    p95: i64,
    max: i64,
}

/// The report, and the violations that it shows.
pub struct Findings {
    pub report: Report,
    pub untrue: Vec<String>,
}

/// A site with its executions and events.
struct Examined {
    ids: Ids,
    site: Value,
    onboarding: Execution,
    teardown: Option<Execution>,
    story: Vec<LoggedEvent>,
}

/// Waits until the site's read model and event log are final. After the timeout, returns the current state.
async fn settled(stack: &Stack, ids: Ids) -> Result<(Value, Vec<LoggedEvent>)> {
    let look = async || {
        let answer = stack.site(ids.site_id).await?;
        let story = log::story(stack, ids.onboarding_id).await?;
        anyhow::Ok((answer.body, story))
    };
    let settled = until("the read model", SETTLING, async || {
        let (site, story) = look().await?;
        let steps = site["onboarding"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
        let settled = match site["status"].as_str() {
            Some("ACTIVE") => steps.len() == FORWARD.len(),
            Some("REJECTED") => {
                !steps.is_empty() && steps.iter().all(|step| step["status"] != "COMPLETED")
            }
            _ => false,
        };
        let published = story.iter().all(LoggedEvent::is_published);
        Ok(if settled && published { Look::Found((site, story)) } else { Look::Saw("less") })
    })
    .await;
    match settled {
        Ok(settled) => Ok(settled),
        Err(_) => look().await,
    }
}

async fn examined(stack: &Stack, ids: Ids) -> Result<Examined> {
    let (site, story) = settled(stack, ids).await?;
    let onboarding =
        stack.onboarding(ids.onboarding_id).await?.context("an onboarding without execution")?;
    let teardown = stack.teardown(ids.onboarding_id).await?;
    Ok(Examined { ids, site, onboarding, teardown, story })
}

/// Returns the time from `SiteCreated` to the final event.
fn millis(story: &[LoggedEvent]) -> Option<i64> {
    let at = |kinds: &[&str]| -> Option<i64> {
        let event = story.iter().find(|event| kinds.contains(&event.kind.as_str()))?;
        Some(event.occurred_at.parse::<Timestamp>().ok()?.millis())
    };
    Some(at(&["SiteActivated", "SiteRejected"])? - at(&["SiteCreated"])?)
}

fn step(task: &Task, done: &'static str) -> Step {
    let status = if task.succeeded { done } else { "FAILED" };
    Step { name: task.name.clone(), status, millis: task.millis() }
}

fn steps(examined: &Examined) -> Vec<Step> {
    let forward = examined.onboarding.tasks.iter().filter(|task| task.name != "Compensate");
    let undo = examined.teardown.iter().flat_map(|teardown| &teardown.tasks);
    forward
        .map(|task| step(task, "COMPLETED"))
        .chain(undo.map(|task| step(task, "UNDONE")))
        .collect()
}

/// Compares one site with the expected result of its station.
fn check(station: &Station, examined: &Examined, untrue: &mut Vec<String>) {
    let name = &station.name;
    let mut must = |holds: bool, what: String| {
        if !holds {
            untrue.push(format!("{name}: {what}"));
        }
    };
    let Examined { site, onboarding, teardown, story, .. } = examined;
    let told: Vec<_> = site["onboarding"]["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| (step["name"].as_str().unwrap_or("?"), step["status"].as_str().unwrap_or("?")))
        .collect();
    match station.fails {
        None => {
            must(site["status"] == "ACTIVE", format!("it is {}, not ACTIVE", site["status"]));
            must(
                onboarding.status == ExecutionStatus::Succeeded,
                format!("its saga ended {}: {:?}", onboarding.status, onboarding.cause),
            );
            must(
                told == FORWARD.map(|step| (step, "COMPLETED")),
                format!("GET /sites/{{siteId}} tells of the steps {told:?}"),
            );
            must(teardown.is_none(), "it was torn down".to_owned());
        }
        Some((step, error)) => {
            must(site["status"] == "REJECTED", format!("it is {}, not REJECTED", site["status"]));
            let failure = &site["onboarding"]["failure"];
            must(
                failure["step"] == step && failure["error"] == error,
                format!("its failure is {failure}, not {error} of {step}"),
            );
            must(
                onboarding.task(step).and_then(Task::failure) == Some(error)
                    && onboarding.error.as_deref() == Some(error),
                format!("its saga ended {}: {:?}", onboarding.status, onboarding.cause),
            );
            // Every step before the failed one must be shown as undone, and the failed one as failed.
            let mut tale: Vec<_> = FORWARD
                .into_iter()
                .take_while(|name| *name != step)
                .map(|name| (name, "UNDONE"))
                .collect();
            tale.push((step, "FAILED"));
            must(told == tale, format!("GET /sites/{{siteId}} tells of the steps {told:?}"));
            let undone = teardown.as_ref().map(Execution::succeeded).unwrap_or_default();
            must(undone == UNDO, format!("only these undos went through: {undone:?}"));
        }
    }
    for gap in log::gaps(story) {
        must(false, gap);
    }
    for event in story.iter().filter(|event| !event.is_published()) {
        must(false, format!("{} {} is not published", event.entity, event.kind));
    }
}

/// Checks that every logged event was delivered once, and no other event was.
fn check_deliveries(logged: &BTreeSet<String>, captured: &[Value], untrue: &mut Vec<String>) {
    let mut times = BTreeMap::<&str, usize>::new();
    for event in captured {
        *times.entry(capture::event_id(event)).or_default() += 1;
    }
    for id in logged {
        match times.remove(id.as_str()) {
            Some(1) => {}
            times => untrue.push(format!(
                "event {id} was delivered {} times, not once",
                times.unwrap_or_default()
            )),
        }
    }
    untrue.extend(times.keys().map(|id| format!("event {id} was delivered and is in no log")));
}

/// Returns the expected stock: all delivered kits minus one for each sensor of an active site.
fn expected_stock(inventory: &Inventory, examined: &[Examined]) -> Count {
    let mut expected = inventory.delivered.clone();
    for site in examined.iter().map(|examined| &examined.site) {
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
pub async fn examine(
    stack: &Stack,
    capture: &Capture,
    stations: &[Station],
    onboarded: &Onboarded,
) -> Result<Findings> {
    let sites = onboarded.ids.iter().map(|ids| examined(stack, *ids));
    let examined = try_join_all(sites).await?;
    let mut untrue = Vec::new();
    let mut left = Residue::default();
    for step in STEPS.iter().filter(|step| !step.is_of_site()) {
        left.rows.insert(table_of(step), 0);
    }
    for (station, examined) in stations.iter().zip(&examined) {
        check(station, examined, &mut untrue);
        let onboarding = examined.ids.onboarding_id.to_string();
        let billed = stripe::billed(stack, &onboarding).await?;
        if station.fails.is_none() {
            if billed.subscriptions.len() != 1 || billed.customers.len() != 1 {
                let name = &station.name;
                untrue.push(format!("{name}: at the payment provider there is {billed:?}"));
            }
            continue;
        }
        left.payment_provider += billed.count();
        for (place, what) in residue(stack, examined.ids).await? {
            if let Some(rows) = left.rows.get_mut(&place) {
                *rows += 1;
            }
            untrue.push(format!("{}: left in {place}: {what}", station.name));
        }
    }
    let inventory = Inventory::read(stack).await?;
    left.stock = Inventory::off(&inventory.stock, &expected_stock(&inventory, &examined));
    if !left.stock.is_empty() {
        untrue.push(format!("the stock is off by {:?}", left.stock));
    }
    for (status, must_be) in [("ACTIVE", 6), ("REJECTED", 2)] {
        let listed = stack.call(Call::get(format!("/sites?status={status}"))).await?;
        let count = listed.body["sites"].as_array().map(Vec::len);
        if count != Some(must_be) {
            untrue.push(format!("GET /sites lists {count:?} {status} sites, not {must_be}"));
        }
    }

    let mut logged = BTreeSet::new();
    let mut published = 0;
    for event in examined.iter().flat_map(|examined| &examined.story) {
        published += usize::from(event.is_published());
        logged.insert(event.id()?);
    }
    let mut captured = onboarded.captured.clone();
    let missing = logged.len().saturating_sub(captured.len());
    captured.extend(capture.take_until(stack, SETTLING, |more| more.len() >= missing).await?);
    tokio::time::sleep(LISTENING).await;
    captured.extend(capture.take(stack).await?);
    check_deliveries(&logged, &captured, &mut untrue);

    let mut times: Vec<_> = examined.iter().filter_map(|site| millis(&site.story)).collect();
    times.sort_unstable();
    let report = Report {
        residue: left,
        events_published: published,
        onboarding_millis: Millis {
            p50: percentile(&times, 50),
            p95: percentile(&times, 95),
            max: percentile(&times, 100),
        },
        sites: stations
            .iter()
            .zip(&examined)
            .map(|(station, examined)| SiteReport {
                name: station.name.clone(),
                site_id: examined.ids.site_id.to_string(),
                onboarding_id: examined.ids.onboarding_id.to_string(),
                via: station.via,
                status: examined.site["status"].as_str().unwrap_or("?").to_owned(),
                failure: examined.site["onboarding"].get("failure").cloned(),
                steps: steps(examined),
                millis: millis(&examined.story).unwrap_or_default(),
            })
            .collect(),
    };
    Ok(Findings { report, untrue })
}

/// Returns the table of the sites.
pub fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL).set_content_arrangement(ContentArrangement::Dynamic);
    // Without a terminal the table has no width.
    if table.width().is_none() {
        table.set_width(140);
    }
    table.set_header(["Site", "Via", "Status", "ms", "Steps (ms)"]);
    for site in &report.sites {
        let steps = site.steps.iter().filter(|step| step.status != "UNDONE");
        let mut cell = words(steps);
        if let Some(failure) = &site.failure {
            let undone = site.steps.iter().filter(|step| step.status == "UNDONE");
            cell = format!(
                "{cell}\nfailed: {}: {}: {}\nundone: {}",
                failure["step"].as_str().unwrap_or("?"),
                failure["error"].as_str().unwrap_or("?"),
                failure["message"].as_str().unwrap_or("?"),
                words(undone)
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

fn words<'a>(steps: impl Iterator<Item = &'a Step>) -> String {
    let each: Vec<_> = steps
        .map(|step| match step.millis {
            Some(millis) => format!("{} {millis}", step.name),
            None => format!("{} ...", step.name),
        })
        .collect();
    each.join(", ")
}

/// Returns the summary: what is left, and the durations.
pub fn summary(report: &Report) -> String {
    let rows: Vec<_> =
        report.residue.rows.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
    let stock = if report.residue.stock.is_empty() {
        "what was delivered minus the kits of ACTIVE sites".to_owned()
    } else {
        format!("off by {:?}", report.residue.stock)
    };
    let Millis { p50, p95, max } = report.onboarding_millis;
    format!(
        "Residue of the two failed onboardings, but for tombstones: rows in {}; customers and \
         subscriptions at the payment provider {}; stock: {stock}.\n\
         Events published: {}. From registration to the end: p50 {p50} ms, p95 {p95} ms, max {max} ms.",
        rows.join(", "),
        report.residue.payment_provider,
        report.events_published,
    )
}

/// The content of `target/demo/report.json`.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    onboarding: &'a Report,
    readings: Option<&'a readings::Report>,
}

/// Writes `target/demo/report.json` and returns its path.
pub fn write(onboarding: &Report, readings: Option<&readings::Report>) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("target/demo");
    fs::create_dir_all(&folder)?;
    let path = folder.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(&Whole { onboarding, readings })? + "\n")?;
    Ok(path.strip_prefix(root).unwrap_or(&path).to_owned())
}

/// Returns commands for exploring the stack.
pub fn what_next(
    stack: &Stack,
    report: &Report,
    readings: Option<&readings::Report>,
    path: &Path,
) -> Result<String> {
    let failed = report.sites.iter().find(|site| site.failure.is_some());
    let site = failed.or(report.sites.first()).context("a site")?;
    let endpoint = stack.endpoint().as_str().trim_end_matches('/');
    let host = stack.api_host()?;
    let stage = stack.api_stage()?;
    let curl = |path: String| {
        format!(
            "curl -sS --aws-sigv4 aws:amz:us-east-1:execute-api --user test:test -H 'Host: {host}' \
             '{endpoint}/{stage}/{path}'\n  "
        )
    };
    let mut calls = curl(format!("sites/{}", site.site_id));
    // The air temperature, because its values are easy to judge.
    let thermometer = readings.and_then(|readings| {
        readings.sensors.iter().find(|sensor| sensor.metric == Metric::AirTemperature)
    });
    if let Some(SensorDay { sensor_id, .. }) = thermometer {
        calls += &curl(format!("sensors/{sensor_id}/readings?aggregate=hour"));
    }
    Ok(format!(
        "The stack stays up. The same as JSON: {}. Look around:\n  \
         {calls}\
         AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test aws --endpoint-url {endpoint} --region us-east-1 \
         dynamodb scan --table-name {}\n  \
         make logs NAME=publish-events   (any function; the emulator's own log: target/local/ministack.log)\n  \
         make down   (stops it and forgets everything)",
        path.display(),
        stack.named(names::EVENTS),
    ))
}
