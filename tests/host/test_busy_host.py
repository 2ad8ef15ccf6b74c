"""Cases beside a process that pins and unpins in a loop: no verdict flips, none wrong is exact."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import run_cases
from taken_rings import taken_rings

import workloads
from pinstorm import session, suite
from pinstorm.errors import UsageError
from telemetry.vmstat import Counters
from workloads import libc
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Planned

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOCK_DEADLINE_S = 120.0

Record = dict[str, Any]
Run = Callable[[Sequence[Case]], list[Record]]

SIZES = (PAGE_BYTES, 64 << 10, 16 * MIB)
# acquired and held of a case that is alone, by workload, in pages of the region.
TRUTH: dict[str, Callable[[int], tuple[int, int]]] = {
    "io-uring-register": lambda pages: (pages, pages),
    "process-vm-write": lambda pages: (pages, 0),
    "vmsplice": lambda pages: (0, 0),
}
LEAK = "faulty-leak-unaccounted"


@pytest.fixture(autouse=True)
def _faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads.include("faulty_workloads")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.setenv("PINSTORM_FAULTY", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _able() -> None:
    with Counters() as counters:
        if not counters.refreshes or counters.snapshot().acquired is None:
            unmet("folding the pin counters needs root, and a kernel that has them")
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        unmet(f"io_uring_setup: {os.strerror(error.errno)}")


def unmet(reason: str) -> None:
    if {"host", "all"} & set(os.environ.get("PINSTORM_REQUIRE", "").split(",")):
        pytest.fail(f"unmet need: {reason}")
    pytest.skip(reason)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(cases: Sequence[Case]) -> list[Record]:
        loaded = suite.parse(run_cases.TEXT.format(seed=1), "faulty.toml")
        plan = [Planned(seq, 0, case) for seq, case in enumerate(cases)]
        options = session.Options(
            out=tmp_path / f"bundle-{time.monotonic_ns()}", include=("faulty_workloads",)
        )
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            try:
                return session.run(loaded, plan, options, lambda line: None).records
            except UsageError as error:
                if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return run


@contextlib.contextmanager
def antagonist(kind: str, size_bytes: int, burst_ms: int, pause_ms: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, HERE / "antagonist.py", kind, *map(str, (size_bytes, burst_ms, pause_ms))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "pinned\n"
        yield
    finally:
        process.communicate(timeout=30)


def cases() -> list[Case]:
    wanted = [
        Case(workload, "anon", {"size_bytes": size_bytes}, repeat=3)
        for workload in TRUTH
        for size_bytes in SIZES
    ]
    return [*wanted, Case(LEAK, "anon", {"size_bytes": MIB}, repeat=1), *wanted]


@pytest.mark.parametrize(
    "loop",
    [
        ("register", PAGE_BYTES, 0, 0),
        ("register", 16 * MIB, 0, 5),
        ("hold", MIB, 0, 30),
        ("copy", PAGE_BYTES, 0, 100),
        ("register", 4 * MIB, 5, 250),
        ("copy", 16 * MIB, 0, 500),
    ],
    ids=lambda loop: "-".join(map(str, loop)),
)
def test_no_verdict_flips_and_no_wrong_figure_is_exact(
    run: Run, loop: tuple[str, int, int, int]
) -> None:
    with antagonist(*loop):
        records = run(cases())
    for record in records:
        check(record)
    assert any(not record["pins"]["exact"] for record in records), "nobody pinned beside them"


def check(record: Record) -> None:
    pins, case = record["pins"], record["case"]
    told = (case, record["reason"], record["expected"]["broken"], pins)
    if record["workload"] == LEAK:
        assert record["verdict"] == "fail" or record["reason"] == "noisy-window", told
        return
    assert record["verdict"] == "pass", told
    acquired, held = TRUTH[record["workload"]](record["params"]["size_bytes"] // PAGE_BYTES)
    if pins["exact"]:
        assert (pins["acquire"]["acquired"], pins["held"], pins["leaked"]) == (acquired, held, 0)
    else:
        assert record["reason"] == "noisy-window", told
    attributed = pins["attributed"]
    for figure, truth in (("acquired", acquired), ("held", held), ("leaked", 0)):
        assert attributed[figure] in (truth, None), told
        assert (attributed[figure] is None) == (attributed["method"][figure] == "unattributable")
        assert pins["exact"] or attributed["method"][figure] != "exact-quiet"
    if record["workload"] == "io-uring-register" and record["vmpin_bytes"]["held"]:
        assert attributed["held"] == held, told


@pytest.mark.parametrize("kill", [{}, {"kill": "hold"}], ids=["ends", "killed"])
def test_pins_that_outlive_the_process_fail_beside_others(
    run: Run, tmp_path: Path, kill: dict[str, str]
) -> None:
    """Another process takes the ring of the case, with 64 times what the loop moves at a time."""
    with taken_rings(tmp_path), antagonist("register", 64 << 10, 0, 5):
        size = {"size_bytes": 4 * MIB}
        (record,) = run([Case("faulty-orphan", "anon", {**size, **kill}, repeat=0)])
    pins = record["pins"]
    assert not pins["exact"], "nobody pinned beside it"
    assert (record["verdict"], record["reason"]) == ("fail", "orphaned"), (record["expected"], pins)
    assert 0 < pins["stayed"] <= 4 * MIB // PAGE_BYTES
    assert pins["attributed"]["leaked"] is None


def test_a_leak_is_found_beside_a_loop_that_lets_go_between(run: Run) -> None:
    """The loop holds pages for a moment only, so what stays for a second is the case's."""
    with antagonist("copy", PAGE_BYTES, 0, 20):
        records = run([Case(LEAK, "anon", {"size_bytes": MIB}, repeat=0)] * 3)
    assert [record["verdict"] for record in records] == ["fail"] * 3
    for record in records:
        released, ended = record["pins"]["remaining"]
        # Less what the loop itself held in the moment before.
        assert 0 <= MIB // PAGE_BYTES - released <= 1
        assert ended <= 0
