//! The command `fieldctl readings`.

mod send;

use clap::{Subcommand, ValueEnum};
use contracts::{SensorId, Timestamp, sample::Sample};
use plot::Plot;
use serde_json::Value;

use crate::{
    api::{Call, query},
    error::{CliError, Exit, unreadable},
    output::{Screen, Tone},
    render::{Table, parse_time, plain},
    resolve,
    stack::Stack,
};

/// Commands for readings.
#[derive(Debug, Subcommand)]
pub enum Readings {
    /// Sends bundles of readings, file by file, and lists what the API refuses. It is safe to send a bundle again.
    ///
    /// What is refused does not stop the rest. Paths such as [3].series[0] count from 0 in the file; a file with one
    /// bundle is [0]. ACCEPTED includes IN PART, where some series of the bundle were refused. LEFT is what was not
    /// sent, or was sent without an answer.
    ///
    /// Exit codes: 0 everything was accepted; 1 Ctrl-C stopped it; 2 a file can't be read; 4 something was refused, or the API
    /// is busy; 5 the API can't be reached, or does not accept the key.
    Send(send::Options),
    /// Prints a sensor's readings, the oldest first.
    ///
    /// The values are calibrated if the sensor has a calibration. Readings without a value, or with the flag 4 (fail), are
    /// left out.
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
    },
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
            Self::Get { sensor, from, to, aggregate, newest, limit } => {
                let sensor = resolve::sensor(stack, &sensor).await?;
                let request = ReadingsRequest { sensor, from, to, aggregate, newest };
                get(stack, screen, request, limit).await
            }
            Self::Plot { sensor, from, to } => {
                let sensor = resolve::sensor(stack, &sensor).await?;
                plot(stack, screen, sensor, from, to).await
            }
        }
    }
}

/// The readings to get.
#[derive(Clone, Copy, Debug)]
struct ReadingsRequest {
    sensor: SensorId,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    aggregate: Option<Aggregate>,
    newest: bool,
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
        let aggregate = self.aggregate.map(|aggregate| format!("{aggregate:?}").to_lowercase());
        let query = query(&[
            ("from", text(self.from)),
            ("to", text(self.to)),
            ("aggregate", aggregate),
            ("order", self.newest.then(|| "desc".to_owned())),
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
            let rows: Vec<_> = entries.iter().map(|entry| row(entry, unit)).collect();
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

fn row(entry: &Value, unit: &str) -> Vec<crate::render::Cell> {
    let time = |value: &Value| (value.as_str().unwrap_or("?").to_owned(), Tone::Faint);
    match entry {
        Value::Array(sample) => {
            let [at, value] = [0, 1].map(|index| sample.get(index).unwrap_or(&Value::Null));
            vec![time(at), plain(format!("{value} {unit}"))]
        }
        bucket => vec![
            time(&bucket["start"]),
            plain(bucket["count"].to_string()),
            plain(number(&bucket["min"], |min| min.to_string())),
            plain(number(&bucket["mean"], |mean| {
                format!("{:.2}", mean.as_f64().unwrap_or(f64::NAN))
            })),
            plain(number(&bucket["max"], |max| format!("{max} {unit}"))),
        ],
    }
}

/// Returns a number of a bucket as text. A bucket without a usable reading has only a count.
fn number(value: &Value, shown: impl FnOnce(&Value) -> String) -> String {
    if value.is_null() { "-".to_owned() } else { shown(value) }
}

async fn plot(
    stack: &Stack,
    screen: &mut Screen,
    sensor: SensorId,
    from: Timestamp,
    to: Option<Timestamp>,
) -> Result<Exit, CliError> {
    let to = to.unwrap_or(screen.now);
    let (mut samples, mut unit, mut next) = (Vec::<Sample>::new(), String::new(), None);
    let request =
        ReadingsRequest { sensor, from: Some(from), to: Some(to), aggregate: None, newest: false };
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
    } else if samples.is_empty() {
        screen.line("There are no readings in this period.")?;
    } else {
        let title = format!("{sensor}, {unit}, {} readings from {from}", samples.len());
        let plot =
            Plot { title, from, to, samples: &samples, limits: Vec::new(), breaches: Vec::new() };
        plot.to_string().lines().try_for_each(|line| screen.line(line))?;
    }
    Ok(Exit::Done)
}
