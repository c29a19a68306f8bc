#!/usr/bin/env python3
"""The local stack: MiniStack (the AWS emulator) and localstripe (the payment provider), both on loopback only.

    .venv/bin/python tools/local/stack.py up            starts both and waits until they respond; no effect if they run
    .venv/bin/python tools/local/stack.py down          stops them and all functions, and deletes their state
    .venv/bin/python tools/local/stack.py status        shows what runs; exit status 1 unless both respond
    .venv/bin/python tools/local/stack.py logs [NAME]   prints the last hour's log lines (of log groups with NAME in it)
    .venv/bin/python tools/local/stack.py seed          gives a new stack the provider's plans and its API key
    .venv/bin/python tools/local/stack.py confirm-reset asks before a running stack is stopped; exit status 1 means no
    .venv/bin/python tools/local/stack.py api-url       prints the URL of the deployed API
    .venv/bin/python tools/local/stack.py env           prints the variables that the documented examples use, for `eval`
    .venv/bin/python tools/local/stack.py kits [METRIC] delivers kits, as a supplier's system does, and waits for them
    .venv/bin/python tools/local/stack.py docker-env    prepares `sam local invoke`: the deployed functions' settings, and
                                                        a route from Docker's containers to the emulators (until `down`)
    .venv/bin/python tools/local/stack.py invoke NAME   invokes a deployed function with its sample event
    .venv/bin/python tools/local/stack.py stripe-stop   stops the payment provider and keeps its state
    .venv/bin/python tools/local/stack.py stripe-start  starts the payment provider again

Logs, pid files and state are in target/local/. Each decision of IAM is logged there in authorisations.log. Settings are
environment variables: FIELDSTATION_AWS_PORT (4566), FIELDSTATION_STRIPE_PORT (8420), FIELDSTATION_DOCKER_GATEWAY
(172.17.0.1), FIELDSTATION_LOCAL_DIR (target/local), FIELDSTATION_STACK (fieldstation-local), and those of MiniStack in
PASSED_ON. With FIELDSTATION_FUNCTIONS_ENDPOINT the functions call AWS and the Runtime API at that address, where the
proxy of the fault matrix must listen.
"""

import argparse
import asyncio
import contextvars
import errno
import gc
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools" / "deploy"))
import supplies  # noqa: E402

LOCAL = Path(os.environ.get("FIELDSTATION_LOCAL_DIR", ROOT / "target" / "local")).resolve()
TMP = LOCAL / "tmp"  # MiniStack unpacks the functions here
STRIPE_STATE = LOCAL / "localstripe.pickle"
AUTHORISATIONS = LOCAL / "authorisations.log"
PYTHON = ROOT / ".venv" / "bin" / "python"
HOST = "127.0.0.1"
DOCKER_GATEWAY = os.environ.get("FIELDSTATION_DOCKER_GATEWAY", "172.17.0.1")  # this machine, seen from a container
REGION = "us-east-1"
ALIAS = "live"  # AutoPublishAlias of the template
WAIT_SECONDS = 60
FUNCTIONS_ENDPOINT = os.environ.get("FIELDSTATION_FUNCTIONS_ENDPOINT")
STACK = os.environ.get("FIELDSTATION_STACK", "fieldstation-local")
STRIPE_KEY = "sk_test_local"
ACCESS_KEY = SECRET_KEY = "test"  # the emulator accepts them

# MiniStack passes its own environment on to every function, so it gets a small one. These variables may be set
# by the caller:
PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL",
    "LOG_LEVEL", "SFN_WAIT_SCALE", "LAMBDA_ASYNC_RETRY_BASE_SECONDS", "LAMBDA_WARM_TTL_SECONDS",
)


class Server:
    """A background process in its own session, identified by its pid file."""

    def __init__(self, name, port_variable, default_port, health_path, host=HOST):
        self.name = name
        self.host = host
        self.port_variable = port_variable
        self.port = int(os.environ.get(port_variable, default_port))
        self.url = f"http://{host}:{self.port}"
        self.health_url = self.url + health_path
        self.pid_file = LOCAL / f"{name}.pid"
        self.log_file = LOCAL / f"{name}.log"

    def command(self):
        return [str(PYTHON), str(Path(__file__).resolve()), "serve", self.name]

    def environment(self):
        passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        if self is not MINISTACK:
            return passed_on | {
                MINISTACK.port_variable: str(MINISTACK.port),
                STRIPE.port_variable: str(STRIPE.port),
                "FIELDSTATION_DOCKER_GATEWAY": DOCKER_GATEWAY,
                "FIELDSTATION_LOCAL_DIR": str(LOCAL),
            }
        if FUNCTIONS_ENDPOINT:
            passed_on["FIELDSTATION_FUNCTIONS_ENDPOINT"] = FUNCTIONS_ENDPOINT
        return passed_on | {
            "AUTH": "true",  # every function uses its own role
            "FIELDSTATION_LOCAL_DIR": str(LOCAL),
            "BIND_HOST": HOST,
            "IOT_MTLS_ENABLED": "0",  # MQTT would listen on every interface, and nothing here uses it
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_REGION": REGION,
            "TMPDIR": str(TMP),
            # The functions call the emulator and do not find real credentials.
            "AWS_ENDPOINT_URL": FUNCTIONS_ENDPOINT or self.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def group(self):
        """Returns the live processes of this server: the one that was started here and, for MiniStack, its
        functions.

        A process counts only if its command line contains this checkout's path, because a pid file may be old
        and its number reused.
        """
        try:
            leader = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return []
        return [
            pid for pid, group, command in processes()
            if group == leader and (str(ROOT) in command or str(LOCAL) in command)
        ]

    def running(self):
        members = self.group()
        return bool(members) and int(self.pid_file.read_text()) in members

    def healthy(self):
        try:
            with urllib.request.urlopen(self.health_url, timeout=2):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def start(self):
        if self.running() and self.healthy():
            print(f"{self.name} runs already at {self.url}")
            return
        self.stop()
        self.require_free_port()
        LOCAL.mkdir(parents=True, exist_ok=True)
        TMP.mkdir(exist_ok=True)
        with open(self.log_file, "ab") as log:
            process = subprocess.Popen(
                self.command(), cwd=LOCAL, env=self.environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )
        self.pid_file.write_text(str(process.pid))
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.healthy():
            if process.poll() is not None:
                sys.exit(f"{self.name} ended with status {process.returncode}; see {self.log_file}")
            if time.monotonic() > deadline:
                self.stop()
                sys.exit(f"{self.name} did not respond at {self.health_url} within {WAIT_SECONDS} s; see {self.log_file}")
            time.sleep(0.1)
        print(f"{self.name} runs at {self.url}; log: {self.log_file}")

    def stop(self):
        for sign, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            deadline = time.monotonic() + seconds
            for pid in self.group():
                kill(pid, sign)
            while self.group() and time.monotonic() < deadline:
                time.sleep(0.05)
        if left := self.group():
            sys.exit(f"{self.name} could not be stopped: processes {left} still run")
        self.pid_file.unlink(missing_ok=True)

    def require_free_port(self):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    sys.exit(
                        f"This machine does not have the address {self.host}: start Docker, or give the gateway of its "
                        "network `bridge` by FIELDSTATION_DOCKER_GATEWAY=<address>."
                    )
                sys.exit(
                    f"Port {self.port}, needed by {self.name}, can't be used ({error.strerror}): {holder(self.port)}.\n"
                    f"Stop that process, or choose another port with {self.port_variable}=<port>."
                )


MINISTACK = Server("ministack", "FIELDSTATION_AWS_PORT", 4566, "/_ministack/health")
STRIPE = Server("localstripe", "FIELDSTATION_STRIPE_PORT", 8420, "/")
BRIDGE = Server("bridge", MINISTACK.port_variable, MINISTACK.port, "/_ministack/health", DOCKER_GATEWAY)


def processes():
    """Yields (pid, process group, command line) of every visible process that has not ended."""
    if not Path("/proc/self/stat").exists():
        ps = ["ps", "-A", "-o", "pid=,pgid=,stat=,command="]
        listing = subprocess.run(ps, capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            pid, group, state, command = line.split(None, 3)
            if not state.startswith("Z"):
                yield int(pid), int(group), command
        return
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # the process has ended
        if state != "Z":
            yield int(entry.name), int(group), command


def kill(pid, sign):
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        pass


def holder(port):
    """Describes the processes that listen on a port."""
    try:
        listing = subprocess.run(
            ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], capture_output=True, text=True
        ).stdout.splitlines()
        pids = [line[1:] for line in listing if line.startswith("p")]
    except FileNotFoundError:
        pids = [str(pid) for pid in holders_by_proc(port)]
    commands = {str(pid): command for pid, _, command in processes()}
    known = [f"process {pid} ({commands.get(pid, '?').strip()[:120]}) listens on it" for pid in pids]
    return " and ".join(known) or "another process, which this user may not see, listens on it"


def holders_by_proc(port):
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            yield int(descriptor.parts[2])


def up():
    if not PYTHON.exists():
        sys.exit(f"{PYTHON} is missing: run `make setup` first.")
    if not MINISTACK.running():
        down(quiet=True)  # removes what a crash left behind
        for server in (MINISTACK, STRIPE):
            server.log_file.unlink(missing_ok=True)
        AUTHORISATIONS.unlink(missing_ok=True)
    MINISTACK.start()
    STRIPE.start()


def down(quiet=False):
    for server in (BRIDGE, MINISTACK, STRIPE):
        server.stop()
    shutil.rmtree(TMP, ignore_errors=True)
    STRIPE_STATE.unlink(missing_ok=True)
    if not quiet:
        print(f"The local stack is stopped and its data deleted; its logs stay in {LOCAL}")


def status():
    all_healthy = True
    for server in (MINISTACK, STRIPE):
        members = server.group()
        healthy = bool(members) and server.healthy()
        all_healthy &= healthy
        state = f"runs at {server.url} ({len(members)} processes)" if healthy else "does not run"
        print(f"{server.name} {state}; log: {server.log_file}")
    sys.exit(0 if all_healthy else 1)


def confirm_reset():
    """Asks before a running stack is stopped. Exits with status 1 if the answer is no or there is no terminal.
    With FORCE=1 it does not ask."""
    if os.environ.get("FORCE", "") not in ("", "0") or not (MINISTACK.group() or STRIPE.group()):
        return
    print(f"A local stack is running ({MINISTACK.url}). This stops it and deletes everything in it.")
    if not sys.stdin.isatty():
        sys.exit("To continue: run `make down` first, or run the same command with FORCE=1, such as `make demo FORCE=1`.")
    if input("Stop it? [y/N] ").strip().lower() not in ("y", "yes"):
        sys.exit("Nothing was changed.")


def client(service):
    import boto3

    return boto3.client(
        service, endpoint_url=MINISTACK.url, region_name=REGION,
        aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
    )


def resource_name(stack, name):
    """Returns the fixed name of a resource in the environment, as in the templates."""
    return f"{stack}-{name}"


def functions(stack):
    """Yields (logical id, name) of the environment's functions."""
    for page in client("lambda").get_paginator("list_functions").paginate():
        for function in page["Functions"]:
            name = function["FunctionName"]
            if name.startswith(resource_name(stack, "")):
                binary = name.removeprefix(resource_name(stack, ""))
                yield "".join(part.capitalize() for part in binary.split("-")) + "Function", name


def write_docker_env(stack):
    """Writes each function's environment variables, by its logical id. The endpoint is not among them, because
    SAM passes on only variables that the template has: the image of `lambda-image.sh` sets it. In a
    container `localhost` also resolves to the gateway (`--add-host`), because the payment provider may be
    called only by https or at localhost."""
    settings = {}
    for logical, name in functions(stack):
        variables = client("lambda").get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        settings[logical] = {
            variable: value.replace(STRIPE.url, f"http://localhost:{STRIPE.port}")
            for variable, value in variables.items()
        }
    path = LOCAL / "env.json"
    path.write_text(json.dumps(settings, indent=2) + "\n")
    print(f"the settings of {len(settings)} functions are in {path}")
    BRIDGE.start()


def kebab(name):
    """Converts StoreReadings to store-readings."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def sample(stack, binary):
    """Returns a function's sample event for this environment. The samples are of another account and region,
    and of the environment fieldstation-prod."""
    event = ROOT / "tests" / "events" / f"{binary}.json"
    if not event.exists():
        sys.exit(f"There is no {event}: name a function as functions/*/src/bin does, such as create-site.")
    text = event.read_text().replace("123456789012", "000000000000").replace("eu-central-1", REGION)
    return text.replace("fieldstation-prod-", resource_name(stack, ""))


def invoke(stack, binary):
    """Prints the function's response, and exits with status 1 if it is an error."""
    event = sample(stack, binary)
    response = client("lambda").invoke(FunctionName=f"{resource_name(stack, binary)}:{ALIAS}", Payload=event.encode())
    print(json.dumps(json.loads(response["Payload"].read() or b"null"), indent=2))
    sys.exit(1 if "FunctionError" in response else 0)


def escaped(text):
    """Escapes the characters that control a terminal or are invisible, because log lines contain data from
    outside."""
    return "".join(
        f"\\u{ord(c):04x}" if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text
    )


def logs(name, minutes):
    cloudwatch_logs = client("logs")
    since = int((time.time() - minutes * 60) * 1000)
    events = []
    for page in cloudwatch_logs.get_paginator("describe_log_groups").paginate():
        for group in page["logGroups"]:
            if name not in group["logGroupName"]:
                continue
            for matches in cloudwatch_logs.get_paginator("filter_log_events").paginate(
                logGroupName=group["logGroupName"], startTime=since
            ):
                events += [(event["timestamp"], group["logGroupName"], event["message"]) for event in matches["events"]]
    for when, group, message in sorted(events, key=lambda event: event[0]):
        at = time.strftime("%H:%M:%S", time.localtime(when / 1000))
        print(escaped(f"{at}.{when % 1000:03} {group.rpartition('/')[2]}: {message.rstrip()}"))
    if not events:
        print(f"No log lines of the last {minutes} minutes in a log group whose name has {name!r}.", file=sys.stderr)


def api_url(stack):
    """Returns the API's URL. The output ApiUrl names a host of AWS; the emulator serves the API at a host below
    localhost. With one stack per service, the gateway's stack has the outputs."""
    if not MINISTACK.running():
        sys.exit("The local stack is not running: make up deploy-local")
    import botocore.exceptions

    for name in (stack, resource_name(stack, "gateway")):
        try:
            described = client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
        except botocore.exceptions.ClientError:
            continue
        outputs = {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}
        stage = outputs["ApiUrl"].rstrip("/").rpartition("/")[2]
        return f"http://{outputs['ApiId']}.execute-api.localhost:{MINISTACK.port}/{stage}"
    sys.exit(f"The local stack has no stack {stack}, and no {resource_name(stack, 'gateway')}: make deploy-local")


def administrator_key(stack, url):
    """Creates a key of an administrator for the documented examples. `url` is the API's URL."""
    address = urllib.parse.urlsplit(url)
    try:
        return supplies.create_key(client, stack, f"{MINISTACK.url}{address.path}", "make env", days=7, host=address.netloc)
    except supplies.Failed as error:
        sys.exit(str(error))


def shell_variables(stack, url, key):
    """Returns shell commands that set the variables of the documented examples, with the local stack's values."""
    # A proxy can't reach this machine's loopback address. The API's host is below localhost.
    direct = ",".join(dict.fromkeys([HOST, "localhost", *filter(None, os.environ.get("NO_PROXY", "").split(","))]))
    variables = {
        "FIELDSTATION_STACK": stack,
        "API_URL": url,
        "FIELDSTATION_API_KEY": key,
        "EVENT_BUS": resource_name(stack, "events"),
        "EVENTS_STREAM": resource_name(stack, "events"),
        "READINGS_STREAM": resource_name(stack, "readings"),
        "AWS_ENDPOINT_URL": MINISTACK.url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,  # version 1 of the AWS CLI does not read AWS_REGION
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": "",  # replaces one that the shell may have for AWS
        "NO_PROXY": direct,
        "no_proxy": direct,
    }
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(["unset AWS_PROFILE", *exports])


def kits(stack, metric, quantity, delivery):
    """Puts a KitsDelivered event on the stack's bus, as docs/integrating.md describes it, and waits until the
    kits are in stock."""
    schema = json.loads((ROOT / "shared" / "contracts" / "schemas" / "KitsDelivered.json").read_text())
    known = [kind["const"] for kind in schema["$defs"]["Metric"]["oneOf"]]
    if metric and metric not in known:
        sys.exit(f"There is no metric {metric!r}. The metrics are: {', '.join(known)}.")
    if not MINISTACK.running():
        sys.exit("The local stack is not running: make up deploy-local")
    content = {each: quantity for each in ([metric] if metric else known)}
    try:
        supplies.deliver_kits(client, stack, "local.supplier", delivery, content, WAIT_SECONDS)
    except supplies.Failed as error:
        sys.exit(str(error))
    print(f"{stack}: delivery {delivery} is in stock: {quantity} of {metric or 'each metric'}")


def seed(stack):
    """Creates the plans at the payment provider, and stores its key in the deployed stack's secret. Repeating
    it has no effect."""
    try:
        supplies.create_plans(STRIPE.url, STRIPE_KEY)
    except supplies.Failed as error:
        sys.exit(str(error))
    client("secretsmanager").put_secret_value(SecretId=resource_name(stack, "stripe"), SecretString=STRIPE_KEY)
    print(f"{stack}: the provider has the plans, the stack has its key")


def serve_ministack():
    """Starts MiniStack 1.5.33 with additions. A function that fails on an event of a rule is retried, and then the
    event goes to the failure destination. The settings of the alias are used for this. `stream_mappings` delivers
    streams, `rest_api` corrects REST APIs, `runtime_api` invokes functions without waits, and `authorisation` adds IAM."""
    import authorisation
    import rest_api
    import runtime_api
    import stream_mappings
    from ministack import app
    from ministack.services import eventbridge, lambda_svc

    retry = lambda_svc.invoke_async_with_retry

    def invoke(function, event):
        known = lambda_svc._functions.get(function["config"]["FunctionName"]) or {}
        settings = (known.get("event_invoke_configs") or {}).get(ALIAS)
        retry({**function, "event_invoke_config": settings} if settings else function, event)

    def invoke_by_rule(arn, payload):
        function, config, name = lambda_svc._get_func_record_for_ref(arn)
        if function is None:
            eventbridge.logger.warning("EventBridge: function %s not found", name)
        else:
            invoke(lambda_svc._execution_record_for_config(function, config), json.loads(payload))

    lambda_svc.invoke_async_with_retry = invoke
    eventbridge._dispatch_to_lambda = invoke_by_rule
    measure_invocations(lambda_svc)
    transform_nested_templates()
    keep_attributes_of_nested_resources()
    exclude_punctuation_from_secrets()
    watch_filled_metrics()
    end_tasks_of_stopped_executions()
    if FUNCTIONS_ENDPOINT:
        proxied(lambda_svc)
    runtime_api.install()
    stream_mappings.install()
    rest_api.install()
    authorisation.install(AUTHORISATIONS)
    # A full garbage collection walks all stored rows and stops every request meanwhile, up to seconds under load.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    sys.argv = ["ministack"]
    app.main()


def exclude_punctuation_from_secrets():
    """Makes MiniStack follow ExcludePunctuation when it generates a secret. It ignores this property, but a secret with
    punctuation is not a valid credential of the first administrator."""
    from ministack.services.cloudformation import provisioners

    generate = provisioners._sm_secret_string

    def secret_string(properties):
        options = properties.get("GenerateSecretString") or {}
        if str(options.get("ExcludePunctuation", "")).lower() == "true":
            excluded = options.get("ExcludeCharacters", "") + string.punctuation
            properties = {**properties, "GenerateSecretString": {**options, "ExcludeCharacters": excluded}}
        return generate(properties)

    provisioners._sm_secret_string = secret_string


def transform_nested_templates():
    """Applies the SAM transform to nested templates. MiniStack deploys nested stacks, but transforms only the
    root template. It checks a nested template before it deploys it, so the transform is applied in that
    check, in place."""
    from ministack.services.cloudformation import engine, provisioners

    check = provisioners._check_nested_stack_capabilities

    def transform_and_check(parent, template):
        transformed = engine._apply_transforms(template, [])
        template.clear()
        template.update(transformed)
        check(parent, template)

    provisioners._check_nested_stack_capabilities = transform_and_check


def keep_attributes_of_nested_resources():
    """Makes updates of nested stacks possible: MiniStack loses the attributes (`!GetAtt`) of unchanged
    resources."""
    from ministack.services.cloudformation import provisioners

    attributes = {}
    provision, update = provisioners._provision_resource, provisioners._update_resource

    def provision_and_keep(kind, logical_id, properties, stack):
        physical_id, attributes[stack, logical_id] = provision(kind, logical_id, properties, stack)
        return physical_id, attributes[stack, logical_id]

    def update_and_keep(kind, physical_id, before, after, stack, logical_id=None, old_attrs=None):
        known = old_attrs or attributes.get((stack, logical_id))
        physical_id, attributes[stack, logical_id] = update(kind, physical_id, before, after, stack, logical_id, known)
        return physical_id, attributes[stack, logical_id]

    provisioners._provision_resource, provisioners._update_resource = provision_and_keep, update_and_keep


def watch_filled_metrics():
    """Replaces alarms on FILL(metric, 0) with alarms on that metric, because the emulator has no metric math.

    The emulator does not know missing data, so FILL would have no effect: it evaluates an alarm only when a value arrives.
    """
    from ministack.services.cloudformation import provisioners

    record = provisioners._cw_metric_alarm_record

    def record_filled(name, props):
        match props.get("Metrics"):
            case [{"Expression": str(expression)}, {"Id": id, "MetricStat": stat}] if expression == f"FILL({id}, 0)":
                metric = {"Statistic": stat["Stat"], "Period": stat["Period"], **stat["Metric"]}
                others = {name: value for name, value in props.items() if name != "Metrics"}
                props = {**others, **metric, "TreatMissingData": "notBreaching"}
        return record(name, props)

    provisioners._cw_metric_alarm_record = record_filled


def measure_invocations(lambda_svc):
    """Adds metrics. MiniStack counts only invocations through Lambda's API. AWS also counts those of streams,
    queues and rules, and the metrics that functions write to their logs. Of the latter, only
    BatchItemFailures is added."""
    from ministack.services import cloudwatch

    dispatch, emit = lambda_svc._execute_function_dispatch, lambda_svc._emit_lambda_metrics

    def measured(function, config, event, request_id, started):
        result = dispatch(function, config, event, request_id, started)
        emit(config["FunctionName"], (time.time() - started) * 1000, bool(result.get("error")), False)
        for line in result.get("log", "").splitlines():
            if '"_aws"' in line and '"BatchItemFailures"' in line:
                document = json.loads(line)
                dimensions = {name: document[name] for name in ("function", "version")}
                cloudwatch.record_metric("Fieldstation", "BatchItemFailures", document["BatchItemFailures"], "Count", dimensions)
        return result

    def throttled(name, duration_ms, error, throttle):
        if throttle:
            emit(name, duration_ms, error, throttle)

    lambda_svc._execute_function_dispatch = measured
    lambda_svc._emit_lambda_metrics = throttled


def end_tasks_of_stopped_executions():
    """Ends the task of a stopped execution. MiniStack continues to wait for the task; on AWS it ends with the
    execution, and a heartbeat for it gets the error TaskTimedOut."""
    from ministack.core.responses import error_response_json
    from ministack.services import stepfunctions

    execute, wait, heartbeat = (
        stepfunctions._execute_task, stepfunctions._invoke_with_callback, stepfunctions._send_task_heartbeat,
    )
    current = contextvars.ContextVar("execution")
    executions = {}  # task token -> its execution

    def execute_in_context(state, raw_input, execution, context):
        before = current.set(execution)
        try:
            return execute(state, raw_input, execution, context)
        finally:
            current.reset(before)

    def wait_and_record(resource, argument, token, state):
        executions[token] = current.get()
        return wait(resource, argument, token, state)

    def send_heartbeat(data):
        execution = executions.get(data.get("taskToken"))
        if execution and execution["status"] != "RUNNING":
            return error_response_json("TaskTimedOut", "The task's execution has ended", 400)
        return heartbeat(data)

    stepfunctions._execute_task = execute_in_context
    stepfunctions._invoke_with_callback = wait_and_record
    stepfunctions._send_task_heartbeat = send_heartbeat


def proxied(lambda_svc):
    """Sends the functions' Runtime API calls through the proxy, which learns from them what each process works
    on. The real address is in the functions' environment, so that the proxy can forward to it."""
    environment = lambda_svc._provided_worker_env

    def worker_environment(config, code_dir, port):
        variables = environment(config, code_dir, port)
        address = variables["AWS_LAMBDA_RUNTIME_API"]
        proxy = urllib.parse.urlsplit(FUNCTIONS_ENDPOINT).netloc
        return variables | {"AWS_LAMBDA_RUNTIME_API": proxy, "FIELDSTATION_RUNTIME_API": address}

    lambda_svc._provided_worker_env = worker_environment


def serve_localstripe():
    """Starts localstripe. Its own start script listens on every interface and keeps the state in /tmp."""
    from aiohttp import web
    from localstripe import resources, server

    resources.Store.dump_to_disk = lambda store: None  # once at the end instead of at every change
    if STRIPE_STATE.exists():
        server.store.update(pickle.loads(STRIPE_STATE.read_bytes()))
    web.run_app(server.app, host=HOST, port=STRIPE.port)  # returns on SIGTERM
    STRIPE_STATE.write_bytes(pickle.dumps(dict(server.store)))


def serve_bridge():
    """Forwards connections from Docker's gateway to loopback, which containers can't reach."""

    async def copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def listen(port):
        async def connected(reader, writer):
            try:
                far_reader, far_writer = await asyncio.open_connection(HOST, port)
                await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
            except OSError:
                writer.close()

        await (await asyncio.start_server(connected, DOCKER_GATEWAY, port)).serve_forever()

    async def listen_on_all():
        await asyncio.gather(listen(MINISTACK.port), listen(STRIPE.port))

    asyncio.run(listen_on_all())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        "up", "down", "status", "confirm-reset", "api-url", "env", "docker-env", "seed", "stripe-stop", "stripe-start",
    ):
        commands.add_parser(command)
    logs_parser = commands.add_parser("logs")
    logs_parser.add_argument("name", nargs="?", default="")
    logs_parser.add_argument("--minutes", type=int, default=60)
    invoke_parser = commands.add_parser("invoke")
    invoke_parser.add_argument("function")
    kits_parser = commands.add_parser("kits")
    kits_parser.add_argument("metric", nargs="?")
    kits_parser.add_argument("--quantity", type=int, default=10)
    kits_parser.add_argument("--delivery", default=str(uuid.uuid4()), help="the same delivery counts once")
    commands.add_parser("serve").add_argument("name", choices=("ministack", "localstripe", "bridge"))
    arguments = parser.parse_args()
    match arguments.command:
        case "up":
            up()
        case "down":
            down()
        case "status":
            status()
        case "confirm-reset":
            confirm_reset()
        case "api-url":
            print(api_url(STACK))
        case "env":
            url = api_url(STACK)
            print(shell_variables(STACK, url, administrator_key(STACK, url)))
        case "kits":
            kits(STACK, arguments.metric, arguments.quantity, arguments.delivery)
        case "logs":
            logs(arguments.name, arguments.minutes)
        case "seed":
            seed(STACK)
        case "docker-env":
            write_docker_env(STACK)
        case "invoke":
            invoke(STACK, arguments.function)
        case "stripe-stop":
            STRIPE.stop()
            print("localstripe is stopped; its state is kept")
        case "stripe-start":
            STRIPE.start()
        case "serve" if arguments.name == "ministack":
            serve_ministack()
        case "serve" if arguments.name == "localstripe":
            serve_localstripe()
        case "serve":
            serve_bridge()


if __name__ == "__main__":
    main()
