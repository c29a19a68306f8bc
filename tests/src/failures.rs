//! The failures table, and `fieldctl failures`.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::names;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Stack,
    api::sign,
    wait::{FAILURE_TIMEOUT, Poll, TIMEOUT, until},
};

/// A row of the failures table: a failed piece of work.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The row's key.
    pub id: String,
    /// The function or state machine that failed.
    pub source: String,
    /// How it failed, such as `QUARANTINED`.
    pub kind: String,
    /// The text that a replay sends.
    pub payload: Option<String>,
    /// The file with the payload, if that is too long for the row.
    pub payload_file: Option<PayloadFile>,
    /// The error.
    pub error: FailureError,
    /// How many times it was recorded.
    pub attempts: u32,
    /// `OPEN`, `REPLAYED` or `DISCARDED`.
    pub status: String,
    /// How many times it was claimed for a replay.
    pub replays: u32,
    /// The onboarding that it belongs to.
    pub correlation_id: Option<String>,
    /// The site.
    pub site_id: Option<String>,
    /// ARN of the failed execution.
    pub execution: Option<String>,
    /// When it was first recorded. RFC 3339.
    pub first_at: String,
    /// When it was last recorded. RFC 3339.
    pub last_at: String,
}

/// An object in S3.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PayloadFile {
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
}

/// The error of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FailureError {
    /// The stable name.
    pub name: String,
    /// The message for people.
    pub message: String,
}

impl Failure {
    /// Returns the payload of a replay, parsed as JSON.
    pub fn payload(&self) -> Result<Value> {
        let text = self.payload.as_deref().with_context(|| format!("{self} has no payload"))?;
        serde_json::from_str(text).with_context(|| format!("the payload of {self}: {text}"))
    }

    /// Checks the status and the numbers of attempts and replays.
    pub fn assert_state(&self, status: &str, attempts: u32, replays: u32) -> Result<()> {
        let actual = (self.status.as_str(), self.attempts, self.replays);
        let expected = (status, attempts, replays);
        ensure!(actual == expected, "{self}; expected (status, attempts, replays) {expected:?}");
        Ok(())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, source, kind, status, attempts, replays, error, .. } = self;
        write!(
            f,
            "failure {id} of {source}, {kind} {status}, {attempts} attempts, {replays} replays, {}: {}",
            error.name, error.message
        )
    }
}

impl Stack {
    /// Returns all failures of a function or state machine.
    pub async fn failures_of(&self, source: &str) -> Result<Vec<Failure>> {
        let mut failures = Vec::new();
        for row in self.rows_with(names::FAILURES, "source", source).await? {
            let text = row.to_string();
            let failure = serde_json::from_value(row);
            let failure = failure.with_context(|| format!("the row is not a failure: {text}"))?;
            failures.push(self.with_payload(failure).await?);
        }
        Ok(failures)
    }

    /// Loads the payload if it is in a file.
    async fn with_payload(&self, mut failure: Failure) -> Result<Failure> {
        if let Some(PayloadFile { bucket, key }) = &failure.payload_file {
            let url = self.endpoint().join(&format!("/{bucket}/{key}"))?;
            let mut request = self.http.get(url).build()?;
            sign(&mut request, "s3", b"")?;
            let response = self.http.execute(request).await?.error_for_status()?;
            failure.payload = Some(response.text().await?);
        }
        Ok(failure)
    }

    /// Returns the failures of a source whose payload contains the text `about`, or whose site or onboarding has this
    /// id.
    pub async fn failures_about(&self, source: &str, about: &str) -> Result<Vec<Failure>> {
        let mut failures = self.failures_of(source).await?;
        failures.retain(|failure| {
            let in_payload =
                failure.payload.as_ref().is_some_and(|payload| payload.contains(about));
            let ids = [&failure.site_id, &failure.correlation_id];
            in_payload || ids.into_iter().flatten().any(|id| id == about)
        });
        Ok(failures)
    }

    /// Waits until a failure about something is recorded. Fails if there is more than one.
    pub async fn failure_about(&self, source: &str, about: &str) -> Result<Failure> {
        self.wait_for_failures(source, about, 1).await?.pop().context("no failure was recorded")
    }

    /// Waits until `count` failures about something are recorded. Fails if there are more.
    pub async fn wait_for_failures(
        &self,
        source: &str,
        about: &str,
        count: usize,
    ) -> Result<Vec<Failure>> {
        let what = format!("{count} failures of {source} about {about}");
        let failures = until(&what, FAILURE_TIMEOUT, async || {
            let failures = self.failures_about(source, about).await?;
            Ok(if failures.len() >= count {
                Poll::Ready(failures)
            } else {
                Poll::Pending(failures.len())
            })
        })
        .await?;
        ensure!(failures.len() == count, "expected {what}, got {failures:?}");
        Ok(failures)
    }

    /// Returns the current state of a failure.
    pub async fn failure(&self, id: &str) -> Result<Failure> {
        let row = self
            .dynamodb()
            .get_item()
            .table_name(self.named(names::FAILURES))
            .key("id", AttributeValue::S(id.to_owned()))
            .consistent_read(true)
            .send()
            .await?;
        let row = row.item.with_context(|| format!("there is no failure {id}"))?;
        self.with_payload(serde_dynamo::from_item(row)?).await
    }

    /// Waits until the failure was recorded at least `attempts` times. Returns it.
    pub async fn wait_for_attempts(&self, id: &str, attempts: u32) -> Result<Failure> {
        until(&format!("failure {id} to have {attempts} attempts"), TIMEOUT, async || {
            let failure = self.failure(id).await?;
            Ok(if failure.attempts >= attempts {
                Poll::Ready(failure)
            } else {
                Poll::Pending(failure)
            })
        })
        .await
    }

    /// Runs `fieldctl failures` and returns the JSON that it printed. Exit code 1 is accepted: a replay may fail
    /// again.
    pub fn fieldctl_failures(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let output = self.fieldctl(&[&["--json", "failures"], arguments].concat())?;
        ensure!(matches!(output.code, 0 | 1) && output.stderr.is_empty(), "{output:?}");
        output.documents()
    }

    /// Replays failures with `fieldctl failures replay --yes`. Returns the outcomes by id.
    pub fn replay(&self, filter: &[&str]) -> Result<BTreeMap<String, String>> {
        let replayed = self.fieldctl_failures(&[&["replay", "--yes"], filter].concat())?;
        let text = |value: &Value| anyhow::Ok(value.as_str().context("no string")?.to_owned());
        replayed.iter().map(|one| Ok((text(&one["id"])?, text(&one["outcome"])?))).collect()
    }

    /// Replays a failure and checks that the replay succeeds: the status is REPLAYED, with one replay more.
    pub async fn replay_successfully(&self, failure: &Failure) -> Result<()> {
        let outcomes = self.replay(&[&failure.id])?;
        let expected = BTreeMap::from([(failure.id.clone(), "REPLAYED".to_owned())]);
        ensure!(outcomes == expected, "replay of {failure}: {outcomes:?}");
        let after = self.failure(&failure.id).await?;
        after.assert_state("REPLAYED", failure.attempts, failure.replays + 1)
    }
}
