//! Rules: one stack per service, with identical settings and in the right deployment order.

use std::collections::{BTreeMap, BTreeSet};

use contracts::names::SERVICES;
use serde_json::{Map, Value, json};
use testkit::template::{Template, kebab};

use crate::subject::{Objections, Subject, members, text, texts};

/// Calls of a service that is deployed later: sites starts teardowns, and billing answers the sagas' tasks. The
/// calls happen only while a saga runs, so the callee need not exist when the caller is deployed.
const CALLBACKS: [(&str, &str); 2] = [("billing", "onboarding"), ("sites", "onboarding")];

/// Returns the logical id of a nested stack: `billing` becomes `Billing`.
fn nested(service: &str) -> String {
    service[..1].to_uppercase() + &service[1..]
}

pub fn nested_with_all_parameters(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (service, template) in &subject.services {
        let application = &subject.nesting.0["Resources"][nested(service)];
        let there = application["Type"] == "AWS::Serverless::Application"
            && application["Properties"]["Location"]
                == json!(format!("functions/{service}/template.yaml"));
        objections.unless(there, service, "is not nested by the root");
        let mut expected: Map<_, _> = members(&template.0["Parameters"])
            .map(|(name, _)| (name.into(), name.into()))
            .collect();
        expected.insert("Environment".into(), "AWS::StackName".into());
        objections.unless(
            application["Properties"]["Parameters"] == Value::Object(expected),
            service,
            "does not get the parameters that its template has from the root",
        );
    }
    let known: BTreeSet<_> = subject.services.keys().map(String::as_str).collect();
    let ordered = SERVICES.into_iter().collect::<BTreeSet<_>>();
    for service in known.symmetric_difference(&ordered) {
        objections.unless(
            false,
            *service,
            "is not in both, contracts::names::SERVICES and functions/",
        );
    }
    let count = subject.nesting.0["Resources"].as_object().map_or(0, Map::len);
    objections.unless(count == known.len(), "root", "has resources of its own");
    objections
}

pub fn deployed_after_what_they_name(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let merged = Template::merge(&subject.nesting, &subject.services);
    let owner: BTreeMap<&str, &str> = subject
        .services
        .iter()
        .flat_map(|(service, template)| {
            members(&template.0["Resources"]).map(move |(id, _)| (id, service.as_str()))
        })
        .collect();
    let place = |service: &str| SERVICES.iter().position(|it| *it == service);
    for (service, ids) in Template::foreign_names(&merged, &subject.services) {
        let named: BTreeSet<_> =
            ids.iter().filter_map(|id| owner.get(id.as_str())).copied().collect();
        let (before, after): (BTreeSet<_>, BTreeSet<_>) =
            named.into_iter().partition(|other| place(other) < place(&service));
        for other in after {
            objections.unless(
                CALLBACKS.contains(&(service.as_str(), other)),
                &service,
                format!("names a resource of {other}, which is deployed later"),
            );
        }
        let depends = texts(&subject.nesting.0["Resources"][nested(&service)]["DependsOn"]);
        let depends: BTreeSet<_> = depends.into_iter().map(str::to_lowercase).collect();
        let before: BTreeSet<_> = before.into_iter().map(str::to_owned).collect();
        objections.unless(
            depends == before,
            &service,
            format!("names resources of {before:?}, and its DependsOn has {depends:?}"),
        );
    }
    objections
}

pub fn alike(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let mut first: BTreeMap<(&str, &str), &Value> = BTreeMap::new();
    for (name, parameter) in members(&subject.nesting.0["Parameters"]) {
        first.insert(("Parameters", name), parameter);
    }
    for (service, template) in &subject.services {
        for section in ["Parameters", "Conditions", "Globals"] {
            for (name, value) in members(&template.0[section]) {
                let same = *first.entry((section, name)).or_insert(value) == value;
                objections.unless(
                    same,
                    service,
                    format!("declares {section} {name} in its own way"),
                );
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
            objections.unless(same, service, "deploys gradually in its own way");
        }
        let globals = functions.is_empty() || template.0["Globals"].is_object();
        objections.unless(globals, service, "lacks the Globals");
    }
    objections
}

pub fn functions_of_their_service(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (service, template) in &subject.services {
        for (id, resource) in members(&template.0["Resources"]) {
            if text(&resource["Type"]) == "AWS::Serverless::Function" {
                let binary = kebab(id.trim_end_matches("Function"));
                let file = format!("functions/{service}/src/bin/{binary}.rs");
                let there = !subject.file(&file).is_empty();
                objections.unless(
                    there,
                    id,
                    format!("is in the template of {service}; there is no {file}"),
                );
            }
        }
    }
    objections
}

pub fn each_has_its_entry_in_samconfig(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for service in subject.services.keys() {
        for command in ["build", "deploy"] {
            let entry = format!("[{service}.{command}.parameters]");
            let there = subject.file("samconfig.toml").contains(&entry);
            objections.unless(there, service, format!("has no {entry} in samconfig.toml"));
        }
    }
    objections
}
