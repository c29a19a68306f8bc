//! The proof that a command was sent by an execution that waits for its answer.
//!
//! A message on a command queue is no proof by itself: everybody who may send to the queue could
//! cancel any site's subscription. So before a command has any effect, Step Functions is asked twice:
//!
//! 1. `SendTaskHeartbeat`: does a task of this state machine wait for this task token? The states have
//!    no `HeartbeatSeconds`, so a heartbeat changes nothing: it starts no clock, does not extend
//!    `TimeoutSeconds` and writes nothing to the history.
//! 2. `DescribeExecution`: does the execution that the message names run, and would it send this very
//!    command? Each field of the command must have the value that the execution's input has.

use aws_sdk_sfn::error::ProvideErrorMetadata;
use fault::{ErrorKind, Fault};
use machines::{Machine, MachineError};
use serde_json::Value;

/// What Step Functions says about a genuine command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The execution waits for the answer.
    Waits,
    /// The execution sent the command, but has moved on: its task has ended.
    MovedOn,
}

/// Why a command may have no effect.
#[derive(Debug, PartialEq, Eq)]
pub enum Unproven {
    /// Step Functions can't tell now; it may later.
    Yet(String),
    /// The message is forged, or Step Functions refuses to tell. It stays in the queue, and so ends in
    /// the dead-letter queue.
    Refused(String),
}

impl From<MachineError> for Unproven {
    fn from(error: MachineError) -> Self {
        match error.kind() {
            ErrorKind::Transient => Self::Yet(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// Checks who sent a command. `execution` is the ARN that the message names.
pub async fn sender(
    machine: &Machine,
    token: &str,
    execution: Option<&str>,
    command: &Value,
) -> Result<Sender, Unproven> {
    let refused = |reason: String| Err(Unproven::Refused(reason));
    if execution.is_some_and(|execution| !machine.owns(execution)) {
        return refused(
            "the message names no execution of this command's state machine".to_owned(),
        );
    }
    let waits = waits(machine, token).await?;
    let Some(execution) = execution else {
        // Sent by a state machine of the version before, which did not name its execution.
        return if waits {
            Ok(Sender::Waits)
        } else {
            refused("no task waits for the token, and the message names no execution".to_owned())
        };
    };
    let Some(described) = machine.describe(execution).await? else {
        let reason = format!("there is no execution {execution}");
        // Descriptions are eventually consistent: of a task that waits, the execution shows up.
        return Err(if waits { Unproven::Yet(reason) } else { Unproven::Refused(reason) });
    };
    let input: Value = serde_json::from_str(&described.input).unwrap_or_default();
    if !is_taken_from(command, &input) {
        return refused(format!("the command does not match the input of {execution}"));
    }
    match (waits, described.running) {
        (true, true) => Ok(Sender::Waits),
        (false, _) => Ok(Sender::MovedOn),
        (true, false) => refused(format!("the task token is not of {execution}, which has ended")),
    }
}

/// Whether a task of the state machine waits for that token.
async fn waits(machine: &Machine, token: &str) -> Result<bool, Unproven> {
    let Err(error) = machine.client.send_task_heartbeat().task_token(token).send().await else {
        return Ok(true);
    };
    match error.as_service_error().and_then(ProvideErrorMetadata::code) {
        Some("TaskTimedOut" | "TaskDoesNotExist") => Ok(false),
        Some("InvalidToken") => {
            Err(Unproven::Refused("the task token was not made by Step Functions".to_owned()))
        }
        _ => Err(MachineError::from(error).into()),
    }
}

/// Whether each field of the command has the value of the input's field; absent is null.
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
        for (command, taken) in [
            (json!({ "onboardingId": "o", "siteId": "s", "causationId": null }), true),
            (json!({ "onboardingId": "o", "siteId": "t" }), false),
            (json!({ "onboardingId": "p", "siteId": "s" }), false),
            (json!({ "onboardingId": "o", "siteId": "s", "plan": "community" }), false),
            (json!({ "onboardingId": "o", "siteId": "s", "causationId": "c" }), false),
            (json!("o"), false),
        ] {
            assert_eq!(is_taken_from(&command, &input), taken, "{command}");
        }
        assert!(!is_taken_from(&json!({ "siteId": "s" }), &Value::Null));
    }
}
