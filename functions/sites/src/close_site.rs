//! The last step of the teardown: sets the site's final status, REJECTED or DECOMMISSIONED.

use contracts::{
    OnboardingFailure, OnboardingId, SiteId, Timestamp,
    events::{SiteDecommissioned, SiteRejected},
    saga::TeardownInput,
};
use fault::ErrorKind;
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{SiteRow, SitesError, Status};

/// The dependencies of the function `close-site`.
#[derive(Debug)]
pub struct CloseSite {
    /// The sites table.
    pub sites: Table,
    /// The outbox for `SiteRejected` and `SiteDecommissioned`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
pub struct Reply {
    /// The site's final status.
    pub status: Status,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Close { row: Box<SiteRow>, from: Status, sequence: u64 },
    AlreadyClosed(Status),
}

/// Decides whether the site has to be closed, and with which status.
fn decide_closing(
    site: SiteId,
    row: Option<SiteRow>,
    failure: Option<OnboardingFailure>,
    now: Timestamp,
) -> Result<Decision, SitesError> {
    let row = row.ok_or(SitesError::Unknown(site))?;
    let (from, sequence) = (row.status(), row.sequence);
    match from {
        Status::Rejected | Status::Decommissioned => Ok(Decision::AlreadyClosed(from)),
        Status::Onboarding | Status::Active | Status::Decommissioning => {
            let to = if failure.is_some() { Status::Rejected } else { Status::Decommissioned };
            Ok(Decision::Close {
                row: Box::new(SiteRow {
                    closed_at: Some(now),
                    contact: None,
                    failure,
                    sequence: sequence + 1,
                    ..row.with_status(to)
                }),
                from,
                sequence,
            })
        }
    }
}

/// Counts a failed onboarding under the step that failed.
///
/// `OnboardingsRefused` counts refusals that the operator of the site can act on (declined card, no kits).
/// `OnboardingsFailed` counts every other failure, which needs an engineer.
fn count_failure(failure: OnboardingFailure) {
    let refusals = [ErrorKind::CardDeclined, ErrorKind::KitsOutOfStock].map(ErrorKind::name);
    let refused = refusals.contains(&failure.error.as_str());
    let metric = if refused { "OnboardingsRefused" } else { "OnboardingsFailed" };
    metrics::counter!(metric, "step" => failure.step).increment(1);
}

impl Step for CloseSite {
    type Command = TeardownInput;
    type Reply = Reply;
    type Error = SitesError;

    fn correlation(command: &TeardownInput) -> Option<OnboardingId> {
        Some(command.saga.onboarding_id)
    }

    async fn run(&self, command: TeardownInput, now: Timestamp) -> Result<Reply, SitesError> {
        let saga = command.saga;
        let site_id = saga.site_id;
        let key = SiteRow::key(site_id);
        let existing = self.sites.get(&key).await?;
        let (row, from, sequence) = match decide_closing(site_id, existing, command.failure, now)? {
            Decision::Close { row, from, sequence } => (row, from, sequence),
            Decision::AlreadyClosed(status) => return Ok(Reply { status }),
        };
        let transaction = Transaction::on(&self.sites).put_if_unchanged(
            &self.sites,
            &key,
            &row,
            from.name(),
            sequence,
        );
        let transaction = match row.failure.clone() {
            Some(failure) => transaction.event(
                &self.outbox,
                NewEvent::in_saga(
                    saga,
                    site_id,
                    row.sequence,
                    now,
                    SiteRejected { site_id, failure },
                ),
            ),
            None => transaction.event(
                &self.outbox,
                NewEvent::in_saga(saga, site_id, row.sequence, now, SiteDecommissioned { site_id }),
            ),
        };
        match transaction.commit().await? {
            Commit::Done => {
                let status = row.status();
                if let Some(failure) = row.failure {
                    count_failure(failure);
                }
                Ok(Reply { status })
            }
            Commit::Refused(_) => Err(SitesError::Busy(site_id)),
        }
    }
}
