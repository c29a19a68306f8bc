"""A deployed environment, and the AWS calls that several steps use."""

import json
import os
import subprocess
import sys
import time
import urllib.parse
import uuid
from functools import cached_property
from pathlib import Path

import boto3
import botocore.exceptions
import urllib3
from botocore.config import Config

from steps import NotProved, Skipped, ensure, printable

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools" / "deploy"))
import services as deployment  # noqa: E402
import supplies  # noqa: E402

ALIAS = "live"
# Statuses of a stack that was deployed completely.
COMPLETE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE")
# An id that no site has.
NO_SITE = "00000000-0000-5000-8000-000000000000"

# The maximum difference between this machine's clock and AWS's, in seconds.
MAX_CLOCK_SKEW = 120
# Prefixes of the calls that change nothing. TestState runs a state with a given response; Invoke is called with an empty batch.
READING_CALLS = ("Describe", "Filter", "Get", "Invoke", "List", "Query", "TestState")
# The value that the steps send.
READING = 21.5
# The source of the events that the steps send.
SUPPLIER = "com.example.prove"


def services():
    """Returns the services in the order of the root template, which is that of their first deployment."""
    found = deployment.services()
    if not found:
        raise RuntimeError("the root template has no nested stack")
    return found


def function_names():
    """Returns the names of all functions, without the environment's prefix. Each has a binary of that name."""
    return sorted(path.stem for path in ROOT.glob("functions/*/src/bin/*.rs"))


def code(error):
    """Returns AWS's error code, such as AccessDeniedException."""
    return error.response.get("Error", {}).get("Code", "")


class Environment:
    """The environment that is tested. Steps push clean-up actions onto `cleanups`; they run in reverse order."""

    def __init__(self, name, mode, emulator, fieldctl=None, log=lambda text: print(printable(text))):
        self.name = name
        self.mode = mode
        self.emulator = emulator
        self.log = log
        self.fieldctl_path = fieldctl
        # (what the action removes, the action)
        self.cleanups = []
        # What remains in the account, for the report.
        self.left = []
        self.session = boto3.Session()
        self.region = self.session.region_name
        # While this is set, calls that could change something are refused.
        self.read_only = False
        self._clients = {}

    def client(self, service):
        if service not in self._clients:
            # The emulator serves all of AWS at one host.
            config = Config(retries={"mode": "standard", "max_attempts": 5}, inject_host_prefix=not self.emulator)
            client = self.session.client(service, region_name=self.region, config=config)
            client.meta.events.register("before-call", lambda model, **_: self._guard(model.name, model.name.startswith(READING_CALLS)))
            self._clients[service] = client
        return self._clients[service]

    def _guard(self, call, reads):
        if self.read_only and not reads:
            raise PermissionError(f"a step that only reads must not call {call}")

    def resource_name(self, name):
        """Returns the fixed name of a resource."""
        return f"{self.name}-{name}"

    @cached_property
    def caller(self):
        """The caller's account and ARN."""
        return self.client("sts").get_caller_identity()

    @property
    def account(self):
        return self.caller["Account"]

    def arn(self, service, resource):
        partition = self.caller["Arn"].split(":")[1]
        return f"arn:{partition}:{service}:{self.region}:{self.account}:{resource}"

    # ---- Stacks

    def stack(self, name):
        """Returns the description of a stack, or None if it does not exist."""
        try:
            return self.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
        except botocore.exceptions.ClientError as error:
            if "does not exist" in str(error):
                return None
            raise

    @cached_property
    def stacks(self):
        """The stack of each service, by the service's name."""
        if self.mode == "services":
            found = {service: self.stack(self.resource_name(service)) for service in services()}
        else:
            nested = {
                resource["LogicalResourceId"].lower(): resource["PhysicalResourceId"]
                for resource in self.resources_of(self.name) if resource["ResourceType"] == "AWS::CloudFormation::Stack"
            }
            found = {service: self.stack(nested[service]) if service in nested else None for service in services()}
        missing = [service for service, stack in found.items() if stack is None]
        ensure(not missing, f"these services have no stack: {', '.join(missing)}")
        return found

    def resources_of(self, stack):
        pages = self.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
        return [resource for page in pages for resource in page["StackResourceSummaries"]]

    @cached_property
    def resources(self):
        """(service, type, logical id, physical id) of every resource of the services' stacks."""
        return [
            (service, each["ResourceType"], each["LogicalResourceId"], each.get("PhysicalResourceId", ""))
            for service, stack in self.stacks.items() for each in self.resources_of(stack["StackId"])
        ]

    def physical_id(self, logical):
        """Returns the generated name of a resource. Logical ids are unique across all templates."""
        found = [physical for _, _, name, physical in self.resources if name == logical]
        ensure(len(found) == 1, f"{len(found)} resources are named {logical}")
        return found[0]

    def parameters(self, stack):
        return {each["ParameterKey"]: each["ParameterValue"] for each in stack.get("Parameters", [])}

    @property
    def top_stack(self):
        """The stack that has the outputs of the API."""
        return self.name if self.mode == "root" else self.resource_name("gateway")

    # ---- The API

    @cached_property
    def _api(self):
        outputs = {each["OutputKey"]: each["OutputValue"] for each in self.stack(self.top_stack).get("Outputs", [])}
        url = urllib.parse.urlsplit(outputs["ApiUrl"])
        if not self.emulator:
            return urllib.parse.urlunsplit(url).rstrip("/"), url.netloc
        # The emulator serves the API at a host below localhost.
        port = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
        return f"http://127.0.0.1:{port}{url.path}".rstrip("/"), f"{outputs['ApiId']}.execute-api.localhost:{port}"

    def prepare_api_key(self):
        """Creates the key for the calls of the API, so that the steps that only read have one."""
        try:
            return bool(self._api_key)
        except supplies.Failed as error:
            self.log(f"No key of the API was created: {error}")
            return False

    @cached_property
    def _api_key(self):
        """The key of the variable FIELDSTATION_API_KEY, or else a key of an administrator that is created now."""
        if key := os.environ.get("FIELDSTATION_API_KEY"):
            return key
        if self.read_only:
            raise Skipped("it calls the API: set FIELDSTATION_API_KEY to a key of the scope read (fieldctl keys create)")
        url, host = self._api
        return supplies.create_key(self.client, self.name, url, "tools/prove", host=host if self.emulator else None)

    def response(self, method, path, body=None, key=None, authorization=None, content_type="application/json"):
        """Calls the API and returns its response. `authorization` is the value of the header. None, the
        default, is an administrator's key. With an empty string, no header is sent. With a list, one header is sent for
        each value."""
        self._guard(f"{method} {path}", method in ("GET", "HEAD"))
        url, host = self._api
        headers = {"Host": host, "Content-Type": content_type}
        if key:
            headers["Idempotency-Key"] = key
        data = json.dumps(body) if body is not None else ""
        headers = urllib3.HTTPHeaderDict(headers)
        for value in authorization if isinstance(authorization, list) else [authorization]:
            if value != "":
                headers.add("Authorization", f"Bearer {self._api_key}" if value is None else value)
        return urllib3.request(method, url + path, headers=headers, body=data, timeout=35, retries=False)

    def api(self, method, path, body=None, key=None, retries=0):
        """Calls the API. Returns (status, content, seconds)."""
        started = time.monotonic()
        for attempt in range(retries + 1):
            response = self.response(method, path, body, key)
            if response.status not in (429, 502, 503, 504) or attempt == retries:
                break
            time.sleep(2 ** attempt)
        try:
            content = json.loads(response.data or b"null")
        except ValueError:
            content = response.data.decode(errors="replace")
        return response.status, content, time.monotonic() - started

    # ---- Functions

    def configuration(self, function):
        """Returns the configuration of the version that `live` points to."""
        return self.client("lambda").get_function_configuration(FunctionName=self.resource_name(function), Qualifier=ALIAS)

    def live_version(self, function):
        return self.client("lambda").get_alias(FunctionName=self.resource_name(function), Name=ALIAS)["FunctionVersion"]

    def live_versions(self):
        return {function: self.live_version(function) for function in function_names()}

    def invoke(self, function, event):
        """Invokes the alias synchronously. Returns (error's type or None, response)."""
        invocation = self.client("lambda").invoke(FunctionName=f"{self.resource_name(function)}:{ALIAS}", Payload=json.dumps(event).encode())
        response = json.loads(invocation["Payload"].read() or b"null")
        if "FunctionError" not in invocation:
            return None, response
        return (response or {}).get("errorType", invocation["FunctionError"]), response

    def mapping(self, logical):
        return self.client("lambda").get_event_source_mapping(UUID=self.physical_id(logical))

    # ---- Tables

    def open_failures(self, source, kind, marker, since):
        """Returns the open failures of a source and a kind whose payload contains the marker, recorded after `since` (epoch seconds)."""
        table = self.resource_name("failures")
        response = self.client("dynamodb").query(
            TableName=table, IndexName="byStatus", KeyConditionExpression="#status = :open AND lastAt >= :since",
            ExpressionAttributeNames={"#status": "status"},
            ExpressionAttributeValues={":open": {"S": "OPEN"}, ":since": {"S": timestamp(since - MAX_CLOCK_SKEW)}},
            ScanIndexForward=False, Limit=200,
        )
        found = []
        for item in response["Items"]:
            if (item["source"]["S"], item["kind"]["S"]) != (source, kind):
                continue
            row = self.client("dynamodb").get_item(TableName=table, Key={"id": item["id"]}, ConsistentRead=True)["Item"]
            if marker in row.get("payload", {}).get("S", ""):
                found.append(row)
        return found

    # ---- Metrics

    def metric(self, namespace, name, dimensions, seconds, statistic="Sum", period=60):
        """Returns a metric's data points of the last `seconds`, oldest first."""
        now = time.time()
        response = self.client("cloudwatch").get_metric_statistics(
            Namespace=namespace, MetricName=name, Dimensions=[{"Name": key, "Value": value} for key, value in dimensions.items()],
            StartTime=now - seconds, EndTime=now, Period=period, Statistics=[statistic],
        )
        return [point[statistic] for point in sorted(response["Datapoints"], key=lambda point: point["Timestamp"])]

    # ---- Sites

    def deliver_kits(self, metric, quantity):
        """Delivers kits, as a supplier's system does, and waits for them. Returns the delivery's id."""
        delivery = f"prove-{uuid.uuid4()}"
        self.put_delivery(metric, quantity, delivery)
        self.await_delivery(delivery)
        return delivery

    def put_delivery(self, metric, quantity, delivery):
        try:
            supplies.send_delivery(self.client, self.name, SUPPLIER, delivery, {metric: quantity})
        except supplies.Failed as error:
            raise NotProved(str(error)) from None
        self.left.append(f"{quantity} kit of {metric} in stock (delivery {delivery})")

    def await_delivery(self, delivery, seconds=120):
        self.until(
            f"delivery {delivery} is in stock", seconds, lambda: supplies.is_delivered(self.client, self.name, SUPPLIER, delivery)
        )

    def stock(self, metric):
        key = {"id": {"S": f"stock#{metric}"}}
        item = self.client("dynamodb").get_item(TableName=self.resource_name("inventory"), Key=key, ConsistentRead=True).get("Item", {})
        return int(item.get("quantity", {}).get("N", 0))

    def register(self, card="pm_card_visa"):
        """Registers a site with one sensor. Returns its ids. A clean-up action removes the site."""
        metric = "air_temperature"
        if self.stock(metric) < 1:
            self.deliver_kits(metric, 1)
        site = {
            "name": "Proof on AWS", "operator": "Fieldstation", "plan": "community", "paymentMethod": card,
            "location": {"latitude": 37.69, "longitude": -105.92, "elevationM": 2317},
            "sensors": [{"metric": metric, "unit": "Cel", "min": -50, "max": 50}],
        }
        status, response, _ = self.api("POST", "/sites", site, key=str(uuid.uuid4()), retries=4)
        ensure(status == 202, f"POST /sites returned {status}: {response}")
        site = response["siteId"]
        self.cleanups.append((f"site {site}", lambda: self.remove_site(site)))
        return response

    def site(self, site):
        status, response, _ = self.api("GET", f"/sites/{site}", retries=4)
        ensure(status == 200, f"GET /sites/{site} returned {status}: {response}")
        return response

    def await_site(self, site, *statuses, seconds=300):
        def look():
            details = self.site(site)
            return details if details["status"] in statuses else None

        return self.until(f"site {site} is {' or '.join(statuses)}", seconds, look)

    def active_site(self):
        """Registers a site and waits until it is ACTIVE. Returns its details."""
        site = self.register()["siteId"]
        details = self.await_site(site, "ACTIVE", "REJECTED")
        ensure(details["status"] == "ACTIVE", f"site {site} is {details['status']}: {details['onboarding'].get('failure')}")
        return details

    def decommission(self, site):
        status, response, _ = self.api("DELETE", f"/sites/{site}", retries=4)
        ensure(status in (200, 202), f"DELETE /sites/{site} returned {status}: {response}")

    def remove_site(self, site):
        """Decommissions a site, whatever its status is."""
        details = self.await_site(site, "ACTIVE", "REJECTED", "DECOMMISSIONING", "DECOMMISSIONED", seconds=600)
        if details["status"] == "ACTIVE":
            self.decommission(site)
        self.await_site(site, "REJECTED", "DECOMMISSIONED", seconds=600)

    # ---- Readings

    def readings(self, sensor):
        """Queries a sensor's readings of the last hour. Returns (status, response)."""
        since = urllib.parse.quote(timestamp(time.time() - 3_600), safe="")
        status, response, _ = self.api("GET", f"/sensors/{sensor}/readings?from={since}")
        return status, response

    def await_sensor(self, sensor):
        self.until(f"sensor {sensor} may send", 120, lambda: self.readings(sensor)[0] == 200)

    def send_reading(self, site, sensor, bundle):
        """Sends one reading with a time ten minutes ago."""
        samples = [[timestamp(time.time() - 600), READING]]
        body = {"bundleId": bundle, "siteId": site, "series": [{"sensorId": sensor, "samples": samples}]}
        status, response, _ = self.api("POST", "/readings", body, retries=4)
        ensure(status == 202, f"POST /readings returned {status}: {response}")

    def await_reading(self, sensor):
        self.until(f"the reading of sensor {sensor} can be queried", 120, lambda: str(READING) in json.dumps(self.readings(sensor)[1]))

    # ---- fieldctl

    def require_fieldctl(self):
        if not self.fieldctl_path:
            raise Skipped("fieldctl was not found: run cargo install --path fieldctl --locked, or give its path by --fieldctl")

    def fieldctl(self, *arguments):
        """Runs a command of fieldctl. Returns (exit code, output)."""
        self.require_fieldctl()
        self._guard(f"fieldctl {' '.join(arguments)}", "status" in arguments)
        variables = os.environ | {"FIELDSTATION_STACK": self.name, "AWS_REGION": self.region}
        ended = subprocess.run(
            [self.fieldctl_path, *arguments], env=variables, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL,
        )
        return ended.returncode, ended.stdout or ended.stderr

    def replay(self, failure):
        """Replays a failure that a step caused. The cause must be removed before."""
        exit_code, output = self.fieldctl("--json", "failures", "replay", failure, "--yes")
        ensure(exit_code == 0, f"the replay of failure {failure} failed: {output.strip()}")

    def close_failure(self, failure):
        """Discards a failure that a step caused, unless a replay closed it."""
        table, key = self.resource_name("failures"), {"id": {"S": failure}}
        row = self.client("dynamodb").get_item(TableName=table, Key=key, ConsistentRead=True)["Item"]
        if row["status"]["S"] == "OPEN":
            exit_code, output = self.fieldctl("failures", "discard", failure, "--note", "created by prove-on-aws.sh", "--yes")
            ensure(exit_code == 0, f"failure {failure} is still open: {output.strip()}")

    # ---- Time

    def until(self, what, seconds, probe, pause=2):
        """Calls `probe` until it returns a true value, and returns this value. Ends the step as not proved after the
        timeout."""
        deadline = time.monotonic() + seconds
        while True:
            if found := probe():
                return found
            if time.monotonic() > deadline:
                raise NotProved(f"timeout after {seconds} s, still waiting for: {what}")
            time.sleep(pause if not self.emulator else min(pause, 0.5))

    def clean_up(self):
        """Runs the clean-up actions, the last one first. Those that fail are listed in `left`."""
        while self.cleanups:
            what, clean_up = entry = self.cleanups[-1]
            try:
                clean_up()
                self.log(f"  removed: {what}")
            except Exception as error:  # The other actions must run in any case.
                self.left.append(f"{what}: {error}")
                self.log(f"  NOT removed: {what}: {error}")
            # An interrupted action stays in the list and is tried again.
            self.cleanups.remove(entry)

    def run_cleanup(self, what):
        """Runs one clean-up action now."""
        entry = next(entry for entry in self.cleanups if entry[0] == what)
        entry[1]()
        self.cleanups.remove(entry)


def timestamp(seconds=None):
    """Formats a time as RFC 3339 in UTC with milliseconds, as in the tables."""
    seconds = time.time() if seconds is None else seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"
