//! Watches the stock of kits through the stream of the inventory table, and emits an event when the level of a metric's
//! stock changes: `StockLow`, `StockSoldOut` or `StockReplenished`.
//!
//! A stock that was low or sold out is OK again only when its quantity is above the limit by the deadband or more. So a
//! low stock that stays above 0 and below the sum of limit and deadband causes no further events.
//!
//! The level and its event commit in one transaction. The level row keeps the position of the record that caused its
//! last change. A record that is not after this position is skipped, so repeated records have no effect. A record that
//! does not change the level writes nothing.
//!
//! A record that can never be judged is sent to inventory's failure queue (`shared/quarantine`), and the others of the
//! batch are judged. After any other failure, the response names the first failed record, and Lambda delivers the batch
//! again from there.

use aws_lambda_events::{dynamodb::EventRecord, event::streams::DynamoDbEventResponse};
use contracts::{
    Entity, Event, Metric, OperatorId, Timestamp,
    events::{StockLow, StockReplenished, StockSoldOut},
};
use fault::{Fault, InvocationError, ReplayResponse};
use lambda::{Deadline, FailedItem, TableBatch};
use quarantine::{Quarantine, Reason};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{InventoryError, Level, LevelRow, StockRow};

/// The error name in the quarantine for a record that can't be judged.
const INVALID_RECORD: &str = "InvalidInput";
/// The number of metrics that are judged concurrently.
const MAX_CONCURRENT_METRICS: usize = 8;
/// The maximum number of attempts to change a level that other writers change at the same time.
const MAX_ATTEMPTS: u32 = 5;
/// The number of digits of the sequence number in a position, with leading zeros. DynamoDB's sequence numbers have at
/// most 40 digits.
const SEQUENCE_DIGITS: usize = 64;

/// The quantities at which the level of a stock changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The limit. A stock with this quantity or less is low (sold out at 0). Above it, the level also depends on the
    /// level before ([`Self::judge`]).
    pub low: u32,
    /// How far above `low` the quantity must be before the level is OK again. At least 1.
    pub deadband: u32,
}

impl Limits {
    /// Returns the level of a stock with this quantity. `level` is its level before.
    ///
    /// A quantity above the limit, but within the deadband, is OK only if the level was OK before.
    #[must_use]
    pub fn judge(self, level: Level, quantity: u32) -> Level {
        if quantity == 0 {
            Level::SoldOut
        } else if quantity <= self.low {
            Level::Low
        } else if level == Level::Ok || quantity >= self.low.saturating_add(self.deadband) {
            Level::Ok
        } else {
            Level::Low
        }
    }
}

/// The function `watch-stock`.
#[derive(Debug)]
pub struct WatchStock {
    /// The inventory table.
    pub inventory: Table,
    /// The outbox for the events of the stock.
    pub outbox: Outbox,
    /// The limits of all metrics.
    pub limits: Limits,
    /// The quarantine for records that can never be judged.
    pub quarantine: Quarantine,
}

/// A change of a metric's stock.
#[derive(Debug)]
struct Movement {
    metric: Metric,
    /// The new quantity.
    quantity: u32,
    /// The position of the record in the stream.
    record: String,
}

/// A parsed record.
enum Parsed {
    Movement(Movement),
    /// A change of another row than a stock.
    Other,
    /// The record can't be parsed, for this reason.
    Invalid(String),
}

fn parse(json: &RawValue) -> Parsed {
    let record: EventRecord = match fault::decode(json.get()) {
        Ok(record) => record,
        Err(error) => return Parsed::Invalid(error.to_string()),
    };
    match movement(record) {
        Ok(Some(movement)) => Parsed::Movement(movement),
        Ok(None) => Parsed::Other,
        Err(reason) => Parsed::Invalid(reason),
    }
}

/// Returns the movement that a record reports, or `None` if it is about another row than a stock.
fn movement(record: EventRecord) -> Result<Option<Movement>, String> {
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }

    let Id { id } = serde_dynamo::from_item(record.change.keys)
        .map_err(|error| format!("dynamodb.Keys has no id: {error}"))?;
    let Some(name) = id.strip_prefix(StockRow::PREFIX) else { return Ok(None) };
    let metric = Metric::ALL.iter().find(|metric| metric.name() == name);
    let metric = *metric.ok_or_else(|| format!("{id:?} is not the stock of a known metric"))?;
    // A deleted row means that no kits are in stock.
    let quantity = if record.event_name == "REMOVE" {
        0
    } else {
        let row: StockRow = serde_dynamo::from_item(record.change.new_image)
            .map_err(|error| format!("dynamodb.NewImage is not a stock: {error}"))?;
        row.quantity
    };
    let sequence = record.change.sequence_number.unwrap_or_default();
    let arn = record.event_source_arn.unwrap_or_default();
    let record = position(&arn, &sequence)
        .ok_or_else(|| format!("the record has no position: {sequence:?} of stream {arn:?}"))?;
    Ok(Some(Movement { metric, quantity, record }))
}

/// Returns the position of a record: the label of the stream, which is the time of its creation, and the sequence number
/// with leading zeros. A restored table has a new stream, whose sequence numbers may begin anywhere.
fn position(stream_arn: &str, sequence: &str) -> Option<String> {
    let (_, label) = stream_arn.split_once("/stream/")?;
    let is_number = !sequence.is_empty() && sequence.bytes().all(|byte| byte.is_ascii_digit());
    let fits = sequence.len() <= SEQUENCE_DIGITS;
    (is_number && fits).then(|| format!("{label}/{sequence:0>SEQUENCE_DIGITS$}"))
}

impl WatchStock {
    /// Judges a batch. The response names the first record that Lambda must deliver again.
    ///
    /// # Errors
    /// Fails if the batch can't be parsed, or if the first failed record has no sequence number. Lambda then delivers
    /// all records of the batch again, in two halves.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<DynamoDbEventResponse, InvocationError> {
        let batch = TableBatch::parse(payload)?;
        // A metric's records are a lane. So are the records without a metric.
        let lanes = batch.records.iter().map(|json| {
            let parsed = parse(json);
            let metric = match &parsed {
                Parsed::Movement(movement) => Some(movement.metric),
                Parsed::Other | Parsed::Invalid(_) => None,
            };
            (metric, (*json, parsed))
        });
        let work = async |(json, parsed)| match parsed {
            Parsed::Movement(movement) => {
                self.judge(&movement, Timestamp::now()).await.map_err(|error| error.to_string())
            }
            Parsed::Other => Ok(()),
            Parsed::Invalid(reason) => {
                self.quarantine.put(&json, Reason::new(INVALID_RECORD, &reason)).await
            }
        };
        let failed = lambda::process_lanes(lanes, MAX_CONCURRENT_METRICS, deadline, work).await;
        for FailedItem { id, reason } in &failed {
            tracing::error!(record = id, %reason, "record failed");
        }
        batch.response(failed.into_iter().map(|failed| failed.id))
    }

    /// Judges one record that an engineer on call replays.
    ///
    /// The level row has only the position of the last record that changed the level. It does not show later records
    /// that were judged without a change. So the replay compares the record's quantity with the present stock. If they
    /// differ, the record is not judged. An invalid record is not quarantined again; the result has the reason.
    pub async fn replay(&self, record: &RawValue) -> ReplayResponse {
        let movement = match parse(record) {
            Parsed::Movement(movement) => movement,
            Parsed::Other => {
                return ReplayResponse::nothing_to_do("the record is not about a stock of kits");
            }
            Parsed::Invalid(reason) => return ReplayResponse::failed(INVALID_RECORD, reason),
        };
        match self.replay_movement(&movement).await {
            Ok(true) => ReplayResponse::Done,
            Ok(false) => ReplayResponse::nothing_to_do(
                "the stock has changed since; the record of a later change decides",
            ),
            Err(error) => ReplayResponse::failed(error.kind().name(), error.to_string()),
        }
    }

    /// Judges a movement if its quantity is that of the present stock. Returns whether it was judged.
    async fn replay_movement(&self, movement: &Movement) -> Result<bool, InventoryError> {
        let stock: Option<StockRow> = self.inventory.get(&StockRow::key(movement.metric)).await?;
        if stock.map_or(0, |stock| stock.quantity) != movement.quantity {
            return Ok(false);
        }
        self.judge(movement, Timestamp::now()).await?;
        Ok(true)
    }

    /// Changes the level and emits the event, if the movement changes the level.
    async fn judge(&self, movement: &Movement, now: Timestamp) -> Result<(), InventoryError> {
        for _ in 0..MAX_ATTEMPTS {
            let before: Option<LevelRow> =
                self.inventory.get(&LevelRow::key(movement.metric)).await?;
            if before.as_ref().is_some_and(|before| movement.record <= before.record) {
                return Ok(());
            }
            let level = before.as_ref().map_or(Level::Ok, |before| before.level);
            let new_level = self.limits.judge(level, movement.quantity);
            if new_level == level {
                return Ok(());
            }
            let Movement { metric, quantity, .. } = *movement;
            let commit = match new_level {
                Level::Low => {
                    let event = StockLow { metric, quantity, limit: self.limits.low };
                    self.change(movement, before, new_level, event, now).await?
                }
                Level::SoldOut => {
                    let event = StockSoldOut { metric };
                    self.change(movement, before, new_level, event, now).await?
                }
                Level::Ok => {
                    let event = StockReplenished { metric, quantity };
                    self.change(movement, before, new_level, event, now).await?
                }
            };
            if let Commit::Done = commit {
                tracing::info!(%metric, quantity, level = ?new_level, "level of the stock changed");
                return Ok(());
            }
        }
        Err(InventoryError::LevelBusy(movement.metric))
    }

    /// Commits the new level with its event, if the row has not changed since it was read.
    async fn change<D: Event>(
        &self,
        movement: &Movement,
        before: Option<LevelRow>,
        level: Level,
        event: D,
        now: Timestamp,
    ) -> Result<Commit, InventoryError> {
        let key = LevelRow::key(movement.metric);
        let sequence = before.as_ref().map_or(0, |before| before.sequence);
        let row = LevelRow { level, sequence: sequence + 1, record: movement.record.clone() };
        let transaction = Transaction::on(&self.inventory);
        let transaction = match before {
            Some(_) => transaction.put_if_sequence(&self.inventory, &key, &row, sequence),
            None => transaction.create(&self.inventory, &key, &row),
        };
        let event = NewEvent {
            entity: Entity::stock(movement.metric),
            sequence: row.sequence,
            correlation_id: None,
            operator_id: OperatorId::DEFAULT,
            causation_id: None,
            occurred_at: now,
            data: event,
        };
        Ok(transaction.event(&self.outbox, event).commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_depends_on_the_quantity_and_within_the_deadband_on_the_level_before() {
        use Level::{Low, Ok, SoldOut};
        let limits = Limits { low: 10, deadband: 5 };
        // The level before is OK, LOW, SOLD_OUT.
        for (quantity, expected) in [
            (0, [SoldOut, SoldOut, SoldOut]),
            (1, [Low, Low, Low]),
            (10, [Low, Low, Low]),
            (11, [Ok, Low, Low]),
            (14, [Ok, Low, Low]),
            (15, [Ok, Ok, Ok]),
            (u32::MAX, [Ok, Ok, Ok]),
        ] {
            let judged = [Ok, Low, SoldOut].map(|level| limits.judge(level, quantity));
            assert_eq!(judged, expected, "{quantity}");
        }
        let largest = Limits { low: u32::MAX - 1, deadband: 5 };
        assert_eq!(largest.judge(Low, u32::MAX), Ok, "the sum does not overflow");
        let none = Limits { low: 0, deadband: 1 };
        assert_eq!([Ok, Low, SoldOut].map(|level| none.judge(level, 1)), [Ok, Ok, Ok]);
    }

    #[test]
    fn positions_compare_like_numbers_and_by_the_age_of_the_stream() {
        let arn = |label| format!("arn:aws:dynamodb:eu-central-1:1:table/inventory/stream/{label}");
        let (old, new) = (arn("2026-01-01T00:00:00.000"), arn("2026-02-01T00:00:00.000"));
        let of = |arn: &str, sequence| position(arn, sequence).expect("a position");
        assert!(of(&old, "9") < of(&old, "10"));
        assert!(of(&old, "999999999999999999999") < of(&old, "1000000000000000000000"));
        assert!(of(&old, "10") < of(&new, "9"), "a restored table has a new stream");
        for bad in ["", "1a", "-1", " 1", "1 "] {
            assert_eq!(position(&old, bad), None, "{bad:?}");
        }
        assert_eq!(position("arn:aws:kinesis:eu-central-1:1:stream/inventory", "1"), None);
    }
}
