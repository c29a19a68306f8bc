//! Reports every minute how many failures are open, and the age of the oldest one.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, Timestamp};
use lambda::Step;
use ledger::{Ledger, LedgerError, Status};
use serde::Serialize;
use serde_json::Value;

/// The maximum number of open failures that are counted. More of them would raise the same alarm.
pub const MAX_COUNTED: u32 = 10_000;

/// The dependencies of the function `report-failures`.
#[derive(Debug)]
pub struct ReportFailures {
    /// The failures table.
    pub ledger: Ledger,
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The number of open failures, at most [`MAX_COUNTED`].
    pub open: u32,
    /// The age of the oldest open failure, in seconds. A failure's age is the time since its last attempt.
    pub oldest_age_seconds: i64,
}

impl Step for ReportFailures {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = LedgerError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, now: Timestamp) -> Result<Reply, LedgerError> {
        let open = self.ledger.count(Status::Open, MAX_COUNTED).await?;
        let (oldest, _) = self.ledger.page(Status::Open, false, None, 1).await?;
        let age = oldest.first().map_or(0, |oldest| now.seconds() - oldest.last_at.seconds());
        lambda::report("OpenFailures", f64::from(open));
        #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
        lambda::report("OldestOpenFailureAgeSeconds", age as f64);
        Ok(Reply { open, oldest_age_seconds: age })
    }
}
