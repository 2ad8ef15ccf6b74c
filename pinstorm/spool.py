"""The sampler's files while a run lives: segments of plain lines, in a directory of the bundle.

A person can read them. The first word of a line says what it is::

    # pinstorm samples 1                       each segment begins so
    ! 8123456789 12 hold load/churn            from here on: t_ns, seq, phase, case (- is none)
    = vmstat nr_foll_pin_acquired~ pgmigrate_success      what a source's values are
    8123466790 vmstat 16384 0                  a reading: t_ns, source, its values (- is none)
    8123466890 process/4242 65536 -            the same, of one process

``~`` marks a figure that is not exact (telemetry.vmstat). The mark in force and the headers stand
at the beginning of each segment, so that each can be read alone. A segment is written by one
process; its last line may be torn.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinstorm.errors import PinstormError, UsageError
from pinstorm.unpinned_file import UnpinnedFile

VERSION_LINE = b"# pinstorm samples 1\n"
NONE = "-"
INEXACT = "~"
SEGMENT_BYTES = 4 << 20

_SEGMENT = re.compile(r"^\d{6,}\.txt$")


@dataclass(frozen=True, slots=True)
class Mark:
    """What the readings from ``t_ns`` on belong to; None: to nothing.

    Readings of the moment between ``t_ns`` and the mark's arrival can stand before it.
    """

    t_ns: int
    seq: int | None = None
    phase: str | None = None
    case: str | None = None

    def line(self) -> bytes:
        words = (self.t_ns, self.seq, self.phase, self.case)
        said = [NONE if word is None else str(word).replace("\n", " ") for word in words]
        return f"! {' '.join(said)}\n".encode()

    @classmethod
    def parse(cls, line: bytes) -> "Mark":
        """ValueError when it is none."""
        _, t_ns, seq, phase, case = line.decode().split(" ", 4)
        known = [None if word == NONE else word for word in (phase, case)]
        return cls(int(t_ns), None if seq == NONE else int(seq), known[0], known[1])


# t_ns, source, process, values
_Note = tuple[int, str, int | None, Sequence[int | None]]


def _time_of(note: _Note) -> int:
    return note[0]


class Spool:
    """The writing end. What cannot be written is given up, and ``error`` says why.

    ``limit_bytes``: of all segments, those of earlier samplers in the same directory included.
    ``halves``: how many times half of what was left of it has been used.
    """

    def __init__(self, directory: Path, limit_bytes: int, segment_bytes: int = SEGMENT_BYTES):
        self.directory = directory
        self.error: str | None = None
        self.halves = 0
        self._limit_bytes = limit_bytes
        self._segment_bytes = segment_bytes
        earlier = segments(directory)
        self.bytes = sum(path.stat().st_size for path in earlier)
        self._next_half = self.bytes + (limit_bytes - self.bytes) // 2
        self._number = int(earlier[-1].stem) if earlier else 0
        self._file: UnpinnedFile | None = None
        self._headers: list[bytes] = []
        self._mark = Mark(0)
        self._marks: list[Mark] = []
        self._pending: list[_Note] = []

    def mark(self, mark: Mark) -> None:
        """The readings from its time on belong to it. Marks come in the order of their times."""
        self._marks.append(mark)

    def describe(self, source: str, keys: Sequence[str]) -> None:
        """What the values of a source's readings are. Once, before the first of them."""
        self._headers.append(f"= {source} {' '.join(keys)}\n".encode())

    def note(self, t_ns: int, source: str, pid: int | None, values: Sequence[int | None]) -> None:
        """One reading, of the process if there is one. ``flush`` writes it."""
        self._pending.append((t_ns, source, pid, values))

    def flush(self) -> None:
        """Give all that was noted to the kernel: it is then readable, and outlives this process.

        The lines are in the order of their times, as far as they came so.
        """
        pending, self._pending = sorted(self._pending, key=_time_of), []
        if self.error is not None:
            return
        try:
            file = self._file or self._begin_segment()
            self._write(file, b"".join(self._lines(pending)))
            if file.size >= self._segment_bytes:
                self._begin_segment()
        except OSError as error:
            self.error = f"cannot write {self.directory}: {os.strerror(error.errno or 0).lower()}"
        while self.bytes >= self._next_half and self._next_half < self._limit_bytes:
            self.halves += 1
            self._next_half += max(1, (self._limit_bytes - self._next_half) // 2)

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lines(self, pending: Iterable[_Note]) -> Iterator[bytes]:
        for t_ns, source, pid, values in pending:
            while self._marks and self._marks[0].t_ns <= t_ns:
                yield self._next_mark()
            who = source if pid is None else f"{source}/{pid}"
            words = " ".join([NONE if value is None else str(value) for value in values])
            yield f"{t_ns} {who} {words}\n".encode()
        while self._marks:
            yield self._next_mark()

    def _next_mark(self) -> bytes:
        self._mark = self._marks.pop(0)
        return self._mark.line()

    def _begin_segment(self) -> UnpinnedFile:
        """Open the next one, with the mark and the headers that are in force."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._number += 1
        file = UnpinnedFile(self.directory / f"{self._number:06}.txt", new=True)
        self._file = file
        self._write(file, b"".join([VERSION_LINE, self._mark.line(), *self._headers]))
        return file

    def _write(self, file: UnpinnedFile, data: bytes) -> None:
        if self.bytes + len(data) > self._limit_bytes:
            self.error = f"{self.directory} is full with {self.bytes} bytes"
            return
        file.write(data)
        self.bytes += len(data)


def segments(directory: Path) -> list[Path]:
    """In the order in which they were written; none where there is no such directory."""
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(directory) if _SEGMENT.match(name)]
        return [directory / name for name in sorted(names, key=lambda name: int(name[:-4]))]
    return []


@dataclass(frozen=True, slots=True)
class Head:
    """What readings have in common: ``keys`` of their values as in the header, and the mark."""

    source: str
    keys: tuple[str, ...]
    mark: Mark


def lines(path: Path) -> Iterator[tuple[Head, bytes]]:
    """Each whole reading of a segment, without its newline.

    Raises UsageError, with the line's number, for one that is none; a torn last line is no line.
    """
    headers: dict[bytes, tuple[str, ...]] = {}
    heads: dict[bytes, Head] = {}
    mark = Mark(0)
    for number, line in enumerate(_whole_lines(path), 1):
        kind = line[:1]
        try:
            if kind.isdigit():
                _, word, values = line.split(b" ", 2)
                source = word.partition(b"/")[0]
                if source not in heads:
                    heads[source] = Head(source.decode(), headers[source], mark)
                head = heads[source]
                if values.count(b" ") + 1 != len(head.keys):
                    raise ValueError(f"{len(head.keys)} values expected")
                yield head, line
            elif kind == b"=":
                _, source, *keys = line.split(b" ")
                headers[source] = tuple(key.decode() for key in keys)
                heads.pop(source, None)
            elif kind == b"!":
                mark = Mark.parse(line)
                heads.clear()
            elif kind != b"#" or line + b"\n" != VERSION_LINE:
                raise ValueError("no line of this version")
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"{path} is damaged in line {number} ({error}); "
                "move it out of the bundle to read the others"
            ) from None


def _whole_lines(path: Path) -> list[bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # finished meanwhile
        return []
    except OSError as error:
        raise PinstormError(
            f"cannot read {path}: {os.strerror(error.errno or 0).lower()}"
        ) from error
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
