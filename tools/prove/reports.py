"""Steps that only read: metrics, logs and the dashboard contain what alarms and operators need."""

import json
import re
import time

import botocore.exceptions
from environment import code, function_names
from steps import Skipped, ensure, step


def number(count, what):
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@step("logs", "Each log group exists with a retention, and Lambda creates no other groups", seconds=60)
def logs(environment):
    groups = [physical for _, kind, _, physical in environment.resources if kind == "AWS::Logs::LogGroup"]
    found = {}
    for prefix in (f"/aws/lambda/{environment.name}", f"/aws/vendedlogs/states/{environment.name}/", f"/aws/apigateway/{environment.name}/"):
        pages = environment.client("logs").get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
        found |= {group["logGroupName"]: group.get("retentionInDays") for page in pages for group in page["logGroups"]}
    for group in groups:
        ensure(found.get(group), f"log group {group} is missing, or has no retention")
    others = sorted(group for group in found if group.startswith(f"/aws/lambda/{environment.name}-"))
    ensure(not others, f"Lambda created log groups without a retention: {', '.join(others)}")
    return f"{len(groups)} log groups have a retention, and there are no others"


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
    started = time.monotonic()
    pages = environment.client("logs").get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since, filterPattern=f'"{ids[0]}"')
    found = [event["message"] for page in pages for event in page["events"]]
    seconds = time.monotonic() - started
    ensure(found and all(ids[0] in line for line in found), f"{len(found)} lines were found for {ids[0]}")
    ensure(seconds < 10, f"the search took {seconds:.0f} s")
    return f"{number(len(found), 'line')} with an id were found in {seconds:.1f} s"


@step("metrics", "Metrics arrive with the names and dimensions of the alarms; at least those of the alarms that fire on missing data", seconds=120,
      units={"metricRequest": 500})
def metrics(environment):
    listed = set()
    names = {"AWS/Lambda", "AWS/DynamoDB", "AWS/SQS", "AWS/Kinesis", "AWS/States", "AWS/ApiGateway", "AWS/Events", "Fieldstation"}
    for namespace in sorted(names):
        for page in environment.client("cloudwatch").get_paginator("list_metrics").paginate(Namespace=namespace):
            listed |= {(namespace, each["MetricName"], pairs(each["Dimensions"])) for each in page["Metrics"]}
    alarmed, required, without = {}, {}, []
    for alarm in environment_alarms(environment):
        for metric in watched(alarm):
            alarmed.setdefault(metric, alarm["AlarmName"])
            # Without data, such an alarm goes to ALARM. So its metric must exist.
            if alarm.get("TreatMissingData") == "breaching":
                required.setdefault(metric, alarm["AlarmName"])
    ensure(alarmed, "the environment has no alarm of a metric")
    found = [metric for metric in alarmed if metric in listed]
    without = [metric for metric in alarmed if metric not in listed]
    for namespace, name, dimensions in sorted(without) if not environment.emulator else ():
        environment.log(f"  no data yet: {namespace} {name} {dict(dimensions)}")
    missing = sorted(f"{name} {dict(dimensions)}" for _, name, dimensions in required if (_, name, dimensions) in set(without))
    seen = f"{len(found)} of {len(alarmed)} metrics of alarms have data, {number(len(without), 'other')} had no reason to be written yet"
    if environment.emulator:
        raise Skipped(f"the emulator has few of AWS's metrics; {seen}")
    ensure(not missing, f"these required metrics have no data: {'; '.join(missing)}")
    return f"{seen}; all {len(required)} required metrics have data"


def pairs(dimensions):
    return tuple(sorted((each["Name"], each["Value"]) for each in dimensions))


def watched(alarm):
    """Returns the (namespace, name, dimensions) of an alarm's metrics, without those of a version: canary alarms use them, and
    Lambda writes them only while the alias has two versions."""
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


@step("index-throttles", "An alarm on throttles of an index finds its metric by two dimensions, TableName and GlobalSecondaryIndexName", seconds=60,
      units={"metricRequest": 100}, not_on_emulator="the emulator has no metrics of tables")
def index_throttles(environment):
    alarms = [
        (metric, alarm["AlarmName"]) for alarm in environment_alarms(environment) for metric in watched(alarm)
        if any(name == "GlobalSecondaryIndexName" for name, _ in metric[2])
    ]
    ensure(alarms, "no alarm is about an index")
    for (namespace, name, dimensions), alarm in alarms:
        ensure("TableName" in dict(dimensions), f"{alarm} names an index without its table")
        # The metric of throttles does not exist before the first throttle. ConsumedWriteCapacityUnits of the same index
        # has the same dimensions.
        consumed = environment.client("cloudwatch").list_metrics(
            Namespace=namespace, MetricName="ConsumedWriteCapacityUnits", Dimensions=[{"Name": key, "Value": value} for key, value in dimensions],
        )["Metrics"]
        ensure(consumed, f"there is no metric of {dict(dimensions)} yet; run the step `saga` first, then wait for a quarter of an hour")
        exact = [each for each in consumed if pairs(each["Dimensions"]) == dimensions]
        ensure(exact, f"{alarm} looks for {name} by {dict(dimensions)}, AWS has it by {consumed[0]['Dimensions']}")
    return f"{number(len(alarms), 'alarm')} of indexes find metrics by both dimensions"


@step("polled-events", "A mapping with MetricsConfig EventCount reports PolledEventCount in each minute in which it polls, 0 included", seconds=60,
      units={"metricRequest": 20}, not_on_emulator="the emulator has no metrics of mappings")
def polled_events(environment):
    seen = []
    for consumer in ("PublishEvents", "StoreReadings", "StoreHeldReadings", "DetectBreaches", "InitializeSubscription", "CancelSubscription"):
        mapping = environment.physical_id(f"{consumer}Mapping")
        # The data of the newest minutes may still be missing.
        counts = environment.metric("AWS/Lambda", "PolledEventCount", {"EventSourceMappingUUID": mapping}, 900, "SampleCount")
        values = environment.metric("AWS/Lambda", "PolledEventCount", {"EventSourceMappingUUID": mapping}, 900, "Sum")
        ensure(len(counts) >= 10, f"{consumer}Mapping reported in {len(counts)} of 15 minutes")
        seen.append(f"{consumer} {len(counts)} of 15 minutes, {sum(value == 0 for value in values)} of them 0")
    return "; ".join(seen)


@step("status", "`fieldctl status --all` can do every check: metrics of mappings, streams and queues have the names that it queries", seconds=120,
      units={"metricRequest": 1_000, "readUnit": 100, "queueRequest": 50})
def status(environment):
    exit_code, output = environment.fieldctl("--json", "status", "--all")
    ensure(exit_code in (0, 1), f"fieldctl status ended with exit code {exit_code}: {output.strip()}")
    document = json.loads(output)
    for check in document["checks"]:
        if check["health"] == "problem":
            environment.log(f"  {check['name']}: {check['summary']}")
    unknown = [f"{check['name']}: {check['summary']}" for check in document["checks"] if check["health"] == "unknown"]
    seen = f"{len(document['checks'])} checks, {len(document['functions'])} functions, {len(document['consumers'])} consumers, {len(document['queues'])} queues"
    if environment.emulator and unknown:
        raise Skipped(f"the emulator has no data for: {'; '.join(unknown)}")
    ensure(not unknown, f"these checks could not be done: {'; '.join(unknown)}")
    return f"{seen}; the environment is {document['health']}"


@step("account-metrics", "Lambda counts Throttles and DestinationDeliveryFailures without dimensions, so the account's two alarms see every function",
      seconds=60, units={"metricRequest": 20}, not_on_emulator="the emulator has neither metric")
def account_metrics(environment):
    def dimensions(name):
        pages = environment.client("cloudwatch").get_paginator("list_metrics").paginate(Namespace="AWS/Lambda", MetricName=name)
        return [each["Dimensions"] for page in pages for each in page["Metrics"]]

    throttles, failures = dimensions("Throttles"), dimensions("DestinationDeliveryFailures")
    ensure([] in throttles, f"Throttles exists only with dimensions: {throttles[:3]}")
    ensure(not failures or [] in failures, f"DestinationDeliveryFailures exists only with dimensions: {failures[:3]}")
    if not failures:
        return "Throttles exists without dimensions; DestinationDeliveryFailures had no reason to be written yet"
    return "Throttles and DestinationDeliveryFailures exist without dimensions"


@step("dashboard", "The dashboard's graphs of functions contain every function of the environment", seconds=60, units={"metricRequest": 2_000},
      not_on_emulator="the emulator draws no dashboards")
def dashboard(environment):
    body = json.loads(environment.client("cloudwatch").get_dashboard(DashboardName=environment.name)["DashboardBody"])
    now, seen = time.time(), []
    for widget in body["widgets"]:
        for metric in widget["properties"].get("metrics", []):
            expression = metric[0].get("expression", "") if isinstance(metric[0], dict) else ""
            if not expression.startswith("SEARCH"):
                continue
            query = {"Id": "found", "Expression": expression, "Period": 300}
            response = environment.client("cloudwatch").get_metric_data(MetricDataQueries=[query], StartTime=now - 10_800, EndTime=now)
            count, title = len(response["MetricDataResults"]), widget["properties"]["title"]
            minimum = len(function_names()) if "Invocations" in expression else 1
            ensure(count >= minimum, f"{title!r} finds {count} metrics of {minimum} (a new metric is found after some minutes): {expression}")
            seen.append(f"{title} {count}")
    ensure(seen, "the dashboard has no search for metrics")
    return f"metrics found: {', '.join(seen)}"
