//! Derives the tasks of an execution from its history.

use aws_sdk_sfn::{
    Client,
    error::SdkError,
    operation::get_execution_history::GetExecutionHistoryError,
    types::{HistoryEvent, HistoryEventType as Type},
};
use contracts::Timestamp;
use serde_json::Value;

use crate::timestamp;

/// The tasks in the history of an execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The task states, in the order in which they were entered.
    pub tasks: Vec<Task>,
    /// The ARNs of the executions that the tasks started.
    pub children: Vec<String>,
    /// When the last event happened. `None` if there are no events.
    pub last_event: Option<Timestamp>,
}

/// One visit of a task state, with all its attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The name of the state.
    pub name: String,
    /// When the state was entered.
    pub entered: Timestamp,
    /// When the state was exited. `None` while it runs.
    pub exited: Option<Timestamp>,
    /// The number of attempts.
    pub attempts: u32,
    /// The attempts that failed.
    pub failures: Vec<TaskFailure>,
    /// Whether an attempt succeeded.
    pub succeeded: bool,
    /// Whether the last attempt was submitted to the service that runs it.
    pub submitted: bool,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFailure {
    /// The error's name. It is `States.Timeout` for an attempt that timed out.
    pub error: Option<String>,
    /// The cause, as Step Functions reports it.
    pub cause: Option<String>,
}

/// Fetches all events of an execution, with inputs and outputs, in the order in which they happened.
pub async fn events(
    client: &Client,
    execution: &str,
) -> Result<Vec<HistoryEvent>, SdkError<GetExecutionHistoryError>> {
    let history = client.get_execution_history().execution_arn(execution);
    let mut pages = history.include_execution_data(true).into_paginator().items().send();
    let mut events = Vec::new();
    while let Some(event) = pages.next().await {
        events.push(event?);
    }
    Ok(events)
}

impl History {
    /// Creates a history from events, which must be in the order in which they happened.
    #[must_use]
    pub fn from_events(events: &[HistoryEvent]) -> Self {
        let mut history = Self::default();
        for event in events {
            history.add(event);
        }
        history
    }

    fn add(&mut self, event: &HistoryEvent) {
        let now = timestamp(*event.timestamp());
        self.last_event = Some(now);
        if *event.r#type() == Type::TaskStateEntered {
            let details = event.state_entered_event_details();
            self.tasks.push(Task {
                name: details.map_or("?", |details| details.name()).to_owned(),
                entered: now,
                exited: None,
                attempts: 0,
                failures: Vec::new(),
                succeeded: false,
                submitted: false,
            });
            return;
        }
        let Some(task) = self.tasks.last_mut().filter(|task| task.exited.is_none()) else { return };
        let mut child = None;
        match event.r#type() {
            Type::TaskScheduled => {
                task.attempts += 1;
                task.submitted = false;
            }
            Type::TaskSubmitted => {
                task.submitted = true;
                let details = event.task_submitted_event_details();
                child = started_execution(details.and_then(|details| details.output()));
            }
            Type::TaskSucceeded => {
                task.succeeded = true;
                let details = event.task_succeeded_event_details();
                child = started_execution(details.and_then(|details| details.output()));
            }
            Type::TaskFailed | Type::TaskSubmitFailed | Type::TaskStartFailed => {
                let details = event.task_failed_event_details();
                let cause = details.and_then(|details| details.cause());
                child = started_execution(cause);
                let error = details.and_then(|details| details.error()).map(str::to_owned);
                task.failures.push(TaskFailure { error, cause: cause.map(str::to_owned) });
            }
            Type::TaskTimedOut => {
                let details = event.task_timed_out_event_details();
                let cause = details.and_then(|details| details.cause()).map(str::to_owned);
                task.failures.push(TaskFailure { error: Some("States.Timeout".to_owned()), cause });
            }
            Type::TaskStateExited
            | Type::ExecutionFailed
            | Type::ExecutionAborted
            | Type::ExecutionTimedOut => task.exited = Some(now),
            _ => {}
        }
        if let Some(child) = child.filter(|child| !self.children.contains(child)) {
            self.children.push(child);
        }
    }
}

/// Returns the ARN of the execution that a task started. `text` is the output of the task, or the cause of its failure.
fn started_execution(text: Option<&str>) -> Option<String> {
    let json: Value = serde_json::from_str(text?).ok()?;
    let arn = ["ExecutionArn", "executionArn"].iter().find_map(|name| json[name].as_str())?;
    Some(arn.to_owned())
}

#[cfg(test)]
mod tests {
    use aws_sdk_sfn::{
        primitives::DateTime,
        types::{
            StateEnteredEventDetails, TaskFailedEventDetails, TaskSucceededEventDetails,
            builders::HistoryEventBuilder,
        },
    };

    use super::*;

    fn event(
        second: i64,
        kind: Type,
        with: impl FnOnce(HistoryEventBuilder) -> HistoryEventBuilder,
    ) -> HistoryEvent {
        let event = HistoryEvent::builder().id(second).timestamp(DateTime::from_secs(second));
        with(event.r#type(kind)).build().expect("an event")
    }

    fn entered(second: i64, name: &str) -> HistoryEvent {
        let details = StateEnteredEventDetails::builder().name(name).build().expect("details");
        event(second, Type::TaskStateEntered, |it| it.state_entered_event_details(details))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1000)
    }

    #[test]
    #[expect(clippy::large_stack_arrays, reason = "a few events")]
    fn a_task_lists_its_attempts_its_end_and_the_started_execution() {
        let failed = TaskFailedEventDetails::builder().resource_type("lambda").resource("invoke");
        let failed = failed.error("Transient").cause("busy").build().expect("details");
        let output = r#"{"ExecutionArn": "arn:child"}"#;
        let done = TaskSucceededEventDetails::builder().resource_type("states").resource("start");
        let done = done.output(output).build().expect("details");
        let plain = |second, kind| event(second, kind, |it| it);
        let history = History::from_events(&[
            plain(0, Type::ExecutionStarted),
            entered(1, "ReserveKits"),
            plain(2, Type::TaskScheduled),
            event(3, Type::TaskFailed, |it| it.task_failed_event_details(failed)),
            plain(4, Type::TaskScheduled),
            plain(5, Type::TaskSubmitted),
            event(6, Type::TaskSucceeded, |it| it.task_succeeded_event_details(done)),
            plain(7, Type::TaskStateExited),
            entered(8, "Compensate"),
            plain(9, Type::TaskScheduled),
            plain(10, Type::TaskTimedOut),
        ]);
        let failure = |error: &str, cause: Option<&str>| TaskFailure {
            error: Some(error.to_owned()),
            cause: cause.map(str::to_owned),
        };
        let reserve = Task {
            name: "ReserveKits".to_owned(),
            entered: at(1),
            exited: Some(at(7)),
            attempts: 2,
            failures: vec![failure("Transient", Some("busy"))],
            succeeded: true,
            submitted: true,
        };
        let compensate = Task {
            name: "Compensate".to_owned(),
            entered: at(8),
            exited: None,
            attempts: 1,
            failures: vec![failure("States.Timeout", None)],
            succeeded: false,
            submitted: false,
        };
        assert_eq!(history.tasks, [reserve, compensate]);
        assert_eq!(history.children, ["arn:child"]);
        assert_eq!(history.last_event, Some(at(10)));
    }
}
