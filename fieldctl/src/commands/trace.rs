//! The command `fieldctl trace`.

use clap::Args;
use contracts::{EntityType, OnboardingId, Timestamp, names, saga::STEPS};
use ledger::{FailureId, FailureSummary, Kind};

use crate::{
    error::{CliError, Exit},
    event_log::Period,
    failure_pager::{FailureFilter, FailurePager, STATUSES},
    output::{self, Screen},
    resolve::{self, SiteOnboarding},
    saga::Execution,
    stack::Stack,
    status,
    trace::OnboardingHistory,
};

/// The maximum difference between the clocks of the services, in milliseconds.
const MAX_CLOCK_SKEW_MILLIS: i64 = 60_000;

/// Shows the history of a site.
#[derive(Debug, Args)]
pub struct Trace {
    /// The site: its id, its onboarding's id, the first digits of one of them, or its name.
    site: String,
}

impl Trace {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        let ids = resolve::site_onboarding(stack, &self.site).await?;
        let history = load_history(stack, ids).await?;
        if screen.json {
            screen.document(&history.document())?;
        } else {
            history.show(screen)?;
        }
        Ok(Exit::Done)
    }
}

/// Collects everything that is known about a site and its onboarding.
pub async fn load_history(
    stack: &Stack,
    ids: SiteOnboarding,
) -> Result<OnboardingHistory, CliError> {
    let onboarding_id = ids.onboarding;
    let events = all_events(stack, onboarding_id).await?;
    let since = events.first().map_or(Timestamp::now(), |event| event.occurred_at);
    let mut executions = stack
        .executions_of_onboarding(onboarding_id, since.plus_millis(-MAX_CLOCK_SKEW_MILLIS))
        .await?;
    if events.is_empty() && executions.is_empty() {
        return Err(CliError::not_found(format!(
            "there is no site and no onboarding {} in the stack {}",
            ids.site,
            stack.name()
        ))
        .advise("`fieldctl sites list` lists the sites"));
    }
    let site = or_print(stack.site(ids.site).await);
    let failures = or_print(failures_of(stack, ids, since).await).unwrap_or_default();
    for failure in failures.iter().filter(|failure| failure.kind == Kind::ExecutionFailed) {
        executions.extend(replay_executions(stack, failure.id).await?);
    }
    executions.sort_by_key(|execution| execution.started);
    let mut running = executions.iter().filter(|it| it.is_running()).filter_map(Execution::current);
    let waits_for_provider = running.any(|state| calls_provider(&state.name));
    let provider = if waits_for_provider { or_print(status::provider(stack).await) } else { None };
    Ok(OnboardingHistory {
        onboarding_id,
        site_id: ids.site,
        site,
        executions,
        events,
        failures,
        provider,
    })
}

/// Returns whether a state of the saga or its teardown calls the payment provider.
fn calls_provider(state: &str) -> bool {
    let mut billing = STEPS.iter().filter(|step| step.entity == EntityType::Subscription);
    billing.any(|step| [step.name, step.undo].contains(&state))
}

/// Returns the value of a success. Prints the error of a failure and returns `None`, so that the command continues.
fn or_print<T>(result: Result<T, CliError>) -> Option<T> {
    result.inspect_err(output::print_error).ok()
}

async fn all_events(
    stack: &Stack,
    onboarding: OnboardingId,
) -> Result<Vec<store::EventRow>, CliError> {
    stack.events_of_onboarding(onboarding, Period::default(), usize::MAX).await
}

/// Returns the executions that replayed a failed one.
async fn replay_executions(stack: &Stack, id: FailureId) -> Result<Vec<Execution>, CliError> {
    let mut executions = Vec::new();
    let Some(mut row) = stack.ledger().get(id).await? else { return Ok(executions) };
    for count in 1..=row.replays {
        row.replays = count;
        let arn = stack.execution_arn(names::SITE_TEARDOWN, &row.execution_name());
        executions.extend(stack.execution(&arn).await?);
    }
    Ok(executions)
}

/// Returns the failures of the onboarding, and those that concern the site, such as quarantined readings. No index has
/// the onboarding or the site as its key, so all failures since the start of the onboarding are read.
async fn failures_of(
    stack: &Stack,
    ids: SiteOnboarding,
    since: Timestamp,
) -> Result<Vec<FailureSummary>, CliError> {
    let filter = FailureFilter { since: Some(since), ..FailureFilter::default() };
    let mut pager = FailurePager::new(stack.ledger(), &STATUSES, filter);
    let mut found = Vec::new();
    while let Some(page) = pager.next().await? {
        found.extend(page.into_iter().filter(|row| {
            row.correlation_id == Some(ids.onboarding)
                || row.correlation_id.is_none() && row.affected_ids.include_site(ids.site)
        }));
    }
    Ok(found)
}
