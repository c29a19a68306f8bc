//! A model of Lambda's event source mapping for Kinesis. It delivers a stream's records to a function, in order per
//! partition key, at least once.
//!
//! Each rule is documented next to the code that implements it. What AWS does not specify depends on the seed. The
//! local stack delivers by the same rules (`tools/local/stream_mappings.py`). Both pass the cases in
//! `tests/mapping_cases.json`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt::Display,
    panic::AssertUnwindSafe,
    rc::Rc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::Timestamp;
use futures_util::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use lambda::Deadline;
use serde::Serialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    consuming::until_poll,
    rng::{Rng, mix},
    sample::noon,
};

const STREAM_ARN: &str = "arn:aws:kinesis:eu-central-1:111122223333:stream/readings";
const TABLE_ARN: &str =
    "arn:aws:dynamodb:eu-central-1:111122223333:table/events/stream/2026-01-01T00:00:00.000";
/// The part of the function's time that is reserved for the response, as in production.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);
const FUNCTION_ARN: &str = "arn:aws:lambda:eu-central-1:111122223333:function:consumer:live";

/// A record of the stream.
#[derive(Clone, Debug)]
pub struct Record {
    /// Determines the shard. Records with the same key are in order.
    pub partition_key: String,
    /// Increases within a shard, and from a shard to its children.
    pub sequence_number: String,
    /// The data that was put.
    pub data: Vec<u8>,
    /// When it was put, as time since the stream's beginning.
    pub put_at: Duration,
    shard: usize,
}

impl Record {
    /// Returns the record in the format of Lambda's event.
    #[must_use]
    pub fn event(&self) -> Value {
        json!({
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": self.partition_key,
                "sequenceNumber": self.sequence_number,
                "data": STANDARD.encode(&self.data),
                "approximateArrivalTimestamp": seconds(self.put_at),
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": format!("{}:{}", shard_id(self.shard), self.sequence_number),
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": "arn:aws:iam::111122223333:role/consumer",
            "awsRegion": "eu-central-1",
            "eventSourceARN": STREAM_ARN,
        })
    }

    /// Returns the record in the format of Lambda's event for a DynamoDB stream. The data must be the JSON of `Keys`
    /// and `NewImage` (see [`Stream::insert`]).
    #[must_use]
    pub fn table_event(&self) -> Value {
        let mut change: Value = serde_json::from_slice(&self.data).unwrap_or_default();
        change["ApproximateCreationDateTime"] = seconds(self.put_at).into();
        change["SequenceNumber"] = self.sequence_number.as_str().into();
        change["SizeBytes"] = self.data.len().into();
        change["StreamViewType"] = "NEW_IMAGE".into();
        json!({
            "eventID": self.sequence_number,
            "eventName": "INSERT",
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-central-1",
            "dynamodb": change,
            "eventSourceARN": TABLE_ARN,
        })
    }
}

/// Returns the timestamp of this time after the stream's beginning, which is at noon.
fn instant(after: Duration) -> Timestamp {
    noon(0).plus_millis(i64::try_from(after.as_millis()).unwrap_or(i64::MAX))
}

/// Returns the timestamp of this time after the stream's beginning, in seconds since the epoch.
fn seconds(after: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for some 200,000 years")]
    let millis = instant(after).millis() as f64;
    millis / 1000.0
}

fn shard_id(shard: usize) -> String {
    format!("shardId-{shard:012}")
}

/// Returns a batch in the format of Lambda's event.
#[must_use]
pub fn event(records: &[Rc<Record>]) -> Value {
    json!({ "Records": records.iter().map(|record| record.event()).collect::<Vec<_>>() })
}

/// Returns a batch in the format of Lambda's event for a DynamoDB stream (see [`Record::table_event`]).
#[must_use]
pub fn table_event(records: &[Rc<Record>]) -> Value {
    json!({ "Records": records.iter().map(|record| record.table_event()).collect::<Vec<_>>() })
}

/// Invokes a function that handles a batch within this time, less what is reserved for the response. Returns its response,
/// or its error as text. A panic is an error.
///
/// # Errors
/// If the function fails.
///
/// # Panics
/// Never: each batch and each response can be written as JSON.
pub async fn invoke<R: Serialize, E: Display>(
    batch: Value,
    time: Duration,
    handle: impl AsyncFnOnce(&RawValue, Deadline) -> Result<R, E>,
) -> Result<Value, String> {
    let payload = to_raw_value(&batch).expect("JSON");
    let deadline = Deadline::after(time.saturating_sub(RESPONSE_MARGIN));
    match AssertUnwindSafe(handle(&payload, deadline)).catch_unwind().await {
        Ok(Ok(response)) => Ok(json!(response)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the function panicked".to_owned()),
    }
}

/// A stream, with everything that was put on it.
#[derive(Clone, Debug)]
pub struct Stream {
    rng: Rng,
    shards: Vec<Shard>,
    sequence: u128,
}

#[derive(Clone, Debug)]
struct Shard {
    /// The lowest and the highest hash of the partition keys that the shard takes.
    hashes: (u64, u64),
    parents: Vec<usize>,
    open: bool,
    records: Vec<Rc<Record>>,
}

impl Stream {
    /// Creates an empty stream with one shard.
    #[must_use]
    pub fn new(mut rng: Rng) -> Self {
        let shard =
            Shard { hashes: (0, u64::MAX), parents: Vec::new(), open: true, records: Vec::new() };
        let sequence = 1_490_256_608_559_692_538_361_571_095_921_u128;
        let sequence = sequence + u128::from(rng.below(1 << 40));
        Self { rng, shards: vec![shard], sequence }
    }

    /// Puts a record. The hash of its key determines the shard (MD5 on AWS; any hash will do here).
    ///
    /// # Panics
    /// Never: the open shards cover every hash.
    pub fn put(&mut self, partition_key: &str, data: Vec<u8>, put_at: Duration) -> Rc<Record> {
        let hash = hash(partition_key);
        let takes = |shard: &Shard| shard.open && (shard.hashes.0..=shard.hashes.1).contains(&hash);
        let shard = self.shards.iter().position(takes).expect("a shard for every hash");
        // Sequence numbers increase, with gaps.
        self.sequence += 1 + u128::from(self.rng.below(1 << 50));
        let record = Rc::new(Record {
            partition_key: partition_key.to_owned(),
            sequence_number: format!("49590338{:048}", self.sequence),
            data,
            put_at,
            shard,
        });
        self.shards[shard].records.push(Rc::clone(&record));
        record
    }

    /// Puts the records of a transaction's inserts on the stream of a DynamoDB table.
    ///
    /// `items` are the keys of the inserted items and the JSON of the changes. DynamoDB keeps only the order per item,
    /// so the records come in any order, possibly in different shards.
    pub fn insert(&mut self, mut items: Vec<(String, Value)>, put_at: Duration) {
        while !items.is_empty() {
            let index = self.rng.index(items.len());
            let (key, change) = items.swap_remove(index);
            self.put(&key, change.to_string().into_bytes(), put_at);
        }
    }

    /// Splits an open shard in two, or merges two neighbours into one. The parents accept no more records, their
    /// children do.
    pub fn reshard(&mut self) {
        let mut open: Vec<_> = (0..self.shards.len()).filter(|&n| self.shards[n].open).collect();
        open.sort_unstable_by_key(|&n| self.shards[n].hashes);
        let first = self.rng.index(open.len());
        let (low, high) = self.shards[open[first]].hashes;
        let (parents, children) = match open.get(first + 1) {
            Some(&second) if self.rng.percent(50) => {
                (vec![open[first], second], vec![(low, self.shards[second].hashes.1)])
            }
            _ => {
                let middle = low + (high - low) / 2;
                (vec![open[first]], vec![(low, middle), (middle + 1, high)])
            }
        };
        for &parent in &parents {
            self.shards[parent].open = false;
        }
        for hashes in children {
            let parents = parents.clone();
            self.shards.push(Shard { hashes, parents, open: true, records: Vec::new() });
        }
    }

    /// Returns the number of all shards, closed ones included.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }
}

fn hash(partition_key: &str) -> u64 {
    partition_key.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// The settings of the mapping, and the function's timeout.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `BatchSize`.
    pub batch_size: usize,
    /// Whether a batch contains all available records, as after a long `MaximumBatchingWindowInSeconds`. Otherwise
    /// its size is random.
    pub full_batches: bool,
    /// `ParallelizationFactor`.
    pub parallelization_factor: u64,
    /// `BisectBatchOnFunctionError`.
    pub bisects: bool,
    /// `MaximumRetryAttempts`.
    pub max_retries: u32,
    /// `MaximumRecordAgeInSeconds`.
    pub max_age: Duration,
    /// The function's `Timeout`.
    pub timeout: Duration,
}

/// The percentages of deliveries in which Lambda itself fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultRates {
    /// The environment crashes during an invocation.
    pub crash: u64,
    /// The function succeeds, but Lambda does not get its response.
    pub lost_response: u64,
    /// The poller is replaced during an invocation and reads again from the checkpoint. The old invocation continues.
    pub replaced_poller: u64,
    /// The poller is replaced between two batches. Records after the checkpoint are delivered again.
    pub repeat: u64,
}

/// An event of a run, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MappingEvent {
    /// A batch was delivered.
    Delivered,
    /// The whole batch was processed.
    Done,
    /// The response named a record after the batch's first one. The records before it are done.
    Progressed,
    /// The response named the batch's first record.
    Stuck,
    /// The function failed, or its response counts as a failure.
    Failed,
    /// The function's timeout expired before it responded.
    TimedOut,
    /// The function's environment crashed during the invocation.
    Crashed,
    /// The response was lost.
    ResponseLost,
    /// The poller was replaced during the invocation.
    PollerReplaced,
    /// Processed records were delivered again.
    Repeated,
    /// A batch was split in half.
    Halved,
    /// Records went to the failure destination: the retries were exhausted.
    Exhausted,
    /// Records went to the failure destination: they were too old.
    Expired,
    /// An environment was started.
    ColdStart,
}

/// A Lambda function.
pub trait Function: 'static {
    /// The state that is kept between invocations.
    type Environment: 'static;

    /// Starts an environment.
    fn start(&self) -> Self::Environment;

    /// Invokes the function with these records (see [`event`]) and this timeout.
    fn invoke(
        &self,
        environment: Rc<Self::Environment>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>>;

    /// Called when Lambda has written this file with these records to the failure destination.
    fn gave_up(&self, records: &[Rc<Record>], file: Value);
}

/// The event source mapping of a stream to a function.
#[derive(Debug)]
pub struct Mapping<F: Function> {
    settings: Settings,
    fault_rates: FaultRates,
    rng: RefCell<Rng>,
    function: F,
    idle: Rc<RefCell<Vec<Rc<F::Environment>>>>,
    event_counts: RefCell<BTreeMap<MappingEvent, u32>>,
    start: Instant,
}

/// Records that are delivered together: a range of the poller's records.
#[derive(Clone, Copy, Debug)]
struct Batch {
    from: usize,
    to: usize,
    /// The number of failures that count as attempts. A split does not reset it.
    failures: u32,
}

/// The fault of Lambda itself that an invocation meets.
#[derive(Clone, Copy, Debug)]
enum PlannedFault {
    None,
    /// The environment crashes after the function's future was polled this many times.
    Crashes(u64),
    LosesResponse,
    /// The poller is replaced after this time.
    LosesPoller(Duration),
}

enum InvocationEnd {
    Responded(Value),
    Failed,
    PollerReplaced,
}

enum BatchResult {
    Done,
    /// The batch is delivered again from this index on.
    From(usize),
    Failed,
}

impl<F: Function> Mapping<F> {
    /// Creates a mapping. Its time begins now.
    pub fn new(settings: Settings, fault_rates: FaultRates, rng: Rng, function: F) -> Self {
        Self {
            settings,
            fault_rates,
            rng: RefCell::new(rng),
            function,
            idle: Rc::default(),
            event_counts: RefCell::default(),
            start: Instant::now(),
        }
    }

    /// Returns the events that occurred.
    #[must_use]
    pub fn event_counts(&self) -> BTreeMap<MappingEvent, u32> {
        self.event_counts.borrow().clone()
    }

    /// Returns the function.
    #[must_use]
    pub fn function(&self) -> &F {
        &self.function
    }

    /// Delivers the stream until all records are processed or given up.
    pub async fn run(&self, stream: &Stream) {
        let mut waiting: Vec<_> = (0..stream.shards.len()).collect();
        let mut drained = vec![false; stream.shards.len()];
        let mut running = FuturesUnordered::new();
        loop {
            // A shard is read only after its parents were read to the end, so order holds across resharding.
            waiting.retain(|&shard| {
                let ready = stream.shards[shard].parents.iter().all(|&parent| drained[parent]);
                if ready {
                    let records = &stream.shards[shard].records;
                    running.push(async move {
                        self.shard(records).await;
                        shard
                    });
                }
                !ready
            });
            match running.next().await {
                Some(shard) => drained[shard] = true,
                None => return,
            }
        }
    }

    /// Delivers the records of a shard. `ParallelizationFactor` pollers deliver batches concurrently. All records of a
    /// partition key have the same poller.
    async fn shard(&self, records: &[Rc<Record>]) {
        let factor = self.settings.parallelization_factor;
        let pollers = (0..factor).map(|poller| {
            let of_poller = |record: &&Rc<Record>| hash(&record.partition_key) % factor == poller;
            self.poll(records.iter().filter(of_poller).cloned().collect())
        });
        pollers.collect::<FuturesUnordered<_>>().collect::<()>().await;
    }

    async fn poll(&self, records: Vec<Rc<Record>>) {
        let mut next = 0;
        // All records before the checkpoint are done, and Lambda has recorded that.
        let mut checkpoint = 0;
        // Failed batches come before new ones.
        let mut failed: VecDeque<Batch> = VecDeque::new();
        loop {
            let mut batch = match failed.pop_front() {
                Some(batch) => batch,
                None => match self.gather(&records, next).await {
                    Some(batch) => batch,
                    None => return,
                },
            };
            next = next.max(batch.to);
            // MaximumRecordAgeInSeconds: older records are not sent, or not sent again.
            let age = |record: &Record| self.start.elapsed().saturating_sub(record.put_at);
            let of_batch = &records[batch.from..batch.to];
            let old = of_batch.iter().take_while(|it| age(it) > self.settings.max_age).count();
            if old > 0 {
                self.count(MappingEvent::Expired);
                self.give_up(&of_batch[..old], "RecordAgeExceeded", batch.failures);
                batch.from += old;
                if batch.from < batch.to {
                    failed.push_front(batch);
                }
                continue;
            }

            let batch_result = match self.deliver(of_batch).await {
                InvocationEnd::Responded(response) => batch_result(of_batch, &response),
                InvocationEnd::Failed => BatchResult::Failed,
                InvocationEnd::PollerReplaced => {
                    failed.clear();
                    next = checkpoint;
                    continue;
                }
            };
            let size = batch.to - batch.from;
            match batch_result {
                BatchResult::Done => {
                    self.count(MappingEvent::Done);
                    if self.occurs(50) {
                        checkpoint = batch.to;
                    }
                    // At-least-once delivery: a new poller continues from the checkpoint.
                    if checkpoint < batch.to && self.occurs(self.fault_rates.repeat) {
                        self.count(MappingEvent::Repeated);
                        failed.clear();
                        next = checkpoint;
                    }
                    continue;
                }
                // ReportBatchItemFailures: the records before the lowest number in the response are done, and the
                // rest is delivered again. With BisectBatchOnFunctionError, Lambda splits the batch there.
                BatchResult::From(index) if index > 0 => {
                    self.count(MappingEvent::Progressed);
                    batch.from += index;
                    // A split does not count as a retry. Without bisecting, AWS does not document whether the
                    // delivery of the rest counts as a retry.
                    if !self.settings.bisects && self.occurs(50) {
                        batch.failures += 1;
                    }
                }
                // BisectBatchOnFunctionError: a failed batch is split in two. That does not count as a retry.
                BatchResult::Failed if self.settings.bisects && size > 1 => {
                    self.count(MappingEvent::Halved);
                    let middle = batch.from + size / 2;
                    failed.push_front(Batch { from: middle, ..batch });
                    batch.to = middle;
                }
                BatchResult::From(_) => {
                    self.count(MappingEvent::Stuck);
                    batch.failures += 1;
                }
                BatchResult::Failed => batch.failures += 1,
            }
            // MaximumRetryAttempts: after these, the batch goes to the OnFailure destination, and the shard moves on.
            if batch.failures > self.settings.max_retries {
                self.count(MappingEvent::Exhausted);
                let of_batch = &records[batch.from..batch.to];
                self.give_up(of_batch, "RetryAttemptsExhausted", batch.failures);
                continue;
            }
            let pause = 200 << batch.failures.min(6);
            failed.push_front(batch);
            let pause = self.rng.borrow_mut().below(pause);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Waits until a new record is available, and returns a batch of available records, at most `BatchSize`. Returns
    /// `None` if all records were delivered.
    async fn gather(&self, records: &[Rc<Record>], next: usize) -> Option<Batch> {
        let first = records.get(next)?;
        sleep_until(self.start + first.put_at).await;
        let now = self.start.elapsed();
        let available = records[next..].iter().take_while(|record| record.put_at <= now).count();
        let max = available.min(self.settings.batch_size);
        let min = if self.settings.full_batches { max } else { 1 };
        let size = self.rng.borrow_mut().in_range(min, max);
        Some(Batch { from: next, to: next + size, failures: 0 })
    }

    async fn deliver(&self, records: &[Rc<Record>]) -> InvocationEnd {
        self.count(MappingEvent::Delivered);
        // An environment runs one invocation at a time.
        let environment = self.idle.borrow_mut().pop().unwrap_or_else(|| {
            self.count(MappingEvent::ColdStart);
            Rc::new(self.function.start())
        });
        let time = self.settings.timeout;
        let work = self.function.invoke(Rc::clone(&environment), records.to_vec(), time);
        let planned_fault = self.planned_fault();
        let polls = if let PlannedFault::Crashes(polls) = planned_fault { polls } else { u64::MAX };
        let mut working = spawn_local(until_poll(work, polls));
        let time_limit = if let PlannedFault::LosesPoller(after) = planned_fault {
            after.min(time)
        } else {
            time
        };
        let Ok(ended) = timeout(time_limit, &mut working).await else {
            if matches!(planned_fault, PlannedFault::LosesPoller(_)) {
                self.count(MappingEvent::PollerReplaced);
                return InvocationEnd::PollerReplaced;
            }
            // The environment is shut down, and its work with it.
            working.abort();
            self.count(MappingEvent::TimedOut);
            return InvocationEnd::Failed;
        };
        let Some(response) = ended.unwrap_or_else(|_| Some(Err("panicked".to_owned()))) else {
            self.count(MappingEvent::Crashed);
            return InvocationEnd::Failed;
        };
        // The environment waits for the next invocation, even if this one failed.
        self.idle.borrow_mut().push(environment);
        match (response, planned_fault) {
            (Ok(_), PlannedFault::LosesResponse) => {
                self.count(MappingEvent::ResponseLost);
                InvocationEnd::Failed
            }
            (Ok(response), _) => InvocationEnd::Responded(response),
            (Err(_), _) => {
                self.count(MappingEvent::Failed);
                InvocationEnd::Failed
            }
        }
    }

    fn planned_fault(&self) -> PlannedFault {
        let FaultRates { crash, lost_response, replaced_poller, .. } = self.fault_rates;
        let rng = &mut *self.rng.borrow_mut();
        let percent = rng.below(100);
        if percent < crash {
            PlannedFault::Crashes(1 + rng.below(12))
        } else if percent < crash + lost_response {
            PlannedFault::LosesResponse
        } else if percent < crash + lost_response + replaced_poller {
            PlannedFault::LosesPoller(Duration::from_millis(rng.below(500)))
        } else {
            PlannedFault::None
        }
    }

    /// Writes to the `OnFailure` destination: S3 gets the invocation record, which contains the whole event.
    fn give_up(&self, records: &[Rc<Record>], condition: &str, attempts: u32) {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return };
        let file = json!({
            "requestContext": {
                "requestId": "c9b8fa9f-5a7f-xmpl-af9c-0c604cde93a5",
                "functionArn": FUNCTION_ARN,
                "condition": condition,
                "approximateInvokeCount": attempts,
            },
            "responseContext": {
                "statusCode": 200,
                "executedVersion": "1",
                "functionError": "Unhandled",
            },
            "version": "1.0",
            "timestamp": instant(self.start.elapsed()),
            "KinesisBatchInfo": {
                "shardId": shard_id(first.shard),
                "startSequenceNumber": first.sequence_number,
                "endSequenceNumber": last.sequence_number,
                "approximateArrivalOfFirstRecord": instant(first.put_at),
                "approximateArrivalOfLastRecord": instant(last.put_at),
                "batchSize": records.len(),
                "streamArn": STREAM_ARN,
            },
            "payload": event(records).to_string(),
        });
        self.function.gave_up(records, file);
    }

    fn occurs(&self, percent: u64) -> bool {
        self.rng.borrow_mut().percent(percent)
    }

    fn count(&self, event: MappingEvent) {
        *self.event_counts.borrow_mut().entry(event).or_default() += 1;
    }
}

/// Interprets the response to a batch.
fn batch_result(records: &[Rc<Record>], response: &Value) -> BatchResult {
    // These responses mean that all records are done: none, an empty one, no list, or an empty list.
    let failures = match response {
        Value::Null => return BatchResult::Done,
        Value::Object(members) if members.is_empty() => return BatchResult::Done,
        _ => &response["batchItemFailures"],
    };
    let failures = match failures {
        Value::Null => return BatchResult::Done,
        Value::Array(failures) => failures,
        _ => return BatchResult::Failed,
    };
    let mut lowest = records.len();
    for failure in failures {
        // If an identifier is empty, null, under another name, or of no record of the batch, all records failed.
        let number = failure["itemIdentifier"].as_str().unwrap_or_default();
        let index = records.iter().position(|record| record.sequence_number == number);
        let Some(index) = index else { return BatchResult::Failed };
        lowest = lowest.min(index);
    }
    if lowest == records.len() { BatchResult::Done } else { BatchResult::From(lowest) }
}
