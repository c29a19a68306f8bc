//! Formats the report of the readings for the terminal. Without a terminal it is at most 100 columns wide.

use std::collections::BTreeMap;

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use contracts::{Metric, Timestamp, events::Limit};
use plot::Plot;
use surfrad::LeftOut;
use tests::judge::Became;

use crate::readings::{Report, SensorDay, Sent, Stored};

/// The metrics with a plot.
const DRAWN: [Metric; 3] =
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
pub fn all(report: &Report) -> String {
    let plots = DRAWN.iter().filter_map(|metric| {
        let drawn = |sensor: &&SensorDay| sensor.metric == *metric && !sensor.samples.is_empty();
        report.sensors.iter().find(drawn).map(|sensor| plot(report, sensor))
    });
    let mut parts: Vec<_> = plots.collect();
    parts.push(format!("The day, as the API adds it up:\n{}", days(report)));
    parts.push(format!("Alerts, as they came over the bus:\n{}", alerts(report)));
    parts.push(format!(
        "Broken records, as the failures table tells of them:\n{}",
        failures(report)
    ));
    parts.push(counts(report));
    parts.join("\n\n")
}

fn plot(report: &Report, sensor: &SensorDay) -> String {
    let mut breaches = Vec::new();
    let mut since = None;
    for alert in report.alerts.iter().filter(|alert| alert.sensor_id == sensor.sensor_id) {
        match alert.became {
            Became::Breached { .. } => since = since.or(Some(alert.at)),
            Became::Normal { .. } => breaches.extend(since.take().map(|since| (since, alert.at))),
        }
    }
    let last = sensor.samples.last().map(|sample| sample.0);
    breaches.extend(since.zip(last));
    let taken = last.map_or(0, Timestamp::millis);
    let midnight = Timestamp::from_millis(taken - taken.rem_euclid(DAY_MILLIS));
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

fn days(report: &Report) -> Table {
    let mut table = table(["Sensor", "Unit", "Samples", "Least", "Mean", "Greatest"]);
    for SensorDay { metric, unit, day, .. } in &report.sensors {
        let (count, min, mean, max) = match day {
            Some(day) => (
                day.count.to_string(),
                format!("{:.1}", day.min),
                format!("{:.2}", day.mean),
                format!("{:.1}", day.max),
            ),
            None => ("none".to_owned(), String::new(), String::new(), String::new()),
        };
        table.add_row([metric.name(), unit, &count, &min, &mean, &max]);
    }
    table
}

/// Formats a time as hours and minutes.
fn clock(at: Timestamp) -> String {
    at.to_string()[11..16].to_owned()
}

fn alerts(report: &Report) -> Table {
    let mut table = table(["UTC", "Sensor", "Value", "What"]);
    let mut alerts: Vec<_> = report.alerts.iter().collect();
    alerts.sort_by_key(|alert| alert.at);
    for alert in alerts {
        let what = match alert.became {
            Became::Breached { limit, threshold } => {
                let beyond = match limit {
                    Limit::Min => "below",
                    Limit::Max => "above",
                };
                format!("{beyond} {threshold}")
            }
            Became::Normal { breached_at } => {
                format!(
                    "back to normal, after {} min",
                    (alert.at.millis() - breached_at.millis()) / 60_000
                )
            }
        };
        let value = format!("{} {}", alert.value, alert.unit);
        table.add_row([clock(alert.at), alert.metric.to_string(), value, what]);
    }
    table
}

fn failures(report: &Report) -> Table {
    let mut table = table(["What was put", "Bytes", "Error", "Reason", "Position"]);
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

fn counts(report: &Report) -> String {
    let Sent { bundles, samples, directly, late, bundles_repeated, samples_repeated, .. } =
        report.sent;
    let LeftOut { missing, impossible, questionable } = report.left_out;
    let Stored { rows, bytes, write_units, write_units_refused, write_units_a_reading, .. } =
        report.stored;
    let mut errors = BTreeMap::<&str, usize>::new();
    for record in &report.failures {
        *errors.entry(&record.error).or_default() += 1;
    }
    let errors: Vec<_> = errors.iter().map(|(error, count)| format!("{count} {error}")).collect();
    format!(
        "In:   {} rows of {}\n      \
         {samples} good values in {bundles} bundles; not sent: {missing} missing, {impossible} \
         impossible, {questionable} questionable\n      \
         of the bundles {directly} were put on the stream directly, as gzip, and {late} came late\n      \
         once more: {bundles_repeated} bundles with {samples_repeated} samples; broken records: {}; \
         calls tried again: {}\n\
         Out:  {} samples in {rows} rows, each once, equal to the file's to the bit\n      \
         in the failures table: {}\n\
         Cost: {write_units} write units for the rows ({bytes} bytes), {write_units_refused} for what \
         was there already: {write_units_a_reading:.4} a reading\n\
         Time: from sending a bundle to its readings p50 {} ms, p95 {} ms, at most {} ms (on the \
         emulator: no measure of AWS)",
        report.rows,
        report.file,
        report.sent.broken_records,
        report.sent.retries,
        report.stored.samples,
        errors.join(", "),
        report.queryable_after.p50,
        report.queryable_after.p95,
        report.queryable_after.max,
    )
}
