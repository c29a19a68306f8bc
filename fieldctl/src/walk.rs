//! Through the failures page by page: however many there are, a page of them is held.

use clap::{Args, ValueEnum};
use contracts::{OnboardingId, Timestamp};
use failures::{
    Kind, Status,
    ledger::{Cursor, Ledger, Summary},
};

use crate::{
    error::CliError,
    render::{instant, wire},
};

/// Rows of a page.
const PAGE: u16 = 250;

/// Every status.
pub const STATUSES: [Status; 3] = [Status::Open, Status::Replayed, Status::Discarded];

/// Which failures, of those with a status.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Only of this function or state machine, such as project-site.
    #[arg(long)]
    pub source: Option<String>,
    /// Only of this kind.
    #[arg(long, ignore_case = true)]
    pub kind: Option<KindName>,
    /// Only of this group: a fingerprint, as `failures groups` shows it.
    #[arg(long, value_name = "FINGERPRINT")]
    pub group: Option<String>,
    /// Only those that failed (last) since: RFC 3339, or an age such as 2h.
    #[arg(long, value_parser = instant)]
    pub since: Option<Timestamp>,
    /// Only of this onboarding.
    #[arg(long, value_name = "ONBOARDING")]
    pub correlation: Option<OnboardingId>,
}

/// How a piece of work failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KindName {
    /// An asynchronous function failed at its event.
    FunctionFailed,
    /// EventBridge could not hand over its event.
    NotDelivered,
    /// A command was received too often.
    DeadLetter,
    /// A stream's record that can never be worked on.
    Quarantined,
    /// A stream's record that was given up on with its batch.
    GivenUp,
    /// A state machine's execution failed.
    ExecutionFailed,
    /// In no known form.
    Unreadable,
}

impl From<KindName> for Kind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::FunctionFailed => Self::FunctionFailed,
            KindName::NotDelivered => Self::NotDelivered,
            KindName::DeadLetter => Self::DeadLetter,
            KindName::Quarantined => Self::Quarantined,
            KindName::GivenUp => Self::GivenUp,
            KindName::ExecutionFailed => Self::ExecutionFailed,
            KindName::Unreadable => Self::Unreadable,
        }
    }
}

impl Filter {
    /// Nothing is filtered out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { source, kind, group, since, correlation } = self;
        source.is_none()
            && kind.is_none()
            && group.is_none()
            && since.is_none()
            && correlation.is_none()
    }

    fn takes(&self, row: &Summary) -> bool {
        self.source.as_ref().is_none_or(|source| *source == row.source)
            && self.kind.is_none_or(|kind| Kind::from(kind) == row.kind)
            && self.group.as_ref().is_none_or(|group| *group == row.fingerprint)
            && self.correlation.is_none_or(|id| Some(id) == row.correlation_id)
            && self.since.is_none_or(|since| since <= row.last_at)
    }
}

/// The rest of a way through the failures, newest first, so that what fails again meanwhile is not
/// met again.
#[derive(Debug)]
pub struct Walk {
    ledger: Ledger,
    filter: Filter,
    left: Vec<Status>,
    cursor: Option<Cursor>,
}

impl Walk {
    /// Through the failures with one of those statuses that pass the filter.
    #[must_use]
    pub fn new(ledger: Ledger, statuses: &[Status], filter: Filter) -> Self {
        let left = statuses.iter().rev().copied().collect();
        Self { ledger, filter, left, cursor: None }
    }

    /// The next page, which may be empty; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Summary>>, CliError> {
        let Some(status) = self.left.last().copied() else { return Ok(None) };
        let (mut rows, next) = self.ledger.page(status, true, self.cursor, PAGE).await?;
        // What is older comes behind.
        let since = self.filter.since;
        let past = rows.last().is_some_and(|row| since.is_some_and(|since| row.last_at < since));
        self.cursor = next.filter(|_| !past);
        if self.cursor.is_none() {
            self.left.pop();
        }
        rows.retain(|row| self.filter.takes(row));
        Ok(Some(rows))
    }
}

/// A failure's kind as it is called everywhere.
#[must_use]
pub fn kind(kind: Kind) -> String {
    wire(&kind)
}
