"""``dontneed-churn`` and ``munmap-churn``: page tables are filled and emptied, time and again.

Every act takes mmap_lock and sends the process's other threads' CPUs a flush of their TLBs, and its
pages go through the page allocator, in base pages.
"""

from time import monotonic_ns

from workloads import libc
from workloads.antagonists.act import Acting, Done, die_first, own_memory, size_bytes, touch
from workloads.load.engine import Engine, Work
from workloads.owner import Owner


def prepare(work: Work, owner: Owner) -> Engine:
    die_first()
    if work.job.workload == "munmap-churn":
        return Acting(work, _Mapping(work, owner).act)
    size = size_bytes(work)
    address = own_memory(size)
    owner.release_with("churned memory", lambda: libc.munmap(address, size))
    memory = libc.view(address, size)

    def act() -> Done | None:
        start_ns = monotonic_ns()
        libc.madvise(address, size, libc.MADV_DONTNEED)
        return (monotonic_ns() - start_ns, size) if touch(memory, work) else None

    return Acting(work, act)


class _Mapping:
    """Memory that is there during an act only."""

    def __init__(self, work: Work, owner: Owner):
        self._work = work
        self._size_bytes = size_bytes(work)
        self._address: int | None = None
        owner.release_with("churned mapping", self._unmap)

    def act(self) -> Done | None:
        start_ns = monotonic_ns()
        self._address = own_memory(self._size_bytes)
        whole = touch(libc.view(self._address, self._size_bytes), self._work)
        self._unmap()
        return (monotonic_ns() - start_ns, self._size_bytes) if whole else None

    def _unmap(self) -> None:
        address, self._address = self._address, None
        if address is not None:
            libc.munmap(address, self._size_bytes)
