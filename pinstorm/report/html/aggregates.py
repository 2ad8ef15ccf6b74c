"""What a page says of many rows, as small tables: queries over the cases of all bundles.

A row of cases.parquet is one run of a case. Every query groups runs by ``case`` and ``side``: the
kernel's release, and how it was run where a release was run in more than one way (times under
emulation stand beside no others). Nothing here holds the rows themselves: a million of them are
grouped as they are read.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final

import polars as pl

from pinstorm.frames import Frames, collect, scan
from pinstorm.schema import COLUMNS

# The worst first; what a pass and a skip are worth is the order of a cell's words.
VERDICTS: Final = ("crash", "timeout", "lost", "fail", "pass", "skip")
SEVERITY: Final[Mapping[str, int]] = {name: 5 - n for n, name in enumerate(VERDICTS)}
NOT_PASSED: Final = SEVERITY["fail"]

# Figures that a table shows, as the range over the runs of a case.
RANGES: Final = (
    "acquired",
    "held",
    "leaked",
    "orphaned",
    "vmpin_held_bytes",
    "vmlck_held_bytes",
    "migrate_success",
    "migrate_fail",
    "cma_pages",
)
TIMES: Final = ("first_ns", "acquire_median_ns", "release_median_ns", "settle_ns")

# Of more than that only those are read again of which a row is shown whole.
_FEW_BUNDLES: Final = 20

# A run's rank among those of its case: its verdict's severity, then its place.
_PLACES: Final = 1 << 40
_KEYS: Final = ("case", "side")


@dataclass(frozen=True, slots=True)
class Side:
    """A kernel as it was run: what stands beside the others. ``key`` is its name in the frames."""

    key: str
    kernel: str
    accel: str
    label: str

    @property
    def emulated(self) -> bool:
        return self.accel == "tcg"


def marked(cases: pl.LazyFrame) -> pl.LazyFrame:
    """The rows, with what is asked of each: side, severity, leak, doubt, …, and a rank."""
    how = pl.col("attribution")
    unknown = how.str.contains('"(?:acquired|held)":"unattributable"') | (
        how.str.contains('"leaked":"unattributable"') & pl.col("leaked").is_not_null()
    )
    severity = _severity()
    # As far as two counters and others' pins may be off, nothing has leaked.
    others = pl.max_horizontal("pins_noise", "pins_recent").fill_null(0)
    error = 2 * pl.col("pins_bound").fill_null(0) + others
    left = (pl.max_horizontal("leaked", "orphaned") > error).fill_null(False)
    judged = pl.col("reason").is_in(["leaked", "orphaned"]).fill_null(False)
    return cases.with_row_index("row").with_columns(
        side=_side(),
        severity=severity,
        leak=(left & ~unknown.fill_null(False)) | judged,
        doubt=(pl.col("verdict") == "pass") & pl.col("reason").is_not_null(),
        unknown=unknown.fill_null(False),
        inexact=(pl.col("pins_exact") == False).fill_null(False),  # noqa: E712
        flagged=pl.col("pins_flagged").fill_null(False),
        retried=pl.col("retries").fill_null("[]") != "[]",
        rank=severity * _PLACES + pl.col("row").cast(pl.Int64),
    )


def _severity() -> pl.Expr:
    return pl.col("verdict").replace_strict(SEVERITY, default=NOT_PASSED, return_dtype=pl.Int64)


def _side() -> pl.Expr:
    kernel = pl.col("kernel").fill_null("unknown")
    return pl.concat_str(kernel, pl.lit("\n"), pl.col("accel").fill_null(""))


def states(rows: pl.LazyFrame) -> pl.DataFrame:
    """One row for each case, side, verdict and outcome, with the number of runs and marks."""
    return (
        rows.group_by(*_KEYS, "workload", "memory", "verdict", "outcome")
        .agg(
            pl.len().alias("runs"),
            pl.col("severity").max(),
            pl.col("size_bytes").max(),
            pl.col("reason").max(),
            pl.col("leak", "doubt", "unknown", "inexact", "flagged", "retried").sum(),
        )
        .pipe(collect)
    )


def differing(of_states: pl.DataFrame) -> pl.DataFrame:
    """Column ``case``: those whose verdicts and outcomes are not the same on all that ran them."""
    return (
        of_states.filter(pl.col("verdict") != "skip")
        .select(*_KEYS, state=_state())
        .group_by(_KEYS)
        .agg(pl.col("state").unique().sort().str.join("\n"))
        .group_by("case")
        .agg(pl.col("state").n_unique() > 1)
        .filter("state")
        .select("case")
    )


def _state() -> pl.Expr:
    return pl.concat_str(pl.col("verdict"), pl.lit(" "), pl.col("outcome").fill_null("-"))


def by_case(of_states: pl.DataFrame) -> pl.DataFrame:
    """One row for each case, the worst first: severity, marks, ``differs`` and numbers of runs.

    ``surprising``: what a reader should look at though it passed.
    """
    marks = ("leak", "doubt", "unknown", "inexact", "flagged", "retried", "runs")
    differs = differing(of_states).with_columns(differs=pl.lit(True))
    found = (
        of_states.group_by("case")
        .agg(
            pl.col("workload", "memory").first(),
            pl.col("severity", "size_bytes").max(),
            pl.col("reason").filter(pl.col("doubt") > 0).max(),
            pl.col("side").n_unique().alias("sides"),
            pl.col(*marks).sum(),
        )
        .join(differs, on="case", how="left")
        .with_columns(pl.col("differs").fill_null(False))
    )
    failed = pl.col("severity") >= NOT_PASSED
    looked_at = pl.col("differs") | (pl.col("doubt") > 0) | (pl.col("retried") > 0)
    return (
        found.with_columns(
            surprising=~failed & (looked_at | (pl.col("leak") > 0)),
            worth=pl.when(failed)
            .then(10 + pl.col("severity"))
            .when(pl.col("leak") > 0)
            .then(9)
            .when(pl.col("differs"))
            .then(8)
            .when(looked_at)
            .then(7)
            .otherwise(pl.col("severity")),
        )
        .sort(
            ["worth", "workload", "memory", "size_bytes", "case"],
            descending=[True, False, False, False, False],
            nulls_last=True,
        )
        .select(pl.exclude("size_bytes"))
    )


def groups(rows: pl.LazyFrame, cases: pl.DataFrame) -> pl.DataFrame:
    """Of the cases in column ``case``: one row for each and side, with counts and figures.

    Ranges over the runs (``held_low``, ``held_high``), medians of times in ns, ``v_fail``: runs
    with that verdict; ``pick``: the row of the last of the worst runs.
    """
    ranges = [
        expression
        for name in RANGES
        for expression in (
            pl.col(name).min().alias(f"{name}_low"),
            pl.col(name).max().alias(f"{name}_high"),
        )
    ]
    counts = [(pl.col("verdict") == v).sum().alias(f"v_{v}") for v in VERDICTS]
    return (
        rows.join(cases.lazy().select("case"), on="case", how="semi")
        .group_by(_KEYS)
        .agg(
            pl.len().alias("runs"),
            pl.col("severity").max(),
            (pl.col("rank").max() % _PLACES).alias("pick"),
            pl.col("inexact", "unknown", "flagged", "leak").sum(),
            pl.col("pins_bound", "pins_noise", "pins_recent").max(),
            pl.col(TIMES).median(),
            *counts,
            *ranges,
        )
        .pipe(collect)
    )


def picked(
    tables: Frames[pl.LazyFrame], places: Sequence[int], runs: Mapping[str, int]
) -> pl.DataFrame:
    """The rows at those places whole, but for what a page never shows.

    ``runs``: the number of rows of each bundle. Of many bundles only those are read that have one
    of the rows: the strings of a million rows are most of their size.
    """
    left_out = ("evidence", "acquire_ns", "release_ns", "settles_ns", "phases", "pins_per_node")
    names = [column.name for column in COLUMNS if column.name not in left_out]
    wanted, cases = sorted(places), tables.cases
    owner: dict[int, str] = {}
    if len(tables.paths) > _FEW_BUNDLES and wanted:
        begins = [0, *accumulate(runs.get(name, 0) for name in tables.paths)]
        before, moved, read = 0, [], []
        for name, (begin, end) in zip(tables.paths, pairwise(begins), strict=True):
            inside = wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)]
            if inside:
                here = [before + place - begin for place in inside]
                owner |= dict.fromkeys(here, name)
                moved += here
                read.append(tables.paths[name])
                before += end - begin
        wanted, cases = moved, scan(read).cases
    rows = cases.with_row_index("row").with_columns(side=_side())
    chosen = pl.LazyFrame({"row": wanted}, schema={"row": pl.get_index_type()})
    found = collect(rows.select("row", "bundle", "side", *names).join(chosen, on="row", how="semi"))
    if owner:
        # A bundle's name depends on the others that it was read with.
        found = found.with_columns(bundle=pl.col("row").replace_strict(owner))
    return found


def told(groups: pl.DataFrame, of_states: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """The groups with what is not a figure: all ``outcomes``; ``cause`` and ``rule`` of a run."""
    outcomes = of_states.group_by(_KEYS).agg(pl.col("outcome").drop_nulls().unique().sort())
    return groups.join(
        outcomes.rename({"outcome": "outcomes"}), on=_KEYS, how="left", maintain_order="left"
    ).join(runs.select(*_KEYS, "cause", "rule"), on=_KEYS, how="left", maintain_order="left")


def of_bundles(cases: pl.LazyFrame) -> pl.DataFrame:
    """One row for each bundle and verdict, with the number of ``runs``."""
    return collect(cases.group_by("bundle", "verdict").agg(pl.len().alias("runs")))


def sides(of_states: pl.DataFrame) -> list[Side]:
    """The kernels, the oldest first."""
    from pinstorm.lab.debian import release_order

    found = of_states["side"].unique().to_list()
    named = [tuple(key.split("\n", 1)) for key in found]
    named.sort(key=lambda one: (release_order(one[0]), one[1]))
    labels = _labels(named)
    return [Side(f"{k}\n{a}", k, a, label) for (k, a), label in zip(named, labels, strict=True)]


def _labels(named: Sequence[tuple[str, ...]]) -> list[str]:
    """``6.1`` for 6.1.0-54-amd64, unless that would name two of them."""
    kernels = list(dict.fromkeys(kernel for kernel, _ in named))
    for length in (2, 3):
        short = [
            ".".join(kernel.split("-", 1)[0].split("+")[0].split(".")[:length])
            for kernel in kernels
        ]
        if len(set(short)) == len(kernels):
            break
    else:
        short = kernels
    names = dict(zip(kernels, short, strict=True))
    twice = [kernel for kernel, _ in named]
    return [
        f"{names[kernel]} {accel}" if twice.count(kernel) > 1 else names[kernel]
        for kernel, accel in named
    ]


def skips(cases: pl.LazyFrame, most: int = 5000) -> list[tuple[str | None, str | None, int]]:
    """(unmet needs as JSON, reason, number of runs), the most frequent first."""
    found = (
        cases.filter(pl.col("verdict") == "skip")
        .group_by("skip", "reason")
        .agg(pl.len().alias("runs"))
        .sort("runs", "skip", descending=[True, False], nulls_last=True)
        .head(most)
        .pipe(collect)
    )
    return found.rows()


def loads(cases: pl.LazyFrame, most: int = 40) -> list[dict[str, Any]]:
    """The runs of loads, the worst first: what the table of a load needs."""
    names = (
        "case",
        "side",
        "bundle",
        "round",
        "verdict",
        "reason",
        "severity",
        "seq",
        "jobs",
        "load",
    )
    found = (
        cases.filter(pl.col("workload") == "load")
        .with_columns(side=_side(), severity=_severity())
        .select(names)
        .sort("severity", "case", "side", "bundle", "seq", descending=[True, *[False] * 4])
        .head(most)
        .pipe(collect)
    )
    return found.to_dicts()
