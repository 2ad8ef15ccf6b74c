"""A process has as many mappings (VMAs) as vm.max_map_count allows, by guards against fork.

A guard is madvise(MADV_DONTFORK) of a registered range, so that a fork cannot take its pages away:
each splits the mapping it lies in, two more mappings for every region. rdma-core does it after
ibv_fork_init(3) where the kernel does not copy pinned pages on fork (it does since Linux commit
70e806e4e645 ("mm: Do early cow for pinned pages during fork() for ptes") (in v5.11), and says so
through RDMA_NLDEV_SYS_ATTR_COPY_ON_FORK); other libraries still do, on every kernel. What is
refused is the guard, before the region is registered: EAGAIN, which madvise(2) makes of the
kernel's ENOMEM.
"""

import errno
from time import monotonic_ns

from telemetry import maps, sysctl
from workloads import libc
from workloads.circumstances import Made, Surrounded
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, Case, Operation, PrepareFailed, Surroundings

_ANONYMOUS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS


def prepare(case: Case, around: Surroundings, owner: Owner) -> Made:
    return _Guarded(owner)


class _Guarded(Made):
    def __init__(self, owner: Owner):
        self._owner = owner

    def around(self, operation: Operation, region: Region) -> Operation:
        guards = _Guards(self._owner)
        guards.fill()
        return _Guarding(operation, region, guards)


class _Guards:
    """Every other page of a mapping of nothing, guarded one by one: two more mappings each."""

    def __init__(self, owner: Owner):
        limit = sysctl.read_int("vm.max_map_count")
        if limit is None:
            raise PrepareFailed("vm.max_map_count cannot be read")
        self._pages = 2 * limit
        size_bytes = self._pages * PAGE_BYTES
        self._start = libc.mmap(0, size_bytes, libc.PROT_NONE, _ANONYMOUS | libc.MAP_NORESERVE)
        owner.release_with("guarded pages", lambda: libc.munmap(self._start, size_bytes))
        self._next = 1

    def fill(self, most: int | None = None) -> None:
        """Until the kernel refuses; PrepareFailed when it never does. ``most``: or that many."""
        last = self._pages if most is None else min(self._pages, self._next + 2 * most)
        while self._next < last:
            try:
                address = self._start + self._next * PAGE_BYTES
                libc.madvise(address, PAGE_BYTES, libc.MADV_DONTFORK)
            except CallFailed as error:
                if error.errno in (errno.EAGAIN, errno.ENOMEM):
                    return
                raise
            self._next += 2
        if most is None:
            raise PrepareFailed(f"{self._pages // 2} guards, and the kernel allows more")


class _Guarding(Surrounded):
    """Guards the region, then does the operation; each release takes the guard away."""

    # The process maps and unmaps a little between its steps; what it gave back is taken again.
    _AGAIN = 16

    def __init__(self, operation: Operation, region: Region, guards: _Guards):
        super().__init__(operation, region)
        self._guards = guards
        _let_go_on(region)

    def aim_at(self, region: Region) -> None:
        super().aim_at(region)
        _let_go_on(region)

    def acquire(self) -> int:
        self._guards.fill(self._AGAIN)
        start_ns = monotonic_ns()
        try:
            libc.madvise(self._region.address, self._region.mapped_bytes, libc.MADV_DONTFORK)
        except CallFailed as error:
            elapsed_ns = monotonic_ns() - start_ns
            raise CallFailed(error.call, error.errno, "MADV_DONTFORK", elapsed_ns) from error
        try:
            return super().acquire()
        except CallFailed:
            self._unguard()
            raise

    def release(self) -> int:
        elapsed_ns = super().release()
        self._unguard()
        return elapsed_ns

    def _unguard(self) -> None:
        libc.madvise(self._region.address, self._region.mapped_bytes, libc.MADV_DOFORK)


def _let_go_on(region: Region) -> None:
    """Map one more page behind the region: a buffer is seldom a mapping of its own.

    The guard of a whole mapping would split nothing.
    """
    end = region.address + region.mapped_bytes
    libc.mmap(end, PAGE_BYTES, libc.PROT_READ | libc.PROT_WRITE, _ANONYMOUS | libc.MAP_FIXED)
    libc.madvise(end, PAGE_BYTES, libc.MADV_NOHUGEPAGE)
    mapping = maps.mapping_of(region.address, maps.read())
    if mapping is None or mapping.end != end + PAGE_BYTES:
        raise PrepareFailed(f"the page at {end:#x} did not become one mapping with the region")
