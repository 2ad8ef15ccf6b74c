"""The pin counters: whether they are there, move, and can be folded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.sight import Sight
from pinstorm.units import format_pages
from telemetry import vmstat
from telemetry.vmstat import Counters
from workloads import libc
from workloads.spec import PAGE_BYTES, CallFailed

_WHY: Final = "acquired, held and leaked of every case; without them only outcomes are judged"
_EXACT: Final = "exact figures; without root each carries a bound"
_WRITES_BYTES: Final = 1 << 20


def findings(sight: Sight) -> Iterator[Finding]:
    with Counters() as counters:
        present = counters.snapshot(per_node=False).acquired is not None
        yield _present(present)
        yield _moving(counters, sight) if present else _still()
        yield _refresh(counters)


def _present(present: bool) -> Finding:
    names = "nr_foll_pin_acquired and nr_foll_pin_released"
    return Finding(
        "counters",
        Topic.COUNTERS,
        Status.OK if present else Status.MISSING,
        f"{names} are in {vmstat.VMSTAT}" if present else f"this kernel has no {names}",
        _WHY,
        None,
        {"present": present},
    )


def _still() -> Finding:
    seen = "there are no counters that could move"
    return Finding("counters-move", Topic.COUNTERS, Status.MISSING, seen, _WHY, None, {})


@dataclass(frozen=True, slots=True)
class _Moved:
    pinned: int
    acquired: int
    released: int


def _moving(counters: Counters, sight: Sight) -> Finding:
    """As the run's self-test: pages of our own are pinned inside a call, which gives them back."""
    if sight.run is not None:
        seen = f"not tried: a pinstorm run (pid {sight.run}) is under way, and counts all pins"
        return Finding("counters-move", Topic.COUNTERS, Status.LIMITED, seen, _WHY, None, {})
    try:
        moved = _pin(counters)
    except CallFailed as error:
        seen = f"not tried: {error.call} gave {os.strerror(error.errno)}"
        return Finding("counters-move", Topic.COUNTERS, Status.LIMITED, seen, _WHY, None, {})
    bound = counters.bound_pages
    least = moved.pinned - bound
    moves = moved.acquired >= least and moved.released >= least
    tolerance = f", of which a reading may lack {bound}" if bound else ""
    return Finding(
        "counters-move",
        Topic.COUNTERS,
        Status.OK if moves else Status.MISSING,
        f"{format_pages(moved.pinned)} pinned and given back{tolerance}: {moved.acquired} acquired,"
        f" {moved.released} released",
        _WHY,
        None,
        {"moving": moves},
        {"pinned": moved.pinned, "acquired": moved.acquired, "released": moved.released},
    )


def _pin(counters: Counters) -> _Moved:
    """process_vm_writev to ourselves, until the bound cannot hide it. CallFailed."""
    pages = _WRITES_BYTES // PAGE_BYTES
    calls = 1 + 2 * counters.bound_pages // pages
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
    source, target = (
        libc.mmap(0, _WRITES_BYTES, libc.PROT_READ | libc.PROT_WRITE, flags) for _ in range(2)
    )
    try:
        ours = libc.iovecs([(source, _WRITES_BYTES)])
        theirs = libc.iovecs([(target, _WRITES_BYTES)])
        before = counters.snapshot(per_node=False)
        for _ in range(calls):
            libc.check("process_vm_writev", libc.process_vm_writev(os.getpid(), ours, theirs))
        after = counters.snapshot(per_node=False)
    finally:
        libc.munmap(source, _WRITES_BYTES)
        libc.munmap(target, _WRITES_BYTES)
    return _Moved(
        calls * pages,
        (after.acquired or 0) - (before.acquired or 0),
        (after.released or 0) - (before.released or 0),
    )


def _refresh(counters: Counters) -> Finding:
    able = counters.refreshes
    seen = (
        "figures can be folded before each reading"
        if able
        else f"{vmstat.STAT_REFRESH} may not be read: figures are off by up to "
        f"{format_pages(counters.bound_pages)}"
    )
    return Finding(
        "counters-refresh",
        Topic.COUNTERS,
        Status.OK if able else Status.LIMITED,
        seen,
        _EXACT,
        None,
        {"refresh": able},
        {"bound_pages": counters.bound_pages},
        () if able else ("exact counters: run as root",),
    )
