"""What every engine is given, and what it is to do: the seam between a load and its engines.

An engine's module has ``prepare(work, owner) -> Engine``. The worker asks it to ``open`` (the
load's acquire: whatever stays pinned for as long as the load lasts), to ``run`` from one interval
to the next, to ``drain``, and to ``close`` (its release). What needs more time than that, or pins
nothing, belongs to ``prepare``: memory, files, devices.
"""

import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from telemetry import histogram
from workloads.load.spec import Job
from workloads.spec import PAGE_BYTES, CallFailed, Surroundings, errno_name

Latencies = NDArray[np.int64]


class Engine(Protocol):
    """One process's part of a job."""

    def open(self) -> None:
        """Take what is held for as long as the load lasts: registered buffers, standing regions."""

    def run(self, until_ns: int) -> bool:
        """Work until CLOCK_MONOTONIC passes ``until_ns`` or ``work.stopped``; False: none is left.

        What is in flight then may stay so: the next call goes on with it.
        """

    def drain(self) -> None:
        """Wait for all that is in flight, and count it."""

    def close(self) -> None:
        """Give back what ``open`` took."""


class Mismatch(Exception):
    """A block did not hold what was written to it: the load fails, with the offset."""


class Recorder:
    """What one process did since the last ``take``: operations, bytes, pins, latencies.

    One operation is one block transferred, one region registered *and* given back, or one act of an
    antagonist. ``latencies`` are by kind: ``read`` and ``write``, ``acquire`` and ``release``, or
    the antagonist's own name.
    """

    def __init__(self, allowed: Sequence[str] = ()):
        """``allowed``: names of errnos that are counted and end nothing."""
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sum_ns: dict[str, int] = {}
        self._max_ns: dict[str, int] = {}
        self._allowed = frozenset(allowed)
        self.operations = 0
        self.bytes = 0
        self.pins = 0
        self.verified = 0
        self.refused: dict[str, int] = {}

    def note(self, kind: str, latencies_ns: Latencies) -> None:
        """Add latencies, any number at a time; the caller counts operations and bytes."""
        if not len(latencies_ns):
            return
        if kind not in self._counts:
            self._add(kind)
        self._counts[kind] += np.bincount(indexes(latencies_ns), minlength=histogram.BUCKETS)
        self._sum_ns[kind] += int(latencies_ns.sum())
        self._max_ns[kind] = max(self._max_ns[kind], int(latencies_ns.max()))

    def _add(self, kind: str) -> None:
        self._counts[kind] = np.zeros(histogram.BUCKETS, np.int64)
        self._sum_ns[kind] = self._max_ns[kind] = 0

    def refuse(self, error: CallFailed) -> None:
        """Count a refusal that the job allows; raise any other."""
        name = errno_name(error.errno)
        if name not in self._allowed:
            raise error
        self.refused[name] = self.refused.get(name, 0) + 1

    def take(self) -> dict[str, Any]:
        """The figures since the last time, as JSON; then all is zero again."""
        latency = {}
        for kind, counts in self._counts.items():
            filled = np.flatnonzero(counts)
            latency[kind] = {
                "buckets": [[int(index), int(counts[index])] for index in filled],
                "sum": self._sum_ns[kind],
                "max": self._max_ns[kind],
            }
            counts[:] = 0
            self._sum_ns[kind] = self._max_ns[kind] = 0
        taken = {
            "operations": self.operations,
            "bytes": self.bytes,
            "pins": self.pins,
            "verified": self.verified,
            "refused": self.refused,
            "latency": latency,
        }
        self.operations = self.bytes = self.pins = self.verified = 0
        self.refused = {}
        return taken


def indexes(values: Latencies) -> NDArray[np.intp]:
    """The bucket of each value: telemetry.histogram.index_of(), many at a time."""
    values = np.clip(values, 0, histogram.LAST_VALUE)
    # frexp's exponent is the bit length of every integer that a double holds exactly.
    powers = np.frexp(values.astype(np.float64))[1] - histogram.SUB_BUCKET_BITS
    powers = np.maximum(powers, 0).astype(np.int64)
    found: NDArray[np.intp] = powers * histogram.HALF + (values >> powers)
    return found


class Pace:
    """How many operations may begin by now, of a job with a rate; without one, any number.

    What could not be begun in time is not made up for beyond ``_BURST_S``: a rate is a limit.
    """

    _BURST_S = 0.05

    def __init__(self, rate_s: float | None, think_ns: int = 0):
        self.think_ns = think_ns
        self._rate_s = rate_s
        self.restart()

    def restart(self) -> None:
        """The work begins now: what came before is not owed."""
        self._began_ns = time.monotonic_ns()
        self._begun = 0.0

    @property
    def unlimited(self) -> bool:
        return self._rate_s is None and not self.think_ns

    def due(self, now_ns: int) -> int:
        """How many may begin now."""
        if self._rate_s is None:
            return 1 << 30
        owed = (now_ns - self._began_ns) * self._rate_s / 1e9 - self._begun
        burst = max(1.0, self._rate_s * self._BURST_S)
        if owed > burst:
            self._begun += owed - burst
            owed = burst
        return max(0, int(owed))

    def begun(self, count: int = 1) -> None:
        """So many began."""
        self._begun += count

    def next_ns(self, now_ns: int) -> int:
        """When the next one is due, on CLOCK_MONOTONIC."""
        if self._rate_s is None:
            return now_ns
        return max(now_ns, self._began_ns + int((self._begun + 1) * 1e9 / self._rate_s))

    def wait(self, until_ns: int) -> bool:
        """Sleep until the next one is due; False when ``until_ns`` comes first."""
        now_ns = time.monotonic_ns()
        if self.due(now_ns):
            return True
        due_ns = self.next_ns(now_ns)
        time.sleep(max(0, min(due_ns, until_ns) - now_ns) / 1e9)
        return due_ns <= until_ns


@dataclass(slots=True)
class Work:
    """What an engine is given: its job, which of its processes this is, and where it runs.

    ``stop``: a byte of shared memory that the leader sets.
    """

    job: Job
    process: int
    around: Surroundings
    seed: int
    stop: mmap.mmap
    recorder: Recorder
    pace: Pace = field(default_factory=lambda: Pace(None))

    @property
    def stopped(self) -> bool:
        return self.stop[0] != 0

    def generator(self) -> np.random.Generator:
        """Random numbers of this process's own, the same in every run of the seed."""
        return np.random.default_rng([self.seed, self.process])


def pages_of(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES)
