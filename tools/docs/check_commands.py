#!/usr/bin/env python3
"""Runs the shell commands of pages on the deployed local stack, as a reader does who pastes them.

    .venv/bin/python tools/docs/check_commands.py README.md docs/integrating.md

The commands are the blocks with the language `sh`. Each page has one shell, so a block can use what an earlier one set. A
command that fails ends its page. These comments, in the line above a block, change what is done with it:

    <!-- docs-check: skip: REASON -->    The block does not run. It is listed with the reason.
    <!-- docs-check: output -->          The block is JSON. It must be equal to the last JSON value that the block before it
                                         printed; a text that ends in `...` stands for any text.

`fieldctl`, `aws`, `curl` and `jq` must be on the PATH. The commands do not see the caller's AWS settings, so they reach no
stack but the one that `make env` names.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 120
SCRIPT = "commands.sh"
FENCE = re.compile(r"^( *)(```+|~~~+) *([\w-]*)")
COMMENT = re.compile(r"^<!-- docs-check: *(.*?) *-->$")
SHELLS = {"bash", "shell", "console", "zsh"}
# Stops at the first error. A reader's own files are never overwritten (noclobber). The file `at` has the line and the text of
# the command that runs; ERR adds the compound commands, for which bash does not call DEBUG.
PRELUDE = r"""set -euo pipefail -o noclobber; trap 'printf "%s\n" "$LINENO" "$BASH_COMMAND" >| "$DOCS_CHECK/at"' DEBUG ERR"""


class Mistake(Exception):
    """A page that can't be checked: a wrong comment, or a block without a language that is checked."""


@dataclass
class Block:
    """A fenced block of a page."""

    line: int  # of the opening fence, from 1
    language: str
    text: str
    skipped: str | None = None  # the reason
    is_output: bool = False

    @property
    def runs(self):
        return self.language == "sh" and self.skipped is None


@dataclass
class Failure:
    """What is wrong with a page's commands."""

    line: int
    command: str
    problem: str
    output: str

    def report(self, page):
        output = "".join(f"    {line}\n" for line in self.output.splitlines())
        command = self.command.replace("\n", "\n             ")
        return f"{page}:{self.line}: {self.problem}\n  command:   {command}\n  output:\n{output}"


def blocks(page):
    """Returns the blocks of a page that run, are skipped, or are an output."""
    found, comment, lines = [], None, page.splitlines()
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if not fence:
            if comment:
                raise Mistake(f"line {at}: a comment of docs-check must be in the line above a block")
            if "docs-check:" in lines[at]:
                comment = COMMENT.match(lines[at])
                if not comment or not re.fullmatch(r"skip: \S.*|output", comment.group(1)):
                    raise Mistake(f"line {at + 1}: must be <!-- docs-check: skip: REASON --> or <!-- docs-check: output -->")
            at += 1
            continue
        indent, mark, language = fence.groups()
        line, content = at + 1, []
        at += 1
        while at < len(lines) and lines[at].strip() != mark:
            content.append(lines[at])
            at += 1
        at += 1
        block = Block(line, language, "\n".join(content))
        what = comment.group(1) if comment else ""
        comment = None
        if language in SHELLS:
            raise Mistake(f"line {line}: use the language sh instead of {language}")
        if language == "sh" and indent:
            raise Mistake(f"line {line}: an indented block can't run")
        if what.startswith("skip: "):
            if language != "sh":
                raise Mistake(f"line {line}: only blocks of sh run, so only they can be skipped")
            block.skipped = what.removeprefix("skip: ")
        elif what == "output":
            before = found[-1] if found else None
            if language != "json" or not (before and before.runs):
                raise Mistake(f"line {line}: an output must be JSON, after a block that runs")
            block.is_output = True
        if language == "sh" or block.is_output:
            found.append(block)
    return found


def script(page, parts):
    """Returns a script with the blocks that run. Each command has the same line number as in the page, so the line
    numbers in the shell's messages are right. In the line of a block's opening fence, the script redirects the block's
    output to files that are named after that line."""
    lines = [""] * (len(page.splitlines()) + 1)
    for block in parts:
        if block.runs:
            lines[block.line - 1] = f'exec > "$DOCS_CHECK/{block.line}.out" 2> "$DOCS_CHECK/{block.line}.err"'
            content = block.text.split("\n")
            lines[block.line:block.line + len(content)] = content
    if lines[0]:
        raise Mistake("line 1: a page begins with its title")
    lines[0] = PRELUDE
    return "\n".join(lines)


def environment(scratch):
    """Returns the variables of the shell: those of the caller, except the settings for AWS and the variables that
    `make` adds."""
    hidden = ("AWS_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return kept | {
        "DOCS_CHECK": str(scratch),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def last_json(text):
    """Returns the last JSON object or list in a text, or None."""
    decoder, found, at = json.JSONDecoder(), None, 0
    while begin := re.compile(r"[{\[]").search(text, at):
        try:
            found, at = decoder.raw_decode(text, begin.start())
        except ValueError:
            at = begin.end()
    return found


def differences(shown, printed, where="the output"):
    """Yields how a printed value differs from the one that a page shows."""
    if isinstance(shown, str) and shown.endswith("..."):
        if not isinstance(printed, str):
            yield f"{where} is {json.dumps(printed)}, and should be a text"
    elif isinstance(shown, dict) and isinstance(printed, dict):
        for name in sorted(shown.keys() | printed.keys()):
            if name not in printed:
                yield f"{where} has no {name}"
            elif name not in shown:
                yield f"{where} has {name}, which the page does not show"
            else:
                yield from differences(shown[name], printed[name], f"{where}.{name}")
    elif isinstance(shown, list) and isinstance(printed, list) and len(shown) == len(printed):
        for index, (one, other) in enumerate(zip(shown, printed)):
            yield from differences(one, other, f"{where}[{index}]")
    elif shown != printed or isinstance(shown, bool) != isinstance(printed, bool):
        yield f"{where} is {json.dumps(printed)}, and should be {json.dumps(shown)}"


def outcome(parts, status, scratch):
    """Returns the failures of a page. `status` is the exit status of its shell, or None if the shell was stopped. The
    folder `scratch` has the shell's files."""

    def printed(block, stream):
        file = scratch / f"{block.line}.{stream}"
        text = file.read_text(errors="replace") if file.exists() else ""
        return text.replace(f"{scratch / SCRIPT}: ", "")  # the shell's own messages: "line 77: ..."

    def failure(block, line, command, problem):
        return Failure(line, command, problem, printed(block, "out") + printed(block, "err"))

    failures, running = [], [block for block in parts if block.runs]
    if status != 0 and running:
        line, _, command = (scratch / "at").read_text().partition("\n")
        began = [block for block in running if (scratch / f"{block.line}.err").exists()]
        block = began[-1] if began else running[0]
        problem = f"did not end in {TIMEOUT_SECONDS} s" if status is None else f"failed with status {status}"
        failures.append(failure(block, int(line), command.strip(), problem))
    for block, following in zip(parts, parts[1:]):
        if following.is_output and (scratch / f"{block.line}.out").exists() and not failures:
            shown, value = json.loads(following.text), last_json(printed(block, "out"))
            for problem in differences(shown, value):
                failures.append(failure(block, following.line, block.text, f"shows another output: {problem}"))
    return failures


def untracked():
    """Returns the files that git neither tracks nor ignores."""
    listed = ["git", "ls-files", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return set(filter(None, output.split("\0")))


def run(page, parts):
    """Runs a page's blocks in the repository's folder, and removes the files that they made."""
    before = untracked()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / SCRIPT).write_text(script(page, parts))
        shell = subprocess.Popen(
            ["bash", str(scratch / SCRIPT)], cwd=ROOT, env=environment(scratch), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            status = shell.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            try:
                os.killpg(shell.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            shell.wait()
            for made in untracked() - before:
                (ROOT / made).unlink()
        return outcome(parts, status, scratch)


def check(name):
    """Checks a page, prints what was done, and returns whether everything is right."""
    page = (ROOT / name).read_text(encoding="utf-8")
    try:
        parts = blocks(page)
        started = time.monotonic()
        failures = run(page, parts)
    except Mistake as mistake:
        print(f"{name}, {mistake}")
        return False
    skipped = [block for block in parts if block.skipped]
    if not failures:
        count = sum(block.runs for block in parts)
        outputs = sum(block.is_output for block in parts)
        seconds = time.monotonic() - started
        print(f"{name}: blocks run: {count}, in {seconds:.0f} s; outputs as shown: {outputs}; skipped: {len(skipped)}")
    for block in skipped:
        print(f"  {name}:{block.line} skipped: {block.skipped}")
    for failure in failures:
        print(f"FAILED: {failure.report(name)}")
    return not failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", metavar="PAGE")
    results = [check(page) for page in parser.parse_args().pages]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
