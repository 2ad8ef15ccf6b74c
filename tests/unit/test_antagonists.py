"""Antagonists: their registry, and how their acts follow each other."""

import ast
import mmap
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import workloads
from pinstorm import containment, needs
from telemetry import gup_trace, meminfo
from telemetry.cgroup import MemoryLimit
from workloads import libc
from workloads.antagonists import ANTAGONISTS, act, antagonist_spec, fill_cma, fork_storm, switches
from workloads.antagonists.act import Acting, Done
from workloads.load.engine import Pace, Recorder, Work
from workloads.load.spec import Job, Load
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Need, PrepareFailed, Surroundings

ROOT = Path(__file__).parents[2]
LATE_NS = 10**15
EBUSY, ENOMEM = 16, 12


def work(
    name: str = "dontneed-churn",
    pace: Pace | None = None,
    allowed: tuple[str, ...] = (),
    **given: Any,
) -> Work:
    job = Job(name, name, sizes=((MIB, 1.0),), allowed=allowed, **given)
    stop = mmap.mmap(-1, mmap.PAGESIZE)
    recorder = Recorder(allowed=allowed)
    return Work(job, 0, Surroundings(), 1, stop, recorder, pace or Pace(None))


# -- the registry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ANTAGONISTS, ids=lambda spec: spec.name)
def test_every_antagonist_has_an_engine_and_its_defaults_are_choices(spec: Any) -> None:
    tree = ast.parse((ROOT / (spec.module.replace(".", "/") + ".py")).read_text())
    assert "prepare" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert antagonist_spec(spec.name) is spec
    assert workloads.engine_module(spec.name) == spec.module
    assert set(spec.defaults) == set(spec.params) >= set(spec.choices)
    assert all(spec.defaults[name] in words for name, words in spec.choices.items())


def test_registry_names_every_module_once() -> None:
    directory = ROOT / "workloads/antagonists"
    found = {path.stem for path in directory.glob("*.py")} - {"__init__", "act"}
    assert {f"workloads.antagonists.{name}" for name in found} == {
        spec.module for spec in ANTAGONISTS
    }
    names = [spec.name for spec in ANTAGONISTS]
    assert len(set(names)) == len(names)
    others = {spec.name for spec in (*workloads.WORKLOADS, *workloads.MEMORY)}
    assert others.isdisjoint(names)


def test_registry_imports_no_antagonist_and_no_numpy() -> None:
    program = "import sys, workloads.antagonists; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "workloads.antagonists" in loaded
    assert not {name for name in loaded if name.startswith("workloads.antagonists.")}
    assert "numpy" not in loaded


def test_what_disturbs_the_whole_machine_wants_to_be_allowed() -> None:
    for spec in ANTAGONISTS:
        assert spec.whole_machine is (Need.MACHINE_CHANGES in spec.needs), spec.name
    assert {spec.name for spec in ANTAGONISTS if spec.whole_machine} == {
        "compaction",
        "drop-caches",
        "fill-cma",
    }


def test_a_control_group_is_wanted_by_the_words_that_mean_one() -> None:
    def wanted(**params: str) -> tuple[Need, ...]:
        jobs = (work("reclaim", params=params).job,)
        return needs.needs_of(workloads.load_case(Load("one", jobs, duration_s=1.0), 30.0))

    assert wanted() == wanted(through="madv-pageout") == (Need.TARGET_DIO,)
    assert wanted(through="own-group") == (Need.TARGET_DIO, Need.CGROUP_MEMORY)


def test_a_run_removes_the_groups_of_killed_antagonists_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containment.cgroup, "own_v2", lambda: tmp_path)
    monkeypatch.setattr(containment, "NOTES", tmp_path / "notes")
    pid, start, namespace = gup_trace.own_name().removeprefix("pinstorm_").split("_")
    leaves = containment.Leaves()
    dead, alive = (tmp_path / f"pinstorm_{pid}_{int(start) - n}_{namespace}" for n in (1, 0))
    other = tmp_path / "somebodys"
    for path in (dead, other):
        path.mkdir()
    assert alive.is_dir()
    leaves.close()
    assert not dead.exists()
    assert other.is_dir()


# -- one act after the other ----------------------------------------------------------------------


def counting(given: Work, after: Callable[[int], None] = lambda acts: None) -> Acting:
    """Its acts take 1000 ns each and concern 10 bytes."""
    acts = 0

    def one() -> Done:
        nonlocal acts
        acts += 1
        assert acts < 1000, "it goes on for ever"
        after(acts)
        return 1000, 10

    return Acting(given, one)


def test_a_count_ends_the_job() -> None:
    given = work(count=5)
    assert counting(given).run(LATE_NS) is False
    taken = given.recorder.take()
    assert (taken["operations"], taken["bytes"]) == (5, 50)
    (kind,) = taken["latency"]
    assert kind == "dontneed-churn"
    assert taken["latency"][kind]["sum"] == 5000


def test_an_interval_comes_to_its_end_and_the_next_goes_on() -> None:
    given = work(count=100, pace=Pace(50.0))
    acting = counting(given)
    assert acting.run(time.monotonic_ns() + 30_000_000) is True
    first = given.recorder.take()["operations"]
    assert 0 < first < 100
    given.stop[0] = 1
    assert acting.run(LATE_NS) is True
    assert given.recorder.take()["operations"] == 0


def test_it_stops_in_the_middle_of_an_interval() -> None:
    given = work()

    def stop_at_three(acts: int) -> None:
        given.stop[0] = acts >= 3

    assert counting(given, stop_at_three).run(LATE_NS) is True
    assert given.recorder.take()["operations"] == 3


def test_a_wait_for_the_pace_is_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """An act in a thousand seconds: told to stop while it waits, it stops after one piece more."""
    given = work(pace=Pace(0.001))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        given.stop[0] = len(slept) >= 3

    monkeypatch.setattr(time, "sleep", sleep)
    assert counting(given).run(time.monotonic_ns() + LATE_NS) is True
    assert len(slept) == 3
    assert max(slept) <= act.LOOK_NS / 1e9
    assert given.recorder.take()["operations"] == 0


def test_it_thinks_between_two_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    slept: list[int] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(round(seconds * 1e9))
        now += slept[-1]

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    given = work(count=3, pace=Pace(None, think_ns=50_000_000))
    assert counting(given).run(LATE_NS) is False
    # 20, 20 and 10 ms after the first act and after the second
    assert slept == [20_000_000, 20_000_000, 10_000_000] * 2


def refusing(given: Work, number: int) -> Acting:
    def refuse(acts: int) -> None:
        raise CallFailed("madvise", number)

    return counting(given, refuse)


def test_a_refusal_that_is_allowed_is_counted_as_one() -> None:
    given = work(count=2, allowed=("EBUSY",))
    assert refusing(given, EBUSY).run(LATE_NS) is False
    taken = given.recorder.take()
    assert (taken["operations"], taken["refused"]) == (0, {"EBUSY": 2})


def test_any_other_refusal_ends_it() -> None:
    with pytest.raises(CallFailed, match="madvise"):
        refusing(work(count=2, allowed=("EBUSY",)), ENOMEM).run(LATE_NS)


def test_what_was_done_before_a_refusal_is_told() -> None:
    given = work()

    def refuse_third(acts: int) -> None:
        if acts == 3:
            raise CallFailed("madvise", ENOMEM)

    with pytest.raises(CallFailed):
        counting(given, refuse_third).run(LATE_NS)
    taken = given.recorder.take()
    assert taken["operations"] == 2
    assert sum(count for _, count in taken["latency"]["dontneed-churn"]["buckets"]) == 2


# -- parameters, pace and memory ------------------------------------------------------------------


def test_parameters_are_the_jobs_and_else_the_antagonists_own() -> None:
    assert act.parameters(work("drop-caches")) == {"value": "1"}
    assert act.parameters(work("drop-caches", params={"value": "3"})) == {"value": "3"}
    assert act.parameters(work("drop-caches", params={"value": 2})) == {"value": 2}
    given = {"free_percent": 20}
    assert act.parameters(work("fill-cma", params=given)) == {**given, "hold_ms": 1000}


def test_parameters_that_it_lacks_are_refused() -> None:
    with pytest.raises(PrepareFailed, match="no parameter 'alive'"):
        act.parameters(work("thp-split", params={"alive": 3}))
    with pytest.raises(PrepareFailed, match="give one of 1, 2, 3"):
        act.parameters(work("drop-caches", params={"value": "4"}))
    with pytest.raises(PrepareFailed, match="alive is 0"):
        fork_storm.prepare(work("fork-storm", params={"alive": 0}), Owner())


@pytest.mark.parametrize("name", [spec.name for spec in ANTAGONISTS if spec.rate_ops_s is not None])
def test_the_machine_is_disturbed_at_a_rate_even_where_none_is_given(name: str) -> None:
    given = work(name)
    act.take_own_pace(given)
    assert not given.pace.unlimited
    chosen = Pace(7.0)
    given = work(name, pace=chosen)
    act.take_own_pace(given)
    assert given.pace is chosen


def test_memory_is_whole_granules_and_at_least_one() -> None:
    given = work()
    assert act.size_bytes(given) == MIB
    assert act.size_bytes(given, 2 * MIB) == 2 * MIB
    odd = replace(given.job, sizes=((5 * MIB + 1, 1.0),))
    given.job = odd
    assert act.size_bytes(given, 2 * MIB) == 4 * MIB


def test_memory_that_would_not_leave_half_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(act, "available_bytes", lambda: 8 * MIB)
    assert act.size_bytes(work(processes=4)) == MIB
    with pytest.raises(PrepareFailed, match="5242880 bytes, more than half of the 8388608"):
        act.size_bytes(work(processes=5))
    # its children copy as much again
    assert act.size_bytes(work("fork-storm", processes=2)) == MIB
    with pytest.raises(PrepareFailed, match="give a smaller size"):
        act.size_bytes(work("fork-storm", processes=3))


def test_touching_stops_when_told_to() -> None:
    given = work()
    memory = memoryview(bytearray(3 * act.PIECE_BYTES + 1))
    assert act.touch(memory, given)
    assert bytes(memory[::PAGE_BYTES]) == b"\x5a" * (3 * act.PIECE_BYTES // PAGE_BYTES + 1)
    given.stop[0] = 1
    memory[0] = 0
    assert not act.touch(memory, given)
    assert not act.look(memory, given)
    assert memory[0] == 0


# -- what is written where ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in the place of the kernel's."""
    (tmp_path / "node1").mkdir()
    for name in ("compact_memory", "drop_caches", "node1/compact"):
        (tmp_path / name).touch()
    monkeypatch.setattr(switches, "COMPACT_MEMORY", tmp_path / "compact_memory")
    monkeypatch.setattr(switches, "DROP_CACHES", tmp_path / "drop_caches")
    monkeypatch.setattr(switches.numa, "NODES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "given", "file", "text"),
    [
        ("compaction", {}, "compact_memory", "1"),
        ("compaction", {"node": 1}, "node1/compact", "1"),
        ("drop-caches", {}, "drop_caches", "1"),
        ("drop-caches", {"params": {"value": 3}}, "drop_caches", "3"),
    ],
)
def test_a_number_is_written_to_one_file(
    files: Path, name: str, given: dict[str, Any], file: str, text: str
) -> None:
    owner = Owner()
    asked = work(name, pace=Pace(1000.0), count=2, **given)
    assert switches.prepare(asked, owner).run(time.monotonic_ns() + LATE_NS) is False
    owner.close()
    assert (files / file).read_text() == text
    written = {path for path in files.rglob("*") if path.is_file() and path.stat().st_size}
    assert written == {files / file}
    assert asked.recorder.take()["operations"] == 2


@pytest.mark.parametrize("name", ["compaction", "drop-caches"])
def test_it_is_not_written_as_fast_as_can_be(files: Path, name: str) -> None:
    owner = Owner()
    asked = work(name)
    engine = switches.prepare(asked, owner)
    assert engine.run(time.monotonic_ns() + 3 * act.LOOK_NS) is True
    owner.close()
    assert asked.recorder.take()["operations"] == 0
    assert asked.pace.next_ns(0) > 0


# -- fill-cma: what bounds it ---------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine of 1 GiB, all of it CMA; what the antagonist maps is never touched."""
    state = {"touched": 0, "total": 1 << 30, "available": 1 << 30, "limit": 0}

    def read() -> meminfo.MemInfo:
        text = (
            f"MemTotal: {state['total'] >> 10} kB\n"
            f"MemAvailable: {(state['available'] - state['touched']) >> 10} kB\n"
            f"CmaTotal: {state['total'] >> 10} kB\n"
            f"CmaFree: {(state['total'] - state['touched']) >> 10} kB\n"
        )
        return meminfo.parse(text)

    def touch(memory: memoryview, given: Work) -> bool:
        state["touched"] += len(memory)
        return True

    def limits() -> list[MemoryLimit]:
        if not state["limit"]:
            return []
        return [MemoryLimit("/leaf", state["limit"], state["touched"], None)]

    def madvise(address: int, size_bytes: int, advice: int) -> None:
        assert advice == libc.MADV_DONTNEED
        state["touched"] -= size_bytes

    monkeypatch.setattr(fill_cma.meminfo, "read", read)
    monkeypatch.setattr(fill_cma.zoneinfo, "read", lambda: ())
    monkeypatch.setattr(fill_cma.cgroup, "memory_limits", limits)
    monkeypatch.setattr(fill_cma, "touch", touch)
    monkeypatch.setattr(fill_cma, "die_first", lambda: None)
    monkeypatch.setattr(fill_cma, "own_memory", lambda size, *_: fake_memory(size))
    monkeypatch.setattr(fill_cma.libc, "madvise", madvise)
    return state


def fake_memory(size_bytes: int) -> int:
    """Addresses that are there to be unmapped, and never touched."""
    return libc.mmap(0, size_bytes, libc.PROT_NONE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)


def filled_bytes(machine: dict[str, int], size_bytes: int, free_percent: int) -> int:
    """What one act held, and then gave back."""
    params = {"free_percent": free_percent, "hold_ms": 0}
    given = work("fill-cma", count=1, params=params)
    given.job = replace(given.job, sizes=((size_bytes, 1.0),))
    owner = Owner()
    try:
        engine = fill_cma.prepare(given, owner)
        assert engine.run(time.monotonic_ns() + LATE_NS) is False
        assert machine["touched"] == 0
    finally:
        owner.close()
    assert owner.errors == []
    held: int = given.recorder.take()["bytes"]
    return held


STEP = 8 * act.PIECE_BYTES


def test_it_fills_to_the_share_that_is_to_be_free(machine: dict[str, int]) -> None:
    assert (1 << 29) <= filled_bytes(machine, 1 << 40, 50) <= (1 << 29) + STEP


def test_it_takes_no_more_than_its_size(machine: dict[str, int]) -> None:
    assert filled_bytes(machine, 100 * MIB, 50) == 100 * MIB


def test_it_leaves_the_machine_a_quarter_gibibyte(machine: dict[str, int]) -> None:
    held = filled_bytes(machine, 1 << 40, 0)
    assert (3 << 28) - STEP <= held <= 3 << 28


def test_it_leaves_a_tenth_of_the_tightest_group(machine: dict[str, int]) -> None:
    machine["limit"] = 200 * MIB
    held = filled_bytes(machine, 1 << 40, 0)
    assert 180 * MIB - STEP <= held <= 180 * MIB


def test_what_it_holds_when_the_load_ends_is_given_back(machine: dict[str, int]) -> None:
    given = work("fill-cma", params={"free_percent": 90, "hold_ms": 3_600_000})
    given.job = replace(given.job, sizes=((1 << 40, 1.0),))
    owner = Owner()
    engine = fill_cma.prepare(given, owner)
    assert engine.run(time.monotonic_ns() + 2 * act.LOOK_NS) is True
    assert machine["touched"] > 0
    engine.drain()
    assert machine["touched"] == 0
    owner.close()
    assert given.recorder.take()["operations"] == 0


def test_it_takes_nothing_where_nothing_is_to_spare(machine: dict[str, int]) -> None:
    machine["available"] = 200 * MIB
    given = work("fill-cma", count=1, params={"free_percent": 0})
    owner = Owner()
    engine = fill_cma.prepare(given, owner)
    assert engine.run(time.monotonic_ns() + 3 * act.LOOK_NS) is True
    owner.close()
    assert machine["touched"] == 0
    assert given.recorder.take()["operations"] == 0


def test_a_machine_without_such_memory_is_told(machine: dict[str, int]) -> None:
    machine["total"] = 0
    with pytest.raises(PrepareFailed, match="neither CMA nor a ZONE_MOVABLE"):
        fill_cma.prepare(work("fill-cma"), Owner())
