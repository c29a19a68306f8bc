//! The command `fieldctl readings`.

use clap::{Subcommand, ValueEnum};
use contracts::{SensorId, Timestamp, sample::Sample};
use plot::Plot;
use serde_json::{Value, json};

use crate::{
    api::{Call, query},
    commands::json_file,
    error::{CliError, Exit, field_problem, unreadable},
    output::{Screen, Tone},
    render::{Table, parse_time, plain},
    resolve,
    stack::Stack,
};

/// The maximum number of bundles in one call.
const MAX_BUNDLES: usize = 500;
/// The maximum size of a call's body.
const MAX_CALL_BYTES: usize = 4 << 20;

/// Commands for readings.
#[derive(Debug, Subcommand)]
pub enum Readings {
    /// Sends a bundle of readings, or a list of bundles. Sending the same bundle again has no effect.
    Send {
        /// The JSON file, as described in docs/integrating.md; - for standard input.
        file: String,
    },
    /// Prints a sensor's readings, the oldest first.
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
            Self::Send { file } => send(stack, screen, &file).await,
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

/// Splits bundles into request bodies. Each is a JSON list within the limits of one call. Returns them with the number of
/// their bundles.
fn request_bodies(bundles: Vec<Value>) -> Vec<(usize, String)> {
    let mut bodies: Vec<(usize, String)> = Vec::new();
    for bundle in bundles {
        let bundle = bundle.to_string();
        match bodies.last_mut() {
            Some((count, body))
                if *count < MAX_BUNDLES && body.len() + bundle.len() + 2 <= MAX_CALL_BYTES =>
            {
                *count += 1;
                *body += ",";
                *body += &bundle;
            }
            _ => bodies.push((1, format!("[{bundle}"))),
        }
    }
    bodies.into_iter().map(|(count, body)| (count, body + "]")).collect()
}

/// Returns the path of a field in the file. `field` is the path in a call whose first bundle is the file's bundle `first`.
/// Text after the path stays.
fn path_in_file(field: &str, first: usize) -> String {
    let index = field.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match index.and_then(|(index, rest)| Some((index.parse::<usize>().ok()?, rest))) {
        Some((index, rest)) => format!("[{}]{rest}", first + index),
        None => field.to_owned(),
    }
}

async fn send(stack: &Stack, screen: &mut Screen, file: &str) -> Result<Exit, CliError> {
    let bundles = match json_file(file)? {
        Value::Array(bundles) => bundles,
        bundle => vec![bundle],
    };
    if bundles.is_empty() {
        return Err(CliError::usage(format!("{file} contains no bundles")));
    }
    let all = bundles.len();
    let (mut accepted, mut refused, mut first) = (0, Vec::new(), 0);
    for (count, body) in request_bodies(bundles) {
        let mut response = stack.call(Call::post("/readings", body)).await.map_err(|error| {
            let advice = error.advice.clone().unwrap_or_default();
            let details = error.details.iter().map(|detail| path_in_file(detail, first));
            let details = refused.iter().map(field_problem).chain(details).collect();
            CliError { details, ..error }.advise(format!(
                "{accepted} of {all} bundles were accepted before the error. It is safe to send the file again. {advice}"
            ))
        })?;
        accepted += response["accepted"].as_u64().unwrap_or_default();
        let errors = response.get_mut("errors").and_then(Value::as_array_mut);
        for mut error in errors.map(std::mem::take).into_iter().flatten() {
            if let Some(field) = error["field"].as_str() {
                error["field"] = path_in_file(field, first).into();
            }
            refused.push(error);
        }
        first += count;
    }
    if screen.json {
        let mut document = json!({ "accepted": accepted });
        if !refused.is_empty() {
            document["errors"] = json!(refused);
        }
        screen.document(&document)?;
    } else {
        screen.line(&format!("{accepted} of {all} bundles are on the stream."))?;
    }
    if refused.is_empty() {
        return Ok(Exit::Done);
    }
    let error = CliError::new(Exit::Refused, "the API refused a part of the file");
    Err(CliError { details: refused.iter().map(field_problem).collect(), ..error }
        .advise("correct it and send the file again with the same bundle ids: what is stored already stays as it is"))
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
            plain(bucket["min"].to_string()),
            plain(format!("{:.2}", bucket["mean"].as_f64().unwrap_or(f64::NAN))),
            plain(format!("{} {unit}", bucket["max"])),
        ],
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_not_larger_than_the_api_accepts() {
        let lists = request_bodies(vec![json!(1); 1001]);
        let counts: Vec<_> = lists
            .iter()
            .map(|(count, list)| {
                assert_eq!(serde_json::from_str::<Vec<u8>>(list).expect("a list").len(), *count);
                *count
            })
            .collect();
        assert_eq!(counts, [500, 500, 1]);
        let lists = request_bodies(vec![json!("x".repeat(3 << 20)), json!("y".repeat(1 << 20))]);
        assert_eq!(lists.len(), 2);
    }
}
