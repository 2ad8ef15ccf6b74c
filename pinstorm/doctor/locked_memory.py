"""What is charged to this user's locked memory already, asked of the kernel itself.

user->locked_vm stands in no file. But the kernel compares it with RLIMIT_MEMLOCK whenever a page is
registered with an io_uring: __io_account_mem() refuses when the pages charged and the new ones are
more than the limit. So a child lowers its own limit until one page of its own is refused. The page
is pinned for microseconds, and given back; nothing else changes. See io_uring_register(2).
"""

import json
import os
import resource
from dataclasses import dataclass
from errno import ENOMEM
from typing import Any, Final

from workloads import libc
from workloads.spec import PAGE_BYTES, CallFailed

_MEMLOCK: Final = resource.RLIMIT_MEMLOCK
# The queues of a ring of one entry, where they are charged (io_uring/memmap.c).
_RING_PAGES: Final = 2
_MOST_RING_PAGES: Final = 16


@dataclass(frozen=True, slots=True)
class Charged:
    """``used_bytes``: charged to the user before, by whatever it is; None: the hard limit leaves no
    room for a ring and a page. ``ring_bytes``: what a ring of one entry is charged itself: 0 before
    Linux v6.14 and from v7.2 on."""

    used_bytes: int | None
    ring_bytes: int


class NotMeasured(Exception):
    """The kernel could not be asked; the text says why."""


def measure() -> Charged:
    """In a child, which ends with all that it made. NotMeasured.

    Not for a process with CAP_IPC_LOCK: nothing is compared there.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(_answer()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answer: dict[str, Any] = json.loads(text or b'{"why": "the child that asked has died"}')
    if "why" in answer:
        raise NotMeasured(answer["why"])
    return Charged(answer["used_bytes"], answer["ring_bytes"])


def _answer() -> dict[str, Any]:
    try:
        return _measure()
    except CallFailed as error:
        return {"why": f"{error.call}: {os.strerror(error.errno)}"}
    except NotMeasured as error:
        return {"why": str(error)}
    except OSError as error:
        return {"why": error.strerror or str(error)}


def _measure() -> dict[str, Any]:
    _, hard = resource.getrlimit(_MEMLOCK)
    top = (1 << 62 if hard == resource.RLIM_INFINITY else hard) // PAGE_BYTES
    _limit(top)
    try:
        ring = libc.io_uring_setup(1)
    except CallFailed as error:
        if error.errno == ENOMEM:  # not even a ring's queues
            return _used_up(top)
        raise
    page = _Page(ring)
    if not page.fits(top):
        return _used_up(top)
    low, high = 0, top  # refused at low pages, taken at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if page.fits(middle) else (middle, high)
    charged = high - 1  # with this ring's own
    ring_pages = _ring_pages(charged, top)
    return {
        "used_bytes": max(0, charged - ring_pages) * PAGE_BYTES,
        "ring_bytes": ring_pages * PAGE_BYTES,
    }


def _used_up(top: int) -> dict[str, Any]:
    """Unless a ring and a page would not fit into so small a limit anyway. NotMeasured."""
    if top <= _RING_PAGES:
        raise NotMeasured(f"the hard limit, {top} pages, has no room for a ring and a page")
    return {"used_bytes": None, "ring_bytes": 0}


def _ring_pages(charged: int, top: int) -> int:
    """Of a second ring, by the least limit that lets it be made; one is made at most."""
    for pages in range(_MOST_RING_PAGES):
        if charged + pages > top:
            break
        _limit(charged + pages)
        try:
            os.close(libc.io_uring_setup(1))
        except CallFailed as error:
            if error.errno != ENOMEM:
                raise
        else:
            return pages
    return 0


def _limit(pages: int) -> None:
    _, hard = resource.getrlimit(_MEMLOCK)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 62
    resource.setrlimit(_MEMLOCK, (min(pages * PAGE_BYTES, most), hard))


class _Page:
    """One page of our own, and whether it can be registered under a limit."""

    def __init__(self, ring: int):
        self._ring = ring
        flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
        self._address = libc.mmap(0, PAGE_BYTES, libc.PROT_READ | libc.PROT_WRITE, flags)
        # io_uring is charged for whole folios
        libc.madvise(self._address, PAGE_BYTES, libc.MADV_NOHUGEPAGE)
        self._buffers = libc.iovecs([(self._address, PAGE_BYTES)])

    def fits(self, pages: int) -> bool:
        """With a limit of so many pages. CallFailed: refused for another reason."""
        _limit(pages)
        register, ring = libc.io_uring_register, self._ring
        try:
            result = register(ring, libc.IORING_REGISTER_BUFFERS, self._buffers, 1)
            libc.check("io_uring_register", result)
        except CallFailed as error:
            if error.errno != ENOMEM:
                raise
            return False
        libc.check("io_uring_register", register(ring, libc.IORING_UNREGISTER_BUFFERS, None, 0))
        return True
