import json
import subprocess
import unittest

import services


class Affected(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        command = ("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1")
        metadata = json.loads(subprocess.run(command, cwd=services.ROOT, check=True, capture_output=True).stdout)
        cls.users, cls.ordered = services.users(metadata), services.services()

    def affected(self, *paths):
        return services.affected(paths, self.users, self.ordered)

    def test_a_change_in_a_service_concerns_it_alone(self):
        self.assertEqual(self.affected("functions/billing/src/stripe.rs"), ["billing"])
        self.assertEqual(self.affected("functions/gateway/template.yaml"), ["gateway"])

    def test_a_change_in_a_shared_crate_concerns_its_users(self):
        self.assertEqual(self.affected("shared/quarantine/src/lib.rs"), ["events", "telemetry"])
        everyone = [service for service in self.ordered if service != "gateway"]
        self.assertEqual(self.affected("shared/contracts/src/id.rs"), everyone)

    def test_a_change_of_the_dependencies_concerns_all_code(self):
        everyone = [service for service in self.ordered if service != "gateway"]
        self.assertEqual(self.affected("Cargo.lock"), everyone)

    def test_a_state_machine_is_deployed_by_onboarding(self):
        self.assertEqual(self.affected("statemachines/site-teardown.asl.json"), ["onboarding"])

    def test_docs_and_tests_concern_no_service(self):
        self.assertEqual(self.affected("README.md", "tests/tests/readings.rs", "fieldctl/src/main.rs"), [])

    def test_services_are_in_the_order_of_their_deployment(self):
        found = self.affected("functions/gateway/template.yaml", "functions/failures/template.yaml")
        self.assertEqual(found, ["failures", "gateway"])


if __name__ == "__main__":
    unittest.main()
