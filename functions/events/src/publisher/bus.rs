//! The outlet without an order: the EventBridge bus. It delivers events in any order, so they are sent at once.

use aws_sdk_eventbridge::{
    Client,
    config::{Builder, retry::RetryConfig},
    error::ProvideErrorMetadata,
    types::{PutEventsRequestEntry, PutEventsResultEntry},
};
use futures_util::future::join_all;
use lambda::Aws;

use super::outlet::{Entry, Outlet, PutResult, Side};

/// The event bus.
#[derive(Debug)]
pub struct Bus {
    /// The EventBridge client. Its own retries must be disabled, because the publisher retries per entry.
    pub client: Client,
    /// The name of the bus.
    pub name: String,
}

impl Bus {
    /// Creates the outlet of the bus with this name.
    #[must_use]
    pub fn new(aws: &Aws, name: String) -> Self {
        let config = Builder::from(aws.config()).retry_config(RetryConfig::disabled()).build();
        Self { client: Client::from_conf(config), name }
    }
}

impl Outlet for Bus {
    const SIDE: Side = Side::Bus;
    /// The limit of `PutEvents`.
    const MAX_ENTRIES: usize = 10;
    /// Below the limit of `PutEvents`, 256 KiB.
    const MAX_CALL_BYTES: usize = 240 * 1024;

    fn bytes(entry: &Entry<'_>) -> usize {
        entry.detail.len() + entry.detail_type.len() + entry.row.source.len()
    }

    async fn put(&self, entries: &[&Entry<'_>]) -> Vec<PutResult> {
        let request = |entry: &&Entry| {
            PutEventsRequestEntry::builder()
                .event_bus_name(&self.name)
                .source(&entry.row.source)
                .detail_type(entry.detail_type.as_ref())
                .detail(entry.detail.as_ref())
                .build()
        };
        let requests = entries.iter().map(request).collect();
        match self.client.put_events().set_entries(Some(requests)).send().await {
            // EventBridge returns one result per entry, in the same order.
            Ok(response) => response.entries().iter().map(entry_result).collect(),
            // One entry of the call is invalid, for instance too large. EventBridge does not say which one, so
            // each entry is sent alone.
            Err(error) if error.code() == Some("ValidationException") => {
                if let [_] = entries {
                    let reason = error.message().unwrap_or("invalid entry");
                    return vec![PutResult::Refused(format!("ValidationException: {reason}"))];
                }
                let single_calls =
                    entries.iter().map(|entry| Box::pin(self.put(std::slice::from_ref(entry))));
                join_all(single_calls).await.concat()
            }
            Err(error) => vec![PutResult::Retry(fault::describe(&error)); entries.len()],
        }
    }
}

fn entry_result(entry: &PutEventsResultEntry) -> PutResult {
    let Some(code) = entry.error_code() else { return PutResult::Accepted };
    let reason = format!("{code}: {}", entry.error_message().unwrap_or_default());
    match code {
        "MalformedDetail"
        | "InvalidArgument"
        | "RedactionFailure"
        | "NotAuthorizedForSourceException"
        | "NotAuthorizedForDetailTypeException" => PutResult::Refused(reason),
        // A wrong role or account affects all events. They are published once it is corrected.
        _ => PutResult::Retry(reason),
    }
}
