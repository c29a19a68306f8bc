//! The idempotency record: for effects outside DynamoDB, which no transaction can hold.
//!
//! The layout is the one that Powertools users know (`id`, `status`, `expiration` in epoch seconds,
//! `in_progress_expiration` in epoch milliseconds, `data`, `validation`) and one attribute more:
//! `owner`. How it goes wrong without it: run A takes the lock and is slow; its lock expires; run B
//! takes it over; A finishes and frees or completes B's lock; run C starts beside B. Here A's
//! checkpoint and completion are conditional on its owner token, so A learns that it lost.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use contracts::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Commit, Key, StoreError, Table, Transaction, table::decode};

/// Records live this long after their last change; a redelivery comes far sooner.
const KEPT: Duration = Duration::from_hours(7 * 24);

/// Idempotency records in a service's own table.
#[derive(Clone, Debug)]
pub struct Idempotency {
    table: Table,
    lease: Duration,
}

/// What [`Idempotency::begin`] found.
#[derive(Debug)]
pub enum Begin<C, R> {
    /// The work is ours to do.
    Started(Lock<C>),
    /// It was done before; this was its result.
    Completed(R),
    /// Someone is at it, and has until then.
    InProgress(Timestamp),
}

/// The right to do the work, until it expires.
#[derive(Debug)]
pub struct Lock<C> {
    key: Key,
    owner: String,
    /// An earlier run began and did not finish: its effects may be there.
    pub resumed: bool,
    /// What the earlier run had noted.
    pub checkpoint: Option<C>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    status: String,
    #[serde(default)]
    in_progress_expiration: i64,
    #[serde(default)]
    data: Option<String>,
    #[serde(default)]
    validation: Option<String>,
}

const IN_PROGRESS: &str = "INPROGRESS";
const COMPLETED: &str = "COMPLETED";

impl Idempotency {
    /// Records in that table (key `id`, TTL on `expiration`); `lease` is how long a run may take:
    /// longer than the function's time-out.
    #[must_use]
    pub fn new(table: Table, lease: Duration) -> Self {
        Self { table, lease }
    }

    /// Takes the lock on `id`, or tells what came of it before. `validation` is a hash of the
    /// request: the same id with another request is the caller's fault, told as `Err`.
    pub async fn begin<C: DeserializeOwned, R: DeserializeOwned>(
        &self,
        id: &str,
        validation: &str,
        now: Timestamp,
    ) -> Result<Begin<C, R>, StoreError> {
        let key = record_key(id);
        let owner = Uuid::new_v4().to_string();
        let answer = self
            .table
            .client()
            .update_item()
            .table_name(self.table.name())
            .set_key(Some(key.item()))
            .update_expression(
                "SET #status = :in_progress, #owner = :owner, #validation = :validation, \
                 in_progress_expiration = :until, expiration = :expiration",
            )
            .condition_expression(
                "attribute_not_exists(id) OR \
                 (#status = :in_progress AND in_progress_expiration < :now \
                  AND #validation = :validation)",
            )
            .set_expression_attribute_names(Some(HashMap::from([
                ("#status".to_owned(), "status".to_owned()),
                ("#owner".to_owned(), "owner".to_owned()),
                ("#validation".to_owned(), "validation".to_owned()),
            ])))
            .set_expression_attribute_values(Some(HashMap::from([
                (":in_progress".to_owned(), AttributeValue::S(IN_PROGRESS.to_owned())),
                (":owner".to_owned(), AttributeValue::S(owner.clone())),
                (":validation".to_owned(), AttributeValue::S(validation.to_owned())),
                (":now".to_owned(), AttributeValue::N(now.millis().to_string())),
                (":until".to_owned(), AttributeValue::N(self.until(now).millis().to_string())),
                (":expiration".to_owned(), AttributeValue::N(expiration(now).to_string())),
            ])))
            .return_values(ReturnValue::AllOld)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        match answer {
            Ok(before) => {
                // Of a record that was not there, emulators answer with what AWS leaves out.
                let before = before.attributes.filter(|item| item.contains_key("status"));
                let before: Option<Record> = before.map(|item| decode(&key, item)).transpose()?;
                let checkpoint = before
                    .as_ref()
                    .and_then(|record| record.data.as_deref())
                    .map(|data| parse(&key, data))
                    .transpose()?;
                Ok(Begin::Started(Lock { key, owner, resumed: before.is_some(), checkpoint }))
            }
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                    let item = refused.item.clone().unwrap_or_default();
                    let record: Record = decode(&key, item)?;
                    if record.validation.as_deref() != Some(validation) {
                        return Err(StoreError::Corrupt {
                            row: key.to_string(),
                            reason: "the same id came with another request".to_owned(),
                        });
                    }
                    match (record.status.as_str(), record.data) {
                        (COMPLETED, Some(data)) => Ok(Begin::Completed(parse(&key, &data)?)),
                        _ => Ok(Begin::InProgress(Timestamp::from_millis(
                            record.in_progress_expiration,
                        ))),
                    }
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Whether a run began and has not finished: its effects may be there, or come yet.
    pub async fn unfinished<C: DeserializeOwned>(
        &self,
        id: &str,
    ) -> Result<Option<Option<C>>, StoreError> {
        let key = record_key(id);
        let record: Option<Record> = self.table.get(&key).await?;
        match record {
            Some(Record { status, data, .. }) if status == IN_PROGRESS => {
                Ok(Some(data.map(|data| parse(&key, &data)).transpose()?))
            }
            _ => Ok(None),
        }
    }

    /// Notes how far the work came, for whoever takes over. `Refused` when the lock was lost.
    pub async fn checkpoint<C: Serialize>(
        &self,
        lock: &Lock<C>,
        checkpoint: &C,
    ) -> Result<Commit, StoreError> {
        let data = AttributeValue::S(text(&lock.key, checkpoint)?);
        Transaction::on(&self.table)
            .update(
                &self.table,
                &lock.key,
                "SET #data = :data",
                Some("#owner = :owner"),
                [("data", data), ("owner", AttributeValue::S(lock.owner.clone()))],
            )
            .commit()
            .await
    }

    /// Adds the record's completion to the transaction that commits the work's result.
    pub fn complete<C, R: Serialize>(
        &self,
        transaction: Transaction,
        lock: &Lock<C>,
        result: &R,
        now: Timestamp,
    ) -> Result<Transaction, StoreError> {
        let data = AttributeValue::S(text(&lock.key, result)?);
        Ok(transaction.update(
            &self.table,
            &lock.key,
            "SET #data = :data, #status = :status, #expiration = :expiration",
            Some("#owner = :owner"),
            [
                ("data", data),
                ("status", AttributeValue::S(COMPLETED.to_owned())),
                ("expiration", AttributeValue::N(expiration(now).to_string())),
                ("owner", AttributeValue::S(lock.owner.clone())),
            ],
        ))
    }

    /// Frees the lock after a failed try, keeping the checkpoint, so that the next try need not
    /// wait for the lease to end. A lock that was lost meanwhile stays its new owner's.
    pub async fn release<C>(&self, lock: &Lock<C>) -> Result<Commit, StoreError> {
        Transaction::on(&self.table)
            .update(
                &self.table,
                &lock.key,
                "SET #in_progress_expiration = :in_progress_expiration",
                Some("#owner = :owner"),
                [
                    ("in_progress_expiration", AttributeValue::N("0".to_owned())),
                    ("owner", AttributeValue::S(lock.owner.clone())),
                ],
            )
            .commit()
            .await
    }

    /// Adds to the transaction that the record goes, provided that no run is at it (it is completed,
    /// or the last run gave up or outlived its lease) and that none noted anything but what was
    /// `seen`: nobody may forget what nobody has dealt with.
    pub fn forget<C: Serialize>(
        &self,
        transaction: Transaction,
        id: &str,
        seen: Option<&C>,
        now: Timestamp,
    ) -> Result<Transaction, StoreError> {
        let key = record_key(id);
        // No note is an empty text.
        let seen = seen.map(|seen| text(&key, seen)).transpose()?.unwrap_or_default();
        Ok(transaction.delete(
            &self.table,
            &key,
            "attribute_not_exists(id) OR #status = :status \
             OR (#in_progress_expiration < :in_progress_expiration \
                 AND (attribute_not_exists(#data) OR #data = :data))",
            [
                ("status", AttributeValue::S(COMPLETED.to_owned())),
                ("in_progress_expiration", AttributeValue::N(now.millis().to_string())),
                ("data", AttributeValue::S(seen)),
            ],
        ))
    }

    fn until(&self, now: Timestamp) -> Timestamp {
        now.plus_millis(i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX))
    }
}

impl<C> Lock<C> {
    /// The record's key, to tell whether a refused transaction was refused for the lock.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

fn record_key(id: &str) -> Key {
    Key::id(format!("idempotency#{id}"))
}

fn expiration(now: Timestamp) -> i64 {
    now.seconds().saturating_add(i64::try_from(KEPT.as_secs()).unwrap_or(i64::MAX))
}

fn parse<T: DeserializeOwned>(key: &Key, data: &str) -> Result<T, StoreError> {
    serde_json::from_str(data)
        .map_err(|error| StoreError::Corrupt { row: key.to_string(), reason: error.to_string() })
}

fn text<T: Serialize>(key: &Key, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { row: key.to_string(), reason: error.to_string() })
}
