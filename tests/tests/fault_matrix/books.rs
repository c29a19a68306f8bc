//! Reads all tables and the payment provider at once, for all cases that have ended by then.

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
    stripe::{self, Billed},
};
use tokio::sync::Mutex;

/// The steps' tables. A row that contains an onboarding's id belongs to it.
const TABLES: [&str; 5] =
    [names::SITES, names::INVENTORY, names::DEVICES, names::BILLING, names::ALERTING];

/// A snapshot of all tables and of the payment provider.
#[derive(Debug)]
pub struct Books {
    begun: Instant,
    rows: BTreeMap<&'static str, Vec<(String, Value)>>,
    events: BTreeMap<String, Vec<LoggedEvent>>,
    billed: BTreeMap<String, Billed>,
}

impl Books {
    async fn read(stack: &Stack) -> Result<Self> {
        let begun = Instant::now();
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
        Ok(Self { begun, rows, events, billed: stripe::all_billed(stack).await? })
    }

    /// Returns the onboarding's rows, each with its table.
    pub fn rows(&self, onboarding: OnboardingId) -> Vec<(&'static str, &Value)> {
        let onboarding = onboarding.to_string();
        let all = self.rows.iter().flat_map(|(table, rows)| rows.iter().map(|row| (*table, row)));
        let ours = all.filter(|(_, (text, _))| text.contains(&onboarding));
        ours.map(|(table, (_, row))| (table, row)).collect()
    }

    /// Returns the onboarding's events, ordered by entity and sequence.
    pub fn events(&self, onboarding: OnboardingId) -> Vec<LoggedEvent> {
        let mut events = self.events.get(&onboarding.to_string()).cloned().unwrap_or_default();
        events.sort_by(|a, b| (&a.entity, a.sequence).cmp(&(&b.entity, b.sequence)));
        events
    }

    /// Returns what the payment provider has of the onboarding.
    pub fn billed(&self, onboarding: OnboardingId) -> Billed {
        self.billed.get(&onboarding.to_string()).cloned().unwrap_or_default()
    }

    /// Returns the kits of the metric in stock or reserved, minus the delivered ones. It is 0 if the stock is
    /// right.
    pub fn surplus(&self, metric: Metric) -> Result<i64> {
        let kits = |row: &Value| -> i64 {
            let kits = row["kits"].as_array().into_iter().flatten();
            let ours = kits.filter(|kit| kit["metric"] == metric.name());
            ours.filter_map(|kit| kit["quantity"].as_i64()).sum()
        };
        let mut surplus = 0;
        for (_, row) in self.rows.get(names::INVENTORY).context("the inventory")? {
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
        let waiting = self.events.values().flatten().filter(|event| !event.is_published());
        waiting.map(|event| format!("{} {}", event.entity, event.kind)).collect()
    }

    /// Returns the onboardings that have a subscription at the payment provider.
    pub fn subscribers(&self) -> BTreeSet<String> {
        let paying = self.billed.iter().filter(|(_, billed)| !billed.subscriptions.is_empty());
        paying.map(|(onboarding, _)| onboarding.clone()).collect()
    }

    /// Returns the onboardings whose site is active.
    pub fn in_service(&self) -> BTreeSet<String> {
        let sites = self.rows.get(names::SITES).into_iter().flatten().map(|(_, row)| row);
        let active = sites.filter(|row| row["row"] == "SITE" && row["status"] == "ACTIVE");
        active.filter_map(|row| row["onboardingId"].as_str().map(str::to_owned)).collect()
    }
}

/// Reads a snapshot once for all callers that wait at the same time.
#[derive(Debug, Default)]
pub struct Reader(Mutex<Option<Arc<Books>>>);

impl Reader {
    /// Returns a snapshot that was begun after this call.
    pub async fn now(&self, stack: &Stack) -> Result<Arc<Books>> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(books) = last.as_ref().filter(|books| books.begun >= asked) {
            return Ok(Arc::clone(books));
        }
        let books = Arc::new(Books::read(stack).await?);
        *last = Some(Arc::clone(&books));
        Ok(books)
    }
}
