"""XDP_UMEM_REG: the packet memory of an AF_XDP socket, a long-term pin that ends with the socket.

The kernel always pins for writing, in one call of pin_user_pages(), and wants a page-aligned
address and whole chunks (net/xdp/xdp_umem.c, Documentation/networking/af_xdp.rst). Making the
socket needs CAP_NET_RAW; it is never bound to a device. The pages are charged to the user
(user->locked_vm), unless the process has CAP_IPC_LOCK, and not to the process: VmPin rests.

A umem cannot be taken back from a socket that lives, so release closes the socket, and the next
one is made behind it, untimed. What close() leaves is unpinned later, by a kernel worker: until
then the user is still charged for the umem of the cycle before.
"""

import errno
import socket
import struct
import time
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, Case, Surroundings

CHUNK_BYTES = PAGE_BYTES
UNPIN_DEADLINE_NS = 1_000_000_000


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "Umem":
    umem = Umem(region)
    owner.release_with("AF_XDP socket", umem.close)
    return umem


class Umem:
    """The region as the umem of one socket."""

    done_bytes: int | None = None

    def __init__(self, region: Region) -> None:
        self._unpinning = False
        self._socket = _socket()
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        # struct xdp_umem_reg_v1, include/uapi/linux/if_xdp.h: address, bytes, chunk size, headroom.
        # Every kernel since v4.18 takes this size; flags came in v5.4, tx_metadata_len in v6.8.
        self._umem_reg = struct.pack("=QQII", region.address, region.size_bytes, CHUNK_BYTES, 0)

    def acquire(self) -> int:
        register, umem_reg = self._socket.setsockopt, self._umem_reg
        until_ns = monotonic_ns() + UNPIN_DEADLINE_NS
        while True:
            start_ns = monotonic_ns()
            try:
                register(libc.SOL_XDP, libc.XDP_UMEM_REG, umem_reg)
            except OSError as error:
                elapsed_ns = monotonic_ns() - start_ns
                if error.errno == errno.ENOBUFS and self._unpinning and monotonic_ns() < until_ns:
                    time.sleep(0.001)  # the cycle before is still charged
                    continue
                detail = "XDP_UMEM_REG"
                raise CallFailed("setsockopt", error.errno or 0, detail, elapsed_ns) from error
            return monotonic_ns() - start_ns

    def release(self) -> int:
        start_ns = monotonic_ns()
        self._socket.close()
        elapsed_ns = monotonic_ns() - start_ns
        self._unpinning = True
        self._socket = _socket()
        return elapsed_ns

    def close(self) -> None:
        self._socket.close()


def _socket() -> socket.socket:
    with libc.refusal_of("socket", "AF_XDP"):
        return socket.socket(libc.AF_XDP, socket.SOCK_RAW)
