//! Undoes `reserve-kits`: returns the kits to the stock and leaves a tombstone.

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    OnboardingId, ReservationId, SagaContext, Timestamp,
    events::{Kits, KitsReleased},
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{InventoryError, Reservation, ReservationRow, StockRow};

/// The dependencies of the function `release-kits`.
#[derive(Debug)]
pub struct ReleaseKits {
    /// The inventory table.
    pub inventory: Table,
    /// The outbox for `KitsReleased`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The id of the reservation, derived from the onboarding.
    pub reservation_id: ReservationId,
}

#[derive(Debug, PartialEq)]
enum Decision {
    /// There is no reservation: write a tombstone, which prevents a late reservation.
    WriteTombstone,
    /// Replace the reservation with a tombstone and return these kits to the stock.
    Release { from: &'static str, sequence: u64, kits: Vec<Kits> },
    /// The tombstone exists.
    AlreadyReleased,
}

/// Decides what the undo has to write.
fn decide_undo(existing: Option<ReservationRow>) -> Decision {
    let Some(row) = existing else { return Decision::WriteTombstone };
    let (from, sequence) = (row.state.name(), row.sequence);
    match row.state {
        Reservation::Reserved { kits } => Decision::Release { from, sequence: sequence + 1, kits },
        Reservation::Refused { .. } => Decision::Release { from, sequence, kits: Vec::new() },
        Reservation::Released => Decision::AlreadyReleased,
    }
}

impl Step for ReleaseKits {
    type Command = SagaContext;
    type Reply = Reply;
    type Error = InventoryError;

    fn correlation(saga: &SagaContext) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: SagaContext, now: Timestamp) -> Result<Reply, InventoryError> {
        let reservation_id = ReservationId::from_onboarding(saga.onboarding_id);
        let key = ReservationRow::key(reservation_id);
        let existing = self.inventory.get(&key).await?;

        let tombstone =
            |sequence| ReservationRow { saga, state: Reservation::Released, sequence, at: now };
        let mut transaction = Transaction::on(&self.inventory);
        match decide_undo(existing) {
            Decision::AlreadyReleased => return Ok(Reply { reservation_id }),
            Decision::WriteTombstone => {
                transaction = transaction.create(&self.inventory, &key, &tombstone(0));
            }
            Decision::Release { from, sequence, kits } => {
                transaction =
                    transaction.put_if_status(&self.inventory, &key, &tombstone(sequence), from);
                for kit in &kits {
                    transaction = transaction.update(
                        &self.inventory,
                        &StockRow::key(kit.metric),
                        "ADD #quantity :quantity",
                        None,
                        [("quantity", AttributeValue::N(kit.quantity.to_string()))],
                    );
                }
                if !kits.is_empty() {
                    let event = KitsReleased { site_id: saga.site_id, kits };
                    transaction = transaction.event(
                        &self.outbox,
                        NewEvent::in_saga(saga, reservation_id, sequence, now, event),
                    );
                }
            }
        }
        match transaction.commit().await? {
            Commit::Done => Ok(Reply { reservation_id }),
            Commit::Refused(_) => Err(InventoryError::Busy(reservation_id)),
        }
    }
}
