#!/usr/bin/env python3
"""Checks that built functions can start on Lambda, and verifies before a deployment that the checked build is unchanged.

    .venv/bin/python tools/deploy/bootstraps.py check DIR... [--architecture arm64]    after `sam build`; `make release` runs it
    .venv/bin/python tools/deploy/bootstraps.py verify DIR... [--architecture arm64]   before `sam deploy`

DIR is a build folder of sam, such as .aws-sam/release. `check` checks the `bootstrap` of each function in its template: it
must be an executable ELF file for the architecture, and must not need a newer glibc than Lambda has. Then `check` writes the
checksum of each file in DIR to DIR/checked.json. `verify` compares the files with these checksums.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

MANIFEST = "checked.json"
# Lambda's architectures, as the header of an ELF file names them.
MACHINES = {"arm64": "EM_AARCH64", "x86_64": "EM_X86_64"}
# The glibc of provided.al2023 (Amazon Linux 2023).
MAX_GLIBC = (2, 34)
COMPILER_HELP = "Build with `make release`, which links with zig; a binary from the host's linker needs the host's glibc."
MACHINE_HELP = "Build for x86_64 on an x86_64 machine: sam sets the target only for arm64."


class Refused(Exception):
    """A build that must not be deployed."""


def functions(template):
    """Yields (name, folder) of each function in a built template and its nested templates."""
    from samcli.yamlhelper import yaml_parse

    for name, resource in yaml_parse(template.read_text())["Resources"].items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::Serverless::Function":
            yield name, template.parent / properties["CodeUri"]
        elif resource["Type"] == "AWS::Serverless::Application":
            yield from functions(template.parent / properties["Location"])


def glibc_versions(elf):
    """Yields the glibc versions that a binary requires, as tuples: GLIBC_2.34 is (2, 34). A static binary requires none."""
    from elftools.elf.gnuversions import GNUVerNeedSection

    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, needed in section.iter_versions():
                for version in needed:
                    library, _, number = version.name.partition("_")
                    if library == "GLIBC" and number[:1].isdigit():
                        yield tuple(int(part) for part in number.split("."))


def examine(bootstrap, architecture):
    """Returns (the highest required version of glibc or None, problems) of a binary."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    if not bootstrap.is_file():
        return None, ["it is missing"]
    problems = [] if os.access(bootstrap, os.X_OK) else ["it is not executable"]
    with bootstrap.open("rb") as file:
        try:
            elf = ELFFile(file)
            machine, versions = elf["e_machine"], set(glibc_versions(elf))
        except ELFError as error:
            return None, [*problems, f"it is not an ELF file: {error}"]
    if machine != MACHINES[architecture]:
        built_for = next((name for name, known in MACHINES.items() if known == machine), machine)
        problems.append(f"it is built for {built_for}, not for {architecture}. {MACHINE_HELP if architecture == 'x86_64' else ''}".rstrip())
    highest = max(versions, default=None)
    if highest and highest > MAX_GLIBC:
        problems.append(f"it needs glibc {dotted(highest)}, and Lambda has {dotted(MAX_GLIBC)}. {COMPILER_HELP}")
    return highest, problems


def dotted(version):
    return ".".join(map(str, version))


def checksums(folder):
    """Returns the SHA-256 of each file in a build folder except the manifest, by its relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(folder, architecture):
    """Checks a build folder and prints a table of its functions. Writes the manifest if none is refused."""
    template = folder / "template.yaml"
    if not template.is_file():
        raise Refused(f"{template} is missing: build first, with `make release`.")
    (folder / MANIFEST).unlink(missing_ok=True)
    print(f"{folder}, for {architecture}:")
    failed = []
    for name, code in functions(template):
        bootstrap = code / "bootstrap"
        glibc, problems = examine(bootstrap, architecture)
        size = f"{bootstrap.stat().st_size / 1e6:5.2f} MB" if bootstrap.is_file() else "-"
        needs = f"glibc {dotted(glibc)}" if glibc else "no glibc"
        print(f"  {name:32} {size:>8}  {needs:10}  {'ok' if not problems else 'REFUSED'}")
        failed += [f"{bootstrap}: {problem}" for problem in problems]
    if failed:
        raise Refused("\n".join(failed))
    manifest = {"architecture": architecture, "files": checksums(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def verify(folder, architecture):
    """Refuses a build folder that was not checked for the architecture, or that was changed after the check."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise Refused(f"{folder} was not checked: build it with `make release`.") from None
    if manifest["architecture"] != architecture:
        raise Refused(f"{folder} is built for {manifest['architecture']}, not for {architecture}.")
    found, expected = checksums(folder), manifest["files"]
    changed = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    if changed:
        raise Refused(f"{folder} changed since it was checked: {', '.join(changed)}. Build it again with `make release`.")
    print(f"{folder}: {len(expected)} files are unchanged since the check")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("check", "verify"))
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--architecture", choices=MACHINES, default="arm64")
    arguments = parser.parse_args()
    command = {"check": check, "verify": verify}[arguments.command]
    refused = []
    for folder in arguments.folders:
        try:
            command(folder, arguments.architecture)
        except Refused as error:
            refused.append(str(error))
    sys.exit("\n".join(refused) or None)


if __name__ == "__main__":
    main()
