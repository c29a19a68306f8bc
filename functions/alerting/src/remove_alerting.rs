//! Undoes `configure-alerting`: replaces the configuration with a tombstone.

use contracts::{AlertingId, OnboardingId, SagaContext, Timestamp, events::AlertingRemoved};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{Alerting, AlertingError, AlertingRow};

/// The dependencies of the function `remove-alerting`.
#[derive(Debug)]
pub struct RemoveAlerting {
    /// The alerting table.
    pub alerting: Table,
    /// The outbox for `AlertingRemoved`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The id of the configuration, derived from the onboarding.
    pub alerting_id: AlertingId,
}

#[derive(Debug, PartialEq)]
enum Decision {
    /// There is no configuration: write a tombstone against a late one.
    WriteTombstone,
    /// There are only changed sensors: replace them with a tombstone.
    DiscardChanges { from: &'static str, at: Timestamp },
    /// Replace the configuration with a tombstone.
    Remove { from: &'static str, sequence: u64 },
    /// The tombstone exists.
    AlreadyRemoved,
}

/// Decides what the undo has to write.
fn decide_undo(existing: Option<&AlertingRow>, now: Timestamp) -> Decision {
    let Some(row) = existing else { return Decision::WriteTombstone };
    match row.state {
        // The row and its tombstone both have the sequence 0. Their times must differ, or a concurrent
        // `put_if_same_version` would replace the tombstone.
        Alerting::NotConfigured { .. } => {
            Decision::DiscardChanges { from: row.state.name(), at: row.next_time(now) }
        }
        Alerting::Configured { .. } => {
            Decision::Remove { from: row.state.name(), sequence: row.sequence + 1 }
        }
        Alerting::Removed => Decision::AlreadyRemoved,
    }
}

impl Step for RemoveAlerting {
    type Command = SagaContext;
    type Reply = Reply;
    type Error = AlertingError;

    fn correlation(saga: &SagaContext) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: SagaContext, now: Timestamp) -> Result<Reply, AlertingError> {
        let alerting_id = AlertingId::from_onboarding(saga.onboarding_id);
        let key = AlertingRow::key(alerting_id);
        let existing: Option<AlertingRow> = self.alerting.get(&key).await?;

        let tombstone = |sequence, at| AlertingRow { saga, state: Alerting::Removed, sequence, at };
        let mut transaction = Transaction::on(&self.alerting);
        match decide_undo(existing.as_ref(), now) {
            Decision::AlreadyRemoved => return Ok(Reply { alerting_id }),
            Decision::WriteTombstone => {
                transaction = transaction.create(&self.alerting, &key, &tombstone(0, now));
            }
            Decision::DiscardChanges { from, at } => {
                transaction =
                    transaction.put_if_status(&self.alerting, &key, &tombstone(0, at), from);
            }
            Decision::Remove { from, sequence } => {
                let event = AlertingRemoved { site_id: saga.site_id };
                transaction = transaction
                    .put_if_status(&self.alerting, &key, &tombstone(sequence, now), from)
                    .event(
                        &self.outbox,
                        NewEvent::in_saga(saga, alerting_id, sequence, now, event),
                    );
            }
        }
        match transaction.commit().await? {
            Commit::Done => Ok(Reply { alerting_id }),
            Commit::Refused(_) => Err(AlertingError::Busy(alerting_id)),
        }
    }
}
