"""How many requests to hand to the kernel at a time, and to wait for: found by trying.

A device that gets all of them at once stands still while we write them down; one that gets them one
by one has us woken, and enter the kernel, for each of them, and a virtual machine leave for its
host. Which costs more differs from machine to machine and from minute to minute (measured, virtio,
32 in flight: 8 at a time and a wait for 4 gave 7 % more than a wait for 2, a wait for 8 gave 2 %
more again, and all at once 12 % less). So now and then the next smaller or larger number is tried
for a moment, between two moments of the present one, and is taken when it was better beyond doubt:
on a machine with other things to do a moment says little, and the size to begin with is a good one.
"""

import math
from collections.abc import Sequence

_WINDOW_NS = 20_000_000
# Completions for each place in flight, so that slow devices are looked at for longer.
_ROUNDS = 16
# Windows of the present size between two tries; doubled for as long as none was better.
_FEWEST, _MOST = 3, 24
# How much of what earlier tries told is kept at each; how many there must be, by how much better
# they must have been (a ratio's logarithm), and by how many standard errors more.
_MEMORY = 0.95
_FEWEST_TRIES = 3
_BETTER, _ERRORS = 0.003, 2.5


class _Tries:
    """What the tries in one direction gave, the older ones less and less."""

    def __init__(self) -> None:
        self._weight = self._sum = self._squares = 0.0

    def add(self, value: float) -> None:
        self._weight = _MEMORY * self._weight + 1
        self._sum = _MEMORY * self._sum + value
        self._squares = _MEMORY * self._squares + value * value

    @property
    def better(self) -> bool:
        weight = self._weight
        mean = self._sum / weight
        variance = max(0.0, self._squares / weight - mean * mean)
        error = math.sqrt(variance / max(1.0, weight - 1))
        enough = weight > _FEWEST_TRIES * _MEMORY**_FEWEST_TRIES
        return enough and mean > _BETTER + _ERRORS * error


class Chunk:
    """``size``: so many first, and then twice as many each time; all at once if it is all.

    A compiled loop begins with one unless it is all, so the smaller sizes differ by ``wait`` there.
    """

    def __init__(self, slots: int):
        self._sizes: Sequence[int] = sorted({min(1 << power, slots) for power in range(17)})
        self._enough = _ROUNDS * slots
        self._slots = slots
        self._at = max(0, len(self._sizes) - 3)
        self._forget()
        self._direction = 1
        self._trying = False
        self._before = self._during = 0.0
        self.size = self._sizes[self._at]

    def _forget(self) -> None:
        self._tries = {-1: _Tries(), 1: _Tries()}
        self._every = _FEWEST
        self._since = 0

    @property
    def wait(self) -> int:
        """For how many completions to wait; what else is there by then is taken as well."""
        return max(1, min(self.size, self._slots // 2))

    def begin(self, now_ns: int, done: int) -> None:
        """Windows count from here on; ``done``: completions so far."""
        self._began_ns, self._done = now_ns, done
        self._during = 0.0
        if self._trying:
            # It was cut, and is made again.
            self._direction = -self._direction
            self._trying = False
            self.size = self._sizes[self._at]

    def look(self, now_ns: int, done: int) -> None:
        """Once in a while: is the window over, and what comes next?"""
        elapsed_ns = now_ns - self._began_ns
        if elapsed_ns < _WINDOW_NS or done - self._done < self._enough:
            return
        rate = (done - self._done) / elapsed_ns
        self._began_ns, self._done = now_ns, done
        if self._trying:
            self._during = rate
            self._end_try()
            return
        if self._during:
            self._judge(2 * self._during / (self._before + rate))
            self._during = 0.0
        self._before = rate
        self._since += 1
        if self._since >= self._every:
            self._try()

    def _try(self) -> None:
        """The neighbour on the other side than last time, where there is one."""
        if len(self._sizes) == 1:
            return
        self._direction = -self._direction
        if not 0 <= self._at + self._direction < len(self._sizes):
            self._direction = -self._direction
        self._trying = True
        self.size = self._sizes[self._at + self._direction]

    def _end_try(self) -> None:
        self._trying = False
        self._since = 0
        self.size = self._sizes[self._at]

    def _judge(self, ratio: float) -> None:
        """What the try was worth, against the windows before and after it."""
        tries = self._tries[self._direction]
        tries.add(math.log(ratio))
        if tries.better:
            self._at += self._direction
            self.size = self._sizes[self._at]
            self._forget()
        else:
            self._every = min(2 * self._every, _MOST)
