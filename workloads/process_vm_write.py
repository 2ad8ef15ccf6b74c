"""process_vm_writev into the region: the kernel pins its pages only while the call runs.

The process writes to itself. One local buffer is named as often as the region needs, so that the
source costs no more than a mebibyte; its pages are copied from, not pinned.
"""

import errno
import mmap
import os
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import MIB, CallFailed, Case, Surroundings

CALL_BYTES = libc.UIO_MAXIOV * MIB  # what one call can name


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "ProcessVmWrite":
    source = mmap.mmap(-1, min(MIB, region.size_bytes))
    owner.release_with("source buffer", source.close)
    source.write(os.urandom(len(source)))
    return ProcessVmWrite(region, source)


class ProcessVmWrite:
    """The source, written over and over into the whole region."""

    def __init__(self, region: Region, source: mmap.mmap) -> None:
        self.done_bytes: int | None = None
        self._source = source
        self._source_address = libc.address_of(source)
        self._pid = os.getpid()
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self._region = region
        self._parts = [
            (size_bytes, self._local(size_bytes), libc.iovecs([(address, size_bytes)]))
            for address, size_bytes in libc.pieces(region.address, region.size_bytes, CALL_BYTES)
        ]

    def _local(self, size_bytes: int) -> libc.Iovecs:
        lengths = [length for _, length in libc.pieces(0, size_bytes, MIB)]
        return libc.iovecs([(self._source_address, length) for length in lengths])

    def acquire(self) -> int:
        self.done_bytes = None
        write, pid = libc.process_vm_writev, self._pid
        written = elapsed_ns = 0
        for size_bytes, local, remote in self._parts:
            start_ns = monotonic_ns()
            result = write(pid, local, remote)
            elapsed_ns += monotonic_ns() - start_ns
            if written == 0:
                libc.check("process_vm_writev", result, elapsed_ns=elapsed_ns)
            written += max(result, 0)
            if result < size_bytes:  # a refusal behind the first bytes is a short write
                self.done_bytes = written
                return elapsed_ns
        self._verify(elapsed_ns)
        return elapsed_ns

    def release(self) -> int:
        """Nothing to give back: the pins ended with the call. The next cycle writes other bytes."""
        self._source[:] = os.urandom(len(self._source))
        return 0

    def _verify(self, elapsed_ns: int) -> None:
        expected = bytes(self._source)
        for start in range(0, self._region.size_bytes, MIB):
            length = min(MIB, self._region.size_bytes - start)
            if bytes(self._region.buffer[start : start + length]) != expected[:length]:
                detail = f"other bytes than written within 1 MiB of offset {start}"
                raise CallFailed("process_vm_writev", errno.EIO, detail, elapsed_ns)
