"""The histogram's layout against HdrHistogram's own library, and what merging keeps."""

import random

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from telemetry import histogram
from telemetry.histogram import Histogram
from workloads.load.engine import Recorder, indexes

VALUES = [0, 1, 127, 128, 255, 256, 257, 511, 512, 65_535, 65_536, 10**9, histogram.LAST_VALUE]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_lies_in_its_bucket(value):
    index = histogram.index_of(value)
    assert histogram.low_of(index) <= value <= histogram.high_of(index)
    width = histogram.high_of(index) - histogram.low_of(index) + 1
    assert width == 1 or width * 128 <= value


def test_buckets_follow_one_another():
    for index in range(histogram.BUCKETS - 1):
        assert histogram.high_of(index) + 1 == histogram.low_of(index + 1)
    assert histogram.high_of(histogram.BUCKETS - 1) == histogram.LAST_VALUE


def test_many_values_at_a_time_find_the_same_buckets():
    values = [*VALUES, *(random.Random(1).randrange(1 << 43) for _ in range(1000))]
    found = indexes(np.array(values, np.int64))
    assert found.tolist() == [histogram.index_of(value) for value in values]


def latencies(seed: int, count: int = 20_000) -> list[int]:
    draw = random.Random(seed)
    return [int(draw.lognormvariate(11, 1)) for _ in range(count)]


def recorded(values: list[int]) -> Histogram:
    recorder = Recorder()
    for start in range(0, len(values), 777):
        recorder.note("read", np.array(values[start : start + 777], np.int64))
    return Histogram.from_json(recorder.take()["latency"]["read"])


def test_percentiles_are_those_of_the_library_and_of_the_values():
    values = latencies(1)
    ours, theirs = recorded(values), HdrHistogram(1, 1 << 43, 2)
    for value in values:
        theirs.record_value(value)
    ordered = sorted(values)
    for percent in (1, 50, 90, 99, 99.9):
        found = ours.percentile(percent)
        assert found == theirs.get_value_at_percentile(percent)
        true = ordered[-(-len(ordered) * percent // 100).__trunc__() - 1]
        assert true <= found <= true * (1 + 1 / 128)
    assert ours.summary()["max"] == max(values)
    assert ours.summary()["mean"] == sum(values) // len(values)


def test_merging_is_exact():
    halves = recorded(latencies(1)), recorded(latencies(2))
    whole = recorded(latencies(1) + latencies(2))
    assert histogram.merged(halves) == whole
    assert Histogram.from_json(whole.to_json()) == whole


def test_what_was_taken_is_not_counted_again():
    recorder = Recorder()
    recorder.note("read", np.array([5, 7], np.int64))
    recorder.operations += 2
    assert recorder.take()["operations"] == 2
    assert recorder.take()["latency"]["read"] == {"buckets": [], "sum": 0, "max": 0}


def test_an_empty_one_has_no_percentile():
    assert Histogram().summary() == {
        "count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "p99_9": None, "max": None,
    }  # fmt: skip
