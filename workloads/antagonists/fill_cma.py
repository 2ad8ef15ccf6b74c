"""``fill-cma``: memory of CMA and ZONE_MOVABLE is taken by anonymous pages, which can move away.

It touches memory of its own until no more than ``free_percent`` of the two is free, holds it for
``hold_ms``, and gives it back: one act. Its latency is the filling, its bytes what it held. The
page allocator takes from CMA once more than half of the zone's free memory lies there (__rmqueue()
in mm/page_alloc.c, v6.1 to v7.2), so that a small share takes most of the machine's memory. What
ends the filling before is the job's size, or that less than a tenth of the memory would be left
available, to the machine or under the tightest memory cgroup; and of all processes this one is the
first that the kernel would kill.
"""

from time import monotonic_ns, sleep

from telemetry import cgroup, meminfo, zoneinfo
from workloads import libc
from workloads.antagonists.act import (
    LOOK_NS,
    PIECE_BYTES,
    Acting,
    Done,
    asked_bytes,
    die_first,
    own_memory,
    parameters,
    touch,
)
from workloads.load.engine import Engine, Work
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, PrepareFailed

# Between two looks at how much is left.
_STEP_BYTES = 8 * PIECE_BYTES
_LEAST_LEFT_BYTES = 256 * MIB


def prepare(work: Work, owner: Owner) -> Engine:
    given = parameters(work)
    free_percent, hold_ms = float(given["free_percent"]), float(given["hold_ms"])
    if not 0 <= free_percent < 100:
        raise PrepareFailed(f"free_percent is {free_percent:g}: give 0 or more and less than 100")
    die_first()
    if not total_pages():
        raise PrepareFailed("this machine has neither CMA nor a ZONE_MOVABLE")
    return _Filling(work, owner, free_percent / 100, round(hold_ms * 1e6))


class _Filling(Acting):
    """An act is filled, held and given back step by step: a step is short."""

    def __init__(self, work: Work, owner: Owner, free_share: float, hold_ns: int):
        super().__init__(work, self._step)
        total_bytes = meminfo.read().total_bytes or 0
        self._left_bytes = max(_LEAST_LEFT_BYTES, total_bytes // 10)
        self._size_bytes = min(asked_bytes(work), total_bytes)
        self._enough_pages = free_share * total_pages()
        self._hold_ns = hold_ns
        # Huge pages where they are to be had: they fill as well, in a tenth of the time.
        address = own_memory(self._size_bytes, libc.MAP_NORESERVE, libc.MADV_HUGEPAGE)
        owner.release_with("memory that fills", lambda: libc.munmap(address, self._size_bytes))
        self._address = address
        self._memory = libc.view(address, self._size_bytes)
        self._held_bytes = 0
        self._filled_ns = 0
        self._hold_until_ns: int | None = None

    @property
    def under_way(self) -> bool:
        return self._held_bytes > 0

    def drain(self) -> None:
        """What the end of the load has cut short is no act, and given back."""
        self._give_back()

    def _step(self) -> Done | None:
        now_ns = monotonic_ns()
        if self._hold_until_ns is not None:
            if now_ns < self._hold_until_ns:
                sleep(min(LOOK_NS, self._hold_until_ns - now_ns) / 1e9)
                return None
            done = self._filled_ns, self._held_bytes
            self._give_back()
            return done
        step_bytes = min(_STEP_BYTES, self._size_bytes - self._held_bytes)
        if step_bytes and free_pages() > self._enough_pages and self._may_take(step_bytes):
            end = self._held_bytes + step_bytes
            touch(self._memory[self._held_bytes : end], self._work)
            self._held_bytes = end
            self._filled_ns += monotonic_ns() - now_ns
        elif self._held_bytes:
            self._hold_until_ns = now_ns + self._hold_ns
        else:
            # There is nothing to be taken, or the machine has nothing to spare: look again.
            sleep(LOOK_NS / 1e9)
        return None

    def _may_take(self, wanted_bytes: int) -> bool:
        """Whether enough is left to the machine, and to the groups of this process, if it does."""
        limit = cgroup.tightest(cgroup.memory_limits())
        if limit is not None and limit.available_bytes < wanted_bytes + limit.limit_bytes // 10:
            return False
        return (meminfo.read().available_bytes or 0) >= wanted_bytes + self._left_bytes

    def _give_back(self) -> None:
        if self._held_bytes:
            libc.madvise(self._address, self._held_bytes, libc.MADV_DONTNEED)
        self._held_bytes = self._filled_ns = 0
        self._hold_until_ns = None


def total_pages() -> int:
    """Pages of CMA and of every ZONE_MOVABLE."""
    cma_pages = (meminfo.read().cma_total_bytes or 0) // PAGE_BYTES
    return cma_pages + sum(zone.managed_pages for zone in zoneinfo.read() if zone.name == "Movable")


def free_pages() -> int:
    """How many of them are free."""
    cma_pages = (meminfo.read().cma_free_bytes or 0) // PAGE_BYTES
    movable = (zone.free_pages or 0 for zone in zoneinfo.read() if zone.name == "Movable")
    return cma_pages + sum(movable)
