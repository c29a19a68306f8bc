//! Batches: every record is decoded and worked on by itself, within the function's time.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, SystemTime},
};

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::FutureExt;
use lambda_runtime::Context;
use tokio::time::Instant;

use crate::{Error, Failure, decode, serve_raw};

/// Kept back from the function's time for its answer.
const FOR_THE_ANSWER: Duration = Duration::from_millis(500);

/// When the work must be over.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    pub(crate) fn of(context: &Context) -> Self {
        let left = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
        Self::after(left.saturating_sub(FOR_THE_ANSWER))
    }

    /// A deadline so long from now.
    #[must_use]
    pub fn after(left: Duration) -> Self {
        Self(Instant::now() + left)
    }

    /// The time left; nothing once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }
}

/// A record that is to be delivered again, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed<I> {
    /// The record's id in its batch.
    pub id: I,
    /// For the log.
    pub reason: String,
}

/// Works on each record in turn. A record fails alone: by its error, by a panic, or because the
/// time ran out, which fails the rest of the batch unseen.
pub async fn each<R, I>(
    records: impl IntoIterator<Item = (I, R)>,
    deadline: Deadline,
    work: impl AsyncFn(R) -> Result<(), String>,
) -> Vec<Failed<I>> {
    let mut failed = Vec::new();
    for (id, record) in records {
        if deadline.passed() {
            failed.push(Failed { id, reason: "not begun: the time ran out".to_owned() });
            continue;
        }
        let attempt = AssertUnwindSafe(work(record)).catch_unwind();
        let reason = match tokio::time::timeout(deadline.left(), attempt).await {
            Ok(Ok(Ok(()))) => continue,
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(panic)) => format!("panicked: {}", panic_message(&*panic)),
            Err(_) => "not finished: the time ran out".to_owned(),
        };
        failed.push(Failed { id, reason });
    }
    failed
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Serves an SQS mapping with `ReportBatchItemFailures`: what fails goes back to the queue alone. The
/// work hears when it must be over.
pub async fn serve_queue(
    work: impl AsyncFn(SqsMessage, Deadline) -> Result<(), String>,
) -> Result<(), Error> {
    let work = &work;
    serve_raw(async |payload, deadline| {
        let batch: SqsEvent = decode(payload.get())?;
        let records = batch
            .records
            .into_iter()
            .map(|message| (message.message_id.clone().unwrap_or_default(), message));
        let failed =
            each(records, deadline, async |message| Box::pin(work(message, deadline)).await).await;
        metrics::counter!("BatchItemFailures").increment(failed.len() as u64);
        let mut answer = SqsBatchResponse::default();
        for Failed { id, reason } in failed {
            tracing::error!(message_id = %id, %reason, "message failed");
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = id;
            answer.batch_item_failures.push(failure);
        }
        Ok::<_, Failure>(answer)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    async fn run(left: Duration) -> HashMap<u32, String> {
        let failed = each((0..5).map(|n| (n, n)), Deadline::after(left), async |n| match n {
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
    async fn a_record_fails_alone() {
        let failed = run(Duration::from_mins(1)).await;
        assert_eq!(failed.len(), 2, "{failed:?}");
        assert_eq!(failed[&1], "broken");
        assert_eq!(failed[&2], "panicked: boom");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_time_did_not_reach_is_failed_not_forgotten() {
        let failed = run(Duration::from_secs(1)).await;
        assert_eq!(failed[&3], "not finished: the time ran out");
        assert_eq!(failed[&4], "not begun: the time ran out");
    }
}
