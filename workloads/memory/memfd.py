"""A shared mapping of a memfd, owned by the file and not by the process: shmem or huge pages.

``past-eof``: the file ends in the middle of the mapping; what lies behind is never touched, for the
CPU gets SIGBUS there. The file can be sealed and is not.
"""

import os

from telemetry import kpageflags
from workloads import libc
from workloads.memory import HUGE_BYTES, Region, map_region, write_every_page
from workloads.memory.anon import stay_small
from workloads.memory.evacuation import leave_movable
from workloads.memory.proof import require_pages
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, MemorySpec, Surroundings


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    huge = memory.granule_bytes == HUGE_BYTES
    flags = os.MFD_HUGETLB | os.MFD_HUGE_2MB if huge else 0
    with libc.refusal_of("memfd_create"):
        fd = os.memfd_create("pinstorm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    owner.release_with("memfd", lambda: os.close(fd))
    file_bytes = _file_bytes(memory, size_bytes)
    with libc.refusal_of("ftruncate"):
        os.ftruncate(fd, file_bytes)
    region = map_region(memory, size_bytes, owner, libc.MAP_SHARED, fd)
    backed = region.first(file_bytes)
    if not backed.pages:
        return region
    if huge:
        write_every_page(backed)
        leave_movable(backed, around)
        require_pages(backed, around, "hugetlb pages", have=kpageflags.HUGE)
        return region
    stay_small(region)
    write_every_page(backed)
    leave_movable(backed, around)
    lack = kpageflags.ANON
    require_pages(backed, around, "pages of shmem", have=kpageflags.SWAPBACKED, lack=lack)
    return region


def _file_bytes(memory: MemorySpec, size_bytes: int) -> int:
    mapped_bytes = memory.mapped_bytes(size_bytes)
    if memory.extent != "past-eof":
        return mapped_bytes
    return mapped_bytes // PAGE_BYTES // 2 * PAGE_BYTES
