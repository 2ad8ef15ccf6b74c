"""journal.jsonl: what a run writes while it lives, one JSON object a line, each line fsynced.

``{"start": case, "seq": n, …}`` before a case, its record (with ``case`` and ``verdict``) after it,
``{"interrupted": case, "seq": n}`` when Ctrl-C came while it ran. So a machine that dies leaves
what was finished and the name of the case that was running. ``seq`` is the position in the whole
run, all rounds. The last line may be torn; any other line that is no line of a journal is an error.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pinstorm.errors import UsageError, WriteError


@dataclass(slots=True)
class JournalContents:
    """A journal as read back.

    ``started``: seq to start line, of the cases with neither a record nor an interruption after
    it. ``interrupted``: seq to the line, of the cases not run again since. ``torn_bytes``: length
    of the torn last line, 0 when there is none.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    started: dict[int, dict[str, Any]] = field(default_factory=dict)
    interrupted: dict[int, dict[str, Any]] = field(default_factory=dict)
    torn_bytes: int = 0

    @property
    def done(self) -> set[int]:
        """The seq of every case that has a record."""
        return {int(record["seq"]) for record in self.records}


class Journal:
    """The writing end. One process writes a journal at a time."""

    def __init__(self, path: Path, fd: int):
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "Journal":
        """A new journal; WriteError when there is one already."""
        return cls._open(Path(path), os.O_CREAT | os.O_EXCL)

    @classmethod
    def append_to(cls, path: str | os.PathLike[str]) -> "Journal":
        """Go on with a journal, after its torn line, if there is one, is cut off."""
        truncate_torn(path)
        return cls._open(Path(path), 0)

    @classmethod
    def _open(cls, path: Path, flags: int) -> "Journal":
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
            fsync_directory(path.parent)
        except OSError as error:
            raise write_error(path, error) from error
        return cls(path, fd)

    def start(self, seq: int, case_id: str, **more: Any) -> None:
        """Say that the case begins; ``more`` goes into the line, e.g. ``deadline_s``."""
        self._write({"start": case_id, "seq": seq, "t_ns": time.monotonic_ns(), **more})

    def record(self, record: dict[str, Any]) -> None:
        """Write a finished case; it must have ``case``, ``seq`` and ``verdict``."""
        _check_line(record)
        self._write(record)

    def interrupted(self, seq: int, case_id: str) -> None:
        """Say that the case was broken off by the person: --resume runs it again."""
        self._write({"interrupted": case_id, "seq": seq})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        size_before: int | None = None
        try:
            size_before = os.fstat(self._fd).st_size
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError as error:
            self._take_back(size_before)
            raise write_error(self.path, error) from error

    def _take_back(self, size_bytes: int | None) -> None:
        # A full disk takes half a line; without it the journal stays whole. When even this fails,
        # readers meet a torn last line, which they tolerate.
        if size_bytes is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size_bytes)


def read(path: str | os.PathLike[str]) -> JournalContents:
    """Read a whole journal.

    Raises UsageError when there is none and, with the line's number, when a line before the last
    is no line of a journal.
    """
    data = _read_bytes(Path(path))
    contents = JournalContents()
    end = 0
    for number, start, raw in _lines(data):
        try:
            line = parse(raw)
        except ValueError as error:
            if start + len(raw) + 1 >= len(data):
                break
            raise UsageError(
                f"journal {path} is damaged in line {number} ({error}); "
                "move the bundle away and run the suite again"
            ) from None
        _enter(contents, line)
        end = start + len(raw) + 1
    contents.torn_bytes = len(data) - end
    return contents


def truncate_torn(path: str | os.PathLike[str]) -> int:
    """Cut a torn last line off; the number of bytes that went."""
    torn_bytes = read(path).torn_bytes
    if torn_bytes:
        try:
            with open(path, "rb+") as file:
                file.truncate(os.fstat(file.fileno()).st_size - torn_bytes)
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(Path(path), error) from error
    return torn_bytes


def tail(path: str | os.PathLike[str], offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from ``offset`` on, and the offset to ask for next.

    For watching a journal that another process, or a guest, is writing. A journal that is not
    there yet has no lines. A line that cannot be parsed ends the answer: ``read`` says why.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    lines = []
    for _, start, raw in _lines(data):
        try:
            lines.append(parse(raw))
        except ValueError:
            return lines, offset + start
    return lines, offset + data.rfind(b"\n") + 1


def fsync_directory(path: Path) -> None:
    """Make a new name in a directory last. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # A file system without directory fsync says EINVAL; there is nothing more to be had.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def write_error(path: Path, error: OSError, option: str = "--out") -> WriteError:
    """The sentence for an operating system's refusal to write ``path``, which ``option`` gave."""
    another = f"choose another {option}"
    remedies = {
        errno.ENOSPC: f"free space there, or {another}",
        errno.EDQUOT: f"free space there, or {another}",
        errno.EIO: f"look for the device's error in the kernel log, or {another}",
        errno.EEXIST: f"it is there already: {another}, or --resume that bundle",
        errno.ENOENT: f"make the directory first, or {another}",
    }
    remedy = remedies.get(error.errno or 0, another)
    return WriteError(f"cannot write {path}: {os.strerror(error.errno or 0).lower()}; {remedy}")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"journal {path} is not there; name the bundle of a run") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise UsageError(
            f"cannot read journal {path}: {reason}; read it as a user who may"
        ) from error


def _lines(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, bytes without the newline) of every line that has its newline."""
    number, start = 1, 0
    while (end := data.find(b"\n", start)) >= 0:
        yield number, start, data[start:end]
        number, start = number + 1, end + 1


def parse(raw: bytes) -> dict[str, Any]:
    """One line, as an object. ValueError when it is no line of a journal."""
    try:
        line = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(line, dict):
        raise ValueError("not an object")
    _check_line(line)
    return line


def _check_line(line: dict[str, Any]) -> None:
    if not isinstance(line.get("seq"), int):
        raise ValueError("no seq")
    is_record = line.get("case") is not None and line.get("verdict") is not None
    if not (is_record or "start" in line or "interrupted" in line):
        raise ValueError("neither a start, an interruption nor a record")


def _enter(contents: JournalContents, line: dict[str, Any]) -> None:
    seq = line["seq"]
    if "start" in line:
        contents.started[seq] = line
        contents.interrupted.pop(seq, None)
    elif "interrupted" in line:
        contents.started.pop(seq, None)
        contents.interrupted[seq] = line
    else:
        contents.started.pop(seq, None)
        contents.records.append(line)
