//! Puts events on the bus, in order per entity, entry by entry.
//!
//! An event is settled when it is published or refused. Invariant: an event is put on the bus only after
//! all earlier events of its entity are settled. DynamoDB Streams keep the order per item only, and each
//! event is an item, so a later event may be delivered first. Then the earlier ones are read from the
//! table and published before it. Their own records find them marked.
//!
//! An event may be put on the bus more than once: its mark may fail, or a second publisher may be at it.
//! The first occurrences are in order all the same, since each publisher puts an event on the bus only
//! after it has published the predecessor itself, or has read its mark.

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

/// The limit of a PutEvents call.
const MAX_ENTRIES: usize = 10;
/// Kept below PutEvents' limit of 256 KiB for all entries of a call.
const MAX_BYTES: usize = 240 * 1024;
/// Attempts to send an entry that EventBridge can't take now.
const MAX_ATTEMPTS: u32 = 4;
/// Rows of the first page when earlier events are read back: most gaps are short. Later pages have as many
/// rows as DynamoDB gives.
const FIRST_GAP_PAGE: i32 = 25;
/// The most earlier events that are published before an event in one run. Of more, the oldest are
/// published, and the event has to come again.
const MAX_GAP: usize = 100;
/// Entities whose earlier events are read back at once.
const CONCURRENT_GAPS: usize = 8;
/// Characters of the reason in a refused row.
const MAX_REASON: usize = 1_000;

/// The quarantine's error name of a row that is no event.
const NO_EVENT: &str = "InvalidInput";
/// The quarantine's error name of an event that EventBridge refuses for good.
const REFUSED: &str = "EventRefused";

/// A row as DynamoDB has it.
/// Publishes events of the events table.
#[derive(Debug)]
pub struct Publisher {
    /// The events table.
    pub events: Table,
    /// EventBridge.
    pub bus: Client,
    /// The bus's name.
    pub bus_name: String,
    /// For events that can't be published, ever.
    pub quarantine: Quarantine,
}

/// An event's key in the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventKey {
    /// `type#id`.
    pub entity: String,
    /// A number, as DynamoDB writes it. Text, because the row may be broken.
    pub sequence: String,
}

impl EventKey {
    /// Reads the key from an item; `None` if the item has no such key.
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

    /// The key of the entity's previous event; `None` for the first one.
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
pub struct Named<'r> {
    /// Its key.
    pub key: EventKey,
    /// The stream's record that named it, if any. A delivered event is published even if it was refused
    /// before: this is how a replay works.
    pub record: Option<StreamRecord<'r>>,
}

/// A record of the table's stream.
#[derive(Debug)]
pub struct StreamRecord<'r> {
    /// The record as it was delivered.
    pub json: &'r RawValue,
    /// The new row that it holds. Used only if the table has the row no longer.
    pub image: Item,
    /// Whether an operator replays it. Then it is not quarantined again: the caller gets the reason.
    pub replay: bool,
}

/// An event that could not be published now. It stays marked as unpublished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// Its key.
    pub event: EventKey,
    /// The error's stable name.
    pub error: &'static str,
    /// Why not.
    pub reason: String,
}

impl Unpublished {
    /// An event that may be published by another run.
    pub(crate) fn for_now(event: EventKey, reason: impl Into<String>) -> Self {
        Self { event, error: ErrorKind::Transient.name(), reason: reason.into() }
    }
}

/// An event in its lane.
struct Waiting<'r> {
    key: EventKey,
    /// The event, or why the row is none.
    event: Result<EventRow, String>,
    item: Item,
    record: Option<&'r RawValue>,
    /// Whether an operator replays it.
    replay: bool,
    /// Whether the caller named it. The others are earlier events that were read back.
    named: bool,
}

impl<'r> Waiting<'r> {
    fn new(key: EventKey, item: Item, record: Option<&'r RawValue>, named: bool) -> Self {
        let row = serde_dynamo::from_item::<_, EventRow>(item.clone());
        let event = match row {
            Ok(row) => match row.envelope() {
                Ok(_) => Ok(row),
                Err(error) => Err(format!("detail is no event: {error}")),
            },
            Err(error) => Err(format!("the row is no event: {error}")),
        };
        Self { key, event, item, record, replay: false, named }
    }

    /// Its size as PutEvents counts it.
    fn bytes(&self) -> usize {
        let of_row = |row: &EventRow| row.detail.len() + row.kind.len() + row.source.len();
        self.event.as_ref().map_or(0, of_row)
    }
}

/// The events of one entity that are to be published, the oldest first.
struct Lane<'r> {
    waiting: VecDeque<Waiting<'r>>,
    /// Attempts to send the first event.
    attempts: u32,
    /// When the first event may be sent.
    ready_at: Instant,
}

impl Publisher {
    /// Publishes the named events that are not marked as published, and marks them. The events of one
    /// entity are sent in order, one a call, so that no event overtakes one that failed. Events of
    /// different entities are sent side by side. An event that can never be published is put into the
    /// quarantine and marked as refused, and its successors go on.
    ///
    /// Returns the named events that could not be published now.
    ///
    /// # Errors
    /// If the rows can't be read. Then nothing was published.
    pub async fn publish(
        &self,
        named: Vec<Named<'_>>,
        deadline: Deadline,
    ) -> Result<Vec<Unpublished>, StoreError> {
        let keys: Vec<EventKey> = named.iter().map(|named| named.key.clone()).collect();
        let Ok(read) = timeout(deadline.left(), self.lanes(named)).await else {
            let late = |event| Unpublished::for_now(event, "the time ran out");
            return Ok(keys.into_iter().map(late).collect());
        };
        let (mut lanes, mut unpublished) = read?;
        while !lanes.is_empty() {
            if deadline.passed() {
                for lane in lanes.drain(..) {
                    give_up(&lane, "the time ran out", &mut unpublished);
                }
                break;
            }
            let round = take_round(&mut lanes);
            if round.is_empty() {
                let next = lanes.iter().map(|lane| lane.ready_at).min();
                let pause = next.map_or(Duration::ZERO, |at| at - Instant::now());
                sleep(pause.min(deadline.left())).await;
                continue;
            }
            // A bus that hangs must not use up the time that the answer needs.
            let heads: Vec<_> = round.iter().map(|lane| &lane.waiting[0]).collect();
            let Ok(answers) = timeout(deadline.left(), self.put(&heads)).await else {
                lanes.extend(round);
                continue;
            };
            let settled = heads.iter().zip(answers).map(|(head, answer)| self.settle(head, answer));
            let Ok(outcomes) = timeout(deadline.left(), join_all(settled)).await else {
                tracing::error!("the time ran out before all published events were marked");
                lanes.extend(round);
                continue;
            };
            for (mut lane, outcome) in round.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Settled => {
                        lane.waiting.pop_front();
                        lane.attempts = 0;
                    }
                    Outcome::Refused(error, reason) => {
                        if let Some(refused) = lane.waiting.pop_front() {
                            unpublished.push(Unpublished { event: refused.key, error, reason });
                        }
                        lane.attempts = 0;
                    }
                    Outcome::Later(reason) => {
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
                if !lane.waiting.is_empty() {
                    lanes.push_back(lane);
                }
            }
        }
        Ok(unpublished)
    }

    /// Reads the named events as they are now, with their predecessors, and makes a lane for each entity
    /// that has something to publish. Also returns the named events that have to wait for another run.
    async fn lanes<'r>(
        &self,
        named: Vec<Named<'r>>,
    ) -> Result<(VecDeque<Lane<'r>>, Vec<Unpublished>), StoreError> {
        let mut records = HashMap::new();
        let mut order = Vec::new();
        for Named { key, record } in named {
            if records.insert(key.clone(), record).is_none() {
                order.push(key);
            }
        }
        let unnamed = |key: &EventKey| !records.contains_key(key);
        let predecessors = order.iter().filter_map(EventKey::predecessor).filter(unnamed);
        let rows = self.read(order.iter().cloned().chain(predecessors).collect()).await?;

        let mut waiting: Vec<Waiting> = Vec::new();
        for key in &order {
            let record = records[key].as_ref();
            let image = record.map(|record| &record.image);
            let Some(item) = rows.get(key).or(image) else { continue };
            let done = is_published(item) || record.is_none() && is_refused(item);
            if !done {
                let json = record.map(|record| record.json);
                let replay = record.is_some_and(|record| record.replay);
                let event = Waiting::new(key.clone(), item.clone(), json, true);
                waiting.push(Waiting { replay, ..event });
            }
        }
        let follows_gap = |key: &EventKey| {
            let Some(predecessor) = key.predecessor().filter(unnamed) else { return false };
            !rows.get(&predecessor).is_some_and(|row| is_published(row) || is_refused(row))
        };
        let behind_gaps: Vec<EventKey> =
            waiting.iter().map(|it| &it.key).filter(|key| follows_gap(key)).cloned().collect();
        let gaps: Vec<Gap> = stream::iter(behind_gaps)
            .map(|key| self.gap(key, |key| records.contains_key(key)))
            .buffer_unordered(CONCURRENT_GAPS)
            .try_collect()
            .await?;
        let mut unpublished = Vec::new();
        for Gap { before, earlier, cut } in gaps {
            if cut {
                let too_early = |it: &Waiting| {
                    it.key.entity == before.entity && it.key.number() >= before.number()
                };
                for late in waiting.extract_if(.., |it| too_early(it)) {
                    let reason = format!("more than {MAX_GAP} earlier events are published first");
                    unpublished.push(Unpublished::for_now(late.key, reason));
                }
            }
            waiting.extend(earlier.into_iter().filter_map(|item| {
                Some(Waiting::new(EventKey::from_item(&item)?, item, None, false))
            }));
        }
        Ok((into_lanes(waiting), unpublished))
    }

    /// Reads the unsettled events before this one, back to an event that is published or that the caller
    /// named.
    async fn gap(
        &self,
        before: EventKey,
        is_named: impl Fn(&EventKey) -> bool,
    ) -> Result<Gap, StoreError> {
        let mut gap = Gap { before, earlier: VecDeque::new(), cut: false };
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
                let named = EventKey::from_item(&item).is_some_and(|key| is_named(&key));
                if named || is_published(&item) {
                    return Ok(gap);
                }
                if is_refused(&item) {
                    continue;
                }
                gap.earlier.push_front(item);
                if gap.earlier.len() > MAX_GAP {
                    gap.earlier.pop_back();
                    gap.cut = true;
                }
            }
            match page.next {
                Some(start) => page = query.page(Some(start)).await?,
                None => return Ok(gap),
            }
        }
    }

    /// Reads rows as they are now. A row that does not exist is missing in the answer.
    async fn read(&self, keys: Vec<EventKey>) -> Result<HashMap<EventKey, Item>, StoreError> {
        let rows =
            self.events.batch_get(keys.iter().map(EventKey::key)).consistent().send().await?;
        let keyed = |item| Some((EventKey::from_item(&item)?, item));
        Ok(rows.into_iter().filter_map(keyed).collect())
    }

    /// Sends the events in one call. Returns an answer for each.
    async fn put(&self, heads: &[&Waiting<'_>]) -> Vec<Answer> {
        let rows: Vec<&EventRow> =
            heads.iter().filter_map(|head| head.event.as_ref().ok()).collect();
        let mut answers = self.put_rows(&rows).await.into_iter();
        let mut answer = |head: &&Waiting| match &head.event {
            Ok(_) => answers.next().unwrap_or_else(|| Answer::Later("no answer".to_owned())),
            Err(reason) => Answer::Never(NO_EVENT, reason.clone()),
        };
        heads.iter().map(&mut answer).collect()
    }

    async fn put_rows(&self, rows: &[&EventRow]) -> Vec<Answer> {
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
            // EventBridge answers entry by entry, in the entries' order.
            Ok(answer) => {
                let mut answers: Vec<_> = answer.entries().iter().map(Answer::of).collect();
                let left_out = || Answer::Later("EventBridge left the entry out".to_owned());
                answers.resize_with(rows.len(), left_out);
                answers
            }
            // One entry of the call is not valid, such as one that is too large. EventBridge does not say
            // which, so each is sent alone.
            Err(error) if error.code() == Some("ValidationException") => {
                if let [_] = rows {
                    let reason = error.message().unwrap_or("not valid");
                    return vec![Answer::Never(REFUSED, format!("ValidationException: {reason}"))];
                }
                let alone =
                    rows.iter().map(|row| Box::pin(self.put_rows(std::slice::from_ref(row))));
                join_all(alone).await.concat()
            }
            Err(error) => {
                vec![Answer::Later(fault::describe(&error)); rows.len()]
            }
        }
    }

    /// Marks an event that was taken, and sets aside an event that was refused for good.
    async fn settle(&self, head: &Waiting<'_>, answer: Answer) -> Outcome {
        match answer {
            Answer::Taken => {
                self.mark_published(&head.key).await;
                Outcome::Settled
            }
            Answer::Later(reason) => Outcome::Later(reason),
            Answer::Never(error, reason) => match self.set_aside(head, error, &reason).await {
                Ok(()) if head.replay => Outcome::Refused(error, reason),
                Ok(()) => Outcome::Settled,
                Err(reason) => Outcome::Failed(reason),
            },
        }
    }

    /// Marks a row as published. If that fails, the event stays in the index `unpublished` and is
    /// published a second time. It counts as published for its successors all the same.
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
            Ok(Commit::Refused(_)) => "the row is gone".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            entity = key.entity,
            sequence = key.sequence,
            error,
            "published, but not marked"
        );
    }

    /// Puts an event into the quarantine, then marks its row as refused. A refused row is not in the index
    /// `unpublished`. A replay of the quarantined record publishes it; if it is refused again, its failure is
    /// still open, and a second message would only count it twice.
    async fn set_aside(
        &self,
        event: &Waiting<'_>,
        error: &str,
        reason: &str,
    ) -> Result<(), String> {
        let why = Reason::new(error, reason);
        match event.record {
            _ if event.replay => {}
            Some(record) => self.quarantine.put(&record, why).await?,
            None => self.quarantine.put(&self.as_record(&event.item), why).await?,
        }
        let refused: String = format!("{error}: {reason}").chars().take(MAX_REASON).collect();
        let mark = Transaction::on(&self.events).update(
            &self.events,
            &event.key.key(),
            "SET #refused = :refused REMOVE unpublished",
            Some("attribute_exists(entity) AND attribute_not_exists(publishedAt)"),
            [("refused", AttributeValue::S(refused))],
        );
        match mark.commit().await {
            // Refused: the row is gone, or another publisher has published it. There is nothing to mark.
            Ok(Commit::Done | Commit::Refused(_)) => Ok(()),
            Err(error) => Err(format!("{reason}; and its row can't be marked as refused: {error}")),
        }
    }

    /// A row as the record of its insertion, which publish-events takes.
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
                // It has no place in the stream.
                "SequenceNumber": "0",
                "SizeBytes": 0,
                "StreamViewType": "NEW_IMAGE",
            },
        })
    }
}

/// The unsettled events before an event.
struct Gap {
    before: EventKey,
    /// The oldest first, at most [`MAX_GAP`].
    earlier: VecDeque<Item>,
    /// Whether newer ones were left out.
    cut: bool,
}

/// EventBridge's answer to one entry.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Taken,
    Later(String),
    /// It would be refused again; the quarantine's error name, and why.
    Never(&'static str, String),
}

/// The result of an attempt to publish an event.
enum Outcome {
    /// Published or refused: the next event may follow.
    Settled,
    /// A replayed event was refused again: the error's name, and why.
    Refused(&'static str, String),
    /// To be sent again.
    Later(String),
    /// Neither published nor refused in this run.
    Failed(String),
}

impl Answer {
    fn of(entry: &PutEventsResultEntry) -> Self {
        let Some(code) = entry.error_code() else { return Self::Taken };
        let reason = format!("{code}: {}", entry.error_message().unwrap_or_default());
        match code {
            "MalformedDetail"
            | "InvalidArgument"
            | "RedactionFailure"
            | "NotAuthorizedForSourceException"
            | "NotAuthorizedForDetailTypeException" => Self::Never(REFUSED, reason),
            // A wrong role or account concerns all events, and they are published once it is corrected.
            _ => Self::Later(reason),
        }
    }
}

fn is_published(item: &Item) -> bool {
    item.contains_key("publishedAt")
}

fn is_refused(item: &Item) -> bool {
    item.contains_key("refused")
}

/// The pause after so many attempts.
fn pause(attempts: u32) -> Duration {
    Duration::from_millis(50) * 2_u32.pow(attempts)
}

/// Makes a lane for each entity, in the order in which the entities come first.
fn into_lanes(waiting: Vec<Waiting<'_>>) -> VecDeque<Lane<'_>> {
    let mut lanes: VecDeque<Lane> = VecDeque::new();
    let mut lane_of: HashMap<String, usize> = HashMap::new();
    let mut seen = HashSet::new();
    for event in waiting {
        if !seen.insert(event.key.clone()) {
            continue;
        }
        let next = lanes.len();
        let index = *lane_of.entry(event.key.entity.clone()).or_insert(next);
        if index == next {
            let waiting = VecDeque::new();
            lanes.push_back(Lane { waiting, attempts: 0, ready_at: Instant::now() });
        }
        lanes[index].waiting.push_back(event);
    }
    for lane in &mut lanes {
        // A sequence that is not a whole number sorts last.
        let number = |event: &Waiting| event.key.number().unwrap_or(u64::MAX);
        lane.waiting.make_contiguous().sort_by_key(number);
    }
    lanes
}

/// Takes the lanes whose first events are ready and fit into one call; at least one, if any is ready.
fn take_round<'r>(lanes: &mut VecDeque<Lane<'r>>) -> Vec<Lane<'r>> {
    let now = Instant::now();
    let (mut round, mut rest) = (Vec::new(), VecDeque::new());
    let mut bytes = 0;
    for lane in lanes.drain(..) {
        let size = lane.waiting[0].bytes();
        let fits = round.len() < MAX_ENTRIES && (round.is_empty() || bytes + size <= MAX_BYTES);
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

/// Reports the named events of a lane whose first event failed.
fn give_up(lane: &Lane, reason: &str, unpublished: &mut Vec<Unpublished>) {
    let first = &lane.waiting[0].key;
    for event in lane.waiting.iter().filter(|event| event.named) {
        let reason = if event.key == *first {
            reason.to_owned()
        } else {
            format!("the earlier event {} was not published: {reason}", first.sequence)
        };
        unpublished.push(Unpublished::for_now(event.key.clone(), reason));
    }
}
