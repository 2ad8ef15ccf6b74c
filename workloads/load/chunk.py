"""How many requests to hand to the kernel at a time, when many can be: found by trying.

A device that gets all of them at once stands still while we write them down; one that gets them one
by one has us enter the kernel, and a virtual machine leave for its host, for each of them. Which
costs more differs from machine to machine and from minute to minute (measured, virtio: two first
gave 4 % more than 32 while a CPU was free, and less when each notification took the CPU that the
host needed to serve it). So now and then the next smaller or larger number is tried for a moment,
between two moments of the present one, and is taken when it was better on average.
"""

from collections.abc import Sequence

_WINDOW_NS = 20_000_000
# Completions for each place in flight, so that slow devices are looked at for longer.
_ROUNDS = 16
# Windows of the present size between two tries; doubled for as long as none was better.
_FEWEST, _MOST = 3, 24
_MEMORY = 0.7
_BETTER = 1.01


class Chunk:
    """``size``: so many first, and then twice as many each time."""

    def __init__(self, slots: int):
        self._sizes: Sequence[int] = sorted({min(1 << power, slots) for power in range(17)})
        self._enough = _ROUNDS * slots
        self._at = min(1, len(self._sizes) - 1)
        self._forget()
        self._direction = 1
        self._trying = False
        self._before = self._during = 0.0
        self.size = self._sizes[self._at]

    def _forget(self) -> None:
        self._scores = {-1: 1.0, 1: 1.0}
        self._every = _FEWEST
        self._since = 0

    def begin(self, now_ns: int, done: int) -> None:
        """Windows count from here on; ``done``: completions so far."""
        self._began_ns, self._done = now_ns, done
        self._end_try()
        self._during = 0.0
        self._since = 0

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
        scores, direction = self._scores, self._direction
        scores[direction] = _MEMORY * scores[direction] + (1 - _MEMORY) * ratio
        if scores[direction] > _BETTER:
            self._at += direction
            self.size = self._sizes[self._at]
            self._forget()
        else:
            self._every = min(2 * self._every, _MOST)
