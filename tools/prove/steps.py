"""What a step of tools/prove-on-aws.sh is, and the list of all steps in the order in which they run."""

import unicodedata
from dataclasses import dataclass
from typing import Callable

import bounds

PROVED, NOT_PROVED, SKIPPED = "proved", "NOT proved", "skipped"


class NotProved(Exception):
    """AWS behaves in another way than was believed. The message says what was seen."""


class Skipped(Exception):
    """The step can't be run here. The message says why."""


def printable(text):
    """The text in one line, with escapes for the characters that control a terminal or are invisible: answers contain data."""
    line = str(text).replace("\r", "").replace("\n", " ")
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in line)


@dataclass(frozen=True)
class Step:
    """One thing to prove. `run` gets an `Environment` and returns what was seen."""

    name: str
    proves: str
    run: Callable
    # Changes nothing, so it may run on every environment.
    reads_only: bool
    # The longest that it takes, in seconds.
    seconds: int
    # Takes more than ten minutes, or stops a part of the environment for so long: runs only with --long, or by its name.
    is_long: bool
    # The most units that it uses of each price in bounds.py.
    units: dict
    # Why the emulator can't show it; empty if it can.
    not_on_emulator: str

    def usd(self):
        """An upper bound of what AWS bills for it."""
        return bounds.usd(self.units)


STEPS: dict[str, Step] = {}


def step(name, proves, *, writes=False, seconds=60, long=False, units=None, not_on_emulator=""):
    """Adds the function to the list of steps."""

    def add(run):
        if name in STEPS:
            raise ValueError(f"two steps are named {name}")
        STEPS[name] = Step(name, proves, run, not writes, seconds, long, units or {}, not_on_emulator)
        return run

    return add


def ensure(condition, seen):
    """Ends the step as not proved unless the condition holds."""
    if not condition:
        raise NotProved(seen)
