//! Rules: stored data is safe, and other parts find it by its name.

use contracts::names;
use serde_json::{Value, json};

use crate::subject::{Objections, Subject, items, members, text};

/// The types of resources with fixed names that other parts use.
const CONTRACTS: [(&str, &str); 15] = [
    ("AWS::DynamoDB::Table", names::ALERTING),
    ("AWS::DynamoDB::Table", names::BILLING),
    ("AWS::DynamoDB::Table", names::DEVICES),
    ("AWS::DynamoDB::Table", names::EVENTS),
    ("AWS::DynamoDB::Table", names::FAILURES),
    ("AWS::DynamoDB::Table", names::INVENTORY),
    ("AWS::DynamoDB::Table", names::READINGS),
    ("AWS::DynamoDB::Table", names::REFUSALS),
    ("AWS::DynamoDB::Table", names::SITES),
    ("AWS::Events::EventBus", names::EVENTS),
    ("AWS::Kinesis::Stream", names::READINGS),
    ("AWS::SNS::Topic", names::ON_CALL),
    ("AWS::SecretsManager::Secret", names::STRIPE),
    ("AWS::Serverless::StateMachine", names::SITE_ONBOARDING),
    ("AWS::Serverless::StateMachine", names::SITE_TEARDOWN),
];

/// The types of resources that have fixed names, and the property with the name.
const FIXED: [(&str, &str); 6] = [
    ("AWS::DynamoDB::Table", "TableName"),
    ("AWS::Events::EventBus", "Name"),
    ("AWS::Kinesis::Stream", "Name"),
    ("AWS::SQS::Queue", "QueueName"),
    ("AWS::Serverless::Function", "FunctionName"),
    ("AWS::Serverless::StateMachine", "Name"),
];

fn kept(resource: &Value) -> bool {
    resource["DeletionPolicy"] == "RetainExceptOnCreate"
        && resource["UpdateReplacePolicy"] == "Retain"
}

pub fn tables_outlive_mistakes(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, table) in subject.template.resources("AWS::DynamoDB::Table") {
        objections.unless(kept(table), id, "goes with its stack");
        let table = &table["Properties"];
        let back = table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] == true;
        objections.unless(back, id, "can't be brought back to a point in time");
        let protected = table["DeletionProtectionEnabled"] == json!(["ProtectTables", true, false]);
        objections.unless(protected, id, "can be deleted in spite of DeletionProtection");
    }
    objections
}

pub fn tables_grow_with_their_load(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, table) in subject.template.resources("AWS::DynamoDB::Table") {
        let grows = table["Properties"]["BillingMode"] == "PAY_PER_REQUEST";
        objections.unless(grows, id, "throttles above a number that somebody guessed");
    }
    objections
}

pub fn everything_is_encrypted(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
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
        objections.unless(encrypted, id, "keeps data in plain text");
    }
    objections
}

pub fn buckets_are_private(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let policies = subject.template.resources("AWS::S3::BucketPolicy");
    for (id, bucket) in subject.template.resources("AWS::S3::Bucket") {
        objections.unless(kept(bucket), id, "goes with its stack");
        let bucket = &bucket["Properties"];
        let blocked = json!({
            "BlockPublicAcls": true, "BlockPublicPolicy": true,
            "IgnorePublicAcls": true, "RestrictPublicBuckets": true,
        });
        objections.unless(
            bucket["PublicAccessBlockConfiguration"] == blocked,
            id,
            "may be made public",
        );
        let owned =
            bucket["OwnershipControls"]["Rules"][0]["ObjectOwnership"] == "BucketOwnerEnforced";
        objections.unless(owned, id, "may hold objects of others");
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
        objections.unless(tls, id, "can be read without TLS");
    }
    objections
}

pub fn contracts_are_there(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (kind, name) in CONTRACTS {
        let named = subject
            .template
            .resources(kind)
            .into_keys()
            .any(|id| subject.template.fixed_name(id) == Some(name));
        objections.unless(named, name, format!("is the name of no {kind}"));
    }
    for (kind, property) in FIXED {
        for (id, resource) in subject.template.resources(kind) {
            let named = text(&resource["Properties"][property]).starts_with("${Environment}-");
            let secret = kind == "AWS::SecretsManager::Secret";
            // A secret that only its own service reads has a generated name.
            objections.unless(named || secret, id, format!("has no fixed name ({property})"));
        }
    }
    for output in ["ApiId", "ApiUrl"] {
        let there = subject.template.0["Outputs"][output]["Value"].is_string();
        objections.unless(there, output, "is not an output");
    }
    objections
}

pub fn parameters_are_grouped(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let interface =
        &subject.template.0["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"];
    let shown: Vec<_> =
        items(interface).flat_map(|group| items(&group["Parameters"])).map(text).collect();
    for (name, _) in members(&subject.template.0["Parameters"]) {
        // The root template passes the name of its stack as the environment's name.
        let grouped = name == "Environment" || shown.contains(&name);
        objections.unless(grouped, name, "is in no group of the parameters");
    }
    objections
}

pub fn production_is_careful(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let settings = subject.file("samconfig.toml").split("[prod.deploy.parameters]").nth(1);
    let settings = settings.and_then(|rest| rest.split("\n[").next()).unwrap_or_default();
    for careful in ["DeletionProtection=true", "GradualDeployment=true", "confirm_changeset = true"]
    {
        objections.unless(
            settings.contains(careful),
            "samconfig.toml",
            format!("production lacks {careful}"),
        );
    }
    objections
}
