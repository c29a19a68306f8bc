"""Lambda's event source mappings for Kinesis and DynamoDB streams on the local stack.

MiniStack 1.5.33 advances past a batch even if the function returns `batchItemFailures`, so it loses records
under load. It also has no bisecting, no retry limit, no parallelization and, for Kinesis, no failure
destination. `install` replaces its two stream pollers with those of this module, which follow the AWS Lambda
Developer Guide ("Using Lambda to process records from Amazon Kinesis Data Streams", "Using AWS Lambda with
Amazon DynamoDB").

The first half of this module contains the rules and does not depend on MiniStack. tests/testkit/src/mapping.rs
is a model of the same rules for the simulations. Both must pass the cases in
tests/testkit/tests/mapping_cases.json.

Not supported: the starting position AT_TIMESTAMP (MiniStack drops the timestamp), tumbling windows, enhanced
fan-out, streams of other accounts, and failure destinations other than S3.
"""

import base64
import bisect
import json
import logging
import time
import uuid
import zlib
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import takewhile

logger = logging.getLogger("stream-mappings")

MAX_PAYLOAD_BYTES = 6 * 1024 * 1024  # of a synchronous invocation
FIRST_PAUSE_SECONDS = 0.2  # before the first retry; each later pause is twice as long
MAX_PAUSE_SECONDS = 2.0  # AWS waits longer; the limit keeps tests and development fast
DONE, FAILED = "done", "failed"  # verdicts on a batch; a third one is the index of the first record to deliver again
RETRIES_EXHAUSTED, TOO_OLD = "RetryAttemptsExhausted", "RecordAgeExceeded"


# ---- The rules


@dataclass(frozen=True)
class Settings:
    """The properties of AWS::Lambda::EventSourceMapping that affect delivery. None means no limit."""

    batch_size: int
    window_seconds: float
    parallelization_factor: int
    bisects: bool
    max_retries: int | None
    max_age_seconds: float | None
    reports_item_failures: bool

    @classmethod
    def from_properties(cls, properties):
        def limit(name):
            value = int(properties.get(name, -1))
            return None if value < 0 else value

        return cls(
            batch_size=int(properties.get("BatchSize", 100)),
            window_seconds=float(properties.get("MaximumBatchingWindowInSeconds", 0)),
            parallelization_factor=int(properties.get("ParallelizationFactor", 1)),
            bisects=flag(properties.get("BisectBatchOnFunctionError", False)),
            max_retries=limit("MaximumRetryAttempts"),
            max_age_seconds=limit("MaximumRecordAgeInSeconds"),
            reports_item_failures="ReportBatchItemFailures" in (properties.get("FunctionResponseTypes") or []),
        )


def flag(value):
    """Returns a boolean property, which templates may contain as text."""
    return value if isinstance(value, bool) else str(value).lower() == "true"


@dataclass(frozen=True)
class Record:
    """A record of a stream. Records with the same `key` stay in order. Times are in seconds since the epoch."""

    key: str
    sequence_number: str
    arrived_at: float
    read_at: float
    event: dict  # as the function receives it
    size: int  # bytes in the function's event


@dataclass(frozen=True)
class Invocation:
    """The result of an invocation. A throttled invocation did not reach the function."""

    response: object = None
    error: bool = False
    throttled: bool = False
    version: str = "$LATEST"


@dataclass
class Batch:
    """Records that are delivered together."""

    records: list
    failures: int = 0  # the number of failed invocations that count as retries
    last: Invocation | None = None  # the last invocation with these records


@dataclass
class Lane:
    """The records of a shard whose keys have the same hash. They are delivered in order, one batch at a time."""

    waiting: deque = field(default_factory=deque)  # records that were not delivered yet
    retries: deque = field(default_factory=deque)  # batches that are delivered before the waiting records
    busy: bool = False  # a thread delivers; the poller sets it, and the thread clears it

    def empty(self):
        return not (self.waiting or self.retries)

    def seconds_until_due(self, settings, now):
        """Returns how long the next batch has to wait for more records, or None if there is nothing to deliver."""
        if self.retries:
            return 0
        if not self.waiting:
            return None
        left = self.waiting[0].read_at + settings.window_seconds - now
        full = len(self.waiting) >= settings.batch_size
        return 0 if full or left <= 0 or sum(it.size for it in list(self.waiting)) >= MAX_PAYLOAD_BYTES else left

    def take(self, settings):
        """Returns the next batch: a failed one, or as many waiting records as fit into an invocation."""
        if self.retries:
            return self.retries.popleft()
        records, size = [], 0
        while self.waiting and len(records) < settings.batch_size:
            size += self.waiting[0].size
            if records and size > MAX_PAYLOAD_BYTES:
                break
            records.append(self.waiting.popleft())
        return Batch(records)

    def put_back(self, batches):
        """Puts batches back. They are delivered before everything else, in this order."""
        self.retries.extendleft(reversed(batches))


def lane_of(key, lanes):
    """Returns the lane of a key. It is always the same one, so the key's records stay in order."""
    return lanes[zlib.crc32(key.encode()) % len(lanes)]


def verdict(records, response):
    """Returns the verdict of a function with ReportBatchItemFailures on its batch."""
    failures = response.get("batchItemFailures") if isinstance(response, dict) else None
    if failures is None:
        return DONE
    if not isinstance(failures, list):
        return FAILED
    places = {record.sequence_number: place for place, record in enumerate(records)}
    lowest = len(records)
    for failure in failures:
        identifier = failure.get("itemIdentifier") if isinstance(failure, dict) else None
        if not isinstance(identifier, str) or identifier not in places:  # empty, null, missing, or of another batch
            return FAILED
        lowest = min(lowest, places[identifier])
    return DONE if lowest == len(records) else lowest


def judge(batch, invocation, settings):
    if invocation.error:
        return FAILED
    return verdict(batch.records, invocation.response) if settings.reports_item_failures else DONE


def remaining(batch, judged, settings):
    """Returns the batches that are delivered again, in order. Their `failures` count the used retries."""
    if judged == DONE:
        return []
    if judged == FAILED and settings.bisects and len(batch.records) > 1:
        # Splitting a batch does not use up a retry.
        middle = len(batch.records) // 2
        return [Batch(batch.records[:middle], batch.failures), Batch(batch.records[middle:], batch.failures)]
    if judged == FAILED or judged == 0:
        return [Batch(batch.records, batch.failures + 1)]
    # The checkpoint is at the lowest sequence number that failed. The records before it are done.
    return [Batch(batch.records[judged:], batch.failures)]


def expired(batch, settings, now):
    """Returns the records at the beginning of a batch that are too old to be delivered."""
    if settings.max_age_seconds is None:
        return []
    return list(takewhile(lambda record: now - record.arrived_at > settings.max_age_seconds, batch.records))


def exhausted(batch, settings):
    return settings.max_retries is not None and batch.failures > settings.max_retries


def pause_seconds(failures):
    return min(FIRST_PAUSE_SECONDS * 2 ** min(failures, 10), MAX_PAUSE_SECONDS)


def deliver(lane, mapping):
    """Delivers the records of a lane until it is empty or the mapping is disabled."""
    while mapping.enabled():
        settings = mapping.settings()
        wait = lane.seconds_until_due(settings, mapping.now())
        if wait is None:
            return
        if wait > 0:
            mapping.sleep(min(wait, MAX_PAUSE_SECONDS))
            continue
        batch = lane.take(settings)
        if old := expired(batch, settings, mapping.now()):
            mapping.give_up(Batch(old, batch.failures, batch.last), TOO_OLD)
            if rest := batch.records[len(old):]:
                lane.put_back([Batch(rest, batch.failures, batch.last)])
            continue
        invocation = mapping.invoke(batch.records)
        if invocation.throttled:  # it did not reach the function, so it is neither counted nor split
            left = [batch]
        else:
            left = remaining(batch, judge(batch, invocation, settings), settings)
            for failed in left:
                failed.last = invocation
        if left and exhausted(left[0], settings):
            mapping.give_up(left.pop(0), RETRIES_EXHAUSTED)
        lane.put_back(left)
        if left:
            mapping.sleep(pause_seconds(left[0].failures))


def rfc3339(seconds):
    """Formats seconds since the epoch, with milliseconds."""
    at = datetime.fromtimestamp(round(seconds, 3), timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def failure_file(batch, condition, *, source_arn, shard_id, function_arn, request_id, now):
    """Returns the file that Lambda writes to an S3 failure destination. The payload is the function's event, as text."""
    records, invocation = batch.records, batch.last
    content = {
        "requestContext": {
            "requestId": request_id,
            "functionArn": function_arn,
            "condition": condition,
            "approximateInvokeCount": batch.failures,
        },
        "version": "1.0",
        "timestamp": rfc3339(now),
        "KinesisBatchInfo" if ":kinesis:" in source_arn else "DDBStreamBatchInfo": {
            "shardId": shard_id,
            "startSequenceNumber": records[0].sequence_number,
            "endSequenceNumber": records[-1].sequence_number,
            "approximateArrivalOfFirstRecord": rfc3339(records[0].arrived_at),
            "approximateArrivalOfLastRecord": rfc3339(records[-1].arrived_at),
            "batchSize": len(records),
            "streamArn": source_arn,
        },
        "payload": json.dumps(event_of(records)),
    }
    if invocation:  # records that became too old before the first invocation have no response
        content["responseContext"] = {"statusCode": 200, "executedVersion": invocation.version}
        if invocation.error:
            content["responseContext"]["functionError"] = "Unhandled"
    return content


def failure_key(mapping_id, shard_id, now, name):
    at = datetime.fromtimestamp(now, timezone.utc)
    return f"aws/lambda/{mapping_id}/{shard_id}/{at:%Y/%m/%d}/{at:%Y-%m-%dT%H.%M.%S}-{name}"


def event_of(records):
    return {"Records": [record.event for record in records]}


def kinesis_event(shard_id, raw, source_arn, role_arn):
    """Returns a Kinesis record as Lambda delivers it. `raw` is the record in the response of GetRecords."""
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": raw["PartitionKey"],
            "sequenceNumber": raw["SequenceNumber"],
            "data": raw["Data"],
            "approximateArrivalTimestamp": raw["ApproximateArrivalTimestamp"],
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"{shard_id}:{raw['SequenceNumber']}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": role_arn,
        "awsRegion": source_arn.split(":")[3],
        "eventSourceARN": source_arn,
    }


@dataclass
class Shard:
    """A shard with its read position and the records that were read but not delivered yet."""

    shard_id: str
    source: object  # has `read(position)`, which returns records and the position after them
    position: object
    lanes: list = field(default_factory=list)
    closed: bool = False  # it receives no more records

    def drained(self):
        return all(lane.empty() and not lane.busy for lane in self.lanes)

    def read(self, keep, factor):
        """Puts new records into the lanes. `keep` selects those that match the filter criteria."""
        if self.drained() and len(self.lanes) != factor:
            self.lanes = [Lane() for _ in range(factor)]
        records, self.position = self.source.read(self.position)
        for record in keep(records):
            lane_of(record.key, self.lanes).waiting.append(record)


class Poller:
    """Reads the stream of a mapping and starts the delivery of its records."""

    def __init__(self):
        self.shards = []
        self.began = False

    def poll(self, sources, start, keep, factor, start_delivery):
        """Polls the stream once. Returns whether a delivery was started.

        `sources` are the open shards, by id. `start(source)` is the starting position of the mapping. It
        applies to the shards that exist when the mapping begins; later ones are read from their beginning.
        """
        self._follow(sources, start)
        started = False
        for shard in self._readable():
            shard.read(keep, factor)
            for lane in shard.lanes:
                if not lane.busy and not lane.empty():
                    lane.busy = started = True
                    start_delivery(shard, lane)
        self.shards = [shard for shard in self.shards if not (shard.closed and shard.drained())]
        return started

    def _follow(self, sources, start):
        for shard in self.shards:
            shard.closed = sources.get(shard.shard_id) != shard.source
        followed = [shard.source for shard in self.shards]
        for shard_id, source in sources.items():
            if source not in followed:
                self.shards.append(Shard(shard_id, source, source.beginning() if self.began else start(source)))
        self.began = True

    def _readable(self):
        """Returns the shards to read. After a split or merge, the new shards wait for the closed ones, so that
        the records of a key stay in order."""
        closed = [shard for shard in self.shards if shard.closed]
        return [shard for shard in self.shards if shard.closed or shard.lanes or not closed]


# ---- MiniStack

BUCKET_ARN = "arn:aws:s3:::"


@dataclass(frozen=True)
class KinesisShard:
    """A shard of MiniStack's Kinesis. A position is the sequence number of the last record that was read."""

    shard_id: str
    shard: dict
    source_arn: str
    role_arn: str
    now: object

    def __eq__(self, other):  # resharding may reuse an id
        return isinstance(other, KinesisShard) and self.shard is other.shard

    def beginning(self):
        return ""

    def end(self):
        records = self.shard["records"]
        return records[-1]["SequenceNumber"] if records else ""

    def read(self, position):
        raws = self.shard["records"]  # all sequence numbers have the same length
        raws = raws[bisect.bisect_right(raws, position, key=lambda raw: raw["SequenceNumber"]):]
        records = [self._record(raw) for raw in raws]
        return records, records[-1].sequence_number if records else position

    def _record(self, raw):
        event = kinesis_event(self.shard_id, {**raw, "Data": as_base64(raw["Data"])}, self.source_arn, self.role_arn)
        kinesis = event["kinesis"]
        size = len(kinesis["data"]) + len(kinesis["partitionKey"]) + 600  # 600 for the rest of the event
        return Record(
            kinesis["partitionKey"], kinesis["sequenceNumber"], kinesis["approximateArrivalTimestamp"], self.now(),
            event, size,
        )


@dataclass(frozen=True)
class TableStream:
    """The stream of a MiniStack table, which has one shard. A position counts the records since the first one."""

    table: str
    stream_arn: str
    now: object

    def __eq__(self, other):
        return isinstance(other, TableStream) and self.stream_arn == other.stream_arn

    def beginning(self):
        from ministack.services import dynamodb

        return dynamodb.stream_start_position(self.table)

    def end(self):
        from ministack.services import dynamodb

        return dynamodb.stream_end_position(self.table)

    def read(self, position):
        from ministack.services import dynamodb

        position = max(position, self.beginning())  # older records have expired
        events = dynamodb.stream_records_since(self.table, position, self.end() - position)
        return [self._record(event) for event in events], position + len(events)

    def _record(self, event):
        change = event["dynamodb"]
        keys = json.dumps(change["Keys"], sort_keys=True)
        arrived_at = float(change["ApproximateCreationDateTime"])
        return Record(keys, change["SequenceNumber"], arrived_at, self.now(), event, len(json.dumps(event)))


def as_base64(data):
    if isinstance(data, bytes):
        return base64.b64encode(data).decode()
    try:
        base64.b64decode(data, validate=True)
        return data
    except ValueError:
        return base64.b64encode(data.encode()).decode()


class LocalMapping:
    """The interface of a MiniStack mapping that `deliver` needs, for one shard."""

    def __init__(self, mapping, shard_id):
        self.mapping = mapping
        self.shard_id = shard_id

    def now(self):
        return time.time()

    def sleep(self, seconds):
        time.sleep(seconds)

    def enabled(self):
        from ministack.services import lambda_svc

        known = lambda_svc._esms.get(self.mapping["UUID"]) is self.mapping
        return known and self.mapping.get("Enabled", True) and self._function() is not None

    def settings(self):
        return Settings.from_properties(self.mapping)

    def _function(self):
        """Returns the function's version that its alias currently points to."""
        from ministack.services import lambda_svc

        return lambda_svc._get_func_record_for_qualifier(
            self.mapping["FunctionName"], self.mapping.get("Qualifier")
        )[0]

    def invoke(self, records):
        from ministack.services import lambda_svc

        try:
            function = self._function()
            result = lambda_svc._execute_function(function, event_of(records))
        except Exception:  # an error of the emulator: the records must be delivered again
            logger.exception("%s could not be invoked", self.mapping["FunctionName"])
            return Invocation(throttled=True)
        failed = bool(result.get("error"))
        self.mapping["LastProcessingResult"] = "PROBLEM: Function call failed" if failed else "OK"
        if failed:
            logger.warning(
                "%s failed on %d records of %s: %s\n%s", self.mapping["FunctionName"], len(records),
                self.mapping["EventSourceArn"], result.get("body"), result.get("log", ""),
            )
        return Invocation(
            response=parsed(result.get("body")), error=failed, throttled=bool(result.get("throttle")),
            version=function["config"].get("Version", "$LATEST"),
        )

    def give_up(self, batch, condition):
        """Writes the failure file. If that fails, the records are dropped, as on AWS."""
        destination = ((self.mapping.get("DestinationConfig") or {}).get("OnFailure") or {}).get("Destination", "")
        now = self.now()
        content = failure_file(
            batch, condition, source_arn=self.mapping["EventSourceArn"], shard_id=self.shard_id,
            function_arn=self.mapping["FunctionArn"], request_id=str(uuid.uuid4()), now=now,
        )
        key = failure_key(self.mapping["UUID"], self.shard_id, now, uuid.uuid4())
        try:
            config = self._function()["config"]
            put_failure_file(config, destination, key, json.dumps(content).encode())
        except Exception:
            logger.exception(
                "%s: %d records are dropped, %s; %s could not be written to %r", self.mapping["FunctionName"],
                len(batch.records), condition, key, destination,
            )


def parsed(body):
    """Returns the function's response. Text that is not JSON remains text."""
    try:
        return json.loads(body) if isinstance(body, (str, bytes)) else body
    except ValueError:
        return body


def put_failure_file(_config, destination, key, content):
    """Writes to a failure destination, given by a bucket's ARN. `authorisation` adds the check of the
    function's role."""
    from ministack.services import s3

    if not destination.startswith(BUCKET_ARN):
        raise ValueError("the local stack supports only S3 as the failure destination of a stream")
    bucket = destination.removeprefix(BUCKET_ARN)
    status, _, response = s3._put_object(bucket, key, content, {"content-type": "application/json"})
    if status != 200:
        raise OSError(response)


_pollers = {}  # by the mapping's UUID


def poll_streams():
    """Polls the streams of all mappings once. Returns whether a delivery was started."""
    from ministack.core.responses import request_scope
    from ministack.services import lambda_svc

    known = {scoped_key[-1] for scoped_key in list(lambda_svc._esms._data)}
    for deleted in _pollers.keys() - known:
        del _pollers[deleted]
    started = False
    for account, region, mapping in lambda_svc._iter_all_esms():
        with request_scope(account, region):
            try:
                started |= poll_mapping(mapping)
            except Exception:  # an error of another mapping must not stop this one
                logger.exception("the stream of mapping %s can't be read", mapping.get("UUID"))
    return started


def poll_mapping(mapping):
    from ministack.core.concurrency import esm_wake, spawn_background
    from ministack.services import lambda_svc

    if mapping["EventSourceArn"].split(":")[2] not in ("kinesis", "dynamodb"):
        return False
    if not LocalMapping(mapping, "").enabled():
        return False
    sources = open_shards(mapping)
    if sources is None:
        return False

    def start(source):
        if mapping.get("StartingPosition") == "TRIM_HORIZON":
            return source.beginning()
        return lambda_svc._dynamodb_stream_positions.get(mapping["UUID"], source.end())

    def keep(records):
        kept = lambda_svc._apply_filter_criteria([record.event for record in records], mapping)
        kept = {id(event) for event in kept}
        return [record for record in records if id(record.event) in kept]

    def work(shard, lane):
        try:
            deliver(lane, LocalMapping(mapping, shard.shard_id))
        finally:
            lane.busy = False
            esm_wake.set()  # for records that arrived while the thread ended

    def start_delivery(shard, lane):
        spawn_background(work, shard, lane, thread_name="stream-mapping")

    poller = _pollers.setdefault(mapping["UUID"], Poller())
    factor = Settings.from_properties(mapping).parallelization_factor
    return poller.poll(sources, start, keep, factor, start_delivery)


def open_shards(mapping):
    """Returns the shards of a mapping's stream, by id, or None if the stream does not exist."""
    from ministack.services import dynamodb, kinesis, lambda_svc

    arn = mapping["EventSourceArn"]
    name = arn.split("/")[1]
    if ":kinesis:" in arn:
        stream = kinesis._streams.get(name)
        if not stream or stream["StreamARN"] != arn or stream["StreamStatus"] != "ACTIVE":
            return None
        role = lambda_svc._functions.get(mapping["FunctionName"])["config"].get("Role", "")
        return {
            shard_id: KinesisShard(shard_id, shard, arn, role, time.time)
            for shard_id, shard in list(stream["shards"].items())
        }
    table = dynamodb._tables.get(name)
    if not table or table.get("LatestStreamArn") != arn:
        return None
    return {"shardId-00000000000000000000-00000000": TableStream(name, arn, time.time)}


def install():
    """Replaces MiniStack's stream pollers. Must be called before it starts."""
    from ministack.services import lambda_svc

    lambda_svc._poll_kinesis = poll_streams
    lambda_svc._poll_dynamodb_streams = lambda: False
