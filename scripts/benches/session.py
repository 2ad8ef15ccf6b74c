"""One call of scripts/bench: what was asked for, and what has been found so far."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from benches.pairs import BenchFailed, Benchmark, Pair, Result, Sample, Side, alternate, ratio_of
from benches.table import figure
from workloads.spec import CallFailed, PrepareFailed


@dataclass(frozen=True, slots=True)
class Options:
    """``seconds``: of each run of a side; ``scratch``: the directory of the file for direct IO;
    ``kernel``: the lab's."""

    pairs: int
    seconds: float
    scratch: Path
    file_bytes: int
    kernel: str


class Comparison(Protocol):
    """A benchmark that is ready to be run."""

    benchmark: Benchmark

    def warm_up(self) -> None:
        """Runs that are not counted, so that neither side has to be the first."""

    def run(self, side: Side) -> Sample:
        """One run of a side."""


@dataclass(slots=True)
class Report:
    """What the pairs were; told on ``stream`` as they come, kept for the table."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    _planned: dict[str, int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        print(f"bench: {text}", file=self.stream, flush=True)

    def begin(self, benchmark: Benchmark, pairs: int) -> None:
        """So many pairs of it are to come."""
        self._planned[benchmark.name] = pairs
        self.note(f"{benchmark.name}: {benchmark.summary}")

    def pair(self, benchmark: Benchmark, pair: Pair) -> None:
        """A pair was run."""
        done = self.pairs.setdefault(benchmark.name, [])
        done.append(pair)
        ratio = ratio_of(benchmark, pair)
        self.note(
            f"{benchmark.name}: pair {len(done)} of {self._planned[benchmark.name]}: ours "
            f"{figure(pair.ours.value)}, peer {figure(pair.peer.value)} {benchmark.unit}"
            + ("" if ratio is None else f", ratio {ratio:.3f}")
        )

    def failed(self, benchmark: Benchmark, why: str) -> None:
        """It cannot be run, or not to its end; the others go on."""
        self.failures[benchmark.name] = why
        self.note(f"{benchmark.name} failed: {why}")

    def results(self, benchmarks: Sequence[Benchmark]) -> list[Result]:
        """Of those that have a pair, in their order."""
        return [
            Result.of(benchmark, self.pairs[benchmark.name])
            for benchmark in benchmarks
            if benchmark.name in self.pairs
        ]


def run_pairs(comparison: Comparison, count: int, report: Report) -> None:
    """All pairs of one benchmark."""
    benchmark = comparison.benchmark
    report.begin(benchmark, count)
    try:
        comparison.warm_up()
        for pair in alternate(count, comparison.run):
            report.pair(benchmark, pair)
    except (BenchFailed, CallFailed, PrepareFailed) as error:
        report.failed(benchmark, str(error))
