"""Counters of /proc/vmstat by name, many at a time and often: pins, migration, compaction, THP.

Machine-wide, in pages or events. Names that begin with ``nr_`` are statistics of zones and nodes:
levels, but for nr_foll_pin_*, which are monotonic; they are folded per CPU only now and then
(telemetry.vmstat), so a reading without a fold is inexact. All others are events: monotonic, since
boot, and summed over the CPUs at each read (all_vm_events() in mm/vmstat.c), so exact.

compact_* since Linux 2.6.35, pgmigrate_* 3.8, allocstall_ZONE 4.8, thp_* 2.6.38, cma_alloc_* 5.12,
each with the configuration that brings it; a name that this kernel lacks is not there. The order of
the lines is the same at every read. See Documentation/admin-guide/mm/transhuge.rst and
mm/vmstat.c.
"""

import mmap
import os
from collections.abc import Iterable, Iterator

from telemetry import vmstat

_READ_BYTES = 1 << 13
_NEAR_BYTES = 512

PINS = ("nr_foll_pin_acquired", "nr_foll_pin_released")

# What memory pressure, compaction, migration and the antagonists of a load move.
FAMILIES = (
    *("compact_", "pgmigrate_", "thp_", "allocstall_", "cma_alloc_", "numa_pages_migrated"),
    *("drop_", "pgscan_direct", "pgsteal_", "pswp", "oom_kill", "pgmajfault", "unevictable_pgs_"),
)


def exact(name: str) -> bool:
    """Whether a reading of this counter is exact without a fold."""
    return not name.startswith("nr_")


def in_families(names: Iterable[str]) -> tuple[str, ...]:
    """Those of FAMILIES, in the order given."""
    return tuple(name for name in names if name.startswith(FAMILIES))


class Lines:
    """Some counters of a file whose lines keep their order: found in one pass, nothing split.

    ``names``: those of the wanted ones that ``data`` has, in the order of the file.
    """

    def __init__(self, data: bytes, wanted: Iterable[str]):
        asked = set(wanted)
        self.names = tuple(name for name in vmstat.parse(data) if name in asked)
        self._keys = tuple(f"\n{name} ".encode() for name in self.names)

    def values(self, data: bytes) -> list[int]:
        """In the order of ``names``. ``data`` begins with a newline. ValueError: a line lacks."""
        return list(self._found(data))

    def end(self, data: bytes) -> int:
        """Where the last of them ends in ``data``; -1 when it is not there, or not whole."""
        if not self._keys:
            return 0
        start = data.rfind(self._keys[-1])
        return -1 if start < 0 else data.find(b"\n", start + 1)

    def _found(self, data: bytes) -> Iterator[int]:
        end = 0
        for key in self._keys:
            start = data.index(key, end) + len(key)
            end = data.index(b"\n", start)
            yield int(data[start:end])


class Counted:
    """Counters of /proc/vmstat, the file held open: ``read`` is a system call, or two.

    What was read is parsed when there is time for it.
    """

    def __init__(self, wanted: Iterable[str] | None = None):
        """``wanted``: names; None: all of FAMILIES. OSError where there is no such file."""
        self._fd = os.open(vmstat.VMSTAT, os.O_RDONLY | os.O_CLOEXEC)
        data = b""
        while more := os.pread(self._fd, _READ_BYTES, len(data)):
            data += more
        self._lines = Lines(data, in_families(vmstat.parse(data)) if wanted is None else wanted)
        self._enough = 0  # the length of a reading that was found to be whole

    @property
    def names(self) -> tuple[str, ...]:
        return self._lines.names

    def read(self) -> bytes:
        """For ``values``; nothing is folded first."""
        data = os.pread(self._fd, _READ_BYTES, 0)
        if len(data) == self._enough:
            return data
        # seq_file gives whole records, a page or so at a time.
        while (end := self._lines.end(data)) < 0:
            more = os.pread(self._fd, _READ_BYTES, len(data))
            if not more:
                return data
            data += more
        # Lines grow by digits: what stands near the end is looked for every time.
        self._enough = len(data) if end + _NEAR_BYTES < min(len(data), mmap.PAGESIZE) else 0
        return data

    def values(self, data: bytes) -> list[int]:
        """In the order of ``names``. ValueError: a line lacks."""
        return self._lines.values(b"\n" + data)

    def close(self) -> None:
        os.close(self._fd)
