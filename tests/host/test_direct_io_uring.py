"""Direct IO through io_uring: the bytes, the pins, and what cannot be registered."""

import errno
import mmap
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workloads.memory as memory_kinds
from telemetry.vmstat import Counters
from workloads import direct_io_uring, libc, memory_spec
from workloads.memory import Region
from workloads.owner import Owner
from workloads.ring import Ring, request
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Surroundings

Need = Any
KERNEL = tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2])
SIZE = 64 << 10
BOTH = pytest.mark.parametrize("registered", [False, True])
QUIET_TRIES = 20


@pytest.fixture
def around(need: Need) -> Surroundings:
    """The current directory's file system, as ``--scratch`` has it when left out."""
    here = os.getcwd()
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", here], capture_output=True, text=True, check=True
    ).stdout.strip()
    need(kind == "ext2/ext3", f"{here} is on {kind}, not on ext4")
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")
    return Surroundings(scratch={"ext4": here, "target": here})


@pytest.fixture
def counters(need: Need) -> Iterator[Counters]:
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        yield counters


def prepare(
    workload: str,
    memory: str,
    around: Surroundings,
    owner: Owner,
    *,
    size_bytes: int = SIZE,
    offset_bytes: int = 0,
    registered: bool = False,
) -> tuple[Any, Region]:
    case = Case(workload, memory, {"size_bytes": size_bytes, "registered": registered})
    region = memory_kinds.prepare(
        memory_spec(memory), size_bytes, around, owner, offset_bytes=offset_bytes
    )
    return direct_io_uring.prepare(case, region, around, owner), region


@BOTH
def test_a_read_arrives(registered: bool, around: Surroundings, owner: Owner) -> None:
    """Three pages more than fill a bio: every one of them is compared by acquire itself."""
    size_bytes = MIB + 3 * PAGE_BYTES
    operation, region = prepare(
        "dio-read-uring", "anon", around, owner, size_bytes=size_bytes, registered=registered
    )
    for _ in range(3):
        assert operation.acquire() > 0
        assert operation.done_bytes is None
        assert bytes(region.buffer[-8:]) == (size_bytes // PAGE_BYTES).to_bytes(8, "little")
        operation.release()
        assert bytes(region.buffer[-8:]) == bytes(8)


@BOTH
def test_bytes_that_do_not_arrive_are_noticed(
    registered: bool, around: Surroundings, owner: Owner
) -> None:
    operation, _ = prepare("dio-read-uring", "anon", around, owner, registered=registered)
    with mmap.mmap(-1, PAGE_BYTES) as other:
        os.pwritev(operation.transport.target, [other], SIZE - PAGE_BYTES)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert failure.value.errno == errno.EIO


@BOTH
def test_a_write_writes_the_memory(registered: bool, around: Surroundings, owner: Owner) -> None:
    operation, region = prepare("dio-write-uring", "anon", around, owner, registered=registered)
    region.buffer[:] = bytes(range(256)) * (SIZE // 256)
    operation.acquire()
    assert operation.done_bytes is None
    with mmap.mmap(-1, SIZE) as arrived:
        os.preadv(operation.transport.target, [arrived], 0)
        assert arrived[:] == bytes(region.buffer)


@BOTH
def test_several_requests_move_the_region(
    registered: bool, around: Surroundings, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a region longer than one request may be: here of three parts, the last one shorter."""
    monkeypatch.setattr(libc, "MAX_RW_COUNT", 4 * PAGE_BYTES)
    monkeypatch.setattr(libc, "IO_URING_BUFFER_BYTES", 4 * PAGE_BYTES)
    case = Case("dio-read-uring", "anon", {"size_bytes": 10 * PAGE_BYTES, "registered": registered})
    region = memory_kinds.prepare(memory_spec("anon"), 10 * PAGE_BYTES, around, owner)
    operation = direct_io_uring.prepare(case, region, around, owner)
    assert len(operation._parts) == 3
    operation.acquire()
    assert operation.done_bytes is None


@BOTH
@pytest.mark.parametrize("workload", ["dio-read-uring", "dio-write-uring"])
def test_pins(
    workload: str,
    registered: bool,
    around: Surroundings,
    owner: Owner,
    counters: Counters,
    need: Need,
) -> None:
    need(KERNEL >= (6, 5), "direct IO pins from 6.5 on")
    operation, _ = prepare(workload, "anon", around, owner, registered=registered)
    pages = 0 if registered else SIZE // PAGE_BYTES
    for _ in range(QUIET_TRIES):
        before = counters.snapshot().acquired or 0
        operation.acquire()
        acquired = (counters.snapshot().acquired or 0) - before
        operation.release()
        if acquired == pages:  # and nobody else's
            break
    assert acquired == pages


@BOTH
@pytest.mark.parametrize("workload", ["dio-read-uring", "dio-write-uring"])
def test_an_offset_of_a_sector(
    workload: str, registered: bool, around: Surroundings, owner: Owner
) -> None:
    operation, _ = prepare(workload, "anon", around, owner, offset_bytes=512, registered=registered)
    operation.acquire()
    assert operation.done_bytes is None


def test_a_hole_refuses_the_request(around: Surroundings, owner: Owner) -> None:
    operation, _ = prepare("dio-read-uring", "hole", around, owner)
    with pytest.raises(CallFailed) as failure:
        operation.acquire()
    assert (failure.value.call, failure.value.errno) == ("io_uring_enter", errno.EFAULT)
    assert failure.value.elapsed_ns > 0


@pytest.mark.parametrize("memory", ["hole", "prot-read", "unmapped", "ext4-shared"])
def test_what_cannot_be_registered_is_refused_in_prepare(
    memory: str, around: Surroundings, owner: Owner, need: Need
) -> None:
    need(memory != "ext4-shared" or KERNEL >= (6, 5), "before 6.5 io_uring answers EOPNOTSUPP")
    with pytest.raises(CallFailed) as failure:
        prepare("dio-write-uring", memory, around, owner, registered=True)
    assert (failure.value.call, failure.value.errno) == ("io_uring_register", errno.EFAULT)


def test_renewed_memory_is_registered_anew(around: Surroundings, owner: Owner) -> None:
    """aim_at while the old region is gone: what its address holds now is not what was pinned."""
    memory = Owner()
    region = memory_kinds.prepare(memory_spec("anon-untouched"), SIZE, around, memory)
    case = Case("dio-read-uring", "anon-untouched", {"size_bytes": SIZE, "registered": True})
    operation = direct_io_uring.prepare(case, region, around, owner)
    operation.acquire()
    for _ in range(2):
        memory.close()
        operation.aim_at(memory_kinds.prepare(memory_spec("anon-untouched"), SIZE, around, memory))
        operation.acquire()
        assert operation.done_bytes is None
    owner.close()
    memory.close()


def test_a_ring_tells_errno_and_short(owner: Owner, tmp_path: Path) -> None:
    ring = Ring(owner)
    with mmap.mmap(-1, 2 * PAGE_BYTES) as buffer, (tmp_path / "file").open("w+b") as file:
        address = libc.address_of(buffer)
        file.write(b"x" * PAGE_BYTES)
        file.flush()
        read = request(libc.IORING_OP_READ, file.fileno(), 0, address, 2 * PAGE_BYTES)
        for _ in range(5):  # more often than the queues are long
            assert ring.run(read) == PAGE_BYTES
        assert buffer[:PAGE_BYTES] == b"x" * PAGE_BYTES
        closed = request(libc.IORING_OP_READ, 1 << 20, 0, address, PAGE_BYTES)
        assert ring.run(closed) == -errno.EBADF
