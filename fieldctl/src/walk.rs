//! Reads the failures page by page. Only one page is in memory at a time.

use clap::Args;
use contracts::{OnboardingId, SiteId, Timestamp};
use ledger::{Cursor, Kind, Ledger, Status, Summary, sources};
use strsim::levenshtein;

use crate::{
    error::{CliError, Exit},
    log::Between,
    render::{instant, wire},
    resolve,
    stack::Stack,
};

/// The number of rows on a page.
const PAGE: u16 = 250;

/// Every status.
pub const STATUSES: [Status; 3] = [Status::Open, Status::Replayed, Status::Discarded];

/// A filter for failures with a given status.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Only failures of this function or state machine, such as project-site.
    #[arg(long)]
    pub source: Option<String>,
    /// Only failures of this kind.
    #[arg(long, ignore_case = true)]
    pub kind: Option<Kind>,
    /// Only failures of this group, as `failures groups` shows it. A fingerprint selects all its groups.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub group: Option<String>,
    /// Only failures of this site: its id, the first digits of it, or its name.
    #[arg(long)]
    pub site: Option<String>,
    /// The site that was found by `site`.
    #[arg(skip)]
    pub site_id: Option<SiteId>,
    /// Only failures that were last recorded since this time: RFC 3339, or an age such as 2h.
    #[arg(long, value_parser = instant)]
    pub since: Option<Timestamp>,
    /// Only failures of this onboarding.
    #[arg(long, value_name = "ONBOARDING")]
    pub correlation: Option<OnboardingId>,
}

impl Filter {
    /// Returns whether the filter accepts every failure.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { source, kind, group, site, site_id, since, correlation } = self;
        site.is_none()
            && site_id.is_none()
            && source.is_none()
            && kind.is_none()
            && group.is_none()
            && since.is_none()
            && correlation.is_none()
    }

    /// Finds the named site.
    ///
    /// # Errors
    /// Exit code 3 if no site has that name. Exit code 2 if more than one has it.
    pub async fn resolve(&mut self, stack: &Stack) -> Result<(), CliError> {
        if let Some(site) = &self.site {
            self.site_id = Some(resolve::site(stack, site).await?);
        }
        Ok(())
    }

    /// Describes the filter, such as `open failures of source project-site since 2026-01-01T00:00:00.000Z`.
    #[must_use]
    pub fn describe(&self, statuses: &[Status]) -> String {
        let Self { source, kind: of, group, site, site_id: _, since, correlation } = self;
        let mut text = match statuses {
            [status] => format!("{} failures", status.name().to_lowercase()),
            _ => "failures".to_owned(),
        };
        let parts = [
            source.as_ref().map(|source| format!(" of source {source}")),
            of.map(|of| format!(" of kind {}", kind(of))),
            group.as_ref().map(|group| format!(" of group {group}")),
            site.as_ref().map(|site| format!(" of site {site}")),
            correlation.map(|id| format!(" of onboarding {id}")),
            since.map(|since| format!(" since {since}")),
        ];
        parts.into_iter().flatten().for_each(|part| text += &part);
        text
    }

    /// Checks the names in a filter that accepted no failure. An unknown name must not look like the absence of
    /// failures.
    ///
    /// # Errors
    /// Exit code 2 for an unknown source. Exit code 3 for an unknown group, site or onboarding.
    pub async fn check(&self, stack: &Stack) -> Result<(), CliError> {
        let sources = sources::known();
        if let Some(source) = self.source.as_ref().filter(|it| !sources.contains(&it.as_str())) {
            let near = nearest(source, &sources);
            let error = CliError::usage(format!("there is no source {source:?}"));
            return Err(error.advise(format!("{near}the sources are {}", sources.join(", "))));
        }
        if let Some(group) = &self.group {
            let filter = Self { group: Some(group.clone()), ..Self::default() };
            let mut walk = Walk::new(stack.ledger(), &STATUSES, filter);
            loop {
                match walk.next().await? {
                    None => {
                        return Err(CliError::not_found(format!("no failure is of group {group}"))
                            .advise("`fieldctl failures groups --status any` lists the groups"));
                    }
                    Some(page) if !page.is_empty() => break,
                    Some(_) => {}
                }
            }
        }
        if let Some(site) = self.site_id {
            stack.site(site).await.map_err(|error| match error.exit {
                Exit::NotFound => CliError::not_found(format!("there is no site {site}"))
                    .advise("`fieldctl sites list` lists the sites"),
                _ => error,
            })?;
        }
        if let Some(onboarding) = self.correlation {
            onboarding_exists(stack, onboarding).await?;
        }
        Ok(())
    }

    fn takes(&self, row: &Summary) -> bool {
        self.source.as_ref().is_none_or(|source| *source == row.source)
            && self.kind.is_none_or(|kind| kind == row.kind)
            && self
                .group
                .as_ref()
                .is_none_or(|group| *group == row.fingerprint || *group == row.group())
            && self.site_id.is_none_or(|site| row.concerns.site(site))
            && self.correlation.is_none_or(|id| Some(id) == row.correlation_id)
            && self.since.is_none_or(|since| since <= row.last_at)
    }
}

/// Checks that the event log has events of the onboarding.
///
/// # Errors
/// Exit code 3 if it has none.
pub async fn onboarding_exists(stack: &Stack, onboarding: OnboardingId) -> Result<(), CliError> {
    let events = stack.events_of_onboarding(onboarding, Between::default(), 1).await?;
    if events.is_empty() {
        return Err(CliError::not_found(format!("there is no onboarding {onboarding}"))
            .advise("`fieldctl sites show <site>` shows a site's onboardingId"));
    }
    Ok(())
}

/// Parses a group's id: a fingerprint of 12 hex digits, and for the group of one sender `-` and 6 more.
fn group(text: &str) -> Result<String, String> {
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let lower = text.to_lowercase();
    let (fingerprint, sender) =
        lower.split_once('-').map_or((&*lower, None), |(a, b)| (a, Some(b)));
    if is_hex(fingerprint, 12) && sender.is_none_or(|sender| is_hex(sender, 6)) {
        Ok(lower)
    } else {
        Err("it is no group; `fieldctl failures groups` shows them, such as 62852412c624"
            .to_owned())
    }
}

/// Returns `did you mean x? ` if one of the names is similar enough.
#[must_use]
pub fn nearest(text: &str, names: &[&str]) -> String {
    let near = names.iter().map(|name| (levenshtein(text, name), name)).min();
    match near {
        Some((distance, name)) if distance <= text.chars().count() / 3 + 1 => {
            format!("did you mean {name}? ")
        }
        _ => String::new(),
    }
}

/// A reader of the failures, newest first. A failure that is recorded again during the reading is not returned
/// again.
#[derive(Debug)]
pub struct Walk {
    ledger: Ledger,
    filter: Filter,
    left: Vec<Status>,
    cursor: Option<Cursor>,
}

impl Walk {
    /// Creates a reader of the failures with one of those statuses that the filter accepts.
    #[must_use]
    pub fn new(ledger: Ledger, statuses: &[Status], filter: Filter) -> Self {
        let left = statuses.iter().rev().copied().collect();
        Self { ledger, filter, left, cursor: None }
    }

    /// Returns the next page, which may be empty. Returns `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Summary>>, CliError> {
        let Some(status) = self.left.last().copied() else { return Ok(None) };
        let (mut rows, next) = self.ledger.page(status, true, self.cursor, PAGE).await?;
        // All further rows are older.
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

/// Returns the name of a failure's kind, as it is in the table and on the command line.
#[must_use]
pub fn kind(kind: Kind) -> String {
    wire(&kind)
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        filter: Filter,
    }

    #[test]
    fn a_kind_is_given_by_its_name_in_the_ledger_in_any_case() {
        for of in Kind::value_variants() {
            for name in [kind(*of), kind(*of).to_lowercase()] {
                let parsed = Command::try_parse_from(["test", "--kind", &name]);
                assert_eq!(parsed.expect(&name).filter.kind, Some(*of), "{name}");
            }
        }
        assert!(Command::try_parse_from(["test", "--kind", "FunctionFailed"]).is_err());
    }

    #[test]
    fn the_nearest_name_is_suggested_if_it_is_similar() {
        let sources = sources::known();
        assert_eq!(nearest("project-sight", &sources), "did you mean project-site? ");
        assert_eq!(nearest("store_reading", &sources), "did you mean store-readings? ");
        assert_eq!(nearest("site-failures", &sources), "did you mean sites-failures? ");
        assert_eq!(nearest("nonsense", &sources), "");
    }

    #[test]
    fn a_group_is_a_fingerprint_with_or_without_a_sender() {
        for good in ["62852412c624", "62852412C624", "62852412c624-0a1b2c"] {
            assert!(group(good).is_ok(), "{good}");
        }
        for bad in ["", "62852412c62", "62852412c62g", "62852412c624-", "62852412c624-0a1b2cd"] {
            assert!(group(bad).is_err(), "{bad}");
        }
    }
}
