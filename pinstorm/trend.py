"""A figure over time in few points, however long it takes: what a soak's slope is fitted to."""

from dataclasses import dataclass

# So many points tell a slope from noise as well as all readings do, and are a few KiB of JSON.
POINTS = 1024
_FIRST_WIDTH_S = 0.125


@dataclass(slots=True)
class _Bucket:
    number: int
    readings: int
    t_sum: float
    low: int
    value_sum: int

    def take(self, later: "_Bucket") -> None:
        self.readings += later.readings
        self.t_sum += later.t_sum
        self.low = min(self.low, later.low)
        self.value_sum += later.value_sum


class Trend:
    """Buckets of equal width; when there are more than POINTS, each two neighbours become one.

    ``width_s`` is then twice as wide. The lowest value of a bucket is what was there in all of it:
    pins of what is in flight come and go above it.
    """

    def __init__(self, points: int = POINTS, width_s: float = _FIRST_WIDTH_S):
        self.width_s = width_s
        self._limit = points
        self._buckets: list[_Bucket] = []

    def add(self, t_s: float, value: int) -> None:
        """A reading, not earlier than the one before."""
        number = int(t_s / self.width_s)
        if self._buckets and self._buckets[-1].number >= number:
            last = self._buckets[-1]
            last.readings += 1
            last.t_sum += t_s
            last.low = min(last.low, value)
            last.value_sum += value
            return
        self._buckets.append(_Bucket(number, 1, t_s, value, value))
        while len(self._buckets) > self._limit:
            self._halve()

    def points(self) -> list[list[float]]:
        """``[t_s, low, mean]`` of each bucket that has readings; ``t_s`` is their mean time."""
        return [
            [round(b.t_sum / b.readings, 6), b.low, b.value_sum / b.readings] for b in self._buckets
        ]

    def _halve(self) -> None:
        self.width_s *= 2
        merged: list[_Bucket] = []
        for bucket in self._buckets:
            bucket.number //= 2
            if merged and merged[-1].number == bucket.number:
                merged[-1].take(bucket)
            else:
                merged.append(bucket)
        self._buckets = merged
