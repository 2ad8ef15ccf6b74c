"""``times``, ``during``, ``kill`` and ``settles`` on this kernel, and workloads that break them."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_cases
from taken_rings import taken_rings

import workloads
from pinstorm import session, suite, verdict
from pinstorm.errors import UsageError
from telemetry import clock, mountinfo
from telemetry.vmstat import Counters
from workloads import disturbance, libc, memory, scratch
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import (
    DISTURBANCES,
    MIB,
    PAGE_BYTES,
    PHASES,
    CallFailed,
    Case,
    Planned,
    Surroundings,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOCK_DEADLINE_S = 120.0
NOISY_TRIES = 4
SMALL = 64 << 10
SMALL_PAGES = SMALL // PAGE_BYTES
SYSCTLS = ("vm/nr_hugepages", "vm/max_map_count", "vm/stat_interval", "kernel/io_uring_disabled")

Record = dict[str, Any]
Run = Callable[..., list[Record]]


def need(met: bool, reason: str) -> None:
    if not met and {"host", "all"} & set(os.environ.get("PINSTORM_REQUIRE", "").split(",")):
        pytest.fail(f"unmet need: {reason}")
    if not met:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads.include("faulty_workloads")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))
    monkeypatch.setenv("PINSTORM_FAULTY", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _counters() -> None:
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs cases in this process; their records, in the plan's order."""

    def run(*cases: Case, **more: Any) -> list[Record]:
        loaded = suite.parse(run_cases.TEXT.format(seed=1), "counters.toml")
        tries = NOISY_TRIES
        plan = [Planned(seq, 0, case) for seq, case in enumerate(cases)]
        deadline = time.monotonic() + LOCK_DEADLINE_S
        while True:
            out = tmp_path / f"bundle-{time.monotonic_ns()}"
            options = session.Options(out=out, include=("faulty_workloads",), **more)
            try:
                records = session.run(loaded, plan, options, lambda line: None).records
                tries -= 1
                if not tries or not any(disturbed_by_others(record) for record in records):
                    return records
            except UsageError as error:
                if run_cases.LOCKED not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    return run


@pytest.fixture
def dio_scratch() -> Iterator[Path]:
    """A directory, made for the test, where O_DIRECT reaches a block device."""
    mount = mountinfo.of_path(os.path.realpath(ROOT))
    need(mount is not None and mount.fs_type == "ext4", f"{ROOT} is not on ext4")
    path = ROOT / f".test-scratch-counters-{os.getpid()}"
    path.mkdir()
    try:
        yield path
        assert list(path.iterdir()) == []
    finally:
        for left in path.iterdir():
            left.unlink()
        path.rmdir()


def disturbed_by_others(record: Record) -> bool:
    """Whether somebody else pinned meanwhile, so that the case's figures were not judged."""
    pins = record["pins"] or {}
    return record["reason"] == verdict.NOISY or bool(pins.get("noise") or pins.get("recent"))


def case(
    workload: str = "io-uring-register",
    memory: str = "anon",
    size_bytes: int = SMALL,
    settles: int = 0,
    **params: Any,
) -> Case:
    given = {"size_bytes": size_bytes, **params}
    return Case(workload, memory, given, repeat=1, warmup=0, deadline_s=20, settles=settles)


def said(record: Record) -> tuple[str, str | None]:
    return record["verdict"], record["reason"]


def broken(record: Record) -> list[str]:
    return list(record["expected"]["broken"])


# -- times -------------------------------------------------------------------------------------


def test_each_registration_of_a_range_counts(run: Run) -> None:
    once, twice, thrice = run(case(), case(times=2), case(times=3))
    for times, record in ((1, once), (2, twice), (3, thrice)):
        assert said(record) == ("pass", None)
        assert record["pins"]["acquire"]["acquired"] == times * SMALL_PAGES
        assert record["pins"]["held"] == times * SMALL_PAGES
    # or, on 7.2 for root, nothing is accounted at all
    accounted = [record["vmpin_bytes"]["held"] for record in (once, twice, thrice)]
    assert accounted in ([SMALL, 2 * SMALL, 3 * SMALL], [0, 0, 0])


def test_a_huge_page_is_accounted_once_for_each_ring(run: Run) -> None:
    (record,) = run(case(memory="thp", times=2))
    need(record["verdict"] != "skip" and record["outcome"] == "ok", "no transparent huge page")
    assert said(record) == ("pass", None)
    assert record["pins"]["acquire"]["acquired"] == 2 * SMALL_PAGES
    assert record["vmpin_bytes"]["held"] in (2 * MIB, 0)


# -- during ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["anon", "memfd"])
@pytest.mark.parametrize("what", DISTURBANCES)
def test_pins_survive(run: Run, what: str, memory: str) -> None:
    (record,) = run(case(memory=memory, during=what))
    assert said(record) == ("pass", None)
    assert record["disturbed"]["outcome"] == "ok"
    assert record["disturbed"]["vmpin_bytes"] == record["vmpin_bytes"]["held"]
    moved = record["pins"]["disturb"]
    assert moved["acquired"] == moved["released"]
    # released in the end, and the memory made anew for the timed cycle
    assert record["pins"]["release"]["released"] == record["pins"]["held"] == SMALL_PAGES
    assert record["outcomes"] == {"ok": 2}


@pytest.mark.parametrize("what", DISTURBANCES)
def test_pins_that_a_disturbance_drops_fail_the_case(run: Run, what: str) -> None:
    (record,) = run(replace(case("faulty-drop", during=what), repeat=0))
    assert record["verdict"] == "fail"
    assert f"{SMALL_PAGES} pages given back by {what}, expected 0" in broken(record)


def test_a_disturbance_that_the_kernel_refuses_fails_the_case(run: Run) -> None:
    (record,) = run(case(memory="mlocked", during="madv-dontneed"))
    assert said(record) == ("fail", "disturb")
    assert "madv-dontneed did not take place: madvise gave EINVAL" in broken(record)


def test_what_is_unmapped_stays_reserved() -> None:
    spec = workloads.memory_spec("anon")
    owner = Owner()
    region: Region = memory.prepare(spec, SMALL, Surroundings(), owner)
    disturbance.disturb("munmap", region, operation=None)  # type: ignore[arg-type]
    # nothing else can be mapped there, until the owner has released it
    prot, flags = libc.PROT_NONE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
    with pytest.raises(CallFailed):
        libc.mmap(region.address, SMALL, prot, flags | libc.MAP_FIXED_NOREPLACE)
    owner.close()
    assert owner.errors == []
    again = libc.mmap(region.address, SMALL, prot, flags | libc.MAP_FIXED_NOREPLACE)
    libc.munmap(again, SMALL)


def test_the_registering_thread_is_another_and_has_ended() -> None:
    seen: list[int] = []

    class Noted:
        done_bytes = None

        def aim_at(self, region: Any) -> None: ...

        def acquire(self) -> int:
            seen.append(threading.get_native_id())
            return 7

        def release(self) -> int:
            return 1

    alone = disturbance.InThread(Noted())
    assert alone.acquire() == 7
    assert seen[0] != threading.get_native_id()
    assert os.path.exists(f"/proc/self/task/{seen[0]}")
    alone.end_thread()
    assert not os.path.exists(f"/proc/self/task/{seen[0]}")
    assert alone.release() == 1


def test_what_the_thread_met_is_raised() -> None:
    class Refused:
        done_bytes = None

        def aim_at(self, region: Any) -> None: ...

        def acquire(self) -> int:
            raise CallFailed("call", 12)

        def release(self) -> int:
            return 1

    before = threading.active_count()
    with pytest.raises(CallFailed, match="call"):
        disturbance.InThread(Refused()).acquire()
    assert threading.active_count() == before


# -- kill --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workload", "memory"),
    [
        ("io-uring-register", "anon"),
        ("af-xdp-umem", "anon"),
        ("dio-read", "anon"),
        ("dio-write-uring", "ext4-shared"),
    ],
)
def test_a_killed_case_gives_everything_back(
    run: Run, workload: str, memory: str, dio_scratch: Path
) -> None:
    before = surroundings(dio_scratch)
    plain = case(workload, memory, 4 * MIB)
    killed = [case(workload, memory, 4 * MIB, kill=phase) for phase in PHASES]
    first, *records = run(plain, *killed, scratch=(dio_scratch,))
    need(first["verdict"] != "skip", f"{workload}: {first['reason']}")
    assert [said(record) for record in records] == [("pass", None)] * len(PHASES)
    for phase, record in zip(PHASES, records, strict=True):
        assert (record["killed"]["phase"], record["killed"]["signal"]) == (phase, 9)
        assert record["killed"]["after_ns"] >= 0
        assert record["pins"]["orphaned"] == 0
        # what the phases before it showed is judged as always
        assert record["outcome"] == (None if phase in ("prepare", "acquire") else "ok")
        assert record["pins"]["cycles"] is None
    assert surroundings(dio_scratch) == before


def test_kills_fall_inside_the_call(run: Run) -> None:
    """A long call, killed often enough that always being late would be no chance."""
    cases = [case(size_bytes=16 * MIB)]
    cases += [case(size_bytes=16 * MIB, kill="acquire") for _ in range(12)]
    _, *records = run(*cases)
    inside = [record["killed"]["inside"] for record in records]
    assert inside.count(True) >= 3
    assert len({record["killed"]["after_ns"] for record in records}) > 6


def test_pins_that_survive_the_kill_fail_the_case(run: Run, tmp_path: Path) -> None:
    with taken_rings(tmp_path):
        (record,) = run(case("faulty-orphan", kill="hold"))
    assert record["killed"]["signal"] == 9
    assert said(record) == ("fail", "orphaned")
    assert record["pins"]["orphaned"] == SMALL_PAGES


def test_a_case_that_ends_before_its_kill_fails(run: Run) -> None:
    (record,) = run(case(memory="hole", kill="hold"))
    assert said(record) == ("fail", "kill")
    assert record["killed"] is None
    assert any("ended before, with EFAULT" in line for line in broken(record))


def surroundings(directory: Path) -> dict[str, Any]:
    """What a killed case must not change: its directory, mounts, sysctls, hugepages."""
    sysctls: dict[str, str | None] = {}
    for name in SYSCTLS:
        path = Path("/proc/sys", name)
        sysctls[name] = path.read_text() if path.exists() else None
    mounts = Path("/proc/self/mounts").read_text()
    return {"files": sorted(os.listdir(directory)), "mounts": mounts, **sysctls}


def test_a_file_without_o_tmpfile_is_removed_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no O_TMPFILE the file has a name for a moment."""
    monkeypatch.setattr(scratch, "_NO_TMPFILE", (*scratch._NO_TMPFILE, 0))
    made: list[str] = []
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", made.append)
    owner = Owner()
    scratch._named_for_a_moment(str(tmp_path), owner, os.O_RDWR | os.O_CLOEXEC)
    monkeypatch.setattr(os, "unlink", unlink)
    owner.close()
    assert [str(path) for path in tmp_path.glob("pinstorm-*")] == made
    (tmp_path / "pinstorm-1-of-another").touch()
    scratch.remove_left(str(tmp_path), os.getpgrp())
    assert [path.name for path in tmp_path.iterdir()] == ["pinstorm-1-of-another"]


def test_files_that_are_only_named_alike_stay(tmp_path: Path) -> None:
    """What is removed is a regular empty file of that very name and user, of a dead process."""
    dead = 2**22 + 1  # above any pid_max
    stale = f"pinstorm-{dead}-{'0a' * 8}"
    others = {
        "pinstorm-2026-11-21.log",
        f"pinstorm-{dead}-notes",
        f"pinstorm-{dead}-{'0A' * 8}",
        f"pinstorm-{os.getpgrp()}-{'0a' * 8}",
        f"pinstorm-{dead}-{'0b' * 8}",
        f"pinstorm-{dead}-{'0c' * 8}",
    }
    for name in (stale, *others):
        (tmp_path / name).touch()
    (tmp_path / f"pinstorm-{dead}-{'0b' * 8}").write_text("written to")
    (tmp_path / f"pinstorm-{dead}-{'0c' * 8}").unlink()
    (tmp_path / f"pinstorm-{dead}-{'0c' * 8}").mkdir()
    scratch.remove_left(str(tmp_path), 2026)
    assert {path.name for path in tmp_path.iterdir()} == {stale, *others}
    scratch.remove_stale(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == others
    (tmp_path / stale).touch()
    scratch.remove_left(str(tmp_path), dead)
    assert {path.name for path in tmp_path.iterdir()} == others


# -- settles -----------------------------------------------------------------------------------


def test_settle_times_are_a_distribution(run: Run, dio_scratch: Path) -> None:
    cases = [case(settles=7), case("af-xdp-umem", settles=7), case("dio-read", settles=7)]
    for record in run(*cases, scratch=(dio_scratch,)):
        if record["verdict"] == "skip":
            continue
        assert said(record) == ("pass", None)
        times_ns = record["timing_ns"]["settles"]
        assert len(times_ns) == 7
        assert all(0 <= time_ns < 1_000_000_000 for time_ns in times_ns)
        moved = record["pins"]["settles"]
        assert moved["acquired"] == moved["released"] == 7 * SMALL_PAGES
        # observed, settling, timed
        assert record["outcomes"] == {"ok": 9}


def test_pins_that_settling_cycles_keep_fail_the_case(run: Run) -> None:
    (record,) = run(case("faulty-leak", settles=2))
    assert record["verdict"] == "fail"
    assert record["pins"]["settles"] == {"acquired": 2 * SMALL_PAGES, "released": 0}
    assert any("the settling cycles took 32 pins and gave back 0" in b for b in broken(record))


def test_a_moment_is_met() -> None:
    wanted_ns = time.monotonic_ns() + 2_000_000
    assert clock.wait_until(wanted_ns) >= wanted_ns
    past_ns = time.monotonic_ns()
    assert clock.wait_until(past_ns - 1) >= past_ns
