//! Waits for an execution of site-teardown, and closes the failures that it repaired.

use std::time::Duration;

use aws_sdk_sfn::{operation::describe_execution::DescribeExecutionOutput, types::ExecutionStatus};
use contracts::OnboardingId;
use ledger::{ErrorInfo, Ledger, Status, sources::is_done_by_teardown};
use tokio::time::Instant;

use crate::{
    error::{CliError, aws},
    render::sentence,
    stack::Stack,
    walk::{Filter, Walk},
};

/// The interval at which a running teardown is checked.
const LOOK: Duration = Duration::from_secs(1);

/// The state of a teardown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Teardown {
    /// Every undo is done.
    Succeeded,
    /// The execution failed, timed out or was aborted.
    Failed(ErrorInfo),
    /// The execution is still running.
    Running,
}

impl From<DescribeExecutionOutput> for Teardown {
    fn from(execution: DescribeExecutionOutput) -> Self {
        match execution.status() {
            ExecutionStatus::Running | ExecutionStatus::PendingRedrive => Self::Running,
            ExecutionStatus::Succeeded => Self::Succeeded,
            status => {
                let cause = execution.cause().map(sentence);
                let text = cause.unwrap_or_else(|| format!("the execution ended as {status}"));
                let name = execution.error().unwrap_or(status.as_str());
                Self::Failed(ErrorInfo::new(name, &text))
            }
        }
    }
}

/// Waits for the end of an execution of site-teardown, at most for `wait`. Then returns its state.
///
/// # Errors
/// If Step Functions can't be reached. The execution is not affected.
pub async fn ended(stack: &Stack, arn: &str, wait: Duration) -> Result<Teardown, CliError> {
    let until = Instant::now() + wait;
    loop {
        let described = stack.machines.describe_execution().execution_arn(arn).send().await;
        let teardown = described.map_err(aws("the execution can't be described"))?.into();
        if teardown != Teardown::Running || Instant::now() + LOOK > until {
            return Ok(teardown);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Closes the open failures of these onboardings whose work their teardowns have done. Returns how many.
pub async fn close_repaired(
    ledger: &Ledger,
    onboardings: &[OnboardingId],
) -> Result<usize, CliError> {
    let mut closed = 0;
    let mut walk = Walk::new(ledger.clone(), &[Status::Open], Filter::default());
    while let Some(page) = walk.next().await? {
        for row in page {
            let of_these = row.correlation_id.is_some_and(|id| onboardings.contains(&id));
            if of_these && is_done_by_teardown(&row.source) {
                let note = "repaired: a later site-teardown of the onboarding succeeded";
                closed += usize::from(ledger.repaired(row.id, note).await?);
            }
        }
    }
    Ok(closed)
}
