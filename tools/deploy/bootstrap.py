#!/usr/bin/env python3
"""Prepares an environment for its first smoke test: kits in stock, the key of a Stripe test account, and its plans.

    STRIPE_TEST_KEY=sk_test_... .venv/bin/python tools/deploy/bootstrap.py ENV

ENV is an environment of samconfig.toml, such as staging. Running it again changes nothing: the kits are delivered once,
and an existing test key and existing plans are kept. The key is never printed. Production is refused: its smoke test only
reads, and its key is stored by hand (docs/deploying.md). No plans are created if the environment sets StripePrices.
"""

import os
import re
import sys

import services
import supplies

SOURCE, DELIVERY = "smoke-test", "smoke-test-1"
# The smoke test needs one kit and returns it at its end. An aborted test keeps its kit until its site is torn down.
KITS = {"air_temperature": 10}
TEST_KEY, ANY_KEY = re.compile(r"(sk|rk)_test_\w+"), re.compile(r"(sk|rk)_")
STRIPE_API = "https://api.stripe.com"


class Refused(Exception):
    """The request is not allowed. Nothing was changed."""


def put_key(client, environment, key):
    """Stores the provider's test key in the environment's secret, which has a value that CloudFormation generated.
    Keeps an existing test key."""
    if key and not TEST_KEY.fullmatch(key):
        raise Refused("STRIPE_TEST_KEY is not a key of Stripe's test mode, which begins with sk_test_ or rk_test_. Nothing was changed.")
    secrets, name = client("secretsmanager"), f"{environment}-stripe"
    existing = secrets.get_secret_value(SecretId=name)["SecretString"].strip()
    if TEST_KEY.fullmatch(existing):
        return f"the secret {name} has a test key"
    if ANY_KEY.match(existing):
        raise Refused(f"The secret {name} contains a key that is not a test key, although {environment} is not production. Replace it.")
    if not key:
        raise Refused(
            f"The secret {name} has no key. Set STRIPE_TEST_KEY; in GitHub: gh secret set STRIPE_TEST_KEY --env <environment>"
        )
    secrets.put_secret_value(SecretId=name, SecretString=key)
    return f"put the test key into the secret {name}"


def deliver(client, environment):
    if supplies.is_delivered(client, environment, SOURCE, DELIVERY):
        return "the kits for the smoke test were delivered before"
    supplies.deliver_kits(client, environment, SOURCE, DELIVERY, KITS)
    return f"delivered {KITS} for the smoke test"


def bootstrap(client, environment, key, parameters):
    """Runs the steps. Yields a message after each one."""
    yield put_key(client, environment, key)
    values = dict(parameter.split("=", 1) for parameter in parameters)
    if key and "StripePrices" not in values:
        supplies.create_plans(values.get("StripeApiBase", STRIPE_API), key)
        yield f"the provider has the plans {', '.join(supplies.PLANS)}"
    yield deliver(client, environment)


def main():
    import boto3
    import botocore.exceptions

    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "prod":
        sys.exit("Production is not bootstrapped: store its key by hand, and let the supplier deliver kits (docs/deploying.md).")
    environment, parameters, _ = services.settings(sys.argv[1])
    try:
        for message in bootstrap(boto3.client, environment, os.environ.get("STRIPE_TEST_KEY", "").strip(), parameters):
            print(f"{environment}: {message}", flush=True)
    except (Refused, supplies.Failed, botocore.exceptions.ClientError) as error:
        sys.exit(f"{environment}: {error}")


if __name__ == "__main__":
    main()
