//! Successful responses of the services other than `DynamoDB`.

use contracts::names::{CONSUMERS, Consumer};
use hyper::body::Bytes;
use serde_json::{Value, json};
use testkit::sample::event_source_mapping;

use crate::{function::ENVIRONMENT, server::HttpRequest};

const EXECUTION: &str =
    "arn:aws:states:eu-central-1:123456789012:execution:site-teardown:2f1c6b64-sample";
/// The input of the execution that sends the commands of the sample events. Its fields equal those of the commands.
const COMMAND: &str = r#"{
    "onboardingId": "6c8a7e8a-af7c-5f5a-855c-0cc480251501",
    "siteId": "36525261-64d3-5f8c-93d1-fb195ff9fe73",
    "causationId": "3fbeaac9-9e49-5723-bc13-e54e98346d74",
    "name": "Alamosa, Colorado", "plan": "standard", "paymentMethod": "pm_card_visa"
}"#;
const NOW: f64 = 1_795_251_600.0;

/// Returns status and body, or `None` if no response is defined for this call.
pub fn response(call: &str, request: &HttpRequest) -> Option<(u16, Bytes)> {
    let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let count = |list: &str| body[list].as_array().map_or(0, Vec::len);
    let response = match call {
        "sqs SendMessage" => json!({
            "MessageId": "5fea7756-0ea4-451a-a703-a558b933e274",
            // Not the real hash. The SDK does not check it.
            "MD5OfMessageBody": "fafb00f5732ab283681e124bf8747ed1",
        }),
        "events PutEvents" => json!({
            "FailedEntryCount": 0,
            "Entries": vec![json!({ "EventId": "11710aed-b79e-4468-a20b-bb3c0c3b4860" }); count("Entries")],
        }),
        "kinesis PutRecords" => json!({
            "FailedRecordCount": 0,
            "Records": vec![
                json!({
                    "SequenceNumber": "49590338271490256608559692538361571095921575989136588898",
                    "ShardId": "shardId-000000000000",
                });
                count("Records")
            ],
        }),
        "states StartExecution" => json!({ "executionArn": EXECUTION, "startDate": NOW }),
        "states SendTaskHeartbeat" | "states SendTaskSuccess" => json!({}),
        // The execution that sends the commands of the sample events.
        "states DescribeExecution" => json!({
            "executionArn": body["executionArn"],
            "stateMachineArn": "arn:aws:states:eu-central-1:123456789012:stateMachine:sample",
            "status": "RUNNING",
            "startDate": NOW,
            "input": COMMAND,
        }),
        // No running executions, the usual case for check-sagas.
        "states ListExecutions" => json!({ "executions": [] }),
        // The onboarding was stopped in its first state.
        "states GetExecutionHistory" => json!({
            "events": [
                {
                    "id": 2,
                    "previousEventId": 0,
                    "timestamp": NOW,
                    "type": "TaskStateEntered",
                    "stateEnteredEventDetails": { "name": "ReserveKits" },
                },
            ],
        }),
        // Long enough to sign tokens, and in the format that Stripe's client accepts as a key.
        "secretsmanager GetSecretValue" => json!({
            "ARN": body["SecretId"],
            "Name": "bench",
            "SecretString": "sk_test_0123456789abcdefghijklmnopqrstuv",
        }),
        // All consumers run, the usual case for check-consumers.
        "lambda ListEventSourceMappings" => {
            let mapping = |it: &Consumer<'_>| event_source_mapping(ENVIRONMENT, *it, "Enabled");
            json!({ "EventSourceMappings": CONSUMERS.iter().map(mapping).collect::<Vec<_>>() })
        }
        "s3 PUT" => return Some((200, Bytes::new())),
        _ => testkit::stripe::success_body(call.strip_prefix("stripe ")?),
    };
    Some((200, response.to_string().into()))
}
