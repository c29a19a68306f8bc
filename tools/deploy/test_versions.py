"""Tests that changed parameters take effect. Compares the transformed templates for two values of each parameter."""

import functools
import re
import unittest
from unittest import mock

import services
from transform import transformed

# For each parameter of a service, an allowed value that is not its default.
OTHER = {
    "AlertMaxAgeMinutes": "30",
    "Architecture": "x86_64",
    "CanaryMinimumCalls": "7",
    "BillingConcurrency": "9",
    "CircuitPauseSeconds": "31",
    "DeletionProtection": "true",
    "EventsRetentionHours": "48",
    "EventsShards": "2",
    "GradualDeployment": "true",
    "GuardEventSources": "false",
    "LogLevel": "DEBUG",
    "LogRetentionDays": "60",
    "ManageApiGatewayLogging": "false",
    "OidcAudience": "another-audience",
    "OidcIssuer": "https://issuer.example.org",
    "OnCallEmail": "on-call@example.org",
    "ReadingsHoldSeconds": "60",
    "ReadingsMaxAgeDays": "30",
    "ReadingsRetentionHours": "48",
    "ReadingsShards": "2",
    "RegisterAgeSeconds": "60",
    "SagaBudgetSeconds": "1000",
    "SourceOperators": "com.example.registry=00000000-0000-5000-8000-000000000001",
    "StageName": "v2",
    "StockDeadband": "3",
    "StockLowLimit": "20",
    "StripeApiBase": "https://payments.example.org",
    "StripePrices": "community=other,standard=other,professional=other",
}


class Resolved:
    """A transformed template with the values of its parameters filled in, as CloudFormation does after the transform."""

    def __init__(self, service, changed):
        path = services.ROOT / "functions" / service / "template.yaml"
        self.template = transformed(path, {"Environment": "fieldstation-test", **changed})
        declared = self.template["Parameters"]
        self.values = {name: str(parameter.get("Default", "fieldstation-test")) for name, parameter in declared.items()}
        self.values |= changed

    def holds(self, condition):
        return self.resolve(self.template["Conditions"][condition])

    def resolve(self, value):
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        match list(value.items()):
            case [("Ref", name)] if name in self.values:
                return self.values[name]
            case [("Fn::Sub", str(text))]:
                return re.sub(r"\$\{(\w+)\}", lambda found: self.values.get(found[1], found[0]), text)
            case [("Fn::If", [condition, then, otherwise])]:
                return self.resolve(then if self.holds(condition) else otherwise)
            case [("Fn::Equals", [left, right])]:
                return str(self.resolve(left)) == str(self.resolve(right))
            case [("Fn::Not", [negated])]:
                return not self.resolve(negated)
        return {name: self.resolve(item) for name, item in value.items()}

    def of_type(self, kind):
        return {id: each for id, each in self.template["Resources"].items() if each["Type"] == kind}

    def functions(self):
        """Returns the configuration of each function."""
        return {id: self.resolve(each["Properties"]) for id, each in self.of_type("AWS::Lambda::Function").items()}

    def versions(self):
        """Returns the identity of each function's version. CloudFormation creates a new version when the identity
        changes.

        The properties are the createOnlyProperties of AWS::Lambda::Version.
        """
        return {
            each["Properties"]["FunctionName"]["Ref"]: (id, self.resolve(each["Properties"]))
            for id, each in self.of_type("AWS::Lambda::Version").items()
        }


@functools.cache
def with_defaults(service):
    return Resolved(service, {})


class Versions(unittest.TestCase):
    def test_a_function_has_a_new_version_exactly_when_its_configuration_changes(self):
        changes = 0
        for service in services.services():
            before = with_defaults(service)
            for parameter in before.template["Parameters"].keys() - {"Environment"}:
                after = Resolved(service, {parameter: OTHER[parameter]})
                self.assertEqual(before.functions().keys(), after.functions().keys())
                for function, configuration in before.functions().items():
                    with self.subTest(function=function, parameter=parameter):
                        changed = configuration != after.functions()[function]
                        version = before.versions()[function] != after.versions()[function]
                        # A new identity without a changed configuration is an error: Lambda would publish no version,
                        # and CloudFormation would fail.
                        self.assertEqual(version, changed)
                        changes += changed
        self.assertGreater(changes, 60)

    def test_a_replaced_version_is_kept(self):
        for service in services.services():
            for id, version in with_defaults(service).of_type("AWS::Lambda::Version").items():
                with self.subTest(version=id):
                    self.assertEqual((version["DeletionPolicy"], version["UpdateReplacePolicy"]), ("Retain", "Retain"))

    def test_a_deleted_function_is_deleted(self):
        for service in services.services():
            for id, function in with_defaults(service).of_type("AWS::Lambda::Function").items():
                with self.subTest(function=id):
                    self.assertNotIn("DeletionPolicy", function)


if __name__ == "__main__":
    unittest.main()
