"""What a load did over time: throughput, pins, processes, pressure, migration, CPU."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars

from pinstorm.frames import collect
from pinstorm.report.html import plot_places
from pinstorm.report.html.plot_form import (
    Choice,
    Json,
    Plot,
    escaped,
    figure,
    line,
    number_words,
    shown,
    table,
)
from pinstorm.report.html.series_points import Load, Readings, Series, loads, thinned

MOST_POINTS = 2000
# Of all series together: what a page can carry.
_ALL_POINTS = 24_000
_LEAST_POINTS = 40
_MOST_APART = 12
# Pixels: of a series on an axis of its own, and above them all.
_APART = 80
_ROOM = 36

_VMSTAT = "vmstat"
_LEVELS = (
    (_VMSTAT, "outstanding_pages"),
    (_VMSTAT, "nr_free_cma"),
    ("process", "vmpin_bytes"),
    ("process_tables", "vma_count"),
)
_RATES = {
    "pages migrated": "pgmigrate_success",
    "migrations failed": "pgmigrate_fail",
    "pages isolated to compact": "compact_isolated",
    "stalls to compact": "compact_stall",
}
_PRESSURE = ("cpu_some", "memory_some", "memory_full", "io_some", "io_full")
_CPU = ("user_ns", "system_ns")
_COUNTERS = (
    *((_VMSTAT, key) for key in _RATES.values()),
    *(("pressure", f"{key}_ns") for key in _PRESSURE),
    *(("process", key) for key in _CPU),
)
# One operation of a region is an acquire and a release, and an ODP fault belongs to its acquire.
_NOT_OPERATIONS = ("release", "fault")

_THINNED = (
    f"Of more than {MOST_POINTS} readings, fewer where there are many series, the lowest and the "
    "highest of each short slot of time are drawn: no spike is lost."
)
_UNFOLDED = (
    "Counters are folded per CPU only now and then, so a point can be off by some pages; the "
    "record's judgement is exact."
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One plot: its series of a load, by name."""

    id: str
    title: str
    says: str
    unit: str
    # Each series on an axis of its own: they lie decades apart, or hide each other.
    apart: bool
    series: "Callable[[_Told, int, int], dict[str, Series]]"


class _Told:
    """What there is about some loads."""

    def __init__(self, some: Sequence[Load], readings: Readings, done: "Mapping[int, Done]"):
        self.loads = some
        self.readings = readings
        self.done = done


# Operations of each job: begin and end of an interval in ns, and how many ended in it.
Done = Mapping[str, Sequence[tuple[int, int, int]]]


def plots(
    cases: polars.LazyFrame,
    samples: polars.LazyFrame,
    histograms: polars.LazyFrame,
    manifests: Mapping[str, Mapping[str, Any]],
) -> list[Plot]:
    """Nothing where no load has a series."""
    some, left_out = loads(cases, samples, histograms, manifests)
    if not some:
        return []
    told = _Told(some, Readings(samples, some, _LEVELS + _COUNTERS), operations(histograms, some))
    points = _points(told)
    found = [_plot(kind, told, points, left_out) for kind in _KINDS]
    return [plot for plot in found if plot is not None]


def _points(told: _Told) -> int:
    """For each series, so that all of them together are not too many."""
    series = sum(
        len(kind.series(told, number, _LEAST_POINTS))
        for kind in _KINDS
        for number in range(len(told.loads))
    )
    return max(_LEAST_POINTS, min(MOST_POINTS, _ALL_POINTS // max(1, series)))


def _plot(kind: _Kind, told: _Told, points: int, left_out: int) -> Plot | None:
    choices: list[Choice] = []
    rows: list[tuple[str, ...]] = []
    labels = _labels(told.loads)
    for number, load in enumerate(told.loads):
        found = {
            name: series
            for name, series in kind.series(told, number, points).items()
            if len(series.values) > 1
        }
        if not found:
            continue
        choices.append(_choice(kind, load, labels[number], found))
        rows += [_row(load, labels[number], name, series) for name, series in found.items()]
    if not choices:
        return None
    emulated = any(plot_places.is_emulated(load.place) for load in told.loads)
    how = " Emulated: rates and times say nothing about hardware." if emulated else ""
    note = f"{left_out} shorter loads are not shown. " if left_out else ""
    hidden = sum(load.left_out for load in told.loads)
    if hidden and kind.id in ("series-vmpin", "series-vmas", "series-cpu"):
        note += f"{hidden} processes with less VmPin and CPU time are not shown."
    return Plot(
        kind.id,
        kind.title,
        f"{kind.says} {_THINNED}{how}",
        figure(
            choices,
            {
                "xaxis": {"title": {"text": "seconds since the hold began"}, "ticksuffix": " s"},
                "hovermode": "x unified" if len(choices[0].data) <= 4 else "closest",
            },
        ),
        table(
            ("load", "series", "unit", "lowest", "mean", "highest", "highest at", "points"),
            [(*row[:2], kind.unit, *row[2:]) for row in rows],
            note.strip(),
        ),
    )


def _choice(kind: _Kind, load: Load, label: str, found: Mapping[str, Series]) -> Choice:
    data = [_trace(load, *item, index) for index, item in enumerate(found.items())]
    layout = _phase_marks(load)
    if not kind.apart:
        return Choice(label, data, {**layout, "yaxis": _axis(kind, found)})
    above = [*found.items()][:_MOST_APART]
    area = _ROOM + _APART * len(above)
    # Above all of them there is room for the names of the phases.
    highest = 1 - _ROOM / area
    each = highest / len(above)
    layout["xaxis"] = {"anchor": "free", "position": 0}
    # As many axes in each choice: one that is left over would stay where it was.
    for number in range(_MOST_APART):
        axis = f"yaxis{number + 1}" if number else "yaxis"
        if number >= len(above):
            layout[axis] = {"visible": False, "domain": [0, 0.001]}
            continue
        name, series = above[number]
        data[number] |= {"yaxis": axis.replace("axis", ""), "showlegend": False}
        top = highest - number * each
        layout[axis] = _axis(kind, {name: series}) | {
            "title": {"text": ""},
            "anchor": "x",
            "domain": [round(top - 0.78 * each, 4), round(top - 0.22 * each, 4)],
            "nticks": 3,
            "visible": True,
            "zeroline": True,
        }
        layout["annotations"].append(
            {
                "text": f"<b>{escaped(name)}</b>, {kind.unit}",
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
            }
            | {"y": round(top - 0.22 * each, 4), "yref": "paper", "yanchor": "bottom"}
            | {"showarrow": False, "font": {"size": 11}}
        )
    return Choice(label, data[:_MOST_APART], layout, area)


def _labels(some: Sequence[Load]) -> list[str]:
    """Of loads of one name the bundle and the place in the run, too."""
    plain = [load.label for load in some]
    return [
        label if plain.count(label) == 1 else f"{label} · {load.bundle[-30:]} #{load.seq}"
        for label, load in zip(plain, some, strict=True)
    ]


def _trace(load: Load, name: str, series: Series, number: int) -> Json:
    look = line(number)
    # Of hundreds of points a dash shows nothing: a few marks tell the series apart.
    look["line"] |= {"width": 1.5, "dash": "solid"}
    look["marker"] |= {"size": 6, "maxdisplayed": 12}
    return {
        "type": "scatter",
        "name": name,
        "x": [load.seconds(t_ns) for t_ns in series.t_ns],
        "y": [shown(value) for value in series.values],
        "hovertemplate": "%{x} s: %{y}<extra>%{fullData.name}</extra>",
        **look,
    }


def _row(load: Load, label: str, name: str, series: Series) -> tuple[str, ...]:
    highest = max(series.values)
    at_s = load.seconds(series.t_ns[series.values.index(highest)])
    return (
        label,
        name,
        _words(min(series.values)),
        _words(series.mean),
        _words(highest),
        f"{shown(at_s)} s",
        number_words(len(series.values)),
    )


def _words(value: float | None) -> str:
    """A count as it is; of what is no whole number as many digits as say something."""
    whole = value is not None and value.is_integer()
    return number_words(value if whole else shown(value))


def _axis(kind: _Kind, found: Mapping[str, Series]) -> Json:
    highest = max(max(series.values) for series in found.values())
    lowest = min(min(series.values) for series in found.values())
    axis: Json = {"title": {"text": kind.unit}, "rangemode": "tozero", "type": "linear"}
    if kind.unit.startswith("bytes"):
        # Powers of two between the ticks of an axis whose unit is bytes.
        return axis | _binary_ticks(highest)
    positive = [value for series in found.values() for value in series.values if value > 0]
    # What lies decades apart is told apart only on a logarithmic axis; it has no 0.
    if lowest > 0 and positive and highest / min(positive) > 300:
        return axis | {"type": "log", "exponentformat": "power", "dtick": 1}
    return axis


def _binary_ticks(highest: float) -> Json:
    unit, factor = next(
        (
            (unit, factor)
            for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
            if highest >= factor
        ),
        ("B", 1),
    )
    step = 1
    while highest / factor / step > 6:
        step *= 2
    ticks = [number * step for number in range(int(highest / factor / step) + 2)]
    return {
        "tickmode": "array",
        "tickvals": [tick * factor for tick in ticks],
        "ticktext": [f"{tick} {unit}" for tick in ticks],
    }


def _phase_marks(load: Load) -> Json:
    """A band of grey for what is not the hold, a dotted line and a name where each phase begins."""
    shapes: list[Json] = []
    names: list[Json] = []
    times = [time for span in load.phases.values() for time in span]
    first_ns, last_ns = min(times, default=0), max(times, default=0)
    before_ns, lower = 2 * first_ns - last_ns, 0
    for name, (begin_ns, end_ns) in load.phases.items():
        begin, end = load.seconds(begin_ns), load.seconds(end_ns)
        over = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1}
        if name != "hold":
            shapes.append(
                {"type": "rect", "x0": begin, "x1": end, "layer": "below", **over}
                | {"fillcolor": "#888888", "opacity": 0.18, "line": {"width": 0}}
            )
        shapes.append(
            {"type": "line", "x0": begin, "x1": begin, **over}
            | {"line": {"color": "#888888", "width": 1, "dash": "dot"}}
        )
        # Phases before the hold may be short: a name that would lie on another stands lower.
        late = begin_ns > (first_ns + last_ns) / 2
        lower = 0 if late or begin_ns - before_ns > (last_ns - first_ns) / 4 else lower + 1
        before_ns = begin_ns
        names.append(
            {"text": escaped(name), "x": begin, "xref": "x", "xanchor": "right" if late else "left"}
            | {"y": 1, "yref": "paper", "yanchor": "top", "yshift": -13 * lower}
            | {"showarrow": False, "font": {"size": 11}}
        )
    return {"shapes": shapes, "annotations": names}


def operations(histograms: polars.LazyFrame, some: Sequence[Load]) -> "Mapping[int, Done]":
    """By load and job, in order of time."""
    own = polars.LazyFrame(
        [(load.bundle, load.seq, number) for number, load in enumerate(some)],
        schema={"bundle": polars.String, "seq": polars.Int64, "load": polars.Int64},
        orient="row",
    )
    found = collect(
        histograms.filter(
            polars.col("t_end_ns").is_not_null() & ~polars.col("kind").is_in(_NOT_OPERATIONS)
        )
        .join(own, on=["bundle", "seq"])
        .group_by("load", "job", "t_begin_ns", "t_end_ns")
        .agg(polars.col("count").sum())
    ).sort("load", "job", "t_begin_ns", "t_end_ns")
    done: dict[int, dict[str, list[tuple[int, int, int]]]] = {}
    for number, job, begin_ns, end_ns, count in found.iter_rows():
        done.setdefault(number, {}).setdefault(job, []).append((begin_ns, end_ns, count))
    return done


def _throughput(told: _Told, number: int, points: int) -> dict[str, Series]:
    jobs = told.done.get(number, {})
    return {job: _rates(intervals, points) for job, intervals in jobs.items()}


def _rates(intervals: Sequence[tuple[int, int, int]], points: int) -> Series:
    """Operations a second of each interval, at its middle.

    An interval in which no call ended has no histogram: between two others that is a rate of 0.
    """
    widths = sorted(end_ns - begin_ns for begin_ns, end_ns, _ in intervals)
    usual_ns = widths[len(widths) // 2]
    times: list[int] = []
    values: list[float] = []
    before_ns: int | None = None
    for begin_ns, end_ns, count in intervals:
        if before_ns is not None and begin_ns - before_ns > usual_ns / 2:
            for at_ns in dict.fromkeys(
                (min(before_ns + usual_ns // 2, begin_ns), max(begin_ns - usual_ns // 2, before_ns))
            ):
                times.append(at_ns)
                values.append(0.0)
        if end_ns > begin_ns:
            times.append((begin_ns + end_ns) // 2)
            values.append(count / (end_ns - begin_ns) * 1e9)
        before_ns = max(end_ns, before_ns or end_ns)
    rows = polars.DataFrame(
        {"t_ns": times, "value": values}, schema={"t_ns": polars.Int64, "value": polars.Float64}
    )
    passed_ns = max(end for _, end, _ in intervals) - intervals[0][0]
    mean = sum(count for *_, count in intervals) / passed_ns * 1e9 if passed_ns > 0 else None
    return thinned(rows, points, mean)


def _some(series: Iterable[tuple[str, Series]]) -> dict[str, Series]:
    return {name: one for name, one in series if one.values}


def _outstanding(told: _Told, number: int, points: int) -> dict[str, Series]:
    found = told.readings.level(number, _VMSTAT, "outstanding_pages", None, points)
    return _some([("acquired - released", found)])


def _of_processes(source: str, key: str) -> "Callable[[_Told, int, int], dict[str, Series]]":
    def series(told: _Told, number: int, points: int) -> dict[str, Series]:
        read = told.readings.level
        return _some(
            (f"PID {pid}", read(number, source, key, pid, points))
            for pid in told.loads[number].pids
        )

    return series


def _cpu(told: _Told, number: int, points: int) -> dict[str, Series]:
    return _some(
        (f"PID {pid}", _scaled(told.readings.rate(number, "process", _CPU, pid, points), 1e-7))
        for pid in told.loads[number].pids
    )


def _pressure(told: _Told, number: int, points: int) -> dict[str, Series]:
    return _some(
        (
            key.replace("_", ", "),
            _scaled(told.readings.rate(number, "pressure", [f"{key}_ns"], None, points), 1e-7),
        )
        for key in _PRESSURE
    )


def _migration(told: _Told, number: int, points: int) -> dict[str, Series]:
    return _some(
        (name, told.readings.rate(number, _VMSTAT, [key], None, points))
        for name, key in _RATES.items()
    )


def _free_cma(told: _Told, number: int, points: int) -> dict[str, Series]:
    """Nothing on a machine without CMA."""
    found = told.readings.level(number, _VMSTAT, "nr_free_cma", None, points)
    return {"free CMA": found} if any(found.values) else {}


def _scaled(series: Series, factor: float) -> Series:
    mean = None if series.mean is None else series.mean * factor
    return Series(series.t_ns, [value * factor for value in series.values], mean)


_KINDS = (
    _Kind(
        "series-throughput",
        "Throughput of loads",
        "Operations a second of each job, by interval; grey is not the counted hold. Look for a "
        "job that stalls (0) or slows down while another speeds up.",
        "operations a second",
        True,
        _throughput,
    ),
    _Kind(
        "series-outstanding",
        "Outstanding pins of loads",
        "Pages acquired minus released since boot, of the whole machine. It rises and falls with "
        "the load and comes back; a floor that climbs is a leak: a sign, not a size. " + _UNFOLDED,
        "pages",
        False,
        _outstanding,
    ),
    _Kind(
        "series-vmpin",
        "VmPin of loaded processes",
        "VmPin of each loaded process: what pinners that account there (RDMA) hold. It should "
        "stay within what the job's depth allows.",
        "bytes in VmPin",
        False,
        _of_processes("process", "vmpin_bytes"),
    ),
    _Kind(
        "series-vmas",
        "VMAs of loaded processes",
        "Mappings of each loaded process. One that only grows reaches vm.max_map_count.",
        "mappings",
        False,
        _of_processes("process_tables", "vma_count"),
    ),
    _Kind(
        "series-pressure",
        "Pressure stalls (PSI)",
        "Share of the time (%) in which some, or all (full), tasks stood still for CPU, memory or "
        "IO, of the whole machine. Memory pressure beside falling throughput is reclaim or "
        "compaction in the way of pins.",
        "% of the time",
        False,
        _pressure,
    ),
    _Kind(
        "series-migration",
        "Migration and compaction over time",
        "Pages, and stalls, a second, of the whole machine. Pinned pages must not move: failed "
        "migrations beside compaction are right where pages are pinned; many of them cost CPU. "
        + _UNFOLDED,
        "a second",
        True,
        _migration,
    ),
    _Kind(
        "series-cma",
        "Free CMA",
        "Free pages of CMA, of the whole machine. Long-term pins never lie there.",
        "pages",
        False,
        _free_cma,
    ),
    _Kind(
        "series-cpu",
        "CPU of loaded processes",
        "CPU time of each loaded process, user and system, in % of one core. One at 100 % is "
        "what limits its job.",
        "% of a core",
        True,
        _cpu,
    ),
)
