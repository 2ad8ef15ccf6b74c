"""What the kernel says of a region's pages, asked once they are made: are they what the spec says?

/proc/self/pagemap answers everybody; which kind of page a frame is, /proc/kpageflags tells root
only. What may not be asked is not judged.
"""

from telemetry import kpageflags, pagemap
from workloads.memory import Region
from workloads.spec import PrepareFailed, Surroundings


def require_pages(
    region: Region, around: Surroundings, what: str, have: int = 0, lack: int = 0
) -> None:
    """PrepareFailed unless every page is present and has all, and none, of these kpageflags.

    ``what``: what such a page is called in the message.
    """
    try:
        pages = pagemap.read(region.address, region.mapped_bytes)
    except pagemap.FramesHidden:
        return
    if absent := region.pages - pages.present_pages:
        raise PrepareFailed(f"{absent} of {region.pages} pages of {region.spec.name} are absent")
    if pages.hidden or not around.page_frames_visible:
        return
    count_of: dict[int | None, int] = {}
    for frame in pages.frames:
        count_of[frame] = count_of.get(frame, 0) + 1
    frames = sorted(frame for frame in count_of if frame is not None)
    flags = kpageflags.of_frames(frames)
    if flags is None:
        return
    wrong = sum(
        count_of[frame]
        for frame, flag in zip(frames, flags, strict=True)
        if flag & (have | lack) != have
    )
    _refuse(region, wrong, what)


def count_exclusive(region: Region) -> int:
    """Pages that are absent, or mapped here and nowhere else; every process is told."""
    looked_at = pagemap.PRESENT | pagemap.EXCLUSIVE
    words = pagemap.words(region.address, region.mapped_bytes)
    return sum(1 for word in words if word & looked_at != pagemap.PRESENT)


def require_shared(region: Region, what: str) -> None:
    """PrepareFailed unless every page is present and mapped by somebody else too."""
    _refuse(region, count_exclusive(region), what)


def require_device_pages(region: Region, around: Surroundings) -> None:
    """PrepareFailed unless every page lies in ZONE_DEVICE.

    Its frames have no online struct page, which reads as NOPAGE alone or, where kpage_read() asks
    stable_page_flags() for online pages only (v7.2), as 0. A mapped page of memory has MMAP.
    """
    require_pages(region, around, "the device's own", lack=kpageflags.MMAP)


def _refuse(region: Region, wrong: int, what: str) -> None:
    if wrong:
        raise PrepareFailed(f"{wrong} of {region.pages} pages of {region.spec.name} are not {what}")
