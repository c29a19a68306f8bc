//! Projects `SensorChanged` into the rules of a site: the sensor's metadata decide which value is compared with its limits.
//!
//! EventBridge does not preserve order and delivers at least once. A rule has the sequence of the event that its metadata
//! are from, and an older event does not replace them. The rule's limits and state stay. `consumer::latest` replaces a whole
//! row by one event, so it can't be used here: the row has the rules of all sensors, and their states.
//!
//! A sensor may be changed while its site is still being onboarded, which takes up to an hour if the payment provider is down.
//! The step `configure-alerting` gets the sensors as they were registered, so the change is kept in the row until then.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{AlertingId, Envelope, OnboardingId, Sensor, Timestamp, events::SensorChanged};
use lambda::Step;
use serde::Serialize;
use store::{Decision, Table};

use crate::{Alerting, AlertingError, AlertingRow, MAX_ATTEMPTS, Rule};

/// The dependencies of the function `project-rules`.
#[derive(Debug)]
pub struct ProjectRules {
    /// The alerting table.
    pub alerting: Table,
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The row has the sensor's new metadata.
    Projected,
    /// The sensor has no rule, or its rule already has this or a later change.
    Unchanged,
}

/// Returns the state with the changed sensor, and `None` if the event changes nothing.
fn projected(state: &Alerting, changed: &Sensor, sequence: u64) -> Option<Alerting> {
    let mut state = state.clone();
    let (rules, is_configured) = match &mut state {
        Alerting::NotConfigured { rules } => (rules, false),
        Alerting::Configured { rules } => (rules, true),
        Alerting::Removed => return None,
    };
    let rule = rules.iter_mut().find(|rule| rule.sensor.sensor_id == changed.sensor_id);
    match rule {
        Some(rule) => rule.change(changed, Some(sequence)).then_some(state),
        None if is_configured => None,
        None => {
            let sensor_sequence = Some(sequence);
            rules.push(Rule { sensor_sequence, ..Rule::new(changed.clone()) });
            Some(state)
        }
    }
}

impl Step for ProjectRules {
    type Command = EventBridgeEvent<Envelope<SensorChanged>>;
    type Reply = Reply;
    type Error = AlertingError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        command.detail.metadata.correlation_id
    }

    /// Changes the rule. If alerting is not configured yet, keeps the change for `configure-alerting`.
    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, AlertingError> {
        let saga = command.detail.saga()?;
        let Envelope { metadata, data: SensorChanged { sensor, .. } } = command.detail;
        saga.check_sensor(sensor.sensor_id)?;
        let alerting_id = AlertingId::from_onboarding(saga.onboarding_id);
        let key = AlertingRow::key(alerting_id);
        let row = self.alerting.get(&key).await?;
        let row = row.unwrap_or_else(|| AlertingRow::absent(saga));
        let decide = |row: &AlertingRow| -> Result<_, AlertingError> {
            let Some(state) = projected(&row.state, &sensor, metadata.sequence) else {
                return Ok(Decision::Keep(Reply::Unchanged));
            };
            let (saga, sequence, at) = (row.saga, row.sequence, row.next_time(now));
            let after = AlertingRow { saga, state, sequence, at };
            Ok(Decision::Change(row.replace(&self.alerting, &after), Reply::Projected))
        };
        let reply = store::decide_and_commit(MAX_ATTEMPTS, &key, row, decide).await?;
        reply.ok_or(AlertingError::Busy(alerting_id))
    }
}
