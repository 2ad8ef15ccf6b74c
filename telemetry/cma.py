"""Where the contiguous memory areas (CMA) lie: from debugfs cma/, or from the boot's kernel log.

Page frame numbers and pages of PAGE_SIZE; machine-wide, fixed at boot. No interface of a production
kernel names an area's place: /sys/kernel/mm/cma (CONFIG_CMA_SYSFS, since Linux 5.13) has counts
only, debugfs cma/ (CONFIG_CMA_DEBUGFS, 4.1, Documentation/admin-guide/mm/cma_debugfs.rst) is rarely
built. The log line ``cma: Reserved 2600 MiB at 0x0000000120000000`` comes from
cma_declare_contiguous_nid() in mm/cma.c, 3.17 to 7.2; some releases append ``on node 0``. An area
in several ranges (hugetlb_cma, since 6.15) is logged as ``Reserved 4096 MiB in 2 ranges``, without
their places. The sum is checked with CmaTotal, so that a log that lost lines is noticed.
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path

from telemetry import meminfo

SYSFS = Path("/sys/kernel/mm/cma")
DEBUGFS = Path("/sys/kernel/debug/cma")

MIB = 1 << 20

_RESERVED = re.compile(r"\bcma: Reserved (\d+) MiB at (0x[0-9a-f]+)(?: on node (-?\d+))?\s*$", re.M)
# kernel/dma/contiguous.c: areas described by a device tree, which cma.c does not announce.
_DEVICE_TREE = re.compile(r"\bcreated CMA memory pool at (0x[0-9a-f]+), size (\d+) MiB\s*$", re.M)
_PLACELESS = re.compile(r"\bcma: Reserved (\d+) MiB in (\d+) ranges?\s*$", re.M)

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Area:
    """``first_pfn`` is None for an area whose place the kernel does not tell."""

    name: str
    first_pfn: int | None
    pages: int


def parse(text: str) -> list[Area]:
    """The areas that a kernel log announces, in its order; names are not in the log."""
    areas = [
        Area("", int(match[2], 16) // PAGESIZE, int(match[1]) * MIB // PAGESIZE)
        for match in _RESERVED.finditer(text)
    ]
    areas += [
        Area("", int(match[1], 16) // PAGESIZE, int(match[2]) * MIB // PAGESIZE)
        for match in _DEVICE_TREE.finditer(text)
    ]
    areas += [
        Area("", None, int(match[1]) * MIB // PAGESIZE) for match in _PLACELESS.finditer(text)
    ]
    return areas


def ranges(kmsg_text: str) -> Ranges:
    """[first, one past the last] frame of each area that the log places, lowest first."""
    return _ranges(parse(kmsg_text))


def _ranges(areas: Iterable[Area]) -> Ranges:
    return tuple(
        sorted(
            (area.first_pfn, area.first_pfn + area.pages)
            for area in areas
            if area.first_pfn is not None
        )
    )


def read_sysfs() -> list[Area] | None:
    """Names and sizes, no places; None on a kernel without CMA_SYSFS."""
    if not SYSFS.is_dir():
        return None
    areas = []
    for path in sorted(SYSFS.iterdir()):
        # Kernels that lack total_pages tell no sizes here.
        if (pages := _number(path / "total_pages")) is not None:
            areas.append(Area(path.name, None, pages))
    return areas


def read_debugfs() -> list[Area] | None:
    """None where debugfs is not mounted, not permitted, or has no CMA."""
    try:
        folders = sorted(DEBUGFS.iterdir())
    except OSError:
        return None
    return [area for folder in folders if (area := _read_folder(folder)) is not None]


def _read_folder(folder: Path) -> Area | None:
    pages = _number(folder / "count")
    if pages is None:
        return None
    several = len(list((folder / "ranges").glob("*"))) > 1
    # The top-level base_pfn is that of the first range, and ranges do not tell their length.
    return Area(folder.name, None if several else _number(folder / "base_pfn"), pages)


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None


def find(kmsg_text: str | None) -> Ranges | None:
    """Where CMA lies on this machine: ``()`` without CMA, None when that cannot be told.

    ``kmsg_text``: the kernel log since boot (kmsg.KernelLog.all_text()), None when not readable.
    """
    total_bytes = meminfo.read().cma_total_bytes
    if not total_bytes:
        return ()
    candidates = [read_debugfs() or [], parse(kmsg_text or "")]
    for areas in candidates:
        found = _ranges(areas)
        if sum(end - first for first, end in found) * PAGESIZE == total_bytes:
            return found
    return None
