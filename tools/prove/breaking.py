"""Breaks functions, with clean-up actions that repair them."""

import json
import time

from environment import ALIAS
from steps import ensure

# Nobody uses this address: it is reserved for documentation (RFC 5737).
UNROUTABLE = "https://192.0.2.1"
# A port of this machine, where the emulator runs the functions. Nobody listens there.
CLOSED_PORT = "http://127.0.0.1:9"
# The name of the inline policy that denies an action.
DENIAL = "prove-on-aws"


def await_update(environment, function):
    """Waits until a change of the function's configuration is complete."""
    def done():
        found = environment.client("lambda").get_function_configuration(FunctionName=function)
        return found.get("LastUpdateStatus") != "InProgress"

    environment.until(f"{function} is updated", 120, done)


def break_function(environment, function, variable, value):
    """Publishes a version of a function with one environment variable changed, and points the alias to it. Returns the name of
    the clean-up action."""
    client, name = environment.client("lambda"), environment.resource_name(function)
    good = environment.live_version(function)
    variables = client.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    ensure(variable in variables, f"{function} has no variable {variable}")
    what = f"the broken version of {function}"
    bad = []

    def restore():
        client.update_alias(FunctionName=name, Name=ALIAS, FunctionVersion=good, RoutingConfig={"AdditionalVersionWeights": {}})
        client.update_function_configuration(FunctionName=name, Environment={"Variables": variables})
        await_update(environment, name)
        for version in bad:
            client.delete_function(FunctionName=name, Qualifier=version)

    environment.cleanups.append((what, restore))
    client.update_function_configuration(FunctionName=name, Environment={"Variables": variables | {variable: value}})
    await_update(environment, name)
    version = client.publish_version(FunctionName=name, Description="Created by prove-on-aws.sh, which removes it.")["Version"]
    ensure(version != good, f"no new version of {function} was published")
    bad.append(version)
    environment.until(
        f"version {version} of {function} is active", 120,
        lambda: client.get_function_configuration(FunctionName=name, Qualifier=version)["State"] == "Active",
    )
    client.update_alias(FunctionName=name, Name=ALIAS, FunctionVersion=version)
    if not environment.emulator:
        # Lambda's pollers take some seconds to follow an alias.
        time.sleep(15)
    return what


def silence_provider(environment, function):
    """Makes a billing function call an address that does not respond. Returns the name of the clean-up action."""
    return break_function(environment, function, "STRIPE_API_BASE", CLOSED_PORT if environment.emulator else UNROUTABLE)


def deny(environment, function, action):
    """Denies an action to the role of a function. Returns the name of the clean-up action."""
    iam, role = environment.client("iam"), environment.configuration(function)["Role"].rpartition("/")[2]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": action, "Resource": "*"}]}
    what = f"the denied {action} of {function}"
    environment.cleanups.append((what, lambda: iam.delete_role_policy(RoleName=role, PolicyName=DENIAL)))
    iam.put_role_policy(RoleName=role, PolicyName=DENIAL, PolicyDocument=json.dumps(policy))
    # A change of a policy takes effect after some seconds.
    time.sleep(15)
    return what
