import io
import json
import unittest
import urllib.error
import urllib.parse
from unittest import mock

import bootstrap
import supplies

ENVIRONMENT = "fieldstation-staging"
GENERATED = "q3VxTk0mWbYp8sRz6LdNf2HcJ9aGuE1i"
KEY, ANOTHER, LIVE = "sk_test_51Hq", "rk_test_9Zx", "sk_live_51Hq"


class Aws:
    """The clients of an environment. A delivery is in stock as soon as its event was sent, unless receive-kits is broken."""

    def __init__(self, secret=GENERATED, works=True):
        self.secret, self.works, self.events, self.puts = secret, works, [], []

    def __call__(self, service):
        return self

    def get_secret_value(self, SecretId):
        assert SecretId == f"{ENVIRONMENT}-stripe"
        return {"SecretString": self.secret}

    def put_secret_value(self, SecretId, SecretString):
        self.puts.append(SecretId)
        self.secret = SecretString

    def put_events(self, Entries):
        self.events += Entries
        return {"FailedEntryCount": 0, "Entries": [{}]}

    def get_item(self, TableName, Key, ConsistentRead):
        assert (TableName, ConsistentRead) == (f"{ENVIRONMENT}-inventory", True)
        sent = [f"delivery#{len(it['Source'])}/{it['Source']}/{json.loads(it['Detail'])['deliveryId']}" for it in self.events]
        return {"Item": {}} if self.works and Key["id"]["S"] in sent else {}


class Bootstrap(unittest.TestCase):
    def setUp(self):
        self.plans = self.enterContext(mock.patch.object(supplies, "create_plans"))

    def run_once(self, aws, key=KEY, parameters=()):
        done = list(bootstrap.bootstrap(aws, ENVIRONMENT, key, parameters))
        self.assertFalse(any(key in line for line in done if key), done)
        return done

    def test_a_new_environment_gets_key_plans_and_kits(self):
        aws = Aws()
        self.run_once(aws)
        self.assertEqual(aws.secret, KEY)
        self.plans.assert_called_once_with("https://api.stripe.com", KEY)
        event = aws.events[0]
        self.assertEqual((event["EventBusName"], event["DetailType"]), (f"{ENVIRONMENT}-events", "KitsDelivered"))
        self.assertEqual(json.loads(event["Detail"])["kits"], [{"metric": "air_temperature", "quantity": 10}])

    def test_the_bus_lets_the_source_deliver_kits(self):
        # The rule of receive-kits matches events of every source except those of Fieldstation.
        self.assertFalse(bootstrap.SOURCE.startswith("fieldstation."))

    def test_a_second_run_changes_nothing(self):
        aws = Aws()
        self.run_once(aws)
        self.run_once(aws)
        self.assertEqual((len(aws.events), len(aws.puts)), (1, 1))

    def test_an_existing_test_key_is_kept(self):
        aws = Aws(secret=ANOTHER)
        self.run_once(aws)
        self.run_once(aws, key="")
        self.assertEqual((aws.secret, aws.puts), (ANOTHER, []))

    def test_a_live_key_is_refused_and_not_shown(self):
        for aws, key in ((Aws(), LIVE), (Aws(), "rk_live_1"), (Aws(secret=LIVE), KEY), (Aws(), "pk_test_1"), (Aws(), f"{KEY}\nmore")):
            before = aws.secret
            with self.subTest(key=key), self.assertRaises(bootstrap.Refused) as refused:
                self.run_once(aws, key)
            self.assertFalse(key in str(refused.exception) or before in str(refused.exception))
            self.assertEqual((aws.secret, aws.events), (before, []))

    def test_a_missing_key_is_an_error(self):
        with self.assertRaisesRegex(bootstrap.Refused, "gh secret set STRIPE_TEST_KEY"):
            self.run_once(Aws(), key="")

    def test_an_environment_with_its_own_prices_gets_no_plans(self):
        self.run_once(Aws(), parameters=["StripePrices=community=price_1"])
        self.plans.assert_not_called()

    def test_kits_that_do_not_arrive_are_an_error(self):
        with self.assertRaisesRegex(supplies.Failed, "log of receive-kits"):
            supplies.deliver_kits(Aws(works=False), ENVIRONMENT, "smoke-test", "1", {"air_temperature": 1}, seconds=0)

    def test_production_is_refused(self):
        with mock.patch("sys.argv", ["bootstrap.py", "prod"]), self.assertRaisesRegex(SystemExit, "Production is not bootstrapped"):
            bootstrap.main()


class Plans(unittest.TestCase):
    def create(self, *responses):
        with mock.patch("urllib.request.urlopen", side_effect=responses) as urlopen:
            supplies.create_plans("https://api.stripe.com", KEY)
        return [urllib.parse.parse_qs(call.args[0].data.decode())["id"][0] for call in urlopen.call_args_list]

    def error(self, code, body):
        return urllib.error.HTTPError("https://api.stripe.com/v1/plans", code, "", {}, io.BytesIO(body.encode()))

    def test_each_plan_is_created_and_one_that_exists_is_kept(self):
        exists = self.error(400, '{"error": {"code": "resource_already_exists"}}')
        ids = self.create(mock.Mock(), exists, self.error(409, "{}"))
        self.assertEqual(ids, ["fieldstation-community", "fieldstation-standard", "fieldstation-professional"])

    def test_a_refusal_is_an_error_without_the_key(self):
        with self.assertRaisesRegex(supplies.Failed, "401.*Invalid API Key provided: <key>"):
            self.create(self.error(401, f'{{"error": {{"message": "Invalid API Key provided: {KEY}"}}}}'))

    def test_an_outage_is_an_error(self):
        with self.assertRaisesRegex(supplies.Failed, "does not respond: refused"):
            self.create(urllib.error.URLError("refused"))


if __name__ == "__main__":
    unittest.main()
