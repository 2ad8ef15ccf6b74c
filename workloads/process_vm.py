"""process_vm_readv and process_vm_writev: the kernel pins the region only while the call runs.

The process copies from or to itself. The region is the remote side, whose pages are pinned in
batches of at most 1024 (mm/process_vm_access.c); the local side is private memory that is copied,
not pinned. See process_vm_readv(2).
"""

import errno
import mmap
import os
from collections.abc import Callable
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import MIB, CallFailed, Case, Surroundings

CALL_BYTES = libc.UIO_MAXIOV * MIB  # what one call can name
WIPE_BYTE = b"\xa5"


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "ProcessVm":
    reads = case.workload == "process-vm-read"
    # What is written may be the same mebibyte over and over; what is read needs room for all of it.
    local = mmap.mmap(-1, region.size_bytes if reads else min(MIB, region.size_bytes))
    owner.release_with("local buffer", local.close)
    return ProcessVmRead(region, local) if reads else ProcessVmWrite(region, local)


class ProcessVm:
    """One copy of the whole region. A refusal behind the first bytes is a short copy."""

    _name: str
    _call: Callable[[int, libc.Iovecs, libc.Iovecs], int]

    def __init__(self, region: Region, local: mmap.mmap) -> None:
        self.done_bytes: int | None = None
        self._local = local
        self._pid = os.getpid()
        self._renew_local()
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self._region = region
        self._parts = []
        for offset, length in libc.pieces(0, region.size_bytes, CALL_BYTES):
            remote = libc.iovecs([(region.address + offset, length)])
            self._parts.append((length, self._local_pieces(offset, length), remote))

    def _local_pieces(self, offset: int, size_bytes: int) -> libc.Iovecs:
        start = libc.address_of(self._local)
        pieces = libc.pieces(offset, size_bytes, MIB)
        return libc.iovecs([(start + at % len(self._local), length) for at, length in pieces])

    def acquire(self) -> int:
        self.done_bytes = None
        copy, pid = self._call, self._pid
        done = elapsed_ns = 0
        for size_bytes, local, remote in self._parts:
            start_ns = monotonic_ns()
            result = copy(pid, local, remote)
            elapsed_ns += monotonic_ns() - start_ns
            if done == 0:
                libc.check(self._name, result, elapsed_ns=elapsed_ns)
            done += max(result, 0)
            if result < size_bytes:
                self.done_bytes = done
                return elapsed_ns
        self._verify(elapsed_ns)
        return elapsed_ns

    def release(self) -> int:
        """Nothing to give back: the pins ended with the call. The next cycle must prove itself."""
        self._renew_local()
        return 0

    def _renew_local(self) -> None:
        raise NotImplementedError

    def _verify(self, elapsed_ns: int) -> None:
        """Compare the two sides, after a call that succeeded whole."""
        for start in range(0, self._region.size_bytes, MIB):
            length = min(MIB, self._region.size_bytes - start)
            at = start % len(self._local)
            if self._region.buffer[start : start + length] != self._local[at : at + length]:
                detail = f"other bytes than copied within 1 MiB of offset {start}"
                raise CallFailed(self._name, errno.EIO, detail, elapsed_ns)


class ProcessVmWrite(ProcessVm):
    """The local mebibyte, written over and over into the whole region; other bytes each cycle."""

    _name = "process_vm_writev"
    _call = staticmethod(libc.process_vm_writev)

    def _renew_local(self) -> None:
        self._local[:] = os.urandom(len(self._local))


class ProcessVmRead(ProcessVm):
    """The whole region, read into a buffer that is wiped before each cycle."""

    _name = "process_vm_readv"
    _call = staticmethod(libc.process_vm_readv)

    def _renew_local(self) -> None:
        for start in range(0, len(self._local), MIB):
            length = min(MIB, len(self._local) - start)
            self._local[start : start + length] = WIPE_BYTE * length
