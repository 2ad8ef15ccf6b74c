"""The machinery against workloads that misbehave, killed runs, noise and missing privileges."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import run_cases
from taken_rings import taken_rings

import workloads
from pinstorm import bundle, containment, host, journal, lock, session, suite
from pinstorm.errors import UsageError
from pinstorm.spawn import Child, Zygote
from telemetry import cgroup, gup_trace, hugepages, mountinfo
from telemetry.vmstat import Counters, settle
from workloads import libc
from workloads.memory import HUGE_BYTES
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Planned

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GONE_DEADLINE_S = 2.0
LOCK_DEADLINE_S = 120.0
NOBODY = 65534
SMALL = 64 << 10
SMALL_PAGES = SMALL // PAGE_BYTES

Record = dict[str, Any]
Run = Callable[..., list[Record]]


def need(met: bool, reason: str) -> None:
    if not met and {"host", "all"} & set(os.environ.get("PINSTORM_REQUIRE", "").split(",")):
        pytest.fail(f"unmet need: {reason}")
    if not met:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faulty workloads can be imported by the zygote, and have a place for their notes."""
    workloads.include("faulty_workloads")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.setenv("PINSTORM_FAULTY", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs cases in this process; their records, in the plan's order."""

    def run(*cases: Case, resume: Path | None = None, **more: Any) -> list[Record]:
        loaded = suite.parse(run_cases.TEXT.format(seed=1), "faulty.toml")
        plan = [Planned(seq, 0, case) for seq, case in enumerate(cases)]
        out = None if resume else tmp_path / f"bundle-{time.monotonic_ns()}"
        listener = more.pop("listener", lambda line: None)
        options = session.Options(out=out, resume=resume, include=("faulty_workloads",), **more)
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            try:
                return session.run(loaded, plan, options, listener).records
            except UsageError as error:
                if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return run


@pytest.fixture
def counters() -> Iterator[Counters]:
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        yield counters


@pytest.fixture
def io_uring() -> None:
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")


@pytest.fixture
def dio_scratch() -> Iterator[Path]:
    """A directory, made for the test, where O_DIRECT reaches a block device."""
    mount = mountinfo.of_path(os.path.realpath(ROOT))
    need(mount is not None and mount.fs_type == "ext4", f"{ROOT} is not on ext4")
    path = ROOT / f".test-scratch-{os.getpid()}"
    path.mkdir()
    try:
        yield path
        assert list(path.iterdir()) == []
    finally:
        for left in path.iterdir():
            left.unlink()
        path.rmdir()


def faulty(name: str, repeat: int = 3, deadline_s: float = 5.0, memory: str = "anon") -> Case:
    return Case(f"faulty-{name}", memory, {"size_bytes": SMALL}, repeat, 1, deadline_s)


OK = faulty("ok")


def wait_until(condition: Callable[[], bool], deadline_s: float) -> bool:
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def noted_pids(tmp_path: Path) -> list[int]:
    path = tmp_path / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def lock_is_free(of_pid: int) -> bool:
    """Whether the run with that pid no longer has the lock; somebody else may."""
    try:
        with lock.only_run():
            return True
    except UsageError as error:
        return f"(pid {of_pid})" not in str(error)


def leaves() -> list[Path]:
    """Those of no other run that is alive."""
    own = cgroup.own_v2()
    found = [] if own is None else list(own.glob("pinstorm_*"))
    return [
        path for path in found if path.name == gup_trace.own_name() or gup_trace.is_stale(path.name)
    ]


def descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


# -- children that crash -----------------------------------------------------------------------


def test_crash_and_the_run_goes_on(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    names = ("segv-prepare", "segv-acquire", "segv-cycle", "raise", "die-standing")
    records = run(*(case for name in names for case in (faulty(name), OK)))
    assert [(r["verdict"], r["reason"], r["signal"]) for r in records[::2]] == [
        ("crash", "signal-11", 11),
        ("crash", "signal-11", 11),
        ("crash", "signal-11", 11),
        ("fail", "error", None),
        ("crash", "signal-14", 14),
    ]
    assert [r["verdict"] for r in records[1::2]] == ["pass"] * len(names)
    assert "KeyError: 'faulty on purpose'" in capfd.readouterr().err
    phases = [r["failed_phase"] for r in records[::2]]
    assert phases[:-1] == ["prepare", "acquire", "cycles", "acquire"]
    # Its alarm rings while it stands: the hold that looks at it, or the release that it is told.
    assert phases[-1] in ("hold", "release")
    assert records[4]["timing_ns"]["first"] == 1  # what was seen before the crash is kept
    assert leaves() == []


def test_pins_of_a_crashed_child_are_counted(run: Run, counters: Counters) -> None:
    record, _ = run(faulty("segv-acquire"), OK)
    assert record["pins"]["orphaned"] == 0
    assert record["pins"]["held"] is None


# -- the deadline ------------------------------------------------------------------------------


def notes_starts(began_s: list[float]) -> Callable[[Record], None]:
    """A listener that notes when each case began: the run itself may wait for its turn."""

    def listener(line: Record) -> None:
        if "start" in line:
            began_s.append(time.monotonic())

    return listener


@pytest.mark.parametrize("fallback", [False, True])
def test_deadline_kills_the_grandchild(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: bool
) -> None:
    if fallback:
        monkeypatch.setattr(cgroup, "own_v2", lambda: None)
    else:
        own = cgroup.own_v2()
        need(own is not None and os.access(own, os.W_OK), "no cgroup v2 leaf can be made here")
    began: list[float] = []
    hung, after = run(faulty("hang", deadline_s=0.5), OK, listener=notes_starts(began))
    assert began[1] - began[0] < 5
    assert (hung["verdict"], hung["reason"]) == ("timeout", "deadline")
    assert hung["containment"] == ("process-group" if fallback else "cgroup")
    assert hung["failed_phase"] == "acquire"
    assert after["verdict"] == "pass"
    pids = noted_pids(tmp_path)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("fallback", [False, True])
def test_grandchild_left_behind_is_killed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: bool
) -> None:
    if fallback:
        monkeypatch.setattr(cgroup, "own_v2", lambda: None)
    first, after = run(faulty("grandchild", repeat=0), OK)
    assert (first["verdict"], after["verdict"]) == ("pass", "pass")
    assert wait_until(lambda: len(noted_pids(tmp_path)) == 1, 1)
    assert all(gone(pid) for pid in noted_pids(tmp_path))


def test_child_that_hangs_in_close(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinstorm.observe._CLOSE_DEADLINE_NS", 300_000_000)
    hung, after = run(faulty("hang-close", deadline_s=0.3), OK)
    assert (hung["verdict"], after["verdict"]) == ("timeout", "pass")


def test_child_that_cannot_be_killed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one stuck in the kernel: the zygote waits for it, so the next case has another one."""
    monkeypatch.setattr("pinstorm.observe._EXIT_DEADLINE_S", 0.2)
    monkeypatch.setattr(containment.Containment, "kill", lambda self: None)
    hung, after = run(faulty("hang", deadline_s=0.3), OK)
    assert (hung["verdict"], after["verdict"]) == ("timeout", "pass")
    monkeypatch.undo()
    for pid in noted_pids(tmp_path):
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


# -- leaks, orphans, cycles, releases, prepare -------------------------------------------------


def test_leak(run: Run, counters: Counters, io_uring: None) -> None:
    record, after = run(faulty("leak", repeat=4), OK)
    assert (record["verdict"], record["reason"]) == ("fail", "leaked")
    assert record["pins"]["held"] == record["pins"]["leaked"] == SMALL_PAGES
    assert record["pins"]["cycles"] == {"acquired": 5 * SMALL_PAGES, "released": 0}
    assert record["pins"]["orphaned"] == 0
    assert after["verdict"] == "pass"


def test_orphan(run: Run, tmp_path: Path, counters: Counters, io_uring: None) -> None:
    with taken_rings(tmp_path):
        record, after = run(faulty("orphan", repeat=0), OK)
    assert record["verdict"] == "fail"
    assert record["pins"]["leaked"] == record["pins"]["orphaned"] == SMALL_PAGES
    assert any("after the process had ended" in line for line in record["expected"]["broken"])
    assert after["pins"]["orphaned"] == 0
    assert after["verdict"] == "pass"


def test_misbehaviour_has_its_reason(run: Run) -> None:
    names = ("unstable", "release", "release-cycle", "prepare-call", "prepare-state", "close")
    records = dict(zip(names, run(*(faulty(name, repeat=4) for name in names)), strict=True))
    assert {name: (r["verdict"], r["reason"]) for name, r in records.items()} == {
        "unstable": ("fail", "unstable"),
        "release": ("fail", "release"),
        "release-cycle": ("fail", "unstable"),
        "prepare-call": ("fail", "prepare"),
        "prepare-state": ("fail", "prepare"),
        "close": ("fail", "release"),
    }
    assert records["unstable"]["outcomes"] == {"ok": 4, "EAGAIN": 2}
    release = records["release"]
    assert (release["failed_call"], release["failed_phase"]) == ("faulty_release", "release")
    assert release["outcome"] == "EBUSY"
    # The time of a release that failed is no time of an acquire.
    assert records["release-cycle"]["timing_ns"]["acquire"] == [1, 1, 1, 1]
    assert len(records["release-cycle"]["timing_ns"]["release"]) == 3
    call = records["prepare-call"]
    assert (call["failed_call"], call["outcome"]) == ("faulty_open", "EMFILE")
    assert (call["failed_phase"], call["detail"]) == ("prepare", "no more of them")
    state = records["prepare-state"]
    assert (state["failed_call"], state["outcome"]) == (None, None)
    assert state["detail"] == "the memory is not what it should be"
    errors = records["close"]["owner_errors"]
    assert [line.split(":")[0] for line in errors] == ["second thing", "first thing"]


# -- the zygote dies ---------------------------------------------------------------------------


def zygote_of(pid: int) -> psutil.Process:
    children = psutil.Process(pid).children()
    (found,) = [child for child in children if "workloads.zygote" in child.cmdline()]
    return found


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This process, and what it starts, on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


def test_zygote_killed_between_cases(run: Run) -> None:
    def listener(line: Record) -> None:
        if line.get("verdict") and line["seq"] in (0, 2):
            zygote_of(os.getpid()).kill()

    records = run(OK, OK, OK, OK, listener=listener)
    assert [r["verdict"] for r in records] == ["pass"] * 4


@pytest.mark.usefixtures("one_cpu")
def test_zygote_that_takes_its_time_to_die(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket closes while it still lives: we are woken by that, and run before it goes on."""
    spawn = Zygote.spawn
    calls = itertools.count()

    def spawn_of_the_killed(self: Zygote, *asked: Any) -> Child:
        if next(calls) % 2 == 0:  # every other: what is tried again is to find another zygote
            os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            os.kill(self.pid, signal.SIGKILL)
        return spawn(self, *asked)

    monkeypatch.setattr(Zygote, "spawn", spawn_of_the_killed)
    records = run(*[OK] * 8)
    assert [r["verdict"] for r in records] == ["pass"] * 8


@pytest.mark.parametrize("fallback", [False, True])
def test_zygote_killed_in_a_case(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fallback: bool
) -> None:
    if fallback:
        monkeypatch.setattr(cgroup, "own_v2", lambda: None)

    def kill() -> None:
        if wait_until(lambda: len(noted_pids(tmp_path)) == 2, LOCK_DEADLINE_S + 10):
            zygote_of(os.getpid()).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    hung, after = run(faulty("hang"), OK)
    killer.join()
    assert (hung["verdict"], hung["reason"]) == ("crash", "zygote-died")
    assert after["verdict"] == "pass"
    child, grandchild = noted_pids(tmp_path)
    assert gone(child)
    assert gone(grandchild)


def test_child_that_crashes_beside_its_grandchild(run: Run, tmp_path: Path) -> None:
    """The grandchild has the child's socket open, and the end of the child is noticed even so."""
    began: list[float] = []
    record, after = run(faulty("grandchild-crash", deadline_s=20), OK, listener=notes_starts(began))
    assert began[1] - began[0] < 10
    assert (record["verdict"], record["reason"]) == ("crash", "signal-11")
    assert after["verdict"] == "pass"
    assert all(gone(pid) for pid in noted_pids(tmp_path))


# -- runs that are killed or interrupted -------------------------------------------------------


def journal_bytes(path: Path) -> int:
    try:
        return (path / bundle.JOURNAL).stat().st_size
    except FileNotFoundError:
        return 0


def start(*cases: Case, **more: Any) -> "subprocess.Popen[str]":
    """A run in a process group of its own, which waits for the lock."""
    asked = {"cases": [case.to_json() for case in cases], **{k: str(v) for k, v in more.items()}}
    return subprocess.Popen(
        [sys.executable, str(HERE / "run_cases.py"), json.dumps(asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def unlocked_run(command: Sequence[str], **more: Any) -> "subprocess.CompletedProcess[str]":
    """A command line's run, again as long as another run has the machine."""
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
        if run_cases.LOCKED not in done.stderr or time.monotonic() > deadline:
            return done


def unlocked_popen(command: Sequence[str], journal_path: Path) -> "subprocess.Popen[str]":
    """The same for a run that is to be interrupted: returns once it writes its journal."""
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while True:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while process.poll() is None:
            if journal_path.exists():
                return process
            time.sleep(0.01)
        assert time.monotonic() < deadline, finish(process)
        process.communicate()


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=LOCK_DEADLINE_S + 60)
    return process.returncode, output, errors


def started(path: Path, case_id: str) -> Callable[[], bool]:
    def look() -> bool:
        try:
            return any(line.get("start") == case_id for line in journal.tail(path, 0)[0])
        except OSError:
            return False

    return look


def test_killed_runs_are_resumed(
    tmp_path: Path, dio_scratch: Path, counters: Counters, io_uring: None
) -> None:
    """SIGKILL at 20 random moments of one run that is resumed each time."""
    generator = random.Random(4)
    kinds = (
        Case("io-uring-register", "anon", {"size_bytes": MIB}, 200, deadline_s=30),
        Case("dio-read", "anon", {"size_bytes": MIB}, 40, deadline_s=30),
        faulty("hang", deadline_s=0.2),
        Case("process-vm-write", "anon", {"size_bytes": MIB}, 20, deadline_s=30),
        Case("vmsplice", "anon", {"size_bytes": MIB}, 20, deadline_s=30),
    )
    cases = [kinds[number % len(kinds)] for number in range(30)]
    path = tmp_path / "bundle"
    before = counters.snapshot().outstanding
    killed: set[int] = set()  # the seq of each case that was running
    for _ in range(20):
        where = {"resume": path} if (path / bundle.MANIFEST).exists() else {"out": path}
        process = start(*cases, scratch=dio_scratch, **where)
        try:
            process.wait(generator.uniform(0.05, 0.9))
        except subprocess.TimeoutExpired:
            tree = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        else:
            assert process.returncode == 0, finish(process)
            break
        _, _, errors = finish(process)
        assert "Traceback" not in errors
        _, alive = psutil.wait_procs(tree, GONE_DEADLINE_S)
        assert alive == []
        assert list(dio_scratch.iterdir()) == []
        if (path / bundle.MANIFEST).exists():
            killed |= bundle.open_bundle(path).contents.started.keys()
        elif path.exists():  # killed before there was anything to resume
            for file in path.iterdir():
                file.unlink()
    rested, _ = settle(counters, lambda now: now.outstanding == before, 5)
    assert rested.outstanding == before
    where = {"resume": path} if (path / bundle.MANIFEST).exists() else {"out": path}
    code, _, errors = finish(start(*cases, scratch=dio_scratch, **where))
    assert (code, errors) == (0, "")
    assert leaves() == []
    contents = journal.read(path / bundle.JOURNAL)
    assert contents.started == {}
    assert sorted(record["seq"] for record in contents.records) == list(range(len(cases)))
    lost = [record for record in contents.records if record["verdict"] == "lost"]
    assert {record["seq"] for record in lost} == killed
    assert {record["reason"] for record in lost} <= {"run-killed"}
    expected = {"pass": None, "timeout": "deadline", "lost": "run-killed"}
    # what the killed run's last case gave back is noise to the next one's first
    seen = {(r["verdict"], r["reason"]) for r in contents.records} - {("pass", "noisy-window")}
    assert seen <= set(expected.items())
    assert (path / bundle.CASES).exists()


def test_killed_in_mid_case(tmp_path: Path, io_uring: None) -> None:
    path = tmp_path / "bundle"
    cases = (OK, faulty("hang", deadline_s=30), faulty("close"))
    process = start(*cases, out=path)
    assert wait_until(lambda: len(noted_pids(tmp_path)) == 2, LOCK_DEADLINE_S), finish(process)
    with pytest.raises(UsageError, match=rf"another pinstorm run \(pid {process.pid}\)"):
        with lock.only_run():
            pass
    process.kill()
    finish(process)
    leaf = leaves()  # of a dead run now
    assert wait_until(lambda: all(gone(pid) for pid in noted_pids(tmp_path)), GONE_DEADLINE_S)
    assert wait_until(lambda: lock_is_free(process.pid), GONE_DEADLINE_S)
    with open(path / bundle.JOURNAL, "ab") as file:
        file.write(b'{"case": "torn')
    with open(path / bundle.MANIFEST, "rb") as file:
        assert json.load(file)["suite"]["seed"] == 1
    code, _, errors = finish(start(*cases, resume=path, seed=2))
    assert code == 2
    assert "cannot resume" in errors
    code, output, errors = finish(start(*cases, resume=path))
    assert (code, errors) == (0, "")
    assert "torn; 14 bytes cut off" in output
    records = bundle.open_bundle(path).records
    assert [(r["verdict"], r["reason"]) for r in records] == [
        ("pass", None),
        ("lost", "run-killed"),
        ("fail", "release"),
    ]
    assert len(noted_pids(tmp_path)) == 2  # it was not run again
    assert not any(old.exists() for old in leaf)


def test_resume_refuses_another_number_of_rounds(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(TOML.format(hold="0s"))
    out = str(tmp_path / "bundle")
    command = [sys.executable, "-m", "pinstorm", "run", str(path)]
    assert unlocked_run([*command, "--out", out]).returncode == 0
    second = unlocked_run([*command, "--resume", out, "--rounds", "2"])
    assert second.returncode == 2, second.stderr
    assert "--rounds 1, not 2" in second.stderr
    assert second.stderr.count("\n") == 1


TOML = """
[run]
name = "held"
hold = "{hold}"
repeat = 2
order = "suite"
[[matrix]]
workload = ["vmsplice", "process-vm-write"]
memory = "anon"
size = "64KiB"
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(tmp_path: Path, number: signal.Signals) -> None:
    suite_path, path = tmp_path / "suite.toml", tmp_path / "bundle"
    suite_path.write_text(TOML.format(hold="1s"))
    command = [sys.executable, "-m", "pinstorm", "run", str(suite_path)]
    process = unlocked_popen([*command, "--out", str(path)], path / bundle.JOURNAL)
    first = started(path / bundle.JOURNAL, "process-vm-write/anon/64KiB")
    assert wait_until(first, LOCK_DEADLINE_S)
    tree = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    code, _, errors = finish(process)
    assert code == 130, errors
    assert "the bundle is valid" in errors
    assert "Traceback" not in errors
    assert psutil.wait_procs(tree, GONE_DEADLINE_S)[1] == []
    contents = bundle.open_bundle(path).contents
    assert [record["case"] for record in contents.records] == ["vmsplice/anon/64KiB"]
    assert contents.started == {}
    assert list(contents.interrupted) == [1]
    assert (path / bundle.CASES).exists()
    assert leaves() == []
    again = unlocked_run([*command, "--resume", str(path)])
    assert again.returncode == 0, again.stderr
    records = bundle.open_bundle(path).records
    assert [(r["seq"], r["verdict"]) for r in records] == [(0, "pass"), (1, "pass")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_at_random_moments(tmp_path: Path, number: signal.Signals) -> None:
    """No case is lost, wherever the interrupt falls."""
    generator = random.Random(7 + number)
    cases = [OK] * 400
    path = tmp_path / "bundle"
    for _ in range(4):
        where = {"resume": path} if path.exists() else {"out": path}
        size = journal_bytes(path)
        process = start(*cases, **where)
        assert wait_until(lambda before=size: journal_bytes(path) > before, LOCK_DEADLINE_S)
        time.sleep(generator.uniform(0.0, 0.3))
        os.killpg(process.pid, number)
        code, _, errors = finish(process)
        assert code == 130, (code, errors)
        contents = bundle.open_bundle(path).contents
        assert contents.started == {}
        assert len(contents.done) == len(contents.records)
        assert not contents.done & set(contents.interrupted)
        assert (path / bundle.CASES).exists()


# -- noise, missing privileges -----------------------------------------------------------------

PINNER = """
import mmap, os
from workloads import libc
source, target = mmap.mmap(-1, 1 << 20), mmap.mmap(-1, 1 << 20)
local, remote = (libc.iovecs([(libc.address_of(m), 1 << 20)]) for m in (source, target))
print("ready", flush=True)
while os.getppid() != 1:
    libc.process_vm_writev(os.getpid(), local, remote)
"""


@pytest.fixture
def pinner() -> Iterator[None]:
    """Beside the test a process pins and unpins in a loop."""
    with subprocess.Popen(
        [sys.executable, "-c", PINNER], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.kill()


def test_noise_is_flagged(
    run: Run, counters: Counters, io_uring: None, dio_scratch: Path, pinner: None
) -> None:
    cases = [
        Case(name, "anon", {"size_bytes": SMALL}, 3, deadline_s=5.0)
        for name in ("io-uring-register", "dio-read", "vmsplice", "process-vm-write")
    ]
    records = run(*cases, *cases, scratch=(dio_scratch,))
    for record in records:
        assert record["verdict"] == "pass", (record["case"], record["expected"]["broken"])
        assert record["pins"]["exact"] is False
        assert record["pins"]["noise"] > 0
    # Who makes the noise stands still at times, and may have done so while it was watched.
    flagged = [record["pins"]["flagged"] for record in records]
    assert sum(flagged) > len(flagged) / 2, [record["pins"] for record in records]


AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
sys.argv = ["pinstorm", *sys.argv[1:]]
from pinstorm.cli import main
main()
"""

QUICK_TOML = """
[run]
name = "quick"
repeat = 3
[[matrix]]
workload = ["dio-read", "io-uring-register", "process-vm-write"]
memory = "anon"
size = "4MiB"
[[matrix]]
workload = "process-vm-write"
memory = "memfd"
size = "64KiB"
"""


def test_ordinary_user(tmp_path: Path, dio_scratch: Path) -> None:
    need(os.geteuid() == 0, "only root can become somebody else")
    work = dio_scratch / "of-nobody"
    work.mkdir()
    os.chown(work, NOBODY, NOBODY)
    suite_path = work / "suite.toml"
    suite_path.write_text(QUICK_TOML)
    try:
        more = ["--out", str(work / "bundle"), "--scratch", str(work), "--json"]
        done = unlocked_run(
            [sys.executable, "-c", AS_NOBODY.format(nobody=NOBODY), "run", str(suite_path), *more],
            cwd=work,
        )
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert (done.returncode, len(records)) == (0, 4), done.stderr
        for record in records:
            if record["verdict"] == "skip":
                continue
            assert record["verdict"] == "pass", (record["case"], record["expected"]["broken"])
            pages = record["params"]["size_bytes"] // PAGE_BYTES
            pins = record["pins"]
            if pins is None or record["outcome"] != "ok":
                continue
            assert pins["exact"] is False
            assert pins["bound"] > 0
            # A pass that could not have failed says so.
            hollow = pins["net_bound"] + pins["noise"] >= pages
            hollow = hollow or pins["noise"] > 0 or pins["recent"] > 0
            assert record["reason"] in (("inexact", "noisy-window") if hollow else (None,))
            truth = pages if record["workload"] == "io-uring-register" else 0
            assert abs(pins["held"] - truth) <= pins["bound"] + pins["noise"]
            assert abs(pins["acquire"]["acquired"] - pages) <= pins["bound"] + pins["noise"]
    finally:
        subprocess.run(["rm", "-r", "--", str(work)], check=True)


# -- memory, set-up, timing --------------------------------------------------------------------


def test_fresh_memory_is_faulted_in_each_cycle(run: Run, counters: Counters) -> None:
    case = Case("process-vm-write", "anon-untouched", {"size_bytes": SMALL}, 5, warmup=2)
    touched = Case("process-vm-write", "anon", {"size_bytes": SMALL}, 5, warmup=2)
    fresh, plain = run(case, touched)
    assert fresh["verdict"] == plain["verdict"] == "pass"
    if not (fresh["pins"]["noise"] or plain["pins"]["noise"]):
        moved = {"acquired": 7 * SMALL_PAGES, "released": 7 * SMALL_PAGES}
        assert fresh["pins"]["cycles"] == plain["pins"]["cycles"] == moved
    assert fresh["placement"]["absent_pages"] == SMALL_PAGES
    assert plain["placement"]["absent_pages"] == 0


@pytest.mark.parametrize("killed", [False, True])
def test_setup_is_given_back(tmp_path: Path, killed: bool) -> None:
    need(os.geteuid() == 0, "only root can change the pool of huge pages")
    file = hugepages.pool_size_file(HUGE_BYTES)
    need(file.exists(), "this kernel has no 2 MiB hugetlb pool")
    before = file.read_text()
    need(int(before) == 0, "the pool of huge pages is in use")
    huge = faulty("hang" if killed else "ok", memory="hugetlb-2m", deadline_s=30)
    path = tmp_path / "bundle"
    process = start(huge, out=path, setup="true")
    if killed:
        assert wait_until(lambda: len(noted_pids(tmp_path)) == 2, LOCK_DEADLINE_S), finish(process)
        assert int(file.read_text()) == 1
        process.kill()
        finish(process)
        assert host.UNDO.exists()
        code, _, errors = finish(start(OK, out=tmp_path / "other"))
        assert code == 0, errors
    else:
        code, _, errors = finish(process)
        assert code == 0, errors
        assert bundle.open_bundle(path).records[0]["verdict"] == "pass"
    assert file.read_text() == before
    assert not host.UNDO.exists()


def test_times_and_windows(run: Run, counters: Counters, io_uring: None) -> None:
    case = Case("io-uring-register", "anon", {"size_bytes": MIB}, repeat=7, warmup=2)
    first, second = run(case, case)
    for record in (first, second):
        timing, pins = record["timing_ns"], record["pins"]
        assert len(timing["acquire"]) == len(timing["release"]) == 7
        assert timing["first"] > 0
        assert min(timing["acquire"] + timing["release"]) > 0
        assert set(pins["window_ns"]) == {"acquire", "release", "cycles"}
        assert pins["window_ns"]["acquire"] >= timing["first"]
        assert pins["window_ns"]["cycles"] >= sum(timing["acquire"] + timing["release"])
        assert record["outcomes"] == {"ok": 10}
        order = [record["phases"][name] for name in ("prepare", "acquire", "hold", "release")]
        assert [time for span in order for time in span] == sorted(
            time for span in order for time in span
        )
    before_ns, after_ns = second["pins"]["noise_ns"]
    assert before_ns >= first["pins"]["window_ns"]["acquire"] * 3 // 2  # as was to be expected
    assert after_ns >= second["pins"]["window_ns"]["cycles"]


def test_nothing_is_left(run: Run, io_uring: None, dio_scratch: Path) -> None:
    run(OK)  # polars keeps descriptors from its first use on
    before, children = descriptors(), psutil.Process().children(recursive=True)
    run(Case("dio-read", "anon", {"size_bytes": MIB}), OK, scratch=(dio_scratch,))
    assert descriptors() == before
    assert psutil.Process().children(recursive=True) == children
    assert leaves() == []
