//! Checks the invariants of an onboarding that has ended after any fault.

use std::collections::BTreeMap;

use contracts::{OnboardingId, names};
use serde_json::Value;
use tests::log;

use crate::{
    faults::Fault,
    plan::{Case, Phase},
    snapshot::Snapshot,
};

/// The outcome of an onboarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The site is active.
    Active,
    /// Everything was undone.
    Undone,
}

impl Outcome {
    /// Returns the site's status.
    fn status(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Undone => "REJECTED",
        }
    }
}

/// The final state of an onboarding: its rows as (table, kind, status), and its events by entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinalState {
    rows: BTreeMap<(&'static str, String), String>,
    events: BTreeMap<String, Vec<String>>,
}

fn kind(row: &Value) -> String {
    let id = row["id"].as_str().or(row["row"].as_str()).unwrap_or_default();
    id.split('#').next().unwrap_or_default().to_owned()
}

impl FinalState {
    /// Reads the final state of an onboarding from a snapshot.
    pub fn read(snapshot: &Snapshot, onboarding: OnboardingId) -> Self {
        let mut state = Self::default();
        for (table, row) in snapshot.rows(onboarding) {
            let status = row["status"].as_str().unwrap_or("none").to_owned();
            state.rows.insert((table, kind(row)), status);
        }
        let events = snapshot.events(onboarding);
        let owned = |kinds: Vec<&str>| kinds.into_iter().map(str::to_owned).collect();
        let entities = log::by_entity(&events).into_iter();
        state.events = entities.map(|(entity, kinds)| (entity.to_owned(), owned(kinds))).collect();
        state
    }
}

/// The final states of onboardings without faults.
#[derive(Clone, Debug)]
pub struct Reference {
    /// The final state of an onboarding that succeeds.
    pub active: FinalState,
    /// The final state of an onboarding that is refused at its last step and undone.
    pub undone: FinalState,
}

/// Compares the final state of an onboarding with the reference. Returns all violations.
pub fn violations(
    snapshot: &Snapshot,
    reference: &Reference,
    onboarding: OnboardingId,
    outcome: Outcome,
    case: Option<&Case>,
) -> Vec<String> {
    let mut violations = Vec::new();
    let mut state = FinalState::read(snapshot, onboarding);
    let rows = snapshot.rows(onboarding);
    let events = snapshot.events(onboarding);
    let expected = match outcome {
        Outcome::Active => &reference.active,
        Outcome::Undone => &reference.undone,
    };

    if rows.len() > state.rows.len() {
        violations.push(format!("there are two rows of one kind: {rows:?}"));
    }
    // This check applies to the references too.
    let (site, status) = ((names::SITES, "SITE".to_owned()), outcome.status());
    if state.rows.get(&site).is_none_or(|found| found != status) {
        violations.push(format!("the site is not {status}: {:?}", state.rows));
    }

    // If a command comes after the undo of its step, billing keeps the command's idempotency record for a week. This
    // row is not residue.
    let record = (names::BILLING, "idempotency".to_owned());
    let is_late = case.is_some_and(|case| case.fault == Fault::LateAfterUndo);
    if outcome == Outcome::Undone
        && let Some((_, row)) = rows.iter().find(|(_, row)| kind(row) == record.1)
        && (row["data"] == "\"Superseded\"" || is_late && row["data"].is_null())
    {
        state.rows.remove(&record);
    }
    if state.rows != expected.rows {
        violations.push(format!("rows: {:?}, expected {:?}", state.rows, expected.rows));
    }

    violations.extend(event_violation(&state, expected, outcome, case));
    violations.extend(log::gaps(&events));
    for (table, row) in &rows {
        let Some(sequence) = row["sequence"].as_u64() else { continue };
        let entity = match row["id"].as_str() {
            Some(id) => id.to_owned(),
            None => format!("site#{}", row["siteId"].as_str().unwrap_or_default()),
        };
        let logged = events.iter().filter(|event| event.entity == entity).count() as u64;
        if logged != sequence {
            violations.push(format!(
                "{table} has sequence {sequence} for {entity}, but {logged} events are logged"
            ));
        }
    }

    let objects = snapshot.billing_objects(onboarding);
    let subscriptions_in_rows: Vec<_> =
        rows.iter().filter_map(|(_, row)| row["providerSubscriptionId"].as_str()).collect();
    if objects.subscriptions != subscriptions_in_rows {
        violations
            .push(format!("the provider has {objects:?}, the rows have {subscriptions_in_rows:?}"));
    }
    let customers = usize::from(outcome == Outcome::Active);
    if objects.customers.len() > customers + max_orphaned_customers(case)
        || objects.customers.len() < customers
    {
        violations.push(format!("the provider has {objects:?}, expected {customers} customers"));
    }
    violations
}

fn event_violation(
    state: &FinalState,
    expected: &FinalState,
    outcome: Outcome,
    case: Option<&Case>,
) -> Option<String> {
    // The events must be complete if the onboarding succeeded, or if the fault was in its undo.
    let must_be_complete =
        outcome == Outcome::Active || case.is_none_or(|case| case.step.phase == Phase::Undo);
    let is_valid = if must_be_complete {
        state.events == expected.events
    } else {
        // A step that was not done has no events.
        state.events.contains_key("site")
            && state.events.iter().all(|(entity, kinds)| {
                let activated = ["SiteCreated", "SiteActivated", "SiteRejected"];
                expected.events.get(entity) == Some(kinds)
                    || entity == "site" && *kinds == activated
            })
    };
    (!is_valid).then(|| format!("events: {:?}, expected {:?}", state.events, expected.events))
}

/// Returns the maximum number of customers without a subscription at the provider. The id of such a customer was never
/// known, or could no longer be stored.
fn max_orphaned_customers(case: Option<&Case>) -> usize {
    let response_was_lost = |case: &Case| match case.fault {
        Fault::StoredErrorAfter => case.call.name == "POST/v1/customers#1",
        Fault::LateAfterUndo => case.call.name == "UpdateItem(idempotency)#2",
        _ => false,
    };
    usize::from(case.is_some_and(response_was_lost))
}
