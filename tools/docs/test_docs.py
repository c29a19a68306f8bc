"""The documentation names things that exist: linked files and headings, paths, tests, goals of the Makefile. Its
diagrams have one statement per line."""

import re
import subprocess
import unittest
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
# Each file that these pages name in code must exist, even if the page names it without its folder.
MAPS = ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/adding-a-step.md"]
# These pages describe the past, so the files that they name may no longer exist.
HISTORY = ["CHANGELOG.md", "docs/decisions.md"]
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
# A path in code: `shared/store/src/lib.rs`, `functions/<service>/template.yaml`, `Makefile`.
PATH = re.compile(r"^[\w.<>*-]+(/[\w.<>*-]+)*/?$")
FILE_TYPES = (".rs", ".md", ".toml", ".yaml", ".yml", ".json", ".py", ".sh", "Makefile")
TEST = re.compile(r"^([\w./-]+\.rs)::(\w+)$")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
# The first line of a diagram, and the arrows of the kinds of diagrams that may have only one arrow in a line.
DIAGRAM = re.compile(r"^(flowchart (TB|LR)|sequenceDiagram|stateDiagram-v2|xychart-beta)$")
MESSAGE = re.compile(r"\w--?>>[\w+-]")


def tracked():
    """The paths of the repository's files, new ones included."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    output = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in output.split("\0") if path and (ROOT / path).exists()]


FILES = tracked()
FOLDERS = {str(folder) for path in FILES for folder in PurePosixPath(path).parents} - {"."}
TOP = {path.split("/")[0] for path in FILES if "/" in path}
PAGES = {path: (ROOT / path).read_text(encoding="utf-8") for path in FILES if path.endswith(".md")}
CURRENT = {name: page for name, page in PAGES.items() if name not in HISTORY}
GOALS = set(re.findall(r"^([a-z0-9-]+)(?= |:)[^=\n]*:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def without_code(page):
    return CODE.sub("", FENCE.sub("", page))


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    found, count = set(), {}
    for heading in HEADING.findall(FENCE.sub("", page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        repeated = count.get(slug, 0)
        count[slug] = repeated + 1
        found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def broken_links(name, page):
    """Yields the problems of a page's links to this repository."""
    text = without_code(page)
    for target in LINK.findall(text) + REFERENCE.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked, text_of_linked = name, page
        if path:
            steps = []
            for step in (PurePosixPath(name).parent / path).parts:
                if step == ".." and steps:
                    steps.pop()
                else:
                    steps.append(step)
            linked = "/".join(steps)
            if linked not in FILES and linked not in FOLDERS:
                yield f"{name}: there is no {target}"
                continue
            text_of_linked = PAGES.get(linked, "")
        if anchor and anchor not in anchors(text_of_linked):
            yield f"{name}: {linked} has no heading #{anchor}"


def exists(path):
    """Returns whether the repository has a path. `*` and `<name>` in the path stand for any name."""
    path = path.rstrip("/")
    pattern = re.escape(re.sub(r"<[^>]*>", "*", path)).replace(r"\*", "[^/]*")
    # A path that does not begin with a folder at the root, such as `src/lib.rs`, matches the end of a longer path.
    begin = "" if path.split("/")[0] in TOP else "(.*/)?"
    expression = re.compile(f"{begin}{pattern}")
    return any(expression.fullmatch(one) for one in [*FILES, *FOLDERS])


def has_test(path, function):
    return path in FILES and f"fn {function}(" in (ROOT / path).read_text(encoding="utf-8")


def missing_names(name, page):
    """Yields the paths and tests that a page names in code, but that do not exist."""
    in_fences = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, sorted(TOP)))})/[\w./<>*-]*[\w/>*]")
    for _, fenced in FENCE.findall(page):
        for path in in_fences.findall(fenced):
            if not exists(path):
                yield f"{name}: there is no {path}"
    for _, code in CODE.findall(FENCE.sub("", page)):
        if test := TEST.match(code):
            if not has_test(*test.groups()):
                yield f"{name}: there is no test {code}"
        elif PATH.match(code):
            from_root = "/" in code and code.split("/")[0] in TOP
            if (from_root or name in MAPS and code.endswith(FILE_TYPES)) and not exists(code):
                yield f"{name}: there is no {code}"


def missing_goals(name, page):
    """Yields the goals of `make` that a page names, but that the Makefile does not have."""
    commands = [code for _, code in CODE.findall(FENCE.sub("", page))]
    commands += [line for _, fenced in FENCE.findall(page) for line in fenced.splitlines()]
    for command in commands:
        words = re.match(r"^(?:\w+=\S+ )*make ((?:[a-z][a-z0-9-]*(?: |$))+)", command)
        for goal in words.group(1).split() if words else []:
            if goal not in GOALS:
                yield f"{name}: there is no goal in `{command}`"


def wrapped_diagrams(name, page):
    """Yields the diagrams whose lines were joined, such as by an editor that wraps text."""
    for diagram in MERMAID.findall(page):
        first, *lines = diagram.splitlines()
        if not DIAGRAM.match(first):
            yield f"{name}: a diagram begins with `{first}`, not with its kind alone"
        for line in lines:
            if len(MESSAGE.findall(line)) > 1:
                yield f"{name}: a line of a diagram has several messages: `{line.strip()}`"


class Docs(unittest.TestCase):
    def check(self, problems):
        self.assertEqual([], sorted(set(problems)))

    def test_links_lead_to_files_and_headings(self):
        self.assertGreater(len(PAGES), 10)
        self.check(problem for name, page in PAGES.items() for problem in broken_links(name, page))

    def test_paths_and_tests_exist(self):
        self.assertLessEqual(set(MAPS), set(CURRENT))
        self.check(problem for name, page in CURRENT.items() for problem in missing_names(name, page))

    def test_goals_of_make_exist(self):
        self.assertIn("quick", GOALS)
        self.check(problem for name, page in CURRENT.items() for problem in missing_goals(name, page))

    def test_diagrams_have_one_statement_per_line(self):
        self.assertGreater(sum(len(MERMAID.findall(page)) for page in CURRENT.values()), 10)
        self.check(problem for name, page in CURRENT.items() for problem in wrapped_diagrams(name, page))

    def test_what_is_wrong_is_found(self):
        wrong = {
            "```mermaid\nsequenceDiagram autonumber\n  A->>B: c\n```\n": wrapped_diagrams,
            "```mermaid\nsequenceDiagram\n  A->>B: c B-->>A: d\n```\n": wrapped_diagrams,
            "[a](nothing.md)": broken_links,
            "[a](../docs/nothing.md)": broken_links,
            "[a](#nothing)": broken_links,
            "[a](README.md#nothing)": broken_links,
            "`shared/nothing/src/lib.rs`": missing_names,
            "`functions/<service>/nothing.yaml`": missing_names,
            "`nothing.rs`": missing_names,
            "`tests/smoke.rs::nothing`": missing_names,
            "`shared/store/src/lib.rs::nothing`": missing_names,
            "```mermaid\nA->>B: shared/nothing.rs\n```\n": missing_names,
            "`make nothing`": missing_goals,
            "```sh\nmake up nothing NAME=x\n```\n": missing_goals,
        }
        for page, check in wrong.items():
            with self.subTest(page):
                self.assertTrue(list(check(MAPS[0], page)))

    def test_what_is_right_is_accepted(self):
        right = {
            "```mermaid\nsequenceDiagram\n  A->>B: c\n  B-->>A: d\n```\n": wrapped_diagrams,
            "# A `b` c, d\n[a](#a-b-c-d) [b](README.md) [c](docs) [d](https://example.org/x)": broken_links,
            "`functions/<service>/template.yaml` `src/lib.rs` `shared/` `POST /sites` `a/b`": missing_names,
            "`make quick` `make up deploy-local` `make logs NAME=reserve-kits`": missing_goals,
        }
        for page, check in right.items():
            with self.subTest(page):
                self.assertEqual([], list(check(MAPS[0], page)))


if __name__ == "__main__":
    unittest.main()
