"""intervals.jsonl and histograms.parquet: what each process of a load did, interval by interval.

Workers tell the figures of each interval, with the latencies as bucket counts
(telemetry.histogram). Here they become lines of a file that stays small however long a load runs:
once a job has more than ``limit`` lines, intervals of the same time become one over all its
processes, and then neighbours become one, pair by pair. Counts add up exactly, so nothing is lost
but the resolution in time. pinstorm.series_tables makes the table of them.
"""

import contextlib
import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinstorm import journal
from pinstorm.errors import UsageError
from pinstorm.schema import Column
from pinstorm.unpinned_file import UnpinnedFile
from telemetry.histogram import Histogram

INTERVALS = "intervals.jsonl"
HISTOGRAMS = "histograms.parquet"
LIMIT = 4096

COLUMNS = (
    Column("run", "String", "", "run", "name of the run"),
    Column("case", "String", "", "case", "the load"),
    Column("seq", "Int64", "", "case", "its position in the run, as in cases.parquet"),
    Column("job", "String", "", "case", "the job of the load, by number or name"),
    Column("phase", "String", "", "case", "ramp, hold or drain"),
    Column("kind", "String", "", "call", "what took so long: read, write, acquire, release, …"),
    Column("t_begin_ns", "Int64", "ns", "case", "begin of the interval, of the phase in a total"),
    Column("t_end_ns", "Int64", "ns", "case", "end of the interval; null in a total of the phase"),
    Column("low_ns", "Int64", "ns", "call", "the smallest value of the bucket"),
    Column("high_ns", "Int64", "ns", "call", "the largest value of the bucket"),
    Column("count", "Int64", "", "call", "how many calls took so long, over all processes"),
)

_COUNTS = ("operations", "bytes", "pins", "cpu_ns", "verified")
_FIELDS = ("seq", "case", "job", "process", "t_ns", "phase", *_COUNTS, "refused", "latency")
# So many slots of time are kept open for processes that are late; each is some KiB of memory.
_OPEN = 64
# Of the widths that are tried, each twice the one before: more than a load can need.
_WIDTHS = 64

Job = tuple[int, str]


@dataclass(slots=True)
class Interval:
    """What a job's processes did from ``begin_ns`` to ``end_ns``. ``process``: None of several."""

    seq: int
    case: str
    job: int | str
    phase: str
    process: int | None
    begin_ns: int
    end_ns: int
    counts: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    latency: dict[str, Histogram] = field(default_factory=dict)

    @property
    def key(self) -> Job:
        return self.seq, str(self.job)

    def merge(self, other: "Interval") -> None:
        """As if one process had done both."""
        self.begin_ns = min(self.begin_ns, other.begin_ns)
        self.end_ns = max(self.end_ns, other.end_ns)
        if self.process != other.process:
            self.process = None
        for sums, more in ((self.counts, other.counts), (self.refused, other.refused)):
            for name, count in more.items():
                sums[name] = sums.get(name, 0) + count
        for kind, more_latency in other.latency.items():
            self.latency.setdefault(kind, Histogram()).merge(more_latency)

    def to_json(self) -> dict[str, Any]:
        return {
            "seq": self.seq,
            "case": self.case,
            "job": self.job,
            "process": self.process,
            "t_ns": [self.begin_ns, self.end_ns],
            "phase": self.phase,
            **self.counts,
            "refused": self.refused,
            "latency": {kind: one.to_json() for kind, one in self.latency.items()},
        }

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Interval":
        begin_ns, end_ns = message["t_ns"]
        latency = message["latency"].items()
        return cls(
            int(message["seq"]),
            message["case"],
            message["job"],
            message["phase"],
            message["process"],
            int(begin_ns),
            int(end_ns),
            {name: int(message[name]) for name in _COUNTS if message.get(name) is not None},
            dict(message.get("refused") or {}),
            {kind: Histogram.from_json(one) for kind, one in latency},
        )


class Intervals:
    """The writing end. One process writes the file at a time."""

    def __init__(self, bundle_path: Path, limit: int = LIMIT):
        """Goes on with the file of a resumed run. ``limit``: lines of one job."""
        self.path = bundle_path / INTERVALS
        self._limit = limit
        self._lines: dict[Job, int] = {}
        for left in bundle_path.glob(f".{INTERVALS}.*"):  # by a run that was killed
            left.unlink(missing_ok=True)
        _cut_torn(self.path)
        for interval in read(self.path):
            self._lines[interval.key] = self._lines.get(interval.key, 0) + 1
        self._file: UnpinnedFile | None = None

    def note(self, message: Mapping[str, Any]) -> None:
        """One process's figures of one interval; fields that are not known here are left out.

        Raises WriteError; the file then ends with a whole line.
        """
        self._append(_line({name: message[name] for name in _FIELDS if name in message}))
        job = int(message["seq"]), str(message["job"])
        count = self._lines[job] = self._lines.get(job, 0) + 1
        if count > self._limit:
            self._shrink(job)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, line: bytes) -> None:
        try:
            if self._file is None:
                self._file = UnpinnedFile(self.path)
            self._file.write(line)
        except OSError as error:
            raise journal.write_error(self.path, error) from error

    def _shrink(self, job: Job) -> None:
        """Rewrite the file with at most half as many lines of this job as it may have."""
        grid = _Grid.of((i for i in read(self.path) if i.key == job), self._limit // 2)
        beside = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}")
        self.close()
        try:
            try:
                with UnpinnedFile(beside, new=True) as file:
                    kept = 0
                    for interval in grid.merged(read(self.path), job):
                        kept += interval.key == job
                        file.write(_line(interval.to_json()))
                os.replace(beside, self.path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise journal.write_error(self.path, error) from error
        self._lines[job] = kept


@dataclass(frozen=True, slots=True)
class _Grid:
    """Slots of time, as wide as it takes to have few of them; by phase, each from its begin on."""

    width_ns: int
    begins_ns: Mapping[str, int]

    @classmethod
    def of(cls, intervals: Iterable[Interval], most: int | None = None) -> "_Grid":
        """As wide as an interval usually is, or so many times twice that that ``most`` are left.

        With as many slots as there are phases there is nothing more to merge.
        """
        spans = [(i.phase, i.begin_ns, i.end_ns) for i in intervals]
        begins: dict[str, int] = {}
        for phase, begin_ns, _ in spans:
            begins[phase] = min(begins.get(phase, begin_ns), begin_ns)
        lengths = [end_ns - begin_ns for _, begin_ns, end_ns in spans]
        width_ns = max(1, round(statistics.median(lengths))) if lengths else 1
        grid = cls(width_ns, begins)
        for _ in range(_WIDTHS):
            slots = len({(phase, grid.slot(phase, begin, end)) for phase, begin, end in spans})
            if most is None or slots <= max(most, len(begins)):
                break
            grid = cls(grid.width_ns * 2, begins)
        return grid

    def slot(self, phase: str, begin_ns: int, end_ns: int) -> int:
        """That of the interval's middle: processes do not begin at the same nanosecond."""
        return ((begin_ns + end_ns) // 2 - self.begins_ns[phase]) // self.width_ns

    def merged(self, intervals: Iterable[Interval], job: Job) -> Iterator[Interval]:
        """Those of the job, each slot of it as one; all others as they are.

        What comes more than _OPEN slots late is a line of its own.
        """
        slots: dict[tuple[str, int], Interval] = {}
        for interval in intervals:
            if interval.key != job:
                yield interval
                continue
            slot = interval.phase, self.slot(interval.phase, interval.begin_ns, interval.end_ns)
            if slot in slots:
                slots[slot].merge(interval)
            else:
                slots[slot] = interval
            if len(slots) > _OPEN:
                yield slots.pop(next(iter(slots)))
        yield from slots.values()


def read(path: Path) -> Iterator[Interval]:
    """Each whole line; a torn last one is left out. UsageError for any other that is none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Interval.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{path} is damaged in line {number} ({error}); move it out of the bundle"
                ) from None


def by_time(path: Path) -> Iterator[Interval]:
    """Each interval of each job once, over all its processes."""
    jobs: dict[Job, None] = {}
    for interval in read(path):
        jobs.setdefault(interval.key)
    for job in jobs:
        grid = _Grid.of(i for i in read(path) if i.key == job)
        yield from grid.merged((i for i in read(path) if i.key == job), job)


def totals(intervals: Iterable[Interval]) -> dict[tuple[Job, str], Interval]:
    """By job and phase all intervals as one: the exact sum over processes and time."""
    whole: dict[tuple[Job, str], Interval] = {}
    for interval in intervals:
        place = interval.key, interval.phase
        if place not in whole:
            whole[place] = Interval.from_json({**interval.to_json(), "process": None})
        else:
            whole[place].merge(interval)
    return whole


def _line(interval: Mapping[str, Any]) -> bytes:
    return json.dumps(interval, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _cut_torn(path: Path) -> None:
    """A line that is appended behind half a one would be lost with it."""
    try:
        with open(path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end:
                begin = max(0, end - (1 << 16))
                file.seek(begin)
                found = file.read(end - begin).rfind(b"\n")
                if found >= 0:
                    end = begin + found + 1
                    break
                end = begin
            if end < size:
                file.truncate(end)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise journal.write_error(path, error) from error
