//! The fourth step of the saga: configures alerting for the sensors' limits. `remove-alerting` undoes it.

use contracts::{
    AlertingId, ContextWithSensors, OnboardingId, Sensor, Timestamp, events::AlertingConfigured,
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{Alerting, AlertingError, AlertingRow, Rule};

/// The dependencies of the function `configure-alerting`.
#[derive(Debug)]
pub struct ConfigureAlerting {
    /// The alerting table.
    pub alerting: Table,
    /// The outbox for `AlertingConfigured`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The id of the configuration, derived from the onboarding.
    pub alerting_id: AlertingId,
}

/// Returns the result of the step for an existing row.
fn reply_for_existing(existing: &AlertingRow) -> Result<Reply, AlertingError> {
    let alerting_id = AlertingId::from_onboarding(existing.saga.onboarding_id);
    match existing.state {
        Alerting::Configured { .. } => Ok(Reply { alerting_id }),
        Alerting::Removed => Err(AlertingError::Superseded(alerting_id)),
    }
}

/// Returns a rule for each sensor that has a limit.
fn rules(mut sensors: Vec<Sensor>) -> Vec<Rule> {
    sensors.retain(|sensor| sensor.min.is_some() || sensor.max.is_some());
    sensors.into_iter().map(Rule::new).collect()
}

impl Step for ConfigureAlerting {
    type Command = ContextWithSensors;
    type Reply = Reply;
    type Error = AlertingError;

    fn correlation(command: &ContextWithSensors) -> Option<OnboardingId> {
        Some(command.saga.onboarding_id)
    }

    async fn run(
        &self,
        command: ContextWithSensors,
        now: Timestamp,
    ) -> Result<Reply, AlertingError> {
        let ContextWithSensors { saga, sensors, .. } = command;
        let alerting_id = AlertingId::from_onboarding(saga.onboarding_id);
        let key = AlertingRow::key(alerting_id);

        let rules = rules(sensors);
        let limits = rules.iter().map(|Rule { sensor, .. }| sensor.into()).collect();
        let event = AlertingConfigured { site_id: saga.site_id, limits };
        let row = AlertingRow { saga, state: Alerting::Configured { rules }, sequence: 1, at: now };
        let commit = Transaction::on(&self.alerting)
            .create(&self.alerting, &key, &row)
            .event(&self.outbox, NewEvent::in_saga(saga, alerting_id, 1, now, event))
            .commit()
            .await?;
        match commit {
            Commit::Done => Ok(Reply { alerting_id }),
            Commit::Refused(refused) => match refused.row(&key)? {
                Some(existing) => reply_for_existing(&existing),
                None => Err(AlertingError::Busy(alerting_id)),
            },
        }
    }
}
