//! Rebuilds a consumer's rows from the log, while live events are still applied.
//!
//! The log is the events table. All rows of a consumer, except the state row, belong to a generation. The first part of
//! a row's key is the number of its generation. The state row names the current generation and the one that is being
//! built. While a generation is built, live events are applied to both. Readers use the current generation, so they see
//! complete counts at any time.
//!
//! No event is missed. An execution that read the state before `begin` applies its events only to the old generation.
//! Those events were in the log before that execution read the state. So `apply`, which comes after `begin`, reads them
//! from the log. An execution that reads the state after `begin` applies its events to the new generation too.
//!
//! Applying an event to the generation that is being built may fail permanently, for example because of a gap in the
//! log. Such an event does not fail a live batch, because a failed batch would stop the counts that readers see. (A
//! transient error does fail the batch, and Lambda delivers the batch again.) The entity is logged and counted, and
//! recorded in the state row as unapplied. `finish` refuses the generation while an entity is recorded.
//! `apply` removes the entities of its call from this record and reads their events from the log. If an entity fails
//! permanently, `apply` records it and names it in the reply. After a transient error, the call has to be repeated. The
//! rebuild can be aborted.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::{AttributeValue, DeleteRequest, WriteRequest};
use contracts::{
    Timestamp,
    replay::{Aborted, Applied, Begun, Cleaned, FailedEntity, Rebuild},
};
use fault::{ErrorKind, InvocationError};
use lambda::Deadline;
use store::{
    Commit, Item, Key, StoreError, Table, Transaction,
    generation::{self, State},
};

use crate::every::{self, Effect, Lane};

/// The time after `finish` or `abort` in which an execution may still write to the generation that ended, in
/// milliseconds. It is longer than the function's timeout. Only after it, `clean` deletes the rows of that generation.
const LINGER_MILLIS: i64 = 60_000;
/// The number of rows that `clean` reads in one call to DynamoDB.
const PAGE: i32 = 500;
/// The maximum number of deletes in one call to DynamoDB.
const MAX_DELETES: usize = 25;
/// The maximum number of pages in one `clean`.
const MAX_PAGES: u32 = 10;
/// The maximum number of entities that are recorded because an event could not be applied.
const MAX_UNAPPLIED: usize = 100;
/// The entry that is recorded instead of further entities if there would be more than [`MAX_UNAPPLIED`]. The entities
/// that were recorded before stay. The entry is not the key of any entity in the log.
const OTHERS: &str = "*";
/// `clean` starts a page other than the first only if at least this much time is left before the deadline.
const PAGE_TIME: Duration = Duration::from_secs(2);

/// A consumer whose rows belong to generations. Its table has the partition key `id` and the sort key `row`.
pub trait Generations {
    /// The effect on one generation.
    type Effect: Effect;

    /// Returns the effect on a generation. The implementation must build each key of the effect with the functions in
    /// [`store::generation`], and pass them this generation.
    fn effect(&self, generation: u64) -> Self::Effect;

    /// Returns the table of all generations.
    fn table(&self) -> &Table;
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn busy() -> InvocationError {
    let message =
        "the state of the rebuild changed in the meantime; send the same call again".to_owned();
    InvocationError { kind: ErrorKind::Transient, message }
}

fn invalid(message: String) -> InvocationError {
    InvocationError { kind: ErrorKind::InvalidInput, message }
}

fn failed(error: &StoreError) -> InvocationError {
    InvocationError::from_fault(error)
}

/// Starts a new generation. If one is already being built, returns that one.
pub async fn begin(table: &Table) -> Result<Begun, InvocationError> {
    let state = State::read(table).await.map_err(|error| failed(&error))?;
    if let Some(generation) = state.building {
        return Ok(Begun { generation });
    }
    let generation = state.current.max(state.aborted.unwrap_or_default()) + 1;
    let commit = Transaction::on(table)
        .update(
            table,
            &State::key(),
            "SET #current = :current, #building = :building",
            Some(
                "attribute_not_exists(#id) OR (#current = :current AND attribute_not_exists(#building) AND (attribute_not_exists(#aborted) OR #aborted < :building))",
            ),
            [("current", number(state.current)), ("building", number(generation))],
        )
        .commit();
    match commit.await.map_err(|error| failed(&error))? {
        Commit::Done => Ok(Begun { generation }),
        Commit::Refused(_) => Err(busy()),
    }
}

/// Makes a generation the current one. A repeated call has no further effect.
pub async fn finish(table: &Table, generation: u64, now: Timestamp) -> Result<(), InvocationError> {
    let state = State::read(table).await.map_err(|error| failed(&error))?;
    if state.current == generation {
        return Ok(());
    }
    if state.building != Some(generation) {
        let message = format!("generation: {generation} is not being built; call begin first");
        return Err(invalid(message));
    }
    if !state.unapplied.is_empty() {
        return Err(unapplied(&state));
    }
    let clean_after = now.plus_millis(LINGER_MILLIS).to_string();
    let commit = Transaction::on(table)
        .update(
            table,
            &State::key(),
            "SET #current = :generation, #cleanAfter = :after REMOVE #building, #cleanFrom",
            Some("#building = :generation AND attribute_not_exists(#unapplied)"),
            [("generation", number(generation)), ("after", AttributeValue::S(clean_after))],
        )
        .commit();
    match commit.await.map_err(|error| failed(&error))? {
        Commit::Done => Ok(()),
        Commit::Refused(_) => Err(busy()),
    }
}

fn unapplied(state: &State) -> InvocationError {
    if state.unapplied.contains(OTHERS) {
        return invalid(format!(
            "events of more than {MAX_UNAPPLIED} entities could not be applied to the rebuild; \
             remove the cause, abort the rebuild and begin again"
        ));
    }
    let entities = state.unapplied.iter().map(String::as_str).collect::<Vec<_>>();
    invalid(format!(
        "events of some entities could not be applied to the rebuild; remove the cause and apply \
         these entities again: {}",
        entities.join(", ")
    ))
}

/// Records that events of these entities could not be applied to the generation that is being built, so that `finish`
/// refuses the generation. Records nothing and returns `false` if the generation is not being built any more. (If there
/// is nothing new to record, it returns `true` without checking that.)
pub(crate) async fn record_unapplied(
    table: &Table,
    state: &State,
    generation: u64,
    entities: impl IntoIterator<Item = String>,
) -> Result<bool, StoreError> {
    // A recorded entity need not be recorded again. It stays recorded until an `apply` of this entity begins, and that
    // `apply` reads the event from the log.
    let mut new: Vec<_> = entities.into_iter().filter(|it| !state.unapplied.contains(it)).collect();
    if new.is_empty() || state.unapplied.contains(OTHERS) {
        return Ok(true);
    }
    if state.unapplied.len() + new.len() > MAX_UNAPPLIED {
        new = vec![OTHERS.to_owned()];
    }
    let values = [("entities", AttributeValue::Ss(new)), ("generation", number(generation))];
    let condition = Some("#building = :generation");
    let add = "ADD #unapplied :entities";
    let update = Transaction::on(table).update(table, &State::key(), add, condition, values);
    match update.commit().await? {
        Commit::Done => Ok(true),
        Commit::Refused(_) => Ok(false),
    }
}

/// Removes these entities from the unapplied ones, before their events are applied again. Removes nothing and returns
/// `false` if the generation is not being built any more. (If there is nothing to remove, it returns `true` without
/// checking that.)
async fn forget_unapplied(
    table: &Table,
    state: &mut State,
    generation: u64,
    entities: &[String],
) -> Result<bool, StoreError> {
    let recorded: Vec<_> = entities.iter().filter_map(|it| state.unapplied.take(it)).collect();
    if recorded.is_empty() {
        return Ok(true);
    }
    let values = [("entities", AttributeValue::Ss(recorded)), ("generation", number(generation))];
    let condition = Some("#building = :generation");
    let delete = "DELETE #unapplied :entities";
    let update = Transaction::on(table).update(table, &State::key(), delete, condition, values);
    match update.commit().await? {
        Commit::Done => Ok(true),
        Commit::Refused(_) => Ok(false),
    }
}

/// Gives up the generation that is being built. A repeated call has no further effect.
pub async fn abort(table: &Table, now: Timestamp) -> Result<Aborted, InvocationError> {
    let state = State::read(table).await.map_err(|error| failed(&error))?;
    let Some(generation) = state.building else { return Ok(Aborted { generation: None }) };
    let clean_after = now.plus_millis(LINGER_MILLIS).to_string();
    let commit = Transaction::on(table)
        .update(
            table,
            &State::key(),
            "SET #aborted = :generation, #cleanAfter = :after REMOVE #building, #unapplied, #cleanFrom",
            Some("#building = :generation"),
            [("generation", number(generation)), ("after", AttributeValue::S(clean_after))],
        )
        .commit();
    match commit.await.map_err(|error| failed(&error))? {
        Commit::Done => Ok(Aborted { generation: Some(generation) }),
        Commit::Refused(_) => Err(busy()),
    }
}

/// Applies all events of these entities that the log has and the generation does not have yet. The reply names the entities
/// whose events can't all be applied. The events of the other entities are applied.
///
/// If the deadline passes first, or if DynamoDB is temporarily unavailable, the caller has to repeat the call. The events
/// that were applied stay applied, so the repeated call continues. If the caller accepts a partial reply and an event was
/// applied, the reply has `more`. Otherwise the call fails with a transient error.
pub async fn apply<G: Generations>(
    consumer: &G,
    log: &Table,
    generation: u64,
    entities: Vec<String>,
    partial: bool,
    deadline: Deadline,
) -> Result<Applied, InvocationError> {
    if entities.len() > Rebuild::MAX_ENTITIES {
        let max = Rebuild::MAX_ENTITIES;
        return Err(invalid(format!("entities: give at most {max}, not {}", entities.len())));
    }
    let mut state = State::read(consumer.table()).await.map_err(|error| failed(&error))?;
    if !state.is_live(generation) {
        let message = format!("generation: {generation} is not being built; call begin first");
        return Err(invalid(message));
    }
    // The entities are removed from the record before the log is read. If a live batch records one of them after the
    // removal, it stays recorded. No event is lost: the log has all events that caused the removed entries.
    let forgotten = forget_unapplied(consumer.table(), &mut state, generation, &entities).await;
    if !forgotten.map_err(|error| failed(&error))? {
        return Err(busy());
    }
    let to_the_end = || Lane { to_the_end: true, ..Lane::default() };
    let lanes: HashMap<_, _> =
        entities.iter().map(|entity| (entity.clone(), to_the_end())).collect();
    let outcome = every::apply(&consumer.effect(generation), log, lanes, true, deadline).await;
    // Why the call has to be repeated.
    let mut unfinished = outcome
        .timed_out
        .then(|| "the function's deadline passed; send the same call again to continue".to_owned());
    let mut refused = Vec::new();
    for (entity, error) in &outcome.errors {
        let InvocationError { kind, message } = failed(error);
        if kind == ErrorKind::Transient {
            unfinished = Some(format!("{entity}: {message}"));
        } else {
            refused.push(FailedEntity { entity: entity.clone(), reason: message });
        }
    }
    refused.sort_unstable();
    if state.building == Some(generation) {
        let entities = refused.iter().map(|it| it.entity.clone());
        let recorded = record_unapplied(consumer.table(), &state, generation, entities).await;
        if !recorded.map_err(|error| failed(&error))? {
            return Err(busy());
        }
    }
    let more = unfinished.is_some();
    match unfinished {
        Some(message) if !partial || outcome.applied == 0 => {
            Err(InvocationError { kind: ErrorKind::Transient, message })
        }
        _ => Ok(Applied { applied: outcome.applied, failed: refused, more }),
    }
}

/// Deletes some rows of generations that are neither current nor being built.
pub async fn clean(
    table: &Table,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Cleaned, InvocationError> {
    let mut deleted = 0;
    for page in 0..MAX_PAGES {
        let state = State::read(table).await.map_err(|error| failed(&error))?;
        let Some(clean_after) = state.clean_after else {
            return Ok(Cleaned { deleted, more: false });
        };
        if now < clean_after || (page > 0 && deadline.remaining() < PAGE_TIME) {
            return Ok(Cleaned { deleted, more: true });
        }
        deleted += clean_page(table, &state).await.map_err(|error| failed(&error))?;
    }
    Ok(Cleaned { deleted, more: true })
}

async fn clean_page(table: &Table, state: &State) -> Result<u64, StoreError> {
    let start =
        state.clean_from.as_ref().map(|[id, row]| Key::pair(("id", id), ("row", row)).item());
    let page = table.scan().project("#id, #row").consistent().limit(PAGE).page(start).await?;
    let is_old = |item: &Item| {
        let id = item.get("id").and_then(|id| id.as_s().ok());
        let generation = id.and_then(|id| generation::of_row(id));
        generation.is_some_and(|generation| !state.is_live(generation))
    };
    let old: Vec<_> = page.items.into_iter().filter(is_old).collect();
    let deleted = old.len() as u64;
    for keys in old.chunks(MAX_DELETES) {
        delete(table, keys).await?;
    }
    // After a crash before this update, the next call starts at the same position. The deleted rows are gone, so its
    // page reaches further. If another generation ended in the meantime, the scan starts again: `finish` and `abort`
    // change `cleanAfter`, so this update is refused.
    let text = |name| {
        let value = page.next.as_ref().and_then(|next| next.get(name)?.as_s().ok());
        value.map(|value| AttributeValue::S(value.clone()))
    };
    let after = state.clean_after.map(|after| AttributeValue::S(after.to_string()));
    let after = after.map(|after| ("after", after));
    let unchanged = Some("#cleanAfter = :after");
    let key = State::key();
    let update = Transaction::on(table);
    let update = if let Some((id, row)) = text("id").zip(text("row")) {
        let from = AttributeValue::L(vec![id, row]);
        let set = "SET #cleanFrom = :from";
        update.update(table, &key, set, unchanged, after.into_iter().chain([("from", from)]))
    } else {
        let remove = "REMOVE #cleanFrom, #cleanAfter";
        update.update(table, &key, remove, unchanged, after)
    };
    match update.commit().await? {
        Commit::Done | Commit::Refused(_) => Ok(deleted),
    }
}

/// Deletes rows by their keys. Returns an error if DynamoDB does not delete all of them. The next `clean` then repeats
/// the page.
async fn delete(table: &Table, keys: &[Item]) -> Result<(), StoreError> {
    let delete = |key: &Item| {
        let request = DeleteRequest::builder().set_key(Some(key.clone())).build();
        let request = request.map_err(|error| StoreError::Internal(error.to_string()))?;
        Ok(WriteRequest::builder().delete_request(request).build())
    };
    let requests = keys.iter().map(delete).collect::<Result<Vec<_>, StoreError>>()?;
    let response =
        table.client().batch_write_item().request_items(table.name(), requests).send().await?;
    let left = response.unprocessed_items.unwrap_or_default().remove(table.name());
    match left.unwrap_or_default().len() {
        0 => Ok(()),
        left => Err(StoreError::Transient(format!("{left} rows are not deleted"))),
    }
}
