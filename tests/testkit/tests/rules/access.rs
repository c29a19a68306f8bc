//! Rules: least privilege for roles, callers and senders.

use serde_json::{Value, json};

use crate::subject::{Objections, Subject, items, members, text, texts};

/// Event types that only other systems send.
const FOREIGN: [&str; 2] = ["KitsDelivered", "SiteRegistrationRequested"];
/// The functions that publish the event log to the bus.
const PUBLISHERS: [&str; 2] = ["PublishEventsFunction", "SweepEventsFunction"];
/// The command queues, each with the state machine that sends to it and the function that sends a deferred
/// command to it again.
const COMMANDS: [(&str, &str, &str); 2] = [
    ("CancelSubscriptionQueue", "SiteTeardown", "CancelSubscriptionFunction"),
    ("InitializeSubscriptionQueue", "SiteOnboarding", "InitializeSubscriptionFunction"),
];
/// The HTTP methods, and API Gateway's own.
const METHODS: [&str; 8] =
    ["delete", "get", "head", "options", "patch", "post", "put", "x-amazon-apigateway-any-method"];

/// Returns the routes: a name such as `POST /sites`, the path item, and the operation.
fn routes(subject: &Subject) -> Vec<(String, &Value, &Value)> {
    let paths = &subject.template.properties("Api")["DefinitionBody"]["paths"];
    let routes = members(paths).flat_map(|(path, of_path)| {
        members(of_path).filter(|(method, _)| METHODS.contains(method)).map(
            move |(method, route)| (format!("{} {path}", method.to_uppercase()), of_path, route),
        )
    });
    routes.collect()
}

/// Returns the logical id of the function behind a route.
fn function_of(route: &Value) -> &str {
    let uri = text(&route["x-amazon-apigateway-integration"]["uri"]);
    uri.split_once("functions/${")
        .and_then(|(_, rest)| rest.split_once(".Alias}"))
        .unwrap_or_default()
        .0
}

pub fn every_route_knows_its_caller(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let either = json!(["UseCognito", [{ "Cognito": [] }], [{ "Iam": [] }]]);
    for (name, _, route) in routes(subject) {
        objections.unless(
            route["security"] == either,
            name,
            "can be called without a signature or a token",
        );
    }
    let schemes =
        &subject.template.properties("Api")["DefinitionBody"]["components"]["securitySchemes"];
    let signed = schemes["Iam"]["x-amazon-apigateway-authtype"] == "awsSigv4";
    objections.unless(signed, "Api", "the scheme Iam does not check signatures");
    let pool = &schemes["Cognito"][1];
    let users = pool["x-amazon-apigateway-authtype"] == "cognito_user_pools"
        && pool["x-amazon-apigateway-authorizer"]["providerARNs"] == json!(["UserPoolArn"]);
    objections.unless(users, "Api", "the scheme Cognito does not check the pool's tokens");
    objections
}

pub fn requests_are_checked(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (name, of_path, route) in routes(subject) {
        for rest in name.split('{').skip(1) {
            let parameter = rest.split('}').next().unwrap_or_default();
            let declared =
                items(&of_path["parameters"]).chain(items(&route["parameters"])).any(|it| {
                    it["name"] == json!(parameter) && it["in"] == "path" && it["required"] == true
                });
            objections.unless(
                declared,
                &name,
                format!("does not require its parameter {parameter}"),
            );
        }
        if ["PATCH", "POST", "PUT"].iter().any(|method| name.starts_with(method)) {
            let module = testkit::template::kebab(function_of(route).trim_end_matches("Function"));
            let file = format!("/src/{}.rs", module.replace('-', "_"));
            let source = subject.under("functions/").find(|(path, _)| path.ends_with(&file));
            let limited = source.is_some_and(|(_, text)| {
                ["http::body(", "http::read("].iter().any(|limited| text.contains(limited))
            });
            objections.unless(
                limited,
                &name,
                "takes a body of any length: no http::body or http::read with a limit",
            );
        }
    }
    objections
}

pub fn calls_are_throttled(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let settings: Vec<_> = items(&subject.template.properties("Api")["MethodSettings"]).collect();
    for setting in &settings {
        let name = format!("{} {}", text(&setting["HttpMethod"]), text(&setting["ResourcePath"]));
        let number = |name: &str| setting[name].as_i64().unwrap_or(i64::MAX);
        let (rate, burst) = (number("ThrottlingRateLimit"), number("ThrottlingBurstLimit"));
        objections.unless(
            (1..=1000).contains(&rate),
            &name,
            "lets through more than 1,000 calls a second",
        );
        objections.unless(
            burst <= rate.saturating_mul(2),
            &name,
            "lets bursts through of more than two seconds' calls",
        );
    }
    let limit = |path: &str, method: &str| {
        let of =
            settings.iter().find(|it| it["ResourcePath"] == path && it["HttpMethod"] == method);
        of.and_then(|setting| setting["ThrottlingRateLimit"].as_i64()).unwrap_or(i64::MAX)
    };
    objections.unless(
        limit("/*", "*") <= 1000,
        "* /*",
        "a route that has no limit of its own has none",
    );
    // Each of these starts a saga, which costs far more than a call.
    for (path, method) in [("/~1sites", "POST"), ("/~1sites~1{siteId}", "DELETE")] {
        let name = format!("{method} {}", path.replace("~1", "/").replacen("//", "/", 1));
        objections.unless(
            limit(path, method) <= 10,
            name,
            "may start more than ten sagas a second",
        );
    }
    objections
}

pub fn calls_are_logged(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let log = &subject.template.properties("Api")["AccessLogSetting"];
    let group = text(&log["DestinationArn"]).trim_end_matches(".Arn");
    objections.unless(subject.is(group, "AWS::Logs::LogGroup"), "Api", "does not log who calls");
    for field in [
        "$context.identity.userArn",
        "$context.authorizer.claims.sub",
        "$context.identity.sourceIp",
    ] {
        objections.unless(
            text(&log["Format"]).contains(field),
            "Api",
            format!("does not log {field}"),
        );
    }
    objections
}

pub fn invocations_are_of_one_route(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let mut allowed = Vec::new();
    for (id, permission) in subject.template.resources("AWS::Lambda::Permission") {
        let permission = &permission["Properties"];
        let of = text(&permission["SourceArn"]).rsplit_once("${Api}/${StageName}/");
        let (method, path) = of.and_then(|(_, route)| route.split_once('/')).unwrap_or_default();
        let one = !method.is_empty() && !method.contains('*') && !path.is_empty() && path != "*";
        objections.unless(one, id, "lets more than one route of our API call");
        allowed.push((text(&permission["FunctionName"]), format!("{method} /{path}")));
    }
    for (name, _, route) in routes(subject) {
        let parts = name.split('/').map(|part| if part.starts_with('{') { "*" } else { part });
        let source = parts.collect::<Vec<_>>().join("/");
        let function = format!("{}.Alias", function_of(route));
        let may = allowed.iter().any(|(of, from)| *of == function && *from == source);
        objections.unless(may, name, format!("may not call {function}"));
    }
    objections
}

pub fn roles_are_written_out(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, function) in subject.functions() {
        let own = function["Role"].is_null()
            && items(&function["Policies"]).all(|it| it["Statement"].is_array());
        let some = function["Policies"].as_array().is_some_and(|all| !all.is_empty());
        objections.unless(own && some, id, "has a role or a policy that others made");
    }
    for (id, machine) in subject.template.resources("AWS::Serverless::StateMachine") {
        let machine = &machine["Properties"];
        let own = machine["Role"].is_null()
            && items(&machine["Policies"]).all(|it| it["Statement"].is_array());
        objections.unless(own, id, "has a role or a policy that others made");
    }
    for (id, role) in subject.template.resources("AWS::IAM::Role") {
        let managed = role["Properties"]["ManagedPolicyArns"].is_null();
        objections.unless(managed, id, "has a policy that others made");
    }
    objections
}

/// Returns the statements that allow something, each with its actions and resources.
fn grants(subject: &Subject) -> Vec<(&str, Vec<&str>, Vec<&str>)> {
    let statements = subject.statements().into_iter().filter(|(_, it)| it["Effect"] == "Allow");
    statements.map(|(id, it)| (id, texts(&it["Action"]), texts(&it["Resource"]))).collect()
}

pub fn actions_by_name(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, statement) in subject.statements() {
        if statement["Effect"] == "Allow" {
            let named = !texts(&statement["Action"]).iter().any(|action| action.contains('*'));
            let some = !texts(&statement["Action"]).is_empty() && statement["NotAction"].is_null();
            objections.unless(named && some, id, "is granted actions that nobody listed");
        }
    }
    objections
}

pub fn resources_by_name(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, actions, resources) in grants(subject) {
        for resource in resources {
            // A `*` is allowed after the name of a Fieldstation resource: any object of a bucket, any execution
            // of a state machine.
            let before = resource.split('*').next().unwrap_or_default();
            let ours = before.split("${").skip(1).any(|rest| {
                let name = rest.split(['}', '.']).next().unwrap_or_default();
                !subject.template.0["Resources"][name].is_null()
            });
            for action in &actions {
                objections.unless(
                    ours || !resource.contains('*'),
                    format!("{id} {action}"),
                    format!("is granted on {resource}"),
                );
            }
        }
    }
    for (id, statement) in subject.statements() {
        objections.unless(
            statement["NotResource"].is_null(),
            id,
            "is granted all resources but some",
        );
    }
    objections
}

pub fn no_table_is_read_whole(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, actions, resources) in grants(subject) {
        let scans =
            actions.contains(&"dynamodb:Scan") || actions.contains(&"dynamodb:PartiQLSelect");
        for resource in resources {
            objections.unless(!scans, format!("{id} {resource}"), "may be read whole");
        }
    }
    objections
}

pub fn queues_take_from_named_senders(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, policy) in subject.template.resources("AWS::SQS::QueuePolicy") {
        let statements = items(&policy["Properties"]["PolicyDocument"]["Statement"]);
        for statement in statements.filter(|statement| statement["Effect"] != "Deny") {
            let service = statement["Principal"]["Service"].is_string();
            let condition = &statement["Condition"];
            let named = !condition["ArnEquals"]["aws:SourceArn"].is_null()
                || condition["StringEquals"]["aws:SourceAccount"] == "AWS::AccountId";
            objections.unless(service && named, id, "lets anybody's rule or bucket send");
        }
    }
    objections
}

pub fn commands_come_from_their_saga(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (queue, machine, function) in COMMANDS {
        let name = testkit::template::kebab(machine);
        let roles = format!(
            "arn:${{AWS::Partition}}:iam::${{AWS::AccountId}}:role/${{Environment}}/{name}/*"
        );
        let denied = json!([{
            "Effect": "Deny",
            "Action": "sqs:SendMessage",
            "Resource": format!("{queue}.Arn"),
            "Principal": "*",
            "Condition": { "ArnNotLike": { "aws:PrincipalArn": [roles, format!("{function}Role.Arn")] } },
        }]);
        let path = &subject.template.properties(machine)["RolePath"];
        let own = *path == json!(format!("/${{Environment}}/{name}/"));
        objections.unless(own, machine, "has a role that its queue does not know by its path");
        let guarded = subject.template.resources("AWS::SQS::QueuePolicy").values().any(|policy| {
            let policy = &policy["Properties"];
            policy["Queues"] == json!([queue]) && policy["PolicyDocument"]["Statement"] == denied
        });
        objections.unless(guarded, queue, "takes commands from others than its saga");
    }
    // Every queue that a state machine sends to must be guarded.
    for (id, actions, resources) in grants(subject) {
        if subject.is(id, "AWS::Serverless::StateMachine") && actions.contains(&"sqs:SendMessage") {
            for resource in resources {
                let known = COMMANDS.iter().any(|(queue, machine, _)| {
                    *machine == id && resource == format!("{queue}.Arn")
                });
                objections.unless(known, id, format!("sends to {resource}, which nothing guards"));
            }
        }
    }
    objections
}

pub fn events_of_known_sources(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let of_functions = subject.functions().into_iter().flat_map(|(id, function)| {
        let rules =
            members(&function["Events"]).filter(|(_, event)| event["Type"] == "EventBridgeRule");
        rules.map(move |(_, event)| (id, &event["Properties"]["Pattern"]))
    });
    let rules = subject.template.resources("AWS::Events::Rule").into_iter();
    let rules = rules.map(|(id, rule)| (id, &rule["Properties"]["EventPattern"]));
    for (id, pattern) in of_functions.chain(rules) {
        let types = texts(&pattern["detail-type"]);
        objections.unless(!types.is_empty(), id, "listens to events of any type");
        let foreign = types.iter().all(|it| FOREIGN.contains(it));
        let mut sources = items(&pattern["source"]).peekable();
        let some = sources.peek().is_some();
        let known = sources.all(|source| {
            if foreign {
                *source == json!({ "anything-but": { "prefix": "fieldstation." } })
            } else {
                *source == json!({ "prefix": "fieldstation." })
                    || text(source).starts_with("fieldstation.")
                    || text(source) == "aws.states"
            }
        });
        objections.unless(
            some && known,
            id,
            "takes events for ours that others sent, or the other way round",
        );
    }
    objections
}

pub fn secrets_stay_in_their_store(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let secret = |name: &str| {
        let name = name.to_lowercase();
        ["secret", "password", "token", "apikey", "api_key", "credential"]
            .iter()
            .any(|it| name.contains(it))
    };
    for (name, parameter) in members(&subject.template.0["Parameters"]) {
        let hidden = !secret(name) && text(&parameter["Default"]).find("sk_").is_none();
        objections.unless(hidden, name, "is a secret in a parameter");
    }
    for (id, function) in subject.functions() {
        for (name, _) in members(&function["Environment"]["Variables"]) {
            let reference = !secret(name) || name.ends_with("_ARN");
            objections.unless(reference, id, format!("has a secret in its environment: {name}"));
        }
    }
    for (id, text) in subject.texts() {
        objections.unless(!text.contains("{{resolve:"), id, "has a secret's value written into it");
    }
    for (id, secret) in subject.template.resources("AWS::SecretsManager::Secret") {
        let secret = &secret["Properties"];
        let made = secret["SecretString"].is_null() && secret["GenerateSecretString"].is_object();
        objections.unless(made, id, "has its value in the template");
    }
    objections
}

pub fn only_publishers_speak_for_us(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, actions, _) in grants(subject) {
        let publisher = PUBLISHERS.contains(&id);
        objections.unless(
            publisher || !actions.contains(&"events:PutEvents"),
            id,
            "may put events on the bus that no row of the event log stands behind",
        );
    }
    objections
}

pub fn our_sources_are_ours_alone(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let publishers = PUBLISHERS.map(|id| format!("{id}Role.Arn"));
    let denied = json!({
        "Effect": "Deny",
        "Principal": "*",
        "Action": "events:PutEvents",
        "Resource": "EventBus.Arn",
        "Condition": {
            "ForAnyValue:StringLike": { "events:source": "fieldstation.*" },
            "ArnNotEquals": { "aws:PrincipalArn": publishers },
        },
    });
    let policies = subject.template.resources("AWS::Events::EventBusPolicy");
    let guarded = policies.values().any(|policy| policy["Properties"]["Statement"] == denied);
    objections.unless(guarded, "EventBus", "takes events of our sources from others");
    let on = subject.template.0["Parameters"]["GuardEventSources"]["Default"] == "true";
    objections.unless(on, "GuardEventSources", "is off unless one asks for it");
    let settings = subject.file("samconfig.toml");
    let open = settings
        .split("\n[")
        .any(|part| !part.starts_with("local.") && part.contains("GuardEventSources=false"));
    objections.unless(
        !open,
        "samconfig.toml",
        "turns the guard off elsewhere than on the local stack",
    );
    objections
}
