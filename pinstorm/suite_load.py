"""``[[load]]`` in a suite: what may be written, and the Load that it becomes.

The keys of a job may stand in ``[[load]]`` itself: there they are the defaults of all its jobs, and
of a load without ``[[load.job]]`` they are the one job. An antagonist is a job too; ``antagonists``
names those that want nothing but their defaults.
"""

from collections.abc import Mapping
from dataclasses import replace
from errno import errorcode
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

import workloads
from pinstorm import suite_values as values
from pinstorm.errors import UsageError
from pinstorm.units import parse_duration, parse_size
from workloads import MEMORY, WORKLOADS
from workloads.antagonists import ANTAGONISTS
from workloads.load.spec import Job, Load, Steady
from workloads.spec import errno_name

SECTOR_BYTES = 512
_DURATION_S = 10.0
_STEADY = Steady()
_LONGEST_S = 366 * 86_400
# Beyond these nothing differs but what a double can hold: one in thirty years, one a picosecond.
_RATES = (1e-9, 1e12)
_SELDOM_HZ = 1e-3
_WEIGHTS = (1e-9, 1e9)
# Of an antagonist's parameters that are numbers: the least and the most.
_NUMBERS = {"alive": (1, 1024), "free_percent": (0, 99), "hold_ms": (0, 3_600_000)}

LOADABLE = tuple(spec.name for spec in WORKLOADS if spec.engine is not None)
_DIRECT_IO = tuple(name for name in LOADABLE if name.startswith("dio-"))
_URING_IO = ("dio-read-uring", "dio-write-uring")
_RDMA = ("rdma-register", "rdma-register-odp")

# Keys that only some workloads have.
KEYS_OF = {
    "reads": _DIRECT_IO,
    "pattern": _DIRECT_IO,
    "theta": _DIRECT_IO,
    "file_size": _DIRECT_IO,
    "verify": (*_DIRECT_IO, "rdma-register-odp"),
    "registered": _URING_IO,
    "sqpoll": _URING_IO,
    "access": _RDMA,
    "prefetch": ("rdma-register-odp",),
    "storm": ("rdma-register-odp",),
    "pin_rate": LOADABLE,
    "memory": LOADABLE,
    "depth": LOADABLE,
    "params": tuple(spec.name for spec in ANTAGONISTS),
}


def _one_of(kind: str, names: tuple[str, ...], value: Any) -> str:
    """One name."""
    found = values.known(kind, names, value)
    if len(found) != 1:
        raise ValueError(f"{values.shown(value)} names {len(found)}; a job has one {kind}")
    return found[0]


def _sizes(value: Any) -> tuple[tuple[int, float], ...]:
    """``"4KiB"``, a list of which each is as likely, or a table of sizes and their weights."""
    if not isinstance(value, Mapping):
        return tuple((size_bytes, 1.0) for size_bytes in values.sizes(value))
    if not value:
        raise ValueError(
            'the table is empty; write sizes and weights, as {"64KiB" = 9, "1MiB" = 1}'
        )
    found = []
    for size, weight in value.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not _WEIGHTS[0] <= weight <= _WEIGHTS[1]:
            raise ValueError(
                f"the weight of {size} is {values.shown(weight)}; give a number over 0, "
                f"{_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}"
            )
        found.append((values.sizes(size)[0], float(weight)))
    return tuple(found)


def _rate(value: Any) -> float:
    """``1000``, or ``"1000/s"``."""
    text = value.removesuffix("/s").strip() if isinstance(value, str) else value
    try:
        rate = float(text) if not isinstance(text, bool) else 0.0
    except (TypeError, ValueError):
        rate = 0.0
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(
            f'{values.shown(value)} is no rate; write a number a second, as "1000/s", from '
            f"{_RATES[0]:g} to {_RATES[1]:g}"
        )
    return rate


def _percent(value: Any) -> float:
    """Per cent: 1.5, or ``"1.5%"``."""
    text = value.removesuffix("%").strip() if isinstance(value, str) else value
    try:
        percent = float(text) if not isinstance(text, bool) else -1.0
    except (TypeError, ValueError):
        percent = -1.0
    if not 0 <= percent <= 100:
        raise ValueError(f'{values.shown(value)} is no share; write 0 to 100, as 70 or "70%"')
    return percent


def _whole_percent(value: Any) -> float:
    """Whole per cent: 70, or ``"70%"``.

    As 0.5 is more likely meant for a half than for one in two hundred, it is refused.
    """
    percent = _percent(value)
    if percent != round(percent):
        raise ValueError(f'{values.shown(value)} is no whole percent; write it as 70 or "70%"')
    return percent


def _cpus(value: Any) -> tuple[int, ...]:
    """Numbers of CPUs."""
    return values.counts(0, 8191, value)


def _errnos(value: Any) -> tuple[str, ...]:
    """Names of errnos."""
    return values.known("errno", tuple(map(errno_name, errorcode)), value)


_Duration = Annotated[float, BeforeValidator(partial(values.checked, parse_duration))]
_Bytes = Annotated[int, BeforeValidator(partial(values.checked, parse_size))]
_Percent = Annotated[float, BeforeValidator(_percent)]
_NAMES = (*LOADABLE, *(spec.name for spec in ANTAGONISTS))


class _JobKeys(values.Table):
    """Every key may be missing: the load's, and then the default, stands in."""

    workload: Annotated[
        str | None, BeforeValidator(partial(_one_of, "workload of loads", _NAMES))
    ] = Field(
        default=None, description="what the job does over and over, or the antagonist that it is"
    )
    memory: Annotated[
        str | None,
        BeforeValidator(partial(_one_of, "memory", tuple(spec.name for spec in MEMORY))),
    ] = Field(default=None, description="what it is done to; `anon` when left out")
    size: Annotated[tuple[tuple[int, float], ...] | None, BeforeValidator(_sizes)] = Field(
        default=None, description="of a block or a region; 4 KiB when left out"
    )
    depth: Annotated[int | None, Field(ge=1, le=32_768)] = Field(
        default=None,
        description="transfers in flight, or regions registered at a time; 1 when left out",
    )
    processes: Annotated[int | None, Field(ge=1, le=1024)] = Field(
        default=None,
        description="that do the same, each with memory and a file of its own; 1 when left out",
    )
    cpus: Annotated[tuple[int, ...] | None, BeforeValidator(_cpus)] = Field(
        default=None, description="of its processes, one each in turn; any when left out"
    )
    node: Annotated[int | None, Field(ge=0, le=1023)] = Field(
        default=None, description="the NUMA node of its memory; any when left out"
    )
    count: Annotated[int | None, Field(ge=1)] = Field(
        default=None, description="operations after which each process ends, those of the ramp too"
    )
    rate: Annotated[float | None, BeforeValidator(_rate)] = Field(
        default=None,
        description="operations a second, of all its processes together: a limit, not a promise",
    )
    pin_rate: Annotated[float | None, BeforeValidator(_rate)] = Field(
        default=None, description="pinned pages a second, of all its processes together: a limit"
    )
    think: _Duration | None = Field(default=None, description="pause after each operation")
    reads: Annotated[float | None, BeforeValidator(_whole_percent)] = Field(
        default=None,
        description="share of reads; of a direct IO read 100 when left out, of a write 0",
    )
    pattern: Literal["sequential", "random", "zipf"] | None = Field(
        default=None,
        description="the order of blocks: random has each once a pass; `random` when left out",
    )
    theta: Annotated[float | None, Field(gt=0, le=10)] = Field(
        default=None, description="how steep `zipf` is; 1.2 when left out"
    )
    file_size: _Bytes | None = Field(
        default=None, description="of the file of each process; 1 GiB when left out"
    )
    registered: bool | None = Field(
        default=None, description="io_uring with registered buffers and file"
    )
    sqpoll: bool | None = Field(
        default=None, description="io_uring with a kernel thread that submits"
    )
    verify: bool | None = Field(
        default=None,
        description="every block carries its offset, a generation and a checksum, and is compared",
    )
    access: Annotated[str | None, BeforeValidator(values.access)] = Field(
        default=None, description="access flags of a registration; `rw` when left out"
    )
    prefetch: Literal["none", "read", "write", "no-fault"] | None = Field(
        default=None,
        description="`ibv_advise_mr` after a registration on demand; `none` when left out",
    )
    storm: bool | None = Field(
        default=None,
        description="drop all pages before each registration on demand: the device faults all in",
    )
    user: Annotated[int | None, Field(ge=1, le=2**32 - 2)] = Field(
        default=None, description="its processes run as this ordinary user"
    )
    memlock: _Bytes | None = Field(default=None, description="RLIMIT_MEMLOCK of its processes")
    allow: Annotated[tuple[str, ...] | None, BeforeValidator(_errnos)] = Field(
        default=None, description="errnos that are counted and do not end the load; any other does"
    )
    params: dict[str, Any] | None = Field(
        default=None, description="an antagonist's own, see the antagonists"
    )

    def given(self) -> dict[str, Any]:
        """The keys that are written there."""
        return {
            name: getattr(self, name)
            for name in _JobKeys.model_fields
            if getattr(self, name) is not None
        }


class JobTable(_JobKeys):
    name: Annotated[str | None, BeforeValidator(values.name)] = Field(
        default=None, description="of its figures; the workload's when left out"
    )


class SteadyTable(values.Table):
    window: _Duration = Field(
        default=_STEADY.window_s, description="the sliding window that is looked at"
    )
    slope: _Percent = Field(
        default=_STEADY.slope_percent,
        description="that the fitted line may rise or fall an interval, of the mean rate",
    )
    spread: _Percent = Field(
        default=_STEADY.spread_percent, description="that an interval may differ from the mean"
    )


class LoadTable(_JobKeys):
    name: Annotated[str, BeforeValidator(values.name)] = Field(
        description="of the case: `load/NAME`"
    )
    duration: _Duration | None = Field(
        default=None,
        description="how long is counted; `[run] hold` or 10 s when left out",
    )
    ramp: _Duration = Field(default=0.0, description="before anything is counted")
    interval: _Duration | None = Field(
        default=None,
        description="how often figures are taken; 1 s when left out, more in loads over an hour",
    )
    sample: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=100.0, description="readings of the machine's counters a second; 0: none"
    )
    steady: SteadyTable = Field(default=SteadyTable(), description="what counts as steady")
    antagonists: Annotated[
        tuple[str, ...],
        BeforeValidator(
            partial(values.known, "antagonist", tuple(spec.name for spec in ANTAGONISTS))
        ),
    ] = Field(default=(), description="those that run beside it with their defaults")
    job: Annotated[tuple[JobTable, ...], BeforeValidator(values.several)] = Field(
        default=(),
        description="`[[load.job]]`: the jobs; a load without any is its one job itself",
    )

    @model_validator(mode="after")
    def _makes_a_load(self) -> Self:
        load_of(self, seed=1, hold_s=0.0)
        return self


def load_of(table: LoadTable, *, seed: int, hold_s: float) -> Load:
    """The load of that table. ValueError with the place in it, where its jobs make no sense.

    ``hold_s``: how long it holds when the table does not say; 0: the default.
    """
    given = table.given()
    tables = table.job or ((JobTable(),) if table.workload is not None else ())
    jobs = [_job(one, given, number) for number, one in enumerate(tables, 1)]
    _check_defaults(given, jobs)
    jobs += [_job(JobTable(workload=name), {}, 0) for name in table.antagonists]
    if not any(job.workload in LOADABLE for job in jobs):
        raise ValueError(
            f'load "{table.name}" has no job that pins; give it a workload: '
            f"{values.listed(LOADABLE)}"
        )
    duration_s = hold_s or _DURATION_S if table.duration is None else table.duration
    _check_duration(duration_s)
    if 0 < table.sample < _SELDOM_HZ:
        raise ValueError(
            f"sample {table.sample:g} is less than {_SELDOM_HZ:g} a second; give more, or 0: none"
        )
    if table.ramp > _LONGEST_S:
        raise ValueError(f"ramp {table.ramp} s is over a year; give another")
    interval_s = _interval_s(duration_s) if table.interval is None else table.interval
    if not 0.05 <= interval_s <= duration_s:
        raise ValueError(
            f"interval {interval_s} s is not 50 ms to the duration, {duration_s} s; give another"
        )
    return Load(
        name=table.name,
        jobs=tuple(_with_own_names(jobs)),
        duration_s=duration_s,
        ramp_s=table.ramp,
        interval_s=interval_s,
        sample_hz=table.sample,
        steady=Steady(table.steady.window, table.steady.slope, table.steady.spread),
        seed=seed,
    )


def held(load: Load, hold_s: float) -> Load:
    """The same for another time, as --hold says. UsageError where that is none for a load."""
    try:
        _check_duration(hold_s)
    except ValueError as error:
        raise UsageError(f"--hold of load {load.name}: {error}") from None
    own = load.interval_s != _interval_s(load.duration_s)
    interval_s = min(load.interval_s, hold_s) if own else _interval_s(hold_s)
    return replace(load, duration_s=hold_s, interval_s=interval_s)


def _check_duration(duration_s: float) -> None:
    if not 0.1 <= duration_s <= _LONGEST_S:
        raise ValueError(f"duration {duration_s} s is not 0.1 s to a year; give another")


def _interval_s(duration_s: float) -> float:
    """A second, unless the load is shorter than ten, or longer than an hour."""
    return min(max(duration_s / 10, 0.05), 1.0) if duration_s < 3600 else duration_s / 3600


def _job(table: JobTable, defaults: Mapping[str, Any], number: int) -> Job:
    own = table.given()
    workload = own.get("workload", defaults.get("workload"))
    where = f"[[load.job]] {number}" if number else f"antagonist {workload}"
    if workload is None:
        raise ValueError(f'{where} lacks the key "workload"; add it: {values.listed(_NAMES)}')
    for name in own:
        if workload not in KEYS_OF.get(name, _NAMES):
            raise ValueError(
                f"{where}: {name} says nothing to {workload}; leave it out, it goes with "
                f"{values.listed(KEYS_OF[name])}"
            )
    fitting = {n: v for n, v in defaults.items() if workload in KEYS_OF.get(n, LOADABLE)}
    keys = {**fitting, **own}
    antagonist = workload not in LOADABLE
    if antagonist:
        _check_params(workload, keys.get("params", {}), where)
    own_bytes = workloads.antagonist_spec(workload).size_bytes if antagonist else 4096
    sizes = keys.get("size", ((own_bytes, 1.0),))
    reads = workload.startswith("dio-read")
    job = Job(
        name=table.name or workload,
        workload=workload,
        memory=keys.get("memory", "anon"),
        sizes=sizes,
        depth=keys.get("depth", 1),
        processes=keys.get("processes", 1),
        cpus=keys.get("cpus", ()),
        node=keys.get("node"),
        count=keys.get("count"),
        rate_ops_s=keys.get("rate"),
        rate_pins_s=keys.get("pin_rate"),
        think_ns=round(keys.get("think", 0.0) * 1e9),
        read_percent=round(keys.get("reads", 100 if reads else 0)),
        pattern=keys.get("pattern", "random"),
        zipf_theta=keys.get("theta", 1.2),
        file_bytes=keys.get("file_size", 1 << 30),
        registered=keys.get("registered", False),
        sqpoll=keys.get("sqpoll", False),
        verify=keys.get("verify", False),
        access=keys.get("access", "rw"),
        prefetch=keys.get("prefetch", "none"),
        uid=keys.get("user"),
        memlock_bytes=keys.get("memlock"),
        allowed=keys.get("allow", ()),
        params={**keys.get("params", {}), **({"storm": True} if keys.get("storm") else {})},
    )
    _check(job, where)
    return job


def _check_defaults(given: Mapping[str, Any], jobs: list[Job]) -> None:
    """A key of the load that is the default of none of its jobs was meant for something."""
    for name in given:
        fitting = KEYS_OF.get(name, LOADABLE)
        if jobs and not any(job.workload in fitting for job in jobs):
            raise ValueError(
                f"{name} says nothing to any of its jobs; leave it out, it goes with "
                f"{values.listed(fitting)}"
            )


def _check(job: Job, where: str) -> None:
    if job.workload in _DIRECT_IO:
        odd = next((size for size, _ in job.sizes if size % SECTOR_BYTES), None)
        if odd is not None:
            raise ValueError(
                f"{where}: a block of {odd} bytes is no multiple of {SECTOR_BYTES}, which direct "
                "IO wants; give another size"
            )
        if job.file_bytes < job.largest_bytes:
            raise ValueError(
                f"{where}: a file of {job.file_bytes} bytes has no block of {job.largest_bytes}; "
                "raise file_size"
            )
    if not workloads.is_antagonist(job.workload) and not workloads.go_together(
        job.workload, job.memory
    ):
        raise ValueError(f"{where}: {job.workload} says nothing about {job.memory}; give another")
    if job.workload == "rdma-register-odp" and job.verify and not job.params.get("storm"):
        raise ValueError(
            f"{where}: without a storm nothing is sent that verify could look for; add storm = true"
        )
    if job.workload in ("dio-read", "dio-write") and job.depth > 1:
        raise ValueError(
            f"{where}: {job.workload} does one transfer at a time; take {job.workload}-uring for a "
            "depth, or more processes"
        )


def _check_params(workload: str, params: Mapping[str, Any], where: str) -> None:
    known = workloads.antagonist_spec(workload).params
    for name in params:
        if name not in known:
            near = values.nearest(name, known)
            remedy = f'did you mean "{near}"?' if near else f"it takes {values.listed(known)}"
            raise ValueError(f'{where}: {workload} has no parameter "{name}"; {remedy}')
    for name, words in workloads.antagonist_spec(workload).choices.items():
        if name in params and str(params[name]) not in words:
            raise ValueError(f"{where}: {name} is {params[name]!r}; give {values.listed(words)}")
    for name in params.keys() & _NUMBERS.keys():
        _check_number(name, params[name], where)


def _check_number(name: str, value: Any, where: str) -> None:
    least, most = _NUMBERS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        shown = values.shown(value)
        raise ValueError(f"{where}: {name} is {shown}; give a number from {least} to {most}")
    if name == "alive" and value != round(value):
        raise ValueError(f"{where}: {name} is {values.shown(value)}; give a whole number")


def _with_own_names(jobs: list[Job]) -> list[Job]:
    """A second job of a name gets a number, so that every figure has a name of its own."""
    taken = {job.name for job in jobs}
    seen: set[str] = set()
    named = []
    for job in jobs:
        name, number = job.name, 1
        # What another job is called from the start is not given away either.
        while name in seen or (number > 1 and name in taken):
            number += 1
            name = f"{job.name}-{number}"
        seen.add(name)
        named.append(job if number == 1 else replace(job, name=name))
    return named
