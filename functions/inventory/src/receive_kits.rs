//! `KitsDelivered` from another system: adds to the stock, each delivery once.

use std::collections::BTreeSet;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OnboardingId, Timestamp, inbound::KitsDelivered};
use lambda::Step;
use serde::Serialize;
use store::{Commit, Table, Transaction};

use crate::{DeliveryRow, InventoryError, StockRow};

/// What the step needs.
#[derive(Debug)]
pub struct ReceiveKits {
    /// The inventory table.
    pub inventory: Table,
}

/// What it answers; seen only in the log.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The delivery is in stock now.
    Received,
    /// It was before.
    Already,
}

fn invalid(at: &str, problem: impl Into<String>) -> InventoryError {
    InventoryError::InvalidDelivery { at: at.to_owned(), problem: problem.into() }
}

fn check(delivery: &KitsDelivered) -> Result<(), InventoryError> {
    let KitsDelivered { delivery_id, kits } = delivery;
    if delivery_id.is_empty() || delivery_id.len() > 128 {
        return Err(invalid("detail.deliveryId", "give 1 to 128 characters"));
    }
    if kits.is_empty() || kits.len() > 50 {
        return Err(invalid("detail.kits", "give 1 to 50 entries"));
    }
    let mut seen = BTreeSet::new();
    for (index, kit) in kits.iter().enumerate() {
        if kit.quantity == 0 {
            return Err(invalid(&format!("detail.kits[{index}].quantity"), "give 1 or more"));
        }
        if !seen.insert(kit.metric) {
            let problem = format!("{} came before; give each metric once", kit.metric);
            return Err(invalid(&format!("detail.kits[{index}].metric"), problem));
        }
    }
    Ok(())
}

impl Step for ReceiveKits {
    type Command = EventBridgeEvent<KitsDelivered>;
    type Reply = Reply;
    type Error = InventoryError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, InventoryError> {
        let delivery = command.detail;
        check(&delivery)?;
        let key = DeliveryRow::key(&command.source, &delivery.delivery_id);
        let row = DeliveryRow { kits: delivery.kits, at: now };

        let mut receiving = Transaction::on(&self.inventory).create(&self.inventory, &key, &row);
        for kit in &row.kits {
            receiving = receiving.update(
                &self.inventory,
                &StockRow::key(kit.metric),
                "ADD #quantity :quantity",
                None,
                [("quantity", AttributeValue::N(kit.quantity.to_string()))],
            );
        }
        match receiving.commit().await? {
            Commit::Done => Ok(Reply::Received),
            Commit::Refused(refused) => {
                let there: Option<DeliveryRow> = refused.row(&key)?;
                if there.is_some_and(|there| there.kits == row.kits) {
                    Ok(Reply::Already)
                } else {
                    Err(invalid(
                        "detail.deliveryId",
                        format!("{} came before with other kits", delivery.delivery_id),
                    ))
                }
            }
        }
    }
}
