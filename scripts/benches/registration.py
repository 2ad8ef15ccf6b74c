"""Registration beside small C programs (scripts/peers) that do nothing else.

What is compared is the calls' own time: the median of acquire plus the median of release, each
measured around the call alone, on the same kind of memory (see scripts/peers/churn.h). The CPU time
is of the loop, per pair of calls, and so what it costs us to be Python around them.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benches.engine_process import Done, EngineProcess
from benches.pairs import BenchFailed, Benchmark, Sample, Side, order
from benches.session import Options, Report, run_pairs
from workloads import libc
from workloads.load.spec import Job
from workloads.spec import Surroundings

PEERS = Path(__file__).parents[1] / "peers"
SIZES = {"64k": 64 << 10, "1m": 1 << 20, "64m": 64 << 20}
# Runs that are not counted; and a moment more than what the peer says it works.
_WARM_UP_S = 0.2
_GRACE_S = 60.0
_EMPTY_CALLS = 100_000

_LIMITS = {
    "64k": "the fixed cost of a call from Python, some hundred ns beside the kernel's work",
    "1m": "the kernel's work on 256 pages; the fixed cost is a few percent of it",
    "64m": "the kernel's work and the cache: 16384 pages, whose descriptors are 1 MiB",
}
_LAB = "; under emulation times are many times those of a machine, and so are Python's"


def _benchmark(kind: str, size: str) -> Benchmark:
    rdma = kind == "rdma"
    call = "ibv_reg_mr and ibv_dereg_mr" if rdma else "IORING_REGISTER_BUFFERS and UNREGISTER"
    return Benchmark(
        f"register-{kind}-{size}",
        "us",
        False,
        f"{call} of {size.upper()}, beside the same in C",
        _LIMITS[size] + (_LAB if rdma else ""),
        place="lab" if rdma else "host",
        needs=("compiler", "verbs", "lab") if rdma else ("compiler", "io_uring"),
    )


BENCHMARKS = tuple(_benchmark(kind, size) for kind in ("uring", "rdma") for size in SIZES)


def kind_and_size(name: str) -> tuple[str, int]:
    """``register-uring-64k`` -> ``uring``, 65536."""
    _, kind, size = name.split("-")
    return kind, SIZES[size]


def job_of(name: str) -> Job:
    kind, size_bytes = kind_and_size(name)
    workload = {"uring": "io-uring-register", "rdma": "rdma-register"}[kind]
    return Job(name, workload, "anon", sizes=((size_bytes, 1.0),))


def build(kind: str) -> None:
    """Make the peer where it is older than its source; BenchFailed with the compiler's words."""
    command = ["make", "-s", "-C", str(PEERS), f"register_{kind}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BenchFailed(f"{' '.join(command)} failed: {lines[0]}")


class Beside:
    """One benchmark: see benches.session.Comparison."""

    def __init__(self, benchmark: Benchmark, options: Options, around: Surroundings | None = None):
        self.benchmark = benchmark
        self._seconds = options.seconds
        self._around = around or Surroundings()

    def warm_up(self) -> None:
        for side in order(0):
            self._run(side, min(_WARM_UP_S, self._seconds))

    def run(self, side: Side) -> Sample:
        return self._run(side, self._seconds)

    def ours(self, seconds: float, profiled: bool = False) -> Done:
        job = job_of(self.benchmark.name)
        with EngineProcess(job, self._around, exact=True, profiled=profiled) as process:
            process.open()
            # One interval, so that its medians are those of the whole run.
            done = process.load(seconds, interval_s=seconds).require()
            process.close()
        return done

    def peer(self, seconds: float) -> dict[str, Any]:
        kind, size_bytes = kind_and_size(self.benchmark.name)
        device = [self._around.device or "none"] if kind == "rdma" else []
        return run_peer([str(PEERS / f"register_{kind}"), *device, str(size_bytes)], seconds)

    def _run(self, side: Side, seconds: float) -> Sample:
        if side == "peer":
            told = self.peer(seconds)
            took_ns = told["acquire_ns_median"] + told["release_ns_median"]
            return Sample(took_ns / 1e3, told["cpu_ns"] / told["pairs"])
        done = self.ours(seconds)
        took_ns = done.median_ns["acquire"] + done.median_ns["release"]
        return Sample(took_ns / 1e3, done.loop_cpu_ns / done.operations)


def run_peer(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """The JSON that a peer prints; BenchFailed with its own words."""
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            [*command, f"{seconds:g}"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds + _GRACE_S,
        )
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{program} did not end") from None
    if done.returncode:
        raise BenchFailed(f"{program} ended with {done.returncode}: {done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout)
    if not told["pairs"]:
        raise BenchFailed(f"{program} did nothing in {seconds:g} s: give it longer (--seconds)")
    return told


def run(chosen: Sequence[Benchmark], options: Options, report: Report) -> None:
    """Those of the host."""
    try:
        build("uring")
    except BenchFailed as error:
        for benchmark in chosen:
            report.failed(benchmark, str(error))
        return
    for benchmark in chosen:
        run_pairs(Beside(benchmark, options), options.pairs, report)


def profile(benchmark: Benchmark, options: Options, report: Report) -> str:
    """Where the time goes: what surrounds the kernel's work in each call, then cProfile's table."""
    build("uring")
    return profile_of(Beside(benchmark, options), options.seconds)


def profile_of(beside: Beside, seconds: float) -> str:
    fixed = fixed_cost(beside.ours(seconds).median_ns, beside.peer(seconds))
    return fixed + "\n" + beside.ours(seconds, profiled=True).profile


def fixed_cost(ours: dict[str, float], peer: dict[str, Any]) -> str:
    """What the timed part of a call costs us beside the kernel's work, piece by piece, in ns."""
    clock_ns = _median_ns(lambda: None)
    refused = libc.io_uring_register_call(-1, libc.IORING_UNREGISTER_BUFFERS, None, 0)
    rows = [
        *((f"{call}, ours", ours[call]) for call in ("acquire", "release")),
        *((f"{call}, peer", peer[f"{call}_ns_median"]) for call in ("acquire", "release")),
        ("two readings of the clock and a Python call between them", clock_ns),
        ("more, when that call is a refused io_uring_register", _median_ns(refused) - clock_ns),
    ]
    return "\n".join(f"{value:10,.0f} ns  {what}" for what, value in rows) + "\n"


def _median_ns(call: Callable[[], object]) -> float:
    """The median of many, as the engines time their calls."""
    taken = []
    for _ in range(_EMPTY_CALLS):
        began_ns = time.monotonic_ns()
        call()
        taken.append(time.monotonic_ns() - began_ns)
    return float(sorted(taken)[len(taken) // 2])
