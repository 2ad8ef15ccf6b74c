"""O_DIRECT between the region and a file: the kernel holds the pages only while the call runs.

One preadv or pwritev at offset 0 moves the whole region. The target is a nameless file of its
own. Alignment is the
case's affair: an odd size is handed to the kernel as it is.
"""

import errno
import mmap
import os
from collections.abc import Callable
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.scratch import nameless_file
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Surroundings

WORD_BYTES = 8


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "DirectIO":
    target = _target(around.scratch["target"], region.size_bytes, owner)
    if case.workload == "dio-read":
        return DirectRead("preadv", os.preadv, target, region)
    return DirectIO("pwritev", os.pwritev, target, region)


class DirectIO:
    """One transfer of the whole region."""

    def __init__(
        self, call: str, transfer: Callable[..., int], target: int, region: Region
    ) -> None:
        self.done_bytes: int | None = None
        self._call = call
        self._transfer = transfer
        self._target = target
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self.region = region
        self._parts = [
            (offset, [region.buffer[offset : min(offset + libc.MAX_RW_COUNT, region.size_bytes)]])
            for offset in range(0, region.size_bytes, libc.MAX_RW_COUNT)
        ]

    def acquire(self) -> int:
        """Move all bytes; a refusal behind the first bytes is a short transfer."""
        self.done_bytes = None
        transfer, target = self._transfer, self._target
        elapsed_ns = 0
        for offset, buffers in self._parts:
            start_ns = monotonic_ns()
            try:
                moved = transfer(target, buffers, offset)
            except OSError as error:
                elapsed_ns += monotonic_ns() - start_ns
                if offset == 0:
                    raise CallFailed(self._call, error.errno or 0, "", elapsed_ns) from error
                self.done_bytes = offset
                return elapsed_ns
            elapsed_ns += monotonic_ns() - start_ns
            if moved < len(buffers[0]):
                self.done_bytes = offset + moved
                return elapsed_ns
        return elapsed_ns

    def release(self) -> int:
        """Nothing to give back: the pins ended with the call."""
        return 0


class DirectRead(DirectIO):
    """The same, and the bytes must have arrived: all are compared once, then the outer pages."""

    _compared_all = False

    def acquire(self) -> int:
        elapsed_ns = super().acquire()
        if self.done_bytes is None:
            self._verify(elapsed_ns)
        return elapsed_ns

    def release(self) -> int:
        """Wipe what is compared, so that the next cycle's bytes prove themselves.

        Memory that is made anew for each cycle is left alone: it is not to be touched.
        """
        if not self.region.spec.fresh_each_cycle:
            for start, end in self._outer_pages():
                self.region.buffer[start:end] = bytes(end - start)
        return 0

    def _verify(self, elapsed_ns: int) -> None:
        size_bytes = self.region.size_bytes
        ranges = [(start, min(start + MIB, size_bytes)) for start in range(0, size_bytes, MIB)]
        for start, end in self._outer_pages() if self._compared_all else ranges:
            if bytes(self.region.buffer[start:end]) != _content(start, end):
                detail = f"wrong bytes arrived at offset {start} to {end}"
                raise CallFailed(self._call, errno.EIO, detail, elapsed_ns)
        self._compared_all = True

    def _outer_pages(self) -> list[tuple[int, int]]:
        size_bytes = self.region.size_bytes
        last = (size_bytes - 1) // PAGE_BYTES * PAGE_BYTES
        return [(0, min(PAGE_BYTES, size_bytes)), (last, size_bytes)]


def _target(directory: str, size_bytes: int, owner: Owner) -> int:
    """A descriptor of a new nameless file with every block written."""
    target = nameless_file(directory, owner, os.O_DIRECT)
    file_bytes = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
    with mmap.mmap(-1, MIB) as block, memoryview(block) as aligned:
        for start in range(0, file_bytes, MIB):
            length = min(MIB, file_bytes - start)
            aligned[:length] = _content(start, start + length)
            with libc.refusal_of("pwritev", directory):
                os.pwritev(target, [aligned[:length]], start)
    with libc.refusal_of("fsync", directory):
        os.fsync(target)
    return target


def _content(start: int, end: int) -> bytes:
    """What the target holds from ``start``, a page boundary, to ``end``: each page its number."""
    pages = range(start // PAGE_BYTES, -(-end // PAGE_BYTES))
    words = PAGE_BYTES // WORD_BYTES
    content = b"".join((page + 1).to_bytes(WORD_BYTES, "little") * words for page in pages)
    return content[: end - start]
