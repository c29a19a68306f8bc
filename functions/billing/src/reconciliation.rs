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
/// A row or a subscription that changed less than this time ago may still be in the middle of its step. This
/// time is longer than the wait of `initialize-subscription` for the provider, and longer than a comparison.
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
pub struct ProviderSubscription {
    /// The provider's id of the subscription.
    pub id: String,
    /// The site that the subscription was opened for.
    pub site_id: SiteId,
    /// When the subscription was created.
    pub created: Timestamp,
}

/// The data of both sides: billing and the provider.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Billing's rows, one for each site.
    pub rows: BTreeMap<SiteId, Row>,
    /// Onboardings whose initialization began and has not finished.
    pub unfinished: BTreeSet<OnboardingId>,
    /// The provider's subscriptions that have not ended.
    pub provider_subscriptions: Vec<ProviderSubscription>,
}

/// Compares both sides and returns the report. `previous` is the previous report. `foreign` is the number of
/// subscriptions at the provider that are not a site's.
#[must_use]
pub fn report(
    snapshot: &Snapshot,
    foreign: usize,
    previous: Option<&Report>,
    now: Timestamp,
) -> Report {
    let known: BTreeMap<_, _> = previous
        .iter()
        .flat_map(|previous| &previous.findings)
        .map(|known| (known.provider_subscription_id.as_str(), known))
        .collect();
    let mut findings = findings(snapshot, now);
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
    let active = snapshot.rows.values().filter(|row| row.state == RowState::Active).count();
    Report {
        at: now,
        sequence: u64::try_from(now.millis()).unwrap_or_default(),
        running: snapshot.provider_subscriptions.len(),
        active,
        foreign,
        found,
        findings,
    }
}

/// Returns the disagreements between the two sides, except those in the middle of a step.
fn findings(snapshot: &Snapshot, now: Timestamp) -> Vec<Finding> {
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
    for subscription in
        snapshot.provider_subscriptions.iter().filter(|subscription| settled(subscription.created))
    {
        let site = subscription.site_id;
        let row = snapshot.rows.get(&site);
        let unfinished = snapshot.unfinished.contains(&OnboardingId::from_site(site));
        if unfinished || row.is_some_and(|row| !settled(row.at)) {
            continue;
        }
        let kind = match row {
            None => FindingKind::NoActiveRow,
            Some(row) => match row.state {
                RowState::Failed => FindingKind::NoActiveRow,
                RowState::Cancelled => FindingKind::StillRunning,
                RowState::Active
                    if row.provider_subscription_id.as_ref() == Some(&subscription.id) =>
                {
                    continue;
                }
                RowState::Active => FindingKind::Duplicate,
            },
        };
        findings.push(finding(kind, site, &subscription.id));
    }
    let running: BTreeSet<_> = snapshot
        .provider_subscriptions
        .iter()
        .map(|subscription| subscription.id.as_str())
        .collect();
    for (site, row) in &snapshot.rows {
        let id = row.provider_subscription_id.as_deref().unwrap_or_default();
        if row.state == RowState::Active && settled(row.at) && !running.contains(id) {
            findings.push(finding(FindingKind::NotRunning, *site, id));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use contracts::OperatorId;

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_millis(hours * HOUR)
    }

    fn site(name: &str) -> SiteId {
        SiteId::registered(OperatorId::DEFAULT, "", name)
    }

    fn row(state: RowState, id: Option<&str>, at: Timestamp) -> Row {
        Row { state, provider_subscription_id: id.map(str::to_owned), at }
    }

    fn subscription(id: &str, name: &str, created: Timestamp) -> ProviderSubscription {
        ProviderSubscription { id: id.to_owned(), site_id: site(name), created }
    }

    fn snapshot(rows: &[(&str, Row)], subscriptions: &[ProviderSubscription]) -> Snapshot {
        Snapshot {
            rows: rows.iter().map(|(name, row)| (site(name), row.clone())).collect(),
            unfinished: BTreeSet::new(),
            provider_subscriptions: subscriptions.to_vec(),
        }
    }

    fn findings_of(snapshot: &Snapshot, now: Timestamp) -> Vec<(FindingKind, String)> {
        let report = super::report(snapshot, 0, None, now);
        report.findings.into_iter().map(|it| (it.kind, it.provider_subscription_id)).collect()
    }

    #[test]
    fn each_kind_of_disagreement_is_a_finding() {
        let active = row(RowState::Active, Some("sub_1"), at(0));
        let assert_finding = |snapshot: &Snapshot, kind, id: &str| {
            assert_eq!(findings_of(snapshot, at(10)), [(kind, id.to_owned())], "{snapshot:?}");
        };
        let one = [subscription("sub_1", "a", at(0))];
        assert_eq!(
            findings_of(&snapshot(&[("a", active.clone())], &one), at(10)),
            [],
            "they agree"
        );
        assert_eq!(findings_of(&snapshot(&[], &[]), at(10)), []);

        assert_finding(&snapshot(&[], &one), FindingKind::NoActiveRow, "sub_1");
        let failed = row(RowState::Failed, None, at(0));
        assert_finding(&snapshot(&[("a", failed)], &one), FindingKind::NoActiveRow, "sub_1");
        assert_finding(&snapshot(&[("a", active.clone())], &[]), FindingKind::NotRunning, "sub_1");
        let cancelled = row(RowState::Cancelled, None, at(0));
        assert_finding(&snapshot(&[("a", cancelled)], &one), FindingKind::StillRunning, "sub_1");
        let two = [subscription("sub_1", "a", at(0)), subscription("sub_2", "a", at(0))];
        assert_finding(&snapshot(&[("a", active.clone())], &two), FindingKind::Duplicate, "sub_2");

        // A subscription other than the row's is running.
        let other = [subscription("sub_2", "a", at(0))];
        let both = findings_of(&snapshot(&[("a", active)], &other), at(10));
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
        let one = subscription("sub_1", "a", at(0));
        let early = Timestamp::from_millis(2 * HOUR - 1);
        for (rows, subscriptions) in [
            (vec![], vec![one.clone()]),
            (vec![("a", row(RowState::Active, Some("sub_1"), at(0)))], vec![]),
            (
                vec![("a", row(RowState::Cancelled, None, at(0)))],
                vec![subscription("sub_1", "a", at(-9))],
            ),
        ] {
            let snapshot = snapshot(&rows, &subscriptions);
            assert_eq!(findings_of(&snapshot, early), [], "{snapshot:?}");
            assert_eq!(findings_of(&snapshot, at(2)).len(), 1, "{snapshot:?}");
        }
        let mut snapshot = snapshot(&[], &[one]);
        snapshot.unfinished.insert(OnboardingId::from_site(site("a")));
        assert_eq!(findings_of(&snapshot, at(10)), []);
    }

    #[test]
    fn a_finding_keeps_its_first_seen_time_and_disappears_when_resolved() {
        let wrong = snapshot(&[], &[subscription("sub_1", "a", at(0))]);
        let first = report(&wrong, 3, None, at(10));
        let second = report(&wrong, 3, Some(&first), at(11));
        let finding = &second.findings[0];
        assert_eq!((finding.first_seen, finding.last_seen), (at(10), at(11)));
        assert_eq!((second.at, second.running, second.foreign, second.found), (at(11), 1, 3, 1));
        assert!(second.sequence > first.sequence);
        let resolved = report(&snapshot(&[], &[]), 0, Some(&second), at(12));
        assert_eq!((resolved.found, resolved.findings), (0, Vec::new()));
    }

    #[test]
    fn a_report_is_bounded_and_keeps_the_oldest_findings() {
        let mut wrong = snapshot(&[], &[subscription("sub_old", "old", at(0))]);
        let previous = report(&wrong, 0, None, at(10));
        for number in 0..MAX_FINDINGS + 5 {
            let name = number.to_string();
            wrong
                .provider_subscriptions
                .insert(0, subscription(&format!("sub_{number}"), &name, at(0)));
        }
        let report = super::report(&wrong, 0, Some(&previous), at(11));
        assert_eq!((report.found, report.findings.len()), (MAX_FINDINGS + 6, MAX_FINDINGS));
        assert_eq!(report.findings[0].provider_subscription_id, "sub_old");
        let size = serde_json::to_string(&report).expect("JSON").len();
        assert!(size < 100_000, "{size}");
    }
}
