"""Ours: one process of a job, driven as a load's leader drives it, with nothing else of a run.

The process is forked and serves workloads.load.worker.Worker over a channel, so what is measured
is the engine and the worker that turns it, and no copy of either.
"""

import cProfile
import gc
import io
import itertools
import mmap
import os
import pstats
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

import workloads
from benches.pairs import BenchFailed
from workloads import libc
from workloads.channel import Channel
from workloads.load.engine import Latencies, Recorder, Work
from workloads.load.spec import Job
from workloads.load.worker import Worker
from workloads.spec import Surroundings

# Between the order to begin and the beginning; what a process may be late with an answer.
_ENTER_NS = 20_000_000
_GRACE_NS = 60_000_000_000
_PROFILE_LINES = 30

# Another order of blocks in each run, as fio's randrepeat=0.
_seeds = itertools.count(1)


class ExactRecorder(Recorder):
    """Keeps every latency: a histogram's buckets are 0.8 % wide, the comparison is about 2 %."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, list[Latencies]] = {}

    def note(self, kind: str, latencies_ns: Latencies) -> None:
        self._kept.setdefault(kind, []).append(np.array(latencies_ns, np.int64))
        super().note(kind, latencies_ns)

    def take(self) -> dict[str, Any]:
        medians = {
            kind: float(np.median(np.concatenate(kept))) for kind, kept in self._kept.items()
        }
        self._kept = {}
        return {**super().take(), "median_ns": medians}


class _ProfiledWorker(Worker):
    """Sends a profile of the load itself, without memory, files and devices."""

    def _load(self, message: Mapping[str, Any]) -> int:
        profile = cProfile.Profile()
        try:
            return profile.runcall(super()._load, message)
        finally:
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(_PROFILE_LINES)
            self._channel.send(profile=text.getvalue())


@dataclass(slots=True)
class Done:
    """What a load did, from ``began_ns`` until the last of it was back.

    ``loop_cpu_ns``: of the process while it worked; ``median_ns`` by kind: of the interval with the
    most operations, only with an ExactRecorder.
    """

    began_ns: int = 0
    ended_ns: int = 0
    operations: int = 0
    bytes: int = 0
    loop_cpu_ns: int = 0
    median_ns: dict[str, float] = field(default_factory=dict)
    profile: str = ""
    _most: int = 0

    @property
    def elapsed_ns(self) -> int:
        return self.ended_ns - self.began_ns

    def require(self) -> Self:
        """BenchFailed when it did nothing, as on a busy machine in a very short time."""
        if not self.operations:
            elapsed_s = self.elapsed_ns / 1e9
            raise BenchFailed(f"ours did nothing in {elapsed_s:g} s: give it longer (--seconds)")
        return self

    def add(self, interval: Mapping[str, Any]) -> None:
        """An interval's figures, as the worker tells them."""
        begin_ns, end_ns = interval["t_ns"]
        self.began_ns = self.began_ns or begin_ns
        self.ended_ns = max(self.ended_ns, end_ns)
        self.operations += interval["operations"]
        self.bytes += interval["bytes"]
        self.loop_cpu_ns += interval["cpu_ns"]
        if interval["operations"] > self._most:
            self._most = interval["operations"]
            self.median_ns = interval.get("median_ns", {})


class EngineProcess:
    """A forked process of a job. Use as a context manager: at its end the process is gone.

    ``tree_cpu_ns``, known then: user and system time of the process and all that it waited for,
    from the fork to its end.
    """

    def __init__(
        self,
        job: Job,
        around: Surroundings | None = None,
        exact: bool = False,
        profiled: bool = False,
    ):
        self.job = job
        self.tree_cpu_ns = 0
        self._around = around or Surroundings()
        self._exact = exact
        self._worker = _ProfiledWorker if profiled else Worker
        self._stop = mmap.mmap(-1, mmap.PAGESIZE)
        self._seed = next(_seeds)

    def __enter__(self) -> Self:
        # Before the fork, as the leader does it: no import is part of a run.
        try:
            workloads.import_engine(self.job.workload)
        except ImportError as error:
            raise BenchFailed(f"the engine of {self.job.workload} is missing: {error}") from error
        gc.collect()
        gc.freeze()
        self._channel, theirs = Channel.pair()
        self.pid = os.fork()
        if self.pid == 0:
            self._serve(theirs)
        theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        if kind is not None:
            os.kill(self.pid, signal.SIGKILL)
        else:
            self._channel.send(go="end")
            while (message := self._channel.receive(_deadline(0))) is not None:
                if message.get("errors"):
                    raise BenchFailed(f"{self.job.name}: {'; '.join(message['errors'])}")
        self._channel.close()
        _, _, used = os.wait4(self.pid, 0)
        self.tree_cpu_ns = round((used.ru_utime + used.ru_stime) * 1e9)

    def open(self) -> None:
        """Prepare, and take what is held as long as the load lasts."""
        for step in ("prepare", "open"):
            self._channel.send(go=step)
            self._answer(step, Done(), 0)

    def load(self, seconds: float, interval_s: float = 1.0) -> Done:
        """Work for so long, telling figures each ``interval_s`` as in a run."""
        self.begin(seconds, interval_s)
        return self.done(seconds)

    def begin(self, seconds: float, interval_s: float) -> None:
        """The first half of ``load``, so that several processes can work at once."""
        begin_ns = time.monotonic_ns() + _ENTER_NS
        spans = [("hold", begin_ns, begin_ns + round(seconds * 1e9))]
        self._channel.send(go="load", spans=spans, interval_ns=round(interval_s * 1e9))

    def done(self, seconds: float) -> Done:
        """The second half: wait for its end."""
        done = Done()
        self._answer("load", done, seconds)
        return done

    def close(self) -> None:
        """Give back what ``open`` took."""
        self._channel.send(go="close")
        self._answer("close", Done(), 0)

    def _answer(self, step: str, done: Done, seconds: float) -> None:
        """Read until the step is done; its figures go to ``done``."""
        while True:
            try:
                message = self._channel.receive(_deadline(seconds))
            except TimeoutError:
                raise BenchFailed(f"{self.job.name}: no answer to {step}") from None
            if message is None:
                raise BenchFailed(f"{self.job.name}: its process ended in {step}")
            if "failed" in message:
                raise BenchFailed(f"{self.job.name}: {step} failed: {_told(message)}")
            if "interval" in message:
                done.add(message["interval"])
            elif "profile" in message:
                done.profile = message["profile"]
            else:
                return

    def _serve(self, theirs: socket.socket) -> None:
        code = 70
        try:
            # Ctrl-C goes to the whole group: the parent ends us then.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            libc.die_with_parent()
            self._channel.close()
            recorder = ExactRecorder() if self._exact else Recorder()
            work = Work(
                self.job,
                process=0,
                around=self._around,
                seed=self._seed,
                stop=self._stop,
                recorder=recorder,
            )
            self._worker(Channel(socket.socket(fileno=theirs.detach())), work).serve()
            code = 0
        finally:
            os._exit(code)


def _told(message: Mapping[str, Any]) -> str:
    if "errno" in message:
        said = [message["call"], os.strerror(message["errno"]), message.get("detail")]
        return ": ".join(filter(None, said))
    return str(message.get("error") or message.get("mismatch"))


def _deadline(seconds: float) -> int:
    return time.monotonic_ns() + round(seconds * 1e9) + _GRACE_NS
