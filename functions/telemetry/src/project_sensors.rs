//! Projects the events `SensorsProvisioned`, `SensorChanged` and `SensorsDeprovisioned` into the sensor register.
//!
//! EventBridge does not preserve order and delivers at least once. The end of a sensor has its own attribute. With one
//! sequence for the whole row, the definition would be refused as older if `SensorsDeprovisioned` arrived first.
//! The definition is in the mode `latest`: the row has the sequence of the `SensorChanged` that it is from, and an older
//! event does not replace it. `SensorsProvisioned` is older than each change, so its sequence is not stored.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    ContextWithSensors, Envelope, OnboardingId, SagaContext, Sensor, SensorId, SiteData, SiteId,
    Timestamp,
    events::{SensorChanged, SensorsDeprovisioned, SensorsProvisioned},
};
use futures_util::{StreamExt, TryStreamExt, stream as futures};
use lambda::Step;
use serde::{Deserialize, Serialize};
use store::{Commit, Key, StoreError, Table, Transaction};

use crate::{SensorRow, TelemetryError};

/// The number of concurrent updates. A site has up to 100 sensors.
const CONCURRENT_UPDATES: usize = 8;

/// The dependencies of the function `project-sensors`.
#[derive(Debug)]
pub struct ProjectSensors {
    /// The readings table, which contains the register.
    pub readings: Table,
}

/// The data of the events that this function handles.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// The data of `SensorsProvisioned`.
    Provisioned(SensorsProvisioned),
    /// The data of `SensorChanged`.
    Changed(Box<SensorChanged>),
    /// The data of `SensorsDeprovisioned`.
    Deprovisioned(SensorsDeprovisioned),
}

impl SiteData for Data {
    fn site_id(&self) -> SiteId {
        match self {
            Self::Provisioned(event) => event.site_id,
            Self::Changed(event) => event.site_id,
            Self::Deprovisioned(event) => event.site_id,
        }
    }
}

/// The result of the invocation. It is only logged.
#[derive(Debug, PartialEq, Serialize)]
pub struct Reply {
    /// The number of sensors in the event.
    pub sensors: usize,
}

/// A change of one sensor's row.
enum SensorChange {
    Provisioned(Sensor),
    Changed { sensor: Sensor, sequence: u64 },
    Retired(SensorId),
}

impl ProjectSensors {
    async fn project(
        &self,
        saga: SagaContext,
        at: Timestamp,
        change: SensorChange,
    ) -> Result<(), TelemetryError> {
        let site_id = ("siteId", AttributeValue::S(saga.site_id.to_string()));
        let operator_id = ("operatorId", AttributeValue::S(saga.operator_id.to_string()));
        let update = Transaction::on(&self.readings);
        let update = match change {
            SensorChange::Provisioned(sensor) => {
                let key = SensorRow::key(sensor.sensor_id);
                let set = "SET #siteId = :siteId, #operatorId = :operatorId, #sensor = :sensor";
                let unchanged = "attribute_not_exists(#sensorSequence)";
                let values = [site_id, operator_id, ("sensor", attribute(&key, &sensor)?)];
                update.update(&self.readings, &key, set, Some(unchanged), values)
            }
            SensorChange::Changed { sensor, sequence } => {
                let key = SensorRow::key(sensor.sensor_id);
                let set = "SET #siteId = :siteId, #operatorId = :operatorId, #sensor = :sensor, \
                           #sensorSequence = :sensorSequence";
                let newer = "attribute_not_exists(#sensorSequence) OR \
                             #sensorSequence < :sensorSequence";
                let sequence = AttributeValue::N(sequence.to_string());
                let values = [
                    site_id,
                    operator_id,
                    ("sensor", attribute(&key, &sensor)?),
                    ("sensorSequence", sequence),
                ];
                update.update(&self.readings, &key, set, Some(newer), values)
            }
            SensorChange::Retired(sensor) => {
                let key = SensorRow::key(sensor);
                let at = ("retiredAt", AttributeValue::S(at.to_string()));
                let set =
                    "SET #siteId = :siteId, #operatorId = :operatorId, #retiredAt = :retiredAt";
                update.update(&self.readings, &key, set, None, [site_id, operator_id, at])
            }
        };
        match update.commit().await? {
            // A refused event is a duplicate, or older than the row.
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }
}

/// Returns the sensor as an attribute of the row at `key`.
fn attribute(key: &Key, sensor: &Sensor) -> Result<AttributeValue, StoreError> {
    serde_dynamo::to_attribute_value(sensor)
        .map_err(|error| StoreError::Corrupt { row: key.to_string(), reason: error.to_string() })
}

impl Step for ProjectSensors {
    type Command = EventBridgeEvent<Envelope<Data>>;
    type Reply = Reply;
    type Error = TelemetryError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        command.detail.metadata.correlation_id
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, TelemetryError> {
        let saga = command.detail.saga()?;
        let Envelope { metadata, data } = command.detail;
        let changes: Vec<_> = match data {
            Data::Provisioned(event) => {
                let sensors = ContextWithSensors::new(saga, event.sensors)?.sensors;
                sensors.into_iter().map(SensorChange::Provisioned).collect()
            }
            Data::Changed(event) => {
                let sensor = event.sensor;
                saga.check_sensor(sensor.sensor_id)?;
                vec![SensorChange::Changed { sensor, sequence: metadata.sequence }]
            }
            Data::Deprovisioned(event) => {
                saga.check_sensors(event.sensor_ids.iter().copied())?;
                event.sensor_ids.into_iter().map(SensorChange::Retired).collect()
            }
        };
        let sensors = changes.len();
        futures::iter(changes)
            .map(|change| self.project(saga, metadata.occurred_at, change))
            .buffer_unordered(CONCURRENT_UPDATES)
            .try_collect::<()>()
            .await?;
        Ok(Reply { sensors })
    }
}
