//! The fourth step of the saga: configures alerting for the sensors' limits. `remove-alerting` undoes it.
//!
//! The step gets the sensors as they were registered. If some were changed since, the row exists already and has their new
//! metadata.

use contracts::{
    AlertingId, ContextWithSensors, OnboardingId, Sensor, Timestamp, events::AlertingConfigured,
};
use lambda::Step;
use serde::Serialize;
use store::{Decision, NewEvent, Outbox, Table};

use crate::{Alerting, AlertingError, AlertingRow, MAX_ATTEMPTS, Rule};

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

/// Returns a rule for each sensor that has a limit. A sensor that was changed since its registration has its new metadata.
fn rules(sensors: &[Sensor], changed: &[Rule]) -> Vec<Rule> {
    let limited = sensors.iter().filter(|sensor| sensor.min.is_some() || sensor.max.is_some());
    let mut rules: Vec<_> = limited.cloned().map(Rule::new).collect();
    for Rule { sensor, sensor_sequence, .. } in changed {
        let same = |rule: &&mut Rule| rule.sensor.sensor_id == sensor.sensor_id;
        if let Some(rule) = rules.iter_mut().find(same) {
            rule.change(sensor, *sensor_sequence);
        }
    }
    rules
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
        let decide = |row: &AlertingRow| -> Result<_, AlertingError> {
            let changed = match &row.state {
                Alerting::NotConfigured { rules } => rules,
                Alerting::Configured { .. } => return Ok(Decision::Keep(Reply { alerting_id })),
                Alerting::Removed => return Err(AlertingError::Superseded(alerting_id)),
            };
            let rules = rules(&sensors, changed);
            let limits = rules.iter().map(|Rule { sensor, .. }| sensor.into()).collect();
            let event = AlertingConfigured { site_id: saga.site_id, limits };
            let state = Alerting::Configured { rules };
            let after = AlertingRow { saga, state, sequence: 1, at: row.next_time(now) };
            let transaction = row
                .replace(&self.alerting, &after)
                .event(&self.outbox, NewEvent::in_saga(saga, alerting_id, 1, now, event));
            Ok(Decision::Change(transaction, Reply { alerting_id }))
        };
        // The row is not read first. If it exists, the refusal returns it.
        let (key, absent) = (AlertingRow::key(alerting_id), AlertingRow::absent(saga));
        let reply = store::decide_and_commit(MAX_ATTEMPTS, &key, absent, decide).await?;
        reply.ok_or(AlertingError::Busy(alerting_id))
    }
}
