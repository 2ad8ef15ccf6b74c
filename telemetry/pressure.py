"""/proc/pressure: how long tasks stood still for want of a CPU, memory or IO (PSI).

Machine-wide. ``total`` is monotonic, in ns here (the kernel prints microseconds); the averages are
percentages of the last 10, 60 and 300 seconds, levels. Since Linux 4.20; ``full`` of cpu is there
since 5.13 and always 0; the averages are brought up to date at each read (psi_show() in
kernel/sched/psi.c). With psi=0 on the command line, or CONFIG_PSI_DEFAULT_DISABLED, reading gives
EOPNOTSUPP. See Documentation/accounting/psi.rst.
"""

import contextlib
import os
from dataclasses import dataclass

PRESSURE = "/proc/pressure"
RESOURCES = ("cpu", "memory", "io")

_READ_BYTES = 512
_TOTAL = b" total="


@dataclass(frozen=True, slots=True)
class Stall:
    """``avg10`` and its like: percent of that many seconds; ``total_ns``: since boot."""

    avg10: float
    avg60: float
    avg300: float
    total_ns: int


@dataclass(frozen=True, slots=True)
class Pressure:
    """``some``: at least one task stood still; ``full``: all that had work. None: not printed."""

    some: Stall | None
    full: Stall | None


def parse(text: str) -> Pressure:
    lines = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        fields = dict(pair.split("=", 1) for pair in pairs)
        avg10, avg60, avg300 = (float(fields[name]) for name in ("avg10", "avg60", "avg300"))
        lines[kind] = Stall(avg10, avg60, avg300, total_ns=int(fields["total"]) * 1000)
    return Pressure(lines.get("some"), lines.get("full"))


def totals_ns(data: bytes) -> list[int]:
    """Of each line, ``some`` first, what it has in total: parse() without the averages."""
    return [int(line.rpartition(_TOTAL)[2]) * 1000 for line in data.splitlines()]


def read(resource: str) -> Pressure | None:
    """Of one of RESOURCES; None on a kernel without."""
    if (fd := open_file(resource)) is None:
        return None
    try:
        return parse(read_from(fd).decode("ascii"))
    finally:
        os.close(fd)


def open_file(resource: str) -> int | None:
    """A descriptor to be read again and again; None on a kernel without, or with PSI off."""
    try:
        fd = os.open(f"{PRESSURE}/{resource}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        read_from(fd)
        return fd
    os.close(fd)
    return None


def read_from(fd: int) -> bytes:
    return os.pread(fd, _READ_BYTES, 0)
