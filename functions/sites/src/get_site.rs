//! `GET /sites/{siteId}` returns a site with the state of its onboarding. `GET /sites` lists the sites.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{
    Contact, Location, Metric, OnboardingFailure, OnboardingId, OperatorId, Sensor, SensorId,
    SiteId, Timestamp, UtcOffset,
    names::operator_status,
    saga::{ACTIVATE_SITE, STEPS},
    sensor::SensorMetadata,
};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use store::{Item, StoreError, Table, from_item};

use crate::{ChangedSensorRow, SiteRow, Status, StepRow, StepStatus};

const DEFAULT_LIMIT: i32 = 25;
const MAX_LIMIT: i32 = 100;

/// The dependencies of the function `get-site`.
#[derive(Debug)]
pub struct GetSite {
    /// The sites table.
    pub sites: Table,
}

/// The response body of `GET /sites/{siteId}`.
#[expect(clippy::struct_field_names, reason = "names of the wire format")]
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Site {
    site_id: SiteId,
    operator_id: OperatorId,
    name: String,
    operator: String,
    location: Location,
    /// The fixed UTC offset for times that are sent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    utc_offset: Option<UtcOffset>,
    /// Only for callers that may change it, because it is personal data.
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<Contact>,
    status: Status,
    sensors: Vec<SiteSensor>,
    onboarding: Onboarding,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SiteSensor {
    sensor_id: SensorId,
    metric: Metric,
    unit: String,
    #[serde(flatten)]
    metadata: SensorMetadata,
}

#[expect(clippy::struct_field_names, reason = "names of the wire format")]
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Onboarding {
    onboarding_id: OnboardingId,
    steps: Vec<OnboardingStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<OnboardingFailure>,
}

#[derive(Debug, PartialEq, Serialize)]
struct OnboardingStep {
    name: String,
    status: StepStatus,
    at: Timestamp,
}

/// The rows of a site.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredSite {
    /// The site itself.
    pub row: SiteRow,
    /// The steps of its onboarding.
    pub steps: Vec<StepRow>,
    /// The sensors that were changed after the registration.
    pub changed: HashMap<SensorId, Sensor>,
}

impl StoredSite {
    /// Reads the rows of the operator's site. Returns `None` if there is no such site, or if it belongs to another
    /// operator.
    pub async fn read(
        sites: &Table,
        operator: OperatorId,
        site: SiteId,
    ) -> Result<Option<Self>, StoreError> {
        let query = sites.query("siteId = :site").text("site", site).consistent();
        let mut row: Option<SiteRow> = None;
        let (mut steps, mut changed) = (Vec::new(), HashMap::new());
        for item in query.page(None).await?.items {
            match item.get("row").and_then(|row| row.as_s().ok()).map(String::as_str) {
                Some("SITE") => row = Some(parse(item)?),
                Some(name) if name.starts_with("SENSOR#") => {
                    let ChangedSensorRow { sensor, .. } = parse(item)?;
                    changed.insert(sensor.sensor_id, sensor);
                }
                _ => steps.push(parse(item)?),
            }
        }
        let row = row.filter(|row| row.owned.operator_id == operator);
        Ok(row.map(|row| Self { row, steps, changed }))
    }
}

impl Site {
    /// Returns the site as this caller sees it.
    pub fn new(site_id: SiteId, stored: StoredSite, caller: &Caller) -> Self {
        let StoredSite { row, steps, mut changed } = stored;
        let mut steps: Vec<_> = steps
            .into_iter()
            .map(|step| OnboardingStep { name: step.name, status: step.status, at: step.at })
            .collect();
        let mut add = |name: &str, status, at| {
            if !steps.iter().any(|step| step.name == name) {
                steps.push(OnboardingStep { name: name.to_owned(), status, at });
            }
        };
        // The site's own step has no step row; its state is in the site's row.
        if let Some(at) = row.activated_at {
            match row.closed_at {
                Some(closed) => add(ACTIVATE_SITE, StepStatus::Undone, closed),
                None => add(ACTIVATE_SITE, StepStatus::Completed, at),
            }
        }
        // A step that crashed emitted no event. The failure that the saga recorded names the step.
        if let (Some(failure), Some(at)) = (&row.failure, row.closed_at) {
            add(&failure.step, StepStatus::Failed, at);
        }
        steps.sort_by_key(|step| STEPS.iter().position(|known| known.name == step.name));
        let utc_offset = row.utc_offset();
        let sensors = row.sensors.into_iter();
        let sensors = sensors.map(|sensor| changed.remove(&sensor.sensor_id).unwrap_or(sensor));
        let sensors = sensors.map(|sensor| SiteSensor {
            sensor_id: sensor.sensor_id,
            metric: sensor.metric,
            unit: sensor.unit,
            metadata: sensor.metadata,
        });
        Self {
            site_id,
            operator_id: row.owned.operator_id,
            name: row.name,
            operator: row.operator,
            location: row.location,
            utc_offset,
            contact: row.contact.filter(|_| caller.scope.may_write()),
            status: row.owned.status,
            sensors: sensors.collect(),
            onboarding: Onboarding {
                onboarding_id: row.onboarding_id,
                steps,
                failure: row.failure,
            },
        }
    }
}

/// An entry of `GET /sites`. The attributes are those of the index `byOperator`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    site_id: SiteId,
    name: String,
    operator: String,
    location: Location,
    status: Status,
    created_at: Timestamp,
}

#[derive(Debug, Serialize)]
struct Page {
    sites: Vec<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, PartialEq)]
struct Query {
    status: Option<Status>,
    limit: i32,
    next: Option<PageToken>,
}

/// The position after an entry of the list. A page token is this as JSON in base64url.
///
/// It is not signed. A changed token only selects another position in the caller's own list.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PageToken {
    operator_id: OperatorId,
    status: Status,
    created_at: Timestamp,
    site_id: SiteId,
}

impl PageToken {
    fn after(operator_id: OperatorId, last: &Summary) -> Self {
        let Summary { site_id, status, created_at, .. } = *last;
        Self { operator_id, status, created_at, site_id }
    }

    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Returns `None` for a text that is not a token of this operator.
    fn parse(operator: OperatorId, text: &str) -> Option<Self> {
        let json = URL_SAFE_NO_PAD.decode(text).ok()?;
        let token: Self = serde_json::from_slice(&json).ok()?;
        (token.operator_id == operator).then_some(token)
    }

    /// Returns the key of the entry in the index `byOperator`.
    fn key(&self) -> Item {
        let status = operator_status(self.operator_id, self.status.name());
        let attributes = [
            ("operatorStatus", status),
            ("createdAt", self.created_at.to_string()),
            ("siteId", self.site_id.to_string()),
            ("row", "SITE".to_owned()),
        ];
        attributes.map(|(name, value)| (name.to_owned(), AttributeValue::S(value))).into()
    }
}

/// Parses the site's id in the path.
pub(crate) fn site_id(request: &Request) -> Result<SiteId, Problem> {
    let text = request.path_parameters.get("siteId").map_or("", String::as_str);
    text.parse().map_err(|_| {
        let message = format!("is {text:?}; give the UUID that POST /sites returned");
        Problem::invalid(vec![FieldError::new("path siteId", message)])
    })
}

pub(crate) fn site_not_found(site: SiteId) -> Problem {
    Problem::not_found(format!("There is no site {site}. GET /sites lists all sites."))
}

impl GetSite {
    /// Returns one site if the path has a site id, otherwise a page of the list.
    ///
    /// Returns 403 if the caller may not read. A site of another operator gets the same 404 as an unknown one.
    pub async fn handle(&self, caller: &Caller, request: &Request) -> Result<Response, Problem> {
        caller.require(caller.scope.may_read())?;
        if request.path_parameters.contains_key("siteId") {
            http::reject_query(request)?;
            let site = site_id(request)?;
            let stored = StoredSite::read(&self.sites, caller.operator, site).await?;
            let stored = stored.ok_or_else(|| site_not_found(site))?;
            return Response::new(200, &Site::new(site, stored, caller));
        }
        let query = query(caller.operator, request)?;
        let page = self.list(caller.operator, query).await?;
        Response::new(200, &page)
    }

    /// Reads a page of the operator's sites, one status after the other, unless the query is for one status. Each status
    /// is a partition of the index.
    async fn list(&self, operator: OperatorId, query: Query) -> Result<Page, StoreError> {
        let statuses = match (query.status, &query.next) {
            (Some(status), _) => vec![status],
            (None, None) => Status::ALL.to_vec(),
            (None, Some(next)) => {
                Status::ALL.into_iter().skip_while(|status| *status != next.status).collect()
            }
        };
        let mut start = query.next.map(|next| next.key());
        let mut page = Page { sites: Vec::new(), next: None };
        for status in &statuses {
            let rows = self.sites.query("operatorStatus = :partition").index("byOperator");
            let rows = rows.text("partition", operator_status(operator, status.name()));
            let remaining = query.limit - i32::try_from(page.sites.len()).unwrap_or(query.limit);
            let rows = rows.limit(remaining).page(start.take()).await?;
            for item in rows.items {
                page.sites.push(parse(item)?);
            }
            let is_full = page.sites.len() >= usize::try_from(query.limit).unwrap_or_default();
            if is_full && (rows.next.is_some() || Some(status) != statuses.last()) {
                page.next = page.sites.last().map(|last| PageToken::after(operator, last).text());
            }
            if is_full {
                break;
            }
        }
        Ok(page)
    }
}

fn parse<R: DeserializeOwned>(item: Item) -> Result<R, StoreError> {
    from_item(item, || "of the sites table".to_owned())
}

fn query(operator: OperatorId, request: &Request) -> Result<Query, Problem> {
    let mut query = Query { status: None, limit: DEFAULT_LIMIT, next: None };
    let mut errors = Vec::new();
    let parameters: BTreeMap<_, _> = request.query_string_parameters.iter().collect();
    for (name, value) in parameters {
        let result = match name {
            "status" => status(value).map(|status| query.status = Some(status)),
            "limit" => limit(value).map(|limit| query.limit = limit),
            "next" => next(operator, value).map(|next| query.next = Some(next)),
            _ => {
                errors.push(http::unknown_parameter(name, "status, limit or next"));
                continue;
            }
        };
        if let Err(message) = result {
            errors.push(FieldError::new(format!("query {name}"), message));
        }
    }
    if let (Some(status), Some(next)) = (query.status, &query.next)
        && next.status != status
    {
        let message = "belongs to a list with another status; omit it to start over";
        errors.push(FieldError::new("query next", message));
    }
    if errors.is_empty() { Ok(query) } else { Err(Problem::invalid(errors)) }
}

fn status(value: &str) -> Result<Status, String> {
    Status::ALL.into_iter().find(|status| status.name() == value).ok_or_else(|| {
        format!("is {value:?}; give one of {}", Status::ALL.map(Status::name).join(", "))
    })
}

fn limit(value: &str) -> Result<i32, String> {
    value
        .parse()
        .ok()
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| format!("is {value:?}; give a number from 1 to {MAX_LIMIT}"))
}

fn next(operator: OperatorId, value: &str) -> Result<PageToken, String> {
    PageToken::parse(operator, value).ok_or_else(|| {
        "is not a valid page token; give the previous page's `next` unchanged, or omit it to start \
         over"
            .to_owned()
    })
}
