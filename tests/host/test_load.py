"""Loads through the whole machinery, on this kernel: with engines that misbehave, and real ones."""

import errno
import fcntl
import gc
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import run_cases

import workloads
from pinstorm import bundle, session, suite
from pinstorm.errors import UsageError
from workloads.channel import Channel
from workloads.load.leader import Leader, _Process
from workloads.load.spec import Job, Load
from workloads.load.worker import Span, Worker
from workloads.member import Member
from workloads.spec import Case, Planned, PrepareFailed, Surroundings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOCK_DEADLINE_S = 60.0
KIB = 1 << 10

Record = dict[str, Any]
Run = Callable[..., Record]


@pytest.fixture(autouse=True)
def _planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads.include("planted_engines")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs one load in this process; its record."""

    def run(case: Case, **more: Any) -> Record:
        loaded = suite.parse(run_cases.TEXT.format(seed=1), "loads.toml")
        listener = more.pop("listener", lambda line: None)
        options = session.Options(
            out=tmp_path / f"bundle-{time.monotonic_ns()}", include=("planted_engines",), **more
        )
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            try:
                outcome = session.run(loaded, [Planned(0, 0, case)], options, listener)
                return outcome.records[0]
            except UsageError as error:
                if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return run


def planted(name: str, *more: Job, deadline_s: float = 10.0, **keys: Any) -> Case:
    """A load of one misbehaving job, of half a second, and of others beside it."""
    job_keys = {key: keys.pop(key) for key in list(keys) if key in Job.__dataclass_fields__}
    job = Job(name, f"planted-{name}", **job_keys)
    load = Load("planted", (job, *more), **{"duration_s": 0.5, "interval_s": 0.1, **keys})
    return workloads.load_case(load, deadline_s)


def job_of(record: Record, name: str) -> Record:
    return next(job for job in record["jobs"] if job["name"] == name)


def test_what_the_jobs_did_is_added_up(run: Run, tmp_path: Path) -> None:
    record = run(planted("count", Job("other", "planted-count"), processes=2, ramp_s=0.2))
    assert (record["case"], record["verdict"]) == ("load/planted", "pass"), record["expected"]
    both, one = job_of(record, "count"), job_of(record, "other")
    # Each act sleeps 1 ms: at most 1000 a second and process, and on a busy machine fewer.
    assert 0 < one["operations"] <= 500 * 1.1
    assert one["operations"] < both["operations"] <= 1000 * 1.1
    assert both["latency_ns"]["act"]["count"] == both["operations"]
    assert both["latency_ns"]["act"]["p50"] >= 1_000_000
    assert both["bytes"] == 4 * KIB * both["operations"]
    assert both["elapsed_ns"] == pytest.approx(0.5e9, rel=0.3)
    assert both["ops_s"] == pytest.approx(both["operations"] / both["elapsed_ns"] * 1e9)
    begin_ns, end_ns = record["phases"]["hold"]
    assert end_ns - begin_ns == 500_000_000
    assert record["pins"]["orphaned"] is not None
    (bundle_path,) = tmp_path.glob("bundle-*")
    (cost,) = json.loads((bundle_path / "manifest.json").read_text())["sampler"]
    assert (cost["case"], cost["cpu_ns"] > 0) == ("load/planted", True)


def test_a_count_ends_a_job_and_a_rate_limits_it(run: Run) -> None:
    record = run(
        planted("count", Job("slow", "planted-count", rate_ops_s=40.0), count=20, processes=2)
    )
    assert record["verdict"] == "pass", record["expected"]
    assert job_of(record, "count")["operations"] == 2 * 20
    assert 5 <= job_of(record, "slow")["operations"] <= 0.5 * 40 + 2


def test_a_load_whose_jobs_have_done_their_count_is_over(run: Run) -> None:
    record = run(planted("count", count=5, duration_s=8.0))
    began_ns, ended_ns = record["phases"]["hold"]
    assert record["jobs"][0]["operations"] == 5
    assert ended_ns - began_ns < 7e9
    assert ended_ns <= record["phases"]["load"][1]


def test_a_job_that_waits_for_its_pace_hears_that_another_failed(run: Run) -> None:
    seldom = Job("seldom", "planted-count", rate_ops_s=0.001)
    record = run(planted("refuse", seldom, duration_s=60.0, interval_s=60.0))
    began_ns, ended_ns = record["phases"]["load"]
    assert (record["outcome"], record["load"]["failure"]["job"]) == ("ENOMEM", "refuse")
    assert ended_ns - began_ns < 30e9


def test_an_interval_that_has_passed_is_not_told() -> None:
    """Of an engine whose every operation takes longer than two intervals."""

    class Slow:
        def run(self, until_ns: int) -> bool:
            while time.monotonic_ns() < began_ns + 25_000_000 * (len(told) + 1):
                time.sleep(0.001)
            return True

    told: list[int] = []
    work = SimpleNamespace(stopped=False, recorder=SimpleNamespace(take=dict))
    channel = SimpleNamespace(send=lambda interval: told.append(interval["number"]))
    worker: Any = Worker(cast(Any, channel), cast(Any, work))
    worker._engine = Slow()
    began_ns = time.monotonic_ns()
    assert worker._span(Span("hold", began_ns, began_ns + 100_000_000), 10_000_000)
    assert (told[0], told[1] >= 2) == (0, True)
    assert sorted(set(told)) == told
    assert len(told) <= 5


def test_a_process_too_many_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EAGAIN, "")

    load = Load("x", (Job("reads", "planted-count", processes=3),), duration_s=1.0)
    leader = Leader(workloads.load_case(load, 10.0), Surroundings())
    monkeypatch.setattr(os, "fork", refused)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PrepareFailed, match="process 1 of 3 of job reads could not be started"):
        leader.prepare()
    leader.close()
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


def test_a_worker_whose_descriptor_is_beyond_selects_is_heard() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1100:
        pytest.skip(f"only {hard} files may be open")
    load = Load("x", (Job("reads", "planted-count"),), duration_s=1.0)
    leader = Leader(workloads.load_case(load, 10.0), Surroundings())
    leader._stop = mmap.mmap(-1, mmap.PAGESIZE)
    runner, others_end = Channel.pair()
    ours, worker = socket.socketpair()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    try:
        high = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1050))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with ours, worker, others_end, high:
        leader._workers = [_Process(0, 0, Member(1, Channel(high), "load"))]
        Channel(worker).send(done="load", ns=1)
        assert leader._relay(runner) == (None, None)
    runner.close()


def test_a_refusal_ends_the_load_and_is_its_outcome(run: Run) -> None:
    record = run(planted("refuse", Job("count", "planted-count"), duration_s=30.0))
    assert (record["verdict"], record["reason"]) == ("fail", "outcome")
    assert (record["outcome"], record["failed_call"]) == ("ENOMEM", "planted_call")
    assert record["failed_phase"] == "hold"
    assert record["load"]["failure"]["job"] == "refuse"
    # What it did before is kept, and nobody waited for the end.
    assert job_of(record, "refuse")["operations"] == 10
    began_ns, ended_ns = record["phases"]["load"]
    assert ended_ns - began_ns < 20e9


def test_a_refusal_that_is_allowed_is_counted(run: Run) -> None:
    record = run(planted("refuse", allowed=("ENOMEM",)))
    assert record["verdict"] == "pass", record["expected"]
    job = job_of(record, "refuse")
    assert job["refused"]["ENOMEM"] == job["operations"] - 10


def test_a_refusal_to_open_is_that_of_acquire(run: Run) -> None:
    record = run(planted("refuse-open"))
    assert (record["outcome"], record["failed_phase"]) == ("EPERM", "acquire")
    assert (record["verdict"], record["reason"]) == ("fail", "outcome")


def test_corruption_fails_with_its_offset(run: Run) -> None:
    record = run(planted("corrupt"))
    assert (record["verdict"], record["reason"]) == ("fail", "corruption")
    assert "offset 40960" in record["expected"]["broken"][0]


def test_a_worker_that_dies_fails_the_load(run: Run) -> None:
    record = run(planted("die", Job("count", "planted-count"), duration_s=30.0))
    assert (record["verdict"], record["reason"]) == ("fail", "error")
    assert "ended early" in record["load"]["failure"]["error"]
    assert job_of(record, "count")["operations"] > 0


def test_a_worker_that_hangs_is_killed_at_the_deadline(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinstorm.load_case.observation._GRACE_S", 1.0)
    record = run(planted("hang", deadline_s=1.0))
    assert (record["verdict"], record["reason"]) == ("timeout", "deadline")


def test_a_cpu_that_is_not_there_is_told(run: Run) -> None:
    record = run(planted("count", cpus=(8191,)))
    assert (record["verdict"], record["reason"]) == ("fail", "prepare")
    assert "CPU 8191" in record["detail"]


def test_the_load_tells_its_rate_while_it_runs(run: Run) -> None:
    told: list[dict[str, Any]] = []
    run(planted("count"), listener=told.append)
    rates = [line["ops_s"] for line in told if "ops_s" in line]
    assert len(rates) >= 3
    assert all(0 < rate <= 1100 for rate in rates)


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_for_figures(out: Path) -> None:
    """Until the load has told some intervals."""
    deadline, intervals = time.monotonic() + 30, out / "intervals.jsonl"
    while not (intervals.exists() and intervals.read_text().count('"hold"') >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reported(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pinstorm", "report", str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def begun(command: list[str], out: Path) -> subprocess.Popen[str]:
    """The run, once its case has started; another run may have to end first."""
    deadline, journal = time.monotonic() + LOCK_DEADLINE_S, out / "journal.jsonl"
    while True:
        process = subprocess.Popen(command, cwd=out.parent, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            if journal.exists() and '"start"' in journal.read_text():
                return process
            time.sleep(0.05)
        errors = process.stderr.read() if process.stderr else ""
        assert run_cases.LOCKED in errors, errors
        assert time.monotonic() < deadline


def test_ctrl_c_leaves_a_bundle_and_no_process(tmp_path: Path) -> None:
    path = tmp_path / "load.toml"
    path.write_text(
        '[[load]]\nname = "long"\nduration = "60s"\n'
        'workload = "io-uring-register"\nsize = "64KiB"\n'
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pinstorm", "run", str(path), "--out", str(out)]
    process = begun(command, out)
    try:
        wait_for_figures(out)
        shown = reported(out)
        assert "io-uring-register" in shown.stdout, shown.stderr
        assert shown.returncode == 3
        loaded = children_of(process.pid)
        assert loaded
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    # It ended in good order: what it had done by then is in its record.
    (record,) = bundle.open_bundle(out).records
    assert (record["load"]["stopped"], record["outcome"]) == ("interrupted", "ok")
    assert record["jobs"][0]["operations"] > 0
    assert record["pins"]["release"] is not None
    assert "Traceback" not in errors
    assert (out / "cases.parquet").exists()
    assert json.loads((out / "manifest.json").read_text())["schema"] >= 1
    _, alive = psutil.wait_procs(loaded, timeout=10)
    assert alive == []


def test_a_refused_job_has_its_own_cause(run: Run) -> None:
    small = Job(
        "small", "io-uring-register", sizes=((1 << 20, 1.0),), uid=65534, memlock_bytes=64 * KIB
    )
    record = run(planted("count", small))
    assert (record["outcome"], record["failed_phase"]) == ("ENOMEM", "acquire")
    assert record["load"]["failure"]["job"] == "small"
    assert record["cause"] == "memlock-limit", record["explanation"]


def test_what_was_open_before_a_refusal_is_no_leak(run: Run) -> None:
    full = Job(
        "full", "io-uring-register", sizes=((64 * KIB, 1.0),), depth=64, uid=65533,
        memlock_bytes=2048 * KIB,
    )  # fmt: skip
    record = run(planted("count", full))
    assert (record["outcome"], record["failed_phase"]) == ("ENOMEM", "acquire")
    assert record["cause"] == "memlock-limit", record["explanation"]
    assert "still held" not in " ".join(record["expected"]["broken"])


def test_a_file_that_does_not_fit_is_told_before_it_is_written(run: Run, tmp_path: Path) -> None:
    huge = Job("huge", "dio-read", file_bytes=1 << 50)
    record = run(planted("count", huge), scratch=(ROOT,))
    assert (record["verdict"], record["reason"]) == ("fail", "prepare")
    assert "file_size" in record["detail"]
    assert record["phases"]["prepare"][1] - record["phases"]["prepare"][0] < 60e9


def test_memory_of_a_node(run: Run) -> None:
    job = Job("here", "io-uring-register", sizes=((64 * KIB, 1.0),), node=0)
    assert run(planted("count", job))["verdict"] == "pass"
    record = run(planted("count", Job("nowhere", "io-uring-register", node=1000)))
    assert (record["verdict"], record["failed_call"]) == ("fail", "set_mempolicy")
