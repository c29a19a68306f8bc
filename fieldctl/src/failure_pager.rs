//! Reads failures page by page, with a filter. Only one page is in memory at a time.

use std::collections::HashSet;

use clap::Args;
use contracts::{OnboardingId, SiteId, Timestamp};
use ledger::{Cursor, FailureId, FailureSummary, Kind, Ledger, Status, sources};
use strsim::levenshtein;

use crate::{
    error::CliError,
    event_log::Period,
    render::{parse_time, serialized_name},
    resolve,
    stack::Stack,
};

/// The number of rows on a page.
const PAGE_SIZE: u16 = 250;

/// Every status.
pub const STATUSES: [Status; 3] = [Status::Open, Status::Replayed, Status::Discarded];

/// A filter for failures.
#[derive(Args, Clone, Debug, Default)]
pub struct FailureFilter {
    /// Only failures of this function or state machine, such as project-site.
    #[arg(long)]
    pub source: Option<String>,
    /// Only failures of this kind.
    #[arg(long, ignore_case = true)]
    pub kind: Option<Kind>,
    /// Only failures of this group, as `failures groups` shows it. Its first 12 digits (the fingerprint) select all
    /// groups of the same cause.
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    pub group: Option<String>,
    /// Only failures of this site: its id, the first digits of it, or its name.
    #[arg(long)]
    pub site: Option<String>,
    /// The id of the site. [`Self::resolve`] sets it from `site`.
    #[arg(skip)]
    pub site_id: Option<SiteId>,
    /// Only failures that were last recorded since this time: RFC 3339, or an age such as 2h.
    #[arg(long, value_parser = parse_time)]
    pub since: Option<Timestamp>,
    /// Only failures of this onboarding.
    #[arg(long, value_name = "ONBOARDING")]
    pub correlation: Option<OnboardingId>,
}

impl FailureFilter {
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

    /// Describes the selected failures, such as `open failures of source project-site since 2026-01-01T00:00:00.000Z`.
    #[must_use]
    pub fn describe(&self, statuses: &[Status]) -> String {
        let Self { source, kind, group, site, site_id: _, since, correlation } = self;
        let mut text = match statuses {
            [status] => format!("{} failures", status.name().to_lowercase()),
            _ => "failures".to_owned(),
        };
        let parts = [
            source.as_ref().map(|source| format!(" of source {source}")),
            kind.map(|kind| format!(" of kind {}", kind_name(kind))),
            group.as_ref().map(|group| format!(" of group {group}")),
            site.as_ref().map(|site| format!(" of site {site}")),
            correlation.map(|id| format!(" of onboarding {id}")),
            since.map(|since| format!(" since {since}")),
        ];
        parts.into_iter().flatten().for_each(|part| text += &part);
        text
    }

    /// Checks the names in a filter that accepted no failure. Otherwise a wrong name would look as if there were no
    /// failures.
    ///
    /// # Errors
    /// Exit code 2 for an unknown source. Exit code 3 for an unknown group, site or onboarding.
    pub async fn check(&self, stack: &Stack) -> Result<(), CliError> {
        let sources = sources::known();
        if let Some(source) = self.source.as_ref().filter(|it| !sources.contains(&it.as_str())) {
            let suggestion = did_you_mean(source, &sources);
            let error = CliError::usage(format!("there is no source {source:?}"));
            return Err(error.advise(format!("{suggestion}the sources are {}", sources.join(", "))));
        }
        if let Some(group) = &self.group {
            let filter = Self { group: Some(group.clone()), ..Self::default() };
            let mut pager = FailurePager::new(stack.ledger(), &STATUSES, filter);
            loop {
                match pager.next().await? {
                    None => {
                        return Err(CliError::not_found(format!(
                            "there is no failure in group {group}"
                        ))
                        .advise("`fieldctl failures groups --status any` lists the groups"));
                    }
                    Some(page) if !page.is_empty() => break,
                    Some(_) => {}
                }
            }
        }
        if let Some(site) = self.site_id
            && stack.site_row(site).await?.is_none()
        {
            return Err(CliError::not_found(format!("there is no site {site}"))
                .advise("`fieldctl sites list` lists the sites of your operator"));
        }
        if let Some(onboarding) = self.correlation {
            onboarding_exists(stack, onboarding).await?;
        }
        Ok(())
    }

    fn accepts(&self, row: &FailureSummary) -> bool {
        self.source.as_ref().is_none_or(|source| *source == row.source)
            && self.kind.is_none_or(|kind| kind == row.kind)
            && self
                .group
                .as_ref()
                .is_none_or(|group| *group == row.fingerprint || *group == row.group())
            && self.site_id.is_none_or(|site| row.affected_ids.include_site(site))
            && self.correlation.is_none_or(|id| Some(id) == row.correlation_id)
            && self.since.is_none_or(|since| since <= row.last_at)
    }
}

/// Checks that the event log has events of the onboarding.
///
/// # Errors
/// Exit code 3 if it has none.
pub async fn onboarding_exists(stack: &Stack, onboarding: OnboardingId) -> Result<(), CliError> {
    let events = stack.events_of_onboarding(onboarding, Period::default(), 1).await?;
    if events.is_empty() {
        return Err(CliError::not_found(format!("there is no onboarding {onboarding}"))
            .advise("`fieldctl sites show <site>` shows a site's onboardingId"));
    }
    Ok(())
}

/// Parses a group's id: a fingerprint of 12 hex digits. The id of the group of one sender also has `-` and 6 hex
/// digits.
fn parse_group(text: &str) -> Result<String, String> {
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let lower = text.to_lowercase();
    let (fingerprint, sender) =
        lower.split_once('-').map_or((&*lower, None), |(a, b)| (a, Some(b)));
    if is_hex(fingerprint, 12) && sender.is_none_or(|sender| is_hex(sender, 6)) {
        Ok(lower)
    } else {
        Err("not a group id such as 62852412c624; `fieldctl failures groups` lists the groups"
            .to_owned())
    }
}

/// Returns `did you mean x? ` if one of the names is similar enough.
#[must_use]
pub fn did_you_mean(text: &str, names: &[&str]) -> String {
    let closest = names.iter().map(|name| (levenshtein(text, name), name)).min();
    match closest {
        Some((distance, name)) if distance <= text.chars().count() / 3 + 1 => {
            format!("did you mean {name}? ")
        }
        _ => String::new(),
    }
}

/// Reads failures page by page, one status after the other, each newest first, to show them. A failure that is recorded
/// again before its page is read becomes newer than the pages that are still to be read, so it may be missed.
#[derive(Debug)]
pub struct FailurePager {
    ledger: Ledger,
    filter: FailureFilter,
    remaining: Vec<Status>,
    cursor: Option<Cursor>,
}

impl FailurePager {
    /// Creates a pager of the failures with one of those statuses that the filter accepts.
    #[must_use]
    pub fn new(ledger: Ledger, statuses: &[Status], filter: FailureFilter) -> Self {
        let remaining = statuses.iter().rev().copied().collect();
        Self { ledger, filter, remaining, cursor: None }
    }

    /// Returns the next page, which may be empty. Returns `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<FailureSummary>>, CliError> {
        let Some(status) = self.remaining.last().copied() else { return Ok(None) };
        let (mut rows, next) = self.ledger.page(status, true, self.cursor, PAGE_SIZE).await?;
        // The rows are sorted newest first: after a row from before `since`, no later row can match.
        let since = self.filter.since;
        let is_past = rows.last().is_some_and(|row| since.is_some_and(|since| row.last_at < since));
        self.cursor = next.filter(|_| !is_past);
        if self.cursor.is_none() {
            self.remaining.pop();
        }
        rows.retain(|row| self.filter.accepts(row));
        Ok(Some(rows))
    }
}

/// Reads the open failures page by page, oldest first, to change them. A failure that is recorded again meanwhile moves to
/// the end, so it is not missed. It is returned once. Failures that did not exist at the start are not returned.
#[derive(Debug)]
pub struct OpenFailures {
    ledger: Ledger,
    filter: FailureFilter,
    position: Position,
    /// The failures that were returned.
    returned: HashSet<FailureId>,
}

/// Which page of the open failures is read next.
#[derive(Clone, Copy, Debug)]
enum Position {
    Start,
    /// The page after the cursor. `newest` is the time of the newest failure at the start. It is a time of the ledger,
    /// because the clock of this machine may differ.
    After {
        cursor: Cursor,
        newest: Timestamp,
    },
    End,
}

impl OpenFailures {
    /// Creates a reader of the open failures that the filter accepts.
    #[must_use]
    pub fn new(ledger: Ledger, filter: FailureFilter) -> Self {
        Self { ledger, filter, position: Position::Start, returned: HashSet::new() }
    }

    /// Returns the next page, which may be empty. Returns `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<FailureSummary>>, CliError> {
        let (start, newest) = match self.position {
            Position::Start => {
                let (rows, _) = self.ledger.page(Status::Open, true, None, 1).await?;
                let Some(row) = rows.first() else { return Ok(None) };
                (None, row.last_at)
            }
            Position::After { cursor, newest } => (Some(cursor), newest),
            Position::End => return Ok(None),
        };
        let (mut rows, cursor) = self.ledger.page(Status::Open, false, start, PAGE_SIZE).await?;
        self.position = cursor.map_or(Position::End, |cursor| Position::After { cursor, newest });
        rows.retain(|row| {
            // A retried message may be recorded late, so the first time may be after the last one.
            row.first_at.min(row.last_at) <= newest
                && self.filter.accepts(row)
                && self.returned.insert(row.id)
        });
        Ok(Some(rows))
    }
}

/// Returns the name of a failure's kind, as it is in the table and on the command line.
#[must_use]
pub fn kind_name(kind: Kind) -> String {
    serialized_name(&kind)
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        filter: FailureFilter,
    }

    #[test]
    fn a_kind_is_given_by_its_name_in_the_ledger_in_any_case() {
        for kind in Kind::value_variants() {
            for name in [kind_name(*kind), kind_name(*kind).to_lowercase()] {
                let parsed = Command::try_parse_from(["test", "--kind", &name]);
                assert_eq!(parsed.expect(&name).filter.kind, Some(*kind), "{name}");
            }
        }
        assert!(Command::try_parse_from(["test", "--kind", "FunctionFailed"]).is_err());
    }

    #[test]
    fn the_closest_name_is_suggested_if_it_is_similar() {
        let sources = sources::known();
        assert_eq!(did_you_mean("project-sight", &sources), "did you mean project-site? ");
        assert_eq!(did_you_mean("store_reading", &sources), "did you mean store-readings? ");
        assert_eq!(did_you_mean("site-failures", &sources), "did you mean sites-failures? ");
        assert_eq!(did_you_mean("nonsense", &sources), "");
    }

    #[test]
    fn a_group_is_a_fingerprint_with_or_without_a_sender() {
        for good in ["62852412c624", "62852412C624", "62852412c624-0a1b2c"] {
            assert!(parse_group(good).is_ok(), "{good}");
        }
        for bad in ["", "62852412c62", "62852412c62g", "62852412c624-", "62852412c624-0a1b2cd"] {
            assert!(parse_group(bad).is_err(), "{bad}");
        }
    }
}
