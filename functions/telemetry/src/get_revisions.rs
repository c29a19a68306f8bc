//! `GET /sensors/{sensorId}/revisions`: lists the revisions of a sensor's readings.

use std::collections::BTreeMap;

use contracts::{
    OperatorId, SensorId, Timestamp,
    readings::{BundleId, TimeRange},
};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Serialize;
use series::RevisionRow;
use store::Table;

use crate::{
    SensorRow,
    get_readings::{sensor_id, sensor_not_found},
    paging::Paging,
};

const DEFAULT_LIMIT: i32 = 100;
const MAX_LIMIT: i32 = 1_000;

/// The dependencies of the function `get-revisions`.
#[derive(Debug)]
pub struct GetRevisions {
    /// The readings table.
    pub readings: Table,
    /// Signs and verifies page tokens.
    pub paging: Paging,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    sensor_id: SensorId,
    revisions: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    bundle_id: BundleId,
    revision: u32,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<TimeRange>,
    /// The range of the samples. Like every range of the API, it excludes its end.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    range: Option<TimeRange>,
    samples: usize,
    arrived_at: Timestamp,
}

impl From<RevisionRow> for Listed {
    fn from(row: RevisionRow) -> Self {
        let arrived_at = row.arrived_at();
        let range =
            row.span.map(|(first, last)| TimeRange { from: first, to: last.plus_millis(1) });
        let RevisionRow { bundle_id, revision, reason, replaces, samples, .. } = row;
        Self { bundle_id, revision, reason, replaces, range, samples, arrived_at }
    }
}

impl GetRevisions {
    /// Returns 200 with a page, 400 for invalid parameters, 403 if the caller may not read, or 404 for an unknown sensor
    /// and for one of another operator.
    pub async fn handle(&self, caller: &Caller, request: &Request) -> Result<Response, Problem> {
        caller.require(caller.scope.may_read())?;
        let sensor = sensor_id(request)?;
        let (limit, token) = parameters(request)?;
        let scope = scope(caller.operator, sensor);
        let start = match token {
            None => None,
            Some(token) => {
                let payload = self.paging.payload(&scope, token).await?;
                Some(payload.ok_or_else(invalid_token)?)
            }
        };

        let row: Option<SensorRow> = self.readings.get(&SensorRow::key(sensor)).await?;
        let row = row.filter(|row| row.operator_id == caller.operator);
        row.and_then(|row| row.sensor).ok_or_else(|| sensor_not_found(sensor))?;

        let (rows, last) =
            RevisionRow::page(&self.readings, sensor, limit, start.as_deref()).await?;
        let next = match last {
            None => None,
            Some(last) => Some(self.paging.token(&scope, &last).await?),
        };
        let revisions = rows.into_iter().map(Listed::from).collect();
        Response::new(200, &Page { sensor_id: sensor, revisions, next })
    }
}

/// Returns the scope of a page token: what must be the same for the next page.
fn scope(operator: OperatorId, sensor: SensorId) -> String {
    format!("revisions/1 {operator} {sensor}")
}

fn parameters(request: &Request) -> Result<(i32, Option<&str>), Problem> {
    let (mut limit, mut token) = (DEFAULT_LIMIT, None);
    let mut errors = Vec::new();
    let parameters: BTreeMap<_, _> = request.query_string_parameters.iter().collect();
    for (name, value) in parameters {
        let error = match name {
            "limit" => match value.parse() {
                Ok(number) if (1..=MAX_LIMIT).contains(&number) => {
                    limit = number;
                    continue;
                }
                _ => format!("is {value:?}; give a number from 1 to {MAX_LIMIT}"),
            },
            "next" => {
                token = Some(value);
                continue;
            }
            _ => {
                errors.push(http::unknown_parameter(name, "limit or next"));
                continue;
            }
        };
        errors.push(FieldError::new(format!("query {name}"), error));
    }
    if errors.is_empty() { Ok((limit, token)) } else { Err(Problem::invalid(errors)) }
}

fn invalid_token() -> Problem {
    let message = "is not a valid page token for this sensor; give the previous page's `next` unchanged, or omit it to \
                   start over";
    Problem::invalid(vec![FieldError::new("query next", message)])
}
