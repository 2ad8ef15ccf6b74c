"""A shared mapping of a memfd: base pages of shmem, owned by the file and not by the process."""

import os

from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.anon import stay_small
from workloads.memory.evacuation import leave_movable
from workloads.owner import Owner
from workloads.spec import MemorySpec, Surroundings


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    with libc.refusal_of("memfd_create"):
        fd = os.memfd_create("pinstorm", os.MFD_CLOEXEC)
    owner.release_with("memfd", lambda: os.close(fd))
    with libc.refusal_of("ftruncate"):
        os.ftruncate(fd, memory.mapped_bytes(size_bytes))
    region = map_region(memory, size_bytes, owner, libc.MAP_SHARED, fd)
    stay_small(region)
    write_every_page(region)
    leave_movable(region, around)
    return region
