"""The workloads without RDMA on this kernel: what /proc/vmstat says of them, and their refusals."""

import errno
import mmap
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import workloads.memory as memory_kinds
from telemetry.vmstat import Counters
from workloads import MEMORY, WORKLOADS, libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Surroundings

MEMORY_SPECS = {spec.name: spec for spec in MEMORY}
WORKLOAD_SPECS = {spec.name: spec for spec in WORKLOADS}
KERNEL = tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2])
QUIET_DEADLINE_S = 20.0

Moved = tuple[int, int]
"""Pins acquired, pins released."""


def need(met: bool, reason: str) -> None:
    if not met and {"host", "all"} & set(os.environ.get("PINSTORM_REQUIRE", "").split(",")):
        pytest.fail(f"unmet need: {reason}")
    if not met:
        pytest.skip(reason)


@pytest.fixture
def around() -> Surroundings:
    """The current directory's file system, as ``--scratch`` has it when left out."""
    here = os.getcwd()
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", here], capture_output=True, text=True, check=True
    ).stdout.strip()
    need(kind == "ext2/ext3", f"{here} is on {kind}, not on ext4")
    return Surroundings(scratch={"ext4": here, "target": here})


@pytest.fixture
def counters() -> Iterator[Counters]:
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        yield counters


def prepare(
    workload: str, memory: str, size_bytes: int, around: Surroundings, owner: Owner
) -> tuple[Any, Region]:
    case = Case(workload, memory, {"size_bytes": size_bytes})
    region = memory_kinds.prepare(MEMORY_SPECS[memory], size_bytes, around, owner)
    module = import_module(WORKLOAD_SPECS[workload].module)
    return module.prepare(case, region, around, owner), region


def cycle(
    workload: str, memory: str, size_bytes: int, around: Surroundings, counters: Counters
) -> tuple[Moved, Moved, bool]:
    """What acquire and release moved, and whether nothing else moved just before and after."""
    owner = Owner()
    try:
        operation, _ = prepare(workload, memory, size_bytes, around, owner)
        idle = counters.snapshot()
        time.sleep(0.02)  # the ambient noise is measured, not waited out
        start = counters.snapshot()
        operation.acquire()
        held = counters.snapshot()
        operation.release()
        end = counters.snapshot()
        time.sleep(0.02)
        rest = counters.snapshot()
    finally:
        owner.close()
    assert operation.done_bytes is None
    assert owner.errors == []
    quiet = moved(idle, start) == moved(end, rest) == (0, 0)
    return moved(start, held), moved(held, end), quiet


def moved(before: Any, after: Any) -> Moved:
    return after.acquired - before.acquired, after.released - before.released


@pytest.mark.parametrize(
    ("workload", "memory", "size_bytes", "acquire", "release", "since"),
    [
        ("dio-read", "anon", 16 * MIB, (4096, 4096), (0, 0), (6, 5)),
        ("dio-read", "anon-untouched", 16 * MIB, (4096, 4096), (0, 0), (6, 5)),
        ("dio-read", "thp", 16 * MIB, (4096, 4096), (0, 0), (6, 5)),
        ("dio-read", "memfd", 64 << 10, (16, 16), (0, 0), (6, 5)),
        ("dio-read", "ext4-shared", 64 << 10, (16, 16), (0, 0), (6, 5)),
        ("dio-write", "anon", 16 * MIB, (4096, 4096), (0, 0), (6, 5)),
        # Nothing to pin: the zero page is not counted.
        ("dio-write", "anon-untouched", 16 * MIB, (0, 0), (0, 0), (6, 5)),
        ("io-uring-register", "anon", 16 * MIB, (4096, 0), (0, 4096), (5, 7)),
        ("io-uring-register", "anon-untouched", 64 << 10, (16, 0), (0, 16), (5, 7)),
        ("io-uring-register", "memfd", 16 * MIB, (4096, 0), (0, 4096), (5, 7)),
        ("io-uring-register", "ext4-private", 64 << 10, (16, 0), (0, 16), (6, 5)),
        # One pin per folio is kept.
        ("io-uring-register", "thp", 64 << 10, (16, 15), (0, 1), (6, 3)),
        ("io-uring-register", "thp", 16 * MIB, (4096, 4088), (0, 8), (6, 12)),
        ("process-vm-write", "anon", MIB, (256, 256), (0, 0), (5, 7)),
        ("process-vm-write", "thp", 16 * MIB, (4096, 4096), (0, 0), (5, 7)),
        ("vmsplice", "anon", 16 * MIB, (0, 0), (0, 0), (5, 7)),
        ("vmsplice", "ext4-shared", 64 << 10, (0, 0), (0, 0), (5, 7)),
    ],
)
def test_pins(
    workload: str,
    memory: str,
    size_bytes: int,
    acquire: Moved,
    release: Moved,
    since: tuple[int, int],
    around: Surroundings,
    counters: Counters,
) -> None:
    need(since <= KERNEL, f"the figure holds from {since} on")
    deadline = time.monotonic() + QUIET_DEADLINE_S
    while True:
        acquired, released, quiet = cycle(workload, memory, size_bytes, around, counters)
        if quiet or time.monotonic() > deadline:
            break
    assert quiet, "the machine never was quiet: somebody else pins pages"
    assert (acquired, released) == (acquire, release)


@pytest.mark.parametrize("size_bytes", [64 << 10, MIB + PAGE_BYTES, 16 * MIB])
@pytest.mark.parametrize(
    "workload", ["dio-read", "dio-write", "io-uring-register", "process-vm-write", "vmsplice"]
)
def test_cycles_repeat(workload: str, size_bytes: int, around: Surroundings, owner: Owner) -> None:
    if workload == "io-uring-register":
        limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        unlimited = os.geteuid() == 0 or limit_bytes == resource.RLIM_INFINITY
        need(unlimited or limit_bytes >= 2 * size_bytes, f"RLIMIT_MEMLOCK is {limit_bytes}")
    operation, _ = prepare(workload, "anon", size_bytes, around, owner)
    for _ in range(3):
        assert operation.acquire() > 0
        assert operation.done_bytes is None
        assert operation.release() >= 0


@pytest.mark.parametrize("workload", ["io-uring-register", "process-vm-write", "vmsplice"])
@pytest.mark.parametrize("size_bytes", [1, 4097])
def test_odd_sizes(workload: str, size_bytes: int, around: Surroundings, owner: Owner) -> None:
    operation, _ = prepare(workload, "anon", size_bytes, around, owner)
    operation.acquire()
    assert operation.done_bytes is None
    operation.release()


@pytest.mark.parametrize("workload", ["dio-read", "dio-write"])
def test_misaligned_direct_io_is_refused(workload: str, around: Surroundings, owner: Owner) -> None:
    operation, _ = prepare(workload, "anon", 4097, around, owner)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert failure.value.errno == errno.EINVAL
    assert failure.value.elapsed_ns > 0


def test_a_shared_file_mapping_cannot_be_registered(around: Surroundings, owner: Owner) -> None:
    need(KERNEL >= (6, 5), "before 6.5 io_uring answers EOPNOTSUPP")
    operation, _ = prepare("io-uring-register", "ext4-shared", MIB, around, owner)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert (failure.value.call, failure.value.errno) == ("io_uring_register", errno.EFAULT)
    assert failure.value.elapsed_ns > 0


def test_direct_write_writes_the_memory(around: Surroundings, owner: Owner) -> None:
    operation, region = prepare("dio-write", "anon", MIB, around, owner)
    region.buffer[:] = bytes(range(256)) * (MIB // 256)
    operation.acquire()
    with mmap.mmap(-1, MIB) as arrived:
        os.preadv(operation.transport.target, [arrived], 0)
        assert arrived[:] == bytes(region.buffer)


@pytest.mark.parametrize("cycle_number", [0, 1])
def test_bytes_that_do_not_arrive_are_noticed(
    cycle_number: int, around: Surroundings, owner: Owner
) -> None:
    operation, _ = prepare("dio-read", "anon", MIB, around, owner)
    for _ in range(cycle_number):
        operation.acquire()
        operation.release()
    with mmap.mmap(-1, PAGE_BYTES) as other:
        os.pwritev(operation.transport.target, [other], MIB - PAGE_BYTES)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert failure.value.errno == errno.EIO


def test_direct_read_leaves_fresh_memory_alone(around: Surroundings, owner: Owner) -> None:
    operation, region = prepare("dio-read", "anon-untouched", MIB, around, owner)
    operation.acquire()
    operation.release()
    assert bytes(region.buffer[:8]) == (1).to_bytes(8, "little")


@pytest.mark.parametrize("workload", ["process-vm-write", "vmsplice"])
def test_a_hole_at_the_end_makes_it_short(
    workload: str, around: Surroundings, owner: Owner
) -> None:
    operation, region = prepare(workload, "anon", 64 << 10, around, owner)
    libc.munmap(region.address + 15 * PAGE_BYTES, PAGE_BYTES)
    operation.acquire()
    assert operation.done_bytes == 15 * PAGE_BYTES
    operation.release()


@pytest.mark.parametrize("workload", ["dio-read", "dio-write"])
def test_a_hole_at_the_end_refuses_all_direct_io(
    workload: str, around: Surroundings, owner: Owner
) -> None:
    """ext4 does not ask iomap for partial transfers (IOMAP_DIO_PARTIAL)."""
    operation, region = prepare(workload, "anon", 64 << 10, around, owner)
    libc.munmap(region.address + 15 * PAGE_BYTES, PAGE_BYTES)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert failure.value.errno == errno.EFAULT


@pytest.mark.parametrize("workload", ["process-vm-write", "vmsplice", "dio-read", "dio-write"])
def test_a_hole_at_the_start_is_refused(workload: str, around: Surroundings, owner: Owner) -> None:
    operation, region = prepare(workload, "anon", 64 << 10, around, owner)
    libc.munmap(region.address, PAGE_BYTES)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert failure.value.errno == errno.EFAULT


def test_pipes_hold_all_of_it_until_they_are_drained(around: Surroundings, owner: Owner) -> None:
    operation, _ = prepare("vmsplice", "anon", 16 * MIB, around, owner)
    operation.acquire()
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert failure.value.errno == errno.EAGAIN
    operation.release()
    operation.acquire()
    assert operation.done_bytes is None


def test_nothing_is_left_behind(around: Surroundings) -> None:
    here = Path(around.scratch["target"])
    names, descriptors = set(os.listdir(here)), os.listdir("/proc/self/fd")
    owner = Owner()
    prepare("dio-read", "ext4-shared", MIB, around, owner)
    left = [name for name in set(os.listdir(here)) - names if name.startswith("pinstorm-")]
    assert left == []
    owner.close()
    assert os.listdir("/proc/self/fd") == descriptors
    assert owner.errors == []
