//! Projects the events `SensorsProvisioned`, `SensorChanged` and `SensorsDeprovisioned` into the sensor register.
//!
//! EventBridge does not preserve order and delivers at least once. The retirement of a sensor has its own attribute,
//! `retiredAt`. If one sequence applied to the whole row and `SensorsDeprovisioned` arrived first, the definition in
//! the older event `SensorsProvisioned` would be refused. The definition is in the mode `latest`: the row stores the
//! sequence of the `SensorChanged` that contained the definition, and an older event does not replace it.
//! `SensorsProvisioned` is older than each change, so its sequence is not stored. `consumer::latest` replaces a whole row,
//! so it can't be used here: it would remove `retiredAt` and the counter of changes.
//!
//! If queries read stored readings differently with a new definition, the row's counter of changes and the events
//! `ReadingsRevised` are committed with it. The new definition is compared with the row, not with the event before it:
//! nobody has read with a definition that was never in the row.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    ContextWithSensors, Entity, Envelope, OnboardingId, SagaContext, Sensor, SensorId, SiteData,
    SiteId, Timestamp,
    events::{ReadingsRevised, SensorChanged, SensorsDeprovisioned, SensorsProvisioned},
};
use futures_util::{StreamExt, TryStreamExt, stream as futures};
use lambda::Step;
use serde::{Deserialize, Serialize};
use store::{Commit, NewEvent, Outbox, StoreError, Table, Transaction};

use crate::{
    SensorRow, TelemetryError,
    rereading::reread,
    series_store::{MAX_ATTEMPTS, attribute, overtaken, pause_before},
};

/// The number of concurrent updates. A site has up to 100 sensors.
const CONCURRENT_UPDATES: usize = 8;

/// The dependencies of the function `project-sensors`.
#[derive(Debug)]
pub struct ProjectSensors {
    /// The readings table, which contains the register.
    pub readings: Table,
    /// The outbox for `ReadingsRevised`.
    pub outbox: Outbox,
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

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Reply {
    /// The number of sensors in the event.
    pub sensors: usize,
}

/// A change of one sensor's row.
enum RowChange {
    Provisioned(Sensor),
    Changed { sensor: Sensor, sequence: u64 },
    Retired(SensorId),
}

impl ProjectSensors {
    /// Projects one sensor of an event that occurred `at` this time.
    async fn project(
        &self,
        saga: SagaContext,
        at: Timestamp,
        change: RowChange,
        now: Timestamp,
    ) -> Result<(), TelemetryError> {
        let update = Transaction::on(&self.readings);
        let update = match change {
            RowChange::Changed { sensor, sequence } => {
                return self.change(saga, &sensor, sequence, now).await;
            }
            RowChange::Provisioned(sensor) => {
                let key = SensorRow::key(sensor.sensor_id);
                let set = "SET #siteId = :siteId, #operatorId = :operatorId, #sensor = :sensor";
                let unchanged = "attribute_not_exists(#sensorSequence)";
                let sensor = ("sensor", attribute(&key, &sensor)?);
                let values = owner(saga).into_iter().chain([sensor]);
                update.update(&self.readings, &key, set, Some(unchanged), values)
            }
            RowChange::Retired(sensor) => {
                let key = SensorRow::key(sensor);
                let at = ("retiredAt", AttributeValue::S(at.to_string()));
                let set =
                    "SET #siteId = :siteId, #operatorId = :operatorId, #retiredAt = :retiredAt";
                let values = owner(saga).into_iter().chain([at]);
                update.update(&self.readings, &key, set, None, values)
            }
        };
        match update.commit().await? {
            // A refused event is a duplicate, or older than the row.
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }

    /// Replaces a sensor's definition, unless the row has this one or a newer one.
    async fn change(
        &self,
        saga: SagaContext,
        sensor: &Sensor,
        sequence: u64,
        now: Timestamp,
    ) -> Result<(), TelemetryError> {
        let key = SensorRow::key(sensor.sensor_id);
        for attempt in 0..MAX_ATTEMPTS {
            pause_before(attempt).await;
            let row: Option<SensorRow> = self.readings.get(&key).await?;
            if row.as_ref().and_then(|row| row.sensor_sequence) >= Some(sequence) {
                return Ok(());
            }
            match self.replacement(saga, row.as_ref(), sensor, sequence, now)?.commit().await? {
                Commit::Done => return Ok(()),
                // Another writer has changed the row since it was read.
                Commit::Refused(_) => {}
            }
        }
        Err(overtaken(&key).into())
    }

    /// Returns the transaction that replaces the definition. Its condition is that the definition has not changed since
    /// the row was read. If the results of queries change, it also contains the new counter and the events
    /// `ReadingsRevised`.
    fn replacement(
        &self,
        saga: SagaContext,
        row: Option<&SensorRow>,
        sensor: &Sensor,
        sequence: u64,
        now: Timestamp,
    ) -> Result<Transaction, StoreError> {
        let key = SensorRow::key(sensor.sensor_id);
        let number = |value: u64| AttributeValue::N(value.to_string());
        let mut set = "SET #siteId = :siteId, #operatorId = :operatorId, #sensor = :sensor, \
                       #sensorSequence = :sensorSequence"
            .to_owned();
        let mut values = Vec::from(owner(saga));
        values.push(("sensor", attribute(&key, sensor)?));
        values.push(("sensorSequence", number(sequence)));
        let Some((row, before)) = row.and_then(|row| Some((row, row.sensor.as_ref()?))) else {
            // The row has no definition yet, so no query has returned readings of this sensor.
            let undefined = Some("attribute_not_exists(#sensor)");
            let update = Transaction::on(&self.readings);
            return Ok(update.update(&self.readings, &key, &set, undefined, values));
        };
        let mut same = match row.sensor_sequence {
            None => "attribute_not_exists(#sensorSequence)".to_owned(),
            Some(before) => {
                values.push(("sequenceBefore", number(before)));
                "#sensorSequence = :sequenceBefore".to_owned()
            }
        };
        let revised = reread(before, sensor, now);
        if !revised.is_empty() {
            let (count, uncounted, counted) = row.count(revised.len() as u64);
            set = format!("{set}, {count}");
            same = format!("{same} AND {uncounted}");
            values.extend(counted);
        }
        let transaction =
            Transaction::on(&self.readings).update(&self.readings, &key, &set, Some(&same), values);
        let events = (row.changes + 1..).zip(revised);
        Ok(events.fold(transaction, |transaction, (sequence, (kind, range))| {
            let event = ReadingsRevised {
                site_id: saga.site_id,
                sensor_id: sensor.sensor_id,
                kind,
                from: range.from,
                to: range.to,
                bundle_id: None,
                revision: None,
                reason: None,
            };
            let entity = Entity::readings(sensor.sensor_id);
            let event = NewEvent::in_saga(saga, entity, sequence, now, event);
            transaction.event(&self.outbox, event)
        }))
    }
}

/// Returns the site and the operator of a sensor as attributes of its row.
fn owner(saga: SagaContext) -> [(&'static str, AttributeValue); 2] {
    [
        ("siteId", AttributeValue::S(saga.site_id.to_string())),
        ("operatorId", AttributeValue::S(saga.operator_id.to_string())),
    ]
}

impl Step for ProjectSensors {
    type Command = EventBridgeEvent<Envelope<Data>>;
    type Reply = Reply;
    type Error = TelemetryError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        command.detail.metadata.correlation_id
    }

    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, TelemetryError> {
        let saga = command.detail.saga()?;
        let Envelope { metadata, data } = command.detail;
        let changes: Vec<_> = match data {
            Data::Provisioned(event) => {
                let sensors = ContextWithSensors::new(saga, event.sensors)?.sensors;
                sensors.into_iter().map(RowChange::Provisioned).collect()
            }
            Data::Changed(event) => {
                let sensor = event.sensor;
                saga.check_sensor(sensor.sensor_id)?;
                vec![RowChange::Changed { sensor, sequence: metadata.sequence }]
            }
            Data::Deprovisioned(event) => {
                saga.check_sensors(event.sensor_ids.iter().copied())?;
                event.sensor_ids.into_iter().map(RowChange::Retired).collect()
            }
        };
        let sensors = changes.len();
        futures::iter(changes)
            .map(|change| self.project(saga, metadata.occurred_at, change, now))
            .buffer_unordered(CONCURRENT_UPDATES)
            .try_collect::<()>()
            .await?;
        Ok(Reply { sensors })
    }
}
