"""A load's intervals added up: the figures of each job, and the rate over time.

A worker tells what it did in each interval; all processes of a job add up exactly, histograms too.
A job's figures are those of the load's steady part where it has one, else of the whole hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import workloads
from pinstorm import steady
from pinstorm.steady import Steadiness
from telemetry.histogram import Histogram
from workloads.load.spec import Job, Load

Part = Literal["ramp", "hold", "steady", "drain"]
_SUMS: Final = ("operations", "bytes", "pins", "verified", "cpu_ns")


@dataclass(slots=True)
class Tally:
    """What all processes of one job did in one part of the load."""

    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SUMS, 0))
    refused: dict[str, int] = field(default_factory=dict)
    latency: dict[str, Histogram] = field(default_factory=dict)
    begin_ns: int | None = None
    end_ns: int | None = None

    def add(self, interval: Mapping[str, Any]) -> None:
        for name in _SUMS:
            self.sums[name] += int(interval[name])
        for name, count in interval["refused"].items():
            self.refused[name] = self.refused.get(name, 0) + int(count)
        for kind, counts in interval["latency"].items():
            self.latency.setdefault(kind, Histogram()).merge(Histogram.from_json(counts))
        begin_ns, end_ns = interval["t_ns"]
        self.begin_ns = begin_ns if self.begin_ns is None else min(self.begin_ns, begin_ns)
        self.end_ns = end_ns if self.end_ns is None else max(self.end_ns, end_ns)

    @property
    def elapsed_ns(self) -> int:
        if self.begin_ns is None or self.end_ns is None:
            return 0
        return self.end_ns - self.begin_ns

    def to_json(self) -> dict[str, Any]:
        """Sums, rates a second, ns of CPU for each operation, and latencies in ns."""
        elapsed_s = self.elapsed_ns / 1e9
        operations = self.sums["operations"]
        return {
            **self.sums,
            "elapsed_ns": self.elapsed_ns,
            "ops_s": _per_second(operations, elapsed_s),
            "bytes_s": _per_second(self.sums["bytes"], elapsed_s),
            "pins_s": _per_second(self.sums["pins"], elapsed_s),
            "cpu_ns_per_op": self.sums["cpu_ns"] / operations if operations else None,
            "refused": self.refused,
            "latency_ns": {kind: h.summary() for kind, h in self.latency.items() if h.total},
        }


class LoadTally:
    """All jobs of one load, interval by interval."""

    def __init__(self, load: Load):
        self._load = load
        self._parts: list[dict[Part, Tally]] = [{} for _ in load.jobs]
        # The rate that is judged is of what pins, not of what disturbs it.
        self._counted = [not workloads.is_antagonist(job.workload) for job in load.jobs]
        # By process: how many intervals of the hold it has told.
        self._told: dict[tuple[int, int], int] = {}
        # By process: its rate in the interval that it told last.
        self._last: dict[tuple[int, int], float] = {}
        # Processes that tell no more: a count may end one long before the load.
        self._ended: set[tuple[int, int]] = set()
        # The operations a second of the processes that have told, by interval of the hold.
        self._rates: list[float] = []
        self._steady_after: int | None = None
        self._steadiness: Steadiness | None = None
        # The windows that begin before this interval were looked at, and none was steady.
        self._looked = 0

    def add(self, interval: Mapping[str, Any]) -> None:
        """An interval as the leader hands it on: ``job``, ``process``, ``phase`` and figures.

        ``number``: which of the phase it is, where some are left out: an operation that takes
        longer than an interval is in the first of those that it takes.
        """
        job = int(interval["job"])
        part: Part = interval["phase"]
        self._tally(job, part).add(interval)
        who = job, int(interval["process"])
        if part == "drain":
            self._ended.add(who)
        if part != "hold":
            return
        passed = self._told.get(who, 0)
        number = max(passed, int(interval.get("number", passed)))
        self._told[who] = number + 1
        if self._steady_after is not None and number >= self._steady_after:
            self._tally(job, "steady").add(interval)
        if self._counted[job]:
            self._note_rate(who, range(passed, number), interval)

    def rates(self) -> list[float]:
        """Operations a second in each interval of the hold that all processes have told."""
        return self._rates[: self._complete()]

    @property
    def steadiness(self) -> Steadiness:
        """Whether and when the load became steady, by now."""
        if self._steadiness is None or not self._steadiness.reached:
            rates, began = self.rates(), self._looked
            interval_s, wanted = self._load.interval_s, self._load.steady
            found = steady.find(rates[began:], interval_s, wanted)
            if found.after_intervals is not None:
                found = replace(found, after_intervals=began + found.after_intervals)
            self._steadiness = found
            # The last window is looked at again: its figures are told if none is steady. Those
            # before it are not, or days of a load would take longer than the load.
            width = steady.window_intervals(interval_s, wanted)
            self._looked = max(began, len(rates) - width)
        return self._steadiness

    def jobs_json(self) -> list[dict[str, Any]]:
        """The record's ``jobs``."""
        told = []
        for job, parts in zip(self._load.jobs, self._parts, strict=True):
            part: Part = "steady" if "steady" in parts else "hold"
            tally = parts.get(part, Tally())
            told.append({**said_of(job), "part": part, **tally.to_json()})
        return told

    # ------------------------------------------------------------------------------------------

    def _tally(self, job: int, part: Part) -> Tally:
        return self._parts[job].setdefault(part, Tally())

    def _note_rate(
        self, who: tuple[int, int], left_out: range, interval: Mapping[str, Any]
    ) -> None:
        """``left_out``: intervals just before, in which the operations of the last one ended."""
        number = left_out.stop
        self._rates += [0.0] * (number + 1 - len(self._rates))
        for earlier in left_out:
            self._rates[earlier] += self._last.get(who, 0.0)
        begin_ns, end_ns = interval["t_ns"]
        rate = int(interval["operations"]) * 1e9 / max(1, end_ns - begin_ns)
        self._last[who] = rate
        self._rates[number] += rate
        if self._steady_after is None and self._complete() > number and self.steadiness.reached:
            # What some have told of the intervals to come is counted as they tell the next one.
            self._steady_after = len(self._rates)

    def _complete(self) -> int:
        """How many intervals every process of a job that counts has told, unless it has ended."""
        told = {who: self._told.get(who, 0) for who in self._whose()}
        going_on = [count for who, count in told.items() if who not in self._ended]
        return min(going_on) if going_on else max(told.values(), default=0)

    def _whose(self) -> list[tuple[int, int]]:
        return [
            (number, process)
            for number, job in enumerate(self._load.jobs)
            if self._counted[number]
            for process in range(job.processes)
        ]


def said_of(job: Job) -> dict[str, Any]:
    """What the suite said of the job: nothing of the figures can be read without it."""
    return {
        "name": job.name,
        "workload": job.workload,
        "memory": job.memory,
        "processes": job.processes,
        "depth": job.depth,
        "sizes": [list(pair) for pair in job.sizes],
        "antagonist": workloads.is_antagonist(job.workload),
        "job": job.to_json(),
    }


def said_of_load(load: Load) -> dict[str, Any]:
    """What the suite said of the load, and of what is seen of it nothing yet: the record's load."""
    return {
        "ramp_s": load.ramp_s,
        "duration_s": load.duration_s,
        "interval_s": load.interval_s,
        "steady": None,
        "steady_window_s": load.steady.window_s,
        "stopped": None,
        "failure": None,
        "sampler": None,
        "soak": {},
    }


def _per_second(count: int, elapsed_s: float) -> float | None:
    return count / elapsed_s if elapsed_s else None
