//! Projects `SensorChanged` into the rules of a site: the sensor's metadata decide which value is compared with its limits.
//!
//! EventBridge does not preserve order and delivers at least once. A rule has the sequence of the event that its metadata
//! are from, and an older event does not replace them. The rule's limits and state stay.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{AlertingId, Envelope, OnboardingId, Sensor, Timestamp, events::SensorChanged};
use lambda::Step;
use serde::Serialize;
use store::{Commit, Table, Transaction};

use crate::{Alerting, AlertingError, AlertingRow, Rule};

/// The maximum number of attempts to change a row that other writers change at the same time.
const MAX_ATTEMPTS: usize = 5;

/// The dependencies of the function `project-rules`.
#[derive(Debug)]
pub struct ProjectRules {
    /// The alerting table.
    pub alerting: Table,
}

/// The result of the invocation. It is only logged.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The rule has the sensor's new metadata.
    Projected,
    /// The sensor has no rule, or its rule already has this or a later change.
    Unchanged,
}

/// Returns the row with the changed sensor, and `None` if the event changes nothing.
fn projected(
    row: &AlertingRow,
    changed: &Sensor,
    sequence: u64,
    now: Timestamp,
) -> Option<AlertingRow> {
    let Alerting::Configured { rules } = &row.state else { return None };
    let index = rules.iter().position(|rule| rule.sensor.sensor_id == changed.sensor_id)?;
    if rules[index].sensor_sequence >= Some(sequence) {
        return None;
    }
    let mut rules = rules.clone();
    let Rule { sensor, sensor_sequence, .. } = &mut rules[index];
    sensor.metadata = changed.metadata.clone();
    *sensor_sequence = Some(sequence);
    let state = Alerting::Configured { rules };
    Some(AlertingRow { saga: row.saga, state, sequence: row.sequence, at: row.next_time(now) })
}

impl Step for ProjectRules {
    type Command = EventBridgeEvent<Envelope<SensorChanged>>;
    type Reply = Reply;
    type Error = AlertingError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        command.detail.metadata.correlation_id
    }

    /// Changes the rule. A sensor that is changed while its site is still being onboarded has no rule yet: this is an error,
    /// so that Lambda calls the function again.
    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, AlertingError> {
        let saga = command.detail.saga()?;
        let Envelope { metadata, data: SensorChanged { sensor, .. } } = command.detail;
        saga.check_sensor(sensor.sensor_id)?;
        let alerting_id = AlertingId::from_onboarding(saga.onboarding_id);
        let key = AlertingRow::key(alerting_id);
        let row: Option<AlertingRow> = self.alerting.get(&key).await?;
        let mut row = row.ok_or(AlertingError::NotConfigured(alerting_id))?;
        for _ in 0..MAX_ATTEMPTS {
            let Some(after) = projected(&row, &sensor, metadata.sequence, now) else {
                return Ok(Reply::Unchanged);
            };
            let commit = Transaction::on(&self.alerting)
                .put_if_same_version(&self.alerting, &key, &after, row.sequence, row.at)
                .commit()
                .await?;
            match commit {
                Commit::Done => return Ok(Reply::Projected),
                Commit::Refused(refused) => {
                    row = refused.row(&key)?.ok_or(AlertingError::Busy(alerting_id))?;
                }
            }
        }
        Err(AlertingError::Busy(alerting_id))
    }
}
