//! Hears which sensors were provisioned and which retired, and keeps the telemetry's own register.
//!
//! EventBridge keeps no order and may deliver twice: each event sets attributes of its own, to what
//! it always sets them to.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    Envelope, OnboardingId, SagaWithSensors, Sensor, SensorId, SiteData, SiteId, Timestamp,
    events::{SensorsDeprovisioned, SensorsProvisioned},
};
use futures_util::{StreamExt, TryStreamExt, stream as futures};
use lambda::Step;
use serde::{Deserialize, Serialize};
use store::{Commit, StoreError, Table, Transaction};

use crate::{SensorRow, TelemetryError};

/// A site has up to a hundred sensors.
const UPDATES_AT_ONCE: usize = 8;

/// What the step needs.
#[derive(Debug)]
pub struct ProjectSensors {
    /// The readings table, which holds the register.
    pub readings: Table,
}

/// The data of the events that are heard.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Data {
    /// Of `SensorsProvisioned`.
    Provisioned(SensorsProvisioned),
    /// Of `SensorsDeprovisioned`.
    Deprovisioned(SensorsDeprovisioned),
}

impl SiteData for Data {
    fn site_id(&self) -> SiteId {
        match self {
            Self::Provisioned(event) => event.site_id,
            Self::Deprovisioned(event) => event.site_id,
        }
    }
}

/// What it answers; seen only in the log.
#[derive(Debug, PartialEq, Serialize)]
pub struct Reply {
    /// How many sensors the event told of.
    pub sensors: usize,
}

/// What an event says of one sensor.
enum News {
    Provisioned(Sensor),
    Retired(SensorId),
}

impl ProjectSensors {
    async fn project(&self, site: SiteId, at: Timestamp, news: News) -> Result<(), TelemetryError> {
        let site_id = ("siteId", AttributeValue::S(site.to_string()));
        let update = Transaction::on(&self.readings);
        let update = match news {
            News::Provisioned(sensor) => {
                let key = SensorRow::key(sensor.sensor_id);
                let row = serde_dynamo::to_attribute_value(&sensor).map_err(|error| {
                    StoreError::Corrupt { row: key.to_string(), reason: error.to_string() }
                })?;
                let set = "SET #siteId = :siteId, #sensor = :sensor";
                update.update(&self.readings, &key, set, None, [site_id, ("sensor", row)])
            }
            News::Retired(sensor) => {
                let key = SensorRow::key(sensor);
                let at = ("retiredAt", AttributeValue::S(at.to_string()));
                let set = "SET #siteId = :siteId, #retiredAt = :retiredAt";
                update.update(&self.readings, &key, set, None, [site_id, at])
            }
        };
        match update.commit().await? {
            // It has no condition.
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }
}

impl Step for ProjectSensors {
    type Command = EventBridgeEvent<Envelope<Data>>;
    type Reply = Reply;
    type Error = TelemetryError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        Some(command.detail.metadata.correlation_id)
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, TelemetryError> {
        let saga = command.detail.saga()?;
        let Envelope { metadata, data } = command.detail;
        let news: Vec<_> = match data {
            Data::Provisioned(event) => {
                let sensors = SagaWithSensors::new(saga, event.sensors)?.sensors;
                sensors.into_iter().map(News::Provisioned).collect()
            }
            Data::Deprovisioned(event) => {
                saga.check_sensors(event.sensor_ids.iter().copied())?;
                event.sensor_ids.into_iter().map(News::Retired).collect()
            }
        };
        let sensors = news.len();
        futures::iter(news)
            .map(|news| self.project(saga.site_id, metadata.occurred_at, news))
            .buffer_unordered(UPDATES_AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(Reply { sensors })
    }
}
