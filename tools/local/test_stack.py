"""Unit tests of the emulator's settings, and of the variables that `make env` prints."""

import os
import subprocess
import unittest
from unittest import mock

import stack


class Emulator(unittest.TestCase):
    def test_only_loopback_is_used(self):
        settings = stack.MINISTACK.environment()
        self.assertEqual("127.0.0.1", settings["BIND_HOST"])
        with mock.patch.dict(os.environ, settings):
            from ministack.services import iot

            self.assertFalse(iot.mtls_enabled(), "MQTT listens on every interface")


class ShellVariables(unittest.TestCase):
    def evaluated(self, environment):
        """Returns the variables of a shell that evaluates the output."""
        with mock.patch.dict(os.environ, environment):
            text = stack.shell_variables("a-stack", "http://api.localhost:1/v1", "fsa_key")
        script = 'eval "$1"; env'
        output = subprocess.run(
            ["bash", "-c", script, "bash", text], env={"PATH": os.environ["PATH"], **environment},
            check=True, capture_output=True, text=True,
        ).stdout
        return dict(line.partition("=")[::2] for line in output.splitlines())

    def test_the_names_are_those_of_the_stack(self):
        variables = self.evaluated({})
        self.assertEqual("a-stack", variables["FIELDSTATION_STACK"])
        self.assertEqual("http://api.localhost:1/v1", variables["API_URL"])
        self.assertEqual("fsa_key", variables["FIELDSTATION_API_KEY"])
        self.assertEqual("a-stack-events", variables["EVENT_BUS"])
        self.assertEqual("a-stack-events", variables["EVENTS_STREAM"])
        self.assertEqual("a-stack-readings", variables["READINGS_STREAM"])
        self.assertEqual(stack.MINISTACK.url, variables["AWS_ENDPOINT_URL"])

    def test_settings_for_aws_are_replaced(self):
        variables = self.evaluated({
            "AWS_PROFILE": "prod", "AWS_SESSION_TOKEN": "secret", "AWS_ACCESS_KEY_ID": "AKIA", "AWS_REGION": "eu-central-1",
        })
        self.assertNotIn("AWS_PROFILE", variables)
        self.assertEqual("", variables["AWS_SESSION_TOKEN"])
        self.assertEqual("test", variables["AWS_ACCESS_KEY_ID"])
        self.assertEqual(["us-east-1"] * 2, [variables["AWS_REGION"], variables["AWS_DEFAULT_REGION"]])

    def test_hosts_that_need_no_proxy_are_kept(self):
        variables = self.evaluated({"NO_PROXY": "localhost,example.org a;b"})
        self.assertEqual("127.0.0.1,localhost,example.org a;b", variables["NO_PROXY"])
        self.assertEqual(variables["NO_PROXY"], variables["no_proxy"])


class Secrets(unittest.TestCase):
    def test_punctuation_is_excluded(self):
        from ministack.services.cloudformation import provisioners

        with mock.patch.object(provisioners, "_sm_secret_string", provisioners._sm_secret_string):
            stack.exclude_punctuation_from_secrets()
            for exclude in (True, "true"):
                options = {"PasswordLength": 200, "ExcludePunctuation": exclude, "ExcludeCharacters": "a"}
                secret = provisioners._sm_secret_string({"GenerateSecretString": options})
                self.assertTrue(secret.isalnum(), secret)
                self.assertEqual((len(secret), secret.count("a")), (200, 0))
            punctuated = provisioners._sm_secret_string({"GenerateSecretString": {"PasswordLength": 200}})
            self.assertFalse(punctuated.isalnum(), punctuated)


if __name__ == "__main__":
    unittest.main()
