//! The invariants of an onboarding that has ended, whatever fault it met.

use std::collections::BTreeMap;

use contracts::{OnboardingId, names};
use serde_json::Value;
use tests::log;

use crate::{
    books::Books,
    faults::Fault,
    plan::{Case, Phase},
};

/// How an onboarding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The site is active.
    Active,
    /// Everything was undone.
    Undone,
}

impl End {
    /// Returns the site's status.
    fn status(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Undone => "REJECTED",
        }
    }
}

/// What an onboarding leaves: its rows as (table, kind, status), and its events by entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    rows: BTreeMap<(&'static str, String), String>,
    events: BTreeMap<String, Vec<String>>,
}

fn kind(row: &Value) -> String {
    let id = row["id"].as_str().or(row["row"].as_str()).unwrap_or_default();
    id.split('#').next().unwrap_or_default().to_owned()
}

impl Trace {
    /// Reads the trace of an onboarding from a snapshot.
    pub fn of(books: &Books, onboarding: OnboardingId) -> Self {
        let mut trace = Self::default();
        for (table, row) in books.rows(onboarding) {
            let status = row["status"].as_str().unwrap_or("none").to_owned();
            trace.rows.insert((table, kind(row)), status);
        }
        let events = books.events(onboarding);
        let owned = |kinds: Vec<&str>| kinds.into_iter().map(str::to_owned).collect();
        let entities = log::by_entity(&events).into_iter();
        trace.events = entities.map(|(entity, kinds)| (entity.to_owned(), owned(kinds))).collect();
        trace
    }
}

/// What undisturbed onboardings leave.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The trace of an onboarding that succeeds.
    pub active: Trace,
    /// The trace of an onboarding that is refused at its last step and undone.
    pub undone: Trace,
}

/// Returns everything that is wrong with what an onboarding left.
pub fn wrong(
    books: &Books,
    reference: &Reference,
    onboarding: OnboardingId,
    end: End,
    case: Option<&Case>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut trace = Trace::of(books, onboarding);
    let rows = books.rows(onboarding);
    let events = books.events(onboarding);
    let must_be = match end {
        End::Active => &reference.active,
        End::Undone => &reference.undone,
    };

    if rows.len() > trace.rows.len() {
        wrong.push(format!("more rows than there are kinds of them: {rows:?}"));
    }
    // The references are checked too.
    let (site, status) = ((names::SITES, "SITE".to_owned()), end.status());
    if trace.rows.get(&site).is_none_or(|found| found != status) {
        wrong.push(format!("the site is not {status}: {:?}", trace.rows));
    }

    // Billing keeps its answer to a command that came after its undo for a week. That row is not residue.
    let record = (names::BILLING, "idempotency".to_owned());
    let late = case.is_some_and(|case| case.fault == Fault::LateAfterUndo);
    if end == End::Undone
        && let Some((_, row)) = rows.iter().find(|(_, row)| kind(row) == record.1)
        && (row["data"] == "\"Superseded\"" || late && row["data"].is_null())
    {
        trace.rows.remove(&record);
    }
    if trace.rows != must_be.rows {
        wrong.push(format!("rows: {:?}, must be {:?}", trace.rows, must_be.rows));
    }

    wrong.extend(wrong_events(&trace, must_be, end, case));
    wrong.extend(log::gaps(&events));
    for (table, row) in &rows {
        let Some(sequence) = row["sequence"].as_u64() else { continue };
        let entity = match row["id"].as_str() {
            Some(id) => id.to_owned(),
            None => format!("site#{}", row["siteId"].as_str().unwrap_or_default()),
        };
        let told = events.iter().filter(|event| event.entity == entity).count() as u64;
        if told != sequence {
            wrong.push(format!("{table} has {entity} at {sequence}, the log has {told} events"));
        }
    }

    let billed = books.billed(onboarding);
    let of_rows: Vec<_> =
        rows.iter().filter_map(|(_, row)| row["providerSubscriptionId"].as_str()).collect();
    if billed.subscriptions != of_rows {
        wrong.push(format!("the provider has {billed:?}, the rows have {of_rows:?}"));
    }
    let customers = usize::from(end == End::Active);
    if billed.customers.len() > customers + strays(case) || billed.customers.len() < customers {
        wrong.push(format!("the provider has {billed:?}, must have {customers} customers"));
    }
    wrong
}

fn wrong_events(trace: &Trace, must_be: &Trace, end: End, case: Option<&Case>) -> Option<String> {
    // The events must be complete if the onboarding succeeded, or if it had done everything before the fault.
    let strict = end == End::Active || case.is_none_or(|case| case.step.phase == Phase::Undo);
    let right = if strict {
        trace.events == must_be.events
    } else {
        // A step that was not done has no events.
        trace.events.contains_key("site")
            && trace.events.iter().all(|(entity, kinds)| {
                let activated = ["SiteCreated", "SiteActivated", "SiteRejected"];
                must_be.events.get(entity) == Some(kinds) || entity == "site" && *kinds == activated
            })
    };
    (!right).then(|| format!("events: {:?}, must be {:?}", trace.events, must_be.events))
}

/// Returns how many customers without a subscription may be left at the provider. They were created by a call
/// whose response was never received or stored.
fn strays(case: Option<&Case>) -> usize {
    let unheard = |case: &Case| match case.fault {
        Fault::StoredErrorAfter => case.call.name == "POST/v1/customers#1",
        Fault::LateAfterUndo => case.call.name == "UpdateItem(idempotency)#2",
        _ => false,
    };
    usize::from(case.is_some_and(unheard))
}
