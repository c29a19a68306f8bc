"""Applies the SAM transform to a template, as CloudFormation does."""

import copy
import functools
import json
import logging
import os

# The parameters with which a stack has the most resources.
PRODUCTION = {"GradualDeployment": "true", "Environment": "fieldstation-prod"}


@functools.cache
def packaged(path):
    """Returns the template as after `sam package`."""
    from samcli.yamlhelper import yaml_parse

    template = yaml_parse(path.read_text())
    for resource in template["Resources"].values():
        # `sam package` replaces these paths by locations in S3.
        if resource["Type"] == "AWS::Serverless::StateMachine":
            definition = (path.parent / resource["Properties"].pop("DefinitionUri")).read_text()
            resource["Properties"]["Definition"] = json.loads(definition)
        elif resource["Type"] == "AWS::Serverless::Application":
            resource["Properties"]["Location"] = "https://s3.amazonaws.com/bucket/template"
    for defaults in template.get("Globals", {}).values():
        defaults["CodeUri"] = "s3://bucket/code"
    return template


def transformed(path, values):
    """Returns the template after the transform, with these values of its parameters."""
    # The transform needs a region, but makes no call.
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    logging.getLogger("samtranslator").setLevel(logging.ERROR)
    template = packaged(path)
    known = {name: value for name, value in values.items() if name in template["Parameters"]}
    return Translator({}, Parser()).translate(copy.deepcopy(template), known)
