"""Mappings of a file of the case's own: on ext4, XFS, btrfs, tmpfs or a file system with DAX.

The file is written through before it is mapped, so that every page has a block and a full disk is
an ENOSPC here, not a SIGBUS later. Where page cache lies is the kernel's affair, CMA too; shmem
leaves it. Copies of DAX pages cannot: a long-term pin that would have to move them is refused for
what the mapping is.
"""

import os

from telemetry import kpageflags, mountinfo
from workloads import libc
from workloads.memory import Region, map_region, read_every_page, write_every_page
from workloads.memory.anon import stay_small
from workloads.memory.evacuation import leave_movable
from workloads.memory.proof import require_device_pages, require_pages
from workloads.owner import Owner
from workloads.scratch import nameless_file
from workloads.spec import MIB, MemorySpec, Need, PrepareFailed, Surroundings

# The kind of scratch directory; all but DAX are named after the file system's type.
SCRATCH = {
    Need.SCRATCH_EXT4: "ext4",
    Need.SCRATCH_XFS: "xfs",
    Need.SCRATCH_BTRFS: "btrfs",
    Need.SCRATCH_TMPFS: "tmpfs",
    Need.SCRATCH_DAX: "dax",
}


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    kind = SCRATCH[memory.needs[0]]
    fd = nameless_file(around.scratch[kind], owner)
    _require_file_system(fd, kind, around.scratch[kind])
    _fill(fd, memory.mapped_bytes(size_bytes), around.scratch[kind])
    sharing = libc.MAP_SHARED if memory.shared else libc.MAP_PRIVATE
    region = map_region(memory, size_bytes, owner, sharing, fd)
    if memory.backing == "shmem":
        stay_small(region)
    if memory.present == "copy-on-write":
        read_every_page(region)
    else:
        write_every_page(region)
    if memory.backing == "shmem":
        leave_movable(region, around)
    _require_pages(region, around)
    return region


def _require_file_system(fd: int, kind: str, directory: str) -> None:
    wants_dax = kind == "dax"
    if libc.is_dax(fd) != wants_dax:
        raise PrepareFailed(f"a file in {directory} {'lacks' if wants_dax else 'has'} DAX")
    mount = mountinfo.of_path(directory)
    if not wants_dax and mount is not None and mount.fs_type != kind:
        raise PrepareFailed(f"{directory} is on {mount.fs_type}, not on {kind}")


def _fill(fd: int, size_bytes: int, directory: str) -> None:
    with libc.refusal_of("pwrite", directory):
        for start in range(0, size_bytes, MIB):
            content = b"\xa5" * min(MIB, size_bytes - start)
            if os.pwrite(fd, content, start) < len(content):
                raise PrepareFailed(f"{directory} has no room for {size_bytes} bytes")
    with libc.refusal_of("fsync", directory):
        os.fsync(fd)


def _require_pages(region: Region, around: Surroundings) -> None:
    memory = region.spec
    anon, swapbacked = kpageflags.ANON, kpageflags.SWAPBACKED
    if memory.backing == "shmem":
        require_pages(region, around, "pages of shmem", have=swapbacked, lack=anon)
    elif memory.backing == "file":
        require_pages(region, around, "pages of the file", have=kpageflags.MMAP, lack=anon)
    elif memory.shared or memory.present == "copy-on-write":
        require_device_pages(region, around)
    else:
        require_pages(region, around, "copies in anonymous memory", have=anon)
