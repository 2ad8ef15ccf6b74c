"""The spool of the time series, and the table that is made of it."""

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

import polars
import pytest

from pinstorm import parquet_tables, sampler, samples, series_tables, spool
from pinstorm.errors import UsageError, WriteError
from pinstorm.sampler import Paced, Sampler
from pinstorm.sources import Trends
from pinstorm.spool import Mark, Spool
from pinstorm.trend import Trend
from pinstorm.unpinned_file import UnpinnedFile

Row = tuple[object, ...]


def spool_in(bundle: Path, limit_bytes: int = 1 << 20, segment_bytes: int = 1 << 20) -> Spool:
    directory = samples.spool_of(bundle)
    directory.mkdir(exist_ok=True)
    written = Spool(directory, limit_bytes, segment_bytes)
    written.describe("vmstat", ["acquired~", "migrated"])
    written.describe("process", ["vmpin_bytes"])
    return written


def first_segment(bundle: Path) -> Path:
    return spool.segments(samples.spool_of(bundle))[0]


def rows_of(bundle: Path) -> set[Row]:
    """What the spool says, in the long form of the table."""
    return {
        (r.case, r.seq, r.phase, r.t_ns, r.source, r.pid, key, value, key not in r.inexact)
        for r in samples.read(bundle)
        for key, value in r.values.items()
        if value is not None
    }


def rows_in(frame: polars.DataFrame) -> set[Row]:
    names = [column.name for column in samples.COLUMNS if column.name != "run"]
    return set(frame.select(names).iter_rows())


def test_a_reading_comes_back_with_what_it_belongs_to(tmp_path: Path) -> None:
    written = spool_in(tmp_path)
    written.note(10, "vmstat", None, [5, 0])
    written.mark(Mark(20, 3, "hold", "load/two words"))
    written.note(21, "process", 42, [None])
    written.close()
    before, after = samples.read(tmp_path)
    assert before == samples.Reading(
        10, "vmstat", None, {"acquired": 5, "migrated": 0}, frozenset({"acquired"}), *[None] * 3
    )
    assert after == samples.Reading(
        21, "process", 42, {"vmpin_bytes": None}, frozenset(), 3, "load/two words", "hold"
    )


def test_lines_are_plain_and_in_the_order_of_time(tmp_path: Path) -> None:
    written = spool_in(tmp_path)
    written.mark(Mark(20, 3, "hold", "load/a"))
    written.note(30, "vmstat", None, [7, 1])
    written.note(40, "vmstat", None, [8, 1])
    written.note(15, "process", 42, [4096])
    written.close()
    assert first_segment(tmp_path).read_text().splitlines() == [
        "# pinstorm samples 1",
        "! 0 - - -",
        "= vmstat acquired~ migrated",
        "= process vmpin_bytes",
        "15 process/42 4096",
        "! 20 3 hold load/a",
        "30 vmstat 7 1",
        "40 vmstat 8 1",
    ]


def test_every_segment_can_be_read_alone(tmp_path: Path) -> None:
    written = spool_in(tmp_path, segment_bytes=200)
    written.mark(Mark(0, 1, "hold", "load/a"))
    for t_ns in range(100):
        written.note(t_ns, "vmstat", None, [t_ns, 0])
        written.flush()
    written.close()
    paths = spool.segments(samples.spool_of(tmp_path))
    assert len(paths) > 5
    assert max(path.stat().st_size for path in paths) < 300
    assert [reading.t_ns for reading in samples.read(tmp_path)] == list(range(100))
    for path in paths[:-3]:
        path.unlink()
    left = list(samples.read(tmp_path))
    assert left
    assert {(reading.seq, reading.case, reading.phase) for reading in left} == {
        (1, "load/a", "hold")
    }


def test_a_reading_before_a_mark_keeps_its_own_over_a_new_segment(tmp_path: Path) -> None:
    written = spool_in(tmp_path, segment_bytes=1)
    written.mark(Mark(5, 1, "ramp", "load/a"))
    written.note(6, "vmstat", None, [1, 1])
    written.flush()
    written.note(7, "vmstat", None, [2, 2])
    written.mark(Mark(8, 1, "hold", "load/a"))
    written.note(9, "vmstat", None, [3, 3])
    written.close()
    assert [reading.phase for reading in samples.read(tmp_path)] == ["ramp", "ramp", "hold"]


@pytest.mark.parametrize("kept", [1, 10, 17])
def test_a_torn_last_line_is_left_out(tmp_path: Path, kept: int) -> None:
    written = spool_in(tmp_path)
    written.note(10, "vmstat", None, [5, 0])
    written.flush()
    whole = first_segment(tmp_path).read_bytes()
    written.note(11, "vmstat", None, [123456, 789])
    written.close()
    first_segment(tmp_path).write_bytes(whole + b"11 vmstat 123456 789\n"[:kept])
    assert [reading.t_ns for reading in samples.read(tmp_path)] == [10]
    assert series_tables.finish_samples(tmp_path, "r") is not None
    assert set(series_tables.samples_frame(tmp_path)["t_ns"]) == {10}


@pytest.mark.parametrize(
    "line",
    ["10 vmstat 5", "10 vmstat 5 0 1", "10 nobody 5 0", "? what", "# pinstorm samples 2", "! 1 2"],
)
def test_a_damaged_line_is_told_with_its_number(tmp_path: Path, line: str) -> None:
    written = spool_in(tmp_path)
    written.note(10, "vmstat", None, [5, 0])
    written.close()
    with open(first_segment(tmp_path), "a") as file:
        file.write(line + "\n11 vmstat 5 0\n")
    with pytest.raises(UsageError, match="damaged in line 6"):
        list(samples.read(tmp_path))
    with pytest.raises(UsageError, match="damaged in line 6"):
        series_tables.finish_samples(tmp_path, "r")
    assert first_segment(tmp_path).exists()


def test_words_where_a_number_should_be_are_damage(tmp_path: Path) -> None:
    written = spool_in(tmp_path)
    written.note(10, "vmstat", None, [5, 0])
    written.close()
    with open(first_segment(tmp_path), "a") as file:
        file.write("11 vmstat five 0\n")
    with pytest.raises(UsageError, match="damaged"):
        series_tables.finish_samples(tmp_path, "r")
    assert not (tmp_path / samples.SAMPLES).exists()


def test_another_sampler_goes_on_behind_the_first(tmp_path: Path) -> None:
    first = spool_in(tmp_path)
    first.mark(Mark(1, 1, "hold", "load/a"))
    first.note(2, "vmstat", None, [1, 1])
    first.close()
    second = spool_in(tmp_path)
    assert second.bytes == first.bytes
    second.note(1, "vmstat", None, [2, 2])  # of another boot, whose clock began anew
    second.close()
    assert [(r.t_ns, r.case) for r in samples.read(tmp_path)] == [(2, "load/a"), (1, None)]


def test_the_spool_never_grows_beyond_its_limit(tmp_path: Path) -> None:
    written = spool_in(tmp_path, limit_bytes=10_000, segment_bytes=1000)
    halves = []
    for t_ns in range(2000):
        written.note(t_ns, "vmstat", None, [t_ns, 0])
        written.flush()
        halves.append((written.halves, written.bytes))
    written.close()
    assert sum(path.stat().st_size for path in spool.segments(tmp_path / "samples")) <= 10_000
    assert written.error is not None
    assert "is full" in written.error
    # half of what is left: 5000, 7500, 8750, …
    assert [next(used for h, used in halves if h == n) // 100 for n in (1, 2, 3)] == [50, 75, 87]
    # What there is of it is whole.
    assert [r.t_ns for r in samples.read(tmp_path)][-1] > 300


def test_a_directory_that_is_gone_ends_the_writing_and_not_the_writer(tmp_path: Path) -> None:
    written = Spool(tmp_path / "gone", 1 << 20)
    written.describe("vmstat", ["a"])
    written.note(1, "vmstat", None, [1])
    written.flush()
    assert written.error is not None
    assert "no such file" in written.error
    written.note(2, "vmstat", None, [1])
    written.close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = spool_in(tmp_path)
    written.note(1, "vmstat", None, [1, 1])
    written.flush()
    sendfile = os.sendfile

    def half(out: int, source: int, offset: int, count: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sendfile(out, source, offset, count // 2)

    with monkeypatch.context() as patched:
        patched.setattr(os, "sendfile", half)
        written.note(2, "vmstat", None, [12345, 1])
        written.flush()
    assert written.error is not None
    assert "no space left" in written.error
    written.close()
    assert first_segment(tmp_path).read_text().endswith("\n1 vmstat 1 1\n")
    assert written.bytes == first_segment(tmp_path).stat().st_size


def test_an_unpinned_file_goes_on_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in (b"one\n" * 40_000, b"two\n", b"three\n"):
        with UnpinnedFile(path) as file:
            file.write(text)
            assert file.size == path.stat().st_size
    assert path.read_bytes() == b"one\n" * 40_000 + b"two\nthree\n"
    with pytest.raises(FileExistsError):
        UnpinnedFile(path, new=True)


def filled(bundle: Path, segment_bytes: int = 1 << 20, begin: int = 0) -> None:
    written = spool_in(bundle, segment_bytes=segment_bytes)
    written.mark(Mark(begin + 5, 2, "hold", "load/b"))
    for t_ns in range(begin, begin + 60):
        written.note(t_ns, "vmstat", None, [t_ns * 2**40, None if t_ns % 7 else 1])
        written.note(t_ns, "process", 41 + t_ns % 2, [t_ns - 30])
        written.flush()
    written.close()


@pytest.mark.parametrize("segment_bytes", [1 << 20, 300])
def test_the_table_is_what_the_spool_said(tmp_path: Path, segment_bytes: int) -> None:
    filled(tmp_path, segment_bytes)
    told = rows_of(tmp_path)
    assert len(told) == 60 + 60 + 9
    assert rows_in(series_tables.samples_frame(tmp_path)) == told
    path = series_tables.finish_samples(tmp_path, "the run")
    assert path == tmp_path / samples.SAMPLES
    table = polars.read_parquet(tmp_path / samples.SAMPLES)
    assert table.schema == parquet_tables.polars_schema(samples.COLUMNS)
    assert rows_in(table) == told
    assert table.height == len(told)
    assert set(table["run"]) == {"the run"}
    assert sorted(os.listdir(tmp_path)) == [samples.SAMPLES]


def test_a_resumed_run_adds_to_the_table(tmp_path: Path) -> None:
    filled(tmp_path)
    told = rows_of(tmp_path)
    series_tables.finish_samples(tmp_path, "r")
    filled(tmp_path, begin=1000)
    told |= rows_of(tmp_path)
    assert rows_in(series_tables.samples_frame(tmp_path)) == told
    series_tables.finish_samples(tmp_path, "r")
    assert rows_in(series_tables.samples_frame(tmp_path)) == told
    assert series_tables.samples_frame(tmp_path).height == len(told)


def test_a_run_that_died_before_the_spool_was_removed_adds_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    told = rows_of(tmp_path)

    def die(directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(series_tables, "remove", die)
        with pytest.raises(KeyboardInterrupt):
            series_tables.finish_samples(tmp_path, "r")
    assert samples.spool_of(tmp_path).exists()
    assert rows_in(series_tables.samples_frame(tmp_path)) == told
    filled(tmp_path, begin=1000)
    series_tables.finish_samples(tmp_path, "r")
    table = series_tables.samples_frame(tmp_path)
    assert table.height == 2 * len(told)
    assert table.unique().height == table.height


def test_a_run_without_series_has_no_table(tmp_path: Path) -> None:
    assert series_tables.finish_samples(tmp_path, "r") is None
    assert list(samples.read(tmp_path)) == []
    assert series_tables.samples_frame(tmp_path).is_empty()
    samples.spool_of(tmp_path).mkdir()
    assert series_tables.finish_samples(tmp_path, "r") is None
    assert os.listdir(tmp_path) == []


def test_a_table_that_cannot_be_written_leaves_the_spool(tmp_path: Path) -> None:
    filled(tmp_path)
    told = rows_of(tmp_path)
    (tmp_path / samples.SAMPLES).mkdir()
    with pytest.raises(WriteError, match=r"samples\.parquet"):
        series_tables.finish_samples(tmp_path, "r")
    assert rows_of(tmp_path) == told
    assert sorted(os.listdir(tmp_path)) == ["samples", samples.SAMPLES]


# -- the pace -------------------------------------------------------------------------------------


class Scripted:
    """A source whose reading takes as much CPU time as the test says."""

    name = "scripted"
    hz = 100.0
    share = 0.01

    def __init__(self) -> None:
        self.cost_ns = 0
        self.clock_ns = 0

    def keys(self) -> tuple[str, ...]:
        return ("value",)

    def read(self) -> int:
        self.clock_ns += self.cost_ns
        return 7

    def rows(self, raw: int) -> list[tuple[None, list[int]]]:
        return [(None, [raw])]

    def trends(self, rows: object) -> list[tuple[str, int]]:
        return [("value", 7)]

    def close(self) -> None:
        pass


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> tuple[Paced, Scripted]:
    source = Scripted()
    monkeypatch.setattr(sampler.time, "thread_time_ns", lambda: source.clock_ns)
    return Paced(source, time.monotonic_ns()), source


def settled(one: Paced, tmp_path: Path, readings: int, far_apart_ns: int) -> list[int]:
    """Periods as they become while readings are taken, each long after the one before."""
    written, trends = Spool(tmp_path, 1 << 20), Trends(0)
    periods = []
    now_ns = one.next_ns
    for _ in range(readings):
        now_ns = max(now_ns + far_apart_ns, one.next_ns)
        one.take(now_ns)
        one.settle(written, trends)
        periods.append(one.period_ns)
    return periods


def test_a_dear_source_is_read_half_as_often_until_it_keeps_to_its_share(
    tmp_path: Path, paced: tuple[Paced, Scripted]
) -> None:
    one, source = paced
    source.cost_ns = 350_000  # of 10 ms that is 3.5 %
    assert settled(one, tmp_path, 20, 10**9)[-1] == 40_000_000
    assert one.slower == 2
    source.cost_ns = 10_000
    assert settled(one, tmp_path, 60, 10**9)[-1] == 10_000_000
    assert one.to_json(10**9)["ns_per_reading"] == (20 * 350_000 + 60 * 10_000) // 80


def test_a_cheap_source_keeps_its_rate(tmp_path: Path, paced: tuple[Paced, Scripted]) -> None:
    one, source = paced
    source.cost_ns = 90_000
    assert set(settled(one, tmp_path, 20, 10**9)) == {10_000_000}


def test_halved_rates_keep_to_the_grid(paced: tuple[Paced, Scripted]) -> None:
    one, _ = paced
    begin_ns = one.next_ns
    one.halve(2)
    assert one.period_ns == 40_000_000
    assert (one.next_ns - begin_ns) % 40_000_000 == 0
    assert one.next_ns > begin_ns


def test_ticks_that_passed_are_missed_and_not_made_up_for(paced: tuple[Paced, Scripted]) -> None:
    one, _ = paced
    begin_ns = one.next_ns
    one.take(begin_ns + 1)
    assert (one.missed, one.next_ns - begin_ns) == (0, 10_000_000)
    one.take(begin_ns + 47_000_000)
    assert (one.missed, one.next_ns - begin_ns) == (3, 50_000_000)
    one.take(begin_ns + 60_000_000)
    assert (one.missed, one.next_ns - begin_ns) == (4, 70_000_000)


def test_a_source_that_fails_is_told_and_left_alone(
    tmp_path: Path, paced: tuple[Paced, Scripted]
) -> None:
    one, source = paced

    def fail() -> int:
        raise OSError("gone")

    source.read = fail  # type: ignore[method-assign]
    broken = Paced(source, one.next_ns)
    broken.take(broken.next_ns)
    assert broken.failure == "gone"
    assert broken.next_ns > time.monotonic_ns() + 10**15
    assert broken.to_json(10**9)["readings"] == 0


def test_all_rates_are_eased_while_all_of_it_takes_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sampler(Spool(tmp_path, 1 << 20), 100, None)
    now_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()

    def after_a_second_of(percent: int) -> int:
        nonlocal now_ns, cpu_ns
        now_ns += 10**9
        cpu_ns += percent * 10**7
        made.flush()
        return int(made.report()["eased"])

    with monkeypatch.context() as patched:
        patched.setattr(sampler.time, "monotonic_ns", lambda: now_ns)
        patched.setattr(sampler.time, "process_time_ns", lambda: cpu_ns)
        # The first second has what it took to make the sampler.
        after_a_second_of(0)
        assert [after_a_second_of(percent) for percent in (4, 6, 9, 3, 1, 1, 1)] == [
            *(0, 1, 2, 2, 1, 0, 0)
        ]
    made.close()


# -- trends ---------------------------------------------------------------------------------------


def trend_of(values: Iterable[int], points: int = 8, step_s: float = 1.0) -> Trend:
    trend = Trend(points, width_s=1.0)
    for number, value in enumerate(values):
        trend.add(number * step_s, value)
    return trend


def test_a_short_trend_is_its_readings() -> None:
    assert trend_of([5, 3, 9]).points() == [[0, 5, 5], [1, 3, 3], [2, 9, 9]]


def test_a_bucket_has_the_lowest_the_mean_and_the_mean_time() -> None:
    assert trend_of([5, 3, 10, 8], step_s=0.5).points() == [[0.25, 3, 4], [1.25, 8, 9]]


def test_a_long_trend_stays_short_and_loses_no_reading() -> None:
    values = [(n * 37) % 101 for n in range(1000)]
    trend = trend_of(values)
    points = trend.points()
    assert 4 <= len(points) <= 8
    width = int(trend.width_s)
    assert width == 128
    for number, (t_s, low, mean) in enumerate(points):
        part = values[number * width : (number + 1) * width]
        assert low == min(part)
        assert mean == pytest.approx(sum(part) / len(part))
        assert t_s == pytest.approx(number * width + (len(part) - 1) / 2)


def test_a_gap_in_a_trend_is_a_gap() -> None:
    trend = Trend(4, width_s=1.0)
    for t_s in (0.0, 1.0, 100.0, 101.0, 102.0):
        trend.add(t_s, 1)
    assert len(trend.points()) <= 4
    assert trend.points()[0][0] == 0.5
    assert trend.points()[1][0] > 99
