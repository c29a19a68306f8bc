//! The command `fieldctl subscriptions`.

use clap::Args;
use contracts::names;
use payments::{Finding, FindingKind, Report};

use crate::{
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Cell, Table, ago, counted, plain},
    stack::Stack,
};

/// The options of `fieldctl subscriptions`: none.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {}

impl Options {
    /// Shows the last comparison of the payment provider with the billing table.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        let rows = stack.table(names::BILLING);
        let report: Option<Report> = rows.get(&Report::key()).await.map_err(|error| {
            CliError::new(Exit::Aws, format!("the report can't be read: {error}"))
        })?;
        let Some(report) = report else {
            return Err(CliError::not_found("the subscriptions have not been compared yet")
                .advise("reconcile-subscriptions runs every hour; if it fails: fieldctl logs --function reconcile-subscriptions --errors"));
        };
        let outdated = report.is_outdated(screen.now);
        if screen.json {
            screen.document(&report)?;
        } else {
            show(screen, &report, outdated)?;
        }
        Ok(if outdated || report.found > 0 { Exit::Failed } else { Exit::Done })
    }
}

fn show(screen: &mut Screen, report: &Report, outdated: bool) -> Result<(), CliError> {
    let Report { at, running, active, foreign, found, findings, .. } = report;
    let foreign = match foreign {
        0 => String::new(),
        count => {
            let foreign = counted(*count, "subscription at", "subscriptions at");
            let belong = if *count == 1 { "belongs" } else { "belong" };
            format!(", {foreign} the provider {belong} to no site")
        }
    };
    let at = ago(screen.now, *at);
    let running = counted(*running, "subscription runs", "subscriptions run");
    let active = counted(*active, "row is", "rows are");
    screen.line(&format!("Compared {at}: {running} at the provider, {active} ACTIVE{foreign}."))?;
    if outdated {
        let text = "This report is out of date: reconcile-subscriptions has not written one since. Its log has the reason.";
        let text = screen.paint(Tone::Bad, text);
        screen.line(text)?;
    }
    if findings.is_empty() {
        return screen.line(if outdated {
            "The provider and the billing table agreed at that time."
        } else {
            "The provider and the billing table agree."
        });
    }
    let mut table = Table::new(["FINDING", "FIRST SEEN", "SUBSCRIPTION", "SITE", "MEANS"]);
    let rows: Vec<_> = findings.iter().map(|finding| row(screen, finding)).collect();
    table.page(screen, &rows)?;
    if *found > findings.len() {
        let more = counted(found - findings.len(), "more is", "more are");
        screen.line(&format!("{more} not shown."))?;
    }
    Ok(())
}

fn row(screen: &Screen, finding: &Finding) -> Vec<Cell> {
    let Finding { kind, site_id, provider_subscription_id, first_seen, .. } = finding;
    vec![
        (kind.name().to_owned(), Tone::Bad),
        (ago(screen.now, *first_seen), Tone::Faint),
        plain(provider_subscription_id.clone()),
        plain(site_id.to_string()),
        plain(meaning(*kind)),
    ]
}

fn meaning(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::NoActiveRow => {
            "paid for, but the site has no subscription in the billing table"
        }
        FindingKind::NotRunning => "the site is in service, but its subscription is not paid for",
        FindingKind::StillRunning => "cancelled in the billing table, but still paid for",
        FindingKind::Duplicate => "paid for in addition to the site's own subscription",
    }
}
