//! Counts the running onboardings and teardowns every few minutes and reports those that make no progress.
//!
//! Progress is a new event in the execution's history. While an execution waits for the payment provider, or for the
//! teardown of a failed onboarding, it makes no progress.

use std::time::Duration;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, SagaContext, Timestamp};
use futures_util::{StreamExt, stream};
use lambda::{Deadline, Step};
use machines::{MachineError, RunningExecution, StateMachine};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::OnboardingError;

/// The number of histories that are read concurrently. Step Functions allows 20 calls per second in an account, and
/// short bursts of more.
const CONCURRENT_HISTORIES: usize = 4;

/// The dependencies of the function `check-sagas`.
#[derive(Debug)]
pub struct CheckSagas {
    /// The state machines `site-onboarding` and `site-teardown`.
    pub machines: [StateMachine; 2],
    /// The time without an event after which a saga counts as stuck.
    pub budget: Duration,
    /// The maximum duration of the whole invocation, for all executions together. It must be less than the function's
    /// timeout.
    pub timeout: Duration,
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The number of running executions.
    pub running: usize,
    /// The number of stuck executions.
    pub stuck: usize,
    /// The age of the oldest running execution, in seconds.
    pub oldest_age_seconds: i64,
    /// The number of old executions that were not checked before the deadline.
    pub unread: usize,
    /// Whether the deadline passed before all executions were listed.
    pub incomplete: bool,
}

/// The result of checking an old execution.
enum CheckResult {
    Stuck,
    Moving,
    Unread,
}

impl Step for CheckSagas {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = OnboardingError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, now: Timestamp) -> Result<Reply, OnboardingError> {
        let deadline = Deadline::after(self.timeout);
        let budget = i64::try_from(self.budget.as_millis()).unwrap_or(i64::MAX);
        let (running, complete) = self.list(deadline).await?;
        let age = |since: Timestamp| (now.seconds() - since.seconds()).max(0);
        let mut reply = Reply {
            running: running.len(),
            oldest_age_seconds: running
                .iter()
                .map(|(_, execution)| age(execution.since))
                .max()
                .unwrap_or(0),
            incomplete: !complete,
            ..Reply::default()
        };
        let stuck_before = now.plus_millis(-budget);
        let mut old: Vec<_> =
            running.into_iter().filter(|(_, execution)| execution.since < stuck_before).collect();
        old.sort_by_key(|(_, execution)| execution.since);

        let mut failed = None;
        let checks = old
            .iter()
            .map(|(machine, execution)| check(machine, execution, now, stuck_before, deadline));
        let mut results = stream::iter(checks).buffer_unordered(CONCURRENT_HISTORIES);
        while let Some(outcome) = results.next().await {
            match outcome {
                Ok(CheckResult::Stuck) => reply.stuck += 1,
                Ok(CheckResult::Moving) => {}
                Ok(CheckResult::Unread) => reply.unread += 1,
                Err(error) => failed = Some(error),
            }
        }
        let all_checked = failed.is_none() && reply.unread == 0 && complete;
        #[expect(clippy::cast_precision_loss, reason = "counts, and an age in seconds")]
        {
            lambda::report("RunningSagas", reply.running as f64);
            lambda::report("OldestSagaAgeSeconds", reply.oldest_age_seconds as f64);
            // 0 means that no saga is stuck, so it is only reported if all were checked. The alarm SagaChecks fires
            // if nothing is reported.
            if all_checked || reply.stuck > 0 {
                lambda::report("StuckSagas", reply.stuck as f64);
            }
        }
        if reply.unread > 0 || reply.incomplete {
            tracing::warn!(
                unread = reply.unread,
                listed = reply.running,
                "the deadline passed before all sagas were checked"
            );
        }
        // The metrics are reported despite the error: many stuck sagas make it likely that calls are throttled.
        failed.map_or(Ok(reply), |error| Err(error.into()))
    }
}

impl CheckSagas {
    /// Returns the running executions, and whether the list is complete.
    async fn list(
        &self,
        deadline: Deadline,
    ) -> Result<(Vec<(&StateMachine, RunningExecution)>, bool), MachineError> {
        let mut running = Vec::new();
        for machine in &self.machines {
            let mut page = None;
            loop {
                let Ok(listed) = timeout(deadline.remaining(), machine.running(page)).await else {
                    return Ok((running, false));
                };
                let (executions, next) = listed?;
                running.extend(executions.into_iter().map(|execution| (machine, execution)));
                page = next;
                if page.is_none() {
                    break;
                }
            }
        }
        Ok((running, true))
    }
}

/// Checks whether an execution had an event since `stuck_before`. Logs a stuck execution.
async fn check(
    machine: &StateMachine,
    running: &RunningExecution,
    now: Timestamp,
    stuck_before: Timestamp,
    deadline: Deadline,
) -> Result<CheckResult, MachineError> {
    if deadline.passed() {
        return Ok(CheckResult::Unread);
    }
    let check = async {
        let progress = machine.progress(&running.arn).await?;
        if progress.at >= stuck_before {
            return Ok(CheckResult::Moving);
        }
        let input = machine.input(&running.arn).await?;
        let saga = fault::decode::<SagaContext>(&input).ok();
        tracing::warn!(
            correlationId = saga.map(|saga| saga.onboarding_id.to_string()),
            execution = %running.arn,
            state = progress.state,
            seconds = now.seconds() - progress.at.seconds(),
            "a saga makes no progress"
        );
        Ok(CheckResult::Stuck)
    };
    timeout(deadline.remaining(), check).await.unwrap_or(Ok(CheckResult::Unread))
}
