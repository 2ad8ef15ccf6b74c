"""Did a load reach a steady state? A sliding window over its rates, as fio's ``steadystate``.

fio's ``iops_slope`` fits a line through the window (steadystate.c, steadystate_slope: the slope per
interval, in percent of the mean), and its ``iops`` takes the value farthest from the mean
(steadystate_deviation). fio asks for one of the two and ends the job there; here both are asked
for, and the load goes on.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workloads.load.spec import Steady


@dataclass(frozen=True, slots=True)
class Steadiness:
    """Whether and where a window was steady.

    ``after_intervals``: how many intervals came before the first steady window. The two figures are
    in percent of the mean rate, of that window or, where none was steady, of the last one; None of
    a window that is not full, or in which nothing was done at all. ``slope_percent``: by how much
    the rate rises from one interval to the next; ``spread_percent``: how far the farthest interval
    lies from the mean.
    """

    reached: bool
    after_intervals: int | None
    slope_percent: float | None
    spread_percent: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find(rates: Sequence[float], interval_s: float, steady: Steady) -> Steadiness:
    """The first steady window of ``rates``, one for each interval of ``interval_s``.

    A window is as many intervals as fill ``window_s``, at least two. A load that does nothing is
    not steady: its window has no mean to compare with.
    """
    width = window_intervals(interval_s, steady)
    last: tuple[float, float] | None = None
    for begin in range(len(rates) - width + 1):
        last = _figures(rates[begin : begin + width])
        if last is None:
            continue
        slope, spread = last
        if abs(slope) <= steady.slope_percent and spread <= steady.spread_percent:
            return Steadiness(True, begin, slope, spread)
    slope_percent, spread_percent = last or (None, None)
    return Steadiness(False, None, slope_percent, spread_percent)


def window_intervals(interval_s: float, steady: Steady) -> int:
    """How many intervals a window is."""
    # 3 * 0.1 s is a little more than 0.3 s.
    return max(2, math.ceil(steady.window_s / interval_s - 1e-9))


def _figures(window: Sequence[float]) -> tuple[float, float] | None:
    """The slope per interval and the largest distance from the mean, both in percent of it."""
    count = len(window)
    mean = math.fsum(window) / count
    if mean == 0:
        return None
    middle = (count - 1) / 2
    moment = math.fsum((index - middle) * (rate - mean) for index, rate in enumerate(window))
    slope = moment / (count * (count * count - 1) / 12)
    spread = max(abs(rate - mean) for rate in window)
    return 100 * slope / mean, 100 * spread / mean
