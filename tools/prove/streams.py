"""Steps about Kinesis, with a stream of their own."""

import itertools
import time

from steps import NotProved, ensure, step

# The entities whose events are put in turn, and the number of events of each.
KEYS, ROUNDS = 20, 200
# The name of the stream, after the name of the environment.
STREAM = "proof-order"
# The middle of the hash keys.
SPLIT_AT = str(2**127)


def put_round(client, stream, number):
    """Puts one record of each key with one call, as publish-events does. Returns the sequence numbers by key."""
    pending, numbers = [f"site#{key}" for key in range(KEYS)], {}
    for _ in range(10):
        records = [{"PartitionKey": key, "Data": f"{key} {number}".encode()} for key in pending]
        results = client.put_records(StreamName=stream, Records=records)["Records"]
        numbers |= {key: int(result["SequenceNumber"]) for key, result in zip(pending, results) if "SequenceNumber" in result}
        pending = [key for key in pending if key not in numbers]
        if not pending:
            return numbers
        time.sleep(1)
    raise NotProved(f"the stream does not accept records of {len(pending)} keys")


def read_shard(client, stream, shard):
    """Returns the records of a shard as (key, number of the round), in the order in which consumers get them."""
    iterator = client.get_shard_iterator(StreamName=stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")["ShardIterator"]
    found = []
    while iterator:
        page = client.get_records(ShardIterator=iterator)
        found += [record["Data"].decode().rsplit(" ", 1) for record in page["Records"]]
        iterator = page.get("NextShardIterator")
        if not page["Records"] and page["MillisBehindLatest"] == 0:
            break
        time.sleep(0.25)  # A shard allows five reads a second.
    return [(key, int(number)) for key, number in found]


@step("events-order", "Kinesis keeps the order of records with the same partition key that are put by PutRecords one call after the other, also across "
      "a split: their sequence numbers increase, and a consumer gets them in that order", writes=True, seconds=600,
      units={"shardHour": 4, "putPayloadUnit": 10 * KEYS * ROUNDS}, not_on_emulator="the emulator has sequence numbers of its own")
def events_order(environment):
    client, stream = environment.client("kinesis"), environment.resource_name(STREAM)

    def is_active():
        return client.describe_stream_summary(StreamName=stream)["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE"

    environment.cleanups.append(("the stream of the step", lambda: client.delete_stream(StreamName=stream)))
    client.create_stream(StreamName=stream, ShardCount=1)
    environment.until("the stream is active", 120, is_active)
    rounds = []
    for number in range(ROUNDS):
        if number == ROUNDS // 2:
            first = client.list_shards(StreamName=stream)["Shards"][0]["ShardId"]
            client.split_shard(StreamName=stream, ShardToSplit=first, NewStartingHashKey=SPLIT_AT)
            environment.until("the shard is split", 180, is_active)
        rounds.append(put_round(client, stream, number))
    for before, after in itertools.pairwise(rounds):
        for key, number in after.items():
            ensure(number > before[key], f"a later record of {key} has the sequence number {number}, an earlier one {before[key]}")
    # A parent comes before its children.
    shards = [shard["ShardId"] for shard in client.list_shards(StreamName=stream)["Shards"]]
    read = {}
    for shard in sorted(shards):
        for key, number in read_shard(client, stream, shard):
            read.setdefault(key, []).append(number)
    wrong = next((key for key, numbers in read.items() if numbers != list(range(ROUNDS))), None)
    ensure(len(read) == KEYS, f"{len(read)} of {KEYS} keys were read")
    ensure(wrong is None, f"the rounds of {wrong} were read as {read.get(wrong)}")
    return f"{ROUNDS} records of each of {KEYS} keys in order, over {len(shards)} shards"
