//! Counts sites by status and events by day and type, from the stream of all events.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use consumer::{
    every::{Effect, Run},
    rebuild::{self, Generations},
};
use contracts::open::OpenEnvelope;
use store::{Key, StoreError, Table, Transaction, shard};

use crate::{Status, attribute, day_key, sites_key};

/// The rows of the service, in all generations.
#[derive(Clone, Debug)]
pub struct Counts {
    /// The network table.
    pub network: Table,
}

/// The counts of one generation.
#[derive(Clone, Debug)]
pub struct Generation {
    network: Table,
    number: u64,
}

impl Generations for Counts {
    type Effect = Generation;

    fn effect(&self, generation: u64) -> Generation {
        Generation { network: self.network.clone(), number: generation }
    }

    fn table(&self) -> &Table {
        &self.network
    }
}

/// Returns the day of an event in UTC, such as `2026-11-29`.
fn day(event: &OpenEnvelope) -> String {
    let at = event.metadata.occurred_at.to_string();
    at.split('T').next().unwrap_or_default().to_owned()
}

impl Effect for Generation {
    fn cursor(&self, log_key: &str) -> Key {
        rebuild::key(self.number, &format!("cursor#{log_key}"), "cursor")
    }

    fn table(&self) -> &Table {
        &self.network
    }

    fn group(&self, log_key: &str) -> u8 {
        shard(log_key)
    }

    fn state(&self, before: Option<&str>, event: &OpenEnvelope) -> Option<String> {
        let status = Status::after(event).map(Status::name);
        status.or(before).map(str::to_owned)
    }

    fn writes(
        &self,
        mut transaction: Transaction,
        runs: &[Run],
    ) -> Result<Transaction, StoreError> {
        // Each row is written once per transaction, with the sum of all changes.
        let mut changes: BTreeMap<(String, String), (Key, BTreeMap<String, i64>)> = BTreeMap::new();
        let mut add = |key: Key, operator: String, row: String, name: String, change: i64| {
            let (_, counts) = changes.entry((operator, row)).or_insert((key, BTreeMap::new()));
            *counts.entry(name).or_default() += change;
        };
        for run in runs {
            let shard = shard(&run.log_key);
            let mut status = run.state.as_deref().and_then(Status::named);
            for event in &run.events {
                let operator = event.metadata.operator_id;
                let day = day(event);
                let key = day_key(self.number, operator, &day, shard);
                add(key, operator.to_string(), day, attribute(&event.metadata.kind), 1);
                if let Some(after) = Status::after(event) {
                    for (status, change) in [(status, -1), (Some(after), 1)] {
                        let Some(status) = status else { continue };
                        let key = sites_key(self.number, operator, shard);
                        let (row, name) = ("sites".to_owned(), status.name().to_owned());
                        add(key, operator.to_string(), row, name, change);
                    }
                    status = Some(after);
                }
            }
        }
        for (key, counts) in changes.into_values() {
            let counts: Vec<_> = counts.into_iter().filter(|(_, change)| *change != 0).collect();
            if counts.is_empty() {
                continue;
            }
            let (terms, values): (Vec<_>, Vec<_>) = counts
                .iter()
                .enumerate()
                .map(|(index, (name, change))| {
                    let value = AttributeValue::N(change.to_string());
                    (format!("#{name} :v{index}"), (format!("v{index}"), value))
                })
                .unzip();
            let update = format!("ADD {}", terms.join(", "));
            let values = values.iter().map(|(name, value)| (name.as_str(), value.clone()));
            transaction = transaction.update(&self.network, &key, &update, None, values);
        }
        Ok(transaction)
    }
}
