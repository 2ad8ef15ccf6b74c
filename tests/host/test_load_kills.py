"""SIGKILL of whoever takes part in a load, at random moments: nothing stays, and it goes on."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import run_cases

from pinstorm import bundle
from telemetry import mountinfo
from telemetry.vmstat import Counters

ROOT = Path(__file__).parents[2]
SUITE = """
[run]
name = "killed"

[[load]]
name = "both"
duration = "3s"
interval = "100ms"
steady = { window = "300ms", slope = "100%", spread = "100%" }

[[load.job]]
workload = "io-uring-register"
size = "256KiB"
depth = 4
processes = 2

[[load.job]]
workload = "dio-write-uring"
size = "64KiB"
depth = 8
registered = true
file_size = "8MiB"
"""
ROLES = ("runner", "zygote", "leader", "worker", "sampler")
LOCK_DEADLINE_S = 180.0
GONE_DEADLINE_S = 15.0
# Beside others the counters never rest; what a load holds is 3072 pages.
OTHERS_PAGES = 512


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory where O_DIRECT reaches a block device, for suite, bundle and files."""
    mount = mountinfo.of_path(os.path.realpath(ROOT))
    if mount is None or mount.fs_type != "ext4":
        pytest.skip(f"{ROOT} is not on ext4")
    path = ROOT / f".test-kills-{os.getpid()}"
    path.mkdir()
    (path / "killed.toml").write_text(SUITE)
    yield path
    subprocess.run(["rm", "-r", str(path)], check=True)


@pytest.fixture
def counters() -> Iterator[Counters]:
    with Counters() as counters:
        if not counters.refreshes or counters.snapshot().acquired is None:
            pytest.skip("/proc/sys/vm/stat_refresh cannot be read: needs root")
        yield counters


def wait_for(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def begin(place: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """The run, once its load has started; another run may have to end first."""
    command = [sys.executable, "-m", "pinstorm", "run", str(place / "killed.toml"), *more]
    deadline, journal = time.monotonic() + LOCK_DEADLINE_S, out / "journal.jsonl"
    while True:
        process = subprocess.Popen(
            [*command, "--json"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None:
            if journal.exists() and '"start"' in journal.read_text():
                return process
            time.sleep(0.01)
        _, errors = process.communicate()
        assert run_cases.LOCKED in errors, errors
        assert time.monotonic() < deadline


def cast(runner: int) -> dict[str, psutil.Process]:
    """Who takes part, as far as they have come."""
    found = {"runner": psutil.Process(runner)}
    for child in found["runner"].children():
        command = " ".join(child.cmdline())
        if "pinstorm.sampler" in command:
            found["sampler"] = child
        elif "workloads.zygote" in command:
            found["zygote"] = child
            for leader in child.children():
                found["leader"] = leader
                for worker in leader.children():
                    found["worker"] = worker
    return found


def killed(place: Path, role: str, moment_s: float, counters: Counters) -> None:
    """One load in which that one is killed at that moment; then all must be as it was."""
    outstanding = counters.snapshot().outstanding
    assert outstanding is not None
    out = place / f"out-{role}-{time.monotonic_ns()}"
    process = begin(place, out, "--out", str(out))
    try:
        time.sleep(moment_s)
        wait_for(lambda: role in cast(process.pid) or process.poll() is not None, 10, role)
        everybody = cast(process.pid)
        family = [psutil.Process(process.pid), *everybody["runner"].children(recursive=True)]
        everybody[role].kill()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in errors, errors
    _, alive = psutil.wait_procs(family, timeout=GONE_DEADLINE_S)
    assert alive == []
    wait_for(
        lambda: (counters.snapshot().outstanding or 0) - outstanding < OTHERS_PAGES,
        GONE_DEADLINE_S,
        f"pins outlive a killed {role}",
    )
    opened = bundle.open_bundle(out)
    if role == "runner":
        assert opened.records == []
        check_resumed(place, out)
        return
    (record,) = [json.loads(line) for line in output.splitlines()]
    # A worker that ended is told by its leader; without the others there is no child any more.
    expected = {"sampler": "pass", "worker": "fail"}.get(role, "crash")
    assert record["verdict"] == expected, record
    assert opened.records == [record]


def check_resumed(place: Path, out: Path) -> None:
    """The load that was killed is lost, and not run again."""
    done = subprocess.run(
        [sys.executable, "-m", "pinstorm", "run", str(place / "killed.toml"), "--json",
         "--resume", str(out)],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    (record,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (record["case"], record["verdict"], record["reason"]) == (
        "load/both",
        "lost",
        "run-killed",
    )
    assert not (out / "samples").exists()


def rounds(place: Path, counters: Counters, count: int, seed: int) -> None:
    draw = random.Random(seed)
    for number in range(count):
        killed(place, ROLES[number % len(ROLES)], draw.uniform(0, 2.5), counters)
    assert [path for path in place.iterdir() if path.name.startswith("pinstorm-")] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_part_leaves_nothing(place: Path, counters: Counters, role: str) -> None:
    killed(place, role, random.Random(role).uniform(0, 2.5), counters)


@pytest.mark.slow
def test_fifty_random_kills(place: Path, counters: Counters) -> None:
    rounds(place, counters, 50, seed=1)
