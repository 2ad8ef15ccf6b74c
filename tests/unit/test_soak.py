"""The soak verdict on series whose truth is known: made here, from fixed seeds."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from pinstorm import soak

HZ = 100
# Of a counter that two CPUs batch: 28 pages each, both for acquired and for released.
BOUND = 112
MINUTE_S, SOAK_S = 60, 600


def bucketed(samples, seconds, buckets=1024):
    """The smallest and the mean value of each bucket, as the sampler keeps them."""
    cuts = np.arange(buckets + 1) * len(samples) // buckets
    lows = np.minimum.reduceat(samples, cuts[:-1])
    means = np.add.reduceat(samples, cuts[:-1]) / np.diff(cuts)
    times = seconds * cuts[:-1] / len(samples)
    return list(zip(times.tolist(), lows.tolist(), means.tolist(), strict=True))


def level(values, interval_s=1.0):
    return [(index * interval_s, float(value), float(value)) for index, value in enumerate(values)]


def judged(values, matters_per_s=1.0, **how):
    return soak.judge(level(values), matters_per_s=matters_per_s, **how)


def autoregressive(draw, seconds, remembers_s, spread):
    keep = math.exp(-1 / (HZ * remembers_s))
    steps = draw.normal(0, spread * math.sqrt(1 - keep * keep), seconds * HZ).tolist()
    value, values = draw.normal(0, spread), []
    for step in steps:
        value = keep * value + step
        values.append(value)
    return np.array(values)


def in_flight(draw, seconds, most=320):
    """Up to 20 regions of 16 pages, another number of them every 50 ms."""
    regions = draw.integers(0, most // 16 + 1, seconds * 20)
    return 16.0 * np.repeat(regions, HZ // 20)


def others(draw, seconds, every_s, hold_s, pages):
    """Other processes that pin for a while and unpin."""
    pinned = np.zeros(seconds * HZ)
    for begin in draw.integers(0, seconds * HZ, draw.poisson(seconds / every_s)):
        pinned[begin : begin + 1 + int(draw.exponential(hold_s) * HZ)] += draw.uniform(0, pages)
    return pinned


def swing(draw, seconds, period_s, pages):
    times = np.arange(seconds * HZ) / HZ
    return pages * np.sin(2 * np.pi * (times / period_s + draw.random()))


def stale(draw, seconds, bound):
    """Counters that are folded once a second: wrong by up to the bound."""
    return np.repeat(draw.uniform(-bound, bound, seconds), HZ)


def one_in_a_thousand(seconds, per_s, pages=16):
    done = np.arange(seconds * HZ) * per_s / HZ
    return pages * np.floor(done / 1000)


CLEAN = {
    "in flight": in_flight,
    "remembers 1 s": lambda d, s: autoregressive(d, s, 1, 100),
    "remembers 10 s": lambda d, s: autoregressive(d, s, 10, 100),
    "bursts": lambda d, s: in_flight(d, s) + others(d, s, 2, 1, 5000),
    "others": lambda d, s: in_flight(d, s) + others(d, s, 5, 2, 512),
    "swings": lambda d, s: in_flight(d, s) + swing(d, s, s / 4, 200),
    "stale": lambda d, s: in_flight(d, s) + stale(d, s, BOUND),
}
# By how much each may be wrong.
QUANTA = {"stale": BOUND}


@pytest.mark.parametrize("noise", CLEAN)
def test_ten_clean_minutes_are_no_leak(noise):
    verdicts = Counter()
    for seed in range(20):
        samples = CLEAN[noise](np.random.default_rng([seed, 1]), SOAK_S)
        points, quantum = bucketed(samples, SOAK_S), QUANTA.get(noise, 1)
        verdicts[soak.judge(points, matters_per_s=1.0, quantum=quantum).verdict] += 1
    assert verdicts["leak"] == 0
    assert verdicts["no-leak"] >= 18


@pytest.mark.parametrize(
    ("noise", "per_s", "least"),
    [
        ("in flight", 300, 20),
        ("in flight", 5000, 20),
        ("remembers 1 s", 1000, 18),
        ("others", 1000, 18),
        ("bursts", 5000, 18),
        ("stale", 1000, 18),
    ],
)
def test_one_region_in_a_thousand_is_a_leak_within_a_minute(noise, per_s, least):
    found = 0
    for seed in range(20):
        samples = CLEAN[noise](np.random.default_rng([seed, 2]), MINUTE_S)
        samples = samples + one_in_a_thousand(MINUTE_S, per_s)
        points, quantum = bucketed(samples, MINUTE_S), QUANTA.get(noise, 1)
        trend = soak.judge(points, matters_per_s=1.0, quantum=quantum)
        found += trend.verdict == "leak"
    assert found >= least


def test_a_level_that_wanders_as_slowly_as_the_window_is_seldom_a_leak():
    alarms = 0
    for seed in range(100):
        draw = np.random.default_rng([seed, 3])
        alarms += judged(np.cumsum(draw.normal(0, 10, 300))).verdict == "leak"
    # A straight line through it with white errors is a leak in about 40 of 100.
    assert alarms <= 10


def test_the_slope_is_numpys_and_the_interval_holds():
    held, slopes = 0, []
    for seed in range(200):
        draw = np.random.default_rng([seed, 4])
        noise = draw.normal(0, 10, 30)
        trend = judged(3.0 * np.arange(30) + noise, matters_per_s=1e9)
        held += trend.low_per_s <= 3.0 <= trend.high_per_s
        slopes.append(trend.slope_per_s)
        if seed == 0:
            line = np.polyfit(np.arange(30), 3.0 * np.arange(30) + noise, 1)[0]
            # Stretches of one point each, or the least of two: the same line but for the noise.
            fit = soak._fit(list(range(30)), (3.0 * np.arange(30) + noise).tolist(), 0.05)
            assert fit.slope == pytest.approx(line)
    assert held >= 176
    assert np.mean(slopes) == pytest.approx(3.0, abs=0.05)


def test_a_line_without_noise_is_a_leak_with_nothing_left_open():
    trend = judged([2.5 * second for second in range(60)])
    assert (trend.verdict, trend.reason, trend.more_s) == ("leak", "steady-rise", None)
    assert trend.slope_per_s == pytest.approx(2.5)
    assert trend.high_per_s - trend.low_per_s == pytest.approx(0, abs=1e-9)
    assert (trend.points, trend.lasted_s) == (60, 59.0)


def test_a_constant_series_has_no_slope_at_all():
    trend = judged([4711.3] * 60)
    assert (trend.slope_per_s, trend.low_per_s, trend.high_per_s) == (0.0, 0.0, 0.0)
    assert (trend.verdict, trend.more_s) == ("no-leak", None)


def test_what_the_counter_cannot_show_yet_is_not_ruled_out():
    trend = judged([10] * 61, matters_per_s=0.01)
    assert (trend.verdict, trend.reason) == ("inconclusive", "too-noisy")
    # One descriptor in 100 s: after that, a counter that stands still has shown it.
    assert trend.more_s == pytest.approx(40)
    assert judged([10] * 102, matters_per_s=0.01).verdict == "no-leak"


def test_a_falling_series_is_no_leak():
    trend = judged([1e6 - 5 * second for second in range(600)])
    assert (trend.verdict, trend.reason) == ("no-leak", "falls")
    assert trend.slope_per_s == pytest.approx(-5)


@pytest.mark.parametrize("points", [0, 1, 2, 11])
def test_too_few_points_say_nothing(points):
    trend = judged([1000 * second for second in range(points)])
    assert (trend.verdict, trend.reason) == ("inconclusive", "too-short")
    assert (trend.slope_per_s, trend.low_per_s, trend.high_per_s) == (None, None, None)
    assert trend.points == points
    assert (trend.more_s is None) == (points < 2)


def test_too_short_a_time_says_nothing_however_many_points():
    trend = soak.judge(level(range(500), 0.01), matters_per_s=1.0)
    assert trend.reason == "too-short"
    assert trend.more_s == pytest.approx(10 - 4.99)


@pytest.mark.parametrize("at", [30, 150, 300, 450, 570])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("height", [1000, 100_000])
def test_steps_are_no_leak(at, steps, height):
    values = np.random.default_rng(5).uniform(0, 50, 600)
    for step in range(steps):
        values[at // (step + 1) :] += height
    trend = judged(values)
    assert trend.verdict != "leak"
    if at < 200:
        # It is over, and the last two thirds are as flat as they were.
        assert (trend.verdict, trend.more_s) == ("no-leak", None)
        assert abs(trend.slope_per_s) < 0.1


def test_steps_are_waited_for_until_they_lie_in_the_first_third():
    values = np.random.default_rng(5).uniform(0, 50, 600)
    values[225:] += 1000
    values[450:] += 1000
    trend = judged(values)
    assert trend.reason == "steps"
    # Stretches of 20 s: the last step is known to one of them.
    assert trend.more_s >= 3 * (450 - 20) - trend.lasted_s


def test_many_steps_are_a_leak():
    values = np.random.default_rng(6).uniform(0, 50, 600) + 1000 * np.floor(np.arange(600) / 60)
    assert judged(values).verdict == "leak"


@pytest.mark.parametrize(
    ("fills_s", "verdict"), [(10, "no-leak"), (30, "no-leak"), (150, "inconclusive")]
)
def test_a_cache_that_fills_is_no_leak(fills_s, verdict):
    values = 2000 * (1 - np.exp(-np.arange(600) / fills_s))
    trend = judged(values + np.random.default_rng(7).uniform(0, 10, 600))
    assert trend.verdict == verdict
    assert (trend.more_s is None) == (verdict == "no-leak")


def test_what_fills_ever_more_slowly_is_settling():
    values = 2000 * (1 - np.exp(-np.arange(600) / 240))
    trend = judged(values + np.random.default_rng(7).uniform(0, 10, 600))
    assert (trend.verdict, trend.reason) == ("inconclusive", "settling")
    # The figures are those of the last two thirds, slower than the whole's.
    assert trend.slope_per_s < 2


def test_what_fell_at_first_and_rises_now_is_not_ruled_out():
    values = np.concatenate([-20.0 * np.arange(200), -4000 + 3.0 * np.arange(400)])
    trend = judged(values + np.random.default_rng(13).uniform(0, 10, 600))
    assert (trend.verdict, trend.reason) == ("inconclusive", "late-rise")


def test_a_bend_that_neighbours_do_not_show_widens_the_interval():
    times = np.arange(30) - 14.5
    bend = times**2 - (times**2).mean()
    # As strong the other way from one value to the next: neighbours are not correlated.
    values = bend / np.linalg.norm(bend) + 1.05 * (-1.0) ** np.arange(30) / math.sqrt(30)
    left = values - np.polyval(np.polyfit(times, values, 1), times)
    assert left[1:] @ left[:-1] < 0
    white = math.sqrt(left @ left / 28) / np.linalg.norm(times)
    fit = soak._fit(times.tolist(), values.tolist(), 0.05)
    assert fit.half > 1.2 * soak.student_quantile(0.975, 8) * white


def test_a_rise_within_the_counters_bound_is_no_leak_yet():
    values = 0.5 * np.arange(60)
    assert judged(values, quantum=1, matters_per_s=0.1).verdict == "leak"
    trend = judged(values, quantum=100, matters_per_s=0.1)
    assert (trend.verdict, trend.reason) == ("inconclusive", "within-quantum")
    assert trend.more_s == pytest.approx(100 / 0.1 - 59)


def test_a_low_water_that_rises_under_a_level_mean_is_no_leak():
    draw = np.random.default_rng(8)
    points = [(t, 3.0 * t + draw.uniform(0, 5), 5000 + draw.uniform(0, 5)) for t in range(600)]
    trend = soak.judge(points, matters_per_s=1.0)
    assert (trend.verdict, trend.reason) == ("inconclusive", "mean-level")


def test_a_leak_slower_than_what_matters_is_a_leak_all_the_same():
    draw = np.random.default_rng(9)
    trend = judged(0.5 * np.arange(600) + draw.uniform(0, 20, 600), matters_per_s=10.0)
    assert (trend.verdict, trend.reason) == ("leak", "steady-rise")


def test_the_time_still_needed_is_about_the_time_it_takes():
    ratios = []
    for seed in range(20):
        values = np.random.default_rng([seed, 10]).normal(0, 300, 20_000)
        trend = judged(values[:200])
        if trend.verdict != "inconclusive":
            continue
        told = next(n for n in range(200, 20_000, 100) if judged(values[:n]).more_s is None)
        ratios.append((200 + trend.more_s) / told)
    assert len(ratios) >= 10
    assert 0.5 < np.median(ratios) < 3


def test_the_more_there_are_the_wider_their_intervals():
    values = level(np.random.default_rng(11).normal(0, 10, 300))
    alone = soak.judge(values, matters_per_s=1.0)
    series = {"outstanding_pages": values, **{f"vmpin_bytes:{pid}": values for pid in range(9)}}
    found = soak.judge_all(series)
    assert list(found) == list(series)
    among = found["outstanding_pages"]
    assert among.slope_per_s == alone.slope_per_s
    assert among.high_per_s > alone.high_per_s
    assert among == soak.judge(values, matters_per_s=1.0, series=10)


def test_each_kind_has_its_own_measure():
    rising = level(0.5 * np.arange(300))
    found = soak.judge_all({"outstanding_pages": rising, "vmpin_bytes:7": rising})
    assert found["outstanding_pages"].verdict == "leak"
    # 150 bytes are nothing to a counter of pages.
    assert (found["vmpin_bytes:7"].verdict, found["vmpin_bytes:7"].reason) == ("no-leak", "bounded")
    bound = soak.judge_all({"outstanding_pages": rising}, quanta={"outstanding_pages": 200})
    assert bound["outstanding_pages"].verdict == "no-leak"
    with pytest.raises(ValueError, match="nonsense"):
        soak.judge_all({"nonsense:7": rising})


def test_a_trend_is_json_without_nan():
    for values in ([], [1, 2], [5] * 50, np.random.default_rng(12).normal(0, 50, 50)):
        text = json.dumps(judged(values).to_json(), allow_nan=False)
        assert json.loads(text)["verdict"] in {"leak", "no-leak", "inconclusive"}


# Table of Student's t in NIST/SEMATECH, e-Handbook of Statistical Methods, 1.3.6.7.2.
@pytest.mark.parametrize(
    ("degrees", "probability", "value"),
    [(1, 0.975, 12.706), (2, 0.95, 2.920), (3, 0.99, 4.541), (4, 0.975, 2.776), (8, 0.999, 4.501)],
)
def test_students_t_is_the_tables(degrees, probability, value):
    assert soak.student_quantile(probability, degrees) == pytest.approx(value, abs=6e-4)
    assert soak.student_cdf(value, degrees) == pytest.approx(probability, abs=1e-4)
