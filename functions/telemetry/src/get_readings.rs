//! `GET /sensors/{sensorId}/readings`: a sensor's samples, or their aggregates, page by page.
//!
//! Rows overlap: bundles come late, twice, and corrected. So rows are read in the order asked for,
//! and a sample waits until no row can follow that holds the same instant; of two samples of one
//! instant the one stored last is told. What is final goes into the answer until that is full.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{SensorId, Timestamp, readings::Sample};
use lambda::http::{Answer, FieldError, Problem, Request};
use serde::Serialize;
use store::{StoreError, Table};

use crate::{SensorRow, SeriesRow, packing::unpack, paging::Paging};

/// Rows of a call to DynamoDB, which itself ends at 1 MB.
const ROWS_PER_CALL: i32 = 250;
/// A request that has read so much answers with what it has.
const BUDGET: Budget = Budget { rows: 5_000, samples: 1_000_000 };
/// Behind the times of all rows, before the row `SENSOR`.
const BEHIND_ALL_TIMES: &str = ":";

/// What the step needs.
#[derive(Debug)]
pub struct GetReadings {
    /// The readings table.
    pub readings: Table,
    /// Signs where the next page starts.
    pub paging: Paging,
}

/// How much a request reads before it may stop.
#[derive(Clone, Copy, Debug)]
struct Budget {
    rows: usize,
    samples: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Asc,
    Desc,
}

impl Order {
    fn name(self) -> &'static str {
        match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        }
    }

    /// The place of an instant, and the instant of a place: places ascend in the order asked for.
    fn turn(self, millis: i64) -> i64 {
        match self {
            Self::Asc => millis,
            Self::Desc => -millis,
        }
    }

    /// The place from which on samples may still come, once a row that starts there was read.
    fn frontier(self, start: i64) -> i64 {
        match self {
            Self::Asc => start,
            Self::Desc => -start.saturating_add(SeriesRow::LONGEST_MILLIS),
        }
    }
}

/// What is aggregated into one bucket, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Hour,
    Day,
}

impl Span {
    fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn millis(self) -> i64 {
        match self {
            Self::Hour => 60 * 60 * 1000,
            Self::Day => 24 * 60 * 60 * 1000,
        }
    }
}

#[derive(Debug)]
struct Query {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    order: Order,
    limit: usize,
    aggregate: Option<Span>,
    next: Option<String>,
}

/// Where a page starts: all that comes before the place was told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    place: i64,
    /// No row that comes before it holds anything from the place on; not known at the very start.
    row: Option<Arc<str>>,
}

impl Position {
    fn text(&self) -> String {
        format!("{} {}", self.place, self.row.as_deref().unwrap_or_default())
    }

    fn parse(text: &str) -> Option<Self> {
        let (place, row) = text.split_once(' ')?;
        Some(Self {
            place: place.parse().ok()?,
            row: Some(row).filter(|r| !r.is_empty()).map(Arc::from),
        })
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    sensor_id: SensorId,
    unit: String,
    #[serde(flatten)]
    told: Told,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Told {
    Samples(Vec<Sample>),
    Buckets(Vec<Bucket>),
}

/// The samples of an hour or a day. The mean is theirs, however irregular their times are.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Bucket {
    start: Timestamp,
    count: u64,
    min: f64,
    max: f64,
    mean: f64,
}

/// A bucket that more samples may come for.
#[derive(Debug)]
struct Running {
    index: i64,
    count: u64,
    min: f64,
    max: f64,
    /// Neumaier's sum: what each addition loses is summed beside it.
    sum: f64,
    lost: f64,
}

impl Running {
    /// A power of two: the sum of a bucket's largest values stays finite, and no bit is lost.
    const SCALE: f64 = 1.0 / 1_099_511_627_776.0;

    fn new(index: i64) -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { index, count: 0, min, max, sum: 0.0, lost: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let value = value * Self::SCALE;
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    fn bucket(&self, span: Span) -> Bucket {
        #[expect(clippy::cast_precision_loss, reason = "a day has 86,400,000 instants")]
        let mean = (self.sum + self.lost) / self.count as f64 / Self::SCALE;
        Bucket {
            start: Timestamp::from_millis(self.index * span.millis()),
            count: self.count,
            min: self.min,
            max: self.max,
            mean: mean.clamp(self.min, self.max),
        }
    }
}

/// The answer as it fills.
#[derive(Debug)]
enum Sink {
    Samples { limit: usize, told: Vec<Sample> },
    Buckets { limit: usize, span: Span, told: Vec<Bucket>, running: Option<Running> },
}

impl Sink {
    fn new(aggregate: Option<Span>, limit: usize) -> Self {
        match aggregate {
            None => Self::Samples { limit, told: Vec::new() },
            Some(span) => Self::Buckets { limit, span, told: Vec::new(), running: None },
        }
    }

    fn full(&self) -> bool {
        match self {
            Self::Samples { limit, told } => told.len() >= *limit,
            Self::Buckets { limit, told, .. } => told.len() >= *limit,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Samples { told, .. } => told.is_empty(),
            Self::Buckets { told, .. } => told.is_empty(),
        }
    }

    /// How many more samples it can take at most.
    fn room(&self) -> usize {
        match self {
            Self::Samples { limit, told } => limit - told.len(),
            Self::Buckets { .. } => usize::MAX,
        }
    }

    /// Takes the next sample that is final, unless that ends the last bucket there is room for.
    fn take(&mut self, sample: Sample) -> bool {
        match self {
            Self::Samples { told, .. } => told.push(sample),
            Self::Buckets { span, told, running, .. } => {
                let index = sample.0.millis().div_euclid(span.millis());
                if let Some(over) = running.take_if(|running| running.index != index) {
                    told.push(over.bucket(*span));
                    if self.full() {
                        return false;
                    }
                    return self.take(sample);
                }
                running.get_or_insert_with(|| Running::new(index)).add(sample.1);
            }
        }
        true
    }

    /// Hears that all samples before the frontier were taken, which may end a bucket.
    fn pass(&mut self, order: Order, frontier: i64) {
        if let Self::Buckets { span, told, running, .. } = self
            && let Some(over) = running.take_if(|it| places(order, *span, it.index).1 < frontier)
        {
            told.push(over.bucket(*span));
        }
    }

    /// The place of the first sample that is not told, when all before the frontier were offered.
    fn resume(&self, order: Order, frontier: i64) -> i64 {
        match self {
            Self::Samples { told, .. } => match told.last() {
                Some(last) if self.full() => order.turn(last.0.millis()) + 1,
                _ => frontier,
            },
            Self::Buckets { span, told, running, .. } => match (running, told.last()) {
                (Some(running), _) => places(order, *span, running.index).0,
                (None, Some(last)) if self.full() => {
                    let index = last.start.millis().div_euclid(span.millis());
                    places(order, *span, index).1 + 1
                }
                _ => frontier,
            },
        }
    }
}

/// The first and the last place of a bucket.
fn places(order: Order, span: Span, index: i64) -> (i64, i64) {
    let start = index * span.millis();
    let end = start + span.millis() - 1;
    match order {
        Order::Asc => (start, end),
        Order::Desc => (-end, -start),
    }
}

/// A sample that may still be overruled.
#[derive(Debug)]
struct Candidate {
    value: f64,
    stored_at: i64,
    row: Arc<str>,
}

/// From rows in the order asked for to an answer.
#[derive(Debug)]
struct Walk {
    order: Order,
    start: Position,
    /// The last place that is asked for.
    last: i64,
    budget: Budget,
    sink: Sink,
    /// By place. No more of them than the answer can take, and one to know that there are more.
    pending: BTreeMap<i64, Candidate>,
    /// The rows that hold something from where the next page would start, with their last place.
    open: Vec<(Arc<str>, i64)>,
    first_row: Option<Arc<str>>,
    last_row: Option<Arc<str>>,
    /// All samples before it are final.
    frontier: i64,
    rows: usize,
    samples: usize,
    exhausted: bool,
}

impl Walk {
    fn new(query: &Query, start: Option<Position>, budget: Budget) -> Self {
        let (from, to) = query.range();
        let (first, last) = match query.order {
            Order::Asc => (from, to - 1),
            Order::Desc => (-(to - 1), -from),
        };
        Self {
            order: query.order,
            start: start.unwrap_or(Position { place: first, row: None }),
            last,
            budget,
            sink: Sink::new(query.aggregate, query.limit),
            pending: BTreeMap::new(),
            open: Vec::new(),
            first_row: None,
            last_row: None,
            frontier: i64::MIN,
            rows: 0,
            samples: 0,
            exhausted: false,
        }
    }

    /// The first and the last row to read, in the table's order.
    fn bounds(&self, query: &Query) -> (String, String) {
        let (from, to) = query.range();
        let low = from.saturating_sub(SeriesRow::LONGEST_MILLIS).max(0);
        let low = Timestamp::from_millis(low).to_string();
        let high = match query.to {
            Some(_) => Timestamp::from_millis(to).to_string(),
            None => BEHIND_ALL_TIMES.to_owned(),
        };
        match (self.order, self.start.row.as_deref()) {
            (_, None) => (low, high),
            (Order::Asc, Some(row)) => (row.to_owned(), high),
            (Order::Desc, Some(row)) => (low, row.to_owned()),
        }
    }

    /// Takes the rows that come next; `exhausted` when there are no more. Fails with the row that
    /// can't be read, and why.
    fn take(&mut self, rows: Vec<SeriesRow>, exhausted: bool) -> Result<(), (String, String)> {
        for row in rows {
            let name = row.row.clone();
            self.add(row).map_err(|reason| (name, reason))?;
        }
        if exhausted {
            self.exhausted = true;
            self.frontier = i64::MAX;
        }
        while !self.sink.full()
            && let Some(next) = self.pending.first_entry()
            && *next.key() < self.frontier
        {
            let at = Timestamp::from_millis(self.order.turn(*next.key()));
            if self.sink.take(Sample(at, next.get().value)) {
                next.remove();
            }
        }
        self.sink.pass(self.order, self.frontier);
        let place = self.sink.resume(self.order, self.frontier);
        self.open.retain(|(_, last)| *last >= place);
        Ok(())
    }

    fn add(&mut self, row: SeriesRow) -> Result<(), String> {
        let (start, _) = row.row.split_once('/').ok_or("its key has no bundle")?;
        let start: Timestamp = start.parse().map_err(|error| format!("its key: {error}"))?;
        let start = start.millis();
        let key: Arc<str> = row.row.into();
        self.rows += 1;
        self.first_row.get_or_insert_with(|| Arc::clone(&key));
        self.last_row = Some(Arc::clone(&key));
        self.frontier = self.order.frontier(start);

        let (first, last) = match self.order {
            Order::Asc => (start, row.end),
            Order::Desc => (-row.end, -start),
        };
        if last < self.start.place || first > self.last {
            return Ok(());
        }
        self.open.push((Arc::clone(&key), last));
        let samples = unpack(&row.samples).map_err(|error| error.to_string())?;
        self.samples += samples.len();
        for Sample(at, value) in samples {
            let place = self.order.turn(at.millis());
            if !(self.start.place..=self.last).contains(&place) {
                continue;
            }
            let sample = Candidate { value, stored_at: row.stored_at, row: Arc::clone(&key) };
            match self.pending.entry(place) {
                Entry::Vacant(entry) => drop(entry.insert(sample)),
                Entry::Occupied(mut entry) => {
                    if (sample.stored_at, &sample.row) > (entry.get().stored_at, &entry.get().row) {
                        entry.insert(sample);
                    }
                }
            }
            if self.pending.len() > self.sink.room().saturating_add(1) {
                self.pending.pop_last();
            }
        }
        Ok(())
    }

    fn position(&self) -> Position {
        let place = self.sink.resume(self.order, self.frontier).max(self.start.place);
        let row = self.open.first().map(|(row, _)| row).or(self.last_row.as_ref());
        Position { place, row: row.or(self.start.row.as_ref()).cloned() }
    }

    /// Whether there is an answer: all of it, as much as was asked for, or as much as one request
    /// may read. It may not stop where it got nowhere: the next one would read the same again.
    fn done(&self) -> bool {
        let spent = self.rows >= self.budget.rows || self.samples >= self.budget.samples;
        self.exhausted || self.sink.full() || (spent && self.got_on())
    }

    fn got_on(&self) -> bool {
        !self.sink.is_empty() || self.position().row != self.first_row
    }

    fn end(self) -> (Told, Option<Position>) {
        let more = !self.exhausted || !self.pending.is_empty();
        let next = more.then(|| self.position());
        match self.sink {
            Sink::Samples { told, .. } => (Told::Samples(told), next),
            Sink::Buckets { told, .. } => (Told::Buckets(told), next),
        }
    }
}

type Item = HashMap<String, AttributeValue>;

impl GetReadings {
    /// 200 with a page; 400 with the parameters that are wrong, 404 for a sensor that never was.
    pub async fn handle(&self, request: &Request) -> Result<Answer, Problem> {
        let sensor = sensor_id(request)?;
        let query = query(request)?;
        let scope = query.scope(sensor);
        let start = match &query.next {
            None => None,
            Some(token) => {
                let payload = self.paging.payload(&scope, token).await;
                let payload = payload.map_err(|error| Problem::of(&error))?;
                let position = payload.as_deref().and_then(Position::parse);
                Some(position.ok_or_else(foreign_token)?)
            }
        };

        let row = self.readings.get(&SensorRow::key(sensor)).await;
        let row: Option<SensorRow> = row.map_err(|error| Problem::of(&error))?;
        let known = row.and_then(|row| row.sensor).ok_or_else(|| no_sensor(sensor))?;

        let walk = self.walk(sensor, &query, start).await;
        let (told, position) = walk.map_err(|error| Problem::of(&error))?.end();
        let next = match position {
            None => None,
            Some(position) => {
                let token = self.paging.token(&scope, &position.text()).await;
                Some(token.map_err(|error| Problem::of(&error))?)
            }
        };
        Answer::new(200, &Page { sensor_id: sensor, unit: known.unit, told, next })
    }

    async fn walk(
        &self,
        sensor: SensorId,
        query: &Query,
        start: Option<Position>,
    ) -> Result<Walk, StoreError> {
        let mut walk = Walk::new(query, start, BUDGET);
        let (low, high) = walk.bounds(query);
        let mut behind: Option<Item> = None;
        while !walk.done() {
            let answer = self
                .readings
                .client()
                .query()
                .table_name(self.readings.name())
                .key_condition_expression("sensorId = :sensor AND #row BETWEEN :low AND :high")
                .expression_attribute_names("#row", "row")
                .expression_attribute_values(":sensor", AttributeValue::S(sensor.to_string()))
                .expression_attribute_values(":low", AttributeValue::S(low.clone()))
                .expression_attribute_values(":high", AttributeValue::S(high.clone()))
                .scan_index_forward(query.order == Order::Asc)
                .limit(ROWS_PER_CALL)
                .set_exclusive_start_key(behind)
                .send()
                .await?;
            behind = answer.last_evaluated_key;
            let items = answer.items.unwrap_or_default().into_iter();
            let rows = items.map(|item| read(sensor, item)).collect::<Result<_, _>>()?;
            walk.take(rows, behind.is_none()).map_err(|(row, reason)| StoreError::Corrupt {
                row: SeriesRow::key(sensor, &row).to_string(),
                reason,
            })?;
        }
        Ok(walk)
    }
}

fn read(sensor: SensorId, item: Item) -> Result<SeriesRow, StoreError> {
    let row = item.get("row").and_then(|row| row.as_s().ok()).cloned().unwrap_or_default();
    serde_dynamo::from_item(item).map_err(|error| StoreError::Corrupt {
        row: SeriesRow::key(sensor, &row).to_string(),
        reason: error.to_string(),
    })
}

fn sensor_id(request: &Request) -> Result<SensorId, Problem> {
    let text = request.path_parameters.get("sensorId").map_or("", String::as_str);
    text.parse().map_err(|_| {
        Problem::invalid(vec![FieldError {
            field: "path sensorId".to_owned(),
            message: format!("is {text:?}; give a UUID that GET /sites/{{siteId}} lists"),
        }])
    })
}

fn no_sensor(sensor: SensorId) -> Problem {
    Problem::not_found(format!(
        "There is no sensor {sensor}. GET /sites/{{siteId}} lists those of a site."
    ))
}

fn foreign_token() -> Problem {
    Problem::invalid(vec![FieldError {
        field: "query next".to_owned(),
        message: "is not a token of ours for this sensor, from, to, order and aggregate; give the \
                  previous page's `next` unchanged with what it was made for, or leave it out to \
                  start over"
            .to_owned(),
    }])
}

impl Query {
    /// From inclusive, to exclusive, in milliseconds since the epoch, before which there is nothing.
    fn range(&self) -> (i64, i64) {
        let millis = |time: Timestamp| time.millis().max(0);
        (self.from.map_or(0, millis), self.to.map_or(i64::MAX, millis))
    }

    /// All that a token only holds for.
    fn scope(&self, sensor: SensorId) -> String {
        let time = |time: Option<Timestamp>| time.map_or("-".to_owned(), |time| time.to_string());
        let (from, to) = (time(self.from), time(self.to));
        let aggregate = self.aggregate.map_or("-", Span::name);
        format!("readings/1 {sensor} {from} {to} {} {aggregate}", self.order.name())
    }
}

fn query(request: &Request) -> Result<Query, Problem> {
    let mut query =
        Query { from: None, to: None, order: Order::Asc, limit: 0, aggregate: None, next: None };
    let mut errors = BTreeMap::new();
    let parameters: BTreeMap<_, _> = request.query_string_parameters.iter().collect();
    for (name, value) in &parameters {
        let read = match *name {
            "from" => time(value).map(|time| query.from = Some(time)),
            "to" => time(value).map(|time| query.to = Some(time)),
            "order" => one_of([Order::Asc, Order::Desc], Order::name, value)
                .map(|order| query.order = order),
            "aggregate" => one_of([Span::Hour, Span::Day], Span::name, value)
                .map(|span| query.aggregate = Some(span)),
            "next" => {
                query.next = Some((*value).to_owned());
                Ok(())
            }
            // Its bounds depend on the aggregate.
            "limit" => Ok(()),
            _ => Err("is not known; give from, to, order, limit, aggregate or next".to_owned()),
        };
        if let Err(message) = read {
            errors.insert(*name, message);
        }
    }
    match limit(parameters.get("limit").copied(), query.aggregate) {
        Ok(limit) => query.limit = limit,
        Err(message) => drop(errors.insert("limit", message)),
    }
    if let (Some(from), Some(to)) = (query.from, query.to)
        && from >= to
    {
        errors.insert("from", format!("is {from}; give a time before `to`, {to}"));
    }
    if errors.is_empty() {
        return Ok(query);
    }
    let errors = errors
        .into_iter()
        .map(|(name, message)| FieldError { field: format!("query {name}"), message });
    Err(Problem::invalid(errors.collect()))
}

fn time(value: &str) -> Result<Timestamp, String> {
    match value.parse::<Timestamp>() {
        Ok(time) => Ok(Timestamp::from_millis(time.millis())),
        Err(_) => Err(format!(
            "is {value:?}; give an RFC 3339 time such as 2026-01-01T00:00:00Z (in a URL, + is %2B)"
        )),
    }
}

fn one_of<T: Copy, const N: usize>(
    all: [T; N],
    name: fn(T) -> &'static str,
    value: &str,
) -> Result<T, String> {
    all.into_iter()
        .find(|one| name(*one) == value)
        .ok_or_else(|| format!("is {value:?}; give one of {}", all.map(name).join(", ")))
}

fn limit(value: Option<&str>, aggregate: Option<Span>) -> Result<usize, String> {
    let (default, largest) = match aggregate {
        None => (1_000, 10_000),
        Some(_) => (100, 1_000),
    };
    let Some(value) = value else { return Ok(default) };
    value
        .parse()
        .ok()
        .filter(|limit| (1..=largest).contains(limit))
        .ok_or_else(|| format!("is {value:?}; give a number from 1 to {largest}"))
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
        test_runner::RngSeed,
    };
    use serde_bytes::ByteBuf;

    use super::*;
    use crate::packing::pack;

    const HOUR: i64 = 60 * 60 * 1000;
    /// Where the rows of a case begin, in the middle of an hour and of a day.
    const BEGIN: i64 = 1_767_268_800_000 + HOUR / 3;
    /// Coarse, so that rows often hold the same instants.
    const STEP: i64 = 20 * 60 * 1000;

    fn row(start: i64, bundle: usize, stored_at: i64, samples: &BTreeMap<i64, f64>) -> SeriesRow {
        let samples: Vec<_> = samples
            .iter()
            .map(|(after, value)| Sample(Timestamp::from_millis(start + after), *value))
            .collect();
        let at = |sample: Option<&Sample>| sample.map_or(0, |sample| sample.0.millis());
        let bundle = format!("b-{bundle}").parse().expect("an id");
        SeriesRow {
            row: SeriesRow::sort_key(Timestamp::from_millis(at(samples.first())), &bundle),
            end: at(samples.last()),
            stored_at,
            samples: ByteBuf::from(pack(&samples)),
            hash: ByteBuf::new(),
        }
    }

    /// Rows over five days, short ones and such as span a day, stored in no order.
    fn rows() -> impl Strategy<Value = Vec<SeriesRow>> {
        let samples = |most| btree_map(0..most, -1e3..1e3, 1..12);
        let row_of = (0..360_i64, prop_oneof![3 => samples(6_i64), 1 => samples(72)], 0..5_i64);
        vec(row_of, 0..30).prop_map(|rows| {
            let mut rows: Vec<_> = rows
                .into_iter()
                .enumerate()
                .map(|(bundle, (start, samples, stored_at))| {
                    let samples =
                        samples.into_iter().map(|(after, value)| (after * STEP, value)).collect();
                    row(BEGIN + start * STEP, bundle, stored_at, &samples)
                })
                .collect();
            rows.sort_by(|a, b| a.row.cmp(&b.row));
            rows
        })
    }

    fn queries() -> impl Strategy<Value = Query> {
        let time = || proptest::option::of((-5..450_i64, 0..3_i64));
        let order = prop_oneof![Just(Order::Asc), Just(Order::Desc)];
        let aggregate =
            prop_oneof![2 => Just(None), 1 => Just(Some(Span::Hour)), 1 => Just(Some(Span::Day))];
        (time(), time(), order, 1..40_usize, aggregate).prop_filter_map(
            "a time before the other",
            |(from, to, order, limit, aggregate)| {
                // At samples' times, and a millisecond beside them.
                let time = |time: Option<(i64, i64)>| {
                    time.map(|(steps, off)| Timestamp::from_millis(BEGIN + steps * STEP + off - 1))
                };
                let (from, to) = (time(from), time(to));
                let order_of_times = from.zip(to).is_none_or(|(from, to)| from < to);
                order_of_times.then_some(Query { from, to, order, limit, aggregate, next: None })
            },
        )
    }

    /// What must come out, all pages together.
    fn model(rows: &[SeriesRow], query: &Query) -> Told {
        let mut all: BTreeMap<i64, (i64, &str, f64)> = BTreeMap::new();
        for row in rows {
            for Sample(at, value) in unpack(&row.samples).expect("samples") {
                let new = (row.stored_at, row.row.as_str(), value);
                let old = all.entry(at.millis()).or_insert(new);
                if (new.0, new.1) > (old.0, old.1) {
                    *old = new;
                }
            }
        }
        let (from, to) = query.range();
        let mut samples: Vec<_> = all
            .range(from..to)
            .map(|(at, (_, _, value))| Sample(Timestamp::from_millis(*at), *value))
            .collect();
        if query.order == Order::Desc {
            samples.reverse();
        }
        let Some(span) = query.aggregate else { return Told::Samples(samples) };
        let index = |sample: &Sample| sample.0.millis().div_euclid(span.millis());
        let buckets = samples.chunk_by(|a, b| index(a) == index(b)).map(|of_bucket| {
            let values = || of_bucket.iter().map(|sample| sample.1);
            #[expect(clippy::cast_precision_loss, reason = "a few samples")]
            let mean = values().sum::<f64>() / of_bucket.len() as f64;
            Bucket {
                start: Timestamp::from_millis(index(&of_bucket[0]) * span.millis()),
                count: of_bucket.len() as u64,
                min: values().fold(f64::INFINITY, f64::min),
                max: values().fold(f64::NEG_INFINITY, f64::max),
                mean,
            }
        });
        Told::Buckets(buckets.collect())
    }

    /// All pages together, each read from rows of which the table gives so many a call.
    fn walked(rows: &[SeriesRow], query: &Query, per_call: usize, budget: Budget) -> Told {
        let mut all = match query.aggregate {
            None => Told::Samples(Vec::new()),
            Some(_) => Told::Buckets(Vec::new()),
        };
        let mut start = None;
        for _ in 0..10_000 {
            let mut walk = Walk::new(query, start.clone(), budget);
            let (low, high) = walk.bounds(query);
            let within = rows.iter().filter(|row| (&low..=&high).contains(&&row.row)).cloned();
            let mut within: Vec<_> = within.collect();
            if query.order == Order::Desc {
                within.reverse();
            }
            let mut calls = within.chunks(per_call).peekable();
            while !walk.done() {
                let call = calls.next().unwrap_or_default();
                walk.take(call.to_vec(), calls.peek().is_none()).expect("good rows");
                assert!(walk.pending.len() <= walk.sink.room().saturating_add(1));
            }
            let (told, next) = walk.end();
            match (&mut all, told) {
                (Told::Samples(all), Told::Samples(told)) => {
                    assert!(told.len() <= query.limit);
                    all.extend(told);
                }
                (Told::Buckets(all), Told::Buckets(told)) => {
                    assert!(told.len() <= query.limit);
                    all.extend(told);
                }
                (_, told) => panic!("asked for something else: {told:?}"),
            }
            match next {
                None => return all,
                Some(next) => {
                    assert_ne!(Some(&next), start.as_ref(), "the same page again");
                    start = Position::parse(&next.text());
                    assert_eq!(start, Some(next));
                }
            }
        }
        panic!("no end");
    }

    fn alike(told: &Told, expected: &Told) -> bool {
        let near = |a: f64, b: f64, scale: f64| (a - b).abs() <= 1e-9 * scale;
        match (told, expected) {
            (Told::Samples(told), Told::Samples(expected)) => told == expected,
            (Told::Buckets(told), Told::Buckets(expected)) => {
                told.len() == expected.len()
                    && told.iter().zip(expected).all(|(a, b)| {
                        (a.start, a.count, a.min, a.max) == (b.start, b.count, b.min, b.max)
                            && near(a.mean, b.mean, b.min.abs().max(b.max.abs()))
                    })
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2_000,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn all_pages_together_are_every_sample_once(
            rows in rows(),
            query in queries(),
            per_call in 1..12_usize,
            budget in (1..20_usize, 1..100_usize),
        ) {
            let budget = Budget { rows: budget.0, samples: budget.1 };
            let told = walked(&rows, &query, per_call, budget);
            let expected = model(&rows, &query);
            prop_assert!(alike(&told, &expected), "{told:?} is not {expected:?}");
        }
    }

    fn all(query: &Query, rows: Vec<SeriesRow>) -> Told {
        let mut walk = Walk::new(query, None, BUDGET);
        walk.take(rows, true).expect("good rows");
        walk.end().0
    }

    fn buckets_of(values: &[f64]) -> Vec<Bucket> {
        let query = Query {
            from: None,
            to: None,
            order: Order::Asc,
            limit: 9,
            aggregate: Some(Span::Day),
            next: None,
        };
        let samples = (0..).zip(values.iter().copied()).collect();
        match all(&query, vec![row(BEGIN, 1, 0, &samples)]) {
            Told::Buckets(buckets) => buckets,
            Told::Samples(samples) => panic!("{samples:?}"),
        }
    }

    #[test]
    fn a_mean_keeps_small_values_beside_large_ones_and_does_not_overflow() {
        let of = |values: &[f64]| buckets_of(values)[0].mean;
        assert_eq!(of(&[1e17, 1.0, 1.0, -1e17]).to_bits(), 0.5_f64.to_bits());
        assert_eq!(of(&[f64::MAX, f64::MAX]).to_bits(), f64::MAX.to_bits());
        assert_eq!(of(&[f64::MIN, f64::MAX, 3.0]).to_bits(), 1.0_f64.to_bits());
        // 0.1 ten times over is 0.9999999999999999 in a naive sum.
        assert_eq!(of(&[0.1; 10]).to_bits(), 0.1_f64.to_bits());
    }

    #[test]
    fn a_row_that_can_not_be_read_is_named() {
        let query = query(&Request::default()).expect("a query");
        let good = row(BEGIN, 1, 0, &BTreeMap::from([(0, 1.0)]));
        for (broken, reason) in [
            (SeriesRow { row: "2026-01-01".to_owned(), ..good.clone() }, "its key has no bundle"),
            (SeriesRow { row: "noon/b-2".to_owned(), ..good.clone() }, "its key: "),
            (SeriesRow { samples: ByteBuf::from(b"?"), ..good.clone() }, "packed samples"),
        ] {
            let mut walk = Walk::new(&query, None, BUDGET);
            let (name, told) =
                walk.take(vec![good.clone(), broken.clone()], true).expect_err("a broken row");
            assert_eq!(name, broken.row);
            assert!(told.starts_with(reason), "{told}");
        }
    }
}
