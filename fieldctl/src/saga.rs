//! The sagas as Step Functions tells them: what each state did, how long, how often.

use aws_sdk_sfn::{operation::describe_execution::DescribeExecutionError, types::ExecutionStatus};
use contracts::{OnboardingId, Timestamp, names};
use machines::{History, Task, TaskFailure, timestamp};
use serde::Serialize;
use serde_json::Value;

use crate::{
    error::{CliError, aws},
    render::sentence,
    stack::Stack,
};

/// An error with what was said about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Its stable name.
    #[serde(rename = "name")]
    pub error: String,
    /// For a human.
    pub message: String,
}

impl Failed {
    fn of(error: Option<&str>, cause: Option<&str>) -> Self {
        Self {
            error: error.unwrap_or("Unknown").to_owned(),
            message: sentence(cause.unwrap_or_default()),
        }
    }
}

/// A task of an execution, with all its tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// The state's name.
    pub name: String,
    /// When it was entered.
    pub begun: Timestamp,
    /// When it was left; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// How often it was tried.
    pub tries: u32,
    /// The tries that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failed>,
    /// Whether the last try came to a good end.
    pub succeeded: bool,
    /// What it sent was taken, and its answer is waited for.
    pub submitted: bool,
}

impl State {
    /// The error that it ended with.
    #[must_use]
    pub fn failure(&self) -> Option<&Failed> {
        self.failures.last().filter(|_| self.ended.is_some() && !self.succeeded)
    }
}

/// One run of a state machine, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// The machine's name.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// Its ARN.
    pub arn: String,
    /// RUNNING, SUCCEEDED, FAILED, TIMED_OUT, ABORTED.
    pub status: String,
    /// When it began.
    pub started: Timestamp,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Timestamp>,
    /// What it ended with.
    #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failed>,
    /// Its tasks in the order of their beginning.
    pub states: Vec<State>,
    /// The executions that it started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<String>,
    /// When something happened in it last.
    pub last_event: Timestamp,
    /// What it was started with.
    #[serde(skip)]
    pub input: Value,
}

impl Execution {
    /// The task that runs now.
    #[must_use]
    pub fn current(&self) -> Option<&State> {
        self.states.iter().find(|state| state.ended.is_none())
    }

    /// Whether one that began then may be nested in it, though its history tells of none: not every
    /// emulator's does.
    fn may_have_nested(&self, started: Timestamp) -> bool {
        let compensate = self.states.iter().find(|state| state.name == "Compensate");
        self.children.is_empty()
            && compensate.is_some_and(|state| {
                state.begun <= started && state.ended.is_none_or(|ended| started <= ended)
            })
    }

    /// It has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status == ExecutionStatus::Running.as_str()
    }
}

impl From<Task> for State {
    fn from(task: Task) -> Self {
        let Task { name, begun, ended, tries, failures, succeeded, submitted } = task;
        let failures = failures.into_iter().map(|TaskFailure { error, cause }| {
            let timed_out = error.as_deref() == Some("States.Timeout") && cause.is_none();
            let cause = if timed_out { Some("no answer in time") } else { cause.as_deref() };
            Failed::of(error.as_deref(), cause)
        });
        Self { name, begun, ended, tries, failures: failures.collect(), succeeded, submitted }
    }
}

/// An execution in a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its ARN.
    pub arn: String,
    /// Its name.
    pub name: String,
    /// When it began.
    pub started: Timestamp,
}

/// Both state machines.
pub const MACHINES: [&str; 2] = [names::SITE_ONBOARDING, names::SITE_TEARDOWN];

impl Stack {
    /// The name of the state machine with that ARN; the ARN if it is not of this environment.
    fn machine<'a>(&self, arn: &'a str) -> &'a str {
        MACHINES.into_iter().find(|machine| self.machine_arn(machine) == arn).unwrap_or(arn)
    }

    /// The execution with that ARN; none where there is none, or no more: Step Functions keeps them
    /// for 90 days after their end.
    pub async fn execution(&self, arn: &str) -> Result<Option<Execution>, CliError> {
        let described = match self.machines.describe_execution().execution_arn(arn).send().await {
            Ok(described) => described,
            Err(error) => {
                let service = error.as_service_error();
                return if service.is_some_and(DescribeExecutionError::is_execution_does_not_exist) {
                    Ok(None)
                } else {
                    Err(aws("an execution can't be described")(error))
                };
            }
        };
        let history = self.machines.get_execution_history().execution_arn(arn);
        let history = history.include_execution_data(true);
        let mut events = history.into_paginator().items().send();
        let mut history = Vec::new();
        while let Some(event) = events.next().await {
            history.push(event.map_err(aws("an execution's history can't be read"))?);
        }
        let started = timestamp(*described.start_date());
        let History { tasks, children, last_event } = History::of(&history);
        Ok(Some(Execution {
            machine: self.machine(described.state_machine_arn()).to_owned(),
            name: described.name().unwrap_or_default().to_owned(),
            arn: arn.to_owned(),
            status: described.status().as_str().to_owned(),
            started,
            stopped: described.stop_date().copied().map(timestamp),
            failure: described.error().map(|error| Failed::of(Some(error), described.cause())),
            states: tasks.into_iter().map(State::from).collect(),
            children,
            last_event: last_event.unwrap_or(started),
            input: described
                .input()
                .and_then(|input| serde_json::from_str(input).ok())
                .unwrap_or_default(),
        }))
    }

    /// A machine's executions with that status since that time, newest first, at most so many.
    pub async fn executions(
        &self,
        machine: &str,
        status: Option<ExecutionStatus>,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<Listed>, CliError> {
        let listing = self
            .machines
            .list_executions()
            .state_machine_arn(self.machine_arn(machine))
            .set_status_filter(status);
        let mut executions = listing.into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(execution) = executions.next().await {
            let execution = execution.map_err(aws("the executions can't be listed"))?;
            let listed = Listed {
                arn: execution.execution_arn().to_owned(),
                name: execution.name().to_owned(),
                started: timestamp(*execution.start_date()),
            };
            if listed.started < since || found.len() == limit {
                break;
            }
            found.push(listed);
        }
        Ok(found)
    }

    /// Everything that ran for an onboarding, in the order of its beginning: its own execution,
    /// the teardown nested in it, and those started besides, which have its id in their name.
    pub async fn executions_of(
        &self,
        onboarding: OnboardingId,
        since: Timestamp,
    ) -> Result<Vec<Execution>, CliError> {
        let id = onboarding.to_string();
        let own = self.execution(&self.execution_arn(names::SITE_ONBOARDING, &id)).await?;
        let listed = self.executions(names::SITE_TEARDOWN, None, since, usize::MAX).await?;
        let mut executions = Vec::new();
        for it in listed {
            let named = it.name.contains(&id);
            let known = own.iter().flat_map(|own| &own.children).any(|child| *child == it.arn);
            let maybe = own.as_ref().is_some_and(|own| own.may_have_nested(it.started));
            if named || known || maybe {
                let found = self.execution(&it.arn).await?;
                executions.extend(found.filter(|found| found.input["onboardingId"] == id));
            }
        }
        executions.extend(own);
        executions.sort_by_key(|execution| execution.started);
        Ok(executions)
    }
}
