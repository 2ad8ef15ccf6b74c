"""samples.parquet and histograms.parquet: made at the end of a run, on the host.

Part by part, each small enough to be held in memory, however long the run was. A guest has no time
for polars: its files are read here.
"""

import contextlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pinstorm import bundle, intervals, journal, samples, spool
from pinstorm.errors import UsageError, WriteError
from pinstorm.intervals import Interval
from pinstorm.parquet_tables import polars_schema
from pinstorm.spool import INEXACT, NONE, Head
from telemetry import histogram

if TYPE_CHECKING:
    import polars

# In the spool: which segments are in samples.parquet already, and which file that is.
_MERGED = "merged.json"
# So many intervals of the table of histograms are in memory at a time.
_PART = 256


class Parts:
    """A Parquet file in the making, its parts in a directory beside it. ``with`` removes that."""

    def __init__(self, path: Path):
        """Raises WriteError. What one left that was killed is removed."""
        self._path = path
        self._parts: list[Path] = []
        try:
            for left in path.parent.glob(f".{path.name}.*"):
                remove(left)
            self._directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        except OSError as error:
            raise journal.write_error(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def add(self, frame: "polars.DataFrame") -> None:
        """Write one more part. Raises WriteError."""
        # Through memory, so that a full disk is met here and not half-way by polars.
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        part = self._directory / f"{len(self._parts):06}"
        try:
            part.write_bytes(buffer.getvalue())
        except OSError as error:
            raise journal.write_error(self._path, error) from error
        self._parts.append(part)

    def finish(self, behind: bool = False) -> bool:
        """Make one file of the parts, whole or not at all; False without any. Raises WriteError.

        ``behind``: what has the path now is the first part.
        """
        import polars

        if not self._parts:
            return False
        parts = [self._path, *self._parts] if behind and self._path.exists() else self._parts
        whole = self._directory / "whole"
        try:
            polars.concat(polars.scan_parquet(part) for part in parts).sink_parquet(whole)
            with open(whole, "rb") as file:
                os.fsync(file.fileno())
            os.replace(whole, self._path)
            journal.fsync_directory(self._path.parent)
        except OSError as error:
            raise journal.write_error(self._path, error) from error
        except polars.exceptions.PolarsError as error:
            raise WriteError(
                f"cannot write {self._path}: {error}; free space there, then --resume the run"
            ) from error
        return True


def remove(directory: Path) -> None:
    """A directory of the bundle that has done its work, if it is there. Raises WriteError."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise journal.write_error(directory, error) from error


# -- samples.parquet ----------------------------------------------------------------------------


def samples_frame(bundle_path: Path, run: str | None = None) -> "polars.DataFrame":
    """The table of samples.COLUMNS: samples.parquet, and behind it what the spool has.

    All of it is in memory: for a run of many hours scan the file instead.
    """
    import polars

    parts = [polars.DataFrame(schema=polars_schema(samples.COLUMNS))]
    if (bundle_path / samples.SAMPLES).exists():
        parts.append(polars.read_parquet(bundle_path / samples.SAMPLES))
    for path in unmerged(bundle_path):
        parts.append(segment_frame(path, run))
    return polars.concat(parts)


def finish_samples(bundle_path: Path, run: str) -> Path | None:
    """Make samples.parquet of the spool, behind what is in it, and remove the spool.

    Its path; None where there is neither. When it fails (WriteError, UsageError) the spool stays.
    """
    path, directory = bundle_path / samples.SAMPLES, samples.spool_of(bundle_path)
    merged = unmerged(bundle_path)
    if merged:
        with Parts(path) as parts:
            for segment in merged:
                parts.add(segment_frame(segment, run))
            parts.finish(behind=True)
        _say_merged(directory, path, merged)
    remove(directory)
    return path if path.exists() else None


def unmerged(bundle_path: Path) -> list[Path]:
    """The segments that are not in samples.parquet."""
    directory = samples.spool_of(bundle_path)
    done: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError):
        said = json.loads((directory / _MERGED).read_bytes())
        if said["file"] == _identity(bundle_path / samples.SAMPLES):
            done = set(said["segments"])
    return [path for path in spool.segments(directory) if path.name not in done]


def _say_merged(directory: Path, path: Path, merged: list[Path]) -> None:
    """For a run that dies before the spool is removed: what is in the table already."""
    names = [segment.name for segment in merged]
    bundle.write_json(directory / _MERGED, {"file": _identity(path), "segments": names})


def _identity(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def segment_frame(path: Path, run: str | None) -> "polars.DataFrame":
    """One segment in the long form, by source, process and figure, and by time in each."""
    import polars

    groups: dict[Head, list[bytes]] = {}
    for head, line in spool.lines(path):
        groups.setdefault(head, []).append(line)
    schema = polars_schema(samples.COLUMNS)
    frames = [polars.DataFrame(schema=schema)]
    for head, lines in groups.items():
        frames.append(_group_frame(path, head, lines, run).select(schema.keys()).cast(schema))
    return polars.concat(frames).sort("source", "pid", "key", "t_ns", maintain_order=True)


def _group_frame(path: Path, head: Head, lines: list[bytes], run: str | None) -> "polars.DataFrame":
    import polars

    columns = {"t_ns": polars.Int64, "who": polars.String}
    columns.update(dict.fromkeys(head.keys, polars.Int64))
    try:
        wide = polars.read_csv(
            io.BytesIO(b"\n".join(lines)),
            has_header=False,
            separator=" ",
            quote_char=None,
            null_values=NONE,
            schema=columns,
        )
    except polars.exceptions.PolarsError as error:
        raise UsageError(f"{path} is damaged ({error}); move it out of the bundle") from None
    pid = polars.col("who").str.split("/").list.get(1, null_on_oob=True).cast(polars.Int64)
    long = wide.select("t_ns", pid.alias("pid"), *head.keys).unpivot(
        index=["t_ns", "pid"], variable_name="key"
    )
    return long.with_columns(
        polars.lit(run).alias("run"),
        polars.lit(head.mark.case).alias("case"),
        polars.lit(head.mark.seq).alias("seq"),
        polars.lit(head.mark.phase).alias("phase"),
        polars.lit(head.source).alias("source"),
        polars.col("key").str.ends_with(INEXACT).not_().alias("exact"),
        polars.col("key").str.strip_suffix(INEXACT),
    ).drop_nulls("value")


# -- histograms.parquet -------------------------------------------------------------------------


def finish_histograms(bundle_path: Path, run: str) -> Path | None:
    """Make histograms.parquet of the file, which stays; its path, None without intervals.

    Raises WriteError, and UsageError for a damaged file.
    """
    path = bundle_path / intervals.HISTOGRAMS
    with Parts(path) as parts:
        for frame in histogram_frames(bundle_path, run):
            parts.add(frame)
        return path if parts.finish() else None


def histogram_frames(bundle_path: Path, run: str | None) -> Iterator["polars.DataFrame"]:
    """The table of intervals.COLUMNS part by part, of intervals.jsonl; none without that file.

    Raises UsageError for a damaged file.
    """
    import polars

    source = bundle_path / intervals.INTERVALS
    schema = polars_schema(intervals.COLUMNS)
    rows = itertools.chain(
        (_histogram_rows(run, interval, interval.end_ns) for interval in intervals.by_time(source)),
        (
            _histogram_rows(run, interval, None)
            for interval in intervals.totals(intervals.read(source)).values()
        ),
    )
    while part := list(itertools.islice(rows, _PART)):
        told = list(itertools.chain.from_iterable(part))
        yield polars.DataFrame(told, schema=schema, orient="row")


def _histogram_rows(
    run: str | None, interval: Interval, end_ns: int | None
) -> Iterator[tuple[Any, ...]]:
    """One for each bucket that holds something, in the order of intervals.COLUMNS."""
    place = run, interval.case, interval.seq, str(interval.job), interval.phase
    for kind, latency in interval.latency.items():
        for index, count in sorted(latency.counts.items()):
            low_ns, high_ns = histogram.low_of(index), histogram.high_of(index)
            yield *place, kind, interval.begin_ns, end_ns, low_ns, high_ns, count
