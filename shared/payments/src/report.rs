//! The report of the last comparison of billing's rows with the subscriptions at the payment provider.

use contracts::{SiteId, Timestamp};
use serde::{Deserialize, Serialize};
use store::Key;

/// The age from which a report is outdated, in milliseconds. The comparison runs every hour.
const MAX_AGE_MILLIS: i64 = 3 * 60 * 60 * 1000;

/// The kind of difference between a row of billing and the subscriptions at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FindingKind {
    /// A subscription is running at the provider, but its site has no ACTIVE row.
    NoActiveRow,
    /// The row is ACTIVE, but its subscription is not running at the provider.
    NotRunning,
    /// The row is CANCELLING or CANCELLED, but a subscription of the site is still running.
    StillRunning,
    /// A subscription other than that of the site's ACTIVE row is running at the provider.
    Duplicate,
}

impl FindingKind {
    /// Returns the name in the row.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoActiveRow => "NO_ACTIVE_ROW",
            Self::NotRunning => "NOT_RUNNING",
            Self::StillRunning => "STILL_RUNNING",
            Self::Duplicate => "DUPLICATE",
        }
    }
}

/// A difference about one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of the difference.
    pub kind: FindingKind,
    /// The site.
    pub site_id: SiteId,
    /// The provider's id of the subscription.
    pub provider_subscription_id: String,
    /// When a report first contained it.
    pub first_seen: Timestamp,
    /// When a report last contained it.
    pub last_seen: Timestamp,
}

/// The report of the last comparison. Each comparison replaces the same row. A resolved finding is not in the next
/// report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When the comparison began.
    pub at: Timestamp,
    /// `at` in milliseconds since the epoch. A condition on it keeps an older report from replacing a newer one.
    pub sequence: u64,
    /// The number of subscriptions that are running at the provider and name a site.
    pub running: usize,
    /// The number of ACTIVE rows.
    pub active: usize,
    /// The number of subscriptions that are running at the provider and name no site. This stack did not create them,
    /// so they are not compared.
    pub foreign: usize,
    /// The number of all findings, including those that are not in `findings`.
    pub found: usize,
    /// The findings with the earliest `first_seen`, up to a limit.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Returns the row's key.
    #[must_use]
    pub fn key() -> Key {
        Key::id("reconciliation#provider")
    }

    /// Returns whether the next comparison is overdue.
    #[must_use]
    pub fn is_outdated(&self, now: Timestamp) -> bool {
        now.millis() - self.at.millis() > MAX_AGE_MILLIS
    }
}
