//! Prices, quotas, and what is assumed: files that a human keeps.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};

/// What AWS charges for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Item {
    /// A stream on demand, an hour.
    StreamHour,
    /// Into it, by begun kilobytes of each record.
    StreamInGigabyte,
    /// Out of it, once for each consumer.
    StreamOutGigabyte,
    /// A provisioned shard, an hour.
    ShardHour,
    /// Into provisioned shards: 25 begun kilobytes of a record.
    PutPayloadUnit,
    /// Of DynamoDB, on demand.
    WriteUnit,
    /// Of DynamoDB, on demand.
    ReadUnit,
    /// In DynamoDB, for a month.
    StoredGigabyte,
    /// Point-in-time recovery, for a month.
    RecoverableGigabyte,
    /// Of Lambda.
    Request,
    /// Of Lambda, on arm64.
    GigabyteSecond,
    /// Of a Standard workflow.
    Transition,
    /// Put on an event bus.
    Event,
    /// Of SQS.
    QueueRequest,
    /// Of a REST API.
    ApiRequest,
    /// Taken into CloudWatch Logs.
    LogGigabyte,
    /// Recorded by X-Ray.
    Trace,
}

impl Item {
    /// All of them.
    pub const ALL: [Self; 17] = [
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
    ];
}

/// How much of each.
pub type Amounts = BTreeMap<Item, f64>;

/// What an item costs. Free tiers and discounts by volume are left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Price {
    /// For so many.
    pub usd: f64,
    /// So many.
    pub per: f64,
    /// Of what.
    pub unit: String,
    /// Where it is the price.
    pub region: String,
    /// When it was.
    pub as_of: String,
    /// Where AWS tells it, and how it was read.
    pub source: String,
}

/// The price list.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Prices(BTreeMap<Item, Price>);

impl Prices {
    /// What one item costs.
    ///
    /// # Panics
    /// Never: a list that was read has all of them.
    #[must_use]
    pub fn price(&self, item: Item) -> &Price {
        &self.0[&item]
    }

    /// What so much costs, in USD.
    #[must_use]
    pub fn of(&self, amounts: &Amounts) -> f64 {
        amounts.iter().map(|(item, amount)| self.one(*item, *amount)).sum()
    }

    /// What so much of one item costs, in USD.
    #[must_use]
    pub fn one(&self, item: Item, amount: f64) -> f64 {
        let Price { usd, per, .. } = self.price(item);
        usd * amount / per
    }
}

/// What AWS, or the stack itself, allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// Bytes a second into a stream on demand.
    StreamBytes,
    /// The same, when the stream is new.
    NewStreamBytes,
    /// Bytes of a record, as accept-readings takes it.
    RecordBytes,
    /// Of all functions of an account.
    Concurrency,
    /// Write units a second of a table on demand.
    TableWrites,
    /// The same, when the table is new.
    NewTableWrites,
    /// Requests a second to `POST /readings`.
    PostReadings,
    /// Requests a second to all APIs of an account.
    ApiRequests,
    /// Requests a second to `POST /sites`.
    PostSites,
    /// Calls of `PutEvents` a second.
    PutEvents,
    /// Of targets, a second.
    TargetInvocations,
    /// `StartExecution` a second.
    StartExecutions,
    /// `DescribeExecution` a second.
    DescribeExecutions,
    /// Of Standard workflows, a second.
    Transitions,
}

/// A limit as it is by default.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quota {
    /// In words.
    pub name: String,
    /// The default.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// Whether AWS raises it on request.
    pub adjustable: bool,
    /// What to do where it binds.
    pub raise: String,
    /// When it was so.
    pub as_of: String,
    /// Where it is told.
    pub source: String,
}

/// The quotas, by what they limit.
pub type Quotas = BTreeMap<Limit, Quota>;

/// What no run counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assumptions {
    /// What this file is.
    pub comment: String,
    /// A call to DynamoDB, or another service of AWS, in milliseconds.
    pub aws_millis: f64,
    /// A call to the payment provider, in milliseconds.
    pub provider_millis: f64,
    /// What Lambda logs of an invocation itself, in bytes: its start and its report.
    pub platform_log_bytes: f64,
    /// Added by CloudWatch to each line, in bytes.
    pub log_line_bytes: f64,
    /// Lines of an invocation, Lambda's included.
    pub log_lines: f64,
    /// A line of the API's access log, in bytes.
    pub access_log_bytes: f64,
    /// Invocations a second of a function that are traced in any case.
    pub traces_certain: f64,
    /// The part of the others that is traced.
    pub traces_part: f64,
    /// Requests to a queue for a message: sent, received, deleted.
    pub queue_requests: f64,
    /// Lambda asks a shard for records so often a second.
    pub polls: f64,
    /// A stream on demand has so many shards at least.
    pub least_shards: f64,
    /// Bytes a second, and records a second, that a shard takes.
    pub shard_bytes: f64,
    /// See there.
    pub shard_records: f64,
    /// The largest event that Lambda hands to a function, in bytes.
    pub largest_event: f64,
    /// Of a record in it, beside its data in base64.
    pub record_envelope: f64,
    /// Loggers send within so many seconds after a bundle's end.
    pub burst_seconds: f64,
    /// The functions of the stream as the template has them.
    pub mappings: Mappings,
    /// Memory of the functions, in MB, as the template has them.
    pub memory: BTreeMap<String, f64>,
    /// Bundles, and series of a bundle, that store-readings works on side by side.
    pub side_by_side: f64,
    /// See there.
    pub puts_at_once: f64,
    /// Write units that an idempotency record of Powertools takes: begun, completed.
    pub peer_record_units: f64,
    /// Calls for that.
    pub peer_record_calls: f64,
    /// Items of a call that Python puts together.
    pub peer_items_a_call: f64,
}

/// How Lambda hands the stream to its functions.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mappings {
    /// store-readings.
    pub store_readings: Mapping,
    /// detect-breaches.
    pub detect_breaches: Mapping,
}

/// An event source mapping.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// The most records of a batch.
    pub batch_size: f64,
    /// Batches of a shard at once.
    pub parallelization_factor: f64,
}

/// A file of this crate's folder, or another one.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// The price list, which must have all that is charged for.
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

    /// Prices that are easily multiplied.
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
        let units = prices.0.get_mut(&Item::WriteUnit).expect("a price");
        (units.usd, units.per) = (0.75, 1e6);
        let amounts = Amounts::from([(Item::WriteUnit, 4e6), (Item::Request, 2e6)]);
        assert!((prices.of(&amounts) - 5.0).abs() < 1e-9, "3 for the units, 2 for the requests");
    }
}
