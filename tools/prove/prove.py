#!/usr/bin/env python3
"""Proves on a real AWS account what the emulator can't show. tools/prove-on-aws.sh runs it.

Steps that only read run first, and may run on any environment. Steps that write onboard sites, break functions and update stacks.
They undo their changes, and run only in a test environment. Each step prints what it proves. The results are also written as JSON
lines. Exit code 0: every step that ran was proved, and at least one ran. 1: otherwise. 2: wrong usage, or refused.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import botocore.exceptions

# The order of these imports is the order of the steps.
import deployed  # noqa: F401
import gateway  # noqa: F401
import reports  # noqa: F401
import machines  # noqa: F401
import github  # noqa: F401
import sagas  # noqa: F401
import failing  # noqa: F401
import streams  # noqa: F401
import outage  # noqa: F401
import deploying  # noqa: F401
import waiting  # noqa: F401
import rows
from environment import ROOT, Environment, timestamp
from steps import NOT_PROVED, PROVED, SKIPPED, STEPS, NotProved, Skipped, printable

# The default of --budget: the maximum cost of a run.
BUDGET_USD = 2.0


class Refused(Exception):
    """The run was refused before it did anything. The message says what to do."""


def steps_in_order():
    """Returns all steps, those that only read first."""
    return sorted(STEPS.values(), key=lambda step: not step.reads_only)


def selected_steps(only, with_long):
    """Returns the steps of a run. Steps named by --only run in the given order, also the long ones."""
    unknown = sorted(set(only) - set(STEPS))
    if unknown:
        raise Refused(f"There is no step {', '.join(unknown)}. The steps are: {', '.join(STEPS)}.")
    if only:
        return [STEPS[name] for name in dict.fromkeys(only)]
    return [step for step in steps_in_order() if with_long or not step.is_long]


def duration(seconds):
    return f"{seconds} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.0f} h"


def listing():
    """Returns the table of --list."""
    lines = [f"{'step':<19}{'changes':<9}{'at most':>9}{'USD':>9}  proves"]
    for step in steps_in_order():
        changes = "nothing" if step.reads_only else "writes"
        lines.append(f"{step.name:<19}{changes:<9}{duration(step.seconds):>9}{step.usd():>9.4f}  {'(long) ' if step.is_long else ''}{step.proves}.")
    for what, steps in (("without --long", [step for step in STEPS.values() if not step.is_long]), ("with --long", STEPS.values())):
        lines.append(f"All {len(steps)} steps {what}: at most {sum(step.usd() for step in steps):.2f} USD and {duration(sum(step.seconds for step in steps))}.")
    lines.append("The sums are upper bounds, from tools/cost/prices.json with a margin of 2. The payment provider's test mode costs nothing.")
    return "\n".join(lines)


def is_production(name):
    """Returns whether a part of the name means production, as in fieldstation-prod and prod-eu."""
    return not {"prod", "production", "live"}.isdisjoint(name.split("-"))


def uses_emulator(arguments):
    """Returns whether AWS_ENDPOINT_URL is that of an emulator on this machine."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        if arguments.emulator:
            raise Refused("--emulator needs AWS_ENDPOINT_URL, such as http://127.0.0.1:4566; `make prove-local` sets it.")
        return False
    if urllib.parse.urlsplit(endpoint).hostname not in ("127.0.0.1", "localhost"):
        raise Refused(f"AWS_ENDPOINT_URL is {endpoint}, which is not an emulator on this machine. Unset it to use AWS.")
    return True


def check_target(environment, arguments):
    """Refuses an account that --account does not name, and an environment that does not exist."""
    if not environment.region:
        raise Refused("There is no region: set AWS_REGION.")
    try:
        account = environment.account
    except botocore.exceptions.BotoCoreError as error:
        raise Refused(f"There are no valid credentials: {error}") from None
    print(f"account {account}, region {environment.region}, as {environment.caller['Arn']}")
    if not environment.emulator and arguments.account != account:
        raise Refused(f"These credentials are of account {account}. Confirm it: --account {account}")
    if environment.mode is None:
        environment.mode = "root" if environment.stack(environment.name) else "services"
    if environment.stack(environment.top_stack) is None:
        raise Refused(f"There is no stack {environment.top_stack} in {environment.region}: give the name of a deployed environment.")


def require_consent(environment, arguments, steps):
    """Refuses a run that may cost more than the budget, and writes without consent."""
    cost = sum(step.usd() for step in steps)
    mode = "the root template" if environment.mode == "root" else "one stack per service"
    print(f"environment {environment.name} ({mode}): {len(steps)} steps, at most {cost:.2f} USD and {duration(sum(step.seconds for step in steps))}")
    if cost > arguments.budget:
        raise Refused(f"That is more than the budget of {arguments.budget:.2f} USD: select steps by --only, or give a larger --budget.")
    if all(step.reads_only for step in steps):
        return
    if is_production(environment.name) and not arguments.allow_production_name:
        raise Refused(f"{environment.name} looks like production. Steps that write are for a test environment: run the others by --read-only.")
    if arguments.yes or environment.emulator:
        return
    if not sys.stdin.isatty():
        raise Refused("Steps that write need consent: run this on a terminal, or with --yes.")
    question = f"This creates sites in {environment.name} and breaks functions for minutes. Type the environment's name to continue: "
    if input(question).strip() != environment.name:
        raise Refused("Nothing was changed.")


def run_step(environment, step):
    """Runs a step. Returns (outcome, what was seen)."""
    print(f"\n== {step.name}")
    print(f"PROVES: {step.proves}.")
    if environment.emulator and step.not_on_emulator:
        return SKIPPED, step.not_on_emulator
    environment.read_only = step.reads_only
    try:
        return PROVED, step.run(environment)
    except Skipped as reason:
        return SKIPPED, str(reason)
    except NotProved as seen:
        return NOT_PROVED, str(seen)
    except Exception as error:  # A step that fails has proved nothing. The other steps still run.
        return NOT_PROVED, f"{type(error).__name__}: {error}"
    finally:
        environment.read_only = False


def commit():
    described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def prove(environment, steps, results):
    """Runs the steps. Returns (step, outcome, seen, seconds) for each."""
    outcomes = []
    results.parent.mkdir(parents=True, exist_ok=True)
    revision = commit()
    with results.open("a") as lines:
        for step in steps:
            started = time.monotonic()
            outcome, seen = run_step(environment, step)
            seen = printable(seen)
            # Each step undoes its changes, except that `redeploy` continues with the change of `parameter`.
            if not (step.name == "parameter" and outcome == PROVED and any(each.name == "redeploy" for each in steps)):
                environment.clean_up()
            seconds = time.monotonic() - started
            print(f"{outcome}: {seen}")
            outcomes.append((step, outcome, seen, seconds))
            line = {
                "date": timestamp(), "environment": environment.name, "mode": environment.mode, "account": environment.account, "region": environment.region,
                "emulator": environment.emulator, "commit": revision, "step": step.name, "proves": step.proves, "outcome": outcome, "seen": seen,
                "seconds": round(seconds, 1),
            }
            lines.write(json.dumps(line) + "\n")
            lines.flush()
    return outcomes


def summary(outcomes):
    lines = ["", f"{'step':<19}{'outcome':<12}{'time':>8}  seen"]
    lines += [f"{step.name:<19}{outcome:<12}{seconds:>6.1f} s  {seen}" for step, outcome, seen, seconds in outcomes]
    counts = {outcome: sum(each[1] == outcome for each in outcomes) for outcome in (PROVED, NOT_PROVED, SKIPPED)}
    lines.append(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return "\n".join(lines)


def exit_code(outcomes):
    ran = [outcome for _, outcome, _, _ in outcomes if outcome != SKIPPED]
    return 0 if ran and all(outcome == PROVED for outcome in ran) else 1


def find_fieldctl():
    if found := shutil.which("fieldctl"):
        return found
    built = [path for pattern in ("target/*/fieldctl", "target/*/*/fieldctl") for path in ROOT.glob(pattern) if os.access(path, os.X_OK) and path.is_file()]
    built.sort(key=lambda path: path.stat().st_mtime)
    return str(built[-1]) if built else None


def date_rows(results):
    """Writes into docs/believed-not-seen.md the dates on which its rows were seen on AWS. Reads them from the results
    of earlier runs."""
    proved = {}
    for line in map(json.loads, results.read_text().splitlines()):
        if line["outcome"] == PROVED and not line["emulator"]:
            proved[line["step"]] = line["date"][:10]
    before = rows.PAGE.read_text()
    after = rows.dated(before, proved)
    rows.PAGE.write_text(after)
    print(f"{sum(old != new for old, new in zip(before.splitlines(), after.splitlines(), strict=True))} rows were dated")


def parse(arguments):
    parser = argparse.ArgumentParser(prog="tools/prove-on-aws.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", help="name of the environment, such as fieldstation-staging")
    parser.add_argument("--stack-mode", choices=("root", "services"), help="how it was deployed (default: root if the root stack exists)")
    parser.add_argument("--account", help="id of the account, as a confirmation; required on AWS")
    parser.add_argument("--list", action="store_true", help="prints the steps: what each proves, its maximum cost and time")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="runs these steps, in this order")
    parser.add_argument("--read-only", action="store_true", help="runs the steps that change nothing")
    parser.add_argument("--long", action="store_true", help="also runs the long steps")
    parser.add_argument("--budget", type=float, default=BUDGET_USD, metavar="USD", help=f"refuses a run that may cost more (default: {BUDGET_USD:.2f})")
    parser.add_argument("--yes", action="store_true", help="does not ask before the first write")
    parser.add_argument("--allow-production-name", action="store_true", help="allows writes although the environment's name looks like production")
    parser.add_argument("--emulator", action="store_true", help="on the local stack, at AWS_ENDPOINT_URL (detected)")
    parser.add_argument("--fieldctl", help="path of fieldctl (default: on the PATH, or built in target)")
    parser.add_argument("--results", type=Path, help="file to which results are appended (default: target/prove/<environment>.jsonl)")
    parser.add_argument("--date-rows", type=Path, metavar="RESULTS", help="dates the rows of docs/believed-not-seen.md from results, and ends")
    return parser.parse_args(arguments)


def interrupted(signum, _):
    raise KeyboardInterrupt(signal.Signals(signum).name)


def main(arguments=None):
    arguments = parse(arguments)
    sys.stdout.reconfigure(line_buffering=True)
    if arguments.list:
        print(listing())
        return 0
    if arguments.date_rows:
        date_rows(arguments.date_rows)
        return 0
    try:
        name = arguments.environment or os.environ.get("FIELDSTATION_STACK")
        if not name:
            raise Refused("Name the environment: --environment fieldstation-staging")
        steps = [step for step in selected_steps(arguments.only, arguments.long) if step.reads_only or not arguments.read_only]
        emulator = uses_emulator(arguments)
        environment = Environment(name, arguments.stack_mode, emulator, arguments.fieldctl or find_fieldctl())
        check_target(environment, arguments)
        require_consent(environment, arguments, steps)
        if not arguments.read_only:
            environment.prepare_api_key()
    except (Refused, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, interrupted)
    results = arguments.results or ROOT / "target" / "prove" / f"{name}.jsonl"
    outcomes = []
    try:
        outcomes = prove(environment, steps, results)
    except KeyboardInterrupt:
        print("\nInterrupted. The changes are undone now; another Ctrl-C is ignored.", file=sys.stderr)
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        environment.clean_up()
        print(summary(outcomes))
        if environment.left:
            print("Left in the account:")
            for what in dict.fromkeys(environment.left):
                print(f"- {printable(what)}")
        print(f"The results are in {results}")
    return exit_code(outcomes) if len(outcomes) == len(steps) else 1


if __name__ == "__main__":
    sys.exit(main())
