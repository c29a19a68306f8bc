//! The functions and state machines whose failures are recorded.

/// Their names, as the rows have them in `source`. A test compares them with the template's variable
/// `SOURCES`.
pub const SOURCES: [&str; 17] = [
    "cancel-subscription",
    "check-consumers",
    "check-sagas",
    "detect-breaches",
    "import-site",
    "initialize-subscription",
    "project-sensors",
    "project-site",
    "publish-events",
    "receive-kits",
    "reconcile-subscriptions",
    "recover-onboarding",
    "report-failures",
    SITE_TEARDOWN,
    "start-onboarding",
    STORE_READINGS,
    "sweep-events",
];

/// The state machine that undoes an onboarding: its failures are executions, not calls of a function.
pub const SITE_TEARDOWN: &str = "site-teardown";
/// The function that quarantines the bundles that it can't store.
pub const STORE_READINGS: &str = "store-readings";

/// The sources whose work is done once a teardown of the same onboarding succeeded: the teardown ran every
/// undo, and no step of the onboarding has an effect after its undo.
pub const DONE_BY_TEARDOWN: [&str; 4] =
    [SITE_TEARDOWN, "recover-onboarding", "initialize-subscription", "cancel-subscription"];
