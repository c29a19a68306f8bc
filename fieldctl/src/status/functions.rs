//! Checks the functions: which version is live, and how often it fails.

use contracts::names;
use serde::Serialize;

use super::{Check, copy_error, metrics::Metrics, resources::Resources};
use crate::{
    error::{CliError, aws},
    stack::Stack,
};

/// From this number of errors, a function is a problem.
const MIN_ERRORS: f64 = 3.0;
/// Up to this share of failed calls, the errors of a function are not a problem.
const MAX_ERROR_RATE: f64 = 0.01;

/// A function.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Function {
    /// The function's logical id in the template, without `Function`.
    pub name: String,
    /// The function's name in AWS.
    pub function: String,
    /// The version to which the alias `live` points.
    pub version: String,
    /// Another version that gets a share of the calls, and the share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<(String, f64)>,
    /// When the live version was published, in Lambda's format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// The number of calls in the last 15 minutes. `None` if none were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocations: Option<f64>,
    /// The number of failed calls in the last 15 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<f64>,
    /// The number of failed items in the batches of the live version in the last 15 minutes. A call that returns them
    /// in its partial batch response is not an error for Lambda.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_items: Option<f64>,
}

impl Function {
    /// Returns the function's logical id in the template.
    #[must_use]
    pub fn logical_id(&self) -> String {
        format!("{}Function", self.name)
    }

    /// Returns the share of the calls that failed.
    #[must_use]
    pub fn error_rate(&self) -> Option<f64> {
        let invocations = self.invocations.filter(|calls| *calls > 0.0)?;
        Some(self.errors.unwrap_or_default() / invocations)
    }

    fn fails(&self) -> bool {
        self.failed_items.is_some_and(|items| items >= MIN_ERRORS)
            || self.errors.is_some_and(|errors| errors >= MIN_ERRORS)
                && self.error_rate().is_none_or(|rate| rate > MAX_ERROR_RATE)
    }
}

/// Adds the measured values to the functions.
pub fn measured(functions: Vec<Function>, metrics: &Metrics) -> Vec<Function> {
    let measure = |it: Function| {
        let [invocations, errors, failed_items] = metrics.calls(&it.logical_id());
        Function { invocations, errors, failed_items, ..it }
    };
    functions.into_iter().map(measure).collect()
}

/// Returns every function of the stack, with the version to which its alias `live` points.
pub async fn live(stack: &Stack, resources: &Resources) -> Result<Vec<Function>, CliError> {
    let client = aws_sdk_lambda::Client::new(stack.config());
    let read = async |name, function| get(&client, name, function).await;
    resources.read_each("AWS::Lambda::Function", read).await
}

async fn get(
    client: &aws_sdk_lambda::Client,
    name: String,
    function: String,
) -> Result<Function, CliError> {
    let alias = client.get_alias().function_name(&function).name(names::LIVE).send().await;
    let alias = alias.map_err(aws(&format!("the live version of {name} can't be read")))?;
    let version = alias.function_version().unwrap_or("?").to_owned();
    let config = client.get_function_configuration().function_name(&function).qualifier(&version);
    let config = config.send().await;
    let config = config.map_err(aws(&format!("version {version} of {name} can't be read")))?;
    let weights = alias.routing_config().and_then(|it| it.additional_version_weights());
    Ok(Function {
        name: name.strip_suffix("Function").unwrap_or(&name).to_owned(),
        function,
        version,
        canary: weights
            .and_then(|it| it.iter().next())
            .map(|(version, share)| (version.clone(), *share)),
        published: config.last_modified().map(str::to_owned),
        invocations: None,
        errors: None,
        failed_items: None,
    })
}

/// Checks that no function fails often.
pub fn check(
    functions: Result<&[Function], &CliError>,
    measured: Result<(), CliError>,
) -> Result<Check, CliError> {
    let functions = functions.map_err(copy_error)?;
    measured?;
    if functions.is_empty() {
        return Err(CliError::not_found("the stack has no functions"));
    }
    let failing: Vec<_> = functions.iter().filter(|it| it.fails()).collect();
    let (calls, errors) = functions.iter().fold((0.0, 0.0), |(calls, errors), it| {
        (calls + it.invocations.unwrap_or_default(), errors + it.errors.unwrap_or_default())
    });
    let Some(first) = failing.first() else {
        let summary = format!(
            "{} functions, {errors} errors in {calls} calls in the last 15 minutes",
            functions.len()
        );
        return Ok(Check::good("functions", summary));
    };
    let details = failing.iter().map(|it| {
        let rate =
            it.error_rate().map_or(String::new(), |rate| format!(" ({:.0} %)", rate * 100.0));
        let (errors, calls) = (it.errors.unwrap_or_default(), it.invocations.unwrap_or_default());
        let items = it.failed_items.filter(|items| *items > 0.0);
        let items = items.map_or(String::new(), |items| format!(", and {items} batch items"));
        let published = it.published.as_deref().unwrap_or("at an unknown time");
        format!(
            "{}: {errors} of {calls} calls failed{rate}{items}; version {} is live, published {published}",
            it.name, it.version
        )
    });
    let next = format!(
        "fieldctl logs --function {} --errors; roll back: docs/operations.md#rolling-back",
        first.name
    );
    Ok(Check::problem(
        "functions",
        format!("{} of {} functions fail", failing.len(), functions.len()),
        next,
    )
    .with(details.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Health;

    #[test]
    fn a_function_that_fails_often_is_a_problem() {
        let function = |invocations, errors| Function {
            name: "StoreReadings".to_owned(),
            function: "f".to_owned(),
            version: "7".to_owned(),
            canary: None,
            published: None,
            invocations,
            errors,
            failed_items: None,
        };
        let health = |it| check(Ok(&[it]), Ok(())).unwrap().health;
        assert_eq!(health(function(None, None)), Health::Good, "not called");
        assert_eq!(health(function(Some(10.0), Some(2.0))), Health::Good);
        assert_eq!(health(function(Some(300.0), Some(3.0))), Health::Good, "1 %");
        assert_eq!(health(function(Some(299.0), Some(3.0))), Health::Problem);
        assert_eq!(health(function(None, Some(3.0))), Health::Problem);
        let failing = Function { failed_items: Some(3.0), ..function(Some(10.0), None) };
        assert_eq!(health(failing), Health::Problem, "no call failed, but batch items did");
        let unread = Err(CliError::not_found("no metrics"));
        assert!(check(Ok(&[function(None, None)]), unread).is_err(), "unknown number of errors");
    }
}
