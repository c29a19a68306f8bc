//! Undoes `reserve-kits`: the kits go back into stock, and a tombstone stays.

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    OnboardingId, ReservationId, Saga, Timestamp,
    events::{Kits, KitsReleased},
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{InventoryError, Reservation, ReservationRow, StockRow};

/// What the step needs.
#[derive(Debug)]
pub struct ReleaseKits {
    /// The inventory table.
    pub inventory: Table,
    /// Where `KitsReleased` goes.
    pub outbox: Outbox,
}

/// What it answers.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// Derived from the onboarding.
    pub reservation_id: ReservationId,
}

#[derive(Debug, PartialEq)]
enum Decision {
    /// Nothing was set aside: only fence off what may come late.
    Fence,
    /// Close the row; put these kits back.
    Release {
        from: &'static str,
        sequence: u64,
        kits: Vec<Kits>,
    },
    Already,
}

fn decide(there: Option<ReservationRow>) -> Decision {
    let Some(row) = there else { return Decision::Fence };
    let (from, sequence) = (row.state.name(), row.sequence);
    match row.state {
        Reservation::Reserved { kits } => Decision::Release { from, sequence: sequence + 1, kits },
        Reservation::Refused { .. } => Decision::Release { from, sequence, kits: Vec::new() },
        Reservation::Released => Decision::Already,
    }
}

impl Step for ReleaseKits {
    type Command = Saga;
    type Reply = Reply;
    type Error = InventoryError;

    fn correlation(saga: &Saga) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: Saga, now: Timestamp) -> Result<Reply, InventoryError> {
        let reservation_id = ReservationId::of(saga.onboarding_id);
        let key = ReservationRow::key(reservation_id);
        let there = self.inventory.get(&key).await?;

        let released =
            |sequence| ReservationRow { saga, state: Reservation::Released, sequence, at: now };
        let mut releasing = Transaction::on(&self.inventory);
        match decide(there) {
            Decision::Already => return Ok(Reply { reservation_id }),
            Decision::Fence => {
                releasing = releasing.create(&self.inventory, &key, &released(0));
            }
            Decision::Release { from, sequence, kits } => {
                releasing = releasing.replace(&self.inventory, &key, &released(sequence), from);
                for kit in &kits {
                    releasing = releasing.update(
                        &self.inventory,
                        &StockRow::key(kit.metric),
                        "ADD #quantity :quantity",
                        None,
                        [("quantity", AttributeValue::N(kit.quantity.to_string()))],
                    );
                }
                if !kits.is_empty() {
                    let event = KitsReleased { site_id: saga.site_id, kits };
                    releasing = releasing.event(
                        &self.outbox,
                        NewEvent::of(saga, reservation_id, sequence, now, event),
                    );
                }
            }
        }
        match releasing.commit().await? {
            Commit::Done => Ok(Reply { reservation_id }),
            Commit::Refused(_) => Err(InventoryError::Busy(reservation_id)),
        }
    }
}
