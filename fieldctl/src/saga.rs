//! Reads the executions of the sagas from Step Functions: the states, with their durations, attempts and errors.

use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{OnboardingId, Timestamp, names, saga::COMPENSATE};
use machines::{History, Task, TaskFailure, timestamp};
use serde::Serialize;
use serde_json::Value;

use crate::{
    error::{CliError, aws},
    render::cause_message,
    stack::Stack,
};

/// The error of a state or an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExecutionError {
    /// The error's stable name.
    #[serde(rename = "name")]
    pub error: String,
    /// A message for people.
    pub message: String,
}

impl ExecutionError {
    fn new(error: Option<&str>, cause: Option<&str>) -> Self {
        Self {
            error: error.unwrap_or("Unknown").to_owned(),
            message: cause_message(cause.unwrap_or_default()),
        }
    }
}

/// A task state of an execution, with all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// The state's name.
    pub name: String,
    /// When the state was entered.
    #[serde(rename = "begun")]
    pub entered: Timestamp,
    /// When the state was left. `None` while it runs.
    #[serde(rename = "ended", skip_serializing_if = "Option::is_none")]
    pub exited: Option<Timestamp>,
    /// The number of attempts.
    #[serde(rename = "tries")]
    pub attempts: u32,
    /// The attempts that failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<ExecutionError>,
    /// Whether the last attempt succeeded.
    pub succeeded: bool,
    /// Whether the last attempt was submitted and has no response yet.
    pub submitted: bool,
}

impl State {
    /// Returns the error with which the state ended. `None` if it still runs or succeeded.
    #[must_use]
    pub fn failure(&self) -> Option<&ExecutionError> {
        self.failures.last().filter(|_| self.exited.is_some() && !self.succeeded)
    }
}

/// An execution of a state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// The name of the state machine.
    pub machine: String,
    /// The execution's name.
    pub name: String,
    /// The execution's ARN.
    pub arn: String,
    /// The status: `RUNNING`, `SUCCEEDED`, `FAILED`, `TIMED_OUT`, `ABORTED` or `PENDING_REDRIVE`.
    pub status: String,
    /// When the execution started.
    pub started: Timestamp,
    /// When the execution ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Timestamp>,
    /// The error with which the execution ended.
    #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
    pub failure: Option<ExecutionError>,
    /// The task states, in the order in which they were entered.
    pub states: Vec<State>,
    /// The ARNs of the executions that this one started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<String>,
    /// The time of the last event in the execution's history.
    pub last_event: Timestamp,
    /// The input.
    #[serde(skip)]
    pub input: Value,
}

impl Execution {
    /// Returns the state that is running.
    #[must_use]
    pub fn current(&self) -> Option<&State> {
        self.states.iter().find(|state| state.exited.is_none())
    }

    /// Returns whether an execution that started at that time may be nested in this one, although the history lists no
    /// nested executions. Some emulators do not list them, so the time has to decide: only the state `Compensate`
    /// starts a nested execution.
    fn may_have_nested(&self, started: Timestamp) -> bool {
        self.children.is_empty()
            && self.compensation().is_some_and(|state| {
                state.entered <= started && state.exited.is_none_or(|exited| started <= exited)
            })
    }

    /// Returns whether this is an execution of site-teardown.
    #[must_use]
    pub fn is_teardown(&self) -> bool {
        self.machine == names::SITE_TEARDOWN
    }

    /// Returns whether the execution ended and something may still have to be undone. This is true for a teardown that
    /// did not succeed. It is also true for an onboarding if neither the onboarding nor its nested teardown succeeded.
    #[must_use]
    pub fn needs_undo(&self) -> bool {
        let ended_without_success =
            !self.is_running() && self.status != ExecutionStatus::Succeeded.as_str();
        let is_undone = self.compensation().is_some_and(|state| state.succeeded);
        ended_without_success && !is_undone
    }

    /// Returns the state `Compensate` of an onboarding, which runs the nested teardown.
    fn compensation(&self) -> Option<&State> {
        self.states.iter().find(|state| state.name == COMPENSATE)
    }

    /// Returns the id of the onboarding in the input.
    #[must_use]
    pub fn onboarding(&self) -> Option<OnboardingId> {
        self.input["onboardingId"].as_str().and_then(|id| id.parse().ok())
    }

    /// Returns whether the execution is running.
    #[must_use]
    pub fn is_running(&self) -> bool {
        is_running(&ExecutionStatus::from(self.status.as_str()))
    }
}

/// Returns whether an execution with this status is running. One that waits for its redrive has not ended.
#[must_use]
pub fn is_running(status: &ExecutionStatus) -> bool {
    matches!(status, ExecutionStatus::Running | ExecutionStatus::PendingRedrive)
}

/// The state of the undo of an onboarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "undo")]
pub enum Undo {
    /// No execution of a teardown was found, and none is needed.
    NotStarted,
    /// The last teardown is running.
    Running {
        /// The undos that have failed so far.
        #[serde(rename = "failedUndos")]
        failed: Vec<String>,
    },
    /// The last teardown succeeded, so every undo is done.
    Complete,
    /// Something may not be undone: the last teardown ended without success, or a teardown is missing.
    Incomplete,
}

impl Undo {
    /// Returns the state of the undo from all executions of one onboarding. The teardown that started last decides:
    /// every teardown runs all undos, so earlier teardowns do not matter.
    #[must_use]
    pub fn from_executions(executions: &[Execution]) -> Self {
        let teardowns = executions.iter().filter(|it| it.is_teardown());
        let Some(last) = teardowns.max_by_key(|it| it.started) else {
            let is_missing = executions.iter().any(Execution::needs_undo);
            return if is_missing { Self::Incomplete } else { Self::NotStarted };
        };
        if last.is_running() {
            let failed = last.states.iter().filter(|state| state.failure().is_some());
            return Self::Running { failed: failed.map(|state| state.name.clone()).collect() };
        }
        if last.needs_undo() { Self::Incomplete } else { Self::Complete }
    }
}

impl From<Task> for State {
    fn from(task: Task) -> Self {
        let Task { name, entered, exited, attempts, failures, succeeded, submitted } = task;
        let failures = failures.into_iter().map(|TaskFailure { error, cause }| {
            let timed_out = error.as_deref() == Some("States.Timeout") && cause.is_none();
            let cause =
                if timed_out { Some("no response before the timeout") } else { cause.as_deref() };
            ExecutionError::new(error.as_deref(), cause)
        });
        Self { name, entered, exited, attempts, failures: failures.collect(), succeeded, submitted }
    }
}

/// An execution in a list.
#[derive(Clone, Debug)]
pub struct ListedExecution {
    /// The execution's ARN.
    pub arn: String,
    /// The execution's name.
    pub name: String,
    /// When the execution started.
    pub started: Timestamp,
}

/// The names of both state machines.
pub const STATE_MACHINES: [&str; 2] = [names::SITE_ONBOARDING, names::SITE_TEARDOWN];

impl Stack {
    /// Returns the name of the state machine with that ARN, or the ARN if it belongs to another environment.
    fn machine<'a>(&self, arn: &'a str) -> &'a str {
        STATE_MACHINES.into_iter().find(|machine| self.machine_arn(machine) == arn).unwrap_or(arn)
    }

    /// Reads the execution with that ARN. Returns `None` if it does not exist. Step Functions keeps an execution
    /// for 90 days after its end.
    pub async fn execution(&self, arn: &str) -> Result<Option<Execution>, CliError> {
        let described = machines::describe(&self.machines, arn).await;
        let Some(described) = described.map_err(aws("an execution can't be described"))? else {
            return Ok(None);
        };
        let events = machines::events(&self.machines, arn).await;
        let events = events.map_err(aws("an execution's history can't be read"))?;
        let started = timestamp(*described.start_date());
        let History { tasks, children, last_event } = History::from_events(&events);
        Ok(Some(Execution {
            machine: self.machine(described.state_machine_arn()).to_owned(),
            name: described.name().unwrap_or_default().to_owned(),
            arn: arn.to_owned(),
            status: described.status().as_str().to_owned(),
            started,
            stopped: described.stop_date().copied().map(timestamp),
            failure: described
                .error()
                .map(|error| ExecutionError::new(Some(error), described.cause())),
            states: tasks.into_iter().map(State::from).collect(),
            children,
            last_event: last_event.unwrap_or(started),
            input: described
                .input()
                .and_then(|input| serde_json::from_str(input).ok())
                .unwrap_or_default(),
        }))
    }

    /// Lists the executions of a state machine that started at `since` or later and have this status. `None` selects
    /// all statuses. Returns at most `limit` executions, the newest first.
    pub async fn executions(
        &self,
        machine: &str,
        status: Option<ExecutionStatus>,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<ListedExecution>, CliError> {
        let listing = self
            .machines
            .list_executions()
            .state_machine_arn(self.machine_arn(machine))
            .set_status_filter(status);
        let mut executions = listing.into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(execution) = executions.next().await {
            let execution = execution.map_err(aws("the executions can't be listed"))?;
            let listed = ListedExecution {
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

    /// Returns all executions of an onboarding, in the order of their start: its own execution, the nested teardown,
    /// and separately started teardowns whose names contain the onboarding's id.
    pub async fn executions_of_onboarding(
        &self,
        onboarding: OnboardingId,
        since: Timestamp,
    ) -> Result<Vec<Execution>, CliError> {
        let id = onboarding.to_string();
        let own = self.execution(&self.execution_arn(names::SITE_ONBOARDING, &id)).await?;
        let listed = self.executions(names::SITE_TEARDOWN, None, since, usize::MAX).await?;
        let mut executions = Vec::new();
        for it in listed {
            let has_id_in_name = it.name.contains(&id);
            let is_child = own.iter().flat_map(|own| &own.children).any(|child| *child == it.arn);
            let may_be_nested = own.as_ref().is_some_and(|own| own.may_have_nested(it.started));
            if has_id_in_name || is_child || may_be_nested {
                let found = self.execution(&it.arn).await?;
                executions.extend(found.filter(|found| found.input["onboardingId"] == id));
            }
        }
        executions.extend(own);
        executions.sort_by_key(|execution| execution.started);
        Ok(executions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execution(machine: &str, status: &str, seconds: i64) -> Execution {
        let started = Timestamp::from_millis(seconds * 1000);
        Execution {
            machine: machine.to_owned(),
            name: "n".to_owned(),
            arn: "a".to_owned(),
            status: status.to_owned(),
            started,
            stopped: None,
            failure: None,
            states: Vec::new(),
            children: Vec::new(),
            last_event: started,
            input: Value::Null,
        }
    }

    fn with_compensation(succeeded: bool) -> Execution {
        let state = State {
            name: COMPENSATE.to_owned(),
            entered: Timestamp::from_millis(0),
            exited: Some(Timestamp::from_millis(1)),
            attempts: 1,
            failures: Vec::new(),
            succeeded,
            submitted: false,
        };
        Execution { states: vec![state], ..execution(names::SITE_ONBOARDING, "FAILED", 0) }
    }

    #[test]
    fn the_last_teardown_decides_whether_an_onboarding_is_incomplete() {
        let teardown = |status, seconds| execution(names::SITE_TEARDOWN, status, seconds);
        let running = Undo::Running { failed: Vec::new() };
        for (statuses, expected) in [
            (vec!["SUCCEEDED"], Undo::Complete),
            (vec!["FAILED"], Undo::Incomplete),
            (vec!["TIMED_OUT"], Undo::Incomplete),
            (vec!["ABORTED"], Undo::Incomplete),
            (vec!["FAILED", "SUCCEEDED"], Undo::Complete),
            (vec!["SUCCEEDED", "FAILED"], Undo::Incomplete),
            (vec!["FAILED", "RUNNING"], running.clone()),
            (vec!["FAILED", "PENDING_REDRIVE"], running),
        ] {
            let mut executions = vec![with_compensation(false)];
            executions.extend((1..).zip(&statuses).map(|(at, status)| teardown(status, at)));
            assert_eq!(Undo::from_executions(&executions), expected, "{statuses:?}");
            executions.reverse();
            assert_eq!(
                Undo::from_executions(&executions),
                expected,
                "{statuses:?}, in another order"
            );
        }
    }

    #[test]
    fn an_onboarding_that_failed_without_a_teardown_is_incomplete() {
        let onboarding = |status| execution(names::SITE_ONBOARDING, status, 0);
        for (execution, expected) in [
            (onboarding("RUNNING"), Undo::NotStarted),
            (onboarding("SUCCEEDED"), Undo::NotStarted),
            (onboarding("ABORTED"), Undo::Incomplete),
            (onboarding("TIMED_OUT"), Undo::Incomplete),
            (onboarding("FAILED"), Undo::Incomplete),
            (with_compensation(false), Undo::Incomplete),
            // Step Functions no longer keeps the execution of the nested teardown.
            (with_compensation(true), Undo::NotStarted),
        ] {
            assert_eq!(
                Undo::from_executions(std::slice::from_ref(&execution)),
                expected,
                "{execution:?}"
            );
        }
        assert_eq!(Undo::from_executions(&[]), Undo::NotStarted);
    }
}
