"""A load's time series as few points: read in one pass, thinned so that no extreme is lost.

Each series is cut into so many slots of time, and of each the lowest and the highest value stay,
with the times they were read at. Of counters the rate a second from one reading to the next is
taken first. What stays in memory is bounded however long a load was.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars

from pinstorm.frames import collect
from pinstorm.report.html import plot_places

# Slots of the one pass over all readings: of longer series a rate is that over such a slot.
_FINE_SLOTS = 20_000
MOST_LOADS = 6
MOST_PROCESSES = 10

_LOAD = ("bundle", "seq")


@dataclass(frozen=True, slots=True)
class Load:
    """``phases``: begin and end in ns by name. ``left_out``: processes without series."""

    bundle: str
    seq: int
    case: str
    place: str
    begin_ns: int
    end_ns: int
    zero_ns: int
    phases: Mapping[str, tuple[int, int]]
    pids: tuple[int, ...]
    left_out: int

    @property
    def label(self) -> str:
        return f"{self.case} · {self.place}"

    def seconds(self, t_ns: float) -> float:
        """Since the hold began; in milliseconds, which is finer than any reading."""
        return round((t_ns - self.zero_ns) / 1e9, 3)


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one figure by time, in order of time. ``t_ns`` of CLOCK_MONOTONIC.

    ``mean``: over the time from the first to the last, of all values and not only of those that
    are left here; None of a single one.
    """

    t_ns: list[int]
    values: list[float]
    mean: float | None


def loads(
    cases: polars.LazyFrame,
    samples: polars.LazyFrame,
    histograms: polars.LazyFrame,
    manifests: Mapping[str, Mapping[str, Any]],
) -> tuple[list[Load], int]:
    """Those of which there is a series, the longest first; and how many more there are."""
    t_ns = polars.col("t_ns")
    extents = polars.concat(
        [
            samples.filter(polars.col("case").is_not_null() & polars.col("seq").is_not_null())
            .group_by(*_LOAD, "case")
            .agg(t_ns.min().alias("begin_ns"), t_ns.max().alias("end_ns")),
            histograms.filter(polars.col("t_end_ns").is_not_null())
            .group_by(*_LOAD, "case")
            .agg(
                polars.col("t_begin_ns").min().alias("begin_ns"),
                polars.col("t_end_ns").max().alias("end_ns"),
            ),
        ]
    )
    found = collect(
        extents.group_by(*_LOAD, "case").agg(
            polars.col("begin_ns").min(), polars.col("end_ns").max()
        )
    ).sort(polars.col("end_ns") - polars.col("begin_ns"), *_LOAD, descending=[True, False, False])
    some = found.head(MOST_LOADS)
    if some.is_empty():
        return [], 0
    phases = _phases(cases, samples, some)
    pids = _pids(samples, some)
    whole = []
    for row in some.iter_rows(named=True):
        key = row["bundle"], row["seq"]
        spans = phases.get(key, {})
        zero_ns = spans["hold"][0] if "hold" in spans else row["begin_ns"]
        every = pids.get(key, ())
        whole.append(
            Load(
                row["bundle"],
                row["seq"],
                row["case"],
                plot_places.of_manifest(manifests.get(row["bundle"], {})),
                row["begin_ns"],
                row["end_ns"],
                zero_ns,
                spans,
                every[:MOST_PROCESSES],
                max(0, len(every) - MOST_PROCESSES),
            )
        )
    return whole, found.height - len(whole)


def _phases(
    cases: polars.LazyFrame, samples: polars.LazyFrame, some: polars.DataFrame
) -> dict[tuple[str, int], dict[str, tuple[int, int]]]:
    """As the record has them; of a load without a record when its readings say so."""
    wanted = some.select(_LOAD)
    told = collect(
        cases.select(*_LOAD, "phases")
        .filter(polars.col("phases").is_not_null())
        .join(wanted.lazy(), on=_LOAD)
    )
    spans: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
    pair = polars.List(polars.Int64)
    shape = polars.Struct({name: pair for name in ("prepare", "ramp", "hold", "release")})
    for row in told.with_columns(polars.col("phases").str.json_decode(shape)).iter_rows(named=True):
        exact = {
            name: (span[0], span[1])
            for name, span in (row["phases"] or {}).items()
            if span is not None and len(span) == 2
        }
        if exact:
            spans[row["bundle"], row["seq"]] = exact
    untold = wanted.filter(
        polars.Series([key not in spans for key in wanted.iter_rows()], dtype=polars.Boolean)
    )
    if untold.is_empty():
        return spans
    seen = collect(
        samples.filter(polars.col("phase").is_not_null())
        .join(untold.lazy(), on=_LOAD)
        .group_by(*_LOAD, "phase")
        .agg(polars.col("t_ns").min().alias("begin_ns"), polars.col("t_ns").max().alias("end_ns"))
    )
    for row in seen.sort("begin_ns").iter_rows(named=True):
        load = spans.setdefault((row["bundle"], row["seq"]), {})
        load[row["phase"]] = row["begin_ns"], row["end_ns"]
    return spans


def _pids(
    samples: polars.LazyFrame, some: polars.DataFrame
) -> dict[tuple[str, int], tuple[int, ...]]:
    """Loaded processes, those with the most VmPin and then the most CPU time first."""
    wanted = some.lazy().select(_LOAD)
    value = polars.col("value")
    found = collect(
        samples.filter((polars.col("source") == "process") & polars.col("pid").is_not_null())
        .join(wanted, on=_LOAD)
        .group_by(*_LOAD, "pid")
        .agg(
            value.filter(polars.col("key") == "vmpin_bytes").max().fill_null(0).alias("vmpin"),
            value.filter(polars.col("key").is_in(["user_ns", "system_ns"])).max().alias("cpu"),
        )
    ).sort("vmpin", "cpu", "pid", descending=[True, True, False], nulls_last=True)
    pids: dict[tuple[str, int], tuple[int, ...]] = {}
    for row in found.iter_rows(named=True):
        key = row["bundle"], row["seq"]
        pids[key] = (*pids.get(key, ()), row["pid"])
    return pids


class Readings:
    """The readings of some loads' figures, thin enough to hold all of them."""

    def __init__(
        self,
        samples: polars.LazyFrame,
        some: Sequence[Load],
        figures: Iterable[tuple[str, str]],
    ):
        """``figures``: source and key."""
        wanted = polars.LazyFrame(
            list(figures), schema={"source": polars.String, "key": polars.String}, orient="row"
        )
        # A slot is at least 1 ns wide: a load of one reading has no width.
        widths = [(load.end_ns - load.begin_ns) // _FINE_SLOTS + 1 for load in some]
        own = polars.LazyFrame(
            {
                "bundle": [load.bundle for load in some],
                "seq": [load.seq for load in some],
                "load": range(len(some)),
                "begin_ns": [load.begin_ns for load in some],
                "slot_ns": widths,
            }
        )
        pid = polars.col("pid")
        rows = (
            samples.filter(pid.is_null() | pid.is_in([pid for load in some for pid in load.pids]))
            .join(own, on=_LOAD)
            .join(wanted, on=["source", "key"])
            .filter(polars.col("value").is_not_null())
        )
        slot = (polars.col("t_ns") - polars.col("begin_ns")) // polars.col("slot_ns")
        value = polars.col("value")
        self._rows = collect(
            rows.group_by("load", "source", "key", "pid", slot.alias("slot")).agg(
                value.min().alias("low"),
                value.max().alias("high"),
                value.mean().alias("mean"),
                polars.len().alias("readings"),
                polars.col("t_ns").min().alias("first_ns"),
                polars.col("t_ns").max().alias("last_ns"),
            )
        ).sort("load", "source", "key", "pid", "slot")

    def level(self, load: int, source: str, key: str, pid: int | None, points: int) -> Series:
        """Values as they were read."""
        mine = self._of(load, source, key, pid)
        long = polars.concat(
            [
                mine.select(t_ns="first_ns", value="low"),
                mine.filter(polars.col("high") != polars.col("low")).select(
                    t_ns="last_ns", value="high"
                ),
            ]
        )
        # Readings come at one interval: so their mean is that over the time.
        read = int(mine["readings"].sum())
        mean = float((mine["mean"] * mine["readings"]).sum()) / read if read else None
        return thinned(long.cast({"value": polars.Float64}), points, mean)

    def rate(
        self, load: int, source: str, keys: Iterable[str], pid: int | None, points: int
    ) -> Series:
        """The sum of some counters, a second, from one reading to the next."""
        mine = [self._of(load, source, key, pid) for key in keys]
        together = polars.concat([one.select("slot", "last_ns", "high") for one in mine])
        sums = (
            together.group_by("slot")
            .agg(polars.col("last_ns").max(), polars.col("high").sum(), polars.len().alias("keys"))
            .filter(polars.col("keys") == len(mine))
            .sort("slot")
        )
        seconds = polars.col("last_ns").diff() / 1e9
        rates = sums.select(
            t_ns="last_ns", value=polars.col("high").diff().cast(polars.Float64) / seconds
        )
        passed_ns = int(sums["last_ns"][-1]) - int(sums["last_ns"][0]) if sums.height > 1 else 0
        mean = (sums["high"][-1] - sums["high"][0]) / passed_ns * 1e9 if passed_ns else None
        return thinned(rates.filter(polars.col("value").is_finite()), points, mean)

    def _of(self, load: int, source: str, key: str, pid: int | None) -> polars.DataFrame:
        return self._rows.filter(
            (polars.col("load") == load)
            & (polars.col("source") == source)
            & (polars.col("key") == key)
            & polars.col("pid").eq_missing(polars.lit(pid, polars.Int64))
        )


def thinned(rows: polars.DataFrame, points: int, mean: float | None = None) -> Series:
    """At most so many points of ``t_ns`` and ``value``, in order of time.

    Where there are more, the lowest and the highest value of each slot of time. ``mean``: where
    it is known better than from lines between the values.
    """
    rows = rows.drop_nulls().sort("t_ns", maintain_order=True)
    mean = _mean(rows) if mean is None else mean
    if rows.height > points:
        begin_ns, end_ns = int(rows["t_ns"][0]), int(rows["t_ns"][-1])
        slots = max(1, points // 2)
        slot = (polars.col("t_ns") - begin_ns) * slots // (end_ns - begin_ns + 1)
        kept = (
            rows.with_row_index("row")
            .group_by(slot.alias("slot"))
            .agg(
                polars.col("row").sort_by("value").first().alias("low"),
                polars.col("row").sort_by("value").last().alias("high"),
            )
        )
        rows = rows[polars.concat([kept["low"], kept["high"]]).unique().sort()]
    return Series(rows["t_ns"].to_list(), rows["value"].to_list(), mean)


def _mean(rows: polars.DataFrame) -> float | None:
    width, value = polars.col("t_ns").diff(), polars.col("value")
    area, whole = rows.select(
        ((value + value.shift()) / 2 * width).sum().alias("area"), width.sum().alias("whole")
    ).row(0)
    return area / whole if whole else None
