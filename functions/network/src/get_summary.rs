//! `GET /network/summary`: counts of the caller's sites by status, and of its events by day and type.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use consumer::rebuild::State;
use contracts::{OperatorId, Timestamp};
use lambda::http::{Caller, FieldError, Problem, Request, Response};
use serde::Serialize;
use store::{Item, Table};

use crate::{NetworkError, Status, kind};

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// The number of days without `from`.
const DEFAULT_DAYS: i64 = 7;
/// The maximum number of days. A day has at most [`store::SHARDS`] small rows.
const MAX_DAYS: i64 = 92;

/// The dependencies of the function `get-summary`.
#[derive(Debug)]
pub struct GetSummary {
    /// The network table.
    pub network: Table,
}

/// The body of the response.
#[derive(Debug, Serialize)]
struct Summary {
    /// The number of sites by status.
    sites: BTreeMap<&'static str, u64>,
    /// The events of each day, oldest first.
    events: Vec<Day>,
}

#[derive(Debug, Serialize)]
struct Day {
    day: String,
    /// The number of events by type.
    types: BTreeMap<String, u64>,
}

/// The days of the request, both included, each as its first instant.
#[derive(Clone, Copy, Debug)]
struct Days {
    from: Timestamp,
    to: Timestamp,
}

impl Days {
    fn all(self) -> impl Iterator<Item = String> {
        let count = (self.to.millis() - self.from.millis()) / DAY_MILLIS + 1;
        (0..count).map(move |index| name(self.from.plus_millis(index * DAY_MILLIS)))
    }
}

fn name(day: Timestamp) -> String {
    day.to_string().split('T').next().unwrap_or_default().to_owned()
}

impl GetSummary {
    /// Returns 200 with the counts, 400 for invalid parameters, or 403 if the caller may not read.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_read())?;
        let days = days(request, now)?;
        let summary = self.summary(caller.operator, days).await;
        Response::new(200, &summary.map_err(|error| Problem::from_fault(&error))?)
    }

    async fn summary(&self, operator: OperatorId, days: Days) -> Result<Summary, NetworkError> {
        let state = State::read(&self.network).await?;
        let id = format!("{}/{operator}", state.current);
        let of_days = self
            .network
            .query("id = :id AND #row BETWEEN :from AND :to")
            .text("id", &id)
            .text("from", format!("day#{}#", name(days.from)))
            // `~` is after each shard.
            .text("to", format!("day#{}#~", name(days.to)))
            .all()
            .await?;
        let of_sites = self
            .network
            .query("id = :id AND begins_with(#row, :sites)")
            .text("id", &id)
            .text("sites", "sites#")
            .all()
            .await?;
        let mut events: BTreeMap<_, _> = days.all().map(|day| (day, BTreeMap::new())).collect();
        for item in of_days {
            let row = text(&item, "row");
            let day = row.split('#').nth(1).unwrap_or_default();
            let Some(types) = events.get_mut(day) else { continue };
            for (attribute, value) in &item {
                let Some(kind) = kind(attribute) else { continue };
                *types.entry(kind).or_default() += count(row, attribute, value.as_n())?;
            }
        }
        let mut sites: BTreeMap<_, u64> = Status::ALL.map(|status| (status.name(), 0)).into();
        for item in of_sites {
            for (status, total) in &mut sites {
                let Some(value) = item.get(*status) else { continue };
                *total += count(text(&item, "row"), status, value.as_n())?;
            }
        }
        let events = events.into_iter().map(|(day, types)| Day { day, types });
        Ok(Summary { sites, events: events.collect() })
    }
}

fn text<'a>(item: &'a Item, name: &str) -> &'a str {
    item.get(name).and_then(|value| value.as_s().ok()).map_or("", String::as_str)
}

/// Parses a count.
fn count(
    row: &str,
    attribute: &str,
    value: Result<&String, &AttributeValue>,
) -> Result<u64, NetworkError> {
    value.ok().and_then(|value| value.parse().ok()).ok_or_else(|| NetworkError::NotACount {
        row: row.to_owned(),
        attribute: attribute.to_owned(),
    })
}

/// Reads `from` and `to`. Without them, the summary has the last seven days, today included.
fn days(request: &Request, now: Timestamp) -> Result<Days, Problem> {
    let (mut from, mut to) = (None, None);
    let mut errors = Vec::new();
    let parameters: BTreeMap<_, _> = request.query_string_parameters.iter().collect();
    for (parameter, value) in parameters {
        let result = match parameter {
            "from" => day(value).map(|day| from = Some(day)),
            "to" => day(value).map(|day| to = Some(day)),
            _ => Err("is not known; give from or to".to_owned()),
        };
        if let Err(message) = result {
            errors.push(FieldError::new(format!("query {parameter}"), message));
        }
    }
    let today = Timestamp::from_millis(now.millis() - now.millis().rem_euclid(DAY_MILLIS));
    let to = to.unwrap_or(today);
    let from = from.unwrap_or_else(|| to.plus_millis(-(DEFAULT_DAYS - 1) * DAY_MILLIS));
    if from > to {
        let message = format!("is {}; give a day that is not after `to`, {}", name(from), name(to));
        errors.push(FieldError::new("query from", message));
    } else if to.millis() - from.millis() >= MAX_DAYS * DAY_MILLIS {
        let message = format!(
            "is {}; give a day at most {} days before `to`, {}",
            name(from),
            MAX_DAYS - 1,
            name(to)
        );
        errors.push(FieldError::new("query from", message));
    }
    if errors.is_empty() { Ok(Days { from, to }) } else { Err(Problem::invalid(errors)) }
}

fn day(text: &str) -> Result<Timestamp, String> {
    let day = (text.len() == 10).then(|| format!("{text}T00:00:00Z").parse().ok()).flatten();
    day.ok_or_else(|| format!("is {text:?}; give a day in UTC, such as 2026-11-29"))
}
