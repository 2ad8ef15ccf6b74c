"""Latency histograms of the HDR layout: a fixed relative width, so that merging them is exact.

Values are nanoseconds. Below 256 every value has a bucket of its own; from there on each power of
two is divided into 128 buckets, so that a bucket is at most 1/128 (0.8 %) of its values wide: the
layout of HdrHistogram with a lowest value of 1 and two significant digits. A histogram is the
number of values in each bucket; two of the same layout add up, whoever recorded them. The layout
ends at 2^43 ns, two hours; what is longer is counted in the last bucket, and ``max_ns`` is exact
all the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SUB_BUCKET_BITS = 8
HALF = 1 << (SUB_BUCKET_BITS - 1)
LAST_VALUE = (1 << 43) - 1
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}


def index_of(value: int) -> int:
    """The bucket of one value."""
    value = min(max(value, 0), LAST_VALUE)
    power = max(0, value.bit_length() - SUB_BUCKET_BITS)
    return power * HALF + (value >> power)


BUCKETS = index_of(LAST_VALUE) + 1


def low_of(index: int) -> int:
    """The smallest value of a bucket."""
    if index < 2 * HALF:
        return index
    power = index // HALF - 1
    return (index - power * HALF) << power


def high_of(index: int) -> int:
    """The largest value of a bucket."""
    return low_of(index + 1) - 1


@dataclass(slots=True)
class Histogram:
    """Counts by bucket; ``sum_ns`` and ``max_ns`` are of the values themselves."""

    counts: dict[int, int] = field(default_factory=dict)
    sum_ns: int = 0
    max_ns: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def record(self, value: int) -> None:
        index = index_of(value)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.sum_ns += value
        self.max_ns = max(self.max_ns, value)

    def merge(self, other: "Histogram") -> None:
        """Add another one of the same layout: as if all its values had been recorded here."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.sum_ns += other.sum_ns
        self.max_ns = max(self.max_ns, other.max_ns)

    def percentile(self, percent: float) -> int | None:
        """The largest value of the bucket in which that share of the values is reached.

        Never more than ``max_ns``. None of an empty histogram.
        """
        total = self.total
        if not total:
            return None
        wanted = max(1, -(-total * percent // 100))
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= wanted:
                return min(high_of(index), self.max_ns)
        return self.max_ns

    def summary(self) -> dict[str, int | None]:
        """count, mean_ns, p50, p90, p99, p99_9 and max, in ns."""
        total = self.total
        return {
            "count": total,
            "mean": self.sum_ns // total if total else None,
            **{name: self.percentile(percent) for name, percent in PERCENTILES.items()},
            "max": self.max_ns if total else None,
        }

    def to_json(self) -> dict[str, Any]:
        pairs = sorted(self.counts.items())
        return {"buckets": [list(pair) for pair in pairs], "sum": self.sum_ns, "max": self.max_ns}

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Histogram":
        counts = {int(index): int(count) for index, count in message["buckets"]}
        return cls(counts, int(message["sum"]), int(message["max"]))


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them as one."""
    whole = Histogram()
    for one in histograms:
        whole.merge(one)
    return whole
