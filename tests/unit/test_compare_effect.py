"""The statistics of a comparison: false calls, power, drift, and a second source for the bootstrap.

The noise is like real rounds': heavy tails, cases that differ in how much they vary, neighbours in
time that are alike, and machines whose speed drifts between and within runs.
"""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from pinstorm.compare import effect

Array = Any
CASES = 50
RESAMPLES = 300


def noise(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Array:
    if kind == "normal":
        return random.normal(size=shape)
    if kind == "heavy":
        return random.standard_t(3, size=shape)
    if kind == "spikes":
        hit = random.random(shape) < 0.1
        return random.normal(size=shape) + hit * random.exponential(10, size=shape)
    alike = random.normal(size=shape)
    for number in range(1, shape[-1]):
        alike[..., number] = 0.6 * alike[..., number - 1] + 0.8 * alike[..., number]
    return alike


def side(
    random: np.random.Generator,
    kind: str,
    rounds: int,
    *,
    runs: int = 1,
    cases: int = CASES,
    drift: float = 0.0,
) -> Array:
    """Logarithms of times: each case has its own spread, each run and round its own speed."""
    shape = (cases, runs, rounds)
    spread = np.exp(random.normal(math.log(0.02), 0.7, (cases, 1, 1)))
    speed = random.normal(0, drift, (1, runs, 1))
    speed = speed + np.cumsum(random.normal(0, drift / 3, (1, runs, rounds)), axis=2)
    return spread * noise(random, kind, shape) + speed


def estimate(a: Array, b: Array, **more: Any) -> effect.Effects:
    more = {"comparisons": 2 * len(a), "resamples": RESAMPLES, **more}
    return effect.estimate(np.exp(a), np.exp(b), **more)


def called(effects: effect.Effects, margin: float = effect.MARGIN) -> Array:
    return effects.enough & ((effects.low > 1 + margin) | (effects.high < 1 / (1 + margin)))


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["normal", "heavy", "spikes", "alike"])
def test_false_calls_are_at_most_one_in_a_hundred(kind: str, drift: float) -> None:
    random = np.random.default_rng(7)
    false = 0
    for _ in range(20):
        a, b = (side(random, kind, 8, drift=drift) for _ in "ab")
        false += int(called(estimate(a, b)).sum())
    assert false <= 0.01 * 20 * CASES


def test_false_calls_of_several_runs_that_drift() -> None:
    random = np.random.default_rng(7)
    false = 0
    for _ in range(20):
        a, b = (side(random, "heavy", 4, runs=3, drift=0.1) for _ in "ab")
        false += int(called(estimate(a, b)).sum())
    assert false <= 0.01 * 20 * CASES


@pytest.mark.parametrize(("kind", "least"), [("normal", 0.8), ("heavy", 0.55)])
def test_power_at_twenty_percent(kind: str, least: float) -> None:
    random = np.random.default_rng(7)
    found = 0
    for _ in range(20):
        a, b = (side(random, kind, 8) for _ in "ab")
        b[:5] += math.log(1.2)
        effects = estimate(a, b)
        found += int((effects.enough & (effects.low > 1.05))[:5].sum())
    assert found >= least * 100


def test_one_percent_is_not_called() -> None:
    random = np.random.default_rng(7)
    a, b = (side(random, "normal", 30) for _ in "ab")
    b[:5] += math.log(1.01)
    assert not called(estimate(a, b)).any()


def test_what_all_cases_share_is_not_one_of_them() -> None:
    """One run a side: a machine that is slower by a third makes no case slower."""
    random = np.random.default_rng(7)
    a, b = (side(random, "normal", 12) for _ in "ab")
    effects = estimate(a, b + 0.3)
    assert not called(effects).any()
    assert effects.common is not None
    assert effects.common.ratio == pytest.approx(math.exp(0.3), rel=0.03)
    assert (effects.common.low, effects.common.attributed) == (None, False)


def test_what_all_cases_share_is_called_when_runs_agree() -> None:
    """Several runs a side: they tell by how much the machine differs from run to run."""
    random = np.random.default_rng(7)
    a, b = (side(random, "normal", 6, runs=4, drift=0.005) for _ in "ab")
    effects = estimate(a, b + 0.3)
    assert effects.common is not None
    assert effects.common.attributed
    assert called(effects).mean() > 0.8


def test_few_cases_of_one_run_are_alone() -> None:
    random = np.random.default_rng(7)
    a, b = (side(random, "normal", 12, cases=3) for _ in "ab")
    assert estimate(a, b + 0.3).alone
    a, b = (side(random, "normal", 6, runs=2, cases=3) for _ in "ab")
    assert not estimate(a, b + 0.3).alone


def test_variance_is_scipy_bootstraps() -> None:
    """An independent source for the resampling of one run's rounds."""
    random = np.random.default_rng(7)
    values = noise(random, "heavy", (4, 12))
    draws, inflation = effect._draws(np.ones((1, 12), dtype=bool), random, 4000)
    found = effect._resampled_variance(values, draws)
    theirs = stats.bootstrap(
        (values,),
        lambda sample, axis: effect.trimmed_mean(sample),
        vectorized=True,
        axis=-1,
        n_resamples=4000,
        method="basic",
    )
    assert found == pytest.approx(theirs.standard_error**2, rel=0.15)
    assert inflation == pytest.approx(12 / 11)


def test_runs_are_resampled_before_their_rounds() -> None:
    """Rounds of a run that are all alike tell nothing more than the run does."""
    random = np.random.default_rng(7)
    there = np.ones((4, 10), dtype=bool)
    per_run = np.array([0.0, 0.1, 0.2, 0.3])
    values = np.repeat(per_run, 10)[None]
    draws, inflation = effect._draws(there, random, 4000)
    of_runs = values[:, draws].mean(axis=-1).var() * inflation
    assert of_runs == pytest.approx(per_run.var(ddof=1) / 4, rel=0.1)


def test_rounds_wanted_is_what_rounds_can_tell() -> None:
    for comparisons in (1, 10, 100, 10_000):
        rounds = effect.rounds_wanted(comparisons)
        assert effect.orders(rounds, rounds) >= 2 * comparisons / effect.ALPHA
        assert effect.orders(rounds - 1, rounds - 1) < 2 * comparisons / effect.ALPHA
    assert effect.rounds_wanted(1) == 4
    assert effect.rounds_wanted(20_000) == 12


def test_missing_rounds_and_cases() -> None:
    random = np.random.default_rng(7)
    a, b = (side(random, "normal", 10) for _ in "ab")
    a[0, 0, 3:] = np.nan
    b[1] = np.nan
    a[2, 0, 5] = np.nan
    effects = estimate(a, b)
    assert list(effects.rounds_a[:3]) == [3, 10, 9]
    assert effects.rounds_b[1] == 0
    assert np.isnan(effects.ratio[1])
    assert not effects.enough[:2].any()
    assert effects.enough[2:].all()
    assert np.isfinite(effects.low[2:]).all()


def test_trimmed_mean_leaves_out_both_ends() -> None:
    assert effect.trimmed_mean(np.array([1.0, 2.0, 3.0, 4.0, 1000.0])) == 3.0
    assert effect.trimmed_mean(np.array([1.0, 3.0])) == 2.0
