"""What others on the machine pinned lately, over all the cases of a run.

The counters only ever grow, so whatever moved between two snapshots is seen, however short it was;
and a run takes snapshots all the time. Who pins in bursts can miss the intervals around one window,
but not those around all the windows of the last seconds.
"""

import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from telemetry import window
from telemetry.vmstat import Counters, Snapshot

# A machine is quiet when nobody pinned for so long: four pauses of half a second.
QUIET_NS: Final = 2_000_000_000
# How long a figure that nothing confirms is watched for others' pins, and in which pieces.
_DOUBT_NS: Final = 1_500_000_000
PIECE_NS: Final = 20_000_000
# How long, and how often on average, it is looked whether what stays ever goes. A loop without
# pauses is at its low point for microseconds of its milliseconds: few looks meet it.
_STAY_NS: Final = 1_500_000_000
_LOOK_S: Final = 0.0005


@dataclass(slots=True)
class Recent:
    """When others pinned, and how much, as far as it was seen.

    ``between_cases``: whether what moves while no case runs is others' doing too. In a lab's guest
    it is the run's own: its root and its journal lie on 9p, which pins pages for its reads. And
    counters that cannot be folded are late with what the case before did.
    """

    between_cases: bool = False
    _met: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=256))
    _left: Snapshot | None = None

    def leave(self, now: Snapshot) -> None:
        """A case ended here, or the run began."""
        self._left = now

    def come_back(self, now: Snapshot) -> None:
        """The next case begins here."""
        if self.between_cases and self._left is not None:
            self.met(moved_pages(self._left, now), now.t_ns)

    def met(self, pages: int, t_ns: int) -> None:
        """Others pinned or unpinned so many pages, not long before ``t_ns``."""
        if pages:
            self._met.append((t_ns, pages))

    def since(self, t_ns: int) -> int:
        """The most pages that were met at a time from then on."""
        return max((pages for met_ns, pages in self._met if met_ns >= t_ns), default=0)


@dataclass(frozen=True, slots=True)
class LowPoint:
    """``least``: the fewest pins outstanding that were seen; ``rose``: the most by which they rose
    above what was the least until then. Whoever has ended takes none, so others did that."""

    least: int
    rose: int
    last: Snapshot


def low_point(counters: Counters, enough: int, at_most_ns: int = _STAY_NS) -> LowPoint | None:
    """Look often until no more than ``enough`` pins are outstanding, or the time is over.

    Loops of others return to their low point again and again; a leak never goes. None without
    counters.
    """
    last = counters.snapshot(per_node=False)
    if last.outstanding is None:
        return None
    least, rose, begin_ns = last.outstanding, 0, last.t_ns
    while least > enough and last.t_ns - begin_ns < at_most_ns:
        # At random moments, so that no loop keeps step with the looks.
        time.sleep(random.uniform(0, 2 * _LOOK_S))
        last = counters.snapshot(per_node=False)
        if last.outstanding is None:
            return None
        rose = max(rose, last.outstanding - least)
        least = min(least, last.outstanding)
    return LowPoint(least, rose, last)


def moved_pages(a: Snapshot, b: Snapshot) -> int:
    """The larger of what was acquired and what was released; 0 without counters."""
    moved = window.between(a, b)
    return max(abs(moved.acquired or 0), abs(moved.released or 0))


def met_by_watching(counters: Counters, at_most_ns: int = _DOUBT_NS) -> int:
    """Watch until somebody pins, but not longer than that: the pages of the first who did."""
    begin_ns = time.monotonic_ns()
    last = counters.snapshot(per_node=False)
    while time.monotonic_ns() - begin_ns < at_most_ns:
        ambient = window.ambient(counters, PIECE_NS, last, per_node=False)
        if ambient.pages:
            return ambient.pages
        last = ambient.end
    return 0
