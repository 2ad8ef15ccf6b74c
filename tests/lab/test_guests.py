"""What the host makes of a guest that panics, is killed, never comes up, or is interrupted."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import workloads
from pinstorm import bundle, suite
from pinstorm import journal as journal_module
from pinstorm.lab import console
from pinstorm.lab import run as lab
from pinstorm.lab.accel import accelerator
from pinstorm.lab.kernels import Kernel
from pinstorm.lab.shape import PMEM_OPTION, Shape, shapes_for
from workloads.spec import Case, Planned

SMALL = {"size_bytes": 65536}
GOOD = Case("process-vm-write", "anon", SMALL, repeat=1)


def numbered(*cases: Case) -> list[Planned]:
    return [Planned(seq, 0, case) for seq, case in enumerate(cases)]


def children_named(prefix: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith(prefix):
                found.append(process)
    return found


@pytest.fixture
def quick() -> suite.Suite:
    return suite.load("quick")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The faulty workloads, here and (through sys.path) in the guest."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    workloads.include("faulty_guests")
    return ("faulty_guests",)


def test_run_goes_on_after_a_panic_and_a_killed_qemu(
    backports: Kernel,
    quick: suite.Suite,
    faulty: tuple[str, ...],
    lab_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One guest panics, the next is killed; a set-up piece that fails is a skip with its name."""

    def without_pmem(kernel: Kernel, wanted: Any) -> list[Shape]:
        return [
            replace(
                shape, kernel_options=tuple(o for o in shape.kernel_options if o != PMEM_OPTION)
            )
            for shape in shapes_for(kernel, wanted)
        ]

    monkeypatch.setattr(lab, "shapes_for", without_pmem)
    plan = numbered(
        GOOD,
        Case("panics", "anon", SMALL, repeat=0),
        Case("dio-read", "dax-shared", SMALL, repeat=1),
        Case("sleeps", "anon", SMALL, repeat=0, deadline_s=120),
        Case("rdma-register", "anon", {"access": "rw", **SMALL}, repeat=1),
    )

    def kill_sleeper(line: dict[str, Any]) -> None:
        if str(line.get("start", "")).startswith("sleeps/"):
            (qemu,) = children_named("qemu-system")
            qemu.kill()

    said: list[str] = []
    done = lab.run_kernel(quick, plan, backports, lab_tmp, None, kill_sleeper, said.append, faulty)

    by_case = {record["workload"]: record for record in done.records}
    assert [by_case[name]["verdict"] for name in ("process-vm-write", "rdma-register")] == [
        "pass",
        "pass",
    ]
    assert (by_case["panics"]["verdict"], by_case["panics"]["reason"]) == ("crash", "kernel-panic")
    assert any("Kernel panic" in line or "sysrq" in line for line in by_case["panics"]["kmsg"])
    assert by_case["sleeps"]["verdict"] == "lost"
    skipped = by_case["dio-read"]
    assert skipped["verdict"] == "skip"
    assert skipped["skip"][0]["code"] == "scratch-dax"
    assert "pmem-dax" in skipped["skip"][0]["detail"]
    assert len(done.records) == len(plan)
    opened = bundle.open_bundle(done.path)
    boots = opened.manifest["boots"]
    lost = [line for line in said if "ran no case" in line or "never came up" in line]
    assert len(boots) == 3 + len(lost), said
    assert len({boot["boot"] for boot in boots if "boot" in boot}) >= 3
    assert "Kernel panic" in (done.path / "console.log").read_text(errors="replace")
    assert not list(done.path.glob(".*")), "job files are left in the bundle"


def test_guest_that_the_emulator_took_down_is_no_crash_of_the_kernel(
    backports: Kernel, quick: suite.Suite, faulty: tuple[str, ...], lab_tmp: Path
) -> None:
    """The case is lost, the person is told, and the run goes on."""
    at_fault = console.is_emulators(["[    1.0] Oops: int3: 0000 [#1]"], accelerator(backports))
    plan = numbered(Case("says-int3", "anon", SMALL, repeat=0), GOOD)
    said: list[str] = []
    done = lab.run_kernel(
        quick, plan, backports, lab_tmp, None, lambda line: None, said.append, faulty
    )
    lost, good = sorted(done.records, key=lambda record: int(record["seq"]))
    expected = ("lost", "emulator") if at_fault else ("crash", "kernel-panic")
    assert (lost["verdict"], lost["reason"]) == expected
    assert "int3" in lost["kmsg"][0]
    assert good["verdict"] == "pass"
    assert any("run the case again" in sentence for sentence in said) is at_fault, said


def test_boot_lost_twice_is_told_and_ends(
    backports: Kernel,
    quick: suite.Suite,
    lab_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel that stops before its first command: two tries, then the cases are lost."""

    def stillborn(kernel: Kernel, wanted: Any) -> list[Shape]:
        return [
            replace(
                shape, kernel_options=(*shape.kernel_options, "init=/bin/false", "rdinit=/none")
            )
            for shape in shapes_for(kernel, wanted)
        ]

    monkeypatch.setattr(lab, "shapes_for", stillborn)
    monkeypatch.setattr(lab, "BOOT_DEADLINE_S", 30.0)
    said: list[str] = []
    done = lab.run_kernel(
        quick, numbered(GOOD), backports, lab_tmp, None, lambda line: None, said.append
    )
    (record,) = done.records
    assert (record["verdict"], record["reason"]) == ("lost", "boot-lost")
    assert len(said) == lab.LOST_BOOTS
    assert lab.index_entry(done)["exit_code"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_run_that_is_ended_leaves_a_bundle_and_no_guest(
    number: signal.Signals, lab_tmp: Path
) -> None:
    """Ctrl-C and kill -9 in mid-case, through the console script."""
    out = lab_tmp / "out"
    command = [sys.executable, "-m", "pinstorm", "lab", "run", "quick", "--out", str(out)]
    command += ["--only", "rdma-register/anon/rw/*", "--hold", "60s"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        journal = wait_for(lambda: next(out.glob("*/journal.jsonl"), None), 120)
        wait_for(lambda: '"start"' in journal.read_text(), 2 * lab.BOOT_DEADLINE_S)
        guests = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.name().startswith("qemu-system")
        ]
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Traceback" not in errors
    assert guests
    wait_for(lambda: not any(map(alive, guests)), 10)
    if number == signal.SIGKILL:
        check_resumed(journal, command)
        return
    assert process.returncode == 130, errors
    opened = bundle.open_bundle(journal.parent)
    assert opened.contents.interrupted
    assert (journal.parent / "cases.parquet").exists()
    index = json.loads((out / "index.json").read_text())
    assert index["bundles"][0]["exit_code"] == 130


def check_resumed(journal: Path, command: list[str]) -> None:
    """The case that was killed is lost and not run again; the other runs."""
    (started,) = journal_module.read(journal).started.values()
    bundle_path = str(journal.parent)
    again = [*command[: command.index("--out")], "--resume", bundle_path]
    again += ["--only", "rdma-register/anon/rw/*", "--json"]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    ended = {record["case"]: (record["verdict"], record["reason"]) for record in records}
    assert ended.pop(started["start"]) == ("lost", "run-killed")
    assert list(ended.values()) == [("pass", None)]
    assert not list(journal.parent.glob(".*"))


def alive(process: psutil.Process) -> bool:
    """A zombie that init has not reaped yet is dead."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(condition: Any, deadline_s: float) -> Any:
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def test_a_guest_that_cannot_begin_says_why(
    backports: Kernel, quick: suite.Suite, lab_tmp: Path
) -> None:
    said: list[str] = []
    done = lab.run_kernel(
        quick, numbered(GOOD), backports, lab_tmp, None, lambda line: None, said.append,
        include=("no_such_module",),
    )  # fmt: skip
    assert [(r["verdict"], r["reason"]) for r in done.records] == [("lost", "boot-lost")]
    told = [line for line in said if "No module named 'no_such_module'" in line]
    assert told, said
    assert "console.log" in told[0]
