"""One process of a job: it makes its memory, turns its engine, and tells what it did.

Forked by the leader before any memory is made. It works from one interval to the next and sends the
figures of each; between them nothing is said, so that nothing of ours is in the way of the work.
"""

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import workloads
from workloads import libc, user
from workloads.channel import Channel
from workloads.load.engine import Engine, Mismatch, Work
from workloads.load.spec import Job
from workloads.owner import Owner
from workloads.spec import CallFailed, PrepareFailed

# Between two looks at the stop byte where an interval is longer: an engine that waits for its pace
# may sleep all the time that it is given.
_PATIENCE_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a load in which figures are taken every ``interval_ns``; on CLOCK_MONOTONIC."""

    phase: str
    begin_ns: int
    end_ns: int

    def ends(self, interval_ns: int) -> Iterator[int]:
        """When each of its intervals is over."""
        yield from range(self.begin_ns + interval_ns, self.end_ns, interval_ns)
        if self.end_ns > self.begin_ns:
            yield self.end_ns


class Worker:
    """Serves the leader until it says end, or is gone."""

    def __init__(self, channel: Channel, work: Work):
        self._channel = channel
        self._work = work
        self._owner = Owner()
        self._engine: Engine | None = None

    def serve(self) -> None:
        """Never raises: what goes wrong is an answer."""
        try:
            while (message := self._channel.receive()) is not None and message["go"] != "end":
                self._answer(message)
        except ConnectionError:
            pass
        finally:
            if self._engine is not None:
                # The leader may have gone without a word: what was opened is given back anyway.
                with suppress(Exception):
                    self._engine.close()
            self._owner.close()
        with suppress(ConnectionError):
            self._channel.send(ended=True, errors=self._owner.errors)

    def _answer(self, message: Mapping[str, Any]) -> None:
        step = message["go"]
        try:
            took_ns = getattr(self, f"_{step}")(message)
        except CallFailed as error:
            self._channel.send(
                failed=step,
                call=error.call,
                errno=error.errno,
                detail=error.detail,
                elapsed_ns=error.elapsed_ns,
            )
        except Mismatch as error:
            self._channel.send(failed=step, mismatch=str(error))
        except Exception as error:  # whatever a driver's library raises: the record says it
            told = str(error) if isinstance(error, PrepareFailed) else repr(error)
            self._channel.send(failed=step, error=told)
        else:
            self._channel.send(done=step, ns=took_ns)

    # -- the steps -----------------------------------------------------------------------------

    def _prepare(self, message: Mapping[str, Any]) -> int:
        job = self._work.job
        _place(job, self._work.process)
        module = workloads.import_engine(job.workload)
        if job.uid is not None or job.memlock_bytes is not None:
            user.become(workloads.job_case(job))
        self._engine = module.prepare(self._work, self._owner)
        return 0

    def _open(self, message: Mapping[str, Any]) -> int:
        assert self._engine is not None
        began_ns = time.monotonic_ns()
        self._engine.open()
        return time.monotonic_ns() - began_ns

    def _load(self, message: Mapping[str, Any]) -> int:
        """Work through the spans; the figures of each interval are sent as they are taken."""
        assert self._engine is not None
        interval_ns = int(message["interval_ns"])
        spans = [Span(*span) for span in message["spans"]]
        _sleep_until(spans[0].begin_ns)
        self._work.pace.restart()
        gc.disable()
        try:
            all(self._span(span, interval_ns) for span in spans)
            # What was still in flight at the end is counted, and in no rate.
            with self._told("drain"):
                self._engine.drain()
        finally:
            gc.enable()
        return time.monotonic_ns() - spans[0].begin_ns

    def _span(self, span: Span, interval_ns: int) -> bool:
        """False once there is nothing left to do, or it is to stop."""
        assert self._engine is not None
        run, work = self._engine.run, self._work
        for number, end_ns in enumerate(span.ends(interval_ns)):
            if number and time.monotonic_ns() >= end_ns:
                continue  # one operation took longer than an interval, and this one too
            with self._told(span.phase, number):
                busy = run(min(end_ns, time.monotonic_ns() + _PATIENCE_NS))
                while busy and not work.stopped and time.monotonic_ns() < end_ns:
                    busy = run(min(end_ns, time.monotonic_ns() + _PATIENCE_NS))
            if not busy or work.stopped:
                return False
        return True

    @contextmanager
    def _told(self, phase: str, number: int = 0) -> Iterator[None]:
        """Tell what was done meanwhile, before a refusal too. ``number``: the interval's."""
        began_ns, cpu_ns = time.monotonic_ns(), time.process_time_ns()
        try:
            yield
        finally:
            self._channel.send(
                interval={
                    "phase": phase,
                    "number": number,
                    "t_ns": [began_ns, time.monotonic_ns()],
                    "cpu_ns": time.process_time_ns() - cpu_ns,
                    **self._work.recorder.take(),
                }
            )

    def _close(self, message: Mapping[str, Any]) -> int:
        assert self._engine is not None
        began_ns = time.monotonic_ns()
        engine, self._engine = self._engine, None
        engine.close()
        return time.monotonic_ns() - began_ns


def _place(job: Job, process: int) -> None:
    """The CPU and the node that the job asks for, one CPU for each process in turn."""
    if job.cpus:
        cpu = job.cpus[process % len(job.cpus)]
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            why, may_use = os.strerror(error.errno or 0).lower(), sorted(os.sched_getaffinity(0))
            raise PrepareFailed(
                f"CPU {cpu} cannot be used ({why}): name CPUs that this process may use, {may_use}"
            ) from error
    if job.node is not None:
        libc.take_memory_from(job.node)


def _sleep_until(moment_ns: int) -> None:
    while (left_ns := moment_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / 1e9)
