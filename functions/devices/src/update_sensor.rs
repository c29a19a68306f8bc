//! `PATCH /sensors/{sensorId}`: changes the metadata of a sensor, by a JSON merge patch.

use std::collections::BTreeSet;

use audit::{Action, Entry, Trail};
use contracts::{
    OnboardingId, OperatorId, SagaContext, Sensor, SensorId, SensorsId, SiteId, Timestamp,
    events::SensorChanged,
    input::{FieldError, from_json},
    sensor::{SensorChange, SensorChangeRule, SensorMetadata},
};
use lambda::http::{self, Caller, Problem, Request, Response};
use serde::Serialize;
use serde_json::{Value, json};
use store::{Decision, NewEvent, Outbox, StoreError, Table, Transaction};

use crate::{DevicesError, Sensors, SensorsRow};

/// The maximum size of the request body, in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// The maximum number of attempts to change a row that other requests change at the same time.
const MAX_ATTEMPTS: usize = 5;

/// The dependencies of the function `update-sensor`.
#[derive(Debug)]
pub struct UpdateSensor {
    /// The devices table.
    pub devices: Table,
    /// The readings table of telemetry, which contains the register of sensors.
    pub readings: Table,
    /// The outbox for `SensorChanged`.
    pub outbox: Outbox,
    /// The audit trail.
    pub trail: Trail,
}

/// The response body.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    site_id: SiteId,
    #[serde(flatten)]
    sensor: Sensor,
}

impl UpdateSensor {
    /// Changes the sensor and returns 200 with it. A patch that changes nothing writes nothing, so a repeated request has no
    /// second effect.
    ///
    /// Each change is an event `SensorChanged` and an entry of the audit trail, in the transaction of the row. If another
    /// request changes a sensor of the site at the same time, the patch is applied to the sensor as it is then.
    ///
    /// Returns 400 for an invalid patch, 403 if the caller may not change sensors, 404 for an unknown sensor and for one of
    /// another operator, and 409 for a retired sensor.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        http::reject_query(request)?;
        let sensor_id = sensor_id(request)?;
        let change = from_json(http::body(request, MAX_BODY_BYTES)?, &SensorChangeRule);
        let change = change.map_err(Problem::invalid)?;
        let row = self.row(caller.operator, sensor_id).await?;
        let row = row.filter(|row| row.saga.operator_id == caller.operator);
        let row = row.ok_or_else(|| not_found(sensor_id))?;
        let SagaContext { site_id, onboarding_id, .. } = row.saga;
        let row_id = SensorsId::from_onboarding(onboarding_id);
        let decide = |row: &SensorsRow| self.decide(caller, row, sensor_id, &change, now);
        let key = SensorsRow::key(row_id);
        let sensor = store::decide_and_commit(MAX_ATTEMPTS, &key, row, decide).await?;
        let sensor = sensor.ok_or(DevicesError::Busy(row_id))?;
        Response::new(200, &Reply { site_id, sensor })
    }

    /// Reads the row of the sensors of the sensor's site. For a sensor of another operator it makes as many reads as for an
    /// unknown sensor, so the caller can't tell them apart.
    async fn row(
        &self,
        operator: OperatorId,
        sensor: SensorId,
    ) -> Result<Option<SensorsRow>, StoreError> {
        let site = series::register::site_of(&self.readings, operator, sensor).await?;
        let Some(site) = site else { return Ok(None) };
        let sensors_id = SensorsId::from_onboarding(OnboardingId::from_site(site));
        self.devices.get(&SensorsRow::key(sensors_id)).await
    }

    /// Decides what the change does to the row. The result is the sensor after the change.
    ///
    /// Returns 409 for retired sensors, 404 if the site does not have the sensor, and 400 if the metadata would exceed a limit.
    fn decide(
        &self,
        caller: &Caller,
        row: &SensorsRow,
        sensor_id: SensorId,
        change: &SensorChange,
        now: Timestamp,
    ) -> Result<Decision<Sensor>, Problem> {
        let Sensors::Provisioned { sensors } = &row.state else {
            let detail = "The sensors of the site were retired. They can't be changed.";
            return Err(Problem::conflict("decommissioned", detail));
        };
        let index = sensors.iter().position(|sensor| sensor.sensor_id == sensor_id);
        let index = index.ok_or_else(|| not_found(sensor_id))?;
        let before = &sensors[index];
        let metadata = change.applied_to(before.metadata.clone(), now).map_err(Problem::invalid)?;
        if metadata == before.metadata {
            return Ok(Decision::Keep(before.clone()));
        }
        let sensor = Sensor { metadata, ..before.clone() };
        let mut sensors = sensors.clone();
        sensors[index] = sensor.clone();
        let state = Sensors::Provisioned { sensors };
        let after = SensorsRow { saga: row.saga, state, sequence: row.sequence + 1, at: now };
        let changed = changed_fields(&before.metadata, &sensor.metadata);
        let transaction = self.transaction(caller, row.sequence, &after, &sensor, &changed, now);
        Ok(Decision::Change(transaction, sensor))
    }

    /// Returns the transaction of the row, the event and the entry of the audit trail. Its condition is that the row still
    /// has this sequence.
    fn transaction(
        &self,
        caller: &Caller,
        sequence: u64,
        after: &SensorsRow,
        sensor: &Sensor,
        changed: &str,
        now: Timestamp,
    ) -> Transaction {
        let SagaContext { operator_id, site_id, onboarding_id, .. } = after.saga;
        let sensors_id = SensorsId::from_onboarding(onboarding_id);
        // The cause of the event is a request, not the event that started the saga.
        let saga = SagaContext::for_site(operator_id, site_id, None);
        let event = SensorChanged { site_id, sensor: sensor.clone() };
        let entry = Entry {
            operator_id: caller.operator,
            actor: caller.actor.clone(),
            action: Action::UpdateSensor,
            target: sensor.sensor_id.to_string(),
            details: Some(format!("site {site_id}: {changed}")),
        };
        let transaction = Transaction::on(&self.devices)
            .put_if_sequence(&self.devices, &SensorsRow::key(sensors_id), after, sequence)
            .event(&self.outbox, NewEvent::in_saga(saga, sensors_id, after.sequence, now, event));
        self.trail.add(transaction, &entry, now)
    }
}

/// Returns the names of the fields that differ, without their values, such as `label, heightM`.
fn changed_fields(before: &SensorMetadata, after: &SensorMetadata) -> String {
    let [before, after] = [before, after].map(|metadata| json!(metadata));
    let fields = |metadata: &Value| metadata.as_object().cloned().unwrap_or_default();
    let names: BTreeSet<_> =
        fields(&before).into_iter().chain(fields(&after)).map(|(name, _)| name).collect();
    let changed = names.into_iter().filter(|name| before.get(name) != after.get(name));
    changed.collect::<Vec<_>>().join(", ")
}

/// Parses the sensor's id in the path.
fn sensor_id(request: &Request) -> Result<SensorId, Problem> {
    let text = request.path_parameters.get("sensorId").map_or("", String::as_str);
    text.parse().map_err(|_| {
        let message = format!("is {text:?}; give a UUID that GET /sites/{{siteId}} lists");
        Problem::invalid(vec![FieldError::new("path sensorId", message)])
    })
}

fn not_found(sensor: SensorId) -> Problem {
    let detail = format!("There is no sensor {sensor}. GET /sites/{{siteId}} lists the sensors.");
    Problem::not_found(detail)
}
