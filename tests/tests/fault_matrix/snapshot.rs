//! Snapshots of all tables and the payment provider. Cases that end at the same time share one snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use contracts::{Metric, OnboardingId, names};
use serde_json::Value;
use tests::{
    Stack,
    log::LoggedEvent,
    stripe::{self, BillingObjects},
};
use tokio::sync::Mutex;

/// The tables of the steps. A row belongs to an onboarding if it contains the onboarding's id.
const TABLES: [&str; 5] =
    [names::SITES, names::INVENTORY, names::DEVICES, names::BILLING, names::ALERTING];

/// A snapshot of all tables and of the payment provider.
#[derive(Debug)]
pub struct Snapshot {
    started: Instant,
    rows: BTreeMap<&'static str, Vec<(String, Value)>>,
    events: BTreeMap<String, Vec<LoggedEvent>>,
    billing_objects: BTreeMap<String, BillingObjects>,
}

impl Snapshot {
    async fn read(stack: &Stack) -> Result<Self> {
        let started = Instant::now();
        let mut rows = BTreeMap::new();
        for table in TABLES {
            let all = stack.rows(table).await?.into_iter().map(|row| (row.to_string(), row));
            rows.insert(table, all.collect());
        }
        let mut events = BTreeMap::<_, Vec<_>>::new();
        for row in stack.rows(names::EVENTS).await? {
            let onboarding = row["correlationId"].as_str().unwrap_or_default().to_owned();
            let event: LoggedEvent = serde_json::from_value(row)?;
            events.entry(onboarding).or_default().push(event);
        }
        Ok(Self {
            started,
            rows,
            events,
            billing_objects: stripe::all_billing_objects(stack).await?,
        })
    }

    /// Returns the onboarding's rows, each with its table.
    pub fn rows(&self, onboarding: OnboardingId) -> Vec<(&'static str, &Value)> {
        let onboarding = onboarding.to_string();
        let all = self.rows.iter().flat_map(|(table, rows)| rows.iter().map(|row| (*table, row)));
        let rows = all.filter(|(_, (text, _))| text.contains(&onboarding));
        rows.map(|(table, (_, row))| (table, row)).collect()
    }

    /// Returns the onboarding's events, ordered by entity and sequence.
    pub fn events(&self, onboarding: OnboardingId) -> Vec<LoggedEvent> {
        let mut events = self.events.get(&onboarding.to_string()).cloned().unwrap_or_default();
        events.sort_by(|a, b| (&a.entity, a.sequence).cmp(&(&b.entity, b.sequence)));
        events
    }

    /// Returns the payment provider's objects of the onboarding.
    pub fn billing_objects(&self, onboarding: OnboardingId) -> BillingObjects {
        self.billing_objects.get(&onboarding.to_string()).cloned().unwrap_or_default()
    }

    /// Returns the number of kits of the metric in stock or reserved, minus the delivered ones. It is 0 if the stock is
    /// correct.
    pub fn surplus(&self, metric: Metric) -> Result<i64> {
        let kits = |row: &Value| -> i64 {
            let kits = row["kits"].as_array().into_iter().flatten();
            let matching = kits.filter(|kit| kit["metric"] == metric.name());
            matching.filter_map(|kit| kit["quantity"].as_i64()).sum()
        };
        let mut surplus = 0;
        for (_, row) in
            self.rows.get(names::INVENTORY).context("the snapshot has no inventory table")?
        {
            let id = row["id"].as_str().unwrap_or_default();
            surplus += match id.split_once('#') {
                Some(("stock", of)) if of == metric.name() => row["quantity"].as_i64().unwrap_or(0),
                Some(("delivery", _)) => -kits(row),
                Some(("reservation", _)) if row["status"] == "RESERVED" => kits(row),
                _ => 0,
            };
        }
        Ok(surplus)
    }

    /// Returns the events that are not marked as published.
    pub fn unpublished(&self) -> Vec<String> {
        let unpublished = self.events.values().flatten().filter(|event| !event.is_published());
        unpublished.map(|event| format!("{} {}", event.entity, event.kind)).collect()
    }

    /// Returns the onboardings that have a subscription at the payment provider.
    pub fn subscribers(&self) -> BTreeSet<String> {
        let paying =
            self.billing_objects.iter().filter(|(_, objects)| !objects.subscriptions.is_empty());
        paying.map(|(onboarding, _)| onboarding.clone()).collect()
    }

    /// Returns the onboardings whose site is active.
    pub fn active(&self) -> BTreeSet<String> {
        let sites = self.rows.get(names::SITES).into_iter().flatten().map(|(_, row)| row);
        let active = sites.filter(|row| row["row"] == "SITE" && row["status"] == "ACTIVE");
        active.filter_map(|row| row["onboardingId"].as_str().map(str::to_owned)).collect()
    }
}

/// Reads one snapshot for all callers that wait at the same time.
#[derive(Debug, Default)]
pub struct SnapshotReader(Mutex<Option<Arc<Snapshot>>>);

impl SnapshotReader {
    /// Returns a snapshot whose reading started after this call.
    pub async fn read(&self, stack: &Stack) -> Result<Arc<Snapshot>> {
        let called = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(snapshot) = last.as_ref().filter(|snapshot| snapshot.started >= called) {
            return Ok(Arc::clone(snapshot));
        }
        let snapshot = Arc::new(Snapshot::read(stack).await?);
        *last = Some(Arc::clone(&snapshot));
        Ok(snapshot)
    }
}
