//! Projects the events of the saga's steps, and changes of sensors, into the read model of the site.
//!
//! EventBridge does not preserve order and delivers at least once. The projection therefore has the mode `latest`: the row
//! of a step or of a changed sensor is only replaced by an event of the same entity with a higher sequence number.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use consumer::latest::{self, Projection};
use contracts::{
    Envelope, Event, OnboardingId, Sensor, SiteData, SiteId, Timestamp,
    events::SensorChanged,
    saga::{self, StepOutcome},
};
use lambda::Step;
use serde::{Deserialize, Serialize};
use store::Table;

use crate::{ChangedSensorRow, SitesError, StepRow, StepStatus};

/// The dependencies of the function `project-site`.
#[derive(Debug)]
pub struct ProjectSite {
    /// The sites table.
    pub sites: Table,
}

/// The part of an event's data that this function reads.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Data {
    /// The site of the event.
    pub site_id: SiteId,
    /// The sensor that was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor: Option<Sensor>,
}

impl SiteData for Data {
    fn site_id(&self) -> SiteId {
        self.site_id
    }
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The event is newer than the row and was stored.
    Projected,
    /// The event is a duplicate, or older than the row.
    Stale,
    /// The event is about neither a step with a row of its own nor a changed sensor.
    Ignored,
}

impl From<Projection> for Reply {
    fn from(projection: Projection) -> Self {
        match projection {
            Projection::Stored => Self::Projected,
            Projection::Stale => Self::Stale,
        }
    }
}

/// Returns the step that an event is about, and the step's new status. Returns `None` for an event of no step, and for
/// the site's own step, whose state is in the site's row.
fn step_status(event_type: &str) -> Option<(&'static str, StepStatus)> {
    let (step, outcome) = saga::step_of_event(event_type)?;
    let status = match outcome {
        StepOutcome::Done => StepStatus::Completed,
        StepOutcome::Refused => StepStatus::Failed,
        StepOutcome::Undone => StepStatus::Undone,
    };
    (!step.is_of_site()).then_some((step.name, status))
}

impl Step for ProjectSite {
    type Command = EventBridgeEvent<Envelope<Data>>;
    type Reply = Reply;
    type Error = SitesError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        command.detail.metadata.correlation_id
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, SitesError> {
        let step = step_status(&command.detail.metadata.kind);
        let is_change = command.detail.metadata.kind == SensorChanged::TYPE;
        if step.is_none() && !is_change {
            return Ok(Reply::Ignored);
        }
        let saga = command.detail.saga()?;
        let Envelope { metadata, data } = command.detail;
        let sequence = metadata.sequence;
        if let (true, Some(sensor)) = (is_change, data.sensor) {
            saga.check_sensor(sensor.sensor_id)?;
            let key = ChangedSensorRow::key(saga.site_id, sensor.sensor_id);
            let row = ChangedSensorRow { sensor, sequence };
            return Ok(latest::project(&self.sites, &key, &row, sequence).await?.into());
        }
        let Some((name, status)) = step else { return Ok(Reply::Ignored) };
        let row = StepRow { name: name.to_owned(), status, at: metadata.occurred_at, sequence };
        let key = StepRow::key(saga.site_id, name);
        Ok(latest::project(&self.sites, &key, &row, sequence).await?.into())
    }
}
