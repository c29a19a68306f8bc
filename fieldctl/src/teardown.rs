//! Waits for an execution of site-teardown, and closes the failures that it repaired.

use std::time::Duration;

use aws_sdk_sfn::{operation::describe_execution::DescribeExecutionOutput, types::ExecutionStatus};
use contracts::OnboardingId;
use ledger::{ErrorInfo, Ledger, Status, sources::is_done_by_teardown};
use tokio::time::Instant;

use crate::{
    error::{CliError, aws},
    failure_pager::{FailureFilter, FailurePager},
    render::cause_message,
    saga::is_running,
    stack::Stack,
};

/// The interval at which a running teardown is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The state of a teardown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TeardownStatus {
    /// Every undo is done.
    Succeeded,
    /// The execution failed, timed out or was aborted.
    Failed(ErrorInfo),
    /// The execution is still running.
    Running,
}

impl From<DescribeExecutionOutput> for TeardownStatus {
    fn from(execution: DescribeExecutionOutput) -> Self {
        match execution.status() {
            status if is_running(status) => Self::Running,
            ExecutionStatus::Succeeded => Self::Succeeded,
            status => {
                let cause = execution.cause().map(cause_message);
                let text = cause.unwrap_or_else(|| format!("the execution ended as {status}"));
                let name = execution.error().unwrap_or(status.as_str());
                Self::Failed(ErrorInfo::new(name, &text))
            }
        }
    }
}

/// Waits for the end of an execution of site-teardown, but not longer than `wait`. Returns the execution's state.
///
/// # Errors
/// If Step Functions can't be reached. The execution is not affected.
pub async fn wait_for_teardown(
    stack: &Stack,
    arn: &str,
    wait: Duration,
) -> Result<TeardownStatus, CliError> {
    let until = Instant::now() + wait;
    loop {
        let described = stack.machines.describe_execution().execution_arn(arn).send().await;
        let teardown = described.map_err(aws("the execution can't be described"))?.into();
        if teardown != TeardownStatus::Running || Instant::now() + POLL_INTERVAL > until {
            return Ok(teardown);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Closes the open failures of these onboardings that a successful teardown has repaired. Returns their number.
pub async fn close_repaired(
    ledger: &Ledger,
    onboardings: &[OnboardingId],
) -> Result<usize, CliError> {
    let mut closed = 0;
    let mut pager = FailurePager::new(ledger.clone(), &[Status::Open], FailureFilter::default());
    while let Some(page) = pager.next().await? {
        for row in page {
            let is_selected = row.correlation_id.is_some_and(|id| onboardings.contains(&id));
            if is_selected && is_done_by_teardown(&row.source) {
                let note = "repaired: a later site-teardown of the onboarding succeeded";
                closed += usize::from(ledger.mark_replayed(row.id, note).await?);
            }
        }
    }
    Ok(closed)
}
