"""``--gate``: what a comparison must not show, and whether it does.

    GATE    = WHAT [ "in" GLOB ] | FIGURE ( "<=" | "<" | ">=" | ">" ) CHANGE "%" [ "in" GLOB ]
    WHAT    = "verdicts" | "outcomes" | "predictions" | "pins" | "cases"
    FIGURE  = "acquire.median" | "release.median" | "acquire.p99" | "release.p99" | "rate"

A gate on a figure is kept by a case whose whole interval is within it, and broken by one whose
interval lies wholly outside. Anything else it cannot tell; that breaks it only when asked to be
strict.
"""

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from pinstorm.compare.timing import ACQUIRE, RATE, RELEASE, Timing
from pinstorm.errors import UsageError

VERDICTS: Final = "verdicts"
OUTCOMES: Final = "outcomes"
PREDICTIONS: Final = "predictions"
PINS: Final = "pins"
CASES: Final = "cases"
THINGS: Final = (VERDICTS, OUTCOMES, PREDICTIONS, PINS, CASES)
PERCENTILES: Final = ("acquire.p99", "release.p99")
FIGURES: Final = (ACQUIRE, RELEASE, *PERCENTILES, RATE)
UPPER: Final = ("<=", "<")

_GATE = re.compile(
    r"\s*(?P<what>[a-z0-9.]+)"
    r"(?:\s*(?P<sign><=|>=|<|>|==|=)\s*(?P<change>[^\s%<>=]+)\s*(?P<unit>%?))?"
    r"(?:\s+in\s+(?P<glob>\S+))?\s*"
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")

State = Literal["kept", "broken", "can't tell"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate. ``sign`` and ``limit`` (b / a may be so much) only of a figure."""

    text: str
    what: str
    glob: str | None = None
    sign: str | None = None
    limit: float | None = None

    def covers(self, label: str) -> bool:
        """Whether it speaks of that case; a kernel's name may stand before it."""
        _, _, case = label.rpartition(": ")
        return self.glob is None or fnmatchcase(label, self.glob) or fnmatchcase(case, self.glob)

    def nothing(self, what: str) -> str:
        """Why there is nothing to judge: ``no case in rdma/* ran on both``."""
        return f"no case {f'in {self.glob} ' if self.glob is not None else ''}{what}"


@dataclass(frozen=True, slots=True)
class Broken:
    """One case that breaks a gate, and by how much in words."""

    case: str
    how: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A gate and what came of it. ``of``: how many cases it spoke of; ``untold``: of how many it
    cannot tell, and ``why`` in words."""

    gate: Gate
    state: State
    broken: tuple[Broken, ...]
    of: int
    untold: int
    why: str | None = None

    def fails(self, strict: bool) -> bool:
        return self.state == "broken" or (strict and self.state == "can't tell")

    def to_json(self) -> dict[str, Any]:
        return {
            "gate": self.gate.text,
            "state": self.state,
            "cases": self.of,
            "untold": self.untold,
            "why": self.why,
            "broken": [{"case": one.case, "how": one.how} for one in self.broken],
        }


def parse(text: str) -> Gate:
    """A gate as a person wrote it. Raises UsageError."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise UsageError(f"gate {text!r} is not understood: {_EXAMPLES}")
    what, sign, change, unit, glob = match.group("what", "sign", "change", "unit", "glob")
    if what not in (*THINGS, *FIGURES):
        known = ", ".join((*THINGS, *FIGURES))
        raise UsageError(f"gate {text!r} speaks of {what!r}, which is none of {known}")
    if what in THINGS:
        if sign is not None:
            raise UsageError(f"gate {text!r}: {what} either change or not, so write {what!r} alone")
        return Gate(text.strip(), what, glob)
    if sign is None:
        bound = ">= -5%" if what == RATE else "<= +10%"
        raise UsageError(f"gate {text!r} says no limit: write '{what} {bound}'")
    if sign not in (">=", ">", *UPPER):
        raise UsageError(f"gate {text!r} has the sign {sign!r}: write <=, <, >= or >")
    if unit != "%" or _NUMBER.fullmatch(change) is None:
        raise UsageError(
            f"gate {text!r}: {change}{unit} is no change in percent: write one such as +10%"
        )
    percent = float(change)
    if percent <= -100:
        raise UsageError(f"gate {text!r}: nothing gets less by 100% or more: write a smaller one")
    return Gate(text.strip(), what, glob, sign, 1 + percent / 100)


_EXAMPLES: Final = "write one such as 'acquire.p99 <= +10%' or 'verdicts'"


def judge_figure(
    gate: Gate, timings: Iterable[Timing], labels: Sequence[str], lacking: str, rounds_wanted: int
) -> Judged:
    """A gate on times or rates, of the timings of its figure.

    ``lacking``: why there is nothing to judge, should there be none.
    """
    assert gate.limit is not None
    broken, untold, count = [], 0, 0
    few = False
    for timing in timings:
        if not gate.covers(labels[timing.index]):
            continue
        count += 1
        if timing.low is None or timing.high is None:
            untold += 1
            few = few or timing.why == "few-rounds"
        elif _outside(gate, timing.low, timing.high):
            broken.append((timing, Broken(_name(timing, labels), how(timing))))
        elif not _within(gate, timing.low, timing.high):
            untold += 1
    worst = sorted(broken, key=lambda one: one[0].ratio, reverse=gate.sign in UPPER)
    why = None
    if not count:
        why = lacking
    elif few:
        why = f"too few rounds: {rounds_wanted} on each side are wanted"
    elif untold:
        why = "the limit lies inside the interval, or there is none"
    state: State = "broken" if broken else "can't tell" if untold or not count else "kept"
    return Judged(gate, state, tuple(words for _, words in worst), count, untold, why)


def judge_thing(
    gate: Gate, changes: Iterable[tuple[str, str]], count: int, untold: str | None = None
) -> Judged:
    """A gate on verdicts, outcomes, predictions, pins or cases.

    ``changes``: (case, how) that break it; ``count``: of so many cases; ``untold``: why nothing can
    be said.
    """
    broken = tuple(Broken(case, how) for case, how in changes if gate.covers(case))
    if broken:
        return Judged(gate, "broken", broken, count, 0)
    return Judged(
        gate, "can't tell" if untold else "kept", (), count, count if untold else 0, untold
    )


def sentence(judged: Iterable[Judged], strict: bool) -> str | None:
    """What is broken, by which cases and how much; None when nothing is."""
    parts = []
    for one in judged:
        if one.state == "broken":
            shown = "; ".join(f"{broken.case} {broken.how}" for broken in one.broken[:_SHOWN])
            count = len({broken.case for broken in one.broken})
            more = f"; and {len(one.broken) - _SHOWN} more" if len(one.broken) > _SHOWN else ""
            cases = "case" if one.of == 1 else "cases"
            parts.append(
                f"gate '{one.gate.text}' is broken by {count} of {one.of} {cases}: {shown}{more}"
            )
        elif one.fails(strict):
            parts.append(f"gate '{one.gate.text}' cannot tell, and --strict is given: {one.why}")
    return " | ".join(parts) or None


_SHOWN: Final = 3


def percent(ratio: float) -> str:
    """``+12.3 %``, ``-4.0 %``; beyond tenfold the factor."""
    if ratio >= 10:
        return f"x{ratio:.3g}"
    return f"{100 * (ratio - 1):+.1f} %"


def how(timing: Timing) -> str:
    """``+23.0 % (+15.1 to +31.4 %)``."""
    if timing.low is None or timing.high is None:
        return percent(timing.ratio)
    low = percent(timing.low).removesuffix(" %")
    return f"{percent(timing.ratio)} ({low} to {percent(timing.high)})"


def _name(timing: Timing, labels: Sequence[str]) -> str:
    job = f" job {timing.job}" if timing.job is not None else ""
    return f"{labels[timing.index]}{job}"


def _outside(gate: Gate, low: float, high: float) -> bool:
    """Whether the whole interval breaks the gate."""
    return not any(_COMPARE[gate.sign or "<="](end, gate.limit) for end in (low, high))


def _within(gate: Gate, low: float, high: float) -> bool:
    """Whether the whole interval keeps it."""
    return all(_COMPARE[gate.sign or "<="](end, gate.limit) for end in (low, high))


_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
