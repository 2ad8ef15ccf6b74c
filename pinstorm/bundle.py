"""Bundles: the directory that a run writes.

``manifest.json`` (written whole, then renamed into place), ``journal.jsonl`` while the run lives,
``cases.parquet`` at its end. A full disk leaves every file either whole or absent, the journal up
to its last whole line. The lab writes one bundle per kernel, ``OUT/<kernel release>/``, and
``OUT/index.json`` over them. polars is imported only to write Parquet: a guest has no
time for it.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinstorm import journal, record_form
from pinstorm.errors import UsageError
from pinstorm.parquet_tables import polars_schema
from pinstorm.schema import COLUMNS, SCHEMA_VERSION, Column, row

if TYPE_CHECKING:
    import polars

MANIFEST = "manifest.json"
JOURNAL = "journal.jsonl"
CASES = "cases.parquet"
INDEX = "index.json"
_NAME_ONE = "name one kernel's bundle, or run the lab again"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle as read back; ``contents`` is its journal."""

    path: Path
    manifest: dict[str, Any]
    contents: journal.JournalContents

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.contents.records

    @property
    def torn_bytes(self) -> int:
        """Length of the journal's torn last line; 0 when there is none."""
        return self.contents.torn_bytes


def default_path(suite_name: str, parent: Path = Path("runs")) -> Path:
    """``runs/<UTC time>-<suite>``, with a number after it when that is there already."""
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{suite_name}"
    path, number = parent / stem, 2
    while path.exists():
        path, number = parent / f"{stem}-{number}", number + 1
    return path


def create(path: str | os.PathLike[str]) -> Path:
    """Make the directory of a new bundle, or take an empty one; its absolute path.

    Raises UsageError when it is used and WriteError when nothing can be written there; then
    nothing is left behind.
    """
    directory = Path(path).absolute()
    made = _make_directories(directory)
    try:
        if any(directory.iterdir()):
            raise UsageError(
                f"output directory {path} is used; choose another --out, or --resume that bundle"
            )
        probe = directory / ".probe"
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        _remove_directories(made)
        raise journal.write_error(directory, error) from error
    return directory


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` whole, with the schema's version. Raises WriteError."""
    write_json(path / MANIFEST, {"schema": SCHEMA_VERSION, **manifest})


def write_json(path: Path, value: Any) -> None:
    """Write one JSON file whole or not at all. Raises WriteError."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, data: bytes, *, option: str = "--out") -> None:
    """Write a file beside ``path``, fsync it and rename it into place. Raises WriteError.

    Whatever has the name is replaced: for a path that a person gave there is
    pinstorm.report.output. ``option``: what the error says to change.
    """
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    made = False
    try:
        with open(beside, "xb") as file:
            made = True
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        journal.fsync_directory(path.parent)
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        raise journal.write_error(path, error, option) from error


def finish(path: Path) -> Path:
    """Write ``cases.parquet`` from the journal; its path. Raises WriteError."""
    # Through memory, so that a full disk is met by write_bytes and not half-way by polars.
    buffer = io.BytesIO()
    frame(journal.read(path / JOURNAL).records).write_parquet(buffer)
    write_bytes(path / CASES, buffer.getvalue())
    return path / CASES


def frame(
    records: Iterable[Mapping[str, Any]], columns: Sequence[Column] = COLUMNS
) -> "polars.DataFrame":
    """The records as the table of pinstorm.schema, or as some of its columns."""
    import polars

    schema = polars_schema(columns)
    # Not strict: a value of an unforeseen type becomes null here and stays in the journal.
    return polars.DataFrame(
        [row(record, columns) for record in records], schema=schema, strict=False
    )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle. UsageError when it is none, half a one, damaged, or of a newer schema."""
    directory = Path(path)
    manifest_path, journal_path = directory / MANIFEST, directory / JOURNAL
    if not os.path.isdir(directory):
        raise UsageError(f"bundle {path} is no directory; name the directory that a run wrote")
    if not os.path.exists(manifest_path) and not os.path.exists(journal_path):
        raise UsageError(_no_bundle(directory))
    for file in (manifest_path, journal_path):
        if not os.path.exists(file):
            raise UsageError(f"bundle {path} is half a bundle, without {file.name}; run it again")
    manifest = read_manifest(directory)
    contents = journal.read(journal_path)
    for record in contents.records:
        if field := record_form.broken(record):
            raise UsageError(
                f"journal {journal_path} is damaged: {field} of case {record['case']} is not of "
                "the form that a run writes; copy the bundle again from where it was made"
            )
    return Bundle(directory, manifest, contents)


def read_manifest(directory: Path) -> dict[str, Any]:
    """``manifest.json`` of a bundle. UsageError when there is none, or one of a newer schema."""
    path = directory / MANIFEST
    if not os.path.exists(path):
        raise UsageError(f"bundle {directory} is half a bundle, without {MANIFEST}; run it again")
    manifest = _read_manifest(path)
    version = manifest.get("schema")
    if not isinstance(version, int):
        raise UsageError(f"{path} has no schema version; name a bundle that a run wrote")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"bundle {directory} has schema {version} and this pinstorm reads up to "
            f"{SCHEMA_VERSION}; use the newer pinstorm that wrote it"
        )
    return manifest


def from_lab(manifest: Mapping[str, Any]) -> bool:
    """Whether the host of a lab ran it, in guests of its own: there nobody else pins anything."""
    return "lab" in manifest


def check_resume(
    bundle: Bundle,
    suite_sha256: str,
    seed: int,
    kernel: str,
    only_glob: str | None = None,
    rounds: int | None = None,
) -> None:
    """Refuse to go on with a bundle of another suite, seed, selection, kernel or number of rounds.

    Compares ``suite.sha256``, ``suite.seed``, ``only``, ``kernel.release`` and ``suite.rounds`` of
    the manifest; rounds None are not compared. Raises UsageError.
    """
    suite = bundle.manifest.get("suite") or {}
    release = (bundle.manifest.get("kernel") or {}).get("release")
    for what, was, now in (
        ("the suite with sha256", str(suite.get("sha256"))[:12], suite_sha256[:12]),
        ("seed", suite.get("seed"), seed),
        ("--only", bundle.manifest.get("only"), only_glob),
        ("kernel", release, kernel),
        ("--rounds", rounds and suite.get("rounds"), rounds),
    ):
        if was != now:
            raise UsageError(
                f"cannot resume {bundle.path}: it was made with {what} {was}, not {now}; "
                "start a new run, or resume it as it was"
            )


def read_index(parent: Path) -> list[dict[str, Any]]:
    """The entries of ``index.json``; none where there is no such file.

    Raises UsageError when it is not what write_index() writes.
    """
    path = parent / INDEX
    try:
        index = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path} ({error}); {_NAME_ONE}") from None
    entries = index.get("bundles") if isinstance(index, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"{path} is no index of a lab run, without bundles; {_NAME_ONE}")
    for number, entry in enumerate(entries, 1):
        for key in ("kernel", "path"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise UsageError(f"{path} is damaged: bundle {number} has no {key}; {_NAME_ONE}")
    return entries


def write_index(parent: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write ``index.json`` of a lab run: one entry per kernel, as the caller has them.

    An entry has ``kernel`` (release), ``path`` (relative to ``parent``), ``exit_code`` and
    ``verdicts`` (verdict to count).
    """
    write_json(parent / INDEX, {"schema": SCHEMA_VERSION, "bundles": list(entries)})


def _make_directories(directory: Path) -> list[Path]:
    """Make the directory and its parents; those that were made, innermost first."""
    # os.path.exists: Path.exists raises for what lies below a directory that may not be searched.
    missing = [path for path in (directory, *directory.parents) if not os.path.exists(path)]
    made: list[Path] = []
    try:
        for path in reversed(missing):
            path.mkdir()
            made.insert(0, path)
    except OSError as error:
        _remove_directories(made)
        raise journal.write_error(directory, error) from error
    if not os.path.isdir(directory):
        raise UsageError(f"output directory {directory} is a file; choose another --out")
    return made


def _remove_directories(made: list[Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path} ({error}); name a bundle that a run wrote") from None
    if not isinstance(manifest, dict):
        raise UsageError(f"{path} is no manifest; name a bundle that a run wrote")
    return manifest


def _no_bundle(directory: Path) -> str:
    inner = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST}"))
    if inner:
        return f"{directory} holds several bundles; name one: {directory / inner[0]}" + (
            f" (or {', '.join(inner[1:])})" if inner[1:] else ""
        )
    return f"{directory} is no bundle, without {MANIFEST}; name the directory that a run wrote"
