"""Anonymous memory: base pages in every state that a process alone can give them, and THP.

Private, or shared between forks (which is shmem); touched, untouched or only read; under mlock;
bound to a NUMA node.
"""

import errno
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from telemetry import kpageflags, process_status
from workloads import libc
from workloads.memory import (
    HUGE_BYTES,
    Region,
    map_region,
    read_every_page,
    write_every_page,
)
from workloads.memory.evacuation import leave_movable
from workloads.memory.proof import require_pages
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, MemorySpec, Need, PrepareFailed, Surroundings

SMAPS = Path("/proc/self/smaps")


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    sharing = libc.MAP_SHARED if memory.shared else libc.MAP_PRIVATE
    region = map_region(memory, size_bytes, owner, sharing | libc.MAP_ANONYMOUS)
    if memory.granule_bytes == HUGE_BYTES:
        _fill_with_huge_pages(region, around)
        return region
    stay_small(region)
    if memory.present == "zero-page":
        _read_zeros(region, around)
    elif memory.present == "own":
        _fill(region, around)
    return region


def _fill(region: Region, around: Surroundings) -> None:
    bound = Need.NUMA in region.spec.needs
    if bound:
        libc.bind_to_node(region.address, region.mapped_bytes, around.numa_nodes[-1])
    write_every_page(region)
    leave_movable(region, around)
    if bound:
        _require_node(region, around.numa_nodes)
    if region.spec.locked:
        _lock(region)
    if region.spec.shared:
        lack = kpageflags.ANON
        require_pages(region, around, "pages of shmem", have=kpageflags.SWAPBACKED, lack=lack)


def _read_zeros(region: Region, around: Surroundings) -> None:
    """One frame behind every page; the huge zero page carries THP too."""
    read_every_page(region)
    what = "the zero page"
    require_pages(region, around, what, have=kpageflags.ZERO_PAGE, lack=kpageflags.THP)


def _lock(region: Region) -> None:
    """mlock, which counts the whole mapping against RLIMIT_MEMLOCK and in VmLck."""
    before = process_status.read().vmlck_bytes
    libc.mlock(region.address, region.mapped_bytes)
    after = process_status.read().vmlck_bytes
    if before is not None and after is not None and after - before != region.mapped_bytes:
        raise PrepareFailed(
            f"mlock of {region.mapped_bytes} bytes made VmLck grow by {after - before}"
        )


def _require_node(region: Region, numa_nodes: Sequence[int]) -> None:
    """Every page lies on the last node, as move_pages(2) tells everybody."""
    end = region.address + region.mapped_bytes
    nodes = libc.nodes_of_pages(list(range(region.address, end, PAGE_BYTES)))
    if elsewhere := region.pages - nodes.count(numa_nodes[-1]):
        raise PrepareFailed(f"{elsewhere} of {region.pages} pages are not on node {numa_nodes[-1]}")


def stay_small(region: Region) -> None:
    """Base pages only, whatever the machine's settings for transparent huge pages are."""
    try:
        libc.madvise(region.address, region.mapped_bytes, libc.MADV_NOHUGEPAGE)
    except CallFailed as error:
        if error.errno != errno.EINVAL:  # a kernel without transparent huge pages
            raise


def _fill_with_huge_pages(region: Region, around: Surroundings) -> None:
    libc.madvise(region.address, region.mapped_bytes, libc.MADV_HUGEPAGE)
    write_every_page(region)
    _collapse(region)
    leave_movable(region, around)  # which splits a page when no huge one is free outside
    _collapse(region)
    huge_bytes = mapped_huge_bytes(region.address)
    if huge_bytes != region.mapped_bytes:
        raise PrepareFailed(
            f"{huge_bytes // HUGE_BYTES} of {region.mapped_bytes // HUGE_BYTES} pages are huge:"
            " memory is fragmented, or transparent huge pages are switched off"
        )


def _collapse(region: Region) -> None:
    """A second try for what the faults left small; what it cannot do is seen in smaps."""
    if mapped_huge_bytes(region.address) == region.mapped_bytes:
        return
    with suppress(CallFailed):
        libc.madvise(region.address, region.mapped_bytes, libc.MADV_COLLAPSE)


def mapped_huge_bytes(address: int) -> int:
    """AnonHugePages of the mapping that starts there: bytes mapped by whole huge pages.

    /proc/PID/smaps, per mapping, in KiB that the kernel calls kB. Seen without any privilege.
    """
    pattern = rf"^{address:x}-.*?^AnonHugePages: +(\d+) kB$"
    found = re.search(pattern, SMAPS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return int(found[1]) * 1024 if found else 0
