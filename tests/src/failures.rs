//! What the stack gave up on: the rows of the failures table, and the operator's command on them.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::names;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Stack,
    api::sign,
    wait::{Look, PATIENCE, until},
};

/// A failed piece of work.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Its key.
    pub id: String,
    /// The function, or state machine, that failed.
    pub source: String,
    /// How, such as `QUARANTINED`.
    pub kind: String,
    /// What a replay sends, as text.
    pub payload: Option<String>,
    /// Where it was kept, if it is too long for the row.
    pub payload_file: Option<PayloadFile>,
    /// Why.
    pub error: FailureError,
    /// How often it was recorded.
    pub attempts: u32,
    /// `OPEN`, `REPLAYED` or `DISCARDED`.
    pub status: String,
    /// How often it was claimed for a replay.
    pub replays: u32,
    /// The onboarding that it belongs to.
    pub correlation_id: Option<String>,
    /// The site.
    pub site_id: Option<String>,
    /// ARN of the execution that failed.
    pub execution: Option<String>,
    /// RFC 3339.
    pub first_at: String,
    /// RFC 3339.
    pub last_at: String,
}

/// A file of S3.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PayloadFile {
    /// Its bucket.
    pub bucket: String,
    /// Its name there.
    pub key: String,
}

/// Why it failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FailureError {
    /// Stable.
    pub name: String,
    /// For a human.
    pub message: String,
}

impl Failure {
    /// What a replay sends, as JSON.
    pub fn payload(&self) -> Result<Value> {
        let text = self.payload.as_deref().with_context(|| format!("{self} has no payload"))?;
        serde_json::from_str(text).with_context(|| format!("the payload of {self}: {text}"))
    }

    /// Checks status, attempts and replays.
    pub fn stands(&self, status: &str, attempts: u32, replays: u32) -> Result<()> {
        let is = (self.status.as_str(), self.attempts, self.replays);
        ensure!(is == (status, attempts, replays), "{self}, not {:?}", (status, attempts, replays));
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
    /// All failures of a function, or state machine.
    pub async fn failures_of(&self, source: &str) -> Result<Vec<Failure>> {
        let mut failures = Vec::new();
        for row in self.rows_with(names::FAILURES, "source", source).await? {
            let text = row.to_string();
            let failure = serde_json::from_value(row);
            let failure = failure.with_context(|| format!("a failure's row: {text}"))?;
            failures.push(self.whole(failure).await?);
        }
        Ok(failures)
    }

    /// With its payload, where that is in a file.
    async fn whole(&self, mut failure: Failure) -> Result<Failure> {
        if let Some(PayloadFile { bucket, key }) = &failure.payload_file {
            let url = self.endpoint().join(&format!("/{bucket}/{key}"))?;
            let mut request = self.http.get(url).build()?;
            sign(&mut request, "s3", b"")?;
            let answer = self.http.execute(request).await?.error_for_status()?;
            failure.payload = Some(answer.text().await?);
        }
        Ok(failure)
    }

    /// Those of them that have this text in their payload, or belong to the site or onboarding with
    /// this id.
    pub async fn failures_about(&self, source: &str, about: &str) -> Result<Vec<Failure>> {
        let mut failures = self.failures_of(source).await?;
        failures.retain(|failure| {
            let told = failure.payload.as_ref().is_some_and(|payload| payload.contains(about));
            let ids = [&failure.site_id, &failure.correlation_id];
            told || ids.into_iter().flatten().any(|id| id == about)
        });
        Ok(failures)
    }

    /// Waits until a failure is recorded about something; there must be one.
    pub async fn failure_about(&self, source: &str, about: &str) -> Result<Failure> {
        self.failures_until(source, about, 1).await?.pop().context("a failure")
    }

    /// Waits until so many failures are recorded about something; there must be no more.
    pub async fn failures_until(
        &self,
        source: &str,
        about: &str,
        count: usize,
    ) -> Result<Vec<Failure>> {
        let what = format!("{count} failures of {source} about {about}");
        let failures = until(&what, PATIENCE, async || {
            let failures = self.failures_about(source, about).await?;
            Ok(if failures.len() >= count {
                Look::Found(failures)
            } else {
                Look::Saw(failures.len())
            })
        })
        .await?;
        ensure!(failures.len() == count, "not {what} but {failures:?}");
        Ok(failures)
    }

    /// The failure as it is now.
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
        self.whole(serde_dynamo::from_item(row)?).await
    }

    /// Waits until the failure was recorded so often; as it is then.
    pub async fn failure_again(&self, id: &str, attempts: u32) -> Result<Failure> {
        until(&format!("failure {id} to have {attempts} attempts"), PATIENCE, async || {
            let failure = self.failure(id).await?;
            Ok(if failure.attempts >= attempts { Look::Found(failure) } else { Look::Saw(failure) })
        })
        .await
    }

    /// Carries out a command of `fieldctl failures`, as an operator does; the JSON that it
    /// printed. Some of the work may have failed again.
    pub fn fieldctl_failures(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let printed = self.fieldctl(&[&["--json", "failures"], arguments].concat())?;
        ensure!(matches!(printed.code, 0 | 1) && printed.err.is_empty(), "{printed:?}");
        printed.documents()
    }

    /// Replays failures by `fieldctl failures replay --yes`; the outcome of each, by its id.
    pub fn replay(&self, which: &[&str]) -> Result<BTreeMap<String, String>> {
        let told = self.fieldctl_failures(&[&["replay", "--yes"], which].concat())?;
        let text = |value: &Value| anyhow::Ok(value.as_str().context("a text")?.to_owned());
        told.iter().map(|one| Ok((text(&one["id"])?, text(&one["outcome"])?))).collect()
    }

    /// Replays a failure, which must go well: it is REPLAYED, by one replay more.
    pub async fn replay_well(&self, failure: &Failure) -> Result<()> {
        let outcomes = self.replay(&[&failure.id])?;
        let must_be = BTreeMap::from([(failure.id.clone(), "REPLAYED".to_owned())]);
        ensure!(outcomes == must_be, "{failure} was replayed as {outcomes:?}");
        let after = self.failure(&failure.id).await?;
        after.stands("REPLAYED", failure.attempts, failure.replays + 1)
    }
}
