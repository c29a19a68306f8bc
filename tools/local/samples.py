#!/usr/bin/env python3
"""Invokes every function with its sample event in Docker, by `sam local invoke`, against the deployed local stack. Each
function uses the credentials of its own role. Prints a table; exit status 1 if a function failed.

    .venv/bin/python tools/local/samples.py            all functions (run `make lambda-image docker-env` before)
    .venv/bin/python tools/local/samples.py NAME...    some functions

The functions are those of the deployed template. Their samples depend on each other, so they run in this order: the
delivery of kits, the registration of the site, the steps of its onboarding, the functions for a live site, the undos.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time

import stack

# The task tokens in these samples are invalid, so these functions must refuse the messages or drop them as too late.
REFUSE = ("initialize-subscription", "cancel-subscription")
SAM = stack.ROOT / ".venv" / "bin" / "sam"
ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())


def binaries():
    """Returns (binary, logical id, name) of every function of the stack, in the order of the samples."""
    forward, back = steps("site-onboarding"), steps("site-teardown")
    # The functions that start a teardown run before the undo steps.
    order = ["receive-kits", "import-site", *forward, None, "decommission-site", "recover-onboarding", *back]

    def place(binary):
        return order.index(binary if binary in order else None)

    found = [
        (stack.kebab(logical.removesuffix("Function")), logical, name)
        for logical, name in stack.functions(stack.STACK)
    ]
    return sorted(found, key=lambda function: (place(function[0]), function[0]))


def steps(machine):
    """Returns the binaries behind a state machine's tasks, in order."""
    definition = (stack.ROOT / "statemachines" / f"{machine}.asl.json").read_text()
    names = re.findall(r"\$\{(\w+?)(?:FunctionArn|QueueUrl)}", definition)
    return [stack.kebab(name) for name in names]


def site_is_undone(functions):
    """Returns whether the samples' site was already undone. Its steps are then expected to fail as superseded."""
    name = next(name for binary, _, name in functions if binary == "get-site")
    response = stack.client("lambda").invoke(
        FunctionName=f"{name}:{stack.ALIAS}", Payload=stack.sample(stack.STACK, "get-site").encode()
    )
    body = json.loads(json.loads(response["Payload"].read()).get("body") or "{}")
    return body.get("status") in ("REJECTED", "DECOMMISSIONED")


def credentials(name):
    """Returns the credentials of the function's role."""
    role = stack.client("lambda").get_function_configuration(FunctionName=name)["Role"]
    session = stack.client("sts").assume_role(RoleArn=role, RoleSessionName=name[:64])["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }


def problem(binary, ended, undone):
    """Returns what is wrong with the function's response, or None."""
    last = ended.stdout.strip().splitlines()[-1:] or ["no response"]
    if ended.returncode != 0:
        return f"sam ended with status {ended.returncode}: {(ended.stderr.strip().splitlines() or last)[-1]}"
    try:
        response = json.loads(last[0])
    except ValueError:
        return f"not JSON: {last[0]}"
    if not isinstance(response, dict):
        return None
    if "errorType" in response and not (undone and response["errorType"] == "Superseded"):
        return f"{response['errorType']}: {response.get('errorMessage')}"
    if response.get("batchItemFailures") and binary not in REFUSE:
        return f"items failed: {response['batchItemFailures']}"
    if response.get("statusCode", 200) >= 400 and not undone:
        return f"{response['statusCode']}: {response.get('body')}"
    return None


def run(binary, logical, name):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as event:
        event.write(stack.sample(stack.STACK, binary))
        event.flush()
        return subprocess.run(
            [
                str(SAM), "local", "invoke", logical, "--event", event.name, "--config-env", "local",
                "--env-vars", str(stack.LOCAL / "env.json"), "--parameter-overrides", f"Architecture={ARCHITECTURE}",
                "--add-host", f"localhost:{stack.DOCKER_GATEWAY}",
            ],
            capture_output=True, text=True, cwd=stack.ROOT, stdin=subprocess.DEVNULL,
            env=os.environ | credentials(name) | {"AWS_REGION": stack.REGION, "SAM_CLI_TELEMETRY": "0"},
        )


def main():
    selected = sys.argv[1:]
    functions = binaries()
    samples = {path.stem for path in (stack.ROOT / "tests" / "events").glob("*.json")}
    if unmatched := samples.symmetric_difference(binary for binary, _, _ in functions):
        sys.exit(f"Functions and sample events differ: {', '.join(sorted(unmatched))}")
    if unknown := set(selected) - samples:
        sys.exit(f"There is no function {', '.join(sorted(unknown))}.")

    failed, undone = 0, site_is_undone(functions)
    invoked = [function for function in functions if not selected or function[0] in selected]
    for binary, logical, name in invoked:
        started = time.monotonic()
        ended = run(binary, logical, name)
        error = problem(binary, ended, undone)
        failed += error is not None
        print(f"{binary:24} {'FAILED' if error else 'ok':6} {(time.monotonic() - started) * 1000:6.0f} ms", flush=True)
        if error:
            print(f"    {error}\n    " + "\n    ".join(ended.stderr.strip().splitlines()[-12:]), flush=True)
    print(f"{len(invoked) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
