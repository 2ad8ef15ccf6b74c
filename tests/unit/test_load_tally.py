"""Intervals added up, the steady part found, and what is wrong with a load."""

import io
from typing import Any

import pytest
from rich.console import Console

from pinstorm import steady, verdict
from pinstorm.load_case.tally import LoadTally
from pinstorm.report import load_table
from telemetry.histogram import Histogram
from workloads.load.spec import Job, Load, Steady

S = 1_000_000_000


def load(*jobs: Job, window_s: float = 3.0, **keys: Any) -> Load:
    jobs = jobs or (Job("reads", "dio-read"),)
    return Load("x", jobs, **{"duration_s": 10.0, "steady": Steady(window_s, 1.0, 10.0), **keys})


def interval(
    number: int, operations: int, *, job: int = 0, process: int = 0, phase: str = "hold"
) -> dict[str, Any]:
    latency = Histogram()
    for _ in range(operations):
        latency.record(1000 * (number + 1))
    return {
        "job": job,
        "process": process,
        "phase": phase,
        "t_ns": [number * S, (number + 1) * S],
        "cpu_ns": operations * 100,
        "operations": operations,
        "bytes": operations * 4096,
        "pins": operations,
        "verified": 0,
        "refused": {},
        "latency": {"read": latency.to_json()},
    }


def test_processes_of_a_job_add_up() -> None:
    tally = LoadTally(load(Job("reads", "dio-read", processes=2)))
    for number in range(2):
        tally.add(interval(number, 10, process=0))
        tally.add(interval(number, 30, process=1))
    (job,) = tally.jobs_json()
    assert (job["operations"], job["pins"], job["bytes"]) == (80, 80, 80 * 4096)
    assert job["ops_s"] == 40
    assert job["cpu_ns_per_op"] == 100
    assert job["latency_ns"]["read"]["count"] == 80
    assert job["latency_ns"]["read"]["max"] == 2000
    assert tally.rates() == [40, 40]


def test_an_interval_counts_once_all_have_told_it() -> None:
    tally = LoadTally(load(Job("a", "dio-read"), Job("b", "dio-write")))
    tally.add(interval(0, 10, job=0))
    tally.add(interval(1, 10, job=0))
    tally.add(interval(0, 5, job=1))
    assert tally.rates() == [15]


def test_ramp_and_drain_are_in_no_figure() -> None:
    tally = LoadTally(load())
    tally.add(interval(0, 1000, phase="ramp"))
    tally.add(interval(1, 10))
    tally.add(interval(2, 1000, phase="drain"))
    assert tally.jobs_json()[0]["operations"] == 10


def test_figures_are_of_the_steady_part() -> None:
    tally = LoadTally(load())
    for number, operations in enumerate([10, 300, 100, 100, 100, 101, 99]):
        tally.add(interval(number, operations))
    (job,) = tally.jobs_json()
    assert tally.steadiness.reached
    # Three alike make a window: what comes after it is steady.
    assert (job["part"], job["operations"]) == ("steady", 101 + 99)


def test_a_job_that_has_done_its_count_is_not_waited_for() -> None:
    tally = LoadTally(load(Job("few", "dio-write", count=10), Job("reads", "dio-read")))
    tally.add(interval(0, 10))
    tally.add(interval(1, 0, phase="drain"))
    for number in range(5):
        tally.add(interval(number, 100, job=1))
    assert tally.rates() == [110, 100, 100, 100, 100]
    tally.add(interval(5, 0, job=1, phase="drain"))
    assert tally.rates() == [110, 100, 100, 100, 100]
    assert tally.steadiness.after_intervals == 1
    assert [job["part"] for job in tally.jobs_json()] == ["hold", "steady"]


def test_operations_longer_than_an_interval_are_no_bursts() -> None:
    tally = LoadTally(load())
    for number in range(0, 12, 3):
        long = interval(number, 6) | {"number": number, "t_ns": [number * S, (number + 3) * S]}
        tally.add(long)
    assert tally.rates() == [2] * 10
    assert tally.steadiness.reached


def test_no_window_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    figures = steady._figures

    def counted(window: Any) -> Any:
        nonlocal seen
        seen += 1
        return figures(window)

    monkeypatch.setattr(steady, "_figures", counted)
    tally = LoadTally(load())
    for number in range(200):
        tally.add(interval(number, 10 if number % 2 else 20))
    for number in range(200, 204):
        tally.add(interval(number, 10))
    assert tally.steadiness.after_intervals == 199
    # Each window, and the last one again as the next interval comes.
    assert seen <= 2 * 204


def test_what_was_never_steady_says_so() -> None:
    tally = LoadTally(load())
    for number in range(8):
        tally.add(interval(number, 100 * (number % 2 + 1)))
    (job,) = tally.jobs_json()
    assert not tally.steadiness.reached
    assert (job["part"], job["operations"]) == ("hold", 1200)


def record(**load_keys: Any) -> dict[str, Any]:
    pins = {
        "exact": True, "refreshed": True, "bound": 0, "net_bound": 0, "noise": 0, "recent": 0,
        "noise_ns": [1, 1], "flagged": False, "acquire": {"acquired": 8, "released": 0},
        "release": {"acquired": 0, "released": 8}, "load": {"acquired": 99, "released": 99},
        "held": 8, "leaked": 0, "orphaned": 0, "cycles": None, "disturb": None, "per_node": {},
        "settles": None, "remaining": [0, 0], "stayed": None, "window_ns": {},
    }  # fmt: skip
    tally = LoadTally(load())
    tally.add(interval(0, 2000))
    said = {"steady": {"reached": True, "after_intervals": 2}, "stopped": None, "failure": None}
    said |= {
        "duration_s": 10.0,
        "interval_s": 1.0,
        "steady_window_s": 3.0,
        "soak": {},
        "sampler": None,
        **load_keys,
    }
    return {
        "case": "load/x", "workload": "load", "memory": "jobs", "params": {"size_bytes": 4096},
        "kernel": "7.2.11+deb13-amd64", "outcome": "ok", "outcomes": {"ok": 1}, "pins": pins,
        "kmsg": [], "taint": 0, "load": said, "jobs": tally.jobs_json(), "no_trace": "a load",
    }  # fmt: skip


def judged(changes: dict[str, Any] | None = None, **load_keys: Any) -> tuple[str, str | None]:
    made = verdict.judge({**record(**load_keys), **(changes or {})}, lab=True)
    return made.verdict, made.reason


def test_a_load_that_gave_all_back_passes() -> None:
    assert judged() == ("pass", None)


def test_what_is_wrong_is_the_reason() -> None:
    leaking = record()["pins"] | {"leaked": 3}
    assert judged({"pins": leaking}) == ("fail", "leaked")
    trend = {"verdict": "leak", "low_per_s": 1.0, "high_per_s": 2.0, "reason": "steady-rise"}
    assert judged(soak={"outstanding_pages": trend}) == ("fail", "leak")
    mismatch = {"job": "reads", "mismatch": "block at offset 4096"}
    assert judged({"outcome": "EIO"}, failure=mismatch) == ("fail", "corruption")
    assert judged({"outcome": "ENOMEM"}) == ("fail", "outcome")


@pytest.mark.parametrize(
    ("load_keys", "reason"),
    [
        ({"steady": {"reached": False, "after_intervals": None}}, "not-steady"),
        ({"steady": {"reached": False, "after_intervals": None}, "duration_s": 2.0}, None),
        ({"sampler": {"died": True}}, "sampler-died"),
        ({"stopped": "stopped"}, "stopped"),
    ],
)
def test_a_pass_says_what_is_missing(load_keys: dict[str, Any], reason: str | None) -> None:
    assert judged(**load_keys) == ("pass", reason)


def test_a_long_name_leaves_room_for_the_figures() -> None:
    made = record()
    made["jobs"][0] |= {"name": "reads-of-what-" + "nobody" * 12, "processes": 3}
    lines = told(made).splitlines()
    assert max(map(len, lines)) <= 100
    assert next(line for line in lines if line.startswith("reads-of-what-")).split()[-1] == "1"
    assert " x 3" in "".join(lines)


def test_a_load_that_did_nothing_says_so() -> None:
    made = record()
    made["jobs"] = LoadTally(load()).jobs_json()
    assert verdict.judge(made, lab=True).reason == "nothing-counted"
    assert "load/x: nothing was counted" in told(made)


def test_a_load_that_was_cut_short_is_not_called_too_short() -> None:
    failure = {"job": "reads", "process": 0, "error": "process 7 of the load ended early"}
    assert "ended early (job reads)" in told(record(failure=failure))


@pytest.mark.parametrize("emulated", [False, True])
def test_no_figure_is_cut_off(emulated: bool) -> None:
    made = record()
    job = made["jobs"][0]
    latency = job["latency_ns"]["read"] | {"max": 12_345_678_000, "p99_9": 12_345_677_000}
    job |= {"name": "io-uring-register", "processes": 16, "bytes_s": 1023.0 * (1 << 20)}
    job |= {"latency_ns": {"dontneed-churn": latency}, "cpu_ns_per_op": 2_289_997_000.0}
    cells = told(made, emulated=emulated).split()
    assert {"dontneed-churn", "1023", "MiB", "2289997", "12345678", "12345677"} <= set(cells)
    assert max(map(len, told(made, emulated=emulated).splitlines())) <= 100


def told(made: dict[str, Any], *, emulated: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    for part in load_table.parts([made], emulated=emulated):
        console.print(part)
    return stream.getvalue()


def test_the_table_says_of_when_the_figures_are() -> None:
    made = record()
    assert "steady from 2 s on, figures of all of it" in told(made)
    tally = LoadTally(load())
    for number in range(7):
        tally.add(interval(number, 100))
    made["jobs"] = tally.jobs_json()
    assert "steady from 2 s on, figures of the last 4 s" in told(made)


def test_what_is_too_short_by_nothing_is_told_without_a_time() -> None:
    trend = {"verdict": "inconclusive", "reason": "too-short", "more_s": 0.0}
    assert told(record(soak={"fd_count": trend})).rstrip().endswith("too short to tell a leak")
    trend["more_s"] = 9.0
    assert "a leak: 9 s more would" in told(record(soak={"fd_count": trend}))


def test_the_table_fits_and_leaves_out_percentiles_of_few() -> None:
    made = record()
    few = LoadTally(load())
    few.add(interval(0, 20))
    made["jobs"] += few.jobs_json()
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    for part in load_table.parts([made], emulated=True):
        console.print(part)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    many, little = (line.split() for line in lines if line.startswith("reads"))
    assert many[-4:] == ["1", "1", "1", "1"]
    assert little[-4:] == ["1", "-", "-", "1"]
    assert "emulated" in stream.getvalue()
