//! Processing of batches: each record fails by itself, and the work ends before the function's timeout.

use std::{
    collections::HashMap,
    hash::Hash,
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime},
};

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use fault::{InvocationError, decode};
use futures_util::{FutureExt, StreamExt, stream};
use lambda_runtime::Context;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::{Error, serve_raw};

/// Time reserved for the response before the function's timeout.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// The time by which the work must end.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    pub(crate) fn from_context(context: &Context) -> Self {
        let remaining = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
        Self::after(remaining.saturating_sub(RESPONSE_MARGIN))
    }

    /// Returns the deadline that is this time from now.
    #[must_use]
    pub fn after(remaining: Duration) -> Self {
        Self(Instant::now() + remaining)
    }

    /// Returns the remaining time. It is zero after the deadline.
    #[must_use]
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Returns whether the deadline has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }
}

/// A record that must be delivered again, and the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct FailedItem<I> {
    /// The record's id in its batch.
    pub id: I,
    /// The reason, for the log.
    pub reason: String,
}

/// Processes the records in turn and returns those that failed.
///
/// A failed record does not affect the others. A record fails by its error, by a panic, or if the deadline passes
/// while it is processed. After the deadline, the remaining records fail without being started.
pub async fn process_each<R, I>(
    records: impl IntoIterator<Item = (I, R)>,
    deadline: Deadline,
    work: impl AsyncFn(R) -> Result<(), String>,
) -> Vec<FailedItem<I>> {
    let mut failed = Vec::new();
    for (id, record) in records {
        if deadline.passed() {
            failed.push(FailedItem { id, reason: "not started: the deadline passed".to_owned() });
            continue;
        }
        if let Err(reason) = attempt(work(record), deadline).await {
            failed.push(FailedItem { id, reason });
        }
    }
    failed
}

/// Processes records in lanes: in order within a lane, with up to `max_concurrent` lanes at the same time.
///
/// A record fails as in [`process_each`]. To preserve the order, the records after it in its lane fail without being
/// started. Other lanes are not affected. Returns the failed records by their index in the batch, from 0.
pub async fn process_lanes<L: Eq + Hash, R>(
    records: impl IntoIterator<Item = (L, R)>,
    max_concurrent: usize,
    deadline: Deadline,
    work: impl AsyncFn(R) -> Result<(), String>,
) -> Vec<FailedItem<usize>> {
    let mut lanes: Vec<Vec<(usize, R)>> = Vec::new();
    let mut lane_of = HashMap::new();
    for (index, (lane, record)) in records.into_iter().enumerate() {
        let lane = *lane_of.entry(lane).or_insert_with(|| {
            lanes.push(Vec::new());
            lanes.len() - 1
        });
        lanes[lane].push((index, record));
    }
    let work = &work;
    let lane = async |records: Vec<(usize, R)>| {
        let mut failed = Vec::new();
        for (id, record) in records {
            let reason = if deadline.passed() {
                "not started: the deadline passed".to_owned()
            } else if !failed.is_empty() {
                "not started: an earlier record of its lane failed".to_owned()
            } else if let Err(reason) = attempt(work(record), deadline).await {
                reason
            } else {
                continue;
            };
            failed.push(FailedItem { id, reason });
        }
        failed
    };
    let results = stream::iter(lanes).map(lane).buffer_unordered(max_concurrent);
    let mut failed: Vec<_> = results.concat().await;
    failed.sort_unstable_by_key(|failed| failed.id);
    failed
}

/// Processes one record. A panic and an expired deadline become errors.
async fn attempt(
    work: impl Future<Output = Result<(), String>>,
    deadline: Deadline,
) -> Result<(), String> {
    match tokio::time::timeout(deadline.remaining(), AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(format!("panicked: {}", panic_message(&*panic))),
        Err(_) => Err("not finished: the deadline passed".to_owned()),
    }
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Counts the failed items of a batch by the function's version.
///
/// Lambda counts a partial batch response as a success. This metric allows an alarm to roll back a new version that
/// fails only in this way.
pub fn count_failed(items: usize) {
    let version = std::env::var("AWS_LAMBDA_FUNCTION_VERSION").unwrap_or_else(|_| "local".into());
    metrics::counter!("BatchItemFailures", "version" => version).increment(items as u64);
}

/// Serves an SQS event source mapping with `ReportBatchItemFailures`: only failed messages return to the queue. The
/// work gets its deadline.
pub async fn serve_queue(
    work: impl AsyncFn(SqsMessage, Deadline) -> Result<(), String>,
) -> Result<(), Error> {
    let work = &work;
    serve_raw(async |payload, deadline| messages(&payload, deadline, work).await).await
}

/// Processes a batch of messages. The response names those that failed.
pub(crate) async fn messages(
    payload: &RawValue,
    deadline: Deadline,
    work: &impl AsyncFn(SqsMessage, Deadline) -> Result<(), String>,
) -> Result<SqsBatchResponse, InvocationError> {
    let batch: SqsEvent = decode(payload.get())?;
    let records = batch
        .records
        .into_iter()
        .map(|message| (message.message_id.clone().unwrap_or_default(), message));
    let failed =
        process_each(records, deadline, async |message| Box::pin(work(message, deadline)).await)
            .await;
    count_failed(failed.len());
    let mut response = SqsBatchResponse::default();
    for FailedItem { id, reason } in failed {
        tracing::error!(message_id = %id, %reason, "message failed");
        let mut failure = BatchItemFailure::default();
        failure.item_identifier = id;
        response.batch_item_failures.push(failure);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    async fn run(remaining: Duration) -> HashMap<u32, String> {
        let failed =
            process_each((0..5).map(|n| (n, n)), Deadline::after(remaining), async |n| match n {
                1 => Err("broken".to_owned()),
                2 => panic!("boom"),
                3 => {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    Ok(())
                }
                _ => Ok(()),
            })
            .await;
        failed.into_iter().map(|failed| (failed.id, failed.reason)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_record_does_not_fail_the_others() {
        let failed = run(Duration::from_mins(1)).await;
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert_eq!(failed[&1], "broken");
        assert_eq!(failed[&2], "panicked: boom");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_record_stops_its_lane_but_not_the_others() {
        let done = std::sync::Mutex::new(Vec::new());
        let records = [("a", 0), ("b", 1), ("a", 2), ("b", 3), ("c", 4), ("b", 5)];
        let failed =
            process_lanes(records, 2, Deadline::after(Duration::from_mins(1)), async |n| {
                tokio::time::sleep(Duration::from_secs(1)).await;
                match n {
                    1 => Err("broken".to_owned()),
                    4 => panic!("boom"),
                    _ => {
                        done.lock().unwrap().push(n);
                        Ok(())
                    }
                }
            })
            .await;
        let failed: Vec<_> = failed.iter().map(|f| (f.id, f.reason.as_str())).collect();
        let not_started = "not started: an earlier record of its lane failed";
        assert_eq!(
            failed,
            [(1, "broken"), (3, not_started), (4, "panicked: boom"), (5, not_started)]
        );
        assert_eq!(*done.lock().unwrap(), [0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_run_concurrently_and_keep_their_order() {
        let done = std::sync::Mutex::new(Vec::new());
        let start = Instant::now();
        let records = (0..30_u64).map(|n| (n % 3, n));
        let failed =
            process_lanes(records, 3, Deadline::after(Duration::from_mins(1)), async |n| {
                tokio::time::sleep(Duration::from_secs(1)).await;
                done.lock().unwrap().push(n);
                Ok(())
            })
            .await;
        assert_eq!(failed, []);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        for lane in 0..3 {
            let of_lane = done.lock().unwrap().clone().into_iter().filter(|n| n % 3 == lane);
            assert!(of_lane.is_sorted(), "lane {lane}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_applies_to_all_lanes() {
        let records = (0..6_u64).map(|n| (n % 3, n));
        let failed =
            process_lanes(records, 2, Deadline::after(Duration::from_secs(3)), async |n| {
                tokio::time::sleep(Duration::from_secs(2 * n)).await;
                Ok(())
            })
            .await;
        let failed: Vec<_> = failed.into_iter().map(|failed| (failed.id, failed.reason)).collect();
        let (unfinished, not_started) =
            ("not finished: the deadline passed", "not started: the deadline passed");
        assert_eq!(
            failed,
            [(2, not_started), (3, unfinished), (4, unfinished), (5, not_started)]
                .map(|(n, text)| (n, text.to_owned()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_the_deadline_cuts_off_are_reported_as_failed() {
        let failed = run(Duration::from_secs(1)).await;
        assert_eq!(failed[&3], "not finished: the deadline passed");
        assert_eq!(failed[&4], "not started: the deadline passed");
    }
}
