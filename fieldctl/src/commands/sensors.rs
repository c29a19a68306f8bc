//! The command `fieldctl sensors`.

use clap::Subcommand;
use contracts::{SensorId, SiteId, Timestamp};
use serde_json::{Value, json};

use crate::{
    api::Call,
    commands::json_file,
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Cell, Table, plain},
    resolve,
    stack::Stack,
};

/// Commands for sensors.
#[derive(Debug, Subcommand)]
pub enum Sensors {
    /// Lists the sensors of a site, with the metadata that are valid now.
    List {
        /// The site: its id, the first digits of it, or its name.
        site: String,
    },
    /// Shows a sensor: what it measures and how, its calibrations and other dated metadata.
    Show {
        /// The sensor: its id, the first digits of it, or SITE/METRIC.
        sensor: String,
    },
    /// Lists the revisions of a sensor's readings: corrections and retractions.
    Revisions {
        /// The sensor: its id, the first digits of it, or SITE/METRIC.
        sensor: String,
    },
    /// Changes the metadata of a sensor, and shows the sensor.
    Update {
        /// The sensor: its id, the first digits of it, or SITE/METRIC.
        sensor: String,
        /// The JSON file of the changes, a merge patch as described in docs/integrating.md; - for standard input.
        #[arg(long)]
        file: String,
    },
}

impl Sensors {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { site } => list(stack, screen, resolve::site(stack, &site).await?).await,
            Self::Show { sensor } => {
                let (site, sensor) = resolve::site_sensor(stack, &sensor).await?;
                let sensor = sensor_of_site(stack, site, sensor).await?;
                show(screen, &sensor)
            }
            Self::Revisions { sensor } => {
                let sensor = resolve::sensor(stack, &sensor).await?;
                revisions(stack, screen, sensor).await
            }
            Self::Update { sensor, file } => {
                let sensor = resolve::sensor(stack, &sensor).await?;
                let patch: Value = json_file(&file)?;
                let call = Call::patch(format!("/sensors/{sensor}"), patch.to_string());
                show(screen, &stack.call(call).await?)
            }
        }
    }
}

async fn list(stack: &Stack, screen: &mut Screen, site: SiteId) -> Result<Exit, CliError> {
    let mut site = stack.site(site).await?;
    let sensors = site["sensors"].take();
    let sensors = sensors.as_array().map_or(&[][..], Vec::as_slice);
    if screen.json {
        sensors.iter().try_for_each(|sensor| screen.entry(sensor))?;
        return Ok(Exit::Done);
    }
    if sensors.is_empty() {
        screen.line("The site has no sensors.")?;
    }
    let now = screen.now;
    let row = |sensor: &Value| {
        let interval = current(&sensor["intervals"], now).map(interval).unwrap_or_default();
        vec![
            plain(screen.id(&text(&sensor["sensorId"]))),
            plain(text(&sensor["unit"])),
            plain(text(&sensor["kind"])),
            plain(interval),
            plain(current(&sensor["calibrations"], now).map(calibration).unwrap_or_default()),
            plain(text(&sensor["metric"])),
            (text(&sensor["label"]), Tone::Strong),
        ]
    };
    let rows: Vec<_> = sensors.iter().map(row).collect();
    Table::new(["SENSOR", "UNIT", "KIND", "INTERVAL", "CALIBRATION", "METRIC", "LABEL"])
        .page(screen, &rows)?;
    Ok(Exit::Done)
}

async fn revisions(stack: &Stack, screen: &mut Screen, sensor: SensorId) -> Result<Exit, CliError> {
    let mut revisions = stack.all(&format!("/sensors/{sensor}/revisions"), "revisions").await?;
    if screen.json {
        revisions.iter().try_for_each(|revision| screen.entry(revision))?;
        return Ok(Exit::Done);
    }
    if revisions.is_empty() {
        screen.line("The sensor's readings have no revisions.")?;
    }
    // The API lists them in the order of their bundle ids.
    revisions.sort_by_key(|revision| text(&revision["arrivedAt"]));
    let rows: Vec<_> = revisions.iter().map(revision_row).collect();
    let titles = ["ARRIVED", "KIND", "SAMPLES", "FROM", "TO", "REVISION", "BUNDLE", "REASON"];
    Table::new(titles).page(screen, &rows)?;
    Ok(Exit::Done)
}

/// Returns a row of the list of revisions. Its range is that of the samples and of what the revision replaces.
fn revision_row(revision: &Value) -> Vec<Cell> {
    let (samples, replaced) = (revision, &revision["replaces"]);
    let times = |name: &str| [samples, replaced].map(|range| text(&range[name]));
    // The times have the same format, so their order is that of their texts.
    let from = times("from").into_iter().filter(|time| !time.is_empty()).min();
    let to = times("to").into_iter().max();
    let is_retraction = revision["samples"] == 0;
    vec![
        (text(&revision["arrivedAt"]), Tone::Faint),
        plain(if is_retraction { "retraction" } else { "value" }),
        plain(text(&revision["samples"])),
        plain(from.unwrap_or_default()),
        plain(to.unwrap_or_default()),
        plain(text(&revision["revision"])),
        plain(text(&revision["bundleId"])),
        (text(&revision["reason"]), Tone::Strong),
    ]
}

/// Returns a sensor of a site in the form of a response to `PATCH /sensors/{sensorId}`.
async fn sensor_of_site(
    stack: &Stack,
    site_id: SiteId,
    sensor_id: SensorId,
) -> Result<Value, CliError> {
    let mut site = stack.site(site_id).await?;
    let id = sensor_id.to_string();
    let mut sensors = site["sensors"].as_array_mut().into_iter().flatten();
    let found = sensors.find(|sensor| sensor["sensorId"] == id.as_str());
    let mut sensor = found.map(Value::take).ok_or_else(|| {
        CliError::not_found(format!("the site {site_id} has no sensor {id}"))
            .advise(format!("`fieldctl sensors list {site_id}` lists its sensors"))
    })?;
    sensor["siteId"] = json!(site_id);
    Ok(sensor)
}

fn show(screen: &mut Screen, sensor: &Value) -> Result<Exit, CliError> {
    if screen.json {
        screen.document(sensor)?;
        return Ok(Exit::Done);
    }
    let unit = text(&sensor["unit"]);
    let with = |value: &Value, unit: &str| match text(value) {
        value if value.is_empty() => value,
        value => format!("{value} {unit}"),
    };
    let ids = sensor["externalIds"].as_object().into_iter().flatten();
    let ids: Vec<_> = ids.map(|(system, id)| format!("{system}: {}", text(id))).collect();
    for (name, tone, value) in [
        ("sensor", Tone::Strong, text(&sensor["label"])),
        ("sensorId", Tone::Plain, text(&sensor["sensorId"])),
        ("siteId", Tone::Plain, text(&sensor["siteId"])),
        ("metric", Tone::Strong, text(&sensor["metric"])),
        ("unit", Tone::Plain, unit.clone()),
        ("kind", Tone::Plain, text(&sensor["kind"])),
        ("stamp", Tone::Plain, text(&sensor["stamp"])),
        ("sent every", Tone::Plain, with(&sensor["reportEverySeconds"], "s")),
        ("height", Tone::Plain, with(&sensor["heightM"], "m")),
        ("datum", Tone::Plain, text(&sensor["datum"])),
        ("resolution", Tone::Plain, with(&sensor["resolution"], &unit)),
        ("detects from", Tone::Plain, with(&sensor["detectionLimit"], &unit)),
        ("rollover", Tone::Plain, with(&sensor["counter"]["rollover"], &unit)),
        ("external ids", Tone::Plain, ids.join(", ")),
    ] {
        if !value.is_empty() {
            screen.field(name, tone, &value)?;
        }
    }
    let rows: Vec<_> = dated_rows("interval", &sensor["intervals"], interval, screen.now)
        .chain(dated_rows("no data", &sensor["noDataValues"], no_data, screen.now))
        .chain(dated_rows("calibration", &sensor["calibrations"], calibration, screen.now))
        .collect();
    if !rows.is_empty() {
        screen.line("")?;
        Table::new(["DATED", "VALID FROM", "NOW", "VALUE"]).page(screen, &rows)?;
    }
    Ok(Exit::Done)
}

/// Returns a value as a person reads it. A value that is missing is empty.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn interval(entry: &Value) -> String {
    format!("{} s", text(&entry["seconds"]))
}

fn no_data(entry: &Value) -> String {
    let values: Vec<_> = entry["values"].as_array().into_iter().flatten().map(text).collect();
    if values.is_empty() { "none".to_owned() } else { values.join(", ") }
}

fn calibration(entry: &Value) -> String {
    format!("raw * {} + {}", text(&entry["gain"]), text(&entry["offset"]))
}

/// Returns the index of the entry of a list of dated values that is valid now. The entries are in the order of their
/// times.
fn current_index(entries: &[Value], now: Timestamp) -> Option<usize> {
    entries.iter().rposition(|entry| match &entry["validFrom"] {
        Value::Null => true,
        from => from
            .as_str()
            .and_then(|from| from.parse().ok())
            .is_some_and(|from: Timestamp| from <= now),
    })
}

fn current(entries: &Value, now: Timestamp) -> Option<&Value> {
    let entries = entries.as_array()?;
    entries.get(current_index(entries, now)?)
}

/// Returns a row for each entry of a list of dated values.
fn dated_rows<'a>(
    name: &'a str,
    entries: &'a Value,
    shown: fn(&Value) -> String,
    now: Timestamp,
) -> impl Iterator<Item = Vec<Cell>> + 'a {
    let entries = entries.as_array().map_or(&[][..], Vec::as_slice);
    let current = current_index(entries, now);
    entries.iter().enumerate().map(move |(index, entry)| {
        let from = entry.get("validFrom").map_or_else(|| "always".to_owned(), text);
        let is_current = current == Some(index);
        vec![
            plain(name),
            (from, Tone::Faint),
            (
                if is_current { "yes" } else { "no" }.to_owned(),
                if is_current { Tone::Good } else { Tone::Faint },
            ),
            plain(shown(entry)),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_that_began_is_valid_now() {
        let at = |text: &str| json!({ "validFrom": text, "seconds": 60 });
        let entries = [
            json!({ "seconds": 600 }),
            at("2026-01-01T00:00:00.000Z"),
            at("2026-03-01T00:00:00.000Z"),
        ];
        for (now, expected) in [
            ("2025-12-31T23:59:59.999Z", Some(0)),
            ("2026-01-01T00:00:00.000Z", Some(1)),
            ("2026-04-01T00:00:00.000Z", Some(2)),
        ] {
            assert_eq!(current_index(&entries, now.parse().expect("a time")), expected, "{now}");
        }
        let now = "2025-12-31T00:00:00.000Z".parse().expect("a time");
        assert_eq!(current_index(&entries[1..], now), None, "none began");
    }
}
