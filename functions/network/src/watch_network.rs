//! Counts sites by status and events by day and type, from the stream of all events.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use consumer::{
    every::{Effect, Run},
    rebuild::Generations,
};
use contracts::open::OpenEnvelope;
use store::{Key, StoreError, Table, Transaction, generation, shard};

use crate::{COUNT, Status, events_id, events_row, sites_id};

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

impl Effect for Generation {
    fn cursor(&self, log_key: &str) -> Key {
        generation::cursor_key(self.number, log_key)
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
        let mut changes: BTreeMap<(String, String), BTreeMap<&str, i64>> = BTreeMap::new();
        let mut add = |id: String, row: String, name, change: i64| {
            *changes.entry((id, row)).or_default().entry(name).or_default() += change;
        };
        for run in runs {
            let shard = shard(&run.log_key);
            let mut status = run.state.as_deref().and_then(Status::named);
            for event in &run.events {
                let operator = event.metadata.operator_id;
                let row = events_row(&event.metadata.occurred_at.day(), &event.metadata.kind);
                add(events_id(operator, shard), row, COUNT, 1);
                if let Some(after) = Status::after(event) {
                    for (status, change) in [(status, -1), (Some(after), 1)] {
                        let Some(status) = status else { continue };
                        let row = format!("sites#{shard}");
                        add(sites_id(operator), row, status.name(), change);
                    }
                    status = Some(after);
                }
            }
        }
        for ((id, row), counts) in changes {
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
            let key = generation::key(self.number, &id, &row);
            transaction = transaction.update(&self.network, &key, &update, None, values);
        }
        Ok(transaction)
    }
}
