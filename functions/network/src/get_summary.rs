//! `GET /network/summary`: counts of the caller's sites by status, and of its events by day and type.

use std::{cell::Cell, collections::BTreeMap};

use contracts::{OperatorId, Timestamp};
use futures_util::{StreamExt, TryStreamExt, stream};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Serialize;
use store::{
    Item, SHARDS, Table,
    generation::{self, State},
};

use crate::{COUNT, NetworkError, Status, events_id, sites_id};

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// The number of days in the summary if the request has no `from`.
const DEFAULT_DAYS: i64 = 7;
/// The maximum number of days. All days are read in [`SHARDS`] queries, and in a further one for each [`PAGE`] rows.
const MAX_DAYS: i64 = 92;
/// The maximum number of rows with counts of events that a request may read. There is one row for each type, day and
/// shard. A response with this number of types of 128 characters fits into the 6 MB that Lambda allows, also if each
/// character has to be escaped twice.
const MAX_ROWS: usize = 10_000;
/// The maximum number of rows of a page, so that the concurrent pages fit into memory.
const PAGE: i32 = 1000;
/// The number of shards that are read concurrently. Each concurrent query needs a connection. Initialization opens
/// one. The first invocation opens the others, which takes most of its time.
const CONCURRENT_QUERIES: usize = 4;
/// The number of events by day and type.
type Events = BTreeMap<String, BTreeMap<String, u64>>;

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

/// The first and the last day of the request. Both are included. Each is the first instant of its day in UTC.
#[derive(Clone, Copy, Debug)]
struct Days {
    from: Timestamp,
    to: Timestamp,
}

impl Days {
    fn all(self) -> impl Iterator<Item = String> {
        let count = (self.to.millis() - self.from.millis()) / DAY_MILLIS + 1;
        (0..count).map(move |index| self.from.plus_millis(index * DAY_MILLIS).day())
    }
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
        match self.summary(caller.operator, days).await? {
            Some(summary) => Response::new(200, &summary),
            None => Err(Problem::invalid(vec![FieldError::new("query from", too_many(days))])),
        }
    }

    /// Returns `None` if the days have more than [`MAX_ROWS`] rows.
    async fn summary(
        &self,
        operator: OperatorId,
        days: Days,
    ) -> Result<Option<Summary>, NetworkError> {
        let State { current, .. } = State::read(&self.network).await?;
        let Some(events) = self.events(current, operator, days).await? else {
            return Ok(None);
        };
        let of_sites = self
            .network
            .query("id = :id AND begins_with(#row, :sites)")
            .text("id", generation::id(current, &sites_id(operator)))
            .text("sites", "sites#")
            .all()
            .await?;
        let mut sites: BTreeMap<_, u64> = Status::ALL.map(|status| (status.name(), 0)).into();
        for item in of_sites {
            for (status, total) in &mut sites {
                let Some(value) = item.get(*status) else { continue };
                *total += count(text(&item, "row"), status, value.as_n().ok())?;
            }
        }
        let events = events.into_iter().map(|(day, types)| Day { day, types });
        Ok(Some(Summary { sites, events: events.collect() }))
    }

    /// Returns the counts of all days, or `None` if they have more than [`MAX_ROWS`] rows.
    async fn events(
        &self,
        generation: u64,
        operator: OperatorId,
        days: Days,
    ) -> Result<Option<Events>, NetworkError> {
        let rows = Cell::new(0);
        let queries = (0..SHARDS).map(|shard| {
            let id = generation::id(generation, &events_id(operator, shard));
            self.shard(id, days, &rows)
        });
        let mut found = stream::iter(queries).buffer_unordered(CONCURRENT_QUERIES);
        let mut events: Events = days.all().map(|day| (day, BTreeMap::new())).collect();
        while let Some(counts) = found.try_next().await? {
            let Some(counts) = counts else { return Ok(None) };
            for (day, kind, count) in counts {
                *events.entry(day).or_default().entry(kind).or_default() += count;
            }
        }
        Ok(Some(events))
    }

    /// Reads the counts of a shard, each with its day and type, and adds the number of its rows to `rows`. Returns `None`
    /// once there are more than [`MAX_ROWS`].
    async fn shard(
        &self,
        id: String,
        days: Days,
        rows: &Cell<usize>,
    ) -> Result<Option<Vec<(String, String, u64)>>, NetworkError> {
        // `BETWEEN` includes `:after`, the day after the last one. No row is found there, because each sort key has `#`
        // and a type after the day.
        let query = self
            .network
            .query("id = :id AND #row BETWEEN :from AND :after")
            .text("id", id)
            .text("from", days.from.day())
            .text("after", days.to.plus_millis(DAY_MILLIS).day())
            .limit(PAGE);
        let (mut counts, mut start) = (Vec::new(), None);
        loop {
            let page = query.page(start).await?;
            rows.set(rows.get() + page.items.len());
            if rows.get() > MAX_ROWS {
                return Ok(None);
            }
            for item in page.items {
                let row = text(&item, "row");
                let value = item.get(COUNT).and_then(|value| value.as_n().ok());
                let count = count(row, COUNT, value)?;
                let (day, kind) = row.split_once('#').unwrap_or((row, ""));
                counts.push((day.to_owned(), kind.to_owned(), count));
            }
            if page.next.is_none() {
                return Ok(Some(counts));
            }
            start = page.next;
        }
    }
}

fn text<'a>(item: &'a Item, name: &str) -> &'a str {
    item.get(name).and_then(|value| value.as_s().ok()).map_or("", String::as_str)
}

/// Returns why these days can't be shown.
fn too_many(days: Days) -> String {
    format!(
        "is {}; the events until {} have too many types for one response: choose fewer days",
        days.from.day(),
        days.to.day()
    )
}

/// Parses a count.
fn count(row: &str, attribute: &str, value: Option<&String>) -> Result<u64, NetworkError> {
    value.and_then(|value| value.parse().ok()).ok_or_else(|| NetworkError::NotACount {
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
            _ => {
                errors.push(http::unknown_parameter(parameter, "from or to"));
                continue;
            }
        };
        if let Err(message) = result {
            errors.push(FieldError::new(format!("query {parameter}"), message));
        }
    }
    let today = Timestamp::from_millis(now.millis() - now.millis().rem_euclid(DAY_MILLIS));
    let to = to.unwrap_or(today);
    let from = from.unwrap_or_else(|| to.plus_millis(-(DEFAULT_DAYS - 1) * DAY_MILLIS));
    if from > to {
        let message = format!("is {}; give a day that is not after `to`, {}", from.day(), to.day());
        errors.push(FieldError::new("query from", message));
    } else if to.millis() - from.millis() >= MAX_DAYS * DAY_MILLIS {
        let message = format!(
            "is {}; give a day at most {} days before `to`, {}",
            from.day(),
            MAX_DAYS - 1,
            to.day()
        );
        errors.push(FieldError::new("query from", message));
    }
    if errors.is_empty() { Ok(Days { from, to }) } else { Err(Problem::invalid(errors)) }
}

fn day(text: &str) -> Result<Timestamp, String> {
    let day = (text.len() == 10).then(|| format!("{text}T00:00:00Z").parse().ok()).flatten();
    day.ok_or_else(|| format!("is {text:?}; give a day in UTC, such as 2026-11-29"))
}
