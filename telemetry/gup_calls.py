"""The text of a GUP trace: calls and returns matched and added up, flags named. Pure functions.

The events are telemetry.gup_trace's; the form of their lines is that of tracefs' trace_pipe, see
Documentation/trace/ftrace.rst and Documentation/trace/kprobetrace.rst.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from errno import EOPNOTSUPP, errorcode
from typing import Any, Final, Literal

# include/linux/mm.h of v5.6 to v6.2. Since Linux kernel commit 2c2241081f7d ("mm/gup: move private
# gup FOLL_ flags to internal.h") (in v6.3) they are enumerators, with other values, which BTF has.
MACROS: Final[Mapping[str, int]] = {
    "FOLL_WRITE": 0x01,
    "FOLL_TOUCH": 0x02,
    "FOLL_GET": 0x04,
    "FOLL_DUMP": 0x08,
    "FOLL_FORCE": 0x10,
    "FOLL_NOWAIT": 0x20,
    "FOLL_NOFAULT": 0x80,
    "FOLL_HWPOISON": 0x100,
    "FOLL_MIGRATION": 0x400,
    "FOLL_TRIED": 0x800,
    "FOLL_REMOTE": 0x2000,
    "FOLL_ANON": 0x8000,
    "FOLL_LONGTERM": 0x10000,
    "FOLL_SPLIT_PMD": 0x20000,
    "FOLL_PIN": 0x40000,
    "FOLL_FAST_ONLY": 0x80000,
    "FOLL_PCI_P2PDMA": 0x100000,
    "FOLL_INTERRUPTIBLE": 0x200000,
}

By = Literal["process", "kernel-thread"]

# What the name of a return's event ends in.
RETURN: Final = "__ret"
_PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")

# comm may hold anything: what identifies a line is what follows it.
_LINE = re.compile(
    r"^ *(.+)-(\d+) +\[\d+\] \S+ +[\d.]+: (\w+): \((?:(\S+)(?: \[\w+\])? <- )?[^)]*\)(.*)$",
    re.MULTILINE,
)
_VALUE = re.compile(r"(\w+)=(\S+)")
# kernel/trace/trace.c, print_trace_line(): without a number where they could not be counted.
_LOST = re.compile(r"\[LOST (?:(\d+) )?EVENTS\]")


@dataclass(frozen=True, slots=True)
class Event:
    """One call or return of a traced function; ``values`` by name, ``caller`` of returns only."""

    pid: int
    comm: str
    function: str
    returned: bool
    caller: str | None
    values: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Lost:
    """So many events are missing here; None when nobody counted them. ``cause``: why."""

    events: int | None
    cause: str = "the kernel's trace buffer was full"


@dataclass(slots=True)
class Call:
    """Calls that are alike, added up.

    ``via``: the entry point that this function was called behind, None for the entry point itself.
    ``caller``: the kernel function that called the entry point. ``pages_returned`` adds up what
    was not negative: pages, for memfd_pin_folios folios, for hmm_range_fault, which returns 0, the
    pages of its range. ``unreturned``: calls whose return was not seen.
    """

    function: str
    flags: tuple[str, ...]
    via: str | None
    caller: str | None
    by: By
    calls: int = 0
    pages_asked: int = 0
    pages_returned: int = 0
    unreturned: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def to_json(self, phase: str) -> dict[str, Any]:
        """An entry of the record's ``gup_calls``."""
        message: dict[str, Any] = {
            "function": self.function,
            "flags": list(self.flags),
            "calls": self.calls,
            "pages_asked": self.pages_asked,
            "pages_returned": self.pages_returned,
            "caller": self.caller,
            "via": self.via,
            "by": self.by,
            "phase": phase,
        }
        if self.errors:
            message["errors"] = dict(self.errors)
        if self.unreturned:
            message["unreturned"] = self.unreturned
        return message


@dataclass(frozen=True, slots=True)
class Seen:
    """What one window's trace says. ``lost``: why it is not the whole truth, None when it is.

    ``only_unreturned``: what is lost are returns, as when the process was killed in the call.
    """

    calls: list[Call]
    lost: str | None
    only_unreturned: bool = False


def decode(flags: int, layout: Mapping[str, int]) -> tuple[str, ...]:
    """The names of the bits that are set, lowest first; a bit without a name as a hex word."""
    names = {value: name for name, value in layout.items()}
    bits = [1 << number for number in range(flags.bit_length()) if flags >> number & 1]
    return tuple(names.get(bit, hex(bit)) for bit in bits)


def parse(text: str) -> Iterator[Event | Lost]:
    """The lines of trace_pipe; what is no event of ours is passed over. Losses come last."""
    for match in _LINE.finditer(text):
        comm, pid, name, caller, values = match.groups()
        yield Event(
            pid=int(pid),
            comm=comm,
            function=name.removesuffix(RETURN),
            returned=name.endswith(RETURN),
            caller=_symbol(caller) if caller else None,
            values={key: int(value, 0) for key, value in _VALUE.findall(values)},
        )
    for lost in _LOST.finditer(text):
        yield Lost(int(lost[1]) if lost[1] else None)


def _symbol(caller: str) -> str | None:
    """Without offset and compiler's suffix; None for ``[unknown/kretprobe'd]``, a traced caller."""
    return None if caller.startswith("[") else caller.partition("+")[0].partition(".")[0]


def add_up(
    events: Iterable[Event | Lost], layout: Mapping[str, int], kernel_threads: frozenset[int]
) -> Seen:
    """Match calls with their returns, process by process, and add up those that are alike.

    A call that comes before the one above it has returned stands behind it. Returns of calls that
    began before the trace was on are passed over.
    """
    totals = _Totals(layout, kernel_threads)
    losses = []
    for event in events:
        if isinstance(event, Lost):
            losses.append(event)
        elif event.returned:
            totals.leave(event)
        else:
            totals.enter(event)
    calls, unreturned = totals.finish()
    if losses:
        return Seen(calls, _told(losses))
    if unreturned:
        return Seen(calls, f"{unreturned} calls were not seen to return", only_unreturned=True)
    return Seen(calls, None)


def _told(losses: Sequence[Lost]) -> str:
    """Why they are lost, and how many at least, cause by cause."""
    sentences = []
    for cause in dict.fromkeys(loss.cause for loss in losses):
        alike = [loss.events for loss in losses if loss.cause == cause]
        counted = sum(events or 0 for events in alike)
        least = "at least " if counted and None in alike else ""
        sentences.append(f"{cause}, {least}{counted or 'uncounted'} events were lost")
    return "; ".join(sentences)


@dataclass(slots=True)
class _Open:
    """A call that has not returned yet, and all that came before it did."""

    event: Event
    returned: int | None = None
    behind: list["_Open"] = field(default_factory=list)


class _Totals:
    def __init__(self, layout: Mapping[str, int], kernel_threads: frozenset[int]):
        self._layout = layout
        self._kernel_threads = kernel_threads
        self._open: dict[int, list[_Open]] = {}
        self._calls: dict[tuple[Any, ...], Call] = {}
        self._decoded: dict[int, tuple[str, ...]] = {}

    def enter(self, event: Event) -> None:
        stack = self._open.setdefault(event.pid, [])
        call = _Open(event)
        if stack:
            stack[0].behind.append(call)
        stack.append(call)

    def leave(self, event: Event) -> None:
        stack = self._open.get(event.pid, [])
        if all(call.event.function != event.function for call in stack):
            return
        while (call := stack.pop()).event.function != event.function:
            pass  # its return was missed
        call.returned = event.values["ret"]
        if not stack:
            self._count(call, None, event.caller)

    def finish(self) -> tuple[list[Call], int]:
        """All calls, and how many of the process tree's own were not seen to return.

        A kernel thread may be at work for somebody else when the trace is switched off.
        """
        for stack in self._open.values():
            if stack:
                self._count(stack[0], None, None)
        calls = list(self._calls.values())
        return calls, sum(call.unreturned for call in calls if call.by == "process")

    def _count(self, call: _Open, via: str | None, caller: str | None) -> None:
        event = call.event
        bits = event.values.get("flags", 0)
        if bits not in self._decoded:
            self._decoded[bits] = decode(bits, self._layout)
        by: By = "kernel-thread" if event.pid in self._kernel_threads else "process"
        key = event.function, bits, via, caller, by
        total = self._calls.get(key)
        if total is None:
            total = Call(event.function, self._decoded[bits], via, caller, by)
            self._calls[key] = total
        asked = _asked(event)
        total.calls += 1
        total.pages_asked += asked
        if call.returned is None:
            total.unreturned += 1
        elif call.returned < 0:
            name = _errno_name(-call.returned)
            total.errors[name] = total.errors.get(name, 0) + 1
        else:
            # hmm_range_fault() says 0 when it has faulted the whole range in.
            total.pages_returned += asked if event.function == "hmm_range_fault" else call.returned
        for behind in call.behind:
            self._count(behind, event.function, caller)


def _asked(event: Event) -> int:
    values = event.values
    if "pages" in values:
        return values["pages"]
    # hmm_range: end is the first byte behind; memfd_pin_folios: end is the last byte.
    last = values["end"] - (event.function == "hmm_range_fault")
    return last // _PAGE_BYTES - values["start"] // _PAGE_BYTES + 1


def _errno_name(number: int) -> str:
    return "EOPNOTSUPP" if number == EOPNOTSUPP else errorcode.get(number, f"errno-{number}")
