//! Reads the rows of sites from the sites table, for commands that concern the sites of all operators. The API shows a
//! caller only the sites of its own operator.

use contracts::{OperatorId, SiteId, names};
use serde::Deserialize;
use store::Key;

use crate::{
    error::{CliError, Exit},
    stack::Stack,
};

/// The sort key of a site's own row. The other rows of the table are its steps.
pub const SITE: &str = "SITE";

/// The part of a site's row that commands need.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteRow {
    /// The site's name.
    pub name: String,
    /// The site's status, for example `DECOMMISSIONING`.
    pub status: String,
    /// The site's owner. Rows of releases before there were operators have none, which means the default operator.
    #[serde(default)]
    pub operator_id: OperatorId,
}

/// Returns the key of the site's own row.
#[must_use]
pub fn key(site: SiteId) -> Key {
    Key::pair(("siteId", site.to_string()), ("row", SITE))
}

impl Stack {
    /// Reads a site's row. Returns `None` if there is no such site.
    pub async fn site_row(&self, site: SiteId) -> Result<Option<SiteRow>, CliError> {
        self.table(names::SITES).get(&key(site)).await.map_err(|error| {
            let advice = format!(
                "this command needs the permission dynamodb:GetItem on the table {}",
                self.named(names::SITES)
            );
            CliError::new(Exit::Aws, format!("site {site} can't be read: {error}")).advise(advice)
        })
    }
}
