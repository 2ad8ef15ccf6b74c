"""The table of all cases: a line for each case and kernel, over all its runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pinstorm.report.html import aggregates
from pinstorm.report.html.aggregates import Side
from pinstorm.report.html.words import MISSING, SIGNS, kib, pages, ranged, us


@dataclass(frozen=True, slots=True)
class CaseLine:
    """A case on one kernel in the table of all cases."""

    kernel: str
    verdict: str
    sign: str
    cells: tuple[str, ...]
    cause: str
    rule: str


@dataclass(frozen=True, slots=True)
class CaseRows:
    id: str
    case: str
    cell: str
    differs: bool
    detailed: bool
    lines: tuple[CaseLine, ...]


def columns(sides: Sequence[Side], groups: pl.DataFrame) -> tuple[str, ...]:
    """The heads of the table of cases after case, kernel, verdict, outcome, cause and rule."""
    emulated = bool(sides) and all(side.emulated for side in sides)
    return (
        *(["runs"] if several(groups) else []),
        "acquired pages",
        "held pages",
        "leaked pages",
        "VmPin KiB",
        "migrated pages",
        "first acquire µs" + (", emulated" if emulated else ""),
        "acquire median µs" + (", emulated" if emulated else ""),
    )


def several(groups: pl.DataFrame) -> bool:
    return bool(groups.height) and int(groups["runs"].max() or 0) > 1  # type: ignore[arg-type]


def case_rows(
    shown: pl.DataFrame,
    of_case: Mapping[str, list[dict[str, Any]]],
    sides: Sequence[Side],
    ids: Mapping[str, str],
    detailed: set[str],
    groups: pl.DataFrame,
) -> Iterator[CaseRows]:
    repeated = several(groups)
    mixed = len({side.emulated for side in sides}) > 1
    order = {side.key: number for number, side in enumerate(sides)}
    for row in shown.iter_rows(named=True):
        found = sorted(of_case.get(row["case"], ()), key=lambda group: order[group["side"]])
        lines = tuple(
            _case_line(group, sides[order[group["side"]]], repeated, mixed) for group in found
        )
        if lines:
            case = row["case"]
            cell = f"{row['workload']}/{row['memory']}"
            yield CaseRows(ids[case], case, cell, row["differs"], case in detailed, lines)


def _case_line(group: Mapping[str, Any], side: Side, several: bool, mixed: bool) -> CaseLine:
    verdicts = [(name, group[f"v_{name}"]) for name in aggregates.VERDICTS if group[f"v_{name}"]]
    worst = verdicts[0][0] if verdicts else "fail"
    told = worst if len(verdicts) == 1 else ", ".join(f"{count} {name}" for name, count in verdicts)
    label = " emulated" if mixed and side.emulated else ""
    moved = group["migrate_success_high"], group["migrate_fail_high"]
    migrated = ranged(group, "migrate_success") + (
        f" / {ranged(group, 'migrate_fail')} failed" if moved[1] else ""
    )
    figures = (
        pages(group, "acquired"),
        pages(group, "held"),
        pages(group, "leaked"),
        kib(group, "vmpin_held_bytes"),
        migrated,
        *(
            us(group[key]) + (label if group[key] is not None else "")
            for key in ("first_ns", "acquire_median_ns")
        ),
    )
    outcomes = " ".join(group["outcomes"]) or MISSING
    runs = (str(group["runs"]),) if several else ()
    return CaseLine(
        side.label,
        worst,
        SIGNS[worst],
        (told, outcomes, *runs, *figures),
        group["cause"] or "",
        group["rule"] or "",
    )
