//! Shows the progress of the sagas.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use aws_sdk_sfn::types::ExecutionStatus;
use futures_util::future::try_join_all;
use serde_json::Value;
use tests::{
    Stack,
    capture::Capture,
    executions::Execution,
    sites::{FORWARD, Ids},
};

use crate::{progress::ProgressBoard, stations::Station};

/// The timeout for all sagas together.
const TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A registration, with the ids that its channel returned.
pub enum Registration {
    /// The response of `POST /sites`.
    Http(Ids),
    /// The event's id.
    Event(String),
}

/// The result of all onboardings.
pub struct Onboarded {
    /// The ids, in the order of the stations.
    pub ids: Vec<Ids>,
    /// The events on the bus during the onboardings.
    pub captured: Vec<Value>,
}

/// Returns the ids in the `SiteCreated` event that this event caused.
fn caused_by(captured: &[Value], event_id: &str) -> Option<Ids> {
    let created = captured.iter().find(|event| {
        event["detail-type"] == "SiteCreated"
            && event["detail"]["metadata"]["causationId"] == event_id
    })?;
    serde_json::from_value(created["detail"]["data"].clone()).ok()
}

/// Returns the progress of a saga: (number of completed steps, description).
fn state(execution: Option<&Execution>) -> (usize, String) {
    let Some(execution) = execution else { return (0, "registered".to_owned()) };
    let done = execution.succeeded().iter().filter(|name| FORWARD.contains(name)).count();
    let failed = execution.tasks.iter().find_map(|task| Some((&task.name, task.failure()?)));
    let description = match (&execution.status, failed, execution.current()) {
        (ExecutionStatus::Succeeded, ..) => "ACTIVE".to_owned(),
        (ExecutionStatus::Running, None, Some(task)) => task.name.clone(),
        (ExecutionStatus::Running, Some((step, error)), _) => {
            format!("{step} failed ({error}); undoing the completed steps")
        }
        (ExecutionStatus::Running, None, None) => "started".to_owned(),
        (status, Some((step, error)), _) => {
            format!("{status}: {step} failed ({error}); all steps are undone")
        }
        (status, None, _) => status.to_string(),
    };
    (done, description)
}

/// Shows the progress of all sagas until they have ended.
pub async fn onboard(
    stack: &Stack,
    capture: &Capture,
    stations: &[Station],
    registrations: Vec<Registration>,
) -> Result<Onboarded> {
    let names: Vec<_> = stations.iter().map(|station| station.name.as_str()).collect();
    let mut board = ProgressBoard::new(&names, FORWARD.len());
    let mut captured = Vec::new();
    let mut ended = vec![false; stations.len()];
    let started = Instant::now();
    loop {
        captured.extend(capture.take(stack).await?);
        let ids: Vec<_> = registrations
            .iter()
            .map(|registration| match registration {
                Registration::Http(ids) => Some(*ids),
                Registration::Event(event_id) => caused_by(&captured, event_id),
            })
            .collect();
        let running = (0..stations.len()).filter(|index| !ended[*index]);
        let polls = running.map(async |index| {
            let execution = match ids[index] {
                Some(ids) => stack.onboarding(ids.onboarding_id).await?,
                None => None,
            };
            anyhow::Ok((index, execution))
        });
        for (index, execution) in try_join_all(polls).await? {
            let execution = execution.as_ref();
            let (done, description) = match ids[index] {
                Some(_) => state(execution),
                None => (0, "requested".to_owned()),
            };
            ended[index] = execution.is_some_and(|it| it.status != ExecutionStatus::Running);
            if ended[index] {
                board.finish(index, done, &description);
            } else {
                board.show(index, done, &description);
            }
        }
        if ended.iter().all(|ended| *ended) {
            return Ok(Onboarded { ids: ids.into_iter().flatten().collect(), captured });
        }
        if started.elapsed() > TIMEOUT {
            bail!("not all sagas ended within {} s", TIMEOUT.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
