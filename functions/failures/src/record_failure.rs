//! Writes the contents of the failure queues and of the failure bucket as rows.
//!
//! A message is done when its payload's file, if any, and its row are written. A message that fails is delivered again
//! until it expires, because the queues have no dead-letter queue. Therefore a message fails only while the table or
//! the bucket is unavailable, or if other writers change the row during each attempt. A message or a file that can't be
//! parsed is recorded unchanged. A row has the ids of the messages that it was recorded from, so a redelivered message
//! changes nothing.

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::{Timestamp, names::FAILURE_FILES};
use futures_util::{StreamExt, TryStreamExt, stream};
use ledger::{
    FailedWork, Ledger, LedgerError, MAX_PAYLOAD_BYTES, Payload, PayloadFile, RecordResult,
    files::{Content, Files},
};
use store::StoreError;

use crate::parse::{self, Parsed, Repair};

/// The number of rows that are written concurrently. A file may have the whole batch of a stream.
const CONCURRENT_ROWS: usize = 8;
/// The prefix under which Lambda puts the batches that it gave up on. The function's role reads nothing else.
const LAMBDA_PREFIX: &str = "aws/lambda/";
/// The prefix under which record-failure puts payloads that are too long for a row.
const PAYLOAD_PREFIX: &str = "payloads/";
/// The number of receives of a message after which a file that S3 does not return is recorded as unreadable. It is
/// reached after about an hour.
const MAX_RECEIVES: u32 = 20;

/// The dependencies of the function `record-failure`.
#[derive(Debug)]
pub struct RecordFailure {
    /// The name of the environment, such as `fieldstation-prod`. It is the prefix of the functions' names.
    pub environment: String,
    /// The failures table.
    pub ledger: Ledger,
    /// The files in S3.
    pub files: Files,
    /// The bucket of long payloads, and of the batches that Lambda gave up on.
    pub bucket: String,
}

impl RecordFailure {
    /// Records what a message reports: failures, new files of failures, or a repair.
    ///
    /// # Errors
    /// Fails if the table or the bucket is unavailable, or if other writers changed the row during each attempt. The
    /// message must be delivered again.
    pub async fn handle(&self, message: &SqsMessage, now: Timestamp) -> Result<(), LedgerError> {
        let message_id = message.message_id.as_deref().unwrap_or_default();
        let at = sent_at(message).unwrap_or(now);
        match parse::message(&self.environment, message) {
            Parsed::Failed(work) => self.record(*work, message_id, at).await,
            Parsed::Repaired(repair) => self.mark_replayed(&repair).await,
            Parsed::Files(files) => {
                let is_last_attempt = receive_count(message) >= MAX_RECEIVES;
                for file in &files {
                    self.record_file(file, is_last_attempt, at).await?;
                }
                Ok(())
            }
            Parsed::Test => Ok(()),
        }
    }

    /// Closes the failure that the execution repaired, if there is one. All teardowns of an onboarding share one
    /// failure.
    ///
    /// If the message of a failure arrives after that of its repair, the failure stays open until an engineer on call
    /// replays it. That replay finds nothing left to undo, and closes the failure.
    async fn mark_replayed(&self, repair: &Repair) -> Result<(), LedgerError> {
        let Repair { id, execution } = repair;
        if self.ledger.mark_replayed(*id, &format!("repaired by execution {execution}")).await? {
            tracing::info!(failure = %id, %execution, "failure repaired");
        }
        Ok(())
    }

    /// Records a failure for each record of a file. Records that are the same work share a row.
    ///
    /// A file is written once, so its key and the record's index identify a record, however many notifications
    /// arrive. On the last attempt a file that S3 does not return is recorded as unreadable.
    async fn record_file(
        &self,
        file: &PayloadFile,
        is_last_attempt: bool,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        let content = if file.bucket != self.bucket {
            Content::Unreadable("is in a bucket that record-failure does not read".into())
        } else if !file.key.starts_with(LAMBDA_PREFIX) {
            Content::Unreadable(format!(
                "is not under {LAMBDA_PREFIX}, where Lambda writes the batches that a mapping gave up"
            ))
        } else {
            match self.files.get(file).await {
                Ok(content) => content,
                Err(error) if is_last_attempt => Content::Unreadable(format!(
                    "could not be read in {MAX_RECEIVES} attempts: {error}"
                )),
                Err(error) => return Err(error),
            }
        };
        let failures = match content {
            Content::Bytes(content) => parse::file(&self.environment, file, &content),
            Content::Unreadable(problem) => {
                vec![parse::unreadable_file(FAILURE_FILES, file, &problem)]
            }
        };
        let rows = failures.into_iter().enumerate().map(|(index, work)| async move {
            self.record(work, &format!("{}#{index}", file.key), at).await
        });
        stream::iter(rows).buffer_unordered(CONCURRENT_ROWS).try_collect().await
    }

    /// Records a failure. If the table refuses the row permanently, for instance because it is too large, the
    /// payload is recorded as unreadable.
    async fn record(
        &self,
        work: FailedWork,
        message_id: &str,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        let id = work.id;
        match self.write(work.clone(), message_id, at).await {
            Err(LedgerError::Store(
                error @ (StoreError::Corrupt { .. } | StoreError::Internal(_)),
            )) => {
                tracing::error!(failure = %id, %error, "the table refused the row");
                self.write(parse::refused(work, &error.to_string()), message_id, at).await
            }
            result => result,
        }
    }

    /// Writes a long payload to a file, then the row. The file is first, so that a row never names a missing file.
    async fn write(
        &self,
        mut work: FailedWork,
        message_id: &str,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        if let Payload::Text(text) = &work.payload
            && text.len() > MAX_PAYLOAD_BYTES
        {
            let key = format!("{PAYLOAD_PREFIX}{}", work.id);
            let file = PayloadFile { bucket: self.bucket.clone(), key };
            self.files.put(&file, text).await?;
            work.payload = Payload::File(file);
        }
        match self.ledger.record(&work, message_id, at).await? {
            RecordResult::Recorded => {
                let FailedWork { id, source, error, .. } = &work;
                tracing::warn!(failure = %id, source, error = error.name, "failure recorded");
                metrics::counter!("FailuresRecorded").increment(1);
            }
            RecordResult::AlreadyRecorded => {}
        }
        Ok(())
    }
}

/// Returns the number of times that a message was received, this time included.
fn receive_count(message: &SqsMessage) -> u32 {
    let count = message.attributes.get("ApproximateReceiveCount");
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// Returns the time at which a message was sent to its first queue.
fn sent_at(message: &SqsMessage) -> Option<Timestamp> {
    message.attributes.get("SentTimestamp")?.parse().ok().map(Timestamp::from_millis)
}
