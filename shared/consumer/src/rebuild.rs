//! Rebuilding a consumer's rows from the log, while live events go on.
//!
//! All rows of a consumer belong to a generation, which is the first part of their key. The state row names the current
//! generation and the one that is being built. While one is built, live events are applied to both. Readers use the
//! current one, so they see complete counts at any time.
//!
//! No event is missed. An execution that read the state before `begin` applies its events only to the old generation.
//! Those events were in the log before that execution read the state, so `apply`, which comes after `begin`, reads them
//! from there. An event that is appended later is delivered to an execution that knows the new generation.
//!
//! An event that can't be applied to the generation that is being built does not fail a live batch: it would stop the
//! counts that readers see. It is logged and counted. A later event of the entity, or `apply`, reads it again from the
//! log. `apply` names the entities that still fail, and the rebuild can be aborted.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::{AttributeValue, DeleteRequest, WriteRequest};
use contracts::{
    Timestamp,
    replay::{Aborted, Applied, Begun, Cleaned, FailedEntity, Rebuild},
};
use fault::{ErrorKind, InvocationError};
use lambda::Deadline;
use serde::Deserialize;
use store::{Commit, Item, Key, StoreError, Table, Transaction};

use crate::every::{self, Effect, Lane};

/// The generation of a consumer that was never rebuilt.
const FIRST: u64 = 1;
/// The time after `finish` or `abort` in which an execution may still write to the generation that ended: more than the
/// function's timeout.
const LINGER_MILLIS: i64 = 60_000;
/// The number of rows that are read in one call while old generations are deleted.
const PAGE: i32 = 500;
/// The maximum number of deletes in one call to DynamoDB.
const MAX_DELETES: usize = 25;
/// The maximum number of pages in one `clean`.
const MAX_PAGES: u32 = 10;
/// No page is started with less time than this.
const PAGE_TIME: Duration = Duration::from_secs(2);

/// A consumer whose rows belong to generations. Its table has the partition key `id` and the sort key `row`.
pub trait Generations {
    /// The effect on one generation.
    type Effect: Effect;

    /// Returns the effect on a generation. All its keys must be from [`key`] with this generation.
    fn effect(&self, generation: u64) -> Self::Effect;

    /// Returns the table of all generations.
    fn table(&self) -> &Table;
}

/// The generations that exist.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The generation that readers see.
    pub current: u64,
    /// The generation that is being built.
    pub building: Option<u64>,
    /// The last generation whose build was aborted. Its number is not used again, because some of its rows may be left.
    aborted: Option<u64>,
    /// From when on the rows of other generations may be deleted. Absent if there are none.
    clean_after: Option<Timestamp>,
    /// Where the deletion continues.
    clean_from: Option<[String; 2]>,
}

/// Returns the key of a row of a generation.
#[must_use]
pub fn key(generation: u64, id: &str, row: &str) -> Key {
    Key::pair(("id", format!("{generation}/{id}")), ("row", row))
}

/// Returns the key of the row that names the generations.
#[must_use]
pub fn state_key() -> Key {
    Key::pair(("id", "state"), ("row", "state"))
}

impl State {
    /// Reads the state. A consumer that was never rebuilt has no state row.
    pub async fn read(table: &Table) -> Result<Self, StoreError> {
        let row = table.get(&state_key()).await?;
        Ok(row.unwrap_or(Self {
            current: FIRST,
            building: None,
            aborted: None,
            clean_after: None,
            clean_from: None,
        }))
    }

    /// Returns the generations to which live events are applied.
    pub fn live(&self) -> impl Iterator<Item = u64> {
        [Some(self.current), self.building].into_iter().flatten()
    }

    fn is_live(&self, generation: u64) -> bool {
        self.live().any(|live| live == generation)
    }
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn busy() -> InvocationError {
    let message = "another rebuild changed the state; send the same call again".to_owned();
    InvocationError { kind: ErrorKind::Transient, message }
}

fn invalid(message: String) -> InvocationError {
    InvocationError { kind: ErrorKind::InvalidInput, message }
}

fn failed(error: &StoreError) -> InvocationError {
    InvocationError::from_fault(error)
}

/// Starts a new generation, or returns the one that is being built.
pub async fn begin(table: &Table) -> Result<Begun, InvocationError> {
    let state = State::read(table).await.map_err(|error| failed(&error))?;
    if let Some(generation) = state.building {
        return Ok(Begun { generation });
    }
    let generation = state.current.max(state.aborted.unwrap_or_default()) + 1;
    let commit = Transaction::on(table)
        .update(
            table,
            &state_key(),
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
    let clean_after = now.plus_millis(LINGER_MILLIS).to_string();
    let commit = Transaction::on(table)
        .update(
            table,
            &state_key(),
            "SET #current = :generation, #cleanAfter = :after REMOVE #building, #cleanFrom",
            Some("#building = :generation"),
            [("generation", number(generation)), ("after", AttributeValue::S(clean_after))],
        )
        .commit();
    match commit.await.map_err(|error| failed(&error))? {
        Commit::Done => Ok(()),
        Commit::Refused(_) => Err(busy()),
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
            &state_key(),
            "SET #aborted = :generation, #cleanAfter = :after REMOVE #building, #cleanFrom",
            Some("#building = :generation"),
            [("generation", number(generation)), ("after", AttributeValue::S(clean_after))],
        )
        .commit();
    match commit.await.map_err(|error| failed(&error))? {
        Commit::Done => Ok(Aborted { generation: Some(generation) }),
        Commit::Refused(_) => Err(busy()),
    }
}

/// Applies all events in the log of these entities that the generation does not have yet. The reply names the entities
/// that can't be applied; the others are applied.
///
/// Fails if the deadline passes first, or if DynamoDB is temporarily unavailable. What was applied stays, so the same call
/// then continues.
pub async fn apply<G: Generations>(
    consumer: &G,
    log: &Table,
    generation: u64,
    entities: Vec<String>,
    deadline: Deadline,
) -> Result<Applied, InvocationError> {
    if entities.len() > Rebuild::MAX_ENTITIES {
        let max = Rebuild::MAX_ENTITIES;
        return Err(invalid(format!("entities: give at most {max}, not {}", entities.len())));
    }
    let state = State::read(consumer.table()).await.map_err(|error| failed(&error))?;
    if !state.is_live(generation) {
        let message = format!("generation: {generation} is not being built; call begin first");
        return Err(invalid(message));
    }
    let to_the_end = || Lane { to_the_end: true, ..Lane::default() };
    let lanes: HashMap<_, _> =
        entities.iter().map(|entity| (entity.clone(), to_the_end())).collect();
    let outcome = every::apply(&consumer.effect(generation), log, lanes, true, deadline).await;
    let mut refused = Vec::new();
    for (entity, error) in &outcome.errors {
        let InvocationError { kind, message } = failed(error);
        if kind == ErrorKind::Transient {
            return Err(InvocationError { kind, message: format!("{entity}: {message}") });
        }
        refused.push(FailedEntity { entity: entity.clone(), reason: message });
    }
    refused.sort_unstable();
    if outcome.timed_out {
        let message =
            "the function's deadline passed; send the same call again to continue".to_owned();
        return Err(InvocationError { kind: ErrorKind::Transient, message });
    }
    Ok(Applied { applied: outcome.applied, failed: refused })
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
        let generation = id.and_then(|id| id.split_once('/')?.0.parse().ok());
        generation.is_some_and(|generation: u64| !state.is_live(generation))
    };
    let old: Vec<_> = page.items.into_iter().filter(is_old).collect();
    let deleted = old.len() as u64;
    for keys in old.chunks(MAX_DELETES) {
        delete(table, keys).await?;
    }
    // A crash before this update repeats the page, which then has no old rows. If another generation ended meanwhile, the
    // scan starts again: `finish` and `abort` change `cleanAfter`.
    let text = |name| {
        let value = page.next.as_ref().and_then(|next| next.get(name)?.as_s().ok());
        value.map(|value| AttributeValue::S(value.clone()))
    };
    let after = state.clean_after.map(|after| AttributeValue::S(after.to_string()));
    let after = after.map(|after| ("after", after));
    let unchanged = Some("#cleanAfter = :after");
    let key = state_key();
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

/// Deletes rows by their keys. What DynamoDB leaves is an error, and the page is repeated.
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
