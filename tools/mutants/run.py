#!/usr/bin/env python3
"""Applies each mutation of cargo-mutants to the code of a package, and runs the package's tests on it.

    .venv/bin/python tools/mutants/run.py store inventory     runs the named packages, one after the other
    .venv/bin/python tools/mutants/run.py --report            only rewrites docs/mutants.md

The results are stored in results.json by package, and shown in docs/mutants.md. Exit status 1 if fewer than 90 % of a
package's mutants are caught, or if accepted.json has no reason for a missed one.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "target" / "mutants"
RESULTS = HERE / "results.json"
DOCS = ROOT / "docs" / "mutants.md"
MIN_CAUGHT = 0.9
TABLE = "<!-- results -->"
KINDS = {"CaughtMutant": "caught", "MissedMutant": "missed", "Timeout": "timeout", "Unviable": "unviable"}
# For a shared crate, a crate that uses it. The tests of that crate run, too.
USERS = {
    "contracts": "stream",
    "fault": "store",
    "keys": "operators",
    "lambda": "sites",
    "ledger": "failures",
    "machines": "onboarding",
    "payments": "billing",
    "quarantine": "events",
    "secret": "telemetry",
    "series": "telemetry",
    "store": "inventory",
    "stream": "telemetry",
    "web": "billing",
}


def name(mutant):
    """Returns a mutant's name without its line number, which changes with edits above it."""
    return f"{mutant['file']}: {mutant['name'].partition(': ')[2]}"


def counts(outcomes):
    """Returns the result of a package: the count of each kind, and the names of the missed mutants."""
    by_kind = Counter(KINDS[outcome["summary"]] for outcome in outcomes)
    missed = [name(outcome["scenario"]["Mutant"]) for outcome in outcomes if outcome["summary"] == "MissedMutant"]
    return {kind: by_kind[kind] for kind in KINDS.values()} | {"names": sorted(missed)}


def run(package):
    """Runs a package's own tests. For the missed mutants, also runs the tests of a crate that uses the package. These
    take longer to build."""
    outcomes = mutate(package)
    if package in USERS and any(outcome["summary"] == "MissedMutant" for outcome in outcomes.values()):
        outcomes |= mutate(package, "--iterate", "--test-package", USERS[package])
    return counts(outcomes.values())


def mutate(package, *arguments):
    """Tests the mutants in a copy of the tree, with one seed of the simulations. Returns the outcomes by mutant."""
    output = OUTPUT / package
    output.mkdir(parents=True, exist_ok=True)
    command = ["cargo", "mutants", "--package", package, "--output", str(output), "--timeout", "60", "--colors", "never"]
    status = subprocess.run([*command, *arguments], cwd=ROOT, env=environment()).returncode
    if status not in (0, 2, 3):  # all caught; some missed; some timed out
        sys.exit(f"cargo mutants ended with status {status}")
    outcomes = json.loads((output / "mutants.out" / "outcomes.json").read_text())["outcomes"]
    return {outcome["scenario"]["Mutant"]["name"]: outcome for outcome in outcomes if outcome["scenario"] != "Baseline"}


def environment():
    return os.environ | {"SEED": "1", "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}


def share(result):
    caught = result["caught"] + result["timeout"]
    return caught / ((caught + result["missed"]) or 1)


def report(results, reasons):
    """Writes the tables. Returns the missed mutants without a reason, and the packages below the limit."""
    lines = ["| package | mutants | do not compile | caught | timeout | missed | caught of those that compile |", "|---|---|---|---|---|---|---|"]
    total = Counter()
    for package, result in sorted(results.items()):
        numbers = {kind: result[kind] for kind in ("unviable", "caught", "timeout", "missed")}
        total.update(numbers)
        lines.append(row(package, numbers))
    lines += [row("all", total), "", "Missed mutants, and why they are accepted:", ""]
    times = Counter(missed for result in results.values() for missed in result["names"])
    # The name includes the number of missed mutants with this name. So a reason does not cover a further mutant in the
    # same function.
    names = {f"{missed} ({count} times)" if count > 1 else missed for missed, count in times.items()}
    for missed in sorted(names):
        lines.append(f"- `{missed}`: {reasons.get(missed, 'no reason yet')}")
    text = DOCS.read_text()
    DOCS.write_text(text.partition(TABLE)[0] + TABLE + "\n\n" + "\n".join(lines) + "\n")
    without_reason = sorted(names - reasons.keys())
    for reason in sorted(reasons.keys() - names):
        if Path(reason).parts[1] in results:
            print(f"no mutant with this name is missed any more, remove its reason: {reason}")
    return without_reason, [package for package, result in results.items() if share(result) < MIN_CAUGHT]


def row(package, numbers):
    columns = [sum(numbers.values()), *(numbers[kind] for kind in ("unviable", "caught", "timeout", "missed"))]
    return f"| {package} | {' | '.join(map(str, columns))} | {share(numbers):.1%} |"


def main():
    results = json.loads(RESULTS.read_text())
    reasons = json.loads((HERE / "accepted.json").read_text())
    if sys.argv[1:] != ["--report"]:
        if not sys.argv[1:]:
            sys.exit(__doc__)
        for package in sys.argv[1:]:
            results[package] = run(package)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    without_reason, below = report(results, reasons)
    for missed in without_reason:
        print(f"missed: {missed}\n  write a test that catches it, or add a reason to {HERE.relative_to(ROOT)}/accepted.json")
    for package in below:
        print(f"{package}: {share(results[package]):.1%} caught, the minimum is {MIN_CAUGHT:.0%}")
    sys.exit(1 if without_reason or below else 0)


if __name__ == "__main__":
    main()
