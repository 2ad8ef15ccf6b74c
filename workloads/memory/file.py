"""Mappings of a file of the case's own, on ext4 or on a file system with DAX.

The file is written through before it is mapped, so that every page has a block and a full disk is
an ENOSPC here, not a SIGBUS later. Where page cache lies is the kernel's affair: CMA too.
"""

import os

from workloads import libc
from workloads.memory import Region, map_region, read_every_page, write_every_page
from workloads.owner import Owner
from workloads.scratch import nameless_file
from workloads.spec import MIB, MemorySpec, PrepareFailed, Surroundings


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    wants_dax = memory.backing == "fsdax"
    directory = around.scratch["dax" if wants_dax else "ext4"]
    fd = nameless_file(directory, owner)
    if libc.is_dax(fd) != wants_dax:
        raise PrepareFailed(f"a file in {directory} {'lacks' if wants_dax else 'has'} DAX")
    _fill(fd, memory.mapped_bytes(size_bytes), directory)
    if memory.shared:
        region = map_region(memory, size_bytes, owner, libc.MAP_SHARED, fd)
        write_every_page(region)
    else:
        region = map_region(memory, size_bytes, owner, libc.MAP_PRIVATE, fd)
        read_every_page(region)
    return region


def _fill(fd: int, size_bytes: int, directory: str) -> None:
    with libc.refusal_of("pwrite", directory):
        for start in range(0, size_bytes, MIB):
            content = b"\xa5" * min(MIB, size_bytes - start)
            if os.pwrite(fd, content, start) < len(content):
                raise PrepareFailed(f"{directory} has no room for {size_bytes} bytes")
    with libc.refusal_of("fsync", directory):
        os.fsync(fd)
