"""How much slower: ratios with intervals that resample rounds, for all cases at once.

Pure functions of numpy arrays. A side is an array [cases, runs, rounds] of one figure per round,
the median of its timed cycles, say; NaN where a round has none. docs/comparing.md argues for it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats  # type: ignore[import-untyped]

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

ALPHA: Final = 0.05
# What all cases share is one test; but where it errs, it errs for all of them.
COMMON_ALPHA: Final = 0.01
MARGIN: Final = 0.05
# The standard error of a standard error is then 3.5 %, less than a few rounds leave it anyway.
RESAMPLES: Final = 400
# With fewer other cases their common factor would be one case's.
REFERENCE_CASES: Final = 9
# Of each end this share of the rounds is left out of their mean: a disturbed round, or a lucky one.
TRIM: Final = 0.2
# Elements that a chunk of resampled cases may have: 8 bytes each, and as much again to sort.
_CHUNK: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Common:
    """The factor by which all cases moved together, B over A.

    ``low``, ``high``: its interval between runs, None where a side has only one; ``cases``: how
    many it is taken from. ``attributed``: the runs of each side agree so well that it is no chance.
    """

    ratio: float
    low: float | None
    high: float | None
    cases: int
    attributed: bool


@dataclass(frozen=True, slots=True)
class Effects:
    """One entry per case; NaN where a side has fewer than two rounds.

    ``a``, ``b``: each side's figure, of the trimmed mean of its logarithms, at the speed that its
    rounds usually have. ``ratio``: B over A. ``low``, ``high``: its interval at
    1 - alpha / comparisons; with the factor that all cases share, and without. ``rounds_a``,
    ``rounds_b``: how many there are. ``enough``: whether so few can tell anything. ``alone``:
    neither other cases nor other runs tell what is the machine's.
    """

    a: Array
    b: Array
    ratio: Array
    low: Array
    high: Array
    rounds_a: NDArray[np.int64]
    rounds_b: NDArray[np.int64]
    enough: Flags
    alone: bool
    common: Common | None


@dataclass(frozen=True, slots=True)
class _Side:
    """Trimmed means of the logarithms, their variance and its degrees of freedom."""

    centre: Array
    variance: Array
    freedom: Array


def estimate(
    a: Array,
    b: Array,
    *,
    comparisons: int,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 1,
) -> Effects:
    """The ratios B over A of all cases, each with an interval at 1 - alpha / comparisons."""
    logs_a, logs_b = np.log(a), np.log(b)
    rounds_a, rounds_b = (np.isfinite(x).sum((1, 2)) for x in (logs_a, logs_b))
    usable = (rounds_a >= 2) & (rounds_b >= 2)
    random = np.random.default_rng(seed)
    common, speed_a, speed_b = _common(logs_a, logs_b, usable)
    side_a = _side(logs_a - speed_a, usable, random, resamples)
    side_b = _side(logs_b - speed_b, usable, random, resamples)
    raw = side_b.centre - side_a.centre
    half = half_width(
        (side_a.variance, side_b.variance), (side_a.freedom, side_b.freedom), alpha / comparisons
    )
    if common is None:
        low, high = raw - half, raw + half
    elif common.attributed and common.low is not None and common.high is not None:
        # The factor's own doubt is added: it is a test of its own, not one of the many.
        doubt = (math.log(common.high) - math.log(common.low)) / 2
        half = np.hypot(half, doubt)
        low, high = raw - half, raw + half
    else:
        # Whether the machine did it or what is compared, nobody knows: so both are in it.
        rest = raw - math.log(common.ratio)
        low, high = np.minimum(raw, rest) - half, np.maximum(raw, rest) + half
    enough = usable & (orders(rounds_a, rounds_b) >= 2 * comparisons / alpha)
    alone = common is None and min(a.shape[1], b.shape[1]) < 2
    return Effects(
        np.exp(side_a.centre),
        np.exp(side_b.centre),
        np.exp(raw),
        np.exp(low),
        np.exp(high),
        rounds_a,
        rounds_b,
        enough,
        alone,
        common,
    )


def orders(rounds_a: Any, rounds_b: Any) -> Any:
    """In how many ways the rounds of two sides can be told apart: C(a + b, a).

    That all of one side lie below all of the other happens by chance once in so many times.
    """
    return special.binom(np.add(rounds_a, rounds_b), rounds_a)


def rounds_wanted(comparisons: int, alpha: float = ALPHA) -> int:
    """The fewest rounds on each side with which ``comparisons`` cases can be told apart."""
    rounds = 2
    while math.comb(2 * rounds, rounds) < 2 * comparisons / alpha:
        rounds += 1
    return rounds


def trimmed_mean(values: Any) -> Any:
    """The mean over the last axis without the share TRIM of each end, at least one from five on."""
    ordered = np.sort(values, axis=-1)
    cut = _cut(values.shape[-1])
    return ordered[..., cut : values.shape[-1] - cut].mean(axis=-1)


def _cut(count: int) -> int:
    return max(1, int(TRIM * count)) if count >= 5 else 0


def _common(
    a: Array, b: Array, usable: Flags
) -> tuple[Common | None, Array | float, Array | float]:
    """What all cases share: the factor between the sides, and each round's speed on its side."""
    count = int(usable.sum())
    if count < REFERENCE_CASES:
        return None, 0.0, 0.0
    centre_a, centre_b = (np.nanmedian(x[usable], axis=(1, 2), keepdims=True) for x in (a, b))
    shift = float(np.median(centre_b - centre_a))
    speed_a, speed_b = _speeds(a[usable] - centre_a), _speeds(b[usable] - centre_b)
    runs_a, runs_b = (speed.mean(axis=1) for speed in (speed_a, speed_b))
    low = high = None
    attributed = False
    if min(len(runs_a), len(runs_b)) >= 2:
        variance_a, variance_b = (float(r.var(ddof=1)) / len(r) for r in (runs_a, runs_b))
        freedom = _welch(variance_a, variance_b, len(runs_a) - 1.0, len(runs_b) - 1.0)
        half = float(stats.t.ppf(1 - COMMON_ALPHA / 2, freedom)) * math.sqrt(
            variance_a + variance_b
        )
        low, high = math.exp(shift - half), math.exp(shift + half)
        attributed = low > 1 or high < 1
    return Common(math.exp(shift), low, high, count, attributed), speed_a, speed_b


def _speeds(deviations: Array) -> Array:
    """By how much each round was slower than its side is, over the cases: [runs, rounds].

    0 for a round in which too few cases ran.
    """
    there = np.isfinite(deviations).sum(0) >= REFERENCE_CASES
    padded = np.where(there, deviations, 0.0)
    speeds: Array = np.nanmedian(padded, axis=0)
    return speeds


def _side(logs: Array, usable: Flags, random: np.random.Generator, resamples: int) -> _Side:
    """Centre and variance of every case, NaN where it is not usable."""
    cases = len(logs)
    centre, variance, freedom = (np.full(cases, np.nan) for _ in range(3))
    for rows, there in _alike(logs, usable):
        values = logs[rows][:, there]
        centre[rows] = trimmed_mean(values)
        draws, inflation = _draws(there, random, resamples)
        variance[rows] = _resampled_variance(values, draws) * inflation
        freedom[rows] = values.shape[1] - 2 * _cut(values.shape[1]) - 1
    return _Side(centre, *_moderated(variance, freedom))


def _alike(logs: Array, usable: Flags) -> Iterator[tuple[NDArray[np.int64], Flags]]:
    """The cases that have the same rounds, which are then resampled together."""
    numbers = np.flatnonzero(usable)
    if not len(numbers):
        return
    there = np.isfinite(logs[numbers])
    patterns, group = np.unique(there.reshape(len(numbers), -1), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    bounds = np.searchsorted(group.ravel()[order], np.arange(len(patterns) + 1))
    for index, pattern in enumerate(patterns):
        rows = numbers[order[bounds[index] : bounds[index + 1]]]
        yield rows, pattern.reshape(logs.shape[1:])


def _draws(
    there: Flags, random: np.random.Generator, resamples: int
) -> tuple[NDArray[np.int64], float]:
    """Rounds drawn with replacement, of several runs the runs first; [resamples, rounds].

    They count the rounds that are there, run by run. And what the variance of the resamples is
    multiplied with: that of n things drawn from n is too small by (n - 1) / n.
    """
    lengths = there.sum(1)
    lengths = lengths[lengths > 0]
    total = int(lengths.sum())
    if len(lengths) == 1:
        return random.integers(0, total, (resamples, total)), total / (total - 1)
    begins = np.cumsum(lengths) - lengths
    # Each drawn run gives as many rounds as runs have on average: the resamples are alike in size.
    each = max(1, round(total / len(lengths)))
    runs = random.integers(0, len(lengths), (resamples, len(lengths)))
    within = random.random((resamples, len(lengths), each)) * lengths[runs][..., None]
    drawn = begins[runs][..., None] + within.astype(np.int64)
    return drawn.reshape(resamples, -1), len(lengths) / (len(lengths) - 1)


def _resampled_variance(values: Array, draws: NDArray[np.int64]) -> Array:
    """The variance of the trimmed mean over the resamples, case by case."""
    found = np.empty(len(values))
    step = max(1, _CHUNK // draws.size)
    # Around 0 half the precision is more than enough, and sorted in half the time.
    deviations = (values - values.mean(axis=1, keepdims=True)).astype(np.float32)
    for begin in range(0, len(values), step):
        means = trimmed_mean(deviations[begin : begin + step][:, draws])
        found[begin : begin + step] = means.var(axis=1, ddof=1)
    return found


def _moderated(variance: Array, freedom: Array) -> tuple[Array, Array]:
    """Variances of few rounds, drawn towards what they are over all cases (Smyth 2004, limma).

    How far follows from how alike they are; cases whose variances differ more than chance has it
    are left nearly alone. A variance that is small by accident is not believed.
    """
    known = np.isfinite(variance) & (variance > 0) & (freedom > 0)
    if known.sum() < REFERENCE_CASES:
        return variance, freedom
    half = freedom[known] / 2
    logs = np.log(variance[known]) - special.digamma(half) + np.log(half)
    spread = float(logs.var(ddof=1) - special.polygamma(1, half).mean())
    if spread <= 0:
        prior = 1e3
        level = math.exp(float(logs.mean()))
    else:
        prior = min(1e3, 2 * _inverse_trigamma(spread))
        level = math.exp(
            float(logs.mean()) + float(special.digamma(prior / 2)) - math.log(prior / 2)
        )
    moderated = (prior * level + freedom * variance) / (prior + freedom)
    return moderated, freedom + prior


def _inverse_trigamma(value: float) -> float:
    """The x at which polygamma(1, x) is ``value``, by Newton's method on 1 / trigamma."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if abs(step) < 1e-9 * x:
            break
    return x


def half_width(variances: Sequence[Any], freedoms: Sequence[Any], alpha: float) -> Any:
    """Half an interval at 1 - alpha around the difference of two centres."""
    (a, b), (freedom_a, freedom_b) = variances, freedoms
    return stats.t.ppf(1 - alpha / 2, _welch(a, b, freedom_a, freedom_b)) * np.sqrt(a + b)


def _welch(a: Any, b: Any, freedom_a: Any, freedom_b: Any) -> Any:
    """Degrees of freedom of a difference whose two variances are not the same."""
    sum_squared = np.maximum((a + b) ** 2, np.finfo(float).tiny)
    parts = a**2 / freedom_a + b**2 / freedom_b
    return sum_squared / np.maximum(parts, np.finfo(float).tiny)
