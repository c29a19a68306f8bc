"""Steps that cause failures and check that nothing is lost."""

import json
import time
import uuid

from bounds import SITE, plus
from breaking import break_function, deny
from environment import ALIAS, SUPPLIER
from steps import NotProved, ensure, step

STREAM = {"putPayloadUnit": 20, "request": 300, "gigabyteSecond": 300, "filePut": 20, "queueRequest": 100, "writeUnit": 50, "readUnit": 200}
ONE_RETRY = "one retry of the mapping of store-readings"


def give_up_soon(environment):
    """Makes Lambda give up on the batches of store-readings after one retry. Returns the mapping's id."""
    client, mapping = environment.client("lambda"), environment.mapping("StoreReadingsMapping")
    identifier, retries = mapping["UUID"], mapping["MaximumRetryAttempts"]

    def settled():
        return client.get_event_source_mapping(UUID=identifier)["State"] == "Enabled"

    def restore():
        client.update_event_source_mapping(UUID=identifier, MaximumRetryAttempts=retries)
        environment.until("the mapping of store-readings has its retries again", 180, settled)

    environment.cleanups.append((ONE_RETRY, restore))
    client.update_event_source_mapping(UUID=identifier, MaximumRetryAttempts=1)
    environment.until("the mapping of store-readings has one retry", 180, settled)
    return identifier


def events_of(environment, mapping, name):
    """Returns the sum of a mapping's metric in the last quarter of an hour."""
    return sum(environment.metric("AWS/Lambda", name, {"EventSourceMappingUUID": mapping}, 900))


@step("given-up", "When Lambda gives up on a batch of a stream, it writes a file with the records to the failure bucket; each record becomes a failure "
      "that can be replayed, and none is counted as dropped", writes=True, seconds=1_200, units=plus(SITE, STREAM))
def given_up(environment):
    environment.require_fieldctl()
    details = environment.active_site()
    site, sensor = details["siteId"], details["sensors"][0]["sensorId"]
    environment.await_sensor(sensor)
    mapping = give_up_soon(environment)
    broken = break_function(environment, "store-readings", "READINGS_TABLE", environment.resource_name("no-such-table"))
    started = time.time()
    # The failure contains the record's data in encoded form, but its partition key as text. The key begins with the
    # site's id, so the search below uses this id.
    environment.send_reading(site, sensor, "proof-given-up")
    rows = environment.until(
        "the batch that was given up on is a failure", 300, lambda: environment.open_failures("store-readings", "GIVEN_UP", site, started), pause=5)
    failure = rows[0]["id"]["S"]
    environment.run_cleanup(broken)
    environment.run_cleanup(ONE_RETRY)
    environment.cleanups.append((f"failure {failure}", lambda: environment.close_failure(failure)))
    environment.replay(failure)
    environment.await_reading(sensor)
    seen = f"failure {failure} ({rows[0]['error']['M']['name']['S']}) has the record; its replay stored the reading"
    if environment.emulator:
        return seen
    delivered = "OnFailureDestinationDeliveredEventCount"
    environment.until(f"the mapping counts the record as {delivered}", 600, lambda: events_of(environment, mapping, delivered), pause=20)
    ensure(not events_of(environment, mapping, "DroppedEventCount"), "the record was also counted as dropped")
    return seen


@step("dropped", "Records that neither the function nor the failure bucket accepts are counted as DroppedEventCount", writes=True, seconds=1_800, long=True,
      units=plus(SITE, STREAM, {"metricRequest": 100}), not_on_emulator="the emulator has no metrics of mappings")
def dropped(environment):
    details = environment.active_site()
    site, sensor = details["siteId"], details["sensors"][0]["sensorId"]
    environment.await_sensor(sensor)
    mapping = give_up_soon(environment)
    deny(environment, "store-readings", "s3:PutObject")
    break_function(environment, "store-readings", "READINGS_TABLE", environment.resource_name("no-such-table"))
    started = time.time()
    environment.send_reading(site, sensor, "proof-dropped")
    count = environment.until("the mapping counts the record as dropped", 1_200, lambda: events_of(environment, mapping, "DroppedEventCount"), pause=20)
    ensure(not environment.open_failures("store-readings", "GIVEN_UP", site, started), "the record is a failure, so it was not dropped")
    return f"{count:.0f} record was counted as dropped (this step's reading, which is lost)"


@step("large-event", "A failure queue accepts an event of the maximum size with its error, so the event becomes a failure with its payload", writes=True, seconds=900,
      units=plus(STREAM, {"event": 10, "writeUnit": 2_000, "readUnit": 2_000}))
def large_event(environment):
    environment.require_fieldctl()
    registration, started = f"prove-{uuid.uuid4()}", time.time()
    # The function refuses this invalid event three times. EventBridge accepts entries of up to 256 KB.
    detail = {"registrationId": registration, "site": {"name": "x" * 250_000}}
    response = environment.client("events").put_events(Entries=[{
        "EventBusName": environment.resource_name("events"), "Source": SUPPLIER, "DetailType": "SiteRegistrationRequested", "Detail": json.dumps(detail),
    }])
    ensure(not response["FailedEntryCount"], f"the bus refused an event of 250 KB: {response['Entries']}")
    rows = environment.until(
        "the event is a failure", 600, lambda: environment.open_failures("import-site", "FUNCTION_FAILED", registration, started), pause=10)
    failure = rows[0]["id"]["S"]
    environment.cleanups.append((f"failure {failure}", lambda: environment.close_failure(failure)))
    length = len(rows[0]["payload"]["S"])
    ensure(length > 250_000, f"the payload of failure {failure} has {length} bytes")
    return f"failure {failure} ({rows[0]['error']['M']['name']['S']}) has a payload of {length:,} bytes"


@step("dead-letter", "EventBridge's dead letter of a rule names its target in TARGET_ARN, with the alias: the failure is NOT_DELIVERED and has the "
      "function as its source", writes=True, seconds=600, units=plus(STREAM, {"event": 10}),
      not_on_emulator="the emulator has no dead letters of EventBridge")
def dead_letter(environment):
    environment.require_fieldctl()
    client, name = environment.client("lambda"), environment.resource_name("receive-kits")
    policy = json.loads(client.get_policy(FunctionName=name, Qualifier=ALIAS)["Policy"])
    statement = next(each for each in policy["Statement"] if each["Principal"] == {"Service": "events.amazonaws.com"})
    rule = next(iter(statement["Condition"].values()))
    rule = rule.get("AWS:SourceArn") or rule["aws:SourceArn"]

    def restore():
        client.add_permission(
            FunctionName=name, Qualifier=ALIAS, StatementId=statement["Sid"], Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com", SourceArn=rule)

    environment.cleanups.append(("the missing permission of the rule of receive-kits", restore))
    client.remove_permission(FunctionName=name, Qualifier=ALIAS, StatementId=statement["Sid"])

    started, rows = time.time(), []
    for _ in range(5):
        # The change takes effect after some seconds. An event that is sent before that is still delivered.
        time.sleep(15)
        delivery = f"prove-{uuid.uuid4()}"
        environment.put_delivery("air_temperature", 1, delivery)
        try:
            rows = environment.until(
                "the dead letter is a failure", 60, lambda delivery=delivery: environment.open_failures("receive-kits", "NOT_DELIVERED", delivery, started))
            break
        except NotProved:
            environment.log(f"  delivery {delivery} is not a failure after a minute")
    ensure(rows, "no dead letter of the rule became a failure of receive-kits")
    failure = rows[0]["id"]["S"]
    environment.run_cleanup("the missing permission of the rule of receive-kits")
    environment.cleanups.append((f"failure {failure}", lambda: environment.close_failure(failure)))
    time.sleep(15)
    environment.replay(failure)
    environment.await_delivery(delivery)
    return f"failure {failure} is NOT_DELIVERED, {rows[0]['error']['M']['name']['S']}, of receive-kits; its replay put the kit in stock"


@step("mapping-problem", "LastProcessingResult of a mapping begins with PROBLEM when Lambda can't read its source, and fieldctl shows it", writes=True,
      seconds=900, long=True, units=STREAM, not_on_emulator="the emulator's texts differ")
def mapping_problem(environment):
    denied = deny(environment, "store-readings", "kinesis:GetRecords")

    def problem():
        result = environment.mapping("StoreReadingsMapping").get("LastProcessingResult", "")
        return result if result.startswith("PROBLEM") else None

    result = environment.until("LastProcessingResult of StoreReadingsMapping begins with PROBLEM", 800, problem, pause=10)
    environment.run_cleanup(denied)
    return f"LastProcessingResult is {result!r}"
