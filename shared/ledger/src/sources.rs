//! The sources of failures: functions, state machines and queues.

use contracts::{
    names::{CONSUMERS, RECORD_FAILURE, SITE_TEARDOWN, Source, function_of_dead_letters},
    saga::STEPS,
};

/// The function that quarantines bundles that it can't store.
pub const STORE_READINGS: &str = "store-readings";
/// The function that starts a teardown after an onboarding that was not completely undone, or after a stopped teardown.
pub const RECOVER_ONBOARDING: &str = "recover-onboarding";

/// The functions that events and schedules invoke asynchronously.
const ASYNCHRONOUS: [&str; 12] = [
    "check-consumers",
    "check-sagas",
    "import-site",
    "project-rules",
    "project-sensors",
    "project-site",
    "receive-kits",
    "reconcile-subscriptions",
    RECOVER_ONBOARDING,
    "report-failures",
    "start-onboarding",
    "sweep-events",
];

/// Returns whether a failure of this source can be closed once a teardown of the failure's onboarding has succeeded.
/// The failed work is then obsolete: the teardown runs the undo of every step, and a step has no effect after its undo.
#[must_use]
pub fn is_done_by_teardown(source: &str) -> bool {
    let mut steps = STEPS.iter().flat_map(|step| [step.function(), step.undo_function()]);
    [SITE_TEARDOWN, RECOVER_ONBOARDING].contains(&source) || steps.any(|step| step == source)
}

/// Returns the functions and state machines whose work can fail permanently.
#[must_use]
pub fn workers() -> Vec<&'static str> {
    let consumers = CONSUMERS.iter().map(|it| it.function).filter(|it| *it != RECORD_FAILURE);
    let mut workers: Vec<_> = ASYNCHRONOUS.into_iter().chain(consumers).collect();
    workers.push(SITE_TEARDOWN);
    workers.sort_unstable();
    workers
}

/// Returns all known sources: the workers, and the queues whose messages may name no worker. fieldctl checks the names
/// that its users type against this list. The ledger itself accepts any source.
#[must_use]
pub fn known() -> Vec<&'static str> {
    let queues = CONSUMERS.iter().filter(|it| it.function == RECORD_FAILURE);
    let queues = queues.filter_map(|it| match it.source {
        Source::Queue(queue) if function_of_dead_letters(queue).is_none() => Some(queue),
        _ => None,
    });
    let mut known: Vec<_> = workers().into_iter().chain(queues).collect();
    known.sort_unstable();
    known
}
