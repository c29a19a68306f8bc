"""Tests that the workflows build only with `make release`, and deploy only checked builds."""

import unittest

import yaml

import services

WORKFLOWS = services.ROOT / ".github" / "workflows"
DEPLOYS = ("sam deploy", "services.py deploy")


class Workflows(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sources = {path.name: path.read_text() for path in WORKFLOWS.glob("*.yml")}
        cls.jobs = {
            (file, name): job for file, source in cls.sources.items() for name, job in yaml.safe_load(source)["jobs"].items()
        }

    def steps(self):
        """Yields ((file, job), the job's commands up to and including this one, its step) of each command."""
        for where, job in self.jobs.items():
            commands = []
            for step in job.get("steps", []):
                if "run" in step:
                    commands.append(step["run"])
                    yield where, commands[:], step

    def test_only_make_release_builds_functions(self):
        for file, source in self.sources.items():
            self.assertNotIn("CARGO_LAMBDA_COMPILER", source, file)
            self.assertNotIn("sam build", source, file)
            self.assertNotIn("services.py build", source, file)

    def test_an_artifact_contains_the_build_of_make_release(self):
        packed = [(where, commands) for where, commands, _ in self.steps() if commands[-1].startswith("tar --create")]
        self.assertEqual({where for where, _ in packed}, {("build.yml", "build"), ("services.yml", "build")})
        for where, commands in packed:
            self.assertTrue(commands[-2].startswith("make release"), where)

    def test_a_deployment_uses_the_artifact_and_verifies_it(self):
        deployments = [(where, commands, step) for where, commands, step in self.steps() if any(it in commands[-1] for it in DEPLOYS)]
        places = {("staging.yml", "deploy"), ("prod.yml", "canary"), ("services.yml", "staging"), ("services.yml", "prod")}
        self.assertEqual({where for where, _, _ in deployments}, places)
        for where, commands, step in deployments:
            self.assertIn("tar --extract --file build.tar", commands, where)
            unpacked = commands.index("tar --extract --file build.tar")
            verified = any("bootstraps.py verify .aws-sam/release" in it for it in commands[unpacked:])
            self.assertTrue(verified or "services.py deploy --built" in commands[-1], where)
            self.assertIn('--role-arn "$ROLE_ARN"', step["run"], where)

    def test_staging_is_bootstrapped_before_its_smoke_test_and_production_never(self):
        bootstraps = {where for where, commands, _ in self.steps() if "bootstrap.py" in commands[-1]}
        self.assertEqual(bootstraps, {("staging.yml", "bootstrap"), ("services.yml", "bootstrap")})
        for where in bootstraps:
            self.assertEqual(self.jobs[where]["environment"], "staging")
            self.assertEqual(self.jobs[where[0], "smoke"]["needs"], "bootstrap")

    def test_only_the_bootstrap_gets_the_test_key(self):
        holders = {where for where, job in self.jobs.items() if "STRIPE_TEST_KEY" in str(job)}
        self.assertEqual(holders, {("staging.yml", "bootstrap"), ("services.yml", "bootstrap")})

    def test_no_job_keeps_the_token_of_its_checkout(self):
        for where, job in self.jobs.items():
            for step in job.get("steps", []):
                if step.get("uses", "").startswith("actions/checkout@"):
                    self.assertIs(step["with"]["persist-credentials"], False, where)


if __name__ == "__main__":
    unittest.main()
