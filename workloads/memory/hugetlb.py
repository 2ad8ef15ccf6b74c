"""Private pages of the hugetlb pool, 2 MiB or 1 GiB: mmap refuses with ENOMEM when it has too few.

A page is there as a whole once one byte of it was touched. So only what the case covers is written
and looked at: in an emulated guest the 262144 pages of PAGE_SIZE in 1 GiB take seconds.
"""

from telemetry import kpageflags
from workloads import libc
from workloads.memory import HUGE_BYTES, Region, map_region, write_every_page
from workloads.memory.evacuation import leave_movable
from workloads.memory.proof import require_pages
from workloads.owner import Owner
from workloads.spec import MemorySpec, Surroundings

FLAGS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_HUGETLB


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    gigantic = memory.granule_bytes > HUGE_BYTES
    page = libc.MAP_HUGE_1GB if gigantic else libc.MAP_HUGE_2MB
    region = map_region(memory, size_bytes, owner, FLAGS | page)
    covered = region.first(size_bytes) if gigantic else region
    write_every_page(covered)
    leave_movable(covered, around)
    require_pages(covered, around, "hugetlb pages", have=kpageflags.HUGE)
    return region
