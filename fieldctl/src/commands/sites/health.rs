//! The command `fieldctl sites health`.

use contracts::{OperatorId, SensorId, SiteId, Timestamp, names, saga::ACTIVATE_SITE};
use futures_util::{StreamExt, TryStreamExt, stream};
use ledger::{FailureSummary, Status, sources::STORE_READINGS};
use serde_json::Value;
use series::{RefusalRow, RevisionRow, SeriesRow};
use store::Table as DynamoTable;

use super::text;
use crate::{
    error::{CliError, Exit},
    failure_pager::{FailureFilter, FailurePager},
    health::{
        Finding, HealthData, QuarantinedBundle, ReadResult, SensorHealth, SiteHealth, SiteSensor,
        StoredReadings, Verdict, WINDOW_MILLIS, format_age,
    },
    output::{Screen, Tone},
    render::{Cell, Table, age, ago, plain, short},
    stack::Stack,
    trace::status_tone,
};

/// The maximum number of sensors or failures that are read concurrently.
const MAX_CONCURRENT_READS: usize = 8;
/// The minimum number of rows of a sensor that are read to compute its interval, even if they are older than 24 hours.
const MIN_ROWS: usize = 50;
/// The maximum number of a sensor's rows that are read: two days of bundles of half a minute.
const MAX_ROWS: usize = 6_000;
/// The maximum number of open failures of store-readings that are searched for those of the site. With more of them,
/// the number of quarantined bundles is unknown.
const MAX_FAILURES: usize = 1_000;

/// Runs the command.
pub async fn run(stack: &Stack, screen: &mut Screen, site: SiteId) -> Result<Exit, CliError> {
    let site_json = stack.site(site).await?;
    // The future is boxed because it is large: it makes many requests.
    let data = Box::pin(load_data(stack, site, &site_json, screen.now)).await;
    let health = data.into_health(screen.now);
    if screen.json {
        screen.document(&health)?;
    } else {
        print(screen, &health)?;
    }
    Ok(health.exit())
}

async fn load_data(stack: &Stack, site: SiteId, site_json: &Value, now: Timestamp) -> HealthData {
    let sensors = site_json["sensors"].as_array().into_iter().flatten().map(|sensor| SiteSensor {
        id: text(sensor, "sensorId").to_owned(),
        metric: text(sensor, "metric").to_owned(),
        unit: text(sensor, "unit").to_owned(),
    });
    let readings = stack.table(names::READINGS);
    let since = now.plus_millis(-WINDOW_MILLIS - SeriesRow::MAX_SPAN_MILLIS);
    let sensors = stream::iter(sensors.collect::<Vec<_>>())
        .map(|sensor| async {
            let stored = stored(&readings, &sensor.id, since).await;
            (sensor, stored)
        })
        .buffered(MAX_CONCURRENT_READS)
        .collect();
    let refusals = stack.table(names::REFUSALS);
    // An API of a release from before there were operators returns no operator.
    let operator = text(site_json, "operatorId").parse().unwrap_or_default();
    let since = now.plus_millis(-WINDOW_MILLIS);
    let (sensors, own, without_site, failures) = futures_util::join!(
        sensors,
        refused(&refusals, operator, Some(site), since),
        refused(&refusals, operator, None, since),
        quarantined_bundles(stack, site),
    );
    let steps = site_json["onboarding"]["steps"].as_array().into_iter().flatten();
    let activation = steps.rev().find(|step| step["name"] == ACTIVATE_SITE);
    HealthData {
        site_id: site,
        name: text(site_json, "name").to_owned(),
        status: text(site_json, "status").to_owned(),
        active_since: activation.and_then(|step| text(step, "at").parse().ok()),
        sensors,
        refusals: own,
        refusals_without_site: without_site,
        failures,
    }
}

async fn stored(table: &DynamoTable, sensor: &str, since: Timestamp) -> ReadResult<StoredReadings> {
    let sensor: SensorId =
        sensor.parse().map_err(|_| "the API returned an invalid sensor id".to_owned())?;
    let (rows, markers) = futures_util::try_join!(
        SeriesRow::newest(table, sensor, since, MIN_ROWS, MAX_ROWS),
        RevisionRow::markers(table, sensor),
    )
    .map_err(|error| CliError::from(error).message)?;
    Ok(StoredReadings { rows, markers })
}

async fn refused(
    table: &DynamoTable,
    operator: OperatorId,
    site: Option<SiteId>,
    since: Timestamp,
) -> ReadResult<Vec<RefusalRow>> {
    let rows = RefusalRow::for_site(table, operator, site, since).await;
    rows.map_err(|error| CliError::from(error).message)
}

/// Returns the site's open failures of store-readings. The index of open failures has no site, so each row is read.
async fn quarantined_bundles(stack: &Stack, site: SiteId) -> ReadResult<Vec<QuarantinedBundle>> {
    let found = async {
        let ledger = stack.ledger();
        let filter =
            FailureFilter { source: Some(STORE_READINGS.to_owned()), ..FailureFilter::default() };
        let mut pager = FailurePager::new(ledger.clone(), &[Status::Open], filter);
        let mut failures: Vec<FailureSummary> = Vec::new();
        while let Some(page) = pager.next().await? {
            failures.extend(page);
            if failures.len() > MAX_FAILURES {
                let message = format!("store-readings has more than {MAX_FAILURES} open failures");
                return Err(CliError::new(Exit::Failed, message));
            }
        }
        let ledger = &ledger;
        let bundles = stream::iter(failures)
            .map(|failure| async move {
                let row = ledger.get(failure.id).await?;
                let is_of_site = row.is_some_and(|row| row.site_id == Some(site));
                Ok::<_, CliError>(is_of_site.then(|| QuarantinedBundle::from(&failure)))
            })
            .buffered(MAX_CONCURRENT_READS)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(bundles.into_iter().flatten().collect())
    };
    found.await.map_err(|error: CliError| error.message)
}

fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Reporting => Tone::Good,
        Verdict::NotInService => Tone::Faint,
        Verdict::Unknown | Verdict::StaleSamples | Verdict::PartlySilent => Tone::Warn,
        Verdict::NeverReported | Verdict::Silent | Verdict::Refused | Verdict::Quarantined => {
            Tone::Bad
        }
    }
}

fn print(screen: &mut Screen, health: &SiteHealth) -> Result<(), CliError> {
    screen.field("site", Tone::Strong, &health.name)?;
    screen.field("siteId", Tone::Plain, &health.site_id.to_string())?;
    screen.field("status", status_tone(&health.status), &health.status)?;
    screen.field("health", tone(health.verdict), &health.summary)?;
    for (index, Finding { kind, message, next }) in health.findings.iter().enumerate() {
        // The first finding is already shown as the summary.
        if index > 0 || health.verdict != *kind {
            screen.field("also", tone(*kind), message)?;
        }
        screen.field("next", Tone::Plain, next)?;
    }
    for unread in &health.unknown {
        screen.field(
            "not checked",
            Tone::Warn,
            &format!("{}: {}", unread.source, unread.reason),
        )?;
    }
    if let Some(count @ 1..) = health.refused_without_site {
        let message = match count {
            1 => "1 refused bundle of the last 24 h names no site; it may be from this site"
                .to_owned(),
            _ => format!(
                "{count} refused bundles of the last 24 h name no site; some may be from this site"
            ),
        };
        screen.field("note", Tone::Warn, &message)?;
    }
    screen.line("")?;
    let row = |sensor: &SensorHealth| sensor_row(screen, sensor, health.at);
    let rows: Vec<_> = health.sensors.iter().map(row).collect();
    let titles = [
        "SENSOR",
        "STATE",
        "ARRIVED",
        "SAMPLE",
        "EVERY",
        "24 H",
        "STORED",
        "REFUSED",
        "QUARANTINED",
        "METRIC",
    ];
    Table::new(titles).page(screen, &rows)?;
    if let Some(refused @ [_, ..]) = health.refused.as_deref() {
        screen.line("")?;
        screen.line("Refused in the last 24 hours")?;
        let rows = refused.iter().map(|refusal| {
            vec![
                (refusal.count.to_string(), Tone::Bad),
                plain(refusal.reason.clone()),
                (age(health.at, refusal.last_at), Tone::Faint),
                plain(refusal.sensor_id.map_or("-".to_owned(), |id| screen.id(&id))),
                plain(refusal.field.clone()),
                plain(refusal.example.clone()),
            ]
        });
        let rows: Vec<_> = rows.collect();
        Table::new(["COUNT", "REASON", "LAST", "SENSOR", "FIELD", "EXAMPLE"])
            .page(screen, &rows)?;
    }
    if let Some(quarantined @ [_, ..]) = health.quarantined.as_deref() {
        screen.line("")?;
        screen.line("Quarantined by store-readings")?;
        let rows = quarantined.iter().map(|failure| {
            vec![
                plain(short(&failure.failure_id)),
                (failure.error.name.clone(), Tone::Bad),
                (age(health.at, failure.last_at), Tone::Faint),
                plain(failure.error.message.clone()),
            ]
        });
        Table::new(["FAILURE", "ERROR", "LAST", "MESSAGE"])
            .page(screen, &rows.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn sensor_row(screen: &Screen, sensor: &SensorHealth, now: Timestamp) -> Vec<Cell> {
    let unknown = || "?".to_owned();
    let is_unread = sensor.verdict == Verdict::Unknown;
    let time = |at: Option<Timestamp>| match at {
        Some(at) => ago(now, at),
        None if is_unread => unknown(),
        None => "never".to_owned(),
    };
    let share = |part: f64| format!("{:.0} %", (part * 100.0).floor());
    let count = |count: Option<u64>| {
        let tone = if count.unwrap_or_default() > 0 { Tone::Bad } else { Tone::Plain };
        (count.map_or_else(unknown, |count| count.to_string()), tone)
    };
    let every = sensor.interval_seconds.map(|seconds| format_age(seconds * 1000));
    let stored = sensor.accepted.map(|accepted| accepted.samples.to_string());
    vec![
        plain(screen.id(&sensor.sensor_id)),
        (crate::render::serialized_name(&sensor.verdict), tone(sensor.verdict)),
        plain(time(sensor.last_arrival)),
        plain(time(sensor.last_sample)),
        plain(every.unwrap_or_else(unknown)),
        plain(sensor.completeness.map_or_else(unknown, share)),
        plain(stored.unwrap_or_else(unknown)),
        count(sensor.refused),
        count(sensor.quarantined.map(|count| u64::try_from(count).unwrap_or(u64::MAX))),
        plain(format!("{} {}", sensor.metric, sensor.unit)),
    ]
}
