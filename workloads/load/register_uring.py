"""The engine of io-uring-register: buffers of an io_uring, registered and given back again.

One region at a time (depth 1): IORING_REGISTER_BUFFERS and IORING_UNREGISTER_BUFFERS of one ring,
which is what scripts/peers/register_uring.c does. Several: a sparse table of one ring, whose slots
IORING_REGISTER_BUFFERS_UPDATE fills and empties. Where the kernel empties a slot later than it says
so, there is a ring for each region instead, and each is used as at depth 1: in v6.1
io_rsrc_node_ref_zero() leaves the unpinning to a work item one second later (measured: 3296 pages
held by four regions of 16, after 200 turns); in v6.12 and v7.2 the call itself unpins. Which of
them it is, is found out with a page. On 6.1 IORING_UNREGISTER_BUFFERS takes milliseconds:
io_rsrc_ref_quiesce() waits for that work item, and it for a grace period of RCU.

A region is cut into buffers of at most 1 GiB, which 6.1 and 6.12 ask for.
"""

import os
from array import array
from collections.abc import Mapping
from errno import EAGAIN, EINVAL, EMFILE
from functools import partial
from time import monotonic_ns

from workloads import libc
from workloads.load.churn import Churn, Memory
from workloads.load.engine import Work
from workloads.owner import Owner
from workloads.ring import Ring
from workloads.spec import PAGE_BYTES, CallFailed, PrepareFailed


def prepare(work: Work, owner: Owner) -> Churn:
    memory = Memory(work, owner)
    mechanism = Table if memory.depth > 1 and empties_at_once() else Rings
    return Churn(work, mechanism(memory, owner))


def empties_at_once() -> bool:
    """Whether a slot of a sparse table is unpinned by the time the call that empties it is back.

    A tagged buffer says so with a completion, which is posted when it is given back:
    io_uring_register(2), IORING_REGISTER_BUFFERS2. False too where there is no such table, or where
    this process may not even pin a page.
    """
    owner = Owner()
    try:
        ring = Ring(owner)
        page = libc.mmap(
            0,
            PAGE_BYTES,
            libc.PROT_READ | libc.PROT_WRITE,
            libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_POPULATE,
        )
        owner.release_with("page", lambda: libc.munmap(page, PAGE_BYTES))
        libc.io_uring_sparse_table(ring.fd, 1)
        full, empty = libc.iovecs([(page, PAGE_BYTES)]), libc.iovecs([(0, 0)])
        fill = libc.io_uring_update_call(ring.fd, 0, full, tag=1)
        libc.check_bound("io_uring_register", fill())
        libc.check_bound("io_uring_register", libc.io_uring_update_call(ring.fd, 0, empty)())
        at_once = ring.has_completed
        # This waits for the page where that one did not: no window must see it come back late.
        unregister = libc.io_uring_register_call(ring.fd, libc.IORING_UNREGISTER_BUFFERS, None, 0)
        libc.check_bound("io_uring_register", unregister())
        return at_once
    except CallFailed:
        return False
    finally:
        owner.close()


class Rings:
    """A ring for each slot, with IORING_REGISTER_BUFFERS and IORING_UNREGISTER_BUFFERS."""

    extra: Mapping[str, "array[int]"] = {}

    def __init__(self, memory: Memory, owner: Owner):
        self._memory = memory
        self._rings: list[int] = []
        self._release: list[libc.Call] = []
        for _ in range(memory.depth):
            ring = _another_ring(memory.depth)
            owner.release_with("io_uring", partial(os.close, ring))
            self._rings.append(ring)
            self._release.append(
                libc.io_uring_register_call(ring, libc.IORING_UNREGISTER_BUFFERS, None, 0)
            )
        self._acquire = memory.calls()

    def acquire(self, slot: int, size_bytes: int) -> int:
        call = self._acquire[size_bytes][slot] or self._acquiring(slot, size_bytes)
        clock = monotonic_ns
        start_ns = clock()
        result = call()
        elapsed_ns = clock() - start_ns
        if result < 0:
            libc.check_bound("io_uring_register", result, elapsed_ns=elapsed_ns)
        return elapsed_ns

    def release(self, slot: int) -> int:
        call, clock = self._release[slot], monotonic_ns
        start_ns = clock()
        result = call()
        elapsed_ns = clock() - start_ns
        if result < 0:
            libc.check_bound("io_uring_register", result, elapsed_ns=elapsed_ns)
        return elapsed_ns

    def _acquiring(self, slot: int, size_bytes: int) -> libc.Call:
        buffers = _buffers(self._memory, slot, size_bytes)
        call = libc.io_uring_register_call(
            self._rings[slot], libc.IORING_REGISTER_BUFFERS, buffers, len(buffers)
        )
        self._acquire[size_bytes][slot] = call
        return call


class Table:
    """A sparse table of one ring, with IORING_REGISTER_BUFFERS_UPDATE both ways."""

    extra: Mapping[str, "array[int]"] = {}

    def __init__(self, memory: Memory, owner: Owner):
        self._memory = memory
        self._ring = libc.io_uring_setup(1)
        owner.release_with("io_uring", lambda: os.close(self._ring))
        # Entries of the table for each slot.
        self._entries = len(_buffers(memory, 0, memory.stride_bytes))
        self._make_table(self._entries * memory.depth)
        nothing = libc.iovecs([(0, 0)] * self._entries)
        self._release = [self._update(slot, nothing) for slot in range(memory.depth)]
        self._acquire = memory.calls()

    def _make_table(self, entries: int) -> None:
        try:
            libc.io_uring_sparse_table(self._ring, entries)
        except CallFailed as error:
            if error.errno != EINVAL:
                raise
            # IORING_MAX_REG_BUFFERS, io_uring/rsrc.c: 16384 in v6.1, v6.12 and v7.2
            raise PrepareFailed(
                f"a ring has no room for {entries} buffers: lower depth, or take more processes"
            ) from error

    def acquire(self, slot: int, size_bytes: int) -> int:
        call = self._acquire[size_bytes][slot] or self._acquiring(slot, size_bytes)
        clock = monotonic_ns
        start_ns = clock()
        result = call()
        elapsed_ns = clock() - start_ns
        if result != self._entries:
            self._refused(slot, size_bytes, result, elapsed_ns)
        return elapsed_ns

    def release(self, slot: int) -> int:
        call, clock = self._release[slot], monotonic_ns
        start_ns = clock()
        result = call()
        elapsed_ns = clock() - start_ns
        if result < 0:
            libc.check_bound("io_uring_register", result, elapsed_ns=elapsed_ns)
        return elapsed_ns

    def _acquiring(self, slot: int, size_bytes: int) -> libc.Call:
        buffers = _buffers(self._memory, slot, size_bytes)
        # A smaller region leaves entries of its slot empty.
        pieces = [(buffer.base, buffer.length) for buffer in buffers]
        pieces += [(0, 0)] * (self._entries - len(pieces))
        call = self._update(slot, libc.iovecs(pieces))
        self._acquire[size_bytes][slot] = call
        return call

    def _update(self, slot: int, buffers: libc.Iovecs) -> libc.Call:
        return libc.io_uring_update_call(self._ring, slot * self._entries, buffers)

    def _refused(self, slot: int, size_bytes: int, result: int, elapsed_ns: int) -> None:
        """Empty what a refusal in the middle left; the errno is told for the first entry only."""
        number = libc.bare_errno() if result < 0 else self._errno_of(slot, size_bytes, result)
        if result > 0:
            libc.check_bound("io_uring_register", self._release[slot]())
        raise CallFailed("io_uring_register", number, elapsed_ns=elapsed_ns)

    def _errno_of(self, slot: int, size_bytes: int, entry: int) -> int:
        """Why the call stopped at an entry of the slot: asked for alone, it is refused again."""
        buffers = _buffers(self._memory, slot, size_bytes)
        alone = libc.iovecs([(buffers[entry].base, buffers[entry].length)])
        first = slot * self._entries + entry
        refused = libc.io_uring_update_call(self._ring, first, alone)() < 0
        return libc.bare_errno() if refused else EAGAIN


def _another_ring(depth: int) -> int:
    try:
        return libc.io_uring_setup(1)
    except CallFailed as error:
        if error.errno != EMFILE:
            raise
        raise PrepareFailed(
            f"a ring for each of {depth} regions is more than this process may have open: "
            "raise RLIMIT_NOFILE (ulimit -n), or lower depth"
        ) from error


def _buffers(memory: Memory, slot: int, size_bytes: int) -> libc.Iovecs:
    pieces = libc.pieces(memory.address(slot), size_bytes, libc.IO_URING_BUFFER_BYTES)
    return libc.iovecs(pieces)
