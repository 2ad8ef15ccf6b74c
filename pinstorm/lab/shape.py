"""Guest shapes: the memory, kernel options and devices that the cases of a boot ask the guest for.

``plain`` has nothing that moves. ``movable`` has memory in which a long-term pin must not stay: a
CMA area, or ZONE_MOVABLE. Where the kernel has CMA one guest serves both: huge pages lie outside
it, and a case that wants plain pages moves them out of it in prepare. ZONE_MOVABLE takes the huge
pages too: ``movable`` then boots alone.

Everything else gets along in one guest, so that a kernel needs no third boot: persistent memory
and the 1 GiB page lie above what CMA takes, a second node is too far for ordinary allocations, the
IOMMU is not in virtio's way, KSM looks at nothing that did not ask for it. Still a boot gets only
what its cases need: each thing is some tenths of a second of its start.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pinstorm.errors import UsageError
from pinstorm.lab.kernels import Kernel
from pinstorm.lab.setup import DEVDAX_AT_MIB
from workloads.spec import Need

PLAIN: Final = "plain"
MOVABLE: Final = "movable"
SHAPES = (PLAIN, MOVABLE)

MEMORY_MIB = 6144
# User memory goes to CMA once free CMA is more than half of the zone's free memory, so the area
# has to be about half of what lies above 4 GiB and below.
CMA_MIB = 2600
# With two nodes the kernel would reserve as much again on each, and say loudly that it cannot.
_CMA_OPTIONS = (f"cma={CMA_MIB}M", "cma_pernuma=0")
# A range in the PCI hole gives a pmem that silently loses writes: it has to lie above 4 GiB.
PMEM_OPTION = "memmap=512M!4G"
# 128 MiB behind the other: the kernel makes one device of ranges that touch, and memory is mapped
# in sections of that size.
DEVDAX_MIB = 128
HUGEPAGES_2M = 64
SCRATCH_MIB = 512
NODE1_MIB = 256


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a guest is booted with for one need. ``memory_mib``: beyond what every guest has.

    ``pieces``: what pinstorm.lab.setup does. ``modules``: what the guest's entry loads in one go
    while Python starts; setup.py says which piece lacks what. Parameters of modules stand among
    ``kernel_options``, where modprobe finds them.
    """

    pieces: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    kernel_options: tuple[str, ...] = ()
    qemu_options: tuple[str, ...] = ()
    memory_mib: int = 0


_RXE = Equipment(("rxe",), ("rdma_rxe", "ib_uverbs", "dummy"))
_DISK_OPTIONS = ("brd.rd_nr=3", f"brd.rd_size={SCRATCH_MIB * 1024}")
_EXT4 = Equipment(("scratch-ext4",), ("ext4", "brd"), _DISK_OPTIONS)

_EQUIPMENT: Mapping[Need, Equipment] = {
    Need.RDMA_DEVICE: _RXE,
    Need.RDMA_ODP: _RXE,
    Need.TARGET_DIO: _EXT4,
    Need.SCRATCH_EXT4: _EXT4,
    Need.SCRATCH_XFS: Equipment(("scratch-xfs",), ("xfs", "brd"), _DISK_OPTIONS),
    Need.SCRATCH_BTRFS: Equipment(("scratch-btrfs",), ("btrfs", "brd"), _DISK_OPTIONS),
    Need.SCRATCH_TMPFS: Equipment(("scratch-tmpfs",)),
    Need.SCRATCH_DAX: Equipment(("pmem-dax",), ("nd_pmem", "nd_e820", "ext4"), (PMEM_OPTION,)),
    Need.DEVDAX: Equipment(
        ("devdax",),
        ("nd_e820", "device_dax", "dax_pmem"),
        (f"memmap={DEVDAX_MIB}M!{DEVDAX_AT_MIB}M",),
        memory_mib=2 * DEVDAX_MIB,
    ),
    Need.HUGETLB_2M: Equipment(
        # on the node whose memory everything else uses too; else they are spread over both
        ("hugepages",),
        kernel_options=("hugepagesz=2M", f"hugepages=0:{HUGEPAGES_2M}"),
    ),
    Need.HUGETLB_1G: Equipment(
        ("hugepages-1g",), kernel_options=("hugepagesz=1G", "hugepages=0:1"), memory_mib=1024
    ),
    # A node without CPUs, and no balancing: that unmaps pages to see who uses them, and moves them.
    Need.NUMA: Equipment(
        ("numa",), kernel_options=("numa_balancing=disable",), memory_mib=NODE1_MIB
    ),
    Need.KSM: Equipment(("ksm",)),
    # Before Linux 6.5 memfd_secret answers ENOSYS without it.
    Need.SECRETMEM: Equipment(kernel_options=("secretmem.enable=1",)),
    Need.MSG_ZEROCOPY: Equipment(("loopback",)),
    Need.UDMABUF: Equipment(modules=("udmabuf",)),
    # edu is QEMU's teaching device: no driver claims it. Without remapping of interrupts, which the
    # guest has only in some settings of KVM, type1 wants to be told that this is known.
    Need.VFIO: Equipment(
        ("vfio",),
        ("vfio-pci", "vfio_iommu_type1"),
        ("intel_iommu=on", "vfio_iommu_type1.allow_unsafe_interrupts=1"),
        ("-device", "intel-iommu", "-device", "edu"),
    ),
    # One capture node and nothing else that vivid could make.
    Need.V4L2: Equipment(
        ("v4l2",), ("vivid",), ("vivid.n_devs=1", "vivid.node_types=0x1", "vivid.no_error_inj=1")
    ),
    Need.MOVABLE: Equipment(("movable",)),
}

# As slow to load as all the others together, under emulation: 6 to 10 MB of relocations and BTF.
_SLOW = ("xfs", "btrfs")

# nokaslr: else the CMA reservation or the pmem range can fall on the kernel, differently each boot.
# panic=-1 with QEMU's -no-reboot: a panic ends QEMU at once.
_ALWAYS = Equipment(("tracing",), kernel_options=("nokaslr", "panic=-1"))


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to boot a kernel.

    ``serves``: the shapes named by memories that it satisfies. ``modules``: in batches, which the
    guest loads at the same time.
    """

    name: str
    serves: frozenset[str]
    kernel_options: tuple[str, ...]
    memory_mib: int = MEMORY_MIB
    cpus: int = 2
    qemu_options: tuple[str, ...] = ()
    modules: tuple[tuple[str, ...], ...] = ()
    pieces: tuple[str, ...] = ()


def shapes_for(kernel: Kernel, wanted: Mapping[str, Iterable[Need]]) -> list[Shape]:
    """The boots that serve every wanted shape on this kernel, as few as it allows.

    ``wanted``: the needs of the cases of each shape.
    """
    if unknown := set(wanted) - set(SHAPES):
        raise UsageError(f"unknown guest shape {sorted(unknown)[0]!r}: give {' or '.join(SHAPES)}")
    if MOVABLE in wanted and kernel.has("CMA"):
        needs = {need for name in wanted for need in wanted[name]}
        return [_shape(MOVABLE, frozenset(SHAPES), needs, _CMA_OPTIONS)]
    shapes = []
    if PLAIN in wanted:
        shapes.append(_shape(PLAIN, frozenset({PLAIN}), wanted[PLAIN]))
    if MOVABLE in wanted:
        own = ("kernelcore=2G",)
        shapes.append(_shape(MOVABLE, frozenset({MOVABLE}), wanted[MOVABLE], own))
    return shapes


def _shape(
    name: str, serves: frozenset[str], needs: Iterable[Need], options: tuple[str, ...] = ()
) -> Shape:
    wanted = set(needs)
    # in the order of the table: the same needs give the same command line
    gear = [_ALWAYS, *(_EQUIPMENT[need] for need in _EQUIPMENT if need in wanted)]
    gear = list(dict.fromkeys(gear))
    memory_mib = MEMORY_MIB + sum(item.memory_mib for item in gear)
    cpus = 2
    return Shape(
        name,
        serves,
        _each(item.kernel_options for item in gear) + options,
        memory_mib=memory_mib,
        cpus=cpus,
        qemu_options=tuple(word for item in gear for word in item.qemu_options)
        + (_nodes(memory_mib, cpus) if Need.NUMA in wanted else ()),
        modules=_batches(_once(item.modules for item in gear)),
        pieces=_once(item.pieces for item in gear),
    )


def _each(lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The options in their order; a repeated pair such as hugepagesz= must stay with its number."""
    return tuple(option for options in dict.fromkeys(lists) for option in options)


def _once(lists: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for words in lists for word in words))


def _batches(modules: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    slow = tuple(name for name in modules if name in _SLOW)
    return tuple(batch for batch in (tuple(n for n in modules if n not in _SLOW), slow) if batch)


def _nodes(memory_mib: int, cpus: int) -> tuple[str, ...]:
    """QEMU's options for a second node, of memory alone, at the end of the memory."""
    words: tuple[str, ...] = ()
    for node, size_mib in enumerate((memory_mib - NODE1_MIB, NODE1_MIB)):
        owner = f",cpus=0-{cpus - 1}" if node == 0 else ""
        words += ("-object", f"memory-backend-ram,id=node{node},size={size_mib}M")
        words += ("-numa", f"node,nodeid={node},memdev=node{node}{owner}")
    return words
