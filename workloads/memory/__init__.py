"""The memory a workload is applied to: one module per family, each with one ``prepare``."""

import itertools
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module

from workloads import libc
from workloads.owner import Owner
from workloads.spec import (
    MIB,
    PAGE_BYTES,
    CallFailed,
    MemorySpec,
    PrepareFailed,
    Surroundings,
)

HUGE_BYTES = 2 * MIB
TOUCH_BYTE = b"\x5a"
# What a reservation is made of: neither readable nor writable, and no memory is set aside for it.
_NOTHING = (libc.PROT_NONE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE)
_LOW, _LOW_STEP, _LOW_PLACES = 64 << 30, 1 << 30, 4096
_places = itertools.count()


@dataclass(frozen=True, slots=True)
class Region:
    """Mapped memory in the state that its spec describes.

    ``size_bytes`` from ``address`` are what is registered or transferred. ``mapped_bytes``, whole
    granules, are what is mapped; ``buffer`` shows them from ``address`` on. It owns nothing: it
    must not be used once the owner has released the mapping, nor where nothing is mapped.
    ``fd``: the file behind it, where a workload may want it; ``offset_bytes``: how far ``address``
    lies behind the beginning of the mapping.
    """

    spec: MemorySpec
    address: int
    size_bytes: int
    mapped_bytes: int
    buffer: memoryview
    fd: int | None = None
    offset_bytes: int = 0

    @property
    def pages(self) -> int:
        """Pages of PAGE_SIZE in what is mapped."""
        return self.mapped_bytes // PAGE_BYTES

    def first(self, size_bytes: int) -> "Region":
        """Its first whole pages, as if no more were mapped: what may be touched and looked at."""
        length = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
        return replace(
            self,
            size_bytes=min(self.size_bytes, length),
            mapped_bytes=length,
            buffer=self.buffer[:length],
        )


def prepare(
    memory: MemorySpec,
    size_bytes: int,
    around: Surroundings,
    owner: Owner,
    offset_bytes: int = 0,
) -> Region:
    """Memory of that kind from an offset on, released with ``owner``.

    Raises CallFailed when the kernel refuses to give it, PrepareFailed when what it gave is not
    what the spec says.
    """
    module = import_module(memory.module)
    region: Region = module.prepare(memory, offset_bytes + size_bytes, around, owner)
    if not offset_bytes:
        return region
    return replace(
        region,
        address=region.address + offset_bytes,
        size_bytes=size_bytes,
        buffer=region.buffer[offset_bytes:],
        offset_bytes=offset_bytes,
    )


def map_region(
    memory: MemorySpec, size_bytes: int, owner: Owner, flags: int, fd: int = -1, low: bool = False
) -> Region:
    """Readable and writable memory between two guards: it merges with no neighbour.

    Huge memory starts at a boundary of its own size, 2 MiB or more. Everything else starts one page
    behind one: nothing can then be mapped huge by chance, and the same page tables are walked in
    every run. ``low``: in a part of the address space in which the kernel places nothing by itself.
    """
    mapped_bytes = memory.mapped_bytes(size_bytes)
    boundary = max(HUGE_BYTES, memory.granule_bytes)
    reserved_bytes = mapped_bytes + boundary + HUGE_BYTES
    start = _reserve_low(reserved_bytes) if low else libc.mmap(0, reserved_bytes, *_NOTHING)
    owner.release_with(f"{memory.name} mapping", lambda: libc.munmap(start, reserved_bytes))
    address = (start + boundary) & -boundary
    if memory.granule_bytes < HUGE_BYTES:
        address += PAGE_BYTES
    writable = libc.PROT_READ | libc.PROT_WRITE
    libc.mmap(address, mapped_bytes, writable, flags | libc.MAP_FIXED, fd)
    buffer = libc.view(address, mapped_bytes)
    return Region(memory, address, size_bytes, mapped_bytes, buffer, fd=None if fd == -1 else fd)


def _reserve_low(size_bytes: int) -> int:
    """Addresses above the program and its heap, and far below all that mmap chooses.

    The kernel takes the highest gap that is large enough (arch_get_unmapped_area_topdown(); the
    legacy layout goes upwards, but from a third of the address space on), and there always is one
    above these. Others each time, for as long as there are some.
    """
    for _ in range(_LOW_PLACES):
        address = _LOW + next(_places) % _LOW_PLACES * _LOW_STEP
        with suppress(CallFailed):  # EEXIST: an earlier region lies there
            return libc.mmap(
                address, size_bytes, _NOTHING[0], _NOTHING[1] | libc.MAP_FIXED_NOREPLACE
            )
    raise PrepareFailed(f"no {size_bytes} bytes are free from {_LOW:#x} on")


def write_every_page(region: Region) -> None:
    """Write one byte of each page, huge ones included."""
    region.buffer[::PAGE_BYTES] = TOUCH_BYTE * region.pages


def read_every_page(region: Region) -> None:
    bytes(region.buffer[::PAGE_BYTES])
