"""Bundles as polars frames: ``pinstorm.load(path)``, and ``pinstorm.scan(path)`` without reading.

A path is a bundle, a lab run's parent, or any directory with bundles below it (bundle_search);
several become one table each, with the bundle of a row in its first column.

What can be read is read, and the rest is a sentence in ``notes``:

- Of an older schema: columns it has not are null, columns that are gone are left out, a column of
  another type is cast, what cannot be cast is null.
- Of a run that has not ended, or that ``--resume`` went on with: ``cases`` is what the journal has,
  with the cases that were begun as ``lost``, ``unfinished``; ``samples`` and ``histograms`` are
  what their spools have. A torn last line is left out.
- Half a bundle: without a manifest its tables are there and its manifest is ``{}``; without a
  journal ``cases`` is cases.parquet; without both it has no cases. A bundle of a newer schema is
  left out: its columns may mean something else.
- Damaged: instead of cases.parquet the journal is read, where there is one; of a damaged journal
  all lines but the damaged ones. ``load`` finds damage wherever it is. ``scan`` finds it in a
  file's footer, and with ``verify`` everywhere; else a query that meets it raises
  ``polars.exceptions.PolarsError``, of which ``collect`` makes a UsageError.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pinstorm import (
    bundle,
    bundle_search,
    intervals,
    parquet_tables,
    samples,
    schema,
    series_tables,
    unended,
)
from pinstorm.bundle_search import Paths
from pinstorm.errors import UsageError

if TYPE_CHECKING:
    import polars

Frame = TypeVar("Frame")
Part = tuple[str, "Path | polars.LazyFrame"]

# What a table was made of, and is still in the bundle.
_SOURCES = {bundle.CASES: bundle.JOURNAL, intervals.HISTOGRAMS: intervals.INTERVALS}


@dataclass(frozen=True, slots=True)
class Frames(Generic[Frame]):
    """The tables of docs/data.md, each with ``bundle`` as its first column.

    ``manifests``: by the same name, in the order in which they were given, ``{}`` where there is
    none. ``paths``: where each is. ``notes``: a sentence for each bundle, or part of one, that
    could not be read; of a spool it comes when a query reads it.
    """

    cases: Frame
    samples: Frame
    histograms: Frame
    manifests: dict[str, dict[str, Any]]
    paths: dict[str, Path]
    notes: list[str]


def load(paths: Paths, columns: Sequence[str] | None = None) -> "Frames[polars.DataFrame]":
    """All rows, in memory: a case of all columns is some 2 KB, so of a million name ``columns``.

    Of ``columns`` each table has those that it knows. UsageError when no bundle can be read, or
    no table knows a column.
    """
    found = scan(paths)
    try:
        return _collected(found, columns)
    except parquet_tables.errors():
        return _collected(scan(paths, verify=True), columns)


def scan(
    paths: Paths, *, verify: bool = False, rejudge: bool = False
) -> "Frames[polars.LazyFrame]":
    """The same, to be filtered and grouped before anything is read. UsageError as load().

    ``verify``: read every table once, so that no query meets damage. ``rejudge``: ``cases`` as the
    rules of today judge them, which takes the journals.
    """
    found = bundle_search.search(paths)
    reading = _Reading(list(found.notes), verify, rejudge)
    for name, path in found.paths.items():
        reading.open(name, path)
    cases, series, latencies = reading.cases(), reading.samples(), reading.histograms()
    if not (cases or series or latencies or any(one.manifest for one in reading.opened)):
        raise UsageError(reading.notes[0])
    return Frames(
        parquet_tables.together(cases, schema.COLUMNS),
        parquet_tables.together(series, samples.COLUMNS),
        parquet_tables.together(latencies, intervals.COLUMNS),
        {one.name: one.manifest for one in reading.opened},
        {one.name: one.path for one in reading.opened},
        reading.notes,
    )


def find(paths: Paths) -> list[tuple[str, Path]]:
    """Name and directory of every bundle there, each once. UsageError where there is none."""
    return list(bundle_search.search(paths).paths.items())


def collect(frame: "polars.LazyFrame") -> "polars.DataFrame":
    """The rows of a query, with little memory. UsageError when it meets a damaged file."""
    try:
        return frame.collect(engine="streaming")
    except parquet_tables.errors() as error:
        raise UsageError(
            f"a table of these bundles is damaged ({parquet_tables.first_line(error)}); "
            "copy the bundles again from where they were made"
        ) from None


def _collected(
    found: "Frames[polars.LazyFrame]", columns: Sequence[str] | None
) -> "Frames[polars.DataFrame]":
    tables = {"cases": found.cases, "samples": found.samples, "histograms": found.histograms}
    if columns is not None:
        known = {name: frame.collect_schema().names() for name, frame in tables.items()}
        every = set().union(*known.values())
        if unknown := [name for name in columns if name not in every]:
            raise UsageError(f"no table has a column {unknown[0]!r}; docs/data.md has their names")
        for name, frame in tables.items():
            wanted = [one for one in columns if one in known[name] and one != "bundle"]
            tables[name] = frame.select("bundle", *wanted)
    loaded = {name: frame.collect() for name, frame in tables.items()}
    return Frames(**loaded, manifests=found.manifests, paths=found.paths, notes=found.notes)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A bundle that may be read; ``manifest`` {} when it could not be."""

    name: str
    path: Path
    manifest: dict[str, Any]

    @property
    def run(self) -> str | None:
        """As its tables call it."""
        identity = self.manifest.get("identity")
        run = identity.get("run") if isinstance(identity, Mapping) else None
        return run if isinstance(run, str) else None


@dataclass(slots=True)
class _Reading:
    """The bundles of one scan, and what there is to say of them.

    ``behind``: those whose tables are older than their journals, once ``cases`` has looked.
    """

    notes: list[str]
    verify: bool
    rejudge: bool
    opened: list[_Opened] = field(default_factory=list)
    behind: set[str] = field(default_factory=set)

    def open(self, name: str, path: Path) -> None:
        """Take its manifest; a bundle of a newer schema is left out."""
        try:
            self.opened.append(_Opened(name, path, bundle.read_manifest(path)))
        except (UsageError, RecursionError) as error:
            if _is_newer(path):
                self.notes.append(str(error))
                return
            why = "cannot be read" if os.path.exists(path / bundle.MANIFEST) else "is missing"
            self.notes.append(
                f"bundle {path}: {bundle.MANIFEST} {why}, so what it ran on is not known; "
                "its tables are shown without, copy the bundle again"
            )
            self.opened.append(_Opened(name, path, {}))

    def cases(self) -> "list[Part]":
        files = {one.name: self._file(one, bundle.CASES, schema.COLUMNS) for one in self.opened}
        self.behind = self._behind_their_journals(files)
        parts: list[Part] = []
        for one in self.opened:
            file = files[one.name]
            trusted = file is not None and one.name not in self.behind and not self.rejudge
            journal = None if trusted else self._journal(one)
            if journal is not None:
                judge = _judge_of(one.manifest) if self.rejudge else None
                parts.append((one.name, unended.cases(journal, one.manifest, judge)))
            elif file is not None:
                parts.append((one.name, file))
                if self.rejudge:
                    self.notes.append(
                        f"bundle {one.path} is not judged again, without {bundle.JOURNAL}; "
                        "its verdicts are those of its run"
                    )
            elif not _has(one, bundle.CASES, bundle.JOURNAL):
                self.notes.append(
                    f"bundle {one.path} has no cases, neither {bundle.CASES} nor "
                    f"{bundle.JOURNAL}; run it again"
                )
        return parts

    def samples(self) -> "list[Part]":
        parts: list[Part] = []
        for one in self.opened:
            file = self._file(one, samples.SAMPLES, samples.COLUMNS)
            parts += [] if file is None else [(one.name, file)]
            if series_tables.unmerged(one.path):
                spooled = unended.spooled_samples(one.path, one.run, self.notes.append)
                parts.append((one.name, spooled))
        return parts

    def histograms(self) -> "list[Part]":
        parts: list[Part] = []
        for one in self.opened:
            # At the end of each run the table is made of all intervals anew: one or the other.
            lives = one.name in self.behind and _has(one, intervals.INTERVALS)
            file = None if lives else self._file(one, intervals.HISTOGRAMS, intervals.COLUMNS)
            if file is None and _has(one, intervals.INTERVALS):
                file = unended.interval_histograms(one.path, one.run, self.notes.append)
            parts += [] if file is None else [(one.name, file)]
        return parts

    def _behind_their_journals(
        self, files: "Mapping[str, Path | polars.LazyFrame | None]"
    ) -> set[str]:
        """Those whose journal has more than cases.parquet was made of.

        Both have the records in the order in which the cases ended, and each case ends once: so
        it takes no more than the last of both.
        """
        behind: set[str] = set()
        last: dict[str, int | None] = {}
        for one in self.opened:
            if files[one.name] is not None:
                with contextlib.suppress(OSError):
                    last[one.name], begun = unended.last_of(one.path / bundle.JOURNAL)
                    behind |= {one.name} if begun else set()
        paths = {one.name: one.path / bundle.CASES for one in self.opened if one.name in last}
        made = parquet_tables.last_values(list(paths.values()), "seq")
        for name, path in paths.items():
            if path not in made:
                self.notes.append(f"{path} cannot be read; {bundle.JOURNAL} is read instead")
            elif made[path] == last[name]:
                continue
            behind.add(name)
        return behind

    def _file(
        self, one: _Opened, name: str, columns: Sequence[schema.Column]
    ) -> "Path | polars.LazyFrame | None":
        """A Parquet file of the bundle; None when it is not there, or damaged and told so."""
        path = one.path / name
        if not os.path.exists(path):
            return None
        try:
            return parquet_tables.opened(path, columns, self.notes.append, verify=self.verify)
        except parquet_tables.Damaged as error:
            source = _SOURCES.get(name)
            instead = (
                f"{source} is read instead"
                if source is not None and _has(one, source)
                else "copy the bundle again from where it was made"
            )
            self.notes.append(f"{path} cannot be read ({error}); {instead}")
            return None

    def _journal(self, one: _Opened) -> unended.Journal | None:
        """None when it is not there, or cannot be read and told so."""
        path = one.path / bundle.JOURNAL
        try:
            seen = unended.look(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            self.notes.append(f"cannot read {path} ({why}); read it as a user who may")
            return None
        self.notes += [seen.note] if seen.note is not None else []
        return seen


def _judge_of(manifest: Mapping[str, Any]) -> unended.Judge:
    from pinstorm import verdict

    return partial(verdict.rejudge, lab=bundle.from_lab(manifest))


def _has(one: _Opened, *names: str) -> bool:
    return any(os.path.exists(one.path / name) for name in names)


def _is_newer(path: Path) -> bool:
    try:
        said = json.loads((path / bundle.MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    version = said.get("schema") if isinstance(said, dict) else None
    return isinstance(version, int) and version > schema.SCHEMA_VERSION
