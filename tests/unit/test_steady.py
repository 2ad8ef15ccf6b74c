"""The steady-state detector: windows of known slope and spread, numpy's line as second source."""

import json

import numpy as np
import pytest

from pinstorm import steady
from workloads.load.spec import Steady

TEN = Steady(window_s=10, slope_percent=1, spread_percent=10)


def test_equal_rates_are_steady_at_once():
    found = steady.find([500.0] * 10, 1.0, TEN)
    assert found == steady.Steadiness(True, 0, 0.0, 0.0)


def test_fewer_intervals_than_the_window_are_not_steady():
    assert steady.find([500.0] * 9, 1.0, TEN) == steady.Steadiness(False, None, None, None)


@pytest.mark.parametrize(
    ("interval_s", "intervals"), [(1.0, 10), (0.1, 100), (0.3, 34), (2.0, 5), (60.0, 2)]
)
def test_the_window_is_as_many_intervals_as_fill_it(interval_s, intervals):
    assert steady.find([5.0] * intervals, interval_s, TEN).reached
    assert not steady.find([5.0] * (intervals - 1), interval_s, TEN).reached


def test_nothing_done_is_not_steady_and_no_division_by_zero():
    assert steady.find([0.0] * 20, 1.0, TEN) == steady.Steadiness(False, None, None, None)


def test_it_begins_where_the_start_has_left_the_window():
    found = steady.find([0.0] * 7 + [1000.0] * 30, 1.0, TEN)
    assert (found.reached, found.after_intervals) == (True, 7)


def test_a_saturation_curve_is_steady_once_it_is_flat():
    rates = [1000 * (1 - np.exp(-second / 20)) for second in range(200)]
    found = steady.find(rates, 1.0, TEN)
    assert found.reached
    begin = found.after_intervals
    # Before it the line through the window, by numpy, was too steep or an interval too far off.
    for first in range(begin + 1):
        window = np.array(rates[first : first + 10])
        slope = 100 * np.polyfit(range(10), window, 1)[0] / window.mean()
        spread = 100 * np.abs(window - window.mean()).max() / window.mean()
        assert (abs(slope) <= 1 and spread <= 10) == (first == begin)
    assert found.slope_percent == pytest.approx(slope)
    assert found.spread_percent == pytest.approx(spread)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_slope_both_ways_is_not_steady(sign):
    rates = [1000 + sign * 20 * (second - 4.5) for second in range(10)]
    found = steady.find(rates, 1.0, Steady(slope_percent=1.9, spread_percent=50))
    assert not found.reached
    assert found.slope_percent == pytest.approx(2 * sign)
    assert found.spread_percent == pytest.approx(9)
    assert steady.find(rates, 1.0, Steady(slope_percent=2.1, spread_percent=50)).reached


def test_one_interval_far_from_the_mean_is_not_steady():
    rates = [1000.0] * 10
    rates[4] = 700.0
    found = steady.find(rates, 1.0, TEN)
    assert not found.reached
    assert found.spread_percent == pytest.approx(100 * 270 / 970)
    assert abs(found.slope_percent) < 1


def test_figures_are_of_the_last_window_when_none_was_steady():
    rates = [100.0 * 1.1**second for second in range(30)]
    found = steady.find(rates, 1.0, TEN)
    window = np.array(rates[-10:])
    slope = 100 * np.polyfit(range(10), window, 1)[0] / window.mean()
    assert not found.reached
    assert found.slope_percent == pytest.approx(slope)
    assert json.loads(json.dumps(found.to_json())) == {
        "reached": False,
        "after_intervals": None,
        "slope_percent": found.slope_percent,
        "spread_percent": found.spread_percent,
    }
