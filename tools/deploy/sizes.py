#!/usr/bin/env python3
"""Counts the resources of each stack after the SAM transform, with gradual deployment on, and compares them with
CloudFormation's limit. Writes the table into docs/deploying.md; exit status 1 if a stack is too large.

    .venv/bin/python tools/deploy/sizes.py
"""

import sys

import services
from transform import PRODUCTION, transformed

# CloudFormation's limit of resources in a stack, and our lower limit, so that a service can grow.
CLOUDFORMATION_LIMIT, LIMIT = 500, 150
DOCS = services.ROOT / "docs" / "deploying.md"
START, END = "<!-- generated -->\n", "<!-- /generated -->\n"


def counts():
    """Yields (service, resources, functions, alarms) of each stack, the root last."""
    for service in services.services():
        resources = transformed(services.ROOT / "functions" / service / "template.yaml", PRODUCTION)["Resources"]
        kinds = [resource["Type"] for resource in resources.values()]
        yield service, len(kinds), kinds.count("AWS::Lambda::Function"), kinds.count("AWS::CloudWatch::Alarm")
    yield "root", len(transformed(services.ROOT / "template.yaml", PRODUCTION)["Resources"]), 0, 0


def table(rows):
    lines = ["| stack | resources | functions | alarms |", "|---|--:|--:|--:|"]
    lines += [f"| {service} | {total} | {functions} | {alarms} |" for service, total, functions, alarms in rows]
    sums = [sum(row[column] for row in rows) for column in (1, 2, 3)]
    lines.append(f"| **sum** | {sums[0]} | {sums[1]} | {sums[2]} |")
    return "\n".join(lines) + "\n"


def main():
    rows = list(counts())
    text = DOCS.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    DOCS.write_text(before + START + table(rows) + END + after)
    print(table(rows), end="")
    largest = max(rows, key=lambda row: row[1])
    print(f"The largest stack, {largest[0]}, has {largest[1]} resources. It must have fewer than {LIMIT}; CloudFormation allows {CLOUDFORMATION_LIMIT}.")
    sys.exit(largest[1] >= LIMIT)


if __name__ == "__main__":
    main()
