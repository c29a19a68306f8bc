//! Hears the steps' events and keeps what became of each step in the site's own read model.
//!
//! EventBridge keeps no order and may deliver twice: a step's row is only ever replaced by a later
//! event of the same entity.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    Envelope, OnboardingId, SiteData, SiteId, Timestamp,
    saga::{self, Outcome},
};
use lambda::Step;
use serde::{Deserialize, Serialize};
use store::{Commit, Table, Transaction};

use crate::{SitesError, StepRow, StepStatus};

/// What the step needs.
#[derive(Debug)]
pub struct ProjectSite {
    /// The sites table.
    pub sites: Table,
}

/// All that is read of an event's data.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Data {
    /// The site that it belongs to.
    pub site_id: SiteId,
}

impl SiteData for Data {
    fn site_id(&self) -> SiteId {
        self.site_id
    }
}

/// What it answers; seen only in the log.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The event is news.
    Projected,
    /// It came twice, or late.
    Stale,
    /// No step's event.
    Ignored,
}

/// The step that an event is about, and the step's new status. The site's own step has none: the site's row
/// shows it.
fn step_status(event_type: &str) -> Option<(&'static str, StepStatus)> {
    let (step, outcome) = saga::step_of_event(event_type)?;
    let status = match outcome {
        Outcome::Done => StepStatus::Completed,
        Outcome::Refused => StepStatus::Failed,
        Outcome::Undone => StepStatus::Undone,
    };
    (!step.is_of_site()).then_some((step.name, status))
}

impl Step for ProjectSite {
    type Command = EventBridgeEvent<Envelope<Data>>;
    type Reply = Reply;
    type Error = SitesError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        Some(command.detail.metadata.correlation_id)
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, SitesError> {
        let Some((name, status)) = step_status(&command.detail.metadata.kind) else {
            return Ok(Reply::Ignored);
        };
        let saga = command.detail.saga()?;
        let metadata = command.detail.metadata;
        let row = StepRow {
            name: name.to_owned(),
            status,
            at: metadata.occurred_at,
            sequence: metadata.sequence,
        };
        let key = StepRow::key(saga.site_id, name);
        let commit = Transaction::on(&self.sites)
            .advance(&self.sites, &key, &row, row.sequence)
            .commit()
            .await?;
        Ok(match commit {
            Commit::Done => Reply::Projected,
            Commit::Refused(_) => Reply::Stale,
        })
    }
}
