"""Where the pages of a buffer lie: zone, CMA or not, node, folio sizes.

Put together from pagemap (frames), zoneinfo (zones and nodes), kpageflags (folios) and the CMA
ranges that cma.py found. A statement about one moment: pages migrate.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from telemetry import kpageflags, pagemap, zoneinfo

DEVICE_ZONE = "Device"
NO_ZONE = "none"


@dataclass(frozen=True, slots=True)
class Placement:
    """All figures in pages of PAGE_SIZE; a frame that is mapped twice counts twice.

    ``zones``: by zone name over all nodes; ``Device`` is what has no online struct page (pmem, that
    is ZONE_DEVICE; seen through /proc/kpageflags only), ``none`` what lies in no zone's span.
    ``cma_pages``: None where the CMA ranges are not known. ``nodes``: node number as text; Device
    and none have no node. ``folio_orders``: order as text ("0" base pages, "9" 2 MiB on x86-64),
    without Device; None where /proc/kpageflags may not be read. ``absent_pages``: not present
    (never touched, or swapped out).
    """

    zones: dict[str, int]
    cma_pages: int | None
    nodes: dict[str, int]
    folio_orders: dict[str, int] | None
    absent_pages: int

    def to_json(self) -> dict[str, Any]:
        return {
            "zones": self.zones,
            "cma_pages": self.cma_pages,
            "nodes": self.nodes,
            "folio_orders": self.folio_orders,
            "absent_pages": self.absent_pages,
        }

    @property
    def present_pages(self) -> int:
        return sum(self.zones.values())


def of(
    address: int,
    size_bytes: int,
    cma_ranges: Sequence[tuple[int, int]] | None,
    zones: Iterable[zoneinfo.Zone] | None = None,
) -> Placement | None:
    """Where [address, address + size_bytes) of this process lies now.

    None when page frames are hidden from this process. ``zones``: to save reading /proc/zoneinfo.
    """
    try:
        frames = pagemap.frames(address, size_bytes)
    except pagemap.FramesHidden:
        return None
    present = sorted(pfn for pfn in frames if pfn is not None)
    if zones is None:
        zones = zoneinfo.read()
    return place(present, len(frames) - len(present), cma_ranges, zones)


def place(
    sorted_pfns: Sequence[int],
    absent_pages: int,
    cma_ranges: Sequence[tuple[int, int]] | None,
    zones: Iterable[zoneinfo.Zone],
) -> Placement:
    """The placement of these frames (sorted, repeats allowed)."""
    orders = kpageflags.folio_orders(sorted_pfns)
    # ZONE_DEVICE (pmem) can lie inside the span of another zone; it has no online struct page.
    device = orders.without_page if orders is not None else []
    online: Sequence[int] = sorted_pfns
    if device:
        offline = set(device)
        online = [pfn for pfn in sorted_pfns if pfn not in offline]
    by_zone: dict[str, int] = {DEVICE_ZONE: len(device)} if device else {}
    by_node: dict[str, int] = {}
    for zone, count in zoneinfo.count_pages(online, zones):
        by_zone[zone.name] = by_zone.get(zone.name, 0) + count
        by_node[str(zone.node)] = by_node.get(str(zone.node), 0) + count
    if unlisted := len(sorted_pfns) - sum(by_zone.values()):
        by_zone[NO_ZONE] = unlisted
    return Placement(
        zones=by_zone,
        cma_pages=None if cma_ranges is None else _inside(sorted_pfns, cma_ranges),
        nodes=by_node,
        folio_orders=None
        if orders is None
        else {str(order): count for order, count in sorted(orders.pages.items())},
        absent_pages=absent_pages,
    )


def _inside(sorted_pfns: Sequence[int], ranges: Iterable[tuple[int, int]]) -> int:
    return sum(
        bisect_left(sorted_pfns, end) - bisect_left(sorted_pfns, first) for first, end in ranges
    )
