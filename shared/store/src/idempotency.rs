//! Idempotency records for effects outside DynamoDB, which a transaction can't contain.
//!
//! The layout is that of Powertools for AWS Lambda (`id`, `status`, `expiration` in epoch seconds,
//! `in_progress_expiration` in epoch milliseconds, `data`, `validation`) plus the attribute `owner`. Without `owner`
//! this could happen: run A takes the lock and is slow. Its lock expires, and run B takes it over. A finishes and
//! releases B's lock, so run C starts while B is still running. Or A completes the record, which B still uses. With
//! `owner`, A's checkpoint, completion and release are conditional on A's owner token, so DynamoDB refuses them.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use contracts::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Commit, Key, StoreError, Table, Transaction, table::decode};

/// Records expire this long after the last run began or completed. Redeliveries happen much sooner.
const RECORD_TTL: Duration = Duration::from_hours(7 * 24);

/// Idempotency records in a service's own table.
#[derive(Clone, Debug)]
pub struct Idempotency {
    table: Table,
    lease: Duration,
}

/// The result of [`Idempotency::begin`].
#[derive(Debug)]
pub enum BeginResult<C, R> {
    /// The caller has the lock and does the work.
    Started(Lock<C>),
    /// The work was completed before, with this result.
    Completed(R),
    /// Another run has the lock until this time.
    InProgress(Timestamp),
}

/// The caller's lock on the work. After it has expired, another run can take it over.
#[derive(Debug)]
pub struct Lock<C> {
    key: Key,
    owner: String,
    /// Whether an earlier run began and did not complete. It may have had effects.
    pub resumed: bool,
    /// The checkpoint of the earlier run.
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
    /// Creates a handle for the records in this table. Its key attribute must be `id`, and its TTL attribute
    /// `expiration`.
    ///
    /// `lease` is the time after which a lock expires. It must be longer than the function's timeout.
    #[must_use]
    pub fn new(table: Table, lease: Duration) -> Self {
        Self { table, lease }
    }

    /// Takes the lock on `id`, or returns the state of the earlier run.
    ///
    /// `validation` is a hash of the request. If the id was used before for another request, this returns
    /// [`StoreError::Corrupt`].
    pub async fn begin<C: DeserializeOwned, R: DeserializeOwned>(
        &self,
        id: &str,
        validation: &str,
        now: Timestamp,
    ) -> Result<BeginResult<C, R>, StoreError> {
        let key = record_key(id);
        let owner = Uuid::new_v4().to_string();
        let response = self
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
                (":until".to_owned(), AttributeValue::N(self.lock_end(now).millis().to_string())),
                (":expiration".to_owned(), AttributeValue::N(expiration(now).to_string())),
            ])))
            .return_values(ReturnValue::AllOld)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        match response {
            Ok(before) => {
                // Some emulators return attributes even if there was no record. A record always has a `status`.
                let before = before.attributes.filter(|item| item.contains_key("status"));
                let before: Option<Record> = before.map(|item| decode(&key, item)).transpose()?;
                let checkpoint = before
                    .as_ref()
                    .and_then(|record| record.data.as_deref())
                    .map(|data| parse(&key, data))
                    .transpose()?;
                Ok(BeginResult::Started(Lock { key, owner, resumed: before.is_some(), checkpoint }))
            }
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                    let item = refused.item.clone().unwrap_or_default();
                    let record: Record = decode(&key, item)?;
                    if record.validation.as_deref() != Some(validation) {
                        return Err(StoreError::Corrupt {
                            row: key.to_string(),
                            reason: "the id was used before for another request".to_owned(),
                        });
                    }
                    match (record.status.as_str(), record.data) {
                        (COMPLETED, Some(data)) => Ok(BeginResult::Completed(parse(&key, &data)?)),
                        _ => Ok(BeginResult::InProgress(Timestamp::from_millis(
                            record.in_progress_expiration,
                        ))),
                    }
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Returns `Some` if a run began and has not completed: its effects may exist already, or still happen. The inner
    /// option is the checkpoint, or `None` if no run has stored one.
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

    /// Stores a checkpoint for the next run. Returns `Refused` if the lock was lost.
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

    /// Adds the record's completion to the transaction that commits the result.
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

    /// Releases the lock after a failed run and keeps the checkpoint, so the next run need not wait until the lock
    /// expires. Returns `Refused` if another run has taken over the lock.
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

    /// Adds the deletion of the record to the transaction.
    ///
    /// The transaction commits only in these cases:
    ///
    /// - There is no record, or it is completed.
    /// - The last run did not complete the record, its lock is released or expired, and the record's checkpoint is
    ///   missing or equal to `seen`. With another checkpoint, an effect may exist that the caller does not know.
    pub fn delete_record<C: Serialize>(
        &self,
        transaction: Transaction,
        id: &str,
        seen: Option<&C>,
        now: Timestamp,
    ) -> Result<Transaction, StoreError> {
        let key = record_key(id);
        // Without `seen`, compare with the empty text, which no stored checkpoint equals.
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

    /// Returns the time at which a lock that is taken now expires.
    fn lock_end(&self, now: Timestamp) -> Timestamp {
        now.plus_millis(i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX))
    }
}

impl<C> Lock<C> {
    /// Returns the record's key. If the failed conditions of a transaction contain it, the lock was lost.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

fn record_key(id: &str) -> Key {
    Key::id(format!("idempotency#{id}"))
}

fn expiration(now: Timestamp) -> i64 {
    now.seconds().saturating_add(i64::try_from(RECORD_TTL.as_secs()).unwrap_or(i64::MAX))
}

fn parse<T: DeserializeOwned>(key: &Key, data: &str) -> Result<T, StoreError> {
    serde_json::from_str(data)
        .map_err(|error| StoreError::Corrupt { row: key.to_string(), reason: error.to_string() })
}

fn text<T: Serialize>(key: &Key, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { row: key.to_string(), reason: error.to_string() })
}
