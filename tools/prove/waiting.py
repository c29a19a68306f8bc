"""Steps that take long because they wait."""

import time

from environment import NO_SITE
from steps import Skipped, ensure, step


@step("freeze", "The first call after ten minutes without traffic succeeds: connections that were closed while the function was frozen cause no error",
      seconds=700, long=True, units={"apiRequest": 5, "request": 5, "gigabyteSecond": 2, "readUnit": 5, "trace": 5, "metricRequest": 10},
      not_on_emulator="the emulator does not freeze functions")
def freeze(environment):
    path = f"/sites/{NO_SITE}"
    status, response, _ = environment.api("GET", path)
    ensure(status == 404, f"GET {path} returned {status}: {response}")
    environment.log("  waiting for ten and a half minutes")
    time.sleep(630)
    calls = environment.metric("AWS/Lambda", "Invocations", {"FunctionName": environment.resource_name("get-site")}, 540)
    if sum(calls):
        raise Skipped(f"get-site was called {sum(calls):.0f} times meanwhile: run this step while the environment has no traffic")
    status, response, seconds = environment.api("GET", path)
    ensure(status == 404, f"the first call after ten minutes returns {status}: {response}")
    ensure(seconds < 5, f"the first call after ten minutes took {seconds:.1f} s")
    return f"404 after {seconds:.2f} s"


THROTTLES = "EventsTableByTypeThrottlesAlarm"


def alarm_state(environment, logical):
    name = environment.physical_id(logical)
    return environment.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"][0]["StateValue"]


@step("alarms", "Alarms fire on missing data: that of a disabled mapping within six minutes, and those of disabled schedules; a mapping is Disabling "
      "or Enabling for less than three minutes", writes=True, seconds=3_000, long=True, units={"metricRequest": 3_000, "request": 200, "queueRequest": 100},
      not_on_emulator="the emulator evaluates an alarm only when a value arrives, so it does not detect missing data")
def alarms(environment):
    client, identifier = environment.client("lambda"), environment.physical_id("StoreReadingsMapping")
    ensure(alarm_state(environment, "StoreReadingsPollsAlarm") == "OK", "StoreReadingsPolls is not OK before the test")

    def set_enabled(enabled):
        started = time.monotonic()
        client.update_event_source_mapping(UUID=identifier, Enabled=enabled)
        expected = "Enabled" if enabled else "Disabled"
        environment.until(
            f"StoreReadingsMapping is {expected}", 600, lambda: client.get_event_source_mapping(UUID=identifier)["State"] == expected, pause=5)
        return time.monotonic() - started

    environment.cleanups.append(("the disabled mapping of store-readings", lambda: set_enabled(True)))
    disabling = set_enabled(False)
    started = time.monotonic()
    environment.until("StoreReadingsPolls fires", 480, lambda: alarm_state(environment, "StoreReadingsPollsAlarm") == "ALARM", pause=10)
    polls = time.monotonic() - started
    environment.until("ConsumersNotRunning fires", 300, lambda: alarm_state(environment, "ConsumersNotRunningAlarm") == "ALARM", pause=10)
    started = time.monotonic()
    environment.run_cleanup("the disabled mapping of store-readings")
    enabling = time.monotonic() - started
    ensure(polls < 360, f"StoreReadingsPolls fired after {polls:.0f} s")
    ensure(max(disabling, enabling) < 180, f"the mapping was Disabling for {disabling:.0f} s and Enabling for {enabling:.0f} s")

    watched = {
        "ReportFailures": "FailureReportsAlarm", "CheckConsumers": "ConsumerChecksAlarm", "CheckSagas": "SagaChecksAlarm",
        "SweepEvents": "OldestUnpublishedEventAlarm",
    }
    events = environment.client("events")
    for function in watched:
        found = [physical for _, kind, logical, physical in environment.resources
                 if kind == "AWS::Events::Rule" and logical.startswith(f"{function}FunctionEvery")]
        ensure(len(found) == 1, f"{len(found)} rules start {function}")
        environment.cleanups.append((f"the disabled rule of {function}", lambda rule=found[0]: events.enable_rule(Name=rule)))
        events.disable_rule(Name=found[0])
    for alarm in watched.values():
        environment.until(f"{alarm} fires", 2_400, lambda alarm=alarm: alarm_state(environment, alarm) == "ALARM", pause=20)
    for function in watched:
        environment.run_cleanup(f"the disabled rule of {function}")
    return (f"StoreReadingsPolls after {polls:.0f} s; Disabling {disabling:.0f} s, Enabling {enabling:.0f} s; {', '.join(watched.values())} fired "
            "(not tested: SubscriptionReconciliation, which takes three more hours)")


@step("throttle-alarms", "An alarm on throttles of a table returns to OK after minutes without throttles, although DynamoDB then reports no data", writes=True,
      seconds=1_000, long=True, units={"metricRequest": 200}, not_on_emulator="the emulator evaluates an alarm only when a value arrives")
def throttle_alarms(environment):
    name = environment.physical_id(THROTTLES)
    started = time.monotonic()
    environment.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="Set by prove-on-aws.sh.")
    environment.cleanups.append((
        f"the alarm {THROTTLES} that was set",
        lambda: environment.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="OK", StateReason="Set back by prove-on-aws.sh."),
    ))
    environment.until(f"{THROTTLES} is OK again", 900, lambda: alarm_state(environment, THROTTLES) == "OK", pause=10)
    return f"{THROTTLES} was OK again after {time.monotonic() - started:.0f} s"
