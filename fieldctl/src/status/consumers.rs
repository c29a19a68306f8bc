//! Checks the event source mappings: whether Lambda reads each stream and queue.

use aws_sdk_lambda::operation::get_event_source_mapping::GetEventSourceMappingError;
use serde::Serialize;

use super::{Check, copy_error, resources::Resources};
use crate::{
    consumers::runs,
    error::{CliError, aws},
    stack::Stack,
};

/// An event source mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    /// The mapping's logical id in the template.
    pub name: String,
    /// The mapping's UUID.
    pub uuid: String,
    /// The function's name without the environment.
    pub function: String,
    /// The name of the stream, table or queue without the environment.
    pub source: String,
    /// The state: `Enabled`, `Disabled`, `Enabling`, ... It is `Missing` if there is no such mapping.
    pub state: String,
    /// Lambda's report on its last read, for example `OK` or `PROBLEM: Function call failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
}

impl Consumer {
    /// Returns whether Lambda reads the source, or is about to.
    #[must_use]
    pub fn runs(&self) -> bool {
        runs(&self.state)
    }
}

/// Returns every mapping of the stack.
pub async fn consumers(stack: &Stack, resources: &Resources) -> Result<Vec<Consumer>, CliError> {
    let client = aws_sdk_lambda::Client::new(stack.config());
    let read = async |name, uuid| get(stack, &client, name, uuid).await;
    resources.read_each("AWS::Lambda::EventSourceMapping", read).await
}

async fn get(
    stack: &Stack,
    client: &aws_sdk_lambda::Client,
    name: String,
    uuid: String,
) -> Result<Consumer, CliError> {
    let mapping = match client.get_event_source_mapping().uuid(&uuid).send().await {
        Ok(mapping) => mapping,
        Err(error)
            if error
                .as_service_error()
                .is_some_and(GetEventSourceMappingError::is_resource_not_found_exception) =>
        {
            let (function, source, state) = ("?".to_owned(), "?".to_owned(), "Missing".to_owned());
            return Ok(Consumer { name, uuid, function, source, state, last_result: None });
        }
        Err(error) => return Err(aws("an event source mapping can't be read")(error)),
    };
    Ok(Consumer {
        name,
        uuid,
        function: stack.short(function_name(mapping.function_arn().unwrap_or("?"))).to_owned(),
        source: stack.short(source_name(mapping.event_source_arn().unwrap_or("?"))).to_owned(),
        state: mapping.state().unwrap_or("?").to_owned(),
        last_result: mapping.last_processing_result().map(str::to_owned),
    })
}

/// Returns the function's name in an ARN, which may end with an alias.
fn function_name(arn: &str) -> &str {
    arn.split(":function:").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or(arn)
}

/// Returns the name of the stream, table or queue in an ARN.
fn source_name(arn: &str) -> &str {
    match arn.split_once(":table/") {
        Some((_, rest)) => rest.split('/').next().unwrap_or(rest),
        None => arn.rsplit([':', '/']).next().unwrap_or(arn),
    }
}

/// Checks that all mappings run.
pub fn check(consumers: Result<&[Consumer], &CliError>) -> Result<Check, CliError> {
    let consumers = consumers.map_err(copy_error)?;
    if consumers.is_empty() {
        return Err(CliError::not_found("the stack has no event source mappings"));
    }
    let stopped: Vec<_> = consumers.iter().filter(|it| !it.runs()).collect();
    let failing: Vec<_> = consumers
        .iter()
        .filter(|it| {
            it.runs() && it.last_result.as_deref().is_some_and(|it| it.starts_with("PROBLEM"))
        })
        .collect();
    let mut details: Vec<_> = stopped
        .iter()
        .map(|it| {
            format!("{} does not read {}: its mapping is {}", it.function, it.source, it.state)
        })
        .collect();
    details.extend(failing.iter().map(|it| {
        let result = it.last_result.as_deref().unwrap_or_default();
        format!("{} reads {}: {result}", it.function, it.source)
    }));
    Ok(match (stopped.first(), failing.first()) {
        (None, None) => Check::good("consumers", format!("all {} run", consumers.len())),
        (Some(first), _) => {
            let next = match first.state.as_str() {
                "Missing" => {
                    "a mapping was deleted: docs/operations.md#consumersnotrunning".to_owned()
                }
                _ => format!(
                    "aws lambda update-event-source-mapping --uuid {} --enabled",
                    first.uuid
                ),
            };
            let summary = format!("{} of {} do not run", stopped.len(), consumers.len());
            Check::problem("consumers", summary, next).with(details)
        }
        (None, Some(first)) => {
            let summary = format!("{} of {} have a problem", failing.len(), consumers.len());
            Check::problem(
                "consumers",
                summary,
                format!("fieldctl logs --function {}", first.function),
            )
            .with(details)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Health;

    fn consumer(state: &str, last_result: Option<&str>) -> Consumer {
        Consumer {
            name: "StoreReadingsFunctionReadings".to_owned(),
            uuid: "u-1".to_owned(),
            function: "store-readings".to_owned(),
            source: "readings".to_owned(),
            state: state.to_owned(),
            last_result: last_result.map(str::to_owned),
        }
    }

    #[test]
    fn a_mapping_that_does_not_run_is_a_problem_with_the_command_that_enables_it() {
        let running = consumer("Enabled", Some("OK"));
        let check = |it: &Consumer| check(Ok(&[running.clone(), it.clone()])).unwrap();
        assert_eq!(check(&running).health, Health::Good);
        for state in ["Disabled", "Disabling", "Deleting", "?"] {
            let found = check(&consumer(state, None));
            assert_eq!(found.health, Health::Problem, "{state}");
            assert_eq!(
                found.next.as_deref(),
                Some("aws lambda update-event-source-mapping --uuid u-1 --enabled")
            );
        }
        assert!(check(&consumer("Missing", None)).next.unwrap().contains("deleted"));
        let failing = check(&consumer("Enabled", Some("PROBLEM: Function call failed")));
        assert_eq!(failing.health, Health::Problem);
    }

    #[test]
    fn no_mappings_at_all_is_not_good() {
        assert!(super::check(Ok(&[])).is_err());
    }

    #[test]
    fn arns_are_shown_by_their_names() {
        let function = "arn:aws:lambda:eu-central-1:1:function:f-store-readings-X:live";
        assert_eq!(function_name(function), "f-store-readings-X");
        for (arn, name) in [
            ("arn:aws:kinesis:us-east-1:1:stream/readings", "readings"),
            ("arn:aws:dynamodb:us-east-1:1:table/events/stream/2026-01-01T00:00:00.000", "events"),
            ("arn:aws:sqs:us-east-1:1:queue", "queue"),
        ] {
            assert_eq!(source_name(arn), name);
        }
    }
}
