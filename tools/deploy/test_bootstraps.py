import json
import platform
import shutil
import subprocess
import tempfile
import unittest
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import bootstraps
import services

HOST, OTHER = ("arm64", "x86_64") if platform.machine() == "aarch64" else ("x86_64", "arm64")
SERVICE = """
Globals: { Function: { CodeUri: ../.. } }
Resources:
  GetSiteFunction: { Type: AWS::Serverless::Function, Properties: { CodeUri: GetSiteFunction, Role: !GetAtt Role.Arn } }
  Role: { Type: AWS::IAM::Role }
"""
ROOT = """
Resources:
  Sites: { Type: AWS::Serverless::Application, Properties: { Location: Sites/template.yaml } }
"""


class Builds(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # A dynamic binary from the host's compiler. Its start-up code needs GLIBC_2.34, if the host has that version.
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.binary = Path(cls.directory.name) / "binary"
        program = "int main(void) { return 0; }"
        subprocess.run(["cc", "-x", "c", "-", "-o", cls.binary], input=program, text=True, check=True)

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        (self.folder / "template.yaml").write_text(ROOT)
        self.service = self.folder / "Sites"
        self.bootstrap = self.service / "GetSiteFunction" / "bootstrap"
        self.bootstrap.parent.mkdir(parents=True)
        (self.service / "template.yaml").write_text(SERVICE)
        shutil.copy(self.binary, self.bootstrap)

    def patch(self, old, new):
        content = self.bootstrap.read_bytes()
        self.assertIn(old, content)
        self.bootstrap.write_bytes(content.replace(old, new))

    def check(self, architecture=HOST):
        with redirect_stdout(StringIO()) as output:
            bootstraps.check(self.folder, architecture)
        return output.getvalue()

    def refused(self, message, architecture=HOST):
        with self.assertRaisesRegex(bootstraps.Refused, message):
            self.check(architecture)
        self.assertFalse((self.folder / bootstraps.MANIFEST).exists())

    def verify(self, architecture=HOST):
        with redirect_stdout(StringIO()):
            bootstraps.verify(self.folder, architecture)


class Check(Builds):
    def test_a_function_that_lambda_can_start_is_listed_with_its_glibc(self):
        self.assertRegex(self.check(), r"GetSiteFunction +0\.\d\d MB +glibc 2\.\d+ +ok")

    def test_lambdas_own_glibc_is_accepted_and_a_newer_one_is_refused(self):
        self.assertIn("glibc 2.34", self.check())
        self.patch(b"GLIBC_2.34\0", b"GLIBC_2.35\0")
        self.refused("needs glibc 2.35, and Lambda has 2.34. Build with `make release`")

    def test_versions_are_compared_as_numbers(self):
        self.patch(b"GLIBC_2.34\0", b"GLIBC_2.4\0\0")
        self.assertRegex(self.check(), "glibc 2.4 +ok|glibc 2.17 +ok")

    def test_another_architecture_is_refused(self):
        self.refused(f"is built for {HOST}, not for {OTHER}", OTHER)

    def test_a_file_that_is_not_executable_is_refused(self):
        self.bootstrap.chmod(0o644)
        self.refused("is not executable")

    def test_a_script_is_refused(self):
        self.bootstrap.write_text("#!/bin/sh\n")
        self.refused("is not an ELF file")

    def test_a_function_without_a_bootstrap_is_refused(self):
        self.bootstrap.unlink()
        self.refused("GetSiteFunction/bootstrap: it is missing")

    def test_a_refused_build_deletes_the_previous_manifest(self):
        self.check()
        self.bootstrap.chmod(0o644)
        self.refused("is not executable")

    def test_a_folder_without_a_build_is_refused(self):
        (self.folder / "template.yaml").unlink()
        self.refused("is missing: build first")


class Verify(Builds):
    def test_a_checked_build_is_accepted(self):
        self.check()
        self.verify()

    def test_an_unchecked_build_is_refused(self):
        with self.assertRaisesRegex(bootstraps.Refused, "was not checked"):
            self.verify()

    def test_a_changed_function_template_or_additional_file_is_refused(self):
        self.check()
        for path in ("Sites/GetSiteFunction/bootstrap", "Sites/template.yaml", "Sites/GetSiteFunction/more"):
            file = self.folder / path
            before = file.read_bytes() if file.exists() else None
            file.write_bytes((before or b"") + b"\n")
            with self.subTest(path), self.assertRaisesRegex(bootstraps.Refused, f"changed since it was checked: {path}"):
                self.verify()
            file.write_bytes(before) if before else file.unlink()
        self.verify()

    def test_a_missing_file_is_refused(self):
        self.check()
        self.bootstrap.unlink()
        with self.assertRaisesRegex(bootstraps.Refused, "changed since it was checked: Sites/GetSiteFunction/bootstrap"):
            self.verify()

    def test_a_build_for_another_architecture_is_refused(self):
        self.check()
        with self.assertRaisesRegex(bootstraps.Refused, f"is built for {HOST}, not for {OTHER}"):
            self.verify(OTHER)

    def test_the_manifest_survives_a_tar(self):
        self.check()
        archive, copy = self.folder.parent / f"{self.folder.name}.tar", self.folder / "copy"
        self.addCleanup(archive.unlink)
        subprocess.run(["tar", "--create", "--file", archive, "--directory", self.folder, "."], check=True)
        copy.mkdir()
        subprocess.run(["tar", "--extract", "--file", archive, "--directory", copy], check=True)
        with redirect_stdout(StringIO()):
            bootstraps.verify(copy, HOST)
        self.assertEqual(json.loads((copy / bootstraps.MANIFEST).read_text())["architecture"], HOST)


class Services(unittest.TestCase):
    """Tests that services.py deploys only checked builds, except on the local stack."""

    def test_the_last_architecture_counts_and_arm64_is_the_default(self):
        self.assertEqual(services.architecture(["LogLevel=DEBUG"]), "arm64")
        self.assertEqual(services.architecture(["Architecture=arm64", "Architecture=x86_64"]), "x86_64")

    def test_a_build_that_was_not_checked_is_not_deployed(self):
        refused = mock.Mock(side_effect=bootstraps.Refused("was not checked"))
        with mock.patch.object(bootstraps, "verify", refused), mock.patch.object(services, "sam") as sam:
            with mock.patch.object(services, "refuse_root"):
                with self.assertRaisesRegex(SystemExit, "was not checked"):
                    services.deploy("staging", ["billing"], built=True, confirmed=True)
                sam.assert_not_called()
                services.deploy("local", ["billing"], built=True, confirmed=True)
                self.assertEqual(sam.call_args.args[:2], ("billing", "deploy"))


if __name__ == "__main__":
    unittest.main()
