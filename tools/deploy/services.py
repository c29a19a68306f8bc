#!/usr/bin/env python3
"""Deploys each service as its own stack, <environment>-<service>, with sam. `make deploy` calls this script.

    .venv/bin/python tools/deploy/services.py deploy ENV SERVICE...   builds and deploys services, callees first (all: every service)
    .venv/bin/python tools/deploy/services.py build ENV SERVICE...    builds them, into .aws-sam/<service>, and checks them
    .venv/bin/python tools/deploy/services.py deploy --built ENV SERVICE...   deploys checked builds
    .venv/bin/python tools/deploy/services.py changed BASE            prints the services that changed since the commit BASE

ENV is an environment of samconfig.toml, such as staging. Its stack name is the environment's name, and each service
gets those of its parameters that the service's template has. FIELDSTATION_PARAMETERS adds parameters, such as
"LogLevel=DEBUG". Except in the environment `local`, bootstraps.py checks the functions after the build, and verifies
them before a deployment with --built.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import bootstraps

ROOT = Path(__file__).resolve().parents[2]
SAM = ROOT / ".venv" / "bin" / "sam"
# A change in these files affects every service that has code.
FILES_OF_ALL_SERVICES = ("Cargo.lock", "Cargo.toml", "rust-toolchain.toml", ".cargo/")


def services():
    """Returns the services in the order of their deployment, in which the root template nests them."""
    return re.findall(r"Location: functions/(\w+)/template\.yaml", (ROOT / "template.yaml").read_text())


def settings(environment):
    """Returns the name of an environment, its parameters, and whether a deployment needs a confirmation."""
    known = tomllib.loads((ROOT / "samconfig.toml").read_text())
    name = known.get(environment, {}).get("global", {}).get("parameters", {}).get("stack_name")
    if not name:
        names = [each for each, section in known.items() if isinstance(section, dict) and "global" in section]
        sys.exit(f"There is no environment {environment!r} in samconfig.toml. There are: {', '.join(names)}.")
    deployment = known[environment].get("deploy", {}).get("parameters", {})
    parameters = f"{deployment.get('parameter_overrides', '')} {os.environ.get('FIELDSTATION_PARAMETERS', '')}"
    return name, parameters.split(), deployment.get("confirm_changeset", False)


def confirm(name, names):
    """Asks before a change of an environment that needs a confirmation (`confirm_changeset` in samconfig.toml)."""
    question = f"Deploy {', '.join(names)} to {name}? [y/N] "
    if not sys.stdin.isatty():
        sys.exit(f"A deployment to {name} needs a confirmation: run this on a terminal, or with --yes.")
    if input(question).strip().lower() not in ("y", "yes"):
        sys.exit("Nothing was deployed.")


def refuse_root(name):
    """Refuses an environment that the root template created, because both ways of deployment use the same
    names."""
    import boto3
    import botocore.exceptions

    try:
        boto3.client("cloudformation").describe_stacks(StackName=name)
    except botocore.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return
        sys.exit(f"CloudFormation can't describe the stack {name}: {error}")
    sys.exit(f"The stack {name} exists, so this environment is deployed by the root template: sam build && sam deploy.")


def selected_services(names):
    """Returns the services with these names, or all, in the order of their deployment."""
    ordered = services()
    names = ordered if names == ["all"] else names
    if unknown := sorted(set(names) - set(ordered)):
        sys.exit(f"There is no service {', '.join(unknown)}. The services are: {', '.join(ordered)}.")
    return [service for service in ordered if service in names]


def sam(service, command, parameters, *options):
    """Runs a sam command for a service, and writes its output to target/deploy."""
    started = time.monotonic()
    output = ROOT / "target" / "deploy" / f"{service}-{command}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w") as log:
        ended = subprocess.run(
            [str(SAM), command, "--config-env", service, *options, "--parameter-overrides", *parameters],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )
    if ended.returncode:
        print("\n".join(output.read_text().splitlines()[-30:]), file=sys.stderr)
        sys.exit(f"sam {command} of {service} failed; the complete log is in {output.relative_to(ROOT)}")
    print(f"{service}: sam {command} took {time.monotonic() - started:.0f} s", flush=True)


def architecture(parameters):
    """Returns the architecture that the functions are built and deployed for. If a parameter is given twice, the last
    value counts, as in sam."""
    values = dict(parameter.split("=", 1) for parameter in parameters)
    return values.get("Architecture", "arm64")


def build(environment, names):
    name, parameters, _ = settings(environment)
    for service in selected_services(names):
        sam(service, "build", [f"Environment={name}", *parameters])
    inspect(bootstraps.check, environment, names)


def inspect(command, environment, names):
    """Checks or verifies the builds of the services. The local stack accepts debug builds."""
    if environment == "local":
        return
    _, parameters, _ = settings(environment)
    try:
        for service in selected_services(names):
            command(ROOT / ".aws-sam" / service, architecture(parameters))
    except bootstraps.Refused as error:
        sys.exit(str(error))


def deploy(environment, names, built=False, confirmed=False, role=None):
    names = selected_services(names)
    name, parameters, ask = settings(environment)
    if built:
        inspect(bootstraps.verify, environment, names)
    refuse_root(name)
    if ask and not confirmed:
        confirm(name, names)
    parameters = [f"Environment={name}", *parameters]
    if not built:
        build(environment, names)
    options = ["--role-arn", role] if role else []
    for service in names:
        sam(service, "deploy", parameters, "--stack-name", f"{name}-{service}", "--no-progressbar", *options)


def users(metadata):
    """Returns the services that use each package, excluding dev-dependencies."""
    packages = {
        package["name"]: (
            Path(package["manifest_path"]).parent,
            {each["name"] for each in package["dependencies"] if each.get("path") and each["kind"] != "dev"},
        )
        for package in metadata["packages"]
    }

    def needs(name, seen):
        for dependency in packages[name][1] - seen:
            seen.add(dependency)
            needs(dependency, seen)
        return seen

    found = {}
    for name, (folder, _) in packages.items():
        if folder.parent.name == "functions":
            for dependency in needs(name, set()):
                found.setdefault(packages[dependency][0].name, set()).add(folder.name)
    return found


def affected(paths, used_by, ordered):
    """Returns the services that a change of these files affects, in the order of their deployment."""
    with_code = set().union(*used_by.values())
    changed = set()
    for path in paths:
        parts = path.split("/")
        if path.startswith(FILES_OF_ALL_SERVICES):
            changed |= with_code
        elif parts[0] == "functions":
            # A service may use the crate of another one.
            changed |= {parts[1]} | (used_by.get(parts[1], set()) if "/src/" in path else set())
        elif parts[0] == "shared":
            changed |= used_by.get(parts[1], set())
        elif parts[0] == "statemachines":
            changed.add("onboarding")
    return [service for service in ordered if service in changed]


def changed(base):
    def output(*command):
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    paths = output("git", "diff", "--name-only", f"{base}...HEAD").splitlines()
    metadata = json.loads(output("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"))
    return affected(paths, users(metadata), services())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("build", "deploy"):
        subparser = commands.add_parser(command)
        subparser.add_argument("environment")
        subparser.add_argument("services", nargs="+")
        if command == "deploy":
            subparser.add_argument("--built", action="store_true", help="deploys what `build` built")
            subparser.add_argument("--yes", action="store_true", help="does not ask, even if samconfig.toml requires a confirmation")
            subparser.add_argument("--role-arn", help="the role that CloudFormation uses; without it, the caller's")
    commands.add_parser("changed").add_argument("base")
    arguments = parser.parse_args()
    match arguments.command:
        case "build":
            build(arguments.environment, arguments.services)
        case "deploy":
            deploy(arguments.environment, arguments.services, arguments.built, arguments.yes, arguments.role_arn)
        case "changed":
            print(" ".join(changed(arguments.base)))


if __name__ == "__main__":
    main()
