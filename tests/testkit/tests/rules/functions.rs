//! Rules: every function is built, configured, called, monitored and tested in the same way.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testkit::template::kebab;

use crate::subject::{Subject, Violations, function_of, members, text};

/// Calls that read environment variables for a binary, and these variables.
const READERS: [(&str, &[&str]); 9] = [
    ("aws.limits()", &["LIMITS_TABLE"]),
    ("source_operators()", &["SOURCE_OPERATORS"]),
    ("aws.outbox()", &["EVENTS_TABLE"]),
    ("Quarantine::from_env(", &["QUARANTINE_QUEUE_URL"]),
    ("Provider::from_env(", &["STRIPE_SECRET_ARN", "STRIPE_PRICES", "STRIPE_API_BASE"]),
    ("Rules::from_env(", &["CIRCUIT_PAUSE_SECONDS", "CIRCUIT_FAILURES"]),
    ("Paging::from_env(", &["PAGING_SECRET_ARN"]),
    ("Register::from_env(", &["READINGS_TABLE", "REGISTER_AGE_SECONDS"]),
    (
        "StoreReadings::from_env(",
        &[
            "READINGS_TABLE",
            "EVENTS_TABLE",
            "REGISTER_AGE_SECONDS",
            "HOLD_QUEUE_URL",
            "READINGS_HOLD_SECONDS",
            "QUARANTINE_QUEUE_URL",
            "READINGS_MAX_AGE_DAYS",
        ],
    ),
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

pub fn functions_match_their_binaries(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let template = &subject.template;
    for id in subject.functions().into_keys() {
        let name = name_of(id);
        let metadata = &template.0["Resources"][id]["Metadata"];
        let built = metadata["BuildMethod"] == "rust-cargolambda"
            && metadata["BuildProperties"]["Binary"] == json!(name);
        violations.check(built, id, format!("is not built from the binary {name}"));
        violations.check(binary(subject, &name).is_some(), id, format!("has no src/bin/{name}.rs"));
    }
    let names: BTreeSet<_> = subject.functions().into_keys().map(name_of).collect();
    for (path, _) in subject.under("functions/").filter(|(path, _)| path.contains("/src/bin/")) {
        let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        violations.check(names.contains(name), path, "belongs to no function");
    }
    violations
}

pub fn functions_share_one_runtime(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for id in subject.functions().into_keys() {
        let runtime = subject.setting(id, "Runtime") == "provided.al2023"
            && *subject.setting(id, "Architectures") == json!(["Architecture"]);
        violations.check(runtime, id, "has another runtime or architecture than the others");
        let memory = subject.setting(id, "MemorySize").as_i64().unwrap_or_default();
        let in_range = (128..=512).contains(&memory);
        violations.check(in_range, id, format!("has {memory} MB, not 128 to 512"));
    }
    violations
}

pub fn variables_equal_those_that_are_read(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
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
            violations.check(false, format!("{id} {name}"), "is read but not set");
        }
        for name in &set - &read {
            violations.check(false, format!("{id} {name}"), "is set but not read");
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
                violations.check(
                    lambdas || known.contains(name),
                    path,
                    format!("reads {name}, which is not in READERS"),
                );
            }
        }
    }
    violations
}

/// Returns the names of environment variables in a binary's source: its string literals in capitals.
fn literals(source: &str) -> impl Iterator<Item = &str> {
    source.split('"').skip(1).step_by(2).filter(|literal| {
        literal.len() > 4
            && literal.chars().all(|it| it.is_ascii_uppercase() || it.is_ascii_digit() || it == '_')
    })
}

pub fn functions_are_called_by_alias(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for id in subject.functions().into_keys() {
        let alias = subject.setting(id, "AutoPublishAlias") == "live"
            && subject.setting(id, "AutoPublishAliasAllProperties") == true;
        violations.check(alias, id, "does not publish its versions under the alias live");
    }
    for (id, text) in subject.texts() {
        // Only the function's ARN bypasses the alias. Metrics and logs use the function's name.
        let bypasses = text.contains("Function.Arn");
        violations.check(!bypasses, id, format!("bypasses the alias: {text}"));
    }
    let permissions = subject.template.resources("AWS::Lambda::Permission").into_iter();
    let permissions = permissions.map(|(id, permission)| (id, &permission["Properties"]));
    for (id, caller) in permissions.chain(subject.mappings()) {
        let alias = text(&caller["FunctionName"]).ends_with("Function.Alias");
        violations.check(alias, id, "bypasses the alias");
    }
    violations
}

pub fn log_groups_have_a_retention(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, function) in subject.functions() {
        let config = &function["LoggingConfig"];
        let group = text(&config["LogGroup"]);
        let name = &subject.template.properties(group)["LogGroupName"];
        let own_group = *name == json!(format!("/aws/lambda/${{Environment}}/{}", name_of(id)));
        violations.check(own_group, id, "does not log to its own log group");
    }
    let shared = &subject.template.0["Globals"]["Function"]["LoggingConfig"];
    violations.check(shared["LogFormat"] == "JSON", "Globals", "functions do not log JSON");
    for (id, group) in subject.template.resources("AWS::Logs::LogGroup") {
        let days = &group["Properties"]["RetentionInDays"];
        violations.check(
            *days == json!("LogRetentionDays"),
            id,
            "does not have the retention LogRetentionDays",
        );
    }
    violations
}

pub fn functions_and_the_api_are_traced(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for id in subject.functions().into_keys() {
        violations.check(subject.setting(id, "Tracing") == "Active", id, "is not traced");
    }
    let api = &subject.template.properties("Api")["TracingEnabled"];
    violations.check(*api == json!(true), "Api", "is not traced");
    violations
}

pub fn resources_have_descriptions(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let is_described = |value: &Value| text(value).len() > 10;
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
            violations.check(
                is_described(&resource["Properties"][property]),
                id,
                format!("has no {property}"),
            );
        }
    }
    for (id, function) in subject.functions() {
        for (name, event) in members(&function["Events"]).filter(|(_, it)| it["Type"] == "Schedule")
        {
            let is_described = is_described(&event["Properties"]["Description"]);
            violations.check(
                is_described,
                id,
                format!("has no description of the schedule {name}"),
            );
        }
    }
    for section in ["Parameters", "Outputs"] {
        for (name, value) in members(&subject.template.0[section]) {
            violations.check(is_described(&value["Description"]), name, "has no Description");
        }
    }
    violations
}

pub fn api_timeouts_are_below_29_seconds(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, permission) in subject.template.resources("AWS::Lambda::Permission") {
        let permission = &permission["Properties"];
        if permission["Principal"] == "apigateway.amazonaws.com" {
            let function = function_of(permission);
            let in_time = (1..29).contains(&subject.timeout(function));
            violations.check(
                in_time,
                function,
                format!("has a timeout above that of API Gateway ({id})"),
            );
        }
    }
    violations
}

pub fn provider_calls_are_limited(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, function) in subject.functions() {
        if !function["Environment"]["Variables"]["STRIPE_API_BASE"].is_null() {
            let mut mappings =
                subject.mappings().into_values().filter(|it| function_of(it) == id).peekable();
            let limit = json!(["LimitBilling", { "MaximumConcurrency": "BillingConcurrency" }, "AWS::NoValue"]);
            let queued = mappings.peek().is_some();
            let limited = mappings.all(|mapping| mapping["ScalingConfig"] == limit);
            violations.check(
                queued && limited,
                id,
                "does not limit the concurrent calls to the payment provider",
            );
        }
    }
    violations
}

pub fn functions_have_sample_events(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for id in subject.functions().into_keys() {
        let event = subject.file(&format!("tests/events/{}.json", name_of(id)));
        let is_json = serde_json::from_str::<Value>(event).is_ok();
        violations.check(is_json, id, "has no sample event in tests/events");
    }
    let names: BTreeSet<_> = subject.functions().into_keys().map(name_of).collect();
    for (path, _) in subject.under("tests/events/") {
        let name = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        violations.check(names.contains(name), path, "is not the sample event of a function");
    }
    violations
}

pub fn listed_in_the_readme(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for id in subject.functions().into_keys() {
        let name = name_of(id);
        let service =
            binary(subject, &name).and_then(|(path, _)| path.split('/').nth(1)).unwrap_or_default();
        let row = format!("\n| {service} | ");
        let row =
            subject.file("README.md").split(&row).nth(1).and_then(|rest| rest.split(" |").next());
        let listed = row.is_some_and(|row| row.split(", ").any(|listed| listed == name));
        violations.check(listed, id, format!("is not in the README's row of {service}"));
    }
    let count = format!("{} functions", subject.functions().len());
    let counted = subject.file("README.md").matches(&count).count();
    violations.check(counted == 2, "README.md", format!("does not contain \"{count}\" twice"));
    violations
}

pub fn listed_on_the_dashboard(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let body = text(&subject.template.properties("Dashboard")["DashboardBody"]);
    let is_json = serde_json::from_str::<Value>(body).is_ok();
    violations.check(is_json, "Dashboard", "is not JSON");
    // The dashboard searches by the environment's name, which every function's name begins with. With quotes, the
    // search would match only a function of exactly that name.
    for metric in ["Errors", "Invocations", "Duration"] {
        let search = format!(r#"MetricName=\"{metric}\" FunctionName=${{Environment}}'"#);
        violations.check(
            body.contains(&search),
            "Dashboard",
            format!("does not show the functions' {metric}"),
        );
    }
    for (id, function) in subject.functions() {
        violations.check(
            function["FunctionName"] == json!(format!("${{Environment}}-{}", name_of(id))),
            id,
            "does not have the name that the dashboard and callers use",
        );
    }
    let mut check_shown = |id: &str, reference: String| {
        violations.check(body.contains(&reference), id, "is not on the dashboard");
    };
    for id in subject.template.resources("AWS::DynamoDB::Table").into_keys() {
        let name = subject.template.fixed_name(id).unwrap_or_default();
        check_shown(id, format!("\"TableName\",\"${{Environment}}-{name}\""));
    }
    for id in subject.template.resources("AWS::Serverless::StateMachine").into_keys() {
        check_shown(id, format!("\"${{{id}}}\""));
    }
    for mapping in
        subject.mappings().values().filter(|it| function_of(it) == "RecordFailureFunction")
    {
        let queue = text(&mapping["EventSourceArn"]).trim_end_matches(".Arn");
        let name = subject.template.fixed_name(queue).unwrap_or_default();
        check_shown(queue, format!("\"${{Environment}}-{name}\""));
    }
    violations
}

pub fn functions_are_tested(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for id in subject.functions().into_keys() {
        let name = name_of(id);
        let (module, step) = (name.replace('-', "_"), id.trim_end_matches("Function"));
        let service = binary(subject, &name).and_then(|(path, _)| path.split("/src/").next());
        let folder = format!("{}/tests/", service.unwrap_or_default());
        let tests = subject.under(&folder).chain(subject.under("tests/tests/")).collect::<Vec<_>>();
        let by_name = tests.iter().any(|(_, text)| {
            [module.as_str(), step, name.as_str()].iter().any(|it| text.contains(it))
        });
        violations.check(
            by_name,
            id,
            "is not named in a test of its service or of the deployed stack",
        );
    }
    violations
}
