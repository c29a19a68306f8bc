"""Tests the delivery of an event from a rule to a topic and on to a subscriber's queue, with resources that the local
stack's CloudFormation created.

MiniStack delivers the event. `authorisation` adds the check of the topic's policy.
"""

import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import authorisation

REGION, ACCOUNT = "us-east-1", "000000000000"
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:env-stock"


def arn_of_queue(name):
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"


def policy(resource, service, action, source):
    """Returns a policy that lets a service call a resource for one source only."""
    return {
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow", "Principal": {"Service": service}, "Action": action, "Resource": resource,
            "Condition": {"ArnEquals": {"aws:SourceArn": source}},
        }],
    }


class Topics(unittest.TestCase):
    def setUp(self):
        from ministack import app
        from ministack.core.responses import request_scope
        from ministack.services import apigateway_v1, eventbridge, sns, sqs

        scope = request_scope(ACCOUNT, REGION)
        scope.__enter__()
        self.addCleanup(scope.__exit__, None, None, None)
        for module in (eventbridge, sns, sqs):
            module.reset()
            self.addCleanup(module.reset)
        for owner, name in (
            (eventbridge, "_invoke_target"), (apigateway_v1, "_call_lambda_raw"), (apigateway_v1, "_invoke_authorizer_lambda"),
        ):
            patch = mock.patch.object(owner, name, getattr(owner, name))
            patch.start()
            self.addCleanup(patch.stop)
        patch = mock.patch.object(app, "AUTH", True)
        patch.start()
        self.addCleanup(patch.stop)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        authorisation._check_services(Path(folder.name) / "authorisations.log")

        self.create("AWS::Events::EventBus", "Bus", {"Name": "env-events"})
        self.create("AWS::SNS::Topic", "Topic", {"TopicName": "env-stock"})
        self.rule = self.create("AWS::Events::Rule", "Rule", {
            "EventBusName": "env-events",
            "EventPattern": {"source": ["fieldstation.inventory"], "detail-type": ["StockLow"]},
            "Targets": [{"Id": "Topic", "Arn": TOPIC}],
        })[1]["Arn"]

    def create(self, kind, logical_id, properties):
        from ministack.services.cloudformation import provisioners

        return provisioners._provision_resource(kind, logical_id, properties, "stack")

    def allow_topic(self, source):
        document = policy(TOPIC, "events.amazonaws.com", "sns:Publish", source)
        self.create("AWS::SNS::TopicPolicy", "TopicPolicy", {"Topics": [TOPIC], "PolicyDocument": document})

    def subscribe(self, name, properties, source=TOPIC):
        arn = arn_of_queue(name)
        url, _ = self.create("AWS::SQS::Queue", name, {"QueueName": name})
        document = policy(arn, "sns.amazonaws.com", "sqs:SendMessage", source)
        self.create("AWS::SQS::QueuePolicy", f"{name}Policy", {"Queues": [url], "PolicyDocument": document})
        subscription = {"TopicArn": TOPIC, "Protocol": "sqs", "Endpoint": arn, **properties}
        self.create("AWS::SNS::Subscription", f"{name}Subscription", subscription)

    def put(self, metric):
        from ministack.services import eventbridge

        detail = {"metadata": {"type": "StockLow"}, "data": {"metric": metric, "quantity": 3, "limit": 10}}
        eventbridge._put_events({"Entries": [{
            "EventBusName": "env-events", "Source": "fieldstation.inventory", "DetailType": "StockLow",
            "Detail": json.dumps(detail),
        }]})

    def bodies(self, name):
        from ministack.services import sqs

        return [json.loads(message["body"]) for message in sqs._queue_by_arn(arn_of_queue(name))["messages"]]

    def test_a_subscriber_gets_the_events_of_its_metric_only(self):
        self.allow_topic(self.rule)
        one_metric = {
            "FilterPolicyScope": "MessageBody",
            "FilterPolicy": {"detail": {"data": {"metric": ["water_ph"]}}},
            "RawMessageDelivery": True,
        }
        self.subscribe("filtered", one_metric)
        self.subscribe("all", {})
        for metric in ("water_ph", "air_temperature", "water_ph"):
            self.put(metric)
        metrics = [body["detail"]["data"]["metric"] for body in self.bodies("filtered")]
        self.assertEqual(metrics, ["water_ph", "water_ph"])
        # Without RawMessageDelivery, the event is text in the message of the topic.
        notifications = self.bodies("all")
        self.assertEqual({body["TopicArn"] for body in notifications}, {TOPIC})
        events = [json.loads(body["Message"]) for body in notifications]
        self.assertEqual(
            [(event["detail-type"], event["detail"]["data"]["metric"]) for event in events],
            [("StockLow", metric) for metric in ("water_ph", "air_temperature", "water_ph")],
        )

    def test_the_topic_takes_events_only_of_the_rule_that_its_policy_names(self):
        self.subscribe("subscriber", {})
        self.allow_topic(f"{self.rule}-another")
        self.put("water_ph")
        self.assertEqual(self.bodies("subscriber"), [])
        self.allow_topic(self.rule)
        self.put("water_ph")
        self.assertEqual(len(self.bodies("subscriber")), 1)

    def test_a_queue_takes_messages_only_of_the_topic_that_its_policy_names(self):
        self.allow_topic(self.rule)
        self.subscribe("subscriber", {}, source=f"{TOPIC}-another")
        self.put("water_ph")
        self.assertEqual(self.bodies("subscriber"), [])


class StreamFilters(unittest.TestCase):
    def test_a_filter_selects_rows_by_the_prefix_of_their_key(self):
        from ministack.services import lambda_svc

        pattern = '{"dynamodb":{"Keys":{"id":{"S":[{"prefix":"stock#"}]}}}}'
        records = [{"dynamodb": {"Keys": {"id": {"S": id}}}} for id in ("stock#ozone", "level#ozone", "reservation#1")]
        kept = lambda_svc._apply_filter_criteria(records, {"FilterCriteria": {"Filters": [{"Pattern": pattern}]}})
        self.assertEqual(kept, records[:1])


if __name__ == "__main__":
    unittest.main()
