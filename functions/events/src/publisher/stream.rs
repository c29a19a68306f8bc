//! The outlet that keeps the order: the Kinesis stream of all events.
//!
//! The partition key is the entity's key in the log, so the events of an entity are in one shard. `PutRecords` keeps no
//! order within a call. An event is sent only after the response for the entity's previous event. The order relies on
//! Kinesis giving the later call the larger sequence number. AWS promises that only for `PutRecord` with
//! `SequenceNumberForOrdering`. That needs a call for each event, and the sequence number of the previous event. If
//! another execution environment put that event, its sequence number is not known here. The step `events-order` of
//! `tools/prove-on-aws.sh` tests on AWS that later calls get larger numbers.

use aws_sdk_kinesis::{
    Client,
    config::{Builder, retry::RetryConfig},
    error::ProvideErrorMetadata,
    primitives::Blob,
    types::{PutRecordsRequestEntry, PutRecordsResultEntry},
};
use futures_util::future::join_all;
use lambda::Aws;

use super::outlet::{Entry, Outlet, PutResult, Side};

/// The stream of all events.
#[derive(Debug)]
pub struct EventStream {
    /// The Kinesis client. Its own retries must be disabled, because the publisher retries per record.
    pub client: Client,
    /// The name of the stream.
    pub name: String,
}

impl EventStream {
    /// Creates the outlet of the stream with this name.
    #[must_use]
    pub fn new(aws: &Aws, name: String) -> Self {
        let config = Builder::from(aws.config()).retry_config(RetryConfig::disabled()).build();
        Self { client: Client::from_conf(config), name }
    }
}

impl Outlet for EventStream {
    const SIDE: Side = Side::Stream;
    /// The limit of `PutRecords`.
    const MAX_ENTRIES: usize = 500;
    /// Below the limit of `PutRecords`, 5 MiB.
    const MAX_CALL_BYTES: usize = 4 * 1024 * 1024;

    fn bytes(entry: &Entry<'_>) -> usize {
        entry.detail.len() + entry.row.entity.len()
    }

    async fn put(&self, entries: &[&Entry<'_>]) -> Vec<PutResult> {
        let records = entries.iter().map(|entry| {
            PutRecordsRequestEntry::builder()
                .data(Blob::new(entry.detail.as_bytes()))
                .partition_key(&entry.row.entity)
                .build()
        });
        let records = match records.collect::<Result<Vec<_>, _>>() {
            Ok(records) => records,
            Err(error) => return vec![PutResult::Retry(error.to_string()); entries.len()],
        };
        let call = self.client.put_records().stream_name(&self.name).set_records(Some(records));
        match call.send().await {
            // Kinesis returns one result per record, in the same order.
            Ok(response) => response.records().iter().map(record_result).collect(),
            // One record of the call is invalid, for instance too large. Kinesis does not say which one, so each
            // record is sent alone.
            Err(error) if error.code().is_some_and(is_invalid) => {
                if let [_] = entries {
                    return vec![PutResult::Refused(fault::describe(&error))];
                }
                let single_calls =
                    entries.iter().map(|entry| Box::pin(self.put(std::slice::from_ref(entry))));
                join_all(single_calls).await.concat()
            }
            Err(error) => vec![PutResult::Retry(fault::describe(&error)); entries.len()],
        }
    }
}

fn record_result(record: &PutRecordsResultEntry) -> PutResult {
    match record.error_code() {
        // ProvisionedThroughputExceededException or InternalFailure.
        Some(code) => {
            PutResult::Retry(format!("{code}: {}", record.error_message().unwrap_or_default()))
        }
        None => PutResult::Accepted,
    }
}

/// Returns whether the code says that a record of the call is invalid. Other errors affect the whole stream.
fn is_invalid(code: &str) -> bool {
    ["ValidationException", "InvalidArgumentException"].contains(&code)
}
