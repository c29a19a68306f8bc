"""Steps that only AWS can prove, against answers as AWS gives them: right ones, and wrong ones."""

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
from environment import Environment
from steps import STEPS, NotProved, Skipped

ACCOUNT = "123456789012"
SITE = {"siteId": "site-1", "status": "ACTIVE", "sensors": [{"sensorId": "sensor-1"}], "onboarding": {"onboardingId": "onboarding-1", "failure": None}}


def refused(name):
    return botocore.exceptions.ClientError({"Error": {"Code": name, "Message": "no"}}, "Call")


class Fake(Environment):
    """An environment without AWS: its clients are mocks, and it waits for nothing."""

    def __init__(self, mode="root"):
        with mock.patch.dict(os.environ, {"AWS_DEFAULT_REGION": "eu-central-1"}):
            super().__init__("fieldstation-staging", mode, False, "fieldctl", say=lambda _: None)
        self.caller = {"Account": ACCOUNT, "Arn": f"arn:aws:iam::{ACCOUNT}:user/engineer"}
        self.clients = collections.defaultdict(mock.MagicMock)
        self.metrics = {}
        self.statuses = {}
        self.active_site = lambda: SITE

    def client(self, service):
        return self.clients[service]

    def pages(self, service, **by_operation):
        """What the paginators of a client answer."""
        def paginator(operation):
            return mock.Mock(paginate=mock.Mock(return_value=by_operation[operation]))

        self.clients[service].get_paginator.side_effect = paginator

    def until(self, what, seconds, probe, pause=2):
        for _ in range(5):
            if found := probe():
                return found
        raise NotProved(f"not within {seconds} s: {what}")

    def metric(self, namespace, name, dimensions, seconds, statistic="Sum", period=60):
        return self.metrics.get((name, statistic), [])

    def physical_id(self, logical):
        return f"id-of-{logical}"


class Case(unittest.TestCase):
    def setUp(self):
        patch = mock.patch("time.sleep")
        self.slept = patch.start()
        self.addCleanup(patch.stop)

    def proved(self, name, of):
        seen = STEPS[name].run(of)
        of.clean_up()
        self.assertEqual([what for what in of.left if "kit" not in what and "version" not in what], [])
        return seen

    def not_proved(self, name, of, wanted):
        with self.assertRaisesRegex(NotProved, wanted):
            STEPS[name].run(of)
        of.clean_up()

    def skipped(self, name, of, wanted):
        with self.assertRaisesRegex(Skipped, wanted):
            STEPS[name].run(of)


class Bus(Case):
    def of(self, **entry):
        of = Fake()
        of.clients["events"].describe_event_bus.return_value = {"Policy": "{}"}
        of.clients["events"].put_events.return_value = {"FailedEntryCount": 0, "Entries": [entry]}
        return of

    def test_a_refused_event(self):
        self.assertIn("site-1", self.proved("foreign-sources", self.of(ErrorCode="AccessDeniedException")))
        of = self.of()
        of.clients["events"].put_events.side_effect = refused("AccessDeniedException")
        self.proved("foreign-sources", of)

    def test_an_accepted_event(self):
        self.not_proved("foreign-sources", self.of(EventId="1"), "was accepted")

    def test_an_event_that_is_refused_for_another_reason(self):
        self.not_proved("foreign-sources", self.of(ErrorCode="ThrottlingException"), "Throttling")

    def test_a_bus_without_a_policy(self):
        of = self.of()
        of.clients["events"].describe_event_bus.return_value = {}
        self.not_proved("foreign-sources", of, "GuardEventSources")


class DeadLetters(Case):
    POLICY = {"Statement": [
        {"Sid": "other", "Principal": {"Service": "apigateway.amazonaws.com"}, "Condition": {}},
        {"Sid": "rule", "Principal": {"Service": "events.amazonaws.com"}, "Condition": {"ArnLike": {"AWS:SourceArn": "arn:rule"}}},
    ]}

    def of(self, rows):
        of = Fake()
        of.clients["lambda"].get_policy.return_value = {"Policy": json.dumps(self.POLICY)}
        of.clients["events"].put_events.return_value = {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}
        of.open_failures = mock.Mock(return_value=rows)
        of.fieldctl = mock.Mock(return_value=(0, "{}"))
        of.clients["dynamodb"].get_item.return_value = {"Item": {"status": {"S": "REPLAYED"}}}
        return of

    def restored(self, of):
        of.clients["lambda"].add_permission.assert_called_once_with(
            FunctionName="fieldstation-staging-receive-kits", Qualifier="live", StatementId="rule", Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com", SourceArn="arn:rule")

    def test_a_dead_letter_becomes_a_failure_and_is_replayed(self):
        of = self.of([{"id": {"S": "failure-1"}, "error": {"M": {"name": {"S": "NO_PERMISSIONS"}}}}])
        self.assertIn("NO_PERMISSIONS", self.proved("dead-letter", of))
        of.fieldctl.assert_called_once_with("--json", "failures", "replay", "failure-1", "--yes")
        self.restored(of)

    def test_the_permission_comes_back_when_no_dead_letter_comes(self):
        of = self.of([])
        self.not_proved("dead-letter", of, "no dead letter")
        self.restored(of)
        self.assertEqual(of.clients["events"].put_events.call_count, 5)


class Mappings(Case):
    def test_each_minute_has_a_count(self):
        of = Fake()
        of.metrics = {("PolledEventCount", "SampleCount"): [60.0] * 14, ("PolledEventCount", "Sum"): [0.0] * 13 + [2.0]}
        self.assertIn("14 of 15 minutes, 13 of them 0", self.proved("polled-events", of))
        of.metrics = {("PolledEventCount", "SampleCount"): [1.0] * 3}
        self.not_proved("polled-events", of, "in 3 of 15 minutes")

    def test_a_problem_of_a_mapping(self):
        of = Fake()
        of.configuration = lambda _: {"Role": "arn:aws:iam::1:role/store-readings-X"}
        of.mapping = lambda _: {"LastProcessingResult": "PROBLEM: access denied"}
        self.assertIn("PROBLEM", self.proved("mapping-problem", of))
        of.clients["iam"].delete_role_policy.assert_called_once_with(RoleName="store-readings-X", PolicyName="prove-on-aws")
        of.mapping = lambda _: {"LastProcessingResult": "No records processed"}
        self.not_proved("mapping-problem", of, "begins with PROBLEM")
        self.assertEqual(of.clients["iam"].delete_role_policy.call_count, 2)


class Throttles(Case):
    BOTH = [{"Name": "GlobalSecondaryIndexName", "Value": "byType"}, {"Name": "TableName", "Value": "events"}]

    def of(self, dimensions, listed):
        of = Fake()
        of.resources = [("events", "AWS::CloudWatch::Alarm", "Throttles", "throttles")]
        alarm = {"AlarmName": "throttles", "Namespace": "AWS/DynamoDB", "MetricName": "WriteThrottleEvents", "Dimensions": dimensions}
        of.pages("cloudwatch", describe_alarms=[{"MetricAlarms": [alarm]}])
        of.clients["cloudwatch"].list_metrics.return_value = {"Metrics": [{"Dimensions": each} for each in listed]}
        return of

    def test_both_dimensions(self):
        self.proved("index-throttles", self.of(self.BOTH, [self.BOTH[::-1]]))
        self.not_proved("index-throttles", self.of(self.BOTH[:1], []), "without its table")
        self.not_proved("index-throttles", self.of(self.BOTH, []), "run the step `saga` first")
        self.not_proved("index-throttles", self.of(self.BOTH, [self.BOTH + [{"Name": "Operation", "Value": "PutItem"}]]), "AWS has it by")
        self.not_proved("index-throttles", self.of(self.BOTH[1:], []), "no alarm looks at an index")


class Metrics(Case):
    def of(self, listed):
        of = Fake()
        of.resources = [("failures", "AWS::CloudWatch::Alarm", "Checks", "checks"), ("failures", "AWS::CloudWatch::Alarm", "Errors", "errors")]
        dimensions = [{"Name": "function", "Value": "check"}]
        checks = {"AlarmName": "checks", "Namespace": "Fieldstation", "MetricName": "Checks", "Dimensions": dimensions, "TreatMissingData": "breaching"}
        errors = checks | {"AlarmName": "errors", "MetricName": "Errors", "TreatMissingData": "notBreaching"}
        others = checks | {"AlarmName": "of another environment", "MetricName": "Others"}
        of.clients["cloudwatch"].get_paginator.side_effect = lambda operation: mock.Mock(paginate=lambda **arguments: (
            [{"MetricAlarms": [checks, errors, others]}] if operation == "describe_alarms"
            else [{"Metrics": listed if arguments["Namespace"] == "Fieldstation" else []}]))
        return of

    def test_a_metric_that_must_have_data(self):
        right = {"MetricName": "Checks", "Dimensions": [{"Name": "function", "Value": "check"}]}
        self.assertIn("1 of 2 metrics of alarms have data, 1 other had", self.proved("metrics", self.of([right])))
        self.not_proved("metrics", self.of([]), "Checks")
        self.not_proved("metrics", self.of([right | {"Dimensions": [{"Name": "service", "Value": "check"}]}]), "Checks")


class Canary(Case):
    def of(self, status="UPDATE_ROLLBACK_COMPLETE", gradual="true", prices="basic=1"):
        of = Fake()
        of.stacks = {"billing": {"StackId": "stack-of-billing"}}
        parameters = [{"ParameterKey": "GradualDeployment", "ParameterValue": gradual}, {"ParameterKey": "StripePrices", "ParameterValue": prices}]
        of.stack = lambda name: {"StackStatus": status, "Parameters": parameters}
        of.live_version = lambda function: "7"
        of.invoke = mock.Mock(return_value=("Runtime.ExitError", {}))
        of.pages("cloudformation", describe_stack_events=[{"StackEvents": [
            {"ResourceStatus": "UPDATE_FAILED", "ResourceStatusReason": "CodeDeploy rolled back"}, {"ResourceStatus": "UPDATE_COMPLETE"}]}])
        return of

    def test_a_rollback(self):
        of = self.of()
        self.assertIn("CodeDeploy rolled back", self.proved("canary", of))
        update = of.clients["cloudformation"].update_stack.call_args.kwargs
        self.assertTrue(update["UsePreviousTemplate"])
        self.assertIn({"ParameterKey": "StripePrices", "ParameterValue": "no prices"}, update["Parameters"])
        self.assertIn({"ParameterKey": "GradualDeployment", "UsePreviousValue": True}, update["Parameters"])
        self.assertEqual(of.clients["cloudformation"].update_stack.call_count, 1, "the rollback has set the parameter back")

    def test_a_version_that_stays(self):
        of = self.of("UPDATE_COMPLETE")
        found = [{"ParameterKey": "GradualDeployment", "ParameterValue": "true"}, {"ParameterKey": "StripePrices", "ParameterValue": "basic=1"}]

        def update(**arguments):
            found[1]["ParameterValue"] = arguments["Parameters"][1]["ParameterValue"]

        of.stack = lambda name: {"StackStatus": "UPDATE_COMPLETE", "Parameters": [dict(each) for each in found]}
        of.clients["cloudformation"].update_stack.side_effect = update
        self.not_proved("canary", of, "ended with UPDATE_COMPLETE")
        self.assertEqual(found[1]["ParameterValue"], "basic=1", "the parameter was not set back")

    def test_without_gradual_deployment(self):
        self.skipped("canary", self.of(gradual="false"), "GradualDeployment=false")


class Parameters(Case):
    def of(self, level_reaches_the_alias=True, keeps=("7", "8", "9")):
        of = Fake("services")
        of.resources = [("failures", "AWS::Lambda::Function", "X", "fieldstation-staging-record-failure")]
        level, version = ["INFO"], [7]

        def update(**arguments):
            level[0] = arguments["Parameters"][0]["ParameterValue"]
            version[0] += level_reaches_the_alias

        of.stack = lambda name: {"StackStatus": "UPDATE_COMPLETE", "Parameters": [{"ParameterKey": "LogLevel", "ParameterValue": level[0]}]}
        of.clients["cloudformation"].update_stack.side_effect = update
        of.configuration = lambda function: {
            "Version": str(version[0]), "CodeSha256": "x",
            "LoggingConfig": {"ApplicationLogLevel": level[0] if level_reaches_the_alias else "INFO"},
        }
        of.pages("lambda", list_event_source_mappings=[], list_versions_by_function=[{"Versions": [{"Version": each} for each in keeps]}])
        of.clients["cloudwatch"].describe_alarm_history.return_value = {"AlarmHistoryItems": []}
        of.level = level
        return of

    def test_a_parameter_that_reaches_the_alias_and_comes_back(self):
        of = self.of()
        self.proved("parameter", of)
        self.assertEqual(of.level, ["INFO"])

    def test_a_parameter_that_does_not(self):
        of = self.of(level_reaches_the_alias=False)
        self.not_proved("parameter", of, "still logs from INFO on")
        self.assertEqual(of.level, ["INFO"])

    def test_a_version_that_was_deleted(self):
        self.not_proved("parameter", self.of(keeps=("8",)), "version 7 of record-failure was deleted")

    def test_an_alarm_during_the_deployment(self):
        of = self.of()
        of.clients["cloudwatch"].describe_alarm_history.return_value = {"AlarmHistoryItems": [{"HistorySummary": "Alarm updated from OK to ALARM"}]}
        self.not_proved("parameter", of, "ConsumersNotRunning went off")

    def test_the_earlier_build(self):
        of = self.of()
        self.proved("redeploy", of)
        self.assertEqual(of.level, ["INFO"])


class Stage(Case):
    def of(self, answers):
        of = Fake()
        pool = [""]

        def update(**arguments):
            pool[0] = arguments["Parameters"][0]["ParameterValue"]

        of.stack = lambda name: {"StackStatus": "UPDATE_COMPLETE", "Parameters": [{"ParameterKey": "UserPoolArn", "ParameterValue": pool[0]}]}
        of.clients["cloudformation"].update_stack.side_effect = update
        of.clients["cognito-idp"].create_user_pool.return_value = {"UserPool": {"Id": "pool-1", "Arn": "arn:pool"}}
        of.api = lambda method, path: (answers[pool[0]], {}, 0.1)
        of.pool = pool
        return of

    def test_the_stage_follows_its_definition(self):
        of = self.of({"": 404, "arn:pool": 401})
        self.proved("stage", of)
        self.assertEqual(of.pool, [""])
        of.clients["cognito-idp"].delete_user_pool.assert_called_once_with(UserPoolId="pool-1")

    def test_a_stage_that_stays_as_it_was(self):
        of = self.of({"": 404, "arn:pool": 404})
        self.not_proved("stage", of, "asks for a token")
        self.assertEqual(of.pool, [""])
        of.clients["cognito-idp"].delete_user_pool.assert_called_once_with(UserPoolId="pool-1")


class Waiting(Case):
    def test_a_call_after_ten_minutes(self):
        of = Fake()
        of.api = mock.Mock(return_value=(404, {}, 0.2))
        self.assertIn("0.20 s", self.proved("freeze", of))
        self.slept.assert_called_once_with(630)
        of.api.side_effect = [(404, {}, 0.2), (502, "bad gateway", 30.0)]
        self.not_proved("freeze", of, "502")
        of.api.side_effect = [(404, {}, 0.2), (404, {}, 9.0)]
        self.not_proved("freeze", of, "took 9.0 s")
        of.api.side_effect = [(404, {}, 0.2)]
        of.metrics = {("Invocations", "Sum"): [2.0]}
        self.skipped("freeze", of, "2 times meanwhile")

    def of_alarms(self, rules_alarm=True):
        of = Fake()
        of.resources = [
            ("s", "AWS::Events::Rule", f"{name}FunctionEvery{often}", name)
            for name, often in (("ReportFailures", "Minute"), ("CheckConsumers", "Minute"), ("CheckSagas", "FiveMinutes"), ("SweepEvents", "Minute"))
        ]
        enabled, disabled = [True], set()
        of.clients["lambda"].update_event_source_mapping.side_effect = lambda UUID, Enabled: enabled.__setitem__(0, Enabled)
        of.clients["lambda"].get_event_source_mapping.side_effect = lambda UUID: {"State": "Enabled" if enabled[0] else "Disabled"}
        of.clients["events"].disable_rule.side_effect = lambda Name: disabled.add(Name)
        of.clients["events"].enable_rule.side_effect = lambda Name: disabled.discard(Name)

        def alarms(AlarmNames):
            of_mapping = "Polls" in AlarmNames[0] or "ConsumersNotRunning" in AlarmNames[0]
            on = not enabled[0] if of_mapping else bool(disabled) and rules_alarm
            return {"MetricAlarms": [{"StateValue": "ALARM" if on else "OK"}]}

        of.clients["cloudwatch"].describe_alarms.side_effect = alarms
        of.enabled, of.disabled = enabled, disabled
        return of

    def test_alarms_without_data(self):
        of = self.of_alarms()
        self.assertIn("SagaChecksAlarm", self.proved("alarms", of))
        self.assertEqual((of.enabled, of.disabled), ([True], set()))

    def test_an_alarm_that_stays_quiet(self):
        of = self.of_alarms(rules_alarm=False)
        self.not_proved("alarms", of, "FailureReportsAlarm goes off")
        self.assertEqual((of.enabled, of.disabled), ([True], set()))


class Outages(Case):
    def of(self, deferred, dropped=(), dead=()):
        of = Fake()
        lines = [{"message": "command deferred onboarding-1"}] * deferred + [{"message": "command deferred onboarding-2"}]
        of.pages("logs", filter_log_events=[{"events": lines}])
        of.live_version = lambda function: "7"
        of.clients["lambda"].get_function_configuration.return_value = {
            "Environment": {"Variables": {"STRIPE_API_BASE": "https://api.stripe.com"}}, "State": "Active", "LastUpdateStatus": "Successful"}
        of.clients["lambda"].publish_version.return_value = {"Version": "8"}
        of.metrics = {("RecursiveInvocationsDropped", "Sum"): list(dropped)}
        of.open_failures = mock.Mock(return_value=list(dead))
        of.decommission = mock.Mock()
        of.site = lambda site: SITE | {"status": "DECOMMISSIONING"}
        of.await_site = mock.Mock()
        return of

    def run_hours(self):
        """A clock that goes ten minutes with each look."""
        clock = iter(range(0, 10 ** 9, 600))
        return mock.patch("outage.time.time", side_effect=lambda: next(clock))

    def test_a_command_that_is_deferred_and_done(self):
        of = self.of(3)
        self.assertIn("deferred 3 times", self.proved("outage-short", of))
        self.assertEqual(
            [call.kwargs["FunctionVersion"] for call in of.clients["lambda"].update_alias.call_args_list], ["8", "7"], "broken, then good again")
        of.clients["lambda"].delete_function.assert_called_once_with(FunctionName="fieldstation-staging-cancel-subscription", Qualifier="8")
        variables = [call.kwargs["Environment"]["Variables"]["STRIPE_API_BASE"] for call in of.clients["lambda"].update_function_configuration.call_args_list]
        self.assertEqual(variables, ["https://192.0.2.1", "https://api.stripe.com"])

    def test_two_hours(self):
        with self.run_hours():
            of = self.of(30)
            of.until = lambda what, seconds, probe, pause=2: next(filter(None, (probe() for _ in range(50))))
            self.assertIn("deferred 30 times", self.proved("outage", of))
        with self.run_hours():
            self.not_proved("outage", self.of(16), "deferred 17 times")

    def test_what_goes_wrong(self):
        self.not_proved("outage-short", self.of(2), "deferred 3 times")
        self.not_proved("outage-short", self.of(3, dropped=[1.0]), "dropped 1 invocations")
        self.not_proved("outage-short", self.of(3, dead=[{"id": {"S": "failure-1"}}]), "failure-1")


class Histories(Case):
    """The nested execution of a teardown, as the history of an onboarding names it."""

    def of(self, submitted, teardown="SUCCEEDED", onboarding="FAILED"):
        of = Fake()
        of.pages("stepfunctions", get_execution_history=[{"events": [
            {"type": "ExecutionStarted"}, {"type": "TaskSubmitted", "taskSubmittedEventDetails": {"output": json.dumps(submitted)}}]}])
        of.clients["stepfunctions"].describe_execution.side_effect = lambda executionArn: (
            {"status": teardown} if ":fieldstation-staging-site-teardown:" in executionArn else {"status": onboarding, "error": "CardDeclined"})
        return of

    def test_the_nested_execution(self):
        nested = {"ExecutionArn": "arn:aws:states:eu-central-1:1:execution:fieldstation-staging-site-teardown:x"}
        self.assertEqual(sagas.nested_teardown(self.of(nested), "o")[1], {"status": "SUCCEEDED"})
        self.assertIsNone(sagas.nested_teardown(self.of({"MessageId": "1"}), "o")[1])
        with self.assertRaisesRegex(NotProved, "RUNNING"):
            sagas.nested_teardown(self.of(nested, onboarding="RUNNING"), "o")


class Gateway(Case):
    def response(self, status, kind="application/problem+json"):
        return mock.Mock(status=status, data=b"{}", headers={"Content-Type": kind})

    def of(self, *lines):
        of = Fake()
        of.pages("logs", filter_log_events=[{"events": [{"message": json.dumps(line)} for line in lines]}])
        of.clients["lambda"].get_function_concurrency.return_value = {}
        return of

    def line(self, status, kind="-"):
        return {"path": "/v1/sites/00000000-0000-5000-8000-000000000000", "status": status, "responseType": kind, "time": "now", "caller": "engineer"}

    def test_the_api(self):
        of = Fake()
        of.api = mock.Mock(return_value=(404, {"status": 404}, 0.2))
        of.response = mock.Mock(return_value=self.response(403))
        self.assertIn("403 as application/problem+json", self.proved("api", of))
        of.response.return_value = self.response(403, "application/json")
        self.not_proved("api", of, "own answer is application/json")
        of.response.return_value = self.response(200)
        self.not_proved("api", of, "unsigned call is answered with 200")
        of.api.return_value = (404, "not found", 0.2)
        self.not_proved("api", of, "no problem document")

    def test_the_access_log(self):
        of = self.of(self.line("404"))
        of.api = mock.Mock()
        self.proved("access-logs", of)
        of = self.of()
        of.api = mock.Mock()
        self.not_proved("access-logs", of, "is in the access log")

    def test_a_throttled_function(self):
        of = self.of(self.line("404"), self.line("500", "DEFAULT_5XX"))
        of.response = mock.Mock(side_effect=[self.response(404), self.response(500)])
        self.assertIn("500, as DEFAULT_5XX", self.proved("api-errors", of))
        of.clients["lambda"].delete_function_concurrency.assert_called_once()
        of = self.of(self.line("503", "INTEGRATION_FAILURE"))
        of.response = mock.Mock(return_value=self.response(503))
        self.not_proved("api-errors", of, "503 as INTEGRATION_FAILURE")
        of = self.of()
        of.clients["lambda"].get_function_concurrency.return_value = {"ReservedConcurrentExecutions": 7}
        of.response = mock.Mock(return_value=self.response(404))
        self.not_proved("api-errors", of, "answered with 5xx")
        self.assertEqual(
            [call.kwargs["ReservedConcurrentExecutions"] for call in of.clients["lambda"].put_function_concurrency.call_args_list], [0, 7])


class Deployed(Case):
    def test_names(self):
        of = Fake()
        of.resources = [
            ("s", "AWS::IAM::Role", "XRole", "fieldstation-staging-XRole-1"),
            ("s", "AWS::Events::Rule", "R", "fieldstation-staging-events|fieldstation-staging-R"),
            ("s", "AWS::S3::Bucket", "B", "other"),
        ]
        self.assertIn("2 names", self.proved("names", of))
        of.resources.append(("s", "AWS::CloudWatch::Alarm", "A", "fieldstation-stag-A-1"))
        self.not_proved("names", of, "A is fieldstation-stag-A-1")

    def test_the_role_of_a_deployment(self):
        of = Fake()
        stack = {"StackName": "fieldstation-staging", "StackStatus": "UPDATE_COMPLETE"}
        of.stack = lambda name: stack | {"RoleARN": "arn:aws:iam::1:role/fieldstation-staging-cloudformation"}
        self.proved("deploy-role", of)
        of.stack = lambda name: stack | {"RoleARN": "arn:aws:iam::1:role/administrator"}
        self.not_proved("deploy-role", of, "administrator")
        of.stack = lambda name: stack
        self.skipped("deploy-role", of, "--role-arn")

    def test_the_failure_bucket(self):
        of = Fake()
        s3 = of.clients["s3"]
        s3.get_bucket_versioning.return_value = {"Status": "Enabled"}
        rules = [{"Expiration": {"Days": 365}}, {"NoncurrentVersionExpiration": {"NoncurrentDays": 35}}]
        s3.get_bucket_lifecycle_configuration.return_value = {"Rules": rules}
        queue = {"QueueArn": "arn:aws:sqs:eu-central-1:1:fieldstation-staging-failure-files"}
        s3.get_bucket_notification_configuration.return_value = {"QueueConfigurations": [queue]}
        self.proved("bucket", of)
        s3.get_bucket_notification_configuration.return_value = {}
        self.not_proved("bucket", of, "reports to")
        s3.get_bucket_lifecycle_configuration.return_value = {"Rules": []}
        self.not_proved("bucket", of, "after no days")
        s3.get_bucket_versioning.return_value = {}
        self.not_proved("bucket", of, "versioning of fieldstation-staging-failures-123456789012-eu-central-1 is None")


class Reports(Case):
    def test_metrics_without_dimensions(self):
        of = Fake()
        found = {"Throttles": [[{"Name": "FunctionName", "Value": "x"}], []], "DestinationDeliveryFailures": []}
        of.clients["cloudwatch"].get_paginator.return_value.paginate = lambda Namespace, MetricName: [
            {"Metrics": [{"Dimensions": each} for each in found[MetricName]]}]
        self.assertIn("no occasion", self.proved("account-metrics", of))
        found["DestinationDeliveryFailures"] = [[{"Name": "FunctionName", "Value": "x"}]]
        self.not_proved("account-metrics", of, "DestinationDeliveryFailures comes with")
        found["Throttles"] = found["DestinationDeliveryFailures"]
        self.not_proved("account-metrics", of, "Throttles comes with")

    def test_the_dashboard(self):
        of = Fake()
        expression = "SEARCH('{AWS/Lambda,FunctionName} MetricName=\"Invocations\" FunctionName=fieldstation', 'Sum', 300)"
        widgets = [{"properties": {"markdown": "x"}}, {"properties": {"title": "calls", "metrics": [["AWS/SQS", "x"], [{"expression": expression}]]}}]
        of.clients["cloudwatch"].get_dashboard.return_value = {"DashboardBody": json.dumps({"widgets": widgets})}
        of.clients["cloudwatch"].get_metric_data.return_value = {"MetricDataResults": [{}] * 30}
        self.assertIn("calls 30", self.proved("dashboard", of))
        of.clients["cloudwatch"].get_metric_data.return_value = {"MetricDataResults": []}
        self.not_proved("dashboard", of, "finds 0 metrics of 30")

    def test_an_alarm_on_throttles(self):
        of = Fake()
        of.clients["cloudwatch"].describe_alarms.side_effect = [{"MetricAlarms": [{"StateValue": state}]} for state in ("ALARM", "OK")]
        self.proved("throttle-alarms", of)
        of.clients["cloudwatch"].describe_alarms.side_effect = None
        of.clients["cloudwatch"].describe_alarms.return_value = {"MetricAlarms": [{"StateValue": "ALARM"}]}
        self.not_proved("throttle-alarms", of, "is OK again")
        self.assertEqual(of.clients["cloudwatch"].set_alarm_state.call_args.kwargs["StateValue"], "OK")


class GivenUp(Case):
    def of(self, metrics, failures=()):
        of = Fake()
        of.metrics = metrics
        of.mapping = lambda _: {"UUID": "mapping-1", "MaximumRetryAttempts": 100}
        of.clients["lambda"].get_event_source_mapping.return_value = {"State": "Enabled"}
        of.clients["lambda"].get_function_configuration.return_value = {
            "Environment": {"Variables": {"READINGS_TABLE": "readings"}}, "State": "Active", "LastUpdateStatus": "Successful"}
        of.clients["lambda"].publish_version.return_value = {"Version": "8"}
        of.configuration = lambda _: {"Role": "arn:aws:iam::1:role/store-readings-X"}
        of.live_version = lambda function: "7"
        of.await_sensor = of.send_reading = of.await_reading = mock.Mock()
        of.open_failures = mock.Mock(return_value=list(failures))
        of.fieldctl = mock.Mock(return_value=(0, "{}"))
        of.clients["dynamodb"].get_item.return_value = {"Item": {"status": {"S": "REPLAYED"}}}
        return of

    def retries(self, of):
        return [call.kwargs["MaximumRetryAttempts"] for call in of.clients["lambda"].update_event_source_mapping.call_args_list]

    ROW = ({"id": {"S": "failure-1"}, "error": {"M": {"name": {"S": "RetryAttemptsExhausted"}}}},)

    def test_a_batch_in_the_bucket(self):
        delivered = {("OnFailureDestinationDeliveredEventCount", "Sum"): [1.0]}
        of = self.of(delivered, self.ROW)
        self.proved("given-up", of)
        self.assertEqual(self.retries(of), [1, 100])
        self.not_proved("given-up", self.of(delivered | {("DroppedEventCount", "Sum"): [1.0]}, self.ROW), "counted as dropped, too")
        self.not_proved("given-up", self.of({}, self.ROW), "counts the record as OnFailure")
        of = self.of(delivered)
        self.not_proved("given-up", of, "is a failure")
        self.assertEqual(self.retries(of), [1, 100])

    def test_a_batch_that_is_dropped(self):
        of = self.of({("DroppedEventCount", "Sum"): [1.0]})
        self.proved("dropped", of)
        self.assertIn("s3:PutObject", of.clients["iam"].put_role_policy.call_args.kwargs["PolicyDocument"])
        of.clients["iam"].delete_role_policy.assert_called_once_with(RoleName="store-readings-X", PolicyName="prove-on-aws")
        self.assertEqual(self.retries(of), [1, 100])
        self.not_proved("dropped", self.of({}), "as dropped")


class FailedDeployment(Case):
    def of(self, status="ROLLBACK_COMPLETE", kept=("sites", "billing")):
        of = Fake()
        of.resources = [("s", "AWS::DynamoDB::Table", name, name) for name in ("Sites", "Billing")]
        made = []

        def stack(name):
            if name in made:
                return {"StackStatus": status, "Parameters": []}
            parameters = [{"ParameterKey": key, "ParameterValue": "true"} for key in ("ManageApiGatewayLogging", "DeletionProtection")]
            return {"StackStatus": "CREATE_COMPLETE", "Parameters": parameters} if name == of.name else None

        of.stack = stack
        of.clients["cloudformation"].get_template.return_value = {"TemplateBody": {"Resources": {}}}
        of.clients["cloudformation"].delete_stack.side_effect = lambda StackName: made.remove(StackName)
        of.made, of.first = made, []
        of.clients["dynamodb"].get_paginator.side_effect = lambda _: mock.Mock(paginate=lambda: [{"TableNames": [
            "fieldstation-staging-sites", *(f"{name}-{table}" for name in of.first or made for table in kept)]}])

        def create(**arguments):
            made.append(arguments["StackName"])
            of.first.append(arguments["StackName"])

        of.clients["cloudformation"].create_stack.side_effect = create
        of.clients["s3"].list_buckets.return_value = {"Buckets": []}
        of.clients["secretsmanager"].list_secrets.return_value = {"SecretList": [{"ARN": "arn:secret"}]}
        return of

    def test_tables_are_kept_and_removed_afterwards(self):
        of = self.of()
        self.assertIn("2 tables were kept", self.proved("failed-deployment", of))
        arguments = of.clients["cloudformation"].create_stack.call_args.kwargs
        given = {each["ParameterKey"]: each["ParameterValue"] for each in arguments["Parameters"]}
        self.assertEqual((given["ManageApiGatewayLogging"], given["DeletionProtection"]), ("false", "false"))
        self.assertEqual(of.made, [])
        deleted = [call.kwargs["TableName"] for call in of.clients["dynamodb"].delete_table.call_args_list]
        self.assertEqual(deleted, [f"{of.first[0]}-sites", f"{of.first[0]}-billing"], "and no table of the environment under proof")
        of.clients["secretsmanager"].delete_secret.assert_called_once_with(SecretId="arn:secret", ForceDeleteWithoutRecovery=True)

    def test_what_goes_wrong(self):
        self.not_proved("failed-deployment", self.of("CREATE_COMPLETE"), "ended with CREATE_COMPLETE")
        of = self.of(kept=("sites",))
        self.not_proved("failed-deployment", of, "1 of 2 tables were kept")
        self.assertEqual(of.made, [])

    def test_the_environment_under_proof_is_never_removed(self):
        of = self.of()
        with self.assertRaises(ValueError):
            deploying.remove_environment(of, of.name)
        of.clients["cloudformation"].delete_stack.assert_not_called()


class Others(Case):
    def test_settings_of_github(self):
        def answers(environments, rulesets):
            texts = iter([json.dumps({"environments": [{"name": name} for name in environments]}), json.dumps([{"name": name} for name in rulesets])])
            run = mock.patch("github.subprocess.run", side_effect=lambda *_, **__: subprocess.CompletedProcess([], 0, next(texts), ""))
            return run

        with mock.patch("github.shutil.which", return_value="/usr/bin/gh"):
            with answers(["staging", "prod"], ["main"]):
                self.proved("github-settings", Fake())
            with answers(["staging"], ["main"]):
                self.not_proved("github-settings", Fake(), "environments are: staging")
            with answers(["staging", "prod"], []):
                self.not_proved("github-settings", Fake(), "no ruleset")

    def test_workflows_that_ran(self):
        def answer(text, status=0):
            return mock.patch("github.subprocess.run", return_value=subprocess.CompletedProcess([], status, text, "no repository"))

        with mock.patch("github.shutil.which", return_value="/usr/bin/gh"):
            with answer('[{"url": "https://example.com/1", "createdAt": "2027-01-01T00:00:00Z", "event": "push"}]'):
                self.assertIn("prod.yml 2027-01-01", self.proved("workflows", Fake()))
            with answer("[]"):
                self.not_proved("workflows", Fake(), "staging.yml never ended with success")
            with answer("", 1):
                self.skipped("workflows", Fake(), "no repository")
        with mock.patch("github.shutil.which", return_value=None):
            self.skipped("workflows", Fake(), "gh is not there")

    def test_an_import(self):
        of = Fake()
        of.stacks = {"sites": {"StackId": "stack"}}
        events = [{"ResourceStatus": "IMPORT_COMPLETE", "ResourceType": "AWS::DynamoDB::Table", "LogicalResourceId": "SitesTable"}]
        of.pages("cloudformation", describe_stack_events=[{"StackEvents": events}])
        self.assertIn("sites/SitesTable", self.proved("upgrade", of))
        of.pages("cloudformation", describe_stack_events=[{"StackEvents": []}])
        self.skipped("upgrade", of, "imported")

    def test_every_step_that_the_emulator_cant_show_is_run_here_or_by_services_test(self):
        run = Path(__file__).read_text()
        for step in STEPS.values():
            if step.not_on_emulator:
                self.assertIn(f'"{step.name}"', run, f"nothing runs the step {step.name} before it runs on AWS")


if __name__ == "__main__":
    unittest.main()
