//! Fixed names of the resources that several services, fieldctl or other systems use.
//!
//! Each name is `<environment>-<name>`, so a consumer can build a name or an ARN itself. Tables, queues, buses and
//! functions have separate namespaces, so several resources may share one name.

use std::fmt;

use crate::{OperatorId, consumers::WATCH_NETWORK};

/// The services in the order of their first deployment. A service uses only resources of services before it. The
/// exceptions are sites and billing, which call the state machines of onboarding, and devices, which reads telemetry's
/// register of sensors, both only at run time.
pub const SERVICES: [&str; 12] = [
    "failures",
    "operators",
    "events",
    "sites",
    "inventory",
    "devices",
    "billing",
    "telemetry",
    "alerting",
    "network",
    "onboarding",
    "gateway",
];

/// Table of the alert limits.
pub const ALERTING: &str = "alerting";
/// Table of the audit trail.
pub const AUDIT: &str = "audit";
/// Table of the subscriptions.
pub const BILLING: &str = "billing";
/// Table of the sensors of each site.
pub const DEVICES: &str = "devices";
/// The events table (event log and outbox), the event bus, and the stream of all events.
pub const EVENTS: &str = "events";
/// Table of the guards of the events that other systems appended.
pub const EVENT_GUARDS: &str = "event-guards";
/// Table of the failures.
pub const FAILURES: &str = "failures";
/// Command queue, and the function that consumes it.
pub const INITIALIZE_SUBSCRIPTION: &str = "initialize-subscription";
/// Command queue, and the function that consumes it.
pub const CANCEL_SUBSCRIPTION: &str = "cancel-subscription";
/// Table of kits, stock and reservations.
pub const INVENTORY: &str = "inventory";
/// Secret with which the first administrator creates a key. The credential is `fsb_` and the secret's value.
pub const FIRST_ADMINISTRATOR: &str = "first-administrator";
/// Table of the API keys.
pub const KEYS: &str = "keys";
/// Table of the rate limits.
pub const LIMITS: &str = "limits";
/// Table of the counts of sites and events.
pub const NETWORK: &str = "network";
/// Table of the operators.
pub const OPERATORS: &str = "operators";
/// Table of the readings, and the stream that receives them.
pub const READINGS: &str = "readings";
/// Table of the counters of refused readings.
pub const REFUSALS: &str = "refusals";
/// Table of the sites and their read model.
pub const SITES: &str = "sites";
/// State machine that onboards a site.
pub const SITE_ONBOARDING: &str = "site-onboarding";
/// State machine that undoes an onboarding or closes a live site.
pub const SITE_TEARDOWN: &str = "site-teardown";
/// SNS topic of the alarms.
pub const ON_CALL: &str = "on-call";
/// SNS topic of the events about the stock of kits.
pub const STOCK: &str = "stock";
/// Secret that holds the payment provider's key.
pub const STRIPE: &str = "stripe";

/// The alias that all callers of a function use.
pub const LIVE: &str = "live";

/// Returns the name of a resource in an environment.
#[must_use]
pub fn named(environment: &str, name: &str) -> String {
    format!("{environment}-{name}")
}

/// Returns the partition key of the index `byOperator` of the sites table: an operator's sites with a status.
#[must_use]
pub fn operator_status(operator: OperatorId, status: &str) -> String {
    format!("{operator}#{status}")
}

/// Returns a resource's name without the environment. Returns `None` for a resource of another environment.
#[must_use]
pub fn without_environment<'n>(environment: &str, name: &'n str) -> Option<&'n str> {
    let name = name.strip_prefix(environment)?.strip_prefix('-')?;
    (!name.is_empty()).then_some(name)
}

/// Returns the parts of an ARN after the account. A function's ARN has the parts `function`, `<name>` and, optionally,
/// `<alias>`. Returns `None` for the ARN of another AWS service.
fn resource<'a>(arn: &'a str, service: &str) -> Option<impl Iterator<Item = &'a str>> {
    let mut parts = arn.split(':');
    (parts.next()? == "arn").then_some(())?;
    // The partition, such as `aws` or `aws-cn`.
    parts.next()?;
    (parts.next()? == service).then_some(())?;
    let (_region, _account) = (parts.next()?, parts.next()?);
    Some(parts)
}

/// Returns the name, without the environment, of the function with this ARN. The ARN may end with a version or an
/// alias. Returns `None` for a function of another environment.
#[must_use]
pub fn function_of_arn<'a>(environment: &str, arn: &'a str) -> Option<&'a str> {
    let mut parts = resource(arn, "lambda")?;
    (parts.next()? == "function").then_some(())?;
    without_environment(environment, parts.next()?)
}

/// Returns the name, without the environment, of the state machine with this ARN.
#[must_use]
pub fn state_machine_of_arn<'a>(environment: &str, arn: &'a str) -> Option<&'a str> {
    let mut parts = resource(arn, "states")?;
    (parts.next()? == "stateMachine").then_some(())?;
    without_environment(environment, parts.next()?)
}

/// Returns the name, without the environment, of the SNS topic with this ARN.
#[must_use]
pub fn topic_of_arn<'a>(environment: &str, arn: &'a str) -> Option<&'a str> {
    without_environment(environment, resource(arn, "sns")?.next()?)
}

/// What an event source mapping reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source<'a> {
    /// A queue.
    Queue(&'a str),
    /// A Kinesis stream.
    Stream(&'a str),
    /// The stream of a DynamoDB table.
    Table(&'a str),
}

impl<'a> Source<'a> {
    /// Returns the source with this ARN, which may be of a queue, a Kinesis stream or a table's stream. Returns `None`
    /// for a source of another environment.
    #[must_use]
    pub fn from_arn(environment: &str, arn: &'a str) -> Option<Self> {
        let name = |name| without_environment(environment, name);
        if let Some(mut queue) = resource(arn, "sqs") {
            return name(queue.next()?).map(Self::Queue);
        }
        if let Some(mut stream) = resource(arn, "kinesis") {
            return name(stream.next()?.strip_prefix("stream/")?).map(Self::Stream);
        }
        let table = resource(arn, "dynamodb")?.next()?.strip_prefix("table/")?;
        name(table.split('/').next()?).map(Self::Table)
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(name) => write!(f, "queue {name}"),
            Self::Stream(name) => write!(f, "stream {name}"),
            Self::Table(name) => write!(f, "table {name}"),
        }
    }
}

/// An event source mapping: a function and the queue or stream that it consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Consumer<'a> {
    /// The function's name.
    pub function: &'a str,
    /// The queue or stream.
    pub source: Source<'a>,
}

impl fmt::Display for Consumer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <- {}", self.function, self.source)
    }
}

const fn consumer(function: &'static str, source: Source<'static>) -> Consumer<'static> {
    Consumer { function, source }
}

/// The queue of S3's notifications about new objects in the failure bucket.
pub const FAILURE_FILES: &str = "failure-files";
/// The suffix of the names of all failure queues. The part before it is the name of a service, or of the command queue
/// whose dead letters the failure queue holds.
pub const FAILURE_QUEUE_SUFFIX: &str = "-failures";
/// The function that records the messages of the failure queues.
pub const RECORD_FAILURE: &str = "record-failure";

/// All event source mappings of an environment.
pub const CONSUMERS: &[Consumer<'static>] = &[
    consumer(INITIALIZE_SUBSCRIPTION, Source::Queue(INITIALIZE_SUBSCRIPTION)),
    consumer(CANCEL_SUBSCRIPTION, Source::Queue(CANCEL_SUBSCRIPTION)),
    consumer("store-readings", Source::Stream(READINGS)),
    consumer("store-held-readings", Source::Queue("readings-on-hold")),
    consumer("detect-breaches", Source::Stream(READINGS)),
    consumer("publish-events", Source::Table(EVENTS)),
    consumer("watch-stock", Source::Table(INVENTORY)),
    consumer(WATCH_NETWORK, Source::Stream(EVENTS)),
    consumer(RECORD_FAILURE, Source::Queue("sites-failures")),
    consumer(RECORD_FAILURE, Source::Queue("onboarding-failures")),
    consumer(RECORD_FAILURE, Source::Queue("inventory-failures")),
    consumer(RECORD_FAILURE, Source::Queue("telemetry-failures")),
    consumer(RECORD_FAILURE, Source::Queue("alerting-failures")),
    consumer(RECORD_FAILURE, Source::Queue("events-failures")),
    consumer(RECORD_FAILURE, Source::Queue("billing-failures")),
    consumer(RECORD_FAILURE, Source::Queue("network-failures")),
    consumer(RECORD_FAILURE, Source::Queue("failures-failures")),
    consumer(RECORD_FAILURE, Source::Queue("initialize-subscription-failures")),
    consumer(RECORD_FAILURE, Source::Queue("cancel-subscription-failures")),
    consumer(RECORD_FAILURE, Source::Queue(FAILURE_FILES)),
];

/// Returns the function whose commands end as dead letters in this queue. Returns `None` for any other queue.
#[must_use]
pub fn function_of_dead_letters(queue: &str) -> Option<&'static str> {
    let commands = Source::Queue(queue.strip_suffix(FAILURE_QUEUE_SUFFIX)?);
    CONSUMERS.iter().find(|it| it.source == commands).map(|it| it.function)
}

/// Returns the name of the failure bucket.
///
/// The bucket holds stream batches that Lambda gave up on. Under `payloads/` it holds payloads that are too long for
/// a row. Bucket names are globally unique, so the name contains account and region.
#[must_use]
pub fn failures_bucket(environment: &str, account: &str, region: &str) -> String {
    format!("{}-{account}-{region}", named(environment, FAILURES))
}

/// Returns the prefixes of the log group names of the functions, the state machines and the API.
#[must_use]
pub fn log_groups(environment: &str) -> [String; 3] {
    [
        format!("/aws/lambda/{environment}/"),
        format!("/aws/vendedlogs/states/{environment}/"),
        format!("/aws/apigateway/{environment}/"),
    ]
}

/// Converts a name from Pascal case to kebab case: `StoreReadings` becomes `store-readings`.
#[must_use]
pub fn kebab(name: &str) -> String {
    let mut kebab = String::with_capacity(name.len() + 4);
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVIRONMENT: &str = "fieldstation-prod";

    #[test]
    fn a_function_is_named_by_its_arn_with_or_without_an_alias() {
        let arn =
            "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-prod-project-site";
        for end in ["", ":live", ":7", ":$LATEST"] {
            let found = format!("{arn}{end}");
            assert_eq!(function_of_arn(ENVIRONMENT, &found), Some("project-site"), "{found}");
        }
        for other in [
            "",
            "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-prod-",
            "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-prod",
            "arn:aws:lambda:eu-central-1:123456789012:function:fieldstation-staging-project-site",
            "arn:aws:lambda:eu-central-1:123456789012:layer:fieldstation-prod-project-site",
            "arn:aws:sqs:eu-central-1:123456789012:fieldstation-prod-project-site",
            "fieldstation-prod-project-site",
        ] {
            assert_eq!(function_of_arn(ENVIRONMENT, other), None, "{other}");
        }
    }

    #[test]
    fn a_source_is_named_by_its_arn() {
        for (arn, shown) in [
            ("arn:aws:sqs:us-east-1:1:fieldstation-prod-sites-failures", "queue sites-failures"),
            ("arn:aws:kinesis:us-east-1:1:stream/fieldstation-prod-readings", "stream readings"),
            (
                "arn:aws:dynamodb:us-east-1:1:table/fieldstation-prod-events/stream/2026-01-01T00:00:00.000",
                "table events",
            ),
        ] {
            let source = Source::from_arn(ENVIRONMENT, arn);
            assert_eq!(source.map(|it| it.to_string()).as_deref(), Some(shown));
            assert_eq!(Source::from_arn("other", arn), None);
        }
    }

    #[test]
    fn a_topic_is_named_by_its_arn() {
        let arn = "arn:aws:sns:eu-central-1:123456789012:fieldstation-prod-stock";
        assert_eq!(topic_of_arn(ENVIRONMENT, arn), Some(STOCK));
        assert_eq!(topic_of_arn("other", arn), None);
        assert_eq!(topic_of_arn(ENVIRONMENT, &arn.replace(":sns:", ":sqs:")), None);
    }

    #[test]
    fn the_dead_letters_of_a_command_queue_belong_to_the_function_that_reads_it() {
        let of = function_of_dead_letters;
        assert_eq!(of("initialize-subscription-failures"), Some("initialize-subscription"));
        for other in
            ["sites-failures", "billing-failures", "initialize-subscription", FAILURE_FILES]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
