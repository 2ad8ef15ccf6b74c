"""Which cases of two sides can be compared, and why the others cannot.

A side is one bundle or many. Its rows are reduced in polars, never one Python object each: to one
entry per case, verdict and outcome, and to one line of figures per case, run and round.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pinstorm import frames
from pinstorm.errors import UsageError
from pinstorm.manifest_form import sound
from pinstorm.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import numpy
    import polars

SIDES: Final = ("A", "B")
EMULATED: Final = "tcg"
# Of records that do not say how they were run.
UNKNOWN: Final = "unknown"

# Of each round; the names are the columns'.
FIGURES: Final = (
    "acquire_median_ns",
    "release_median_ns",
    "acquired",
    "held",
    "leaked",
    "vmpin_held_bytes",
    "pins_bound",
)
_CYCLES_AT_ONCE: Final = 10_000_000
# More than a year of them; so that a damaged number asks for no memory.
_MOST_ROUNDS: Final = 100_000
# Verdicts of cases that ran to an outcome of their own.
RAN: Final = ("pass", "fail")


@dataclass(frozen=True, slots=True)
class Side:
    """``name``: A or B. ``given``: as the person gave it. ``kernels``, ``accels``: sorted."""

    name: str
    given: str
    manifests: dict[str, dict[str, Any]]
    paths: dict[str, Path]
    notes: tuple[str, ...]
    kernels: tuple[str, ...]
    accels: tuple[str, ...]
    rounds: int
    rows: "polars.LazyFrame"

    @property
    def emulated(self) -> bool:
        return EMULATED in self.accels


@dataclass(frozen=True, slots=True)
class Paired:
    """Two sides and what both have.

    ``labels``: the cases, by index; behind a kernel's name where the sides have several.
    ``endings``: index, side, verdict, outcome, reason, count.
    ``rounds``: index, side, run, round, cycles and FIGURES of the rows that ran; figures that the
    counters cannot vouch for are null. ``loads``: index, side, run, round, jobs of the loads.
    ``only``: cases that only one side has, by side; ``ran_only_in_a``: those of A that ran.
    """

    a: Side
    b: Side
    labels: list[str]
    kernels: list[str]
    cases: list[str]
    endings: "polars.DataFrame"
    rounds: "polars.DataFrame"
    loads: "polars.DataFrame"
    only: dict[str, list[str]]
    ran_only_in_a: list[str]

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.a, self.b

    @property
    def by_kernel(self) -> bool:
        """Whether a case is compared on each of several kernels."""
        return len(self.a.kernels) > 1

    @property
    def mixed(self) -> bool:
        """Emulated times beside others, or beside some of which nobody knows what they are."""
        accels = {*self.a.accels, *self.b.accels}
        return EMULATED in accels and len(accels) > 1


def pair(path_a: Path, path_b: Path) -> Paired:
    """Read both sides. Raises UsageError when there is nothing that can be compared."""
    import polars

    a, b = (_side(name, path) for name, path in zip(SIDES, (path_a, path_b), strict=True))
    by_kernel = _check_kernels(a, b)
    rows = polars.concat(
        [
            side.rows.with_columns(
                polars.lit(side.name).alias("side"),
                (polars.col("kernel") if by_kernel else polars.lit("")).fill_null("").alias("on"),
            )
            for side in (a, b)
        ]
    )
    endings = frames.collect(
        rows.group_by("side", "on", "case", "verdict", "outcome").agg(
            polars.len().alias("count"),
            polars.col("params").unique(),
            polars.col("reason").first(),
        )
    )
    keys, only = _keys(endings, a, b)
    ran_in_a = endings.filter((polars.col("side") == "A") & (polars.col("verdict") != "skip"))
    ran = {_label(*row) for row in ran_in_a.select("on", "case").iter_rows()}
    _check_params(endings.join(keys, on=["on", "case"]))
    lazy_keys = keys.lazy()
    joined = rows.join(lazy_keys, on=["on", "case"])
    return Paired(
        a,
        b,
        [_label(*row) for row in keys.select("on", "case").iter_rows()],
        keys["on"].to_list(),
        keys["case"].to_list(),
        endings.join(keys, on=["on", "case"]).drop("params", "on", "case"),
        _rounds(joined, a, b),
        frames.collect(
            joined.filter(polars.col("jobs").is_not_null()).select(
                "index", "side", "bundle", "round", "jobs"
            )
        ),
        only,
        [label for label in only["A"] if label in ran],
    )


def run_numbers(side: Side) -> dict[str, int]:
    """Bundle -> its number on that side. Each is a run, of a boot of its own or not."""
    return {bundle: number for number, bundle in enumerate(side.manifests)}


def _side(name: str, path: Path) -> Side:
    import polars

    found = sound(frames.scan(path))
    for where, directory in frames.find(path):
        if where not in found.manifests and _newer(directory):
            raise UsageError(
                f"bundle {where} is of a newer schema than {SCHEMA_VERSION}; compare it with the "
                "newer pinstorm that wrote it"
            )
    # What has only begun has no ending that could be compared.
    rows = found.cases.filter(polars.col("reason").ne_missing("unfinished")).with_columns(
        polars.col("round").fill_null(0)
    )
    facts = frames.collect(
        rows.select(
            polars.col("kernel").unique().implode().alias("kernels"),
            polars.col("accel").unique().implode().alias("accels"),
            (polars.col("round").max() + 1).alias("rounds"),
        )
    ).row(0, named=True)
    if facts["rounds"] is None:
        why = f"{path} has no cases yet: name a run that has ended"
        raise UsageError(found.notes[0] if found.notes else why)
    if not 0 < facts["rounds"] <= _MOST_ROUNDS:
        raise UsageError(
            f"{path} has a case of round {facts['rounds'] - 1}, which no run has: copy the bundle "
            "again from where it was made"
        )
    kernels = tuple(sorted(value for value in facts["kernels"] if value is not None))
    accels = tuple(sorted(UNKNOWN if value is None else value for value in facts["accels"]))
    return Side(
        name,
        str(path),
        found.manifests,
        found.paths,
        tuple(found.notes),
        kernels,
        accels,
        facts["rounds"],
        rows,
    )


def _newer(directory: Path) -> bool:
    """Whether its manifest says a schema of the future; one that cannot be read says nothing."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    return isinstance(version, int) and version > SCHEMA_VERSION


def _check_kernels(a: Side, b: Side) -> bool:
    """Whether cases are paired on each kernel alone; UsageError where no such pair exists."""
    if len(a.kernels) <= 1 and len(b.kernels) <= 1:
        return False
    if set(a.kernels) == set(b.kernels):
        return True
    several, other = (a, b) if len(a.kernels) > 1 else (b, a)
    raise UsageError(
        f"{several.given} has kernels {', '.join(several.kernels)} and {other.given} has "
        f"{', '.join(other.kernels)}: compare the bundles of one kernel with those of one other"
    )


def _label(kernel: str, case: str) -> str:
    return f"{kernel}: {case}" if kernel else case


def _keys(
    endings: "polars.DataFrame", a: Side, b: Side
) -> tuple["polars.DataFrame", dict[str, list[str]]]:
    """on, case, index of what both sides have; and what only one has."""
    import polars

    by_side = {
        name: endings.filter(polars.col("side") == name).select("on", "case").unique()
        for name in SIDES
    }
    common = by_side["A"].join(by_side["B"], on=["on", "case"], how="semi").sort("on", "case")
    if common.is_empty():
        raise UsageError(
            f"{a.given} and {b.given} have no case in common: compare runs of the same suite"
        )
    only = {
        name: [
            _label(*row)
            for row in by_side[name]
            .join(common, on=["on", "case"], how="anti")
            .sort("on", "case")
            .iter_rows()
        ]
        for name in SIDES
    }
    return common.with_row_index("index"), only


def _check_params(endings: "polars.DataFrame") -> None:
    """UsageError when one case id stands for two things. Their JSON may be spelled in two ways."""
    import polars

    texts = (
        endings.select("index", "case", "params")
        .explode("params")
        .group_by("index", "case")
        .agg(polars.col("params").unique())
        .filter(polars.col("params").list.len() > 1)
        .sort("index")
    )
    for _, case, several in texts.iter_rows():
        kinds = {_canonical(text) for text in several}
        if len(kinds) > 1:
            one, other = (json.loads(kind) for kind in sorted(kinds)[:2])
            names = [n for n in {**one, **other} if one.get(n) != other.get(n)]
            said = ", ".join(
                f"{n} {one.get(n, '-')} and {other.get(n, '-')}" for n in sorted(names)
            )
            raise UsageError(
                f"case {case} is not the same case on both sides ({said}): compare runs of the "
                "same suite"
            )


def _canonical(text: str | None) -> str:
    try:
        params = json.loads(text or "{}") or {}
    except (ValueError, RecursionError):
        params = text
    return json.dumps(params if isinstance(params, dict) else {"params": params}, sort_keys=True)


def _rounds(joined: "polars.LazyFrame", a: Side, b: Side) -> "polars.DataFrame":
    """One line of figures per case, side, run and round."""
    import polars

    numbers = [
        (side.name, bundle, run) for side in (a, b) for bundle, run in run_numbers(side).items()
    ]
    runs = polars.LazyFrame(
        numbers,
        schema={"side": polars.String, "bundle": polars.String, "run_number": polars.Int64},
        orient="row",
    )
    quiet = (
        polars.col("pins_exact").fill_null(False)
        & (polars.col("pins_noise").fill_null(0) == 0)
        & (polars.col("pins_recent").fill_null(0) == 0)
    )
    counted = ("acquired", "held", "leaked")
    return frames.collect(
        joined.filter(polars.col("verdict").is_in(RAN) & polars.col("jobs").is_null())
        .join(runs, on=["side", "bundle"])
        .with_columns(
            polars.col("acquire_ns").list.len().fill_null(0).alias("cycles"),
            *[polars.when(quiet).then(polars.col(name)).alias(name) for name in counted],
        )
        .group_by("index", "side", "run_number", "round")
        .agg(polars.col("cycles", *FIGURES).last())
    )


def cycles(
    paired: Paired, indices: Sequence[int], column: str
) -> Iterator[tuple[int, str, list["numpy.ndarray[Any, Any]"]]]:
    """index, side and the timed cycles of each of its rounds, ns; in portions that fit into memory.

    ``column``: acquire_ns or release_ns.
    """
    import polars

    keys = polars.DataFrame(
        {
            "index": indices,
            "on": [paired.kernels[index] for index in indices],
            "case": [paired.cases[index] for index in indices],
        },
        schema={"index": polars.UInt32, "on": polars.String, "case": polars.String},
    )
    portions = 1 + int(paired.rounds["cycles"].sum() or 0) // _CYCLES_AT_ONCE
    for portion in range(portions):
        part = keys.filter(polars.col("index") % portions == portion).lazy()
        for side in paired.sides:
            rows = side.rows.with_columns(
                (polars.col("kernel") if paired.by_kernel else polars.lit("")).alias("on")
            )
            timed = polars.col("verdict").is_in(RAN) & (polars.col(column).list.len() > 0)
            found = frames.collect(
                rows.filter(timed).join(part, on=["on", "case"]).select("index", column)
            )
            for (index,), group in found.group_by("index"):
                yield int(index), side.name, [one.to_numpy() for one in group[column]]
