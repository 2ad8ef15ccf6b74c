"""What ``pinstorm report`` shows of the bundles that it is given, and where their page goes.

A table for each of a few bundles, of many a line each. What cannot be read is a sentence, and the
rest is shown.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pinstorm import bundle, frames, verdict
from pinstorm.bundle import Bundle, from_lab
from pinstorm.errors import ExitCode, UsageError
from pinstorm.frames import Frames
from pinstorm.load_case import live
from pinstorm.outcome import exit_code
from pinstorm.report import output as outputs
from pinstorm.report import reason

if TYPE_CHECKING:
    import polars

REPORT: Final = "report.html"

# What a person can still read, one table below the other.
_FEW_BUNDLES: Final = 4
_FEW_CASES: Final = 20_000


@dataclass(slots=True)
class Shown:
    """One bundle: its records for a table, None where only a line is told of it."""

    name: str
    path: Path
    manifest: Mapping[str, Any]
    verdicts: Counter[str]
    records: list[dict[str, Any]] | None = None
    torn_bytes: int = 0


@dataclass(slots=True)
class Overview:
    """All bundles below the paths that were given; ``notes``: what could not be read."""

    frames: "Frames[polars.LazyFrame]"
    shown: list[Shown]
    rejudge: bool = False

    @property
    def notes(self) -> list[str]:
        """Those of the frames: what only a later query finds is told too."""
        return self.frames.notes

    @property
    def verdicts(self) -> Counter[str]:
        return sum((one.verdicts for one in self.shown), Counter())

    @property
    def exit_code(self) -> ExitCode:
        """That of the records; LOST when something could not be read."""
        if self.notes:
            return ExitCode.LOST
        return exit_code([{"verdict": name} for name in self.verdicts])

    def records(self, one: Shown) -> list[dict[str, Any]]:
        """Of that bundle, all in memory; [] and a note when it is not whole."""
        try:
            opened = bundle.open_bundle(one.path)
        except UsageError as error:
            # What its tables lack is told already.
            if not any(str(one.path) in note for note in self.notes):
                self.notes.append(str(error))
            return []
        one.torn_bytes = opened.torn_bytes
        judged = _judged_again(opened) if self.rejudge else opened.records
        return [*judged, *_unfinished(opened)]


def read(paths: Sequence[Path], *, rejudge: bool = False, tables: bool = True) -> Overview:
    """Raises UsageError when nothing of it can be shown. ``tables``: with records, of a few."""
    from pinstorm.manifest_form import sound

    found = sound(frames.scan(paths, rejudge=rejudge))
    try:
        counted = _counted(found)
    except UsageError:
        # Damage that a file's footer does not tell: without it the rest is shown.
        found = sound(frames.scan(paths, rejudge=rejudge, verify=True))
        counted = _counted(found)
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in found.paths}
    for name, word, count in counted:
        verdicts[name][word] += count
    shown = [
        Shown(name, _as_given(path), found.manifests[name], verdicts[name])
        for name, path in found.paths.items()
    ]
    whole = Overview(found, shown, rejudge)
    if tables and len(shown) <= _FEW_BUNDLES and whole.verdicts.total() <= _FEW_CASES:
        for one in shown:
            one.records = whole.records(one) or None
    return whole


def page_path(paths: Sequence[Path]) -> Path:
    """In the directory that was given; of several in the current one."""
    return paths[0] / REPORT if len(paths) == 1 else Path(REPORT)


def write_page(
    tables: "Frames[polars.LazyFrame]", command: Any, path: Path, *, option: str = "--out"
) -> Path:
    """Write report.html there, whole or not at all; its path. Raises WriteError."""
    bundle.write_bytes(path, _page(tables, command), option=option)
    return path


def print_page(tables: "Frames[polars.LazyFrame]", command: Any, path: Path | None) -> None:
    """Write the page to where a person said, or on stdout. Raises UsageError and WriteError."""
    outputs.write(_page(tables, command).decode(), path)


def _page(tables: "Frames[polars.LazyFrame]", command: Any) -> bytes:
    from pinstorm.report.html import page

    try:
        return page.data(tables, command)
    except UsageError:
        whole = frames.scan(list(tables.paths.values()), verify=True)
        tables.notes.extend(note for note in whole.notes if note not in tables.notes)
        return page.data(whole, command)


def lines(found: Overview) -> Iterator[str]:
    """One for each bundle that has no table."""
    from pinstorm.report import table

    for one in found.shown:
        if one.records is None:
            yield f"{one.path}: {table.summary_of(one.verdicts)}"


def _counted(tables: "Frames[polars.LazyFrame]") -> list[tuple[str, str, int]]:
    """Bundle, verdict, and how many cases."""
    counted: list[tuple[str, str, int]]
    counted = frames.collect(tables.cases.group_by("bundle", "verdict").len()).rows()
    return counted


def _as_given(path: Path) -> Path:
    """Short, where it is below the current directory."""
    near = os.path.relpath(path)
    return path if near.startswith("..") else Path(near)


def _judged_again(opened: Bundle) -> list[dict[str, Any]]:
    lab = from_lab(opened.manifest)
    return verdict.rejudge(opened.records, lab=lab)


def _unfinished(opened: Bundle) -> list[dict[str, Any]]:
    """The cases that were begun and have no record yet; of a load its figures up to now."""
    begun = [record for record in reason.records(opened) if record.get("reason") == "unfinished"]
    return [{**record, **live.figures(opened, record["case"])} for record in begun]
