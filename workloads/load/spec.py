"""What a load and its jobs are. Plain data: it travels from the suite to the worker as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# workloads.spec.PAGE_BYTES, which this module cannot import: a case has a load.
_PAGE_BYTES = 4096

Pattern = Literal["sequential", "random", "zipf"]
# What IBV_ADVISE_MR_ADVICE_PREFETCH_* asks for ahead of the device's own faults; none: it faults.
Prefetch = Literal["none", "read", "write", "no-fault"]


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of work in a load, done by ``processes`` processes at once.

    ``sizes``: bytes of a block (direct IO) or a region (registration), each with its weight; of
    several, one is drawn for each operation. ``depth``: operations in flight (direct IO) or regions
    registered at a time (registration). ``cpus``: the CPUs its processes may run on, one after the
    other; none: any. ``node``: the NUMA node of its memory. ``rate_ops_s``, ``rate_pins_s``: of all
    its processes together. ``think_ns``: pause after each operation. ``read_percent``: of the
    operations of direct IO. ``file_bytes``: the target of direct IO, one for each process.
    ``count``: end after so many operations of each process. ``allowed``: errnos that are counted
    and do not end the job. ``params``: an antagonist's own.
    """

    name: str
    workload: str
    memory: str = "anon"
    sizes: tuple[tuple[int, float], ...] = ((4096, 1.0),)
    depth: int = 1
    processes: int = 1
    cpus: tuple[int, ...] = ()
    node: int | None = None
    count: int | None = None
    rate_ops_s: float | None = None
    rate_pins_s: float | None = None
    think_ns: int = 0
    read_percent: int = 100
    pattern: Pattern = "random"
    zipf_theta: float = 1.2
    file_bytes: int = 1 << 30
    registered: bool = False
    sqpoll: bool = False
    verify: bool = False
    access: str = "rw"
    prefetch: Prefetch = "none"
    uid: int | None = None
    memlock_bytes: int | None = None
    allowed: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def largest_bytes(self) -> int:
        return max(size for size, _ in self.sizes)

    @property
    def buffer_bytes(self) -> int:
        """What one process maps to be pinned, whole pages each: as much as it has at a time."""
        return -(-self.largest_bytes // _PAGE_BYTES) * _PAGE_BYTES * self.depth

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Job":
        sizes = tuple((int(size), float(weight)) for size, weight in message["sizes"])
        lists = {name: tuple(message[name]) for name in ("cpus", "allowed")}
        return cls(**{**message, "sizes": sizes, **lists})


@dataclass(frozen=True, slots=True)
class Steady:
    """When a load counts as steady: over a sliding window the rate's slope and spread are small.

    As fio's ``steadystate``: ``slope_percent`` of the mean rate that the fitted line may rise or
    fall from one interval to the next, ``spread_percent`` that an interval may differ from the
    mean.
    """

    window_s: float = 10.0
    slope_percent: float = 1.0
    spread_percent: float = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs and antagonists that run together: one case, ``load/NAME``.

    ``ramp_s``: before anything is counted. ``duration_s``: the hold that follows, in which all is
    counted; a job with a ``count`` may end earlier. ``interval_s``: how often figures are taken.
    ``sample_hz``: how often the counters of the machine are read.
    """

    name: str
    jobs: tuple[Job, ...]
    duration_s: float
    ramp_s: float = 0.0
    interval_s: float = 1.0
    sample_hz: float = 100.0
    steady: Steady = Steady()
    seed: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Load":
        jobs = tuple(Job.from_json(job) for job in message["jobs"])
        return cls(**{**message, "jobs": jobs, "steady": Steady(**message["steady"])})
