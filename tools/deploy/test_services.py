import json
import subprocess
import unittest
from unittest import mock

import services


class Affected(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        command = ("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1")
        metadata = json.loads(subprocess.run(command, cwd=services.ROOT, check=True, capture_output=True).stdout)
        cls.users, cls.ordered = services.users(metadata), services.services()

    def affected(self, *paths):
        return services.affected(paths, self.users, self.ordered)

    def test_a_change_in_a_service_affects_only_that_service(self):
        self.assertEqual(self.affected("functions/billing/src/stripe.rs"), ["billing"])
        self.assertEqual(self.affected("functions/gateway/template.yaml"), ["gateway"])

    def test_a_change_in_a_shared_crate_affects_the_services_that_use_it(self):
        self.assertEqual(self.affected("shared/quarantine/src/lib.rs"), ["events", "sites", "inventory", "telemetry", "network"])
        with_code = [service for service in self.ordered if service != "gateway"]
        self.assertEqual(self.affected("shared/contracts/src/id.rs"), with_code)

    def test_a_change_of_the_dependencies_affects_all_services_with_code(self):
        with_code = [service for service in self.ordered if service != "gateway"]
        self.assertEqual(self.affected("Cargo.lock"), with_code)

    def test_a_state_machine_is_deployed_by_onboarding(self):
        self.assertEqual(self.affected("statemachines/site-teardown.asl.json"), ["onboarding"])

    def test_docs_and_tests_affect_no_service(self):
        self.assertEqual(self.affected("README.md", "tests/tests/readings.rs", "fieldctl/src/main.rs"), [])

    def test_services_are_in_the_order_of_their_deployment(self):
        found = self.affected("functions/gateway/template.yaml", "functions/failures/template.yaml")
        self.assertEqual(found, ["failures", "gateway"])


class Settings(unittest.TestCase):
    def test_an_environment_has_its_name_and_parameters(self):
        name, parameters, ask = services.settings("staging")
        self.assertEqual((name, ask), ("fieldstation-staging", False))
        self.assertIn("GradualDeployment=true", parameters)

    def test_production_asks_before_it_changes_anything(self):
        self.assertTrue(services.settings("prod")[2])
        with mock.patch("sys.stdin.isatty", return_value=False), self.assertRaisesRegex(SystemExit, "--yes"):
            services.confirm("fieldstation-prod", ["billing"])
        with mock.patch("sys.stdin.isatty", return_value=True), mock.patch("builtins.input", return_value=""):
            with self.assertRaisesRegex(SystemExit, "Nothing was deployed"):
                services.confirm("fieldstation-prod", ["billing"])

    def test_a_service_is_not_an_environment(self):
        with self.assertRaisesRegex(SystemExit, "There are: default, local, staging, prod"):
            services.settings("billing")

    def test_an_unknown_service_is_named(self):
        with self.assertRaisesRegex(SystemExit, "There is no service biling. The services are: failures, operators"):
            services.selected_services(["biling"])


if __name__ == "__main__":
    unittest.main()
