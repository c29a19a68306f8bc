//! Rules: every function is built, configured, called, monitored and tested in the same way.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::template::kebab;

use crate::subject::{Objections, Subject, function_of, members, text};

/// Calls that read environment variables for a binary, and these variables.
const READERS: [(&str, &[&str]); 5] = [
    ("aws.outbox()", &["EVENTS_TABLE"]),
    ("Quarantine::from_env(", &["QUARANTINE_QUEUE_URL"]),
    ("Provider::from_env(", &["STRIPE_SECRET_ARN", "STRIPE_PRICES", "STRIPE_API_BASE"]),
    ("Rules::of_environment(", &["CIRCUIT_PAUSE_SECONDS", "CIRCUIT_FAILURES"]),
    ("Paging::from_env(", &["PAGING_SECRET_ARN"]),
];

/// Returns a function's name: `CreateSiteFunction` becomes `create-site`.
fn name_of(id: &str) -> String {
    kebab(id.trim_end_matches("Function"))
}

/// Returns the path and the source of a function's binary.
fn binary<'a>(subject: &'a Subject, name: &str) -> Option<(&'a str, &'a str)> {
    let file = format!("/src/bin/{name}.rs");
    subject.under("functions/").find(|(path, _)| path.ends_with(&file))
}

pub fn one_binary_each(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let template = &subject.template;
    for id in subject.functions().into_keys() {
        let name = name_of(id);
        let metadata = &template.0["Resources"][id]["Metadata"];
        let built = metadata["BuildMethod"] == "rust-cargolambda"
            && metadata["BuildProperties"]["Binary"] == json!(name);
        objections.unless(built, id, format!("is not built from the binary {name}"));
        objections.unless(
            binary(subject, &name).is_some(),
            id,
            format!("has no src/bin/{name}.rs"),
        );
    }
    let names: BTreeSet<_> = subject.functions().into_keys().map(name_of).collect();
    for (path, _) in subject.under("functions/").filter(|(path, _)| path.contains("/src/bin/")) {
        let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        objections.unless(names.contains(name), path, "is in no function");
    }
    objections
}

pub fn one_runtime(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for id in subject.functions().into_keys() {
        let runtime = subject.setting(id, "Runtime") == "provided.al2023"
            && *subject.setting(id, "Architectures") == json!(["Architecture"]);
        objections.unless(runtime, id, "runs on another runtime or processor than the others");
        let memory = subject.setting(id, "MemorySize").as_i64().unwrap_or_default();
        let modest = (128..=512).contains(&memory);
        objections.unless(modest, id, format!("has {memory} MB, not 128 to 512"));
    }
    objections
}

pub fn variables_are_those_that_are_read(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, function) in subject.functions() {
        let source = binary(subject, &name_of(id)).map(|(_, source)| source).unwrap_or_default();
        let mut read: BTreeSet<&str> = literals(source).collect();
        for (call, variables) in READERS {
            if source.contains(call) {
                read.extend(variables);
            }
        }
        let set: BTreeSet<_> =
            members(&function["Environment"]["Variables"]).map(|(name, _)| name).collect();
        for name in &read - &set {
            objections.unless(false, format!("{id} {name}"), "is read and not set");
        }
        for name in &set - &read {
            objections.unless(false, format!("{id} {name}"), "is set and not read");
        }
    }
    // Every variable that a library reads must be in READERS.
    let known: BTreeSet<_> =
        READERS.iter().flat_map(|(_, variables)| *variables).copied().collect();
    let libraries = subject.under("functions/").chain(subject.under("shared/"));
    for (path, source) in
        libraries.filter(|(path, _)| path.contains("/src/") && !path.contains("/bin/"))
    {
        for reading in ["env(\"", " number(\"", ".table(\"", "env::var(\""] {
            for rest in source.split(reading).skip(1) {
                let name = rest.split('"').next().unwrap_or_default();
                // Lambda sets these itself.
                let lambdas = name.starts_with("AWS_");
                objections.unless(
                    lambdas || known.contains(name),
                    path,
                    format!("reads {name}, which no entry of READERS tells"),
                );
            }
        }
    }
    objections
}

/// Returns the names of environment variables in a binary's source: its string literals in capitals.
fn literals(source: &str) -> impl Iterator<Item = &str> {
    source.split('"').skip(1).step_by(2).filter(|literal| {
        literal.len() > 4
            && literal.chars().all(|it| it.is_ascii_uppercase() || it.is_ascii_digit() || it == '_')
    })
}

pub fn called_by_alias(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for id in subject.functions().into_keys() {
        let alias = subject.setting(id, "AutoPublishAlias") == "live"
            && subject.setting(id, "AutoPublishAliasAllProperties") == true;
        objections.unless(alias, id, "publishes no version under the alias live");
    }
    for (id, text) in subject.texts() {
        // The name without the ARN is used for metrics and logs.
        let around = text.contains("Function.Arn");
        objections.unless(!around, id, format!("goes around the alias: {text}"));
    }
    let permissions = subject.template.resources("AWS::Lambda::Permission").into_iter();
    let permissions = permissions.map(|(id, permission)| (id, &permission["Properties"]));
    for (id, caller) in permissions.chain(subject.mappings()) {
        let alias = text(&caller["FunctionName"]).ends_with("Function.Alias");
        objections.unless(alias, id, "goes around the alias");
    }
    objections
}

pub fn logs_with_an_end(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, function) in subject.functions() {
        let config = &function["LoggingConfig"];
        let group = text(&config["LogGroup"]);
        let name = &subject.template.properties(group)["LogGroupName"];
        let its_own = *name == json!(format!("/aws/lambda/${{Environment}}/{}", name_of(id)));
        objections.unless(its_own, id, "does not log into a group of its own");
    }
    let shared = &subject.template.0["Globals"]["Function"]["LoggingConfig"];
    objections.unless(shared["LogFormat"] == "JSON", "Globals", "functions do not log JSON");
    for (id, group) in subject.template.resources("AWS::Logs::LogGroup") {
        let days = &group["Properties"]["RetentionInDays"];
        objections.unless(
            *days == json!("LogRetentionDays"),
            id,
            "keeps logs for ever, or by a number of its own",
        );
    }
    objections
}

pub fn traced(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for id in subject.functions().into_keys() {
        objections.unless(subject.setting(id, "Tracing") == "Active", id, "is not traced");
    }
    let api = &subject.template.properties("Api")["TracingEnabled"];
    objections.unless(*api == json!(true), "Api", "is not traced");
    objections
}

pub fn described(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let told = |value: &Value| text(value).len() > 10;
    let kinds = [
        ("AWS::Serverless::Function", "Description"),
        ("AWS::Serverless::Api", "Description"),
        ("AWS::CloudWatch::Alarm", "AlarmDescription"),
        ("AWS::Events::EventBus", "Description"),
        ("AWS::Events::Rule", "Description"),
        ("AWS::SecretsManager::Secret", "Description"),
    ];
    for (kind, property) in kinds {
        for (id, resource) in subject.template.resources(kind) {
            objections.unless(
                told(&resource["Properties"][property]),
                id,
                format!("has no {property}"),
            );
        }
    }
    for (id, function) in subject.functions() {
        for (name, event) in members(&function["Events"]).filter(|(_, it)| it["Type"] == "Schedule")
        {
            let told = told(&event["Properties"]["Description"]);
            objections.unless(told, id, format!("does not say what the schedule {name} is for"));
        }
    }
    for section in ["Parameters", "Outputs"] {
        for (name, value) in members(&subject.template.0[section]) {
            objections.unless(told(&value["Description"]), name, "has no Description");
        }
    }
    objections
}

pub fn answers_in_time(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, permission) in subject.template.resources("AWS::Lambda::Permission") {
        let permission = &permission["Properties"];
        if permission["Principal"] == "apigateway.amazonaws.com" {
            let function = function_of(permission);
            let in_time = (1..29).contains(&subject.timeout(function));
            objections.unless(
                in_time,
                function,
                format!("works on after API Gateway gave up on it ({id})"),
            );
        }
    }
    objections
}

pub fn provider_is_not_overrun(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, function) in subject.functions() {
        if !function["Environment"]["Variables"]["STRIPE_API_BASE"].is_null() {
            let mut mappings =
                subject.mappings().into_values().filter(|it| function_of(it) == id).peekable();
            let limit = json!(["LimitBilling", { "MaximumConcurrency": "BillingConcurrency" }, "AWS::NoValue"]);
            let queued = mappings.peek().is_some();
            let limited = mappings.all(|mapping| mapping["ScalingConfig"] == limit);
            objections.unless(
                queued && limited,
                id,
                "calls the provider from any number of functions at once",
            );
        }
    }
    objections
}

pub fn sample_events(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for id in subject.functions().into_keys() {
        let event = subject.file(&format!("tests/events/{}.json", name_of(id)));
        let reads = serde_json::from_str::<Value>(event).is_ok();
        objections.unless(reads, id, "has no sample event in tests/events");
    }
    let names: BTreeSet<_> = subject.functions().into_keys().map(name_of).collect();
    for (path, _) in subject.under("tests/events/") {
        let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        objections.unless(names.contains(name), path, "is the sample of no function");
    }
    objections
}

pub fn listed_in_the_readme(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for id in subject.functions().into_keys() {
        let name = name_of(id);
        let service =
            binary(subject, &name).and_then(|(path, _)| path.split('/').nth(1)).unwrap_or_default();
        let row = format!("\n| {service} | ");
        let row =
            subject.file("README.md").split(&row).nth(1).and_then(|rest| rest.split(" |").next());
        let listed = row.is_some_and(|row| row.split(", ").any(|listed| listed == name));
        objections.unless(listed, id, format!("is not in the README's row of {service}"));
    }
    let count = format!("{} functions", subject.functions().len());
    let counted = subject.file("README.md").matches(&count).count();
    objections.unless(
        counted == 2,
        "README.md",
        format!("does not say twice that there are {count}"),
    );
    objections
}

pub fn seen_on_the_dashboard(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let body = text(&subject.template.properties("Dashboard")["DashboardBody"]);
    let reads = serde_json::from_str::<Value>(body).is_ok();
    objections.unless(reads, "Dashboard", "is no JSON");
    // The dashboard searches by the environment's name, which every function's name begins with. With quotes, the
    // search would match only a function of exactly that name.
    for metric in ["Errors", "Invocations", "Duration"] {
        let search = format!(r#"MetricName=\"{metric}\" FunctionName=${{Environment}}'"#);
        objections.unless(
            body.contains(&search),
            "Dashboard",
            format!("lacks the functions' {metric}"),
        );
    }
    for (id, function) in subject.functions() {
        objections.unless(
            function["FunctionName"] == json!(format!("${{Environment}}-{}", name_of(id))),
            id,
            "has another name than the dashboard searches and callers use",
        );
    }
    let mut shown = |id: &str, reference: String| {
        objections.unless(body.contains(&reference), id, "is not on the dashboard");
    };
    for id in subject.template.resources("AWS::DynamoDB::Table").into_keys() {
        let name = subject.template.fixed_name(id).unwrap_or_default();
        shown(id, format!("\"TableName\",\"${{Environment}}-{name}\""));
    }
    for id in subject.template.resources("AWS::Serverless::StateMachine").into_keys() {
        shown(id, format!("\"${{{id}}}\""));
    }
    for mapping in
        subject.mappings().values().filter(|it| function_of(it) == "RecordFailureFunction")
    {
        let queue = text(&mapping["EventSourceArn"]).trim_end_matches(".Arn");
        let name = subject.template.fixed_name(queue).unwrap_or_default();
        shown(queue, format!("\"${{Environment}}-{name}\""));
    }
    objections
}

pub fn tested(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for id in subject.functions().into_keys() {
        let name = name_of(id);
        let (module, step) = (name.replace('-', "_"), id.trim_end_matches("Function"));
        let service = binary(subject, &name).and_then(|(path, _)| path.split("/src/").next());
        let folder = format!("{}/tests/", service.unwrap_or_default());
        let tests = subject.under(&folder).chain(subject.under("tests/tests/")).collect::<Vec<_>>();
        let by_name = tests.iter().any(|(_, text)| {
            [module.as_str(), step, name.as_str()].iter().any(|it| text.contains(it))
        });
        objections.unless(by_name, id, "is in no test of its service, nor of the deployed stack");
    }
    objections
}
