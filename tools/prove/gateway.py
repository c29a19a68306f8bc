"""Steps about the API."""

import json
import time

from environment import CLOCKS, NO_SITE
from steps import ensure, step

CALL = {"apiRequest": 10, "request": 10, "gigabyteSecond": 5, "readUnit": 10, "trace": 10}
PROBLEM = "application/problem+json"


@step("api", "The API answers: API Gateway calls the alias, an unknown site is 404, an unsigned call is refused; its own answers are problem documents, too",
      seconds=60, units=CALL)
def api(environment):
    path = f"/sites/{NO_SITE}"
    status, answer, seconds = environment.api("GET", path)
    ensure(status == 404, f"an unknown site is answered with {status}: {answer}")
    ensure(isinstance(answer, dict) and answer.get("status") == 404, f"the answer is no problem document: {answer}")
    if environment.emulator:
        return f"an unknown site is 404 after {seconds:.2f} s (the emulator's API asks nobody for a signature)"
    refused = environment.response("GET", path, signed=False)
    ensure(refused.status in (401, 403), f"an unsigned call is answered with {refused.status}: {refused.data}")
    kind = refused.headers.get("Content-Type", "")
    ensure(kind.startswith(PROBLEM), f"API Gateway's own answer is {kind}: {refused.data}")
    return f"an unknown site is 404 after {seconds:.2f} s, an unsigned call is {refused.status} as {kind}"


def access(environment, since, wanted):
    """The first line of the access log since then that is wanted."""
    pages = environment.client("logs").get_paginator("filter_log_events").paginate(
        logGroupName=f"/aws/apigateway/{environment.name}/access", startTime=int((since - CLOCKS) * 1000))
    lines = (json.loads(event["message"]) for page in pages for event in page["events"])
    return next(filter(wanted, lines), None)


@step("access-logs", "API Gateway writes the access log: the account's role for it is set", seconds=180, units=CALL,
      not_on_emulator="the emulator writes no access log")
def access_logs(environment):
    begun = time.time()
    environment.api("GET", f"/sites/{NO_SITE}")
    line = environment.until(
        "the call is in the access log", 150, lambda: access(environment, begun, lambda line: line["path"].endswith(NO_SITE)), pause=5)
    ensure(line["status"] == "404", f"the access log has another status: {line}")
    return f"the call of {line['time']} by {line['caller']} is in the access log"


@step("api-errors", "A function that is throttled is answered as DEFAULT_5XX, by a problem document", writes=True, seconds=300, units=CALL,
      not_on_emulator="the emulator answers by itself")
def api_errors(environment):
    client, name, path = environment.client("lambda"), environment.resource_name("get-site"), f"/sites/{NO_SITE}"
    before = client.get_function_concurrency(FunctionName=name).get("ReservedConcurrentExecutions")

    def restore():
        if before is None:
            client.delete_function_concurrency(FunctionName=name)
        else:
            client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=before)

    environment.undos.append(("the reserved concurrency 0 of get-site", restore))
    begun = time.time()
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)

    def failed():
        response = environment.response("GET", path)
        return response if response.status >= 500 else None

    response = environment.until("a throttled function is answered with 5xx", 60, failed, pause=5)
    environment.undo_now("the reserved concurrency 0 of get-site")
    kind = response.headers.get("Content-Type", "")
    ensure(kind.startswith(PROBLEM), f"the answer is {response.status} as {kind}: {response.data}")
    line = environment.until(
        "the call is in the access log", 150, lambda: access(environment, begun, lambda line: line["status"] == str(response.status)), pause=5)
    ensure(line["responseType"] == "DEFAULT_5XX", f"a throttled function is answered with {response.status} as {line['responseType']}")
    return f"a throttled function is answered with {response.status}, as {line['responseType']}"
