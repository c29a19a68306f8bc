//! Compares billing's rows with the subscriptions at the payment provider, and makes the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use contracts::{OnboardingId, SiteId, Timestamp};
use payments::{Finding, FindingKind, Report};

/// The maximum number of findings in a report. Further findings are only counted. This keeps the row far below
/// DynamoDB's limit of 400 KB.
pub const MAX_FINDINGS: usize = 200;
/// A row or a subscription that changed less than this time ago may still be in the middle of its step. The time is
/// longer than `initialize-subscription` waits for the provider, and longer than a comparison takes.
const IN_FLIGHT: Duration = Duration::from_hours(2);

/// The state of a site's subscription according to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowState {
    /// The subscription is paid for.
    Active,
    /// The provider refused the payment.
    Failed,
    /// The subscription is cancelled, or its cancellation has begun.
    Cancelled,
}

/// The compared fields of a row of billing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The state of the subscription.
    pub state: RowState,
    /// The provider's id of the subscription, if the row has one.
    pub provider_subscription_id: Option<String>,
    /// When the row last changed.
    pub at: Timestamp,
}

/// A subscription at the provider that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The provider's id of the subscription.
    pub id: String,
    /// The site that the subscription was opened for.
    pub site_id: SiteId,
    /// When the subscription was created.
    pub created: Timestamp,
}

/// The data of both sides.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Billing's rows, one for each site.
    pub rows: BTreeMap<SiteId, Row>,
    /// Onboardings whose initialization began and has not finished.
    pub unfinished: BTreeSet<OnboardingId>,
    /// The provider's subscriptions that have not ended.
    pub running: Vec<Running>,
}

/// Compares both sides and returns the report. `before` is the previous report. `foreign` is the number of
/// subscriptions at the provider that are not a site's.
#[must_use]
pub fn report(books: &Books, foreign: usize, before: Option<&Report>, now: Timestamp) -> Report {
    let known: BTreeMap<_, _> = before
        .iter()
        .flat_map(|before| &before.findings)
        .map(|known| (known.provider_subscription_id.as_str(), known))
        .collect();
    let mut findings = findings(books, now);
    for finding in &mut findings {
        if let Some(known) = known.get(finding.provider_subscription_id.as_str()) {
            finding.first_seen = known.first_seen;
        }
    }
    findings.sort_by(|one, other| {
        let order = |it: &Finding| (it.first_seen, it.kind, it.site_id);
        order(one).cmp(&order(other))
    });
    let found = findings.len();
    findings.truncate(MAX_FINDINGS);
    let active = books.rows.values().filter(|row| row.state == RowState::Active).count();
    Report {
        at: now,
        sequence: u64::try_from(now.millis()).unwrap_or_default(),
        running: books.running.len(),
        active,
        foreign,
        found,
        findings,
    }
}

/// Returns the disagreements between the two sides, except those in the middle of a step.
fn findings(books: &Books, now: Timestamp) -> Vec<Finding> {
    let in_flight = i64::try_from(IN_FLIGHT.as_millis()).unwrap_or(i64::MAX);
    let settled = |at: Timestamp| at <= now.plus_millis(-in_flight);
    let finding = |kind, site_id, id: &str| Finding {
        kind,
        site_id,
        provider_subscription_id: id.to_owned(),
        first_seen: now,
        last_seen: now,
    };
    let mut findings = Vec::new();
    for running in books.running.iter().filter(|running| settled(running.created)) {
        let site = running.site_id;
        let row = books.rows.get(&site);
        let unfinished = books.unfinished.contains(&OnboardingId::from_site(site));
        if unfinished || row.is_some_and(|row| !settled(row.at)) {
            continue;
        }
        let kind = match row {
            None => FindingKind::NoActiveRow,
            Some(row) => match row.state {
                RowState::Failed => FindingKind::NoActiveRow,
                RowState::Cancelled => FindingKind::StillRunning,
                RowState::Active if row.provider_subscription_id.as_ref() == Some(&running.id) => {
                    continue;
                }
                RowState::Active => FindingKind::Duplicate,
            },
        };
        findings.push(finding(kind, site, &running.id));
    }
    let running: BTreeSet<_> = books.running.iter().map(|running| running.id.as_str()).collect();
    for (site, row) in &books.rows {
        let id = row.provider_subscription_id.as_deref().unwrap_or_default();
        if row.state == RowState::Active && settled(row.at) && !running.contains(id) {
            findings.push(finding(FindingKind::NotRunning, *site, id));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_millis(hours * HOUR)
    }

    fn site(name: &str) -> SiteId {
        SiteId::registered("", name)
    }

    fn row(state: RowState, id: Option<&str>, at: Timestamp) -> Row {
        Row { state, provider_subscription_id: id.map(str::to_owned), at }
    }

    fn running(id: &str, name: &str, created: Timestamp) -> Running {
        Running { id: id.to_owned(), site_id: site(name), created }
    }

    fn books(rows: &[(&str, Row)], running: &[Running]) -> Books {
        Books {
            rows: rows.iter().map(|(name, row)| (site(name), row.clone())).collect(),
            unfinished: BTreeSet::new(),
            running: running.to_vec(),
        }
    }

    fn findings_of(books: &Books, now: Timestamp) -> Vec<(FindingKind, String)> {
        let report = super::report(books, 0, None, now);
        report.findings.into_iter().map(|it| (it.kind, it.provider_subscription_id)).collect()
    }

    #[test]
    fn each_kind_of_disagreement_is_a_finding() {
        let active = row(RowState::Active, Some("sub_1"), at(0));
        let is = |books: &Books, kind, id: &str| {
            assert_eq!(findings_of(books, at(10)), [(kind, id.to_owned())], "{books:?}");
        };
        let one = [running("sub_1", "a", at(0))];
        assert_eq!(findings_of(&books(&[("a", active.clone())], &one), at(10)), [], "they agree");
        assert_eq!(findings_of(&books(&[], &[]), at(10)), []);

        is(&books(&[], &one), FindingKind::NoActiveRow, "sub_1");
        let failed = row(RowState::Failed, None, at(0));
        is(&books(&[("a", failed)], &one), FindingKind::NoActiveRow, "sub_1");
        is(&books(&[("a", active.clone())], &[]), FindingKind::NotRunning, "sub_1");
        let cancelled = row(RowState::Cancelled, None, at(0));
        is(&books(&[("a", cancelled)], &one), FindingKind::StillRunning, "sub_1");
        let two = [running("sub_1", "a", at(0)), running("sub_2", "a", at(0))];
        is(&books(&[("a", active.clone())], &two), FindingKind::Duplicate, "sub_2");

        // A subscription other than the row's is running.
        let other = [running("sub_2", "a", at(0))];
        let both = findings_of(&books(&[("a", active)], &other), at(10));
        assert_eq!(
            both,
            [
                (FindingKind::NotRunning, "sub_1".to_owned()),
                (FindingKind::Duplicate, "sub_2".to_owned())
            ]
        );
    }

    #[test]
    fn a_recent_change_or_an_unfinished_initialization_is_not_a_finding() {
        let one = running("sub_1", "a", at(0));
        let early = Timestamp::from_millis(2 * HOUR - 1);
        for (rows, subscriptions) in [
            (vec![], vec![one.clone()]),
            (vec![("a", row(RowState::Active, Some("sub_1"), at(0)))], vec![]),
            (
                vec![("a", row(RowState::Cancelled, None, at(0)))],
                vec![running("sub_1", "a", at(-9))],
            ),
        ] {
            let books = books(&rows, &subscriptions);
            assert_eq!(findings_of(&books, early), [], "{books:?}");
            assert_eq!(findings_of(&books, at(2)).len(), 1, "{books:?}");
        }
        let mut books = books(&[], &[one]);
        books.unfinished.insert(OnboardingId::from_site(site("a")));
        assert_eq!(findings_of(&books, at(10)), []);
    }

    #[test]
    fn a_finding_keeps_its_first_seen_time_and_disappears_when_resolved() {
        let wrong = books(&[], &[running("sub_1", "a", at(0))]);
        let first = report(&wrong, 3, None, at(10));
        let second = report(&wrong, 3, Some(&first), at(11));
        let finding = &second.findings[0];
        assert_eq!((finding.first_seen, finding.last_seen), (at(10), at(11)));
        assert_eq!((second.at, second.running, second.foreign, second.found), (at(11), 1, 3, 1));
        assert!(second.sequence > first.sequence);
        let resolved = report(&books(&[], &[]), 0, Some(&second), at(12));
        assert_eq!((resolved.found, resolved.findings), (0, Vec::new()));
    }

    #[test]
    fn a_report_is_bounded_and_keeps_the_oldest_findings() {
        let mut wrong = books(&[], &[running("sub_old", "old", at(0))]);
        let before = report(&wrong, 0, None, at(10));
        for number in 0..MAX_FINDINGS + 5 {
            let name = number.to_string();
            wrong.running.insert(0, running(&format!("sub_{number}"), &name, at(0)));
        }
        let report = super::report(&wrong, 0, Some(&before), at(11));
        assert_eq!((report.found, report.findings.len()), (MAX_FINDINGS + 6, MAX_FINDINGS));
        assert_eq!(report.findings[0].provider_subscription_id, "sub_old");
        let size = serde_json::to_string(&report).expect("JSON").len();
        assert!(size < 100_000, "{size}");
    }
}
