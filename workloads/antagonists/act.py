"""One act after the other, at the job's pace: what all antagonists have in common.

An act is short, or looks at ``work.stopped`` itself and ends early. Between acts the wait is cut
into pieces, so that an antagonist that acts once in a second ends as soon as the others.
"""

import errno
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from telemetry import cgroup, meminfo
from workloads import libc
from workloads.antagonists import antagonist_spec
from workloads.load.engine import Pace, Work
from workloads.memory import TOUCH_BYTE
from workloads.spec import MIB, PAGE_BYTES, CallFailed, PrepareFailed

# How long a wait goes on without a look at whether it is to stop.
LOOK_NS = 20_000_000
# As much is touched between two such looks: some milliseconds, emulated too.
PIECE_BYTES = MIB

_NOTED_AT_ONCE = 1024

Done = tuple[int, int]
"""The nanoseconds of an act, and the bytes it concerned."""


class Acting:
    """An engine whose ``act`` is called over and over; None from it: it is not over yet."""

    def __init__(self, work: Work, act: Callable[[], Done | None]):
        self._work = work
        self._act = act
        self._acts = 0
        self._rests_until_ns = 0
        self._latencies: list[int] = []

    @property
    def under_way(self) -> bool:
        """Whether the next call goes on with an act, and so does not wait for the pace."""
        return False

    def open(self) -> None:
        """An antagonist holds nothing for as long as the load lasts."""

    def run(self, until_ns: int) -> bool:
        work, count = self._work, self._work.job.count
        try:
            while not work.stopped:
                if count is not None and self._acts >= count:
                    return False
                if (now_ns := time.monotonic_ns()) >= until_ns:
                    break
                if self.under_way or self._may_begin(min(until_ns, now_ns + LOOK_NS), now_ns):
                    self._once()
        finally:
            self._note()
        return True

    def drain(self) -> None:
        """An act that ``run`` came back from is over."""

    def close(self) -> None:
        """What the acts need belongs to the owner."""

    def _may_begin(self, until_ns: int, now_ns: int) -> bool:
        if now_ns < self._rests_until_ns:
            time.sleep((min(until_ns, self._rests_until_ns) - now_ns) / 1e9)
            return False
        return self._work.pace.wait(until_ns)

    def _once(self) -> None:
        recorder = self._work.recorder
        if not self.under_way:
            self._work.pace.begun()
        try:
            done = self._act()
        except CallFailed as error:
            recorder.refuse(error)
            self._over()
            return
        if done is None:
            return
        elapsed_ns, size_bytes = done
        recorder.operations += 1
        recorder.bytes += size_bytes
        self._latencies.append(elapsed_ns)
        self._over()

    def _over(self) -> None:
        """An act has ended, well or not."""
        self._acts += 1
        if think_ns := self._work.pace.think_ns:
            self._rests_until_ns = time.monotonic_ns() + think_ns
        if len(self._latencies) >= _NOTED_AT_ONCE:
            self._note()

    def _note(self) -> None:
        self._work.recorder.note(self._work.job.workload, np.array(self._latencies, np.int64))
        self._latencies = []


def parameters(work: Work) -> Mapping[str, Any]:
    """The job's, and the antagonist's own where it gives none; PrepareFailed for one it lacks."""
    spec, given = antagonist_spec(work.job.workload), work.job.params
    for name, value in given.items():
        if name not in spec.params:
            raise PrepareFailed(f"{spec.name} has no parameter {name!r}: {spec.params}")
        if name in spec.choices and str(value) not in spec.choices[name]:
            raise PrepareFailed(f"{name} is {value!r}: give one of {', '.join(spec.choices[name])}")
    return {**spec.defaults, **given}


def take_own_pace(work: Work) -> None:
    """What disturbs the whole machine has a rate even where the job gives none."""
    if work.pace.unlimited:
        work.pace = Pace(antagonist_spec(work.job.workload).rate_ops_s)


def die_first() -> None:
    """When memory runs out all the same, the kernel is to kill this process and not the load's.

    It may be raised without any privilege, and ends with the process: proc(5), oom_score_adj.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def size_bytes(work: Work, granule_bytes: int = PAGE_BYTES) -> int:
    """The memory of this process of the job, in whole granules and at least one.

    PrepareFailed where all processes of the job together could take more than half of what is
    available: the machine is to remain usable.
    """
    size = asked_bytes(work, granule_bytes)
    most = size * antagonist_spec(work.job.workload).copies * work.job.processes
    if 2 * most > (left_bytes := available_bytes()):
        raise PrepareFailed(
            f"{work.job.workload} would take {most} bytes, more than half of the {left_bytes} that "
            "are available; give a smaller size"
        )
    return size


def asked_bytes(work: Work, granule_bytes: int = PAGE_BYTES) -> int:
    """The same, whatever is available."""
    return max(1, work.job.largest_bytes // granule_bytes) * granule_bytes


def available_bytes() -> int:
    """To the machine, or under the tightest memory cgroup of this process if that is less."""
    limit = cgroup.tightest(cgroup.memory_limits())
    available = meminfo.read().available_bytes or 0
    return available if limit is None else min(available, limit.available_bytes)


def touch(memory: memoryview, work: Work) -> bool:
    """Write to every page of it; False when it was told to stop on the way."""
    for start in range(0, len(memory), PIECE_BYTES):
        if work.stopped:
            return False
        piece = memory[start : start + PIECE_BYTES]
        piece[::PAGE_BYTES] = TOUCH_BYTE * -(-len(piece) // PAGE_BYTES)
    return True


def look(memory: memoryview, work: Work) -> bool:
    """The same, and only read."""
    for start in range(0, len(memory), PIECE_BYTES):
        if work.stopped:
            return False
        bytes(memory[start : start + PIECE_BYTES : PAGE_BYTES])
    return True


def own_memory(size_bytes: int, flags: int = 0, advice: int = libc.MADV_NOHUGEPAGE) -> int:
    """The address of private anonymous memory, writable and not touched yet; of base pages."""
    writable = libc.PROT_READ | libc.PROT_WRITE
    address = libc.mmap(0, size_bytes, writable, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | flags)
    try:
        libc.madvise(address, size_bytes, advice)
    except CallFailed as error:
        if error.errno != errno.EINVAL:  # a kernel without transparent huge pages
            raise
    return address


def fill(memory: memoryview, work: Work) -> None:
    """``touch`` in prepare; PrepareFailed when the load ends before it began."""
    if not touch(memory, work):
        raise PrepareFailed("the load was stopped before its memory was there")
