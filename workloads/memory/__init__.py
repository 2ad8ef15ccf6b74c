"""The memory a workload is applied to: one module per family, each with one ``prepare``."""

from dataclasses import dataclass
from importlib import import_module

from workloads import libc
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, MemorySpec, Surroundings

HUGE_BYTES = 2 * MIB
TOUCH_BYTE = b"\x5a"


@dataclass(frozen=True, slots=True)
class Region:
    """Mapped memory in the state that its spec describes.

    ``size_bytes`` from ``address`` are what is registered or transferred; ``mapped_bytes``, whole
    granules, are what is mapped and what ``buffer`` shows. ``buffer`` owns nothing: it must not be
    used once the owner has released the mapping.
    """

    spec: MemorySpec
    address: int
    size_bytes: int
    mapped_bytes: int
    buffer: memoryview

    @property
    def pages(self) -> int:
        """Pages of PAGE_SIZE in what is mapped."""
        return self.mapped_bytes // PAGE_BYTES


def prepare(memory: MemorySpec, size_bytes: int, around: Surroundings, owner: Owner) -> Region:
    """Memory of that kind, released with ``owner``.

    Raises CallFailed when the kernel refuses to give it, PrepareFailed when what it gave is not
    what the spec says.
    """
    module = import_module(memory.module)
    region: Region = module.prepare(memory, size_bytes, around, owner)
    return region


def map_region(
    memory: MemorySpec, size_bytes: int, owner: Owner, flags: int, fd: int = -1
) -> Region:
    """Readable and writable memory between two guards: it merges with no neighbour.

    Huge memory starts at a 2 MiB boundary. Everything else starts one page behind one: nothing can
    then be mapped huge by chance, and the same page tables are walked in every run.
    """
    mapped_bytes = memory.mapped_bytes(size_bytes)
    reserved_bytes = mapped_bytes + 2 * HUGE_BYTES
    reserve = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
    start = libc.mmap(0, reserved_bytes, libc.PROT_NONE, reserve)
    owner.release_with(f"{memory.name} mapping", lambda: libc.munmap(start, reserved_bytes))
    address = (start + HUGE_BYTES) & -HUGE_BYTES
    if memory.granule_bytes < HUGE_BYTES:
        address += PAGE_BYTES
    writable = libc.PROT_READ | libc.PROT_WRITE
    libc.mmap(address, mapped_bytes, writable, flags | libc.MAP_FIXED, fd)
    buffer = libc.view(address, mapped_bytes)
    return Region(memory, address, size_bytes, mapped_bytes, buffer)


def write_every_page(region: Region) -> None:
    """Write one byte of each page, huge ones included."""
    region.buffer[::PAGE_BYTES] = TOUCH_BYTE * region.pages


def read_every_page(region: Region) -> None:
    bytes(region.buffer[::PAGE_BYTES])
