//! Prices, quotas and assumptions, which are maintained by hand.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};

/// An item of AWS's bill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Item {
    /// An hour of an on-demand stream.
    StreamHour,
    /// A gigabyte into an on-demand stream. Each record is rounded up to a kilobyte.
    StreamInGigabyte,
    /// A gigabyte out of an on-demand stream, for each consumer.
    StreamOutGigabyte,
    /// An hour of a provisioned shard.
    ShardHour,
    /// A PUT payload unit of provisioned shards: each started 25 kilobytes of a record.
    PutPayloadUnit,
    /// A write unit of DynamoDB, on demand.
    WriteUnit,
    /// A read unit of DynamoDB, on demand.
    ReadUnit,
    /// A gigabyte of DynamoDB storage, per month.
    StoredGigabyte,
    /// A gigabyte of point-in-time recovery, per month.
    RecoverableGigabyte,
    /// A request of Lambda.
    Request,
    /// A gigabyte-second of Lambda on arm64.
    GigabyteSecond,
    /// A state transition of a Standard workflow.
    Transition,
    /// An event that is put on an event bus.
    Event,
    /// A request of SQS.
    QueueRequest,
    /// A request of a REST API.
    ApiRequest,
    /// A gigabyte that is ingested into CloudWatch Logs.
    LogGigabyte,
    /// A trace that X-Ray records.
    Trace,
    /// A gigabyte out of an on-demand stream by enhanced fan-out, for each consumer.
    FanOutGigabyte,
    /// An hour of a consumer with enhanced fan-out, for each provisioned shard.
    ConsumerShardHour,
    /// A gigabyte out of provisioned shards by enhanced fan-out, for each consumer.
    ConsumerShardGigabyte,
    /// A gigabyte into streams in the mode On-demand Advantage.
    AdvantageInGigabyte,
    /// A gigabyte out of streams in the mode On-demand Advantage, for each consumer.
    AdvantageOutGigabyte,
}

impl Item {
    /// All items.
    pub const ALL: [Self; 22] = [
        Self::StreamHour,
        Self::StreamInGigabyte,
        Self::StreamOutGigabyte,
        Self::ShardHour,
        Self::PutPayloadUnit,
        Self::WriteUnit,
        Self::ReadUnit,
        Self::StoredGigabyte,
        Self::RecoverableGigabyte,
        Self::Request,
        Self::GigabyteSecond,
        Self::Transition,
        Self::Event,
        Self::QueueRequest,
        Self::ApiRequest,
        Self::LogGigabyte,
        Self::Trace,
        Self::FanOutGigabyte,
        Self::ConsumerShardHour,
        Self::ConsumerShardGigabyte,
        Self::AdvantageInGigabyte,
        Self::AdvantageOutGigabyte,
    ];
}

/// An amount of each item.
pub type Amounts = BTreeMap<Item, f64>;

/// The price of an item, without free tiers and volume discounts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Price {
    /// The price of `per` units, in USD.
    pub usd: f64,
    /// The number of units.
    pub per: f64,
    /// The unit.
    pub unit: String,
    /// The region.
    pub region: String,
    /// The date of the price.
    pub as_of: String,
    /// AWS's page, and how the price was read.
    pub source: String,
}

/// The price list.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Prices(BTreeMap<Item, Price>);

impl Prices {
    /// Returns the price of an item.
    ///
    /// # Panics
    /// Never: a price list that was read has all items.
    #[must_use]
    pub fn price(&self, item: Item) -> &Price {
        &self.0[&item]
    }

    /// Returns the cost of these amounts in USD.
    #[must_use]
    pub fn cost_of(&self, amounts: &Amounts) -> f64 {
        amounts.iter().map(|(item, amount)| self.cost_of_item(*item, *amount)).sum()
    }

    /// Returns the cost of an amount of one item in USD.
    #[must_use]
    pub fn cost_of_item(&self, item: Item, amount: f64) -> f64 {
        let Price { usd, per, .. } = self.price(item);
        usd * amount / per
    }
}

/// A quota of AWS, or a limit of the stack itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// Bytes per second into an on-demand stream.
    StreamBytes,
    /// Bytes per second into a new on-demand stream.
    NewStreamBytes,
    /// The maximum size of a record in bytes, in accept-readings.
    RecordBytes,
    /// Concurrent executions of all functions of an account.
    Concurrency,
    /// Write units per second of an on-demand table.
    TableWrites,
    /// Write units per second of a new on-demand table.
    NewTableWrites,
    /// Requests per second to `POST /readings`.
    PostReadings,
    /// Requests per second to all APIs of an account.
    ApiRequests,
    /// Calls per second that start a saga, of all operators together.
    PostSites,
    /// Calls of `PutEvents` per second.
    PutEvents,
    /// Invocations of EventBridge's targets per second.
    TargetInvocations,
    /// Calls of `StartExecution` per second.
    StartExecutions,
    /// Calls of `DescribeExecution` per second.
    DescribeExecutions,
    /// State transitions of Standard workflows per second.
    Transitions,
    /// Requests per second to `POST /events`.
    PostEvents,
    /// Write units per second of the events table.
    EventsTableWrites,
    /// Write units per second of a new events table.
    NewEventsTableWrites,
    /// Write units per second of the index keys of one event type.
    TypeWrites,
    /// Bytes per second into a new events stream on demand.
    NewEventStreamBytes,
}

/// A quota with its default.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quota {
    /// The name.
    pub name: String,
    /// The default.
    pub value: f64,
    /// The unit.
    pub unit: String,
    /// Whether AWS raises it on request.
    pub adjustable: bool,
    /// What to do if the quota is reached.
    pub raise: String,
    /// The date of the value.
    pub as_of: String,
    /// The page that documents it.
    pub source: String,
}

/// The quotas, by what they limit.
pub type Quotas = BTreeMap<Limit, Quota>;

/// Assumptions: values that no test counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assumptions {
    /// The description of the file.
    pub comment: String,
    /// The duration of a call to DynamoDB or another AWS service, in milliseconds.
    pub aws_millis: f64,
    /// The duration of a call to the payment provider, in milliseconds.
    pub provider_millis: f64,
    /// The size of Lambda's own log lines of an invocation (start and report), in bytes.
    pub platform_log_bytes: f64,
    /// The bytes that CloudWatch adds to each log line.
    pub log_line_bytes: f64,
    /// The number of log lines of an invocation, including Lambda's.
    pub log_lines: f64,
    /// The size of a line of the API's access log, in bytes.
    pub access_log_bytes: f64,
    /// The number of a function's invocations per second that are always traced.
    pub traces_certain: f64,
    /// The fraction of the other invocations that is traced.
    pub traces_part: f64,
    /// The number of SQS requests per message: send, receive, delete.
    pub queue_requests: f64,
    /// The number of polls of a shard per second.
    pub polls: f64,
    /// The minimum number of shards of an on-demand stream.
    pub least_shards: f64,
    /// The bytes per second that a shard accepts.
    pub shard_bytes: f64,
    /// The records per second that a shard accepts.
    pub shard_records: f64,
    /// The maximum size of a Lambda event, in bytes.
    pub largest_event: f64,
    /// The size of a record in the event without its base64 data, in bytes.
    pub record_envelope: f64,
    /// The time after the end of a bundle's period within which all loggers have sent their bundles, in seconds.
    pub burst_seconds: f64,
    /// The event source mappings of the stream, as in the template.
    pub mappings: Mappings,
    /// The memory of the functions in MB, as in the template.
    pub memory: BTreeMap<String, f64>,
    /// The number of bundles that store-readings processes concurrently.
    pub side_by_side: f64,
    /// The number of series of a bundle that store-readings writes concurrently.
    pub puts_at_once: f64,
    /// The write units of a Powertools idempotency record, for its start and completion.
    pub peer_record_units: f64,
    /// The number of DynamoDB calls for the idempotency record.
    pub peer_record_calls: f64,
    /// The number of items that the Python peer writes with one call.
    pub peer_items_a_call: f64,
    /// The events that other systems append, and their consumers.
    pub events: EventAssumptions,
}

/// Assumptions about events that other systems append, and about their consumers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventAssumptions {
    /// The description of the values.
    pub comment: String,
    /// The size of an event on the stream, with its key.
    pub record_bytes: f64,
    /// The stored size of an event's rows and index entries.
    pub stored_bytes: f64,
    /// The write units of an event, from the append to the mark of the publisher.
    pub write_units: f64,
    /// The part of the write units in the events table itself, without its indexes.
    pub table_write_units: f64,
    /// The read units of an event.
    pub read_units: f64,
    /// The number of events that the publisher sends with one call.
    pub events_per_call: f64,
    /// The highest rate, as a multiple of the mean.
    pub peak: f64,
    /// The measured function that stands for append-event.
    pub appended_like: String,
    /// The measured function that stands for a consumer.
    pub consumed_like: String,
    /// The maximum number of records in a batch of a consumer of the stream.
    pub consumer_batch: f64,
    /// The number of messages in a batch of a consumer with a queue.
    pub queue_batch: f64,
    /// The maximum number of reads of a shard per second, by all consumers with shared throughput together.
    pub shared_reads: f64,
    /// The maximum number of consumers with enhanced fan-out.
    pub fan_out_consumers: f64,
    /// The same in the mode On-demand Advantage.
    pub advantage_consumers: f64,
    /// The bytes per second, in and out, that the mode On-demand Advantage charges at least.
    pub advantage_bytes: f64,
}

/// The event source mappings of the stream's functions.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    /// The mapping of store-readings.
    pub store_readings: Mapping,
    /// The mapping of detect-breaches.
    pub detect_breaches: Mapping,
}

/// An event source mapping.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// The maximum number of records in a batch.
    pub batch_size: f64,
    /// The number of concurrent batches per shard.
    pub parallelization_factor: f64,
}

/// Reads and parses a JSON file.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// Reads the price list. Fails if an item has no price.
pub fn prices(file: &Path) -> Result<Prices> {
    let prices: Prices = read(file)?;
    for item in Item::ALL {
        ensure!(prices.0.contains_key(&item), "{}: no price of {item:?}", file.display());
    }
    Ok(prices)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Prices for easy arithmetic.
    pub(crate) fn round_prices() -> Prices {
        let price = |usd, per| Price {
            usd,
            per,
            unit: String::new(),
            region: String::new(),
            as_of: String::new(),
            source: String::new(),
        };
        Prices(Item::ALL.into_iter().map(|item| (item, price(1.0, 1e6))).collect())
    }

    #[test]
    fn an_amount_costs_its_part_of_the_price() {
        let mut prices = round_prices();
        let units = prices.0.get_mut(&Item::WriteUnit).expect("every item has a price");
        (units.usd, units.per) = (0.75, 1e6);
        let amounts = Amounts::from([(Item::WriteUnit, 4e6), (Item::Request, 2e6)]);
        assert!(
            (prices.cost_of(&amounts) - 5.0).abs() < 1e-9,
            "3 for the units, 2 for the requests"
        );
    }
}
