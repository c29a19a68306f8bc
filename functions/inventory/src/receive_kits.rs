//! Adds the kits of another system's event `KitsDelivered` to the stock, once per delivery.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    OnboardingId, Timestamp,
    inbound::KitsDelivered,
    input::{self, FieldError},
};
use lambda::Step;
use serde::Serialize;
use serde_json::value::RawValue;
use store::{Commit, Table, Transaction};

use crate::{DeliveryRow, InventoryError, StockRow};

/// The dependencies of the function `receive-kits`.
#[derive(Debug)]
pub struct ReceiveKits {
    /// The inventory table.
    pub inventory: Table,
}

/// The result of the invocation. Only tests read it: EventBridge's calls are asynchronous, and a replay needs no reply.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The delivery was added to the stock.
    Received,
    /// The delivery was added before.
    Already,
}

impl Step for ReceiveKits {
    type Command = EventBridgeEvent<Box<RawValue>>;
    type Reply = Reply;
    type Error = InventoryError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, InventoryError> {
        let delivery = input::read::<KitsDelivered>(command.detail.get()).map_err(|errors| {
            let errors = errors.into_iter().map(|error| error.within("detail"));
            InventoryError::InvalidDelivery(errors.collect())
        })?;
        let key = DeliveryRow::key(&command.source, &delivery.delivery_id);
        let row = DeliveryRow { kits: delivery.kits, at: now };

        let mut transaction = Transaction::on(&self.inventory).create(&self.inventory, &key, &row);
        for kit in &row.kits {
            transaction = transaction.update(
                &self.inventory,
                &StockRow::key(kit.metric),
                "ADD #quantity :quantity",
                None,
                [("quantity", AttributeValue::N(kit.quantity.to_string()))],
            );
        }
        match transaction.commit().await? {
            Commit::Done => Ok(Reply::Received),
            Commit::Refused(refused) => {
                let existing: Option<DeliveryRow> = refused.row(&key)?;
                if existing.is_some_and(|existing| existing.kits == row.kits) {
                    Ok(Reply::Already)
                } else {
                    Err(InventoryError::InvalidDelivery(vec![FieldError::new(
                        "detail.deliveryId",
                        format!("{} was received before with different kits", delivery.delivery_id),
                    )]))
                }
            }
        }
    }
}
