//! The executions of the sagas, read from Step Functions.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent, HistoryEventType};
use contracts::{OnboardingId, Timestamp, names};
use machines::History;
use serde_json::Value;

use crate::Stack;

/// The current state of an execution of a state machine.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Its ARN.
    pub arn: String,
    /// The status.
    pub status: ExecutionStatus,
    /// The name of the error that ended it.
    pub error: Option<String>,
    /// The cause of the error.
    pub cause: Option<String>,
    /// The tasks, in the order of their start.
    pub tasks: Vec<Task>,
    /// The state in which it was stopped.
    pub stopped_in: Option<String>,
    /// The error of the task that was in progress at the stop. Only the emulator records it, Step Functions does not.
    pub late_failure: Option<String>,
}

/// A task of an execution, with all its attempts.
#[derive(Clone, Debug)]
pub struct Task {
    /// The state's name.
    pub name: String,
    /// The start time, in milliseconds since the epoch.
    pub started: i64,
    /// The end time, in milliseconds since the epoch. `None` while the task runs.
    pub ended: Option<i64>,
    /// The number of attempts.
    pub attempts: u32,
    /// The error names of the failed attempts.
    pub failures: Vec<String>,
    /// Whether the last attempt succeeded.
    pub succeeded: bool,
}

impl From<machines::Task> for Task {
    fn from(task: machines::Task) -> Self {
        let failures = task.failures.into_iter();
        Self {
            name: task.name,
            started: task.entered.millis(),
            ended: task.exited.map(Timestamp::millis),
            attempts: task.attempts,
            failures: failures.map(|it| it.error.unwrap_or_else(|| "?".to_owned())).collect(),
            succeeded: task.succeeded,
        }
    }
}

impl Task {
    /// Returns the duration in milliseconds. `None` while the task runs.
    #[must_use]
    pub fn millis(&self) -> Option<i64> {
        self.ended.map(|ended| ended - self.started)
    }

    /// Returns the error with which the task ended.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        let failed = self.ended.is_some() && !self.succeeded;
        self.failures.last().filter(|_| failed).map(String::as_str)
    }
}

impl Execution {
    /// Returns the task with this name.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == name)
    }

    /// Returns the names of the tasks that succeeded.
    #[must_use]
    pub fn succeeded(&self) -> Vec<&str> {
        let succeeded = self.tasks.iter().filter(|task| task.succeeded);
        succeeded.map(|task| task.name.as_str()).collect()
    }

    /// Returns the task that runs now.
    #[must_use]
    pub fn current(&self) -> Option<&Task> {
        self.tasks.iter().find(|task| task.ended.is_none())
    }
}

/// Splits the history at the stop of the execution. Without a stop, the second part is empty.
fn split_at_stop(history: &[HistoryEvent]) -> (&[HistoryEvent], &[HistoryEvent]) {
    let stop = history.iter().position(|it| *it.r#type() == HistoryEventType::ExecutionAborted);
    history.split_at(stop.unwrap_or(history.len()))
}

fn stopped_in(history: &[HistoryEvent]) -> Option<String> {
    let (before, after) = split_at_stop(history);
    let entered = before.iter().rev().find_map(HistoryEvent::state_entered_event_details);
    entered.filter(|_| !after.is_empty()).map(|state| state.name().to_owned())
}

fn late_failure(history: &[HistoryEvent]) -> Option<String> {
    let (_, after) = split_at_stop(history);
    let failed = after.iter().find_map(HistoryEvent::task_failed_event_details)?;
    failed.error().map(str::to_owned)
}

/// Returns the ARN of the execution with this name.
fn execution_arn(machine: &str, name: &str) -> String {
    format!("{}:{name}", machine.replacen(":stateMachine:", ":execution:", 1))
}

impl Stack {
    /// Returns the ARN of the onboarding's execution. Its name is the onboarding's id.
    pub fn onboarding_arn(&self, onboarding: OnboardingId) -> Result<String> {
        Ok(execution_arn(&self.machine_arn(names::SITE_ONBOARDING), &onboarding.to_string()))
    }

    /// Returns the onboarding's execution, or `None` if it has not started.
    pub async fn onboarding(&self, onboarding: OnboardingId) -> Result<Option<Execution>> {
        self.execution(&self.onboarding_arn(onboarding)?).await
    }

    /// Returns the onboarding's newest teardown.
    pub async fn teardown(&self, onboarding: OnboardingId) -> Result<Option<Execution>> {
        match self.last_teardowns(onboarding, 1).await?.first() {
            Some(arn) => self.execution(arn).await,
            None => Ok(None),
        }
    }

    /// Returns the ARNs of all teardowns of the onboarding, newest first.
    pub async fn teardowns_of(&self, onboarding: OnboardingId) -> Result<Vec<String>> {
        self.last_teardowns(onboarding, usize::MAX).await
    }

    async fn last_teardowns(&self, onboarding: OnboardingId, max: usize) -> Result<Vec<String>> {
        let machine = self.machine_arn(names::SITE_TEARDOWN);
        let listing = self.sfn.list_executions().state_machine_arn(machine);
        // The list is sorted by start time, newest first.
        let mut executions = listing.into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(execution) = executions.next().await {
            let arn = execution?.execution_arn().to_owned();
            let described = self.sfn.describe_execution().execution_arn(&arn).send().await?;
            let input: Value = serde_json::from_str(described.input().unwrap_or("null"))?;
            if input["onboardingId"] == onboarding.to_string() {
                found.push(arn);
                if found.len() == max {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Returns the teardown with this execution name.
    pub async fn teardown_named(&self, name: &str) -> Result<Option<Execution>> {
        self.execution(&execution_arn(&self.machine_arn(names::SITE_TEARDOWN), name)).await
    }

    /// Stops an execution, as an engineer on call does.
    pub async fn stop(&self, arn: &str) -> Result<()> {
        let stop = self.sfn.stop_execution().execution_arn(arn);
        stop.cause("stopped by hand").send().await.context("the execution can't be stopped")?;
        Ok(())
    }

    /// Starts a teardown, as an engineer on call does. Returns its ARN.
    pub async fn start_teardown(&self, input: &str) -> Result<String> {
        let machine = self.machine_arn(names::SITE_TEARDOWN);
        let started =
            self.sfn.start_execution().state_machine_arn(machine).input(input).send().await?;
        Ok(started.execution_arn().to_owned())
    }

    /// Returns the ids of the onboardings whose executions have this status.
    pub async fn onboardings_with(&self, status: ExecutionStatus) -> Result<BTreeSet<String>> {
        let machine = self.machine_arn(names::SITE_ONBOARDING);
        let listing = self.sfn.list_executions().state_machine_arn(machine);
        let mut executions = listing.status_filter(status).into_paginator().items().send();
        let mut names = BTreeSet::new();
        while let Some(execution) = executions.next().await {
            names.insert(execution?.name().to_owned());
        }
        Ok(names)
    }

    /// Returns the number of executions of `site-onboarding` for the onboarding.
    pub async fn onboardings_of(&self, onboarding: OnboardingId) -> Result<usize> {
        let machine = self.machine_arn(names::SITE_ONBOARDING);
        let listing = self.sfn.list_executions().state_machine_arn(machine);
        let mut executions = listing.into_paginator().items().send();
        let mut count = 0;
        while let Some(execution) = executions.next().await {
            let execution = execution?;
            let described = self.sfn.describe_execution().execution_arn(execution.execution_arn());
            let input = described.send().await?.input().unwrap_or_default().to_owned();
            count += usize::from(input.contains(&onboarding.to_string()));
        }
        Ok(count)
    }

    /// Returns the execution with this ARN, or `None` if it has not started.
    pub async fn execution(&self, arn: &str) -> Result<Option<Execution>> {
        let described = machines::describe(&self.sfn, arn).await;
        let Some(described) = described.context("the execution can't be described")? else {
            return Ok(None);
        };
        let history = machines::events(&self.sfn, arn).await;
        let history = history.context("the execution's history can't be read")?;
        Ok(Some(Execution {
            arn: arn.to_owned(),
            status: described.status().clone(),
            error: described.error().map(str::to_owned),
            cause: described.cause().map(str::to_owned),
            tasks: History::from_events(&history).tasks.into_iter().map(Task::from).collect(),
            stopped_in: stopped_in(&history),
            late_failure: late_failure(&history),
        }))
    }
}
