"""Steps about the payment provider: its outage, and its key."""

import time

from bounds import SITE, plus
from breaking import silence_provider
from environment import MAX_CLOCK_SKEW
from steps import ensure, step

FUNCTION = "cancel-subscription"
# Lambda's recursion detection stops a chain after about this number of invocations.
MAX_RECURSION = 16


def deferrals(environment, onboarding, since):
    """Returns how often the function has sent an onboarding's command back to its queue since a time (epoch seconds)."""
    group = f"/aws/lambda/{environment.name}/{FUNCTION}"
    pages = environment.client("logs").get_paginator("filter_log_events").paginate(
        logGroupName=group, startTime=int((since - MAX_CLOCK_SKEW) * 1000), filterPattern='"command deferred"')
    return sum(onboarding in event["message"] for page in pages for event in page["events"])


def outage(environment, seconds, min_deferrals):
    details = environment.active_site()
    site, onboarding = details["siteId"], details["onboarding"]["onboardingId"]
    started = time.time()
    broken = silence_provider(environment, FUNCTION)
    environment.decommission(site)
    ends = started + seconds

    def enough_deferrals():
        count = deferrals(environment, onboarding, started)
        return count if count >= min_deferrals and time.time() >= ends else None

    count = environment.until(f"the command was deferred {min_deferrals} times", seconds + 1_800, enough_deferrals, pause=20)
    status = environment.site(site)["status"]
    ensure(status == "DECOMMISSIONING", f"the site did not wait for the provider: it is {status}")
    environment.run_cleanup(broken)
    # The maximum pause between two attempts is five minutes.
    environment.await_site(site, "DECOMMISSIONED", seconds=900)
    dead_letters = environment.open_failures(FUNCTION, "DEAD_LETTER", site, started)
    ensure(not dead_letters, f"a command became a dead letter: {[row['id']['S'] for row in dead_letters]}")
    metric = {"FunctionName": environment.resource_name(FUNCTION)}
    dropped = sum(environment.metric("AWS/Lambda", "RecursiveInvocationsDropped", metric, seconds + 3_600, period=300))
    ensure(dropped == 0, f"Lambda dropped {dropped:.0f} invocations as recursive")
    minutes = (time.time() - started) / 60
    return f"the command of site {site} was deferred {count} times in {minutes:.0f} minutes, then completed; no invocation was dropped as recursive"


@step("outage-short", "A command waits in its queue during an outage of the payment provider, and completes after it", writes=True, seconds=2_000,
      units=plus(SITE, {"request": 200, "gigabyteSecond": 600, "queueRequest": 500}))
def outage_short(environment):
    return outage(environment, 0, 3)


@step("outage", "An outage of more than two hours causes no dead letter: with RecursiveLoop Allow, a command is deferred more than 16 times",
      writes=True, seconds=4 * 3_600, long=True, units=plus(SITE, {"request": 1_000, "gigabyteSecond": 3_000, "queueRequest": 3_000, "metricRequest": 100}),
      not_on_emulator="it would also take two hours there, and the emulator does not detect recursion through a queue")
def outage_long(environment):
    return outage(environment, 7_800, MAX_RECURSION + 1)


@step("secret", "DescribeSecret returns when the secret with the provider's key was last changed", writes=True, seconds=60, units={"secretRequest": 20})
def secret(environment):
    client, name, label = environment.client("secretsmanager"), environment.resource_name("stripe"), "PROVE-ON-AWS"
    before = client.describe_secret(SecretId=name)
    current = next(version for version, stages in before["VersionIdsToStages"].items() if "AWSCURRENT" in stages)
    time.sleep(1)
    # This version is not current, so the functions continue to use their key.
    added = client.put_secret_value(SecretId=name, SecretString="not a key; created by prove-on-aws.sh", VersionStages=[label])["VersionId"]
    environment.cleanups.append((
        f"the label {label} of the secret (Secrets Manager deletes a version without a label)",
        lambda: client.update_secret_version_stage(SecretId=name, VersionStage=label, RemoveFromVersionId=added),
    ))
    after = client.describe_secret(SecretId=name)
    ensure("AWSCURRENT" in after["VersionIdsToStages"].get(current, []), "the secret's current version has changed")
    ensure(after.get("LastChangedDate"), "DescribeSecret has no LastChangedDate")
    ensure(after["LastChangedDate"] > before.get("LastChangedDate", before["CreatedDate"]), f"LastChangedDate is still {after['LastChangedDate']}")
    return f"LastChangedDate changed from {before.get('LastChangedDate')} to {after['LastChangedDate']}"
