"""How figures and names are written on the page: signs, ranges, ids of cases."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

MISSING: Final = "-"
# Beside the word or in its place, so that no verdict is told by colour alone.
SIGNS: Final[Mapping[str, str]] = {
    "crash": "!",
    "timeout": "\N{HORIZONTAL ELLIPSIS}",
    "lost": "?",
    "fail": "\N{MULTIPLICATION SIGN}",
    "pass": "\N{CHECK MARK}",
    "skip": "\N{EN DASH}",
}
TIMES: Final = "\N{MULTIPLICATION SIGN}"
DIFFERS: Final = "\N{NOT EQUAL TO}"

_NO_ID = re.compile(r"[^\w./=+:@,~-]+", re.ASCII)


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def case_ids(cases: Sequence[str]) -> dict[str, str]:
    """The id of each case's place on the page; of an ordinary one ``case-`` and its name."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for case in cases:
        plain = one = "case-" + _NO_ID.sub("-", case)
        number = 2
        while one in taken:
            one, number = f"{plain}~{number}", number + 1
        taken.add(one)
        ids[case] = one
    return ids


def ranged(row: Mapping[str, Any], name: str, told: Callable[[int], str] = str) -> str:
    """``4096``, or ``4000-4096`` where the runs of a case are not alike."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low is None or high is None:
        return MISSING
    return told(low) if low == high else f"{told(low)}\N{EN DASH}{told(high)}"


# Acquired minus released: each of the two counters may be off by the bound.
_NET: Final = ("held", "leaked", "orphaned")


def pages(row: Mapping[str, Any], name: str) -> str:
    """A pin figure with what is known of its error: ``~`` where others pinned nearby."""
    figure = ranged(row, name)
    if figure == MISSING:
        return figure
    if row["pins_noise"] or row["pins_recent"]:
        return f"~{figure}"
    bound = (row["pins_bound"] or 0) * (2 if name in _NET else 1)
    return f"{figure} ±{bound}" if row["inexact"] and bound else figure


def kib(row: Mapping[str, Any], name: str) -> str:
    return ranged(row, name, lambda size_bytes: str(size_bytes // 1024))


def us(time_ns: float | None) -> str:
    """Microseconds with three digits."""
    if time_ns is None:
        return MISSING
    time_us = time_ns / 1000
    return f"{time_us:.{2 if time_us < 9.995 else 1 if time_us < 99.95 else 0}f}"
