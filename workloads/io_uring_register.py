"""IORING_REGISTER_BUFFERS: a long-term pin that lasts as long as the ring has the buffer.

One pin per page, or per large folio (since Linux kernel commit 57bebf807e2a ("io_uring/rsrc:
optimise registered huge pages") (in v6.3), for a buffer within one folio; since a8edbb424b13
("io_uring/rsrc: enable multi-hugepage buffer coalescing") (in v6.12), for several).
"""

import os
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import Case, Surroundings


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "Registration":
    ring = libc.io_uring_setup(1)
    owner.release_with("io_uring", lambda: os.close(ring))
    return Registration(ring, region, case.times)


class Registration:
    """The region as registered buffers of one ring, ``times`` times over."""

    done_bytes: int | None = None

    def __init__(self, ring: int, region: Region, times: int = 1) -> None:
        self._ring = ring
        self._times = times
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        pieces = libc.pieces(region.address, region.size_bytes, libc.IO_URING_BUFFER_BYTES)
        self._buffers = libc.iovecs(pieces * self._times)

    def acquire(self) -> int:
        return self._register(libc.IORING_REGISTER_BUFFERS, self._buffers, len(self._buffers))

    def release(self) -> int:
        return self._register(libc.IORING_UNREGISTER_BUFFERS, None, 0)

    def _register(self, opcode: int, buffers: libc.Iovecs | None, count: int) -> int:
        register, ring = libc.io_uring_register, self._ring
        start_ns = monotonic_ns()
        result = register(ring, opcode, buffers, count)
        elapsed_ns = monotonic_ns() - start_ns
        libc.check("io_uring_register", result, elapsed_ns=elapsed_ns)
        return elapsed_ns
