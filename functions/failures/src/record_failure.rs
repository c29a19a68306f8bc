//! Makes rows of what the failure queues and buckets hold.
//!
//! A message is done when the row, and the payload's file before it, are written. Until then it comes
//! again, since the queues have no dead-letter queue. Only a transient error may fail a message: a table
//! or a bucket out of reach. A message or a file that can't be read is recorded as it is. A row names the
//! messages that it was recorded from, so a redelivered message changes nothing.

use std::{collections::HashMap, str::FromStr};

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::Timestamp;
use futures_util::{StreamExt, TryStreamExt, stream};
use lambda::ConfigError;
use store::StoreError;

use crate::{
    FailuresError, LONGEST_PAYLOAD, PayloadFile,
    files::{Content, Files},
    ledger::{Ledger, Recorded},
    reading::{self, Failure, Notification, Payload, Repair},
    sources::SITE_TEARDOWN,
};

/// A file may hold a stream's whole batch.
const ROWS_AT_ONCE: usize = 8;
/// Where Lambda puts the batches that a mapping gave up on. The role reads nothing else.
const LAMBDA_FILES: &str = "aws/lambda/";
/// Receives of a message after which a file that S3 does not answer for is recorded as unreadable: about
/// an hour.
const MAX_RECEIVES: u32 = 20;

/// Which function, or state machine, failed, by the queue's ARN or the bucket's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(HashMap<String, String>);

impl Sources {
    /// The source behind a queue or a bucket.
    #[must_use]
    pub fn of(&self, place: &str) -> Option<&str> {
        self.0.get(place).map(String::as_str)
    }
}

impl FromStr for Sources {
    type Err = ConfigError;

    /// From `<queue ARN or bucket name>=<source>,...`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let pair = |pair: &str| match pair.trim().split_once('=') {
            Some((place, source)) if !place.is_empty() && !source.is_empty() => {
                Ok((place.to_owned(), source.to_owned()))
            }
            _ => Err(ConfigError {
                name: "SOURCES",
                problem: format!("has {pair:?} where <queue ARN or bucket name>=<source> belongs"),
            }),
        };
        text.split(',').map(pair).collect::<Result<_, _>>().map(Self)
    }
}

/// What the step needs.
#[derive(Debug)]
pub struct RecordFailure {
    /// The failures table.
    pub ledger: Ledger,
    /// The buckets of given up batches, and the one of payloads.
    pub files: Files,
    /// The bucket for payloads that are too long for a row.
    pub payloads: String,
    /// Whose failures a queue or a bucket holds.
    pub sources: Sources,
}

impl RecordFailure {
    /// Records the failures that a message tells of, or ends the one that it tells to be repaired.
    ///
    /// # Errors
    /// If the table or a bucket is out of reach: the message has to come again.
    pub async fn handle(&self, message: &SqsMessage, now: Timestamp) -> Result<(), FailuresError> {
        let told_by = message.message_id.as_deref().unwrap_or_default();
        let body = message.body.as_deref().unwrap_or_default();
        let at = sent(message).unwrap_or(now);
        let queue = message.event_source_arn.as_deref().unwrap_or_default();
        if let Some(source) = self.sources.of(queue) {
            if source == SITE_TEARDOWN
                && let Some(repair) = reading::repair(source, body)
            {
                return self.repaired(&repair).await;
            }
            return self.record(reading::message(source, message), told_by, at).await;
        }
        match reading::notification(body) {
            Notification::Files(files) => {
                let last = receives(message) >= MAX_RECEIVES;
                for file in &files {
                    self.file(file, last, at).await?;
                }
                Ok(())
            }
            Notification::Test => Ok(()),
            Notification::Other => {
                let source = queue.rsplit(':').next().unwrap_or(queue);
                self.record(reading::unreadable(source, body), told_by, at).await
            }
        }
    }

    /// Ends the failure of earlier teardowns of the same onboarding, if there is one. A failure whose message
    /// comes after that of the repair stays open until somebody replays it, which changes nothing.
    async fn repaired(&self, repair: &Repair) -> Result<(), FailuresError> {
        let Repair { id, execution } = repair;
        if self.ledger.repaired(*id, &format!("repaired by execution {execution}")).await? {
            tracing::info!(failure = %id, %execution, "failure repaired");
        }
        Ok(())
    }

    /// Records a row for each record of a file. A file is written once, so its key identifies a record,
    /// however many messages tell of the file. On the last attempt a file that S3 does not answer for is
    /// recorded as unreadable.
    async fn file(
        &self,
        file: &PayloadFile,
        last: bool,
        at: Timestamp,
    ) -> Result<(), FailuresError> {
        let source = self.sources.of(&file.bucket);
        let content = match source {
            None => Content::Unreadable("is in a bucket that record-failure does not read".into()),
            Some(_) if !file.key.starts_with(LAMBDA_FILES) => Content::Unreadable(format!(
                "is not below {LAMBDA_FILES}, where Lambda puts what a mapping gave up on"
            )),
            Some(_) => match self.files.get(file).await {
                Ok(content) => content,
                Err(error) if last => {
                    Content::Unreadable(format!("could not be read {MAX_RECEIVES} times: {error}"))
                }
                Err(error) => return Err(error),
            },
        };
        let source = source.unwrap_or(&file.bucket);
        let failures = match content {
            Content::Bytes(content) => reading::file(source, file, &content),
            Content::Unreadable(problem) => vec![reading::unreadable_file(source, file, &problem)],
        };
        let rows = failures.into_iter().enumerate().map(|(index, failure)| async move {
            self.record(failure, &format!("{}#{index}", file.key), at).await
        });
        stream::iter(rows).buffer_unordered(ROWS_AT_ONCE).try_collect().await
    }

    /// Records a failure. If the table refuses its row for good, such as a row that is too large, the
    /// payload is recorded as unreadable.
    async fn record(
        &self,
        failure: Failure,
        told_by: &str,
        at: Timestamp,
    ) -> Result<(), FailuresError> {
        let id = failure.id;
        match self.write(failure.clone(), told_by, at).await {
            Err(FailuresError::Store(
                error @ (StoreError::Corrupt { .. } | StoreError::Internal(_)),
            )) => {
                tracing::error!(failure = %id, %error, "the row was refused");
                self.write(reading::refused(failure, &error.to_string()), told_by, at).await
            }
            written => written,
        }
    }

    /// Writes the payload's file first: a row never names a file that does not exist.
    async fn write(
        &self,
        mut failure: Failure,
        told_by: &str,
        at: Timestamp,
    ) -> Result<(), FailuresError> {
        if let Payload::Text(text) = &failure.payload
            && text.len() > LONGEST_PAYLOAD
        {
            let file = PayloadFile { bucket: self.payloads.clone(), key: failure.id.to_string() };
            self.files.put(&file, text).await?;
            failure.payload = Payload::File(file);
        }
        match self.ledger.record(&failure, told_by, at).await? {
            Recorded::Now => {
                let Failure { id, source, error, .. } = &failure;
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
