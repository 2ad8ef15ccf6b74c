"""The files that direct IO goes to: a nameless one for each process, written to its last block.

Nameless, so that nothing is left of it whatever ends the process. Written, because a read of a hole
or of an extent that was only reserved never reaches the device.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from workloads import libc
from workloads.load.integrity import Blocks
from workloads.load.spec import Job
from workloads.owner import Owner
from workloads.scratch import nameless_file
from workloads.spec import MIB, PrepareFailed, Surroundings

# The kind of scratch (Surroundings) that names one file for all processes, laid out by the caller.
LAID_OUT = "target-file"

# What is left to others on the file system: a tenth of it, and never more than this.
_SPARED_BYTES = 1 << 30
_WORKLOADS = ("dio-read", "dio-write", "dio-read-uring", "dio-write-uring")


def require_room(jobs: Sequence[Job], around: Surroundings) -> None:
    """PrepareFailed unless the files of all processes of these jobs fit on the disk together.

    To be asked once, before the first of them is made: later ones find less room because of them.
    """
    wanted = sum(job.file_bytes * job.processes for job in jobs if job.workload in _WORKLOADS)
    if wanted:
        _require(around.scratch["target"], wanted)


def new_target(
    directory: str,
    file_bytes: int,
    blocks: Blocks,
    owner: Owner,
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """A descriptor (O_DIRECT) of a new file of so many bytes: whole blocks of generation 1."""
    _require(directory, file_bytes)
    # O_NOATIME: a read is to cost no write of its time.
    target = nameless_file(directory, owner, os.O_DIRECT | os.O_NOATIME)
    with suppress(OSError):
        # In one extent where there is room: ext4_overwrite_io() takes a write over two extents for
        # one that may block, and io_uring then hands it to a worker thread.
        os.posix_fallocate(target, 0, file_bytes)
    per_part = max(1, MIB // blocks.grain_bytes)
    last = file_bytes // blocks.grain_bytes
    with mmap.mmap(-1, per_part * blocks.grain_bytes) as part, memoryview(part) as aligned:
        for first in range(0, last, per_part):
            if stopped():
                raise PrepareFailed(f"stopped while a target of {file_bytes} bytes was written")
            numbers = np.arange(first, min(first + per_part, last))
            made = blocks.made(numbers, np.ones_like(numbers))
            aligned[: made.nbytes] = made.data.cast("B")
            with libc.refusal_of("pwritev", directory):
                moved = os.pwritev(target, [aligned[: made.nbytes]], first * blocks.grain_bytes)
            if moved < made.nbytes:
                raise PrepareFailed(
                    f"{directory} took {moved} of {made.nbytes} bytes of the target at offset"
                    f" {first * blocks.grain_bytes}: is its disk full?"
                )
    with libc.refusal_of("fsync", directory):
        os.fsync(target)
    return target


def laid_out(path: str, owner: Owner) -> int:
    """A descriptor (O_DIRECT) of a file that the caller laid out, and wants back unchanged in size.

    For scripts/bench, whose peer is to read the same file. No suite can name one: nothing is ever
    written to a file that pinstorm did not make.
    """
    # Without O_NOATIME, which fio does not ask for either (3.33).
    with libc.refusal_of("open", path):
        target = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
    owner.release_with("target", lambda: os.close(target))
    return target


def _require(directory: str, wanted: int) -> None:
    with libc.refusal_of("statvfs", directory):
        disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    spared = min(disk.f_blocks * disk.f_frsize // 10, _SPARED_BYTES)
    if wanted > free - spared:
        raise PrepareFailed(
            f"the targets take {wanted} bytes in {directory}, which has {free} bytes free and is to"
            f" keep {spared}: make file_size or processes smaller, or give another --scratch"
        )
