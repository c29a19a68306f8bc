//! The stack's event source mappings, and the reports of check-consumers.

use std::panic::{AssertUnwindSafe, resume_unwind};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::FutureExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{Stack, api::sign};

/// A run of check-consumers.
#[derive(Clone, Debug)]
pub struct ConsumerCheck {
    /// The function's response.
    pub response: Value,
    /// The JSON lines of its log, including metrics.
    pub log: Vec<Value>,
}

impl ConsumerCheck {
    /// Returns the value of the metric that the alarm watches.
    pub fn metric(&self) -> Result<&Value> {
        let mut values = self.log.iter().map(|line| &line["ConsumersNotRunning"]);
        values
            .find(|value| !value.is_null())
            .with_context(|| format!("the log has no metric ConsumersNotRunning: {self:?}"))
    }

    /// Returns the log line about a consumer, such as `store-readings <- stream readings`.
    #[must_use]
    pub fn line(&self, consumer: &str) -> Option<&Value> {
        self.log.iter().find(|line| line["mapping"] == consumer)
    }
}

impl Stack {
    /// Invokes a function's alias `live`. Returns the response and the tail of the log.
    pub async fn invoke(&self, function: &str, event: &Value) -> Result<(Value, String)> {
        let path = format!("/2015-03-31/functions/{}:live/invocations", self.named(function));
        let response = self.lambda(Method::POST, &path, event.to_string()).await?;
        let status = response.status();
        let failed = response.headers().contains_key("x-amz-function-error");
        let log = response.headers().get("x-amz-log-result").context("the response has no log")?;
        let log = String::from_utf8(BASE64_STANDARD.decode(log)?)?;
        let text = response.text().await?;
        ensure!(status.is_success() && !failed, "{function} returned {status}: {text}; log: {log}");
        Ok((serde_json::from_str(&text)?, log))
    }

    /// Runs check-consumers once, as its schedule does.
    pub async fn check_consumers(&self) -> Result<ConsumerCheck> {
        let event =
            json!({ "source": "aws.events", "detail-type": "Scheduled Event", "detail": {} });
        let (response, log) = self.invoke("check-consumers", &event).await?;
        let log = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(ConsumerCheck { response, log })
    }

    /// Runs `work` while an event source mapping is disabled. `mapping` is its logical id. The mapping is enabled
    /// again even if `work` fails or panics.
    pub async fn with_mapping_disabled<T>(
        &self,
        mapping: &str,
        work: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        self.enable_mapping(mapping, false).await?;
        let outcome = AssertUnwindSafe(work()).catch_unwind().await;
        self.enable_mapping(mapping, true).await?;
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    async fn enable_mapping(&self, mapping: &str, enabled: bool) -> Result<()> {
        let uuid = self.physical_id(mapping).await?;
        let path = format!("/2015-03-31/event-source-mappings/{uuid}");
        let body = json!({ "Enabled": enabled }).to_string();
        let response = self.lambda(Method::PUT, &path, body).await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(
            status.is_success(),
            "{mapping} was not changed to enabled = {enabled}: {status}: {text}"
        );
        Ok(())
    }

    async fn lambda(&self, method: Method, path: &str, body: String) -> Result<reqwest::Response> {
        let url = self.endpoint().join(path)?;
        let request = self.http.request(method, url).header("x-amz-log-type", "Tail");
        let mut request = request.body(body.clone()).build()?;
        sign(&mut request, "lambda", body.as_bytes())?;
        Ok(self.http.execute(request).await?)
    }
}
