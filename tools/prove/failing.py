"""Steps that make something fail, and look whether nothing is lost."""

import json
import time
import uuid

from bounds import SITE, plus
from environment import ALIAS
from steps import NotProved, ensure, step

STREAM = {"putPayloadUnit": 20, "request": 300, "gigabyteSecond": 300, "filePut": 20, "queueRequest": 100, "writeUnit": 50, "readUnit": 200}


def updated(environment, function):
    """Waits until a change of the function's configuration is done."""
    def done():
        found = environment.client("lambda").get_function_configuration(FunctionName=function)
        return found.get("LastUpdateStatus") != "InProgress"

    environment.until(f"{function} is updated", 120, done)


def break_function(environment, function, variable, value):
    """Publishes a version of a function with one environment variable changed, and points the alias to it. Returns the name of
    the clean-up action."""
    client, name = environment.client("lambda"), environment.named(function)
    good = environment.live_version(function)
    variables = client.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    ensure(variable in variables, f"{function} has no variable {variable}")
    what = f"the broken version of {function}"
    bad = []

    def restore():
        client.update_alias(FunctionName=name, Name=ALIAS, FunctionVersion=good, RoutingConfig={"AdditionalVersionWeights": {}})
        client.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
        updated(environment, name)
        for version in bad:
            client.delete_function(FunctionName=name, Qualifier=version)

    environment.undos.append((what, restore))
    client.update_function_configuration(FunctionName=name, Environment={"Variables": variables | {variable: value}})
    updated(environment, name)
    version = client.publish_version(FunctionName=name, Description="Made by prove-on-aws.sh, which removes it.")["Version"]
    ensure(version != good, f"no new version of {function} was published")
    bad.append(version)
    environment.until(
        f"version {version} of {function} is active", 120,
        lambda: client.get_function_configuration(FunctionName=name, Qualifier=version)["State"] == "Active",
    )
    client.update_alias(FunctionName=name, Name=ALIAS, FunctionVersion=version)
    if not environment.emulator:
        # Lambda's pollers take some seconds to follow an alias.
        time.sleep(15)
    return what


@step("given-up", "A batch of a stream that Lambda gives up on is a file in the failure bucket, with its records, and each record becomes a failure "
      "that can be replayed", writes=True, seconds=600, units=plus(SITE, STREAM))
def given_up(environment):
    environment.require_fieldctl()
    shown = environment.active_site()
    site, sensor = shown["siteId"], shown["sensors"][0]["sensorId"]
    environment.await_sensor(sensor)

    client = environment.client("lambda")
    mapping = environment.mapping("StoreReadingsMapping")
    identifier, retries = mapping["UUID"], mapping["MaximumRetryAttempts"]

    def settled():
        return client.get_event_source_mapping(UUID=identifier)["State"] == "Enabled"

    def restore():
        client.update_event_source_mapping(UUID=identifier, MaximumRetryAttempts=retries)
        environment.until("the mapping of store-readings has its retries again", 180, settled)

    environment.undos.append(("one retry of the mapping of store-readings", restore))
    client.update_event_source_mapping(UUID=identifier, MaximumRetryAttempts=1)
    environment.until("the mapping of store-readings has one retry", 180, settled)
    broken = break_function(environment, "store-readings", "READINGS_TABLE", environment.named("no-such-table"))

    begun = time.time()
    # The payload of a stream's record is encoded; its partition key, the site, is not.
    environment.send_reading(site, sensor, "proof-given-up")
    rows = environment.until(
        "the batch that was given up on is a failure", 300, lambda: environment.open_failures("store-readings", "GIVEN_UP", site, begun), pause=5)
    failure = rows[0]["id"]["S"]
    environment.undo_now(broken)
    environment.undo_now("one retry of the mapping of store-readings")
    environment.undos.append((f"failure {failure}", lambda: environment.close_failure(failure)))
    environment.replay(failure)
    environment.await_reading(sensor)
    return f"failure {failure} ({rows[0]['error']['M']['name']['S']}) has the record; its replay stored the reading"


@step("dead-letter", "EventBridge's dead letter of a rule names its target in TARGET_ARN, with the alias: the failure is NOT_DELIVERED and has its "
      "function as source", writes=True, seconds=600, units=plus(STREAM, {"event": 10}),
      not_on_emulator="the emulator has no dead letters of EventBridge")
def dead_letter(environment):
    environment.require_fieldctl()
    client, name = environment.client("lambda"), environment.named("receive-kits")
    policy = json.loads(client.get_policy(FunctionName=name, Qualifier=ALIAS)["Policy"])
    statement = next(each for each in policy["Statement"] if each["Principal"] == {"Service": "events.amazonaws.com"})
    rule = next(iter(statement["Condition"].values()))
    rule = rule.get("AWS:SourceArn") or rule["aws:SourceArn"]

    def restore():
        client.add_permission(
            FunctionName=name, Qualifier=ALIAS, StatementId=statement["Sid"], Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com", SourceArn=rule)

    environment.undos.append(("the missing permission of the rule of receive-kits", restore))
    client.remove_permission(FunctionName=name, Qualifier=ALIAS, StatementId=statement["Sid"])

    begun, rows = time.time(), []
    for _ in range(5):
        # IAM takes some seconds to know of the change; an event before that is delivered.
        time.sleep(15)
        delivery = f"prove-{uuid.uuid4()}"
        environment.put_delivery("air_temperature", 1, delivery)
        try:
            rows = environment.until(
                "the dead letter is a failure", 60, lambda delivery=delivery: environment.open_failures("receive-kits", "NOT_DELIVERED", delivery, begun))
            break
        except NotProved:
            environment.say(f"  delivery {delivery} is no failure after a minute")
    ensure(rows, "no dead letter of the rule became a failure of receive-kits")
    failure = rows[0]["id"]["S"]
    environment.undo_now("the missing permission of the rule of receive-kits")
    environment.undos.append((f"failure {failure}", lambda: environment.close_failure(failure)))
    time.sleep(15)
    environment.replay(failure)
    environment.await_delivery(delivery)
    return f"failure {failure} is NOT_DELIVERED, {rows[0]['error']['M']['name']['S']}, of receive-kits; its replay put the kit in stock"


@step("mapping-problem", "LastProcessingResult of a mapping begins with PROBLEM when Lambda can't read its source, and fieldctl shows it", writes=True,
      seconds=900, long=True, units=STREAM, not_on_emulator="the emulator writes other texts")
def mapping_problem(environment):
    role = environment.configuration("store-readings")["Role"].rpartition("/")[2]
    policy = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "kinesis:GetRecords", "Resource": "*"}]})
    iam = environment.client("iam")
    name = "prove-on-aws"
    environment.undos.append(("the denied kinesis:GetRecords of store-readings", lambda: iam.delete_role_policy(RoleName=role, PolicyName=name)))
    iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=policy)

    def problem():
        result = environment.mapping("StoreReadingsMapping").get("LastProcessingResult", "")
        return result if result.startswith("PROBLEM") else None

    result = environment.until("LastProcessingResult of StoreReadingsMapping begins with PROBLEM", 800, problem, pause=10)
    environment.undo_now("the denied kinesis:GetRecords of store-readings")
    return f"LastProcessingResult is {result!r}"
