//! Rules: a deployed change takes effect. Each change creates a version, and traffic shifts to it safely.

use std::collections::BTreeSet;

use serde_json::Value;
use testkit::template::references;

use crate::subject::{Subject, Violations, function_of, members, queue_of, text, texts};

/// Lambda's maximum length of a version's description, in characters.
const MAX_DESCRIPTION: usize = 256;
/// Properties of a function's resource that are not part of its configuration, so versions do not depend on
/// them.
const NOT_CONFIGURATION: [&str; 6] = [
    "DeploymentPreference",
    "EventInvokeConfig",
    "Events",
    "FunctionName",
    "Policies",
    "VersionDescription",
];

/// Returns the parameters that a value refers to. The environment's name is excluded, because it never changes.
fn parameters(subject: &Subject, value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    references(value, &mut found);
    found.retain(|name| name != "Environment" && !subject.template.0["Parameters"][name].is_null());
    found
}

/// Returns the length of a parameter's longest value, or `None` if it is unlimited.
fn max_length(parameter: &Value) -> Option<usize> {
    let length = |value: &Value| value.as_str().map_or(value.to_string().len(), str::len);
    if let Some(allowed) = parameter["AllowedValues"].as_array() {
        return allowed.iter().map(length).max();
    }
    if parameter["Type"] == "Number" {
        return parameter.get("MaxValue").map(length);
    }
    parameter["MaxLength"].as_u64().and_then(|length| length.try_into().ok())
}

pub fn version_descriptions_contain_the_parameters(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, function) in subject.functions() {
        let mut used = BTreeSet::new();
        for of in [&subject.template.0["Globals"]["Function"], function] {
            for (name, value) in members(of) {
                if !NOT_CONFIGURATION.contains(&name) {
                    used.extend(parameters(subject, value));
                }
            }
        }
        let description = text(&function["VersionDescription"]);
        let described = parameters(subject, &function["VersionDescription"]);
        violations.check(
            used == described,
            id,
            format!("uses the parameters {used:?}, but its VersionDescription has {described:?}"),
        );
        let mut length = description.len();
        for name in &described {
            let parameter = &subject.template.0["Parameters"][name];
            let max_length = max_length(parameter);
            violations.check(
                max_length.is_some(),
                id,
                format!("the parameter {name} has no maximum length"),
            );
            length += max_length.unwrap_or_default();
            length -= name.len() + "${}".len();
        }
        violations.check(
            length <= MAX_DESCRIPTION,
            id,
            format!("may have a VersionDescription of {length} characters"),
        );
        violations.check(
            subject.template.0["Resources"][id]["UpdateReplacePolicy"] == "Retain",
            id,
            "does not retain the replaced version (UpdateReplacePolicy)",
        );
    }
    violations
}

pub fn stages_follow_their_definition(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, api) in subject.template.resources("AWS::Serverless::Api") {
        let refers = !parameters(subject, &api["Properties"]["DefinitionBody"]).is_empty();
        violations.check(
            !refers || api["Properties"]["AlwaysDeploy"] == true,
            id,
            "does not deploy its stage when a parameter of its definition changes",
        );
    }
    violations
}

pub fn recursive_loops_are_intended(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, function) in subject.functions() {
        let allowed = function["RecursiveLoop"] == "Allow";
        violations.check(!allowed, id, "allows recursive loops");
        let queues: BTreeSet<_> = subject
            .mappings()
            .into_values()
            .filter(|mapping| function_of(mapping) == id)
            .map(queue_of)
            .collect();
        let sends = subject.statements().into_iter().any(|(owner, statement)| {
            let resources = texts(&statement["Resource"]);
            owner == id
                && texts(&statement["Action"]).contains(&"sqs:SendMessage")
                && resources.iter().any(|it| queues.contains(it.trim_end_matches(".Arn")))
        });
        violations.check(
            allowed || !sends,
            format!("{id} RecursiveLoop"),
            "sends to its own queue, but Lambda ends a recursive loop after 16 calls",
        );
    }
    violations
}

pub fn gradual_deployment_where_it_helps(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let permissions = subject.template.resources("AWS::Lambda::Permission");
    let by_the_api: BTreeSet<_> = permissions
        .values()
        .map(|permission| &permission["Properties"])
        .filter(|permission| permission["Principal"] == "apigateway.amazonaws.com")
        .map(function_of)
        .collect();
    let mappings = subject.mappings();
    let by_a_mapping: BTreeSet<_> = mappings.values().map(|it| function_of(it)).collect();
    for (id, function) in subject.functions() {
        let is_called_often = by_the_api.contains(id) || by_a_mapping.contains(id);
        let preference = &function["DeploymentPreference"];
        let gradual = preference["Enabled"] == "GradualDeployment"
            && preference["Type"] == "CanaryDeployment";
        violations.check(
            gradual == is_called_often,
            id,
            if is_called_often {
                "is called often but not deployed gradually"
            } else {
                "is called too rarely for a gradual deployment"
            },
        );
        violations.check(gradual || preference.is_null(), id, "has its own deployment preference");
    }
    violations
}
