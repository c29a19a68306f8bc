"""Defines and registers the steps of tools/prove-on-aws.sh. prove.py decides the order in which they run."""

import unicodedata
from dataclasses import dataclass
from typing import Callable

import bounds

PROVED, NOT_PROVED, SKIPPED = "proved", "NOT proved", "skipped"


class NotProved(Exception):
    """AWS behaves differently than expected. The message says what was seen."""


class Skipped(Exception):
    """The step can't run here. The message says why."""


def printable(text):
    """Returns the text in one line. Escapes the characters that control a terminal or are invisible, because responses contain data."""
    line = str(text).replace("\r", "").replace("\n", " ")
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in line)


@dataclass(frozen=True)
class Step:
    """One statement to prove. `run` gets an `Environment` and returns what was seen."""

    name: str
    proves: str
    run: Callable
    # Whether it changes nothing. Such a step may run on every environment.
    reads_only: bool
    # The maximum duration.
    seconds: int
    # Whether it takes more than ten minutes, or stops a part of the environment for as long. Such a step runs only with --long or by its name.
    is_long: bool
    # The maximum number of units that it uses of each price in bounds.py.
    units: dict
    # Why the emulator can't show it; empty if it can.
    not_on_emulator: str

    def usd(self):
        """Returns an upper bound of what AWS bills for it."""
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
