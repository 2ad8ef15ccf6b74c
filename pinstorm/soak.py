"""Does a series rise for good? The verdict of a soak: leak, no leak, or how much longer it takes.

What is judged is the low water: pins in flight and others' bursts come and go above it, and only
what is never given back lifts it. The window is cut into stretches of equal length; the smallest
value of each is its level, and a straight line is fitted through the levels.

The line's error must not be taken for that of independent values. It is the larger of two:
the power left in the residuals at the slowest frequencies (Sun, "Robust trend inference with series
variance estimator", Journal of Econometrics 164, 2011; Lazarus et al., "HAR Inference:
Recommendations for Practice", JBES 36, 2018: Student's t with as many degrees as there are terms),
here by polynomials orthogonal to the line, and the first-order autoregression's (effective sample
size n(1-r)/(1+r): Santer et al., JGR 105, 2000, r corrected for its bias in short series). Of
several lengths of the stretches the one that leaves the least error is taken.

A window sees nothing slower than itself: others who pin for longer than half of it, or a level that
swings with a period of twice the window, look like a leak. Series of one process (VmPin) are free
of others. The verdict's error rates hold for one look at the end, not for the best of many looks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, Literal

Point = tuple[float, float, float]
Verdict = Literal["leak", "no-leak", "inconclusive"]
# leak: steady-rise. no-leak: falls, or bounded: no faster than high_per_s. Inconclusive: the rest.
# settling: it rose more at first than later; steps: one or two steps tell it better than a line;
# mean-level: only the low water rises, so it fluctuates less than at first; within-quantum: by no
# more than the counter may be wrong; late-rise: it rises, but only lately.
Reason = Literal[
    "steady-rise",
    "falls",
    "bounded",
    "too-short",
    "too-noisy",
    "settling",
    "steps",
    "mean-level",
    "within-quantum",
    "late-rise",
]

_ERROR: Final = 0.05
# The later two thirds hold less: that they rise too is asked for with less certainty.
_LATE_ERROR: Final = 0.1
# A cache that fills with a time constant of half the window rises so much slower later.
_AGREEMENT: Final = 2 / 3
_LEVELS: Final = (30, 20, 12)
_MOST_TERMS: Final = 8
# What is shorter shows how a load begins.
_LEAST_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of series: ``matters_per_s``, the slowest leak that a soak must be able to rule out,
    and ``quantum``, by how much the counter may be wrong or coarse, both in ``unit``."""

    unit: str
    matters_per_s: float
    quantum: float


KINDS: Final[Mapping[str, Kind]] = {
    # 337 MiB a day; one 64 KiB region in a thousand is that already at 63 registrations/s.
    "outstanding_pages": Kind("pages", 1.0, 1.0),
    "vmpin_bytes": Kind("bytes", 4096.0, 4096.0),
    # Up to 64 pages of a task are not yet added to its mm on 6.1 (mm/memory.c,
    # TASK_RSS_EVENTS_THRESH); 6.12 batches at least 32 on each CPU (lib/percpu_counter.c).
    "own_rss_bytes": Kind("bytes", 4096.0, 64 * 4096.0),
    # vm.max_map_count's default of 65530 in a week.
    "vma_count": Kind("mappings", 0.1, 1.0),
    # The usual soft RLIMIT_NOFILE of 1024 in a day.
    "fd_count": Kind("descriptors", 0.01, 1.0),
    # One in a thousand at 100 registrations/s.
    "mr_count": Kind("regions", 0.1, 1.0),
}


@dataclass(frozen=True, slots=True)
class Trend:
    """The slope of a series, its 95 % confidence interval, and what follows from it.

    Per second, in the series' own unit; None where there was too little to fit. After a transient
    they are those of the last two thirds. ``more_s``: how much longer it would take to tell; None
    once it is told, and where not even that can be estimated. ``lasted_s``: from the first point to
    the last.
    """

    slope_per_s: float | None
    low_per_s: float | None
    high_per_s: float | None
    verdict: Verdict
    reason: Reason
    more_s: float | None
    points: int
    lasted_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge_all(
    trends: Mapping[str, Sequence[Point]],
    *,
    kinds: Mapping[str, Kind] = KINDS,
    quanta: Mapping[str, float] | None = None,
) -> dict[str, Trend]:
    """Judge several series at once: all intervals together hold with 95 % (Bonferroni).

    A key is a kind, or ``KIND:WHOSE`` for one process's series. ``quanta``, by key, overrides the
    kinds' (``outstanding_pages`` where no refresh folds the counters: their bound).
    """
    unknown = [key for key in trends if key.partition(":")[0] not in kinds]
    if unknown:
        raise ValueError(f"no kind of series is called {unknown[0]!r}: use one of {sorted(kinds)}")
    found = {}
    for key, points in trends.items():
        kind = kinds[key.partition(":")[0]]
        quantum = (quanta or {}).get(key, kind.quantum)
        found[key] = judge(
            points, matters_per_s=kind.matters_per_s, quantum=quantum, series=len(trends)
        )
    return found


def judge(
    points: Sequence[Point], *, matters_per_s: float, quantum: float = 1.0, series: int = 1
) -> Trend:
    """Judge one series of (t_s, low, mean), in the order of time, without missing values.

    ``low`` and ``mean`` are those of a bucket of samples that ends or begins at ``t_s``. A leak is
    a rise that excludes zero, goes on in the last two thirds, exceeds ``quantum``, and is no step;
    that it is slower than ``matters_per_s`` does not excuse it. ``series``: how many are judged.
    """
    lasted_s = points[-1][0] - points[0][0] if points else 0.0
    if len(points) < _LEVELS[-1] or lasted_s < _LEAST_S:
        more_s = None
        if lasted_s > 0:
            interval_s = lasted_s / (len(points) - 1)
            more_s = max(_LEAST_S - lasted_s, interval_s * (_LEVELS[-1] - len(points)))
        return Trend(None, None, None, "inconclusive", "too-short", more_s, len(points), lasted_s)
    error = _ERROR / series
    choices = [_stretches(points, count) for count in _LEVELS if count <= len(points)]
    levels = min(choices, key=lambda choice: _fit(choice.times, choice.lows, error).half)
    third = len(levels.times) // 3
    whole = _fit(levels.times, levels.lows, error)
    late = _fit(levels.times[third:], levels.lows[third:], error)
    against = _against_a_leak(levels, whole, third, quantum, series) if whole.low > 0 else None
    # A transient that the whole window remembers is over when the rest is bounded.
    over = late.high < matters_per_s <= whole.high
    shown = late if against == "settling" or over else whole

    def told(verdict: Verdict, reason: Reason, more_s: float | None = None) -> Trend:
        figures = shown.slope, shown.low, shown.high
        return Trend(*figures, verdict, reason, more_s, len(points), lasted_s)

    if whole.low > 0 and against is None:
        return told("leak", "steady-rise")
    if late.slope >= matters_per_s and against is None:
        against = "late-rise" if late.low > 0 else None
    elif shown.high < matters_per_s and quantum / lasted_s < matters_per_s:
        return told("no-leak", "falls" if shown.high < 0 else "bounded")
    more_s = _more(shown, lasted_s, matters_per_s, quantum)
    if against == "steps":
        # Once the last of them lies in the first third, the rest is judged without it.
        last_s = levels.times[_stairs(levels.lows)[1]] - points[0][0]
        more_s = max(more_s, 3 * last_s - lasted_s)
    return told("inconclusive", against or "too-noisy", more_s)


@dataclass(frozen=True, slots=True)
class _Levels:
    times: list[float]
    lows: list[float]
    means: list[float]


def _stretches(points: Sequence[Point], count: int) -> _Levels:
    """Cut into ``count`` stretches of as many points: middle, smallest and mean of each."""
    cuts = [index * len(points) // count for index in range(count + 1)]
    parts = [points[begin:end] for begin, end in pairwise(cuts)]
    return _Levels(
        [(part[0][0] + part[-1][0]) / 2 for part in parts],
        [min(low for _, low, _ in part) for part in parts],
        [math.fsum(mean for _, _, mean in part) / len(part) for part in parts],
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """A line: its slope, half the width of the interval, and the residuals' autocorrelation."""

    slope: float
    half: float
    persistence: float

    @property
    def low(self) -> float:
        return self.slope - self.half

    @property
    def high(self) -> float:
        return self.slope + self.half


def _against_a_leak(
    levels: _Levels, whole: _Fit, third: int, quantum: float, series: int
) -> Reason | None:
    """Why a line that rises is no leak yet."""
    late = _fit(levels.times[third:], levels.lows[third:], _LATE_ERROR / series)
    if late.slope < _AGREEMENT * whole.slope:
        return "settling"
    if late.low <= 0:
        return "too-noisy"
    if whole.slope * (levels.times[-1] - levels.times[0]) <= quantum:
        return "within-quantum"
    # Schwarz's criterion: two steps have three levels and two places (Yao, Statistics & Probability
    # Letters 6, 1988), a line has two parameters. Places are searched for: one more, by simulation.
    count = len(levels.lows)
    stairs, _ = _stairs(levels.lows)
    if _squares_around_line(levels) > stairs * count ** (4 / count):
        return "steps"
    # Twice as sure as needed that the mean does not rise: its interval ends below half the slope.
    if _fit(levels.times, levels.means, _ERROR / series).high < whole.slope / 2:
        return "mean-level"
    return None


def _more(fit: _Fit, lasted_s: float, matters_per_s: float, quantum: float) -> float:
    """How much longer, in s, until the interval excludes either zero or what matters.

    Its width shrinks as T^-1.5 with residuals that forget at once, as T^-0.5 with a random walk;
    between them it is taken to change with the residuals' autocorrelation.
    """
    enough = max(fit.slope, matters_per_s - fit.slope)
    longer: float = (fit.half / enough) ** (1 / (1.5 - fit.persistence))
    needed_s = max(lasted_s * max(1.25, longer), quantum / matters_per_s)
    return needed_s - lasted_s


def _fit(times: Sequence[float], values: Sequence[float], error: float) -> _Fit:
    """The least-squares line, with an interval that holds but for a share ``error``."""
    count = len(times)
    terms = min(_MOST_TERMS, count // 3)
    flat, line, *slow = _polynomials(times, terms + 2)
    # Constant series give zeros exactly.
    values = [value - values[0] for value in values]
    level, rise = _dot(flat, values), _dot(line, values)
    per_s = (line[-1] - line[0]) / (times[-1] - times[0])
    left = [v - level * a - rise * b for v, a, b in zip(values, flat, line, strict=True)]
    squares = _dot(left, left)
    if squares == 0:
        return _Fit(rise * per_s, 0.0, 0.0)
    # Beyond 1 - 3/n the error of a line through a random walk would be exceeded.
    lagged = _dot(left[1:], left[:-1]) / squares
    persistence = min(max(0.0, (count * lagged + 2) / (count - 4)), 1 - 3 / count)
    by_regression = squares / (count - 2) * (1 + persistence) / (1 - persistence)
    by_series = math.fsum(_dot(term, values) ** 2 for term in slow) / terms
    half = student_quantile(1 - error / 2, terms) * math.sqrt(max(by_series, by_regression))
    return _Fit(rise * per_s, half * per_s, persistence)


def _polynomials(times: Sequence[float], count: int) -> list[list[float]]:
    """Orthonormal polynomials of degree 0, 1, … over the times; the residuals' slow movements."""
    middle = (times[0] + times[-1]) / 2
    scaled = [2 * (time - middle) / (times[-1] - times[0]) for time in times]
    found: list[list[float]] = []
    while len(found) < count:
        new = (
            [a * b for a, b in zip(found[-1], scaled, strict=True)] if found else [1.0] * len(times)
        )
        # Twice: once leaves rounding of the size of what is subtracted.
        for old in (*found, *found):
            part = _dot(old, new)
            new = [a - part * b for a, b in zip(new, old, strict=True)]
        length = math.sqrt(_dot(new, new))
        found.append([a / length for a in new])
    return found


def _squares_around_line(levels: _Levels) -> float:
    flat, line = _polynomials(levels.times, 2)
    values = [value - levels.lows[0] for value in levels.lows]
    return max(0.0, _dot(values, values) - _dot(flat, values) ** 2 - _dot(line, values) ** 2)


def _stairs(values: Sequence[float]) -> tuple[float, int]:
    """The squares left by the best two steps, and the index at which the last of them ends."""
    count = len(values)
    sums, squares = [0.0], [0.0]
    for value in values:
        sums.append(sums[-1] + value - values[0])
        squares.append(squares[-1] + (value - values[0]) ** 2)

    def left(begin: int, end: int) -> float:
        return squares[end] - squares[begin] - (sums[end] - sums[begin]) ** 2 / (end - begin)

    best, _, last = min(
        (left(0, first) + left(first, last) + left(last, count), first, last)
        for first in range(1, count - 1)
        for last in range(first + 1, count)
    )
    return max(0.0, best), last


def student_quantile(probability: float, degrees: int) -> float:
    """Student's t, for a probability of at least a half: bisection of its closed form."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if student_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def student_cdf(value: float, degrees: int) -> float:
    """Abramowitz and Stegun, 26.7.3 and 26.7.4: a finite sum for whole degrees of freedom."""
    angle = math.atan2(value, math.sqrt(degrees))
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for step in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (step + 1) / (step + 2)
    if odd:
        return 0.5 + (angle + math.sin(angle) * total) / math.pi
    return 0.5 + math.sin(angle) * total / 2


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
