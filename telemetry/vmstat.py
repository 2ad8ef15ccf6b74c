"""/proc/vmstat and its per-node part: pages pinned, unpinned and migrated since boot.

``nr_foll_pin_acquired`` and ``nr_foll_pin_released`` count FOLL_PIN references in pages of
PAGE_SIZE: monotonic, machine-wide in /proc/vmstat, per node (charged to the folio's node) in
/sys/devices/system/node/nodeN/vmstat. Since Linux kernel commit 1970dc6f5226 ("mm/gup:
/proc/vmstat: pin_user_pages (FOLL_PIN) reporting") (in v5.7). ``pgmigrate_success`` and
``pgmigrate_fail``: pages, monotonic, machine-wide, events summed over the CPUs at each read, so
never stale. ``nr_free_cma``: pages, a level. See Documentation/core-api/pin_user_pages.rst.

The pin counters are folded per CPU only now and then. Reading /proc/sys/vm/stat_refresh (0600 root,
since 4.7; Documentation/admin-guide/sysctl/vm.rst) runs the fold on every CPU and returns no bytes;
without it every figure has an error, bounded by delta_bound(). vm.stat_interval (seconds) is how
often each CPU folds by itself; CPUs isolated by nohz_full or isolcpus never do from v6.5 on.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from telemetry import meminfo, sysctl, zoneinfo

VMSTAT = "/proc/vmstat"
STAT_REFRESH = "/proc/sys/vm/stat_refresh"
NODES = Path("/sys/devices/system/node")

READ_BYTES = 1 << 16
# mm/vmstat.c: thresholds never exceed 125, because the per-CPU differential is an s8.
MAX_STAT_THRESHOLD = 125

_ACQUIRED = b"\nnr_foll_pin_acquired "
_RELEASED = b"\nnr_foll_pin_released "
_MIGRATE_SUCCESS = b"\npgmigrate_success "
_MIGRATE_FAIL = b"\npgmigrate_fail "
_FREE_CMA = b"\nnr_free_cma "


_PerNode = dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counters at ``t_ns`` (CLOCK_MONOTONIC, taken just after the read).

    ``per_node``: node -> (acquired, released); empty when not asked for or not offered.
    ``free_cma_pages`` is None on a kernel without CMA, though it prints nr_free_cma 0.
    """

    t_ns: int
    acquired: int | None
    released: int | None
    per_node: _PerNode = field(default_factory=dict)
    migrate_success: int | None = None
    migrate_fail: int | None = None
    free_cma_pages: int | None = None

    @property
    def outstanding(self) -> int | None:
        """Acquired minus released since boot: a leak signal, not the number of pages held."""
        if self.acquired is None or self.released is None:
            return None
        return self.acquired - self.released


def parse(data: bytes) -> dict[str, int]:
    """Every counter by name, from /proc/vmstat or a node's vmstat."""
    pairs = (line.split() for line in data.decode("ascii").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def value_of(data: bytes, key: bytes) -> int | None:
    """One counter without parsing the others. ``key`` is ``b"\\nNAME "``; data starts with \\n."""
    start = data.find(key)
    if start < 0:
        return None
    start += len(key)
    return int(data[start : data.index(b"\n", start)])


def delta_bound(zones: Iterable[zoneinfo.Zone], online_cpus: int) -> int:
    """How many pages the *difference* of two unrefreshed readings of one pin counter can be off.

    mod_node_page_state() (mm/vmstat.c) adds to a per-CPU, per-node differential and moves the whole
    of it to the counter once it exceeds the threshold T. Pin counters only ever add positive
    amounts and use no overstep mode, so a differential at rest lies in [0, T], never below 0 as one
    that is also decremented would. A reading is the truth minus the differentials; the difference
    of two readings is off by (sum before - sum after), which lies in [-sum(T), +sum(T)]: T per CPU
    and node, not 2 T. (acquired - released over a window is off by up to twice that, because
    the two errors can have opposite signs.)

    T of a node is the largest of its zones' (refresh_zone_stat_thresholds()). /proc/zoneinfo shows
    the *zones'* thresholds, which kswapd lowers under pressure (set_pgdat_percpu_threshold()) while
    the node's stays, so calculate_normal_threshold() is worked out here too, from present pages
    because managed ones shrink under a balloon, and the larger is taken.

    Measured: 192 700 pins of 1 to 400 pages on 2 CPUs with T = 28 were off by at most 53.

    Not covered: refresh_cpu_vm_stats() keeps what it took from a CPU in a local array until its
    end; a reading in those microseconds lacks up to T more of that CPU.
    """
    by_node: dict[int, int] = {}
    for zone in zones:
        if not zone.present_pages:
            continue
        threshold = max(zone.stat_threshold or 0, _normal_threshold(zone, online_cpus))
        by_node[zone.node] = max(by_node.get(zone.node, 0), threshold)
    if not by_node:
        return MAX_STAT_THRESHOLD * online_cpus
    return sum(by_node.values()) * online_cpus


def _normal_threshold(zone: zoneinfo.Zone, online_cpus: int) -> int:
    """calculate_normal_threshold(); ``fls`` is int.bit_length, the unit of memory 128 MiB."""
    page_shift = os.sysconf("SC_PAGE_SIZE").bit_length() - 1
    pages = max(zone.managed_pages, zone.present_pages)
    memory = pages >> (27 - page_shift)
    return min(MAX_STAT_THRESHOLD, 2 * online_cpus.bit_length() * (1 + memory.bit_length()))


class Counters:
    """The pin counters, held open so that a snapshot is one or two system calls.

    ``refresh``: True and None fold the per-CPU parts before each snapshot where that is permitted,
    False never does (hosts with isolated CPUs; time series). ``refreshes`` says which it became.
    """

    def __init__(self, refresh: bool | None = None):
        self._refresh_fd: int | None = None
        self._node_fds: dict[int, int] = {}
        self._fd: int | None = _open_or_none(VMSTAT)
        for node in sorted(NODES.glob("node[0-9]*")):
            if (fd := _open_or_none(str(node / "vmstat"))) is not None:
                self._node_fds[int(node.name.removeprefix("node"))] = fd
        # The whole machine's counter is the sum over the nodes (node_page_state_add() in
        # include/linux/vmstat.h): with one node its file, dearer than /proc/vmstat, says nothing.
        self._only_node = next(iter(self._node_fds)) if len(self._node_fds) == 1 else None
        if refresh is not False:
            self._refresh_fd = _open_or_none(STAT_REFRESH)
            if self._refresh_fd is not None and not self._try_refresh():
                os.close(self._refresh_fd)
                self._refresh_fd = None
        self._has_cma = meminfo.read().cma_total_bytes is not None
        self.interval_s = stat_interval_s()
        self.unrefreshed_bound_pages = _bound_here()

    @property
    def refreshes(self) -> bool:
        return self._refresh_fd is not None

    @property
    def exact(self) -> bool:
        """Whether the difference of two snapshots is exact (apart from what others pin)."""
        return self.refreshes

    @property
    def bound_pages(self) -> int:
        """The error of the difference of one counter between two snapshots is at most this."""
        return 0 if self.refreshes else self.unrefreshed_bound_pages

    @property
    def held_bound_pages(self) -> int:
        """The same for acquired - released, whose two errors can add up."""
        return 2 * self.bound_pages

    def snapshot(self, per_node: bool = True) -> Snapshot:
        """Fold (where permitted), then read. Costs about 20 µs, and 50 µs for the fold."""
        if self._refresh_fd is not None:
            self._try_refresh()
        if self._fd is None:
            return Snapshot(time.monotonic_ns(), None, None)
        data = b"\n" + os.pread(self._fd, READ_BYTES, 0)
        # seq_file gives whole records, a page or so at a time; the pin counters are in the first.
        while data.find(_MIGRATE_FAIL) < 0:
            more = os.pread(self._fd, READ_BYTES, len(data) - 1)
            if not more:
                break
            data += more
        t_ns = time.monotonic_ns()
        acquired, released = value_of(data, _ACQUIRED), value_of(data, _RELEASED)
        return Snapshot(
            t_ns=t_ns,
            acquired=acquired,
            released=released,
            per_node=self._nodes(acquired, released) if per_node else {},
            migrate_success=value_of(data, _MIGRATE_SUCCESS),
            migrate_fail=value_of(data, _MIGRATE_FAIL),
            free_cma_pages=value_of(data, _FREE_CMA) if self._has_cma else None,
        )

    def _nodes(self, whole_acquired: int | None, whole_released: int | None) -> _PerNode:
        if whole_acquired is None or whole_released is None:
            return {}
        if self._only_node is not None:
            return {self._only_node: (whole_acquired, whole_released)}
        nodes = {}
        for node, fd in self._node_fds.items():
            data = b"\n" + os.pread(fd, READ_BYTES, 0)
            acquired, released = value_of(data, _ACQUIRED), value_of(data, _RELEASED)
            if acquired is not None and released is not None:
                nodes[node] = (acquired, released)
        return nodes

    def _try_refresh(self) -> bool:
        assert self._refresh_fd is not None
        try:
            os.pread(self._refresh_fd, 1, 0)
        except OSError as error:
            # Older kernels than ours answer EINVAL when a counter is negative, after folding.
            return error.errno == errno.EINVAL
        return True

    def close(self) -> None:
        for fd in (self._fd, self._refresh_fd, *self._node_fds.values()):
            if fd is not None:
                os.close(fd)
        self._fd = self._refresh_fd = None
        self._node_fds = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_or_none(path: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _bound_here() -> int:
    online_cpus = os.sysconf("SC_NPROCESSORS_ONLN")
    try:
        return delta_bound(zoneinfo.read(), online_cpus)
    except OSError:
        nodes = len(list(NODES.glob("node[0-9]*"))) or 1
        return MAX_STAT_THRESHOLD * online_cpus * nodes


def stat_interval_s() -> float:
    """vm.stat_interval: each CPU that is not isolated folds at least this often."""
    interval_s = sysctl.read_int("vm.stat_interval")
    return 1.0 if interval_s is None else float(interval_s)  # HZ is what mm/vmstat.c starts with


def settle(
    counters: Counters,
    done: Callable[[Snapshot], bool],
    deadline_s: float,
    rest_s: float | None = None,
) -> tuple[Snapshot, int]:
    """Take snapshots until ``done`` likes one, or the counters rest, or the deadline passes.

    Releases after close() can come 15 to 20 ms late (io_uring, AF_XDP), those of a direct read a
    moment after it returned: iomap_dio_bio_end_io() wakes the reader, and then unpins (measured on
    6.18, up to 400 of 2000 pages still held when read() was back). The counters rest when
    ``rest_s`` pass without a change: 0.25 s by default, and two stat intervals more without
    refresh, when a fold may still be outstanding. Returns the last snapshot, and the ns from the
    call to the snapshot that was liked, or else to the last one that differed from its predecessor
    (0: none did). Whether the result is good is the caller's to judge.
    """
    if rest_s is None:
        rest_s = 0.25 if counters.refreshes else 0.25 + 2 * counters.interval_s
    start = time.monotonic_ns()
    last = counters.snapshot()
    if done(last):
        return last, last.t_ns - start
    changed_ns = start
    pause_s = 0.0002
    while True:
        now = time.monotonic_ns()
        if now - changed_ns >= rest_s * 1e9 or now - start >= deadline_s * 1e9:
            return last, changed_ns - start
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.005)
        new = counters.snapshot()
        if done(new):
            return new, new.t_ns - start
        if (new.acquired, new.released) != (last.acquired, last.released):
            changed_ns = new.t_ns
            pause_s = 0.0002
        last = new
