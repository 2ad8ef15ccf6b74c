"""The tables of a run that has not ended, lazily, from what it has written so far.

``cases`` of journal.jsonl, ``samples`` of the spool behind samples.parquet, ``histograms`` of
intervals.jsonl. Each is read in parts that are small whatever the run's length, and only when a
query asks for it. A journal is taken as it is when it is looked at: what the run writes after
that is in no table, so that two queries of one scan agree.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinstorm import bundle, intervals, journal, samples, schema, series_tables
from pinstorm.bundle import Bundle
from pinstorm.errors import PinstormError
from pinstorm.journal import JournalContents
from pinstorm.parquet_tables import polars_schema
from pinstorm.report import reason
from pinstorm.schema import Column

if TYPE_CHECKING:
    import polars

# One part of the cases: so many records, or so many bytes of the journal's lines.
_PART_RECORDS = 2000
_PART_BYTES = 16 << 20
_TAIL_BYTES = 1 << 16

# What is kept of a record that has not the form of one.
_NAMES = ("run", "kernel", "accel", "case", "workload", "memory", "verdict", "reason")

Note = Callable[[str], None]
Judge = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(slots=True)
class Journal:
    """A journal as it was when it was looked at: its first ``end_bytes``.

    ``started``: seq to start line, of the cases that have not ended. ``damaged``: number and error
    of each line, before the torn last one, that is no line of a journal.
    """

    path: Path
    end_bytes: int = 0
    records: int = 0
    started: dict[int, dict[str, Any]] = field(default_factory=dict)
    damaged: list[tuple[int, str]] = field(default_factory=list)

    @property
    def note(self) -> str | None:
        """What is to be said of its damage; None without any. A torn last line is none."""
        if not self.damaged:
            return None
        number, why = self.damaged[0]
        others = len(self.damaged) - 1
        more = f" and in {others} more" if others else ""
        return (
            f"journal {self.path} is damaged in line {number}{more} ({why}); "
            "its other lines are read, run the suite again for all of them"
        )


def look(path: Path) -> Journal:
    """Read a journal through, keeping nothing of its records. Raises OSError."""
    seen = Journal(path)
    number = 0
    bad: tuple[int, str] | None = None
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                break
            if bad is not None:
                seen.damaged.append(bad)
                bad = None
            seen.end_bytes += len(raw)
            try:
                line = journal.parse(raw)
            except (ValueError, RecursionError) as error:
                bad = number, str(error) or "nested too deeply"
                continue
            if "start" in line:
                seen.started[line["seq"]] = line
                continue
            seen.started.pop(line["seq"], None)
            seen.records += "interrupted" not in line
    # A bad line at the very end is a torn one, with or without its newline.
    return seen


def last_of(path: Path) -> tuple[int | None, bool]:
    """The seq of a journal's last record, None without any; whether a case was begun after it.

    Reads only the end of the file. Raises OSError.
    """
    size = os.path.getsize(path)
    length = _TAIL_BYTES
    with open(path, "rb") as file:
        while True:
            begin = max(0, size - length)
            file.seek(begin)
            lines = file.read(size - begin).split(b"\n")[1 if begin else 0 : -1]
            begun = False
            ended: set[int] = set()
            for raw in reversed(lines):
                try:
                    line = journal.parse(raw)
                except (ValueError, RecursionError):
                    continue
                if "start" in line:
                    begun = begun or line["seq"] not in ended
                elif "interrupted" in line:
                    ended.add(line["seq"])
                else:
                    return line["seq"], begun
            if not begin:
                return None, begun
            length *= 4


def cases(
    seen: Journal, manifest: Mapping[str, Any], judge: Judge | None = None
) -> "polars.LazyFrame":
    """The records of a journal, and a row for each case that was begun and has not ended.

    Such a case is ``lost`` for the reason ``unfinished``; what its run is, the manifest says.
    ``judge``: what is done to the records before they become rows.
    """
    identity = manifest.get("identity") or {}
    begun = reason.records(Bundle(seen.path.parent, {}, JournalContents(started=seen.started)))
    unfinished = [
        {
            **(identity if isinstance(identity, Mapping) else {}),
            **record,
            "seq": seq,
            "memory": [*record["case"].split("/"), None][1],
        }
        for seq, record in zip(seen.started, begun, strict=True)
    ]

    def frames(columns: Sequence[Column]) -> Iterator["polars.DataFrame"]:
        for records in _parts(seen):
            yield _frame(judge(records) if judge is not None else records, columns)
        if unfinished:
            yield _frame(unfinished, columns)

    return lazily(frames, schema.COLUMNS)


def spooled_samples(bundle_path: Path, run: str | None, note: Note) -> "polars.LazyFrame":
    """What the spool has and samples.parquet has not; ``note`` is told of a damaged segment."""

    def frames(_: Sequence[Column]) -> Iterator["polars.DataFrame"]:
        for segment in series_tables.unmerged(bundle_path):
            try:
                yield series_tables.segment_frame(segment, run)
            except PinstormError as error:
                note(str(error))

    return lazily(frames, samples.COLUMNS)


def interval_histograms(bundle_path: Path, run: str | None, note: Note) -> "polars.LazyFrame":
    """The histograms of intervals.jsonl; ``note`` is told when it is damaged."""

    def frames(_: Sequence[Column]) -> Iterator["polars.DataFrame"]:
        try:
            yield from series_tables.histogram_frames(bundle_path, run)
        except PinstormError as error:
            note(str(error))

    return lazily(frames, intervals.COLUMNS)


def lazily(
    frames: Callable[[Sequence[Column]], Iterator["polars.DataFrame"]], columns: Sequence[Column]
) -> "polars.LazyFrame":
    """A table that is made part by part, anew for each query, and never held as a whole.

    ``frames`` is given the columns that the query needs, and may make more.
    """
    from polars.io.plugins import register_io_source

    def source(
        wanted: list[str] | None,
        predicate: "polars.Expr | None",
        rows: int | None,
        _batch: int | None,
    ) -> Iterator["polars.DataFrame"]:
        shown = [column.name for column in columns] if wanted is None else wanted
        needed = {*shown, *(predicate.meta.root_names() if predicate is not None else ())}
        left = rows
        for frame in frames([column for column in columns if column.name in needed]):
            part = frame if predicate is None else frame.filter(predicate)
            part = part.select(shown)
            if left is not None:
                part = part.head(left)
                left -= part.height
            yield part
            if left == 0:
                return

    return register_io_source(source, schema=polars_schema(columns))


def _parts(seen: Journal) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    size = 0
    left = seen.end_bytes
    with open(seen.path, "rb") as file:
        for raw in file:
            left -= len(raw)
            if left < 0:
                break
            try:
                line = journal.parse(raw)
            except (ValueError, RecursionError):
                continue
            if "start" in line or "interrupted" in line:
                continue
            part.append(line)
            size += len(raw)
            if len(part) == _PART_RECORDS or size >= _PART_BYTES:
                yield part
                part, size = [], 0
    if part:
        yield part


def _frame(records: list[dict[str, Any]], columns: Sequence[Column]) -> "polars.DataFrame":
    import polars

    try:
        return bundle.frame(records, columns)
    except _unforeseen():
        return polars.concat(_row(record, columns) for record in records)


def _row(record: dict[str, Any], columns: Sequence[Column]) -> "polars.DataFrame":
    """A record of an unforeseen form keeps what names it."""
    try:
        return bundle.frame([record], columns)
    except _unforeseen():
        names = {name: record[name] for name in _NAMES if isinstance(record.get(name), str)}
        return bundle.frame([names], columns)


def _unforeseen() -> tuple[type[Exception], ...]:
    """What is raised for a value that no column can have."""
    import polars

    return (AttributeError, TypeError, ValueError, OverflowError, polars.exceptions.PolarsError)
