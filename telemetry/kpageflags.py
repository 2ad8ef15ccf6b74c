"""/proc/kpageflags: what the kernel says about page frames; here, how large their folios are.

One 64-bit word per page frame; a level; machine-wide; root only (0400). Since Linux 2.6.25. A frame
of a folio of order k > 0 carries COMPOUND_HEAD or COMPOUND_TAIL; a base page neither: order 0. A
frame without an online struct page (a hole, and ZONE_DEVICE since 5.7) reads as NOPAGE alone, and
as 0 on 7.2 (measured); a page that a process has mapped never does, since MMAP is set.
See Documentation/admin-guide/mm/pagemap.rst and include/uapi/linux/kernel-page-flags.h.
"""

import os
import re
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

KPAGEFLAGS = "/proc/kpageflags"
ENTRY_BYTES = 8

MMAP = 1 << 11
ANON = 1 << 12
SWAPBACKED = 1 << 14
COMPOUND_HEAD = 1 << 15
COMPOUND_TAIL = 1 << 16
HUGE = 1 << 17
NOPAGE = 1 << 20
KSM = 1 << 21
THP = 1 << 22
ZERO_PAGE = 1 << 24

# What a frame is, one byte each; a base page is 0.
HEAD, TAIL, HOLE = 1, 2, 4
_FOLIO = re.compile(rb"\x01\x02*|\x02+|\x00+|\x04+")

# Reading over a gap this wide costs less than one more system call.
GAP_PAGES = 32
CHUNK_PAGES = 64
_LARGEST_FOLIO_PAGES = 1 << 18  # a 1 GiB huge page of 4 KiB pages


@dataclass(frozen=True, slots=True)
class FolioOrders:
    """``pages``: folio order -> how many of the asked-for pages lie in folios of that order.
    ``without_page``: the frames (sorted) that have no online struct page, and so no folio."""

    pages: dict[int, int]
    without_page: list[int]


class PageFlags:
    """The file, held open. Flags change under the reader: a folio may be split in between."""

    def __init__(self) -> None:
        self._fd = os.open(KPAGEFLAGS, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, pfn: int, count: int) -> bytes:
        """The words of frames [pfn, pfn + count), native byte order; fewer at the end of memory."""
        data = os.pread(self._fd, count * ENTRY_BYTES, pfn * ENTRY_BYTES)
        return data[: len(data) // ENTRY_BYTES * ENTRY_BYTES]

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse(data: bytes) -> list[int]:
    """The flags of each frame."""
    return array("Q", data).tolist()


def of_frames(sorted_pfns: Sequence[int]) -> list[int] | None:
    """The flags of each of these frames (sorted); None where the file may not be read."""
    try:
        page_flags = PageFlags()
    except OSError:
        return None
    found: list[int] = []
    with page_flags:
        for first, end in runs(sorted_pfns):
            flags = parse(page_flags.read(first, end - first))
            low, high = bisect_left(sorted_pfns, first), bisect_left(sorted_pfns, end)
            found += [flags[pfn - first] for pfn in sorted_pfns[low:high]]
    return found


# Whole buffers at a time, without a loop over frames: emulated guests look at every cycle's pages.
_BYTE_1, _BYTE_2 = (1, 2) if sys.byteorder == "little" else (6, 5)
_KIND_OF_BYTE_1 = bytes(HEAD if byte & COMPOUND_HEAD >> 8 else 0 for byte in range(256))
_KIND_OF_BYTE_2 = bytes(
    (TAIL if byte & COMPOUND_TAIL >> 16 else 0) | (HOLE if byte & NOPAGE >> 16 else 0)
    for byte in range(256)
)


_KIND_OF_ANY = bytes(0 if byte else HOLE for byte in range(256))


def kinds(data: bytes) -> bytes:
    """One byte per frame that a process has mapped: 0 for a base page, HEAD, TAIL or HOLE."""
    heads = int.from_bytes(data[_BYTE_1::ENTRY_BYTES].translate(_KIND_OF_BYTE_1), "little")
    others = int.from_bytes(data[_BYTE_2::ENTRY_BYTES].translate(_KIND_OF_BYTE_2), "little")
    silent = -1
    for lane in range(ENTRY_BYTES):  # a frame is silent when all of its bytes are 0
        silent &= int.from_bytes(data[lane::ENTRY_BYTES].translate(_KIND_OF_ANY), "little")
    return (heads | others | silent).to_bytes(len(data) // ENTRY_BYTES, "little")


def runs(sorted_pfns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[first, one past the last] of stretches that are worth one read each."""
    if not sorted_pfns:
        return
    first = last = sorted_pfns[0]
    for start in range(0, len(sorted_pfns), CHUNK_PAGES):
        chunk = sorted_pfns[start : start + CHUNK_PAGES]
        if chunk[-1] - chunk[0] < 4 * CHUNK_PAGES and chunk[0] - last <= GAP_PAGES:
            last = chunk[-1]  # dense: no need to look at each
            continue
        for pfn in chunk:
            if pfn - last > GAP_PAGES:
                yield first, last + 1
                first = pfn
            last = pfn
    yield first, last + 1


def folio_orders(sorted_pfns: Sequence[int]) -> FolioOrders | None:
    """Orders of the folios that hold these frames (sorted, repeats count again).

    None where the file may not be read.
    """
    try:
        page_flags = PageFlags()
    except OSError:
        return None
    found = FolioOrders({}, [])
    with page_flags:
        for first, end in runs(sorted_pfns):
            start, data = _widened(page_flags, first, end)
            _count(sorted_pfns, start, data, found)
    return found


def _count(sorted_pfns: Sequence[int], start: int, data: bytes, found: FolioOrders) -> None:
    """Add to ``found`` what the kinds of the frames from ``start`` on say."""
    for folio in _FOLIO.finditer(data):
        low = bisect_left(sorted_pfns, start + folio.start())
        high = bisect_left(sorted_pfns, start + folio.end(), low)
        kind = data[folio.start()]
        if high == low:
            continue
        if kind & HOLE:
            found.without_page.extend(sorted_pfns[low:high])
            continue
        order = (folio.end() - folio.start() - 1).bit_length() if kind else 0
        found.pages[order] = found.pages.get(order, 0) + high - low


def _widened(page_flags: PageFlags, first: int, end: int) -> tuple[int, bytes]:
    """The kinds of [first, end), widened to whole folios at both ends: (first frame, kinds)."""
    data = kinds(page_flags.read(first, end - first))
    step = 512
    while data[:1] == bytes([TAIL]) and first > 0 and step <= _LARGEST_FOLIO_PAGES:
        # A folio is aligned to its size, so its head lies at a multiple of a power of two.
        start = (first - 1) // step * step
        data = kinds(page_flags.read(start, first - start)) + data
        first = start
        step *= 2
    step = 512
    while data[-1:] in (bytes([HEAD]), bytes([TAIL])) and step <= _LARGEST_FOLIO_PAGES:
        stop = first + len(data)
        more = kinds(page_flags.read(stop, (stop // step + 1) * step - stop))
        tails = len(more) - len(more.lstrip(bytes([TAIL])))
        data += more[:tails]
        if tails < len(more) or not more:
            break
        step *= 2
    return first, data
