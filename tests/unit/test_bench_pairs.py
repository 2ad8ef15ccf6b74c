"""scripts/bench: the alternation, what is concluded from pairs, and that both sides do the same."""

import configparser
import itertools
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benches import direct_io, lab, registration
from benches.command import BENCHMARKS, choose, listing
from benches.engine_process import Done, ExactRecorder
from benches.pairs import (
    BenchFailed,
    Benchmark,
    Pair,
    Result,
    Sample,
    Side,
    alternate,
    interval,
)
from benches.session import Report, run_pairs
from benches.table import WIDTH, render

from pinstorm.errors import UsageError

RATE = Benchmark("rate", "IOPS", True, "", "")
TIME = Benchmark("time", "us", False, "", "")

# The names that others look for in the JSON.
NAMES = {
    "dio-randread-4k-psync-qd1",
    "dio-randread-4k-uring-qd32-fixed",
    "dio-seqwrite-1m-uring-qd8",
    *(f"register-{kind}-{size}" for kind in ("uring", "rdma") for size in ("64k", "1m", "64m")),
    "telemetry-snapshot",
    "telemetry-sampler-100hz-loaded",
    "telemetry-sampler-100hz-cpu",
}
KEYS = {
    *("name", "ours", "peer", "unit", "ratio", "ratio_low", "ratio_high", "pairs", "cpu_ratio"),
}


def pairs_of(*values: tuple[float, float]) -> list[Pair]:
    return [Pair(Sample(ours, 2.0), Sample(peer, 4.0)) for ours, peer in values]


# -- alternation --------------------------------------------------------------------------------


def test_pairs_begin_with_each_side_in_turn() -> None:
    begun: list[Side] = []

    def run(side: Side) -> Sample:
        begun.append(side)
        return Sample(1.0 if side == "ours" else 2.0)

    found = list(alternate(4, run))
    assert begun == ["ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours"]
    assert {(pair.ours.value, pair.peer.value) for pair in found} == {(1.0, 2.0)}


def slowing_down() -> Callable[[Side], Sample]:
    """A machine that loses a percent with each run, whoever runs."""
    speeds = itertools.count(1000, -10)
    return lambda side: Sample(float(next(speeds)))


def test_drift_cancels() -> None:
    alternated = Result.of(RATE, list(alternate(8, slowing_down())))
    run = slowing_down()
    always_first = Result.of(RATE, [Pair(run("ours"), run("peer")) for _ in range(8)])
    assert always_first.ratio == pytest.approx(1.011, abs=0.001)
    assert alternated.ratio == pytest.approx(1.0, abs=0.001)


# -- what is concluded --------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 15))
def test_coverage_is_that_of_all_sequences(count: int) -> None:
    """Each value lies on either side of the median: all 2^n ways to do so are looked at."""
    found = interval([float(value) for value in range(count)])
    rank = int(found.low)
    assert (found.low, found.high) == (rank, count - 1 - rank)

    def covers(rank: int) -> float:
        ways = itertools.product((0, 1), repeat=count)
        return sum(rank < sum(way) < count - rank for way in ways) / 2**count

    assert found.coverage == pytest.approx(covers(rank))
    # the narrowest that is wide enough, or else the widest
    assert found.coverage >= 0.95 or rank == 0
    assert covers(rank + 1) < 0.95


def test_interval_encloses_the_median_of_skewed_values() -> None:
    generator = random.Random(1)
    inside = 0
    for _ in range(2000):
        found = interval([generator.lognormvariate(0, 1) for _ in range(9)])
        inside += found.low <= 1.0 <= found.high
    assert interval(range(9)).coverage == pytest.approx(0.961, abs=0.001)
    assert inside / 2000 == pytest.approx(0.961, abs=0.015)


def test_interval_of_seven_is_their_range() -> None:
    found = interval([3.0, 1.0, 7.0, 2.0, 6.0, 5.0, 4.0])
    assert (found.low, found.high) == (1.0, 7.0)
    assert found.coverage == pytest.approx(1 - 2 / 2**7)


def test_more_than_one_is_better_for_us() -> None:
    values = pairs_of((120.0, 100.0), (110.0, 100.0), (300.0, 100.0))
    assert Result.of(RATE, values).ratio == pytest.approx(1.2)
    assert Result.of(TIME, values).ratio == pytest.approx(1 / 1.2)


def test_ratio_is_of_pairs_and_not_of_medians() -> None:
    """A machine that halves its speed in between says nothing about either side."""
    result = Result.of(RATE, pairs_of((50.0, 100.0), (25.0, 50.0), (60.0, 40.0)))
    assert (result.ours, result.peer) == (50.0, 50.0)
    assert result.ratio == pytest.approx(0.5)
    assert result.ours_spread == pytest.approx(35 / 50)


def test_json_has_the_keys_that_others_look_for() -> None:
    entry = Result.of(RATE, pairs_of((9.0, 10.0), (11.0, 10.0))).to_json()
    assert set(entry) == KEYS
    assert (entry["ratio_low"], entry["ratio"], entry["ratio_high"]) == (0.9, 1.0, 1.1)
    assert entry["cpu_ratio"] == 0.5
    assert json.loads(json.dumps(entry)) == entry


def test_nothing_is_divided_by_a_peer_that_is_nothing() -> None:
    result = Result.of(TIME, [Pair(Sample(1.5), Sample(0.0))] * 3)
    entry = result.to_json()
    assert set(entry) == KEYS
    assert (entry["ours"], entry["peer"]) == (1.5, 0.0)
    assert entry["ratio"] is entry["ratio_low"] is entry["cpu_ratio"] is None
    assert "1.50" in render("title", [result])


def test_pairs_survive_json() -> None:
    pair = Pair(Sample(1.5, None), Sample(2.5, 3.0))
    assert Pair.from_json(json.loads(json.dumps(pair.to_json()))) == pair


# -- the table ----------------------------------------------------------------------------------


def test_table_fits_with_every_name() -> None:
    pair = Pair(Sample(98_765.4, 1.0), Sample(12_345.6, 90.0))
    other = Pair(Sample(8_765.4, 1.0), Sample(112_345.6, 90.0))
    text = render("title", [Result.of(one, [pair, other]) for one in BENCHMARKS])
    lines = text.splitlines()
    assert len(lines) == 2 + len(BENCHMARKS)
    assert max(map(len, lines)) <= WIDTH
    assert {line.split()[0] for line in lines[2:]} == {one.name for one in BENCHMARKS}


def test_table_says_spread_and_interval() -> None:
    text = render("", [Result.of(RATE, pairs_of((90.0, 100.0), (110.0, 100.0)))])
    cells = "rate 100 ±10% 100 ±0% IOPS 1.000 0.900..1.100 0.50 2"
    assert text.splitlines()[2].split() == cells.split()


# -- a failing side -----------------------------------------------------------------------------


class Failing:
    """Ours fails in the second pair."""

    benchmark = RATE

    def __init__(self) -> None:
        self._runs = 0

    def warm_up(self) -> None:
        pass

    def run(self, side: Side) -> Sample:
        self._runs += 1
        if self._runs > 2:
            raise BenchFailed("the disk is gone")
        return Sample(1.0)


def test_what_was_finished_before_a_failure_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    run_pairs(Failing(), 7, report)
    assert [result.pairs for result in report.results([RATE])] == [1]
    assert report.failures == {"rate": "the disk is gone"}
    assert "pair 1 of 7" in capsys.readouterr().err


# -- names --------------------------------------------------------------------------------------


def test_every_name_that_is_asked_for_is_there() -> None:
    assert {one.name for one in BENCHMARKS} >= NAMES
    assert {one.name for one in BENCHMARKS if one.place == "lab"} == {
        name for name in NAMES if "rdma" in name
    }


def test_choosing() -> None:
    assert choose([], host=False) == list(BENCHMARKS)
    assert [one.name for one in choose(["register-uring-1m"], host=False)] == ["register-uring-1m"]
    assert {one.place for one in choose(["register-*"], host=True)} == {"host"}
    with pytest.raises(UsageError, match=r"did you mean dio-seqwrite-1m-uring-qd8\?"):
        choose(["dio-seqwrite-1m-uring"], host=False)
    with pytest.raises(UsageError, match="--list"):
        choose(["xyzzy"], host=False)
    with pytest.raises(UsageError, match="lab"):
        choose(["register-rdma-1m"], host=True)


def test_listing_says_what_needs_the_lab() -> None:
    text = listing(BENCHMARKS)
    assert text.count("(needs the lab") == 3
    assert text.count("limited by") == len(BENCHMARKS)
    assert max(map(len, text.splitlines())) <= WIDTH


# -- both sides do the same ---------------------------------------------------------------------


FIO_SIZES = {"4k": 4096, "1m": 1 << 20}
FIO_ENGINES = {"psync": "dio-read", "io_uring": "dio-{}-uring"}
# What says how long, where, and that one latency is recorded and no more.
FIO_COMMON = {
    "filename": "${BENCH_FILE}",
    "time_based": "1",
    "runtime": "${BENCH_SECONDS}",
    "direct": "1",
    "disable_lat": "1",
    "disable_slat": "1",
    "disable_bw_measurement": "1",
}


@pytest.mark.parametrize("benchmark", direct_io.BENCHMARKS, ids=lambda one: one.name)
def test_job_file_says_what_our_job_says(benchmark: Benchmark) -> None:
    parser = configparser.ConfigParser(comment_prefixes=(";",), interpolation=None)
    parser.read(direct_io.JOB_FILES / f"{benchmark.name}.fio")
    (section,) = set(parser.sections()) - {"global"}
    given = {**parser["global"], **parser[section]}
    assert {name: given.pop(name, None) for name in FIO_COMMON} == FIO_COMMON

    job = direct_io.job_of(benchmark.name, 1 << 30)
    writes = given.pop("rw")
    assert (writes, job.pattern, job.read_percent) in {
        ("randread", "random", 100),
        ("write", "sequential", 0),
    }
    assert job.sizes == ((FIO_SIZES[given.pop("bs")], 1.0),)
    assert job.depth == int(given.pop("iodepth"))
    kind = "write" if writes == "write" else "read"
    assert job.workload == FIO_ENGINES[given.pop("ioengine")].format(kind)
    registered = {given.pop(name, "0") for name in ("fixedbufs", "registerfiles")}
    assert registered == {"1" if job.registered else "0"}
    # Another order in each run; the same bytes in each write. Nothing else.
    assert given in ({"randrepeat": "0"}, {"scramble_buffers": "0"})
    assert (job.verify, job.sqpoll, job.think_ns, job.rate_ops_s) == (False, False, 0, None)


def test_no_job_file_is_left_over() -> None:
    names = {path.stem for path in direct_io.JOB_FILES.glob("*")}
    assert names == {benchmark.name for benchmark in direct_io.BENCHMARKS}


def test_registration_sizes_are_those_of_the_names() -> None:
    found = {one.name: registration.kind_and_size(one.name) for one in registration.BENCHMARKS}
    assert found["register-uring-64k"] == ("uring", 65536)
    assert found["register-rdma-64m"] == ("rdma", 67108864)
    jobs = [registration.job_of(name) for name in found]
    assert {(job.workload, job.depth, job.memory) for job in jobs} == {
        ("io-uring-register", 1, "anon"),
        ("rdma-register", 1, "anon"),
    }


def test_cpu_per_operation_leaves_out_what_starting_costs() -> None:
    short = direct_io.Ran(operations=100, bytes=0, elapsed_ns=0, tree_cpu_ns=200_000_000 + 500_000)
    long = direct_io.Ran(operations=10_100, bytes=0, elapsed_ns=0, tree_cpu_ns=250_500_000)
    assert direct_io.cpu_per_operation(long, short) == pytest.approx(5_000)
    assert direct_io.cpu_per_operation(short, short) is None


def test_a_torn_line_of_the_guest_waits(tmp_path: Path) -> None:
    """A line that the guest is still writing is not taken for a whole one."""
    events = tmp_path / "events.jsonl"
    assert lab._new_lines(events, 0) == ([], 0)
    events.write_bytes(b'{"note": "a"}\n{"note": ')
    lines, seen = lab._new_lines(events, 0)
    assert lines == [{"note": "a"}]
    with events.open("ab") as file:
        file.write(b'"b"}\n')
    assert lab._new_lines(events, seen) == ([{"note": "b"}], events.stat().st_size)


def test_exact_medians_beside_the_histogram() -> None:
    """Buckets are 0.8 % wide: too wide for a comparison to 2 %."""
    recorder = ExactRecorder()
    values = np.array([10_001, 10_003, 10_005], np.int64)
    recorder.note("acquire", values)
    recorder.note("acquire", values + 100)
    recorder.operations = 6
    taken = recorder.take()
    assert taken["median_ns"]["acquire"] == statistics.median([*values, *(values + 100)])
    assert sum(count for _, count in taken["latency"]["acquire"]["buckets"]) == 6
    done = Done()
    done.add({"t_ns": [100, 200], "cpu_ns": 50, **taken})
    done.add({"t_ns": [210, 300], "cpu_ns": 5, **recorder.take()})
    assert (done.operations, done.elapsed_ns, done.loop_cpu_ns) == (6, 200, 55)
    assert done.median_ns == taken["median_ns"]
