//! The actual and the expected stock.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use contracts::{Metric, names};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Stack,
    wait::{TIMEOUT, until_true},
};

/// The `source` of the deliveries' events.
pub const SUPPLIER: &str = "supplier";

/// Returns the key of a delivery's row.
#[must_use]
pub fn delivery_id(number: &str) -> String {
    format!("delivery#{}/{SUPPLIER}/{number}", SUPPLIER.len())
}

/// The number of kits by metric.
pub type KitCounts = BTreeMap<String, i64>;

/// Adds these kits, multiplied by `sign`.
fn add(count: &mut KitCounts, kits: &Value, sign: i64) -> Result<()> {
    for kit in kits.as_array().context("no list of kits")? {
        let metric = kit["metric"].as_str().context("a kit without a metric")?;
        let quantity = kit["quantity"].as_i64().context("a kit without a quantity")?;
        *count.entry(metric.to_owned()).or_default() += sign * quantity;
    }
    Ok(())
}

/// The totals of the inventory table.
#[derive(Debug, PartialEq, Eq)]
pub struct Inventory {
    /// All kits that were ever delivered.
    pub delivered: KitCounts,
    /// The current stock.
    pub stock: KitCounts,
    /// All delivered kits that are not reserved for a site.
    pub unreserved: KitCounts,
}

impl Inventory {
    /// Reads the current totals.
    pub async fn read(stack: &Stack) -> Result<Self> {
        let (mut delivered, mut in_stock) = (KitCounts::new(), KitCounts::new());
        let mut reserved = KitCounts::new();
        for row in stack.rows(names::INVENTORY).await? {
            let id = row["id"].as_str().context("a row without an id")?;
            match id.split_once('#') {
                Some(("delivery", _)) => add(&mut delivered, &row["kits"], 1)?,
                Some(("stock", metric)) => {
                    let quantity = row["quantity"].as_i64().context("a row without a quantity")?;
                    in_stock.insert(metric.to_owned(), quantity);
                }
                Some(("reservation", _)) if row["status"] == "RESERVED" => {
                    add(&mut reserved, &row["kits"], -1)?;
                }
                _ => {}
            }
        }
        let mut unreserved = delivered.clone();
        for (metric, quantity) in reserved {
            *unreserved.entry(metric).or_default() += quantity;
        }
        Ok(Self { delivered, stock: in_stock, unreserved })
    }

    /// Returns the difference between the stock and the expected stock, by metric. It is empty if they are equal.
    #[must_use]
    pub fn difference(stock: &KitCounts, expected: &KitCounts) -> KitCounts {
        let metrics = stock.keys().chain(expected.keys());
        let of = |count: &KitCounts, metric| count.get(metric).copied().unwrap_or_default();
        metrics
            .map(|metric| (metric.clone(), of(stock, metric) - of(expected, metric)))
            .filter(|(_, difference)| *difference != 0)
            .collect()
    }
}

impl Stack {
    /// Delivers `quantity` kits of each metric with an event, as the supplier's system does. Waits until they are in
    /// stock.
    pub async fn deliver(&self, metrics: &[Metric], quantity: u32) -> Result<()> {
        let delivery = Uuid::new_v4().to_string();
        let kits: Vec<_> = metrics
            .iter()
            .map(|metric| json!({ "metric": metric, "quantity": quantity }))
            .collect();
        let detail = json!({ "deliveryId": delivery, "kits": kits });
        self.put_event(SUPPLIER, contracts::inbound::KITS_DELIVERED, &detail).await?;
        until_true("the delivery to be in stock", TIMEOUT, async || {
            let rows = self.rows_with(names::INVENTORY, "id", &delivery_id(&delivery)).await?;
            Ok((!rows.is_empty(), "no row of the delivery"))
        })
        .await
    }
}
