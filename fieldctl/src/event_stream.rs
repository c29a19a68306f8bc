//! Reads the stream of all events, from now on or from a recent time.
//!
//! Kinesis allows five reads a second of each shard, for all readers together. So each shard is read at most once a
//! second, and less often while Kinesis refuses reads.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    time::Duration,
};

use aws_config::retry::RetryConfig;
use aws_sdk_kinesis::{
    Client,
    operation::get_records::{GetRecordsError, GetRecordsOutput},
    primitives::DateTime,
    types::{Shard, ShardIteratorType},
};
use contracts::{EventId, Timestamp, names, open::OpenEnvelope};
use fault::AwsErrorKind;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    error::{CliError, aws},
    output,
    stack::Stack,
};

/// The interval at which each shard is read.
pub const READ_INTERVAL: Duration = Duration::from_secs(1);
/// The longest pause after refused reads of a shard.
const MAX_PAUSE: Duration = Duration::from_secs(16);
/// The number of consecutive reads of a shard that may fail. The next failure is an error.
const MAX_FAILURES: u32 = 6;
/// The number of events that are remembered to recognize repeats.
const REMEMBERED: usize = 10_000;

/// A record of the stream: an event.
#[derive(Clone, Debug)]
pub struct StreamedEvent {
    /// The event.
    pub envelope: OpenEnvelope,
    /// The event as it is in the record.
    pub detail: Value,
    /// When the stream got the record.
    pub arrived: Option<Timestamp>,
}

/// The position in a shard.
#[derive(Debug)]
struct Position {
    /// The iterator of the next read. `None`: it has to be requested.
    iterator: Option<String>,
    /// The last record that was read.
    sequence: Option<String>,
    /// Where reading began.
    start: Start,
    /// Whether the last read reached the newest record of the shard.
    at_end: bool,
    /// The number of failed reads since the last one that succeeded.
    failures: u32,
    /// When the next read may be made.
    next_read: Instant,
}

/// Where reading of a shard begins.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Behind the newest record.
    Latest,
    /// At the first record that arrived at or after this time.
    Since(Timestamp),
    /// At the first record. Shards that result from a split or a merge are read from there.
    First,
}

impl Position {
    fn new(start: Start) -> Self {
        let next_read = Instant::now();
        Self { iterator: None, sequence: None, start, at_end: false, failures: 0, next_read }
    }
}

/// A reader of the stream of all events.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    /// A client that does not retry. A read that failed is made again in a later round.
    reader: Client,
    stream: String,
    shards: BTreeMap<String, Position>,
    /// Shards that were read to their end.
    finished: BTreeSet<String>,
    seen: Seen,
}

/// The events that were read last.
#[derive(Debug, Default)]
struct Seen {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Seen {
    /// Adds an event. Returns whether it is new.
    fn add(&mut self, id: EventId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

impl EventStream {
    /// Opens the stream. Reading begins at `start` in each shard that is open.
    pub async fn open(stack: &Stack, start: Start) -> Result<Self, CliError> {
        let config = stack.config().to_builder().retry_config(RetryConfig::disabled()).build();
        let mut stream = Self {
            client: Client::new(stack.config()),
            reader: Client::new(&config),
            stream: stack.named(names::EVENTS),
            shards: BTreeMap::new(),
            finished: BTreeSet::new(),
            seen: Seen::default(),
        };
        for shard in list_shards(&stream.client, &stream.stream).await? {
            if is_open(&shard) {
                stream.shards.insert(shard.shard_id, Position::new(start));
            }
        }
        stream.request_iterators().await?;
        Ok(stream)
    }

    /// Reads each shard once, except a shard that still pauses after a failed read. Returns the new events, in the
    /// order of each shard. An event that repeats one of the last `REMEMBERED` events is left out.
    pub async fn read(&mut self) -> Result<Vec<StreamedEvent>, CliError> {
        self.request_iterators().await?;
        let now = Instant::now();
        let due = self.shards.iter().filter(|(_, it)| it.next_read <= now);
        let reads = due.filter_map(|(shard, it)| {
            let read = self.reader.get_records().shard_iterator(it.iterator.clone()?);
            Some(async move { (shard.clone(), read.send().await) })
        });
        let results = join_all(reads).await;
        let (mut events, mut closed) = (Vec::new(), false);
        for (shard, result) in results {
            let Some(position) = self.shards.get_mut(&shard) else { continue };
            match result {
                Ok(output) => {
                    position.failures = 0;
                    position.at_end = output.millis_behind_latest() == Some(0);
                    position.iterator = output.next_shard_iterator().map(str::to_owned);
                    if let Some(last) = output.records().last() {
                        position.sequence = Some(last.sequence_number().to_owned());
                    }
                    if position.iterator.is_none() {
                        self.shards.remove(&shard);
                        self.finished.insert(shard);
                        closed = true;
                    }
                    let read = decode(&output);
                    events.extend(
                        read.into_iter().filter(|it| self.seen.add(it.envelope.metadata.event_id)),
                    );
                }
                Err(error)
                    if error
                        .as_service_error()
                        .is_some_and(GetRecordsError::is_expired_iterator_exception) =>
                {
                    position.iterator = None;
                }
                Err(error) => {
                    position.failures += 1;
                    let is_transient = matches!(
                        AwsErrorKind::classify(&error),
                        AwsErrorKind::Busy | AwsErrorKind::NoResponse
                    );
                    if !is_transient || position.failures > MAX_FAILURES {
                        return Err(aws("the stream of events can't be read")(error));
                    }
                    position.next_read = now + pause(position.failures);
                }
            }
        }
        if closed {
            self.add_children().await?;
        }
        Ok(events)
    }

    /// Adds the shards that succeed finished ones. A shard that succeeds two shards is added when both are finished, so
    /// that the events of an entity stay in order.
    async fn add_children(&mut self) -> Result<(), CliError> {
        for shard in list_shards(&self.client, &self.stream).await? {
            let parents = [shard.parent_shard_id(), shard.adjacent_parent_shard_id()];
            let mut parents = parents.into_iter().flatten();
            let succeeds = parents.clone().any(|parent| self.finished.contains(parent));
            let is_known = self.shards.contains_key(&shard.shard_id)
                || self.finished.contains(&shard.shard_id);
            if succeeds && !is_known && !parents.any(|parent| self.shards.contains_key(parent)) {
                self.shards.insert(shard.shard_id.clone(), Position::new(Start::First));
            }
        }
        Ok(())
    }

    /// Requests the iterators that are missing or have expired.
    async fn request_iterators(&mut self) -> Result<(), CliError> {
        for (shard, position) in self.shards.iter_mut().filter(|(_, it)| it.iterator.is_none()) {
            let call = self.client.get_shard_iterator().stream_name(&self.stream).shard_id(shard);
            let call = match (&position.sequence, position.start) {
                (Some(sequence), _) => call
                    .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                    .starting_sequence_number(sequence),
                (None, Start::First) => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
                (None, Start::Latest) => call.shard_iterator_type(ShardIteratorType::Latest),
                (None, Start::Since(since)) => call
                    .shard_iterator_type(ShardIteratorType::AtTimestamp)
                    .timestamp(DateTime::from_millis(since.millis())),
            };
            let requested = Timestamp::now();
            let response = call.send().await;
            let response = response.map_err(aws("the stream of events can't be read"))?;
            position.iterator = response.shard_iterator().map(str::to_owned);
            // If this iterator expires before there is a record, the next iterator must not skip records.
            if matches!(position.start, Start::Latest) {
                position.start = Start::Since(requested);
            }
        }
        Ok(())
    }

    /// Returns whether the last read of each shard reached the newest record of that shard.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.shards.values().all(|it| it.at_end)
    }
}

/// Returns whether a shard can still get records.
fn is_open(shard: &Shard) -> bool {
    let range = shard.sequence_number_range();
    range.is_none_or(|range| range.ending_sequence_number().is_none())
}

/// Returns the pause after this number of failed reads in a row.
fn pause(failures: u32) -> Duration {
    (READ_INTERVAL * 2_u32.saturating_pow(failures)).min(MAX_PAUSE)
}

async fn list_shards(client: &Client, stream: &str) -> Result<Vec<Shard>, CliError> {
    let (mut shards, mut next) = (Vec::new(), None);
    loop {
        // Kinesis refuses a call with both the name and a token.
        let call = client.list_shards();
        let call = match next {
            None => call.stream_name(stream),
            token => call.set_next_token(token),
        };
        let page = call.send().await.map_err(aws("the stream of events can't be read"))?;
        shards.extend(page.shards.unwrap_or_default());
        next = page.next_token;
        if next.is_none() {
            return Ok(shards);
        }
    }
}

/// Returns the events in the response. A record that is not an event is left out, with a notice.
fn decode(output: &GetRecordsOutput) -> Vec<StreamedEvent> {
    let mut events = Vec::new();
    for record in output.records() {
        let parse = || {
            let detail: Value = serde_json::from_slice(record.data().as_ref())?;
            Ok((serde_json::from_value(detail.clone())?, detail))
        };
        let arrived = record.approximate_arrival_timestamp();
        let arrived = arrived.and_then(|at| at.to_millis().ok()).map(Timestamp::from_millis);
        match parse() {
            Ok((envelope, detail)) => events.push(StreamedEvent { envelope, detail, arrived }),
            Err::<_, serde_json::Error>(error) => output::print_notice(&format!(
                "record {} of the stream is not an event: {error}",
                record.sequence_number()
            )),
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_new_once_and_old_events_are_forgotten() {
        let id = |n: usize| EventId::from_log_key("site#1", u64::try_from(n).unwrap());
        let mut seen = Seen::default();
        assert!((0..=REMEMBERED).all(|n| seen.add(id(n))));
        assert!(!seen.add(id(1)) && !seen.add(id(REMEMBERED)));
        assert!(seen.add(id(0)), "only the last {REMEMBERED} events are remembered");
        assert_eq!((seen.ids.len(), seen.order.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn a_shard_that_refuses_reads_is_read_less_often() {
        let pauses: Vec<_> = (1..=6).map(|failures| pause(failures).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 16, 16]);
    }
}
