//! Batches of the stream of a DynamoDB table.

use std::collections::HashSet;

use aws_lambda_events::event::streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse};
use fault::{InvocationError, decode};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::count_failed;

/// A batch with `ReportBatchItemFailures`. Its records are not parsed, so that an invalid one does not affect the others.
#[derive(Debug, Deserialize)]
pub struct TableBatch<'a> {
    /// The records, the oldest first.
    #[serde(rename = "Records", borrow)]
    pub records: Vec<&'a RawValue>,
}

/// The part of a record that is needed even if the rest is invalid.
#[derive(Deserialize)]
struct RecordPosition {
    dynamodb: Change,
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "SequenceNumber")]
    sequence_number: String,
}

impl<'a> TableBatch<'a> {
    /// Parses a batch.
    ///
    /// # Errors
    /// Fails if the payload is not a batch.
    pub fn parse(payload: &'a RawValue) -> Result<Self, InvocationError> {
        Ok(decode(payload.get())?)
    }

    /// Counts the failed records, given by their indexes. Returns the response, which names the first one. Lambda
    /// delivers the batch again from there.
    ///
    /// # Errors
    /// Fails if the first failed record has no sequence number. Lambda then delivers the whole batch again.
    pub fn response(
        &self,
        failed: impl IntoIterator<Item = usize>,
    ) -> Result<DynamoDbEventResponse, InvocationError> {
        let failed: HashSet<usize> = failed.into_iter().collect();
        count_failed(failed.len());
        let mut response = DynamoDbEventResponse::default();
        let first = failed.iter().min().and_then(|first| self.records.get(*first));
        if let Some(first) = first {
            let position: RecordPosition = decode(first.get())?;
            let mut failure = DynamoDbBatchItemFailure::default();
            failure.item_identifier = Some(position.dynamodb.sequence_number);
            response.batch_item_failures.push(failure);
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: &str = r#"{"Records": [
        {"dynamodb": {"SequenceNumber": "7"}},
        {"dynamodb": {"SequenceNumber": "8"}, "eventName": 5},
        {"dynamodb": {}}
    ]}"#;

    /// Returns the identifiers in the response, or the message of the error.
    fn identifiers(failed: &[usize]) -> Result<Vec<Option<String>>, String> {
        let payload: &RawValue = serde_json::from_str(BATCH).expect("JSON");
        let batch = TableBatch::parse(payload).expect("a batch");
        let response = batch.response(failed.iter().copied()).map_err(|error| error.message)?;
        Ok(response.batch_item_failures.into_iter().map(|it| it.item_identifier).collect())
    }

    #[test]
    fn the_response_names_the_first_failed_record() {
        assert_eq!(identifiers(&[]), Ok(vec![]));
        assert_eq!(identifiers(&[2, 1, 1]), Ok(vec![Some("8".to_owned())]), "also an invalid one");
        assert_eq!(identifiers(&[1, 0]), Ok(vec![Some("7".to_owned())]));
    }

    #[test]
    fn a_failed_record_without_a_sequence_number_fails_the_batch() {
        let error = identifiers(&[2]).expect_err("no number");
        assert!(error.contains("SequenceNumber"), "{error}");
    }
}
