"""/proc/PID/io: what a process had read and written, all its threads together.

Bytes, calls; monotonic; per process. ``read_bytes`` and ``write_bytes``: from and to storage,
direct IO at its submission; ``rchar`` and ``wchar``: through read() and write() and their like,
whether or not the page cache had it. Needs the right to trace the process. Since Linux 2.6.20, with
CONFIG_TASK_IO_ACCOUNTING. See Documentation/filesystems/proc.rst.
"""

import os
from dataclasses import dataclass

from telemetry.vmstat import value_of

_READ_BYTES = 512


@dataclass(frozen=True, slots=True)
class Io:
    """None: this kernel does not print it."""

    rchar: int | None
    wchar: int | None
    read_calls: int | None
    write_calls: int | None
    read_bytes: int | None
    write_bytes: int | None


def parse(data: bytes) -> Io:
    names = ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes")
    return Io(*(value_of(b"\n" + data, f"\n{name}: ".encode()) for name in names))


def storage_bytes(data: bytes) -> tuple[int | None, int | None]:
    """read_bytes and write_bytes alone: parse() for whoever looks often."""
    return value_of(data, b"\nread_bytes: "), value_of(data, b"\nwrite_bytes: ")


def open_file(pid: int) -> int:
    """To be read again and again. PermissionError may come at the reading only."""
    return os.open(f"/proc/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)


def read_from(fd: int) -> bytes:
    """ProcessLookupError when the process is gone, PermissionError of another's."""
    return os.pread(fd, _READ_BYTES, 0)
