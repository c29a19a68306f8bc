//! Rules: one stack per service, with identical settings and in the right deployment order.

use std::collections::{BTreeMap, BTreeSet};

use contracts::names::SERVICES;
use serde_json::{Map, Value, json};
use testkit::template::{Template, kebab};

use crate::subject::{Subject, Violations, members, text, texts};

/// Uses of a service that is deployed later: sites starts teardowns, billing completes the sagas' tasks, and devices reads
/// the site of a sensor in telemetry's register. Each happens only for a site, and there is none before everything is
/// deployed.
const CALLBACKS: [(&str, &str); 3] =
    [("billing", "onboarding"), ("devices", "telemetry"), ("sites", "onboarding")];

/// Returns the logical id of a nested stack: `billing` becomes `Billing`.
fn nested(service: &str) -> String {
    service[..1].to_uppercase() + &service[1..]
}

pub fn services_are_nested_with_all_parameters(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (service, template) in &subject.services {
        let application = &subject.root_template.0["Resources"][nested(service)];
        let exists = application["Type"] == "AWS::Serverless::Application"
            && application["Properties"]["Location"]
                == json!(format!("functions/{service}/template.yaml"));
        violations.check(exists, service, "is not nested by the root template");
        let mut expected: Map<_, _> = members(&template.0["Parameters"])
            .map(|(name, _)| (name.into(), name.into()))
            .collect();
        expected.insert("Environment".into(), "AWS::StackName".into());
        violations.check(
            application["Properties"]["Parameters"] == Value::Object(expected),
            service,
            "does not get all its parameters from the root template",
        );
    }
    let known: BTreeSet<_> = subject.services.keys().map(String::as_str).collect();
    let ordered = SERVICES.into_iter().collect::<BTreeSet<_>>();
    for service in known.symmetric_difference(&ordered) {
        violations.check(
            false,
            *service,
            "must be in both contracts::names::SERVICES and functions/",
        );
    }
    let count = subject.root_template.0["Resources"].as_object().map_or(0, Map::len);
    violations.check(count == known.len(), "root", "has resources besides the nested stacks");
    violations
}

pub fn deployed_after_their_dependencies(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let merged = Template::merge(&subject.root_template, &subject.services);
    let owner: BTreeMap<&str, &str> = subject
        .services
        .iter()
        .flat_map(|(service, template)| {
            members(&template.0["Resources"]).map(move |(id, _)| (id, service.as_str()))
        })
        .collect();
    let position = |service: &str| SERVICES.iter().position(|it| *it == service);
    for (service, ids) in Template::foreign_names(&merged, &subject.services) {
        let owners: BTreeSet<_> =
            ids.iter().filter_map(|id| owner.get(id.as_str())).copied().collect();
        let (before, after): (BTreeSet<_>, BTreeSet<_>) =
            owners.into_iter().partition(|other| position(other) < position(&service));
        for other in after {
            violations.check(
                CALLBACKS.contains(&(service.as_str(), other)),
                &service,
                format!("refers to a resource of {other}, which is deployed later"),
            );
        }
        let depends = texts(&subject.root_template.0["Resources"][nested(&service)]["DependsOn"]);
        let depends: BTreeSet<_> = depends.into_iter().map(str::to_lowercase).collect();
        let before: BTreeSet<_> = if service == "gateway" {
            // The API opens last: a request may cause work that only this release's consumers understand.
            SERVICES.iter().filter(|it| **it != service).map(ToString::to_string).collect()
        } else {
            before.into_iter().map(str::to_owned).collect()
        };
        violations.check(
            depends == before,
            &service,
            format!("refers to resources of {before:?}, but DependsOn has {depends:?}"),
        );
    }
    violations
}

pub fn shared_sections_are_identical(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let mut first: BTreeMap<(&str, &str), &Value> = BTreeMap::new();
    for (name, parameter) in members(&subject.root_template.0["Parameters"]) {
        first.insert(("Parameters", name), parameter);
    }
    for (service, template) in &subject.services {
        for section in ["Parameters", "Conditions", "Globals"] {
            for (name, value) in members(&template.0[section]) {
                let same = *first.entry((section, name)).or_insert(value) == value;
                violations.check(same, service, format!("declares {section} {name} differently"));
            }
        }
        let deployment = &template.0["Resources"]["CanaryDeployment"];
        let functions: Vec<_> = members(&template.0["Resources"])
            .filter(|(_, it)| it["Type"] == "AWS::Serverless::Function")
            .map(|(_, it)| &it["Properties"])
            .collect();
        if functions.iter().any(|it| !it["DeploymentPreference"].is_null()) {
            let same =
                *first.entry(("Resources", "CanaryDeployment")).or_insert(deployment) == deployment;
            violations.check(same, service, "declares CanaryDeployment differently");
        }
        let globals = functions.is_empty() || template.0["Globals"].is_object();
        violations.check(globals, service, "has no Globals");
    }
    violations
}

pub fn functions_are_in_their_services_template(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (service, template) in &subject.services {
        for (id, resource) in members(&template.0["Resources"]) {
            if text(&resource["Type"]) == "AWS::Serverless::Function" {
                let binary = kebab(id.trim_end_matches("Function"));
                let file = format!("functions/{service}/src/bin/{binary}.rs");
                let exists = !subject.file(&file).is_empty();
                violations.check(
                    exists,
                    id,
                    format!("is in the template of {service}, but there is no {file}"),
                );
            }
        }
    }
    violations
}

pub fn services_have_samconfig_entries(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for service in subject.services.keys() {
        for command in ["build", "deploy"] {
            let entry = format!("[{service}.{command}.parameters]");
            let exists = subject.file("samconfig.toml").contains(&entry);
            violations.check(exists, service, format!("has no {entry} in samconfig.toml"));
        }
    }
    violations
}
