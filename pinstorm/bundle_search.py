"""Where the bundles below a path are, and what each is called in a table of several.

A path is a bundle, a lab run's parent (``index.json`` gives the order of its bundles), or a
directory with such below it. A directory with a manifest, a journal or cases.parquet is a bundle,
and nothing below it is looked at.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pinstorm import bundle, intervals, samples
from pinstorm.errors import UsageError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_MARKS = (bundle.MANIFEST, bundle.JOURNAL, bundle.CASES)
_READ = (*_MARKS, samples.SAMPLES, intervals.HISTOGRAMS, intervals.INTERVALS)
# Below a directory of bundles: a lab run's parent among the runs of a campaign, and no further.
_DEPTH = 4


@dataclass(slots=True)
class Found:
    """``paths``: name to directory, in order; ``notes``: a sentence for each path without any."""

    paths: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def search(paths: Paths) -> Found:
    """Every bundle there, each once; in a directory in the order of its index, then of names.

    UsageError where there is none at all. A bundle's name is the last component of its path, as a
    lab run's are the kernels' releases; those that would have the same one are told apart by as
    many of the components before it as that takes. So it depends on no order and on no current
    directory.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = Found()
    seen: dict[str, Path] = {}
    for path in map(Path, given):
        below = _of(path, found.notes)
        for one in below:
            if _is_text(one, found.notes) and _is_of_files(one, found.notes):
                seen.setdefault(os.path.realpath(one), one)
    if not seen:
        raise UsageError(found.notes[0] if found.notes else "no bundle is named; give one or more")
    places = [Path(os.path.abspath(one)) for one in seen.values()]
    found.paths = dict(zip(_names(places), seen.values(), strict=True))
    return found


def _of(path: Path, notes: list[str]) -> list[Path]:
    """The bundles of one path that was given; without any the reason is in ``notes``."""
    if not os.path.isdir(path):
        if path.name in (*_MARKS, bundle.INDEX) and os.path.isfile(path):
            notes.append(f"{path} is one file of a bundle; name its directory, {path.parent}")
        else:
            notes.append(f"bundle {path} is no directory; name the directory that a run wrote")
        return []
    refused = len(notes)
    found = list(_below(path, _DEPTH, notes))
    if not found and len(notes) == refused:
        notes.append(f"no bundle in {path}: name the directory that a run wrote")
    return found


def _is_text(path: Path, notes: list[str]) -> bool:
    """Whether the path is UTF-8: a table has no other names, and polars opens no other files."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        notes.append(f"bundle {shown} has a name that is not UTF-8; rename it")
        return False
    return True


def _is_of_files(path: Path, notes: list[str]) -> bool:
    """Whether nothing in it is a pipe or a device, which whoever reads would wait for."""
    for one in (path / name for name in _READ):
        with suppress(OSError):
            mode = one.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                notes.append(f"{one} is no file; copy the bundle again from where it was made")
                return False
    return True


def is_bundle(path: Path) -> bool:
    """Whether the directory has anything of a bundle's."""
    return any(os.path.exists(path / name) for name in _MARKS)


def _below(path: Path, depth: int, notes: list[str]) -> Iterator[Path]:
    if is_bundle(path):
        yield path
        return
    try:
        inner = sorted(one for one in path.iterdir() if one.is_dir() and one.name[0] != ".")
    except OSError as error:
        why = os.strerror(error.errno or 0).lower()
        notes.append(f"cannot search {path}: {why}; read it as a user who may")
        return
    indexed = _indexed(path, notes)
    yield from indexed
    # A link is followed to a bundle and no further: what it leads to may be anything.
    for one in inner if depth else ():
        if one not in indexed and (not one.is_symlink() or is_bundle(one)):
            yield from _below(one, depth - 1, notes)


def _indexed(parent: Path, notes: list[str]) -> list[Path]:
    """The bundles that a lab run's index names, in its order."""
    try:
        named = [parent / entry["path"] for entry in bundle.read_index(parent)]
    except UsageError as error:
        notes.append(str(error))
        return []
    for gone in (path for path in named if not is_bundle(path)):
        notes.append(
            f"{parent / bundle.INDEX} names {gone.name}, which is no bundle; it is left out"
        )
    return [path for path in named if is_bundle(path)]


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are each another one's; all are absolute and differ."""
    names = [path.name or "/" for path in places]
    length = 1
    while True:
        length += 1
        alike: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            alike.setdefault(name, []).append(number)
        doubled = [number for group in alike.values() if len(group) > 1 for number in group]
        if not doubled:
            return names
        for number in doubled:
            names[number] = "/".join(places[number].parts[-length:])
