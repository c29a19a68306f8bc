"""Steps that change parameters of the stacks. The clean-up of each step restores them."""

import json
import threading
import time
import uuid

import botocore.exceptions
from bounds import plus
from environment import ALIAS, NO_SITE
from steps import Skipped, ensure, step

UPDATE = {"request": 2_000, "gigabyteSecond": 500, "logGigabyte": 0.05, "metricRequest": 100, "trace": 500}
CHANGED_LEVEL = "the changed log level"
NO_UPDATES = "the emulator does not update nested stacks with their previous template; `make services-test` runs it there"


def update(environment, name, changes, watch=lambda: None):
    """Updates some parameters of a stack, and keeps its template. Returns its final status."""
    client = environment.client("cloudformation")
    stack = environment.stack(name)
    parameters = [
        {"ParameterKey": key, "ParameterValue": changes[key]} if key in changes else {"ParameterKey": key, "UsePreviousValue": True}
        for key in environment.parameters(stack)
    ]
    client.update_stack(
        StackName=name, UsePreviousTemplate=True, Parameters=parameters, Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"])

    def final_status():
        watch()
        return settled_status(environment, name)

    return environment.until(f"stack {name} is updated", 7_200, final_status, pause=10)


def snapshot(environment, functions):
    """Returns what `live` points to, for each function."""
    found = {}
    for function in functions:
        configuration = environment.configuration(function)
        found[function] = {
            "version": configuration["Version"], "code": configuration["CodeSha256"], "level": configuration["LoggingConfig"]["ApplicationLogLevel"],
            "variables": configuration.get("Environment", {}).get("Variables", {}),
        }
    return found


def functions_of(environment, service):
    """Returns the functions of a service, or of all services with None."""
    return [
        physical.removeprefix(environment.resource_name("")) for owner, kind, _, physical in environment.resources
        if kind == "AWS::Lambda::Function" and service in (None, owner)
    ]


class NotEnabled:
    """Measures the longest time for which a mapping was in another state than Enabled."""

    def __init__(self, environment):
        self.environment, self.since, self.longest = environment, {}, 0

    def look(self):
        now = time.monotonic()
        pages = self.environment.client("lambda").get_paginator("list_event_source_mappings").paginate()
        for mapping in (mapping for page in pages for mapping in page["EventSourceMappings"]):
            if f":function:{self.environment.resource_name('')}" not in mapping["FunctionArn"]:
                continue
            if mapping["State"] == "Enabled":
                self.since.pop(mapping["UUID"], None)
            else:
                self.longest = max(self.longest, now - self.since.setdefault(mapping["UUID"], now))


def change_level(environment, service):
    """Deploys another log level to a service, or to all with None, with a clean-up action that restores it. Returns the snapshots
    before and after, the level, and the longest time for which a mapping was not enabled."""
    if environment.emulator and environment.mode == "root":
        raise Skipped(NO_UPDATES)
    name = environment.name if service is None else environment.resource_name(service)
    level = environment.parameters(environment.stack(name))["LogLevel"]
    other = "DEBUG" if level != "DEBUG" else "INFO"
    functions = functions_of(environment, service)
    before = snapshot(environment, functions)
    environment.cleanups.append((CHANGED_LEVEL, lambda: update(environment, name, {"LogLevel": level})))
    not_enabled = NotEnabled(environment)
    status = update(environment, name, {"LogLevel": other}, not_enabled.look)
    ensure(status == "UPDATE_COMPLETE", f"the update of {name} ended with {status}")
    after = snapshot(environment, functions)
    environment.left.append(f"one more version of {len(functions)} functions, for each deployment (Lambda bills nothing for it)")
    return before, after, other, not_enabled.longest


@step("parameter", "A changed parameter reaches `live`: a new version replaces the previous one, which is kept, and no consumer is reported as "
      "stopped meanwhile", writes=True, seconds=5_400, long=True, units=UPDATE)
def parameter(environment):
    service = None if environment.mode == "root" else "failures"
    started = time.time()
    before, after, level, not_enabled = change_level(environment, service)
    for function, now in after.items():
        ensure(now["level"] == level, f"{ALIAS} of {function} still has the log level {now['level']}")
        ensure(now["version"] != before[function]["version"], f"{ALIAS} of {function} still points to version {now['version']}")
        pages = environment.client("lambda").get_paginator("list_versions_by_function").paginate(FunctionName=environment.resource_name(function))
        versions = {each["Version"] for page in pages for each in page["Versions"]}
        ensure(before[function]["version"] in versions, f"version {before[function]['version']} of {function} was deleted")
    # check-consumers reports a mapping after three minutes.
    ensure(not_enabled < 180, f"a mapping was not Enabled for {not_enabled:.0f} s")
    history = environment.client("cloudwatch").describe_alarm_history(
        AlarmName=environment.physical_id("ConsumersNotRunningAlarm"), HistoryItemType="StateUpdate", StartDate=started)["AlarmHistoryItems"]
    ensure(not any("to ALARM" in item["HistorySummary"] for item in history), "the alarm ConsumersNotRunning fired")
    return f"{len(after)} functions have a new version with {level} at `live`; a mapping was not Enabled for at most {not_enabled:.0f} s"


@step("redeploy", "Deploying an earlier build again brings its code and configuration back to `live`", writes=True, seconds=5_400, long=True, units=UPDATE)
def redeploy(environment):
    service = None if environment.mode == "root" else "failures"
    if not any(what == CHANGED_LEVEL for what, _ in environment.cleanups):
        change_level(environment, service)
    functions = functions_of(environment, service)
    newer = snapshot(environment, functions)
    environment.run_cleanup(CHANGED_LEVEL)
    for function, now in snapshot(environment, functions).items():
        ensure(now["version"] != newer[function]["version"], f"{ALIAS} of {function} still points to version {now['version']}")
        ensure(now["level"] != newer[function]["level"], f"{function} still has the log level {now['level']}")
        ensure((now["code"], now["variables"]) == (newer[function]["code"], newer[function]["variables"]), f"{function} has other code or variables")
    return f"{len(functions)} functions have a new version with the earlier parameters"


@step("service-alone", "Deploying one service does not change the live versions of the other services", writes=True, seconds=3_600, long=True,
      units=UPDATE)
def service_alone(environment):
    if environment.mode == "root":
        raise Skipped("this environment was deployed by the root template; run it with --stack-mode services on one with a stack per service")
    alone = "inventory"
    others = [name for name in functions_of(environment, None) if name not in functions_of(environment, alone)]
    before = snapshot(environment, others)
    changed = change_level(environment, alone)
    ensure(snapshot(environment, others) == before, "functions of other services have other versions")
    ensure(all(now["version"] != changed[0][name]["version"] for name, now in changed[1].items()), f"{alone} has no new versions")
    environment.run_cleanup(CHANGED_LEVEL)
    return f"{len(changed[1])} functions of {alone} have new versions, {len(others)} others have not"


@step("failed-deployment", "A first deployment that fails is rolled back; the tables of services that were complete are kept", writes=True,
      seconds=5_400, long=True, units=plus(UPDATE, {"streamHour": 2, "alarmHour": 400, "dashboardHour": 6}),
      not_on_emulator="the emulator has no such rollback")
def failed_deployment(environment):
    if environment.mode == "services":
        raise Skipped("it deploys the root template; this environment was deployed with one stack per service")
    client, name = environment.client("cloudformation"), f"proof-{uuid.uuid4().hex[:8]}"
    template = client.get_template(StackName=environment.name, TemplateStage="Original")["TemplateBody"]
    # API Gateway refuses a stage name of more than 128 characters, so the gateway fails, which is the last service.
    # With ManageApiGatewayLogging=false, the account's role for access logs is not changed.
    parameters = environment.parameters(environment.stack(environment.name)) | {
        "StageName": "x" * 129,
        "ManageApiGatewayLogging": "false", "DeletionProtection": "false", "OnCallEmail": "",
    }
    environment.cleanups.append((f"environment {name}", lambda: remove_environment(environment, name)))
    client.create_stack(
        StackName=name, TemplateBody=template if isinstance(template, str) else json.dumps(template), OnFailure="ROLLBACK",
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"])
    status = environment.until(f"stack {name} is rolled back", 3_600, lambda: settled_status(environment, name), pause=20)
    ensure(status == "ROLLBACK_COMPLETE", f"a deployment with a stage name that is too long ended with {status}")
    kept, table_count = tables(environment, name), [kind for _, kind, _, _ in environment.resources].count("AWS::DynamoDB::Table")
    ensure(len(kept) == table_count, f"{len(kept)} of {table_count} tables were kept: {', '.join(kept)}")
    return f"the deployment was rolled back, and {len(kept)} tables were kept"


def settled_status(environment, name):
    """Returns the status of a stack (DELETE_COMPLETE if it does not exist), or None while an operation is in progress."""
    stack = environment.stack(name)
    status = stack["StackStatus"] if stack else "DELETE_COMPLETE"
    return status if not status.endswith("IN_PROGRESS") else None


def tables(environment, name):
    pages = environment.client("dynamodb").get_paginator("list_tables").paginate()
    return [table for page in pages for table in page["TableNames"] if table.startswith(f"{name}-")]


def remove_environment(environment, name):
    """Deletes an environment that was created here, and the resources that its stacks retain: tables, bucket, secrets."""
    if name == environment.name:
        raise ValueError("this would delete the tested environment")
    cloudformation, s3 = environment.client("cloudformation"), environment.client("s3")
    cloudformation.delete_stack(StackName=name)
    status = environment.until(f"stack {name} is deleted", 3_600, lambda: settled_status(environment, name), pause=20)
    ensure(status == "DELETE_COMPLETE", f"stack {name} is {status}")
    for table in tables(environment, name):
        environment.client("dynamodb").delete_table(TableName=table)
    bucket = f"{name}-failures-{environment.account}-{environment.region}"
    if any(each["Name"] == bucket for each in s3.list_buckets()["Buckets"]):
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
            for version in page.get("Versions", []) + page.get("DeleteMarkers", []):
                s3.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
        s3.delete_bucket(Bucket=bucket)
    secrets = environment.client("secretsmanager")
    for page in secrets.get_paginator("list_secrets").paginate(Filters=[{"Key": "name", "Values": [f"{name}-"]}]):
        for secret in page["SecretList"]:
            if secret["Name"].startswith(f"{name}-"):
                secrets.delete_secret(SecretId=secret["ARN"], ForceDeleteWithoutRecovery=True)


@step("canary", "A version that fails is rolled back by CodeDeploy within the canary's five minutes, and the stack with it", writes=True,
      seconds=3_600, long=True, units={"request": 20_000, "gigabyteSecond": 3_000, "trace": 20_000, "logGigabyte": 0.05, "metricRequest": 100},
      not_on_emulator="the emulator has no CodeDeploy")
def canary(environment):
    name = environment.name if environment.mode == "root" else environment.resource_name("billing")
    parameters = environment.parameters(environment.stack(name))
    if parameters.get("GradualDeployment") != "true":
        raise Skipped("the environment was deployed with GradualDeployment=false")
    function = "cancel-subscription"
    before, prices = environment.live_version(function), parameters["StripePrices"]
    stop = threading.Event()

    def call():
        while not stop.is_set():
            try:
                environment.invoke(function, {"Records": []})
            except botocore.exceptions.ClientError:
                pass  # A throttled call does not reach the function.
            stop.wait(1)

    def restore():
        stop.set()
        if environment.parameters(environment.stack(name))["StripePrices"] != prices:
            update(environment, name, {"StripePrices": prices})

    environment.cleanups.append(("the broken parameter StripePrices", restore))
    # 5 % of four calls per second are twelve per minute. The alarm needs three errors.
    callers = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    for caller in callers:
        caller.start()
    # With this value the functions fail at their start.
    status = update(environment, name, {"StripePrices": "no prices"})
    stop.set()
    ensure(status == "UPDATE_ROLLBACK_COMPLETE", f"the stack with a version that fails ended with {status}")
    ensure(environment.live_version(function) == before, f"{ALIAS} of {function} points to another version than before")
    pages = environment.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=environment.stacks["billing"]["StackId"])
    reasons = [event.get("ResourceStatusReason", "") for page in pages for event in page["StackEvents"] if event["ResourceStatus"] == "UPDATE_FAILED"]
    return f"the stack rolled back, {ALIAS} points to version {before} again: {next(iter(reasons), 'no reason was reported')}"
