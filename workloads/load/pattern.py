"""Which blocks of the target the operations of direct IO go to, in which order and size.

Everything is drawn in chunks of numpy arrays and in bounded memory, whatever the target's size.
``sequential`` goes on from where the last operation ended. ``random`` takes each block exactly once
in a pass, then again in another order. ``zipf`` takes the block of rank k in proportion to
1 / k ** theta, the ranks scattered over the target. With several sizes ``random`` and ``zipf`` see
the target as blocks of each size by itself, and a pass is of one size.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workloads.load.spec import Job
from workloads.spec import PrepareFailed

Numbers = NDArray[np.int64]

_CHUNK = 1024
_ROUNDS = 6
# Odd, without a pattern in its bits: the golden ratio's first 64.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Draw:
    """Operations in their order: offset in bytes, index into the job's sizes, writes or reads."""

    offsets: Numbers
    sizes: Numbers
    writes: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets)

    def part(self, start: int, end: int) -> "Draw":
        return Draw(self.offsets[start:end], self.sizes[start:end], self.writes[start:end])


class Operations:
    """The endless list of a process's operations, the same for each seed."""

    def __init__(self, job: Job, file_bytes: int, generator: np.random.Generator):
        self._sizes = np.array([size for size, _ in job.sizes], np.int64)
        if int(self._sizes.max()) > file_bytes:
            raise PrepareFailed(
                f"a block of {int(self._sizes.max())} bytes does not fit into a target of"
                f" {file_bytes} bytes: make the target larger"
            )
        weights = np.array([weight for _, weight in job.sizes], np.float64)
        self._shares = weights / weights.sum()
        self._write_share = write_share(job)
        self._generator = generator
        self._file_bytes = file_bytes
        self._cursor_bytes = 0
        self._numbers: list[Blocks] = []
        if job.pattern != "sequential":
            blocks = [file_bytes // size for size, _ in job.sizes]
            theta = job.zipf_theta if job.pattern == "zipf" else None
            self._numbers = [numbers_of(count, theta, generator) for count in blocks]
        self._ahead = self._draw(_CHUNK)
        self._next = 0

    @property
    def uniform(self) -> bool:
        """Whether all are of one size, and all reads or all writes."""
        return len(self._sizes) == 1 and self._write_share in (0.0, 1.0)

    @property
    def ahead(self) -> int:
        """How many are at hand."""
        return len(self._ahead.offsets) - self._next

    def look_ahead(self, count: int) -> None:
        """Have at least so many at hand: the time for it is when the device has enough to do.

        Chunk by chunk, so that how many are taken at a time does not change what comes.
        """
        while self.ahead < count:
            new = self._draw(_CHUNK)
            if self.ahead:
                old = self._ahead.part(self._next, len(self._ahead))
                new = Draw(
                    np.concatenate((old.offsets, new.offsets)),
                    np.concatenate((old.sizes, new.sizes)),
                    np.concatenate((old.writes, new.writes)),
                )
            self._ahead, self._next = new, 0

    @property
    def at_hand(self) -> Numbers:
        """The offsets of those, in their order; ``take`` takes them."""
        return self._ahead.offsets[self._next :]

    def take(self, count: int) -> Draw:
        """The next so many."""
        self.look_ahead(count)
        start = self._next
        self._next += count
        return self._ahead.part(start, start + count)

    def give_back(self, count: int) -> None:
        """The latest so many of those taken were not begun: they come next."""
        self._next -= count

    def _draw(self, count: int) -> Draw:
        sizes = np.zeros(count, np.int64)
        if len(self._sizes) > 1:
            sizes = self._generator.choice(len(self._sizes), count, p=self._shares)
        writes = np.full(count, self._write_share == 1.0)
        if 0.0 < self._write_share < 1.0:
            writes = self._generator.random(count) < self._write_share
        if not self._numbers:
            return Draw(self._in_sequence(self._sizes[sizes]), sizes, writes)
        offsets = np.empty(count, np.int64)
        for index, numbers in enumerate(self._numbers):
            chosen = sizes == index
            wanted = int(np.count_nonzero(chosen))
            offsets[chosen] = numbers.draw(wanted) * self._sizes[index]
        return Draw(offsets, sizes, writes)

    def _in_sequence(self, lengths: Numbers) -> Numbers:
        """One after the other; what does not fit before the end of the file goes to its start."""
        offsets = np.empty(len(lengths), np.int64)
        done = 0
        while done < len(lengths):
            ends = self._cursor_bytes + np.cumsum(lengths[done:])
            fitting = int(np.searchsorted(ends, self._file_bytes, side="right"))
            if not fitting:
                self._cursor_bytes = 0
                continue
            until = done + fitting
            offsets[done:until] = ends[:fitting] - lengths[done:until]
            self._cursor_bytes = int(ends[fitting - 1])
            done = until
        return offsets


def write_share(job: Job) -> float:
    """Which part of its operations are writes, from 0 to 1."""
    return 1.0 - job.read_percent / 100


class Blocks(Protocol):
    """Numbers of blocks, from 0."""

    def draw(self, count: int) -> Numbers:
        """The next so many."""


def numbers_of(blocks: int, theta: float | None, generator: np.random.Generator) -> Blocks:
    """Random passes over that many blocks, or a zipf distribution where ``theta`` is given."""
    return Passes(blocks, generator) if theta is None else Zipf(blocks, theta, generator)


class Passes:
    """Each of the blocks once in each pass."""

    def __init__(self, blocks: int, generator: np.random.Generator):
        self._blocks = blocks
        self._generator = generator
        self._order = Permutation(blocks, generator)
        self._done = 0

    def draw(self, count: int) -> Numbers:
        parts = []
        while count:
            if self._done == self._blocks:
                self._order = Permutation(self._blocks, self._generator)
                self._done = 0
            part = min(count, self._blocks - self._done)
            parts.append(self._order.at(np.arange(self._done, self._done + part)))
            self._done += part
            count -= part
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class Permutation:
    """The numbers below ``size`` in a random order that takes no memory: a Feistel network.

    Its two halves are as many bits as the numbers have, half each; a result that is no number below
    ``size`` is put through it again until it is one (cycle walking, fewer than twice on average).
    """

    def __init__(self, size: int, generator: np.random.Generator):
        self._size = np.uint64(size)
        bits = max(2, (size - 1).bit_length())
        low = bits // 2
        self._low_bits = np.uint64(low)
        self._masks = (np.uint64((1 << low) - 1), np.uint64((1 << bits - low) - 1))
        self._keys = generator.integers(0, 1 << 64, _ROUNDS, np.uint64, endpoint=False)

    def at(self, positions: Numbers) -> Numbers:
        """The numbers at these positions."""
        values = self._through(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self._size)
        while len(outside):
            values[outside] = self._through(values[outside])
            outside = outside[values[outside] >= self._size]
        return values.astype(np.int64)

    def _through(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low_mask, high_mask = self._masks
        low, high = values & low_mask, values >> self._low_bits
        for number, key in enumerate(self._keys):
            if number % 2:
                high = high ^ (_mixed(low, key) & high_mask)
            else:
                low = low ^ (_mixed(high, key) & low_mask)
        return (high << self._low_bits) | low


def _mixed(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """The upper half of a multiplication is as good as random in every bit."""
    return ((values ^ key) * _FACTOR) >> np.uint64(32)


class Zipf:
    """Blocks in proportion to 1 / rank ** theta, any theta above 0.

    Rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from
    monotone discrete distributions", 1996): no table, and few draws are rejected.
    """

    def __init__(self, blocks: int, theta: float, generator: np.random.Generator):
        if theta <= 0:
            raise PrepareFailed(f"zipf_theta is {theta}: it must be above 0")
        self._blocks = blocks
        self._theta = theta
        self._generator = generator
        self._order = Permutation(blocks, generator)
        one = np.float64(1.0)
        self._first = float(self._area(one * 1.5) - 1.0)
        self._last = float(self._area(one * (blocks + 0.5)))
        self._close = float(2.0 - self._at_area(self._area(one * 2.5) - one * 2.0**-theta))

    def draw(self, count: int) -> Numbers:
        """The next so many; the most frequent block is the order's first."""
        ranks = np.empty(0, np.int64)
        while len(ranks) < count:
            ranks = np.concatenate((ranks, self._some_ranks(count - len(ranks))))
        return self._order.at(ranks - 1)

    def _some_ranks(self, count: int) -> Numbers:
        areas = self._last + self._generator.random(count) * (self._first - self._last)
        exact = self._at_area(areas)
        ranks = np.clip(np.rint(exact), 1, self._blocks)
        kept = ranks - exact <= self._close
        kept |= areas >= self._area(ranks + 0.5) - ranks**-self._theta
        return ranks[kept].astype(np.int64)

    def _area(self, x: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
        """The integral of x ** -theta from 1."""
        power = 1.0 - self._theta
        logs = np.log(x)
        return np.asarray(logs if power == 0 else np.expm1(power * logs) / power)

    def _at_area(self, area: NDArray[np.float64]) -> NDArray[np.float64]:
        power = 1.0 - self._theta
        return np.exp(area if power == 0 else np.log1p(power * area) / power)
