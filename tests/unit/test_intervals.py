"""What the processes of a load told, in a file that stays small; nothing of it is lost."""

import json
import random
from pathlib import Path
from typing import Any

import polars
import pytest

from pinstorm import intervals, parquet_tables, series_tables
from pinstorm.errors import UsageError
from pinstorm.intervals import HISTOGRAMS, INTERVALS, Interval, Intervals
from telemetry import histogram
from telemetry.histogram import Histogram

SECOND = 10**9
Message = dict[str, Any]


def message(
    number: int, process: int = 0, job: str = "reads", seq: int = 4, phase: str = "hold"
) -> Message:
    """One second of a process, with latencies that are its own."""
    draw = random.Random(f"{number} {process} {job}")
    latency = Histogram()
    for _ in range(20):
        latency.record(int(draw.lognormvariate(11, 1)))
    begin_ns = 1000 * SECOND + number * SECOND + draw.randrange(1000)
    return {
        "seq": seq,
        "case": "load/a",
        "job": job,
        "process": process,
        "phase": phase,
        "t_ns": [begin_ns, begin_ns + SECOND],
        "operations": 20,
        "bytes": 20 * 4096,
        "pins": 20,
        "cpu_ns": 1000 + number,
        "verified": 0,
        "refused": {"ENOMEM": 1},
        "latency": {"read": latency.to_json(), "write": Histogram().to_json()},
        "step": "interval",
    }


def noted(bundle: Path, messages: list[Message], limit: int = 4096) -> Intervals:
    written = Intervals(bundle, limit)
    for one in messages:
        written.note(one)
    written.close()
    return written


def sum_of(messages: list[Message]) -> tuple[dict[str, int], Histogram]:
    counts = {
        name: sum(one[name] for one in messages)
        for name in ("operations", "bytes", "pins", "cpu_ns", "verified")
    }
    return counts, histogram.merged(Histogram.from_json(one["latency"]["read"]) for one in messages)


def test_what_was_noted_can_be_read_while_it_grows(tmp_path: Path) -> None:
    written = Intervals(tmp_path)
    written.note(message(0))
    written.note(message(1))
    first, second = intervals.read(tmp_path / INTERVALS)
    written.close()
    assert first == Interval.from_json(message(0))
    assert second.counts["cpu_ns"] == 1001
    assert "step" not in (tmp_path / INTERVALS).read_text()


@pytest.mark.parametrize("processes", [1, 5])
def test_a_long_load_stays_small_and_adds_up_exactly(tmp_path: Path, processes: int) -> None:
    messages = [message(n, p) for n in range(400 // processes) for p in range(processes)]
    noted(tmp_path, messages, limit=64)
    found = list(intervals.read(tmp_path / INTERVALS))
    assert 16 <= len(found) <= 64
    ((place, whole),) = intervals.totals(found).items()
    assert place == ((4, "reads"), "hold")
    assert (whole.counts, whole.latency["read"]) == sum_of(messages)
    assert whole.refused == {"ENOMEM": 400}
    assert (whole.begin_ns, whole.end_ns) == (
        min(one["t_ns"][0] for one in messages),
        max(one["t_ns"][1] for one in messages),
    )


def test_processes_are_merged_before_time_is(tmp_path: Path) -> None:
    messages = [message(n, p) for n in range(10) for p in range(8)]
    noted(tmp_path, messages, limit=79)
    found = list(intervals.read(tmp_path / INTERVALS))
    assert len(found) == 10
    for number, interval in enumerate(found):
        mine = [one for one in messages if one["t_ns"][0] // SECOND == 1000 + number]
        assert (interval.counts, interval.latency["read"]) == sum_of(mine)
        assert interval.process is None


def test_neighbours_of_one_process_are_merged_pairwise(tmp_path: Path) -> None:
    messages = [message(n) for n in range(9)]
    noted(tmp_path, messages, limit=8)
    found = sorted(intervals.read(tmp_path / INTERVALS), key=lambda i: i.begin_ns)
    # nine would be five pairs, and no more than half of the limit are left
    assert [i.counts["operations"] for i in found] == [80, 80, 20]
    assert {i.process for i in found} == {0}


def test_other_jobs_and_phases_stay_apart(tmp_path: Path) -> None:
    short = [message(n, job="short") for n in range(3)]
    ramp = [message(n, phase="ramp") for n in range(2)]
    long = [message(n) for n in range(2, 50)]
    noted(tmp_path, [*short, *ramp, *long], limit=16)
    found = list(intervals.read(tmp_path / INTERVALS))
    assert [i for i in found if i.job == "short"] == [Interval.from_json(one) for one in short]
    whole = intervals.totals(found)
    assert whole[(4, "reads"), "ramp"].counts["operations"] == 40
    assert whole[(4, "reads"), "hold"].counts["operations"] == 48 * 20
    assert sum(i.job == "reads" for i in found) <= 16


def test_a_killed_runs_torn_line_is_cut_off_and_the_rest_goes_on(tmp_path: Path) -> None:
    noted(tmp_path, [message(0), message(1)])
    path = tmp_path / INTERVALS
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seq":4,"case":"lo')
    assert len(list(intervals.read(path))) == 2
    noted(tmp_path, [message(2)])
    assert [i.counts["cpu_ns"] for i in intervals.read(path)] == [1000, 1001, 1002]


def test_a_resumed_run_knows_how_many_there_are(tmp_path: Path) -> None:
    noted(tmp_path, [message(n) for n in range(30)], limit=32)
    noted(tmp_path, [message(n) for n in range(30, 34)], limit=32)
    found = list(intervals.read(tmp_path / INTERVALS))
    assert len(found) < 32
    assert sum(i.counts["operations"] for i in found) == 34 * 20


@pytest.mark.parametrize("line", ["[]", "{", '{"seq": 1}', '{"seq": null, "t_ns": [1, 2]}'])
def test_a_damaged_line_of_intervals_is_told(tmp_path: Path, line: str) -> None:
    noted(tmp_path, [message(0)])
    path = tmp_path / INTERVALS
    path.write_text(path.read_text() + line + "\n" + json.dumps(message(1)) + "\n")
    with pytest.raises(UsageError, match="damaged in line 2"):
        list(intervals.read(path))


def test_the_table_has_each_interval_and_the_exact_total(tmp_path: Path) -> None:
    messages = [message(n, p) for n in range(300) for p in range(3)]
    noted(tmp_path, messages)
    assert series_tables.finish_histograms(tmp_path, "the run") == tmp_path / HISTOGRAMS
    table = polars.read_parquet(tmp_path / HISTOGRAMS)
    assert table.schema == parquet_tables.polars_schema(intervals.COLUMNS)
    total = table.filter(polars.col("t_end_ns").is_null())
    parts = table.filter(polars.col("t_end_ns").is_not_null())
    _, whole = sum_of(messages)
    found = dict(total.select("low_ns", "count").iter_rows())
    assert found == {histogram.low_of(index): count for index, count in whole.counts.items()}
    assert dict(parts.group_by("low_ns").agg(polars.col("count").sum()).iter_rows()) == found
    assert parts["t_begin_ns"].n_unique() == 300
    for _, one in parts.group_by("t_begin_ns"):
        assert one["count"].sum() == 60
    long = table.filter(polars.col("low_ns") >= 256)
    assert ((long["high_ns"] - long["low_ns"] + 1) * 128 <= long["low_ns"]).all()
    assert long.height > 100
    assert set(table["kind"]) == {"read"}
    assert {path.name for path in tmp_path.iterdir()} == {HISTOGRAMS, INTERVALS}


def test_no_intervals_no_table(tmp_path: Path) -> None:
    assert series_tables.finish_histograms(tmp_path, "r") is None
    assert list(tmp_path.iterdir()) == []
