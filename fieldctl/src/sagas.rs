//! Lists executions of both state machines: all, stuck ones, and incomplete ones.

use std::{collections::HashSet, time::Duration};

use aws_sdk_sfn::types::ExecutionStatus;
use contracts::Timestamp;
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};

use crate::{
    error::CliError,
    saga::{Execution, ListedExecution, STATE_MACHINES, Undo},
    stack::Stack,
};

/// The number of executions that are read concurrently. Step Functions allows 10 calls of DescribeExecution a second,
/// and 15 in its three largest regions.
const MAX_CONCURRENT_READS: usize = 4;

fn is_stuck(execution: &Execution, budget: Duration, now: Timestamp) -> bool {
    execution.is_running() && is_exceeded(now, execution.last_event, budget)
}

fn is_exceeded(now: Timestamp, since: Timestamp, budget: Duration) -> bool {
    let past = now.millis() - since.millis();
    u128::try_from(past).is_ok_and(|past| past > budget.as_millis())
}

/// Returns the running executions whose last event is longer ago than the budget, oldest first.
pub async fn stuck(
    stack: &Stack,
    budget: Duration,
    now: Timestamp,
) -> Result<Vec<Execution>, CliError> {
    let mut listed =
        list_executions(stack, vec![Some(ExecutionStatus::Running)], usize::MAX).await?;
    listed.retain(|it| is_exceeded(now, it.started, budget));
    listed.reverse();
    let mut described = describe_all(stack, listed);
    let mut found = Vec::new();
    while let Some(execution) = described.try_next().await? {
        found.extend(execution.filter(|it| is_stuck(it, budget, now)));
    }
    Ok(found)
}

/// Returns the last execution of each incomplete onboarding ([`Undo::Incomplete`]), newest first: its last teardown, or
/// the onboarding itself if there is no teardown.
pub async fn incomplete(stack: &Stack) -> Result<Vec<Execution>, CliError> {
    let listed = list_executions(stack, unsuccessful_statuses(), usize::MAX).await?;
    let mut described = describe_all(stack, listed);
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    while let Some(execution) = described.try_next().await? {
        let Some(execution) = execution.filter(Execution::needs_undo) else { continue };
        if let Some(onboarding) = execution.onboarding() {
            if !seen.insert(onboarding) {
                continue;
            }
            let mut all = stack.executions_of_onboarding(onboarding, execution.started).await?;
            // A teardown is found by its name, but one that was started by hand may have any name.
            if all.iter().all(|it| it.arn != execution.arn) {
                all.push(execution.clone());
            }
            if Undo::from_executions(&all) != Undo::Incomplete {
                continue;
            }
        }
        found.push(execution);
    }
    Ok(found)
}

/// Returns the statuses of executions that ended without success.
pub(crate) fn unsuccessful_statuses() -> Vec<Option<ExecutionStatus>> {
    let statuses = [ExecutionStatus::Failed, ExecutionStatus::TimedOut, ExecutionStatus::Aborted];
    statuses.map(Some).into()
}

/// Reads the executions with their histories. An execution that is no longer kept is `None`.
pub(crate) fn describe_all(
    stack: &Stack,
    listed: Vec<ListedExecution>,
) -> impl Stream<Item = Result<Option<Execution>, CliError>> + Unpin + '_ {
    stream::iter(listed)
        .map(move |listed| async move { stack.execution(&listed.arn).await }.boxed_local())
        .buffered(MAX_CONCURRENT_READS)
}

/// Lists executions of both state machines, newest first: at most `limit` for each state machine and status.
pub(crate) async fn list_executions(
    stack: &Stack,
    statuses: Vec<Option<ExecutionStatus>>,
    limit: usize,
) -> Result<Vec<ListedExecution>, CliError> {
    let mut listed: Vec<ListedExecution> = Vec::new();
    for machine in STATE_MACHINES {
        for status in &statuses {
            let epoch = Timestamp::from_millis(0);
            listed.extend(stack.executions(machine, status.clone(), epoch, limit).await?);
        }
    }
    listed.sort_by_key(|listed| std::cmp::Reverse(listed.started));
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_execution_without_an_event_for_longer_than_the_budget_is_stuck() {
        let start = Timestamp::from_millis(0);
        let mut execution = Execution {
            machine: "site-onboarding".to_owned(),
            name: "n".to_owned(),
            arn: "a".to_owned(),
            status: "RUNNING".to_owned(),
            started: start,
            stopped: None,
            failure: None,
            states: Vec::new(),
            children: Vec::new(),
            last_event: start,
            input: Value::Null,
        };
        let budget = Duration::from_mins(15);
        assert!(!is_stuck(&execution, budget, start.plus_millis(900_000)));
        assert!(is_stuck(&execution, budget, start.plus_millis(900_001)));
        execution.status = "FAILED".to_owned();
        assert!(!is_stuck(&execution, budget, start.plus_millis(900_001)));
    }
}
