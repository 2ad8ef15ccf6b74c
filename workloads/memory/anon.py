"""Private anonymous memory: base pages, touched or never touched, and transparent huge pages."""

import errno
import re
from contextlib import suppress
from pathlib import Path

from workloads import libc
from workloads.memory import HUGE_BYTES, Region, map_region, write_every_page
from workloads.memory.evacuation import leave_movable
from workloads.owner import Owner
from workloads.spec import CallFailed, MemorySpec, PrepareFailed, Surroundings

SMAPS = Path("/proc/self/smaps")


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    region = map_region(memory, size_bytes, owner, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
    if memory.granule_bytes == HUGE_BYTES:
        _fill_with_huge_pages(region, around)
        return region
    stay_small(region)
    if memory.touched:
        write_every_page(region)
        leave_movable(region, around)
    return region


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
    huge_bytes = _mapped_huge_bytes(region.address)
    if huge_bytes != region.mapped_bytes:
        raise PrepareFailed(
            f"{huge_bytes // HUGE_BYTES} of {region.mapped_bytes // HUGE_BYTES} pages are huge:"
            " memory is fragmented, or transparent huge pages are switched off"
        )


def _collapse(region: Region) -> None:
    """A second try for what the faults left small; what it cannot do is seen in smaps."""
    if _mapped_huge_bytes(region.address) == region.mapped_bytes:
        return
    with suppress(CallFailed):
        libc.madvise(region.address, region.mapped_bytes, libc.MADV_COLLAPSE)


def _mapped_huge_bytes(address: int) -> int:
    """AnonHugePages of the mapping that starts there: bytes mapped by whole huge pages.

    /proc/PID/smaps, per mapping, in KiB that the kernel calls kB. Seen without any privilege.
    """
    pattern = rf"^{address:x}-.*?^AnonHugePages: +(\d+) kB$"
    found = re.search(pattern, SMAPS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return int(found[1]) * 1024 if found else 0
