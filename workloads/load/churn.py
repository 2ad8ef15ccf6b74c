"""Registration load: a window of registered regions that moves on, one pair of calls at a time.

``depth`` regions are registered at a time. A turn deregisters the oldest and registers a new one in
its place; ``open`` fills the window, ``close`` gives all of it back, and between two calls of
``run`` exactly ``depth`` regions are registered, less those that were refused. With depth 1 that is
register, deregister, register, … of one region.

Latencies: ``acquire`` and ``release``, the calls' own time. One operation is one turn that gave a
region back; ``bytes`` and ``pins`` are of what was registered. What ``open`` and ``close`` do is in
no figure, but for what is refused in ``open``.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle
from time import monotonic_ns, sleep
from typing import Protocol

import numpy as np

import workloads
from workloads import libc, memory
from workloads.load.engine import Work, pages_of
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed

# Turns that nothing is recorded of: the first faults in the code on both sides of the system call.
# The same in scripts/peers/churn.h.
WARM_UP_PAIRS = 2
# Between two looks at the clock and at ``work.stopped``.
_BATCH_NS = 1_000_000
_LARGEST_BATCH = 1024
# Sizes are drawn so many at a time.
_DRAWN = 4096


class Slots(Protocol):
    """Registered regions of one mechanism, each in a slot of the window with memory of its own.

    ``acquire`` and ``release`` return the CLOCK_MONOTONIC nanoseconds of their call and nothing
    else. They raise CallFailed when it is refused; what was acquired then is not held. ``extra``:
    latencies of whatever else they measure, which are taken out as they are noted.
    """

    extra: Mapping[str, "array[int]"]

    def acquire(self, slot: int, size_bytes: int) -> int: ...

    def release(self, slot: int) -> int: ...


class Memory:
    """The slots' memory: one region of the job's kind, ``stride_bytes`` of whole pages for each."""

    def __init__(self, work: Work, owner: Owner):
        job = work.job
        self.depth = job.depth
        self.sizes = tuple(size for size, _ in job.sizes)
        self.stride_bytes = pages_of(job.largest_bytes) * PAGE_BYTES
        spec = workloads.memory_spec(job.memory)
        self.region: Region = memory.prepare(
            spec, self.stride_bytes * job.depth, work.around, owner
        )

    def address(self, slot: int) -> int:
        return self.region.address + slot * self.stride_bytes

    def calls(self) -> dict[int, list[libc.Call | None]]:
        """By size and slot, the call that registers it: None until it is first wanted."""
        return {size: [None] * self.depth for size in self.sizes}


class Churn:
    """The engine: turns over the slots, one after the other. ``pinned``: registering pins pages."""

    def __init__(self, work: Work, slots: Slots, pinned: bool = True):
        job = work.job
        self._work = work
        self._slots = slots
        self._pinned = pinned
        self._sizes = _Sizes(work)
        # Bytes that each slot has registered; 0: none.
        self._held = [0] * job.depth
        self._oldest = 0
        self._left = job.count
        self._batch = 1
        self._rests_until_ns = 0
        self._acquired, self._released = array("q"), array("q")
        self._bytes = self._pages = 0
        self._pages_of = {size: pages_of(size) for size, _ in job.sizes}

    def open(self) -> None:
        self._turn(len(self._held) + WARM_UP_PAIRS)
        self._forget()
        self._work.recorder.verified = 0

    def run(self, until_ns: int) -> bool:
        """``job.count`` counts refused turns too, so that a job that is always refused ends."""
        work, pace = self._work, self._work.pace
        try:
            while not work.stopped:
                if self._left == 0:
                    return False
                now_ns = monotonic_ns()
                if now_ns >= until_ns:
                    return True
                if now_ns < self._rests_until_ns:
                    sleep((min(self._rests_until_ns, until_ns) - now_ns) / 1e9)
                elif due := pace.due(now_ns):
                    turns = min(due, 1 if pace.think_ns else self._batch)
                    turns = turns if self._left is None else min(turns, self._left)
                    self._turn(turns)
                    pace.begun(turns)
                    self._learn(turns, monotonic_ns() - now_ns)
                else:
                    pace.wait(until_ns)
            return True
        finally:
            self._note()

    def drain(self) -> None:
        """Nothing is in flight: each call returns with what it did."""

    def close(self) -> None:
        """Every region is given back, the oldest first; the first failure is raised at the end."""
        failure: CallFailed | None = None
        for turn in range(len(self._held)):
            slot = (self._oldest + turn) % len(self._held)
            if self._held[slot]:
                try:
                    self._slots.release(slot)
                except CallFailed as error:
                    failure = failure or error
                self._held[slot] = 0
        if failure is not None:
            raise failure

    # ------------------------------------------------------------------------------------------

    def _turn(self, turns: int) -> None:
        """So many turns, with nothing between the calls that can wait until they are done.

        What runs in between pushes the calls' own code and data out of the caches: measured, that
        costs as much as calling them from Python does.
        """
        acquire, release = self._slots.acquire, self._slots.release
        acquired, released = self._acquired.append, self._released.append
        held, slot = self._held, self._oldest
        sizes, before = self._sizes.draw(turns), len(self._acquired)
        refused: list[int] = []
        try:
            for size_bytes, slot in zip(sizes, self._slots_in_turn(), strict=False):
                if held[slot]:
                    released(release(slot))
                    held[slot] = 0
                try:
                    acquired(acquire(slot, size_bytes))
                    held[slot] = size_bytes
                except CallFailed as error:
                    self._work.recorder.refuse(error)
                    refused.append(size_bytes)
        finally:
            self._oldest = (slot + 1) % len(held)
            done = len(self._acquired) - before + len(refused)
            self._count(sizes[:done], 1)
            self._count(refused, -1)

    def _slots_in_turn(self) -> Iterator[int]:
        """From the oldest on, without end."""
        depth = len(self._held)
        return chain(range(self._oldest, depth), cycle(range(depth)))

    def _count(self, sizes: Sequence[int], sign: int) -> None:
        """Add regions of these sizes to what was registered, or take them away again."""
        self._bytes += sign * sum(sizes)
        self._pages += sign * sum(map(self._pages_of.__getitem__, sizes))

    def _learn(self, turns: int, took_ns: int) -> None:
        """How many turns to take until the next look, and what is left of the job."""
        if self._left is not None:
            self._left -= turns
        if self._work.pace.think_ns:
            self._rests_until_ns = monotonic_ns() + self._work.pace.think_ns
        self._batch = max(1, min(_LARGEST_BATCH, turns * _BATCH_NS // max(1, took_ns)))
        if len(self._acquired) >= _DRAWN:
            self._note()

    def _note(self) -> None:
        """Hand what was measured to the recorder."""
        recorder = self._work.recorder
        recorder.operations += len(self._released)
        recorder.bytes += self._bytes
        recorder.pins += self._pages if self._pinned else 0
        series = {"acquire": self._acquired, "release": self._released, **self._slots.extra}
        for kind, latencies in series.items():
            recorder.note(kind, np.array(latencies, np.int64))
        self._forget()

    def _forget(self) -> None:
        self._bytes = self._pages = 0
        for latencies in (self._acquired, self._released, *self._slots.extra.values()):
            del latencies[:]


class _Sizes:
    """The size of each region in turn: drawn by weight, the same ones in every run of a seed."""

    def __init__(self, work: Work):
        self._choices = [size for size, _ in work.job.sizes]
        weights = np.array([weight for _, weight in work.job.sizes], float)
        self._shares = weights / weights.sum()
        self._generator = work.generator()
        self._drawn: list[int] = []

    def draw(self, count: int) -> Sequence[int]:
        """The next ``count`` of them."""
        if len(self._choices) == 1:
            return self._choices * count
        while len(self._drawn) < count:
            self._drawn += self._generator.choice(self._choices, _DRAWN, p=self._shares).tolist()
        taken, self._drawn = self._drawn[:count], self._drawn[count:]
        return taken
