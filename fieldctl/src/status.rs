//! Checks the state of an environment, as an engineer on call would do.
//!
//! A check that could not be done is `unknown`, never `good`.

mod consumers;
mod functions;
pub(crate) mod metrics;
mod provider;
mod queues;
mod resources;
mod work;

use contracts::Timestamp;
use futures_util::future::join_all;
use serde::Serialize;

pub use self::{
    consumers::Consumer,
    functions::Function,
    provider::{ProviderStatus, provider},
    queues::Queue,
};
use self::{metrics::Metrics, resources::Resources};
use crate::{error::CliError, stack::Stack};

/// The result of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The check found no problem.
    #[default]
    Good,
    /// The check could not be done.
    Unknown,
    /// Someone has to act.
    Problem,
}

/// A check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The check's name, for example `consumers`.
    pub name: &'static str,
    /// The check's result.
    pub health: Health,
    /// The result in a sentence.
    pub summary: String,
    /// The problems that were found, one in each line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// The command to run next, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Check {
    fn good(name: &'static str, summary: impl Into<String>) -> Self {
        let (health, summary) = (Health::Good, summary.into());
        Self { name, health, summary, details: Vec::new(), next: None }
    }

    fn problem(name: &'static str, summary: impl Into<String>, next: impl Into<String>) -> Self {
        Self { health: Health::Problem, next: Some(next.into()), ..Self::good(name, summary) }
    }

    fn with(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// Returns the check, or an unknown check with the error as its reason.
    fn from_result(name: &'static str, result: Result<Self, CliError>) -> Self {
        result.unwrap_or_else(|error| Self {
            health: Health::Unknown,
            next: error.advice.clone(),
            ..Self::good(name, format!("could not be checked: {}", error.message))
        })
    }
}

/// The state of an environment.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The environment.
    pub stack: String,
    /// The region of the environment.
    pub region: String,
    /// When the environment was checked.
    pub at: Timestamp,
    /// The worst result of the checks.
    pub health: Health,
    /// Every check.
    pub checks: Vec<Check>,
    /// The event source mappings.
    pub consumers: Vec<Consumer>,
    /// The queues.
    pub queues: Vec<Queue>,
    /// The functions, with the versions that are live.
    pub functions: Vec<Function>,
}

/// Runs every check.
pub async fn status(stack: &Stack, now: Timestamp) -> Status {
    let resources = Resources::load(stack).await;
    let (consumers, functions) =
        tokio::join!(consumers::consumers(stack, &resources), functions::live(stack, &resources),);
    let live = functions.as_deref().unwrap_or_default();
    let metrics = Metrics::load(stack, &resources, live, now).await;
    let functions = functions.map(|live| functions::measured(live, &metrics));
    let queues = queues::queues(stack, &resources, &metrics).await;
    let mut checks = vec![
        Check::from_result("stack", resources.check()),
        Check::from_result("alarms", metrics::alarms(stack, &resources).await),
        Check::from_result("consumers", consumers::check(consumers.as_deref())),
        Check::from_result("streams", metrics::streams(stack, &resources, &metrics)),
        Check::from_result("queues", queues::check(queues.as_deref())),
    ];
    let result = join_all([
        Box::pin(work::events(stack, now)) as CheckFuture<'_>,
        Box::pin(work::failures(stack, now)),
        Box::pin(work::stuck(stack, now)),
        Box::pin(work::incomplete(stack)),
        Box::pin(provider::check(stack, now)),
        Box::pin(work::subscriptions(stack, now)),
    ])
    .await;
    let names =
        ["events", "failures", "stuck sagas", "incomplete sagas", "provider", "subscriptions"];
    checks.extend(
        names.into_iter().zip(result).map(|(name, result)| Check::from_result(name, result)),
    );
    checks.push(Check::from_result(
        "functions",
        functions::check(functions.as_deref(), metrics.read()),
    ));
    Status {
        stack: stack.name().to_owned(),
        region: stack.region().to_owned(),
        at: now,
        health: checks.iter().map(|check| check.health).max().unwrap_or_default(),
        checks,
        consumers: consumers.unwrap_or_default(),
        queues: queues.unwrap_or_default(),
        functions: functions.unwrap_or_default(),
    }
}

type CheckFuture<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Check, CliError>> + 'a>>;

/// Copies an error, because several checks report it.
fn copy_error(error: &CliError) -> CliError {
    CliError { advice: error.advice.clone(), ..CliError::new(error.exit, error.message.clone()) }
}
