"""O_DIRECT between the region and a file: the kernel holds the pages only while the call runs.

One preadv or pwritev at offset 0 moves the whole region; more than MAX_RW_COUNT takes several. The
target is a nameless file of its own. Alignment is the case's affair: an odd size or address is
handed to the kernel as it is.
"""

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import Any, Protocol

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.scratch import nameless_file
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Surroundings

WORD_BYTES = 8


class Transport(Protocol):
    """How a part of the region reaches the target file, or comes from it."""

    call: str
    target: int

    def part(self, region: Region, offset: int, length: int) -> tuple[Any, ...]:
        """The arguments of ``move`` for that part of the region and of the file."""

    @property
    def move(self) -> Callable[..., int]:
        """Bytes moved, or OSError."""


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "DirectIO":
    target = new_target(around.scratch["target"], region.size_bytes, owner)
    if case.workload == "dio-read":
        return DirectRead(Vectored("preadv", os.preadv, target), region)
    return DirectIO(Vectored("pwritev", os.pwritev, target), region)


class Vectored:
    """One preadv or pwritev each."""

    def __init__(self, call: str, move: Callable[..., int], target: int) -> None:
        self.call = call
        self.move = move
        self.target = target

    def part(self, region: Region, offset: int, length: int) -> tuple[Any, ...]:
        return self.target, [region.buffer[offset : offset + length]], offset


class DirectIO:
    """One transfer of the whole region."""

    def __init__(
        self, transport: Transport, region: Region, part_bytes: int = libc.MAX_RW_COUNT
    ) -> None:
        self.done_bytes: int | None = None
        self.transport = transport
        self._part_bytes = part_bytes
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self.region = region
        self._parts = [
            (offset, length, self.transport.part(region, offset, length))
            for offset, length in libc.pieces(0, region.size_bytes, self._part_bytes)
        ]

    def acquire(self) -> int:
        """Move all bytes; a refusal behind the first bytes is a short transfer."""
        self.done_bytes = None
        move = self.transport.move
        elapsed_ns = 0
        for offset, length, arguments in self._parts:
            start_ns = monotonic_ns()
            try:
                moved = move(*arguments)
            except OSError as error:
                elapsed_ns += monotonic_ns() - start_ns
                if offset == 0:
                    call = self.transport.call
                    raise CallFailed(call, error.errno or 0, "", elapsed_ns) from error
                self.done_bytes = offset
                return elapsed_ns
            elapsed_ns += monotonic_ns() - start_ns
            if moved < length:
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
                raise CallFailed(self.transport.call, errno.EIO, detail, elapsed_ns)
        self._compared_all = True

    def _outer_pages(self) -> list[tuple[int, int]]:
        size_bytes = self.region.size_bytes
        last = (size_bytes - 1) // PAGE_BYTES * PAGE_BYTES
        return [(0, min(PAGE_BYTES, size_bytes)), (last, size_bytes)]


def new_target(directory: str, size_bytes: int, owner: Owner) -> int:
    """A descriptor of a new nameless file with every block written."""
    target = nameless_file(directory, owner, os.O_DIRECT)
    file_bytes = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
    with suppress(OSError):
        # In one extent where there is room: ext4_overwrite_io() takes a write over two extents for
        # one that may block, and io_uring then hands it to a worker thread.
        os.posix_fallocate(target, 0, file_bytes)
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
