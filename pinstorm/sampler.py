"""The sampler: a process of its own that reads the machine's counters while a load runs.

Each source has a rate of its own. Ticks lie on a grid of absolute times, so that nothing drifts;
one that was missed is counted and not made up for. What a reading costs decides how often it may be
taken: a source that takes more than its share of a core is read half as often, and all are when all
of it takes too much. Started by
pinstorm.sampling as ``python -S -m pinstorm.sampler FD``. It ends when it is told to, when the
runner is gone, or when it is killed; what it has read is then in the spool, but for the last half
second of one that was killed by SIGKILL.
"""

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from pinstorm import sources
from pinstorm.sources import Processes, Source, Tables, Trends
from pinstorm.spool import Mark, Spool
from workloads import libc
from workloads.channel import Channel

_FLUSH_NS = 500_000_000
_NEVER_NS = 1 << 62
# To look at the clock of this thread costs as much as a cheap reading's parsing.
_MEASURE_NS = 500_000_000
# So long it may be deaf to the runner: to sleep is cheaper than to listen meanwhile.
_DEAF_NS = 50_000_000
# So many readings say what one costs.
_LATELY = 5
# How often what all of it takes is looked at, and the most of a core that it may take: this, or at
# high rates 1 % for each 100 Hz. Emulated, or on a machine that is full, it takes what it can get.
_GOVERN_NS = 1_000_000_000
_MOST = 0.05
# A source is read more often again once that would take so much of what it may take.
_CHEAP_ENOUGH = 0.8

# Readings a second at most, of what is not read as often as the suite says.
_MACHINE_HZ = 5.0
_PROCESS_HZ = 5.0
_EVENTS_HZ = 2.0
_WALK_HZ = 1.0
_OWN_HZ = 1.0
_RDMA_HZ = 5.0


class _Cost:
    """CPU time of one thing that is done again and again: over all of it, and lately."""

    def __init__(self) -> None:
        self._times = 0
        self._spent_ns = 0
        self._last: deque[int] = deque(maxlen=_LATELY)

    @property
    def mean_ns(self) -> int:
        return self._spent_ns // self._times if self._times else 0

    @property
    def recent_ns(self) -> int:
        """The median of the last few: one that was interrupted says nothing."""
        return statistics.median_low(self._last) if self._last else 0

    def add(self, cost_ns: int) -> None:
        self._times += 1
        self._spent_ns += cost_ns
        self._last.append(cost_ns)


class Paced:
    """One source and when it is read.

    ``slower``: how many times its rate was halved because of what it costs.
    """

    def __init__(self, source: Source, begin_ns: int):
        self.source = source
        self.readings = 0
        self.missed = 0
        self.failure: str | None = None
        self.slower = 0
        self.next_ns = begin_ns
        self._begin_ns = begin_ns
        self._read = source.read
        self._raws: list[tuple[int, Any]] = []
        self._measure_ns = 0
        self._reading = _Cost()
        self._parsing = _Cost()
        self._halved = 0
        self._asked_ns = max(1, round(1e9 / source.hz))
        self.period_ns = self._asked_ns

    def take(self, now_ns: int) -> None:
        """Read, and say when the next reading is due."""
        late_ns = now_ns - self.next_ns
        try:
            raw = self._read() if now_ns < self._measure_ns else self._measured_read(now_ns)
        except (OSError, ValueError) as error:
            self._fail(error)
            return
        self._raws.append((time.monotonic_ns(), raw))
        # The next point of the grid; those that have passed are missed.
        self.next_ns += self.period_ns
        if late_ns >= self.period_ns:
            self.missed += late_ns // self.period_ns
            self.next_ns += late_ns // self.period_ns * self.period_ns

    def _measured_read(self, now_ns: int) -> Any:
        self._measure_ns = now_ns + _MEASURE_NS
        before_ns = time.thread_time_ns()
        raw = self._read()
        self._reading.add(time.thread_time_ns() - before_ns)
        return raw

    def settle(self, spool: Spool, trends: Trends) -> None:
        """Parse what was read, all at once."""
        if not self._raws:
            return
        # Taken out first: a signal that ends this process has the rest written, and none twice.
        source, raws, self._raws = self.source, self._raws, []
        self.readings += len(raws)
        before_ns = time.thread_time_ns()
        try:
            for t_ns, raw in raws:
                rows = list(source.rows(raw))
                for pid, values in rows:
                    spool.note(t_ns, source.name, pid, values)
                for key, value in source.trends(rows):
                    trends.add(key, t_ns, value)
        except (OSError, ValueError) as error:
            self._fail(error)
        self._parsing.add((time.thread_time_ns() - before_ns) // len(raws))
        self._adapt()

    def halve(self, times: int) -> None:
        """The rate is half of half …, so many times, whatever it costs."""
        self._halved = times
        self._aim()

    def to_json(self, elapsed_ns: int) -> dict[str, Any]:
        return {
            "hz_asked": self.source.hz,
            "hz_got": round(self.readings * 1e9 / max(1, elapsed_ns), 3),
            "readings": self.readings,
            "ns_per_reading": self._reading.mean_ns + self._parsing.mean_ns,
            "missed": self.missed,
            "slower": self.slower,
            "failure": self.failure,
        }

    def _adapt(self) -> None:
        cost_ns = self._reading.recent_ns + self._parsing.recent_ns
        allowed_ns = self.source.share * self.period_ns
        if cost_ns > allowed_ns:
            self.slower += 1
            self._aim()
        elif self.slower and cost_ns < _CHEAP_ENOUGH * allowed_ns / 2:
            self.slower -= 1
            self._aim()

    def _fail(self, error: Exception) -> None:
        self.failure = str(error)
        self.next_ns = _NEVER_NS

    def _aim(self) -> None:
        """Another period: from the next point of its grid on."""
        if self.failure is None:
            self.period_ns = self._asked_ns << (self.slower + self._halved)
            passed = max(0, time.monotonic_ns() - self._begin_ns) // self.period_ns
            self.next_ns = self._begin_ns + (passed + 1) * self.period_ns


class Sampler:
    """All sources, paced, into one spool."""

    def __init__(self, spool: Spool, hz: float, device: str | None):
        self._spool = spool
        self._processes = Processes("process", min(hz, _PROCESS_HZ), "vmpin_bytes", "vmpin_bytes")
        self._own = Processes("own", min(hz, _OWN_HZ), "vmrss_bytes~", "own_rss_bytes")
        self._tables = Tables(min(hz, _WALK_HZ))
        self.missing: dict[str, str] = {}
        found = [*self._machine(hz, device), self._processes, self._own, self._tables]
        self.watch([], [os.getppid()])
        for source in found:
            _warm_up(source)
        self.begin_ns = time.monotonic_ns()
        self._trends = Trends(self.begin_ns)
        self._paced = [Paced(source, self.begin_ns) for source in found]
        self._next_flush_ns = self.begin_ns + _FLUSH_NS
        self._halved = 0
        # How many times all rates are halved because all of it takes too much.
        self._eased = 0
        self._most = max(_MOST, hz / 10_000)
        self._began_cpu_ns = time.process_time_ns()
        self._governed = self.begin_ns, self._began_cpu_ns
        spool.mark(Mark(self.begin_ns))
        for source in found:
            spool.describe(source.name, source.keys())

    def watch(self, pids: list[int], own: list[int]) -> None:
        """``own``: pinstorm's; this process is among them anyway."""
        self._processes.watch(pids)
        self._tables.watch(pids)
        self._own.watch([*own, os.getpid()])

    def mark(self, mark: Mark) -> None:
        self._spool.mark(mark)
        if mark.phase == "hold":
            # How a load begins is no trend of it.
            self.flush()
            self._trends = Trends(mark.t_ns)

    def tick(self) -> int:
        """Take every reading that is due; when the next one is, on CLOCK_MONOTONIC."""
        now_ns = time.monotonic_ns()
        next_ns = self._next_flush_ns
        for paced in self._paced:
            if paced.next_ns <= now_ns:
                paced.take(now_ns)
            if paced.next_ns < next_ns:
                next_ns = paced.next_ns
        return next_ns

    def rest(self, until_ns: int) -> None:
        """Sleep between readings of the first source, as long as no other is due."""
        first = self._paced[0]
        others_ns = min([until_ns, *(paced.next_ns for paced in self._paced[1:])])
        while (next_ns := first.next_ns) < others_ns:
            # Little is done between the sleep and the reading: each time it is done with cold
            # caches, and takes several times as long as in any measurement in a loop.
            sleep_ns = next_ns - time.monotonic_ns()
            if sleep_ns > 0:
                time.sleep(sleep_ns / 1e9)
            first.take(time.monotonic_ns())

    def full(self) -> bool:
        """Whether it is time to write what was read."""
        return time.monotonic_ns() >= self._next_flush_ns

    def flush(self) -> None:
        """Write all that was read; the runner's marks up to now have been heard."""
        self._next_flush_ns = time.monotonic_ns() + _FLUSH_NS
        for paced in self._paced:
            paced.settle(self._spool, self._trends)
        self._spool.flush()
        self._govern()
        if self._spool.halves + self._eased != self._halved:
            self._halved = self._spool.halves + self._eased
            for paced in self._paced:
                paced.halve(self._halved)

    def _govern(self) -> None:
        """Ease all rates while all of it takes too much of a core."""
        now = time.monotonic_ns(), time.process_time_ns()
        elapsed_ns, cpu_ns = (a - b for a, b in zip(now, self._governed, strict=True))
        if elapsed_ns < _GOVERN_NS:
            return
        self._governed = now
        if cpu_ns > self._most * elapsed_ns:
            self._eased += 1
        elif self._eased and cpu_ns < _CHEAP_ENOUGH * self._most * elapsed_ns / 2:
            self._eased -= 1

    def report(self) -> dict[str, Any]:
        elapsed_ns = time.monotonic_ns() - self.begin_ns
        cpu_ns = time.process_time_ns() - self._began_cpu_ns
        return {
            "began_ns": self._trends.began_ns,
            "cost": {
                "cpu_ns": cpu_ns,
                "elapsed_ns": elapsed_ns,
                "share": round(cpu_ns / max(1, elapsed_ns), 6),
            },
            "sources": {paced.source.name: paced.to_json(elapsed_ns) for paced in self._paced},
            "missing": self.missing,
            "bytes": self._spool.bytes,
            "halved": self._spool.halves,
            "eased": self._eased,
            "error": self._spool.error,
            "trends": self._trends.to_json(),
        }

    def close(self) -> None:
        self.flush()
        self._spool.close()
        for paced in self._paced:
            paced.source.close()

    def _machine(self, hz: float, device: str | None) -> Iterator[Source]:
        """Those that this kernel has, the one that is read most often first."""
        kinds: list[tuple[str, Callable[[], Source]]] = [
            ("vmstat", lambda: sources.Counters(hz)),
            ("pressure", lambda: sources.Pressure(min(hz, _MACHINE_HZ))),
            ("zoneinfo", lambda: sources.Zones(min(hz, _MACHINE_HZ))),
            ("meminfo", lambda: sources.Levels(min(hz, _MACHINE_HZ))),
            ("vm_events", lambda: sources.Events(min(hz, _EVENTS_HZ))),
        ]
        if device is not None:
            rdma_hz = min(hz, _RDMA_HZ)
            kinds += [
                ("rdma", lambda: sources.RdmaCounters(rdma_hz, device)),
                ("rdma_objects", lambda: sources.RdmaObjects(rdma_hz, device)),
                ("rdma_odp", lambda: sources.OnDemand(min(hz, _WALK_HZ), device)),
            ]
        for name, open_source in kinds:
            try:
                yield open_source()
            except (OSError, ValueError) as error:
                self.missing[name] = str(error)


def main() -> None:
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    # Not SIGKILL: what was read last, just before the runner went away, is worth writing.
    signal.signal(signal.SIGTERM, _end)
    libc.die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ConnectionError):  # the runner is gone
        wanted = channel.receive()
        if wanted is not None:
            _sample(channel, wanted)


def _sample(channel: Channel, wanted: dict[str, Any]) -> None:
    _open_many()
    spool = Spool(Path(wanted["spool"]), int(wanted["limit_bytes"]), int(wanted["segment_bytes"]))
    sampler = Sampler(spool, float(wanted["hz"]), wanted["device"])
    gc.freeze()
    try:
        channel.send(ready=os.getpid())
        _serve(channel, sampler)
    finally:
        sampler.close()


def _serve(channel: Channel, sampler: Sampler) -> None:
    """Read what is due, and listen in between, until told to stop or the runner is gone."""
    fileno = channel.fileno()
    while True:
        next_ns = sampler.tick()
        left_ns = next_ns - time.monotonic_ns()
        # select, not poll: its timeout is in microseconds.
        if select.select([fileno], [], [], max(0, left_ns) / 1e9)[0]:
            for message in channel.waiting():
                if message is None or not _heard(channel, sampler, message):
                    return
        if sampler.full():
            sampler.flush()
        sampler.rest(time.monotonic_ns() + _DEAF_NS)


def _heard(channel: Channel, sampler: Sampler, message: dict[str, Any]) -> bool:
    """Do what the runner says; False when it was the last."""
    if "watch" in message:
        sampler.watch(message["watch"], message["own"])
    elif "mark" in message:
        sampler.mark(Mark(**message["mark"]))
    else:
        sampler.flush()
        channel.send(report=sampler.report())
    return "stop" not in message


def _warm_up(source: Source) -> None:
    """Read and parse for nothing: the first time costs many times what all others do."""
    for _ in range(_LATELY):
        with contextlib.suppress(OSError, ValueError):
            list(source.trends(list(source.rows(source.read()))))


def _open_many() -> None:
    """Three files stay open for each process that is watched."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end(*_: object) -> NoReturn:
    sys.exit(1)


if __name__ == "__main__":
    main()
