"""The function with a table in memory, and an API that has the whole log. Run by `make local-test`."""

import json
import sys
import unittest
from unittest import mock

sys.modules.setdefault("boto3", mock.MagicMock())
import app


class FakeTable:
    """The applied events, with the conditions of the transaction."""

    def __init__(self):
        self.applied, self.ids = {}, set()

    def last_sequence(self, entity):
        return (self.applied.get(entity) or [0])[-1]

    def apply(self, entity, event):
        metadata = event["metadata"]
        if metadata["eventId"] in self.ids or metadata["sequence"] != self.last_sequence(entity) + 1:
            return False
        self.ids.add(metadata["eventId"])
        self.applied.setdefault(entity, []).append(metadata["sequence"])
        return True


class FakeApi:
    def __init__(self, *events):
        self.events, self.calls = events, 0

    def events_after(self, entity, sequence):
        self.calls += 1
        for event in self.events:
            if event["metadata"]["sequence"] > sequence:
                yield event


def event(sequence, entity="acme.pump/7", operator="op"):
    kind, name = entity.split("/", 1)
    return {
        "metadata": {
            "eventId": f"{operator} {entity} {sequence}", "sequence": sequence, "operatorId": operator,
            "entity": {"type": kind, "id": name},
        },
        "data": {},
    }


def batch(*events, received=1):
    return {"Records": [
        {
            "messageId": str(number), "body": json.dumps({"detail-type": "Measured", "detail": detail}),
            "attributes": {"ApproximateReceiveCount": str(received)},
        }
        for number, detail in enumerate(events)
    ]}


def failed(response):
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


class Consuming(unittest.TestCase):
    def setUp(self):
        self.table, self.api = FakeTable(), FakeApi(*map(event, range(1, 6)))

    def handle(self, *events, received=1):
        return failed(app.handle_batch(batch(*events, received=received), self.table, self.api))

    def test_events_of_a_batch_are_applied_in_order_and_once(self):
        self.assertEqual(self.handle(event(2), event(1), event(2), event(3), event(1)), [])
        self.assertEqual(self.table.applied, {"op/acme.pump/7": [1, 2, 3]})
        self.assertEqual(self.api.calls, 0)

    def test_an_early_event_waits_in_the_queue_for_the_missing_one(self):
        self.assertEqual(self.handle(event(2)), ["0"])
        self.assertEqual(self.handle(event(1)), [])
        self.assertEqual(self.handle(event(2), received=2), [])
        self.assertEqual(self.table.applied, {"op/acme.pump/7": [1, 2]})
        self.assertEqual(self.api.calls, 0)

    def test_an_event_that_is_still_early_when_it_comes_again_is_applied_after_those_that_the_api_has(self):
        self.assertEqual(self.handle(event(1), event(4)), ["1"])
        self.assertEqual(self.handle(event(4), received=2), [])
        self.assertEqual(self.table.applied, {"op/acme.pump/7": [1, 2, 3, 4]}, "no later event of the API's page")
        self.assertEqual(self.handle(event(2), event(3)), [], "they arrive late")
        self.assertEqual(self.table.applied, {"op/acme.pump/7": [1, 2, 3, 4]})

    def test_an_event_stays_in_the_queue_while_the_api_has_not_the_missing_one(self):
        self.api = FakeApi(event(1), event(3))
        self.assertEqual(self.handle(event(3), received=2), ["0"])
        self.assertEqual(self.table.applied, {"op/acme.pump/7": [1]})

    def test_an_error_fails_only_its_message(self):
        self.api.events_after = mock.Mock(side_effect=OSError("unreachable"))
        self.assertEqual(self.handle(event(3), event(1, "site/1"), received=2), ["0"])
        self.assertEqual(self.table.applied, {"site/1": [1]})

    def test_the_same_entity_id_of_two_operators_is_two_entities(self):
        self.assertEqual(self.handle(event(1, operator="a"), event(1, operator="b")), [])
        self.assertEqual(set(self.table.applied), {"a/acme.pump/7", "b/acme.pump/7"})


class Transaction(unittest.TestCase):
    """The requests of the real table."""

    class Cancelled(Exception):
        def __init__(self, code):
            self.response = {"CancellationReasons": [{"Code": "None"}, {"Code": code}]}

    def setUp(self):
        self.client = mock.Mock()
        self.client.exceptions.TransactionCanceledException = self.Cancelled
        self.table = app.Table(self.client, "table")

    def conditions(self):
        items = self.client.transact_write_items.call_args.kwargs["TransactItems"]
        return [item[kind]["ConditionExpression"] for item in items for kind in item]

    def test_an_event_is_written_with_its_id_and_only_after_the_one_before(self):
        self.assertTrue(self.table.apply("site/1", event(1)))
        self.assertEqual(self.conditions(), ["attribute_not_exists(id)", "attribute_not_exists(id)"])
        self.assertTrue(self.table.apply("site/1", event(2)))
        self.assertEqual(self.conditions(), ["attribute_not_exists(id)", "lastSequence = :previous"])

    def test_a_failed_condition_is_no_error_and_a_conflict_is_one(self):
        self.client.transact_write_items.side_effect = self.Cancelled("ConditionalCheckFailed")
        self.assertFalse(self.table.apply("site/1", event(2)))
        self.client.transact_write_items.side_effect = self.Cancelled("TransactionConflict")
        with self.assertRaises(self.Cancelled):
            self.table.apply("site/1", event(2))


if __name__ == "__main__":
    unittest.main()
