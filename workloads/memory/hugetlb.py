"""Private 2 MiB pages of the hugetlb pool: mmap refuses with ENOMEM when the pool has too few."""

from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.evacuation import leave_movable
from workloads.owner import Owner
from workloads.spec import MemorySpec, Surroundings

FLAGS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_HUGETLB | libc.MAP_HUGE_2MB


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    region = map_region(memory, size_bytes, owner, FLAGS)
    write_every_page(region)
    leave_movable(region, around)
    return region
