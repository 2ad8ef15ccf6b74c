"""/dev/kmsg: the kernel log, record by record.

Machine-wide (not per container), a ring buffer that forgets; each record has a sequence number
without gaps, so a loss is seen. Times are the kernel's log clock (local_clock, ns since boot, given
in µs): near CLOCK_MONOTONIC, not equal to it. Since Linux 3.5. With kernel.dmesg_restrict=1 opening
needs CAP_SYSLOG. See Documentation/ABI/testing/dev-kmsg.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

KMSG = "/dev/kmsg"
# Longer than any record: LOG_LINE_MAX is 1024, each byte may be escaped as \xNN, plus dictionary.
RECORD_BYTES = 16384

# How an oops begins: "%s: %04lx [#%d]" of __die_header() in arch/x86/kernel/dumpstack.c, and with a
# longer number in arch/arm64/kernel/traps.c. Before Linux 6.3 x86 does not say "Oops" of all traps.
DIE_HEADER = r":\ [0-9a-f]{4,16}\ \[\#\d+\]"
_SERIOUS = re.compile(
    rf"""\bWARNING:\ | \bBUG: | \bkernel\ BUG\ at | \bOops\b | \bKernel\ panic
    | general\ protection\ fault | [Uu]nable\ to\ handle\ (?:kernel|page\ fault)
    | \b(?:KASAN|KMSAN|KCSAN|KFENCE|UBSAN):
    | \bpossible\ (?:circular|recursive)\ locking | \binconsistent\ lock\ state
    | \bsuspicious\ RCU\ usage | \bpossible\ irq\ lock\ inversion | \bbad\ unlock\ balance
    | \bheld\ lock\ freed! | \block\ held\ when\ returning\ to\ user\ space
    | \brcu:\ INFO: | \bINFO:\ rcu\w*\ .*(?:stall|detected)
    | \bINFO:\ task\ .*\ blocked\ for\ more\ than | \bblocked\ for\ more\ than\ \d+\ seconds
    | {DIE_HEADER}
    | \bsoft\ lockup\b | \bhard\ LOCKUP\b | \brefcount_t: | \blist_(?:add|del)\ corruption
    """,
    re.VERBOSE,
)
# Where a report ends: oops_exit() prints the first, a stack dump the second, lockdep neither.
_REPORT_END = re.compile(r"---\[ end (?:trace|Kernel panic)|^\s*</TASK>")
REPORT_LINES = 60


@dataclass(frozen=True, slots=True)
class Line:
    """``level`` 0 (emergency) … 7 (debug); ``facility`` 0 is the kernel, others wrote to kmsg."""

    seq: int
    level: int
    t_ns: int
    text: str
    facility: int = 0

    def to_json(self) -> dict[str, int | str]:
        return {"seq": self.seq, "level": self.level, "t_ns": self.t_ns, "text": self.text}


def parse(record: str) -> Line:
    """One record as /dev/kmsg gives it; the dictionary lines that may follow it are dropped."""
    prefix, _, rest = record.partition(";")
    words = prefix.split(",")
    priority = int(words[0])
    text = rest.split("\n", 1)[0]
    return Line(int(words[1]), priority & 7, int(words[2]) * 1000, text, priority >> 3)


class KernelLog:
    """A position in the kernel log that only moves forward. ``lost``: records that were overwritten
    before they could be read."""

    def __init__(self, fd: int):
        self._fd = fd
        self._next: int | None = None
        self.lost = 0

    @classmethod
    def open(cls) -> "KernelLog | None":
        """Positioned after the newest record; None where the log may not be read."""
        try:
            fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        os.lseek(fd, 0, os.SEEK_END)
        return cls(fd)

    def since_last(self) -> list[Line]:
        """The records that came since open() or the last call, oldest first."""
        lines = self._drain(self._fd)
        for line in lines:
            if self._next is not None and line.seq > self._next:
                self.lost += line.seq - self._next
            self._next = line.seq + 1
        return lines

    def all_lines(self) -> list[Line]:
        """Everything the ring buffer still holds; does not move the position."""
        fd = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return self._drain(fd)
        finally:
            os.close(fd)

    def all_text(self) -> str:
        return "".join(f"{line.text}\n" for line in self.all_lines())

    @staticmethod
    def _drain(fd: int) -> list[Line]:
        lines: list[Line] = []
        while True:
            try:
                record = os.read(fd, RECORD_BYTES)
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                continue  # records were overwritten; the next read gives the oldest that is left
            if not record:
                return lines
            lines.append(parse(record.decode("utf-8", errors="replace")))

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serious(line: Line) -> bool:
    """Whether the kernel reports a defect of its own: WARNING, BUG, Oops, lockdep, a sanitizer, a
    stall, a hung task. What userspace wrote into the log does not count."""
    return line.facility == 0 and _SERIOUS.search(line.text) is not None


def suspicious(lines: Iterable[Line]) -> list[str]:
    """The reports in these lines: each serious line with what follows it, up to the end marker."""
    reports: list[list[str]] = []
    inside = False
    for line in lines:
        if not inside and serious(line):
            reports.append([])
            inside = True
        if inside and line.facility == 0:
            reports[-1].append(line.text)
            ended = _REPORT_END.search(line.text) is not None
            inside = not ended and len(reports[-1]) < REPORT_LINES
    return ["\n".join(report) for report in reports]
