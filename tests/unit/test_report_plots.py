"""The report's plots: right figures in them, few enough, and nothing that plotly would refuse."""

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy
import plotly.graph_objects
import polars
import pytest

import pinstorm
from pinstorm import intervals, samples, schema
from pinstorm.frames import Frames
from pinstorm.parquet_tables import polars_schema
from pinstorm.report.html import plot_form, plot_places, series_points
from pinstorm.report.html.plot_cycles import percentile, pools
from pinstorm.report.html.plot_distribution import steps
from pinstorm.report.html.plots import plots
from telemetry.histogram import Histogram, high_of, low_of

BUNDLE = Path(__file__).parent / "data/bundle-schema-1"
KERNEL = "7.2.11+deb13-amd64"
OLD = "6.1.0-54-amd64"
SECOND = 1_000_000_000


def case(name="rdma-register/anon/rw/64KiB", **more):
    workload, memory, *rest = name.split("/")
    units = {"4KiB": 4096, "64KiB": 65536, "1MiB": 1 << 20, "16MiB": 16 << 20}
    size = next((units[word] for word in rest if word in units), None)
    return {
        "bundle": "runs/a",
        "kernel": KERNEL,
        "accel": "host",
        "case": name,
        "workload": workload,
        "memory": memory,
        "size_bytes": size,
        "seq": 0,
        "round": 0,
        "outcome": "ok",
        "verdict": "pass",
        **more,
    }


def framed(columns, rows):
    types = {"bundle": polars.String, **polars_schema(columns)}
    whole = {name: [row.get(name) for row in rows] for name in types}
    return polars.LazyFrame(whole, schema=types)


def frames(cases=(), read=(), histograms=(), accel="host"):
    rows = [*cases, *read, *histograms]
    manifest = {"page_bytes": 4096, "accel": accel, "identity": {"kernel": KERNEL}}
    return Frames(
        framed(schema.COLUMNS, cases),
        framed(samples.COLUMNS, read),
        framed(intervals.COLUMNS, histograms),
        {row["bundle"]: manifest for row in rows} or {"runs/a": manifest},
        {},
        [],
    )


def by_id(found):
    return {plot.id: plot for plot in found}


def choices(plot):
    """Label and traces of each entry of the menu, as plotly itself would show them."""
    figure = plotly.graph_objects.Figure(plot.figure)
    menus = plot.figure["layout"].get("updatemenus")
    if not menus:
        return {"": shown(figure)}
    found = {}
    for button in menus[0]["buttons"]:
        restyle, relayout = button["args"]
        # Raises for an attribute or a value that there is not.
        figure.plotly_restyle(restyle)
        figure.plotly_relayout(relayout)
        found[button["label"]] = shown(figure)
    return found


def shown(figure):
    traces = [trace.to_plotly_json() for trace in figure.data if trace.visible is not False]
    return {trace["name"]: trace for trace in traces if trace.get("name")}


def test_without_a_row_there_is_no_plot():
    assert plots(frames()) == []


def test_a_real_bundle_is_drawn_and_plotly_takes_all_of_it():
    found = plots(pinstorm.scan(BUNDLE))
    assert [plot.id for plot in found] == [
        *("acquire-by-size", "acquire-by-memory", "held-vmpin", "migration"),
    ]
    for plot in found:
        assert choices(plot)
        assert plot.says
        assert plot.table.rows
        assert {len(row) for row in plot.table.rows} == {len(plot.table.head)}
        json.dumps(plot.figure, allow_nan=False)


def test_a_real_bundles_medians_are_those_of_its_cases():
    frame = pinstorm.load(BUNDLE).cases.filter(polars.col("outcome") == "ok")
    expected = {
        row["case"]: row["acquire_median_ns"]
        for row in frame.iter_rows(named=True)
        if row["acquire_ns"]
    }
    found, left_out = pools(pinstorm.scan(BUNDLE).cases)
    assert {pool.case: pool.median_ns for pool in found} == expected
    assert left_out == 0
    assert len(expected) > 50


def test_rounds_and_bundles_of_a_kernel_are_one_pool():
    rows = [
        case(acquire_ns=[5000, 1000, 9000], round=0),
        case(acquire_ns=[100_000, 2000, 3000], round=1),
        case(acquire_ns=[4000], bundle="runs/b"),
        case(acquire_ns=[7], kernel=OLD),
    ]
    new, old = sorted(pools(frames(rows).cases)[0], key=lambda pool: -pool.cycles)
    assert (new.median_ns, new.spread_ns, new.cycles, new.rounds) == (4000, (1000, 100_000), 7, 3)
    assert (old.median_ns, old.cycles) == (7, 1)


def test_ten_cycles_have_deciles_and_fewer_their_ends():
    pool = pools(frames([case(acquire_ns=list(range(100, 111)))]).cases)[0][0]
    assert pool.spread_ns == (101, 109)
    pool = pools(frames([case(acquire_ns=list(range(100, 109)))]).cases)[0][0]
    assert pool.spread_ns == (100, 108)


def test_what_was_refused_or_never_timed_is_in_no_pool():
    rows = [
        case(outcome="EFAULT", acquire_ns=[1]),
        case("dio-read/anon/64KiB", acquire_ns=[]),
        case("dio-read/thp/64KiB"),
    ]
    assert pools(frames(rows).cases) == ([], 0)


def test_a_large_pools_sample_has_its_median_and_the_ends_are_exact():
    draw = numpy.random.default_rng(1)
    rows = [
        case(acquire_ns=draw.integers(1000, 2000, 20).tolist(), seq=number, round=number)
        for number in range(1000)
    ]
    rows[500]["acquire_ns"][3] = 77
    rows[501]["acquire_ns"][3] = 99_000
    pool = pools(frames(rows).cases)[0][0]
    assert (pool.cycles, pool.lowest_ns, pool.highest_ns) == (20_000, 77, 99_000)
    assert 1000 < len(pool.acquire_ns) < 5000
    assert pool.median_ns == pytest.approx(1500, rel=0.03)
    assert "of a sample" in by_id(plots(frames(rows)))["acquire-by-memory"].table.note


def test_one_row_of_many_cycles_is_not_lost_to_sampling_and_one_without_times_is_no_pool():
    rows = [case(acquire_ns=list(range(20_000))), case("dio-read/thp/64KiB", acquire_ns=[None])]
    (pool,), _ = pools(frames(rows).cases)
    assert (pool.median_ns, pool.cycles) == (9999, 20_000)


def test_against_size_lines_are_memories_and_places_menu_entries():
    rows = [
        case(f"rdma-register/{memory}/rw/{size}", acquire_ns=[time], kernel=kernel, accel=accel)
        | {"folio_orders": '{"9":16}' if memory == "thp" else '{"0":16}'}
        for memory, factor in (("anon", 1), ("thp", 2))
        for size, time in (("64KiB", 1000 * factor), ("16MiB", 30_000 * factor))
        for kernel, accel in ((KERNEL, "host"), (OLD, "host"), (KERNEL, "tcg"))
    ]
    rows.append(case("rdma-register/memfd/rw/64KiB", acquire_ns=[5]))
    plot = by_id(plots(frames(rows)))["acquire-by-size"]
    found = choices(plot)
    assert list(found) == [
        "rdma-register · 6.1.0-54-amd64",
        "rdma-register · 7.2.11",
        "rdma-register · 7.2.11 (emulated)",
    ]
    thp = found["rdma-register · 7.2.11"]["thp (2MiB) rw"]
    assert list(thp["x"]) == [65536, 16 << 20]
    assert list(thp["y"]) == [2000, 60_000]
    assert "anon (4KiB) rw" in found["rdma-register · 7.2.11"]
    # Of one size there is no line.
    assert not any("memfd" in name for traces in found.values() for name in traces)
    assert plot.table.rows[0][5] == "60 µs"


def test_emulated_times_are_never_in_one_picture_with_others():
    rows = [
        case(f"dio-read/{memory}/64KiB", acquire_ns=[1000], accel=accel)
        for memory in ("anon", "thp")
        for accel in ("host", "tcg", "kvm")
    ]
    plot = by_id(plots(frames(rows)))["acquire-by-memory"]
    found = choices(plot)
    assert {label: set(traces) for label, traces in found.items()} == {
        "dio-read": {KERNEL, f"{KERNEL} (KVM)"},
        "dio-read (emulated)": {f"{KERNEL} (emulated)"},
    }
    assert "mulated" in plot.says
    assert [row[4] for row in plot.table.rows][-2:] == [f"{KERNEL} (emulated)"] * 2


def test_a_cdf_rises_to_its_end_and_is_numpys():
    times = numpy.sort(numpy.random.default_rng(2).lognormal(10, 1, 997).astype(int))
    xs, ys = steps(times)
    assert ys[0] == 0
    assert ys[-1] == 100
    assert all(a <= b for a, b in pairwise(xs))
    assert all(a < b for a, b in pairwise(ys))
    # Each share is within the rounding of four digits of numpy's lower percentile.
    for x, y in zip(xs, ys, strict=True):
        assert x == pytest.approx(percentile(times, y / 100), rel=1e-3)
        assert percentile(times, y / 100) == numpy.percentile(times, y, method="lower")


def test_cdfs_are_of_twenty_cycles_at_least_and_p99_of_a_hundred():
    few = case("dio-read/thp/64KiB", acquire_ns=[1000] * 19, release_ns=[10] * 19)
    assert "latency-cdf" not in by_id(plots(frames([few])))
    times = list(range(1000, 1099))
    some = case("dio-read/anon/64KiB", acquire_ns=times, release_ns=times)
    many = case("dio-read/memfd/64KiB", acquire_ns=[*times, 5000], release_ns=[])
    plot = by_id(plots(frames([few, some, many])))["latency-cdf"]
    assert set(choices(plot)[""]) == {"anon, acquire", "anon, release", "memfd, acquire"}
    p99 = {(row[0], row[2]): row[6] for row in plot.table.rows}
    assert p99["dio-read/anon/64KiB", "acquire"] == "-"
    assert p99["dio-read/memfd/64KiB", "acquire"] == "1.1 µs"


def histogram_rows(values, job="regions", kind="acquire", **more):
    histogram = Histogram()
    for value in values:
        histogram.record(int(value))
    return [
        {"bundle": "runs/a", "run": "a", "case": "load/x", "seq": 0, "job": job, "kind": kind}
        | {"phase": "hold", "t_begin_ns": 0, "low_ns": low_of(index), "high_ns": high_of(index)}
        | {"count": count, **more}
        for index, count in sorted(histogram.counts.items())
    ]


def test_a_loads_percentiles_are_numpys_within_a_bucket():
    values = numpy.random.default_rng(3).lognormal(11, 1, 30_011).astype(int)
    rows = histogram_rows(values) + histogram_rows(values[:99], job="few")
    # Of other phases, and of single intervals, nothing is counted.
    rows += histogram_rows([1] * 1000, phase="ramp") + histogram_rows([1] * 1000, t_end_ns=5)
    plot = by_id(plots(frames(histograms=rows)))["load-percentiles"]
    curve, few = (choices(plot)[""][name] for name in ("regions acquire", "few acquire"))
    assert all(a <= b for a, b in pairwise(curve["y"]))
    for number, y in enumerate(curve["y"]):
        share = 100 * (1 - 10 ** (-number / 8))
        exact = numpy.percentile(values, share, method="inverted_cdf")
        assert exact * 0.999 <= y <= exact * (1 + 1 / 128) * 1.001
    assert max(curve["x"]) == pytest.approx(30_000, rel=0.4)
    assert max(few["x"]) == pytest.approx(10)
    assert plot.table.rows[0][-1] in ("30 011", "99")


def test_held_lies_on_the_line_where_vmpin_says_the_same():
    rows = [
        case(held=16, vmpin_held_bytes=65536, pins_exact=True),
        case("rdma-register/thp/rw/64KiB", held=16, vmpin_held_bytes=65536, pins_exact=True),
        case("io-uring-register/thp/64KiB", held=1, vmpin_held_bytes=2 << 20, pins_exact=True),
        case("io-uring-register/anon/64KiB", held=16, vmpin_held_bytes=0, pins_exact=False),
        case("vfio-map/anon/64KiB", held=16, vmpin_held_bytes=0, vmlck_held_bytes=65536),
        case("dio-read/anon/64KiB", held=0, vmpin_held_bytes=0),
        case("udmabuf/anon/64KiB", held=16),
    ]
    plot = by_id(plots(frames(rows)))["held-vmpin"]
    traces = choices(plot)[""]
    assert set(traces) == {"VmPin = held", "rdma-register", "io-uring-register", "vfio-map"}
    assert list(traces["rdma-register"]["x"]) == [65536]
    assert list(traces["rdma-register"]["y"]) == [65536]
    assert set(traces["io-uring-register"]["marker"]["symbol"]) == {"square-open", "square"} or (
        {symbol.endswith("-open") for symbol in traces["io-uring-register"]["marker"]["symbol"]}
        == {True, False}
    )
    is_ = {(row[0], row[3]): row[6] for row in plot.table.rows}
    assert is_ == {
        ("io-uring-register", "4KiB"): "VmPin more than pins",
        ("io-uring-register", "64KiB"): "not in VmPin",
        ("vfio-map", "64KiB"): "no VmPin, VmLck 64KiB",
        ("rdma-register", "64KiB"): "same",
    }
    assert plot.table.rows[-1][0] == "rdma-register"
    assert plot.table.rows[-1][-1] == "2"


def test_marks_of_one_place_are_side_by_side_on_the_line():
    rows = [
        case(f"{workload}/anon/64KiB", held=16, vmpin_held_bytes=65536)
        for workload in ("rdma-register", "io-uring-register")
    ]
    traces = choices(by_id(plots(frames(rows)))["held-vmpin"])[""]
    found = [(*trace["x"], *trace["y"]) for name, trace in traces.items() if "reg" in name]
    assert found[0] != found[1]
    assert all(x == y for x, y in found)


def test_migration_has_medians_of_rounds_and_what_stayed_in_cma():
    moved = {"cma_pages": 16, "pin_class": "pin-longterm"}
    rows = [
        case("rdma-register/movable/rw/64KiB", **moved, migrate_success=n, migrate_fail=1)
        | {"first_ns": 1000 * n, "round": n}
        for n in (14, 15, 16)
    ]
    rows.append(case("rdma-register/ext4-private/rw/64KiB", **moved, migrate_success=0))
    # Refused, and not long-term: nothing had to move.
    rows.append(case("rdma-register/ext4-shared/rw/64KiB", **moved, outcome="EFAULT"))
    rows.append(case("dio-read/movable/64KiB", cma_pages=16, pin_class="pin", migrate_success=0))
    plot = by_id(plots(frames(rows)))["migration"]
    traces = choices(plot)[""]
    assert dict(zip(traces["migrated"]["y"], traces["migrated"]["x"], strict=True)) == {
        "movable rw 64KiB": 15
    }
    assert set(traces["in CMA before"]["y"]) == {"movable rw 64KiB", "ext4-private rw 64KiB"}
    assert list(traces["first acquire"]["x"]) == [15_000]
    assert plot.table.rows[0][3:] == ("16", "15", "1", "15 µs", "3")


def readings(key, values, source="vmstat", pid=None, begin_ns=0, step_ns=SECOND // 100, phase=None):
    return [
        {"bundle": "runs/a", "run": "a", "case": "load/x", "seq": 0, "source": source, "key": key}
        | {"t_ns": begin_ns + number * step_ns, "value": int(value), "pid": pid}
        | {"phase": phase(begin_ns + number * step_ns) if phase else "hold", "exact": False}
        for number, value in enumerate(values)
    ]


def test_thinning_keeps_every_slots_lowest_and_highest():
    draw = random.Random(4)
    values = [draw.gauss(1000, 10) for _ in range(100_000)]
    values[31_415], values[92_653] = 5000.0, -5000.0
    rows = polars.DataFrame({"t_ns": [n * 1000 for n in range(len(values))], "value": values})
    thin = series_points.thinned(rows, 500)
    assert len(thin.values) <= 500
    assert thin.t_ns == sorted(thin.t_ns)
    points = dict(zip(thin.t_ns, thin.values, strict=True))
    assert points[31_415_000] == 5000
    assert points[92_653_000] == -5000
    for slot in range(250):
        part = values[slot * 400 : (slot + 1) * 400]
        assert {min(part), max(part)} <= set(thin.values)


def test_few_points_stay_as_they_are():
    rows = polars.DataFrame({"t_ns": [3, 1, 2], "value": [30.0, 10.0, 20.0]})
    assert series_points.thinned(rows, 3) == series_points.Series(
        [1, 2, 3], [10.0, 20.0, 30.0], 20.0
    )


def test_a_spike_among_hours_of_readings_is_drawn_where_it_was():
    values = numpy.full(60_000, 256)
    values[40_000] = 4352
    rows = readings("outstanding_pages", values)
    phases = json.dumps({"ramp": [0, 5 * SECOND], "hold": [5 * SECOND, 600 * SECOND]})
    load = case("load/x", phases=phases, outcome="ok")
    plot = by_id(plots(frames([load], rows)))["series-outstanding"]
    trace = choices(plot)[""]["acquired - released"]
    assert len(trace["x"]) <= 2000
    at = max(range(len(trace["y"])), key=lambda index: trace["y"][index])
    # To a 20 000th of the whole.
    assert (trace["x"][at], trace["y"][at]) == (pytest.approx(395, abs=0.03), 4352)
    assert plot.table.rows[0][5:7] == ("4 352", "395 s")


def test_counters_are_drawn_as_rates():
    migrated = numpy.concatenate([numpy.arange(500) * 2, 998 + numpy.arange(1, 501) * 10])
    rows = readings("pgmigrate_success", migrated)
    stood = readings("memory_some_ns", [n * 2_500_000 for n in range(1000)], source="pressure")
    ran = [
        *readings("user_ns", [n * 4_000_000 for n in range(1000)], source="process", pid=7),
        *readings("system_ns", [n * 1_000_000 for n in range(1000)], source="process", pid=7),
    ]
    found = by_id(plots(frames(read=rows + stood + ran)))
    rates = choices(found["series-migration"])[""]["pages migrated"]
    assert set(numpy.round(rates["y"])) == {200, 1000}
    stall = choices(found["series-pressure"])[""]["memory, some"]
    assert set(numpy.round(stall["y"])) == {25}
    assert set(numpy.round(choices(found["series-cpu"])[""]["PID 7"]["y"])) == {50}


def phase_starts(plot):
    shapes = plot.figure["layout"]["shapes"]
    return [shape["x0"] for shape in shapes if shape["type"] == "line"]


def phase_of(t_ns):
    return "ramp" if t_ns < 2 * SECOND else "hold"


def test_phases_are_marked_where_the_record_has_them():
    rows = readings("outstanding_pages", range(1000), phase=phase_of)
    phases = {"prepare": [-3 * SECOND, 0], "load": [0, 9], "ramp": [SECOND // 2, SECOND * 3 // 2]}
    phases |= {"hold": [SECOND * 3 // 2, 9 * SECOND], "release": [9 * SECOND, 10 * SECOND]}
    found = by_id(plots(frames([case("load/x", phases=json.dumps(phases))], rows)))
    plot = found["series-outstanding"]
    assert phase_starts(plot) == [-4.5, -1.0, 0.0, 7.5]
    names = [name["text"] for name in plot.figure["layout"]["annotations"]]
    assert names == ["prepare", "ramp", "hold", "release"]
    bands = [shape for shape in plot.figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert [(band["x0"], band["x1"]) for band in bands] == [(-4.5, -1.5), (-1.0, 0.0), (7.5, 8.5)]


def test_without_a_record_phases_are_those_of_the_readings():
    rows = readings("outstanding_pages", range(1000), phase=phase_of)
    plot = by_id(plots(frames(read=rows)))["series-outstanding"]
    assert phase_starts(plot) == [-2.0, 0.0]


def test_throughput_counts_calls_once_and_shows_a_stall():
    rows = []
    for number in (0, 1, 2, 5, 6):
        span = {"t_begin_ns": number * SECOND, "t_end_ns": (number + 1) * SECOND}
        rows += histogram_rows([1000] * 10 + [9000] * 20, **span)
        rows += histogram_rows([1000] * 30, kind="release", **span)
    plot = by_id(plots(frames(histograms=rows)))["series-throughput"]
    trace = choices(plot)[""]["regions"]
    assert dict(zip(trace["x"], trace["y"], strict=True)) == {
        0.5: 30,
        1.5: 30,
        2.5: 30,
        3.5: 0,
        4.5: 0,
        5.5: 30,
        6.5: 30,
    }


def test_emulated_loads_are_said_to_be():
    found = by_id(plots(frames(read=readings("outstanding_pages", range(100)), accel="tcg")))
    assert "Emulated" in found["series-outstanding"].says
    assert found["series-outstanding"].table.rows[0][0] == f"load/x · {KERNEL} (emulated)"


def test_figures_stay_small_whatever_there_is():
    draw = numpy.random.default_rng(5)
    names = [
        f"w{w}/memory-{m}/rw/{size}"
        for w in range(25)
        for m in range(20)
        for size in ("64KiB", "16MiB")
    ]
    columns = {
        "bundle": "runs/a",
        "accel": "host",
        "outcome": "ok",
        "pin_class": "pin-longterm",
        "round": 0,
    }
    parts = []
    for number, kernel in enumerate((KERNEL, OLD, "6.12.113+deb13-amd64")):
        count = len(names)
        frame = polars.DataFrame(
            {
                "case": names,
                "seq": range(count * number, count * (number + 1)),
                "acquire_ns": draw.lognormal(10, 2, (count, 25)).astype(int).tolist(),
                "release_ns": draw.lognormal(10, 2, (count, 25)).astype(int).tolist(),
                "held": draw.integers(1, 99_999, count),
                "vmpin_held_bytes": draw.integers(0, 99_999, count),
                "migrate_success": draw.integers(0, 9, count),
                "first_ns": draw.integers(1, 99_999, count),
            }
        ).with_columns(polars.lit(kernel).alias("kernel"))
        words = polars.col("case").str.split("/")
        sizes = {"4KiB": 4096, "64KiB": 65536, "1MiB": 1 << 20, "16MiB": 16 << 20}
        parts.append(
            frame.with_columns(
                *(polars.lit(value).alias(name) for name, value in columns.items()),
                workload=words.list.get(0),
                memory=words.list.get(1),
                size_bytes=words.list.get(3).replace_strict(sizes),
            )
        )
    whole = frames()
    every = polars.concat([whole.cases.collect(), *parts], how="diagonal_relaxed")
    loads = []
    for pid in range(40):
        values = draw.integers(0, 1 << 40, 3000)
        loads += readings("vmpin_bytes", values, source="process", pid=pid)
    read = framed(samples.COLUMNS, loads)
    found = plots(
        Frames(every.lazy(), read, whole.histograms, whole.manifests, whole.paths, whole.notes)
    )
    assert {plot.id for plot in found} >= {"acquire-by-size", "held-vmpin", "series-vmpin"}
    assert sum(len(json.dumps(plot.figure)) for plot in found) < 1_500_000
    for plot in found:
        assert len(plot.table.rows) <= plot_form.MOST_ROWS
        plotly.graph_objects.Figure(plot.figure)
    assert "rows are left out" in by_id(found)["acquire-by-memory"].table.note
    assert "of 75 entries" in by_id(found)["acquire-by-size"].table.note
    assert "30 processes" in by_id(found)["series-vmpin"].table.note


def test_no_colour_of_the_page_is_named():
    named = ("paper_bgcolor", "plot_bgcolor", "gridcolor", "template")
    for plot in plots(pinstorm.scan(BUNDLE)):
        text = json.dumps(plot.figure)
        assert not [name for name in named if f'"{name}"' in text]
        assert "color" not in plot.figure["layout"].get("font", {})


def test_no_two_series_have_the_same_sign():
    signs = [plot_form.sign(number)[:2] for number in range(77)]
    assert len(set(signs)) == 77


@pytest.mark.parametrize(
    ("value", "words"),
    [(870, "870 ns"), (41_300, "41.3 µs"), (10_000_000, "10 ms"), (2_310_000_000, "2.31 s")],
)
def test_times_are_in_words(value, words):
    assert plot_form.ns_words(value) == words
    assert plot_form.ns_words(None) == "-"


def test_ticks_of_axes_are_in_peoples_units():
    assert plot_form.size_axis([4096, 1 << 24], "size")["ticktext"][0] == "4KiB"
    times = plot_form.ns_axis([2000, 3_000_000], "time")
    assert {"10 µs", "100 µs", "1 ms"} <= set(times["ticktext"])
    assert times["range"][0] < numpy.log10(2000)


def test_kernels_are_in_the_order_of_their_versions():
    places = ["7.2.11 (emulated)", "7.2.11", "6.12.113", "6.1.0", "unknown kernel"]
    order = ["6.1.0", "6.12.113", "7.2.11", "unknown kernel", "7.2.11 (emulated)"]
    assert sorted(places, key=plot_places.order) == order
    assert plot_places.short_names([KERNEL, "7.2.11+other"])[KERNEL] == KERNEL


def test_nothing_from_a_bundle_is_markup_of_plotly():
    evil = '<a href="http://example.invalid">x</a>&lt;'
    rows = [
        case(
            case=f"dio-read/{evil}/{size}",
            memory=evil,
            kernel=f"7.2{evil}",
            size_bytes=size,
            acquire_ns=[5000] * 30,
            release_ns=[4000] * 30,
            held=held,
            migrate_success=3,
            vmpin_held_bytes=4096,
        )
        for size, held in ((4096, 1), (65536, 16))
    ]
    found = plots(frames(rows))
    assert len(found) >= 4
    for plot in found:
        menus = plot.figure["layout"].pop("updatemenus", [{"buttons": []}])
        drawn = json.dumps([plot.figure, *(button["args"] for button in menus[0]["buttons"])])
        assert "&lt;a href" in drawn
        assert "<a href" not in drawn


def test_mean_of_a_series_is_that_of_all_its_readings():
    """Not of the extremes that are drawn: they are far from it where a figure is mostly flat."""
    spiky = [1000 if number % 50 == 0 else 1 for number in range(20_000)]
    read = readings("outstanding_pages", spiky)
    rows = []
    for number in range(6000):
        span = {"t_begin_ns": number * SECOND, "t_end_ns": (number + 1) * SECOND}
        rows += histogram_rows([1000] * (200 if number % 20 == 0 else 1), **span)
    found = by_id(plots(frames(read=read, histograms=rows)))
    head = found["series-outstanding"].table.head
    (levels,) = found["series-outstanding"].table.rows
    assert float(levels[head.index("mean")]) == pytest.approx(20.98, rel=0.02)
    assert levels[head.index("highest")] == "1 000"
    (throughput,) = found["series-throughput"].table.rows
    assert float(throughput[head.index("mean")]) == pytest.approx(10.95, rel=0.01)


def test_counts_in_the_table_of_a_series_are_not_rounded():
    read = readings("outstanding_pages", [458_752, 1_048_577])
    (row,) = by_id(plots(frames(read=read)))["series-outstanding"].table.rows
    assert (row[3], row[5]) == ("458 752", "1 048 577")


def test_highest_of_a_sampled_case_is_that_of_all_its_cycles():
    rows = [
        case(acquire_ns=[1000 + number] * 20, release_ns=[500 + number] * 20, seq=number)
        for number in range(1000)
    ]
    # Neither row is in the sample: which are is a hash of where they stand.
    found, _ = pools(frames(rows).cases)
    sampled = set(found[0].acquire_ns.tolist())
    left_out = next(row for row in rows if row["acquire_ns"][0] not in sampled)
    left_out |= {"acquire_ns": [9_000_000] * 20, "release_ns": [8_000_000] * 20}
    (acquire, release) = by_id(plots(frames(rows)))["latency-cdf"].table.rows
    assert (acquire[7], release[7]) == ("9 ms", "8 ms")
