"""What the sampler reads: one class for each source of a time series.

Files are held open and looked at; what was read is parsed later, many readings at a time, while the
caches are warm: parsing one reading at a time takes several times as long. Nothing here ever forces
a fold of the counters (/proc/sys/vm/stat_refresh), because that runs work on every CPU of the
machine that is measured.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from pinstorm.spool import INEXACT
from pinstorm.trend import Trend
from telemetry import (
    maps,
    meminfo,
    pressure,
    process_fds,
    process_io,
    process_stat,
    process_status,
    rdma_counters,
    vm_events,
    zoneinfo,
)
from telemetry.rdma_counters import DeviceCounters
from telemetry.rdma_nldev import Asked

# The most of a core that the reading of one source may take.
SHARE = 0.01
# Of the one whose rate the suite names.
SHARE_OF_COUNTERS = 0.08

# Beside the pins, in the source that is read most often.
_OFTEN = (
    *("nr_free_cma", *vm_events.PINS, "pgmigrate_success", "pgmigrate_fail"),
    *("compact_migrate_scanned", "compact_isolated", "compact_stall"),
)
_LEVELS = {
    "MemFree": f"free_bytes{INEXACT}",
    "MemAvailable": f"available_bytes{INEXACT}",
    "CmaFree": f"cma_free_bytes{INEXACT}",
    "AnonHugePages": f"anon_huge_bytes{INEXACT}",
    "Mlocked": f"mlocked_bytes{INEXACT}",
    "Unevictable": f"unevictable_bytes{INEXACT}",
    "SwapFree": "swap_free_bytes",
    "HugePages_Free": "hugepages_free",
}

# Of what: nothing, or a process; and its figures in the order of the source's keys.
Row = tuple[int | None, Sequence[int | None]]


class Trends:
    """One Trend for each figure that a soak judges; times are seconds since ``began_ns``."""

    def __init__(self, began_ns: int):
        self.began_ns = began_ns
        self._trends: dict[str, Trend] = {}

    def add(self, key: str, t_ns: int, value: int) -> None:
        trend = self._trends.get(key)
        if trend is None:
            trend = self._trends[key] = Trend()
        trend.add((t_ns - self.began_ns) / 1e9, value)

    def to_json(self) -> dict[str, list[list[float]]]:
        return {key: trend.points() for key, trend in sorted(self._trends.items())}


class Source(Protocol):
    """``hz``: readings a second at most. ``share``: of a core, at most.

    OSError and ValueError of ``read`` and ``rows``: this source has nothing more to say.
    """

    name: str
    hz: float
    share: float

    def keys(self) -> tuple[str, ...]:
        """What the values of a reading are, as the spool's header names them."""

    def read(self) -> Any:
        """Take one reading: system calls, and little else."""

    def rows(self, raw: Any) -> Iterable[Row]:
        """What a reading says."""

    def trends(self, rows: Sequence[Row]) -> Iterable[tuple[str, int]]:
        """Figures of a reading whose trend is kept."""

    def close(self) -> None: ...


class _Machine:
    """A source of the whole machine, without a trend."""

    name: str
    share = SHARE

    def __init__(self, hz: float):
        self.hz = hz

    def trends(self, rows: Sequence[Row]) -> Iterable[tuple[str, int]]:
        return ()


class Counters:
    """/proc/vmstat: pins, migration, compaction; outstanding pages are acquired minus released."""

    name = "vmstat"
    share = SHARE_OF_COUNTERS

    def __init__(self, hz: float):
        self.hz = hz
        has_cma = meminfo.read().cma_total_bytes is not None
        self._counted = vm_events.Counted(
            name for name in _OFTEN if has_cma or name != "nr_free_cma"
        )
        self.read = self._counted.read
        names = self._counted.names
        pins = [names.index(name) for name in vm_events.PINS if name in names]
        self._pins = (pins[0], pins[1]) if len(pins) == 2 else None

    def keys(self) -> tuple[str, ...]:
        keys = _exactness(self._counted.names)
        return (*keys, f"outstanding_pages{INEXACT}") if self._pins else keys

    def rows(self, raw: bytes) -> Iterable[Row]:
        values = self._counted.values(raw)
        if self._pins is not None:
            acquired, released = self._pins
            values.append(values[acquired] - values[released])
        return ((None, values),)

    def trends(self, rows: Sequence[Row]) -> Iterable[tuple[str, int]]:
        if self._pins is not None and (outstanding := rows[0][1][-1]) is not None:
            yield "outstanding_pages", outstanding

    def close(self) -> None:
        self._counted.close()


class Events(_Machine):
    """/proc/vmstat: everything about compaction, migration, huge pages and reclaim."""

    name = "vm_events"

    def __init__(self, hz: float):
        super().__init__(hz)
        self._counted = vm_events.Counted()
        self.read = self._counted.read

    def keys(self) -> tuple[str, ...]:
        return _exactness(self._counted.names)

    def rows(self, raw: bytes) -> Iterable[Row]:
        return ((None, self._counted.values(raw)),)

    def close(self) -> None:
        self._counted.close()


class Pressure(_Machine):
    """/proc/pressure: how long tasks stood still, in all."""

    name = "pressure"

    def __init__(self, hz: float):
        super().__init__(hz)
        opened = {name: pressure.open_file(name) for name in pressure.RESOURCES}
        self._fds = {name: fd for name, fd in opened.items() if fd is not None}
        if not self._fds:
            raise FileNotFoundError(f"{pressure.PRESSURE} is not there, or off")

    def keys(self) -> tuple[str, ...]:
        return tuple(
            f"{name}_{kind}_ns"
            for name, data in zip(self._fds, self.read(), strict=True)
            for kind, _ in zip(("some", "full"), pressure.totals_ns(data), strict=False)
        )

    def read(self) -> list[bytes]:
        return [pressure.read_from(fd) for fd in self._fds.values()]

    def rows(self, raw: list[bytes]) -> Iterable[Row]:
        return ((None, [total for data in raw for total in pressure.totals_ns(data)]),)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


class Zones(_Machine):
    """/proc/zoneinfo: free pages of each zone."""

    name = "zoneinfo"

    def __init__(self, hz: float):
        super().__init__(hz)
        self._zones = zoneinfo.FreePages()
        self.read = self._zones.read

    def keys(self) -> tuple[str, ...]:
        return tuple(f"{name}.free_pages{INEXACT}" for name in self._zones.names)

    def rows(self, raw: bytes) -> Iterable[Row]:
        return ((None, self._zones.values(raw)),)

    def close(self) -> None:
        self._zones.close()


class Levels(_Machine):
    """/proc/meminfo: what is free, CMA and huge pages among it."""

    name = "meminfo"

    def __init__(self, hz: float):
        super().__init__(hz)
        self._levels = meminfo.Levels(_LEVELS)
        self.read = self._levels.read

    def keys(self) -> tuple[str, ...]:
        return tuple(_LEVELS[name] for name in self._levels.names)

    def rows(self, raw: bytes) -> Iterable[Row]:
        return ((None, self._levels.values(raw)),)

    def close(self) -> None:
        self._levels.close()


class _Watched:
    """One process, its files held open: they stay its own when its number is given again."""

    def __init__(self, pid: int):
        self.pid = pid
        with contextlib.ExitStack() as opened:
            self._status = _kept(opened, process_status.open_file(pid))
            self._stat = _kept(opened, process_stat.open_file(pid))
            self._io = _kept(opened, process_io.open_file(pid))
            self._opened = opened.pop_all()

    def read(self) -> tuple[int, bytes, bytes, bytes]:
        """ProcessLookupError when it is gone."""
        io = b""
        with contextlib.suppress(PermissionError):
            io = process_io.read_from(self._io)
        status, stat = process_status.read_from(self._status), process_stat.read_from(self._stat)
        return self.pid, status, stat, io

    def close(self) -> None:
        self._opened.close()


class Processes:
    """/proc/PID/{status,stat,io} of each watched process: memory, CPU, faults, IO."""

    share = SHARE
    KEYS = (
        *("vmpin_bytes", "vmlck_bytes", f"vmrss_bytes{INEXACT}", "user_ns", "system_ns"),
        *("minor_faults", "major_faults", "threads", "read_bytes", "write_bytes"),
    )

    def __init__(self, name: str, hz: float, summed: str, trend: str):
        """``trend``: where the sum over the processes of the figure ``summed`` goes."""
        self.name = name
        self.hz = hz
        self._trend = trend
        self._summed = self.KEYS.index(summed)
        self._watched: list[_Watched] = []

    def watch(self, pids: Iterable[int]) -> None:
        """From now on these, and no others. Those that are gone are left out."""
        for watched in self._watched:
            watched.close()
        self._watched = []
        for pid in dict.fromkeys(pids):
            with contextlib.suppress(OSError):
                self._watched.append(_Watched(pid))

    def keys(self) -> tuple[str, ...]:
        return self.KEYS

    def read(self) -> list[tuple[int, bytes, bytes, bytes]]:
        found = []
        for watched in tuple(self._watched):
            try:
                found.append(watched.read())
            except OSError:
                watched.close()
                self._watched.remove(watched)
        return found

    def rows(self, raw: list[tuple[int, bytes, bytes, bytes]]) -> Iterable[Row]:
        for pid, status, stat, io in raw:
            memory, usage = process_status.parse_memory(status), process_stat.parse(stat)
            yield (
                pid,
                [
                    memory.vmpin_bytes,
                    memory.vmlck_bytes,
                    memory.vmrss_bytes,
                    usage.user_ns,
                    usage.system_ns,
                    usage.minor_faults,
                    usage.major_faults,
                    usage.threads,
                    *process_io.storage_bytes(io),
                ],
            )

    def trends(self, rows: Sequence[Row]) -> Iterable[tuple[str, int]]:
        return _sums(rows, {self._trend: self._summed})

    def close(self) -> None:
        self.watch(())


class Tables:
    """/proc/PID/{maps,fd} of each watched process: mappings and open files. A walk, so dear."""

    name = "process_tables"
    share = SHARE

    def __init__(self, hz: float):
        self.hz = hz
        self._pids: list[int] = []

    def watch(self, pids: Iterable[int]) -> None:
        self._pids = list(dict.fromkeys(pids))

    def keys(self) -> tuple[str, ...]:
        return "vma_count", "fd_count"

    def read(self) -> list[Row]:
        found: list[Row] = []
        for pid in tuple(self._pids):
            counts = (_or_none(maps.vma_count, pid), _or_none(process_fds.count, pid))
            if counts == (None, None):
                self._pids.remove(pid)
            else:
                found.append((pid, counts))
        return found

    def rows(self, raw: list[Row]) -> Iterable[Row]:
        return raw

    def trends(self, rows: Sequence[Row]) -> Iterable[tuple[str, int]]:
        return _sums(rows, {"vma_count": 0, "fd_count": 1})

    def close(self) -> None:
        self._pids = []


class RdmaCounters(_Machine):
    """/sys/class/infiniband/DEV: the counters of the device and its ports."""

    name = "rdma"

    def __init__(self, hz: float, device: str):
        super().__init__(hz)
        self._counters = DeviceCounters(device)
        if not self._counters.names:
            raise FileNotFoundError(f"RDMA device {device} has no counters")
        self.read = self._counters.read

    def keys(self) -> tuple[str, ...]:
        return self._counters.names

    def rows(self, raw: list[bytes]) -> Iterable[Row]:
        return ((None, [rdma_counters.parse(data) for data in raw]),)

    def close(self) -> None:
        self._counters.close()


class RdmaObjects(_Machine):
    """NETLINK_RDMA: how many memory regions, queue pairs, … the device has."""

    name = "rdma_objects"

    def __init__(self, hz: float, device: str):
        super().__init__(hz)
        self._device = device
        self._asked = Asked()
        self._names = tuple(self.read())

    def keys(self) -> tuple[str, ...]:
        return self._names

    def read(self) -> dict[str, int]:
        for objects in self._asked.objects():
            if objects.device == self._device:
                return objects.counts
        raise FileNotFoundError(f"RDMA device {self._device} is not there")

    def rows(self, raw: dict[str, int]) -> Iterable[Row]:
        return ((None, [raw.get(name) for name in self._names]),)

    def trends(self, rows: Sequence[Row]) -> Iterable[tuple[str, int]]:
        if "mr" in self._names:
            return _sums(rows, {"mr_count": self._names.index("mr")})
        return ()

    def close(self) -> None:
        self._asked.close()


class OnDemand(_Machine):
    """NETLINK_RDMA: page faults and invalidations of the device's regions on demand (mlx5).

    Of the regions that there are: what goes with a region takes its counts along. Other drivers
    count nothing, and no reading is written.
    """

    name = "rdma_odp"
    KEYS = (
        *("page_faults", "page_faults_handled", "page_invalidations"),
        *("page_invalidations_handled", "page_prefetch"),
    )

    def __init__(self, hz: float, device: str):
        super().__init__(hz)
        self._asked = Asked()
        indexes = {objects.device: objects.index for objects in self._asked.objects()}
        if device not in indexes:
            raise FileNotFoundError(f"RDMA device {device} is not there")
        self._index = indexes[device]

    def keys(self) -> tuple[str, ...]:
        return self.KEYS

    def read(self) -> dict[str, int]:
        return self._asked.region_statistics(self._index)

    def rows(self, raw: dict[str, int]) -> Iterable[Row]:
        return ((None, [raw.get(key) for key in self.KEYS]),) if raw else ()

    def close(self) -> None:
        self._asked.close()


def _sums(rows: Sequence[Row], wanted: dict[str, int]) -> Iterable[tuple[str, int]]:
    """By trend the sum over all rows of the value at a position, where any has it."""
    for trend, position in wanted.items():
        values = [value for _, figures in rows if (value := figures[position]) is not None]
        if values:
            yield trend, sum(values)


def _exactness(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name if vm_events.exact(name) else name + INEXACT for name in names)


def _kept(opened: contextlib.ExitStack, fd: int) -> int:
    opened.callback(os.close, fd)
    return fd


def _or_none(count: Callable[[int], int], pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return count(pid)
    return None
