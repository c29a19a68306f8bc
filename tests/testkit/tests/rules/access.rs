//! Rules: least privilege for roles, callers and senders.

use contracts::Plan;
use serde_json::{Value, json};
use testkit::template::is_mock;

use crate::subject::{Subject, Violations, items, members, text, texts};

/// Event types that only other systems send.
const INBOUND_EVENTS: [&str; 2] = ["KitsDelivered", "SiteRegistrationRequested"];
/// The functions that publish the event log to the bus and to the stream of all events.
const PUBLISHERS: [&str; 2] = ["PublishEventsFunction", "SweepEventsFunction"];
/// The command queues, each with the state machine that sends to it and the function that sends a deferred
/// command to it again.
const COMMAND_QUEUES: [(&str, &str, &str); 2] = [
    ("CancelSubscriptionQueue", "SiteTeardown", "CancelSubscriptionFunction"),
    ("InitializeSubscriptionQueue", "SiteOnboarding", "InitializeSubscriptionFunction"),
];
/// What a function may do with the table of the audit trail.
const AUDIT_ACTIONS: [&str; 2] = ["dynamodb:PutItem", "dynamodb:Query"];
/// The function that identifies the callers of the API.
const AUTHORIZER: &str = "AuthoriseCallerFunction";
/// The variables of API Gateway that a line of the access log may have. Of what a caller sends, a line has only the caller's
/// address and the method, because any other text may contain a key.
const LOGGED: [&str; 13] = [
    "authorizer.operatorId",
    "authorizer.scope",
    "authorizer.status",
    "error.responseType",
    "httpMethod",
    "identity.sourceIp",
    "requestId",
    "requestTime",
    "resourcePath",
    "responseLatency",
    "responseLength",
    "status",
    "xrayTraceId",
];

/// Returns the logical id of the function in the URI of a route or an authorizer.
fn function_of(uri: &Value) -> &str {
    text(uri)
        .split_once("functions/${")
        .and_then(|(_, rest)| rest.split_once(".Alias}"))
        .unwrap_or_default()
        .0
}

/// Returns the function that serves a route. API Gateway itself answers a route without one.
fn served_by(route: &Value) -> Option<&str> {
    (!is_mock(route)).then(|| function_of(&route["x-amazon-apigateway-integration"]["uri"]))
}

pub fn every_route_authenticates_its_caller(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (name, _, route) in subject.template.routes() {
        if served_by(route).is_some() {
            let authenticated = route["security"] == json!([{ "Caller": [] }]);
            violations.check(authenticated, name, "can be called without a key or a token");
            continue;
        }
        let responses = &route["x-amazon-apigateway-integration"]["responses"];
        let refused = members(responses).count() == 1
            && text(&responses["default"]["statusCode"]).starts_with('4');
        violations.check(refused, name, "is answered by API Gateway and is not an error");
    }
    let schemes =
        &subject.template.properties("Api")["DefinitionBody"]["components"]["securitySchemes"];
    let caller = &schemes["Caller"];
    let authorizer = &caller["x-amazon-apigateway-authorizer"];
    let custom = members(schemes).count() == 1
        && caller["x-amazon-apigateway-authtype"] == "custom"
        && caller["name"] == "Authorization"
        && authorizer["type"] == "request"
        && authorizer["identitySource"] == "method.request.header.Authorization";
    violations.check(
        custom,
        "Api",
        "the only scheme must be an authorizer of the header Authorization",
    );
    let function = function_of(&authorizer["authorizerUri"]);
    violations.check(function == AUTHORIZER, "Api", "its authorizer is not authorise-caller");
    let kept = authorizer["authorizerResultTtlInSeconds"].as_i64().unwrap_or(300);
    violations.check(kept <= 60, "Api", "a revoked key works for more than a minute");
    violations
}

pub fn requests_are_checked(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (name, of_path, route) in subject.template.routes() {
        for rest in name.split('{').skip(1) {
            let parameter = rest.split('}').next().unwrap_or_default().trim_end_matches('+');
            let declared =
                items(&of_path["parameters"]).chain(items(&route["parameters"])).any(|it| {
                    it["name"] == json!(parameter) && it["in"] == "path" && it["required"] == true
                });
            violations.check(
                declared,
                &name,
                format!("does not require its parameter {parameter}"),
            );
        }
        if let Some(function) = served_by(route)
            && ["PATCH", "POST", "PUT"].iter().any(|method| name.starts_with(method))
        {
            let module = testkit::template::kebab(function.trim_end_matches("Function"));
            let file = format!("/src/{}.rs", module.replace('-', "_"));
            let source = subject.under("functions/").find(|(path, _)| path.ends_with(&file));
            let limited = source.is_some_and(|(_, text)| {
                ["http::body(", "http::read("].iter().any(|limited| text.contains(limited))
            });
            violations.check(
                limited,
                &name,
                "does not limit its body: no call of http::body or http::read",
            );
        }
    }
    violations
}

pub fn calls_are_throttled(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let settings: Vec<_> = items(&subject.template.properties("Api")["MethodSettings"]).collect();
    for setting in &settings {
        let name = format!("{} {}", text(&setting["HttpMethod"]), text(&setting["ResourcePath"]));
        let number = |name: &str| setting[name].as_i64().unwrap_or(i64::MAX);
        let (rate, burst) = (number("ThrottlingRateLimit"), number("ThrottlingBurstLimit"));
        violations.check(
            (1..=1000).contains(&rate),
            &name,
            "allows more than 1,000 calls a second",
        );
        violations.check(
            burst <= rate.saturating_mul(2),
            &name,
            "allows bursts above twice the rate",
        );
    }
    let limit = |path: &str, method: &str| {
        let setting =
            settings.iter().find(|it| it["ResourcePath"] == path && it["HttpMethod"] == method);
        setting.and_then(|setting| setting["ThrottlingRateLimit"].as_i64()).unwrap_or(i64::MAX)
    };
    violations.check(
        limit("/*", "*") <= 1000,
        "* /*",
        "there is no limit for routes without their own limit",
    );
    // An operator that sends ten times its own limit must be refused by that limit. Its calls may use up only half of
    // what the stage accepts.
    let highest = Plan::ALL.iter().map(|plan| plan.rate_limit().per_second()).max();
    for setting in &settings {
        let (path, method) = (text(&setting["ResourcePath"]), text(&setting["HttpMethod"]));
        violations.check(
            limit(path, method) >= 20 * i64::from(highest.unwrap_or_default()),
            format!("{method} {path}"),
            "is not twice as high as ten times the limit of the largest plan",
        );
    }
    violations
}

pub fn sagas_are_limited(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let routes = subject.template.routes();
    for starting in ["POST /sites", "DELETE /sites/{siteId}"] {
        let route = routes.iter().find(|(name, ..)| name == starting);
        let function = route.and_then(|(_, _, route)| served_by(route)).unwrap_or_default();
        let name = testkit::template::kebab(function.trim_end_matches("Function"));
        let file = format!("/src/bin/{name}.rs");
        let source = subject.under("functions/").find(|(path, _)| path.ends_with(&file));
        violations.check(
            source.is_some_and(|(_, text)| text.contains("aws.limits()?.of_sagas()")),
            starting,
            "starts a saga, but does not take a token for it",
        );
    }
    violations
}

pub fn calls_are_logged(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let log = &subject.template.properties("Api")["AccessLogSetting"];
    let group = text(&log["DestinationArn"]).trim_end_matches(".Arn");
    violations.check(subject.is(group, "AWS::Logs::LogGroup"), "Api", "has no access log");
    let is_name = |it: char| it.is_ascii_alphanumeric() || it == '.' || it == '_';
    let variables = text(&log["Format"]).split('$').skip(1).map(|rest| {
        let end = rest.find(|it| !is_name(it)).unwrap_or(rest.len());
        rest[..end].trim_start_matches("context.")
    });
    let variables: Vec<_> = variables.collect();
    for needed in ["authorizer.operatorId", "authorizer.scope", "identity.sourceIp"] {
        let logged = variables.contains(&needed);
        violations.check(logged, "Api", format!("does not log {needed}"));
    }
    for variable in variables {
        let allowed = LOGGED.contains(&variable);
        violations.check(allowed, "Api", format!("logs {variable}, which may contain a key"));
    }
    violations
}

pub fn own_responses_are_not_kept(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let api = &subject.template.properties("Api")["DefinitionBody"];
    let no_store = json!("'no-store'");
    for (kind, response) in members(&api["x-amazon-apigateway-gateway-responses"]) {
        let header = &response["responseParameters"]["gatewayresponse.header.Cache-Control"];
        violations.check(*header == no_store, kind, "may be kept by a cache");
    }
    for (name, _, route) in subject.template.routes() {
        if served_by(route).is_none() {
            let responses = members(&route["x-amazon-apigateway-integration"]["responses"]);
            for (_, response) in responses {
                let header =
                    &response["responseParameters"]["method.response.header.Cache-Control"];
                violations.check(*header == no_store, &name, "may be kept by a cache");
            }
        }
    }
    violations
}

pub fn invocations_are_limited_to_one_route(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let mut allowed = Vec::new();
    for (id, permission) in subject.template.resources("AWS::Lambda::Permission") {
        let permission = &permission["Properties"];
        let (function, source) =
            (text(&permission["FunctionName"]), text(&permission["SourceArn"]));
        if source.ends_with("${Api}/authorizers/*") {
            let authorizer = function == format!("{AUTHORIZER}.Alias");
            violations.check(authorizer, id, "allows authorizers to invoke another function");
            allowed.push((function, "an authorizer".to_owned()));
            continue;
        }
        let route_of_source = source.rsplit_once("${Api}/${StageName}/");
        let (method, path) =
            route_of_source.and_then(|(_, route)| route.split_once('/')).unwrap_or_default();
        let one = !method.is_empty() && !method.contains('*') && !path.is_empty() && path != "*";
        violations.check(one, id, "allows more than one route of the API to invoke the function");
        allowed.push((function, format!("{method} /{path}")));
    }
    let authorizer = ("Api".to_owned(), "an authorizer".to_owned(), AUTHORIZER);
    let routes = subject.template.routes();
    let served = routes.iter().filter_map(|(name, _, route)| {
        let parts = name.split('/').map(|part| if part.starts_with('{') { "*" } else { part });
        Some((name.clone(), parts.collect::<Vec<_>>().join("/"), served_by(route)?))
    });
    for (name, source, function) in served.chain([authorizer]) {
        let function = format!("{function}.Alias");
        let allowed_call = allowed.iter().any(|(of, from)| *of == function && *from == source);
        violations.check(allowed_call, name, format!("may not invoke {function}"));
    }
    violations
}

pub fn roles_are_defined_in_the_template(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, function) in subject.functions() {
        let own = function["Role"].is_null()
            && items(&function["Policies"]).all(|it| it["Statement"].is_array());
        let any = function["Policies"].as_array().is_some_and(|all| !all.is_empty());
        violations.check(own && any, id, "has a role or policy that is not in the template");
    }
    for (id, machine) in subject.template.resources("AWS::Serverless::StateMachine") {
        let machine = &machine["Properties"];
        let own = machine["Role"].is_null()
            && items(&machine["Policies"]).all(|it| it["Statement"].is_array());
        violations.check(own, id, "has a role or policy that is not in the template");
    }
    for (id, role) in subject.template.resources("AWS::IAM::Role") {
        let managed = role["Properties"]["ManagedPolicyArns"].is_null();
        violations.check(managed, id, "has a managed policy");
    }
    violations
}

/// Returns the statements that allow something, each with its actions and resources.
fn grants(subject: &Subject) -> Vec<(&str, Vec<&str>, Vec<&str>)> {
    let statements = subject.statements().into_iter().filter(|(_, it)| it["Effect"] == "Allow");
    statements.map(|(id, it)| (id, texts(&it["Action"]), texts(&it["Resource"]))).collect()
}

pub fn policies_name_each_action(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, statement) in subject.statements() {
        if statement["Effect"] == "Allow" {
            let named = !texts(&statement["Action"]).iter().any(|action| action.contains('*'));
            let any = !texts(&statement["Action"]).is_empty() && statement["NotAction"].is_null();
            violations.check(named && any, id, "does not name each allowed action");
        }
    }
    violations
}

pub fn policies_name_each_resource(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
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
                violations.check(
                    ours || !resource.contains('*'),
                    format!("{id} {action}"),
                    format!("is allowed on {resource}"),
                );
            }
        }
    }
    for (id, statement) in subject.statements() {
        violations.check(statement["NotResource"].is_null(), id, "uses NotResource");
    }
    violations
}

pub fn no_table_is_scanned(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, actions, resources) in grants(subject) {
        let scans =
            actions.contains(&"dynamodb:Scan") || actions.contains(&"dynamodb:PartiQLSelect");
        for resource in resources {
            violations.check(!scans, format!("{id} {resource}"), "may be scanned");
        }
    }
    violations
}

pub fn the_audit_trail_is_only_added_to(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, actions, resources) in grants(subject) {
        let adds = actions.iter().all(|action| AUDIT_ACTIONS.contains(action));
        for resource in resources.into_iter().filter(|it| it.starts_with("AuditTable")) {
            violations.check(adds, format!("{id} {resource}"), "may change or delete an entry");
        }
    }
    violations
}

pub fn queue_policies_name_their_senders(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, policy) in subject.template.resources("AWS::SQS::QueuePolicy") {
        let statements = items(&policy["Properties"]["PolicyDocument"]["Statement"]);
        for statement in statements.filter(|statement| statement["Effect"] != "Deny") {
            let service = statement["Principal"]["Service"].is_string();
            let condition = &statement["Condition"];
            let named = !condition["ArnEquals"]["aws:SourceArn"].is_null()
                || condition["StringEquals"]["aws:SourceAccount"] == "AWS::AccountId";
            violations.check(
                service && named,
                id,
                "does not limit the senders to a service and a rule or account",
            );
        }
    }
    violations
}

pub fn command_queues_deny_other_senders(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (queue, machine, function) in COMMAND_QUEUES {
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
        violations.check(own, machine, "does not have the role path that its queue policy expects");
        let guarded = subject.template.resources("AWS::SQS::QueuePolicy").values().any(|policy| {
            let policy = &policy["Properties"];
            policy["Queues"] == json!([queue]) && policy["PolicyDocument"]["Statement"] == denied
        });
        violations.check(guarded, queue, "does not deny commands of other senders");
    }
    // Every queue that a state machine sends to must be guarded.
    for (id, actions, resources) in grants(subject) {
        if subject.is(id, "AWS::Serverless::StateMachine") && actions.contains(&"sqs:SendMessage") {
            for resource in resources {
                let known = COMMAND_QUEUES.iter().any(|(queue, machine, _)| {
                    *machine == id && resource == format!("{queue}.Arn")
                });
                violations.check(known, id, format!("sends to {resource}, which has no policy"));
            }
        }
    }
    violations
}

pub fn event_rules_match_known_sources(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let of_functions = subject.functions().into_iter().flat_map(|(id, function)| {
        let rules =
            members(&function["Events"]).filter(|(_, event)| event["Type"] == "EventBridgeRule");
        rules.map(move |(_, event)| (id, &event["Properties"]["Pattern"]))
    });
    let rules = subject.template.resources("AWS::Events::Rule").into_iter();
    let rules = rules.map(|(id, rule)| (id, &rule["Properties"]["EventPattern"]));
    for (id, pattern) in of_functions.chain(rules) {
        let types = texts(&pattern["detail-type"]);
        violations.check(!types.is_empty(), id, "matches events of any type");
        let foreign = types.iter().all(|it| INBOUND_EVENTS.contains(it));
        let mut sources = items(&pattern["source"]).peekable();
        let any = sources.peek().is_some();
        let known = sources.all(|source| {
            if foreign {
                *source == json!({ "anything-but": { "prefix": "fieldstation." } })
            } else {
                *source == json!({ "prefix": "fieldstation." })
                    || text(source).starts_with("fieldstation.")
                    || text(source) == "aws.states"
            }
        });
        violations.check(
            any && known,
            id,
            "does not distinguish events of Fieldstation from events of other systems",
        );
    }
    violations
}

pub fn secrets_are_in_secrets_manager(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let secret = |name: &str| {
        let name = name.to_lowercase();
        ["secret", "password", "token", "apikey", "api_key", "credential"]
            .iter()
            .any(|it| name.contains(it))
    };
    for (name, parameter) in members(&subject.template.0["Parameters"]) {
        let hidden = !secret(name) && text(&parameter["Default"]).find("sk_").is_none();
        violations.check(hidden, name, "contains a secret");
    }
    for (id, function) in subject.functions() {
        for (name, _) in members(&function["Environment"]["Variables"]) {
            let reference = !secret(name) || name.ends_with("_ARN");
            violations.check(
                reference,
                id,
                format!("has a secret in its environment variables: {name}"),
            );
        }
    }
    for (id, text) in subject.texts() {
        violations.check(
            !text.contains("{{resolve:"),
            id,
            "resolves a secret's value in the template",
        );
    }
    for (id, secret) in subject.template.resources("AWS::SecretsManager::Secret") {
        let secret = &secret["Properties"];
        let is_generated =
            secret["SecretString"].is_null() && secret["GenerateSecretString"].is_object();
        violations.check(is_generated, id, "has its value in the template");
    }
    violations
}

pub fn only_publishers_put_events(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, actions, resources) in grants(subject) {
        let publisher = PUBLISHERS.contains(&id);
        violations.check(
            publisher || !actions.contains(&"events:PutEvents"),
            id,
            "may put events on the bus without a row in the event log",
        );
        let is_stream =
            |it: &&str| *it == "EventsStream.Arn" || it.ends_with("stream/${Environment}-events");
        let puts = actions.iter().any(|action| action.starts_with("kinesis:Put"));
        violations.check(
            publisher || !puts || !resources.iter().any(is_stream),
            id,
            "may put records on the stream of all events without a row in the event log",
        );
    }
    violations
}

pub fn event_sources_are_reserved_for_publishers(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
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
    violations.check(
        guarded,
        "EventBus",
        "does not deny events with Fieldstation's sources from other senders",
    );
    let on = subject.template.0["Parameters"]["GuardEventSources"]["Default"] == "true";
    violations.check(on, "GuardEventSources", "is off by default");
    let settings = subject.file("samconfig.toml");
    let open = settings
        .split("\n[")
        .any(|part| !part.starts_with("local.") && part.contains("GuardEventSources=false"));
    violations.check(
        !open,
        "samconfig.toml",
        "turns the guard off for an environment other than the local stack",
    );
    violations
}
