//! Formats the report of the readings for the terminal. Without a terminal it is at most 100 columns wide.

use std::collections::BTreeMap;

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use contracts::{Metric, Timestamp, events::Limit};
use plot::Plot;
use tests::expected_alerts::SensorState;

use crate::readings::{ReadingsReport, SensorDay, Sent, Stored};

/// The metrics with a plot.
const PLOTTED: [Metric; 3] =
    [Metric::DownwellingShortwave, Metric::AirTemperature, Metric::WindSpeed];
const WIDTH: u16 = 100;
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;

fn table<const N: usize>(titles: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    // Without a terminal the table has no width.
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    table.set_header(titles);
    table
}

/// Returns the plots, the tables and the counts.
pub fn render(report: &ReadingsReport) -> String {
    let plots = PLOTTED.iter().filter_map(|metric| {
        let is_plotted =
            |sensor: &&SensorDay| sensor.metric == *metric && !sensor.samples.is_empty();
        report.sensors.iter().find(is_plotted).map(|sensor| plot(report, sensor))
    });
    let mut parts: Vec<_> = plots.collect();
    parts.push(format!("Aggregates of the day, from the API:\n{}", days(report)));
    parts.push(format!("Alerts, from the event bus:\n{}", alerts(report)));
    parts.push(format!("Broken records, from the failures table:\n{}", failures(report)));
    parts.push(counts(report));
    parts.join("\n\n")
}

fn plot(report: &ReadingsReport, sensor: &SensorDay) -> String {
    let mut breaches = Vec::new();
    let mut since = None;
    for alert in report.alerts.iter().filter(|alert| alert.sensor_id == sensor.sensor_id) {
        match alert.became {
            SensorState::Breached { .. } => since = since.or(Some(alert.at)),
            SensorState::Normal { .. } => {
                breaches.extend(since.take().map(|since| (since, alert.at)));
            }
        }
    }
    let last = sensor.samples.last().map(|sample| sample.at);
    breaches.extend(since.zip(last));
    let last_millis = last.map_or(0, Timestamp::millis);
    let midnight = Timestamp::from_millis(last_millis - last_millis.rem_euclid(DAY_MILLIS));
    Plot {
        title: format!("{} of {}, {}", sensor.metric, report.station, sensor.unit),
        from: midnight,
        to: midnight.plus_millis(DAY_MILLIS),
        samples: &sensor.samples,
        limits: sensor.limits.clone(),
        breaches,
    }
    .to_string()
}

fn days(report: &ReadingsReport) -> Table {
    let mut table = table(["Sensor", "Unit", "Samples", "Min", "Mean", "Max"]);
    for SensorDay { metric, unit, day, .. } in &report.sensors {
        let (count, min, mean, max) = match day {
            Some(day) => {
                (day.count.to_string(), number(day.min, 1), number(day.mean, 2), number(day.max, 1))
            }
            None => ("none".to_owned(), String::new(), String::new(), String::new()),
        };
        table.add_row([metric.name(), unit, &count, &min, &mean, &max]);
    }
    table
}

/// Formats a number with this many decimal digits. Nothing for no number.
fn number(number: Option<f64>, digits: usize) -> String {
    number.map(|number| format!("{number:.digits$}")).unwrap_or_default()
}

/// Formats a time as hours and minutes.
fn clock(at: Timestamp) -> String {
    at.to_string()[11..16].to_owned()
}

fn alerts(report: &ReadingsReport) -> Table {
    let mut table = table(["UTC", "Sensor", "Value", "State"]);
    let mut alerts: Vec<_> = report.alerts.iter().collect();
    alerts.sort_by_key(|alert| alert.at);
    for alert in alerts {
        let state = match alert.became {
            SensorState::Breached { limit, threshold } => {
                let side = match limit {
                    Limit::Min => "below",
                    Limit::Max => "above",
                };
                format!("{side} the limit of {threshold}")
            }
            SensorState::Normal { breached_at } => {
                format!(
                    "back to normal after {} min",
                    (alert.at.millis() - breached_at.millis()) / 60_000
                )
            }
        };
        let value = format!("{} {}", alert.value, alert.unit);
        table.add_row([clock(alert.at), alert.metric.to_string(), value, state]);
    }
    table
}

fn failures(report: &ReadingsReport) -> Table {
    let mut table = table(["Record", "Bytes", "Error", "Reason", "Position in the stream"]);
    for record in &report.failures {
        table.add_row([
            record.what,
            &record.bytes.to_string(),
            &record.error,
            &record.reason,
            &format!("{} {}", record.shard_id, record.sequence_number),
        ]);
    }
    table
}

fn counts(report: &ReadingsReport) -> String {
    let Sent { bundles, samples, directly, late, bundles_repeated, samples_repeated, .. } =
        report.sent;
    let Stored { rows, bytes, write_units, write_units_refused, write_units_a_reading, .. } =
        report.stored;
    let mut errors = BTreeMap::<&str, usize>::new();
    for record in &report.failures {
        *errors.entry(&record.error).or_default() += 1;
    }
    let errors: Vec<_> = errors.iter().map(|(error, count)| format!("{count} {error}")).collect();
    format!(
        "Sent:   {samples} samples of {} rows of {}, moved to yesterday, in {bundles} bundles\n        \
         by quality flag: {}\n        \
         {directly} bundles were put on the stream directly (as gzip), {late} were sent late\n        \
         {bundles_repeated} bundles ({samples_repeated} samples) were sent twice; {} broken records; {} retried calls\n\
         Stored: {} samples in {rows} rows, each once and bit for bit as in the file\n        \
         recorded failures: {}\n\
         Cost:   {write_units_a_reading:.4} write units per reading: {write_units} for the rows ({bytes} bytes), \
         {write_units_refused} for rejected writes of repeated bundles\n\
         Time:   until a sent bundle can be queried: p50 {} ms, p95 {} ms, max {} ms (on the emulator; AWS \
         differs)",
        report.rows,
        report.file,
        report.flags,
        report.sent.broken_records,
        report.sent.retries,
        report.stored.samples,
        errors.join(", "),
        report.queryable_after.p50,
        report.queryable_after.p95,
        report.queryable_after.max,
    )
}
