//! Compares the live readings of the stream with the sensors' limits. Emits an event when a sensor leaves its limits
//! and when it is back.
//!
//! Alerts are about now. So imported and revised bundles are not judged, and neither are readings that were old when
//! they arrived. The age is that on arrival: if this function is up to an hour late, the alerts are late, but not lost.
//! Lambda gives up records that are older than an hour, or whose batch failed after 20 retries. They become failures.
//!
//! Only a change of state is written, in one transaction with its event. A bundle may be delivered repeatedly, late, or
//! after only a part of its changes was committed. A committed change is not committed again. If two invocations judge
//! the same readings, the conditional write of one fails. It then judges again from the row that the other committed.

use std::time::Duration;

use aws_lambda_events::event::streams::KinesisEventResponse;
use contracts::{
    AlertingId, OnboardingId, SagaContext, Sensor, Timestamp,
    events::{ReadingBackToNormal, ReadingBreachedThreshold},
    readings::{Bundle, FIRST_REVISION, Origin, Series, TimeLimits},
    stream::Record,
};
use fault::{Fault, InvocationError, ReplayResponse};
use lambda::Deadline;
use serde_json::value::RawValue;
use store::{Commit, NewEvent, Outbox, Table, Transaction};
use stream::SentBundle;

use crate::{
    Alerting, AlertingError, AlertingRow, Rule,
    judging::{Arrived, Change, Judged, Judgement, Transition, Watermarks, apply, judge},
    watermarks::WatermarkCache,
};

/// The maximum number of changes per transaction. DynamoDB takes 100 actions, and one of them writes the row.
const MAX_TRANSITIONS: usize = 99;

/// The maximum number of times that a bundle is judged again because another writer changed the row.
const MAX_CONFLICTS: usize = 5;

/// The reason of readings that were too old for an alert when they arrived.
const OLD: &str = "Old";

/// The dependencies of the function `detect-breaches`.
#[derive(Debug)]
pub struct DetectBreaches {
    /// The alerting table.
    pub alerting: Table,
    /// The outbox for `ReadingBreachedThreshold` and `ReadingBackToNormal`.
    pub outbox: Outbox,
    /// The watermarks of earlier batches.
    pub watermarks: WatermarkCache,
    /// The maximum age of a judged reading when it arrives at the stream.
    pub max_age: Duration,
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

    /// Judges one record that an engineer on call replays.
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
            Ok(sent) => match self.detect(&record, sent, now).await {
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
        self.detect(record, sent, now).await.map_err(|error| error.to_string())
    }

    /// Judges a bundle until all changes are committed.
    ///
    /// The row is read for each bundle with live readings. A cached row could hide what another execution environment
    /// committed, and the read costs a fraction of storing the bundle. A bundle that an operator sent for a site of
    /// another operator is not judged. For store-readings its sensors are unknown: the record is put on hold, and
    /// quarantined when that time has passed.
    async fn detect(
        &self,
        record: &Record<'_>,
        mut sent: SentBundle,
        now: Timestamp,
    ) -> Result<(), AlertingError> {
        let bundle = &sent.bundle;
        if let Some(reason) = not_live(self.arrived(bundle, record, now)) {
            count_not_judged(reason, bundle.samples());
            return Ok(());
        }
        let alerting_id = AlertingId::from_onboarding(OnboardingId::from_site(bundle.site_id));
        let existing: Option<AlertingRow> =
            self.alerting.get(&AlertingRow::key(alerting_id)).await?;
        let Some(mut row) = existing else { return Ok(()) };
        if !sent.may_be_from(row.saga.operator_id) {
            return Ok(());
        }
        if let Alerting::Configured { rules } = &row.state {
            to_utc(&mut sent.bundle.series, rules, now);
        }
        let bundle = &sent.bundle;
        let arrived = self.arrived(bundle, record, now);
        let watermarks = self.watermarks.get(bundle);

        let mut first = None;
        for _ in 0..=MAX_CONFLICTS {
            let Alerting::Configured { rules } = &row.state else { return Ok(()) };
            let Judgement { transitions, judged } = judge(rules, arrived, &watermarks);
            // Metrics and watermarks use the first judgement. In a repeated one, samples that this call or another
            // writer has committed in the meantime would count as late.
            let judged = first.get_or_insert(judged);
            match self.commit_all(row, &transitions, arrived, &watermarks, now).await? {
                CommitOutcome::Committed(_) => {
                    self.watermarks.advance(arrived, judged);
                    count(judged);
                    return Ok(());
                }
                CommitOutcome::Conflict(newer) => row = newer,
            }
        }
        Err(AlertingError::Busy(alerting_id))
    }

    /// Returns the bundle of a record with its arrival. A record without an arrival counts as arrived now.
    fn arrived<'a>(&self, bundle: &'a Bundle, record: &Record<'_>, now: Timestamp) -> Arrived<'a> {
        let at = record.arrival().and_then(|arrival| arrival.at()).unwrap_or(now);
        let max_age = i64::try_from(self.max_age.as_millis()).unwrap_or(i64::MAX);
        Arrived { bundle, at, oldest: at.plus_millis(-max_age) }
    }

    /// Commits all changes, in as many transactions as necessary.
    async fn commit_all(
        &self,
        mut row: AlertingRow,
        transitions: &[Transition],
        arrived: Arrived<'_>,
        watermarks: &Watermarks,
        now: Timestamp,
    ) -> Result<CommitOutcome, AlertingError> {
        for chunk in transitions.chunks(MAX_TRANSITIONS) {
            let Alerting::Configured { rules } = &row.state else { break };
            match self.commit(&row, rules, chunk, arrived, watermarks, now).await? {
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
        arrived: Arrived<'_>,
        watermarks: &Watermarks,
        now: Timestamp,
    ) -> Result<CommitOutcome, AlertingError> {
        let alerting_id = AlertingId::from_onboarding(row.saga.onboarding_id);
        let key = AlertingRow::key(alerting_id);
        let after = AlertingRow {
            saga: row.saga,
            state: Alerting::Configured { rules: apply(rules, transitions, arrived, watermarks) },
            sequence: row.sequence + transitions.len() as u64,
            at: row.next_time(now),
        };
        // The cause of these events is a reading, not the event that started the saga.
        let saga = SagaContext::for_site(row.saga.operator_id, row.saga.site_id, None);
        let mut breaches = 0;
        let mut transaction = Transaction::on(&self.alerting);
        transaction =
            transaction.put_if_same_version(&self.alerting, &key, &after, row.sequence, row.at);
        for (sequence, transition) in (row.sequence + 1..).zip(transitions) {
            let Transition { rule, at, value, change, .. } = *transition;
            let Sensor { sensor_id, metric, ref unit, .. } = rules[rule].sensor;
            let (site_id, unit) = (saga.site_id, unit.clone());
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

/// Returns why none of a bundle's samples is live. Returns `None` if there may be live ones.
fn not_live(Arrived { bundle, oldest, .. }: Arrived<'_>) -> Option<&'static str> {
    if bundle.origin == Origin::Import {
        return Some("Import");
    }
    if bundle.revision > FIRST_REVISION {
        return Some("Revision");
    }
    // How old a sample without a UTC offset is depends on the site's offset.
    let is_old = |series: &Series| {
        series.samples.last().is_none_or(|last| last.at < oldest && !series.is_local)
    };
    bundle.series.iter().all(is_old).then_some(OLD)
}

/// Turns times that were sent without a UTC offset into UTC, by the offset of the sensors' rules.
///
/// Removes such a series if its sensor has no rule or no UTC offset, or if its times in UTC are out of the limits.
/// store-readings quarantines the series if its site declares no UTC offset, or if its times are out of the limits.
fn to_utc(series: &mut Vec<Series>, rules: &[Rule], now: Timestamp) {
    series.retain_mut(|series| {
        if !series.is_local {
            return true;
        }
        let rule = rules.iter().find(|rule| rule.sensor.sensor_id == series.sensor_id);
        let offset = rule.and_then(|rule| rule.sensor.utc_offset);
        series.resolve(offset, TimeLimits::from(now)).is_ok()
    });
}

/// Writes the metrics of a judged bundle.
fn count(judged: &Judged) {
    let Judged { samples, old, late, not_usable, implausible, .. } = *judged;
    metrics::counter!("ReadingsJudged").increment(samples as u64);
    count_not_judged(OLD, old);
    count_not_judged("Late", late);
    count_not_judged("NotUsable", not_usable);
    count_not_judged("Implausible", implausible);
}

fn count_not_judged(reason: &'static str, samples: usize) {
    if samples > 0 {
        metrics::counter!("ReadingsNotJudged", "reason" => reason).increment(samples as u64);
    }
}
