//! What is kept is kept safely, and found by those who need it.

use serde_json::{Value, json};

use crate::subject::{Objections, Subject, items, members, text};

/// What others read of the stack: fieldctl, the tests, other stacks.
const CONTRACTS: [&str; 16] = [
    "AlertingTable",
    "ApiId",
    "ApiUrl",
    "BillingTable",
    "DevicesTable",
    "EventBusName",
    "EventsTable",
    "FailuresTable",
    "InventoryTable",
    "OnCallTopicArn",
    "ReadingsStreamName",
    "ReadingsTable",
    "RefusalsTable",
    "SiteOnboardingArn",
    "SiteTeardownArn",
    "SitesTable",
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
            // CloudWatch Logs and Secrets Manager encrypt by themselves.
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
    let outputs = &subject.template.0["Outputs"];
    for name in CONTRACTS {
        objections.unless(outputs[name]["Value"].is_string(), name, "is no output any more");
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
        objections.unless(shown.contains(&name), name, "is in no group of the parameters");
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
