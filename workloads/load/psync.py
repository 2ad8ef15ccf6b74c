"""preadv and pwritev with O_DIRECT, one at a time: the kernel holds the pages during each call."""

import os
import time
from collections.abc import Callable, Iterable
from itertools import repeat
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.load import compiled
from workloads.load.direct import PATIENCE_NS, Direct
from workloads.load.engine import Work
from workloads.load.integrity import Integrity
from workloads.load.pattern import Draw
from workloads.owner import Owner
from workloads.spec import MIB

# Operations between two looks at what is left to do, and the time after which it looks anyway.
_BURST = 2048
_BURST_NS = 100_000_000
# By whether it writes.
_MOVES: tuple[Callable[..., int], Callable[..., int]] = (os.preadv, os.pwritev)

_TRANSFERS = compiled.loop("transfers")


def prepare(work: Work, owner: Owner) -> "Psync":
    """All operations share the memory, except where the bytes of several are looked at together."""
    slots = min(_BURST, max(1, MIB // work.job.largest_bytes)) if work.job.verify else 1
    return Psync(Direct(work, slots, owner))


class Psync:
    """One operation after the other."""

    def __init__(self, direct: Direct):
        self._direct = direct
        self._work = direct.work
        self._left = direct.job.count
        self._rest_until_ns = 0
        self._sizes: list[int] = direct.sizes.tolist()
        parts = [direct.region.buffer[slot * direct.slot_bytes :] for slot in range(direct.slots)]
        # For each slot and size, as preadv wants it: struct iovec, and as Python has it.
        self._rows = np.array(
            [[address, size] for address in direct.addresses.tolist() for size in self._sizes]
        )
        self._vectors = [[[part[:size]] for size in self._sizes] for part in parts]
        most = direct.slots if direct.integrity is not None else _BURST
        self._most = 1 if self._work.pace.think_ns else most

    @property
    def target(self) -> int:
        """The descriptor of the file."""
        return self._direct.target

    def open(self) -> None:
        """Nothing stays pinned between two operations."""

    def close(self) -> None:
        """Nothing to give back."""

    def drain(self) -> None:
        """Nothing is in flight between two operations."""

    def run(self, until_ns: int) -> bool:
        pace, stop = self._work.pace, self._work.stop
        while not stop[0]:
            if self._left == 0:
                return False
            now_ns = monotonic_ns()
            if now_ns >= until_ns:
                break
            if not pace.unlimited and not self._rested(now_ns, until_ns):
                continue
            count = self._most if pace.unlimited else min(self._most, pace.due(now_ns))
            if self._left is not None:
                count = min(count, self._left)
            begun = self._some(count, min(until_ns, now_ns + _BURST_NS))
            if self._left is not None:
                self._left -= begun
            if not pace.unlimited:
                pace.begun(begun)
                self._rest_until_ns = monotonic_ns() + pace.think_ns
        return self._left != 0

    def _rested(self, now_ns: int, until_ns: int) -> bool:
        """Whether an operation is due now; if not, wait for it, or until it is time to look up."""
        pace = self._work.pace
        look_ns = min(until_ns, now_ns + PATIENCE_NS)
        if now_ns < self._rest_until_ns:
            time.sleep((min(self._rest_until_ns, look_ns) - now_ns) / 1e9)
            return False
        if pace.due(now_ns):
            return True
        pace.wait(look_ns)
        return False

    def _some(self, count: int, limit_ns: int) -> int:
        """Up to so many operations; how many were begun."""
        direct = self._direct
        draw = direct.operations.take(count)
        integrity = direct.integrity
        if integrity is not None:
            ready = integrity.clear(draw.offsets, direct.sizes[draw.sizes], draw.writes)
            direct.operations.give_back(count - ready)
            draw, count = draw.part(0, ready), ready
            slots = np.arange(count)
            integrity.begin(slots, draw.offsets, direct.sizes[draw.sizes], draw.writes)
        moved = self._moved if _TRANSFERS is None else self._moved_compiled
        ends_ns, failed = moved(draw, limit_ns)
        done = len(ends_ns) - 1
        begun = done if failed is None else done + 1
        direct.operations.give_back(count - begun)
        self._count(draw.part(0, done), np.diff(ends_ns))
        if integrity is not None:
            self._verify(integrity, slots, done, begun)
        if failed is not None:
            self._refuse(draw, done, failed)
        return begun

    def _moved_compiled(self, draw: Draw, limit_ns: int) -> tuple[NDArray[np.int64], int | None]:
        """When the first began and each ended; bytes or negative errno of one that failed.

        The end of one is the beginning of the next: one look at the clock for each.
        """
        assert _TRANSFERS is not None
        chosen = draw.sizes
        if self._direct.integrity is not None:
            chosen = chosen + np.arange(len(draw)) * len(self._sizes)
        file, ends_ns = self._direct.target, np.empty(len(draw) + 1, np.int64)
        done, failed, result = _TRANSFERS(
            file, draw.offsets, chosen, draw.writes, self._rows, ends_ns, limit_ns
        )
        return ends_ns[: done + 1], result if failed else None

    def _moved(self, draw: Draw, limit_ns: int) -> tuple[NDArray[np.int64], int | None]:
        """The same in Python."""
        moves, vectors, sizes = self._arguments(draw)
        offsets: list[int] = draw.offsets.tolist()
        file, clock = self._direct.target, monotonic_ns
        ends_ns = [clock()]
        append = ends_ns.append
        try:
            for move, vector, offset, size in zip(moves, vectors, offsets, sizes, strict=False):
                moved = move(file, vector, offset)
                if moved != size:
                    return np.array(ends_ns), moved
                now_ns = clock()
                append(now_ns)
                if now_ns >= limit_ns:
                    break
        except OSError as error:
            return np.array(ends_ns), -(error.errno or 0)
        return np.array(ends_ns), None

    def _arguments(
        self, draw: Draw
    ) -> tuple[Iterable[Callable[..., int]], Iterable[list[Any]], Iterable[int]]:
        """The call of each, its memory, and how much it moves."""
        if self._direct.operations.uniform and self._direct.slots == 1:
            move = _MOVES[int(self._direct.write_share)]
            return repeat(move), repeat(self._vectors[0][0]), repeat(self._sizes[0])
        sizes = draw.sizes.tolist()
        slots = range(len(draw)) if self._direct.integrity is not None else repeat(0)
        return (
            [_MOVES[write] for write in draw.writes.tolist()],
            [self._vectors[slot][size] for slot, size in zip(slots, sizes, strict=False)],
            [self._sizes[size] for size in sizes],
        )

    def _verify(
        self, integrity: Integrity, slots: NDArray[np.int64], done: int, begun: int
    ) -> None:
        """Outside the times; of those that were not begun nothing is remembered."""
        integrity.cancel(slots[begun:])
        for slot in slots[done:begun]:
            integrity.refused(int(slot))
        self._work.recorder.verified += integrity.end(slots[:done])

    def _count(self, draw: Draw, latencies_ns: NDArray[np.int64]) -> None:
        direct, recorder = self._direct, self._work.recorder
        direct.note(latencies_ns, draw.writes)
        recorder.operations += len(draw)
        recorder.bytes += int(direct.sizes[draw.sizes].sum())
        recorder.pins += int(direct.pages[draw.sizes, 0].sum())

    def _refuse(self, draw: Draw, index: int, result: int) -> None:
        write, size = bool(draw.writes[index]), self._sizes[int(draw.sizes[index])]
        call = _MOVES[write].__name__
        self._direct.refuse(call, result, size, write, int(draw.offsets[index]))
