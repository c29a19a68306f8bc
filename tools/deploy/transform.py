"""The SAM transform of a template, as CloudFormation applies it."""

import copy
import functools
import json
import logging
import os

# Parameters with which a stack has the most resources.
PRODUCTION = {"GradualDeployment": "true", "Environment": "fieldstation-prod"}


@functools.cache
def packaged(path):
    """The template as `sam package` leaves it."""
    from samcli.yamlhelper import yaml_parse

    template = yaml_parse(path.read_text())
    for resource in template["Resources"].values():
        # These become places in S3.
        if resource["Type"] == "AWS::Serverless::StateMachine":
            definition = (path.parent / resource["Properties"].pop("DefinitionUri")).read_text()
            resource["Properties"]["Definition"] = json.loads(definition)
        elif resource["Type"] == "AWS::Serverless::Application":
            resource["Properties"]["Location"] = "https://s3.amazonaws.com/bucket/template"
    for of_kind in template.get("Globals", {}).values():
        of_kind["CodeUri"] = "s3://bucket/code"
    return template


def transformed(path, values):
    """The template after the transform, with these values of its parameters."""
    # The transform looks for a region, and calls nobody with it.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    logging.getLogger("samtranslator").setLevel(logging.ERROR)
    template = packaged(path)
    known = {name: value for name, value in values.items() if name in template["Parameters"]}
    return Translator({}, Parser()).translate(copy.deepcopy(template), known)
