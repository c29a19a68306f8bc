"""Steps that onboard a site and decommission it."""

import json
import time

import botocore.exceptions
from bounds import SITE, plus, times
from breaking import break_function, silence_provider
from environment import code
from steps import NotProved, Skipped, ensure, step

SOURCE = "fieldstation.sites"
# No rule matches this type, so an accepted event has no effect.
FOREIGN_TYPE = "ProofOnAws"


@step("foreign-sources", "The bus refuses events with a source fieldstation.* from all callers except the publishers, whose events are delivered",
      writes=True, seconds=300, units=SITE)
def foreign_sources(environment):
    bus = environment.client("events").describe_event_bus(Name=environment.resource_name("events"))
    if "Policy" not in bus:
        if environment.emulator:
            raise Skipped("the emulator's bus has no policy (GuardEventSources=false)")
        raise NotProved("the bus has no policy: was the environment deployed with GuardEventSources=false?")
    entry = {"EventBusName": environment.resource_name("events"), "Source": SOURCE, "DetailType": FOREIGN_TYPE, "Detail": "{}"}
    try:
        response = environment.client("events").put_events(Entries=[entry])["Entries"][0]
        refusal = response.get("ErrorCode")
    except botocore.exceptions.ClientError as error:
        refusal = code(error)
    ensure(refusal, "an event with source fieldstation.sites was accepted from this caller")
    ensure("denied" in refusal.lower() or "notauthorized" in refusal.lower(), f"the event was refused, but with {refusal}")
    # The onboarding starts with an event of the source that was refused above. So this shows that the publishers may
    # use it.
    site = environment.active_site()
    return f"this caller's event was refused with {refusal}; the events of site {site['siteId']} were delivered, and it is ACTIVE"


def nested_teardown(environment, onboarding):
    """Returns an onboarding's execution, and the execution of site-teardown that it started (None if the history does not name it)."""
    client = environment.client("stepfunctions")
    arn = environment.arn("states", f"execution:{environment.resource_name('site-onboarding')}:{onboarding}")
    execution = client.describe_execution(executionArn=arn)
    ensure(execution["status"] == "FAILED", f"the onboarding is {execution['status']}")
    for page in client.get_paginator("get_execution_history").paginate(executionArn=arn, includeExecutionData=True):
        for event in page["events"]:
            output = json.loads(event.get("taskSubmittedEventDetails", {}).get("output", "{}"))
            if f":{environment.resource_name('site-teardown')}:" in (found := output.get("ExecutionArn", "")):
                return execution, client.describe_execution(executionArn=found)
    return execution, None


@step("saga", "A site is onboarded through queues and task tokens, its readings can be queried, and it is decommissioned; an onboarding that fails is "
      "undone by a nested execution of site-teardown", writes=True, seconds=600, units=times(2, SITE))
def saga(environment):
    details = environment.active_site()
    site, sensor = details["siteId"], details["sensors"][0]["sensorId"]
    environment.log(f"  site {site} is ACTIVE: the queue policies allow the commands")

    environment.await_sensor(sensor)
    environment.send_reading(site, sensor, "proof")
    environment.await_reading(sensor)

    environment.decommission(site)
    environment.await_site(site, "DECOMMISSIONED", seconds=300)
    environment.log(f"  site {site} is DECOMMISSIONED")

    refused = environment.register("pm_card_visa_chargeDeclined")
    details = environment.await_site(refused["siteId"], "REJECTED", "ACTIVE")
    ensure(details["status"] == "REJECTED", "a site whose card is declined is ACTIVE")
    failure = details["onboarding"]["failure"]
    ensure(failure and failure["error"] == "CardDeclined", f"the onboarding failed for another reason: {failure}")
    onboarding, teardown = nested_teardown(environment, refused["onboardingId"])
    ensure(onboarding["error"] == "CardDeclined", f"the onboarding ended with {onboarding.get('error')}")
    nested = "the emulator's history does not name the nested execution"
    if teardown is None:
        ensure(environment.emulator, "the onboarding's history names no nested execution")
    else:
        ensure(teardown["status"] == "SUCCEEDED", f"the nested site-teardown is {teardown['status']}")
        nested = "its nested site-teardown SUCCEEDED"
    return f"site {site} was onboarded and decommissioned; the onboarding with a declined card was undone ({nested})"


@step("undo-twice", "The rule SiteTeardownFailed delivers FAILED and SUCCEEDED of teardowns: the failure of a teardown is recorded, and closed by the "
      "next one that succeeds", writes=True, seconds=1_200, long=True, units=plus(times(3, SITE), {"transition": 60}))
def undo_twice(environment):
    environment.require_fieldctl()
    site = environment.active_site()["siteId"]
    started = time.time()
    broken = break_function(environment, "remove-alerting", "ALERTING_TABLE", environment.resource_name("no-such-table"))
    environment.decommission(site)
    rows = environment.until(
        "the failed teardown is recorded", 900, lambda: environment.open_failures("site-teardown", "EXECUTION_FAILED", site, started), pause=10)
    environment.run_cleanup(broken)
    exit_code, output = environment.fieldctl("sagas", "recover", site, "--yes")
    ensure(exit_code == 0, f"fieldctl sagas recover {site} ended with {exit_code}: {output.strip()}")
    key = {"id": rows[0]["id"]}

    def closed():
        row = environment.client("dynamodb").get_item(TableName=environment.resource_name("failures"), Key=key, ConsistentRead=True)["Item"]
        return row["status"]["S"] == "REPLAYED"

    environment.until("the failure of the teardown is closed", 120, closed)
    return f"failure {rows[0]['id']['S']} was recorded, and closed by the teardown that succeeded"


@step("stopped-saga", "An onboarding that is stopped is undone: Step Functions sends the event, recover-onboarding starts the teardown, and the alarm "
      "SiteOnboardingAborted fires", writes=True, seconds=900, units=plus(times(2, SITE), {"metricRequest": 100}))
def stopped_saga(environment):
    broken = silence_provider(environment, "initialize-subscription")
    registered = environment.register()
    client = environment.client("stepfunctions")
    arn = environment.arn("states", f"execution:{environment.resource_name('site-onboarding')}:{registered['onboardingId']}")

    def waits_for_provider():
        try:
            history = client.get_execution_history(executionArn=arn, reverseOrder=True, maxResults=20)["events"]
        except client.exceptions.ExecutionDoesNotExist:
            return False
        return any(event.get("stateEnteredEventDetails", {}).get("name") == "InitializeSubscription" for event in history)

    environment.until("the onboarding waits for the payment provider", 120, waits_for_provider)
    client.stop_execution(executionArn=arn, error="Proof", cause="stopped by prove-on-aws.sh")
    environment.run_cleanup(broken)
    environment.await_site(registered["siteId"], "REJECTED", seconds=600)
    seen = f"the stopped onboarding of site {registered['siteId']} was undone"
    if environment.emulator:
        return seen
    name = environment.physical_id("SiteOnboardingAbortedAlarm")

    def fired():
        history = environment.client("cloudwatch").describe_alarm_history(AlarmName=name, HistoryItemType="StateUpdate", MaxRecords=5)
        recent = [item for item in history["AlarmHistoryItems"] if item["Timestamp"].timestamp() > time.time() - 900]
        return any("to ALARM" in item["HistorySummary"] for item in recent)

    environment.until("the alarm SiteOnboardingAborted fired", 300, fired, pause=10)
    return f"{seen}, and SiteOnboardingAborted fired"
