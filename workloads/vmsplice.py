"""vmsplice into pipes: the negative control. The pipes hold references (FOLL_GET), and no pins.

A pipe holds one page a slot and grows only up to /proc/sys/fs/pipe-max-size (a level in bytes,
machine-wide, since 2.6.35) where the process lacks CAP_SYS_RESOURCE: as many pipes are made as the
region needs. See pipe(7) and vmsplice(2).
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, Case, Surroundings

PIPE_MAX_SIZE = Path("/proc/sys/fs/pipe-max-size")


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "Vmsplice":
    with libc.refusal_of("open", os.devnull):
        sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    owner.release_with(os.devnull, lambda: os.close(sink))
    pipes = []
    piped_bytes = 0
    wanted_bytes = case.pages * PAGE_BYTES  # a page that is only touched takes a slot as well
    while piped_bytes < wanted_bytes:
        pipe = _pipe(wanted_bytes - piped_bytes, owner)
        piped_bytes += pipe.capacity_bytes
        pipes.append(pipe)
    return Vmsplice(region, pipes, sink)


class Pipe(NamedTuple):
    """Descriptors of the two ends, and how many bytes of whole pages fit."""

    reader: int
    writer: int
    capacity_bytes: int


class Vmsplice:
    """The whole region in pipes; released by draining them to /dev/null."""

    def __init__(self, region: Region, pipes: list[Pipe], sink: int) -> None:
        self.done_bytes: int | None = None
        self._pipes = pipes
        self._sink = sink
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self._parts = []
        offset = 0
        for pipe in self._pipes:
            room_bytes = pipe.capacity_bytes - (region.address + offset) % PAGE_BYTES
            length = min(region.size_bytes - offset, room_bytes)
            vectors = libc.iovecs([(region.address + offset, length)])
            self._parts.append((pipe.reader, pipe.writer, vectors))
            offset += length

    def acquire(self) -> int:
        self.done_bytes = None
        splice, parts = libc.vmsplice, self._parts
        done = elapsed_ns = 0
        for _, writer, vectors in parts:
            start_ns = monotonic_ns()
            result = splice(writer, vectors, libc.SPLICE_F_NONBLOCK)
            elapsed_ns += monotonic_ns() - start_ns
            if done == 0:
                libc.check("vmsplice", result, elapsed_ns=elapsed_ns)
            done += max(result, 0)
            if result < vectors[0].length:  # a refusal behind the first bytes is a short splice
                self.done_bytes = done
                break
        return elapsed_ns

    def release(self) -> int:
        elapsed_ns = 0
        for reader, _, vectors in self._parts:
            start_ns = monotonic_ns()
            with libc.refusal_of("splice"):
                _drain(reader, self._sink, vectors[0].length)
            elapsed_ns += monotonic_ns() - start_ns
        return elapsed_ns


def _drain(reader: int, sink: int, size_bytes: int) -> None:
    """At most ``size_bytes`` out of the pipe; less when it holds less."""
    splice: Callable[..., int] = os.splice
    try:
        while size_bytes > 0:
            size_bytes -= splice(reader, sink, size_bytes, flags=libc.SPLICE_F_NONBLOCK)
    except BlockingIOError:
        pass


def _pipe(wanted_bytes: int, owner: Owner) -> Pipe:
    """A pipe of at least a page, as large as wanted or as the kernel grants."""
    with libc.refusal_of("pipe2"):
        reader, writer = os.pipe()
    owner.release_with("pipe's reader", lambda: os.close(reader))
    owner.release_with("pipe's writer", lambda: os.close(writer))
    for size_bytes in (wanted_bytes, int(PIPE_MAX_SIZE.read_text())):
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, max(size_bytes, PAGE_BYTES))
            break
        except OSError:  # over pipe-max-size, or over what this user's pipes may hold
            continue
    return Pipe(reader, writer, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
