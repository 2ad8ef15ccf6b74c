"""What stays, what comes back, and who was there: windows over counters that are made up."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from pinstorm import noise, pin_judgement
from pinstorm.findings import Findings
from pinstorm.talk import Deadline
from pinstorm.windows import Expectancy, Windows
from telemetry.vmstat import Counters, Snapshot
from workloads.spec import Case

CASE = Case("process-vm-write", "anon", {"size_bytes": 4096}, repeat=0)
LEAK = 16


class MadeUp:
    """Counters of a machine where the case holds ``own`` pages, and others go through ``others``.

    Each snapshot finds the others one step further; what they took is never gone from acquired.
    """

    refreshes = True
    interval_s = 1.0

    def __init__(self, others: Iterator[int]):
        self.own = 0
        self._others = others
        self._released = 0
        self._before = 0

    def snapshot(self, per_node: bool = True) -> Snapshot:
        theirs = next(self._others)
        self._released += max(0, self._before - theirs)
        self._before = theirs
        acquired = self._released + theirs + self.own
        return Snapshot(time.monotonic_ns(), acquired, self._released)


def observed(others: Iterator[int], leak: int, stays: int = 0) -> Windows:
    """One case that keeps ``leak`` pages when it releases, and ``stays`` when it has ended."""
    counters = MadeUp(others)
    expectancy = Expectancy()
    expectancy.recent.between_cases = True
    windows = Windows(CASE, cast(Counters, counters), expectancy, Deadline(30))
    baseline = windows.at_rest()
    for phase, held in (("acquire", LEAK), ("release", leak)):
        before = windows.quiet(phase)
        counters.own = held
        windows.end(phase, before, time.monotonic_ns())
    windows.settle("release")
    windows.quiet(None)
    counters.own = stays
    windows.orphaned(baseline)
    return windows


def loop() -> Iterator[int]:
    return itertools.cycle((0, 4096, 70, 1))


def test_nothing_stays_of_a_case_that_gives_back() -> None:
    windows = observed(itertools.repeat(0), leak=0)
    assert windows.remaining == [0, 0]
    assert (windows.noise_pages, windows.recent_pages) == (0, 0)


def test_a_loop_beside_it_is_noise_and_leaves_nothing() -> None:
    windows = observed(loop(), leak=0)
    assert windows.remaining is not None
    assert max(windows.remaining) <= 0
    assert windows.noise_pages > 0
    assert windows.recent_pages >= windows.noise_pages


@pytest.mark.parametrize("stays", [0, LEAK])
def test_a_leak_is_told_from_what_outlives_the_process(stays: int) -> None:
    windows = observed(itertools.repeat(7), leak=LEAK, stays=stays)
    assert windows.remaining == [LEAK, stays]


def reasons(windows: Windows) -> list[str]:
    """What is said of the end of such a case."""
    findings = Findings()
    figures = {
        "noise": windows.noise_pages,
        "recent": windows.recent_pages,
        "stayed": windows.stayed,
    }
    pin_judgement.compare_remaining(figures, findings)
    return findings.reasons


def full_speed() -> Iterator[int]:
    """A loop that is hardly ever met at its low point."""
    return itertools.cycle((4096, 3000, 4000, 1700, 4095, 2500, 900))


@pytest.mark.parametrize("others", [loop, full_speed])
def test_more_than_a_loop_moves_and_never_goes_is_orphaned(
    others: Callable[[], Iterator[int]],
) -> None:
    windows = observed(others(), leak=100_000, stays=100_000)
    assert reasons(windows) == ["orphaned"]
    assert windows.stayed is not None
    # What drifted is taken off, for all anybody knows it stays as well.
    assert 50_000 < windows.stayed <= 100_000 + 4096


@pytest.mark.parametrize("others", [loop, full_speed])
@pytest.mark.parametrize("stays", [0, 1, 700])
def test_less_than_a_loop_moves_is_nobodys(others: Callable[[], Iterator[int]], stays: int) -> None:
    windows = observed(others(), leak=stays, stays=stays)
    assert reasons(windows) == []
    assert windows.noise_pages or windows.recent_pages


def test_without_others_all_that_stays_is_told() -> None:
    windows = observed(itertools.repeat(7), leak=LEAK, stays=LEAK)
    assert (windows.stayed, windows.noise_pages, windows.recent_pages) == (LEAK, 0, 0)
    assert observed(itertools.repeat(7), leak=LEAK).stayed == 0


def test_what_others_began_to_hold_while_the_child_stood_still_is_theirs() -> None:
    counters = MadeUp(itertools.chain([5, 5], itertools.repeat(905)))
    windows = Windows(CASE, cast(Counters, counters), Expectancy(), Deadline(30))
    first = counters.snapshot()
    windows.end("acquire", first, time.monotonic_ns())
    windows.quiet(None)
    windows.orphaned(first)
    assert (windows.stayed, windows.noise_pages) == (0, 900)


def test_a_low_point_is_watched_for_until_it_comes() -> None:
    counters = MadeUp(itertools.chain([900, 4096, 500, 700, 20], itertools.repeat(4096)))
    found = noise.low_point(cast(Counters, counters), 20)
    assert found is not None
    assert (found.least, found.rose, found.last.outstanding) == (20, 3196, 20)


def test_one_burst_between_two_intervals_is_recent() -> None:
    """Not in an interval around a window: between the case before and this one."""
    counters = MadeUp(itertools.chain([0, 300], itertools.repeat(0)))
    expectancy = Expectancy()
    expectancy.recent.between_cases = True
    expectancy.recent.leave(counters.snapshot())
    counters.snapshot()
    windows = Windows(CASE, cast(Counters, counters), expectancy, Deadline(30))
    windows.at_rest()
    windows.quiet("acquire")
    assert (windows.noise_pages, windows.recent_pages) == (0, 300)
