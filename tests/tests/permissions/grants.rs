//! The grants of the template: the actions that the role of each function and state machine allows, with their
//! resources.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;
use testkit::template::{Template, kebab};
use tests::Stack;

/// An action that a role allows on a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// The function, such as `create-site`, or the state machine, such as `site-teardown`.
    pub grantee: String,
    /// The action, such as `dynamodb:PutItem`.
    pub action: String,
    /// The resource as the template has it, without tags: `SitesTable.Arn`, `${SitesTable.Arn}/index/byStatus`.
    pub resource: String,
}

impl Grant {
    /// Returns the resource in the format of the table of owners: `SitesTable`, `SitesTable/index/byStatus`,
    /// `executions of SiteOnboarding`.
    pub fn resource_name(&self) -> String {
        name(&self.resource)
    }
}

/// Returns the functions and state machines by the logical ids of their roles, which SAM derives.
pub fn roles(template: &Template) -> BTreeMap<String, String> {
    let functions = template.functions().into_iter();
    let functions = functions.map(|name| (format!("{name}FunctionRole"), kebab(name)));
    let machines = template.resources("AWS::Serverless::StateMachine").into_keys();
    let machines = machines.map(|name| (format!("{name}Role"), kebab(name)));
    functions.chain(machines).collect()
}

/// Returns the service of each function and state machine: the service whose template contains it.
pub fn services() -> BTreeMap<String, String> {
    let templates = Template::services().into_iter();
    let owned = templates.flat_map(|(service, template)| {
        let grantees = roles(&template).into_values().collect::<Vec<_>>();
        grantees.into_iter().map(move |grantee| (grantee, service.clone()))
    });
    owned.collect()
}

/// Returns every grant of the template, including the one that SAM adds: Lambda sends a failed asynchronous
/// event to its destination with the function's role. The managed policies for writing logs and traces, which
/// SAM adds to all roles, are omitted.
pub fn grants(template: &Template) -> BTreeSet<Grant> {
    let mut grants = BTreeSet::new();
    for kind in ["AWS::Serverless::Function", "AWS::Serverless::StateMachine"] {
        for (id, resource) in template.resources(kind) {
            let grantee = kebab(id.strip_suffix("Function").unwrap_or(id));
            let properties = &resource["Properties"];
            // This test does not see the permissions of a role or policy from elsewhere.
            assert_eq!(properties["Role"], Value::Null, "{grantee}: this test can't check it");
            let policies = properties["Policies"].as_array();
            for policy in policies.unwrap_or_else(|| panic!("{grantee}: Policies is not a list")) {
                for statement in policy["Statement"].as_array().expect("a policy has statements") {
                    let keys: Vec<_> =
                        statement.as_object().expect("a statement is an object").keys().collect();
                    assert_eq!(
                        keys,
                        ["Action", "Effect", "Resource"],
                        "{grantee}: this test can't check it"
                    );
                    assert_eq!(statement["Effect"], "Allow", "{grantee}: this test can't check it");
                    for action in texts(&statement["Action"]) {
                        for resource in texts(&statement["Resource"]) {
                            let (grantee, action) = (grantee.clone(), action.clone());
                            grants.insert(Grant { grantee, action, resource });
                        }
                    }
                }
            }
            let on_failure = &properties["EventInvokeConfig"]["DestinationConfig"]["OnFailure"];
            if let Some(queue) = on_failure["Destination"].as_str() {
                let (action, resource) = ("sqs:SendMessage".to_owned(), queue.to_owned());
                grants.insert(Grant { grantee, action, resource });
            }
        }
    }
    grants
}

/// Returns the elements of a list of strings, or a single string as a list.
fn texts(value: &Value) -> Vec<String> {
    let texts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    texts.iter().map(|text| text.as_str().expect("it is a string").to_owned()).collect()
}

/// Formats `${SitesTable.Arn}/index/byStatus` as `SitesTable/index/byStatus`.
fn name(resource: &str) -> String {
    let plain = |reference: &str| {
        let id = reference.split('.').next().unwrap_or_default();
        match reference.rsplit_once('.') {
            Some((_, "StreamArn")) => format!("{id}/stream"),
            _ => id.to_owned(),
        }
    };
    if let Some((_, execution)) = resource.split_once(":execution:${") {
        return format!("executions of {}", plain(execution.trim_end_matches("}:*")));
    }
    if let Some((_, queues)) = resource.split_once(":sqs:") {
        return format!("queues {}", queues.rsplit("${Environment}-").next().unwrap_or_default());
    }
    if let Some((_, rule)) = resource.split_once(":rule/") {
        return format!("rule {rule}");
    }
    match resource.strip_prefix("${").and_then(|rest| rest.split_once('}')) {
        Some((reference, rest)) => plain(reference) + rest,
        None => plain(resource),
    }
}

/// The names of the deployed resources.
#[derive(Debug)]
pub struct Deployed {
    environment: String,
    kinds: BTreeMap<String, String>,
    ids: BTreeMap<String, String>,
}

impl Deployed {
    /// Reads the physical ids from the stack.
    pub async fn read(stack: &Stack, template: &Template) -> Result<Self> {
        let mut deployed = Self {
            environment: stack.name().to_owned(),
            kinds: BTreeMap::new(),
            ids: BTreeMap::new(),
        };
        for (id, resource) in
            template.0["Resources"].as_object().context("the template has no resources")?
        {
            let kind = resource["Type"].as_str().unwrap_or_default();
            if ARNS.iter().any(|(known, _)| *known == kind) {
                deployed.ids.insert(id.clone(), stack.physical_id(id).await?);
                deployed.kinds.insert(id.clone(), kind.to_owned());
            }
        }
        for role in roles(template).into_keys() {
            deployed.ids.insert(role.clone(), stack.physical_id(&role).await?);
        }
        Ok(deployed)
    }

    /// Returns the physical id for a logical id.
    pub fn id(&self, logical: &str) -> &str {
        self.ids.get(logical).unwrap_or_else(|| panic!("{logical} is not deployed"))
    }

    /// Returns the path and the name of a role. Roles of state machines have a path of their own.
    pub fn role(&self, logical: &str, grantee: &str) -> String {
        match logical.strip_suffix("FunctionRole") {
            Some(_) => self.id(logical).to_owned(),
            None => format!("{}/{grantee}/{}", self.environment, self.id(logical)),
        }
    }

    /// Returns the ARN of a grant's resource. It has a `*` where the grant has one, and for unknown parts (the time in
    /// a stream's name, the random letters after a secret's name).
    pub fn arn(&self, resource: &str) -> String {
        if self.kinds.contains_key(resource.split('.').next().unwrap_or_default()) {
            return self.reference(resource);
        }
        let mut arn = String::new();
        let mut rest = resource;
        while let Some((before, after)) = rest.split_once("${") {
            let (reference, after) = after.split_once('}').expect("a reference ends with a brace");
            arn += before;
            arn += &match reference {
                "AWS::Partition" => "aws".to_owned(),
                "AWS::Region" => "us-east-1".to_owned(),
                "AWS::AccountId" => ACCOUNT.to_owned(),
                "Environment" => self.environment.clone(),
                _ => self.reference(reference),
            };
            rest = after;
        }
        arn + rest
    }

    fn reference(&self, reference: &str) -> String {
        let (id, attribute) = reference.split_once('.').unwrap_or((reference, ""));
        let kind = self.kinds.get(id).unwrap_or_else(|| panic!("unknown reference {reference}"));
        let name = self.id(id).rsplit(['/', ':']).next().unwrap_or_default();
        let (_, arn) = ARNS.iter().find(|(known, _)| known == kind).expect("ARNS has every kind");
        let arn = arn.replace("{account}", ACCOUNT).replace("{name}", name);
        match attribute {
            "Name" => name.to_owned(),
            "StreamArn" => format!("{arn}/stream/*"),
            _ => arn,
        }
    }
}

/// The emulator's account.
pub const ACCOUNT: &str = "000000000000";

/// The types of resources in grants, and their ARNs.
const ARNS: &[(&str, &str)] = &[
    ("AWS::DynamoDB::Table", "arn:aws:dynamodb:us-east-1:{account}:table/{name}"),
    ("AWS::Events::EventBus", "arn:aws:events:us-east-1:{account}:event-bus/{name}"),
    ("AWS::Kinesis::Stream", "arn:aws:kinesis:us-east-1:{account}:stream/{name}"),
    (
        "AWS::Lambda::EventSourceMapping",
        "arn:aws:lambda:us-east-1:{account}:event-source-mapping:{name}",
    ),
    ("AWS::S3::Bucket", "arn:aws:s3:::{name}"),
    ("AWS::SQS::Queue", "arn:aws:sqs:us-east-1:{account}:{name}"),
    ("AWS::SecretsManager::Secret", "arn:aws:secretsmanager:us-east-1:{account}:secret:{name}-*"),
    ("AWS::Serverless::Function", "arn:aws:lambda:us-east-1:{account}:function:{name}:live"),
    ("AWS::Serverless::StateMachine", "arn:aws:states:us-east-1:{account}:stateMachine:{name}"),
];

/// Returns whether the text matches the pattern, in which `*` matches any text.
pub fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            starts.into_iter().any(|at| matches(after, &rest[at..]))
        }),
    }
}
