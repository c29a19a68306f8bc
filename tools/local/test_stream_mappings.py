"""Tests the local stack's stream mappings: the rules that they share with the model, and their integration into
MiniStack."""

import json
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import stream_mappings
from stream_mappings import (
    DONE, MAX_PAYLOAD_BYTES, Batch, Invocation, Lane, Poller, Record, Settings, deliver, failure_file, failure_key,
    kinesis_event, lane_of,
)

MODEL_TESTS = Path(__file__).resolve().parents[2] / "tests" / "testkit" / "tests"
ARN = "arn:aws:kinesis:eu-central-1:111122223333:stream/readings"
DEFAULTS = {  # as in the model's test
    "BatchSize": 100, "BisectBatchOnFunctionError": True, "MaximumRetryAttempts": 3,
    "MaximumRecordAgeInSeconds": 3600, "FunctionResponseTypes": ["ReportBatchItemFailures"],
}


def record(data, key="key", at=0.0, size=100):
    return Record(key, f"n-{data}", at, at, {"data": data}, size)


def data_of(records):
    return [record.event["data"] for record in records]


class Scripted:
    """A mapping to a scripted function that takes a second for each batch, with a clock of its own."""

    def __init__(self, properties=None, answers=({"value": None},), throttles=0):
        self.properties = DEFAULTS | (properties or {})
        self.answers = answers
        self.throttles = throttles
        self.clock = 0.0
        self.batches, self.done, self.given_up, self.pauses = [], [], [], []
        self.is_enabled = True
        self.lock = threading.Lock()
        self.working = set()
        self.max_concurrency = 0

    def enabled(self):
        return self.is_enabled

    def settings(self):
        return Settings.from_properties(self.properties)

    def now(self):
        return self.clock

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.clock += seconds

    def invoke(self, records):
        keys = {record.key for record in records}
        with self.lock:
            assert not keys & self.working, f"{keys} are in two batches at once"
            self.working |= keys
            self.max_concurrency = max(self.max_concurrency, len(self.working))
            assert len(self.batches) < 1000, "the lanes never become empty"
            self.batches.append(data_of(records))
            answer = self.answers[min(len(self.batches), len(self.answers)) - 1]
            throttled = len(self.batches) <= self.throttles
        time.sleep(0.002)
        with self.lock:
            self.clock += 1
            self.working -= keys
        if throttled:
            return Invocation(throttled=True)
        invocation = self.invocation(records, answer)
        judged = stream_mappings.judge(Batch(records), invocation, self.settings())
        if judged != stream_mappings.FAILED:
            self.done += records if judged == DONE else records[:judged]
        return invocation

    def invocation(self, records, answer):
        if "error" in answer or answer.get("errorWith") in data_of(records):
            return Invocation(error=True)
        if "failed" in answer:
            failed = [{"itemIdentifier": f"n-{data}"} for data in answer["failed"] if data in data_of(records)]
            return Invocation(response={"batchItemFailures": failed})
        return Invocation(response=answer.get("value"))

    def give_up(self, batch, condition):
        self.given_up.append((condition, batch))


def run(mapping, records):
    """Delivers each record when it has arrived, with a thread for each lane."""
    lanes = [Lane() for _ in range(mapping.settings().parallelization_factor)]
    for arrival in sorted({record.arrived_at for record in records}):
        mapping.clock = max(mapping.clock, arrival)
        for record in records:
            if record.arrived_at == arrival:
                lane_of(record.key, lanes).waiting.append(record)
        with ThreadPoolExecutor(len(lanes)) as pool:
            for delivery in [pool.submit(deliver, lane, mapping) for lane in lanes]:
                delivery.result()
    return lanes


class SharedCases(unittest.TestCase):
    """The same cases that tests/testkit/tests/mapping.rs runs against the model."""

    def test_shared_cases(self):
        for case in json.loads((MODEL_TESTS / "mapping_cases.json").read_text()):
            with self.subTest(case["name"]):
                self.check(case)

    def check(self, case):
        known = {"name", "properties", "records", "answers", "batches", "lastBatch", "done", "givenUp"}
        self.assertLessEqual(case.keys(), known)
        mapping = Scripted(case.get("properties"), case["answers"])
        sent = [it if isinstance(it, dict) else {"data": it} for it in case["records"]]
        run(mapping, [record(it["data"], it.get("key", "key"), float(it.get("at", 0))) for it in sent])
        if "batches" in case:
            self.assertEqual(mapping.batches, case["batches"])
        if "lastBatch" in case:
            self.assertEqual(mapping.batches[-1], case["lastBatch"])
        for key, done in case.get("done", {}).items():
            self.assertEqual([it.event["data"] for it in mapping.done if it.key == key], done)
        expected = case.get("givenUp", [])
        self.assertEqual(len(mapping.given_up), len(expected))
        for (condition, batch), given_up in zip(mapping.given_up, expected):
            self.assertEqual((condition, data_of(batch.records)), (given_up["condition"], given_up["records"]))
            self.assertEqual(batch.failures, given_up.get("invocations", batch.failures))


class Delivery(unittest.TestCase):
    def test_lanes_work_at_the_same_time(self):
        mapping = Scripted({"ParallelizationFactor": 4, "BatchSize": 1})
        run(mapping, [record(f"{key}-{n}", str(key)) for n in range(5) for key in range(20)])
        self.assertEqual(len(mapping.batches), 100)
        self.assertGreater(mapping.max_concurrency, 1)

    def test_a_throttled_batch_is_neither_split_nor_counted(self):
        mapping = Scripted({"MaximumRetryAttempts": 0}, throttles=5)
        run(mapping, [record("a"), record("b")])
        self.assertEqual(mapping.batches, [["a", "b"]] * 6)
        self.assertEqual(mapping.given_up, [])

    def test_item_failures_count_only_with_report_batch_item_failures(self):
        mapping = Scripted({"FunctionResponseTypes": []}, [{"failed": ["a"]}])
        run(mapping, [record("a")])
        self.assertEqual(mapping.batches, [["a"]])

    def test_a_disabled_mapping_keeps_undelivered_records(self):
        mapping = Scripted(answers=[{"error": True}, {"value": None}])
        mapping.sleep = lambda seconds: setattr(mapping, "is_enabled", False)
        [lane] = run(mapping, [record("a"), record("b")])
        self.assertEqual(mapping.batches, [["a", "b"]])
        mapping.is_enabled = True
        deliver(lane, mapping)
        self.assertEqual(mapping.batches, [["a", "b"], ["a"], ["b"]])

    def test_a_batch_has_at_most_six_megabytes(self):
        mapping = Scripted()
        third = MAX_PAYLOAD_BYTES // 3
        run(mapping, [record("a", size=third), record("b", size=third), record("c", size=third), record("d", size=third)])
        self.assertEqual(mapping.batches, [["a", "b", "c"], ["d"]])

    def test_a_larger_record_is_delivered_alone(self):
        mapping = Scripted()
        run(mapping, [record("a", size=MAX_PAYLOAD_BYTES + 1), record("b")])
        self.assertEqual(mapping.batches, [["a"], ["b"]])

    def test_a_batching_window_waits_for_more_records(self):
        mapping = Scripted({"MaximumBatchingWindowInSeconds": 10})
        lane = Lane()
        lane.waiting.append(record("a"))
        settings = mapping.settings()
        self.assertEqual(lane.seconds_until_due(settings, 4.0), 6.0)
        self.assertEqual(lane.seconds_until_due(settings, 10.0), 0)
        lane.waiting.extend(record(str(n)) for n in range(99))
        self.assertEqual(lane.seconds_until_due(settings, 4.0), 0, "a full batch does not wait")
        deliver(lane, mapping)
        self.assertEqual([len(batch) for batch in mapping.batches], [100])

    def test_without_a_window_a_record_is_delivered_at_once(self):
        mapping = Scripted()
        run(mapping, [record("a")])
        self.assertEqual(mapping.pauses, [])

    def test_pauses_between_retries_grow_up_to_a_limit(self):
        mapping = Scripted({"MaximumRetryAttempts": 6}, [{"error": True}])
        run(mapping, [record("a")])
        self.assertEqual(mapping.pauses, [0.4, 0.8, 1.6, 2.0, 2.0, 2.0])

    def test_a_limit_of_minus_one_means_no_limit(self):
        settings = Settings.from_properties({"MaximumRetryAttempts": -1, "MaximumRecordAgeInSeconds": "-1"})
        self.assertEqual((settings.max_retries, settings.max_age_seconds), (None, None))


class Formats(unittest.TestCase):
    """Checks the formats against the model's golden files."""

    def golden(self, name):
        return json.loads((MODEL_TESTS / "goldens" / f"{name}.json").read_text())

    def test_a_record_is_delivered_in_the_format_of_aws(self):
        [golden] = self.golden("kinesis-event")["Records"]
        kinesis = golden["kinesis"]
        raw = {
            "PartitionKey": kinesis["partitionKey"], "SequenceNumber": kinesis["sequenceNumber"],
            "Data": kinesis["data"], "ApproximateArrivalTimestamp": kinesis["approximateArrivalTimestamp"],
        }
        role = "arn:aws:iam::111122223333:role/consumer"
        self.assertEqual(kinesis_event("shardId-000000000000", raw, ARN, role), golden)

    def failure(self, arn=ARN, last=Invocation(error=True, version="1")):
        golden = self.golden("failure-destination")
        [event] = json.loads(golden["payload"])["Records"]
        at = event["kinesis"]["approximateArrivalTimestamp"]
        given_up = Record("key", event["kinesis"]["sequenceNumber"], at, at, event, 1)
        file = failure_file(
            Batch([given_up], 4, last), golden["requestContext"]["condition"], source_arn=arn,
            shard_id="shardId-000000000000", function_arn=golden["requestContext"]["functionArn"],
            request_id=golden["requestContext"]["requestId"], now=1767268806.146,
        )
        return golden, file

    def test_a_failure_file_has_the_format_of_aws(self):
        golden, file = self.failure()
        payloads = [json.loads(it.pop("payload")) for it in (golden, file)]
        self.assertEqual(payloads[0], payloads[1])
        self.assertEqual(file, golden)

    def test_a_failure_file_of_a_table_names_its_stream(self):
        table = "arn:aws:dynamodb:eu-central-1:111122223333:table/events/stream/2026-11-28T00:00:00.000"
        _, file = self.failure(table)
        self.assertEqual(file["DDBStreamBatchInfo"]["streamArn"], table)

    def test_a_partial_failure_is_not_a_function_error(self):
        _, file = self.failure(last=Invocation(response={"batchItemFailures": []}, version="7"))
        self.assertEqual(file["responseContext"], {"statusCode": 200, "executedVersion": "7"})
        _, file = self.failure(last=None)
        self.assertNotIn("responseContext", file)

    def test_a_failure_file_has_the_documented_key(self):
        key = failure_key("6f1e", "shardId-000000000001", 1767268806.9, "b7c2")
        self.assertEqual(key, "aws/lambda/6f1e/shardId-000000000001/2026/01/01/2026-01-01T12.00.06-b7c2")


class Source:
    """A shard without an emulator. A position is the number of its records that were read."""

    def __init__(self):
        self.records = []

    def beginning(self):
        return 0

    def end(self):
        return len(self.records)

    def read(self, position):
        return self.records[position:], len(self.records)


class Polling(unittest.TestCase):
    def setUp(self):
        self.poller = Poller()
        self.delivered = []

    def poll(self, sources, start=Source.beginning, factor=1):
        def start_delivery(shard, lane):
            while not lane.empty():
                batch = lane.take(Settings.from_properties({}))
                self.delivered += [(shard.shard_id, data) for data in data_of(batch.records)]
            lane.busy = False

        return self.poller.poll(sources, start, list, factor, start_delivery)

    def test_every_shard_is_read(self):
        one, two = Source(), Source()
        one.records.append(record("a"))
        two.records.append(record("b"))
        self.assertTrue(self.poll({"1": one, "2": two}))
        self.assertEqual(self.delivered, [("1", "a"), ("2", "b")])
        self.assertFalse(self.poll({"1": one, "2": two}))
        one.records.append(record("c"))
        self.poll({"1": one, "2": two})
        self.assertEqual(self.delivered[2:], [("1", "c")])

    def test_a_mapping_that_starts_at_the_end_skips_existing_records(self):
        source = Source()
        source.records.append(record("before"))
        self.poll({"1": source}, Source.end)
        source.records.append(record("after"))
        self.poll({"1": source}, Source.end)
        self.assertEqual(self.delivered, [("1", "after")])

    def test_a_new_shard_is_read_from_its_beginning_after_the_closed_ones(self):
        old, new = Source(), Source()
        self.poll({"1": old}, Source.end)
        old.records.append(record("a"))
        new.records.append(record("b"))
        self.poll({"2": new}, Source.end)
        self.assertEqual(self.delivered, [("1", "a")], "the closed shard comes first")
        self.poll({"2": new}, Source.end)
        self.assertEqual(self.delivered, [("1", "a"), ("2", "b")])

    def test_a_reused_id_is_another_shard(self):
        old, new = Source(), Source()
        old.records.append(record("a"))
        self.poll({"1": old})
        new.records.append(record("b"))
        self.poll({"1": new})
        self.poll({"1": new})
        self.assertEqual(self.delivered, [("1", "a"), ("1", "b")])

    def test_the_number_of_lanes_changes_only_when_they_are_empty(self):
        source = Source()
        self.poll({"1": source}, factor=2)
        [shard] = self.poller.shards
        lanes = shard.lanes
        lanes[0].busy = True
        self.poll({"1": source}, factor=3)
        self.assertIs(shard.lanes, lanes)
        lanes[0].busy = False
        self.poll({"1": source}, factor=3)
        self.assertEqual(len(shard.lanes), 3)

    def test_a_busy_lane_is_not_started_twice(self):
        source = Source()
        started = []
        poll = lambda: self.poller.poll({"1": source}, Source.beginning, list, 1, lambda *it: started.append(it))
        source.records.append(record("a"))
        self.assertTrue(poll())
        source.records.append(record("b"))
        self.assertFalse(poll())
        self.assertEqual(len(started), 1)


class Emulator(unittest.TestCase):
    """Tests within MiniStack itself, with a scripted function."""

    def setUp(self):
        from ministack.core.responses import request_scope
        from ministack.services import dynamodb, kinesis, lambda_svc, s3

        self.kinesis, self.dynamodb, self.lambda_svc, self.s3 = kinesis, dynamodb, lambda_svc, s3
        scope = request_scope("000000000000", "us-east-1")
        scope.__enter__()
        self.addCleanup(scope.__exit__, None, None, None)
        self.addCleanup(kinesis.reset)
        self.addCleanup(lambda_svc._esms.clear)
        self.addCleanup(lambda_svc._functions.clear)
        self.addCleanup(stream_mappings._pollers.clear)
        lambda_svc._functions["consumer"] = {
            "config": {
                "FunctionName": "consumer", "Version": "$LATEST", "Role": "arn:aws:iam::000000000000:role/consumer",
                "FunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:consumer",
            },
        }
        self.events = []
        self.script = lambda event: {"body": None}
        patched = mock.patch.object(lambda_svc, "_execute_function", self.execute)
        patched.start()
        self.addCleanup(patched.stop)
        # There is no poll loop: the tests poll.
        patched = mock.patch.object(lambda_svc, "_ensure_poller", lambda: None)
        patched.start()
        self.addCleanup(patched.stop)
        patched = mock.patch.object(stream_mappings, "FIRST_PAUSE_SECONDS", 0.001)
        patched.start()
        self.addCleanup(patched.stop)

    def execute(self, _function, event):
        self.events.append(event)
        return self.script(event)

    def stream(self, shards=1):
        self.kinesis._create_stream({"StreamName": "readings", "ShardCount": shards})
        stream = self.kinesis._streams["readings"]
        stream["StreamStatus"] = "ACTIVE"
        return stream["StreamARN"]

    def put(self, data, key="key"):
        response = self.kinesis._put_record({
            "StreamName": "readings", "PartitionKey": key, "Data": stream_mappings.as_base64(data.encode()),
        })
        self.assertEqual(response[0], 200, response)

    def map(self, arn, **properties):
        properties = {
            "FunctionName": "consumer", "EventSourceArn": arn, "StartingPosition": "TRIM_HORIZON",
            "FunctionResponseTypes": ["ReportBatchItemFailures"], "MaximumRetryAttempts": 2,
        } | properties
        response = self.lambda_svc._create_esm(properties)
        self.assertEqual(response[0], 202, response)
        return json.loads(response[2])["UUID"]

    def settle(self):
        """Polls until no more records are delivered."""
        deadline = time.monotonic() + 30
        while stream_mappings.poll_streams() or any(
            not shard.drained() for poller in stream_mappings._pollers.values() for shard in poller.shards
        ):
            self.assertLess(time.monotonic(), deadline, "records are still delivered after 30 s")
            time.sleep(0.005)

    def delivered(self):
        return [[record["kinesis"]["data"] for record in event["Records"]] for event in self.events]

    def base64(self, *texts):
        return [stream_mappings.as_base64(text.encode()) for text in texts]

    def test_a_partial_batch_is_delivered_again_from_the_failed_record(self):
        arn = self.stream()
        for data in "abc":
            self.put(data)
        self.map(arn)

        def fail_once(event):
            if len(self.events) > 1:
                return {"body": {"batchItemFailures": []}}
            number = event["Records"][1]["kinesis"]["sequenceNumber"]
            return {"body": json.dumps({"batchItemFailures": [{"itemIdentifier": number}]})}

        self.script = fail_once
        self.settle()
        self.assertEqual(self.delivered(), [self.base64("a", "b", "c"), self.base64("b", "c")])
        self.put("d")
        self.settle()
        self.assertEqual(self.delivered()[2:], [self.base64("d")])
        [record] = self.events[-1]["Records"]
        self.assertEqual(record["invokeIdentityArn"], "arn:aws:iam::000000000000:role/consumer")

    def test_records_that_are_given_up_are_in_the_bucket(self):
        arn = self.stream()
        self.s3._create_bucket("failures", b"", {})
        self.put("bad")
        mapping = self.map(arn, DestinationConfig={"OnFailure": {"Destination": "arn:aws:s3:::failures"}})
        self.script = lambda event: {"body": {"errorMessage": "broken"}, "error": True}
        self.settle()
        self.assertEqual(len(self.events), 3)
        [(key, stored)] = self.s3._buckets["failures"]["objects"].items()
        self.assertTrue(key.startswith(f"aws/lambda/{mapping}/shardId-000000000000/20"), key)
        file = json.loads(stored["body"])
        self.assertEqual(json.loads(file["payload"]), self.events[0])
        self.assertEqual(file["requestContext"]["approximateInvokeCount"], 3)
        self.put("good")
        self.script = lambda event: {"body": None}
        self.settle()
        self.assertEqual(self.delivered()[3:], [self.base64("good")], "the shard moves on")

    def test_all_shards_are_read_and_an_exception_loses_nothing(self):
        arn = self.stream(shards=4)
        for n in range(40):
            self.put(f"{n}", key=f"key-{n}")

        def raise_once(event):
            if len(self.events) == 1:
                raise RuntimeError("an error of the emulator")
            return {"body": None}

        self.script = raise_once
        self.map(arn, ParallelizationFactor=2)
        self.settle()
        delivered = [data for batch in self.delivered()[1:] for data in batch]
        self.assertLessEqual(set(self.base64(*map(str, range(40)))), set(delivered))

    def test_a_reenabled_mapping_continues_at_its_position(self):
        arn = self.stream()
        mapping = self.map(arn)
        self.put("a")
        self.settle()
        self.lambda_svc._update_esm(mapping, {"Enabled": False})
        self.put("b")
        self.settle()
        self.assertEqual(self.delivered(), [self.base64("a")])
        self.lambda_svc._update_esm(mapping, {"Enabled": True})
        self.settle()
        self.assertEqual(self.delivered(), [self.base64("a"), self.base64("b")])
        self.lambda_svc._delete_esm(mapping)
        self.put("c")
        self.settle()
        self.assertEqual(len(self.events), 2)
        self.assertEqual(stream_mappings._pollers, {})

    def test_a_split_shard_is_read_to_its_end(self):
        arn = self.stream()
        self.map(arn)
        self.put("a")
        self.settle()
        self.put("b")
        self.kinesis._split_shard({
            "StreamName": "readings", "ShardToSplit": "shardId-000000000000", "NewStartingHashKey": str(2**127),
        })
        self.put("c")
        self.settle()
        self.assertEqual(self.delivered(), [self.base64("a"), self.base64("b"), self.base64("c")])

    def test_the_stream_of_a_table_is_filtered(self):
        table = {
            "TableName": "events", "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
            "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}], "BillingMode": "PAY_PER_REQUEST",
            "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        }
        self.assertEqual(self.dynamodb._create_table(table)[0], 200)
        self.addCleanup(self.dynamodb.reset)
        arn = self.dynamodb._tables["events"]["LatestStreamArn"]
        self.map(arn, FilterCriteria={"Filters": [{"Pattern": '{"eventName":["INSERT"]}'}]}, BatchSize=2)
        for number in ("1", "2", "3"):
            self.dynamodb._put_item({"TableName": "events", "Item": {"id": {"S": number}}})
            self.dynamodb._put_item({"TableName": "events", "Item": {"id": {"S": number}, "again": {"S": "!"}}})
        self.settle()
        delivered = [[it["dynamodb"]["Keys"]["id"]["S"] for it in event["Records"]] for event in self.events]
        self.assertEqual(delivered, [["1", "2"], ["3"]])


if __name__ == "__main__":
    unittest.main()
