//! Makes rows of what the failure queues and buckets hold.
//!
//! A message is done when the row, and the payload's file before it, are there; until then it comes
//! again. What told of a failure is in its row, so that telling it twice changes nothing.

use std::{collections::HashMap, str::FromStr};

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::Timestamp;
use futures_util::{StreamExt, TryStreamExt, stream};
use lambda::ConfigError;

use crate::{
    FailuresError, LONGEST_PAYLOAD, PayloadFile,
    files::Files,
    ledger::{Ledger, Recorded},
    reading::{self, Failure, Notification, Payload},
};

/// A file may hold a stream's whole batch.
const ROWS_AT_ONCE: usize = 8;

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
    /// Records what a message tells of.
    pub async fn handle(&self, message: &SqsMessage, now: Timestamp) -> Result<(), FailuresError> {
        let told_by = message.message_id.as_deref().unwrap_or_default();
        let body = message.body.as_deref().unwrap_or_default();
        let at = sent(message).unwrap_or(now);
        let queue = message.event_source_arn.as_deref().unwrap_or_default();
        if let Some(source) = self.sources.of(queue) {
            return self.record(reading::message(source, message), told_by, at).await;
        }
        match reading::notification(body) {
            Notification::Files(files) => {
                for file in &files {
                    self.file(file, at).await?;
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

    /// A row a record. A file is written once, so its key tells a record, however many messages
    /// tell of the file.
    async fn file(&self, file: &PayloadFile, at: Timestamp) -> Result<(), FailuresError> {
        let source = self.sources.of(&file.bucket).unwrap_or(&file.bucket);
        let failures = match self.files.get(file).await? {
            Some(content) => reading::file(source, file, &content),
            None => vec![reading::unreadable_file(source, file, "is gone")],
        };
        let rows = failures.into_iter().enumerate().map(|(index, failure)| async move {
            self.record(failure, &format!("{}#{index}", file.key), at).await
        });
        stream::iter(rows).buffer_unordered(ROWS_AT_ONCE).try_collect().await
    }

    /// The payload's file first: a row never tells of a file that is not there.
    async fn record(
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

/// When a message was sent to its first queue.
fn sent(message: &SqsMessage) -> Option<Timestamp> {
    message.attributes.get("SentTimestamp")?.parse().ok().map(Timestamp::from_millis)
}
