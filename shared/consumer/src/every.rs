//! Mode `every`: each event takes effect exactly once, in the order of its entity.
//!
//! Each entity has a cursor row with the sequence of its last applied event. The transaction that writes the effect
//! also moves the cursor, on the condition that the cursor still has its previous value. So a repeated event is
//! skipped, even if the function stopped right after the transaction. If two executions apply the same event, only one
//! of them succeeds.
//!
//! If a batch lacks earlier events of an entity, the missing events are read from the log (the events table) with
//! strong consistency, starting after the cursor. The log should have no gap, because the writer of an event takes the
//! next sequence in a transaction. If the log has a gap nevertheless, the later events of that entity fail. The events
//! of the other entities in the batch are applied. Lambda then delivers the batch again from the first failed record
//! on. Later batches of that shard wait until the gap is filled or Lambda gives up the record.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::open::OpenEnvelope;
use futures_util::{StreamExt, stream};
use lambda::Deadline;
use serde::Deserialize;
use store::{
    Commit, EventRow, FailedConditions, Item, Key, StoreError, Table, Transaction, from_item,
};
use tokio::time::timeout;

/// The maximum number of writes in a transaction of DynamoDB.
const MAX_WRITES: usize = 100;
/// The maximum size of the events of one transaction, as JSON, in bytes. DynamoDB accepts 4 MB of rows in a
/// transaction.
const MAX_BYTES: usize = 2_000_000;
/// A run whose events are larger than this gets no further event. The size is that of the events as JSON, in bytes.
const MAX_RUN_BYTES: usize = 256 * 1024;
/// The maximum number of events that are read from the log in one call.
const PAGE: i32 = 200;
/// The maximum number of entities whose events are read from the log before the events are applied.
const MAX_LOG_LANES: usize = 25;
/// The number of concurrent calls to DynamoDB.
const CONCURRENT: usize = 8;
/// The maximum number of attempts to apply one entity's events while other executions move its cursor, or while its
/// transactions fail with a transient error: a conflict, a throttle or no usable response.
const MAX_ATTEMPTS: u32 = 12;
/// The longest pause before the second attempt. It doubles with each attempt, up to 16 times this pause.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The entities of a batch with their events, by the entities' keys in the log.
type Lanes = HashMap<String, Lane>;

/// A consumer's effect on its own tables.
pub trait Effect {
    /// Returns the key of an entity's cursor row. The row is in the table [`Effect::table`].
    fn cursor(&self, log_key: &str) -> Key;

    /// Returns the table of the cursors.
    fn table(&self) -> &Table;

    /// Returns the group of an entity. Only entities of the same group share a transaction.
    ///
    /// A consumer may have rows that belong to several entities, such as counters. Each such row must exist separately
    /// for each group, so that no two groups write the same row. Otherwise transactions of concurrent executions
    /// conflict all the time.
    fn group(&self, log_key: &str) -> u8;

    /// Returns the state of an entity after an event, given its state before the event. The cursor row contains the
    /// state, so the state needs no write of its own. Returns `None` if the entity has no state. The cursor row's state
    /// then stays as it is.
    fn state(&self, before: Option<&str>, event: &OpenEnvelope) -> Option<String>;

    /// Adds the writes of all runs to a transaction. A transaction must not write a row twice, so the writes of several
    /// runs to the same row must be combined into one.
    ///
    /// The writes should have no conditions. If a condition does not hold, the caller splits the runs into halves until
    /// the refused event is alone in its transaction. That event fails, and the later events of its entity are not
    /// applied.
    fn writes(&self, transaction: Transaction, runs: &[Run]) -> Result<Transaction, StoreError>;
}

/// Events of one entity that follow its cursor without a gap.
#[derive(Clone, Debug)]
pub struct Run {
    /// The entity's key in the log.
    pub log_key: String,
    /// The events in their order.
    pub events: Vec<OpenEnvelope>,
    /// The state of the entity before the first event; see [`Effect::state`].
    pub state: Option<String>,
    /// Whether this run is a part of a rebuild: its events come from [`crate::rebuild::apply`], or are live events for
    /// the generation that is being built. If so, the consumer must have no effect outside DynamoDB. A replay of one
    /// record in the current generation is not a part of a rebuild.
    pub replay: bool,
    /// The size of the events as JSON, in bytes. After a split, half of the size before.
    bytes: usize,
}

impl Run {
    fn first(&self) -> u64 {
        self.events.first().map_or(0, |event| event.metadata.sequence)
    }

    fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.metadata.sequence)
    }

    /// Splits the run into halves. The second half must be applied after the first.
    fn split(mut self, effect: &impl Effect) -> (Self, Self) {
        let events = self.events.split_off(self.events.len() / 2);
        self.bytes /= 2;
        let state = self.state_after(effect);
        let Self { replay, bytes, .. } = self;
        let second = Self { log_key: self.log_key.clone(), events, state, replay, bytes };
        (self, second)
    }

    /// Returns the state of the entity after the last event.
    fn state_after(&self, effect: &impl Effect) -> Option<String> {
        let state = self.state.clone();
        self.events.iter().fold(state, |state, event| effect.state(state.as_deref(), event))
    }
}

/// The events of one entity to apply.
#[derive(Debug, Default)]
pub struct Lane {
    /// The delivered events by sequence, each with its size as JSON in bytes. Missing events are read from the log.
    pub events: BTreeMap<u64, (OpenEnvelope, usize)>,
    /// Whether all later events in the log are applied too.
    pub to_the_end: bool,
}

/// The result of [`apply`].
#[derive(Debug, Default)]
pub struct Outcome {
    /// The last known cursor of each entity.
    cursors: HashMap<String, Cursor>,
    /// Why an entity's events were not all applied.
    pub errors: HashMap<String, StoreError>,
    /// The number of events that were applied.
    pub applied: u64,
    /// Whether the deadline passed before everything was applied.
    pub timed_out: bool,
}

impl Outcome {
    fn moved(&mut self, run: &Run, state: Option<String>) {
        self.cursors.insert(run.log_key.clone(), Cursor { sequence: run.last(), state });
        self.applied += run.events.len() as u64;
    }

    /// Returns why the entity's event with this sequence was not applied. Returns `None` if it was applied.
    #[must_use]
    pub fn failure(&self, log_key: &str, sequence: u64) -> Option<String> {
        if self.cursors.get(log_key).is_some_and(|cursor| cursor.sequence >= sequence) {
            return None;
        }
        let error = self.errors.get(log_key).map(ToString::to_string);
        Some(error.unwrap_or_else(|| "not finished: the deadline passed".to_owned()))
    }
}

/// A cursor row.
#[derive(Clone, Debug, Default, Deserialize)]
struct Cursor {
    /// The sequence of the last applied event.
    sequence: u64,
    /// The state of the entity after that event.
    state: Option<String>,
}

/// Applies the events of all lanes. Stops at the deadline and returns the cursors that were reached. A repeated call
/// continues from the cursors, so no event is lost.
pub async fn apply<E: Effect>(
    effect: &E,
    log: &Table,
    lanes: impl IntoIterator<Item = (String, Lane)>,
    replay: bool,
    deadline: Deadline,
) -> Outcome {
    let mut lanes: Lanes = lanes.into_iter().collect();
    let work = Work { effect, log, replay, outcome: RefCell::default() };
    // If the deadline passes, `Outcome::failure` reports the events after the cursors as failed.
    let ended = timeout(deadline.remaining(), Box::pin(work.lanes(&mut lanes))).await;
    let mut outcome = work.outcome.into_inner();
    outcome.timed_out = ended.is_err();
    outcome
}

struct Work<'a, E> {
    effect: &'a E,
    log: &'a Table,
    replay: bool,
    outcome: RefCell<Outcome>,
}

/// The result of trying to commit a group.
enum Attempt {
    Done,
    /// Another execution moved these entities' cursors.
    Moved(FailedConditions),
    /// Nothing is committed. The group is too large, or it has to be split to find the event that causes the error.
    Split(StoreError),
    /// Nothing is committed. The same transaction may succeed later.
    Later(StoreError),
}

impl<E: Effect> Work<'_, E> {
    async fn lanes(&self, lanes: &mut HashMap<String, Lane>) {
        let mut attempts: HashMap<String, u32> = HashMap::new();
        let mut stale: Vec<String> = lanes.keys().cloned().collect();
        while !lanes.is_empty() {
            if let Err(error) = self.read_cursors(&stale).await {
                let error = error.to_string();
                for log_key in lanes.keys() {
                    self.fail(log_key, StoreError::Transient(error.clone()));
                }
                return;
            }
            // An entity whose cursor row can't be parsed fails alone.
            lanes.retain(|log_key, _| !self.outcome.borrow().errors.contains_key(log_key));
            let mut runs = Vec::new();
            for (log_key, run) in self.next_runs(lanes).await {
                match run {
                    Ok(Some(run)) => runs.push(run),
                    Ok(None) => drop(lanes.remove(&log_key)),
                    Err(error) => {
                        self.fail(&log_key, error);
                        lanes.remove(&log_key);
                    }
                }
            }
            let again = self.commit_runs(runs).await;
            stale.clear();
            for (log_key, error) in again {
                let attempt = attempts.entry(log_key.clone()).or_default();
                *attempt += 1;
                if *attempt >= MAX_ATTEMPTS {
                    self.fail(&log_key, error);
                }
                stale.push(log_key);
            }
            lanes.retain(|log_key, _| !self.outcome.borrow().errors.contains_key(log_key));
            stale.retain(|log_key| lanes.contains_key(log_key));
            let rounds = stale.iter().filter_map(|log_key| attempts.get(log_key)).max();
            if let Some(rounds) = rounds {
                let pause = FIRST_PAUSE * 2_u32.pow((*rounds - 1).min(4));
                tokio::time::sleep(store::jittered(pause)).await;
            }
        }
    }

    fn fail(&self, log_key: &str, error: StoreError) {
        self.outcome.borrow_mut().errors.insert(log_key.to_owned(), error);
    }

    /// Reads the cursors of these entities. The cursor of an entity without a cursor row is 0. An entity whose row can't
    /// be parsed fails.
    async fn read_cursors(&self, log_keys: &[String]) -> Result<(), StoreError> {
        if log_keys.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = log_keys.iter().map(|log_key| self.effect.cursor(log_key)).collect();
        let names: Vec<String> =
            keys.iter().take(1).flat_map(|key| key.item().into_keys()).collect();
        let id = |item: &Item| {
            format!("{:?}", names.iter().map(|name| item.get(name)).collect::<Vec<_>>())
        };
        let log_key_of: HashMap<_, _> =
            keys.iter().map(|key| id(&key.item())).zip(log_keys).collect();
        let items = self.effect.table().batch_get(keys).consistent().send().await?;
        let mut found = HashMap::new();
        for item in items {
            let Some(log_key) = log_key_of.get(&id(&item)) else { continue };
            match from_item::<Cursor>(item, || format!("cursor of {log_key}")) {
                Ok(cursor) => drop(found.insert(*log_key, cursor)),
                Err(error) => self.fail(log_key, error),
            }
        }
        let cursors = &mut self.outcome.borrow_mut().cursors;
        for log_key in log_keys {
            cursors.insert(log_key.clone(), found.remove(log_key).unwrap_or_default());
        }
        Ok(())
    }

    /// Returns the next run of each lane, or `None` if the lane is done. A lane that is not in the result has to wait:
    /// only [`MAX_LOG_LANES`] lanes at a time are read from the log, so that their events fit into memory and some
    /// events are applied before the deadline.
    async fn next_runs(
        &self,
        lanes: &HashMap<String, Lane>,
    ) -> Vec<(String, Result<Option<Run>, StoreError>)> {
        let (mut next, mut behind) = (Vec::new(), Vec::new());
        for (log_key, lane) in lanes {
            let run = self.at_hand(log_key, lane);
            let has_later = lane.events.range(self.cursor(log_key).sequence + 1..).next().is_some();
            if !run.events.is_empty() {
                next.push((log_key.clone(), Ok(Some(run))));
            } else if has_later || lane.to_the_end {
                behind.push((run, has_later));
            } else {
                next.push((log_key.clone(), Ok(None)));
            }
        }
        behind.truncate(MAX_LOG_LANES);
        let read = stream::iter(behind)
            .map(async |(run, has_later)| {
                (run.log_key.clone(), self.read_log(run, has_later).await)
            })
            .buffer_unordered(CONCURRENT);
        next.extend(read.collect::<Vec<_>>().await);
        next
    }

    fn cursor(&self, log_key: &str) -> Cursor {
        self.outcome.borrow().cursors.get(log_key).cloned().unwrap_or_default()
    }

    /// Returns the delivered events that follow the cursor without a gap.
    fn at_hand(&self, log_key: &str, lane: &Lane) -> Run {
        let Cursor { sequence: cursor, state } = self.cursor(log_key);
        let (log_key, replay) = (log_key.to_owned(), self.replay);
        let mut run = Run { log_key, events: Vec::new(), state, replay, bytes: 0 };
        for (sequence, (event, bytes)) in lane.events.range(cursor + 1..) {
            if *sequence != cursor + 1 + run.events.len() as u64 || run.bytes > MAX_RUN_BYTES {
                break;
            }
            run.events.push(event.clone());
            run.bytes += bytes;
        }
        run
    }

    /// Adds the events that follow the cursor in the log to an empty run. Returns `None` if the log ends at the cursor.
    ///
    /// `has_later` is true if a later event was delivered. In this case, a log that ends at the cursor is an error. A
    /// log with later events but without the next one is always an error.
    async fn read_log(&self, mut run: Run, has_later: bool) -> Result<Option<Run>, StoreError> {
        let log_key = run.log_key.clone();
        let cursor = self.cursor(&log_key).sequence;
        let page = self
            .log
            .query("entity = :entity AND #sequence > :cursor")
            .text("entity", &log_key)
            .number("cursor", cursor)
            .consistent()
            .limit(PAGE)
            .page(None)
            .await?;
        let has_later = has_later || !page.items.is_empty();
        for item in page.items {
            let row: EventRow = from_item(item, || format!("of the log of {log_key}"))?;
            if row.sequence != cursor + 1 + run.events.len() as u64 || run.bytes > MAX_RUN_BYTES {
                break;
            }
            let corrupt = |reason: String| StoreError::Corrupt {
                row: format!("{log_key}/{}", row.sequence),
                reason,
            };
            let event = row.envelope().map_err(|error| corrupt(error.to_string()))?;
            run.bytes += row.detail.len();
            run.events.push(event);
        }
        if !run.events.is_empty() {
            metrics::counter!("EventsReadFromLog").increment(run.events.len() as u64);
            return Ok(Some(run));
        }
        if has_later {
            metrics::counter!("GapsInLog").increment(1);
            let reason = format!("the log has no event {}, but later ones exist", cursor + 1);
            return Err(StoreError::Corrupt { row: log_key, reason });
        }
        Ok(None)
    }

    /// Commits the runs with one transaction per group if they fit. Returns the entities whose cursors have to be read
    /// again, with the reason.
    async fn commit_runs(&self, runs: Vec<Run>) -> Vec<(String, StoreError)> {
        let mut groups: BTreeMap<u8, Vec<Run>> = BTreeMap::new();
        for run in runs {
            groups.entry(self.effect.group(&run.log_key)).or_default().push(run);
        }
        let groups = groups.into_values().map(|runs| self.commit_group(runs));
        stream::iter(groups).buffer_unordered(CONCURRENT).concat().await
    }

    /// Commits runs of one group. Splits them if they don't fit into one transaction or if DynamoDB refuses the
    /// transaction.
    async fn commit_group(&self, runs: Vec<Run>) -> Vec<(String, StoreError)> {
        let mut again = Vec::new();
        let mut stack = vec![runs];
        while let Some(mut runs) = stack.pop() {
            let attempt = self.attempt(&runs).await;
            match attempt {
                Attempt::Done => {
                    let outcome = &mut *self.outcome.borrow_mut();
                    for run in &runs {
                        outcome.moved(run, run.state_after(self.effect));
                    }
                }
                Attempt::Moved(refused) => {
                    let (moved, rest): (Vec<_>, Vec<_>) = runs
                        .into_iter()
                        .partition(|run| refused.contains(&self.effect.cursor(&run.log_key)));
                    again.extend(moved.into_iter().map(|run| {
                        let text = format!("other executions moved the cursor of {}", run.log_key);
                        (run.log_key, StoreError::Transient(text))
                    }));
                    if !rest.is_empty() {
                        stack.push(rest);
                    }
                }
                Attempt::Later(error) => {
                    let error = error.to_string();
                    again.extend(
                        runs.into_iter()
                            .map(|run| (run.log_key, StoreError::Transient(error.clone()))),
                    );
                }
                Attempt::Split(error) => {
                    let second = runs.split_off(runs.len() / 2);
                    match (runs.is_empty(), second.len()) {
                        (false, _) => stack.extend([second, runs]),
                        // There is only this run, and it has several events. Its first half is on top of the stack, so
                        // it is committed first. If it fails, the condition on the cursor refuses the second half.
                        (true, 1) if second[0].events.len() > 1 => {
                            for run in second {
                                let (first, second) = run.split(self.effect);
                                stack.extend([vec![second], vec![first]]);
                            }
                        }
                        (true, _) => {
                            let run = second.into_iter().next();
                            if let Some(run) = run {
                                self.fail_event(&run, &error);
                            }
                        }
                    }
                }
            }
        }
        again
    }

    fn fail_event(&self, run: &Run, error: &StoreError) {
        let corrupt = StoreError::Corrupt {
            row: format!("{}/{}", run.log_key, run.first()),
            reason: error.to_string(),
        };
        self.fail(&run.log_key, corrupt);
    }

    async fn attempt(&self, runs: &[Run]) -> Attempt {
        let bytes: usize = runs.iter().map(|run| run.bytes).sum();
        let too_large = || StoreError::Internal("it does not fit into a transaction".to_owned());
        let is_divisible = runs.len() > 1 || runs.iter().any(|run| run.events.len() > 1);
        if runs.len() > MAX_WRITES || (bytes > MAX_BYTES && is_divisible) {
            return Attempt::Split(too_large());
        }
        let mut transaction = Transaction::on(self.effect.table());
        for run in runs {
            transaction = self.move_cursor(transaction, run);
        }
        let transaction = match self.effect.writes(transaction, runs) {
            Ok(transaction) if transaction.len() <= MAX_WRITES => transaction,
            Ok(_) => return Attempt::Split(too_large()),
            Err(error) => return Attempt::Split(error),
        };
        match transaction.commit().await {
            Ok(Commit::Done) => Attempt::Done,
            Ok(Commit::Refused(refused)) => {
                let moved =
                    runs.iter().any(|run| refused.contains(&self.effect.cursor(&run.log_key)));
                if moved {
                    Attempt::Moved(refused)
                } else {
                    Attempt::Split(StoreError::Internal("a condition does not hold".to_owned()))
                }
            }
            Err(error @ StoreError::Transient(_)) => Attempt::Later(error),
            Err(error) => Attempt::Split(error),
        }
    }

    /// Adds the update that moves the cursor to the last event of the run. The condition is that the cursor is still at
    /// the event before the run.
    fn move_cursor(&self, transaction: Transaction, run: &Run) -> Transaction {
        let number = |value: u64| AttributeValue::N(value.to_string());
        let key = self.effect.cursor(&run.log_key);
        let before = run.first() - 1;
        let condition =
            if before == 0 { "attribute_not_exists(#sequence)" } else { "#sequence = :before" };
        let before = (before > 0).then(|| ("before", number(before)));
        let state = run.state_after(self.effect).map(|state| ("state", AttributeValue::S(state)));
        let set = match state {
            Some(_) => "SET #sequence = :last, #state = :state",
            None => "SET #sequence = :last",
        };
        let values = [("last", number(run.last()))].into_iter().chain(before).chain(state);
        transaction.update(self.effect.table(), &key, set, Some(condition), values)
    }
}
