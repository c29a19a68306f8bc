//! Proves that a command was sent by an execution that waits for its result.
//!
//! A message on a command queue proves nothing by itself: anyone who may send to the queue could
//! cancel any site's subscription. Before a command has any effect, this module therefore makes two requests to Step
//! Functions:
//!
//! 1. `SendTaskHeartbeat`: does a task of this state machine wait for this task token? The states have
//!    no `HeartbeatSeconds`, so a heartbeat changes nothing: it starts no clock, does not extend
//!    `TimeoutSeconds` and writes nothing to the history.
//! 2. `DescribeExecution`: is the execution that the message names running, and would it send exactly this
//!    command? Each field of the command must have the value of the same field of the execution's input.

use aws_sdk_sfn::error::ProvideErrorMetadata;
use fault::{ErrorKind, Fault};
use machines::{MachineError, StateMachine};
use serde_json::Value;

/// The state of the execution that sent a genuine command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderState {
    /// The execution waits for the result.
    Waiting,
    /// The execution sent the command, but its task has ended.
    TaskEnded,
}

/// Why a command must not run.
#[derive(Debug, PartialEq, Eq)]
pub enum SenderError {
    /// Step Functions can't confirm the sender now. A retry may succeed.
    Unavailable(String),
    /// The message is forged, or Step Functions denies the request. The message stays in the queue and ends in
    /// the dead-letter queue.
    Refused(String),
}

impl From<MachineError> for SenderError {
    fn from(error: MachineError) -> Self {
        match error.kind() {
            ErrorKind::Transient => Self::Unavailable(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// Checks who sent a command. `execution` is the ARN that the message names.
pub async fn check_sender(
    machine: &StateMachine,
    token: &str,
    execution: Option<&str>,
    command: &Value,
) -> Result<SenderState, SenderError> {
    let refused = |reason: String| Err(SenderError::Refused(reason));
    if execution.is_some_and(|execution| !machine.owns(execution)) {
        return refused(
            "the message does not name an execution of this command's state machine".to_owned(),
        );
    }
    let waiting = is_waiting(machine, token).await?;
    let Some(execution) = execution else {
        // The message comes from a state machine of the previous version, which did not send its execution's ARN.
        return if waiting {
            Ok(SenderState::Waiting)
        } else {
            refused(
                "no task waits for the token, and the message does not name an execution"
                    .to_owned(),
            )
        };
    };
    let Some(described) = machine.describe(execution).await? else {
        let reason = format!("there is no execution {execution}");
        // `DescribeExecution` is eventually consistent. If the task waits, its execution will become visible.
        return Err(if waiting {
            SenderError::Unavailable(reason)
        } else {
            SenderError::Refused(reason)
        });
    };
    let input: Value = serde_json::from_str(&described.input).unwrap_or_default();
    if !is_taken_from(command, &input) {
        return refused(format!("the command does not match the input of {execution}"));
    }
    match (waiting, described.running) {
        (true, true) => Ok(SenderState::Waiting),
        (false, _) => Ok(SenderState::TaskEnded),
        (true, false) => {
            refused(format!("the task token does not belong to {execution}, which has ended"))
        }
    }
}

/// Returns whether a task of the state machine waits for the token.
async fn is_waiting(machine: &StateMachine, token: &str) -> Result<bool, SenderError> {
    let Err(error) = machine.client.send_task_heartbeat().task_token(token).send().await else {
        return Ok(true);
    };
    match error.as_service_error().and_then(ProvideErrorMetadata::code) {
        Some("TaskTimedOut" | "TaskDoesNotExist") => Ok(false),
        Some("InvalidToken") => {
            Err(SenderError::Refused("Step Functions did not create the task token".to_owned()))
        }
        _ => Err(MachineError::from(error).into()),
    }
}

/// Returns whether each field of the command equals the same field of the input. A missing field equals null.
fn is_taken_from(command: &Value, input: &Value) -> bool {
    let fields = command.as_object();
    fields.is_some_and(|fields| {
        fields.iter().all(|(name, value)| input.get(name).unwrap_or(&Value::Null) == value)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_of_a_command_comes_from_the_input() {
        let input =
            json!({ "onboardingId": "o", "siteId": "s", "plan": "standard", "sensors": [] });
        for (command, expected) in [
            (json!({ "onboardingId": "o", "siteId": "s", "causationId": null }), true),
            (json!({ "onboardingId": "o", "siteId": "t" }), false),
            (json!({ "onboardingId": "p", "siteId": "s" }), false),
            (json!({ "onboardingId": "o", "siteId": "s", "plan": "community" }), false),
            (json!({ "onboardingId": "o", "siteId": "s", "causationId": "c" }), false),
            (json!("o"), false),
        ] {
            assert_eq!(is_taken_from(&command, &input), expected, "{command}");
        }
        assert!(!is_taken_from(&json!({ "siteId": "s" }), &Value::Null));
    }
}
