"""/proc/PID/fdinfo/FD of an io_uring: the buffers that are registered with the ring.

``UserBufs:`` and a line ``INDEX: ADDRESS/BYTES`` for each slot: a level, per ring, since Linux 5.10
(io_uring/fdinfo.c). An empty slot is ``<none>`` on 7.2 and the address -1 on 6.1 and 6.12; pages of
a block request that a driver lent (ublk, io_buffer_register_bvec()) have the address 0. The lines
are left out while somebody else is in the ring (mutex_trylock() of uring_lock; on 7.2 all but the
lines that every file has), so a second look is worth it. ``ino:``, since 5.19, tells rings apart:
each has an inode of its own, whose number two processes that share the ring both see.
"""

import re
import time
from dataclasses import dataclass

from telemetry import fdinfo

_HEAD = "\nUserBufs:\t"
_SLOT = re.compile(r" *\d+: (?:0x([0-9a-f]+)/(\d+)|<none>)")
_EMPTY = 0xFFFFFFFFFFFFFFFF  # dummy_ubuf of 6.1 and 6.12
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Buffer:
    """A registered range of user memory, as it was asked for. Bytes."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Ring:
    """``inode``: None before 5.19. ``buffers``: None where the kernel did not tell just now.

    ``kernel_buffers``: slots that hold pages of a block request, which nobody pinned.
    """

    inode: int | None
    buffers: tuple[Buffer, ...] | None
    kernel_buffers: int = 0


def parse(text: str) -> Ring:
    inode = re.search(r"^ino:\t(\d+)$", text, re.MULTILINE)
    number = int(inode[1]) if inode else None
    # The last: what comes before may hold the name of a file, which on 6.1 is printed as it is.
    start = text.rfind(_HEAD)
    if start < 0:
        return Ring(number, None)
    count, *lines = text[start + len(_HEAD) :].split("\n")
    slots = [_SLOT.fullmatch(line) for line in lines[: int(count)]]
    if len(slots) < int(count) or None in slots:
        return Ring(number, None)
    filled = [(int(slot[1], 16), int(slot[2])) for slot in slots if slot and slot[1]]
    buffers = tuple(Buffer(*pair) for pair in filled if pair[0] not in (0, _EMPTY))
    return Ring(number, buffers, sum(address == 0 for address, _ in filled))


def read(pid: int | str, fd: int) -> Ring:
    """Raises PermissionError for another's process, FileNotFoundError when it is gone.

    Looks again for some milliseconds when somebody is in the ring.
    """
    pause_s = 0.0002
    for attempt in range(_TRIES):
        ring = parse(fdinfo.read_text(pid, fd))
        if ring.buffers is not None or attempt == _TRIES - 1:
            break
        time.sleep(pause_s)
        pause_s *= 2
    return ring
