//! Compares the readings of the stream with the sensors' limits. Emits an event when a sensor leaves its limits and
//! when it is back.
//!
//! Only a change of state is written, in one transaction with its event. A bundle may be delivered repeatedly, late, or
//! after only a part of its changes was committed. A committed change is not committed again. If two invocations judge
//! the same readings, the conditional write of one fails. It then judges again from the row that the other committed.

use aws_lambda_events::event::streams::KinesisEventResponse;
use contracts::{
    AlertingId, OnboardingId, SagaContext, Sensor, Timestamp,
    events::{ReadingBackToNormal, ReadingBreachedThreshold},
    readings::Sample,
    stream::Record,
};
use fault::{Fault, InvocationError, ReplayResponse};
use lambda::Deadline;
use serde_json::value::RawValue;
use store::{Commit, NewEvent, Outbox, Table, Transaction};
use stream::SentBundle;

use crate::{
    Alerting, AlertingError, AlertingRow, Rule,
    judging::{Change, Judgement, Transition, apply, judge},
    watermarks::WatermarkCache,
};

/// The maximum number of changes per transaction. DynamoDB takes 100 actions, and one of them writes the row.
const MAX_TRANSITIONS: usize = 99;

/// The maximum number of times that a bundle is judged again because another writer changed the row.
const MAX_CONFLICTS: usize = 5;

/// The dependencies of the function `detect-breaches`.
#[derive(Debug)]
pub struct DetectBreaches {
    /// The alerting table.
    pub alerting: Table,
    /// The outbox for `ReadingBreachedThreshold` and `ReadingBackToNormal`.
    pub outbox: Outbox,
    /// The watermarks of earlier batches.
    pub watermarks: WatermarkCache,
}

impl DetectBreaches {
    /// Judges a batch. The response names the first record that Lambda must deliver again.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<KinesisEventResponse, InvocationError> {
        stream::consume(payload, deadline, async |record| self.record(record).await).await
    }

    /// Judges one record that an operator replays.
    pub async fn replay(&self, record: &RawValue) -> ReplayResponse {
        let now = Timestamp::now();
        let record: Record = match fault::decode(record.get()) {
            Ok(record) => record,
            Err(error) => return ReplayResponse::failed("InvalidInput", error.to_string()),
        };
        match stream::bundle(&record, now) {
            Err(error) => ReplayResponse::nothing_to_do(format!(
                "{error}; store-readings quarantines the same record"
            )),
            Ok(sent) => match self.detect(&sent, now).await {
                Ok(()) => ReplayResponse::Done,
                Err(error) => ReplayResponse::failed(error.kind().name(), error.to_string()),
            },
        }
    }

    async fn record(&self, record: &Record<'_>) -> Result<(), String> {
        let now = Timestamp::now();
        let Ok(sent) = stream::bundle(record, now) else {
            // store-readings gets the same record and quarantines it.
            metrics::counter!("BundlesSkipped").increment(1);
            return Ok(());
        };
        self.detect(&sent, now).await.map_err(|error| error.to_string())
    }

    /// Judges a bundle until all changes are committed.
    ///
    /// The row is read for each bundle. A cached row could hide what another execution environment committed, and the
    /// read costs a fraction of storing the bundle. A bundle that an operator sent for a site of another operator is not
    /// judged. store-readings quarantines it.
    async fn detect(&self, sent: &SentBundle, now: Timestamp) -> Result<(), AlertingError> {
        let bundle = &sent.bundle;
        let alerting_id = AlertingId::from_onboarding(OnboardingId::from_site(bundle.site_id));
        let existing: Option<AlertingRow> =
            self.alerting.get(&AlertingRow::key(alerting_id)).await?;
        let Some(mut row) = existing else { return Ok(()) };
        if !sent.may_be_from(row.saga.operator_id) {
            return Ok(());
        }
        let watermarks = self.watermarks.get(bundle);

        let mut counts = None;
        for _ in 0..=MAX_CONFLICTS {
            let Alerting::Configured { rules } = &row.state else { return Ok(()) };
            let Judgement { transitions, judged, late } = judge(rules, bundle, &watermarks);
            // Only the first judgement counts: readings that this call itself commits would be late in the next one.
            counts.get_or_insert((judged, late));
            match self.commit_all(row, &transitions, now).await? {
                CommitOutcome::Committed(after) => {
                    self.watermarks.advance(&after, bundle);
                    let (judged, late) = counts.unwrap_or_default();
                    metrics::counter!("ReadingsJudged").increment(judged as u64);
                    metrics::counter!("ReadingsLate").increment(late as u64);
                    return Ok(());
                }
                CommitOutcome::Conflict(newer) => row = newer,
            }
        }
        Err(AlertingError::Busy(alerting_id))
    }

    /// Commits all changes, in as many transactions as necessary.
    async fn commit_all(
        &self,
        mut row: AlertingRow,
        transitions: &[Transition],
        now: Timestamp,
    ) -> Result<CommitOutcome, AlertingError> {
        for chunk in transitions.chunks(MAX_TRANSITIONS) {
            let Alerting::Configured { rules } = &row.state else { break };
            match self.commit(&row, rules, chunk, now).await? {
                CommitOutcome::Committed(after) => row = after,
                conflict @ CommitOutcome::Conflict(_) => return Ok(conflict),
            }
        }
        Ok(CommitOutcome::Committed(row))
    }

    /// Commits changes of state with their events. If another writer changed the row since it was read, commits nothing
    /// and returns the newer row.
    async fn commit(
        &self,
        row: &AlertingRow,
        rules: &[Rule],
        transitions: &[Transition],
        now: Timestamp,
    ) -> Result<CommitOutcome, AlertingError> {
        let alerting_id = AlertingId::from_onboarding(row.saga.onboarding_id);
        let key = AlertingRow::key(alerting_id);
        let after = AlertingRow {
            saga: row.saga,
            state: Alerting::Configured { rules: apply(rules, transitions) },
            sequence: row.sequence + transitions.len() as u64,
            at: now,
        };
        // The cause of these events is a reading, not the event that started the saga.
        let saga = SagaContext::for_site(row.saga.operator_id, row.saga.site_id, None);
        let mut breaches = 0;
        let mut transaction = Transaction::on(&self.alerting);
        transaction = transaction.put_if_sequence(&self.alerting, &key, &after, row.sequence);
        for (sequence, transition) in (row.sequence + 1..).zip(transitions) {
            let Transition { rule, sample: Sample(at, value), change } = *transition;
            let Sensor { sensor_id, metric, unit, .. } = rules[rule].sensor.clone();
            let site_id = saga.site_id;
            transaction = match change {
                Change::Breached { limit, threshold } => {
                    breaches += 1;
                    let data = ReadingBreachedThreshold {
                        site_id,
                        sensor_id,
                        metric,
                        unit,
                        value,
                        at,
                        limit,
                        threshold,
                    };
                    let event = NewEvent::in_saga(saga, alerting_id, sequence, now, data);
                    transaction.event(&self.outbox, event)
                }
                Change::BackToNormal { breached_at } => {
                    let data = ReadingBackToNormal {
                        site_id,
                        sensor_id,
                        metric,
                        unit,
                        value,
                        at,
                        breached_at,
                    };
                    let event = NewEvent::in_saga(saga, alerting_id, sequence, now, data);
                    transaction.event(&self.outbox, event)
                }
            };
        }
        match transaction.commit().await? {
            Commit::Done => {
                metrics::counter!("Breaches").increment(breaches);
                Ok(CommitOutcome::Committed(after))
            }
            Commit::Refused(refused) => match refused.row(&key)? {
                Some(newer) => Ok(CommitOutcome::Conflict(newer)),
                None => Err(AlertingError::Busy(alerting_id)),
            },
        }
    }
}

/// The result of a commit.
enum CommitOutcome {
    /// Everything was committed. Holds the new row.
    Committed(AlertingRow),
    /// Another writer changed the row first. Holds its row.
    Conflict(AlertingRow),
}
