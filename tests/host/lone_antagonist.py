"""One antagonist in a process of its own, turned as a load's worker turns it: for tests.

Imported by the host tests and, in a guest, by tests/lab/antagonists_guest.py.
"""

import contextlib
import mmap
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import workloads
from telemetry import vmstat
from workloads import libc
from workloads.channel import Channel
from workloads.load.engine import Engine, Pace, Recorder, Work
from workloads.load.spec import Job
from workloads.owner import Owner
from workloads.spec import MIB, Surroundings

DEADLINE_S = 60.0
# Nothing ends by its interval: an antagonist that is told to stop must notice by itself.
_INTERVAL_NS = 3600 * 10**9
_NONE: dict[str, Any] = {"buckets": []}


class Antagonist:
    """It runs from ``start`` on; ``stop`` or its own count ends it. ``done``: what it did."""

    def __init__(self, job: Job, around: Surroundings | None = None):
        self._stop = mmap.mmap(-1, mmap.PAGESIZE)
        recorder = Recorder(allowed=job.allowed)
        pace = Pace(job.rate_ops_s, job.think_ns)
        self._work = Work(job, 0, around or Surroundings(), 1, self._stop, recorder, pace)
        ours, theirs = Channel.pair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            self._be_worker(Channel(theirs))
        theirs.close()
        self._channel = ours
        self._ended = False
        self._expect("ready")

    def start(self) -> None:
        self._channel.send(go=True)

    def stop(self) -> None:
        self._stop[0] = 1

    def done(self) -> dict[str, Any]:
        """Operations, bytes, faults of the process, what it could not give back. Waits for it."""
        answer = self._expect("operations")
        self._reap()
        return answer

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        if not self._ended:
            self._ended = True
            os.waitpid(self.pid, 0)
            self._channel.close()

    def _expect(self, key: str) -> dict[str, Any]:
        try:
            message = self._channel.receive(time.monotonic_ns() + round(DEADLINE_S * 1e9))
        except TimeoutError as error:
            raise RuntimeError(f"the antagonist has not ended in {DEADLINE_S} s") from error
        if message is None or key not in message:
            self._reap()
            raise RuntimeError(f"the antagonist failed: {message}")
        return message

    def _be_worker(self, channel: Channel) -> None:
        try:
            libc.die_with_parent()
            owner = Owner()
            try:
                answer = self._serve(channel, owner)
            except Exception as error:  # the test judges it
                answer = {"failed": f"{type(error).__name__}: {error}"}
            owner.close()
            channel.send(**answer, errors=owner.errors, children=_children())
        finally:
            os._exit(0)

    def _serve(self, channel: Channel, owner: Owner) -> dict[str, Any]:
        job, work = self._work.job, self._work
        engine: Engine = workloads.import_engine(job.workload).prepare(work, owner)
        engine.open()
        channel.send(ready=True)
        channel.receive()
        before = resource.getrusage(resource.RUSAGE_SELF)
        work.pace.restart()
        more = engine.run(time.monotonic_ns() + _INTERVAL_NS)
        after = resource.getrusage(resource.RUSAGE_SELF)
        engine.drain()
        engine.close()
        took = work.recorder.take()
        return {
            "operations": took["operations"],
            "bytes": took["bytes"],
            "refused": took["refused"],
            "latencies": sum(
                count for _, count in took["latency"].get(job.workload, _NONE)["buckets"]
            ),
            "more": more,
            "minor_faults": after.ru_minflt - before.ru_minflt,
            "major_faults": after.ru_majflt - before.ru_majflt,
            "peak_bytes": after.ru_maxrss * 1024,
            "childrens_minor_faults": resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt,
        }


def _children() -> int:
    """Of this process, dead ones that nobody waited for included."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return 1
    return 0


def job(name: str, size_bytes: int = 4 * MIB, **given: Any) -> Job:
    return Job(name, name, sizes=((size_bytes, 1.0),), **given)


@contextmanager
def running(one: Job, around: Surroundings | None = None) -> Iterator[Antagonist]:
    """Started, and gone at the end whatever the test did."""
    antagonist = Antagonist(one, around)
    try:
        antagonist.start()
        yield antagonist
    finally:
        with contextlib.suppress(ProcessLookupError):
            if not antagonist._ended:
                antagonist.kill()


def run(one: Job, around: Surroundings | None = None) -> dict[str, Any]:
    """All acts of a job with a count."""
    with running(one, around) as antagonist:
        return antagonist.done()


def counters() -> Counter[str]:
    """/proc/vmstat, folded where that is permitted."""
    with contextlib.suppress(OSError), open(vmstat.STAT_REFRESH, "rb") as file:
        file.read()
    with open(vmstat.VMSTAT, "rb") as file:
        return Counter(vmstat.parse(file.read()))


def rise(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """What each counter rose by, where it did."""
    return {name: after[name] - before[name] for name in after if after[name] > before[name]}
