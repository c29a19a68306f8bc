//! The first step of the saga: reserves one kit for each sensor. `release-kits` undoes it.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    ContextWithSensors, Metric, OnboardingId, ReservationId, Sensor, Timestamp,
    events::{Kits, KitsReserved, Shortage, StockDepleted},
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, FailedConditions, NewEvent, Outbox, Table, Transaction};

use crate::{InventoryError, Reservation, ReservationRow, StockRow};

/// The dependencies of the function `reserve-kits`.
#[derive(Debug)]
pub struct ReserveKits {
    /// The inventory table.
    pub inventory: Table,
    /// The outbox for `KitsReserved` and `StockDepleted`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The id of the reservation, derived from the onboarding.
    pub reservation_id: ReservationId,
}

/// Returns the result of the step for an existing reservation.
fn reply_for_existing(existing: &ReservationRow) -> Result<Reply, InventoryError> {
    let reservation_id = ReservationId::from_onboarding(existing.saga.onboarding_id);
    match &existing.state {
        Reservation::Reserved { .. } => Ok(Reply { reservation_id }),
        Reservation::Refused { shortages } => {
            Err(InventoryError::KitsOutOfStock(shortages.clone()))
        }
        Reservation::Released => Err(InventoryError::Superseded(reservation_id)),
    }
}

/// Returns the number of kits by metric, one kit per sensor.
fn kits(sensors: &[Sensor]) -> Vec<Kits> {
    let mut count: BTreeMap<Metric, u32> = BTreeMap::new();
    for sensor in sensors {
        *count.entry(sensor.metric).or_default() += 1;
    }
    count.into_iter().map(|(metric, quantity)| Kits { metric, quantity }).collect()
}

/// Returns the kits whose stock was too low for the transaction.
fn shortages(
    kits: &[Kits],
    failed_conditions: &FailedConditions,
) -> Result<Vec<Shortage>, InventoryError> {
    let short = kits.iter().filter(|kit| failed_conditions.contains(&StockRow::key(kit.metric)));
    short
        .map(|kit| {
            let stock: Option<StockRow> = failed_conditions.row(&StockRow::key(kit.metric))?;
            Ok(Shortage {
                metric: kit.metric,
                requested: kit.quantity,
                available: stock.map_or(0, |stock| stock.quantity),
            })
        })
        .collect()
}

impl Step for ReserveKits {
    type Command = ContextWithSensors;
    type Reply = Reply;
    type Error = InventoryError;

    fn correlation(command: &ContextWithSensors) -> Option<OnboardingId> {
        Some(command.saga.onboarding_id)
    }

    async fn run(
        &self,
        command: ContextWithSensors,
        now: Timestamp,
    ) -> Result<Reply, InventoryError> {
        let saga = command.saga;
        let reservation_id = ReservationId::from_onboarding(saga.onboarding_id);
        let key = ReservationRow::key(reservation_id);
        let kits = kits(&command.sensors);

        let row = |state| ReservationRow { saga, state, sequence: 1, at: now };
        let reserved = row(Reservation::Reserved { kits: kits.clone() });
        let mut transaction =
            Transaction::on(&self.inventory).create(&self.inventory, &key, &reserved);
        for kit in &kits {
            transaction = transaction.update(
                &self.inventory,
                &StockRow::key(kit.metric),
                "SET #quantity = #quantity - :quantity",
                Some("#quantity >= :quantity"),
                [("quantity", AttributeValue::N(kit.quantity.to_string()))],
            );
        }
        let event = KitsReserved { site_id: saga.site_id, kits: kits.clone() };
        let failed_conditions = match transaction
            .event(&self.outbox, NewEvent::in_saga(saga, reservation_id, 1, now, event))
            .commit()
            .await?
        {
            Commit::Done => return Ok(Reply { reservation_id }),
            Commit::Refused(failed_conditions) => failed_conditions,
        };
        if let Some(existing) = failed_conditions.row(&key)? {
            return reply_for_existing(&existing);
        }

        // The refusal is stored as the result of the step, so that a retry gets the same result.
        let shortages = shortages(&kits, &failed_conditions)?;
        let event = StockDepleted { site_id: saga.site_id, shortages: shortages.clone() };
        let refusal = Transaction::on(&self.inventory)
            .create(
                &self.inventory,
                &key,
                &row(Reservation::Refused { shortages: shortages.clone() }),
            )
            .event(&self.outbox, NewEvent::in_saga(saga, reservation_id, 1, now, event));
        match refusal.commit().await? {
            Commit::Done => Err(InventoryError::KitsOutOfStock(shortages)),
            Commit::Refused(_) => Err(InventoryError::Busy(reservation_id)),
        }
    }
}
