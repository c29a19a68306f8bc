//! Every few minutes: how many sagas run, and which of them get nowhere.
//!
//! A saga that waits for the payment provider, or an onboarding that waits for its teardown, is told
//! of as any other.

use std::time::Duration;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, Saga, Timestamp};
use futures_util::{StreamExt, stream};
use lambda::{Deadline, Step};
use machines::{Machine, MachineError, Running};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::OnboardingError;

/// Histories that are read side by side: Step Functions gives an account 20 a second, and bursts.
const SIDE_BY_SIDE: usize = 4;

/// What the step needs.
#[derive(Debug)]
pub struct CheckSagas {
    /// The state machines `site-onboarding` and `site-teardown`.
    pub machines: [Machine; 2],
    /// A saga in which nothing happened for longer is stuck.
    pub budget: Duration,
    /// How long a check may take: less than the function's time-out.
    pub time: Duration,
}

/// What it answers; seen only in the log.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// Executions that run.
    pub running: usize,
    /// Those that are stuck.
    pub stuck: usize,
    /// Age of the oldest that runs, in seconds.
    pub oldest_age_seconds: i64,
    /// Old ones that the time was too short to look at.
    pub unread: usize,
    /// Whether the time was too short even to list all.
    pub incomplete: bool,
}

/// What became of looking at an old execution.
enum Looked {
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
        let deadline = Deadline::after(self.time);
        let budget = i64::try_from(self.budget.as_millis()).unwrap_or(i64::MAX);
        let (running, complete) = self.list(deadline).await?;
        let age = |since: Timestamp| (now.seconds() - since.seconds()).max(0);
        let mut reply = Reply {
            running: running.len(),
            oldest_age_seconds: running.iter().map(|(_, one)| age(one.since)).max().unwrap_or(0),
            incomplete: !complete,
            ..Reply::default()
        };
        let due = now.plus_millis(-budget);
        let mut old: Vec<_> = running.into_iter().filter(|(_, one)| one.since < due).collect();
        old.sort_by_key(|(_, one)| one.since);

        let mut failed = None;
        let looks = old.iter().map(|(machine, one)| look(machine, one, now, due, deadline));
        let mut looked = stream::iter(looks).buffer_unordered(SIDE_BY_SIDE);
        while let Some(outcome) = looked.next().await {
            match outcome {
                Ok(Looked::Stuck) => reply.stuck += 1,
                Ok(Looked::Moving) => {}
                Ok(Looked::Unread) => reply.unread += 1,
                Err(error) => failed = Some(error),
            }
        }
        let all_seen = failed.is_none() && reply.unread == 0 && complete;
        #[expect(clippy::cast_precision_loss, reason = "counts, and an age in seconds")]
        {
            lambda::report("RunningSagas", reply.running as f64);
            lambda::report("OldestSagaAgeSeconds", reply.oldest_age_seconds as f64);
            // 0 says that none is stuck, so it is only reported if all were seen. The alarm SagaChecks goes
            // off if nothing is reported.
            if all_seen || reply.stuck > 0 {
                lambda::report("StuckSagas", reply.stuck as f64);
            }
        }
        if reply.unread > 0 || reply.incomplete {
            tracing::warn!(unread = reply.unread, listed = reply.running, "the time ran out");
        }
        // What was found is told all the same: the more are stuck, the likelier a throttle is.
        failed.map_or(Ok(reply), |error| Err(error.into()))
    }
}

impl CheckSagas {
    /// The executions that run, and whether those are all.
    async fn list(
        &self,
        deadline: Deadline,
    ) -> Result<(Vec<(&Machine, Running)>, bool), MachineError> {
        let mut running = Vec::new();
        for machine in &self.machines {
            let mut page = None;
            loop {
                let Ok(listed) = timeout(deadline.left(), machine.running(page)).await else {
                    return Ok((running, false));
                };
                let (executions, next) = listed?;
                running.extend(executions.into_iter().map(|one| (machine, one)));
                page = next;
                if page.is_none() {
                    break;
                }
            }
        }
        Ok((running, true))
    }
}

/// Whether nothing happened in an execution since `due`; tells of it in the log.
async fn look(
    machine: &Machine,
    running: &Running,
    now: Timestamp,
    due: Timestamp,
    deadline: Deadline,
) -> Result<Looked, MachineError> {
    if deadline.passed() {
        return Ok(Looked::Unread);
    }
    let look = async {
        let progress = machine.progress(&running.arn).await?;
        if progress.at >= due {
            return Ok(Looked::Moving);
        }
        let input = machine.input(&running.arn).await?;
        let saga = fault::decode::<Saga>(&input).ok();
        tracing::warn!(
            correlationId = saga.map(|saga| saga.onboarding_id.to_string()),
            execution = %running.arn,
            state = progress.state,
            seconds = now.seconds() - progress.at.seconds(),
            "a saga makes no progress"
        );
        Ok(Looked::Stuck)
    };
    timeout(deadline.left(), look).await.unwrap_or(Ok(Looked::Unread))
}
