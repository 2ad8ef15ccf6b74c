"""/proc/PID/stat: the CPU time and the page faults of a process, all its threads together.

CPU times in ns here; the kernel prints clock ticks (USER_HZ, 10 ms), so each is up to one tick
short. Monotonic; per process; threads that ended are included, children are not. Since Linux 1.x;
the rest of the line is not needed here (its VmRSS is the one of process_status). The second field
is the program's name in parentheses, which may hold spaces and parentheses itself. See
Documentation/filesystems/proc.rst, table 1-4.
"""

import os
from dataclasses import dataclass

_READ_BYTES = 4096
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

# Positions after the name, whose own is 1 of the kernel's 52: state, ppid, …
_STATE, _MINOR, _MAJOR, _USER, _SYSTEM, _THREADS = 0, 7, 9, 11, 12, 17


@dataclass(frozen=True, slots=True)
class Usage:
    """``state``: R, S, D, Z, …; faults: minor without, major with a read from a device."""

    state: str
    minor_faults: int
    major_faults: int
    user_ns: int
    system_ns: int
    threads: int


def parse(data: bytes) -> Usage:
    fields = data[data.rindex(b")") + 2 :].split(None, _THREADS + 1)
    return Usage(
        state=fields[_STATE].decode("ascii"),
        minor_faults=int(fields[_MINOR]),
        major_faults=int(fields[_MAJOR]),
        user_ns=int(fields[_USER]) * _TICK_NS,
        system_ns=int(fields[_SYSTEM]) * _TICK_NS,
        threads=int(fields[_THREADS]),
    )


def read_fields(pid: int) -> list[str]:
    """All behind the name, ``state`` first. FileNotFoundError, ProcessLookupError when gone."""
    with open(_path(pid), encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def open_file(pid: int) -> int:
    """To be read again and again; it stays that process's, whoever gets its number later."""
    return os.open(_path(pid), os.O_RDONLY | os.O_CLOEXEC)


def read_from(fd: int) -> bytes:
    """ProcessLookupError when the process is gone."""
    return os.pread(fd, _READ_BYTES, 0)


def _path(pid: int) -> str:
    return f"/proc/{pid}/stat"
