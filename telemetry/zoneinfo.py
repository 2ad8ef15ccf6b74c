"""/proc/zoneinfo: where each memory zone lies, and how stale its counters may be.

Page frame numbers and pages of PAGE_SIZE; levels; machine-wide, one block per node and zone. Since
Linux 2.6.13; ``cma`` since 5.12. See Documentation/filesystems/proc.rst and zoneinfo_show_print()
in mm/vmstat.c. A zone without present pages shows neither ``start_pfn`` nor thresholds. ZONE_DEVICE
(pmem with struct pages) is always such a zone, and its frames can lie inside the span of another:
measured with memmap=512M!4G, where Normal spans from 4 GiB. placement.py tells them apart.

Zones of two nodes may overlap where the firmware interleaves nodes; then zone_of() names the first.
"""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ZONEINFO = Path("/proc/zoneinfo")

_HEAD = re.compile(r"^Node (\d+), zone +(\S+)$", re.MULTILINE)
_FIELDS = {
    "free_pages": re.compile(r"^  pages free +(\d+)$", re.MULTILINE),
    "spanned_pages": re.compile(r"^ +spanned +(\d+)$", re.MULTILINE),
    "present_pages": re.compile(r"^ +present +(\d+)$", re.MULTILINE),
    "managed_pages": re.compile(r"^ +managed +(\d+)$", re.MULTILINE),
    "cma_pages": re.compile(r"^ +cma +(\d+)$", re.MULTILINE),
    "start_pfn": re.compile(r"^  start_pfn: +(\d+)$", re.MULTILINE),
}
_FREE = b"\n  pages free "
_READ_BYTES = 1 << 16
_THRESHOLD = re.compile(r"^  vm stats threshold: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of one node. ``spanned`` counts holes, ``managed`` what the page allocator owns.

    ``stat_thresholds``: per online CPU, how many pages of a *zone* counter may wait in that CPU
    before they are folded. kswapd lowers it while memory is short; see vmstat.delta_bound().
    """

    node: int
    name: str
    start_pfn: int | None
    spanned_pages: int
    present_pages: int
    managed_pages: int
    free_pages: int | None
    cma_pages: int | None
    stat_thresholds: tuple[int, ...]

    @property
    def end_pfn(self) -> int | None:
        """One past the last frame of the span."""
        return None if self.start_pfn is None else self.start_pfn + self.spanned_pages

    @property
    def stat_threshold(self) -> int | None:
        return max(self.stat_thresholds, default=None)

    def holds(self, pfn: int) -> bool:
        return self.start_pfn is not None and (
            self.start_pfn <= pfn < self.start_pfn + self.spanned_pages
        )


def parse(text: str) -> tuple[Zone, ...]:
    """All zones in the kernel's order, unpopulated ones too."""
    return tuple(_parse_zone(block) for block in _blocks(text))


def _blocks(text: str) -> Iterator[tuple[int, str, str]]:
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    for head, end in zip(heads, ends, strict=True):
        yield int(head[1]), head[2], text[head.end() : end]


def _parse_zone(block: tuple[int, str, str]) -> Zone:
    node, name, body = block
    # The lines before "pages free" are per-node statistics, which share no name with the fields.
    found = {key: pattern.search(body) for key, pattern in _FIELDS.items()}
    value = {key: int(match[1]) if match else None for key, match in found.items()}
    return Zone(
        node=node,
        name=name,
        start_pfn=value["start_pfn"],
        spanned_pages=value["spanned_pages"] or 0,
        present_pages=value["present_pages"] or 0,
        managed_pages=value["managed_pages"] or 0,
        free_pages=value["free_pages"],
        cma_pages=value["cma_pages"],
        stat_thresholds=tuple(int(number) for number in _THRESHOLD.findall(body)),
    )


def read() -> tuple[Zone, ...]:
    return parse(ZONEINFO.read_text(encoding="ascii"))


class FreePages:
    """Free pages of each populated zone, the file held open: a look at it, not a parse.

    ``names``: ``node0.Normal``, … The figures are folded per CPU only now and then.
    """

    def __init__(self) -> None:
        """OSError where there is no such file."""
        self._fd = os.open(ZONEINFO, os.O_RDONLY | os.O_CLOEXEC)
        zones = [zone for zone in parse(self.read().decode("ascii")) if zone.present_pages]
        self.names = tuple(f"node{zone.node}.{zone.name}" for zone in zones)
        self._heads = heads(zones)

    def read(self) -> bytes:
        """For ``values``."""
        data = b""
        while more := os.pread(self._fd, _READ_BYTES, len(data)):
            data += more
        return data

    def values(self, data: bytes) -> list[int]:
        """In the order of ``names``. ValueError when a zone is gone."""
        return free_of(data, self._heads)

    def close(self) -> None:
        os.close(self._fd)


def heads(zones: Iterable[Zone]) -> tuple[bytes, ...]:
    """The first line of each zone."""
    return tuple(f"Node {zone.node}, zone {zone.name:>8}\n".encode() for zone in zones)


def free_of(data: bytes, heads: Iterable[bytes]) -> list[int]:
    """``pages free`` behind each of these first lines, which come in the order of the file."""
    found, end = [], 0
    for head in heads:
        start = data.index(_FREE, data.index(head, end)) + len(_FREE)
        end = data.index(b"\n", start)
        found.append(int(data[start:end]))
    return found


def populated(zones: Iterable[Zone]) -> list[Zone]:
    """The zones that have a place, lowest first."""
    return sorted(
        (zone for zone in zones if zone.start_pfn is not None and zone.spanned_pages),
        key=lambda zone: (zone.start_pfn or 0, zone.node),
    )


def zone_of(pfn: int, zones: Iterable[Zone]) -> Zone | None:
    """The zone whose span (holes included) holds the frame; None outside all of them."""
    return next((zone for zone in populated(zones) if zone.holds(pfn)), None)


def count_pages(sorted_pfns: Sequence[int], zones: Iterable[Zone]) -> list[tuple[Zone, int]]:
    """How many of the frames (sorted, repeats allowed) lie in each zone that holds any."""
    counts = []
    done = 0
    for zone in populated(zones):
        assert zone.end_pfn is not None
        first = max(done, bisect_left(sorted_pfns, zone.start_pfn or 0))
        done = max(done, bisect_right(sorted_pfns, zone.end_pfn - 1))
        if done > first:
            counts.append((zone, done - first))
    return counts


def free_pages(zones: Iterable[Zone]) -> dict[str, int]:
    """Free pages by zone name over all nodes, populated zones only."""
    free: dict[str, int] = {}
    for zone in zones:
        if zone.present_pages and zone.free_pages is not None:
            free[zone.name] = free.get(zone.name, 0) + zone.free_pages
    return free
