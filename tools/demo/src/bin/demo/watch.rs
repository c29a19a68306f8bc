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

use crate::{progress::Board, stations::Station};

/// The timeout for all sagas together.
const TIMEOUT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(250);

/// The result of a registration request.
pub enum Asked {
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
    let words = match (&execution.status, failed, execution.current()) {
        (ExecutionStatus::Succeeded, ..) => "ACTIVE".to_owned(),
        (ExecutionStatus::Running, None, Some(task)) => task.name.clone(),
        (ExecutionStatus::Running, Some((step, error)), _) => {
            format!("{step} failed ({error}): undoing")
        }
        (ExecutionStatus::Running, None, None) => "started".to_owned(),
        (status, Some((step, error)), _) => format!("{status}: {step} failed ({error}), undone"),
        (status, None, _) => status.to_string(),
    };
    (done, words)
}

/// Shows every saga until all have ended.
pub async fn onboard(
    stack: &Stack,
    capture: &Capture,
    stations: &[Station],
    asked: Vec<Asked>,
) -> Result<Onboarded> {
    let names: Vec<_> = stations.iter().map(|station| station.name.as_str()).collect();
    let mut board = Board::new(&names, FORWARD.len());
    let mut captured = Vec::new();
    let mut over = vec![false; stations.len()];
    let begun = Instant::now();
    loop {
        captured.extend(capture.take(stack).await?);
        let ids: Vec<_> = asked
            .iter()
            .map(|asked| match asked {
                Asked::Http(ids) => Some(*ids),
                Asked::Event(event_id) => caused_by(&captured, event_id),
            })
            .collect();
        let running = (0..stations.len()).filter(|index| !over[*index]);
        let looks = running.map(async |index| {
            let execution = match ids[index] {
                Some(ids) => stack.onboarding(ids.onboarding_id).await?,
                None => None,
            };
            anyhow::Ok((index, execution))
        });
        for (index, execution) in try_join_all(looks).await? {
            let execution = execution.as_ref();
            let (done, words) = match ids[index] {
                Some(_) => state(execution),
                None => (0, "requested".to_owned()),
            };
            over[index] = execution.is_some_and(|run| run.status != ExecutionStatus::Running);
            if over[index] {
                board.finish(index, done, &words);
            } else {
                board.show(index, done, &words);
            }
        }
        if over.iter().all(|over| *over) {
            return Ok(Onboarded { ids: ids.into_iter().flatten().collect(), captured });
        }
        if begun.elapsed() > TIMEOUT {
            bail!("not all sagas were over after {} s", TIMEOUT.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
