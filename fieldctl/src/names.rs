//! The names of sites, for lists: each is looked up once.

use std::collections::HashMap;

use contracts::SiteId;
use ledger::{Concerns, sources::STORE_READINGS};

use crate::{error::Exit, render::short, stack::Stack};

/// Sites whose names a command looks up. More sites are shown by the first digits of their ids.
const MAX_LOOKUPS: usize = 50;
/// The function that judges the same readings.
const DETECT_BREACHES: &str = "detect-breaches";

/// The names that were looked up so far.
#[derive(Debug)]
pub struct Names<'a> {
    stack: &'a Stack,
    known: HashMap<SiteId, Option<String>>,
    /// Whether names may still be looked up: not if the API does not answer.
    may_look_up: bool,
}

impl<'a> Names<'a> {
    /// No name is looked up yet.
    #[must_use]
    pub fn new(stack: &'a Stack) -> Self {
        Self { stack, known: HashMap::new(), may_look_up: true }
    }

    /// The site's name; the first digits of its id if the name is not known.
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

    /// Whom a failure concerns, for a list's column: the site, or who sent the record.
    pub async fn whom(&mut self, source: &str, concerns: &Concerns) -> String {
        let claimed = if is_claim(source, concerns) { " (claimed)" } else { "" };
        match (concerns.site_id, &concerns.sender) {
            (Some(site), _) => format!("{}{claimed}", self.of(site).await),
            (None, Some(sender)) => format!("{sender}{claimed}"),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Whether the site is only what the sender of readings claims: the register does not have the sensor at that
/// site.
#[must_use]
pub fn is_claim(source: &str, concerns: &Concerns) -> bool {
    let confirmed = concerns.site_id.is_some() && concerns.sensor_site_id == concerns.site_id;
    [STORE_READINGS, DETECT_BREACHES].contains(&source) && !confirmed
}
