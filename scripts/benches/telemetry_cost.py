"""What telemetry costs: the same with it and without it, in alternation.

The load beside which the sampler is measured is the one that it can disturb most: registrations of
64 KiB one after the other, all CPU and no waiting, in one process whose maps, status and IO the
sampler reads. The same process works with and without it, in short slices, so that neither the
placement of its pages nor a slow change of the machine is taken for a cost.
"""

import contextlib
import cProfile
import io
import os
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benches.engine_process import EngineProcess
from benches.pairs import BenchFailed, Benchmark, Sample, Side, order
from benches.session import Options, Report, run_pairs
from pinstorm.sampling import Report as Sampled
from pinstorm.sampling import Sampling
from telemetry import vmstat
from workloads.load.spec import Job

_HZ = 100.0
# A pair of so many seconds is this many pairs of as much less: drift has less time.
_SLICES = 4
_LEAST_SLICE_S = 0.25
_PROFILE_CALLS = 10_000
_PROFILE_LINES = 20

BENCHMARKS = (
    Benchmark(
        "telemetry-snapshot",
        "us",
        False,
        "Counters.snapshot() beside the bare preads of stat_refresh and /proc/vmstat",
        "the kernel's fold over all CPUs and its printing of vmstat, the same on both sides",
        kind="telemetry",
        needs=("root",),
    ),
    Benchmark(
        "telemetry-sampler-100hz-loaded",
        "op/s",
        True,
        "registrations of 64 KiB in one process, with the sampler at 100 Hz and without",
        "a CPU that the sampler has for itself: with every CPU loaded its share comes off as well",
        kind="telemetry",
        needs=("io_uring",),
    ),
    Benchmark(
        "telemetry-sampler-100hz-loaded-cpus",
        "op/s",
        True,
        "the same with such a process for each CPU, so that the sampler takes its time from them",
        "the scheduler: one process more than CPUs",
        kind="telemetry",
        needs=("io_uring",),
    ),
    Benchmark(
        "telemetry-sampler-100hz-cpu",
        "% CPU",
        False,
        "CPU time of the sampler at 100 Hz beside that load, of one core, as the kernel counts it",
        "what each source costs the kernel to print; without it there is none, so no ratio",
        kind="telemetry",
        needs=("io_uring",),
    ),
)
_SNAPSHOT, _LOADED, _LOADED_CPUS, _CPU = BENCHMARKS


class Snapshots:
    """A snapshot, beside the system calls that it must make."""

    def __init__(self, benchmark: Benchmark, options: Options):
        self.benchmark = benchmark
        self.pairs, self._seconds = sliced(options)

    def warm_up(self) -> None:
        for side in order(0):
            self.run(side)

    def run(self, side: Side) -> Sample:
        seconds = self._seconds
        with contextlib.ExitStack() as opened:
            if side == "ours":
                counters = opened.enter_context(vmstat.Counters())
                return timed(lambda: counters.snapshot(per_node=False), seconds)
            refresh = os.open(vmstat.STAT_REFRESH, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, refresh)
            counted = os.open(vmstat.VMSTAT, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, counted)

            def bare() -> None:
                os.pread(refresh, 1, 0)
                os.pread(counted, vmstat.READ_BYTES, 0)

            return timed(bare, seconds)


def sliced(options: Options, slices: int = _SLICES) -> tuple[int, float]:
    """How many pairs, and of how many seconds each run is."""
    return options.pairs * slices, max(options.seconds / slices, _LEAST_SLICE_S)


def timed(call: Callable[[], object], seconds: float) -> Sample:
    """The median of the call's times in us, and the CPU time of one in ns."""
    taken = []
    clock = time.monotonic_ns
    until_ns = clock() + round(seconds * 1e9)
    cpu_ns = time.process_time_ns()
    while True:
        began_ns = clock()
        call()
        ended_ns = clock()
        taken.append(ended_ns - began_ns)
        if ended_ns >= until_ns:
            break
    cpu_ns = time.process_time_ns() - cpu_ns
    return Sample(sorted(taken)[len(taken) // 2] / 1e3, cpu_ns / len(taken))


class Loaded:
    """A load with and without the sampler; of its CPU time alone when that is asked for."""

    def __init__(self, benchmark: Benchmark, options: Options, processes: list[EngineProcess]):
        self.benchmark = benchmark
        self._options = options
        self._processes = processes
        # Its own CPU time is not compared with anything, and wants no slices.
        slices = 1 if benchmark is _CPU else _SLICES
        self.pairs, self._seconds = sliced(options, slices)
        self.sampled: Sampled | None = None

    def warm_up(self) -> None:
        self._work()

    def run(self, side: Side) -> Sample:
        if side == "peer":
            return Sample(0.0) if self.benchmark is _CPU else self._work()
        with sampler(self._options.scratch) as sampling:
            sampling.watch([process.pid for process in self._processes], [os.getpid()])
            assert sampling.pid is not None
            began_ns, cpu_ns = time.monotonic_ns(), cpu_of(sampling.pid)
            sample = self._work()
            cpu_ns = cpu_of(sampling.pid) - cpu_ns
            share = cpu_ns / (time.monotonic_ns() - began_ns)
            self.sampled = sampling.stop()
        if self.sampled.died:
            raise BenchFailed("the sampler died beside the load")
        return Sample(100 * share) if self.benchmark is _CPU else sample

    def _work(self) -> Sample:
        """All of them at once; the rate is their sum."""
        for process in self._processes:
            process.begin(self._seconds, self._seconds)
        done = [process.done(self._seconds).require() for process in self._processes]
        rate = sum(one.operations / one.elapsed_ns * 1e9 for one in done)
        operations = sum(one.operations for one in done)
        return Sample(rate, sum(one.loop_cpu_ns for one in done) / operations)


@contextmanager
def sampler(scratch: Path) -> Iterator[Sampling]:
    """A sampler at 100 Hz, with its files in a directory that goes with it."""
    directory = Path(tempfile.mkdtemp(prefix="pinstorm-bench-", dir=scratch))
    sampling = Sampling(directory, hz=_HZ, device=None)
    try:
        sampling.start()
        yield sampling
    finally:
        sampling.close()
        shutil.rmtree(directory, ignore_errors=True)


def cpu_of(pid: int) -> int:
    """CPU time of another process, user and system, in ns: its CPU clock, clock_getcpuclockid(3).

    CPUCLOCK_SCHED of the process, include/linux/posix-timers_types.h: exact, where /proc/PID/stat
    counts ticks.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


@contextmanager
def loading(benchmark: Benchmark) -> Iterator[list[EngineProcess]]:
    """Processes that are ready to register: one, or one for each CPU."""
    count = len(os.sched_getaffinity(0)) if benchmark is _LOADED_CPUS else 1
    job = Job(benchmark.name, "io-uring-register", sizes=((64 << 10, 1.0),))
    with contextlib.ExitStack() as opened:
        processes = [opened.enter_context(EngineProcess(job)) for _ in range(count)]
        for process in processes:
            process.open()
        yield processes
        for process in processes:
            process.close()


def run(chosen: Sequence[Benchmark], options: Options, report: Report) -> None:
    for benchmark in chosen:
        if benchmark is _SNAPSHOT:
            snapshots = Snapshots(benchmark, options)
            run_pairs(snapshots, snapshots.pairs, report)
            continue
        try:
            with loading(benchmark) as processes:
                loaded = Loaded(benchmark, options, processes)
                run_pairs(loaded, loaded.pairs, report)
        except BenchFailed as error:
            report.failed(benchmark, str(error))
            continue
        if benchmark is _CPU and loaded.sampled is not None:
            report.note(f"by its own account {100 * loaded.sampled.cost['share']:.2f} % of a core")


def profile(benchmark: Benchmark, options: Options, report: Report) -> str:
    """Of a snapshot as Python sees it; of the sampler what each source costs it."""
    if benchmark is _SNAPSHOT:
        return _profile_of_snapshots()
    with loading(benchmark) as processes:
        loaded = Loaded(benchmark, options, processes)
        loaded.run("ours")
    assert loaded.sampled is not None
    return by_source(loaded.sampled)


def _profile_of_snapshots() -> str:
    profiled, text = cProfile.Profile(), io.StringIO()
    with vmstat.Counters() as counters, profiled:
        for _ in range(_PROFILE_CALLS):
            counters.snapshot(per_node=False)
    pstats.Stats(profiled, stream=text).sort_stats("tottime").print_stats(_PROFILE_LINES)
    return text.getvalue()


def by_source(sampled: Sampled) -> str:
    """What each source costs of a core, the dearest first."""
    rows = [
        (about["hz_got"] * about["ns_per_reading"] / 1e7, name, about)
        for name, about in sampled.sources.items()
        if about["readings"]
    ]
    lines = ["  % of a core  readings/s  us each  source"]
    for share, name, about in sorted(rows, key=lambda row: row[0], reverse=True):
        each_us = about["ns_per_reading"] / 1e3
        lines.append(f"{share:13.3f}  {about['hz_got']:10.1f}  {each_us:7.1f}  {name}")
    return "\n".join(lines)
