//! The second step of the saga: creates the site's sensors. `deprovision-sensors` undoes it.

use contracts::{
    ContextWithSensors, OnboardingId, SensorsId, Timestamp, events::SensorsProvisioned,
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{DevicesError, Sensors, SensorsRow};

/// The dependencies of the function `provision-sensors`.
#[derive(Debug)]
pub struct ProvisionSensors {
    /// The devices table.
    pub devices: Table,
    /// The outbox for `SensorsProvisioned`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The id of the sensors, derived from the onboarding.
    pub sensors_id: SensorsId,
}

/// Returns the result of the step for an existing row.
fn reply_for_existing(existing: &SensorsRow) -> Result<Reply, DevicesError> {
    let sensors_id = SensorsId::from_onboarding(existing.saga.onboarding_id);
    match existing.state {
        Sensors::Provisioned { .. } => Ok(Reply { sensors_id }),
        Sensors::Deprovisioned => Err(DevicesError::Superseded(sensors_id)),
    }
}

impl Step for ProvisionSensors {
    type Command = ContextWithSensors;
    type Reply = Reply;
    type Error = DevicesError;

    fn correlation(command: &ContextWithSensors) -> Option<OnboardingId> {
        Some(command.saga.onboarding_id)
    }

    async fn run(
        &self,
        command: ContextWithSensors,
        now: Timestamp,
    ) -> Result<Reply, DevicesError> {
        let ContextWithSensors { saga, sensors, .. } = command;
        let sensors_id = SensorsId::from_onboarding(saga.onboarding_id);
        let key = SensorsRow::key(sensors_id);

        let state = Sensors::Provisioned { sensors: sensors.clone() };
        let row = SensorsRow { saga, state, sequence: 1, at: now };
        let event = SensorsProvisioned { site_id: saga.site_id, sensors };
        let commit = Transaction::on(&self.devices)
            .create(&self.devices, &key, &row)
            .event(&self.outbox, NewEvent::in_saga(saga, sensors_id, 1, now, event))
            .commit()
            .await?;
        match commit {
            Commit::Done => Ok(Reply { sensors_id }),
            Commit::Refused(refused) => match refused.row(&key)? {
                Some(existing) => reply_for_existing(&existing),
                None => Err(DevicesError::Busy(sensors_id)),
            },
        }
    }
}
