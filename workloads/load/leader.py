"""The leader of a load: the child that the runner knows, with a worker for each process of a job.

It does no work itself: it forks the workers, has all of them take each step at once, and hands
their figures on to the runner. The same interface as workloads.prepared, and ``load`` beside it.
"""

import mmap
import os
import select
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import workloads
from workloads.channel import Channel
from workloads.load.engine import Pace, Recorder, Work, pages_of
from workloads.load.spec import Job, Load
from workloads.load.target import require_room
from workloads.load.worker import Worker
from workloads.member import Member, fork
from workloads.spec import CallFailed, Case, Operation, PrepareFailed, Surroundings

# Between the order to begin and the beginning: more than a message takes, emulated too.
_ENTER_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class _Process:
    """A worker as the leader sees it; jobs, and the processes of each, count from 0."""

    job: int
    process: int
    member: Member

    def to_json(self) -> dict[str, int]:
        return {"job": self.job, "process": self.process, "pid": self.member.pid}


class Leader:
    """All processes of a load."""

    memory_ns = 0

    def __init__(self, case: Case, around: Surroundings):
        assert case.load is not None
        self.case = case
        self.errors: list[str] = []
        self._load: Load = case.load
        self._around = around
        self._stop: mmap.mmap | None = None
        self._workers: list[_Process] = []
        # Those that ended before they were told to; what they held went with them.
        self._gone: set[int] = set()
        self.operation: Operation = _Standing(self)

    def prepare(self) -> None:
        """Fork the workers; each makes its memory and its files. CallFailed or PrepareFailed."""
        # Before the fork, that no worker does it again; and so that a module is missed at once.
        for job in self._load.jobs:
            workloads.import_engine(job.workload)
        require_room(self._load.jobs, self._around)
        self._stop = mmap.mmap(-1, mmap.PAGESIZE)
        for number, job in enumerate(self._load.jobs):
            for process in range(job.processes):
                self._workers.append(self._fork(number, job, process))
        self.together("prepare")

    def members(self) -> list[dict[str, int]]:
        """``{"job", "process", "pid"}`` of each worker."""
        return [worker.to_json() for worker in self._workers]

    def together(self, step: str) -> int:
        """Have all take a step; the slowest one's ns. CallFailed, PrepareFailed of the first."""
        workers = [worker for worker in self._workers if worker.member.pid not in self._gone]
        for worker in workers:
            worker.member.tell(go=step)
        answers = [worker.member.answer() for worker in workers]
        slowest_ns = 0
        for worker, answer in zip(workers, answers, strict=True):
            self._raise_failure(worker, answer)
            slowest_ns = max(slowest_ns, int((answer or {}).get("ns", 0)))
        return slowest_ns

    def load(self, runner: Channel) -> dict[str, Any]:
        """Run the load; intervals go to the runner as they come. What ended it, and what failed."""
        load = self._load
        assert self._stop is not None
        self._stop[0] = 0
        begin_ns = time.monotonic_ns() + _ENTER_NS
        hold_ns = begin_ns + round(load.ramp_s * 1e9)
        end_ns = hold_ns + round(load.duration_s * 1e9)
        spans = [("ramp", begin_ns, hold_ns), ("hold", hold_ns, end_ns)]
        interval_ns = round(load.interval_s * 1e9)
        for worker in self._workers:
            with suppress(PrepareFailed):  # one that has ended is noticed as it is listened to
                worker.member.tell(go="load", spans=spans, interval_ns=interval_ns)
        failure, stopped = self._relay(runner)
        # All jobs may have had a count, or one of them a failure.
        ended_ns = time.monotonic_ns()
        return {
            "spans": {
                name: [begin, min(end, ended_ns)] for name, begin, end in spans if begin < ended_ns
            },
            "stopped": stopped,
            "failure": failure,
        }

    def region_bytes(self) -> tuple[int, int]:
        """Each job has memory of its own: there is no one range to tell."""
        return 0, 0

    def placement(self) -> None:
        return None

    def renew_memory(self) -> None:
        raise PrepareFailed("the memory of a load is not made anew")

    def disturb(self) -> int:
        raise PrepareFailed("a load is disturbed by its antagonists")

    def close(self) -> None:
        """All workers end, and are waited for; what they could not give back is told."""
        members = [worker.member for worker in self._workers]
        for member in members:
            with suppress(PrepareFailed):
                member.tell(go="end")
        for member in members:
            if member.pid not in self._gone:
                self.errors += member.last_words()
            member.channel.close()
            os.waitpid(member.pid, 0)
        self._workers = []

    # ------------------------------------------------------------------------------------------

    def _fork(self, number: int, job: Job, process: int) -> _Process:
        def serve(channel: Channel) -> None:
            Worker(channel, self._work(number, job, process)).serve()

        try:
            member = fork(serve, "load", [worker.member for worker in self._workers])
        except OSError as error:
            raise PrepareFailed(
                f"process {process + 1} of {job.processes} of job {job.name} could not be started "
                f"({os.strerror(error.errno or 0).lower()}): give fewer processes, or raise the "
                "limits of open files and processes (ulimit -n, ulimit -u)"
            ) from error
        return _Process(number, process, member)

    def _work(self, number: int, job: Job, process: int) -> Work:
        assert self._stop is not None
        share = 1 / job.processes
        rates = [job.rate_ops_s]
        if job.rate_pins_s is not None:
            rates.append(job.rate_pins_s / _mean_pages(job))
        rate = min((rate * share for rate in rates if rate is not None), default=None)
        return Work(
            job,
            process,
            self._around,
            seed=self._load.seed * 1_000_003 + number,
            stop=self._stop,
            recorder=Recorder(allowed=job.allowed),
            pace=Pace(rate, job.think_ns),
        )

    def _relay(self, runner: Channel) -> tuple[dict[str, Any] | None, str | None]:
        """Until every worker is done: the first failure, and who said stop if somebody did."""
        assert self._stop is not None
        working = {worker.member.channel.fileno(): worker for worker in self._workers}
        failure, stopped = None, None
        watched = select.poll()  # select() takes no descriptor beyond 1023
        for fileno in (runner.fileno(), *working):
            watched.register(fileno, select.POLLIN)
        while working:
            for fileno, _ in watched.poll():
                if fileno == runner.fileno():
                    message = runner.receive()
                    if message is None:
                        raise ConnectionError("the runner is gone")
                    stopped = str(message.get("why", "stopped"))
                    self._stop[0] = 1
                    continue
                worker = working[fileno]
                for answer in worker.member.channel.waiting():
                    if answer is not None and "interval" in answer:
                        numbers = {"job": worker.job, "process": worker.process}
                        runner.send(step="interval", **numbers, **answer["interval"])
                        continue
                    if answer is None:
                        self._gone.add(worker.member.pid)
                    failed = self._failure_of(worker, answer)
                    if failed is not None:
                        failure = failure or failed
                        self._stop[0] = 1
                    del working[fileno]
                    watched.unregister(fileno)
                    break
        return failure, stopped

    def _failure_of(
        self, worker: _Process, answer: Mapping[str, Any] | None
    ) -> dict[str, Any] | None:
        """What went wrong in a worker, with its job's name; None when nothing did."""
        who = {"job": self._load.jobs[worker.job].name, "process": worker.process}
        if answer is None:
            return {**who, "error": worker.member.ended_early}
        if "failed" not in answer:
            return None
        return {**who, **{name: value for name, value in answer.items() if name != "failed"}}

    def _raise_failure(self, worker: _Process, answer: Mapping[str, Any] | None) -> None:
        failed = self._failure_of(worker, answer)
        if failed is None:
            return
        where = f"job {failed['job']}"
        if "errno" in failed:
            told = "; ".join(filter(None, (where, failed["detail"])))
            error = CallFailed(failed["call"], failed["errno"], told, failed["elapsed_ns"])
            error.job, error.process = failed["job"], failed["process"]
            raise error
        raise PrepareFailed(f"{where}: {failed.get('error') or failed.get('mismatch')}")


class _Standing:
    """What a load holds from its acquire to its release: the part of it that is like any case."""

    def __init__(self, leader: Leader):
        self.done_bytes: int | None = None
        self._leader = leader

    def aim_at(self, region: Any) -> None:
        raise PrepareFailed("the memory of a load is not made anew")

    def acquire(self) -> int:
        return self._leader.together("open")

    def release(self) -> int:
        return self._leader.together("close")


def _mean_pages(job: Job) -> float:
    weights = sum(weight for _, weight in job.sizes)
    return sum(pages_of(size) * weight for size, weight in job.sizes) / weights
