//! `fieldctl readings`.

use clap::{Subcommand, ValueEnum};
use contracts::{SensorId, Timestamp, readings::Sample};
use plot::Plot;
use serde_json::{Value, json};

use crate::{
    api::{Call, query},
    commands::json_file,
    error::{CliError, Exit, unreadable},
    output::{Screen, Tone},
    render::{Table, instant, plain},
    stack::Stack,
};

/// What one call takes.
const MOST_BUNDLES: usize = 500;
const LARGEST_CALL: usize = 4 << 20;

/// Commands for readings.
#[derive(Debug, Subcommand)]
pub enum Readings {
    /// Sends a bundle of readings, or a list of any length. Sending again does no harm.
    Send {
        /// The JSON, as docs/integrating.md describes it; - for standard input.
        file: String,
    },
    /// Prints a sensor's readings.
    Get {
        /// The sensor.
        sensor: SensorId,
        /// Not before: RFC 3339, or an age such as 2h.
        #[arg(long, value_parser = instant)]
        from: Option<Timestamp>,
        /// Before.
        #[arg(long, value_parser = instant)]
        to: Option<Timestamp>,
        /// Added up, in UTC.
        #[arg(long)]
        aggregate: Option<Aggregate>,
    },
    /// Draws a sensor's readings.
    Plot {
        /// The sensor.
        sensor: SensorId,
        /// Not before: RFC 3339, or an age such as 2h.
        #[arg(long, value_parser = instant, default_value = "1d")]
        from: Timestamp,
        /// Before; without it, now.
        #[arg(long, value_parser = instant)]
        to: Option<Timestamp>,
    },
}

/// Over what readings are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aggregate {
    /// Hours.
    Hour,
    /// Days.
    Day,
}

impl Readings {
    /// Carries it out.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::Send { file } => send(stack, screen, &file).await,
            Self::Get { sensor, from, to, aggregate } => {
                get(stack, screen, sensor, (from, to), aggregate).await
            }
            Self::Plot { sensor, from, to } => plot(stack, screen, sensor, from, to).await,
        }
    }
}

/// Lists of bundles that a call takes.
fn calls(bundles: Vec<Value>) -> Vec<String> {
    let mut calls: Vec<(usize, String)> = Vec::new();
    for bundle in bundles {
        let bundle = bundle.to_string();
        match calls.last_mut() {
            Some((count, call))
                if *count < MOST_BUNDLES && call.len() + bundle.len() + 2 <= LARGEST_CALL =>
            {
                *count += 1;
                *call += ",";
                *call += &bundle;
            }
            _ => calls.push((1, format!("[{bundle}"))),
        }
    }
    calls.into_iter().map(|(_, call)| call + "]").collect()
}

async fn send(stack: &Stack, screen: &mut Screen, file: &str) -> Result<Exit, CliError> {
    let bundles = match json_file(file)? {
        Value::Array(bundles) => bundles,
        bundle => vec![bundle],
    };
    if bundles.is_empty() {
        return Err(CliError::usage(format!("{file} holds no bundle")));
    }
    let all = bundles.len();
    let mut accepted = 0;
    for call in calls(bundles) {
        let answer = stack.call(Call::post("/readings", call)).await.map_err(|trouble| {
            let advice = trouble.advice.clone().unwrap_or_default();
            trouble.advise(format!(
                "{accepted} of {all} bundles were accepted before; all again does no harm. {advice}"
            ))
        })?;
        accepted += answer["accepted"].as_u64().unwrap_or_default();
    }
    if screen.json {
        screen.document(&json!({ "accepted": accepted }))?;
    } else {
        screen.line(&format!("{accepted} of {all} bundles are on the stream."))?;
    }
    Ok(Exit::Done)
}

/// A page of a sensor's readings, with whatever is behind it.
async fn page(
    stack: &Stack,
    sensor: SensorId,
    (from, to): (Option<Timestamp>, Option<Timestamp>),
    aggregate: Option<Aggregate>,
    next: Option<String>,
) -> Result<Value, CliError> {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let aggregate = aggregate.map(|aggregate| format!("{aggregate:?}").to_lowercase());
    let limit = if aggregate.is_some() { "1000" } else { "10000" };
    let query = query(&[
        ("from", text(from)),
        ("to", text(to)),
        ("aggregate", aggregate),
        ("limit", Some(limit.to_owned())),
        ("next", next),
    ]);
    stack.call(Call::get(format!("/sensors/{sensor}/readings?{query}"))).await
}

async fn get(
    stack: &Stack,
    screen: &mut Screen,
    sensor: SensorId,
    span: (Option<Timestamp>, Option<Timestamp>),
    aggregate: Option<Aggregate>,
) -> Result<Exit, CliError> {
    let (list, mut table) = match aggregate {
        None => ("samples", Table::new(["TIME", "VALUE"])),
        Some(_) => ("buckets", Table::new(["START", "COUNT", "LEAST", "MEAN", "GREATEST"])),
    };
    let (mut next, mut count) = (None, 0);
    loop {
        let page = page(stack, sensor, span, aggregate, next).await?;
        let entries = page[list].as_array().map_or(&[][..], Vec::as_slice);
        count += entries.len();
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
    if count == 0 && !screen.json {
        screen.line("There are no readings in that time.")?;
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
    loop {
        let mut page = page(stack, sensor, (Some(from), Some(to)), None, next).await?;
        let read: Vec<Sample> = serde_json::from_value(page["samples"].take())
            .map_err(|error| unreadable("the API's answer", &error))?;
        samples.extend(read);
        page["unit"].as_str().unwrap_or_default().clone_into(&mut unit);
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() {
            break;
        }
    }
    if screen.json {
        samples.iter().try_for_each(|sample| screen.entry(sample))?;
    } else if samples.is_empty() {
        screen.line("There are no readings in that time.")?;
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
    fn a_call_is_no_larger_than_the_api_takes() {
        let lists = calls(vec![json!(1); 1001]);
        let counts: Vec<_> = lists
            .iter()
            .map(|list| serde_json::from_str::<Vec<u8>>(list).expect("a list").len())
            .collect();
        assert_eq!(counts, [500, 500, 1]);
        let lists = calls(vec![json!("x".repeat(3 << 20)), json!("y".repeat(1 << 20))]);
        assert_eq!(lists.len(), 2);
    }
}
