"""Bundles as polars frames: ``pinstorm.load(path)``, and ``pinstorm.scan(path)`` without reading.

A path is a bundle, a lab run's parent, or any directory with bundles below it; several become one
table each, with the bundle of a row in its first column. Columns that an older pinstorm did not
write are null. Of a bundle that cannot be read, ``notes`` says why, and the others are there.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pinstorm import bundle, intervals, journal, samples, schema
from pinstorm.errors import UsageError

if TYPE_CHECKING:
    import polars

Frame = TypeVar("Frame")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# Below a directory of bundles: a lab run's parent among the runs of a campaign, and no further.
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Frames(Generic[Frame]):
    """The tables of docs/data.md, each with ``bundle`` as its first column.

    ``manifests``: by the same name, in the order in which they were given. ``paths``: where each
    is. ``notes``: a sentence for each bundle, or part of one, that could not be read.
    """

    cases: Frame
    samples: Frame
    histograms: Frame
    manifests: dict[str, dict[str, Any]]
    paths: dict[str, Path]
    notes: list[str]


def load(paths: Paths) -> "Frames[polars.DataFrame]":
    """All rows, in memory. UsageError when there is no bundle that can be read."""
    found = scan(paths)
    return Frames(
        found.cases.collect(),
        found.samples.collect(),
        found.histograms.collect(),
        found.manifests,
        found.paths,
        found.notes,
    )


def scan(paths: Paths) -> "Frames[polars.LazyFrame]":
    """The same, to be filtered and grouped before anything is read. UsageError as load()."""
    import polars

    manifests: dict[str, dict[str, Any]] = {}
    where: dict[str, Path] = {}
    notes: list[str] = []
    parts: dict[str, list[polars.LazyFrame]] = {"cases": [], "samples": [], "histograms": []}
    for name, path in find(paths):
        try:
            manifests[name] = bundle.read_manifest(path)
        except UsageError as error:
            notes.append(str(error))
            continue
        where[name] = path
        for table, frame in (
            ("cases", _cases(path)),
            ("samples", _table(path / samples.SAMPLES, samples.COLUMNS)),
            ("histograms", _table(path / intervals.HISTOGRAMS, intervals.COLUMNS)),
        ):
            parts[table].append(frame.select(polars.lit(name).alias("bundle"), polars.all()))
    if not manifests:
        raise UsageError(notes[0] if notes else f"no bundle at {paths}: name what a run wrote")
    cases, series, latencies = (polars.concat(parts[table]) for table in parts)
    return Frames(cases, series, latencies, manifests, where, notes)


def find(paths: Paths) -> Iterator[tuple[str, Path]]:
    """Name and directory of every bundle there, each once; directories in the order of names.

    The name is the bundle's path as a person would give it. UsageError where there is none.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    seen: set[str] = set()
    for path in map(Path, given):
        if not os.path.isdir(path):
            raise UsageError(f"bundle {path} is no directory; name the directory that a run wrote")
        found = list(_below(path, _DEPTH))
        if not found:
            raise UsageError(f"no bundle in {path}: name the directory that a run wrote")
        for one in found:
            real = os.path.realpath(one)
            if real not in seen:
                seen.add(real)
                yield str(one), one


def _below(path: Path, depth: int) -> Iterator[Path]:
    if any(os.path.exists(path / name) for name in (bundle.MANIFEST, bundle.JOURNAL)):
        yield path
        return
    if depth:
        for inner in sorted(path.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _below(inner, depth - 1)


def _cases(path: Path) -> "polars.LazyFrame":
    """cases.parquet; of a run that has not ended what its journal has."""
    import polars

    if os.path.exists(path / bundle.CASES):
        return _table(path / bundle.CASES, schema.COLUMNS)
    frame = bundle.frame(journal.read(path / bundle.JOURNAL).records)
    return polars.LazyFrame(frame)


def _table(path: Path, columns: Sequence[schema.Column]) -> "polars.LazyFrame":
    """A Parquet file with the columns of now; without the file no rows."""
    import polars

    types = schema.polars_schema(columns)
    if not os.path.exists(path):
        return polars.LazyFrame(schema=types)
    return polars.scan_parquet(path, schema=types, missing_columns="insert", extra_columns="ignore")
