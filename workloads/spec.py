"""What a case, a workload and a memory are: the data that every other module reads.

A spec names the module that does the work and never imports it, so that listing, needs and rules
cost nothing and work without pyverbs. The properties in the specs are what the oracle's rules
speak of: a rule never lists cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

PAGE_BYTES = 4096
MIB = 1 << 20

PinClass = Literal["none", "get", "pin", "pin-longterm"]


class Need(StrEnum):
    """What a case asks of the machine; probed by pinstorm.needs before anything runs."""

    RDMA_DEVICE = "rdma-device"
    RDMA_ODP = "rdma-odp"
    IO_URING = "io-uring"
    PROCESS_VM = "process-vm"
    TARGET_DIO = "target-dio"
    THP = "thp"
    HUGETLB_2M = "hugetlb-2m"
    SCRATCH_EXT4 = "scratch-ext4"
    SCRATCH_DAX = "scratch-dax"
    MOVABLE = "movable"


@dataclass(frozen=True, slots=True)
class Case:
    """One workload on one memory with one set of parameters: the unit that is run and judged.

    ``params`` always has ``size_bytes``, what is registered or transferred; the memory maps whole
    granules around it. The other keys are the workload's own parameters.
    """

    workload: str
    memory: str
    params: Mapping[str, Any]
    repeat: int = 20
    warmup: int = 1
    deadline_s: float = 30.0
    hold_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        return int(self.params["size_bytes"])

    @property
    def pages(self) -> int:
        return -(-self.size_bytes // PAGE_BYTES)

    @property
    def id(self) -> str:
        """``workload/memory/access/size``, then every other parameter as ``name=value``."""
        words = [self.workload, self.memory]
        if "access" in self.params:
            words.append(str(self.params["access"]))
        words.append(size_text(self.size_bytes))
        for name, value in sorted(self.params.items()):
            if name not in ("access", "size_bytes"):
                words.append(f"{name}={str(value).lower()}")
        return "/".join(words)

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "memory": self.memory,
            "params": dict(self.params),
            "repeat": self.repeat,
            "warmup": self.warmup,
            "deadline_s": self.deadline_s,
            "hold_s": self.hold_s,
        }

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Case":
        return cls(**message)


@dataclass(frozen=True, slots=True)
class Planned:
    """A case at its place in the run: ``seq`` counts over all rounds, both from 0."""

    seq: int
    round: int
    case: Case

    def to_json(self) -> dict[str, Any]:
        return {"seq": self.seq, "round": self.round, "case": self.case.to_json()}

    def record_fields(self) -> dict[str, Any]:
        """What every record of this case says, however the case ended."""
        return {
            "seq": self.seq,
            "round": self.round,
            "case": self.case.id,
            "workload": self.case.workload,
            "memory": self.case.memory,
            "params": dict(self.case.params),
            "outcome": None,
        }

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Planned":
        return cls(message["seq"], message["round"], Case.from_json(message["case"]))


def size_text(size_bytes: int) -> str:
    """The largest binary unit that divides the size: 65536 -> ``64KiB``, 4097 -> ``4097B``."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """An operation that makes the kernel take references on user pages.

    ``scope``: ``held`` when the references last from acquire to release, ``call`` when they live
    only inside the acquiring call (direct IO, process_vm). ``writes``: whether the kernel asks for
    write access to the memory: True, False, or "access" when the parameter ``access`` decides.
    """

    name: str
    module: str
    summary: str
    pin_class: PinClass
    scope: Literal["call", "held"]
    writes: Literal[True, False, "access"]
    needs: tuple[Need, ...] = ()
    params: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """A kind of memory a workload is applied to.

    ``backing``: who owns the pages. ``shared``: MAP_SHARED. ``touched``: every page is present
    (written, or for a private file read) before acquire. ``movable``: the pages lie in CMA or
    ZONE_MOVABLE; ``foreign_reference``: somebody else holds a reference, so they cannot migrate.
    ``fresh_each_cycle``: the first cycle changes the memory, so prepare is redone for each.
    """

    name: str
    module: str
    summary: str
    backing: Literal["anon", "shmem", "hugetlb", "file", "fsdax"]
    shared: bool = False
    touched: bool = True
    movable: bool = False
    foreign_reference: bool = False
    fresh_each_cycle: bool = False
    granule_bytes: int = PAGE_BYTES
    needs: tuple[Need, ...] = ()
    # Guest kernel options the lab must boot with; see pinstorm/lab/shape.py.
    shape: Literal["plain", "movable"] = "plain"

    def mapped_bytes(self, size_bytes: int) -> int:
        return -(-size_bytes // self.granule_bytes) * self.granule_bytes


class Operation(Protocol):
    """A prepared workload on one region: what a workload module's ``prepare`` returns.

    ``acquire`` and ``release`` return the CLOCK_MONOTONIC nanoseconds spent in the call that pins
    or unpins and nothing else, and raise CallFailed when the kernel refuses. ``aim_at`` turns to
    another region of the same kind and size, when nothing is acquired.
    """

    done_bytes: int | None

    def aim_at(self, region: Any) -> None: ...

    def acquire(self) -> int: ...

    def release(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the runner found on this machine and hands to the child: never probed twice."""

    device: str | None = None
    scratch: Mapping[str, str] = field(
        default_factory=dict
    )  # "ext4" / "dax" / "target" -> directory
    # [first, one past the last] page frame numbers of each CMA area; None where it is not known
    cma_ranges: tuple[tuple[int, int], ...] | None = None
    page_frames_visible: bool = False


class CallFailed(Exception):
    """The kernel refused: which call, and its errno. Becomes the case's outcome."""

    def __init__(self, call: str, errno: int, detail: str = "", elapsed_ns: int = 0):
        super().__init__(f"{call}: errno {errno} {detail}".rstrip())
        self.call = call
        self.errno = errno
        self.detail = detail
        self.elapsed_ns = elapsed_ns


class PrepareFailed(Exception):
    """The memory or the device could not be brought into the state that the case is about."""
