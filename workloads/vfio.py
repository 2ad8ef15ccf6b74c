"""VFIO_IOMMU_MAP_DMA of a type1 container: memory that a device behind an IOMMU may reach.

The kernel pins the range in batches of 512 pages and maps each physically contiguous piece into
the IOMMU; VFIO_IOMMU_UNMAP_DMA gives it back. The pages are held against mm->locked_vm (VmLck).
Alignment is the case's affair: type1 refuses what is not whole pages of the IOMMU.
See Documentation/driver-api/vfio.rst.
"""

import errno
import fcntl
import os
import struct

from workloads import libc
from workloads.memory import Region
from workloads.node import open_node, timed_ioctl
from workloads.owner import Owner
from workloads.spec import CallFailed, Case, PrepareFailed, Surroundings

CONTAINER = "/dev/vfio/vfio"

# include/uapi/linux/vfio.h: _IO(VFIO_TYPE, VFIO_BASE + n), which say no size
VFIO_SET_IOMMU = 0x3B66
VFIO_GROUP_GET_STATUS = 0x3B67
VFIO_GROUP_SET_CONTAINER = 0x3B68
VFIO_IOMMU_MAP_DMA = 0x3B71
VFIO_IOMMU_UNMAP_DMA = 0x3B72
VFIO_TYPE1V2_IOMMU = 3
VFIO_GROUP_FLAGS_VIABLE = 1 << 0
VFIO_DMA_MAP_FLAG_READ = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE = 1 << 1

GROUP_STATUS = struct.Struct("=II")  # argsz, flags
DMA_MAP = struct.Struct("=IIQQQ")  # argsz, flags, vaddr, iova, size
DMA_UNMAP = struct.Struct("=IIQQ")  # argsz, flags, iova, size

# Where the device sees the memory: above what x86 reserves for interrupts, and within 39 bits.
IOVA = 1 << 32


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "Mapping":
    container = open_node(CONTAINER, owner)
    group = open_node(_group_node(around.nodes["vfio"]), owner)
    status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    with libc.refusal_of("VFIO_GROUP_GET_STATUS"):
        fcntl.ioctl(group, VFIO_GROUP_GET_STATUS, status)
    if not GROUP_STATUS.unpack(status)[1] & VFIO_GROUP_FLAGS_VIABLE:
        raise PrepareFailed(f"a device in the group of {around.nodes['vfio']} has another driver")
    with libc.refusal_of("VFIO_GROUP_SET_CONTAINER"):
        fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, struct.pack("=i", container))
    with libc.refusal_of("VFIO_SET_IOMMU"):
        fcntl.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU)
    return Mapping(container, region)


class Mapping:
    """The region at one fixed address of the device."""

    done_bytes: int | None = None

    def __init__(self, container: int, region: Region) -> None:
        self._container = container
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
        size_bytes = region.size_bytes
        self._map = DMA_MAP.pack(DMA_MAP.size, flags, region.address, IOVA, size_bytes)
        self._unmap = DMA_UNMAP.pack(DMA_UNMAP.size, 0, IOVA, size_bytes)

    def acquire(self) -> int:
        return timed_ioctl("VFIO_IOMMU_MAP_DMA", self._container, VFIO_IOMMU_MAP_DMA, self._map)

    def release(self) -> int:
        """Unmap, and compare how much that was: the kernel writes it where the size stood."""
        call, answer = "VFIO_IOMMU_UNMAP_DMA", bytearray(self._unmap)
        elapsed_ns = timed_ioctl(call, self._container, VFIO_IOMMU_UNMAP_DMA, answer)
        if answer != self._unmap:
            detail = f"unmapped {DMA_UNMAP.unpack(answer)[3]} bytes"
            raise CallFailed(call, errno.EIO, detail, elapsed_ns)
        return elapsed_ns


def _group_node(device: str) -> str:
    """/dev/vfio/N of the IOMMU group that a PCI device is in."""
    link = f"/sys/bus/pci/devices/{device}/iommu_group"
    with libc.refusal_of("readlink", link):
        return f"/dev/vfio/{os.path.basename(os.readlink(link))}"
