//! Counters of the bundles that `POST /readings` refused.

use contracts::{OperatorId, SensorId, SiteId, Timestamp};
use serde::{Deserialize, Serialize};
use store::{StoreError, Table, from_item};

/// Takes the place of the site in the partition of refusals whose body has no readable `siteId`.
const UNKNOWN_SITE: &str = "unknown";

const HOUR_MILLIS: i64 = 60 * 60 * 1000;

/// A row of the refusals table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusalRow {
    /// The partition: the site in the body and the sender, as [`partition`] formats them.
    pub site_id: String,
    /// `<beginning of the hour>/<reason>/<field>/<sensorId or ->`.
    pub row: String,
    /// The number of refused bundles.
    pub refused: u64,
    /// When the first of these bundles was refused.
    pub first_at: Timestamp,
    /// When the last of these bundles was refused.
    pub last_at: Timestamp,
    /// The error message for the last of these bundles, escaped and truncated.
    pub example: String,
    /// When DynamoDB may delete the row, in seconds since the epoch.
    pub expires_at: i64,
}

impl RefusalRow {
    fn part(&self, index: usize) -> &str {
        self.row.split('/').nth(index).unwrap_or_default()
    }

    /// Returns the reason: the name of a [`contracts::input::Reason`] or of a problem.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.part(1)
    }

    /// Returns the invalid field, such as `series[].samples[]`.
    #[must_use]
    pub fn field(&self) -> &str {
        self.part(2)
    }

    /// Returns the sensor of the invalid series, if its id could be read.
    #[must_use]
    pub fn sensor(&self) -> Option<SensorId> {
        self.part(3).parse().ok()
    }

    /// Reads the counters of the refused bundles that an operator sent for a site, from the hour of `since` on. If
    /// `site` is `None`, reads those of bodies without a readable site.
    pub async fn for_site(
        table: &Table,
        sender: OperatorId,
        site: Option<SiteId>,
        since: Timestamp,
    ) -> Result<Vec<Self>, StoreError> {
        let from = start_of_hour(since);
        let site = partition(sender, site);
        let query = table.query("siteId = :site AND #row >= :from").text("site", &site);
        let query = query.text("from", Timestamp::from_millis(from)).consistent();
        let items = query.all().await?.into_iter();
        items.map(|item| from_item(item, || format!("of the refusals of {site}"))).collect()
    }
}

/// Returns the partition of the refused bundles that an operator sent for a site. If `site` is `None`, returns that of
/// bodies without a readable site.
///
/// The site comes from the body, and a sender can write any site into the body. Because the partition contains the
/// sender, an operator can't change the counters of another operator's site. The partitions of the default operator
/// contain no sender, because releases without operators wrote them in this form.
#[must_use]
pub fn partition(sender: OperatorId, site: Option<SiteId>) -> String {
    let site = site.map_or(UNKNOWN_SITE.to_owned(), |site| site.to_string());
    match sender {
        OperatorId::DEFAULT => site,
        sender => format!("{site}/{sender}"),
    }
}

/// Returns the beginning of the hour, in milliseconds since the epoch.
#[must_use]
pub fn start_of_hour(at: Timestamp) -> i64 {
    at.millis().div_euclid(HOUR_MILLIS) * HOUR_MILLIS
}
