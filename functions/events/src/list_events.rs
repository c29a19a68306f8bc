//! `GET /events`: lists the events of an entity, of a type, or with a correlation id, newest first. With `after`, an
//! entity's events are listed oldest first.

use std::{collections::BTreeMap, ops::ControlFlow};

use contracts::{
    OperatorId, Timestamp,
    inbound::MAX_ID,
    open::{OpenEntity, foreign_correlation_key},
};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Deserialize;
use store::{EventRow, SHARDS, StoreError, Table, from_item, type_bucket};

use crate::page::{Entry, Page, Partition, Position, take_newest};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 100;
const DAY: i64 = 24 * 60 * 60 * 1000;
/// The maximum period of a query by type, in days. Each day costs a query per shard.
const MAX_DAYS: i64 = 31;
/// How far another function's clock may be ahead, in milliseconds. Without `to`, events up to this far after now are
/// listed.
const MAX_SKEW: i64 = 60 * 1000;
/// One of Fieldstation's own events may have an earlier time than an event of the same entity with a lower sequence, by at
/// most this many milliseconds. A writer takes the time when its invocation starts. An invocation runs for at most 15
/// minutes, and the writer's clock may be wrong.
const MAX_DISORDER: i64 = 15 * 60 * 1000 + MAX_SKEW;
/// The maximum number of queries for a page of an entity, without those that find the end of the period. Each reads at
/// most one row more than the page's limit.
const MAX_QUERIES: usize = 5;
/// No event has a larger sequence.
const MAX_SEQUENCE: u64 = i64::MAX.unsigned_abs();
/// The number of rows that one call reads, so that large events do not fill the memory.
const ROWS_PER_READ: usize = 25;

/// The dependencies of the function `list-events`.
#[derive(Debug)]
pub struct ListEvents {
    /// The events table.
    pub events: Table,
}

/// Which events are listed.
#[derive(Debug, PartialEq)]
enum Selection {
    Entity(OpenEntity),
    /// An entity's events after this sequence, oldest first.
    After(OpenEntity, u64),
    Type(String),
    Correlation(String),
}

/// The parameters of a query.
#[derive(Debug)]
struct Parameters {
    selection: Selection,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit: usize,
    token: Option<String>,
}

/// The attributes of an event by which the end of a period is found.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    sequence: u64,
    occurred_at: Timestamp,
    #[serde(default)]
    operator_id: OperatorId,
}

/// What is read for one page.
#[derive(Debug)]
struct Reading {
    operator: OperatorId,
    /// The first instant of the period, and the last.
    period: (Timestamp, Timestamp),
    /// The last event of the previous page.
    after: Option<Entry>,
    limit: usize,
    /// Whether the caller gave the end of the period. There may be any number of newer events.
    has_end: bool,
}

impl ListEvents {
    /// Returns a page of the events of the caller's operator. An event of another operator is not shown, and takes the
    /// same reads as one that does not exist.
    ///
    /// Returns 400 for invalid parameters, and 403 if the caller may not read.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_read())?;
        let parameters = parameters(request)?;
        let scope = parameters.scope(caller.operator);
        let position = match &parameters.token {
            None => None,
            Some(token) => Some(Position::parse(&scope, token).ok_or_else(invalid_token)?),
        };
        let from = parameters.start(position.as_ref(), now)?;
        let end = parameters.to.map_or(now.plus_millis(MAX_SKEW), |to| to.plus_millis(-1));
        let reading = Reading {
            operator: caller.operator,
            period: (from, end),
            after: position.map(|position| position.last),
            limit: parameters.limit,
            has_end: parameters.to.is_some(),
        };
        let page = self.read(&parameters.selection, &reading).await?;
        let body = body(page, from, &scope)
            .map_err(|error| StoreError::Internal(format!("no page token: {error}")))?;
        Ok(Response::json(200, body))
    }

    async fn read(&self, selection: &Selection, reading: &Reading) -> Result<Page, StoreError> {
        match selection {
            Selection::Entity(entity) => self.of_entity(entity, reading).await,
            Selection::After(entity, after) => self.after(entity, *after, reading).await,
            Selection::Type(kind) => self.of_type(kind, reading).await,
            Selection::Correlation(id) => self.of_correlation(id, reading).await,
        }
    }

    /// Lists an entity's events, newest first.
    async fn of_entity(&self, entity: &OpenEntity, reading: &Reading) -> Result<Page, StoreError> {
        let (from, to) = reading.period;
        // The time of an appended event is never before that of an earlier event of its entity.
        let disorder = if entity.is_own() { MAX_DISORDER } else { 0 };
        let before = match &reading.after {
            Some(last) => last.sequence,
            None if reading.has_end => {
                self.first_after(entity, reading.operator, to.plus_millis(disorder)).await?
            }
            None => MAX_SEQUENCE,
        };
        let query = self
            .events
            .query("entity = :entity AND #sequence < :before")
            .number("before", before)
            .descending(true);
        let oldest = from.plus_millis(-disorder);
        self.in_sequence(query, entity, reading, |row| {
            if row.occurred_at < oldest {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue((from..=to).contains(&row.occurred_at))
        })
        .await
    }

    /// Finds by bisection the sequence of an event that is later than this time, and whose predecessor, if any, is not.
    /// Returns the maximum if the newest event is not later, or if it is not the operator's.
    async fn first_after(
        &self,
        entity: &OpenEntity,
        operator: OperatorId,
        time: Timestamp,
    ) -> Result<u64, StoreError> {
        let key = entity.log_key(operator);
        let query = |to: u64| {
            let query = self
                .events
                .query("entity = :entity AND #sequence <= :to")
                .text("entity", &key)
                .number("to", to)
                .project("#sequence, occurredAt, operatorId");
            query.consistent().descending(true).limit(1)
        };
        let (mut low, mut high, mut to) = (0, MAX_SEQUENCE, MAX_SEQUENCE);
        while low < to {
            let newest = query(to).page(None).await?.items.pop();
            let newest: Option<Place> =
                newest.map(|item| from_item(item, || key.clone())).transpose()?;
            let is_later = |it: &Place| it.operator_id == operator && it.occurred_at > time;
            match newest.filter(is_later) {
                Some(later) => high = later.sequence,
                None => low = to,
            }
            to = low + (high - low) / 2;
        }
        Ok(high)
    }

    /// Lists an entity's events after a sequence, oldest first.
    async fn after(
        &self,
        entity: &OpenEntity,
        after: u64,
        reading: &Reading,
    ) -> Result<Page, StoreError> {
        let after = reading.after.as_ref().map_or(after, |last| last.sequence);
        let query =
            self.events.query("entity = :entity AND #sequence > :after").number("after", after);
        self.in_sequence(query, entity, reading, |_| ControlFlow::Continue(true)).await
    }

    /// Reads the events of an entity. `choose` says whether an event is shown, or ends the list.
    async fn in_sequence(
        &self,
        query: store::Query<'_>,
        entity: &OpenEntity,
        reading: &Reading,
        choose: impl Fn(&EventRow) -> ControlFlow<(), bool>,
    ) -> Result<Page, StoreError> {
        let key = entity.log_key(reading.operator);
        // One row more than a page shows whether there is another page.
        let rows = i32::try_from(reading.limit + 1).unwrap_or(i32::MAX);
        let query = query.text("entity", &key).consistent().limit(rows);
        let (mut page, mut next) = (Page::new(reading.limit), None);
        for _ in 0..MAX_QUERIES {
            let read = query.page(next).await?;
            for item in read.items {
                let row: EventRow = from_item(item, || key.clone())?;
                // An entity has one owner, so none of its events is the caller's.
                if row.operator_id != reading.operator {
                    return Ok(page);
                }
                match choose(&row) {
                    ControlFlow::Break(()) => return Ok(page),
                    ControlFlow::Continue(false) => page.last = Some((&row).into()),
                    ControlFlow::Continue(true) if page.is_full() => {
                        page.more = true;
                        return Ok(page);
                    }
                    ControlFlow::Continue(true) => page.add(&row)?,
                }
            }
            next = read.next;
            if next.is_none() {
                return Ok(page);
            }
        }
        // The page may be short, or empty. The next one continues.
        page.more = true;
        Ok(page)
    }

    /// Lists the events of a type: day by day, from the newest day to the oldest, and only as far as the page needs.
    async fn of_type(&self, kind: &str, reading: &Reading) -> Result<Page, StoreError> {
        let Some((first, last)) = reading.span() else { return Ok(Page::new(reading.limit)) };
        let (oldest_day, mut day) = (first.millis().div_euclid(DAY), last.millis().div_euclid(DAY));
        // On average a shard has `limit / SHARDS` events of the page. One row is added to round up. Another row is
        // added because `Partition::fill` must read an older entry before it knows the newest ones.
        let rows = reading.limit / usize::from(SHARDS) + 2;
        let mut entries = Vec::new();
        while day >= oldest_day && entries.len() <= reading.limit {
            let at = Timestamp::from_millis(day * DAY);
            let bucket = |shard| {
                let key = type_bucket(reading.operator, kind, at, shard);
                let query = self
                    .events
                    .query("typeBucket = :key AND occurredAt BETWEEN :first AND :last")
                    .index("byTypeAndTime");
                Self::partition(query, &key, (first, last), rows)
            };
            let mut partitions: Vec<_> = (0..SHARDS).map(bucket).collect();
            reading.take(&mut partitions, &mut entries).await?;
            day -= 1;
        }
        self.page_of(entries, reading).await
    }

    /// Lists the events with a correlation id: those of a site's onboarding, and those of other systems.
    async fn of_correlation(&self, id: &str, reading: &Reading) -> Result<Page, StoreError> {
        let Some(span) = reading.span() else { return Ok(Page::new(reading.limit)) };
        let partition = |key: &str| {
            let query = self
                .events
                .query("correlationId = :key AND occurredAt BETWEEN :first AND :last")
                .index("byCorrelation");
            Self::partition(query, key, span, reading.limit + 2)
        };
        let mut partitions = vec![partition(&foreign_correlation_key(reading.operator, id))];
        let mut own = partition(id);
        if self.owns(&mut own, id, reading.operator).await? {
            partitions.push(own);
        }
        let mut entries = Vec::new();
        reading.take(&mut partitions, &mut entries).await?;
        self.page_of(entries, reading).await
    }

    /// Returns whether the events of an onboarding belong to the operator. All of them have the same owner.
    ///
    /// It always reads a row, so an onboarding of another operator takes the same reads as an unknown one.
    async fn owns(
        &self,
        own: &mut Partition<'_>,
        id: &str,
        operator: OperatorId,
    ) -> Result<bool, StoreError> {
        own.fill().await?;
        let nothing =
            || Entry { occurred_at: Timestamp::from_millis(0), entity: id.to_owned(), sequence: 0 };
        let entry = own.newest().cloned().unwrap_or_else(nothing);
        let row: Option<EventRow> = self.events.get(&entry.key()).await?;
        Ok(row.is_some_and(|row| row.operator_id == operator))
    }

    fn partition<'t>(
        query: store::Query<'t>,
        key: &str,
        (first, last): (Timestamp, Timestamp),
        rows: usize,
    ) -> Partition<'t> {
        let query = query.text("key", key).text("first", first).text("last", last);
        let rows = i32::try_from(rows).unwrap_or(i32::MAX);
        Partition::new(query.descending(true).limit(rows))
    }

    /// Reads the rows of the entries.
    async fn page_of(&self, entries: Vec<Entry>, reading: &Reading) -> Result<Page, StoreError> {
        let mut page = Page::new(reading.limit);
        for entries in entries.chunks(ROWS_PER_READ) {
            if page.is_full() {
                break;
            }
            let keys = entries.iter().map(Entry::key);
            let mut rows = BTreeMap::new();
            for item in self.events.batch_get(keys).send().await? {
                let row: EventRow = from_item(item, || "of the events table".to_owned())?;
                rows.insert(Entry::from(&row), row);
            }
            for entry in entries {
                if page.is_full() {
                    break;
                }
                page.last = Some(entry.clone());
                if let Some(row) = rows.get(entry)
                    && row.operator_id == reading.operator
                {
                    page.add(row)?;
                }
            }
        }
        page.more = page.last.as_ref() != entries.last();
        Ok(page)
    }
}

impl Reading {
    /// Returns the first and the last instant of the rest of the period. Returns `None` if there is no rest.
    fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let (first, last) = self.period;
        let last = self.after.as_ref().map_or(last, |after| after.occurred_at.min(last));
        (first <= last).then_some((first, last))
    }

    /// Takes the newest entries after the previous page, until there is one more than a page has.
    async fn take(
        &self,
        partitions: &mut [Partition<'_>],
        entries: &mut Vec<Entry>,
    ) -> Result<(), StoreError> {
        while entries.len() <= self.limit
            && let Some(entry) = take_newest(partitions).await?
        {
            if self.after.as_ref().is_none_or(|after| entry < *after) {
                entries.push(entry);
            }
        }
        Ok(())
    }
}

/// Returns the body of the response. The events are JSON already, and their text is not changed.
fn body(page: Page, from: Timestamp, scope: &str) -> serde_json::Result<String> {
    let Page { events, last, more, .. } = page;
    let next = match last.filter(|_| more) {
        Some(last) => {
            format!(r#","nextPageToken":"{}""#, Position { from, last }.token(scope)?)
        }
        None => String::new(),
    };
    Ok(format!(r#"{{"events":[{}]{next}}}"#, events.join(",")))
}

fn invalid_token() -> Problem {
    let message = "is not a page token of this query; give the previous page's nextPageToken with the same parameters, or \
                   omit it to start over";
    Problem::invalid(vec![FieldError::new("query pageToken", message)])
}

impl Parameters {
    /// Returns everything that must be the same for the next page.
    fn scope(&self, operator: OperatorId) -> String {
        format!("events/1 {operator} {:?} {:?} {:?}", self.selection, self.from, self.to)
    }

    /// Returns the start of the period: as given, as it was for the first page, or a day before the end.
    fn start(&self, position: Option<&Position>, now: Timestamp) -> Result<Timestamp, Problem> {
        let end = self.to.unwrap_or(now);
        let (from, last) = match position {
            // The token may be forged, so the maximum period of a type is checked for it, too.
            Some(position) => (position.from, end.min(position.last.occurred_at)),
            None => (self.from.unwrap_or(end.plus_millis(-DAY)), end),
        };
        let days = (last.millis() - from.millis()) / DAY;
        let message = if from >= end {
            format!("is {from}; give a time before `to`, which is {end}")
        } else if matches!(self.selection, Selection::Type(_)) && days > MAX_DAYS {
            format!(
                "is {days} days before `to`, which is {end}; give at most {MAX_DAYS} days for a type"
            )
        } else {
            // Times before 1970 do not sort as texts, and no event has one.
            return Ok(from.max(Timestamp::from_millis(0)));
        };
        Err(Problem::invalid(vec![FieldError::new("query from", message)]))
    }
}

fn parameters(request: &Request) -> Result<Parameters, Problem> {
    let (mut errors, mut unknown) = (BTreeMap::<&str, String>::new(), Vec::new());
    let given: BTreeMap<_, _> = request.query_string_parameters.iter().collect();
    let (mut entity, mut after, mut from, mut to, mut limit) =
        (None, None, None, None, DEFAULT_LIMIT);
    for (name, value) in &given {
        let result = match *name {
            "entity" => parse_entity(value).map(|value| entity = Some(value)),
            "type" | "correlationId" => text(value),
            "after" => number(value, 0, MAX_SEQUENCE).map(|value| after = Some(value)),
            "from" => time(value).map(|value| from = Some(value)),
            "to" => time(value).map(|value| to = Some(value)),
            "limit" => number(value, 1, MAX_LIMIT).map(|value| limit = value),
            "pageToken" => Ok(()),
            _ => {
                let known =
                    "entity, type or correlationId, and after, from, to, limit or pageToken";
                unknown.push(http::unknown_parameter(name, known));
                continue;
            }
        };
        if let Err(message) = result {
            errors.insert(*name, message);
        }
    }
    let named: Vec<_> = ["entity", "type", "correlationId"]
        .into_iter()
        .filter(|name| given.contains_key(name))
        .collect();
    if named.len() != 1 {
        let found = if named.is_empty() { "nothing".to_owned() } else { named.join(" and ") };
        errors.insert(
            "",
            format!("selects by {found}; give exactly one of entity, type and correlationId"),
        );
    }
    if given.contains_key("after") {
        if !given.contains_key("entity") {
            errors.insert(
                "after",
                "is for the events of one entity only; give entity, too".to_owned(),
            );
        }
        for name in ["from", "to"].into_iter().filter(|name| given.contains_key(name)) {
            errors.insert(
                name,
                "is not for a query with after, which has no period; leave it out".to_owned(),
            );
        }
    }
    let owned = |name| given.get(name).map(|value| (*value).to_owned());
    let selection = match (entity, after) {
        (Some(entity), None) => Some(Selection::Entity(entity)),
        (Some(entity), Some(after)) => Some(Selection::After(entity, after)),
        (None, _) => owned("type")
            .map(Selection::Type)
            .or_else(|| owned("correlationId").map(Selection::Correlation)),
    };
    match selection {
        Some(selection) if errors.is_empty() && unknown.is_empty() => {
            Ok(Parameters { selection, from, to, limit, token: owned("pageToken") })
        }
        _ => {
            let error =
                |(name, message)| FieldError::new(format!("query {name}").trim_end(), message);
            let mut errors: Vec<_> = errors.into_iter().map(error).chain(unknown).collect();
            errors.sort_by(|one, other| one.field.cmp(&other.field));
            Err(Problem::invalid(errors))
        }
    }
}

fn parse_entity(value: &str) -> Result<OpenEntity, String> {
    let expected = "<entityType>/<entityId>, such as site/<site id> or acme.instrument/<id>";
    OpenEntity::parse(value)
        .filter(|_| value.chars().count() <= 2 * MAX_ID)
        .ok_or_else(|| format!("is {value:?}; give {expected}"))
}

fn text(value: &str) -> Result<(), String> {
    let length = value.chars().count();
    if (1..=MAX_ID).contains(&length) {
        return Ok(());
    }
    Err(format!("has {length} characters; give 1 to {MAX_ID}"))
}

fn number<N>(value: &str, min: N, max: N) -> Result<N, String>
where
    N: Copy + std::str::FromStr + PartialOrd + std::fmt::Display,
{
    value
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("is {value:?}; give a number from {min} to {max}"))
}

fn time(value: &str) -> Result<Timestamp, String> {
    match value.parse::<Timestamp>() {
        Ok(time) => Ok(Timestamp::from_millis(time.millis())),
        Err(_) => Err(format!(
            "is {value:?}; give an RFC 3339 time such as 2026-01-01T00:00:00Z (in a URL, + is %2B)"
        )),
    }
}
