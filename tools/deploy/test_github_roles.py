"""Tests that the roles of github-roles.yaml can deploy the resources of the templates, and only those of the environment."""

import fnmatch
import json
import re
import unittest

import yaml
from samcli.yamlhelper import yaml_parse

import bootstrap
import services
from transform import PRODUCTION, transformed

TEMPLATE = services.ROOT / "tools" / "deploy" / "github-roles.yaml"
# The values of the template's references. The environment's name has the maximum length.
VALUES = {
    "Environment": "e" * 25, "AWS::Partition": "aws", "AWS::Region": "ap-southeast-1", "AWS::AccountId": "123456789012",
    "ArtifactBucket": "aws-sam-cli-managed-default-samclisourcebucket-1a2b3c4d5e6f",
    "Repository": "owner/repository", "DeployEnvironment": "deploy", "SmokeEnvironment": "smoke",
}
# The first call of CloudFormation to create a resource of each type.
CREATES = {
    "AWS::ApiGateway::Account": "apigateway:PATCH",
    "AWS::ApiGateway::Deployment": "apigateway:POST",
    "AWS::ApiGateway::RestApi": "apigateway:POST",
    "AWS::ApiGateway::Stage": "apigateway:POST",
    "AWS::CloudFormation::Stack": "cloudformation:CreateStack",
    "AWS::CloudWatch::Alarm": "cloudwatch:PutMetricAlarm",
    "AWS::CloudWatch::Dashboard": "cloudwatch:PutDashboard",
    "AWS::CodeDeploy::Application": "codedeploy:CreateApplication",
    "AWS::CodeDeploy::DeploymentConfig": "codedeploy:CreateDeploymentConfig",
    "AWS::CodeDeploy::DeploymentGroup": "codedeploy:CreateDeploymentGroup",
    "AWS::DynamoDB::Table": "dynamodb:CreateTable",
    "AWS::Events::EventBus": "events:CreateEventBus",
    "AWS::Events::EventBusPolicy": "events:PutPermission",
    "AWS::Events::Rule": "events:PutRule",
    "AWS::IAM::Role": "iam:CreateRole",
    "AWS::Kinesis::Stream": "kinesis:CreateStream",
    "AWS::Lambda::Alias": "lambda:CreateAlias",
    "AWS::Lambda::EventInvokeConfig": "lambda:PutFunctionEventInvokeConfig",
    "AWS::Lambda::EventSourceMapping": "lambda:CreateEventSourceMapping",
    "AWS::Lambda::Function": "lambda:CreateFunction",
    "AWS::Lambda::Permission": "lambda:AddPermission",
    "AWS::Lambda::Version": "lambda:PublishVersion",
    "AWS::Logs::LogGroup": "logs:CreateLogGroup",
    "AWS::S3::Bucket": "s3:CreateBucket",
    "AWS::S3::BucketPolicy": "s3:PutBucketPolicy",
    "AWS::SNS::Subscription": "sns:Subscribe",
    "AWS::SNS::Topic": "sns:CreateTopic",
    "AWS::SNS::TopicPolicy": "sns:SetTopicAttributes",
    "AWS::SQS::Queue": "sqs:CreateQueue",
    "AWS::SQS::QueuePolicy": "sqs:SetQueueAttributes",
    "AWS::SecretsManager::Secret": "secretsmanager:CreateSecret",
    "AWS::StepFunctions::StateMachine": "states:CreateStateMachine",
}
# Resources wider than the environment, with their allowed actions (None: any). The template gives the reason for each.
WIDE = {
    "*": {
        "lambda:CreateEventSourceMapping", "lambda:DeleteEventSourceMapping", "lambda:GetEventSourceMapping",
        "lambda:UpdateEventSourceMapping", "logs:DescribeLogGroups", "secretsmanager:GetRandomPassword",
        "sns:GetSubscriptionAttributes", "sns:SetSubscriptionAttributes", "sns:Unsubscribe",
    },
    "arn:aws:apigateway:ap-southeast-1::/restapis": None,
    "arn:aws:apigateway:ap-southeast-1::/restapis/*": None,
    "arn:aws:apigateway:ap-southeast-1::/tags/*": None,
    "arn:aws:apigateway:ap-southeast-1::/account": {"apigateway:GET", "apigateway:PATCH"},
    "arn:aws:cloudformation:ap-southeast-1:aws:transform/Serverless-2016-10-31": {"cloudformation:CreateChangeSet"},
    "arn:aws:cloudformation:ap-southeast-1:123456789012:stack/aws-sam-cli-managed-default/*": {"cloudformation:DescribeStacks"},
    f"arn:aws:s3:::{VALUES['ArtifactBucket']}": None,
    f"arn:aws:s3:::{VALUES['ArtifactBucket']}/*": {"s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"},
}


def resolved(value):
    """Resolves the substitutions in a value."""
    if isinstance(value, dict):
        if list(value) == ["Fn::Sub"]:
            return re.sub(r"\$\{([\w:]+)\}", lambda found: VALUES[found[1]], value["Fn::Sub"])
        return {key: resolved(each) for key, each in value.items()}
    return [resolved(each) for each in value] if isinstance(value, list) else value


def as_list(value):
    return value if isinstance(value, list) else [value]


class Roles(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.resources = resolved(yaml_parse(TEMPLATE.read_text())["Resources"])
        cls.roles = {name: it for name, it in cls.resources.items() if it["Type"] == "AWS::IAM::Role"}
        stacks = [transformed(services.ROOT / "functions" / it / "template.yaml", PRODUCTION) for it in services.services()]
        cls.deployed = [resource for stack in stacks for resource in stack["Resources"].values()]

    def documents(self, kind=None):
        """Yields (logical id, document) of each policy."""
        for name, resource in self.resources.items():
            properties = resource["Properties"]
            for policy in properties.get("Policies", []):
                yield name, policy["PolicyDocument"]
            if "PolicyDocument" in properties and kind in (None, resource["Type"]):
                yield name, properties["PolicyDocument"]

    def cloudformation(self):
        return [it for name, document in self.documents("AWS::IAM::ManagedPolicy") if name.endswith("Policy") for it in document["Statement"]]

    def test_a_role_can_be_assumed_only_from_one_environment_of_one_repository(self):
        subjects = {"DeployRole": "deploy", "BootstrapRole": "deploy", "SmokeRole": "smoke"}
        for name, role in self.roles.items():
            (statement,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            if name == "CloudFormationRole":
                self.assertEqual(statement["Principal"], {"Service": "cloudformation.amazonaws.com"})
                continue
            issuer = "token.actions.githubusercontent.com"
            expected = {f"{issuer}:aud": "sts.amazonaws.com", f"{issuer}:sub": f"repo:owner/repository:environment:{subjects.pop(name)}"}
            self.assertEqual(statement["Condition"], {"StringEquals": expected}, name)
        self.assertEqual(subjects, {})

    def test_no_action_has_a_wildcard_and_each_wide_resource_is_known(self):
        unused = set(WIDE)
        for name, document in self.documents():
            for statement in document["Statement"]:
                actions = as_list(statement["Action"])
                self.assertFalse([it for it in actions if "*" in it], name)
                for resource in as_list(statement["Resource"]):
                    if isinstance(resource, str) and VALUES["Environment"] not in resource:
                        self.assertIn(resource, WIDE, name)
                        unused.discard(resource)
                        self.assertLessEqual(set(actions), WIDE[resource] or set(actions), resource)
        self.assertEqual(unused, set())

    def test_an_environment_with_the_same_prefix_does_not_match(self):
        # fieldstation-*, and never fieldstation*.
        for name, document in self.documents():
            for statement in document["Statement"]:
                for resource in as_list(statement["Resource"]):
                    if isinstance(resource, str):
                        self.assertNotIn(VALUES["Environment"] + "*", resource, name)

    def test_no_role_of_this_template_can_be_changed_by_a_deployment(self):
        names = [f"arn:aws:iam::123456789012:role/github/{it['Properties']['RoleName']}" for it in self.roles.values()]
        self.assertTrue(all(it["Properties"]["Path"] == "/github/" for it in self.roles.values()))
        patterns = [pattern for it in self.cloudformation() for pattern in as_list(it["Resource"]) if ":iam:" in pattern]
        self.assertTrue(patterns)
        self.assertFalse([name for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)])

    def test_cloudformation_can_create_every_resource_of_the_templates(self):
        granted = {action for it in self.cloudformation() for action in as_list(it["Action"])}
        types = {it["Type"] for it in self.deployed} | {"AWS::CloudFormation::Stack"}
        self.assertEqual(types - set(CREATES), set(), "new types: grant their permissions in github-roles.yaml, and add them here")
        self.assertEqual({it: CREATES[it] for it in types if CREATES[it] not in granted}, {})
        self.assertEqual(set(CREATES) - types, set(), "the templates no longer have such resources")

    def test_exactly_the_managed_policies_of_the_templates_may_be_attached(self):
        roles = [it["Properties"] for it in self.deployed if it["Type"] == "AWS::IAM::Role"]
        attached = {resolved(arn) for it in roles for arn in it.get("ManagedPolicyArns", [])}
        (statement,) = [it for it in self.cloudformation() if "iam:AttachRolePolicy" in it["Action"]]
        self.assertEqual(set(statement["Condition"]["ArnEquals"]["iam:PolicyARN"]), attached)

    def test_roles_are_passed_to_exactly_the_services_that_assume_them(self):
        trusts = [it["Properties"]["AssumeRolePolicyDocument"] for it in self.deployed if it["Type"] == "AWS::IAM::Role"]
        services_that_assume = {service for it in trusts for statement in it["Statement"] for service in as_list(statement["Principal"]["Service"])}
        (statement,) = [it for it in self.cloudformation() if it["Action"] == "iam:PassRole"]
        self.assertEqual(set(statement["Condition"]["StringEquals"]["iam:PassedToService"]), services_that_assume)

    def test_every_policy_is_within_the_size_limit_of_iam(self):
        # IAM does not count white space: 6,144 characters of a managed policy, 10,240 of a role's inline policies.
        for name, document in self.documents():
            size = len(json.dumps(document, separators=(",", ":")))
            limit = 6144 if self.resources[name]["Type"] == "AWS::IAM::ManagedPolicy" else 10240
            self.assertLess(size, limit, name)

    def test_the_bootstrap_may_send_its_own_event(self):
        statements = [it for name, document in self.documents() if name == "BootstrapRole" for it in document["Statement"]]
        (statement,) = [it for it in statements if it["Action"] == "events:PutEvents"]
        self.assertEqual(statement["Condition"]["StringEquals"]["events:source"], bootstrap.SOURCE)

    def test_production_has_no_role_that_writes(self):
        writers = ("POST", "DELETE", "PutEvents", "PutSecretValue")
        for name, document in self.documents():
            if name in ("SmokeRole", "BootstrapRole") and any(it in json.dumps(document) for it in writers):
                self.assertEqual(self.resources[name].get("Condition"), "MayWrite", name)

    def test_the_template_has_no_aliases(self):
        # CloudFormation refuses YAML aliases.
        self.assertFalse([it for it in yaml.parse(TEMPLATE.read_text()) if isinstance(it, yaml.AliasEvent)])


if __name__ == "__main__":
    unittest.main()
