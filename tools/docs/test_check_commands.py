"""Unit tests of the check of documented commands. They need bash and no stack."""

import contextlib
import io
import os
import unittest
from unittest import mock

import check_commands
from check_commands import ROOT, Mistake, blocks, differences, environment, last_json, run, script

PAGES = ["README.md", "docs/integrating.md"]


def page(*lines):
    return "\n".join(["# Title", "", *lines]) + "\n"


def sh(*lines):
    return ["```sh", *lines, "```"]


def output(*lines):
    return ["<!-- docs-check: output -->", "```json", *lines, "```"]


def failures(*lines):
    """Runs a page, and returns (line, command, problem, output) of its failures."""
    text = page(*lines)
    return [(one.line, one.command, one.problem, one.output) for one in run(text, blocks(text))]


class Blocks(unittest.TestCase):
    def test_a_block_runs_unless_it_is_skipped(self):
        found = blocks(page(*sh("true"), "<!-- docs-check: skip: needs an account -->", *sh("false"), "```json", "{}", "```"))
        self.assertEqual([(3, True, None), (7, False, "needs an account")], [(b.line, b.runs, b.skipped) for b in found])

    def test_a_command_keeps_its_line(self):
        text = page("text", *sh("one", "", "two"), "text", *sh("three"))
        lines = script(text, blocks(text)).split("\n")
        self.assertEqual(["one", "", "two"], lines[4:7])
        self.assertEqual("three", lines[10])
        self.assertNotIn("text", lines)

    def test_mistakes_are_named(self):
        wrong = {
            "line 3: must be": page("<!-- docs-check: skip -->", *sh("true")),
            "line 3: must be <": page("<!-- docs-check: ignore: why -->", *sh("true")),
            "line 3: a comment": page("<!-- docs-check: skip: why -->", "", *sh("true")),
            "line 4: only blocks of sh": page("<!-- docs-check: skip: why -->", "```json", "```"),
            "line 4: an output must be JSON, after": page(*output("{}")),
            "line 8: an output": page("<!-- docs-check: skip: why -->", *sh("true"), *output("{}")),
            "line 3: use the language sh instead of bash": page("```bash", "true", "```"),
            "line 3: an indented block": page("  ```sh", "  true", "  ```"),
        }
        for message, text in wrong.items():
            with self.subTest(message), self.assertRaisesRegex(Mistake, message):
                blocks(text)

    def test_the_pages_have_commands_and_no_mistakes(self):
        for name in PAGES:
            with self.subTest(name):
                text = (ROOT / name).read_text(encoding="utf-8")
                found = blocks(text)
                self.assertTrue(any(block.runs for block in found))
                self.assertIn("make -s env", script(text, found))


class Run(unittest.TestCase):
    def test_blocks_share_a_shell(self):
        self.assertEqual([], failures(*sh("NUMBER=1", "say() { echo \"{\\\"is\\\": $1}\"; }"), *sh('say "$NUMBER"'), *output('{"is": 1}')))

    def test_a_command_that_fails_is_shown_with_its_line_and_output(self):
        found = failures(*sh("true"), *sh("echo before", "ls /nothing > /dev/null", "echo after"))
        self.assertEqual(1, len(found))
        line, command, problem, printed = found[0]
        self.assertEqual((8, "ls /nothing > /dev/null"), (line, command))
        self.assertRegex(problem, "^failed with status [12]$")
        self.assertIn("before", printed)
        self.assertIn("/nothing", printed)
        self.assertNotIn("after", printed)

    def test_a_failure_inside_a_pipeline_or_an_assignment_is_found(self):
        self.assertEqual(4, failures(*sh("false | cat"))[0][0])
        self.assertEqual(5, failures(*sh("true", "NAME=$(false)"))[0][0])

    def test_a_variable_that_nothing_set_is_found(self):
        found = failures(*sh("true", 'echo "$NOBODY_SET_THIS"'))
        self.assertEqual(5, found[0][0])
        self.assertTrue(found[0][3].startswith("line 5: NOBODY_SET_THIS: "), found[0][3])

    def test_another_output_is_found(self):
        found = failures(*sh("echo '{\"status\": \"ACTIVE\"}'"), *output('{"state": "ACTIVE"}'))
        self.assertEqual(
            ["shows another output: the output has no state", "shows another output: the output has status, which the page does not show"],
            [problem for _, _, problem, _ in found],
        )
        self.assertEqual(7, found[0][0])

    def test_a_command_that_does_not_end_is_stopped(self):
        with mock.patch.object(check_commands, "TIMEOUT_SECONDS", 0.5):
            found = failures(*sh("sleep 600"))
        self.assertEqual([(4, "sleep 600", "did not end in 0.5 s")], [one[:3] for one in found])

    def test_files_that_a_page_makes_are_removed_and_others_kept(self):
        file = ROOT / "made-by-test_check_commands"
        self.addCleanup(file.unlink, missing_ok=True)
        self.assertEqual([], failures(*sh(f"echo > {file.name}")))
        self.assertFalse(file.exists())
        file.write_text("the reader's own")
        self.assertEqual(4, failures(*sh(f"echo > {file.name}"))[0][0])
        self.assertEqual("the reader's own", file.read_text())

    def test_the_callers_settings_for_aws_are_hidden(self):
        with mock.patch.dict(os.environ, {"AWS_PROFILE": "prod", "AWS_ACCESS_KEY_ID": "AKIA", "MAKEFLAGS": "n", "LANG": "C"}):
            seen = environment("/scratch")
        self.assertEqual({"LANG": "C"}, {name: seen[name] for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "MAKEFLAGS", "LANG") if name in seen})
        self.assertEqual(os.devnull, seen["AWS_SHARED_CREDENTIALS_FILE"])


class Report(unittest.TestCase):
    def checked(self, *lines):
        name = "checked-by-test_check_commands.md"
        (ROOT / name).write_text(page(*lines))
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                right = check_commands.check(name)
        finally:
            (ROOT / name).unlink()
        return right, printed.getvalue().replace(name, "PAGE")

    def test_what_ran_and_what_was_skipped_is_counted(self):
        right, printed = self.checked(*sh("true"), "<!-- docs-check: skip: needs an account -->", *sh("false"))
        self.assertTrue(right)
        self.assertEqual("PAGE: blocks run: 1, in 0 s; outputs as shown: 0; skipped: 1\n  PAGE:7 skipped: needs an account\n", printed)

    def test_a_failure_has_page_line_command_and_output(self):
        right, printed = self.checked(*sh("echo why; (exit 3)"))
        self.assertFalse(right)
        self.assertEqual("FAILED: PAGE:4: failed with status 3\n  command:   ( exit 3 )\n  output:\n    why\n\n", printed)

    def test_a_mistake_fails_the_page(self):
        right, printed = self.checked("```bash", "```")
        self.assertFalse(right)
        self.assertIn("PAGE, line 3: use the language sh", printed)


class Outputs(unittest.TestCase):
    def test_the_last_json_value_counts(self):
        self.assertEqual({"b": [1]}, last_json('text {"a": 1}\n{ no json\n{"b": [1]} text'))
        self.assertIsNone(last_json("no json"))

    def test_a_text_that_ends_in_dots_stands_for_any_text(self):
        shown = {"id": "5511...", "samples": [["2016-01-01T00:00:00Z", -7.6]], "ok": True}
        self.assertEqual([], list(differences(shown, {**shown, "id": "85d9f309"})))
        for other in (
            {**shown, "id": 5}, {**shown, "samples": []}, {**shown, "samples": [["2016-01-01T00:00:00Z", -7.7]]},
            {**shown, "ok": 1}, {"id": "x"}, {**shown, "next": "x"}, [], None,
        ):
            with self.subTest(other):
                self.assertTrue(list(differences(shown, other)))


if __name__ == "__main__":
    unittest.main()
