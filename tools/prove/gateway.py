"""Steps about the API."""

import json
import time

from environment import MAX_CLOCK_SKEW, NO_SITE
from steps import ensure, step

CALL = {"apiRequest": 10, "request": 10, "gigabyteSecond": 5, "readUnit": 10, "trace": 10}
PROBLEM = "application/problem+json"


@step("api", "API Gateway calls the alias, an unknown site is 404; a call without a key, with a bad key or with two headers is 401, an unknown path 404 and a wrong method 405; all are problem documents",
      seconds=60, units=CALL)
def api(environment):
    path = f"/sites/{NO_SITE}"
    status, response, seconds = environment.api("GET", path)
    ensure(status == 404, f"an unknown site returns {status}: {response}")
    ensure(isinstance(response, dict) and response.get("status") == 404, f"the response is not a problem document: {response}")
    bad = f"Bearer fsr_{'0' * 36}"
    for what, method, path, authorization, expected in [
        ("a call without a key", "GET", path, "", 401),
        ("a call with an unknown key", "GET", path, bad, 401),
        ("a call with another scheme", "GET", path, "Basic YTpi", 401),
        # API Gateway has cached the decisions about both values, from the calls above.
        ("a call with two headers, a good and a bad one", "GET", path, [None, bad], 401),
        ("a call with two headers, a bad and a good one", "GET", path, [bad, None], 401),
        ("an unknown path with a key", "GET", "/nothing", None, 404),
        ("an unknown path without a key", "GET", "/nothing", "", 404),
        ("a method that the path does not have", "HEAD", path, None, 405),
        ("a method that the path does not have, with another content type", "HEAD", path, None, 404),
    ]:
        kind = "text/plain" if "content type" in what else "application/json"
        refused = environment.response(method, path, authorization=authorization, content_type=kind)
        ensure(refused.status == expected, f"{what} returns {refused.status}: {refused.data}")
        kind = refused.headers.get("Content-Type", "")
        ensure(kind.startswith(PROBLEM), f"{what} returns {refused.status} as {kind}: {refused.data}")
        if expected == 401:
            ensure(refused.headers.get("WWW-Authenticate") == "Bearer", f"{what} has no WWW-Authenticate: {refused.headers}")
    return f"an unknown site is 404 after {seconds:.2f} s; every refused call is a problem document"


def access_log_line(environment, since, response):
    """Waits until the access log has the line of a call, and returns it. `since` is when the call was sent (epoch seconds)."""
    # The line has no path, because a path may contain a key.
    request = response.headers["x-amzn-RequestId"]

    def line():
        pages = environment.client("logs").get_paginator("filter_log_events").paginate(
            logGroupName=f"/aws/apigateway/{environment.name}/access", startTime=int((since - MAX_CLOCK_SKEW) * 1000))
        lines = (json.loads(event["message"]) for page in pages for event in page["events"])
        return next((line for line in lines if line["requestId"] == request), None)

    return environment.until("the call is in the access log", 150, line, pause=5)


@step("access-logs", "API Gateway writes the access log, because the account's role for it is set", seconds=180, units=CALL,
      not_on_emulator="the emulator writes no access log")
def access_logs(environment):
    started = time.time()
    line = access_log_line(environment, started, environment.response("GET", f"/sites/{NO_SITE}"))
    ensure(line["status"] == "404", f"the access log has another status: {line}")
    ensure(line["resource"] == "/sites/{siteId}", f"the access log has another resource: {line}")
    return f"the call of {line['time']} of operator {line['operatorId']} is in the access log"


@step("api-errors", "A call of a throttled function gets the response DEFAULT_5XX, a problem document", writes=True, seconds=300, units=CALL,
      not_on_emulator="the emulator's own responses differ")
def api_errors(environment):
    client, name, path = environment.client("lambda"), environment.resource_name("get-site"), f"/sites/{NO_SITE}"
    before = client.get_function_concurrency(FunctionName=name).get("ReservedConcurrentExecutions")

    def restore():
        if before is None:
            client.delete_function_concurrency(FunctionName=name)
        else:
            client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=before)

    environment.cleanups.append(("the reserved concurrency 0 of get-site", restore))
    started = time.time()
    client.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)

    def failed():
        response = environment.response("GET", path)
        return response if response.status >= 500 else None

    response = environment.until("a throttled function returns 5xx", 60, failed, pause=5)
    environment.run_cleanup("the reserved concurrency 0 of get-site")
    kind = response.headers.get("Content-Type", "")
    ensure(kind.startswith(PROBLEM), f"the response is {response.status} as {kind}: {response.data}")
    line = access_log_line(environment, started, response)
    ensure(line["responseType"] == "DEFAULT_5XX", f"a throttled function returns {response.status} as {line['responseType']}")
    return f"a throttled function returns {response.status}, as {line['responseType']}"
