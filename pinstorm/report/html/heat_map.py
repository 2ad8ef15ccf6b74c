"""The matrix: what became of each workload on each memory, every kernel in the same cell.

A cell has one line where all kernels agree, else a line for those of each answer. Several cases of
a cell (sizes, access, parameters) are counted by outcome.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from pinstorm.report.html.aggregates import NOT_PASSED, SEVERITY, VERDICTS, Side
from pinstorm.report.html.words import SIGNS, TIMES
from workloads import MEMORY, WORKLOADS

# Verdict, outcome and number of cases, for each of a cell's.
Answer = Sequence[tuple[str, str | None, int]]

# What a table can hold and still be read; the registry has half as many of each.
_MOST_COLUMNS: Final = 40
_MOST_ROWS: Final = 80
_WORDS_IN_LINE: Final = 3
_CLASSES: Final = {
    "pin-longterm": "long-term pins",
    "pin": "pins inside the call",
    "get": "references only",
    "none": "no pins",
    "": "others",
}


@dataclass(frozen=True, slots=True)
class Line:
    """``kernels``: whose line it is, empty of all that ran it; ``idle``: which skipped it.

    ``tone``: the name of its colour.
    """

    kernels: str
    tone: str
    words: tuple[str, ...]
    idle: str


@dataclass(frozen=True, slots=True)
class Cell:
    """``name``: ``workload/memory``, which the rows of the table of cases have too."""

    name: str
    first: str
    cases: int
    lines: tuple[Line, ...]
    differs: bool
    doubt: bool
    label: str


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    says: str


@dataclass(slots=True)
class HeatMap:
    """``spans``: (title, columns) above the columns; ``notes``: what is not in the table."""

    columns: list[Column] = field(default_factory=list)
    spans: list[tuple[str, int]] = field(default_factory=list)
    rows: list[tuple[Column, list[Cell | None]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tones: list[str] = field(default_factory=list)
    differing: int = 0
    doubted: int = 0


def heat_map(
    states: pl.DataFrame, cases: pl.DataFrame, sides: Sequence[Side], ids: Mapping[str, str]
) -> HeatMap:
    """Of the states and cases of aggregates; ``ids``: where a case is on the page."""
    states = states.filter(pl.col("workload") != "load", pl.col("memory").is_not_null())
    # By severity, so that the first case of a cell is its worst.
    cases = cases.filter(pl.col("workload") != "load", pl.col("memory").is_not_null())
    found = HeatMap()
    ran = states.filter(pl.col("verdict") != "skip")["workload"].unique().to_list()
    _tell_not_run(states, ran, found)
    by_class = [(c, s.name) for c in _CLASSES for s in WORKLOADS if s.pin_class == c]
    ordered = [name for _, name in by_class]
    columns = _in_order(ran, ordered)
    left = states.filter(pl.col("workload").is_in(columns))
    rows = _in_order(left["memory"].unique().to_list(), [spec.name for spec in MEMORY])
    if len(columns) > _MOST_COLUMNS or len(rows) > _MOST_ROWS:
        found.notes.append(
            f"{len(columns)} workloads and {len(rows)} memories: the first {_MOST_COLUMNS} and "
            f"{_MOST_ROWS} are shown, all are in cases.parquet"
        )
    columns, rows = columns[:_MOST_COLUMNS], rows[:_MOST_ROWS]
    _spans(columns, {name: c for c, name in by_class}, found)
    says = {spec.name: spec.summary for spec in (*WORKLOADS, *MEMORY)}
    found.columns = [Column(name, says.get(name, "")) for name in columns]
    cells = _cells(left, cases, sides, ids)
    for memory in rows:
        line = [cells.get((workload, memory)) for workload in columns]
        found.rows.append((Column(memory, says.get(memory, "")), line))
    shown = [cell for _, line in found.rows for cell in line if cell is not None]
    found.differing = sum(cell.differs for cell in shown)
    found.doubted = sum(cell.doubt for cell in shown)
    used = {line.tone for cell in shown for line in cell.lines}
    used |= {"skip" for cell in shown for line in cell.lines if line.idle}
    found.tones = [tone for tone in ("ok", "refused", "mixed", *VERDICTS) if tone in used]
    return found


def _tell_not_run(states: pl.DataFrame, ran: Sequence[str], found: HeatMap) -> None:
    idle = (
        states.filter(~pl.col("workload").is_in(list(ran)))
        .group_by("workload")
        .agg(pl.col("case").n_unique())
        .sort("workload")
    )
    if idle.height:
        names = ", ".join(f"{name} ({count})" for name, count in idle.iter_rows())
        found.notes.append(f"Skipped on every kernel, and not in the table: {names}.")


def _in_order(names: Sequence[str], order: Sequence[str]) -> list[str]:
    known = [name for name in order if name in set(names)]
    return known + sorted(set(names) - set(known))


def _spans(columns: Sequence[str], class_of: Mapping[str, str], found: HeatMap) -> None:
    for name in columns:
        title = _CLASSES[class_of.get(name, "")]
        if found.spans and found.spans[-1][0] == title:
            found.spans[-1] = title, found.spans[-1][1] + 1
        else:
            found.spans.append((title, 1))


def _cells(
    states: pl.DataFrame, cases: pl.DataFrame, sides: Sequence[Side], ids: Mapping[str, str]
) -> dict[tuple[str, str], Cell]:
    about = cases.group_by("workload", "memory", maintain_order=True).agg(
        pl.col("case").first(),
        pl.len().alias("cases"),
        pl.col("differs").any(),
        pl.col("doubt").sum(),
    )
    counted = (
        states.group_by("workload", "memory", "side", "verdict", "outcome")
        .agg(pl.col("case").n_unique())
        .sort("case", "outcome", descending=[True, False], nulls_last=True)
    )
    answers: dict[tuple[str, str], dict[str, list[tuple[str, str | None, int]]]] = {}
    for workload, memory, side, verdict, outcome, count in counted.iter_rows():
        by_side = answers.setdefault((workload, memory), {})
        by_side.setdefault(side, []).append((verdict, outcome, count))
    found = {}
    for row in about.iter_rows(named=True):
        key = row["workload"], row["memory"]
        if key not in answers:
            continue
        lines = tuple(_lines(answers[key], sides))
        name = "/".join(key)
        differ = "; the kernels differ" if row["differs"] else ""
        found[key] = Cell(
            name,
            ids.get(row["case"], ""),
            row["cases"],
            lines,
            row["differs"],
            row["doubt"] > 0,
            _label(name, answers[key], sides) + differ,
        )
    return found


def _lines(by_side: Mapping[str, Answer], sides: Sequence[Side]) -> list[Line]:
    alike: dict[tuple[Any, ...], list[str]] = {}
    answer_of = {}
    for side in sides:
        if answer := by_side.get(side.key):
            key = tuple(sorted(answer, key=str))
            alike.setdefault(key, []).append(side.label)
            answer_of[key] = answer
    # Kernels that could not run it say nothing against the others.
    idle = [key for key in alike if {verdict for verdict, _, _ in key} == {"skip"}]
    if len(alike) == len(idle) + 1 and len(by_side) == len(sides):
        skipped = _short([label for key in idle for label in alike.pop(key)])
        (key,) = alike
        note = f"{skipped} {SIGNS['skip']}" if skipped else ""
        return [Line("", _tone(key), tuple(_words(answer_of[key])), note)]
    everyone = len(alike) == 1 and len(by_side) == len(sides)
    return [
        Line("" if everyone else _short(labels), _tone(key), tuple(_words(answer_of[key])), "")
        for key, labels in alike.items()
    ]


def _label(name: str, by_side: Mapping[str, Answer], sides: Sequence[Side]) -> str:
    """What a screen reader says of a cell: what each kernel answered, alike ones together."""
    who: dict[str, list[str]] = {}
    for side in sides:
        if answer := by_side.get(side.key):
            who.setdefault(_told(answer), []).append(side.label)
    told = [
        f"{' '.join(labels)}: {words}" if len(sides) > 1 else words for words, labels in who.items()
    ]
    return f"{name.replace('/', ' on ')}: {'; '.join(told)}"


def _short(labels: Sequence[str]) -> str:
    return " ".join(labels) if len(labels) <= 3 else f"{labels[0]} +{len(labels) - 1}"


def _tone(answer: Answer) -> str:
    """The worst verdict; of a pass whether the kernel did it or refused it."""
    worst = max((verdict for verdict, _, _ in answer), key=lambda v: SEVERITY.get(v, NOT_PASSED))
    if worst not in SEVERITY:
        return "fail"
    if worst != "pass":
        return worst
    refused = {
        outcome not in ("ok", "short") for verdict, outcome, _ in answer if verdict == "pass"
    }
    return "mixed" if len(refused) > 1 else "refused" if True in refused else "ok"


def _words(answer: Answer) -> list[str]:
    """``ok``; of five cases ``ok`` times five; what did not pass comes first, with its verdict."""
    counts: Counter[str] = Counter()
    worst_first = sorted(answer, key=lambda one: -SEVERITY.get(one[0], NOT_PASSED))
    ran = [one for one in worst_first if one[0] != "skip"] or worst_first
    for verdict, outcome, count in ran:
        if verdict == "pass":
            counts[str(outcome or "pass")] += count
        else:
            counts[f"{SIGNS.get(verdict, '')} {verdict}".strip()] += count
    words = [f"{word} {TIMES}{count}" if count > 1 else word for word, count in counts.items()]
    if len(words) > _WORDS_IN_LINE:
        words = [*words[: _WORDS_IN_LINE - 1], f"+{len(words) - _WORDS_IN_LINE + 1} outcomes"]
    return words


def _told(answer: Answer) -> str:
    total = sum(count for _, _, count in answer)
    words = []
    for verdict, outcome, count in answer:
        one = verdict if outcome is None else f"{verdict}, {outcome}"
        words.append(f"{count} {one}" if total > 1 else one)
    return " and ".join(words)


LEGEND: Final[Mapping[str, str]] = {
    "ok": "pass: done",
    "refused": "pass: refused, as the rule says",
    "mixed": "pass: some cases done, some refused",
    "crash": f"{SIGNS['crash']} crash",
    "timeout": f"{SIGNS['timeout']} timeout",
    "lost": f"{SIGNS['lost']} lost",
    "fail": f"{SIGNS['fail']} fail",
    "pass": "pass",
    "skip": f"{SIGNS['skip']} skip",
}
