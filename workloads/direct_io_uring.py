"""O_DIRECT through io_uring: the pages are pinned when the request is issued, until it completes.

With ``registered`` the region is a registered buffer: IORING_REGISTER_BUFFERS pinned its pages for
long before the transfer began, IORING_OP_READ_FIXED and WRITE_FIXED hand the device those very
pages, and the transfer itself pins nothing (bio_iov_bvec_set() in block/bio.c). Registering belongs
to prepare, so memory that cannot be registered is refused there.
"""

import os

from workloads import libc
from workloads.direct_io import DirectIO, DirectRead, new_target
from workloads.memory import Region
from workloads.owner import Owner
from workloads.ring import Ring, request
from workloads.spec import Case, Surroundings


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> DirectIO:
    target = new_target(around.scratch["target"], region.size_bytes, owner)
    reads = case.workload == "dio-read-uring"
    ring = Ring(owner)
    kind = DirectRead if reads else DirectIO
    if not case.params.get("registered", False):
        opcode = libc.IORING_OP_READ if reads else libc.IORING_OP_WRITE
        return kind(Requests(ring, opcode, target), region, libc.MAX_RW_COUNT)
    opcode = libc.IORING_OP_READ_FIXED if reads else libc.IORING_OP_WRITE_FIXED
    transport = FixedRequests(ring, opcode, target, owner)
    return kind(transport, region, libc.IO_URING_BUFFER_BYTES)


class Requests:
    """One request each."""

    call = "io_uring_enter"

    def __init__(self, ring: Ring, opcode: int, target: int) -> None:
        self._ring = ring
        self._opcode = opcode
        self.target = target

    def part(self, region: Region, offset: int, length: int) -> tuple[bytes]:
        address = region.address + offset
        return (request(self._opcode, self.target, offset, address, length),)

    def move(self, request: bytes) -> int:
        result = self._ring.run(request)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


class FixedRequests(Requests):
    """The same, between the target and registered buffers: one for each part."""

    def __init__(self, ring: Ring, opcode: int, target: int, owner: Owner) -> None:
        super().__init__(ring, opcode, target)
        self._registered: Region | None = None
        owner.release_with("registered buffers", self._unregister)

    def part(self, region: Region, offset: int, length: int) -> tuple[bytes]:
        if region is not self._registered:
            self._unregister()
            self._register(region)
        address, buffer = region.address + offset, offset // libc.IO_URING_BUFFER_BYTES
        return (request(self._opcode, self.target, offset, address, length, buffer),)

    def _register(self, region: Region) -> None:
        pieces = libc.pieces(region.address, region.size_bytes, libc.IO_URING_BUFFER_BYTES)
        buffers = libc.iovecs(pieces)
        result = libc.io_uring_register(
            self._ring.fd, libc.IORING_REGISTER_BUFFERS, buffers, len(buffers)
        )
        libc.check("io_uring_register", result)
        self._registered = region

    def _unregister(self) -> None:
        if self._registered is not None:
            self._registered = None
            result = libc.io_uring_register(self._ring.fd, libc.IORING_UNREGISTER_BUFFERS, None, 0)
            libc.check("io_uring_register", result)
