//! The logs of the functions.

use anyhow::{Context, Result, bail, ensure};
use contracts::Timestamp;
use serde_json::{Value, json};

use crate::Stack;

/// The lines that one function logged.
#[derive(Debug)]
pub struct FunctionLog {
    /// The function's name, without the environment.
    pub function: String,
    /// The lines as they were written.
    pub lines: Vec<String>,
}

impl FunctionLog {
    /// Returns the lines that are JSON. On the emulator, Lambda's own lines are not.
    pub fn entries(&self) -> impl Iterator<Item = Value> {
        self.lines.iter().filter_map(|line| serde_json::from_str(line).ok())
    }
}

impl Stack {
    /// Returns the logs of all functions since a time.
    pub async fn function_logs(&self, since: Timestamp) -> Result<Vec<FunctionLog>> {
        let prefix = format!("/aws/lambda/{}/", self.name());
        let request = json!({ "logGroupNamePrefix": prefix });
        let groups = self.log_pages("DescribeLogGroups", request, "logGroups").await?;
        let mut logs = Vec::new();
        for group in groups {
            let name = group["logGroupName"].as_str().context("a group without a name")?;
            let function = name.strip_prefix(&prefix).context("a log group of another stack")?;
            let request = json!({ "logGroupName": name, "startTime": since.millis() });
            let events = self.log_pages("FilterLogEvents", request, "events").await?;
            let lines = events.iter().filter_map(|event| event["message"].as_str());
            let lines = lines.map(str::to_owned).collect();
            logs.push(FunctionLog { function: function.to_owned(), lines });
        }
        Ok(logs)
    }

    /// Calls an operation of CloudWatch Logs for each page. Returns the items of all pages.
    async fn log_pages(
        &self,
        operation: &str,
        mut request: Value,
        items: &str,
    ) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        loop {
            let mut page = self.logs_call(operation, &request).await?;
            match page[items].take() {
                Value::Array(items) => all.extend(items),
                other => bail!("{operation} returned no {items}, but {other}"),
            }
            match page["nextToken"].take() {
                Value::Null => return Ok(all),
                token => request["nextToken"] = token,
            }
        }
    }

    /// Calls CloudWatch Logs without an SDK and without a valid signature. The emulator does not check signatures of
    /// its own account.
    async fn logs_call(&self, operation: &str, request: &Value) -> Result<Value> {
        let authorization = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/logs/aws4_request, \
                             SignedHeaders=host, Signature=0";
        let call = self
            .http
            .post(self.endpoint().clone())
            .header("x-amz-target", format!("Logs_20140328.{operation}"))
            .header("content-type", "application/x-amz-json-1.1")
            .header("authorization", authorization)
            .body(request.to_string());
        let response = call.send().await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{operation} returned {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}
