"""Direct IO beside fio: the same file, the same blocks, the same depth.

fio is given the committed job files in fio/, ours the job that says the same. Both open one file,
which has no name, was written in full beforehand, and is given to fio as /proc/PID/fd/N.

CPU time is that of the process tree, user and system, as wait4(2) tells it from outside on both
sides. To start costs fio some 0.2 s of it and us little, which is no part of an IO: so it is the
difference between a run and a very short one, divided by the difference of their operations.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benches.engine_process import EngineProcess
from benches.pairs import BenchFailed, Benchmark, Sample, Side, order
from benches.session import Options, Report, run_pairs
from pinstorm.errors import UsageError
from pinstorm.units import format_bytes
from workloads import libc, scratch
from workloads.load.spec import Job
from workloads.load.target import LAID_OUT
from workloads.owner import Owner
from workloads.spec import Surroundings

JOB_FILES = Path(__file__).with_name("fio")
MIB = 1 << 20
LEAST_FILE_BYTES = 16 * MIB
_SHORT_S = 0.05
_SHORT_RUNS = 3
_BLOCK_BYTES = 4 * MIB
# Before each run of either side. fio leaves the device idle for 0.3 s as it starts, ours for 0.05,
# and a virtual machine's device has more to give after a rest (measured: 6 % after a second).
_REST_S = 1.0

BENCHMARKS = (
    Benchmark(
        "dio-randread-4k-psync-qd1",
        "IOPS",
        True,
        "one 4 KiB direct read at a time, beside fio's psync",
        "the device's latency: what a read costs the CPU is a small part of it",
        needs=("fio",),
    ),
    Benchmark(
        "dio-randread-4k-uring-qd32-fixed",
        "IOPS",
        True,
        "32 direct reads of 4 KiB in flight, buffers and file registered, beside fio's io_uring",
        "the device's queue: both keep it filled, and differ by what it waits for them",
        needs=("fio", "io_uring"),
    ),
    Benchmark(
        "dio-seqwrite-1m-uring-qd8",
        "MiB/s",
        True,
        "8 direct writes of 1 MiB in flight, one after the other, beside fio's io_uring",
        "the device's bandwidth, and what its host does with written data meanwhile",
        needs=("fio", "io_uring"),
    ),
)

_JOBS: dict[str, dict[str, Any]] = {
    "dio-randread-4k-psync-qd1": {
        "workload": "dio-read",
        "sizes": ((4096, 1.0),),
        "pattern": "random",
    },
    "dio-randread-4k-uring-qd32-fixed": {
        "workload": "dio-read-uring",
        "sizes": ((4096, 1.0),),
        "pattern": "random",
        "depth": 32,
        "registered": True,
    },
    "dio-seqwrite-1m-uring-qd8": {
        "workload": "dio-write-uring",
        "sizes": ((MIB, 1.0),),
        "pattern": "sequential",
        "read_percent": 0,
        "depth": 8,
    },
}


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a side: the CPU time is of the whole tree, start and end included."""

    operations: int
    bytes: int
    elapsed_ns: int
    tree_cpu_ns: int


def job_of(name: str, file_bytes: int) -> Job:
    """The job that says what the job file of that name says."""
    return Job(name, file_bytes=file_bytes, **_JOBS[name])


class Beside:
    """One benchmark on a file that is there: see benches.session.Comparison."""

    def __init__(self, benchmark: Benchmark, path: str, options: Options):
        self.benchmark = benchmark
        self._job = job_of(benchmark.name, options.file_bytes)
        self._path = path
        self._around = Surroundings(scratch={LAID_OUT: path})
        self._seconds = options.seconds
        self._short: dict[Side, Ran] = {}

    def warm_up(self) -> None:
        """Short runs of both, uncounted: what starting costs."""
        for side in order(0):
            runs = [self._ran(side, _SHORT_S) for _ in range(_SHORT_RUNS)]
            self._short[side] = min(runs, key=lambda ran: ran.tree_cpu_ns)

    def run(self, side: Side) -> Sample:
        time.sleep(_REST_S)
        ran = self._ran(side, self._seconds)
        return Sample(self._value(ran), cpu_per_operation(ran, self._short[side]))

    def profile(self) -> str:
        """Ours once more, under cProfile, which makes it slower."""
        with EngineProcess(self._job, self._around, profiled=True) as process:
            process.open()
            done = process.load(self._seconds)
            process.close()
        return done.profile

    def _value(self, ran: Ran) -> float:
        if not ran.operations:
            raise BenchFailed(
                f"nothing was done in {self._seconds:g} s: give it longer (--seconds)"
            )
        if self.benchmark.unit == "IOPS":
            return ran.operations / ran.elapsed_ns * 1e9
        return ran.bytes / MIB / ran.elapsed_ns * 1e9

    def _ran(self, side: Side, seconds: float) -> Ran:
        if side == "ours":
            return run_ours(self._job, self._around, seconds)
        return run_fio(JOB_FILES / f"{self.benchmark.name}.fio", self._path, seconds)


def run(chosen: Sequence[Benchmark], options: Options, report: Report) -> None:
    """All of them on one file."""
    with laid_out(options.scratch, options.file_bytes, report.note) as path:
        for benchmark in chosen:
            run_pairs(Beside(benchmark, path, options), options.pairs, report)


def profile(benchmark: Benchmark, options: Options, report: Report) -> str:
    with laid_out(options.scratch, options.file_bytes, report.note) as path:
        return Beside(benchmark, path, options).profile()


def cpu_per_operation(ran: Ran, short: Ran) -> float | None:
    """ns of CPU per operation, without what starting costs; None where the run was too short."""
    operations = ran.operations - short.operations
    cpu_ns = ran.tree_cpu_ns - short.tree_cpu_ns
    return cpu_ns / operations if operations > 0 and cpu_ns > 0 else None


def run_ours(job: Job, around: Surroundings, seconds: float) -> Ran:
    with EngineProcess(job, around) as process:
        process.open()
        done = process.load(seconds)
        process.close()
    return Ran(done.operations, done.bytes, done.elapsed_ns, process.tree_cpu_ns)


def run_fio(job_file: Path, path: str, seconds: float) -> Ran:
    """fio with a job file of one job; BenchFailed with its own words when it failed."""
    environment = {
        **os.environ,
        "BENCH_FILE": path,
        # fio takes whole numbers of a unit
        "BENCH_SECONDS": f"{round(seconds * 1e3)}ms",
    }
    with tempfile.TemporaryDirectory(prefix="pinstorm-bench-") as directory:
        output, errors = Path(directory) / "output", Path(directory) / "errors"
        command = [
            "fio",
            "--output-format=json",
            f"--output={output}",
            "--eta=never",
            str(job_file),
        ]
        with errors.open("wb") as stream:
            # In its own working directory, where it would leave what it leaves.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=environment,
                cwd=directory,
                start_new_session=True,
                preexec_fn=libc.die_with_parent,
            )
            cpu_ns, status = _wait(process)
        said = "; ".join(errors.read_text(errors="replace").split("\n")).strip("; ")
        try:
            # fio puts its warnings before the JSON
            text = output.read_text()
            (job,) = json.loads(text[text.index("{") :])["jobs"]
        except (OSError, ValueError, KeyError):
            raise BenchFailed(f"fio {job_file.name} ended with {status}: {said}") from None
    if status or job["error"]:
        raise BenchFailed(f"fio {job_file.name}: {os.strerror(job['error'])}: {said}")
    done = job["read"] if job["read"]["total_ios"] else job["write"]
    return Ran(done["total_ios"], done["io_bytes"], done["runtime"] * 1_000_000, cpu_ns)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """CPU time of the tree in ns, and the exit code; on an interruption the tree is ended."""
    try:
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return round((used.ru_utime + used.ru_stime) * 1e9), process.returncode


# -- the file -----------------------------------------------------------------------------------


@contextmanager
def laid_out(directory: Path, file_bytes: int, note: Callable[[str], None]) -> Iterator[str]:
    """A nameless file, written in full; its path below /proc. UsageError where it cannot be had."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < file_bytes + file_bytes // 10:
        raise UsageError(
            f"{directory} has {format_bytes(free_bytes)} free, the file of the benchmarks wants "
            f"{format_bytes(file_bytes)}: name another directory (--scratch) or a smaller file "
            "(--file-size)"
        )
    owner = Owner()
    try:
        fd = scratch.nameless_file(str(directory), owner)
        path = f"/proc/{os.getpid()}/fd/{fd}"
        _check_direct(path, directory)
        began_s = time.monotonic()
        _fill(fd, file_bytes)
        elapsed_s = time.monotonic() - began_s
        note(f"laid out {format_bytes(file_bytes)} below {directory} in {elapsed_s:.1f} s")
        yield path
    finally:
        owner.close()


def _check_direct(path: str, directory: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError as error:
        raise UsageError(
            f"{directory} does not take direct IO ({os.strerror(error.errno or 0)}): name a "
            "directory on ext4, xfs or btrfs (--scratch)"
        ) from error


def _fill(fd: int, file_bytes: int) -> None:
    """Random bytes, that nothing below makes less of them; then all of it on the device."""
    with suppress(OSError):
        # In one extent where there is room, as workloads.load.target has it.
        os.posix_fallocate(fd, 0, file_bytes)
    random = np.random.default_rng(1)
    for offset in range(0, file_bytes, _BLOCK_BYTES):
        data = random.bytes(min(_BLOCK_BYTES, file_bytes - offset))
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], offset + written)
    os.fsync(fd)
    # Else reads find pages that the kernel must look for, and drop, before each direct IO.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
