//! Looks up the names of sites for lists, each once.

use std::collections::HashMap;

use contracts::SiteId;
use ledger::{Concerns, sources::STORE_READINGS};

use crate::{error::Exit, render::short, stack::Stack};

/// The maximum number of names that a command looks up. Further sites are shown by the first digits of their ids.
const MAX_LOOKUPS: usize = 50;
/// The function that checks the same readings as store-readings.
const DETECT_BREACHES: &str = "detect-breaches";

/// The names that were looked up so far.
#[derive(Debug)]
pub struct Names<'a> {
    stack: &'a Stack,
    known: HashMap<SiteId, Option<String>>,
    /// Whether further names may be looked up. `false` after [`MAX_LOOKUPS`] names, or after the API did not answer.
    may_look_up: bool,
}

impl<'a> Names<'a> {
    /// Creates an empty list of names.
    #[must_use]
    pub fn new(stack: &'a Stack) -> Self {
        Self { stack, known: HashMap::new(), may_look_up: true }
    }

    /// Returns the site's name, or the first digits of its id if the name is not known.
    pub async fn of(&mut self, site: SiteId) -> String {
        if self.may_look_up && !self.known.contains_key(&site) {
            let shown = self.stack.site(site).await;
            self.may_look_up = self.known.len() + 1 < MAX_LOOKUPS
                && !matches!(&shown, Err(error) if error.exit == Exit::Aws);
            let name = shown.ok().and_then(|shown| Some(shown["name"].as_str()?.to_owned()));
            self.known.insert(site, name);
        }
        self.known.get(&site).cloned().flatten().unwrap_or_else(|| short(&site))
    }

    /// Returns whom a failure concerns, for a column of a list: the site, or the sender of the record.
    pub async fn whom(&mut self, source: &str, concerns: &Concerns) -> String {
        let claimed = if is_claim(source, concerns) { " (claimed)" } else { "" };
        match (concerns.site_id, &concerns.sender) {
            (Some(site), _) => format!("{}{claimed}", self.of(site).await),
            (None, Some(sender)) => format!("{sender}{claimed}"),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Returns whether the site is only what the sender of readings claims, and the register does not confirm that the
/// sensor belongs to it.
#[must_use]
pub fn is_claim(source: &str, concerns: &Concerns) -> bool {
    let confirmed = concerns.site_id.is_some() && concerns.sensor_site_id == concerns.site_id;
    [STORE_READINGS, DETECT_BREACHES].contains(&source) && !confirmed
}
