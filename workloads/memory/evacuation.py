"""Where pages may not stay: CMA and ZONE_MOVABLE, out of which a long-term pin migrates them.

In a guest with a large CMA plain memory lands there too, and a case on ``anon`` would then measure
a migration that it does not name. A long-term pin and its unpin, before the case, moves the pages
out: folio_is_longterm_pinnable() in include/linux/mm.h.
"""

import functools
import os
from bisect import bisect_left
from collections.abc import Sequence

from telemetry import pagemap, zoneinfo
from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, PrepareFailed, Surroundings

FrameRange = tuple[int, int]
"""First page frame number, one past the last."""


def count_movable(region: Region, ranges: Sequence[FrameRange]) -> int:
    """How many pages of the region lie in the ranges, which may overlap."""
    frames = sorted(
        frame for frame in pagemap.frames(region.address, region.mapped_bytes) if frame is not None
    )
    inside = counted_to = 0
    for first, end in sorted(ranges):
        low = max(counted_to, bisect_left(frames, first))
        counted_to = max(low, bisect_left(frames, end))
        inside += counted_to - low
    return inside


@functools.cache
def zone_layout() -> tuple[zoneinfo.Zone, ...]:
    """Where the zones lie, read once (their counters are of then): the zygote asks for all."""
    return zoneinfo.read()


def movable_ranges(around: Surroundings) -> list[FrameRange]:
    """Every CMA area that is known, and ZONE_MOVABLE of every node. Empty on most machines."""
    zones = zoneinfo.populated(zone_layout())
    movable = [
        (zone.start_pfn, zone.end_pfn)
        for zone in zones
        if zone.name == "Movable" and zone.start_pfn is not None and zone.end_pfn is not None
    ]
    return movable + list(around.cma_ranges or ())


def leave_movable(region: Region, around: Surroundings) -> None:
    """Move touched pages out of CMA and ZONE_MOVABLE; PrepareFailed when some stay.

    Where this process may not see page frames, pages stay where they are.
    """
    if not around.page_frames_visible or not (ranges := movable_ranges(around)):
        return
    try:
        if not count_movable(region, ranges):
            return
    except pagemap.FramesHidden:  # an ordinary user's by now: the case has ``uid``
        return
    try:
        pin_for_long(region)
    except CallFailed as error:
        raise PrepareFailed(
            f"{region.spec.name} lies in CMA or ZONE_MOVABLE and a long-term pin cannot move it"
            f" out: {error}"
        ) from error
    if stayed := count_movable(region, ranges):
        raise PrepareFailed(
            f"{stayed} of {region.mapped_bytes // PAGE_BYTES} pages of {region.spec.name} still lie"
            " in CMA or ZONE_MOVABLE after a long-term pin"
        )


def pin_for_long(region: Region) -> None:
    """A long-term pin and unpin of all that is mapped, piece by piece; both are synchronous."""
    owner = Owner()
    try:
        ring = libc.io_uring_setup(1)
        owner.release_with("ring", lambda: os.close(ring))
        for piece in libc.pieces(region.address, region.mapped_bytes, libc.IO_URING_BUFFER_BYTES):
            buffers = libc.iovecs([piece])
            result = libc.io_uring_register(ring, libc.IORING_REGISTER_BUFFERS, buffers, 1)
            libc.check("io_uring_register", result)
            result = libc.io_uring_register(ring, libc.IORING_UNREGISTER_BUFFERS, None, 0)
            libc.check("io_uring_register", result)
    finally:
        owner.close()
