//! State transitions. Each entered state counts as one, and so does each retry.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Returns the states that an execution enters, in order. The state `failing` fails permanently, if it is not `None`.
pub fn path<'a>(machine: &'a Value, failing: Option<&str>) -> Result<Vec<&'a str>> {
    let mut entered = Vec::new();
    let mut next = machine["StartAt"].as_str();
    while let Some(name) = next {
        if entered.len() > 100 {
            bail!("the state machine does not end: {entered:?}");
        }
        entered.push(name);
        let state = &machine["States"][name];
        next = match state["Type"].as_str() {
            Some("Fail" | "Succeed") => None,
            Some("Choice") => state["Default"].as_str(),
            Some(_) if failing == Some(name) => {
                let caught = state["Catch"][0]["Next"].as_str();
                Some(caught.with_context(|| format!("{name} has no Catch"))?)
            }
            Some(_) => state["Next"].as_str(),
            None => bail!("there is no state {name}"),
        };
    }
    Ok(entered)
}

/// Returns the number of transitions of an onboarding, including those of its teardown.
pub fn transitions(saga: &Value, teardown: &Value, failing: Option<&str>) -> Result<u32> {
    let path = path(saga, failing)?;
    let mut count = path.len();
    for name in path {
        let resource = saga["States"][name]["Resource"].as_str().unwrap_or_default();
        if resource.contains("states:startExecution") {
            count += self::path(teardown, None)?.len();
        }
    }
    Ok(u32::try_from(count)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_follows_the_catch_and_counts_the_other_machine() -> Result<()> {
        let saga = json!({ "StartAt": "A", "States": {
            "A": { "Type": "Task", "Next": "B", "Catch": [{ "Next": "Undo" }] },
            "B": { "Type": "Task", "End": true, "Catch": [{ "Next": "Undo" }] },
            "Undo": { "Type": "Task", "Resource": "arn:aws:states:::states:startExecution.sync:2",
                      "Next": "Failed" },
            "Failed": { "Type": "Fail" },
        } });
        let teardown = json!({ "StartAt": "X", "States": {
            "X": { "Type": "Pass", "Next": "Y" },
            "Y": { "Type": "Choice", "Choices": [], "Default": "Z" },
            "Z": { "Type": "Succeed" },
        } });
        assert_eq!(path(&saga, None)?, ["A", "B"]);
        assert_eq!(path(&saga, Some("B"))?, ["A", "B", "Undo", "Failed"]);
        assert_eq!(transitions(&saga, &teardown, None)?, 2);
        assert_eq!(transitions(&saga, &teardown, Some("A"))?, 3 + 3);
        assert_eq!(transitions(&saga, &teardown, Some("B"))?, 4 + 3);
        Ok(())
    }

    #[test]
    fn an_endless_machine_is_an_error() {
        let endless = json!({ "StartAt": "A", "States": { "A": { "Type": "Pass", "Next": "A" } } });
        assert!(path(&endless, None).is_err());
    }
}
