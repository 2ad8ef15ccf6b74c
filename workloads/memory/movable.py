"""Anonymous pages that lie, every one, in CMA or ZONE_MOVABLE; ``movable-held``: and cannot leave.

The page allocator decides where a page lies. A mapping that it put elsewhere is kept while the next
is made, so that its pages are not the next one's.
"""

import os

from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.anon import stay_small
from workloads.memory.evacuation import count_movable, movable_ranges
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, MemorySpec, PrepareFailed, Surroundings

TRIES = 8


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    region = _map_inside(memory, size_bytes, around, owner)
    if memory.foreign_reference:
        _hold_last_page(region, owner)
    return region


def _map_inside(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    if not around.page_frames_visible:
        raise PrepareFailed("where pages lie cannot be seen: pagemap needs CAP_SYS_ADMIN")
    ranges = movable_ranges(around)
    if not ranges:
        raise PrepareFailed("this kernel has no CMA area that is known, and no ZONE_MOVABLE")
    best = 0
    tried: list[Owner] = []
    try:
        for _ in range(TRIES):
            mapping = Owner()
            tried.append(mapping)
            region = map_region(memory, size_bytes, mapping, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
            stay_small(region)
            write_every_page(region)
            inside = count_movable(region, ranges)
            if inside == region.pages:
                owner.release_with("movable memory", tried.pop().close)
                return region
            best = max(best, inside)
    finally:
        for mapping in tried:
            mapping.close()
    raise PrepareFailed(
        f"at most {best} of {memory.mapped_bytes(size_bytes) // PAGE_BYTES} pages lay in CMA or"
        f" ZONE_MOVABLE in {TRIES} tries"
    )


def _hold_last_page(region: Region, owner: Owner) -> None:
    """A reference from outside the process: migration fails as long as the pipe holds the page."""
    with libc.refusal_of("pipe2"):
        reader, writer = os.pipe()
    owner.release_with("pipe's reader", lambda: os.close(reader))
    owner.release_with("pipe's writer", lambda: os.close(writer))
    last = libc.iovecs([(region.address + region.mapped_bytes - PAGE_BYTES, PAGE_BYTES)])
    libc.check("vmsplice", libc.vmsplice(writer, last, libc.SPLICE_F_NONBLOCK))
