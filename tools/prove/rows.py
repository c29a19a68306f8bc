"""The table in docs/believed-not-seen.md: each row names its step."""

import re

from environment import ROOT

PAGE = ROOT / "docs" / "believed-not-seen.md"
GENERAL = "## General steps"
ROW = re.compile(r"^\| \d{4}-\d{2}-\d{2} \|.*\|$")
CELL = re.compile(r"(?<!\\)\|")


def cells(line):
    return [cell.strip() for cell in CELL.split(line)[1:-1]]


def rows(text):
    """Returns (what is believed, names of steps, when it was seen) for each row."""
    return [(found[1], re.findall(r"`([a-z0-9-]+)`", found[3]), found[5]) for found in map(cells, filter(ROW.match, text.splitlines()))]


def general(text):
    """Returns the names of the steps that prove no single row."""
    _, _, section = text.partition(GENERAL)
    return re.findall(r"^- `([a-z0-9-]+)`", section, re.MULTILINE)


def dated(text, proved):
    """Returns the page, with a date in each row whose steps were all proved. `proved` contains the date by step."""
    lines = []
    for line in text.splitlines():
        if ROW.match(line):
            found = cells(line)
            named = re.findall(r"`([a-z0-9-]+)`", found[3])
            if named and all(name in proved for name in named):
                date = max(proved[name] for name in named)
                found[5] = f"{date}, `tools/prove-on-aws.sh --only {' '.join(named)}`"
                line = f"| {' | '.join(found)} |".replace("|  |", "| |")
        lines.append(line)
    return "\n".join(lines) + "\n"
