//! Makes rows of what the failure queues and the failure bucket hold.
//!
//! A message is done when the row, and the payload's file before it, are written. Until then it comes
//! again, since the queues have no dead-letter queue. Only a transient error may fail a message: a table
//! or a bucket out of reach. A message or a file that can't be read is recorded as it is. A row names the
//! messages that it was recorded from, so a redelivered message changes nothing.

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::{Timestamp, names::FAILURE_FILES};
use futures_util::{StreamExt, TryStreamExt, stream};
use ledger::{
    FailedWork, Ledger, LedgerError, MAX_PAYLOAD_BYTES, Payload, PayloadFile, Recorded,
    files::{Content, Files},
};
use store::StoreError;

use crate::parse::{self, Parsed, Repair};

/// A file may hold a stream's whole batch.
const ROWS_AT_ONCE: usize = 8;
/// Where Lambda puts the batches that a mapping gave up on. The role reads nothing else.
const LAMBDA_FILES: &str = "aws/lambda/";
/// Where record-failure puts payloads that are too long for a row.
const PAYLOAD_FILES: &str = "payloads/";
/// Receives of a message after which a file that S3 does not answer for is recorded as unreadable: about
/// an hour.
const MAX_RECEIVES: u32 = 20;

/// What the step needs.
#[derive(Debug)]
pub struct RecordFailure {
    /// The name of the environment, such as `fieldstation-prod`: the prefix of the functions' names.
    pub environment: String,
    /// The failures table.
    pub ledger: Ledger,
    /// S3.
    pub files: Files,
    /// The bucket of given up batches and of long payloads.
    pub bucket: String,
}

impl RecordFailure {
    /// Records what a message says: failures, new files of failures, or the end of a failure.
    ///
    /// # Errors
    /// If the table or a bucket is out of reach: the message has to come again.
    pub async fn handle(&self, message: &SqsMessage, now: Timestamp) -> Result<(), LedgerError> {
        let message_id = message.message_id.as_deref().unwrap_or_default();
        let at = sent(message).unwrap_or(now);
        match parse::message(&self.environment, message) {
            Parsed::Failed(work) => self.record(*work, message_id, at).await,
            Parsed::Repaired(repair) => self.repaired(&repair).await,
            Parsed::Files(files) => {
                let last = receives(message) >= MAX_RECEIVES;
                for file in &files {
                    self.file(file, last, at).await?;
                }
                Ok(())
            }
            Parsed::Test => Ok(()),
        }
    }

    /// Ends the failure of earlier teardowns of the same onboarding, if there is one. A failure whose message
    /// comes after that of the repair stays open until somebody replays it, which changes nothing.
    async fn repaired(&self, repair: &Repair) -> Result<(), LedgerError> {
        let Repair { id, execution } = repair;
        if self.ledger.repaired(*id, &format!("repaired by execution {execution}")).await? {
            tracing::info!(failure = %id, %execution, "failure repaired");
        }
        Ok(())
    }

    /// Records a row for each record of a file. A file is written once, so its key identifies a record,
    /// however many notifications there are of the file. On the last attempt a file that S3 does not answer
    /// for is recorded as unreadable.
    async fn file(&self, file: &PayloadFile, last: bool, at: Timestamp) -> Result<(), LedgerError> {
        let content = if file.bucket != self.bucket {
            Content::Unreadable("is in a bucket that record-failure does not read".into())
        } else if !file.key.starts_with(LAMBDA_FILES) {
            Content::Unreadable(format!(
                "is not below {LAMBDA_FILES}, where Lambda puts what a mapping gave up on"
            ))
        } else {
            match self.files.get(file).await {
                Ok(content) => content,
                Err(error) if last => {
                    Content::Unreadable(format!("could not be read {MAX_RECEIVES} times: {error}"))
                }
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
        stream::iter(rows).buffer_unordered(ROWS_AT_ONCE).try_collect().await
    }

    /// Records a failure. If the table refuses its row for good, such as a row that is too large, the
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
                tracing::error!(failure = %id, %error, "the row was refused");
                self.write(parse::refused(work, &error.to_string()), message_id, at).await
            }
            written => written,
        }
    }

    /// Writes the payload's file first: a row never names a file that does not exist.
    async fn write(
        &self,
        mut work: FailedWork,
        message_id: &str,
        at: Timestamp,
    ) -> Result<(), LedgerError> {
        if let Payload::Text(text) = &work.payload
            && text.len() > MAX_PAYLOAD_BYTES
        {
            let key = format!("{PAYLOAD_FILES}{}", work.id);
            let file = PayloadFile { bucket: self.bucket.clone(), key };
            self.files.put(&file, text).await?;
            work.payload = Payload::File(file);
        }
        match self.ledger.record(&work, message_id, at).await? {
            Recorded::Now => {
                let FailedWork { id, source, error, .. } = &work;
                tracing::warn!(failure = %id, source, error = error.name, "failure recorded");
                metrics::counter!("FailuresRecorded").increment(1);
            }
            Recorded::Before => {}
        }
        Ok(())
    }
}

/// How often a message was received, this time included.
fn receives(message: &SqsMessage) -> u32 {
    let count = message.attributes.get("ApproximateReceiveCount");
    count.and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// When a message was sent to its first queue.
fn sent(message: &SqsMessage) -> Option<Timestamp> {
    message.attributes.get("SentTimestamp")?.parse().ok().map(Timestamp::from_millis)
}
