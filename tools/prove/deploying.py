"""Steps that change parameters of the stacks. Each step, or the end of the run, sets them back."""

import json
import threading
import time
import uuid

import botocore.exceptions
from bounds import plus
from environment import ALIAS, NO_SITE
from steps import Skipped, ensure, step

UPDATE = {"request": 2_000, "gigabyteSecond": 500, "logGigabyte": 0.05, "metricRequest": 100, "trace": 500}
LEVELS = "the log level of before"
NO_UPDATES = "the emulator does not update nested stacks with their previous template; `make services-test` runs it there"


def update(environment, name, changes, watch=lambda: None):
    """Updates a stack with its own template and some other parameters. Returns its final status."""
    client = environment.client("cloudformation")
    stack = environment.stack(name)
    parameters = [
        {"ParameterKey": key, "ParameterValue": changes[key]} if key in changes else {"ParameterKey": key, "UsePreviousValue": True}
        for key in environment.parameters(stack)
    ]
    client.update_stack(
        StackName=name, UsePreviousTemplate=True, Parameters=parameters, Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"])

    def ended():
        watch()
        return settled(environment, name)

    return environment.until(f"stack {name} is updated", 7_200, ended, pause=10)


def snapshot(environment, functions):
    """What `live` leads to, for each function."""
    found = {}
    for function in functions:
        configuration = environment.configuration(function)
        found[function] = {
            "version": configuration["Version"], "code": configuration["CodeSha256"], "level": configuration["LoggingConfig"]["ApplicationLogLevel"],
            "variables": configuration.get("Environment", {}).get("Variables", {}),
        }
    return found


def functions_of(environment, service):
    """The functions of a service, or of all with None."""
    return [
        physical.removeprefix(environment.resource_name("")) for owner, kind, _, physical in environment.resources
        if kind == "AWS::Lambda::Function" and service in (None, owner)
    ]


class Unsettled:
    """The longest time for which a mapping was in another state than Enabled."""

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
    """Deploys another log level, for a service or with None for all; sets it back at the end. Returns what was live before and is now."""
    if environment.emulator and environment.mode == "root":
        raise Skipped(NO_UPDATES)
    name = environment.name if service is None else environment.resource_name(service)
    level = environment.parameters(environment.stack(name))["LogLevel"]
    other = "DEBUG" if level != "DEBUG" else "INFO"
    functions = functions_of(environment, service)
    before = snapshot(environment, functions)
    environment.undos.append((LEVELS, lambda: update(environment, name, {"LogLevel": level})))
    unsettled = Unsettled(environment)
    status = update(environment, name, {"LogLevel": other}, unsettled.look)
    ensure(status == "UPDATE_COMPLETE", f"the update of {name} ended with {status}")
    after = snapshot(environment, functions)
    environment.left.append(f"one more version of {len(functions)} functions, for each deployment (Lambda bills nothing for it)")
    return before, after, other, unsettled.longest


@step("parameter", "A changed parameter reaches `live`: its version is replaced, the version before is kept, no consumer is reported as stopped "
      "meanwhile", writes=True, seconds=5_400, long=True, units=UPDATE)
def parameter(environment):
    service = None if environment.mode == "root" else "failures"
    begun = time.time()
    before, after, level, unsettled = change_level(environment, service)
    for function, now in after.items():
        ensure(now["level"] == level, f"{ALIAS} of {function} still logs from {now['level']} on")
        ensure(now["version"] != before[function]["version"], f"{ALIAS} of {function} still leads to version {now['version']}")
        pages = environment.client("lambda").get_paginator("list_versions_by_function").paginate(FunctionName=environment.resource_name(function))
        versions = {each["Version"] for page in pages for each in page["Versions"]}
        ensure(before[function]["version"] in versions, f"version {before[function]['version']} of {function} was deleted")
    # Above three minutes check-consumers reports a mapping.
    ensure(unsettled < 180, f"a mapping was not Enabled for {unsettled:.0f} s")
    history = environment.client("cloudwatch").describe_alarm_history(
        AlarmName=environment.physical_id("ConsumersNotRunningAlarm"), HistoryItemType="StateUpdate", StartDate=begun)["AlarmHistoryItems"]
    ensure(not any("to ALARM" in item["HistorySummary"] for item in history), "the alarm ConsumersNotRunning went off")
    return f"{len(after)} functions have a new version with {level} at `live`; a mapping was not Enabled for {unsettled:.0f} s at most"


@step("redeploy", "Deploying an earlier build again brings its code and configuration back to `live`", writes=True, seconds=5_400, long=True, units=UPDATE)
def redeploy(environment):
    service = None if environment.mode == "root" else "failures"
    if not any(what == LEVELS for what, _ in environment.undos):
        change_level(environment, service)
    functions = functions_of(environment, service)
    newer = snapshot(environment, functions)
    environment.undo_now(LEVELS)
    for function, now in snapshot(environment, functions).items():
        ensure(now["version"] != newer[function]["version"], f"{ALIAS} of {function} still leads to version {now['version']}")
        ensure(now["level"] != newer[function]["level"], f"{function} still logs from {now['level']} on")
        ensure((now["code"], now["variables"]) == (newer[function]["code"], newer[function]["variables"]), f"{function} has other code or variables")
    return f"{len(functions)} functions have the earlier template's parameters again, by a new version"


@step("service-alone", "A service that is deployed alone leaves the live versions of all other services as they are", writes=True, seconds=3_600, long=True,
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
    environment.undo_now(LEVELS)
    return f"{len(changed[1])} functions of {alone} have new versions, {len(others)} others have theirs"


@step("stage", "With AlwaysDeploy the stage of the API follows its definition: an identity provider that is set later is asked for tokens", writes=True,
      seconds=5_400, long=True, units=UPDATE,
      not_on_emulator="the emulator's API asks nobody for a token")
def stage(environment):
    name = environment.top_stack
    if environment.parameters(environment.stack(name)).get("UserPoolArn"):
        raise Skipped("the environment has an identity provider already")
    cognito = environment.client("cognito-idp")
    pool = cognito.create_user_pool(PoolName=environment.resource_name("proof"))["UserPool"]
    environment.undos.append((f"user pool {pool['Id']}", lambda: cognito.delete_user_pool(UserPoolId=pool["Id"])))
    what = "the identity provider of the API"
    environment.undos.append((what, lambda: update(environment, name, {"UserPoolArn": ""})))
    path = f"/sites/{NO_SITE}"
    before = environment.api("GET", path)[0]
    ensure(before == 404, f"a signed call is answered with {before} before anything was done")
    status = update(environment, name, {"UserPoolArn": pool["Arn"]})
    ensure(status == "UPDATE_COMPLETE", f"the update of {name} ended with {status}")
    # The user pool does not know a signature: the same call is refused now.
    environment.until("the stage asks for a token of the user pool", 120, lambda: environment.api("GET", path)[0] in (401, 403))
    environment.undo_now(what)
    environment.until("the stage takes signatures again", 120, lambda: environment.api("GET", path)[0] == 404)
    return "a signed call was 404, 401 with the user pool, and 404 again without it"


@step("failed-deployment", "A first deployment that fails is rolled back; services that were complete leave their tables, which are kept", writes=True,
      seconds=5_400, long=True, units=plus(UPDATE, {"streamHour": 2, "alarmHour": 400, "dashboardHour": 6}),
      not_on_emulator="the emulator has no such rollback")
def failed_deployment(environment):
    if environment.mode == "services":
        raise Skipped("it deploys the root template, which this environment was not deployed by")
    client, name = environment.client("cloudformation"), f"proof-{uuid.uuid4().hex[:8]}"
    template = client.get_template(StackName=environment.name, TemplateStage="Original")["TemplateBody"]
    # The last service refuses a user pool that does not exist. The account's role for access logs is left alone.
    parameters = environment.parameters(environment.stack(environment.name)) | {
        "UserPoolArn": environment.arn("cognito-idp", f"userpool/{environment.region}_Nowhere00"),
        "ManageApiGatewayLogging": "false", "DeletionProtection": "false", "OnCallEmail": "",
    }
    environment.undos.append((f"environment {name}", lambda: remove_environment(environment, name)))
    client.create_stack(
        StackName=name, TemplateBody=template if isinstance(template, str) else json.dumps(template), OnFailure="ROLLBACK",
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"])
    status = environment.until(f"stack {name} is rolled back", 3_600, lambda: settled(environment, name), pause=20)
    ensure(status == "ROLLBACK_COMPLETE", f"a deployment with a wrong user pool ended with {status}")
    kept, wanted = tables(environment, name), [kind for _, kind, _, _ in environment.resources].count("AWS::DynamoDB::Table")
    ensure(len(kept) == wanted, f"{len(kept)} of {wanted} tables were kept: {', '.join(kept)}")
    return f"the deployment was rolled back, and {len(kept)} tables were kept"


def settled(environment, name):
    """The status of a stack that is not in progress, DELETE_COMPLETE if it is gone."""
    stack = environment.stack(name)
    status = stack["StackStatus"] if stack else "DELETE_COMPLETE"
    return status if not status.endswith("IN_PROGRESS") else None


def tables(environment, name):
    pages = environment.client("dynamodb").get_paginator("list_tables").paginate()
    return [table for page in pages for table in page["TableNames"] if table.startswith(f"{name}-")]


def remove_environment(environment, name):
    """Deletes an environment that was made here, with what its stacks keep: tables, secret, bucket."""
    if name == environment.name:
        raise ValueError("this would delete the environment under proof")
    cloudformation, s3 = environment.client("cloudformation"), environment.client("s3")
    cloudformation.delete_stack(StackName=name)
    status = environment.until(f"stack {name} is deleted", 3_600, lambda: settled(environment, name), pause=20)
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
    filters = [{"Key": "name", "Values": [f"{name}-stripe"]}]
    for secret in secrets.list_secrets(Filters=filters)["SecretList"]:
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
                pass  # A throttled call is no call.
            stop.wait(1)

    def restore():
        stop.set()
        if environment.parameters(environment.stack(name))["StripePrices"] != prices:
            update(environment, name, {"StripePrices": prices})

    environment.undos.append(("the broken parameter StripePrices", restore))
    # 5 % of four calls a second are twelve a minute; three errors are enough.
    callers = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    for caller in callers:
        caller.start()
    # The functions end at their start with such a value.
    status = update(environment, name, {"StripePrices": "no prices"})
    stop.set()
    ensure(status == "UPDATE_ROLLBACK_COMPLETE", f"the stack with a version that fails ended with {status}")
    ensure(environment.live_version(function) == before, f"{ALIAS} of {function} leads to another version than before")
    pages = environment.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=environment.stacks["billing"]["StackId"])
    reasons = [event.get("ResourceStatusReason", "") for page in pages for event in page["StackEvents"] if event["ResourceStatus"] == "UPDATE_FAILED"]
    return f"the stack rolled back, {ALIAS} leads to version {before} again: {next(iter(reasons), 'no reason was given')}"
