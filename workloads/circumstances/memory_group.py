"""The case's memory cgroup has no room for what the case has not touched yet.

The runner sets memory.max and exempts the process from the OOM killer (pinstorm.circumstances), so
that the charge of a page fails. In a page fault of GUP that is ENOMEM; in a fault of the process
itself the kernel tries again for ever (pagefault_out_of_memory() in mm/oom_kill.c). So whatever the
process writes to when it is refused has to be its own page before, and what GUP faulted in is given
back at once: the next try finds the memory untouched.
"""

from contextlib import suppress
from dataclasses import replace

from workloads import libc
from workloads.circumstances import Made, Surrounded
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, Case, Operation, Surroundings

_REHEARSALS = 3


def prepare(case: Case, around: Surroundings, owner: Owner) -> Made:
    return _Frugal()


class _Frugal(Made):
    def around(self, operation: Operation, region: Region) -> Operation:
        giving_back = _GivingBack(operation, region)
        giving_back.rehearse()
        return giving_back


class _GivingBack(Surrounded):
    def rehearse(self) -> None:
        """Be refused for another reason: the page before the region may not be touched."""
        forbidden = replace(
            self._region,
            address=self._region.address - PAGE_BYTES,
            size_bytes=PAGE_BYTES,
            mapped_bytes=PAGE_BYTES,
        )
        region = self._region
        self.aim_at(forbidden)
        for _ in range(_REHEARSALS):
            with suppress(CallFailed):
                self.acquire()
        self.aim_at(region)

    def acquire(self) -> int:
        address, size_bytes = self._region.address, self._region.mapped_bytes
        try:
            return super().acquire()
        except CallFailed:
            libc.madvise(address, size_bytes, libc.MADV_DONTNEED)
            raise
