"""UDMABUF_CREATE: a dma-buf made of the pages of a memfd.

The kernel goes by the file and not by page tables: it holds the file's folios from the call until
the dma-buf's descriptor is closed. The memfd must not be able to shrink (F_SEAL_SHRINK); the page
must not be promised to stay unwritten. A file that cannot be sealed, and no file at all, are
offered as they are: to refuse them is the kernel's affair, and so is alignment.
"""

import fcntl
import os
import struct
from contextlib import suppress
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.node import open_node
from workloads.owner import Owner
from workloads.spec import CallFailed, Case, Surroundings

NODE = "/dev/udmabuf"
NO_FILE = 0xFFFFFFFF  # no process has such a descriptor

# include/uapi/linux/udmabuf.h: _IOW('u', 0x42, struct udmabuf_create)
UDMABUF_CREATE = 0x40187542
UDMABUF_FLAGS_CLOEXEC = 0x01
CREATE = struct.Struct("=IIQQ")  # memfd, flags, offset, size
DMA_BUF_BYTES = 64 << 20  # more is EINVAL, unless the parameter size_limit_mb was raised

# include/uapi/linux/fcntl.h
F_ADD_SEALS = 1033
F_SEAL_SHRINK = 0x0002


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "DmaBuf":
    return DmaBuf(open_node(NODE, owner), region, owner)


class DmaBuf:
    """The region's part of its file as dma-bufs, each as long as one may be."""

    done_bytes: int | None = None

    def __init__(self, node: int, region: Region, owner: Owner) -> None:
        self._node = node
        self._dma_bufs: list[int] = []
        owner.release_with("dma-buf", self._close)
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        memfd = NO_FILE if region.fd is None else region.fd
        if region.fd is not None:
            with suppress(OSError):  # not a file that can be sealed
                fcntl.fcntl(region.fd, F_ADD_SEALS, F_SEAL_SHRINK)
        # Bytearrays: only with a mutable argument does fcntl.ioctl() return the descriptor.
        self._requests = [
            bytearray(CREATE.pack(memfd, UDMABUF_FLAGS_CLOEXEC, offset_bytes, size_bytes))
            for offset_bytes, size_bytes in libc.pieces(
                region.offset_bytes, region.size_bytes, DMA_BUF_BYTES
            )
        ]

    def acquire(self) -> int:
        ioctl, node, keep = fcntl.ioctl, self._node, self._dma_bufs.append
        start_ns = monotonic_ns()
        try:
            for request in self._requests:
                keep(ioctl(node, UDMABUF_CREATE, request))
        except OSError as error:
            elapsed_ns = monotonic_ns() - start_ns
            self._close()  # a refusal holds nothing
            raise CallFailed("UDMABUF_CREATE", error.errno or 0, "", elapsed_ns) from error
        return monotonic_ns() - start_ns

    def release(self) -> int:
        start_ns = monotonic_ns()
        self._close()
        return monotonic_ns() - start_ns

    def _close(self) -> None:
        while self._dma_bufs:
            os.close(self._dma_bufs.pop())
