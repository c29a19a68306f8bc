//! The command `fieldctl readings`.

mod send;

use clap::{Args, Subcommand, ValueEnum};
use contracts::{
    SensorId, Timestamp,
    sample::{Flag, Sample},
};
use plot::Plot;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    api::{Call, query},
    error::{CliError, Exit, unreadable},
    output::{Screen, Tone},
    render::{Table, counted, parse_time, plain},
    resolve,
    stack::Stack,
};

/// Commands for readings.
#[derive(Debug, Subcommand)]
pub enum Readings {
    /// Sends bundles of readings, file by file, and lists what the API refuses. It is safe to send a bundle again.
    ///
    /// What is refused does not stop the rest. Paths such as `[3].series[0]` count from 0 in the file; a file with one
    /// bundle is `[0]`. ACCEPTED includes IN PART, where some series of the bundle were refused. LEFT is what was not
    /// sent, or was sent without an answer.
    ///
    /// Exit codes: 0 everything was accepted; 1 Ctrl-C stopped it; 2 a file can't be read; 4 something was refused, or the API
    /// is busy; 5 the API can't be reached, or does not accept the key.
    Send(send::Options),
    /// Prints a sensor's readings, the oldest first.
    ///
    /// Without --quality, readings without a value, or with the flag 4 (fail), are left out. With --quality all, a missing
    /// value is shown as -.
    Get {
        /// The sensor: its id, the first digits of it, or SITE/METRIC.
        sensor: String,
        /// Only readings since this time: RFC 3339, or an age such as 2h.
        #[arg(long, value_parser = parse_time)]
        from: Option<Timestamp>,
        /// Only readings before this time.
        #[arg(long, value_parser = parse_time)]
        to: Option<Timestamp>,
        /// Aggregate the readings by hours or days in UTC.
        #[arg(long)]
        aggregate: Option<Aggregate>,
        /// Print the newest first. With --limit 1 this prints the last reading.
        #[arg(long)]
        newest: bool,
        /// The readings and values to show.
        #[command(flatten)]
        view: View,
        /// Print each reading's flag and qualifiers, too.
        #[arg(long, conflicts_with = "aggregate")]
        flags: bool,
        /// The maximum number of readings or aggregates.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
    },
    /// Draws a sensor's readings.
    Plot {
        /// The sensor: its id, the first digits of it, or SITE/METRIC.
        sensor: String,
        /// Only readings since this time: RFC 3339, or an age such as 2h.
        #[arg(long, value_parser = parse_time, default_value = "1d")]
        from: Timestamp,
        /// Only readings before this time. The default is now.
        #[arg(long, value_parser = parse_time)]
        to: Option<Timestamp>,
        /// The readings and values to show.
        #[command(flatten)]
        view: View,
    },
}

/// The options for the readings and values to show.
#[derive(Args, Clone, Copy, Debug)]
pub struct View {
    /// The readings to include. The default is usable.
    #[arg(long)]
    quality: Option<Quality>,
    /// The values to show. The default is calibrated.
    #[arg(long)]
    values: Option<Values>,
}

/// The readings that a query includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quality {
    /// Readings that passed the sender's quality control: flag 1.
    Good,
    /// Readings that did not fail it: flags 1, 2 and 3.
    Usable,
    /// All readings, also those that failed (4) or have no value (9).
    All,
}

/// The values that a query returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Values {
    /// As they were sent.
    Raw,
    /// Calibrated, if the sensor has a calibration.
    Calibrated,
}

/// The period of an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aggregate {
    /// Hours.
    Hour,
    /// Days.
    Day,
}

impl Readings {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::Send(options) => send::run(stack, screen, options).await,
            Self::Get { sensor, from, to, aggregate, newest, view, flags, limit } => {
                let sensor = resolve::sensor(stack, &sensor).await?;
                let request = ReadingsRequest { sensor, from, to, aggregate, newest, view, flags };
                get(stack, screen, request, limit).await
            }
            Self::Plot { sensor, from, to, view } => {
                let sensor = resolve::sensor(stack, &sensor).await?;
                plot(stack, screen, sensor, from, to, view).await
            }
        }
    }
}

/// Returns the name of an option's value, which is also that of the API.
fn name(value: &impl ValueEnum) -> Option<String> {
    Some(value.to_possible_value()?.get_name().to_owned())
}

/// The readings to get.
#[derive(Clone, Copy, Debug)]
struct ReadingsRequest {
    sensor: SensorId,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    aggregate: Option<Aggregate>,
    newest: bool,
    view: View,
    /// Whether to get the flags and qualifiers.
    flags: bool,
}

impl ReadingsRequest {
    /// Returns the maximum page size of the API.
    fn max_page_size(&self) -> u64 {
        if self.aggregate.is_some() { 1_000 } else { 10_000 }
    }

    /// Returns a page of at most `limit` entries. `next` is the token from the previous page.
    async fn page(
        &self,
        stack: &Stack,
        limit: u64,
        next: Option<String>,
    ) -> Result<Value, CliError> {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let query = query(&[
            ("from", text(self.from)),
            ("to", text(self.to)),
            ("aggregate", self.aggregate.as_ref().and_then(name)),
            ("order", self.newest.then(|| "desc".to_owned())),
            ("quality", self.view.quality.as_ref().and_then(name)),
            ("values", self.view.values.as_ref().and_then(name)),
            ("flags", self.flags.then(|| "true".to_owned())),
            ("limit", Some(limit.min(self.max_page_size()).to_string())),
            ("next", next),
        ]);
        stack.call(Call::get(format!("/sensors/{}/readings?{query}", self.sensor))).await
    }
}

async fn get(
    stack: &Stack,
    screen: &mut Screen,
    request: ReadingsRequest,
    limit: Option<u64>,
) -> Result<Exit, CliError> {
    let (list, mut table) = match request.aggregate {
        None if request.flags => ("samples", Table::new(["TIME", "VALUE", "FLAG", "QUALIFIERS"])),
        None => ("samples", Table::new(["TIME", "VALUE"])),
        Some(_) => ("buckets", Table::new(["START", "COUNT", "MIN", "MEAN", "MAX"])),
    };
    let mut remaining = limit.unwrap_or(u64::MAX);
    let (mut next, mut is_empty) = (None, true);
    while remaining > 0 {
        let page = request.page(stack, remaining, next).await?;
        let entries = page[list].as_array().map_or(&[][..], Vec::as_slice);
        is_empty &= entries.is_empty();
        remaining = remaining.saturating_sub(u64::try_from(entries.len()).unwrap_or(u64::MAX));
        if screen.json {
            entries.iter().try_for_each(|entry| screen.entry(entry))?;
        } else {
            let unit = page["unit"].as_str().unwrap_or_default();
            let rows: Vec<_> =
                entries.iter().map(|entry| row(entry, unit, request.flags)).collect();
            table.page(screen, &rows)?;
        }
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() {
            break;
        }
    }
    if is_empty && !screen.json {
        screen.line("There are no readings in this period.")?;
    }
    Ok(Exit::Done)
}

/// Returns the row of a sample, or of a bucket. `flags` says whether the row of a sample has its flag and qualifiers.
fn row(entry: &Value, unit: &str, flags: bool) -> Vec<crate::render::Cell> {
    let time = |value: &Value| (value.as_str().unwrap_or("?").to_owned(), Tone::Faint);
    match entry {
        Value::Array(sample) => {
            let [at, value, flag, qualifiers] =
                [0, 1, 2, 3].map(|index| sample.get(index).unwrap_or(&Value::Null));
            let mut row = vec![time(at), plain(number(value, |value| format!("{value} {unit}")))];
            if flags {
                let texts = qualifiers.as_array().into_iter().flatten().filter_map(Value::as_str);
                row.push(plain(number(flag, flag_text)));
                row.push(plain(texts.collect::<Vec<_>>().join(", ")));
            }
            row
        }
        bucket => vec![
            time(&bucket["start"]),
            plain(bucket["count"].to_string()),
            plain(number(&bucket["min"], ToString::to_string)),
            plain(number(&bucket["mean"], |mean| {
                format!("{:.2}", mean.as_f64().unwrap_or(f64::NAN))
            })),
            plain(number(&bucket["max"], |max| format!("{max} {unit}"))),
        ],
    }
}

/// Returns a flag as text, such as `4 fail`. A flag that fieldctl does not know has no name.
fn flag_text(flag: &Value) -> String {
    match Flag::deserialize(flag) {
        Ok(known) => format!("{flag} {}", known.name()),
        Err(_) => flag.to_string(),
    }
}

/// Returns a number as text, or `-` if it is missing. A reading may have no value. A bucket in which no reading counts
/// has only a count.
fn number(value: &Value, shown: impl FnOnce(&Value) -> String) -> String {
    if value.is_null() { "-".to_owned() } else { shown(value) }
}

async fn plot(
    stack: &Stack,
    screen: &mut Screen,
    sensor: SensorId,
    from: Timestamp,
    to: Option<Timestamp>,
    view: View,
) -> Result<Exit, CliError> {
    let to = to.unwrap_or(screen.now);
    let (mut samples, mut unit, mut next) = (Vec::<Sample>::new(), String::new(), None);
    let request = ReadingsRequest {
        sensor,
        from: Some(from),
        to: Some(to),
        aggregate: None,
        newest: false,
        view,
        flags: false,
    };
    loop {
        let mut page = request.page(stack, request.max_page_size(), next).await?;
        let page_samples: Vec<Sample> = serde_json::from_value(page["samples"].take())
            .map_err(|error| unreadable("the API's response", &error))?;
        samples.extend(page_samples);
        page["unit"].as_str().unwrap_or_default().clone_into(&mut unit);
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() {
            break;
        }
    }
    if screen.json {
        samples.iter().try_for_each(|sample| screen.entry(sample))?;
        return Ok(Exit::Done);
    }
    samples.retain(|sample| sample.value.is_some());
    if samples.is_empty() {
        screen.line("There are no readings with a value in this period.")?;
    } else {
        let readings = counted(samples.len(), "reading", "readings");
        let title = format!("{sensor}, {unit}, {readings} from {from}");
        let plot =
            Plot { title, from, to, samples: &samples, limits: Vec::new(), breaches: Vec::new() };
        plot.to_string().lines().try_for_each(|line| screen.line(line))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bucket_without_a_usable_reading_has_only_a_count() {
        let bucket = json!({ "start": "2026-01-01T00:00:00.000Z", "count": 0 });
        let texts: Vec<_> = row(&bucket, "Cel", false).into_iter().map(|(text, _)| text).collect();
        assert_eq!(texts, ["2026-01-01T00:00:00.000Z", "0", "-", "-", "-"]);
    }
}
