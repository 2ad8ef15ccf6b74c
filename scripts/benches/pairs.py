"""Two programs that do the same, run in alternation, and what may be concluded from it.

A pair is one run of ours and one of the peer's, one right after the other. The order turns from
pair to pair (ours peer, peer ours, ours peer, …: ABBA), so that a machine that slowly becomes
faster or slower favours neither side. Every pair has a ratio; what is published is their median.

How far that median can be trusted is told by order statistics: of n pairs the k-th smallest and the
k-th largest ratio enclose the true median with a probability that the binomial distribution gives,
whatever the ratios' own distribution is. No random numbers, no normal distribution. With 7 pairs
the smallest and the largest are the interval of 98 %; with fewer than 6 no interval reaches 95 %,
and it is the range with the coverage that it has.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["ours", "peer"]
CONFIDENCE = 0.95


class BenchFailed(Exception):
    """A benchmark could not be run; the message is one sentence. The others go on."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What is compared. ``more_is_better``: a rate; else a time, and its ratio is peer / ours.

    ``limit``: what the comparison cannot tell, or what both sides run into.
    ``needs``: programs, devices and rights without which it cannot run (benches.needs).
    """

    name: str
    unit: str
    more_is_better: bool
    summary: str
    limit: str
    place: Literal["host", "lab"] = "host"
    kind: Literal["peer", "telemetry", "bundles"] = "peer"
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side: ``value`` in the benchmark's unit, CPU time (user + system) in ns per
    operation. None: not measured."""

    value: float
    cpu_ns: float | None = None

    def to_json(self) -> list[float | None]:
        return [self.value, self.cpu_ns]


@dataclass(frozen=True, slots=True)
class Pair:
    """One run of each side."""

    ours: Sample
    peer: Sample

    def to_json(self) -> dict[str, Any]:
        return {"ours": self.ours.to_json(), "peer": self.peer.to_json()}

    @classmethod
    def from_json(cls, message: dict[str, Any]) -> "Pair":
        return cls(Sample(*message["ours"]), Sample(*message["peer"]))


def order(number: int) -> tuple[Side, Side]:
    """Who begins the pair of that number, from 0: ours, peer, ours, …"""
    return ("peer", "ours") if number % 2 else ("ours", "peer")


def alternate(count: int, run: Callable[[Side], Sample]) -> Iterator[Pair]:
    """So many pairs, one at a time, so that an interruption loses one and not all."""
    for number in range(count):
        samples = {side: run(side) for side in order(number)}
        yield Pair(samples["ours"], samples["peer"])


@dataclass(frozen=True, slots=True)
class Interval:
    """Encloses the true median with the probability ``coverage``."""

    low: float
    high: float
    coverage: float


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The narrowest interval of order statistics of at least that coverage, else the range."""
    ranked = sorted(values)
    count = len(ranked)
    outside = 1
    while 2 * outside + 2 <= count and _coverage(count, outside + 1) >= confidence:
        outside += 1
    return Interval(ranked[outside - 1], ranked[count - outside], _coverage(count, outside))


def _coverage(count: int, rank: int) -> float:
    """That the median lies between the rank-th smallest and the rank-th largest of ``count``.

    It does not when fewer than ``rank`` of them fall on one of its sides, each with probability ½.
    """
    beyond = sum(math.comb(count, below) for below in range(rank))
    return max(0.0, 1.0 - 2.0 * beyond / 2.0**count)


@dataclass(frozen=True, slots=True)
class Result:
    """What the pairs of a benchmark say. Ratios: more than 1 is better than the peer.

    ``spread`` of a side: (largest - smallest) / median. None where nothing can be divided, as
    by a peer that is zero.
    """

    benchmark: Benchmark
    ours: float
    peer: float
    ours_spread: float | None
    peer_spread: float | None
    ratio: float | None
    ratio_interval: Interval | None
    cpu_ratio: float | None
    pairs: int

    @classmethod
    def of(cls, benchmark: Benchmark, pairs: Sequence[Pair]) -> "Result":
        """ValueError without a pair."""
        if not pairs:
            raise ValueError(f"{benchmark.name} has no pair")
        ours = [pair.ours.value for pair in pairs]
        peer = [pair.peer.value for pair in pairs]
        ratios = [found for pair in pairs if (found := ratio_of(benchmark, pair)) is not None]
        cpu = [
            pair.ours.cpu_ns / pair.peer.cpu_ns
            for pair in pairs
            if pair.ours.cpu_ns is not None and pair.peer.cpu_ns
        ]
        return cls(
            benchmark,
            statistics.median(ours),
            statistics.median(peer),
            _spread(ours),
            _spread(peer),
            statistics.median(ratios) if ratios else None,
            interval(ratios) if ratios else None,
            statistics.median(cpu) if cpu else None,
            len(pairs),
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of ``--json``."""
        around = self.ratio_interval
        return {
            "name": self.benchmark.name,
            "ours": self.ours,
            "peer": self.peer,
            "unit": self.benchmark.unit,
            "ratio": self.ratio,
            "ratio_low": None if around is None else around.low,
            "ratio_high": None if around is None else around.high,
            "pairs": self.pairs,
            "cpu_ratio": self.cpu_ratio,
        }


def ratio_of(benchmark: Benchmark, pair: Pair) -> float | None:
    """More than 1: ours is faster. None where the peer's value, or a time of ours, is zero."""
    above, below = pair.ours.value, pair.peer.value
    if not benchmark.more_is_better:
        above, below = below, above
    return above / below if above and below else None


def _spread(values: Sequence[float]) -> float | None:
    median = statistics.median(values)
    return (max(values) - min(values)) / median if median else None
