"""Steps about the payment provider: its outage, and its key."""

import time

from bounds import SITE, plus
from breaking import silence_provider
from environment import CLOCKS
from steps import ensure, step

FUNCTION = "cancel-subscription"
# Lambda's recursion detection ends a chain after about so many invocations.
RECURSION = 16


def deferrals(environment, onboarding, since):
    """How often the function sent the command of an onboarding back to its queue since then (epoch seconds)."""
    group = f"/aws/lambda/{environment.name}/{FUNCTION}"
    pages = environment.client("logs").get_paginator("filter_log_events").paginate(
        logGroupName=group, startTime=int((since - CLOCKS) * 1000), filterPattern='"command deferred"')
    return sum(onboarding in event["message"] for page in pages for event in page["events"])


def outage(environment, seconds, least):
    shown = environment.active_site()
    site, onboarding = shown["siteId"], shown["onboarding"]["onboardingId"]
    begun = time.time()
    broken = silence_provider(environment, FUNCTION)
    environment.decommission(site)
    ends = begun + seconds

    def lasted():
        count = deferrals(environment, onboarding, begun)
        return count if count >= least and time.time() >= ends else None

    count = environment.until(f"the command was deferred {least} times", seconds + 1_800, lasted, pause=20)
    status = environment.site(site)["status"]
    ensure(status == "DECOMMISSIONING", f"the site did not wait for the provider: it is {status}")
    environment.undo_now(broken)
    # The longest pause between two tries is five minutes.
    environment.await_site(site, "DECOMMISSIONED", seconds=900)
    dead = environment.open_failures(FUNCTION, "DEAD_LETTER", site, begun)
    ensure(not dead, f"a command became a dead letter: {[row['id']['S'] for row in dead]}")
    metric = {"FunctionName": environment.named(FUNCTION)}
    dropped = sum(environment.metric("AWS/Lambda", "RecursiveInvocationsDropped", metric, seconds + 3_600, period=300))
    ensure(dropped == 0, f"Lambda dropped {dropped:.0f} invocations as recursive")
    minutes = (time.time() - begun) / 60
    return f"the command of site {site} was deferred {count} times in {minutes:.0f} minutes, then done; no invocation was dropped as recursive"


@step("outage-short", "A command waits in its queue while the payment provider is out, and is done when it answers again", writes=True, seconds=2_000,
      units=plus(SITE, {"request": 200, "gigabyteSecond": 600, "queueRequest": 500}))
def outage_short(environment):
    return outage(environment, 0, 3)


@step("outage", "An outage of more than two hours dead-letters no command: with RecursiveLoop Allow a command is deferred more than 16 times",
      writes=True, seconds=4 * 3_600, long=True, units=plus(SITE, {"request": 1_000, "gigabyteSecond": 3_000, "queueRequest": 3_000, "metricRequest": 100}),
      not_on_emulator="it would take two hours there, too; the emulator detects no recursion through a queue")
def outage_long(environment):
    return outage(environment, 7_800, RECURSION + 1)


@step("secret", "DescribeSecret tells when the secret of the provider's key was changed", writes=True, seconds=60, units={"secretRequest": 20})
def secret(environment):
    client, name, label = environment.client("secretsmanager"), environment.named("stripe"), "PROVE-ON-AWS"
    before = client.describe_secret(SecretId=name)
    current = next(version for version, stages in before["VersionIdsToStages"].items() if "AWSCURRENT" in stages)
    time.sleep(1)
    # A version that is not current: the functions go on with the key that they have.
    added = client.put_secret_value(SecretId=name, SecretString="not a key; made by prove-on-aws.sh", VersionStages=[label])["VersionId"]
    environment.undos.append((
        f"the label {label} of the secret (Secrets Manager deletes a version without a label)",
        lambda: client.update_secret_version_stage(SecretId=name, VersionStage=label, RemoveFromVersionId=added),
    ))
    after = client.describe_secret(SecretId=name)
    ensure("AWSCURRENT" in after["VersionIdsToStages"].get(current, []), "the current version of the secret is another one now")
    ensure(after.get("LastChangedDate"), "DescribeSecret has no LastChangedDate")
    ensure(after["LastChangedDate"] > before.get("LastChangedDate", before["CreatedDate"]), f"LastChangedDate is still {after['LastChangedDate']}")
    return f"LastChangedDate went from {before.get('LastChangedDate')} to {after['LastChangedDate']}"
