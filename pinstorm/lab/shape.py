"""Guest shapes: the memory, kernel options and devices that a case's memory asks the guest for.

``plain`` has persistent memory made of RAM, a pool of huge pages and nothing that moves.
``movable`` has memory in which a long-term pin must not stay: a CMA area, or ZONE_MOVABLE. Where
the kernel has CMA one guest serves both: huge pages lie outside it, and a case that wants plain
pages moves them out of it in prepare. ZONE_MOVABLE takes the huge pages too: ``movable`` then boots
alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pinstorm.errors import UsageError
from pinstorm.lab.kernels import Kernel

PLAIN: Final = "plain"
MOVABLE: Final = "movable"
SHAPES = (PLAIN, MOVABLE)

MEMORY_MIB = 6144
# User memory goes to CMA once free CMA is more than half of the zone's free memory, so the area
# has to be about half of what lies above 4 GiB and below.
CMA_MIB = 2600
# A range in the PCI hole gives a pmem that silently loses writes: it has to lie above 4 GiB.
PMEM_OPTION = "memmap=512M!4G"
HUGEPAGES_2M = 64
SCRATCH_MIB = 512
# nokaslr: else the CMA reservation or the pmem range can fall on the kernel, differently each boot.
# panic=-1 with QEMU's -no-reboot: a panic ends QEMU at once.
# The guest's entry loads these in one go while Python starts; setup.py says which piece lacks what.
# Parameters of modules stand on the kernel's command line, where modprobe finds them.
_MODULES = ("rdma_rxe", "ib_uverbs", "dummy", "ext4", "nd_pmem", "nd_e820", "brd")
_MODULE_OPTIONS = ("brd.rd_nr=1", f"brd.rd_size={SCRATCH_MIB * 1024}")
_ALWAYS = (
    "nokaslr",
    "panic=-1",
    PMEM_OPTION,
    "hugepagesz=2M",
    f"hugepages={HUGEPAGES_2M}",
    *_MODULE_OPTIONS,
)
_PIECES = ("tracing", "hugepages", "rxe", "pmem-dax", "scratch-ext4")


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to boot a kernel. ``serves``: the shapes named by memories that it satisfies.

    ``pieces``: what pinstorm.lab.setup has to set up in the guest.
    """

    name: str
    serves: frozenset[str]
    kernel_options: tuple[str, ...]
    memory_mib: int = MEMORY_MIB
    cpus: int = 2
    qemu_options: tuple[str, ...] = ()
    modules: tuple[str, ...] = _MODULES
    pieces: tuple[str, ...] = _PIECES


def shapes_for(kernel: Kernel, wanted: Iterable[str]) -> list[Shape]:
    """The boots that serve every wanted shape on this kernel, as few as it allows."""
    names = set(wanted)
    if unknown := names - set(SHAPES):
        raise UsageError(f"unknown guest shape {sorted(unknown)[0]!r}: give {' or '.join(SHAPES)}")
    if MOVABLE in names and kernel.has("CMA"):
        both = Shape(
            MOVABLE,
            frozenset(SHAPES),
            (*_ALWAYS, f"cma={CMA_MIB}M"),
            pieces=(*_PIECES, "movable"),
        )
        return [both]
    shapes = []
    if PLAIN in names:
        shapes.append(Shape(PLAIN, frozenset({PLAIN}), _ALWAYS))
    if MOVABLE in names:
        shapes.append(
            Shape(
                MOVABLE,
                frozenset({MOVABLE}),
                (*_ALWAYS, "kernelcore=2G"),
                pieces=(*_PIECES, "movable"),
            )
        )
    return shapes
