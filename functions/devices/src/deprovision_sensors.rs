//! Undoes `provision-sensors`: retires the sensors for good and leaves a tombstone.

use contracts::{
    OnboardingId, SagaContext, SensorId, SensorsId, Timestamp, events::SensorsDeprovisioned,
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{DevicesError, Sensors, SensorsRow};

/// The dependencies of the function `deprovision-sensors`.
#[derive(Debug)]
pub struct DeprovisionSensors {
    /// The devices table.
    pub devices: Table,
    /// The outbox for `SensorsDeprovisioned`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The id of the sensors, derived from the onboarding.
    pub sensors_id: SensorsId,
}

#[derive(Debug, PartialEq)]
enum Decision {
    /// There are no sensors: write a tombstone against a late provisioning.
    WriteTombstone,
    /// Replace the sensors with a tombstone.
    Deprovision { from: &'static str, sequence: u64, sensor_ids: Vec<SensorId> },
    /// The tombstone exists.
    AlreadyDeprovisioned,
}

/// Decides what the undo has to write.
fn decide_undo(existing: Option<SensorsRow>) -> Decision {
    let Some(row) = existing else { return Decision::WriteTombstone };
    let from = row.state.name();
    match row.state {
        Sensors::Provisioned { sensors } => Decision::Deprovision {
            from,
            sequence: row.sequence + 1,
            sensor_ids: sensors.into_iter().map(|sensor| sensor.sensor_id).collect(),
        },
        Sensors::Deprovisioned => Decision::AlreadyDeprovisioned,
    }
}

impl Step for DeprovisionSensors {
    type Command = SagaContext;
    type Reply = Reply;
    type Error = DevicesError;

    fn correlation(saga: &SagaContext) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: SagaContext, now: Timestamp) -> Result<Reply, DevicesError> {
        let sensors_id = SensorsId::from_onboarding(saga.onboarding_id);
        let key = SensorsRow::key(sensors_id);
        let existing = self.devices.get(&key).await?;

        let tombstone =
            |sequence| SensorsRow { saga, state: Sensors::Deprovisioned, sequence, at: now };
        let mut transaction = Transaction::on(&self.devices);
        match decide_undo(existing) {
            Decision::AlreadyDeprovisioned => return Ok(Reply { sensors_id }),
            Decision::WriteTombstone => {
                transaction = transaction.create(&self.devices, &key, &tombstone(0));
            }
            Decision::Deprovision { from, sequence, sensor_ids } => {
                let event = SensorsDeprovisioned { site_id: saga.site_id, sensor_ids };
                transaction = transaction
                    .put_if_status(&self.devices, &key, &tombstone(sequence), from)
                    .event(&self.outbox, NewEvent::in_saga(saga, sensors_id, sequence, now, event));
            }
        }
        match transaction.commit().await? {
            Commit::Done => Ok(Reply { sensors_id }),
            Commit::Refused(_) => Err(DevicesError::Busy(sensors_id)),
        }
    }
}
