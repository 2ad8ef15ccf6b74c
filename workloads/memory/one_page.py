"""One page of a memfd mapped over and over: a range in which every address is the same page.

Each mapping is a VMA of its own, for the next one does not go on where it ends in the file: a range
of 64 MiB has 16384, of the 65530 that vm.max_map_count allows. The page itself is held by the page
cache once, and by each mapping once.
"""

import os

from telemetry import kpageflags, pagemap
from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.evacuation import leave_movable
from workloads.memory.proof import require_pages
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, MemorySpec, PrepareFailed, Surroundings

_WRITABLE = libc.PROT_READ | libc.PROT_WRITE
_AGAIN = libc.MAP_SHARED | libc.MAP_FIXED | libc.MAP_POPULATE


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    with libc.refusal_of("memfd_create"):
        fd = os.memfd_create("pinstorm", os.MFD_CLOEXEC)
    owner.release_with("memfd", lambda: os.close(fd))
    with libc.refusal_of("ftruncate"):
        os.ftruncate(fd, PAGE_BYTES)
    region = map_region(memory, size_bytes, owner, libc.MAP_SHARED, fd)
    first = region.first(PAGE_BYTES)
    write_every_page(first)
    leave_movable(first, around)
    end = region.address + region.mapped_bytes
    for address in range(region.address + PAGE_BYTES, end, PAGE_BYTES):
        libc.mmap(address, PAGE_BYTES, _WRITABLE, _AGAIN, fd)
    lack = kpageflags.ANON | kpageflags.THP
    require_pages(region, around, "pages of shmem", have=kpageflags.SWAPBACKED, lack=lack)
    _require_one_frame(region)
    return region


def _require_one_frame(region: Region) -> None:
    """Where the kernel shows frame numbers, they are all the same."""
    try:
        pages = pagemap.read(region.address, region.mapped_bytes)
    except pagemap.FramesHidden:
        return
    frames = set(pages.frames)
    if not pages.hidden and len(frames) != 1:
        raise PrepareFailed(f"{region.pages} mappings of one page lead to {len(frames)} frames")
