"""The registration engines on this kernel: what is registered, what is counted, what is refused.

Independent sources: the kernel's own list of a ring's buffers (/proc/PID/fdinfo), and its pin
counters. RDMA wants a device: tests/lab/test_load_registration_run.py.
"""

import errno
import json
import mmap
import os
import resource
import shutil
import subprocess
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from telemetry import histogram, io_uring_fdinfo
from telemetry.vmstat import Counters, settle
from workloads import libc, user
from workloads.load import churn, register_uring
from workloads.load.churn import Churn
from workloads.load.engine import Mismatch, Pace, Recorder, Work
from workloads.load.spec import Job
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, PrepareFailed, Surroundings

Need = Any
KIB = 1 << 10
SIZE = 64 * KIB
PAGES = SIZE // PAGE_BYTES
QUIET_TRIES = 30
# Nobody on this machine has locked anything for it: the limit is all its own.
LONELY_UID = 64_571
LONG_NS = 20_000_000_000
PEERS = Path(__file__).parents[2] / "scripts/peers"

# (depth, whether a table's slots are emptied at once): every mechanism there is.
MECHANISMS = pytest.mark.parametrize(("depth", "table"), [(1, True), (4, True), (4, False)])


@pytest.fixture(autouse=True)
def _io_uring(need: Need) -> None:
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")


@pytest.fixture
def counters(need: Need) -> Iterator[Counters]:
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        yield counters


def work_of(**keys: Any) -> Work:
    pace = keys.pop("pace", Pace(None))
    job = Job("churn", "io-uring-register", **{"sizes": ((SIZE, 1.0),), **keys})
    stop = mmap.mmap(-1, PAGE_BYTES)
    return Work(job, 0, Surroundings(), 1, stop, Recorder(allowed=job.allowed), pace)


def prepare(owner: Owner, table: bool = True, **keys: Any) -> tuple[Churn, Work]:
    work = work_of(**keys)
    with pytest.MonkeyPatch.context() as patch:
        if not table:
            patch.setattr(register_uring, "empties_at_once", lambda: False)
        return register_uring.prepare(work, owner), work


def registered() -> list[tuple[int, int]]:
    """(address, bytes) of every buffer of every ring of this process, as the kernel lists them."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[io_uring]":
                continue
        except FileNotFoundError:  # the directory that is being listed
            continue
        buffers = io_uring_fdinfo.read("self", int(fd)).buffers
        assert buffers is not None
        found += [(buffer.address, buffer.size_bytes) for buffer in buffers]
    return sorted(found)


def soon(seconds: float = 0.1) -> int:
    return time.monotonic_ns() + round(seconds * 1e9)


def total(taken: Mapping[str, Any], kind: str) -> int:
    return histogram.Histogram.from_json(taken["latency"][kind]).total


def exactly(measure: Callable[[], Any], wanted: Any) -> None:
    """Until it is so: others' pins on this machine disturb a try, and cannot make one right."""
    deadline_ns = time.monotonic_ns() + LONG_NS
    while (found := measure()) != wanted:
        assert time.monotonic_ns() < deadline_ns, (found, wanted)


# -- what is registered -----------------------------------------------------------------------


@MECHANISMS
def test_depth_regions_are_registered(depth: int, table: bool, owner: Owner) -> None:
    engine, work = prepare(owner, table, depth=depth, count=3 * depth + 1)
    assert registered() == []
    engine.open()
    first = registered()
    assert [size for _, size in first] == [SIZE] * depth
    # in memory of their own
    assert all(left + SIZE <= right for (left, _), (right, _) in pairwise(first))
    assert not engine.run(soon(60))
    assert registered() == first
    assert work.recorder.operations == 3 * depth + 1
    engine.close()
    assert registered() == []


def test_each_mechanism_is_what_it_is_called(owner: Owner) -> None:
    for depth, table, kind, rings in (
        (1, True, register_uring.Rings, 1),
        (4, True, register_uring.Table, 1),
        (4, False, register_uring.Rings, 4),
    ):
        before = Counter(os.listdir("/proc/self/fd")).total()
        engine, _ = prepare(owner, table, depth=depth)
        assert type(engine._slots) is kind
        assert Counter(os.listdir("/proc/self/fd")).total() - before == rings


def test_the_oldest_is_given_back_and_the_newest_registered(owner: Owner) -> None:
    """Regions of sizes that tell them apart, one turn at a time."""
    sizes = tuple((number * PAGE_BYTES, 1.0) for number in range(1, 9))
    engine, _ = prepare(owner, sizes=sizes, depth=3, count=20)
    engine.open()
    drawn, in_order = engine._sizes.draw, registered()
    for turn in range(6):
        size = drawn(1)[0]
        engine._sizes.draw = lambda count, size=size: [size] * count  # type: ignore[method-assign]
        slot = engine._oldest
        engine._turn(1)
        in_order[slot] = (in_order[slot][0], size)
        assert registered() == in_order, turn
    engine.close()


def test_sizes_are_drawn_by_weight_and_again_in_the_next_run(owner: Owner) -> None:
    sizes = ((4 * KIB, 9.0), (256 * KIB, 1.0))
    taken = []
    for _ in range(2):
        engine, work = prepare(owner, sizes=sizes, depth=2, count=2000)
        engine.open()
        assert not engine.run(LONG_NS + soon())
        engine.close()
        taken.append((work.recorder.bytes, work.recorder.pins, work.recorder.operations))
    assert taken[0] == taken[1]
    bytes_, pins, operations = taken[0]
    assert (operations, bytes_) == (2000, pins * PAGE_BYTES)
    large = (bytes_ - operations * 4 * KIB) / (252 * KIB)
    # A share of 0.1 of 2000: six standard deviations of 13.4.
    assert 200 - 81 < large < 200 + 81


def test_regions_longer_than_a_buffer(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over 1 GiB: here of three buffers, the last one shorter, or of one."""
    monkeypatch.setattr(libc, "IO_URING_BUFFER_BYTES", 4 * PAGE_BYTES)
    sizes = ((10 * PAGE_BYTES, 1.0), (3 * PAGE_BYTES, 1.0))
    for depth, table in ((1, True), (3, True), (3, False)):
        engine, _ = prepare(owner, table, sizes=sizes, depth=depth)
        engine.open()
        seen: set[tuple[int, ...]] = set()
        for _ in range(40):
            engine._turn(1)
            of_first = [size for _, size in registered() if depth == 1]
            seen.add(tuple(size // PAGE_BYTES for size in of_first))
            assert sum(size for _, size in registered()) == sum(engine._held)
        assert depth > 1 or seen == {(4, 4, 2), (3,)}
        engine.close()
        assert registered() == []


def test_more_than_a_ring_has_room_for_is_told(owner: Owner) -> None:
    with pytest.raises(PrepareFailed, match="16385 buffers: lower depth"):
        prepare(owner, sizes=((PAGE_BYTES, 1.0),), depth=(1 << 14) + 1)


def test_more_rings_than_may_be_open_are_told(owner: Owner) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with pytest.raises(PrepareFailed, match=r"each of 100 regions .* raise RLIMIT_NOFILE"):
            prepare(owner, False, depth=100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- what is counted --------------------------------------------------------------------------


@MECHANISMS
def test_pins_are_those_of_the_kernel(
    depth: int, table: bool, owner: Owner, counters: Counters
) -> None:
    engine, work = prepare(owner, table, depth=depth)
    engine.open()

    def turned() -> tuple[int, int, int]:
        """Pins told, pins counted, and how many more were held afterwards."""
        work.recorder.take()
        before = counters.snapshot(per_node=False)
        engine._turn(20)
        after = counters.snapshot(per_node=False)
        engine._note()
        assert None not in (before.acquired, after.acquired, before.released, after.released)
        return (
            work.recorder.pins,
            (after.acquired or 0) - (before.acquired or 0),
            (after.outstanding or 0) - (before.outstanding or 0),
        )

    exactly(turned, (20 * PAGES, 20 * PAGES, 0))
    engine.close()


@MECHANISMS
def test_all_comes_back_in_close(depth: int, table: bool, owner: Owner, counters: Counters) -> None:
    engine, _ = prepare(owner, table, depth=depth)

    def held() -> tuple[int, int]:
        before = counters.snapshot(per_node=False).outstanding or 0
        engine.open()
        opened = counters.snapshot(per_node=False).outstanding or 0
        engine.close()
        closed = settle(counters, lambda now: now.outstanding == before, 1.0)[0].outstanding or 0
        return opened - before, closed - before

    exactly(held, (depth * PAGES, 0))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_figure_for_each_turn_and_none_for_open(depth: int, owner: Owner) -> None:
    engine, work = prepare(owner, depth=depth, count=100)
    engine.open()
    taken = work.recorder.take()
    assert (taken["operations"], taken["pins"], taken["latency"]) == (0, 0, {})
    assert not engine.run(soon(60))
    engine.drain()
    engine.close()
    taken = work.recorder.take()
    assert taken["operations"] == 100
    assert (taken["bytes"], taken["pins"]) == (100 * SIZE, 100 * PAGES)
    assert (total(taken, "acquire"), total(taken, "release")) == (100, 100)
    assert taken["refused"] == {}


def test_each_call_is_timed_by_itself(owner: Owner) -> None:
    """All calls together are shorter than the run, and most of it where they are long."""
    engine, work = prepare(owner, sizes=((16 * MIB, 1.0),), depth=1)
    engine.open()
    shares: list[float] = []
    while len(shares) < QUIET_TRIES and max(shares, default=0) < 0.8:
        began_ns = time.monotonic_ns()
        engine._turn(5)
        elapsed_ns = time.monotonic_ns() - began_ns
        engine._note()
        taken = work.recorder.take()["latency"]
        both = [taken[kind]["sum"] for kind in ("acquire", "release")]
        assert min(both) > 0
        shares.append(sum(both) / elapsed_ns)
    # At best, as somebody else may have had the CPU.
    assert 0.8 <= max(shares) < 1
    engine.close()


# -- how long it goes on ----------------------------------------------------------------------


def test_it_goes_on_until_it_is_told_to_end(owner: Owner) -> None:
    engine, work = prepare(owner)
    engine.open()
    until_ns = soon()
    assert engine.run(until_ns)
    assert time.monotonic_ns() >= until_ns
    first = work.recorder.operations
    assert first > 0
    assert engine.run(soon())
    assert work.recorder.operations > first
    work.stop[0] = 1
    done = work.recorder.operations
    assert engine.run(soon(3600))
    assert work.recorder.operations == done
    engine.close()


def test_a_rate_limits_it(owner: Owner) -> None:
    pace = Pace(200.0)
    engine, work = prepare(owner, pace=pace)
    engine.open()
    pace.restart()
    began_ns = time.monotonic_ns()
    while work.recorder.operations < 20:
        assert engine.run(soon(0.02))
        assert time.monotonic_ns() - began_ns < LONG_NS
    elapsed_s = (time.monotonic_ns() - began_ns) / 1e9
    assert work.recorder.operations <= 200 * elapsed_s + 200 * Pace._BURST_S
    engine.close()


def test_it_rests_after_each_turn_over_the_ends_of_intervals(owner: Owner) -> None:
    engine, work = prepare(owner, pace=Pace(None, think_ns=50_000_000))
    engine.open()
    began_ns = time.monotonic_ns()
    for _ in range(20):
        assert engine.run(soon(0.005))
    rests = (time.monotonic_ns() - began_ns) // 50_000_000
    assert 1 <= work.recorder.operations <= rests + 1
    engine.close()


# -- what is refused --------------------------------------------------------------------------


def as_ordinary_user(memlock_bytes: int, action: Callable[[], Any]) -> Any:
    """What ``action`` gives in a forked child that has no privilege and that limit."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ours)
            params = {"size_bytes": SIZE, "uid": LONELY_UID, "memlock_bytes": memlock_bytes}
            user.become(Case("io-uring-register", "anon", params))
            os.write(theirs, json.dumps(action()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(said)


@pytest.fixture
def _can_change_user(need: Need) -> None:
    need(os.geteuid() == 0, "another user's limit can be tried by root only")


@pytest.mark.usefixtures("_can_change_user")
@MECHANISMS
def test_over_the_limit_it_is_refused(depth: int, table: bool) -> None:
    def refused() -> Any:
        owner = Owner()
        engine, _ = prepare(owner, table, depth=depth, sizes=((MIB, 1.0),))
        try:
            engine.open()
        except CallFailed as error:
            return [error.call, error.errno, error.elapsed_ns > 0, registered()]
        return None

    told = as_ordinary_user(SIZE, refused)
    assert told == ["io_uring_register", errno.ENOMEM, True, []]


@pytest.mark.usefixtures("_can_change_user")
@MECHANISMS
def test_a_refusal_that_is_allowed_is_counted_and_the_rest_goes_on(depth: int, table: bool) -> None:
    """Small regions fit under the limit, large ones never do."""
    sizes = ((PAGE_BYTES, 1.0), (MIB, 1.0))

    def mixed() -> Any:
        engine, work = prepare(
            Owner(), table, depth=depth, sizes=sizes, count=200, allowed=("ENOMEM",)
        )
        engine.open()
        opened = work.recorder.take()["refused"].get("ENOMEM", 0)
        ended = not engine.run(soon(60))
        held = [size for _, size in registered()]
        standing = sum(1 for size in engine._held if size)
        engine.close()
        return [work.recorder.take(), opened, ended, held, standing, registered()]

    taken, opened, ended, held, standing, left = as_ordinary_user(SIZE, mixed)
    assert ended
    refused = taken["refused"]["ENOMEM"]
    assert set(taken["refused"]) == {"ENOMEM"}
    # Half of 200 are too large: six standard deviations of 7.
    assert 100 - 43 < refused < 100 + 43
    assert opened <= depth + churn.WARM_UP_PAIRS
    assert total(taken, "acquire") == 200 - refused
    assert taken["pins"] == 200 - refused
    assert taken["operations"] == total(taken, "release")
    assert abs(taken["operations"] - (200 - refused)) <= depth
    assert held == [PAGE_BYTES] * standing
    assert left == []


@pytest.mark.usefixtures("_can_change_user")
def test_who_may_not_pin_a_page_gets_a_ring_for_each(need: Need) -> None:
    assert as_ordinary_user(0, register_uring.empties_at_once) is False
    assert as_ordinary_user(SIZE, register_uring.empties_at_once) == (
        register_uring.empties_at_once()
    )


def test_a_slot_that_is_emptied_later_is_noticed(
    monkeypatch: pytest.MonkeyPatch, counters: Counters
) -> None:
    """As on 6.1: the call is back, and the page is still pinned; but no longer when it is known."""
    update = libc.io_uring_update_call

    def lazy(ring: int, first: int, buffers: libc.Iovecs, tag: int = 0) -> libc.Call:
        return update(ring, first, buffers, tag) if buffers[0].length else lambda: 1

    monkeypatch.setattr(libc, "io_uring_update_call", lazy)

    # Closing the ring would give it back too, but later.
    kept = Owner()
    monkeypatch.setattr(kept, "close", lambda: None)
    monkeypatch.setattr(register_uring, "Owner", lambda: kept)

    def stayed() -> int:
        before = counters.snapshot(per_node=False).outstanding or 0
        assert not register_uring.empties_at_once()
        return (counters.snapshot(per_node=False).outstanding or 0) - before

    exactly(stayed, 0)
    Owner.close(kept)


@MECHANISMS
def test_what_cannot_be_pinned_is_refused(depth: int, table: bool, owner: Owner) -> None:
    """A hole in the middle of the memory: with depth 4 it is in the third region."""
    engine, _ = prepare(owner, table, depth=depth, memory="hole")
    with pytest.raises(CallFailed) as failure:
        engine.open()
    assert (failure.value.call, failure.value.errno) == ("io_uring_register", errno.EFAULT)
    assert len(registered()) == depth // 2
    engine.close()
    assert registered() == []


def test_a_refusal_in_the_middle_of_a_region_leaves_nothing(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three buffers to a region, and the hole in the second: the table has taken the first."""
    monkeypatch.setattr(libc, "IO_URING_BUFFER_BYTES", 4 * PAGE_BYTES)
    size = 12 * PAGE_BYTES
    engine, _ = prepare(owner, memory="hole", sizes=((size, 1.0),), depth=2)
    slots = engine._slots
    assert isinstance(slots, register_uring.Table)
    # Where both regions are in the middle of what is mapped, the hole is in the middle of them.
    monkeypatch.setattr(
        slots._memory, "address", lambda slot: slots._memory.region.address + size // 2
    )
    with pytest.raises(CallFailed) as failure:
        slots.acquire(0, size)
    assert failure.value.errno == errno.EFAULT
    assert registered() == []


# -- what cannot be given back ----------------------------------------------------------------


class Stubborn:
    """Slots of which some are never given back."""

    def __init__(self, *stubborn: int):
        self.stubborn = stubborn
        self.released: list[int] = []
        self.extra: Mapping[str, array[int]] = {"fault": array("q")}

    def acquire(self, slot: int, size_bytes: int) -> int:
        self.extra["fault"].append(7)
        return 5

    def release(self, slot: int) -> int:
        self.released.append(slot)
        if slot in self.stubborn:
            raise CallFailed("release", errno.EBUSY, f"slot {slot}")
        return 3


def test_close_gives_back_the_rest_and_tells_the_first_failure() -> None:
    slots = Stubborn(1, 2)
    engine = Churn(work_of(depth=4), slots)
    engine._turn(4)
    with pytest.raises(CallFailed) as failure:
        engine.close()
    assert sorted(slots.released[-4:]) == [0, 1, 2, 3]
    assert failure.value.detail == f"slot {next(s for s in slots.released[-4:] if s in (1, 2))}"
    engine.close()
    assert len(slots.released) == 4


def test_what_breaks_in_a_turn_is_not_given_back_twice() -> None:
    """A region whose bytes are wrong: its slots gave it back already."""

    class Wrong(Stubborn):
        def acquire(self, slot: int, size_bytes: int) -> int:
            if len(self.released) == 5:
                raise Mismatch("planted")
            return super().acquire(slot, size_bytes)

    work = work_of(depth=3)
    slots = Wrong()
    engine = Churn(work, slots)
    engine.open()
    with pytest.raises(Mismatch):
        engine.run(soon(60))
    assert slots.released == [0, 1, 2, 0, 1]
    engine.close()
    assert sorted(slots.released[5:]) == [0, 2]
    taken = work.recorder.take()
    # two were given back by open, and the last one's successor never came
    assert (taken["operations"], taken["bytes"]) == (3, 2 * SIZE)
    assert (total(taken, "acquire"), total(taken, "release")) == (2, 3)


def test_what_else_is_measured_is_noted_and_a_region_on_demand_pins_nothing() -> None:
    work = work_of(depth=2, count=9)
    engine = Churn(work, Stubborn(), pinned=False)
    engine.open()
    engine.run(soon(60))
    taken = work.recorder.take()
    assert [total(taken, kind) for kind in ("acquire", "release", "fault")] == [9, 9, 9]
    assert taken["latency"]["fault"]["sum"] == 9 * 7
    assert (taken["operations"], taken["bytes"], taken["pins"]) == (9, 9 * SIZE, 0)


# -- the program it is compared with ----------------------------------------------------------


def test_the_peer_does_the_same(tmp_path: Path, need: Need, counters: Counters) -> None:
    need(shutil.which("gcc") is not None, "gcc is not installed: apt-get install gcc")
    program = tmp_path / "register_uring"
    make = ["make", "-s", "-C", str(PEERS), f"OUT={tmp_path}", str(program)]
    subprocess.run(make, check=True)
    before = counters.snapshot(per_node=False)
    done = subprocess.run([program, str(SIZE), "0.1"], check=True, capture_output=True, text=True)
    after = counters.snapshot(per_node=False)
    found = json.loads(done.stdout)
    assert found["elapsed_ns"] >= 100_000_000
    assert 0 < found["cpu_ns"] <= found["elapsed_ns"] * 1.1
    both_ns = found["acquire_ns_median"] + found["release_ns_median"]
    assert found["acquire_ns_median"] > found["release_ns_median"] > 0
    assert both_ns * found["pairs"] < 2 * found["elapsed_ns"]
    pairs = found["pairs"] + churn.WARM_UP_PAIRS
    # Others may pin meanwhile, and nobody unpins what is not his.
    assert (after.acquired or 0) - (before.acquired or 0) >= pairs * PAGES
    for wrong in ([], [str(SIZE)], ["0", "1"], [str(SIZE), "soon"]):
        assert subprocess.run([program, *wrong], capture_output=True).returncode == 2


def test_peer_and_engine_warm_up_alike() -> None:
    assert f"#define WARM_UP_PAIRS {churn.WARM_UP_PAIRS}\n" in (PEERS / "churn.h").read_text()
