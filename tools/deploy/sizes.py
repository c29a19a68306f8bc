#!/usr/bin/env python3
"""Counts the resources of each stack after the SAM transform, with gradual deployment on, and compares them with
CloudFormation's limit. Writes the table into docs/deploying.md; exit status 1 if a stack is too large.

    .venv/bin/python tools/deploy/sizes.py
"""

import json
import logging
import os
import sys

import services

# CloudFormation's limit of resources in a stack, and ours: room for a service to grow.
LIMIT, MOST = 500, 150
DOCS = services.ROOT / "docs" / "deploying.md"
START, END = "<!-- generated -->\n", "<!-- /generated -->\n"


def transformed(path):
    """The resources that CloudFormation creates for a template."""
    # The transform looks for a region, and calls nobody with these.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    from samcli.yamlhelper import yaml_parse
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    logging.getLogger("samtranslator").setLevel(logging.ERROR)
    template = yaml_parse(path.read_text())
    for resource in template["Resources"].values():
        # `sam package` replaces these by places in S3.
        if resource["Type"] == "AWS::Serverless::StateMachine":
            definition = (path.parent / resource["Properties"].pop("DefinitionUri")).read_text()
            resource["Properties"]["Definition"] = json.loads(definition)
        elif resource["Type"] == "AWS::Serverless::Application":
            resource["Properties"]["Location"] = "https://s3.amazonaws.com/bucket/template"
    for parameter in template.get("Globals", {}).values():
        parameter["CodeUri"] = "s3://bucket/code"
    translator = Translator({}, Parser())
    values = {"GradualDeployment": "true", "Environment": "fieldstation-prod"}
    return translator.translate(template, {k: v for k, v in values.items() if k in template["Parameters"]})["Resources"]


def counts():
    """(service, resources, functions, alarms) of each stack, the root last."""
    for service in services.services():
        resources = transformed(services.ROOT / "functions" / service / "template.yaml")
        kinds = [resource["Type"] for resource in resources.values()]
        yield service, len(kinds), kinds.count("AWS::Lambda::Function"), kinds.count("AWS::CloudWatch::Alarm")
    yield "root", len(transformed(services.ROOT / "template.yaml")), 0, 0


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
    print(f"The largest, {largest[0]}, has {largest[1]} of {LIMIT}; at most {MOST} are wanted.")
    sys.exit(largest[1] >= MOST)


if __name__ == "__main__":
    main()
