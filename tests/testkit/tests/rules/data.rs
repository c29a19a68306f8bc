//! Rules: stored data is safe, and other services find it by its name.

use contracts::names;
use serde_json::{Value, json};

use crate::subject::{Subject, Violations, items, members, text};

/// The resources that other services, fieldctl and the tests find by their fixed names.
const NAMED_RESOURCES: [(&str, &str); 24] = [
    ("AWS::DynamoDB::Table", names::ALERTING),
    ("AWS::DynamoDB::Table", names::AUDIT),
    ("AWS::DynamoDB::Table", names::BILLING),
    ("AWS::DynamoDB::Table", names::DEVICES),
    ("AWS::DynamoDB::Table", names::EVENTS),
    ("AWS::DynamoDB::Table", names::EVENT_GUARDS),
    ("AWS::DynamoDB::Table", names::FAILURES),
    ("AWS::DynamoDB::Table", names::INVENTORY),
    ("AWS::DynamoDB::Table", names::KEYS),
    ("AWS::DynamoDB::Table", names::LIMITS),
    ("AWS::DynamoDB::Table", names::NETWORK),
    ("AWS::DynamoDB::Table", names::OPERATORS),
    ("AWS::DynamoDB::Table", names::READINGS),
    ("AWS::DynamoDB::Table", names::REFUSALS),
    ("AWS::DynamoDB::Table", names::SITES),
    ("AWS::Events::EventBus", names::EVENTS),
    ("AWS::Kinesis::Stream", names::EVENTS),
    ("AWS::Kinesis::Stream", names::READINGS),
    ("AWS::SNS::Topic", names::ON_CALL),
    ("AWS::SNS::Topic", names::STOCK),
    ("AWS::SecretsManager::Secret", names::FIRST_ADMINISTRATOR),
    ("AWS::SecretsManager::Secret", names::STRIPE),
    ("AWS::Serverless::StateMachine", names::SITE_ONBOARDING),
    ("AWS::Serverless::StateMachine", names::SITE_TEARDOWN),
];

/// The types of resources whose names are always fixed, and the property with the name. A secret that only its own
/// service reads has a generated name.
const FIXED_NAME_PROPERTIES: [(&str, &str); 6] = [
    ("AWS::DynamoDB::Table", "TableName"),
    ("AWS::Events::EventBus", "Name"),
    ("AWS::Kinesis::Stream", "Name"),
    ("AWS::SQS::Queue", "QueueName"),
    ("AWS::Serverless::Function", "FunctionName"),
    ("AWS::Serverless::StateMachine", "Name"),
];

fn is_retained(resource: &Value) -> bool {
    resource["DeletionPolicy"] == "RetainExceptOnCreate"
        && resource["UpdateReplacePolicy"] == "Retain"
}

pub fn tables_are_retained_and_recoverable(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, table) in subject.template.resources("AWS::DynamoDB::Table") {
        violations.check(is_retained(table), id, "is deleted with its stack");
        let table = &table["Properties"];
        let recoverable =
            table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] == true;
        violations.check(recoverable, id, "has no point-in-time recovery");
        let protected = table["DeletionProtectionEnabled"] == json!(["ProtectTables", true, false]);
        violations.check(protected, id, "is not protected by the parameter DeletionProtection");
    }
    violations
}

pub fn tables_have_on_demand_capacity(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, table) in subject.template.resources("AWS::DynamoDB::Table") {
        let on_demand = table["Properties"]["BillingMode"] == "PAY_PER_REQUEST";
        violations.check(on_demand, id, "does not have on-demand capacity");
    }
    violations
}

pub fn stored_data_is_encrypted(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let resources = subject.template.0["Resources"].as_object().into_iter().flatten();
    for (id, resource) in resources {
        let properties = &resource["Properties"];
        let encrypted = match text(&resource["Type"]) {
            "AWS::DynamoDB::Table" => properties["SSESpecification"]["SSEEnabled"] == true,
            "AWS::SQS::Queue" => properties["SqsManagedSseEnabled"] == true,
            "AWS::Kinesis::Stream" => {
                properties["StreamEncryption"]
                    == json!({ "EncryptionType": "KMS", "KeyId": "alias/aws/kinesis" })
            }
            "AWS::S3::Bucket" => {
                let rules = &properties["BucketEncryption"]["ServerSideEncryptionConfiguration"];
                items(rules)
                    .any(|rule| rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256")
            }
            "AWS::SNS::Topic" => properties["KmsMasterKeyId"].is_string(),
            // CloudWatch Logs and Secrets Manager encrypt without a setting.
            _ => true,
        };
        violations.check(encrypted, id, "is not encrypted");
    }
    violations
}

pub fn buckets_are_private(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let policies = subject.template.resources("AWS::S3::BucketPolicy");
    for (id, bucket) in subject.template.resources("AWS::S3::Bucket") {
        violations.check(is_retained(bucket), id, "is deleted with its stack");
        let bucket = &bucket["Properties"];
        let blocked = json!({
            "BlockPublicAcls": true, "BlockPublicPolicy": true,
            "IgnorePublicAcls": true, "RestrictPublicBuckets": true,
        });
        violations.check(
            bucket["PublicAccessBlockConfiguration"] == blocked,
            id,
            "does not block public access",
        );
        let owned =
            bucket["OwnershipControls"]["Rules"][0]["ObjectOwnership"] == "BucketOwnerEnforced";
        violations.check(owned, id, "may contain objects of other accounts");
        let tls = policies.values().map(|policy| &policy["Properties"]).any(|policy| {
            policy["Bucket"] == json!(id)
                && items(&policy["PolicyDocument"]["Statement"]).any(|it| {
                    it["Effect"] == "Deny"
                        && it["Principal"] == "*"
                        && it["Action"] == "s3:*"
                        && it["Resource"]
                            == json!([format!("{id}.Arn"), format!("${{{id}.Arn}}/*")])
                        && it["Condition"] == json!({ "Bool": { "aws:SecureTransport": "false" } })
                })
        });
        violations.check(tls, id, "does not require TLS");
    }
    violations
}

pub fn fixed_names_and_outputs_exist(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (kind, name) in NAMED_RESOURCES {
        let named = subject
            .template
            .resources(kind)
            .into_keys()
            .any(|id| subject.template.fixed_name(id) == Some(name));
        violations.check(named, name, format!("is not the name of a {kind}"));
    }
    for id in subject.template.resources("AWS::DynamoDB::Table").into_keys() {
        let listed =
            NAMED_RESOURCES.iter().any(|(_, name)| subject.template.fixed_name(id) == Some(*name));
        violations.check(listed, id, "is not in NAMED_RESOURCES");
    }
    for (kind, property) in FIXED_NAME_PROPERTIES {
        for (id, resource) in subject.template.resources(kind) {
            let named = text(&resource["Properties"][property]).starts_with("${Environment}-");
            violations.check(named, id, format!("has no fixed name ({property})"));
        }
    }
    for output in ["ApiId", "ApiUrl"] {
        let exists = subject.template.0["Outputs"][output]["Value"].is_string();
        violations.check(exists, output, "is not an output");
    }
    violations
}

pub fn parameters_are_grouped(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let interface =
        &subject.template.0["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"];
    let grouped_names: Vec<_> =
        items(interface).flat_map(|group| items(&group["Parameters"])).map(text).collect();
    for (name, _) in members(&subject.template.0["Parameters"]) {
        // The root template passes the name of its stack as the environment's name.
        let grouped = name == "Environment" || grouped_names.contains(&name);
        violations.check(grouped, name, "is not in a parameter group");
    }
    violations
}

pub fn production_settings_are_safe(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let settings = subject.file("samconfig.toml").split("[prod.deploy.parameters]").nth(1);
    let settings = settings.and_then(|rest| rest.split("\n[").next()).unwrap_or_default();
    for setting in ["DeletionProtection=true", "GradualDeployment=true", "confirm_changeset = true"]
    {
        violations.check(
            settings.contains(setting),
            "samconfig.toml",
            format!("production does not have {setting}"),
        );
    }
    violations
}
