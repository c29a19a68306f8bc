//! `GET /sensors/{sensorId}/readings`: returns pages of a sensor's samples or of their aggregates.
//!
//! Rows overlap, because bundles may overlap in time, and corrections are stored beside the originals. The rows are
//! read in the requested order and merged (`range_merge`) until the page is full. If the sensor's counter of changes is
//! not 0, the ranges that revisions replace are read first.

use std::collections::BTreeMap;

use contracts::{OperatorId, Sensor, SensorId, Timestamp, effective::Values, sample::Quality};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Serialize;
use series::{RevisionRow, SeriesRow};
use store::{StoreError, Table};

use crate::{
    SensorRow,
    aggregation::Content,
    paging::Paging,
    query::{Order, Query, Span, View},
    range_merge::{BUDGET, Position, RangeMerge},
};

/// The maximum number of rows per call to DynamoDB, which also limits a call to 1 MB.
const ROWS_PER_CALL: i32 = 250;

/// The dependencies of the function `get-readings`.
#[derive(Debug)]
pub struct GetReadings {
    /// The readings table.
    pub readings: Table,
    /// Signs and verifies page tokens.
    pub paging: Paging,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    sensor_id: SensorId,
    unit: String,
    #[serde(flatten)]
    content: Content,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl GetReadings {
    /// Returns 200 with a page, 400 for invalid parameters, 403 if the caller may not read, or 404 for an unknown sensor
    /// and for one of another operator.
    pub async fn handle(&self, caller: &Caller, request: &Request) -> Result<Response, Problem> {
        caller.require(caller.scope.may_read())?;
        let sensor = sensor_id(request)?;
        let query = query(request)?;
        let scope = query.scope(caller.operator, sensor);
        let start = match &query.next {
            None => None,
            Some(token) => {
                let payload = self.paging.payload(&scope, token).await?;
                let position = payload.as_deref().and_then(Position::parse);
                Some(position.ok_or_else(invalid_token)?)
            }
        };

        let row: Option<SensorRow> = self.readings.get(&SensorRow::key(sensor)).await?;
        let row = row.filter(|row| row.operator_id == caller.operator);
        let changes = row.as_ref().map_or(0, |row| row.changes);
        let sensor_info = row.and_then(|row| row.sensor).ok_or_else(|| sensor_not_found(sensor))?;

        let (content, position) = self.merge(&sensor_info, &query, start, changes).await?.finish();
        let next = match position {
            None => None,
            Some(position) => Some(self.paging.token(&scope, &position.text()).await?),
        };
        let page = Page { sensor_id: sensor, unit: sensor_info.unit, content, next };
        Ok(Response::new(200, &page)?.version(changes))
    }

    async fn merge(
        &self,
        info: &Sensor,
        query: &Query,
        start: Option<Position>,
        changes: u64,
    ) -> Result<RangeMerge, StoreError> {
        let sensor = info.sensor_id;
        let markers = match changes {
            0 => Vec::new(),
            _ => RevisionRow::markers(&self.readings, sensor).await?,
        };
        let mut merge = RangeMerge::new(query, start, BUDGET, markers, info);
        let (low, high) = merge.bounds(query);
        let call = self
            .readings
            .query("sensorId = :sensor AND #row BETWEEN :low AND :high")
            .text("sensor", sensor)
            .text("low", low)
            .text("high", high)
            .descending(query.order == Order::Desc)
            .limit(ROWS_PER_CALL);
        let mut start = None;
        while !merge.is_done() {
            let page = call.page(start).await?;
            start = page.next;
            let items = page.items.into_iter();
            let rows =
                items.map(|item| SeriesRow::from_item(sensor, item)).collect::<Result<_, _>>()?;
            merge.add_rows(rows, start.is_none()).map_err(|(row, reason)| StoreError::Corrupt {
                row: SeriesRow::key(sensor, &row).to_string(),
                reason,
            })?;
        }
        Ok(merge)
    }
}

pub(crate) fn sensor_id(request: &Request) -> Result<SensorId, Problem> {
    let text = request.path_parameters.get("sensorId").map_or("", String::as_str);
    text.parse().map_err(|_| {
        let message = format!("is {text:?}; give a UUID that GET /sites/{{siteId}} lists");
        Problem::invalid(vec![FieldError::new("path sensorId", message)])
    })
}

pub(crate) fn sensor_not_found(sensor: SensorId) -> Problem {
    Problem::not_found(format!(
        "There is no sensor {sensor}. GET /sites/{{siteId}} lists the sensors of a site."
    ))
}

fn invalid_token() -> Problem {
    let message = "is not a valid page token for this sensor, from, to, order, aggregate, quality, \
                   values and flags; give the previous page's `next` unchanged with the same \
                   parameters, or omit it to start over";
    Problem::invalid(vec![FieldError::new("query next", message)])
}

impl Query {
    /// Returns the scope of a page token: everything that must be the same for the next page.
    fn scope(&self, operator: OperatorId, sensor: SensorId) -> String {
        let time = |time: Option<Timestamp>| time.map_or("-".to_owned(), |time| time.to_string());
        let (from, to) = (time(self.from), time(self.to));
        let aggregate = self.aggregate.map_or("-", Span::name);
        // The default operator's tokens are those of the releases before there were operators. They stay valid.
        let caller = match operator {
            OperatorId::DEFAULT => "readings/1".to_owned(),
            operator => format!("readings/2 {operator}"),
        };
        let scope = format!("{caller} {sensor} {from} {to} {} {aggregate}", self.order.name());
        // The tokens of queries without the parameters of the view stay valid, too.
        if self.view == View::default() {
            return scope;
        }
        let View { quality, values, flags } = self.view;
        format!("{scope} {} {} {flags}", quality.name(), values.name())
    }
}

fn query(request: &Request) -> Result<Query, Problem> {
    let mut query = Query {
        from: None,
        to: None,
        order: Order::Asc,
        limit: 0,
        aggregate: None,
        view: View::default(),
        next: None,
    };
    let (mut errors, mut unknown) = (BTreeMap::new(), Vec::new());
    let parameters: BTreeMap<_, _> = request.query_string_parameters.iter().collect();
    for (name, value) in &parameters {
        let result = match *name {
            "from" => time(value).map(|time| query.from = Some(time)),
            "to" => time(value).map(|time| query.to = Some(time)),
            "order" => one_of([Order::Asc, Order::Desc], Order::name, value)
                .map(|order| query.order = order),
            "aggregate" => one_of([Span::Hour, Span::Day], Span::name, value)
                .map(|span| query.aggregate = Some(span)),
            "quality" => one_of(Quality::ALL, Quality::name, value)
                .map(|quality| query.view.quality = quality),
            "values" => {
                one_of(Values::ALL, Values::name, value).map(|values| query.view.values = values)
            }
            "flags" => one_of([false, true], |flags| if flags { "true" } else { "false" }, value)
                .map(|flags| query.view.flags = flags),
            "next" => {
                query.next = Some((*value).to_owned());
                Ok(())
            }
            // Its range depends on `aggregate`, so it is checked below.
            "limit" => Ok(()),
            _ => {
                let known = "from, to, order, limit, aggregate, quality, values, flags or next";
                unknown.push(http::unknown_parameter(name, known));
                continue;
            }
        };
        if let Err(message) = result {
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
    if errors.is_empty() && unknown.is_empty() {
        return Ok(query);
    }
    let errors =
        errors.into_iter().map(|(name, message)| FieldError::new(format!("query {name}"), message));
    Err(Problem::invalid(errors.chain(unknown).collect()))
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
    let (default, max) = match aggregate {
        None => (1_000, 10_000),
        Some(_) => (100, 1_000),
    };
    let Some(value) = value else { return Ok(default) };
    value
        .parse()
        .ok()
        .filter(|limit| (1..=max).contains(limit))
        .ok_or_else(|| format!("is {value:?}; give a number from 1 to {max}"))
}
