//! The sagas as Step Functions tells them.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent, HistoryEventType};
use contracts::{OnboardingId, Timestamp, names};
use machines::History;
use serde_json::Value;

use crate::Stack;

/// One run of a state machine, as far as it has come.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Its ARN.
    pub arn: String,
    /// Where it stands.
    pub status: ExecutionStatus,
    /// Its error's name, if it ended with one.
    pub error: Option<String>,
    /// What it said about the error.
    pub cause: Option<String>,
    /// Its tasks in the order of their beginning.
    pub tasks: Vec<Task>,
    /// The state that it was in when it was stopped.
    pub stopped_in: Option<String>,
    /// How the task ended, by the error's name, that was under way then: the emulator hears of it, as
    /// Step Functions does not.
    pub late_failure: Option<String>,
}

/// A task of an execution, with all its tries.
#[derive(Clone, Debug)]
pub struct Task {
    /// The state's name.
    pub name: String,
    /// When it began, in epoch milliseconds.
    pub begun: i64,
    /// When it was over.
    pub ended: Option<i64>,
    /// How often it was tried.
    pub tries: u32,
    /// The tries that failed, by the errors' names.
    pub failures: Vec<String>,
    /// Whether the last try succeeded.
    pub succeeded: bool,
}

impl From<machines::Task> for Task {
    fn from(task: machines::Task) -> Self {
        let failures = task.failures.into_iter();
        Self {
            name: task.name,
            begun: task.begun.millis(),
            ended: task.ended.map(Timestamp::millis),
            tries: task.tries,
            failures: failures.map(|it| it.error.unwrap_or_else(|| "?".to_owned())).collect(),
            succeeded: task.succeeded,
        }
    }
}

impl Task {
    /// How long it took.
    #[must_use]
    pub fn millis(&self) -> Option<i64> {
        self.ended.map(|ended| ended - self.begun)
    }

    /// The error that it ended with.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        let failed = self.ended.is_some() && !self.succeeded;
        self.failures.last().filter(|_| failed).map(String::as_str)
    }
}

impl Execution {
    /// The task of that name.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == name)
    }

    /// The names of the tasks that came to a good end.
    #[must_use]
    pub fn succeeded(&self) -> Vec<&str> {
        let succeeded = self.tasks.iter().filter(|task| task.succeeded);
        succeeded.map(|task| task.name.as_str()).collect()
    }

    /// The task that runs now.
    #[must_use]
    pub fn current(&self) -> Option<&Task> {
        self.tasks.iter().find(|task| task.ended.is_none())
    }
}

/// What an execution's history has before it was stopped, and after; all of it before, if it was not.
fn at_the_stop(history: &[HistoryEvent]) -> (&[HistoryEvent], &[HistoryEvent]) {
    let stop = history.iter().position(|it| *it.r#type() == HistoryEventType::ExecutionAborted);
    history.split_at(stop.unwrap_or(history.len()))
}

fn stopped_in(history: &[HistoryEvent]) -> Option<String> {
    let (before, after) = at_the_stop(history);
    let entered = before.iter().rev().find_map(HistoryEvent::state_entered_event_details);
    entered.filter(|_| !after.is_empty()).map(|state| state.name().to_owned())
}

fn late_failure(history: &[HistoryEvent]) -> Option<String> {
    let (_, after) = at_the_stop(history);
    let failed = after.iter().find_map(HistoryEvent::task_failed_event_details)?;
    failed.error().map(str::to_owned)
}

/// The ARN of a machine's execution of that name.
fn execution_arn(machine: &str, name: &str) -> String {
    format!("{}:{name}", machine.replacen(":stateMachine:", ":execution:", 1))
}

impl Stack {
    /// The ARN that the onboarding's execution has: it is named after the onboarding.
    pub fn onboarding_arn(&self, onboarding: OnboardingId) -> Result<String> {
        Ok(execution_arn(&self.machine_arn(names::SITE_ONBOARDING), &onboarding.to_string()))
    }

    /// The onboarding's execution; none as long as it is not started.
    pub async fn onboarding(&self, onboarding: OnboardingId) -> Result<Option<Execution>> {
        self.execution(&self.onboarding_arn(onboarding)?).await
    }

    /// The teardown that was started last for the onboarding.
    pub async fn teardown(&self, onboarding: OnboardingId) -> Result<Option<Execution>> {
        match self.last_teardowns(onboarding, 1).await?.first() {
            Some(arn) => self.execution(arn).await,
            None => Ok(None),
        }
    }

    /// All teardowns that were started for the onboarding, by their ARNs, the newest first.
    pub async fn teardowns_of(&self, onboarding: OnboardingId) -> Result<Vec<String>> {
        self.last_teardowns(onboarding, usize::MAX).await
    }

    async fn last_teardowns(&self, onboarding: OnboardingId, most: usize) -> Result<Vec<String>> {
        let machine = self.machine_arn(names::SITE_TEARDOWN);
        let listing = self.machines.list_executions().state_machine_arn(machine);
        // Newest first.
        let mut executions = listing.into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(execution) = executions.next().await {
            let arn = execution?.execution_arn().to_owned();
            let described = self.machines.describe_execution().execution_arn(&arn).send().await?;
            let input: Value = serde_json::from_str(described.input().unwrap_or("null"))?;
            if input["onboardingId"] == onboarding.to_string() {
                found.push(arn);
                if found.len() == most {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The teardown whose execution has that name.
    pub async fn teardown_named(&self, name: &str) -> Result<Option<Execution>> {
        self.execution(&execution_arn(&self.machine_arn(names::SITE_TEARDOWN), name)).await
    }

    /// Stops an execution by hand, as an operator does.
    pub async fn stop(&self, arn: &str) -> Result<()> {
        let stop = self.machines.stop_execution().execution_arn(arn);
        stop.cause("stopped by hand").send().await.context("the execution can't be stopped")?;
        Ok(())
    }

    /// Starts a teardown by hand, as an operator does; its ARN.
    pub async fn start_teardown(&self, input: &str) -> Result<String> {
        let machine = self.machine_arn(names::SITE_TEARDOWN);
        let started =
            self.machines.start_execution().state_machine_arn(machine).input(input).send().await?;
        Ok(started.execution_arn().to_owned())
    }

    /// The onboardings whose executions stand so, by the executions' names: the onboardings' ids.
    pub async fn onboardings_with(&self, status: ExecutionStatus) -> Result<BTreeSet<String>> {
        let machine = self.machine_arn(names::SITE_ONBOARDING);
        let listing = self.machines.list_executions().state_machine_arn(machine);
        let mut executions = listing.status_filter(status).into_paginator().items().send();
        let mut names = BTreeSet::new();
        while let Some(execution) = executions.next().await {
            names.insert(execution?.name().to_owned());
        }
        Ok(names)
    }

    /// How many executions of the onboarding machine there are for the onboarding.
    pub async fn onboardings_of(&self, onboarding: OnboardingId) -> Result<usize> {
        let machine = self.machine_arn(names::SITE_ONBOARDING);
        let listing = self.machines.list_executions().state_machine_arn(machine);
        let mut executions = listing.into_paginator().items().send();
        let mut count = 0;
        while let Some(execution) = executions.next().await {
            let execution = execution?;
            let described =
                self.machines.describe_execution().execution_arn(execution.execution_arn());
            let input = described.send().await?.input().unwrap_or_default().to_owned();
            count += usize::from(input.contains(&onboarding.to_string()));
        }
        Ok(count)
    }

    /// The execution of that ARN; none as long as it is not started.
    pub async fn execution(&self, arn: &str) -> Result<Option<Execution>> {
        let described = machines::describe(&self.machines, arn).await;
        let Some(described) = described.context("the execution can't be described")? else {
            return Ok(None);
        };
        let history = machines::events(&self.machines, arn).await;
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
