//! Commits all rows of one effect in one transaction.

use std::time::Duration;

use aws_sdk_dynamodb::{
    Client,
    operation::{
        put_item::PutItemError, transact_write_items::TransactWriteItemsError,
        update_item::UpdateItemError,
    },
    types::{
        AttributeValue, CancellationReason, Delete, Put, ReturnValuesOnConditionCheckFailure,
        TransactWriteItem, Update,
    },
};
use contracts::{Event, Timestamp};
use fault::AwsErrorKind;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    EventRow, Item, Key, NewEvent, Outbox, StoreError, Table,
    table::{decode, encode, names},
};

/// The maximum number of retries of a transaction that DynamoDB cancelled because of a conflict or a throttle.
const MAX_RETRIES: u32 = 4;

/// The result of a transaction.
#[must_use = "the transaction may have been refused"]
#[derive(Debug)]
pub enum Commit {
    /// The whole transaction is committed.
    Done,
    /// Nothing is committed: at least one condition did not hold.
    Refused(FailedConditions),
}

/// The actions whose conditions did not hold, each with the existing row, if there was one. An event's row is not
/// returned.
#[derive(Debug)]
pub struct FailedConditions(Vec<(Key, Option<Item>)>);

impl FailedConditions {
    /// Returns whether the condition on this row did not hold.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.0.iter().any(|(refused, _)| refused == key)
    }

    /// Returns the row at `key` as it was when the condition on it failed. Returns `None` if the condition held, if
    /// there was no row, or if the row is an event.
    pub fn row<R: DeserializeOwned>(&self, key: &Key) -> Result<Option<R>, StoreError> {
        self.0
            .iter()
            .find(|(refused, _)| refused == key)
            .and_then(|(_, item)| item.clone())
            .map(|item| decode(key, item))
            .transpose()
    }
}

/// Writes that commit together, such as a business row and its event.
#[derive(Debug)]
pub struct Transaction {
    client: Client,
    actions: Vec<(Key, TransactWriteItem)>,
    /// The error of an action that can't be built. [`Self::commit`] returns it and sends nothing.
    error: Option<StoreError>,
}

impl Transaction {
    /// Creates an empty transaction, which uses the client of this table.
    #[must_use]
    pub fn on(table: &Table) -> Self {
        Self { client: table.client().clone(), actions: Vec::new(), error: None }
    }

    /// Puts a row that must not exist yet.
    #[must_use]
    pub fn create<R: Serialize>(self, table: &Table, key: &Key, row: &R) -> Self {
        self.put(table, key, row, &format!("attribute_not_exists({})", key.partition_name()), [])
    }

    /// Replaces a row if its attribute `status` still has this value, which the caller has read.
    #[must_use]
    pub fn put_if_status<R: Serialize>(
        self,
        table: &Table,
        key: &Key,
        row: &R,
        status: &str,
    ) -> Self {
        let status = AttributeValue::S(status.to_owned());
        self.put(table, key, row, "#status = :status", [("status", status)])
    }

    /// Replaces a row if its attribute `sequence` still has this value, which the caller has read. Each write of the
    /// row must increase `sequence`. An unchanged `sequence` then means that the row has not changed since the read.
    #[must_use]
    pub fn put_if_sequence<R: Serialize>(
        self,
        table: &Table,
        key: &Key,
        row: &R,
        sequence: u64,
    ) -> Self {
        let sequence = AttributeValue::N(sequence.to_string());
        self.put(table, key, row, "#sequence = :sequence", [("sequence", sequence)])
    }

    /// Replaces a row if its attributes `status` and `sequence` still have these values, which the caller has read. Use it
    /// for a row that some writes change without increasing `sequence`: those writes must change `status`.
    #[must_use]
    pub fn put_if_unchanged<R: Serialize>(
        self,
        table: &Table,
        key: &Key,
        row: &R,
        status: &str,
        sequence: u64,
    ) -> Self {
        let values = [
            ("status", AttributeValue::S(status.to_owned())),
            ("sequence", AttributeValue::N(sequence.to_string())),
        ];
        self.put(table, key, row, "#status = :status AND #sequence = :sequence", values)
    }

    /// Replaces a row if its attributes `sequence` and `at` still have these values, which the caller has read. Use it for a
    /// row that some writes change without increasing `sequence`: those writes must change `at`.
    #[must_use]
    pub fn put_if_same_version<R: Serialize>(
        self,
        table: &Table,
        key: &Key,
        row: &R,
        sequence: u64,
        at: Timestamp,
    ) -> Self {
        let values = [
            ("sequence", AttributeValue::N(sequence.to_string())),
            ("at", AttributeValue::S(at.to_string())),
        ];
        self.put(table, key, row, "#sequence = :sequence AND #at = :at", values)
    }

    /// Puts a row, unless the existing one has the same or a higher `sequence`. A projection from events therefore
    /// does not depend on the order of the events.
    #[must_use]
    pub fn put_if_newer<R: Serialize>(
        self,
        table: &Table,
        key: &Key,
        row: &R,
        sequence: u64,
    ) -> Self {
        let condition =
            format!("attribute_not_exists({}) OR #sequence < :sequence", key.partition_name());
        let sequence = AttributeValue::N(sequence.to_string());
        self.put(table, key, row, &condition, [("sequence", sequence)])
    }

    fn put<R: Serialize, const N: usize>(
        mut self,
        table: &Table,
        key: &Key,
        row: &R,
        condition: &str,
        values: [(&str, AttributeValue); N],
    ) -> Self {
        let put = encode(key, row).and_then(|item| {
            Put::builder()
                .table_name(table.name())
                .set_item(Some(item))
                .condition_expression(condition)
                .set_expression_attribute_names(names([condition]))
                .set_expression_attribute_values(bind(values))
                .return_values_on_condition_check_failure(
                    ReturnValuesOnConditionCheckFailure::AllOld,
                )
                .build()
                .map_err(|error| StoreError::Internal(error.to_string()))
        });
        match put {
            Ok(put) => self.push(key, TransactWriteItem::builder().put(put).build()),
            Err(error) => self.error = Some(error),
        }
        self
    }

    /// Updates attributes of a row in place, or creates the row. In the expressions, `#name` refers to an attribute,
    /// and `:name` to a value. DynamoDB refuses values that no expression uses.
    #[must_use]
    pub fn update<'a>(
        mut self,
        table: &Table,
        key: &Key,
        update: &str,
        condition: Option<&str>,
        values: impl IntoIterator<Item = (&'a str, AttributeValue)>,
    ) -> Self {
        let built = Update::builder()
            .table_name(table.name())
            .set_key(Some(key.item()))
            .update_expression(update)
            .set_condition_expression(condition.map(str::to_owned))
            .set_expression_attribute_names(names([update].into_iter().chain(condition)))
            .set_expression_attribute_values(bind(values))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build();
        match built {
            Ok(update) => self.push(key, TransactWriteItem::builder().update(update).build()),
            Err(error) => self.error = Some(StoreError::Internal(error.to_string())),
        }
        self
    }

    /// Deletes a row if the condition holds.
    #[must_use]
    pub fn delete<const N: usize>(
        mut self,
        table: &Table,
        key: &Key,
        condition: &str,
        values: [(&str, AttributeValue); N],
    ) -> Self {
        let built = Delete::builder()
            .table_name(table.name())
            .set_key(Some(key.item()))
            .condition_expression(condition)
            .set_expression_attribute_names(names([condition]))
            .set_expression_attribute_values(bind(values))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build();
        match built {
            Ok(delete) => self.push(key, TransactWriteItem::builder().delete(delete).build()),
            Err(error) => self.error = Some(StoreError::Internal(error.to_string())),
        }
        self
    }

    /// Adds the event to the outbox. The entity must not have an event with this sequence yet.
    #[must_use]
    pub fn event<D: Event>(mut self, outbox: &Outbox, event: NewEvent<D>) -> Self {
        let key = Key::id(format!("{}/{}", event.entity, event.sequence));
        self.put_event(outbox, &key, event.item());
        self
    }

    /// Adds an event of another system to the outbox. The entity must not have an event with this sequence yet.
    #[must_use]
    pub fn foreign_event(mut self, outbox: &Outbox, row: &EventRow) -> Self {
        let key = Key::id(format!("{}/{}", row.entity, row.sequence));
        self.put_event(outbox, &key, row.foreign_item());
        self
    }

    fn put_event(&mut self, outbox: &Outbox, key: &Key, item: Result<Item, StoreError>) {
        let put = item.and_then(|item| {
            Put::builder()
                .table_name(outbox.table_name())
                .set_item(Some(item))
                .condition_expression("attribute_not_exists(entity)")
                .build()
                .map_err(|error| StoreError::Internal(error.to_string()))
        });
        match put {
            Ok(put) => self.push(key, TransactWriteItem::builder().put(put).build()),
            Err(error) => self.error = Some(error),
        }
    }

    /// Returns the number of writes. DynamoDB accepts at most 100 in a transaction.
    #[must_use]
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Returns whether the transaction has no writes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    fn push(&mut self, key: &Key, action: TransactWriteItem) {
        self.actions.push((key.clone(), action));
    }

    /// Commits the transaction. The SDK's own retries use the same request token, so a retry after a lost response has
    /// no second effect. If DynamoDB cancels the transaction because of a conflict with another one or a throttle, this
    /// method sends it again, up to four times.
    ///
    /// A single put or update is sent without a transaction, so it has no request token, and only the SDK retries it.
    /// If the response is lost, the SDK's retry may be refused because the first attempt succeeded. An update without a
    /// condition is not refused, so it may be applied twice.
    pub async fn commit(self) -> Result<Commit, StoreError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let (keys, mut actions): (Vec<Key>, Vec<TransactWriteItem>) =
            self.actions.into_iter().unzip();
        // A single put or update needs no transaction, and costs half the write units without one.
        if let ([key], [action]) = (keys.as_slice(), actions.as_mut_slice()) {
            if let Some(put) = action.put.take() {
                return put_alone(&self.client, key, put).await;
            }
            if let Some(update) = action.update.take() {
                return update_alone(&self.client, key, update).await;
            }
        }
        let mut retries = 0;
        loop {
            let response = self
                .client
                .transact_write_items()
                .set_transact_items(Some(actions.clone()))
                .send()
                .await;
            let Err(error) = response else { return Ok(Commit::Done) };
            let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) =
                error.as_service_error()
            else {
                return Err(error.into());
            };
            let reasons = cancelled.cancellation_reasons();
            if let Some(refused) = refused(&keys, reasons) {
                return Ok(Commit::Refused(refused));
            }
            let text = cancelled.message().unwrap_or("transaction cancelled").to_owned();
            let mut codes = reasons.iter().filter_map(CancellationReason::code);
            if !codes.any(|code| AwsErrorKind::from_code(code).is_transient()) {
                return Err(StoreError::Internal(text));
            }
            if retries == MAX_RETRIES {
                return Err(StoreError::Transient(text));
            }
            retries += 1;
            tokio::time::sleep(jittered(Duration::from_millis(20) * 2_u32.pow(retries))).await;
        }
    }
}

async fn put_alone(client: &Client, key: &Key, put: Put) -> Result<Commit, StoreError> {
    let response = client
        .put_item()
        .table_name(put.table_name)
        .set_item(Some(put.item))
        .set_condition_expression(put.condition_expression)
        .set_expression_attribute_names(put.expression_attribute_names)
        .set_expression_attribute_values(put.expression_attribute_values)
        .set_return_values_on_condition_check_failure(put.return_values_on_condition_check_failure)
        .send()
        .await;
    let Err(error) = response else { return Ok(Commit::Done) };
    match error.as_service_error() {
        Some(PutItemError::ConditionalCheckFailedException(refused)) => {
            Ok(Commit::Refused(FailedConditions(vec![(key.clone(), refused.item.clone())])))
        }
        _ => Err(error.into()),
    }
}

async fn update_alone(client: &Client, key: &Key, update: Update) -> Result<Commit, StoreError> {
    let response = client
        .update_item()
        .table_name(update.table_name)
        .set_key(Some(update.key))
        .update_expression(update.update_expression)
        .set_condition_expression(update.condition_expression)
        .set_expression_attribute_names(update.expression_attribute_names)
        .set_expression_attribute_values(update.expression_attribute_values)
        .set_return_values_on_condition_check_failure(
            update.return_values_on_condition_check_failure,
        )
        .send()
        .await;
    let Err(error) = response else { return Ok(Commit::Done) };
    match error.as_service_error() {
        Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
            Ok(Commit::Refused(FailedConditions(vec![(key.clone(), refused.item.clone())])))
        }
        _ => Err(error.into()),
    }
}

fn refused(keys: &[Key], reasons: &[CancellationReason]) -> Option<FailedConditions> {
    let refused: Vec<_> = keys
        .iter()
        .zip(reasons)
        .filter(|(_, reason)| reason.code() == Some("ConditionalCheckFailed"))
        .map(|(key, reason)| (key.clone(), reason.item.clone()))
        .collect();
    (!refused.is_empty()).then_some(FailedConditions(refused))
}

/// Binds each value to `:name`. Returns `None` if there are no values, since DynamoDB refuses an empty map.
fn bind<'a>(values: impl IntoIterator<Item = (&'a str, AttributeValue)>) -> Option<Item> {
    let values: Item =
        values.into_iter().map(|(name, value)| (format!(":{name}"), value)).collect();
    (!values.is_empty()).then_some(values)
}

/// Returns a random duration from zero to `max`, so that conflicting writers do not collide again.
#[must_use]
pub fn jittered(max: Duration) -> Duration {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    let share = u32::try_from(random >> 32).unwrap_or(u32::MAX);
    max.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_spreads_from_zero_to_the_maximum() {
        let max = Duration::from_secs(1);
        let waits: Vec<_> = (0..1_000).map(|_| jittered(max)).collect();
        assert!(waits.iter().all(|wait| *wait <= max));
        assert!(waits.iter().any(|wait| *wait < max / 10));
        assert!(waits.iter().any(|wait| *wait > max * 9 / 10));
    }
}
