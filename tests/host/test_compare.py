"""``pinstorm compare`` of real runs on this kernel: nothing that changed, and what was planted.

PINSTORM_SLOW=1 has the ten pairs of runs and the planted call, half an hour of them.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import run_cases

import workloads
from pinstorm import compare, session, suite
from pinstorm.compare import Comparison
from pinstorm.errors import UsageError
from workloads.spec import Case, Planned

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT = Path(sys.executable).parent / "pinstorm"
LOCK_DEADLINE_S = 300.0
KIB = 1 << 10

AGAIN = """
[run]
name = "again"
seed = 1
rounds = {rounds}
repeat = 30

[[matrix]]
workload = ["process-vm-write", "vmsplice", "io-uring-register"]
memory = {memory}
size = {size}
"""
PACED = "planted-pace/memfd/64KiB"


@pytest.fixture(autouse=True)
def _planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads.include("planted_pace")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.chdir(tmp_path)


def run(loaded: suite.Suite, plan: list[Planned], out: Path) -> Path:
    """One run, when it is this one's turn; its bundle."""
    options = session.Options(out=out, include=("planted_pace",))
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            return session.run(loaded, plan, options, lambda line: None).path
        except UsageError as error:
            if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def run_again(out: Path, rounds: int, memory: list[str], size: list[str]) -> Path:
    text = AGAIN.format(rounds=rounds, memory=json.dumps(memory), size=json.dumps(size))
    loaded = suite.parse(text, "again.toml")
    plan, _ = suite.plan(loaded)
    return run(loaded, plan, out)


def run_paced(out: Path, rounds: int) -> Path:
    """Twelve cases of the planted workload, in another order in each round."""
    loaded = suite.parse(run_cases.TEXT.format(seed=1), "paced.toml")
    cases = [
        Case("planted-pace", memory, {"size_bytes": size * KIB}, repeat=30)
        for memory in ("anon", "thp", "memfd")
        for size in (4, 16, 64, 256)
    ]
    plan = [
        Planned(number * len(cases) + place, number, case)
        for number in range(rounds)
        for place, case in enumerate(cases[number % 12 :] + cases[: number % 12])
    ]
    return run(loaded, plan, out)


def assert_nothing_flipped(result: Comparison) -> None:
    assert result.flips == []
    assert result.outcomes == []
    assert result.unseen == []


def test_a_run_again_changes_nothing(tmp_path: Path) -> None:
    a, b = (run_again(tmp_path / name, 2, ["anon"], ["64KiB"]) for name in "ab")
    result = compare.compare(a, b)
    assert_nothing_flipped(result)
    assert result.ran == len(result.labels) == 3
    # Two rounds cannot tell a thing, and say how many could.
    assert set(result.timings.counts()) == {"can't tell"}
    assert result.timings.rounds_wanted > 2
    done = subprocess.run(
        [SCRIPT, "compare", a, b, "--gate", "verdicts", "--gate", "acquire.median <= +10%"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "kept  verdicts" in done.stdout
    assert "can't tell  acquire.median <= +10%" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.slow
def test_ten_pairs_of_runs_of_one_kernel(tmp_path: Path) -> None:
    """No flips, and at most one figure in a hundred called faster or slower."""
    counts: Counter[str] = Counter()
    for pair in range(10):
        a, b = (
            run_again(tmp_path / f"{pair}{name}", 8, ["anon", "thp", "memfd"], ["64KiB", "1MiB"])
            for name in "ab"
        )
        result = compare.compare(a, b)
        assert_nothing_flipped(result)
        counts += result.timings.counts()
    assert counts["faster"] + counts["slower"] <= 0.01 * counts.total(), counts


@pytest.mark.slow
def test_planted_slower_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of twelve cases does 20 % more and is called slower; one that does 1 % more is not."""
    paths = {}
    for percent in (100, 120, 101):
        monkeypatch.setenv("PINSTORM_PACE", f"{PACED}={percent}")
        paths[percent] = run_paced(tmp_path / str(percent), 24)
    for percent, called in ((120, {PACED: "slower"}), (101, {})):
        result = compare.compare(paths[100], paths[percent])
        assert_nothing_flipped(result)
        told = {
            result.labels[timing.index]: timing.verdict
            for timing in result.timings.all
            if timing.verdict in ("faster", "slower")
        }
        assert told == called
