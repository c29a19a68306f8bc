#!/usr/bin/env python3
"""Checks the templates with cfn-lint and checkov after the SAM transform, as CloudFormation receives them. Exit status 1 if one
of them reports a problem. .cfnlintrc and .checkov.yaml list the rules that are skipped, with reasons.

    .venv/bin/python tools/deploy/lint.py

`sam validate --lint` lints the templates as they are written, with the older cfn-lint that SAM CLI needs.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import services
from transform import PRODUCTION, transformed

BIN = services.ROOT / ".venv" / "checks" / "bin"
TRANSFORMED = services.ROOT / "target" / "checks"


def write_transformed():
    """Writes each transformed template to a separate file."""
    shutil.rmtree(TRANSFORMED, ignore_errors=True)
    TRANSFORMED.mkdir(parents=True)
    templates = {service: services.ROOT / "functions" / service / "template.yaml" for service in services.services()}
    templates["root"] = services.ROOT / "template.yaml"
    templates["stock-subscriber"] = services.ROOT / "examples" / "stock-subscriber" / "template.yaml"
    templates["github-roles"] = services.ROOT / "tools" / "deploy" / "github-roles.yaml"
    for path in (services.ROOT / "examples" / "consumers").glob("*/template.yaml"):
        templates[f"example-{path.parent.name}"] = path
    for name, path in templates.items():
        (TRANSFORMED / f"{name}.json").write_text(json.dumps(transformed(path, PRODUCTION), indent=2))


def run(*command):
    """Runs a tool. Returns (exit status, output)."""
    # checkov sends its results to a server if the environment has a key for it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BC_", "CKV_", "PRISMA_"))}
    result = subprocess.run(
        command, cwd=services.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return result.returncode, result.stdout


def main():
    write_transformed()
    # Relative, because checkov mistakes a path of 40 characters for an AWS secret key (CKV_AWS_45).
    folder = TRANSFORMED.relative_to(services.ROOT)
    commands = [
        [BIN / "cfn-lint", *sorted(TRANSFORMED.glob("*.json"))],
        [BIN / "checkov", "--config-file", ".checkov.yaml", "--directory", folder],
    ]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda command: run(*command), commands))
    for status, output in results:
        if status != 0:
            print(output, end="")
    sys.exit(any(status != 0 for status, _ in results))


if __name__ == "__main__":
    main()
