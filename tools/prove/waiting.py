"""Steps that mostly wait."""

import time

from environment import NO_SITE
from steps import Skipped, ensure, step


@step("freeze", "The first call after ten minutes without traffic is answered: the function does not trip over connections that died while it was frozen",
      seconds=700, long=True, units={"apiRequest": 5, "request": 5, "gigabyteSecond": 2, "readUnit": 5, "trace": 5, "metricRequest": 10},
      not_on_emulator="the emulator freezes no function")
def freeze(environment):
    path = f"/sites/{NO_SITE}"
    status, answer, _ = environment.api("GET", path)
    ensure(status == 404, f"GET {path} answered {status}: {answer}")
    environment.say("  waits for ten minutes and a half")
    time.sleep(630)
    calls = environment.metric("AWS/Lambda", "Invocations", {"FunctionName": environment.resource_name("get-site")}, 540)
    if sum(calls):
        raise Skipped(f"get-site was called {sum(calls):.0f} times meanwhile: run it while nobody uses the environment")
    status, answer, seconds = environment.api("GET", path)
    ensure(status == 404, f"the first call after ten minutes is answered with {status}: {answer}")
    ensure(seconds < 5, f"the first call after ten minutes took {seconds:.1f} s")
    return f"404 after {seconds:.2f} s"


THROTTLES = "EventsTableByTypeThrottlesAlarm"


def alarm_state(environment, logical):
    name = environment.physical_id(logical)
    return environment.client("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"][0]["StateValue"]


@step("alarms", "Alarms go off when data stops: of a disabled mapping within six minutes, of schedules that no longer run; a mapping is Disabling or "
      "Enabling for less than three minutes", writes=True, seconds=3_000, long=True, units={"metricRequest": 3_000, "request": 200, "queueRequest": 100},
      not_on_emulator="the emulator evaluates an alarm when a value comes, so it does not know missing ones")
def alarms(environment):
    client, identifier = environment.client("lambda"), environment.physical_id("StoreReadingsMapping")
    ensure(alarm_state(environment, "StoreReadingsPollsAlarm") == "OK", "StoreReadingsPolls is not OK before anything was done")

    def settle(enabled):
        begun = time.monotonic()
        client.update_event_source_mapping(UUID=identifier, Enabled=enabled)
        wanted = "Enabled" if enabled else "Disabled"
        environment.until(
            f"StoreReadingsMapping is {wanted}", 600, lambda: client.get_event_source_mapping(UUID=identifier)["State"] == wanted, pause=5)
        return time.monotonic() - begun

    environment.undos.append(("the disabled mapping of store-readings", lambda: settle(True)))
    disabling = settle(False)
    begun = time.monotonic()
    environment.until("StoreReadingsPolls goes off", 480, lambda: alarm_state(environment, "StoreReadingsPollsAlarm") == "ALARM", pause=10)
    polls = time.monotonic() - begun
    environment.until("ConsumersNotRunning goes off", 300, lambda: alarm_state(environment, "ConsumersNotRunningAlarm") == "ALARM", pause=10)
    begun = time.monotonic()
    environment.undo_now("the disabled mapping of store-readings")
    enabling = time.monotonic() - begun
    ensure(polls < 360, f"StoreReadingsPolls went off after {polls:.0f} s")
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
        environment.undos.append((f"the disabled rule of {function}", lambda rule=found[0]: events.enable_rule(Name=rule)))
        events.disable_rule(Name=found[0])
    for alarm in watched.values():
        environment.until(f"{alarm} goes off", 2_400, lambda alarm=alarm: alarm_state(environment, alarm) == "ALARM", pause=20)
    for function in watched:
        environment.undo_now(f"the disabled rule of {function}")
    return (f"StoreReadingsPolls after {polls:.0f} s; Disabling {disabling:.0f} s, Enabling {enabling:.0f} s; {', '.join(watched.values())} went off "
            "(SubscriptionReconciliation takes three hours more, and was not waited for)")


@step("throttle-alarms", "An alarm on throttles of a table goes back to OK in minutes without throttles, though DynamoDB has no data then", writes=True,
      seconds=1_000, long=True, units={"metricRequest": 200}, not_on_emulator="the emulator evaluates an alarm when a value comes")
def throttle_alarms(environment):
    name = environment.physical_id(THROTTLES)
    begun = time.monotonic()
    environment.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="Set by prove-on-aws.sh.")
    environment.undos.append((
        f"the alarm {THROTTLES} that was set",
        lambda: environment.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="OK", StateReason="Set back by prove-on-aws.sh."),
    ))
    environment.until(f"{THROTTLES} is OK again", 900, lambda: alarm_state(environment, THROTTLES) == "OK", pause=10)
    return f"{THROTTLES} was OK again after {time.monotonic() - begun:.0f} s"
