//! Publishes events to the bus, in order per entity.
//!
//! An event is settled when it is published or refused. Invariant: an event is put on the bus only after all earlier
//! events of its entity are settled. DynamoDB Streams preserve the order per item only, and each event is an item,
//! so a later event may be delivered first. In that case the earlier events are read from the table and published
//! before it. When their own records arrive, the events are already marked.
//!
//! An event may be put on the bus more than once: the mark may fail, or a second publisher may run at the same time.
//! The first occurrences are still in order, since each publisher puts an event on the bus only after it has
//! published the predecessor itself or has read its mark.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_eventbridge::{
    Client,
    error::ProvideErrorMetadata,
    types::{PutEventsRequestEntry, PutEventsResultEntry},
};
use contracts::Timestamp;
use fault::ErrorKind;
use futures_util::{StreamExt, TryStreamExt, future::join_all, stream};
use lambda::Deadline;
use quarantine::{Quarantine, Reason};
use serde_json::{json, value::RawValue};
use store::{Commit, EventRow, Item, Key, StoreError, Table, Transaction};
use tokio::time::{Instant, sleep, timeout};

/// The maximum number of entries per `PutEvents` call.
const MAX_ENTRIES: usize = 10;
/// The maximum size of all entries of a call. It is below the limit of `PutEvents`, 256 KiB.
const MAX_CALL_BYTES: usize = 240 * 1024;
/// The maximum number of attempts to send an entry that EventBridge can't accept now.
const MAX_ATTEMPTS: u32 = 4;
/// The number of rows in the first page when earlier events are read. Most gaps are short. The size of later pages is
/// left to DynamoDB.
const FIRST_GAP_PAGE: i32 = 25;
/// The maximum number of earlier events that one run publishes before an event. If there are more, the oldest are
/// published, and the event must be delivered again.
const MAX_GAP: usize = 100;
/// The number of entities whose earlier events are read concurrently.
const CONCURRENT_GAPS: usize = 8;
/// The maximum length of the reason in a refused row, in characters.
const MAX_REASON_CHARS: usize = 1_000;

/// The error name in the quarantine for a row that is not an event.
const INVALID_EVENT: &str = "InvalidInput";
/// The error name in the quarantine for an event that EventBridge refuses permanently.
const EVENT_REFUSED: &str = "EventRefused";

/// Publishes events of the events table.
#[derive(Debug)]
pub struct Publisher {
    /// The events table.
    pub events: Table,
    /// The EventBridge client.
    pub bus: Client,
    /// The name of the bus.
    pub bus_name: String,
    /// The quarantine for events that can never be published.
    pub quarantine: Quarantine,
}

/// The key of an event in the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventKey {
    /// The entity, `type#id`.
    pub entity: String,
    /// The sequence number as DynamoDB writes it. It is text, because the row may be invalid.
    pub sequence: String,
}

impl EventKey {
    /// Reads the key from an item. Returns `None` if the item has no such key.
    pub(crate) fn from_item(item: &Item) -> Option<Self> {
        Some(Self {
            entity: item.get("entity")?.as_s().ok()?.clone(),
            sequence: item.get("sequence")?.as_n().ok()?.clone(),
        })
    }

    fn key(&self) -> Key {
        Key::numbered(("entity", &self.entity), ("sequence", &self.sequence))
    }

    fn number(&self) -> Option<u64> {
        self.sequence.parse().ok()
    }

    /// Returns the key of the entity's previous event, and `None` for the first event.
    fn predecessor(&self) -> Option<Self> {
        let sequence = self.number()?.checked_sub(1).filter(|&number| number > 0)?;
        Some(Self { entity: self.entity.clone(), sequence: sequence.to_string() })
    }
}

impl From<&EventRow> for EventKey {
    fn from(row: &EventRow) -> Self {
        Self { entity: row.entity.clone(), sequence: row.sequence.to_string() }
    }
}

/// An event to publish.
#[derive(Debug)]
pub struct PublishRequest<'r> {
    /// The key of the event.
    pub key: EventKey,
    /// The stream record of the event, if any. An event with a record is published even if it was refused before, which
    /// makes replays possible.
    pub record: Option<StreamRecord<'r>>,
}

/// A record of the events table's stream.
#[derive(Debug)]
pub struct StreamRecord<'r> {
    /// The record as it was delivered.
    pub json: &'r RawValue,
    /// The new row in the record. It is used only if the table no longer has the row.
    pub image: Item,
    /// Whether an operator replays the record. A replayed record is not quarantined again: the caller gets the reason.
    pub replay: bool,
}

/// An event that could not be published in this run. It stays marked as unpublished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The key of the event.
    pub event: EventKey,
    /// The stable name of the error.
    pub error: &'static str,
    /// The reason.
    pub reason: String,
}

impl Unpublished {
    /// Returns an event that another run may publish.
    pub(crate) fn for_now(event: EventKey, reason: impl Into<String>) -> Self {
        Self { event, error: ErrorKind::Transient.name(), reason: reason.into() }
    }
}

/// An event in a lane.
struct PendingEvent<'r> {
    key: EventKey,
    /// The event, or the reason why the row is not an event.
    event: Result<EventRow, String>,
    item: Item,
    record: Option<&'r RawValue>,
    /// Whether an operator replays it.
    replay: bool,
    /// Whether the caller requested it. Other events are earlier events that were read from the table.
    is_requested: bool,
}

impl<'r> PendingEvent<'r> {
    fn new(key: EventKey, item: Item, record: Option<&'r RawValue>, is_requested: bool) -> Self {
        let row = serde_dynamo::from_item::<_, EventRow>(item.clone());
        let event = match row {
            Ok(row) => match row.envelope() {
                Ok(_) => Ok(row),
                Err(error) => Err(format!("detail is not a valid event: {error}")),
            },
            Err(error) => Err(format!("the row is not a valid event: {error}")),
        };
        Self { key, event, item, record, replay: false, is_requested }
    }

    /// Returns the size of the entry as `PutEvents` counts it.
    fn bytes(&self) -> usize {
        let row_bytes = |row: &EventRow| row.detail.len() + row.kind.len() + row.source.len();
        self.event.as_ref().map_or(0, row_bytes)
    }
}

/// The events of one entity that are to be published, the oldest first.
struct Lane<'r> {
    pending: VecDeque<PendingEvent<'r>>,
    /// The number of attempts to send the first event.
    attempts: u32,
    /// The earliest time to send the first event.
    ready_at: Instant,
}

impl Publisher {
    /// Publishes and marks the requested events that are not marked as published.
    ///
    /// The events of one entity are sent in order, one per call, so that no event overtakes one that failed. Events of
    /// different entities share calls. An event that can never be published is put into the quarantine and marked as
    /// refused, and its successors are published.
    ///
    /// Returns the requested events that were not published.
    ///
    /// # Errors
    /// Fails if the rows can't be read. Nothing was published then.
    pub async fn publish(
        &self,
        requests: Vec<PublishRequest<'_>>,
        deadline: Deadline,
    ) -> Result<Vec<Unpublished>, StoreError> {
        let keys: Vec<EventKey> = requests.iter().map(|request| request.key.clone()).collect();
        let Ok(read) = timeout(deadline.remaining(), self.lanes(requests)).await else {
            let timed_out = |event| Unpublished::for_now(event, "the deadline passed");
            return Ok(keys.into_iter().map(timed_out).collect());
        };
        let (mut lanes, mut unpublished) = read?;
        while !lanes.is_empty() {
            if deadline.passed() {
                for lane in lanes.drain(..) {
                    give_up(&lane, "the deadline passed", &mut unpublished);
                }
                break;
            }
            let round = take_round(&mut lanes);
            if round.is_empty() {
                let next = lanes.iter().map(|lane| lane.ready_at).min();
                let pause = next.map_or(Duration::ZERO, |at| at - Instant::now());
                sleep(pause.min(deadline.remaining())).await;
                continue;
            }
            // A hanging bus must not use up the time that the response needs.
            let first_events: Vec<_> = round.iter().map(|lane| &lane.pending[0]).collect();
            let Ok(results) = timeout(deadline.remaining(), self.put(&first_events)).await else {
                lanes.extend(round);
                continue;
            };
            let settled =
                first_events.iter().zip(results).map(|(event, result)| self.settle(event, result));
            let Ok(outcomes) = timeout(deadline.remaining(), join_all(settled)).await else {
                tracing::error!("the deadline passed before all published events were marked");
                lanes.extend(round);
                continue;
            };
            for (mut lane, outcome) in round.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Settled => {
                        lane.pending.pop_front();
                        lane.attempts = 0;
                    }
                    Outcome::Refused(error, reason) => {
                        if let Some(refused) = lane.pending.pop_front() {
                            unpublished.push(Unpublished { event: refused.key, error, reason });
                        }
                        lane.attempts = 0;
                    }
                    Outcome::Retry(reason) => {
                        lane.attempts += 1;
                        if lane.attempts == MAX_ATTEMPTS {
                            give_up(&lane, &reason, &mut unpublished);
                            continue;
                        }
                        lane.ready_at = Instant::now() + pause(lane.attempts);
                    }
                    Outcome::Failed(reason) => {
                        give_up(&lane, &reason, &mut unpublished);
                        continue;
                    }
                }
                if !lane.pending.is_empty() {
                    lanes.push_back(lane);
                }
            }
        }
        Ok(unpublished)
    }

    /// Reads the current rows of the requested events and of their predecessors. Returns a lane for each entity that
    /// has events to publish. Also returns the requested events that must wait for another run.
    async fn lanes<'r>(
        &self,
        requests: Vec<PublishRequest<'r>>,
    ) -> Result<(VecDeque<Lane<'r>>, Vec<Unpublished>), StoreError> {
        let mut records = HashMap::new();
        let mut order = Vec::new();
        for PublishRequest { key, record } in requests {
            if records.insert(key.clone(), record).is_none() {
                order.push(key);
            }
        }
        let not_requested = |key: &EventKey| !records.contains_key(key);
        let predecessors = order.iter().filter_map(EventKey::predecessor).filter(not_requested);
        let rows = self.read(order.iter().cloned().chain(predecessors).collect()).await?;

        let mut pending: Vec<PendingEvent> = Vec::new();
        for key in &order {
            let record = records[key].as_ref();
            let image = record.map(|record| &record.image);
            let Some(item) = rows.get(key).or(image) else { continue };
            let is_settled = is_published(item) || record.is_none() && is_refused(item);
            if !is_settled {
                let json = record.map(|record| record.json);
                let replay = record.is_some_and(|record| record.replay);
                let event = PendingEvent::new(key.clone(), item.clone(), json, true);
                pending.push(PendingEvent { replay, ..event });
            }
        }
        let follows_gap = |key: &EventKey| {
            let Some(predecessor) = key.predecessor().filter(not_requested) else { return false };
            !rows.get(&predecessor).is_some_and(|row| is_published(row) || is_refused(row))
        };
        let after_gaps: Vec<EventKey> =
            pending.iter().map(|it| &it.key).filter(|key| follows_gap(key)).cloned().collect();
        let gaps: Vec<Gap> = stream::iter(after_gaps)
            .map(|key| self.gap(key, |key| records.contains_key(key)))
            .buffer_unordered(CONCURRENT_GAPS)
            .try_collect()
            .await?;
        let mut unpublished = Vec::new();
        for Gap { before, earlier, truncated } in gaps {
            if truncated {
                let must_wait = |it: &PendingEvent| {
                    it.key.entity == before.entity && it.key.number() >= before.number()
                };
                for waiting in pending.extract_if(.., |it| must_wait(it)) {
                    let reason = format!("more than {MAX_GAP} earlier events are published first");
                    unpublished.push(Unpublished::for_now(waiting.key, reason));
                }
            }
            pending.extend(earlier.into_iter().filter_map(|item| {
                Some(PendingEvent::new(EventKey::from_item(&item)?, item, None, false))
            }));
        }
        Ok((into_lanes(pending), unpublished))
    }

    /// Reads the unsettled events before an event, back to one that is published or that the caller requested.
    async fn gap(
        &self,
        before: EventKey,
        is_requested: impl Fn(&EventKey) -> bool,
    ) -> Result<Gap, StoreError> {
        let mut gap = Gap { before, earlier: VecDeque::new(), truncated: false };
        let query = self
            .events
            .query("entity = :entity AND #sequence < :before")
            .text("entity", &gap.before.entity)
            .number("before", &gap.before.sequence)
            .descending(true)
            .consistent();
        let mut page = query.clone().limit(FIRST_GAP_PAGE).page(None).await?;
        loop {
            for item in page.items {
                let requested = EventKey::from_item(&item).is_some_and(|key| is_requested(&key));
                if requested || is_published(&item) {
                    return Ok(gap);
                }
                if is_refused(&item) {
                    continue;
                }
                gap.earlier.push_front(item);
                if gap.earlier.len() > MAX_GAP {
                    gap.earlier.pop_back();
                    gap.truncated = true;
                }
            }
            match page.next {
                Some(start) => page = query.page(Some(start)).await?,
                None => return Ok(gap),
            }
        }
    }

    /// Reads the current rows. The result has no entry for a row that does not exist.
    async fn read(&self, keys: Vec<EventKey>) -> Result<HashMap<EventKey, Item>, StoreError> {
        let rows =
            self.events.batch_get(keys.iter().map(EventKey::key)).consistent().send().await?;
        let with_key = |item| Some((EventKey::from_item(&item)?, item));
        Ok(rows.into_iter().filter_map(with_key).collect())
    }

    /// Sends the events in one call. Returns a result for each.
    async fn put(&self, first_events: &[&PendingEvent<'_>]) -> Vec<EntryResult> {
        let rows: Vec<&EventRow> =
            first_events.iter().filter_map(|event| event.event.as_ref().ok()).collect();
        let mut results = self.put_rows(&rows).await.into_iter();
        let mut result = |event: &&PendingEvent| match &event.event {
            Ok(_) => results
                .next()
                .unwrap_or_else(|| EntryResult::Retry("EventBridge returned no result".to_owned())),
            Err(reason) => EntryResult::Rejected(INVALID_EVENT, reason.clone()),
        };
        first_events.iter().map(&mut result).collect()
    }

    async fn put_rows(&self, rows: &[&EventRow]) -> Vec<EntryResult> {
        if rows.is_empty() {
            return Vec::new();
        }
        let entry = |row: &&EventRow| {
            PutEventsRequestEntry::builder()
                .event_bus_name(&self.bus_name)
                .source(&row.source)
                .detail_type(&row.kind)
                .detail(&row.detail)
                .build()
        };
        let entries = rows.iter().map(entry).collect();
        match self.bus.put_events().set_entries(Some(entries)).send().await {
            // EventBridge returns one result per entry, in the same order.
            Ok(response) => {
                let mut results: Vec<_> =
                    response.entries().iter().map(EntryResult::from_entry).collect();
                let missing = || {
                    EntryResult::Retry("EventBridge returned no result for the entry".to_owned())
                };
                results.resize_with(rows.len(), missing);
                results
            }
            // One entry of the call is invalid, for instance too large. EventBridge does not say which one, so
            // each entry is sent alone.
            Err(error) if error.code() == Some("ValidationException") => {
                if let [_] = rows {
                    let reason = error.message().unwrap_or("invalid entry");
                    return vec![EntryResult::Rejected(
                        EVENT_REFUSED,
                        format!("ValidationException: {reason}"),
                    )];
                }
                let single_calls =
                    rows.iter().map(|row| Box::pin(self.put_rows(std::slice::from_ref(row))));
                join_all(single_calls).await.concat()
            }
            Err(error) => {
                vec![EntryResult::Retry(fault::describe(&error)); rows.len()]
            }
        }
    }

    /// Marks an event that EventBridge accepted, and quarantines an event that was refused permanently.
    async fn settle(&self, event: &PendingEvent<'_>, result: EntryResult) -> Outcome {
        match result {
            EntryResult::Accepted => {
                self.mark_published(&event.key).await;
                Outcome::Settled
            }
            EntryResult::Retry(reason) => Outcome::Retry(reason),
            EntryResult::Rejected(error, reason) => {
                match self.quarantine_event(event, error, &reason).await {
                    Ok(()) if event.replay => Outcome::Refused(error, reason),
                    Ok(()) => Outcome::Settled,
                    Err(reason) => Outcome::Failed(reason),
                }
            }
        }
    }

    /// Marks a row as published.
    ///
    /// If the mark fails, the event stays in the index `unpublished` and is published a second time. For its
    /// successors it counts as published.
    async fn mark_published(&self, key: &EventKey) {
        let now = AttributeValue::S(Timestamp::now().to_string());
        let mark = Transaction::on(&self.events).update(
            &self.events,
            &key.key(),
            "SET #publishedAt = :publishedAt REMOVE unpublished, refused",
            Some("attribute_exists(entity)"),
            [("publishedAt", now)],
        );
        let error = match mark.commit().await {
            Ok(Commit::Done) => {
                metrics::counter!("EventsPublished").increment(1);
                return;
            }
            Ok(Commit::Refused(_)) => "the row does not exist".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            entity = key.entity,
            sequence = key.sequence,
            error,
            "the event is published but not marked"
        );
    }

    /// Puts an event into the quarantine, then marks its row as refused. A refused row is not in the index
    /// `unpublished`.
    ///
    /// A replay of the quarantined record publishes the event. If the replay is refused again, no second message is
    /// sent: the failure is still open, and a message would count it twice.
    async fn quarantine_event(
        &self,
        event: &PendingEvent<'_>,
        error: &str,
        reason: &str,
    ) -> Result<(), String> {
        let why = Reason::new(error, reason);
        match event.record {
            _ if event.replay => {}
            Some(record) => self.quarantine.put(&record, why).await?,
            None => self.quarantine.put(&self.as_record(&event.item), why).await?,
        }
        let refusal: String = format!("{error}: {reason}").chars().take(MAX_REASON_CHARS).collect();
        let mark = Transaction::on(&self.events).update(
            &self.events,
            &event.key.key(),
            "SET #refused = :refused REMOVE unpublished",
            Some("attribute_exists(entity) AND attribute_not_exists(publishedAt)"),
            [("refused", AttributeValue::S(refusal))],
        );
        match mark.commit().await {
            // The condition refuses the mark if the row is gone, or if another publisher has published the event.
            Ok(Commit::Done | Commit::Refused(_)) => Ok(()),
            Err(error) => {
                Err(format!("{reason}; and the event's row can't be marked as refused: {error}"))
            }
        }
    }

    /// Returns a row as the stream record of its insertion, which publish-events can replay.
    fn as_record(&self, item: &Item) -> serde_json::Value {
        let typed = |item: Item| json!(serde_dynamo::Item::from(item));
        let key = EventKey::from_item(item).map(|key| key.key().item()).unwrap_or_default();
        json!({
            "eventID": "",
            "eventName": "INSERT",
            "eventSource": "aws:dynamodb",
            "awsRegion": self.events.region().unwrap_or_default(),
            "dynamodb": {
                "Keys": typed(key),
                "NewImage": typed(item.clone()),
                // The row was not read from the stream, so it has no sequence number there.
                "SequenceNumber": "0",
                "SizeBytes": 0,
                "StreamViewType": "NEW_IMAGE",
            },
        })
    }
}

/// The unsettled events before an event.
struct Gap {
    /// The event that follows the gap.
    before: EventKey,
    /// The earlier events, the oldest first, at most [`MAX_GAP`].
    earlier: VecDeque<Item>,
    /// Whether newer events were omitted because the gap is too long.
    truncated: bool,
}

/// EventBridge's result for one entry.
#[derive(Clone, Debug, PartialEq)]
enum EntryResult {
    Accepted,
    Retry(String),
    /// A permanent refusal: the error name in the quarantine, and the reason.
    Rejected(&'static str, String),
}

/// The result of an attempt to publish an event.
enum Outcome {
    /// The event was published or refused. The next event may follow.
    Settled,
    /// A replayed event was refused again: the error name and the reason.
    Refused(&'static str, String),
    /// The event must be sent again.
    Retry(String),
    /// The event was neither published nor refused, and is not tried again in this run.
    Failed(String),
}

impl EntryResult {
    fn from_entry(entry: &PutEventsResultEntry) -> Self {
        let Some(code) = entry.error_code() else { return Self::Accepted };
        let reason = format!("{code}: {}", entry.error_message().unwrap_or_default());
        match code {
            "MalformedDetail"
            | "InvalidArgument"
            | "RedactionFailure"
            | "NotAuthorizedForSourceException"
            | "NotAuthorizedForDetailTypeException" => Self::Rejected(EVENT_REFUSED, reason),
            // A wrong role or account affects all events. They are published once it is corrected.
            _ => Self::Retry(reason),
        }
    }
}

fn is_published(item: &Item) -> bool {
    item.contains_key("publishedAt")
}

fn is_refused(item: &Item) -> bool {
    item.contains_key("refused")
}

/// Returns the pause after the given number of attempts.
fn pause(attempts: u32) -> Duration {
    Duration::from_millis(50) * 2_u32.pow(attempts)
}

/// Groups events into a lane per entity, in the order in which the entities first occur.
fn into_lanes(pending: Vec<PendingEvent<'_>>) -> VecDeque<Lane<'_>> {
    let mut lanes: VecDeque<Lane> = VecDeque::new();
    let mut lane_of: HashMap<String, usize> = HashMap::new();
    let mut keys = HashSet::new();
    for event in pending {
        if !keys.insert(event.key.clone()) {
            continue;
        }
        let next = lanes.len();
        let index = *lane_of.entry(event.key.entity.clone()).or_insert(next);
        if index == next {
            let pending = VecDeque::new();
            lanes.push_back(Lane { pending, attempts: 0, ready_at: Instant::now() });
        }
        lanes[index].pending.push_back(event);
    }
    for lane in &mut lanes {
        // A sequence number that is not a whole number sorts last.
        let number = |event: &PendingEvent| event.key.number().unwrap_or(u64::MAX);
        lane.pending.make_contiguous().sort_by_key(number);
    }
    lanes
}

/// Takes the lanes whose first events are ready and fit into one call. Takes at least one lane if any is ready.
fn take_round<'r>(lanes: &mut VecDeque<Lane<'r>>) -> Vec<Lane<'r>> {
    let now = Instant::now();
    let (mut round, mut rest) = (Vec::new(), VecDeque::new());
    let mut bytes = 0;
    for lane in lanes.drain(..) {
        let size = lane.pending[0].bytes();
        let fits =
            round.len() < MAX_ENTRIES && (round.is_empty() || bytes + size <= MAX_CALL_BYTES);
        if fits && lane.ready_at <= now {
            bytes += size;
            round.push(lane);
        } else {
            rest.push_back(lane);
        }
    }
    *lanes = rest;
    round
}

/// Reports the requested events of a lane whose first event failed.
fn give_up(lane: &Lane, reason: &str, unpublished: &mut Vec<Unpublished>) {
    let first = &lane.pending[0].key;
    for event in lane.pending.iter().filter(|event| event.is_requested) {
        let reason = if event.key == *first {
            reason.to_owned()
        } else {
            format!("the earlier event {} was not published: {reason}", first.sequence)
        };
        unpublished.push(Unpublished::for_now(event.key.clone(), reason));
    }
}
