"""Steps that only read: the deployed resources are as in the templates."""

import re

from environment import ALIAS, COMPLETE, ROOT, function_names, services
from steps import Skipped, ensure, step

# The functions that send a command back to their own queue.
COMMANDS = ("cancel-subscription", "initialize-subscription")


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
    started, ended = {}, {}
    for page in environment.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=environment.name):
        for event in page["StackEvents"]:
            if event["ResourceStatus"] == "CREATE_IN_PROGRESS":
                started[event["LogicalResourceId"].lower()] = event["Timestamp"]
            elif event["ResourceStatus"] == "CREATE_COMPLETE":
                ended[event["LogicalResourceId"].lower()] = event["Timestamp"]
    if not all(service in started and service in ended for service in services()):
        return f"{seen}; the events of their creation have expired, so their order was not seen"
    for service, callees in dependencies().items():
        for callee in callees:
            ensure(ended[callee] <= started[service], f"{service} was created before {callee} was complete")
    return f"{seen}, created in the order of DependsOn"


def dependencies():
    """Returns the services on which each service depends, from the root template."""
    found, resource = {}, None
    for line in (ROOT / "template.yaml").read_text().splitlines():
        if match := re.fullmatch(r"  (\w+):", line):
            resource = match[1].lower()
        elif match := re.fullmatch(r"    DependsOn: \[(.*)\]", line):
            found[resource] = [name.strip().lower() for name in match[1].split(",")]
    return found


@step("functions", "Every function starts: its architecture, C library and settings are correct, and its role may read what the start needs",
      seconds=300, units={"request": 100, "gigabyteSecond": 60, "trace": 100, "logGigabyte": 0.001})
def functions(environment):
    names = function_names()
    for name in names:
        found = environment.configuration(name)
        ensure(found["State"] == "Active", f"{name} is {found['State']}: {found.get('StateReason')}")
        ensure(found.get("LastUpdateStatus") == "Successful", f"the last update of {name}: {found.get('LastUpdateStatus')}")
        # The functions of queues and streams succeed with an empty batch. All others refuse it before they do anything.
        error, response = environment.invoke(name, {"Records": []})
        ensure(error in (None, "InvalidInput"), f"{name} failed on an empty batch with {error}: {response}")
    return f"{len(names)} functions are active, started, and handled an empty batch (most refuse it as InvalidInput, which counts as one error)"


def parameters_in(description):
    """Returns the parameters in the description of a version: `LogLevel=INFO Architecture=arm64`."""
    return dict(re.findall(r"(\w+)=(\S*)", description))


@step("versions", "`live` points to a published version, whose description and configuration have the parameters of its stack", seconds=120)
def versions(environment):
    count, without = 0, []
    for service, kind, _, physical in environment.resources:
        if kind != "AWS::Lambda::Function":
            continue
        function = physical.removeprefix(environment.resource_name(""))
        parameters = environment.parameters(environment.stacks[service])
        found = environment.configuration(function)
        ensure(found["Version"].isdigit(), f"{ALIAS} of {function} points to {found['Version']}")
        level = found["LoggingConfig"]["ApplicationLogLevel"]
        ensure(level == parameters["LogLevel"], f"{function} has the log level {level}, its stack's parameter LogLevel is {parameters['LogLevel']}")
        # The description of a version is its VersionDescription, or else the function's description.
        values = parameters_in(found.get("Description", ""))
        if "LogLevel" not in values:
            without.append(function)
        differences = [f"{name}={value}" for name, value in values.items() if name in parameters and value != (parameters[name].split() or [""])[0]]
        ensure(not differences, f"the description of version {found['Version']} of {function} has {', '.join(differences)}")
        count += 1
    if environment.emulator and without:
        raise Skipped(f"the emulator keeps no description of a version; the configurations of {count} versions have their parameters")
    ensure(not without, f"the descriptions of the versions of these functions lack their parameters: {', '.join(without)}")
    return f"the versions of {count} functions have their parameters in configuration and description"


@step("recursion", "RecursiveLoop is Allow for the two functions that send a command back to their own queue, and for no other", seconds=60)
def recursion(environment):
    modes = {
        name: environment.client("lambda").get_function_recursion_config(FunctionName=environment.resource_name(name))["RecursiveLoop"]
        for name in function_names()
    }
    allowed = sorted(name for name, mode in modes.items() if mode == "Allow")
    if environment.emulator and not allowed:
        raise Skipped("the emulator does not take RecursiveLoop from a template")
    ensure(allowed == sorted(COMMANDS), f"Allow is set for: {', '.join(allowed) or 'no function'}")
    return f"Allow for {' and '.join(allowed)}, Terminate for {len(modes) - len(allowed)} others"


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
        dimensions = {"function": environment.resource_name("check-consumers")}
        reported = environment.metric("Fieldstation", "ConsumersNotRunning", dimensions, 600, "Maximum")
        ensure(reported, "check-consumers has written no metric for ten minutes")
        ensure(reported[-1] == 0, f"check-consumers reports {reported[-1]:.0f} consumers that do not run")
    return f"{len(deployed)} mappings of aliases are listed and enabled"


@step("roles", "The roles of the state machines have generated names. Their path is the one that billing's queue policies name.", seconds=30)
def roles(environment):
    for machine in ("site-onboarding", "site-teardown"):
        arn = environment.arn("states", f"stateMachine:{environment.resource_name(machine)}")
        role = environment.client("stepfunctions").describe_state_machine(stateMachineArn=arn)["roleArn"]
        ensure(f":role/{environment.name}/{machine}/" in role, f"the role of {machine} is {role}")
    for queue, machine in (("initialize-subscription", "site-onboarding"), ("cancel-subscription", "site-teardown")):
        sqs = environment.client("sqs")
        url = sqs.get_queue_url(QueueName=environment.resource_name(queue))["QueueUrl"]
        policy = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"].get("Policy", "")
        ensure(f"role/{environment.name}/{machine}/" in policy, f"the policy of queue {queue} does not name the path of {machine}: {policy}")
    return "both roles have their paths, and both queue policies name them (the step `saga` sends through them)"


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
        raise Skipped("no table of this environment was imported: it was not upgraded as in docs/deploying.md, \"From version 1\"")
    return f"imported: {', '.join(sorted(imported))}"


@step("names", "Generated names of roles, alarms and rules begin with the environment's name, so that grants on <environment>-* cover them", seconds=60,
      not_on_emulator="the emulator generates other names")
def names(environment):
    kinds = ("AWS::IAM::Role", "AWS::CloudWatch::Alarm", "AWS::Events::Rule")
    # The physical id of a rule on another bus than the default one is bus|rule.
    found = [(logical, physical.rpartition("|")[2]) for _, kind, logical, physical in environment.resources if kind in kinds]
    ensure(found, "the stacks have no role, alarm or rule")
    others = [f"{logical} is {physical}" for logical, physical in found if not physical.startswith(environment.resource_name(""))]
    ensure(not others, "; ".join(others))
    return f"{len(found)} names of roles, alarms and rules begin with {environment.resource_name('')}"


@step("deploy-role", "CloudFormation's role has all permissions that a deployment needs", seconds=60,
      not_on_emulator="the emulator's CloudFormation uses no role")
def deploy_role(environment):
    stacks = [environment.stack(environment.name)] if environment.mode == "root" else list(environment.stacks.values())
    roles = {stack.get("RoleARN", "") for stack in stacks}
    if roles == {""}:
        raise Skipped("the stacks were deployed with the caller's permissions, without --role-arn")
    ensure(all(role.endswith(f"/{environment.resource_name('cloudformation')}") for role in roles), f"the stacks were deployed by {', '.join(sorted(roles))}")
    for stack in stacks:
        ensure(stack["StackStatus"] in COMPLETE, f"{stack['StackName']} is {stack['StackStatus']}")
    return f"{len(stacks)} stacks that were deployed by {', '.join(sorted(roles))} are complete"


@step("bucket", "The failure bucket keeps earlier versions of its files for 35 days, and sends notifications of new files", seconds=60,
      not_on_emulator="the emulator applies no lifecycle")
def bucket(environment):
    s3, name = environment.client("s3"), environment.resource_name(f"failures-{environment.account}-{environment.region}")
    status = s3.get_bucket_versioning(Bucket=name).get("Status")
    ensure(status == "Enabled", f"versioning of {name} is {status}")
    rules = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    days = [rule["NoncurrentVersionExpiration"]["NoncurrentDays"] for rule in rules if "NoncurrentVersionExpiration" in rule]
    ensure(days and set(days) == {35}, f"earlier versions expire after {days or 'no'} days")
    queues = s3.get_bucket_notification_configuration(Bucket=name).get("QueueConfigurations", [])
    ensure(any(queue["QueueArn"].endswith(environment.resource_name("failure-files")) for queue in queues), f"{name} sends notifications to {queues}")
    return f"{name} has versions, which expire after 35 days, and sends notifications of new files"
