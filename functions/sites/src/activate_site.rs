//! The last step of the saga: sets the site's status to ACTIVE.

use contracts::{OnboardingId, SagaContext, SiteId, Timestamp, events::SiteActivated};
use lambda::Step;
use serde::Serialize;
use store::{Commit, NewEvent, Outbox, Table, Transaction};

use crate::{SiteRow, SitesError, Status};

/// The dependencies of the function `activate-site`.
#[derive(Debug)]
pub struct ActivateSite {
    /// The sites table.
    pub sites: Table,
    /// The outbox for `SiteActivated`.
    pub outbox: Outbox,
}

/// The result of the step.
#[derive(Debug, PartialEq, Serialize)]
pub struct Reply {
    /// The site's status after the step.
    pub status: Status,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Activate(Box<SiteRow>),
    AlreadyActive,
}

/// Decides whether the site has to be activated.
fn decide_activation(
    site: SiteId,
    row: Option<SiteRow>,
    now: Timestamp,
) -> Result<Decision, SitesError> {
    let row = row.ok_or(SitesError::Unknown(site))?;
    match row.status() {
        Status::Onboarding => Ok(Decision::Activate(Box::new(SiteRow {
            activated_at: Some(now),
            sequence: row.sequence + 1,
            ..row.with_status(Status::Active)
        }))),
        Status::Active => Ok(Decision::AlreadyActive),
        Status::Rejected | Status::Decommissioning | Status::Decommissioned => {
            Err(SitesError::Superseded(site))
        }
    }
}

impl Step for ActivateSite {
    type Command = SagaContext;
    type Reply = Reply;
    type Error = SitesError;

    fn correlation(saga: &SagaContext) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: SagaContext, now: Timestamp) -> Result<Reply, SitesError> {
        let key = SiteRow::key(saga.site_id);
        let existing = self.sites.get(&key).await?;
        let reply = Reply { status: Status::Active };
        let row = match decide_activation(saga.site_id, existing, now)? {
            Decision::Activate(row) => row,
            Decision::AlreadyActive => return Ok(reply),
        };
        let commit = Transaction::on(&self.sites)
            .put_if_status(&self.sites, &key, &row, Status::Onboarding.name())
            .event(
                &self.outbox,
                NewEvent::in_saga(
                    saga,
                    saga.site_id,
                    row.sequence,
                    now,
                    SiteActivated { site_id: saga.site_id },
                ),
            )
            .commit()
            .await?;
        match commit {
            Commit::Done => Ok(reply),
            Commit::Refused(_) => Err(SitesError::Busy(saga.site_id)),
        }
    }
}
