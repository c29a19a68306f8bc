//! Fixed names of the resources that more than one service, or an operator, uses.
//!
//! Each is `<environment>-<name>`, so a consumer builds a name or an ARN without asking the owner. Tables,
//! queues, buses and functions have namespaces of their own, so one name may stand for several of them.

/// The services in the order of their first deployment. A service depends on services before it only.
pub const SERVICES: [&str; 10] = [
    "failures",
    "events",
    "sites",
    "inventory",
    "devices",
    "billing",
    "telemetry",
    "alerting",
    "onboarding",
    "gateway",
];

/// Table of the alert limits.
pub const ALERTING: &str = "alerting";
/// Table of the subscriptions.
pub const BILLING: &str = "billing";
/// Table of the sensors of each site.
pub const DEVICES: &str = "devices";
/// Event log and outbox (a table), and the event bus.
pub const EVENTS: &str = "events";
/// Table of everything that failed.
pub const FAILURES: &str = "failures";
/// Table of kits, stock and reservations.
pub const INVENTORY: &str = "inventory";
/// Table of the readings, and the stream that takes them.
pub const READINGS: &str = "readings";
/// Table that counts refused readings.
pub const REFUSALS: &str = "refusals";
/// Table of the sites and their read model.
pub const SITES: &str = "sites";
/// State machine that onboards a site.
pub const SITE_ONBOARDING: &str = "site-onboarding";
/// State machine that undoes an onboarding or closes a live site.
pub const SITE_TEARDOWN: &str = "site-teardown";
/// Topic that gets the alarms.
pub const ON_CALL: &str = "on-call";
/// Secret that holds the payment provider's key.
pub const STRIPE: &str = "stripe";

/// The name of a resource in an environment.
#[must_use]
pub fn named(environment: &str, name: &str) -> String {
    format!("{environment}-{name}")
}

/// What a consumer reads, by its name without the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A queue.
    Queue(&'static str),
    /// A Kinesis stream.
    Stream(&'static str),
    /// The stream of a table.
    Table(&'static str),
}

/// A function that an event source mapping calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// The function, without the environment.
    pub function: &'static str,
    /// What its mapping reads.
    pub source: Source,
}

/// Every event source mapping of an environment.
pub const CONSUMERS: &[Consumer] = &[];
