//! The last comparison of billing's rows with the subscriptions at the payment provider.

use contracts::{SiteId, Timestamp};
use serde::{Deserialize, Serialize};
use store::Key;

/// The comparison runs every hour; a report that is older than this is out of date.
const MAX_AGE_MILLIS: i64 = 3 * 60 * 60 * 1000;

/// How a row and the provider disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FindingKind {
    /// A subscription runs at the provider, and its site has no ACTIVE row.
    NoActiveRow,
    /// The row is ACTIVE, and its subscription does not run at the provider.
    NotRunning,
    /// The row is CANCELLING or CANCELLED, and a subscription of the site still runs.
    StillRunning,
    /// A subscription runs at the provider besides the one of the site's ACTIVE row.
    Duplicate,
}

impl FindingKind {
    /// The name in the row.
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

/// A disagreement about one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How they disagree.
    pub kind: FindingKind,
    /// The site.
    pub site_id: SiteId,
    /// The provider's id of the subscription.
    pub provider_subscription_id: String,
    /// The first report that had it.
    pub first_seen: Timestamp,
    /// The last one.
    pub last_seen: Timestamp,
}

/// The last comparison; there is one row of it. A finding that is resolved is not in the next report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When the comparison began.
    pub at: Timestamp,
    /// `at` in milliseconds: an older comparison never replaces a newer one.
    pub sequence: u64,
    /// Subscriptions of sites that run at the provider.
    pub running: usize,
    /// ACTIVE rows.
    pub active: usize,
    /// Subscriptions at the provider that name no site: not opened by this stack, so not compared.
    pub foreign: usize,
    /// All findings, those included that did not fit in.
    pub found: usize,
    /// The findings, up to a limit: those that were seen first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The row's key.
    #[must_use]
    pub fn key() -> Key {
        Key::id("reconciliation#provider")
    }

    /// Whether the next comparison is overdue.
    #[must_use]
    pub fn is_outdated(&self, now: Timestamp) -> bool {
        now.millis() - self.at.millis() > MAX_AGE_MILLIS
    }
}
