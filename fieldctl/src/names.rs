//! Looks up the names of sites for lists, each name once.

use std::collections::HashMap;

use contracts::SiteId;
use ledger::{AffectedIds, sources::STORE_READINGS};

use crate::{error::Exit, render::short, stack::Stack};

/// The maximum number of names that a command looks up. Further sites are shown by the first digits of their ids.
const MAX_LOOKUPS: usize = 50;
/// The function that consumes readings besides store-readings. Its failures, too, can name a site that only the sender
/// claims.
const DETECT_BREACHES: &str = "detect-breaches";

/// The names that were looked up so far.
#[derive(Debug)]
pub struct SiteNames<'a> {
    stack: &'a Stack,
    known: HashMap<SiteId, Option<String>>,
    /// Whether further names may be looked up. `false` after [`MAX_LOOKUPS`] names, or after the API could not be reached.
    may_look_up: bool,
}

impl<'a> SiteNames<'a> {
    /// Creates an empty cache of names.
    #[must_use]
    pub fn new(stack: &'a Stack) -> Self {
        Self { stack, known: HashMap::new(), may_look_up: true }
    }

    /// Returns the site's name, or the first digits of its id if the name is not known.
    pub async fn of_site(&mut self, site: SiteId) -> String {
        if self.may_look_up && !self.known.contains_key(&site) {
            let site_json = self.stack.site(site).await;
            self.may_look_up = self.known.len() + 1 < MAX_LOOKUPS
                && !matches!(&site_json, Err(error) if error.exit != Exit::NotFound);
            let name = site_json.ok().and_then(|site| Some(site["name"].as_str()?.to_owned()));
            self.known.insert(site, name);
        }
        self.known.get(&site).cloned().flatten().unwrap_or_else(|| short(&site))
    }

    /// Returns the text for the column SITE: the name of the failure's site, or else the sender of its record.
    pub async fn site_or_sender(&mut self, source: &str, affected_ids: &AffectedIds) -> String {
        let claimed = if is_claimed(source, affected_ids) { " (claimed)" } else { "" };
        match (affected_ids.site_id, &affected_ids.sender) {
            (Some(site), _) => format!("{}{claimed}", self.of_site(site).await),
            (None, Some(sender)) => format!("{sender}{claimed}"),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Returns whether only the sender of the readings claims the failure's site: the register does not confirm that the
/// sensor belongs to that site.
#[must_use]
pub fn is_claimed(source: &str, affected_ids: &AffectedIds) -> bool {
    let confirmed =
        affected_ids.site_id.is_some() && affected_ids.sensor_site_id == affected_ids.site_id;
    [STORE_READINGS, DETECT_BREACHES].contains(&source) && !confirmed
}
