"""Times of two sides, case by case: faster, slower, same, or why that cannot be told.

A load has no timed cycles: its jobs' rates and latencies stand in for them, one figure per round.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from pinstorm.compare import effect
from pinstorm.compare.effect import Array, Common, Effects
from pinstorm.compare.pairing import SIDES, Paired, cycles, run_numbers

Verdict = Literal["faster", "slower", "same", "can't tell"]
Why = Literal["few-rounds", "one-run", "wide"]
# A case's index, and of a load the job.
Key = tuple[int, str | None]

ACQUIRE: Final = "acquire.median"
RELEASE: Final = "release.median"
P99: Final = "p99"
RATE: Final = "rate"
_COLUMNS: Final = {ACQUIRE: "acquire_median_ns", RELEASE: "release_median_ns"}
# A percentile of fewer cycles is nearly their maximum.
CYCLES_FOR_P99: Final = 100
_RESAMPLES_P99: Final = 200


@dataclass(frozen=True, slots=True)
class Timing:
    """One figure of one case. ``a``, ``b``: ns, of a rate operations per second.

    ``ratio`` is b / a, and so are its interval's ends; None where there is none. ``job``: of a
    load. ``why``: why it cannot be told. ``cycles``: of a percentile, pooled; else None.
    """

    index: int
    measure: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    verdict: Verdict
    why: Why | None
    rounds: tuple[int, int]
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """All figures that were compared, with what it took to tell them apart.

    ``common``: measure, on a kernel if there are several -> what all its cases share.
    ``comparisons``: for how many the intervals are widened. ``rounds_wanted``: on each side, for so
    many. ``refused``: why nothing was compared. ``left_out``: reason -> how many cases were not.
    """

    all: list[Timing]
    common: dict[str, Common]
    comparisons: int
    rounds_wanted: int
    alpha: float
    margin: float
    refused: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        return Counter(timing.verdict for timing in self.all)


def compare(
    paired: Paired, alike: Collection[int], ran: int, *, margin: float, seed: int = 1
) -> Timings:
    """Times of the cases ``alike``, which ended in one way on both sides; ``ran``: of so many."""
    alpha = effect.ALPHA
    if paired.mixed:
        said = "emulated times (accel tcg) are compared with nothing but emulated ones"
        return Timings([], {}, 0, 0, alpha, margin, refused=said)
    sides = {name: _arrays(paired, column, alike) for name, column in _COLUMNS.items()}
    jobs = _job_figures(paired)
    comparisons = sum(len(found[0]) for found in sides.values())
    comparisons += sum(len(found[0]) for found in jobs.values())
    found: list[Timing] = []
    common: dict[str, Common] = {}
    for measure, (indices, a, b) in sides.items():
        keys: list[Key] = [(int(index), None) for index in indices]
        found += _estimated(paired, keys, measure, (a, b), comparisons, margin, seed, common)
    for measure, (keys, a, b) in jobs.items():
        found += _estimated(paired, keys, measure, (a, b), comparisons, margin, seed, {})
    timed = {timing.index for timing in found}
    reasons = {
        "whose outcome is not one and the same": ran - len(alike),
        "without times on both sides": len(set(alike) - timed),
    }
    left_out = {reason: count for reason, count in reasons.items() if count}
    wanted = effect.rounds_wanted(max(1, comparisons), alpha)
    return Timings(found, common, comparisons, wanted, alpha, margin, left_out=left_out)


def _estimated(
    paired: Paired,
    keys: Sequence[Key],
    measure: str,
    sides: tuple[Array, Array],
    comparisons: int,
    margin: float,
    seed: int,
    common: dict[str, Common],
) -> list[Timing]:
    """One figure of all cases, kernel by kernel: what cases share they share on one machine."""
    found = []
    kernels = np.array([paired.kernels[index] for index, _ in keys])
    for kernel in np.unique(kernels):
        rows = np.flatnonzero(kernels == kernel).tolist()
        a, b = (side[rows] for side in sides)
        a, b = (side[:, np.isfinite(side).any(axis=(0, 2))] for side in (a, b))
        effects = effect.estimate(a, b, comparisons=comparisons, seed=seed)
        if effects.common is not None:
            common[_shared_by(measure, str(kernel))] = effects.common
        found += _timings([keys[row] for row in rows], measure, a, b, effects, margin)
    return found


def _shared_by(measure: str, kernel: str) -> str:
    return f"{measure} on {kernel}" if kernel else measure


def percentiles(paired: Paired, timings: Timings, measure: str) -> list[Timing]:
    """The 99th percentile over the timed cycles of all rounds: ``acquire.p99`` or ``release.p99``.

    Of cases that have 100 timed cycles on each side. The interval resamples rounds, and knows of
    what all cases share from their medians.
    """
    phase, _, _ = measure.partition(".")
    medians = [timing for timing in timings.all if timing.measure == f"{phase}.median"]
    pools: dict[int, dict[str, list[Any]]] = {}
    for index, side, rounds in cycles(paired, [t.index for t in medians], f"{phase}_ns"):
        if sum(map(len, rounds)) >= CYCLES_FOR_P99:
            pools.setdefault(index, {})[side] = rounds
    both = {index: pools[index] for index in sorted(pools) if len(pools[index]) == len(SIDES)}
    random, found = np.random.default_rng(1), []
    by_index = {timing.index: timing for timing in medians}
    for index, pool in both.items():
        shared = timings.common.get(_shared_by(f"{phase}.median", paired.kernels[index]))
        found.append(
            _percentile(by_index[index], measure, pool, shared, timings, len(both), random)
        )
    return found


def _percentile(
    median: Timing,
    measure: str,
    pool: Mapping[str, Sequence[Any]],
    shared: Common | None,
    timings: Timings,
    comparisons: int,
    random: np.random.Generator,
) -> Timing:
    values, variances = [], []
    rounds = (len(pool["A"]), len(pool["B"]))
    for side in SIDES:
        values.append(math.log(max(1.0, float(np.percentile(np.concatenate(pool[side]), 99)))))
        variances.append(_percentile_variance(pool[side], random))
    raw = values[1] - values[0]
    half = effect.half_width(variances, [n - 1.0 for n in rounds], timings.alpha / comparisons)
    rest = raw
    if shared is not None and not shared.attributed:
        rest = raw - math.log(shared.ratio)
    low, high = math.exp(min(raw, rest) - half), math.exp(max(raw, rest) + half)
    enough = median.why not in ("few-rounds", "one-run") and math.isfinite(half)
    word, why = _verdict(low, high, timings.margin) if enough else ("can't tell", median.why)
    return Timing(
        median.index,
        measure,
        math.exp(values[0]),
        math.exp(values[1]),
        math.exp(raw),
        low if enough else None,
        high if enough else None,
        word,
        why,
        rounds,
    )


def _percentile_variance(rounds: Sequence[Any], random: np.random.Generator) -> float:
    """Of the logarithm of the pooled 99th percentile, over resampled rounds."""
    count = len(rounds)
    if count < 2:
        return math.nan
    shortest = min(map(len, rounds))
    table = np.stack([one[:shortest] for one in rounds]).astype(float)
    draws = random.integers(0, count, (_RESAMPLES_P99, count))
    pooled = table[draws].reshape(_RESAMPLES_P99, -1)
    logs = np.log(np.maximum(1.0, np.percentile(pooled, 99, axis=1)))
    return float(logs.var(ddof=1)) * count / (count - 1)


def _arrays(
    paired: Paired, column: str, alike: Collection[int]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Array, Array]:
    """The indices of the cases that have times on both sides, and [cases, runs, rounds] of each."""
    import polars

    there = paired.rounds.filter(
        (polars.col(column) > 0) & polars.col("index").is_in(sorted(alike))
    ).select("index", "side", "run_number", "round", column)
    by_side = [there.filter(polars.col("side") == side) for side in SIDES]
    indices = np.intersect1d(by_side[0]["index"].to_numpy(), by_side[1]["index"].to_numpy())
    arrays = []
    for side, frame in zip(paired.sides, by_side, strict=True):
        frame = frame.filter(polars.col("index").is_in(indices))
        rows = np.searchsorted(indices, frame["index"].to_numpy())
        filled = np.full((len(indices), len(side.manifests), side.rounds), np.nan)
        filled[rows, frame["run_number"].to_numpy(), frame["round"].to_numpy()] = frame[column]
        arrays.append(filled)
    return indices.astype(np.int64), arrays[0], arrays[1]


def _job_figures(paired: Paired) -> dict[str, tuple[list[Key], Array, Array]]:
    """Of loads: measure -> (index, job) and the same arrays; only what both sides have."""
    runs = {side.name: run_numbers(side) for side in paired.sides}
    values: dict[str, dict[Key, dict[str, dict[tuple[int, int], float]]]] = {}
    for index, side, bundle, round_, text in paired.loads.iter_rows():
        for name, measure, value in _of_jobs(text):
            by_side = values.setdefault(measure, {}).setdefault((index, name), {})
            by_side.setdefault(side, {})[runs[side][bundle], round_ or 0] = value
    found = {}
    for measure, cases in values.items():
        keys = [key for key, by_side in cases.items() if len(by_side) == len(SIDES)]
        arrays = []
        for side in paired.sides:
            filled = np.full((len(keys), len(side.manifests), side.rounds), np.nan)
            for row, key in enumerate(keys):
                for (run, round_), value in cases[key][side.name].items():
                    filled[row, run, round_] = value
            arrays.append(filled)
        if keys:
            found[measure] = (keys, arrays[0], arrays[1])
    return found


def _of_jobs(text: str) -> list[tuple[str, str, float]]:
    """(job, measure, value) of a load's ``jobs``: rate, and median and p99 of each kind of call."""
    found: list[tuple[str, str, float]] = []
    jobs = json.loads(text)
    for number, job in enumerate(jobs if isinstance(jobs, list) else ()):
        if not isinstance(job, Mapping):
            continue
        name = str(job.get("name") or number)
        if _is_time(job.get("ops_s")):
            found.append((name, RATE, float(job["ops_s"])))
        latencies = job.get("latency_ns")
        for kind, latency in (latencies if isinstance(latencies, Mapping) else {}).items():
            for key, word in (("p50", "median"), ("p99", P99)):
                if isinstance(latency, Mapping) and _is_time(latency.get(key)):
                    found.append((name, f"{kind}.{word}", float(latency[key])))
    return found


def _is_time(value: Any) -> bool:
    """Whether it has a logarithm."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _timings(
    keys: Sequence[Key],
    measure: str,
    a: Array,
    b: Array,
    effects: Effects,
    margin: float,
) -> list[Timing]:
    found = []
    # Of one round there is no other figure than that round's.
    figures = [
        np.where(np.isfinite(effects.ratio), figure, np.nanmedian(rounds, axis=(1, 2)))
        for figure, rounds in ((effects.a, a), (effects.b, b))
    ]
    for row, (index, job) in enumerate(keys):
        low, high = float(effects.low[row]), float(effects.high[row])
        known = bool(effects.enough[row]) and not effects.alone and math.isfinite(high - low)
        word: Verdict = "can't tell"
        why: Why | None = "few-rounds" if not effects.enough[row] else "one-run"
        if known:
            word, why = _verdict(low, high, margin, more_is_faster=measure == RATE)
        figure_a, figure_b = (float(side[row]) for side in figures)
        found.append(
            Timing(
                index,
                measure,
                figure_a,
                figure_b,
                figure_b / figure_a,
                low if known else None,
                high if known else None,
                word,
                why,
                (int(effects.rounds_a[row]), int(effects.rounds_b[row])),
                job,
            )
        )
    return found


def _verdict(
    low: float, high: float, margin: float, *, more_is_faster: bool = False
) -> tuple[Verdict, Why | None]:
    """What the interval says: wholly above the margin, wholly below, wholly within, or neither."""
    above, below = low > 1 + margin, high < 1 / (1 + margin)
    if above or below:
        return ("faster" if above == more_is_faster else "slower"), None
    if low >= 1 / (1 + margin) and high <= 1 + margin:
        return "same", None
    return "can't tell", "wide"
