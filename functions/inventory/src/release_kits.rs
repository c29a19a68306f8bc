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
    /// There is no reservation: write a tombstone against a late one.
    Fence,
    /// Replace the reservation with a tombstone and return these kits to the stock.
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
    type Command = SagaContext;
    type Reply = Reply;
    type Error = InventoryError;

    fn correlation(saga: &SagaContext) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: SagaContext, now: Timestamp) -> Result<Reply, InventoryError> {
        let reservation_id = ReservationId::from_onboarding(saga.onboarding_id);
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
                releasing =
                    releasing.put_if_status(&self.inventory, &key, &released(sequence), from);
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
                        NewEvent::in_saga(saga, reservation_id, sequence, now, event),
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
