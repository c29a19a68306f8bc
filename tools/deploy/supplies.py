"""Delivers kits to an environment, creates plans at the payment provider, and creates a key of an administrator.

A site can be onboarded only if there are kits and plans. Its registration over HTTP also needs a key.
"""

import json
import time
import uuid
import urllib.error
import urllib.parse
import urllib.request

# The plans in the default of the parameter StripePrices, with their prices in cents per month.
PLANS = {"community": 0, "standard": 4900, "professional": 14900}


class Failed(Exception):
    """The kits were not delivered, the plans were not created, or no key was created."""


def is_delivered(client, environment, source, delivery):
    """Returns whether receive-kits has counted a delivery. `client` creates the boto3 client of a service."""
    key = {"id": {"S": f"delivery#{len(source)}/{source}/{delivery}"}}
    row = client("dynamodb").get_item(TableName=f"{environment}-inventory", Key=key, ConsistentRead=True)
    return "Item" in row


def send_delivery(client, environment, source, delivery, kits):
    """Puts the event KitsDelivered on the environment's bus, as in docs/integrating.md. A delivery counts once, even if its
    event is sent several times. `kits` is {metric: quantity}."""
    content = [{"metric": metric, "quantity": quantity} for metric, quantity in kits.items()]
    response = client("events").put_events(Entries=[{
        "EventBusName": f"{environment}-events", "Source": source, "DetailType": "KitsDelivered",
        "Detail": json.dumps({"deliveryId": delivery, "kits": content}),
    }])
    if response["FailedEntryCount"]:
        raise Failed(f"The bus refused the event: {response['Entries']}")


def deliver_kits(client, environment, source, delivery, kits, seconds=60):
    """Sends a delivery of kits, and waits until they are in stock."""
    send_delivery(client, environment, source, delivery, kits)
    deadline = time.monotonic() + seconds
    while not is_delivered(client, environment, source, delivery):
        if time.monotonic() > deadline:
            raise Failed(f"Delivery {delivery} is not in stock after {seconds} s. Look at the log of receive-kits.")
        time.sleep(0.5)


def create_plans(api, key):
    """Creates the plans at the payment provider. Existing plans are not changed."""
    for plan, cents in PLANS.items():
        form = {
            "id": f"fieldstation-{plan}", "amount": cents, "currency": "eur", "interval": "month",
            "product[name]": f"Fieldstation {plan}",
        }
        request = urllib.request.Request(
            f"{api}/v1/plans", data=urllib.parse.urlencode(form).encode(), headers={"Authorization": f"Bearer {key}"}
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            # For an existing plan, Stripe returns 400 with this code, and localstripe 409.
            if error.code != 409 and b'"resource_already_exists"' not in (body := error.read()):
                detail = body.decode(errors="replace").replace(key, "<key>")
                raise Failed(f"The payment provider refused the plan {plan}: {error.code} {detail}") from None
        except urllib.error.URLError as error:
            raise Failed(f"The payment provider at {api} does not respond: {error.reason}") from None


def create_key(client, environment, url, name, days=1, host=None):
    """Creates a key of an administrator with the secret that the deployment made, and returns it. `url` is the API's URL. On the
    emulator, `host` is the value of the header `Host`."""
    secret = client("secretsmanager").get_secret_value(SecretId=f"{environment}-first-administrator")["SecretString"]
    headers = {"Authorization": f"Bearer fsb_{secret}", "Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
    body = json.dumps({"name": name, "scope": "admin", "expiresInDays": days}).encode()
    request = urllib.request.Request(f"{url}/keys", data=body, headers=headers | ({"Host": host} if host else {}))
    try:
        # The address may be this machine's, which a proxy can't reach.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if host else None))
        with opener.open(request, timeout=35) as response:
            return json.load(response)["key"]
    except urllib.error.HTTPError as error:
        raise Failed(f"The API created no key: {error.code} {error.read().decode(errors='replace')}") from None
    except urllib.error.URLError as error:
        raise Failed(f"The API at {url} does not respond: {error.reason}") from None
