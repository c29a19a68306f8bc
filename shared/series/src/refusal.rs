//! Counters of the bundles that `POST /readings` refused.

use contracts::{SensorId, Timestamp};
use serde::{Deserialize, Serialize};
use store::{StoreError, Table, from_item};

/// The partition of refusals whose body names no site: no `siteId` could be read from it.
pub const UNKNOWN_SITE: &str = "unknown";

const HOUR_MILLIS: i64 = 60 * 60 * 1000;

/// A row of the refusals table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusalRow {
    /// The site that the body named, or [`UNKNOWN_SITE`].
    pub site_id: String,
    /// `<beginning of the hour>/<reason>/<field>/<sensorId or ->`.
    pub row: String,
    /// Bundles.
    pub refused: u64,
    /// When the first of them was refused.
    pub first_at: Timestamp,
    /// When the last of them was refused.
    pub last_at: Timestamp,
    /// What was wrong with the last of them, escaped and cut.
    pub example: String,
    /// When DynamoDB may delete the row, in seconds since the epoch.
    pub expires_at: i64,
}

impl RefusalRow {
    fn part(&self, index: usize) -> &str {
        self.row.split('/').nth(index).unwrap_or_default()
    }

    /// Why: the name of a [`contracts::input::Reason`], of a problem, or `RefusedWithList`.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.part(1)
    }

    /// The field that was wrong, such as `series[].samples[]`.
    #[must_use]
    pub fn field(&self) -> &str {
        self.part(2)
    }

    /// The sensor whose series was wrong, if it could be read.
    #[must_use]
    pub fn sensor(&self) -> Option<SensorId> {
        self.part(3).parse().ok()
    }

    /// Reads the counters of a site ([`UNKNOWN_SITE`] for bodies that name none), from the hour of `since` on.
    pub async fn of_site(
        table: &Table,
        site: &str,
        since: Timestamp,
    ) -> Result<Vec<Self>, StoreError> {
        let from = hour_of(since);
        let query = table.query("siteId = :site AND #row >= :from").text("site", site);
        let query = query.text("from", Timestamp::from_millis(from)).consistent();
        let items = query.all().await?.into_iter();
        items.map(|item| from_item(item, || format!("of the refusals of {site}"))).collect()
    }
}

/// The beginning of the hour, in milliseconds since the epoch.
#[must_use]
pub fn hour_of(at: Timestamp) -> i64 {
    at.millis().div_euclid(HOUR_MILLIS) * HOUR_MILLIS
}
