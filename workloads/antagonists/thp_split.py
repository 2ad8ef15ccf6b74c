"""``thp-split``: huge pages are split by what is done to a part of them, and made huge again.

``madv-free`` splits the page itself, at once (madvise_free_huge_pmd() in mm/huge_memory.c, v6.1 to
v7.2); ``madv-dontneed`` and ``munmap`` split its mapping, and queue the page, which is split when
memory is short; ``mprotect`` splits its mapping alone. A page that somebody has pinned stays whole.
"""

import itertools
from contextlib import suppress
from time import monotonic_ns

import workloads
from workloads import libc
from workloads.antagonists.act import Acting, Done, die_first, parameters, size_bytes
from workloads.load.engine import Engine, Work
from workloads.memory import HUGE_BYTES, TOUCH_BYTE, Region, map_region
from workloads.memory.anon import mapped_huge_bytes
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, PrepareFailed

_WRITABLE = libc.PROT_READ | libc.PROT_WRITE
_ANONYMOUS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS


def prepare(work: Work, owner: Owner) -> Engine:
    die_first()
    how = str(parameters(work)["how"])
    spec = workloads.memory_spec("thp")
    region = map_region(spec, size_bytes(work, HUGE_BYTES), owner, _ANONYMOUS)
    places = range(region.address, region.address + region.mapped_bytes, HUGE_BYTES)
    libc.madvise(region.address, region.mapped_bytes, libc.MADV_HUGEPAGE)
    for place in places:
        _write(region, place)
        if work.stopped:
            break
    if not mapped_huge_bytes(region.address):
        raise PrepareFailed(
            "the kernel gives no transparent huge page: memory is fragmented, or they are switched"
            " off in /sys/kernel/mm/transparent_hugepage"
        )
    turn = itertools.cycle(places)

    def act() -> Done:
        place = next(turn)
        start_ns = monotonic_ns()
        _split(place, how)
        _make_huge(region, place)
        return monotonic_ns() - start_ns, HUGE_BYTES

    return Acting(work, act)


def _split(place: int, how: str) -> None:
    """By its second page."""
    page = place + PAGE_BYTES
    match how:
        case "madv-free":
            libc.madvise(page, PAGE_BYTES, libc.MADV_FREE)
        case "madv-dontneed":
            libc.madvise(page, PAGE_BYTES, libc.MADV_DONTNEED)
        case "mprotect":
            libc.mprotect(page, PAGE_BYTES, libc.PROT_READ)
            libc.mprotect(page, PAGE_BYTES, _WRITABLE)
        case "munmap":
            libc.munmap(page, PAGE_BYTES)
            # The hole is filled at once, before anything else can be mapped there.
            flags = _ANONYMOUS | libc.MAP_FIXED_NOREPLACE
            libc.mmap(page, PAGE_BYTES, _WRITABLE, flags)
            libc.madvise(page, PAGE_BYTES, libc.MADV_HUGEPAGE)


def _make_huge(region: Region, place: int) -> None:
    """Collapse it, without khugepaged; where that is refused, fault a new huge page in.

    Touched first: what MADV_FREE was told of is the process's own again.
    """
    _write(region, place)
    try:
        libc.madvise(place, HUGE_BYTES, libc.MADV_COLLAPSE)
    except CallFailed:
        # Before Linux 6.1 there is no such advice; later there may be no huge page to be had.
        with suppress(CallFailed):
            libc.madvise(place, HUGE_BYTES, libc.MADV_DONTNEED)
        _write(region, place)


def _write(region: Region, place: int) -> None:
    first = place - region.address
    region.buffer[first : first + HUGE_BYTES : PAGE_BYTES] = TOUCH_BYTE * (HUGE_BYTES // PAGE_BYTES)
