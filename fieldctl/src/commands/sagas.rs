//! The command `fieldctl sagas`.

use std::time::Duration;

use ::audit::Action;
use clap::Subcommand;
use contracts::{
    Event, OnboardingFailure, OnboardingId, SagaContext, SiteId, Timestamp, events::SiteCreated,
    names, open::OpenMetadata, saga::TeardownInput,
};
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    audit::Auditor,
    commands::{POLL_INTERVAL, confirm, sites},
    error::{CliError, Exit, aws},
    event_log::Period,
    output::{Progress, Screen, Tone},
    render::{Cell, Table, age, counted, mask_secrets, parse_duration, plain, span},
    resolve::{self, MIN_PREFIX},
    saga::{Execution, ExecutionError, STATE_MACHINES},
    sagas::{self, describe_all, list_executions, unsuccessful_statuses},
    stack::Stack,
    teardown::close_repaired,
    trace::{execution_entries, print_timeline, status_tone},
};

/// Commands for sagas.
#[derive(Debug, Subcommand)]
pub enum Sagas {
    /// Lists executions of site-onboarding and site-teardown, newest first; with --stuck, oldest first.
    List {
        /// Only running executions without an event for longer than the budget.
        #[arg(long, conflicts_with_all = ["failed", "incomplete"])]
        stuck: bool,
        /// Only those that failed, timed out or were aborted.
        #[arg(long)]
        failed: bool,
        /// Only onboardings that are not completely undone: the last teardown did not succeed, or there is none
        /// although the onboarding ended without success. Lists the last execution of each.
        #[arg(long)]
        incomplete: bool,
        /// The time without an event after which an execution is stuck.
        #[arg(long, default_value = "15m", value_parser = parse_duration)]
        budget: Duration,
        /// The maximum number of executions. Without --stuck and --incomplete, it applies to each state machine; with
        /// --failed, it applies to each of the three statuses of each state machine.
        #[arg(long, default_value_t = 25)]
        limit: usize,
    },
    /// Shows an execution, state by state.
    Show {
        /// The execution: its name, the first characters of its name, or its ARN. For a site: its onboarding.
        execution: String,
    },
    /// Starts a site-teardown for an onboarding that is stuck or not completely undone, and waits for its end.
    Recover {
        /// The site: its id, its onboarding's id, the first digits of one of them, or its name.
        site: String,
        /// How long to wait for the end of the teardown; 0s does not wait.
        #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
        wait: Duration,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

impl Sagas {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { stuck, failed, incomplete, budget, limit } => {
                let found = if incomplete {
                    sagas::incomplete(stack).await?
                } else if stuck {
                    sagas::stuck(stack, budget, screen.now).await?
                } else {
                    let statuses = if failed { unsuccessful_statuses() } else { vec![None] };
                    let listed = list_executions(stack, statuses, limit).await?;
                    describe_all(stack, listed)
                        .try_filter_map(async |it| Ok(it))
                        .try_collect()
                        .await?
                };
                let limit = if stuck || incomplete { limit } else { usize::MAX };
                list(screen, &found[..found.len().min(limit)])
            }
            Self::Show { execution } => {
                let found = find(stack, &execution).await?;
                print(screen, &found)?;
                Ok(Exit::Done)
            }
            Self::Recover { site, wait, yes } => {
                let onboarding = resolve::site_onboarding(stack, &site).await?.onboarding;
                recover(stack, screen, onboarding, wait, yes).await
            }
        }
    }
}

fn list(screen: &mut Screen, found: &[Execution]) -> Result<Exit, CliError> {
    if screen.json {
        found.iter().try_for_each(|execution| screen.entry(execution))?;
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        screen.line("No executions found.")?;
    }
    let now = screen.now;
    let rows: Vec<_> = found.iter().map(|execution| row(screen, execution, now)).collect();
    let titles = ["STATUS", "STARTED", "LAST", "SAGA", "STATE OR ERROR", "NAME"];
    Table::new(titles).page(screen, &rows)?;
    Ok(Exit::Done)
}

fn row(screen: &Screen, execution: &Execution, now: Timestamp) -> Vec<Cell> {
    let state_or_error = match (execution.current(), &execution.failure) {
        (Some(state), _) if execution.is_running() => {
            let since = span(now.millis() - state.entered.millis());
            (format!("{} for {since}", state.name), Tone::Warn)
        }
        (_, Some(failure)) => plain(failure.error.clone()),
        _ => plain(""),
    };
    vec![
        (execution.status.clone(), status_tone(&execution.status)),
        (age(now, execution.started), Tone::Faint),
        (age(now, execution.last_event), Tone::Faint),
        plain(execution.machine.trim_start_matches("site-")),
        state_or_error,
        plain(name_in_list(screen, &execution.name)),
    ]
}

/// Returns an execution's name as a list shows it. `sagas show` accepts a prefix of a name.
fn name_in_list(screen: &Screen, name: &str) -> String {
    match name.parse::<OnboardingId>() {
        Ok(id) => screen.id(&id),
        Err(_) => name.to_owned(),
    }
}

/// Finds an execution of either state machine by its ARN, its name or a prefix of its name. If there is none, finds the
/// onboarding of the site that the text names.
async fn find(stack: &Stack, named: &str) -> Result<Execution, CliError> {
    let not_found = || {
        CliError::not_found(format!("there is no execution {named}"))
            .advise("`fieldctl sagas list` lists the executions; AWS keeps an execution for 90 days after its end")
    };
    if named.starts_with("arn:") {
        return stack.execution(named).await?.ok_or_else(not_found);
    }
    for machine in STATE_MACHINES {
        if let Some(execution) = stack.execution(&stack.execution_arn(machine, named)).await? {
            return Ok(execution);
        }
    }
    if named.len() >= MIN_PREFIX {
        let all = list_executions(stack, vec![None], usize::MAX).await?;
        let found: Vec<_> = all.iter().filter(|listed| listed.name.starts_with(named)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return stack.execution(&one.arn).await?.ok_or_else(not_found),
            several => {
                let error =
                    CliError::usage(format!("{} executions begin with {named}", several.len()))
                        .advise("use more characters of the name");
                let details = several.iter().take(5).map(|listed| listed.name.clone()).collect();
                return Err(CliError { details, ..error });
            }
        }
    }
    let onboarding = match resolve::site_onboarding(stack, named).await {
        Ok(found) => found.onboarding.to_string(),
        Err(error) if error.exit == Exit::NotFound => return Err(not_found()),
        Err(error) => return Err(error),
    };
    let arn = stack.execution_arn(names::SITE_ONBOARDING, &onboarding);
    stack.execution(&arn).await?.ok_or_else(not_found)
}

fn print(screen: &mut Screen, execution: &Execution) -> Result<(), CliError> {
    let mut input = execution.input.clone();
    mask_secrets(&mut input);
    if screen.json {
        return screen.document(&json!({ "execution": execution, "input": input }));
    }
    screen.field("execution", Tone::Strong, &execution.name)?;
    screen.field("machine", Tone::Plain, &execution.machine)?;
    screen.field("status", status_tone(&execution.status), &execution.status)?;
    if let Some(failure) = &execution.failure {
        screen.field("error", Tone::Bad, &failure.error)?;
        screen.field("message", Tone::Plain, &failure.message)?;
    }
    screen.field("arn", Tone::Faint, &execution.arn)?;
    screen.field("input", Tone::Faint, &input.to_string())?;
    screen.line("")?;
    print_timeline(screen, &execution_entries(execution))
}

/// Returns the input for a teardown of the onboarding. It is read from the onboarding's execution, or from the event
/// `SiteCreated` if Step Functions no longer keeps the execution.
async fn teardown_input(
    stack: &Stack,
    onboarding: OnboardingId,
) -> Result<TeardownInput, CliError> {
    let invalid = |what: &str, error: &dyn std::fmt::Display| {
        CliError::new(Exit::Failed, format!("{what} of the onboarding {onboarding}: {error}"))
    };
    let own = stack.execution_arn(names::SITE_ONBOARDING, &onboarding.to_string());
    if let Some(execution) = stack.execution(&own).await? {
        let failed = execution.states.iter().find_map(|it| Some((&it.name, it.failure()?)));
        let failure = failed.map(|(step, failure)| {
            let ExecutionError { error, message } = failure.clone();
            OnboardingFailure { step: step.clone(), error, message }
        });
        let saga = SagaContext::deserialize(&execution.input);
        let saga = saga.map_err(|error| invalid("the execution's input", &error))?;
        return Ok(TeardownInput::new(saga, failure));
    }
    let events = stack.events_of_onboarding(onboarding, Period::default(), usize::MAX).await?;
    let created = events.iter().find(|event| event.kind == SiteCreated::TYPE);
    let created = created.and_then(|event| event.envelope().ok()).ok_or_else(|| {
        CliError::not_found(format!("there is no onboarding {onboarding}"))
            .advise("`fieldctl sites show <siteId>` shows the onboardingId of a site")
    })?;
    let site = SiteId::deserialize(&created.data["siteId"]);
    let site = site.map_err(|error| invalid("the event SiteCreated", &error))?;
    let OpenMetadata { operator_id, event_id, .. } = created.metadata;
    let saga = SagaContext::for_site(operator_id, site, Some(event_id.uuid()));
    saga.check_onboarding(onboarding).map_err(|error| invalid("the event SiteCreated", &error))?;
    Ok(TeardownInput::new(saga, None))
}

async fn recover(
    stack: &Stack,
    screen: &mut Screen,
    onboarding: OnboardingId,
    wait: Duration,
    yes: bool,
) -> Result<Exit, CliError> {
    let mut input = teardown_input(stack, onboarding).await?;
    let site = sites::undoable_site(stack, input.saga.site_id).await?;
    if site.status == "ONBOARDING" && input.failure.is_none() {
        // Without a failure, the teardown would treat the site as one that was in service.
        input.failure = Some(OnboardingFailure {
            step: "Onboarding".to_owned(),
            error: "Recovered".to_owned(),
            message: "The onboarding was undone by an engineer on call.".to_owned(),
        });
    }
    confirm(
        &format!("Undo the onboarding of {site}? Undo steps that are already done change nothing."),
        yes,
    )?;
    let auditor = Auditor::new(stack).await?;
    auditor.record(input.saga.operator_id, Action::RecoverSaga, onboarding).await?;
    let random = &Uuid::new_v4().simple().to_string()[..8];
    let started = stack
        .machines
        .start_execution()
        .state_machine_arn(stack.machine_arn(names::SITE_TEARDOWN))
        .name(format!("operator-{onboarding}-{random}"))
        .input(json!(input).to_string())
        .send()
        .await
        .map_err(aws("site-teardown can't be started"))?;
    let arn = started.execution_arn();
    let not_found = || CliError::not_found(format!("there is no execution {arn}"));
    let until = Instant::now() + wait;
    let progress = Progress::spinner();
    let execution = loop {
        let execution = stack.execution(arn).await?.ok_or_else(not_found)?;
        if !execution.is_running() || Instant::now() + POLL_INTERVAL > until {
            break execution;
        }
        let state = execution.current().map_or("…", |state| &state.name).to_owned();
        progress.show(&format!("site-teardown: {state}"));
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    progress.clear();
    screen.now = Timestamp::now();
    print(screen, &execution)?;
    match execution.status.as_str() {
        _ if execution.is_running() => {
            if !screen.json {
                screen.line("")?;
                let text = format!(
                    "still running; to see its end: fieldctl sagas show {}",
                    execution.name
                );
                screen.field("undo", Tone::Warn, &text)?;
            }
            Ok(Exit::Unknown)
        }
        "SUCCEEDED" => {
            let closed = close_repaired(&stack.ledger(), &[onboarding]).await?;
            if !screen.json {
                screen.line("")?;
                screen.field("undo", Tone::Good, "complete")?;
                if closed > 0 {
                    let text = counted(closed, "failure", "failures");
                    let text = format!("{text} of this onboarding repaired and closed");
                    screen.field("failures", Tone::Plain, &text)?;
                }
            }
            Ok(Exit::Done)
        }
        _ => Ok(Exit::Failed),
    }
}
