"""Ranges that GUP must refuse, in whole or in part: not readable, not writable, not mapped, beyond.

Protection: pages of the process's own, written before the protection is taken away.

Nothing mapped: a mapping that forbids everything would not do, for GUP finds a mapping there and
refuses for its protection. So the addresses are really free, and what has to be prevented is that
anything is mapped at them while the case runs: the next mmap of a page (a ring, a doorbell) would
take just such a gap. They lie where the kernel places nothing by itself (map_region's ``low``), the
addresses around them stay reserved, and at the end it is proved that they are still free.
"""

import errno

from telemetry import maps
from workloads import libc
from workloads.memory import Region, map_region, write_every_page
from workloads.memory.anon import stay_small
from workloads.memory.evacuation import leave_movable
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, MemorySpec, PrepareFailed, Surroundings

PROTECTIONS = {"r": (libc.PROT_READ, "r--p"), "none": (libc.PROT_NONE, "---p")}
# Over the end of every process, with five levels of page tables too: mmap gives out less than 2^56.
BEYOND = 1 << 56
ANONYMOUS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    if memory.name == "beyond":
        mapped_bytes = memory.mapped_bytes(size_bytes)
        view = libc.view(BEYOND, mapped_bytes)
        return Region(memory, BEYOND, size_bytes, mapped_bytes, view)
    bare = memory.extent in ("hole", "unmapped")
    region = map_region(memory, size_bytes, owner, ANONYMOUS, low=bare)
    stay_small(region)
    if memory.extent == "unmapped":
        _open(region.address, region.mapped_bytes, owner)
        return region
    write_every_page(region)
    leave_movable(region, around)
    if memory.extent == "hole":
        _open(region.address + region.pages // 2 * PAGE_BYTES, PAGE_BYTES, owner)
    else:
        _protect(region)
    return region


def _protect(region: Region) -> None:
    prot, permissions = PROTECTIONS[region.spec.prot]
    libc.mprotect(region.address, region.mapped_bytes, prot)
    mapping = maps.mapping_of(region.address, maps.read())
    end = region.address + region.mapped_bytes
    # a range that is PROT_NONE merges with its guards
    if mapping is None or mapping.permissions != permissions or mapping.end < end:
        raise PrepareFailed(f"{region.spec.name} is mapped as {mapping}, not {permissions}")


def _open(address: int, size_bytes: int, owner: Owner) -> None:
    """Unmap the range; before the reservation around it goes, see that it stayed so."""
    libc.munmap(address, size_bytes)
    owner.release_with("unmapped range", lambda: _close(address, size_bytes))


def _close(address: int, size_bytes: int) -> None:
    flags = ANONYMOUS | libc.MAP_NORESERVE | libc.MAP_FIXED_NOREPLACE
    try:
        libc.mmap(address, size_bytes, libc.PROT_NONE, flags)
    except CallFailed as error:
        if error.errno != errno.EEXIST:
            raise
        raise PrepareFailed(
            f"something was mapped within {size_bytes} bytes from {address:#x} on while the case"
            " wanted them free: its outcome says nothing"
        ) from error
