//! The events to publish: the requested ones, and the earlier ones that are not settled yet.

use std::collections::{HashMap, HashSet, VecDeque};

use contracts::EventId;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::value::RawValue;
use store::{EventRow, Item, Key, StoreError};

use super::{Publisher, outlet::EVENT_REFUSED};

/// The number of rows in the first page when earlier events are read. Most gaps are short. The size of later pages is
/// left to DynamoDB.
const FIRST_GAP_PAGE: i32 = 25;
/// The maximum number of earlier events that one run puts on the stream before an event. If there are more, the oldest
/// are put, and the event must wait for another run.
const MAX_GAP: usize = 100;
/// The size of the requested rows at which a run stops reading further ones. A row has up to 256 KiB, and a run has several
/// copies of it.
const MAX_REQUESTED_BYTES: usize = 16 * 1024 * 1024;
/// The maximum size of the earlier rows of one event. At least one is read.
const MAX_GAP_BYTES: usize = 1024 * 1024;
/// The size of all earlier rows at which a run stops reading further ones.
const MAX_EARLIER_BYTES: usize = 8 * 1024 * 1024;
/// The number of requested rows that are read at a time. With their predecessors, they fit into one call.
const REQUESTS_PER_READ: usize = 50;
/// The number of entities whose earlier events are read concurrently.
const CONCURRENT_GAPS: usize = 8;

/// The key of an event in the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EventKey {
    /// The entity's key in the log, such as `type#id`.
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

    pub(super) fn key(&self) -> Key {
        Key::numbered(("entity", &self.entity), ("sequence", &self.sequence))
    }

    pub(super) fn number(&self) -> Option<u64> {
        self.sequence.parse().ok()
    }

    /// Returns the event's id. Returns `None` if the sequence number is not valid.
    pub(super) fn event_id(&self) -> Option<EventId> {
        Some(EventId::from_log_key(&self.entity, self.number()?))
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
    /// The stream record of the event, if any.
    pub record: Option<TableRecord<'r>>,
}

/// A record of the events table's stream.
#[derive(Debug)]
pub struct TableRecord<'r> {
    /// The record as it was delivered.
    pub json: &'r RawValue,
    /// The new row in the record. It is used only if the table no longer has the row.
    pub image: Item,
    /// Whether an engineer on call replays the record. Then the event is sent to both outlets even if it was refused before, and
    /// it is not quarantined again: the caller gets the reason.
    pub replay: bool,
}

/// An event that a run sends.
pub(super) struct PendingEvent<'r> {
    pub(super) key: EventKey,
    /// The event, or the reason why the row is not an event.
    pub(super) event: Result<EventRow, String>,
    pub(super) item: Item,
    pub(super) record: Option<&'r RawValue>,
    /// Whether an engineer on call replays it.
    pub(super) replay: bool,
    /// Whether the caller requested it. Other events are earlier events that were read from the table, because of the
    /// order on the stream. While the bus accepts nothing, they are not sent to it: it gets them by the sweep.
    pub(super) is_requested: bool,
    /// Whether it must wait for another run, because not all earlier events can be put on the stream in this run.
    pub(super) is_behind_gap: bool,
}

impl<'r> PendingEvent<'r> {
    fn requested(key: EventKey, item: Item, record: Option<&TableRecord<'r>>) -> Self {
        Self {
            record: record.map(|record| record.json),
            replay: record.is_some_and(|record| record.replay),
            is_requested: true,
            ..Self::earlier(key, item)
        }
    }

    fn earlier(key: EventKey, item: Item) -> Self {
        let row = serde_dynamo::from_item::<_, EventRow>(item.clone());
        let event = match row {
            Ok(row) => match row.envelope() {
                Ok(_) => Ok(row),
                Err(error) => Err(format!("detail is not a valid event: {error}")),
            },
            Err(error) => Err(format!("the row is not a valid event: {error}")),
        };
        Self {
            key,
            event,
            item,
            record: None,
            replay: false,
            is_requested: false,
            is_behind_gap: false,
        }
    }
}

/// The unsettled events before an event.
struct Gap {
    /// The event that follows the gap.
    before: EventKey,
    /// The earlier events, the oldest first, at most [`MAX_GAP`] and [`MAX_GAP_BYTES`].
    earlier: VecDeque<Item>,
    /// The size of the earlier events.
    bytes: usize,
    /// Whether newer events were omitted because the gap is too long.
    truncated: bool,
}

/// The events of a run.
pub(super) struct Read<'r> {
    /// The events to send, each once: the requested ones in the order of the requests, then their unsettled earlier events.
    pub(super) pending: Vec<PendingEvent<'r>>,
    /// The requested events that were not read, because the others have reached the maximum size of a run.
    pub(super) unread: Vec<EventKey>,
}

impl Publisher {
    /// Reads the current rows of the requested events and their unsettled earlier events, up to the maximum size of a
    /// run. At least one requested row is read.
    pub(super) async fn read_pending<'r>(
        &self,
        requests: Vec<PublishRequest<'r>>,
    ) -> Result<Read<'r>, StoreError> {
        let mut records = HashMap::new();
        let mut order = Vec::new();
        for PublishRequest { key, record } in requests {
            if records.insert(key.clone(), record).is_none() {
                order.push(key);
            }
        }
        let mut pending: Vec<PendingEvent> = Vec::new();
        let (mut unread, mut settled, mut bytes) = (Vec::new(), HashSet::new(), 0);
        for keys in order.chunks(REQUESTS_PER_READ) {
            if bytes > MAX_REQUESTED_BYTES {
                unread.extend_from_slice(keys);
                continue;
            }
            let not_requested = |key: &EventKey| !records.contains_key(key);
            let predecessors = keys.iter().filter_map(EventKey::predecessor).filter(not_requested);
            let mut rows =
                self.read_rows(keys.iter().cloned().chain(predecessors).collect()).await?;
            for key in keys {
                if bytes > MAX_REQUESTED_BYTES {
                    unread.push(key.clone());
                    continue;
                }
                let record = records[key].as_ref();
                let image = || record.map(|record| record.image.clone());
                let Some(item) = rows.remove(key).or_else(image) else { continue };
                if is_settled(&item) {
                    settled.insert(key.clone());
                }
                let is_replay = record.is_some_and(|record| record.replay);
                if !is_published(&item) && (is_replay || !is_refused(&item)) {
                    bytes += size(&item);
                    pending.push(PendingEvent::requested(key.clone(), item, record));
                }
            }
            // Only the keys of the predecessors are kept.
            settled
                .extend(rows.into_iter().filter(|(_, item)| is_settled(item)).map(|(key, _)| key));
        }
        // A requested event that is not pending is not in this run: it is published or refused, or it was not read. An
        // unread event that precedes an event of this run is read as an earlier event. If the limits of earlier events
        // leave no room for it, the later event waits for another run.
        let in_run: HashSet<EventKey> = pending.iter().map(|event| event.key.clone()).collect();
        let follows_gap = |key: &EventKey| {
            let predecessor = key.predecessor().filter(|key| !in_run.contains(key));
            predecessor
                .is_some_and(|key| !settled.contains(&key) && !self.memory.is_on_stream(&key))
        };
        let after_gaps: Vec<EventKey> =
            pending.iter().map(|it| &it.key).filter(|key| follows_gap(key)).cloned().collect();
        let mut behind: HashSet<EventKey> = after_gaps.iter().cloned().collect();
        let mut gaps = stream::iter(after_gaps)
            .map(|key| self.gap(key, |key| in_run.contains(key)))
            .buffer_unordered(CONCURRENT_GAPS);
        let (mut keys, mut bytes) = (HashSet::new(), 0);
        while bytes <= MAX_EARLIER_BYTES
            && let Some(gap) = gaps.try_next().await?
        {
            bytes += gap.bytes;
            if !gap.truncated {
                behind.remove(&gap.before);
            }
            for item in gap.earlier {
                let key = EventKey::from_item(&item);
                let is_new = |key: &EventKey| !in_run.contains(key) && keys.insert(key.clone());
                let key = key.filter(is_new);
                pending.extend(key.map(|key| PendingEvent::earlier(key, item)));
            }
        }
        for before in behind {
            let follows = |event: &&mut PendingEvent| {
                event.key.entity == before.entity && event.key.number() >= before.number()
            };
            pending.iter_mut().filter(follows).for_each(|event| event.is_behind_gap = true);
        }
        Ok(Read { pending, unread })
    }

    /// Reads the unsettled events before an event, back to one that is settled on the stream or that is in this run.
    async fn gap(
        &self,
        before: EventKey,
        is_in_run: impl Fn(&EventKey) -> bool,
    ) -> Result<Gap, StoreError> {
        let mut gap = Gap { before, earlier: VecDeque::new(), bytes: 0, truncated: false };
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
                // The gap ends at an event that is settled on the stream, because the events before it are settled there,
                // too. It also ends at an event of this run: the events before that one are settled, are in this run, or
                // are read as that event's own gap.
                let ends_gap = |key| is_in_run(&key) || self.memory.is_on_stream(&key);
                if is_settled(&item) || EventKey::from_item(&item).is_some_and(ends_gap) {
                    return Ok(gap);
                }
                if is_refused(&item) {
                    continue;
                }
                gap.bytes += size(&item);
                gap.earlier.push_front(item);
                while (gap.earlier.len() > MAX_GAP || gap.bytes > MAX_GAP_BYTES)
                    && gap.earlier.len() > 1
                    && let Some(newest) = gap.earlier.pop_back()
                {
                    gap.bytes -= size(&newest);
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
    async fn read_rows(&self, keys: Vec<EventKey>) -> Result<HashMap<EventKey, Item>, StoreError> {
        let rows =
            self.events.batch_get(keys.iter().map(EventKey::key)).consistent().send().await?;
        let with_key = |item| Some((EventKey::from_item(&item)?, item));
        Ok(rows.into_iter().filter_map(with_key).collect())
    }
}

/// Returns the size of the item's texts. The rest is small.
fn size(item: &Item) -> usize {
    item.values().filter_map(|value| value.as_s().ok()).map(String::len).sum()
}

/// Returns whether the mark says that the event, and all earlier events of its entity, are settled on the stream.
///
/// A row that is not an event is refused without waiting for the earlier ones, so its mark does not say that.
fn is_settled(item: &Item) -> bool {
    let refused = item.get("refused").and_then(|reason| reason.as_s().ok());
    is_published(item) || refused.is_some_and(|reason| reason.starts_with(EVENT_REFUSED))
}

fn is_published(item: &Item) -> bool {
    item.contains_key("publishedAt")
}

fn is_refused(item: &Item) -> bool {
    item.contains_key("refused")
}
