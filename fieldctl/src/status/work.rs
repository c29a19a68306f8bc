//! Checks the work of the environment: events, failures, sagas, subscriptions.

use std::time::Duration;

use contracts::{Timestamp, names};
use ledger::Status;
use payments::Report;

use super::Check;
use crate::{
    error::CliError,
    event_log::MAX_PUBLISH_DELAY,
    render::{ago, cause_message, short, span},
    sagas,
    stack::Stack,
};

/// The maximum number of failures that are counted. A higher number is shown as "at least" this number.
const MAX_COUNTED: u32 = 1000;

/// The time without an event after which a saga is stuck, as in `fieldctl sagas list --stuck`.
const SAGA_BUDGET: Duration = Duration::from_mins(15);

/// Checks that events are published without delay.
pub async fn events(stack: &Stack, now: Timestamp) -> Result<Check, CliError> {
    let Some(oldest) = stack.oldest_unpublished().await? else {
        return Ok(Check::good("events", "all are published"));
    };
    let age = now.millis() - oldest.at.millis();
    let summary = format!("the oldest unpublished event has waited for {}", span(age));
    Ok(if age > MAX_PUBLISH_DELAY.as_millis().try_into().unwrap_or(i64::MAX) {
        let details = vec![format!("{} {}", oldest.entity, oldest.sequence)];
        Check::problem("events", summary, "fieldctl logs --function publish-events --errors")
            .with(details)
    } else {
        Check::good("events", summary)
    })
}

/// Checks that no failure is open.
pub async fn failures(stack: &Stack, now: Timestamp) -> Result<Check, CliError> {
    let ledger = stack.ledger();
    let open = ledger.count(Status::Open, MAX_COUNTED).await?;
    if open == 0 {
        return Ok(Check::good("failures", "none is open"));
    }
    let (newest, _) = ledger.page(Status::Open, true, None, 1).await?;
    let details = newest.iter().map(|row| {
        let (name, message) = (&row.error.name, cause_message(&row.error.message));
        format!(
            "newest, {}: {} {} {name}: {message}",
            ago(now, row.last_at),
            short(&row.id),
            row.source
        )
    });
    let open = if open == MAX_COUNTED { format!("at least {open}") } else { open.to_string() };
    Ok(Check::problem("failures", format!("{open} open"), "fieldctl failures groups")
        .with(details.collect()))
}

/// Checks that no saga is stuck.
pub async fn stuck(stack: &Stack, now: Timestamp) -> Result<Check, CliError> {
    let executions = sagas::stuck(stack, SAGA_BUDGET, now).await?;
    let details: Vec<_> = executions
        .iter()
        .map(|it| {
            let state = it.current().map_or("between two states", |state| &state.name);
            let idle = span(now.millis() - it.last_event.millis());
            format!("{} has been in {state} for {idle}", it.name)
        })
        .collect();
    Ok(if details.is_empty() {
        Check::good("stuck sagas", "none")
    } else {
        Check::problem("stuck sagas", details.len().to_string(), "fieldctl sagas list --stuck")
            .with(details)
    })
}

/// Checks that every undo is complete.
pub async fn incomplete(stack: &Stack) -> Result<Check, CliError> {
    let incomplete = sagas::incomplete(stack).await?;
    let details: Vec<_> = incomplete
        .iter()
        .map(|it| {
            let error =
                it.failure.as_ref().map_or(it.status.as_str(), |failure| failure.error.as_str());
            let onboarding = it.input["onboardingId"].as_str().unwrap_or(&it.name);
            format!("onboarding {onboarding}: {error}")
        })
        .collect();
    Ok(if details.is_empty() {
        Check::good("incomplete sagas", "none")
    } else {
        let next =
            "fieldctl sagas list --incomplete; fix the cause, then fieldctl sagas recover <site>";
        Check::problem("incomplete sagas", details.len().to_string(), next).with(details)
    })
}

/// Checks that the provider and the billing table agree.
pub async fn subscriptions(stack: &Stack, now: Timestamp) -> Result<Check, CliError> {
    let rows = stack.table(names::BILLING);
    let report: Option<Report> = rows.get(&Report::key()).await?;
    let next = "fieldctl subscriptions";
    let Some(report) = report else {
        return Err(CliError::not_found("the subscriptions have not been compared yet")
            .advise("reconcile-subscriptions runs every hour; fieldctl logs --function reconcile-subscriptions"));
    };
    let compared = ago(now, report.at);
    Ok(if report.is_outdated(now) {
        Check::problem("subscriptions", format!("last compared {compared}"), next)
    } else if report.found > 0 {
        Check::problem(
            "subscriptions",
            format!("differences: {}, compared {compared}", report.found),
            next,
        )
    } else {
        let summary = format!("the provider and the billing table agree, compared {compared}");
        Check::good("subscriptions", summary)
    })
}
