//! Puts rows of the outbox on the bus, in order per entity, entry by entry.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use aws_sdk_eventbridge::{
    Client,
    error::DisplayErrorContext,
    types::{PutEventsRequestEntry, PutEventsResultEntry},
};
use contracts::Timestamp;
use futures_util::future::join_all;
use lambda::Deadline;
use store::{EventRow, StoreError, Table};

/// PutEvents takes at most so many entries.
const ENTRIES_PER_CALL: usize = 10;
/// Kept below PutEvents' limit of 256 KiB for all entries of a call.
const BYTES_PER_CALL: usize = 240 * 1024;
/// So many keys [`Publisher::read`] takes at most, as BatchGetItem does.
pub const KEYS_PER_CALL: usize = 100;
/// How often an entry is sent that EventBridge can't take now.
const ATTEMPTS: u32 = 4;

/// What publishing needs.
#[derive(Debug)]
pub struct Publisher {
    /// The events table.
    pub events: Table,
    /// EventBridge.
    pub bus: Client,
    /// The bus's name.
    pub bus_name: String,
}

/// An event's key in the table.
pub type EventKey = (String, u64);

/// An event that EventBridge did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// Which one.
    pub event: EventKey,
    /// Why.
    pub reason: String,
    /// It would be refused again.
    pub permanent: bool,
}

/// The events of one entity that are to be published, the oldest first.
struct Lane {
    rows: VecDeque<EventRow>,
    attempts: u32,
}

impl Publisher {
    /// Publishes those of the rows that are not marked as published, and marks them. One entity's
    /// events go in order, one a call, so that none overtakes one that failed; different entities'
    /// go side by side. What could not be published is told, with all that was behind it.
    pub async fn publish(&self, rows: Vec<EventRow>, deadline: Deadline) -> Vec<Unpublished> {
        let mut lanes = lanes(rows);
        let mut unpublished = Vec::new();
        while !lanes.is_empty() {
            if deadline.passed() {
                for lane in lanes.drain(..) {
                    give_up(&lane, "the time ran out", false, &mut unpublished);
                }
                break;
            }
            let heads = heads(&lanes);
            // A bus that hangs must not take the time that the answer needs.
            let put = self.put(lanes[..heads].iter().map(|lane| &lane.rows[0]));
            let Ok(answers) = tokio::time::timeout(deadline.left(), put).await else { continue };
            let mut taken = Vec::new();
            let mut waiting: u32 = 0;
            let mut done = Vec::new();
            for (index, answer) in answers.into_iter().enumerate() {
                let lane = &mut lanes[index];
                match answer {
                    Answer::Taken => {
                        taken.extend(lane.rows.pop_front());
                        lane.attempts = 0;
                        if lane.rows.is_empty() {
                            done.push((index, None));
                        }
                    }
                    Answer::Later(reason) => {
                        lane.attempts += 1;
                        waiting = waiting.max(lane.attempts);
                        if lane.attempts == ATTEMPTS {
                            done.push((index, Some((reason, false))));
                        }
                    }
                    Answer::Never(reason) => done.push((index, Some((reason, true)))),
                }
            }
            let marks = join_all(taken.iter().map(|row| self.mark(row)));
            if tokio::time::timeout(deadline.left(), marks).await.is_err() {
                tracing::error!("published, but not all marked: the time ran out");
            }
            let still_first = heads - done.len();
            for (index, end) in done.into_iter().rev() {
                let lane = lanes.remove(index);
                if let Some((reason, permanent)) = end {
                    give_up(&lane, &reason, permanent, &mut unpublished);
                }
            }
            // Lanes that were not at the head of the queue are next.
            lanes.rotate_left(still_first);
            if waiting > 0 {
                let pause = Duration::from_millis(50) * 2_u32.pow(waiting);
                tokio::time::sleep(pause.min(deadline.left())).await;
            }
        }
        unpublished
    }

    /// Those of the rows that are not marked by now: a redelivered batch has been published in part.
    pub async fn unmarked(&self, mut rows: Vec<EventRow>) -> Result<Vec<EventRow>, StoreError> {
        // The same event twice in a call would be refused as a duplicate key.
        let keys: Vec<EventKey> =
            rows.iter().map(event_key).collect::<HashSet<_>>().into_iter().collect();
        let mut marked = HashSet::new();
        for chunk in keys.chunks(KEYS_PER_CALL) {
            let (now, _) = self.read(chunk.to_vec()).await?;
            let published = now.iter().filter(|row| row.published_at.is_some());
            marked.extend(published.map(event_key));
        }
        rows.retain(|row| !marked.contains(&event_key(row)));
        Ok(rows)
    }

    /// Reads rows as they are now, at most [`KEYS_PER_CALL`], and tells those that are no events. Those that
    /// DynamoDB leaves out are missing.
    pub async fn read(
        &self,
        keys: Vec<EventKey>,
    ) -> Result<(Vec<EventRow>, Vec<Unpublished>), StoreError> {
        if keys.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let keys = keys.into_iter().map(|(entity, sequence)| key(entity, sequence)).collect();
        let request = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .consistent_read(true)
            .build()
            .map_err(|error| StoreError::Internal(error.to_string()))?;
        let answer = self
            .events
            .client()
            .batch_get_item()
            .request_items(self.events.name(), request)
            .send()
            .await?;
        let items = answer.responses.unwrap_or_default().remove(self.events.name());
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        for item in items.unwrap_or_default() {
            let event = key_of(&item);
            match serde_dynamo::from_item(item) {
                Ok(row) => rows.push(row),
                Err(error) => broken.push(Unpublished {
                    event,
                    reason: format!("the row is no event: {error}"),
                    permanent: true,
                }),
            }
        }
        Ok((rows, broken))
    }

    async fn put<'a>(&self, rows: impl Iterator<Item = &'a EventRow>) -> Vec<Answer> {
        let entries: Vec<_> = rows
            .map(|row| {
                PutEventsRequestEntry::builder()
                    .event_bus_name(&self.bus_name)
                    .source(&row.source)
                    .detail_type(&row.kind)
                    .detail(&row.detail)
                    .build()
            })
            .collect();
        let count = entries.len();
        match self.bus.put_events().set_entries(Some(entries)).send().await {
            // EventBridge answers entry by entry, in the entries' order.
            Ok(answer) => {
                let mut answers: Vec<_> = answer.entries().iter().map(Answer::of).collect();
                answers.resize(count, Answer::Later("EventBridge left the entry out".to_owned()));
                answers
            }
            Err(error) => vec![Answer::Later(DisplayErrorContext(&error).to_string()); count],
        }
    }

    /// Marks a row as published. When that fails the event stays in the index of unpublished ones,
    /// and sweep-events publishes it a second time: better twice than never.
    async fn mark(&self, row: &EventRow) {
        let marked = self
            .events
            .client()
            .update_item()
            .table_name(self.events.name())
            .set_key(Some(key(row.entity.clone(), row.sequence)))
            .update_expression("SET publishedAt = :now REMOVE unpublished")
            .condition_expression("attribute_exists(entity)")
            .expression_attribute_values(":now", AttributeValue::S(Timestamp::now().to_string()))
            .send()
            .await;
        match marked {
            Ok(_) => metrics::counter!("EventsPublished").increment(1),
            Err(error) => tracing::error!(
                entity = row.entity,
                sequence = row.sequence,
                error = %DisplayErrorContext(error),
                "published, but not marked"
            ),
        }
    }
}

/// EventBridge's answer to one entry.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Taken,
    Later(String),
    Never(String),
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
            | "NotAuthorizedForDetailTypeException" => Self::Never(reason),
            // A role or an account that is wrong is put right, and then all of its events go out.
            _ => Self::Later(reason),
        }
    }
}

fn event_key(row: &EventRow) -> EventKey {
    (row.entity.clone(), row.sequence)
}

/// The key of a row that may be broken otherwise.
fn key_of(item: &HashMap<String, AttributeValue>) -> EventKey {
    let entity = item.get("entity").and_then(|entity| entity.as_s().ok()).cloned();
    let sequence = item.get("sequence").and_then(|sequence| sequence.as_n().ok());
    (
        entity.unwrap_or_default(),
        sequence.and_then(|sequence| sequence.parse().ok()).unwrap_or_default(),
    )
}

fn key(entity: String, sequence: u64) -> HashMap<String, AttributeValue> {
    HashMap::from([
        ("entity".to_owned(), AttributeValue::S(entity)),
        ("sequence".to_owned(), AttributeValue::N(sequence.to_string())),
    ])
}

/// A lane for each entity, in the order in which the entities come first.
fn lanes(rows: Vec<EventRow>) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut lane_of: HashMap<String, usize> = HashMap::new();
    let mut seen = HashSet::new();
    for row in rows {
        if row.published_at.is_some() || !seen.insert(event_key(&row)) {
            continue;
        }
        let next = lanes.len();
        let index = *lane_of.entry(row.entity.clone()).or_insert(next);
        if index == next {
            lanes.push(Lane { rows: VecDeque::new(), attempts: 0 });
        }
        lanes[index].rows.push_back(row);
    }
    for lane in &mut lanes {
        lane.rows.make_contiguous().sort_by_key(|row| row.sequence);
    }
    lanes
}

/// How many lanes' heads fit into one call; at least one.
fn heads(lanes: &[Lane]) -> usize {
    let mut bytes = 0;
    let fit = lanes.iter().take(ENTRIES_PER_CALL).take_while(|lane| {
        let row = &lane.rows[0];
        bytes += row.detail.len() + row.kind.len() + row.source.len();
        bytes <= BYTES_PER_CALL
    });
    fit.count().max(1)
}

fn give_up(lane: &Lane, reason: &str, permanent: bool, unpublished: &mut Vec<Unpublished>) {
    for (index, row) in lane.rows.iter().enumerate() {
        unpublished.push(match index {
            0 => Unpublished { event: event_key(row), reason: reason.to_owned(), permanent },
            _ => Unpublished {
                event: event_key(row),
                reason: format!("an earlier event of {} was not published", row.entity),
                permanent: false,
            },
        });
    }
}
