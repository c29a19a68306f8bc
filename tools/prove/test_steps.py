"""Tests the steps that only AWS can prove, with responses like AWS's: expected and unexpected ones."""

import collections
import json
import os
import subprocess
import unittest
from pathlib import Path
from unittest import mock

import prove  # noqa: F401  First: the order of its imports is the order of the steps.
import botocore.exceptions
import deploying
import sagas
from environment import Environment, function_names
from steps import STEPS, NotProved, Skipped

ACCOUNT = "123456789012"
SITE = {"siteId": "site-1", "status": "ACTIVE", "sensors": [{"sensorId": "sensor-1"}], "onboarding": {"onboardingId": "onboarding-1", "failure": None}}


def refused(name):
    return botocore.exceptions.ClientError({"Error": {"Code": name, "Message": "no"}}, "Call")


class Fake(Environment):
    """An environment without AWS: its clients are mocks, and it does not wait."""

    def __init__(self, mode="root"):
        with mock.patch.dict(os.environ, {"AWS_DEFAULT_REGION": "eu-central-1"}):
            super().__init__("fieldstation-staging", mode, False, "fieldctl", log=lambda _: None)
        self.caller = {"Account": ACCOUNT, "Arn": f"arn:aws:iam::{ACCOUNT}:user/engineer"}
        self.clients = collections.defaultdict(mock.MagicMock)
        self.metrics = {}
        self.statuses = {}
        self.active_site = lambda: SITE

    def client(self, service):
        return self.clients[service]

    def pages(self, service, **by_operation):
        """Sets the pages of a client's paginators."""
        def paginator(operation):
            return mock.Mock(paginate=mock.Mock(return_value=by_operation[operation]))

        self.clients[service].get_paginator.side_effect = paginator

    def until(self, what, seconds, probe, pause=2):
        for _ in range(5):
            if found := probe():
                return found
        raise NotProved(f"timeout after {seconds} s, still waiting for: {what}")

    def metric(self, namespace, name, dimensions, seconds, statistic="Sum", period=60):
        return self.metrics.get((name, statistic), [])

    def physical_id(self, logical):
        return f"id-of-{logical}"


class Case(unittest.TestCase):
    def setUp(self):
        patch = mock.patch("time.sleep")
        self.slept = patch.start()
        self.addCleanup(patch.stop)

    def proved(self, name, env):
        seen = STEPS[name].run(env)
        env.clean_up()
        self.assertEqual([what for what in env.left if "kit" not in what and "version" not in what], [])
        return seen

    def not_proved(self, name, env, expected):
        with self.assertRaisesRegex(NotProved, expected):
            STEPS[name].run(env)
        env.clean_up()

    def skipped(self, name, env, expected):
        with self.assertRaisesRegex(Skipped, expected):
            STEPS[name].run(env)


class Bus(Case):
    def env(self, **entry):
        env = Fake()
        env.clients["events"].describe_event_bus.return_value = {"Policy": "{}"}
        env.clients["events"].put_events.return_value = {"FailedEntryCount": 0, "Entries": [entry]}
        return env

    def test_a_refused_event(self):
        self.assertIn("site-1", self.proved("foreign-sources", self.env(ErrorCode="AccessDeniedException")))
        env = self.env()
        env.clients["events"].put_events.side_effect = refused("AccessDeniedException")
        self.proved("foreign-sources", env)

    def test_an_accepted_event(self):
        self.not_proved("foreign-sources", self.env(EventId="1"), "was accepted")

    def test_an_event_that_is_refused_for_another_reason(self):
        self.not_proved("foreign-sources", self.env(ErrorCode="ThrottlingException"), "Throttling")

    def test_a_bus_without_a_policy(self):
        env = self.env()
        env.clients["events"].describe_event_bus.return_value = {}
        self.not_proved("foreign-sources", env, "GuardEventSources")


class DeadLetters(Case):
    POLICY = {"Statement": [
        {"Sid": "other", "Principal": {"Service": "apigateway.amazonaws.com"}, "Condition": {}},
        {"Sid": "rule", "Principal": {"Service": "events.amazonaws.com"}, "Condition": {"ArnLike": {"AWS:SourceArn": "arn:rule"}}},
    ]}

    def env(self, rows):
        env = Fake()
        env.clients["lambda"].get_policy.return_value = {"Policy": json.dumps(self.POLICY)}
        env.clients["events"].put_events.return_value = {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}
        env.open_failures = mock.Mock(return_value=rows)
        env.fieldctl = mock.Mock(return_value=(0, "{}"))
        env.clients["dynamodb"].get_item.return_value = {"Item": {"status": {"S": "REPLAYED"}}}
        return env

    def restored(self, env):
        env.clients["lambda"].add_permission.assert_called_once_with(
            FunctionName="fieldstation-staging-receive-kits", Qualifier="live", StatementId="rule", Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com", SourceArn="arn:rule")

    def test_a_dead_letter_becomes_a_failure_and_is_replayed(self):
        env = self.env([{"id": {"S": "failure-1"}, "error": {"M": {"name": {"S": "NO_PERMISSIONS"}}}}])
        self.assertIn("NO_PERMISSIONS", self.proved("dead-letter", env))
        env.fieldctl.assert_called_once_with("--json", "failures", "replay", "failure-1", "--yes")
        self.restored(env)

    def test_the_permission_is_restored_without_a_dead_letter(self):
        env = self.env([])
        self.not_proved("dead-letter", env, "no dead letter")
        self.restored(env)
        self.assertEqual(env.clients["events"].put_events.call_count, 5)


class Mappings(Case):
    def test_each_minute_has_a_count(self):
        env = Fake()
        env.metrics = {("PolledEventCount", "SampleCount"): [60.0] * 14, ("PolledEventCount", "Sum"): [0.0] * 13 + [2.0]}
        self.assertIn("14 of 15 minutes, 13 of them 0", self.proved("polled-events", env))
        env.metrics = {("PolledEventCount", "SampleCount"): [1.0] * 3}
        self.not_proved("polled-events", env, "in 3 of 15 minutes")

    def test_a_problem_of_a_mapping(self):
        env = Fake()
        env.configuration = lambda _: {"Role": "arn:aws:iam::1:role/store-readings-X"}
        env.mapping = lambda _: {"LastProcessingResult": "PROBLEM: access denied"}
        self.assertIn("PROBLEM", self.proved("mapping-problem", env))
        env.clients["iam"].delete_role_policy.assert_called_once_with(RoleName="store-readings-X", PolicyName="prove-on-aws")
        env.mapping = lambda _: {"LastProcessingResult": "No records processed"}
        self.not_proved("mapping-problem", env, "begins with PROBLEM")
        self.assertEqual(env.clients["iam"].delete_role_policy.call_count, 2)


class Throttles(Case):
    BOTH = [{"Name": "GlobalSecondaryIndexName", "Value": "byType"}, {"Name": "TableName", "Value": "events"}]

    def env(self, dimensions, listed):
        env = Fake()
        env.resources = [("events", "AWS::CloudWatch::Alarm", "Throttles", "throttles")]
        alarm = {"AlarmName": "throttles", "Namespace": "AWS/DynamoDB", "MetricName": "WriteThrottleEvents", "Dimensions": dimensions}
        env.pages("cloudwatch", describe_alarms=[{"MetricAlarms": [alarm]}])
        env.clients["cloudwatch"].list_metrics.return_value = {"Metrics": [{"Dimensions": each} for each in listed]}
        return env

    def test_both_dimensions(self):
        self.proved("index-throttles", self.env(self.BOTH, [self.BOTH[::-1]]))
        self.not_proved("index-throttles", self.env(self.BOTH[:1], []), "without its table")
        self.not_proved("index-throttles", self.env(self.BOTH, []), "run the step `saga` first")
        self.not_proved("index-throttles", self.env(self.BOTH, [self.BOTH + [{"Name": "Operation", "Value": "PutItem"}]]), "AWS has it by")
        self.not_proved("index-throttles", self.env(self.BOTH[1:], []), "no alarm is about an index")


class Metrics(Case):
    def env(self, listed):
        env = Fake()
        env.resources = [("failures", "AWS::CloudWatch::Alarm", "Checks", "checks"), ("failures", "AWS::CloudWatch::Alarm", "Errors", "errors")]
        dimensions = [{"Name": "function", "Value": "check"}]
        checks = {"AlarmName": "checks", "Namespace": "Fieldstation", "MetricName": "Checks", "Dimensions": dimensions, "TreatMissingData": "breaching"}
        errors = checks | {"AlarmName": "errors", "MetricName": "Errors", "TreatMissingData": "notBreaching"}
        others = checks | {"AlarmName": "of another environment", "MetricName": "Others"}
        env.clients["cloudwatch"].get_paginator.side_effect = lambda operation: mock.Mock(paginate=lambda **arguments: (
            [{"MetricAlarms": [checks, errors, others]}] if operation == "describe_alarms"
            else [{"Metrics": listed if arguments["Namespace"] == "Fieldstation" else []}]))
        return env

    def test_a_metric_that_must_have_data(self):
        right = {"MetricName": "Checks", "Dimensions": [{"Name": "function", "Value": "check"}]}
        self.assertIn("1 of 2 metrics of alarms have data, 1 other had", self.proved("metrics", self.env([right])))
        self.not_proved("metrics", self.env([]), "Checks")
        self.not_proved("metrics", self.env([right | {"Dimensions": [{"Name": "service", "Value": "check"}]}]), "Checks")


class Canary(Case):
    def env(self, status="UPDATE_ROLLBACK_COMPLETE", gradual="true", prices="basic=1"):
        env = Fake()
        env.stacks = {"billing": {"StackId": "stack-of-billing"}}
        parameters = [{"ParameterKey": "GradualDeployment", "ParameterValue": gradual}, {"ParameterKey": "StripePrices", "ParameterValue": prices}]
        env.stack = lambda name: {"StackStatus": status, "Parameters": parameters}
        env.live_version = lambda function: "7"
        env.invoke = mock.Mock(return_value=("Runtime.ExitError", {}))
        env.pages("cloudformation", describe_stack_events=[{"StackEvents": [
            {"ResourceStatus": "UPDATE_FAILED", "ResourceStatusReason": "CodeDeploy rolled back"}, {"ResourceStatus": "UPDATE_COMPLETE"}]}])
        return env

    def test_a_rollback(self):
        env = self.env()
        self.assertIn("CodeDeploy rolled back", self.proved("canary", env))
        update = env.clients["cloudformation"].update_stack.call_args.kwargs
        self.assertTrue(update["UsePreviousTemplate"])
        self.assertIn({"ParameterKey": "StripePrices", "ParameterValue": "no prices"}, update["Parameters"])
        self.assertIn({"ParameterKey": "GradualDeployment", "UsePreviousValue": True}, update["Parameters"])
        self.assertEqual(env.clients["cloudformation"].update_stack.call_count, 1, "the rollback has set the parameter back")

    def test_a_version_that_is_not_rolled_back(self):
        env = self.env("UPDATE_COMPLETE")
        found = [{"ParameterKey": "GradualDeployment", "ParameterValue": "true"}, {"ParameterKey": "StripePrices", "ParameterValue": "basic=1"}]

        def update(**arguments):
            found[1]["ParameterValue"] = arguments["Parameters"][1]["ParameterValue"]

        env.stack = lambda name: {"StackStatus": "UPDATE_COMPLETE", "Parameters": [dict(each) for each in found]}
        env.clients["cloudformation"].update_stack.side_effect = update
        self.not_proved("canary", env, "ended with UPDATE_COMPLETE")
        self.assertEqual(found[1]["ParameterValue"], "basic=1", "the parameter was not set back")

    def test_without_gradual_deployment(self):
        self.skipped("canary", self.env(gradual="false"), "GradualDeployment=false")


class Parameters(Case):
    def env(self, level_reaches_the_alias=True, keeps=("7", "8", "9")):
        env = Fake("services")
        env.resources = [("failures", "AWS::Lambda::Function", "X", "fieldstation-staging-record-failure")]
        level, version = ["INFO"], [7]

        def update(**arguments):
            level[0] = arguments["Parameters"][0]["ParameterValue"]
            version[0] += level_reaches_the_alias

        env.stack = lambda name: {"StackStatus": "UPDATE_COMPLETE", "Parameters": [{"ParameterKey": "LogLevel", "ParameterValue": level[0]}]}
        env.clients["cloudformation"].update_stack.side_effect = update
        env.configuration = lambda function: {
            "Version": str(version[0]), "CodeSha256": "x",
            "LoggingConfig": {"ApplicationLogLevel": level[0] if level_reaches_the_alias else "INFO"},
        }
        env.pages("lambda", list_event_source_mappings=[], list_versions_by_function=[{"Versions": [{"Version": each} for each in keeps]}])
        env.clients["cloudwatch"].describe_alarm_history.return_value = {"AlarmHistoryItems": []}
        env.level = level
        return env

    def test_a_parameter_that_reaches_the_alias_is_restored(self):
        env = self.env()
        self.proved("parameter", env)
        self.assertEqual(env.level, ["INFO"])

    def test_a_parameter_that_does_not_reach_the_alias(self):
        env = self.env(level_reaches_the_alias=False)
        self.not_proved("parameter", env, "still has the log level INFO")
        self.assertEqual(env.level, ["INFO"])

    def test_a_version_that_was_deleted(self):
        self.not_proved("parameter", self.env(keeps=("8",)), "version 7 of record-failure was deleted")

    def test_an_alarm_during_the_deployment(self):
        env = self.env()
        env.clients["cloudwatch"].describe_alarm_history.return_value = {"AlarmHistoryItems": [{"HistorySummary": "Alarm updated from OK to ALARM"}]}
        self.not_proved("parameter", env, "ConsumersNotRunning fired")

    def test_the_earlier_build(self):
        env = self.env()
        self.proved("redeploy", env)
        self.assertEqual(env.level, ["INFO"])


class Waiting(Case):
    def test_a_call_after_ten_minutes(self):
        env = Fake()
        env.api = mock.Mock(return_value=(404, {}, 0.2))
        self.assertIn("0.20 s", self.proved("freeze", env))
        self.slept.assert_called_once_with(630)
        env.api.side_effect = [(404, {}, 0.2), (502, "bad gateway", 30.0)]
        self.not_proved("freeze", env, "502")
        env.api.side_effect = [(404, {}, 0.2), (404, {}, 9.0)]
        self.not_proved("freeze", env, "took 9.0 s")
        env.api.side_effect = [(404, {}, 0.2)]
        env.metrics = {("Invocations", "Sum"): [2.0]}
        self.skipped("freeze", env, "2 times meanwhile")

    def env_of_alarms(self, rules_alarm=True):
        env = Fake()
        env.resources = [
            ("s", "AWS::Events::Rule", f"{name}FunctionEvery{often}", name)
            for name, often in (("ReportFailures", "Minute"), ("CheckConsumers", "Minute"), ("CheckSagas", "FiveMinutes"), ("SweepEvents", "Minute"))
        ]
        enabled, disabled = [True], set()
        env.clients["lambda"].update_event_source_mapping.side_effect = lambda UUID, Enabled: enabled.__setitem__(0, Enabled)
        env.clients["lambda"].get_event_source_mapping.side_effect = lambda UUID: {"State": "Enabled" if enabled[0] else "Disabled"}
        env.clients["events"].disable_rule.side_effect = lambda Name: disabled.add(Name)
        env.clients["events"].enable_rule.side_effect = lambda Name: disabled.discard(Name)

        def alarms(AlarmNames):
            of_mapping = "Polls" in AlarmNames[0] or "ConsumersNotRunning" in AlarmNames[0]
            on = not enabled[0] if of_mapping else bool(disabled) and rules_alarm
            return {"MetricAlarms": [{"StateValue": "ALARM" if on else "OK"}]}

        env.clients["cloudwatch"].describe_alarms.side_effect = alarms
        env.enabled, env.disabled = enabled, disabled
        return env

    def test_alarms_without_data(self):
        env = self.env_of_alarms()
        self.assertIn("SagaChecksAlarm", self.proved("alarms", env))
        self.assertEqual((env.enabled, env.disabled), ([True], set()))

    def test_an_alarm_that_does_not_fire(self):
        env = self.env_of_alarms(rules_alarm=False)
        self.not_proved("alarms", env, "FailureReportsAlarm fires")
        self.assertEqual((env.enabled, env.disabled), ([True], set()))


class Outages(Case):
    def env(self, deferred, dropped=(), dead=()):
        env = Fake()
        lines = [{"message": "command deferred onboarding-1"}] * deferred + [{"message": "command deferred onboarding-2"}]
        env.pages("logs", filter_log_events=[{"events": lines}])
        env.live_version = lambda function: "7"
        env.clients["lambda"].get_function_configuration.return_value = {
            "Environment": {"Variables": {"STRIPE_API_BASE": "https://api.stripe.com"}}, "State": "Active", "LastUpdateStatus": "Successful"}
        env.clients["lambda"].publish_version.return_value = {"Version": "8"}
        env.metrics = {("RecursiveInvocationsDropped", "Sum"): list(dropped)}
        env.open_failures = mock.Mock(return_value=list(dead))
        env.decommission = mock.Mock()
        env.site = lambda site: SITE | {"status": "DECOMMISSIONING"}
        env.await_site = mock.Mock()
        return env

    def run_hours(self):
        """A clock that advances ten minutes with each call."""
        clock = iter(range(0, 10 ** 9, 600))
        return mock.patch("outage.time.time", side_effect=lambda: next(clock))

    def test_a_command_that_is_deferred_and_completed(self):
        env = self.env(3)
        self.assertIn("deferred 3 times", self.proved("outage-short", env))
        self.assertEqual(
            [call.kwargs["FunctionVersion"] for call in env.clients["lambda"].update_alias.call_args_list], ["8", "7"], "first the broken version, then the good one")
        env.clients["lambda"].delete_function.assert_called_once_with(FunctionName="fieldstation-staging-cancel-subscription", Qualifier="8")
        variables = [call.kwargs["Environment"]["Variables"]["STRIPE_API_BASE"] for call in env.clients["lambda"].update_function_configuration.call_args_list]
        self.assertEqual(variables, ["https://192.0.2.1", "https://api.stripe.com"])

    def test_two_hours(self):
        with self.run_hours():
            env = self.env(30)
            env.until = lambda what, seconds, probe, pause=2: next(filter(None, (probe() for _ in range(50))))
            self.assertIn("deferred 30 times", self.proved("outage", env))
        with self.run_hours():
            self.not_proved("outage", self.env(16), "deferred 17 times")

    def test_unexpected_behaviour(self):
        self.not_proved("outage-short", self.env(2), "deferred 3 times")
        self.not_proved("outage-short", self.env(3, dropped=[1.0]), "dropped 1 invocations")
        self.not_proved("outage-short", self.env(3, dead=[{"id": {"S": "failure-1"}}]), "failure-1")


class Histories(Case):
    """The nested execution of a teardown, as the history of an onboarding names it."""

    def env(self, submitted, teardown="SUCCEEDED", onboarding="FAILED"):
        env = Fake()
        env.pages("stepfunctions", get_execution_history=[{"events": [
            {"type": "ExecutionStarted"}, {"type": "TaskSubmitted", "taskSubmittedEventDetails": {"output": json.dumps(submitted)}}]}])
        env.clients["stepfunctions"].describe_execution.side_effect = lambda executionArn: (
            {"status": teardown} if ":fieldstation-staging-site-teardown:" in executionArn else {"status": onboarding, "error": "CardDeclined"})
        return env

    def test_the_nested_execution(self):
        nested = {"ExecutionArn": "arn:aws:states:eu-central-1:1:execution:fieldstation-staging-site-teardown:x"}
        self.assertEqual(sagas.nested_teardown(self.env(nested), "o")[1], {"status": "SUCCEEDED"})
        self.assertIsNone(sagas.nested_teardown(self.env({"MessageId": "1"}), "o")[1])
        with self.assertRaisesRegex(NotProved, "RUNNING"):
            sagas.nested_teardown(self.env(nested, onboarding="RUNNING"), "o")


class Gateway(Case):
    def response(self, status, request="r1"):
        return mock.Mock(status=status, data=b"{}", headers={"Content-Type": "application/problem+json", "x-amzn-RequestId": request})

    def env(self, *lines):
        env = Fake()
        env.pages("logs", filter_log_events=[{"events": [{"message": json.dumps(line)} for line in lines]}])
        env.clients["lambda"].get_function_concurrency.return_value = {}
        return env

    def line(self, status, kind="-", request="r1"):
        return {
            "requestId": request, "resource": "/sites/{siteId}", "status": status, "responseType": kind, "time": "now", "operatorId": "c1"}

    def test_the_api(self):
        def refused(kind="application/problem+json", www="Bearer", wrong=None):
            def answer(method, path, authorization=None, content_type="application/json"):
                status = 404 if path == "/nothing" or content_type == "text/plain" else 405 if method == "HEAD" else 401
                return mock.Mock(status=wrong or status, headers={"Content-Type": kind, "WWW-Authenticate": www}, data=b"{}")
            return answer

        env = Fake()
        env.api = mock.Mock(return_value=(404, {"status": 404}, 0.2))
        env.response = refused()
        self.assertIn("every refused call is a problem document", self.proved("api", env))
        env.response = refused(kind="application/json")
        self.not_proved("api", env, "as application/json")
        env.response = refused(wrong=200)
        self.not_proved("api", env, "without a key returns 200")
        env.response = refused(www=None)
        self.not_proved("api", env, "no WWW-Authenticate")
        env.api.return_value = (404, "not found", 0.2)
        self.not_proved("api", env, "not a problem document")

    def test_the_access_log(self):
        def env(*lines):
            env = self.env(*lines)
            env.response = mock.Mock(return_value=self.response(404))
            return env

        other = self.line("500", request="r2")
        self.proved("access-logs", env(other, self.line("404")))
        self.not_proved("access-logs", env(), "is in the access log")
        self.not_proved("access-logs", env(other), "is in the access log")
        self.not_proved("access-logs", env(self.line("403")), "another status")
        self.not_proved("access-logs", env(self.line("404") | {"resource": "/{proxy+}"}), "another resource")

    def test_a_throttled_function(self):
        env = self.env(self.line("404"), self.line("500", "DEFAULT_5XX", "r2"))
        env.response = mock.Mock(side_effect=[self.response(404), self.response(500, "r2")])
        self.assertIn("500, as DEFAULT_5XX", self.proved("api-errors", env))
        env.clients["lambda"].delete_function_concurrency.assert_called_once()
        env = self.env(self.line("503", "INTEGRATION_FAILURE"))
        env.response = mock.Mock(return_value=self.response(503))
        self.not_proved("api-errors", env, "503 as INTEGRATION_FAILURE")
        env = self.env()
        env.clients["lambda"].get_function_concurrency.return_value = {"ReservedConcurrentExecutions": 7}
        env.response = mock.Mock(return_value=self.response(404))
        self.not_proved("api-errors", env, "returns 5xx")
        self.assertEqual(
            [call.kwargs["ReservedConcurrentExecutions"] for call in env.clients["lambda"].put_function_concurrency.call_args_list], [0, 7])


class Deployed(Case):
    def test_names(self):
        env = Fake()
        env.resources = [
            ("s", "AWS::IAM::Role", "XRole", "fieldstation-staging-XRole-1"),
            ("s", "AWS::Events::Rule", "R", "fieldstation-staging-events|fieldstation-staging-R"),
            ("s", "AWS::S3::Bucket", "B", "other"),
        ]
        self.assertIn("2 names", self.proved("names", env))
        env.resources.append(("s", "AWS::CloudWatch::Alarm", "A", "fieldstation-stag-A-1"))
        self.not_proved("names", env, "A is fieldstation-stag-A-1")

    def test_the_role_of_a_deployment(self):
        env = Fake()
        stack = {"StackName": "fieldstation-staging", "StackStatus": "UPDATE_COMPLETE"}
        env.stack = lambda name: stack | {"RoleARN": "arn:aws:iam::1:role/fieldstation-staging-cloudformation"}
        self.proved("deploy-role", env)
        env.stack = lambda name: stack | {"RoleARN": "arn:aws:iam::1:role/administrator"}
        self.not_proved("deploy-role", env, "administrator")
        env.stack = lambda name: stack
        self.skipped("deploy-role", env, "--role-arn")

    def test_the_failure_bucket(self):
        env = Fake()
        s3 = env.clients["s3"]
        s3.get_bucket_versioning.return_value = {"Status": "Enabled"}
        rules = [{"Expiration": {"Days": 365}}, {"NoncurrentVersionExpiration": {"NoncurrentDays": 35}}]
        s3.get_bucket_lifecycle_configuration.return_value = {"Rules": rules}
        queue = {"QueueArn": "arn:aws:sqs:eu-central-1:1:fieldstation-staging-failure-files"}
        s3.get_bucket_notification_configuration.return_value = {"QueueConfigurations": [queue]}
        self.proved("bucket", env)
        s3.get_bucket_notification_configuration.return_value = {}
        self.not_proved("bucket", env, "sends notifications to")
        s3.get_bucket_lifecycle_configuration.return_value = {"Rules": []}
        self.not_proved("bucket", env, "after no days")
        s3.get_bucket_versioning.return_value = {}
        self.not_proved("bucket", env, "versioning of fieldstation-staging-failures-123456789012-eu-central-1 is None")


class Reports(Case):
    def test_metrics_without_dimensions(self):
        env = Fake()
        found = {"Throttles": [[{"Name": "FunctionName", "Value": "x"}], []], "DestinationDeliveryFailures": []}
        env.clients["cloudwatch"].get_paginator.return_value.paginate = lambda Namespace, MetricName: [
            {"Metrics": [{"Dimensions": each} for each in found[MetricName]]}]
        self.assertIn("no reason", self.proved("account-metrics", env))
        found["DestinationDeliveryFailures"] = [[{"Name": "FunctionName", "Value": "x"}]]
        self.not_proved("account-metrics", env, "DestinationDeliveryFailures exists only with")
        found["Throttles"] = found["DestinationDeliveryFailures"]
        self.not_proved("account-metrics", env, "Throttles exists only with")

    def test_the_dashboard(self):
        env, functions = Fake(), len(function_names())
        expression = "SEARCH('{AWS/Lambda,FunctionName} MetricName=\"Invocations\" FunctionName=fieldstation', 'Sum', 300)"
        widgets = [{"properties": {"markdown": "x"}}, {"properties": {"title": "calls", "metrics": [["AWS/SQS", "x"], [{"expression": expression}]]}}]
        env.clients["cloudwatch"].get_dashboard.return_value = {"DashboardBody": json.dumps({"widgets": widgets})}
        env.clients["cloudwatch"].get_metric_data.return_value = {"MetricDataResults": [{}] * functions}
        self.assertIn(f"calls {functions}", self.proved("dashboard", env))
        env.clients["cloudwatch"].get_metric_data.return_value = {"MetricDataResults": []}
        self.not_proved("dashboard", env, f"finds 0 metrics of {functions}")

    def test_an_alarm_on_throttles(self):
        env = Fake()
        env.clients["cloudwatch"].describe_alarms.side_effect = [{"MetricAlarms": [{"StateValue": state}]} for state in ("ALARM", "OK")]
        self.proved("throttle-alarms", env)
        env.clients["cloudwatch"].describe_alarms.side_effect = None
        env.clients["cloudwatch"].describe_alarms.return_value = {"MetricAlarms": [{"StateValue": "ALARM"}]}
        self.not_proved("throttle-alarms", env, "is OK again")
        self.assertEqual(env.clients["cloudwatch"].set_alarm_state.call_args.kwargs["StateValue"], "OK")


class GivenUp(Case):
    def env(self, metrics, failures=()):
        env = Fake()
        env.metrics = metrics
        env.mapping = lambda _: {"UUID": "mapping-1", "MaximumRetryAttempts": 100}
        env.clients["lambda"].get_event_source_mapping.return_value = {"State": "Enabled"}
        env.clients["lambda"].get_function_configuration.return_value = {
            "Environment": {"Variables": {"READINGS_TABLE": "readings"}}, "State": "Active", "LastUpdateStatus": "Successful"}
        env.clients["lambda"].publish_version.return_value = {"Version": "8"}
        env.configuration = lambda _: {"Role": "arn:aws:iam::1:role/store-readings-X"}
        env.live_version = lambda function: "7"
        env.await_sensor = env.send_reading = env.await_reading = mock.Mock()
        env.open_failures = mock.Mock(return_value=list(failures))
        env.fieldctl = mock.Mock(return_value=(0, "{}"))
        env.clients["dynamodb"].get_item.return_value = {"Item": {"status": {"S": "REPLAYED"}}}
        return env

    def retries(self, env):
        return [call.kwargs["MaximumRetryAttempts"] for call in env.clients["lambda"].update_event_source_mapping.call_args_list]

    ROW = ({"id": {"S": "failure-1"}, "error": {"M": {"name": {"S": "RetryAttemptsExhausted"}}}},)

    def test_a_batch_in_the_bucket(self):
        delivered = {("OnFailureDestinationDeliveredEventCount", "Sum"): [1.0]}
        env = self.env(delivered, self.ROW)
        self.proved("given-up", env)
        self.assertEqual(self.retries(env), [1, 100])
        self.not_proved("given-up", self.env(delivered | {("DroppedEventCount", "Sum"): [1.0]}, self.ROW), "also counted as dropped")
        self.not_proved("given-up", self.env({}, self.ROW), "counts the record as OnFailure")
        env = self.env(delivered)
        self.not_proved("given-up", env, "is a failure")
        self.assertEqual(self.retries(env), [1, 100])

    def test_a_batch_that_is_dropped(self):
        env = self.env({("DroppedEventCount", "Sum"): [1.0]})
        self.proved("dropped", env)
        self.assertIn("s3:PutObject", env.clients["iam"].put_role_policy.call_args.kwargs["PolicyDocument"])
        env.clients["iam"].delete_role_policy.assert_called_once_with(RoleName="store-readings-X", PolicyName="prove-on-aws")
        self.assertEqual(self.retries(env), [1, 100])
        self.not_proved("dropped", self.env({}), "as dropped")


class Order(Case):
    """A stream with a shard that is split. The sequence number of a record is its position, unless a test changes it."""

    def env(self, order=lambda records: records, sequence=lambda position: position):
        env, stored = Fake(), {"shard-0": []}
        client, shards = env.clients["kinesis"], ["shard-0"]
        client.describe_stream_summary.return_value = {"StreamDescriptionSummary": {"StreamStatus": "ACTIVE"}}
        client.list_shards.side_effect = lambda **_: {"Shards": [{"ShardId": shard} for shard in stored]}
        refused_once = []

        def split(**_):
            stored.update({"shard-1": [], "shard-2": []})
            shards[:] = ["shard-1", "shard-2"]

        def put(StreamName, Records):
            results = []
            for record in Records:
                if record["PartitionKey"] == "site#3" and not refused_once:
                    refused_once.append(record)
                    results.append({"ErrorCode": "ProvisionedThroughputExceededException"})
                    continue
                stored[shards[len(record["PartitionKey"]) % len(shards)]].append(record)
                results.append({"SequenceNumber": str(sequence(sum(map(len, stored.values()))))})
            return {"Records": results}

        def read(ShardIterator):
            return {"Records": order(stored[ShardIterator]), "MillisBehindLatest": 0}

        client.split_shard.side_effect = split
        client.put_records.side_effect = put
        client.get_shard_iterator.side_effect = lambda ShardId, **_: {"ShardIterator": ShardId}
        client.get_records.side_effect = read
        return env

    def test_records_in_order(self):
        env = self.env()
        self.assertIn("over 3 shards", self.proved("events-order", env))
        env.clients["kinesis"].delete_stream.assert_called_once_with(StreamName="fieldstation-staging-proof-order")

    def test_records_out_of_order(self):
        self.not_proved("events-order", self.env(sequence=lambda position: 10_000 - position), "sequence number")
        self.not_proved("events-order", self.env(order=lambda records: records[::-1]), "were read as")
        self.not_proved("events-order", self.env(order=lambda records: records[:-20]), "were read as")
        self.not_proved("events-order", self.env(order=lambda records: []), "0 of 20 keys")


class FailedDeployment(Case):
    def env(self, status="ROLLBACK_COMPLETE", kept=("sites", "billing")):
        env = Fake()
        env.resources = [("s", "AWS::DynamoDB::Table", name, name) for name in ("Sites", "Billing")]
        created = []

        def stack(name):
            if name in created:
                return {"StackStatus": status, "Parameters": []}
            parameters = [{"ParameterKey": key, "ParameterValue": "true"} for key in ("ManageApiGatewayLogging", "DeletionProtection")]
            return {"StackStatus": "CREATE_COMPLETE", "Parameters": parameters} if name == env.name else None

        env.stack = stack
        env.clients["cloudformation"].get_template.return_value = {"TemplateBody": {"Resources": {}}}
        env.clients["cloudformation"].delete_stack.side_effect = lambda StackName: created.remove(StackName)
        env.created, env.first = created, []
        env.clients["dynamodb"].get_paginator.side_effect = lambda _: mock.Mock(paginate=lambda: [{"TableNames": [
            "fieldstation-staging-sites", *(f"{name}-{table}" for name in env.first or created for table in kept)]}])

        def create(**arguments):
            created.append(arguments["StackName"])
            env.first.append(arguments["StackName"])

        env.clients["cloudformation"].create_stack.side_effect = create
        env.clients["s3"].list_buckets.return_value = {"Buckets": []}
        env.clients["secretsmanager"].get_paginator.side_effect = lambda _: mock.Mock(paginate=lambda Filters: [{"SecretList": [
            {"Name": f"{name}-{secret}", "ARN": f"arn:{secret}"}
            for name in ("fieldstation-staging", *env.first) for secret in ("stripe", "first-administrator")]}])
        return env

    def test_tables_are_kept_and_removed_afterwards(self):
        env = self.env()
        self.assertIn("2 tables were kept", self.proved("failed-deployment", env))
        arguments = env.clients["cloudformation"].create_stack.call_args.kwargs
        given = {each["ParameterKey"]: each["ParameterValue"] for each in arguments["Parameters"]}
        self.assertEqual((given["ManageApiGatewayLogging"], given["DeletionProtection"]), ("false", "false"))
        self.assertEqual(env.created, [])
        deleted = [call.kwargs["TableName"] for call in env.clients["dynamodb"].delete_table.call_args_list]
        self.assertEqual(deleted, [f"{env.first[0]}-sites", f"{env.first[0]}-billing"], "a table of the tested environment was deleted")
        deleted = [call.kwargs for call in env.clients["secretsmanager"].delete_secret.call_args_list]
        expected = [{"SecretId": f"arn:{name}", "ForceDeleteWithoutRecovery": True} for name in ("stripe", "first-administrator")]
        self.assertEqual(deleted, expected, "a secret of the tested environment was deleted, or one was left behind")

    def test_unexpected_behaviour(self):
        self.not_proved("failed-deployment", self.env("CREATE_COMPLETE"), "ended with CREATE_COMPLETE")
        env = self.env(kept=("sites",))
        self.not_proved("failed-deployment", env, "1 of 2 tables were kept")
        self.assertEqual(env.created, [])

    def test_the_tested_environment_is_never_removed(self):
        env = self.env()
        with self.assertRaises(ValueError):
            deploying.remove_environment(env, env.name)
        env.clients["cloudformation"].delete_stack.assert_not_called()


class Others(Case):
    def test_settings_of_github(self):
        def responses(environments, rulesets):
            texts = iter([json.dumps({"environments": [{"name": name} for name in environments]}), json.dumps([{"name": name} for name in rulesets])])
            run = mock.patch("github.subprocess.run", side_effect=lambda *_, **__: subprocess.CompletedProcess([], 0, next(texts), ""))
            return run

        with mock.patch("github.shutil.which", return_value="/usr/bin/gh"):
            with responses(["staging", "prod"], ["main"]):
                self.proved("github-settings", Fake())
            with responses(["staging"], ["main"]):
                self.not_proved("github-settings", Fake(), "environments are: staging")
            with responses(["staging", "prod"], []):
                self.not_proved("github-settings", Fake(), "no ruleset")

    def test_workflows_that_ran(self):
        def response(text, status=0):
            return mock.patch("github.subprocess.run", return_value=subprocess.CompletedProcess([], status, text, "no repository"))

        with mock.patch("github.shutil.which", return_value="/usr/bin/gh"):
            with response('[{"url": "https://example.com/1", "createdAt": "2027-01-01T00:00:00Z", "event": "push"}]'):
                self.assertIn("prod.yml 2027-01-01", self.proved("workflows", Fake()))
            with response("[]"):
                self.not_proved("workflows", Fake(), "staging.yml has never succeeded")
            with response("", 1):
                self.skipped("workflows", Fake(), "no repository")
        with mock.patch("github.shutil.which", return_value=None):
            self.skipped("workflows", Fake(), "gh was not found")

    def test_an_import(self):
        env = Fake()
        env.stacks = {"sites": {"StackId": "stack"}}
        events = [{"ResourceStatus": "IMPORT_COMPLETE", "ResourceType": "AWS::DynamoDB::Table", "LogicalResourceId": "SitesTable"}]
        env.pages("cloudformation", describe_stack_events=[{"StackEvents": events}])
        self.assertIn("sites/SitesTable", self.proved("upgrade", env))
        env.pages("cloudformation", describe_stack_events=[{"StackEvents": []}])
        self.skipped("upgrade", env, "imported")

    def test_every_step_that_the_emulator_cant_show_is_run_here_or_by_services_test(self):
        run = Path(__file__).read_text()
        for step in STEPS.values():
            if step.not_on_emulator:
                self.assertIn(f'"{step.name}"', run, f"no test runs the step {step.name}")


if __name__ == "__main__":
    unittest.main()
