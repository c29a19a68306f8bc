"""Steps that only read: what was deployed is there, is called, and reports."""

import json
import re
import shutil
import subprocess
import time

import botocore.exceptions
from environment import ALIAS, COMPLETE, NO_SITE, ROOT, code, function_names, services
from steps import Skipped, ensure, step

# The functions that send a command back to their own queue.
COMMANDS = ("cancel-subscription", "initialize-subscription")


def number(count, what):
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@step("stacks", "CloudFormation deploys the stacks in the order of DependsOn, applies the SAM transform to nested ones, and needs no "
      "CAPABILITY_NAMED_IAM", seconds=120)
def stacks(environment):
    for service, stack in environment.stacks.items():
        ensure(stack["StackStatus"] in COMPLETE, f"the stack of {service} is {stack['StackStatus']}")
        ensure("CAPABILITY_NAMED_IAM" not in stack.get("Capabilities", []), f"{service} was deployed with CAPABILITY_NAMED_IAM")
    kinds = {kind for _, kind, _, _ in environment.resources}
    ensure(not any(kind.startswith("AWS::Serverless") for kind in kinds), "a nested template was not transformed")
    seen = f"{len(environment.stacks)} stacks with {len(environment.resources)} resources are complete"
    if environment.mode == "services":
        return seen
    begun, ended = {}, {}
    for page in environment.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=environment.name):
        for event in page["StackEvents"]:
            if event["ResourceStatus"] == "CREATE_IN_PROGRESS":
                begun[event["LogicalResourceId"].lower()] = event["Timestamp"]
            elif event["ResourceStatus"] == "CREATE_COMPLETE":
                ended[event["LogicalResourceId"].lower()] = event["Timestamp"]
    if not all(service in begun and service in ended for service in services()):
        return f"{seen}; the events of their creation are gone, so their order was not seen"
    for service, callees in dependencies().items():
        for callee in callees:
            ensure(ended[callee] <= begun[service], f"{service} was created before {callee} was complete")
    return f"{seen}, created in the order of DependsOn"


def dependencies():
    """The services on which each service depends, as the root template says."""
    found, resource = {}, None
    for line in (ROOT / "template.yaml").read_text().splitlines():
        if match := re.fullmatch(r"  (\w+):", line):
            resource = match[1].lower()
        elif match := re.fullmatch(r"    DependsOn: \[(.*)\]", line):
            found[resource] = [name.strip().lower() for name in match[1].split(",")]
    return found


@step("functions", "Every function starts: its processor, C library and settings are right, and its role lets it read what it needs at its start",
      seconds=300, units={"request": 100, "gigabyteSecond": 60, "trace": 100, "logGigabyte": 0.001})
def functions(environment):
    names = function_names()
    for name in names:
        found = environment.configuration(name)
        ensure(found["State"] == "Active", f"{name} is {found['State']}: {found.get('StateReason')}")
        ensure(found.get("LastUpdateStatus") == "Successful", f"the last update of {name}: {found.get('LastUpdateStatus')}")
        # An empty batch is done by the functions of queues and streams. All others refuse it before they do anything.
        error, answer = environment.invoke(name, {"Records": []})
        ensure(error in (None, "InvalidInput"), f"{name} answers an empty batch with {error}: {answer}")
    return f"{len(names)} functions are active, started, and answered an empty batch (most refuse it as InvalidInput, which counts as one error)"


def described(description):
    """The parameters in the description of a version: `LogLevel=INFO Architecture=arm64`."""
    return dict(re.findall(r"(\w+)=(\S*)", description))


@step("versions", "`live` leads to a published version, whose description and configuration have the parameters of its stack", seconds=120)
def versions(environment):
    count, without = 0, []
    for service, kind, _, physical in environment.resources:
        if kind != "AWS::Lambda::Function":
            continue
        function = physical.removeprefix(environment.named(""))
        parameters = environment.parameters(environment.stacks[service])
        found = environment.configuration(function)
        ensure(found["Version"].isdigit(), f"{ALIAS} of {function} leads to {found['Version']}")
        level = found["LoggingConfig"]["ApplicationLogLevel"]
        ensure(level == parameters["LogLevel"], f"{function} logs from {level} on, its stack's parameter LogLevel is {parameters['LogLevel']}")
        # The description of a version is its VersionDescription; without one it would be that of the function.
        values = described(found.get("Description", ""))
        if "LogLevel" not in values:
            without.append(function)
        wrong = [f"{name}={value}" for name, value in values.items() if name in parameters and value != (parameters[name].split() or [""])[0]]
        ensure(not wrong, f"the description of version {found['Version']} of {function} has {', '.join(wrong)}")
        count += 1
    if environment.emulator and without:
        raise Skipped(f"the emulator keeps no description of a version; the configurations of {count} versions have their parameters")
    ensure(not without, f"the versions of these functions do not have their parameters as description: {', '.join(without)}")
    return f"the versions of {count} functions have their parameters in configuration and description"


@step("recursion", "RecursiveLoop is Allow for the two functions that send a command back to their own queue, and for no other", seconds=60)
def recursion(environment):
    answers = {
        name: environment.client("lambda").get_function_recursion_config(FunctionName=environment.named(name))["RecursiveLoop"]
        for name in function_names()
    }
    allowed = sorted(name for name, answer in answers.items() if answer == "Allow")
    if environment.emulator and not allowed:
        raise Skipped("the emulator does not take RecursiveLoop from a template")
    ensure(allowed == sorted(COMMANDS), f"Allow is set for: {', '.join(allowed) or 'no function'}")
    return f"Allow for {' and '.join(allowed)}, Terminate for {len(answers) - len(allowed)} others"


@step("mappings", "ListEventSourceMappings on `*` lists the mappings with the alias in FunctionArn, and all of them are enabled; check-consumers "
      "may call it", seconds=60, units={"metricRequest": 10})
def mappings(environment):
    pages = environment.client("lambda").get_paginator("list_event_source_mappings").paginate()
    listed = {mapping["UUID"]: mapping for page in pages for mapping in page["EventSourceMappings"]}
    deployed = [(logical, physical) for _, kind, logical, physical in environment.resources if kind == "AWS::Lambda::EventSourceMapping"]
    ensure(deployed, "the stacks have no event source mapping")
    for logical, physical in deployed:
        ensure(physical in listed, f"{logical} is not listed")
        mapping = listed[physical]
        ensure(mapping["FunctionArn"].endswith(f":{ALIAS}"), f"{logical} names {mapping['FunctionArn']}")
        ensure(mapping["State"] == "Enabled", f"{logical} is {mapping['State']}: {mapping.get('StateTransitionReason')}")
    if not environment.emulator:
        dimensions = {"function": environment.named("check-consumers")}
        reported = environment.metric("Fieldstation", "ConsumersNotRunning", dimensions, 600, "Maximum")
        ensure(reported, "check-consumers has reported nothing for ten minutes")
        ensure(reported[-1] == 0, f"check-consumers reports {reported[-1]:.0f} consumers that do not run")
    return f"{len(deployed)} mappings of aliases are listed and enabled"


@step("roles", "The roles of the state machines have the path by which billing's queue policies know them, with a generated name", seconds=30)
def roles(environment):
    for machine in ("site-onboarding", "site-teardown"):
        arn = environment.arn("states", f"stateMachine:{environment.named(machine)}")
        role = environment.client("stepfunctions").describe_state_machine(stateMachineArn=arn)["roleArn"]
        ensure(f":role/{environment.name}/{machine}/" in role, f"the role of {machine} is {role}")
    for queue, machine in (("initialize-subscription", "site-onboarding"), ("cancel-subscription", "site-teardown")):
        sqs = environment.client("sqs")
        url = sqs.get_queue_url(QueueName=environment.named(queue))["QueueUrl"]
        policy = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"].get("Policy", "")
        ensure(f"role/{environment.name}/{machine}/" in policy, f"the policy of queue {queue} does not name the path of {machine}: {policy}")
    return "both roles have their paths, and both queue policies name them (the step `saga` sends through them)"


@step("api", "The API answers: API Gateway calls the alias, an unknown site is 404, an unsigned call is refused", seconds=60,
      units={"apiRequest": 10, "request": 10, "gigabyteSecond": 5, "readUnit": 10, "trace": 10})
def api(environment):
    status, answer, seconds = environment.api("GET", f"/sites/{NO_SITE}")
    ensure(status == 404, f"an unknown site is answered with {status}: {answer}")
    ensure(isinstance(answer, dict) and answer.get("status") == 404, f"the answer is no problem document: {answer}")
    status, answer, _ = environment.api("GET", f"/sites/{NO_SITE}", signed=False)
    if environment.emulator:
        return f"an unknown site is 404 after {seconds:.2f} s (the emulator's API asks nobody for a signature)"
    ensure(status in (401, 403), f"an unsigned call is answered with {status}: {answer}")
    return f"an unknown site is 404 after {seconds:.2f} s, an unsigned call is {status}"


@step("logs", "Each log group exists with its retention, and Lambda makes no group of its own beside it", seconds=60)
def logs(environment):
    groups = [physical for _, kind, _, physical in environment.resources if kind == "AWS::Logs::LogGroup"]
    found = {}
    for prefix in (f"/aws/lambda/{environment.name}", f"/aws/vendedlogs/states/{environment.name}/", f"/aws/apigateway/{environment.name}/"):
        pages = environment.client("logs").get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
        found |= {group["logGroupName"]: group.get("retentionInDays") for page in pages for group in page["logGroups"]}
    for group in groups:
        ensure(found.get(group), f"log group {group} is missing, or keeps its lines for ever")
    beside = sorted(group for group in found if group.startswith(f"/aws/lambda/{environment.name}-"))
    ensure(not beside, f"Lambda made log groups without an end: {', '.join(beside)}")
    return f"{len(groups)} log groups have a retention, and there is none besides"


@step("metrics", "Metrics arrive with the names and dimensions that the alarms look at: the one of each alarm that goes off without data", seconds=120,
      units={"metricRequest": 500})
def metrics(environment):
    listed = set()
    names = {"AWS/Lambda", "AWS/DynamoDB", "AWS/SQS", "AWS/Kinesis", "AWS/States", "AWS/ApiGateway", "AWS/Events", "Fieldstation"}
    for namespace in sorted(names):
        for page in environment.client("cloudwatch").get_paginator("list_metrics").paginate(Namespace=namespace):
            listed |= {(namespace, each["MetricName"], pairs(each["Dimensions"])) for each in page["Metrics"]}
    alarmed, needed, without = {}, {}, []
    for alarm in environment_alarms(environment):
        for metric in watched(alarm):
            alarmed.setdefault(metric, alarm["AlarmName"])
            # Such an alarm would be on if the metric did not come.
            if alarm.get("TreatMissingData") == "breaching":
                needed.setdefault(metric, alarm["AlarmName"])
    ensure(alarmed, "the environment has no alarm of a metric")
    found = [metric for metric in alarmed if metric in listed]
    without = [metric for metric in alarmed if metric not in listed]
    for namespace, name, dimensions in sorted(without) if not environment.emulator else ():
        environment.say(f"  no data yet: {namespace} {name} {dict(dimensions)}")
    missing = sorted(f"{name} {dict(dimensions)}" for _, name, dimensions in needed if (_, name, dimensions) in set(without))
    seen = f"{len(found)} of {len(alarmed)} metrics of alarms have data, {number(len(without), 'other')} had no occasion yet"
    if environment.emulator:
        raise Skipped(f"the emulator has few of AWS's metrics; {seen}")
    ensure(not missing, f"these metrics must have data and have none: {'; '.join(missing)}")
    return f"{seen}; all {len(needed)} that must have data have it"


def pairs(dimensions):
    return tuple(sorted((each["Name"], each["Value"]) for each in dimensions))


def watched(alarm):
    """The (namespace, name, dimensions) that an alarm looks at. Canary alarms name a version; Lambda counts by version only while
    there are two."""
    if "MetricName" in alarm:
        return [(alarm["Namespace"], alarm["MetricName"], pairs(alarm.get("Dimensions", [])))]
    stats = [each["MetricStat"]["Metric"] for each in alarm.get("Metrics", []) if "MetricStat" in each]
    of_version = ("ExecutedVersion", "version")
    return [
        (metric["Namespace"], metric["MetricName"], pairs(metric["Dimensions"])) for metric in stats
        if not any(each["Name"] in of_version for each in metric["Dimensions"])
    ]


def environment_alarms(environment):
    names = {physical for _, kind, _, physical in environment.resources if kind == "AWS::CloudWatch::Alarm"}
    pages = environment.client("cloudwatch").get_paginator("describe_alarms").paginate(AlarmTypes=["MetricAlarm"])
    return [alarm for page in pages for alarm in page["MetricAlarms"] if alarm["AlarmName"] in names]


@step("index-throttles", "An alarm on throttles of an index finds its metric by both dimensions, TableName and GlobalSecondaryIndexName", seconds=60,
      units={"metricRequest": 100}, not_on_emulator="the emulator has no metrics of tables")
def index_throttles(environment):
    alarms = [
        (metric, alarm["AlarmName"]) for alarm in environment_alarms(environment) for metric in watched(alarm)
        if any(name == "GlobalSecondaryIndexName" for name, _ in metric[2])
    ]
    ensure(alarms, "no alarm looks at an index")
    for (namespace, name, dimensions), alarm in alarms:
        ensure("TableName" in dict(dimensions), f"{alarm} names an index without its table")
        # A throttle may never have been. ConsumedWriteCapacityUnits of the same index comes with the same dimensions.
        consumed = environment.client("cloudwatch").list_metrics(
            Namespace=namespace, MetricName="ConsumedWriteCapacityUnits", Dimensions=[{"Name": key, "Value": value} for key, value in dimensions],
        )["Metrics"]
        ensure(consumed, f"no metric of {dict(dimensions)} has come; run the step `saga` first, then wait for a quarter of an hour")
        exact = [each for each in consumed if pairs(each["Dimensions"]) == dimensions]
        ensure(exact, f"{alarm} looks for {name} by {dict(dimensions)}, AWS has it by {consumed[0]['Dimensions']}")
    return f"{number(len(alarms), 'alarm')} of indexes find metrics by both dimensions"


@step("polled-events", "A mapping with MetricsConfig EventCount reports PolledEventCount in each minute in which it polls, 0 included", seconds=60,
      units={"metricRequest": 20}, not_on_emulator="the emulator has no metrics of mappings")
def polled_events(environment):
    seen = []
    for consumer in ("PublishEvents", "StoreReadings", "DetectBreaches", "InitializeSubscription", "CancelSubscription"):
        mapping = environment.physical_id(f"{consumer}Mapping")
        # The newest minutes may not be there yet.
        counts = environment.metric("AWS/Lambda", "PolledEventCount", {"EventSourceMappingUUID": mapping}, 900, "SampleCount")
        values = environment.metric("AWS/Lambda", "PolledEventCount", {"EventSourceMappingUUID": mapping}, 900, "Sum")
        ensure(len(counts) >= 10, f"{consumer}Mapping reported in {len(counts)} of 15 minutes")
        seen.append(f"{consumer} {len(counts)} of 15 minutes, {sum(value == 0 for value in values)} of them 0")
    return "; ".join(seen)


@step("status", "`fieldctl status --all` can do every check: metrics of mappings, streams and queues have the names that it asks for", seconds=120,
      units={"metricRequest": 1_000, "readUnit": 100, "queueRequest": 50})
def status(environment):
    exit_code, output = environment.fieldctl("--json", "status", "--all")
    ensure(exit_code in (0, 1), f"fieldctl status ended with exit code {exit_code}: {output.strip()}")
    document = json.loads(output)
    for check in document["checks"]:
        if check["health"] == "problem":
            environment.say(f"  {check['name']}: {check['summary']}")
    unknown = [f"{check['name']}: {check['summary']}" for check in document["checks"] if check["health"] == "unknown"]
    seen = f"{len(document['checks'])} checks, {len(document['functions'])} functions, {len(document['consumers'])} consumers, {len(document['queues'])} queues"
    if environment.emulator and unknown:
        raise Skipped(f"the emulator has no data for: {'; '.join(unknown)}")
    ensure(not unknown, f"not every check could be done: {'; '.join(unknown)}")
    return f"{seen}; the environment is {document['health']}"


@step("workflows", "The workflows prod, staging and services of this repository ran with success on GitHub", seconds=60,
      not_on_emulator="GitHub's workflows do not deploy to the emulator")
def workflows(environment):
    if not shutil.which("gh"):
        raise Skipped("gh is not there; run it where GitHub's command line is logged in")
    seen = []
    for workflow in ("staging.yml", "prod.yml", "services.yml"):
        command = ["gh", "run", "list", "--workflow", workflow, "--status", "success", "--limit", "1", "--json", "url,createdAt,event"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        if listed.returncode:
            raise Skipped(f"gh can't list the runs of {workflow}: {listed.stderr.strip()}")
        runs = json.loads(listed.stdout)
        ensure(runs, f"{workflow} never ended with success")
        seen.append(f"{workflow} {runs[0]['createdAt']} ({runs[0]['event']}) {runs[0]['url']}")
    return "; ".join(seen)


@step("upgrade", "An environment of version 1 can be upgraded by restore and resource import", seconds=60,
      not_on_emulator="the emulator imports no resources")
def upgrade(environment):
    imported = []
    for service, stack in environment.stacks.items():
        pages = environment.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=stack["StackId"])
        imported += [
            f"{service}/{event['LogicalResourceId']}" for page in pages for event in page["StackEvents"]
            if event["ResourceStatus"] == "IMPORT_COMPLETE" and event["ResourceType"] == "AWS::DynamoDB::Table"
        ]
    if not imported:
        raise Skipped("no table of this environment was imported: it was not made as docs/deploying.md says under \"From version 1\"")
    return f"imported: {', '.join(sorted(imported))}"


@step("log-search", "FilterLogEvents with a quoted id finds the lines about a site within seconds", seconds=60)
def log_search(environment):
    group = f"/aws/lambda/{environment.name}/project-site"
    since = int((time.time() - 86_400) * 1000)
    try:
        lines = environment.client("logs").filter_log_events(logGroupName=group, startTime=since, limit=500)["events"]
    except botocore.exceptions.ClientError as error:
        ensure(False, f"{group} can't be read: {code(error)}")
    ids = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", " ".join(line["message"] for line in lines))
    if not ids:
        raise Skipped("the log of project-site has no id of the last day; run the step `saga` first")
    begun = time.monotonic()
    pages = environment.client("logs").get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since, filterPattern=f'"{ids[0]}"')
    found = [event["message"] for page in pages for event in page["events"]]
    seconds = time.monotonic() - begun
    ensure(found and all(ids[0] in line for line in found), f"{len(found)} lines were found for {ids[0]}")
    ensure(seconds < 10, f"the search took {seconds:.0f} s")
    return f"{number(len(found), 'line')} with an id were found in {seconds:.1f} s"
