"""/proc/PID/pagemap: which page frame backs each page of a process.

One 64-bit word per page of PAGE_SIZE; a level; per process. Since Linux 2.6.25. Bit 63 present, bit
62 swapped, bit 56 mapped by nobody else (since 4.2), bits 0 to 54 the page frame number. The frame
number is for CAP_SYS_ADMIN only: 4.0 and 4.1 refuse the open (EPERM), from 4.2 on others see zeros.
See Documentation/admin-guide/mm/pagemap.rst.
"""

import mmap
import os
from array import array
from dataclasses import dataclass

PRESENT = 1 << 63
SWAPPED = 1 << 62
EXCLUSIVE = 1 << 56
PFN_MASK = (1 << 55) - 1
ENTRY_BYTES = 8


class FramesHidden(PermissionError):
    """The kernel shows which pages are present, but not where they lie."""


@dataclass(frozen=True, slots=True)
class Pages:
    """``frames``: one entry per page, None where no page is present (absent or swapped out).

    ``hidden``: pages are present and the kernel shows frame 0 for all of them (no CAP_SYS_ADMIN).
    Frame 0 itself belongs to the firmware on every architecture we know, never to a process.
    """

    frames: list[int | None]
    present_pages: int
    swapped_pages: int
    hidden: bool


def parse(data: bytes) -> Pages:
    """From native-endian 64-bit words as read from pagemap."""
    words = array("Q", data)
    frames = [word & PFN_MASK if word & PRESENT else None for word in words]
    present = len(frames) - frames.count(None)
    return Pages(
        frames=frames,
        present_pages=present,
        swapped_pages=sum(1 for word in words if word & SWAPPED) if present < len(words) else 0,
        hidden=present > 0 and not any(frames),
    )


def read(address: int, size_bytes: int, pid: int | str = "self") -> Pages:
    """The pages that [address, address + size_bytes) touches.

    Raises FramesHidden when the file itself may not be opened (another user's process, or a kernel
    that refuses), OSError when the process is gone.
    """
    return parse(_words(address, size_bytes, pid))


def words(address: int, size_bytes: int) -> list[int]:
    """The word of each page of this process; raises FramesHidden where ``read`` does."""
    return array("Q", _words(address, size_bytes, "self")).tolist()


def _words(address: int, size_bytes: int, pid: int | str) -> bytes:
    first = address // mmap.PAGESIZE
    count = -(-(address + size_bytes) // mmap.PAGESIZE) - first
    return _pread_all(f"/proc/{pid}/pagemap", first * ENTRY_BYTES, count * ENTRY_BYTES)


def _pread_all(path: str, offset: int, size_bytes: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise FramesHidden(error.errno, error.strerror, path) from error
    try:
        chunks = []
        while size_bytes > 0 and (chunk := os.pread(fd, size_bytes, offset)):
            chunks.append(chunk)
            offset += len(chunk)
            size_bytes -= len(chunk)
    finally:
        os.close(fd)
    # The file ends at the top of user space; what lies beyond is not present.
    return b"".join(chunks) + bytes(size_bytes)


def frames(address: int, size_bytes: int, pid: int | str = "self") -> list[int | None]:
    """The page frame number of each page, None where none is present.

    Raises FramesHidden rather than return zeros.
    """
    pages = read(address, size_bytes, pid)
    if pages.hidden:
        raise FramesHidden(1, "page frame numbers need CAP_SYS_ADMIN", f"/proc/{pid}/pagemap")
    return pages.frames


def visible() -> bool:
    """Whether this process may see page frame numbers, tried on a page that is certainly present:
    the one that holds a live Python object."""
    try:
        return bool(frames(id(PRESENT), 1))
    except OSError:
        return False
