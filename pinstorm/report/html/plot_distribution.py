"""How latencies are distributed: of timed cycles as CDFs, of loads as percentile curves."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy
import polars

from pinstorm.frames import collect
from pinstorm.report.html import plot_places
from pinstorm.report.html.plot_cycles import MOST_SORTED, Pool, percentile
from pinstorm.report.html.plot_form import (
    Choice,
    Json,
    Plot,
    Table,
    figure,
    line,
    menu_note,
    ns_axis,
    ns_words,
    number_words,
    shown,
    sign,
    size_words,
    table,
)

# Of fewer cycles a CDF is a few steps.
LEAST_CYCLES = 20
_MOST_CASES = 8
_MOST_CHOICES = 40
_MOST_POINTS = 10_000
# Shares of a CDF: finer where there are more cycles, and both ends.
_SHARES = 40
# Points of a percentile curve in each decade of 1 / (1 - p).
_PER_DECADE = 8
_PERCENTILES = {"p50": 2.0, "p90": 10.0, "p99": 100.0, "p99.9": 1000.0, "p99.99": 10_000.0}
# Fewer values than this have no p99: design.md.
_LEAST_FOR_P99 = 100
_MOST_CURVES = 20
_MOST_LOADS = 8


def cdf(pools: Sequence[Pool]) -> list[Plot]:
    """Of the cases with enough timed cycles."""
    enough = [pool for pool in pools if len(pool.acquire_ns) >= LEAST_CYCLES]
    choices: list[Choice] = []
    points = 0
    short = plot_places.short_names({pool.place for pool in enough})
    # All memories of one size at a time: what is compared has one size.
    for (place, workload, size_bytes), group in groupby(sorted(enough, key=_order), key=_entry):
        some = list(group)[:_MOST_CASES]
        data = [trace for number, pool in enumerate(some) for trace in _both(pool, number)]
        points += sum(len(trace["x"]) for trace in data)
        if choices and (points > _MOST_POINTS or len(choices) >= _MOST_CHOICES):
            break
        ends = [time for trace in data for time in trace["x"]]
        how = plot_places.EMULATED if plot_places.is_emulated(place) else ""
        choices.append(
            Choice(
                f"{workload} · {size_words(size_bytes)} · {short[place]}",
                data,
                {"xaxis": ns_axis(ends, f"time of the call{how}")},
            )
        )
    if not choices:
        return []
    y = {"title": {"text": "share of cycles, %"}, "range": [-2, 102], "ticksuffix": " %"}
    emulated = any(plot_places.is_emulated(pool.place) for pool in enough)
    return [
        Plot(
            "latency-cdf",
            "Latency CDFs of timed cycles",
            "Share (%) of the timed cycles whose acquire (filled marks) or release (open marks, "
            f"dotted) took at most so long; cases with at least {LEAST_CYCLES} cycles, at most "
            f"{_MOST_CASES} memories at a time. A step or a long flat tail is a second way through "
            "the kernel; press a name in the legend to hide it, twice to see it alone."
            + (" Emulated times have menu entries of their own." if emulated else ""),
            figure(choices, {"yaxis": y}),
            _cdf_table(enough, menu_note(len(choices), len({_entry(pool) for pool in enough}))),
        )
    ]


def _both(pool: Pool, number: int) -> list[Json]:
    name = f"{pool.memory} {pool.variant}".strip()
    colour, symbol, dash = sign(number)
    traces = []
    for what, times in (("acquire", pool.acquire_ns), ("release", pool.release_ns)):
        released = what == "release"
        if len(times) < LEAST_CYCLES:
            continue
        xs, ys = steps(times)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{name}, {what}",
                "x": xs,
                "y": ys,
                "line": {"color": colour, "width": 1 if released else 2}
                | {"dash": "dot" if released else dash},
                "marker": {"color": colour, "size": 6, "maxdisplayed": 9}
                | {"symbol": f"{symbol}-open" if released else symbol},
                "hovertemplate": "%{fullData.name}: %{y:.3g} % within %{x:.4s} ns<extra></extra>",
            }
        )
    return traces


def steps(times: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]") -> tuple[list[Any], list[Any]]:
    """Times in ns and the percentage that took at most so long: both rise, and end at 100."""
    count = min(_SHARES, len(times) - 1)
    shares = [number / count for number in range(count + 1)]
    return [shown(percentile(times, share)) for share in shares], [
        shown(100 * share) for share in shares
    ]


def _entry(pool: Pool) -> tuple[str, str, int]:
    """What is in one entry of the menu."""
    return pool.place, pool.workload, pool.size_bytes


def _order(pool: Pool) -> tuple[object, ...]:
    order = plot_places.order(pool.place)
    return order, pool.place, pool.workload, pool.size_bytes, pool.memory, pool.variant


def _cdf_table(pools: Sequence[Pool], cut: str) -> Table:
    rows = []
    for pool in sorted(
        pools, key=lambda pool: (plot_places.is_emulated(pool.place), -pool.median_ns)
    ):
        for what, times, highest_ns in (
            ("acquire", pool.acquire_ns, pool.highest_ns),
            ("release", pool.release_ns, pool.release_highest_ns),
        ):
            if len(times):
                enough = len(times) >= _LEAST_FOR_P99
                rows.append(
                    (
                        pool.case,
                        pool.place,
                        what,
                        *(ns_words(percentile(times, share)) for share in (0.1, 0.5, 0.9)),
                        ns_words(percentile(times, 0.99)) if enough else "-",
                        ns_words(highest_ns),
                        number_words(pool.cycles),
                    )
                )
    head = ("case", "kernel", "call", "p10", "median", "p90", "p99", "highest", "cycles")
    sampled = (
        f"Of more than {MOST_SORTED} cycles of a case the percentiles are of a sample. "
        if any(pool.cycles > MOST_SORTED for pool in pools)
        else ""
    )
    note = f"p99 of at least {_LEAST_FOR_P99} cycles only. {sampled}{cut}"
    return table(head, rows, note.strip())


def load_percentiles(
    histograms: polars.LazyFrame, manifests: Mapping[str, Mapping[str, Any]]
) -> list[Plot]:
    """Of the loads' totals over their hold."""
    places = polars.LazyFrame(
        {
            "bundle": list(manifests),
            "place": [plot_places.of_manifest(found) for found in manifests.values()],
        },
        schema={"bundle": polars.String, "place": polars.String},
    )
    totals = collect(
        histograms.filter(polars.col("t_end_ns").is_null() & (polars.col("phase") == "hold"))
        .join(places, on="bundle")
        .group_by("place", "case", "job", "kind", "high_ns")
        .agg(polars.col("count").sum())
    ).sort("place", "case", "job", "kind", "high_ns")
    loads: dict[tuple[str, str], list[tuple[str, _Curve]]] = {}
    for (place, case, job, kind), buckets in totals.group_by(
        "place", "case", "job", "kind", maintain_order=True
    ):
        curve = _Curve(buckets["high_ns"].to_numpy(), buckets["count"].to_numpy())
        if curve.count:
            loads.setdefault((str(place), str(case)), []).append(
                (str(kind) if job == kind else f"{job} {kind}", curve)
            )
    if not loads:
        return []
    some = sorted(loads, key=lambda load: (plot_places.order(load[0]), load[1]))
    return [
        Plot(
            "load-percentiles",
            "Latency percentiles of loads",
            "Latency (µs, ms) of each call of a load by percentile, over its whole hold, all "
            "processes together; the axis is stretched towards the slow end. A curve that turns up "
            "has a tail that its median hides. Exact to 0.8 % (buckets); a curve ends where its "
            "values are too few."
            + (
                " Emulated times say nothing about hardware."
                if any(plot_places.is_emulated(place) for place, _ in some)
                else ""
            ),
            figure(
                [_curves(load, loads[load]) for load in some[:_MOST_LOADS]],
                {"xaxis": _percentile_axis()},
            ),
            _percentile_table(some, loads),
        )
    ]


class _Curve:
    """Percentiles of a histogram."""

    def __init__(self, high_ns: Any, counts: Any):
        self._high_ns = high_ns
        self._below = numpy.cumsum(counts)
        self.count = int(self._below[-1])

    def at(self, share: float) -> int:
        """The end of the bucket in which that share of the values ends."""
        wanted = max(1, math.ceil(share * self.count - 1e-9))
        return int(self._high_ns[numpy.searchsorted(self._below, wanted)])

    def ends_at(self) -> float:
        """The last 1 / (1 - p) of which there are values enough to say."""
        return 10.0 if self.count < _LEAST_FOR_P99 else float(self.count)


def _curves(load: tuple[str, str], curves: Sequence[tuple[str, _Curve]]) -> Choice:
    place, case = load
    data = []
    # The slowest first, so that the legend is read as the curves lie.
    order = sorted(curves, key=lambda item: -item[1].at(0.5))[:_MOST_CURVES]
    for number, (name, curve) in enumerate(order):
        decades = min(5.0, math.log10(curve.ends_at()))
        xs = [10 ** (step / _PER_DECADE) for step in range(int(decades * _PER_DECADE) + 1)]
        shares = [1 - 1 / x for x in xs]
        look = line(number)
        look["marker"] |= {"maxdisplayed": 8, "size": 7}
        data.append(
            {
                "type": "scatter",
                "name": name,
                "x": [shown(x) for x in xs],
                "y": [shown(curve.at(share)) for share in shares],
                "customdata": [float(f"{100 * share:.6g}") for share in shares],
                "hovertemplate": "%{fullData.name}: p%{customdata} = %{y:.4s} ns<extra></extra>",
                **look,
            }
        )
    how = plot_places.EMULATED if plot_places.is_emulated(place) else ""
    times = [time for trace in data for time in trace["y"]]
    return Choice(f"{case} · {place}", data, {"yaxis": ns_axis(times, f"latency{how}")})


def _percentile_axis() -> Json:
    return {
        "type": "log",
        "title": {"text": "percentile"},
        "tickmode": "array",
        "tickvals": [1, *_PERCENTILES.values(), 100_000],
        "ticktext": ["lowest", *_PERCENTILES, "p99.999"],
    }


def _percentile_table(
    some: Sequence[tuple[str, str]],
    loads: Mapping[tuple[str, str], Sequence[tuple[str, _Curve]]],
) -> Table:
    rows = []
    for place, case in some:
        for name, curve in sorted(loads[place, case], key=lambda item: -item[1].at(0.5)):
            said = (
                ns_words(curve.at(1 - 1 / end)) if end <= curve.ends_at() else "-"
                for end in _PERCENTILES.values()
            )
            rows.append((case, place, name, *said, number_words(curve.count)))
    head = ("load", "kernel", "job and call", *_PERCENTILES, "calls")
    return table(head, rows, "A percentile of too few calls is left out.")
