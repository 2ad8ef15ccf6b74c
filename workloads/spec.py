"""What a case, a workload and a memory are: the data that every other module reads.

A spec names the module that does the work and never imports it, so that listing, needs and rules
cost nothing and work without pyverbs. The properties in the specs are what the oracle's rules
speak of: a rule never lists cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from errno import EOPNOTSUPP, errorcode
from typing import Any, Literal, Protocol

from workloads.load.spec import Load

PAGE_BYTES = 4096
MIB = 1 << 20
# What msg-zerocopy gives to one connection: a rule reckons what each send is charged.
ZEROCOPY_SEND_BYTES = MIB
# The pins that gup-overflow takes unless the kernel refuses: more than a small page can have.
OVERFLOW_PINS = (1 << 21) + (1 << 16)

PHASES = ("prepare", "acquire", "hold", "release", "settle")
# What can be done to memory while it is pinned (workloads.disturbance).
DISTURBANCES = ("madv-dontneed", "munmap", "fork", "thread-exit")

PinClass = Literal["none", "get", "pin", "pin-longterm"]


class Need(StrEnum):
    """What a case asks of the machine; probed by pinstorm.needs before anything runs."""

    RDMA_DEVICE = "rdma-device"
    RDMA_ODP = "rdma-odp"
    IO_URING = "io-uring"
    PROCESS_VM = "process-vm"
    TARGET_DIO = "target-dio"
    AF_XDP = "af-xdp"
    MSG_ZEROCOPY = "msg-zerocopy"
    VFIO = "vfio"
    V4L2 = "v4l2"
    UDMABUF = "udmabuf"
    GUP_TEST = "gup-test"
    THP = "thp"
    HUGETLB_2M = "hugetlb-2m"
    HUGETLB_1G = "hugetlb-1g"
    SCRATCH_EXT4 = "scratch-ext4"
    SCRATCH_XFS = "scratch-xfs"
    SCRATCH_BTRFS = "scratch-btrfs"
    SCRATCH_TMPFS = "scratch-tmpfs"
    SCRATCH_DAX = "scratch-dax"
    DEVDAX = "devdax"
    SECRETMEM = "secretmem"
    KSM = "ksm"
    NUMA = "numa"
    MOVABLE = "movable"
    ORDINARY_USER = "ordinary-user"
    DESTRUCTIVE = "destructive"
    CGROUP_RDMA = "cgroup-rdma"
    CGROUP_MEMORY = "cgroup-memory"
    MACHINE_CHANGES = "machine-changes"
    LAB = "lab"
    MEMLOCK = "memlock"
    CLEAR_WARN_ONCE = "clear-warn-once"
    COMPACTION = "compaction"
    DROP_CACHES = "drop-caches"


# Needs that are capabilities of a device: with ``force`` the case runs without them, as a negative
# test.
CAPABILITIES = frozenset({Need.RDMA_ODP})

# The interfaces that gup-overflow can pin through (parameter ``through``), and what each needs.
THROUGH = {"io-uring": Need.IO_URING, "rdma": Need.RDMA_DEVICE, "af-xdp": Need.AF_XDP}


@dataclass(frozen=True, slots=True)
class Case:
    """One workload on one memory with one set of parameters: the unit that is run and judged.

    ``params`` always has ``size_bytes``, what is registered or transferred; the memory maps whole
    granules around it. The other keys are the workload's own parameters, and those of every case:
    ``offset_bytes`` from a page's beginning, ``uid`` and ``memlock_bytes`` of the processes,
    ``processes`` that do the same at once, each to memory of its own, ``force``; ``under``, the
    circumstance that makes it fail; ``times`` that the same range is registered; ``during``, what
    is done to the memory while it is pinned; ``kill``, the phase in which the process gets SIGKILL.

    ``settles``: cycles that each wait for the counters to rest. ``remedy``: apply the remedy of a
    refusal's cause, and try again. ``load``: of a load, its jobs; then ``workload`` is ``load``,
    ``memory`` is ``jobs``, and ``size_bytes`` the most that they pin together.
    """

    workload: str
    memory: str
    params: Mapping[str, Any]
    repeat: int = 20
    warmup: int = 1
    deadline_s: float = 30.0
    hold_s: float = 0.0
    settles: int = 0
    remedy: bool = False
    load: Load | None = None

    @property
    def size_bytes(self) -> int:
        return int(self.params["size_bytes"])

    @property
    def offset_bytes(self) -> int:
        return int(self.params.get("offset_bytes", 0))

    @property
    def processes(self) -> int:
        return int(self.params.get("processes", 1))

    @property
    def times(self) -> int:
        return int(self.params.get("times", 1))

    @property
    def pages(self) -> int:
        """Pages that the range touches in one process."""
        return -(-(self.offset_bytes + self.size_bytes) // PAGE_BYTES)

    @property
    def id(self) -> str:
        """``workload/memory/access/size``, then every other parameter as ``name=value``.

        Of a load: ``load/NAME``.
        """
        if self.load is not None:
            return f"{self.workload}/{self.load.name}"
        words = [self.workload, self.memory]
        if "access" in self.params:
            words.append(str(self.params["access"]))
        words.append(size_text(self.size_bytes))
        for name, value in sorted(self.params.items()):
            if name not in ("access", "size_bytes"):
                words.append(f"{name}={_text(value)}")
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
            "settles": self.settles,
            "remedy": self.remedy,
            **({"load": self.load.to_json()} if self.load is not None else {}),
        }

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Case":
        load = message.get("load")
        return cls(**{**message, "load": None if load is None else Load.from_json(load)})


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


def overflow_times(pages: int) -> int:
    """How often gup-overflow registers a range of so many pages."""
    return -(-OVERFLOW_PINS // pages)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
    # What is held against RLIMIT_MEMLOCK, in a symbol of the rules' bounds; None: nothing is.
    charged: Literal["bytes", "folio-bytes", "zerocopy-bytes"] | None = None
    # Whether each process has the limit for itself, or all of a user's share it.
    charged_to: Literal["process", "user"] = "process"
    # What an ordinary user (parameter ``uid``) keeps of root's capabilities, to get that far.
    keeps: tuple[str, ...] = ()
    # The memories that it says something about; None: all.
    memories: frozenset[str] | None = None
    # What does it over and over in a load (workloads.load.engine); None: no load has it.
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """A kind of memory a workload is applied to.

    ``backing``: who owns the pages. ``shared``: MAP_SHARED. ``present``: what is behind the page
    tables before acquire: pages of its own, nothing, the zero page, or pages that a write must copy
    because somebody else (a file, another process, KSM) has them too. ``prot``: what the mapping
    allows. ``extent``: how much of the range has memory: a hole is one page in the middle that is
    not mapped, past-eof a second half behind the end of the file. ``file``: what a descriptor of
    the pages leads to, a memfd that can be sealed, or a file of tmpfs, which cannot. ``movable``:
    the pages lie in CMA or ZONE_MOVABLE; ``foreign_reference``: somebody else holds a reference, so
    they cannot migrate. ``one_page``: every address is the same page. ``fresh_each_cycle``: the
    first cycle changes the memory, so prepare is redone for each.
    """

    name: str
    module: str
    summary: str
    backing: Literal[
        "anon", "shmem", "hugetlb", "file", "fsdax", "devdax", "secretmem", "io", "nothing"
    ]
    shared: bool = False
    present: Literal["own", "absent", "zero-page", "copy-on-write"] = "own"
    prot: Literal["rw", "r", "none"] = "rw"
    extent: Literal["whole", "hole", "past-eof", "unmapped"] = "whole"
    file: Literal["none", "memfd", "tmpfs", "other"] = "none"
    locked: bool = False
    movable: bool = False
    foreign_reference: bool = False
    one_page: bool = False
    # The workloads that say something about it; None: all.
    workloads: frozenset[str] | None = None
    fresh_each_cycle: bool = False
    granule_bytes: int = PAGE_BYTES
    needs: tuple[Need, ...] = ()
    # Guest kernel options the lab must boot with; see pinstorm/lab/shape.py.
    shape: Literal["plain", "movable"] = "plain"

    def mapped_bytes(self, size_bytes: int) -> int:
        return -(-size_bytes // self.granule_bytes) * self.granule_bytes


@dataclass(frozen=True, slots=True)
class CircumstanceSpec:
    """What is wrong around a case on purpose (``under``), so that it fails for that cause.

    ``cause``: the name pinstorm.explain must give it. ``module``: the child's half, with a
    ``prepare(case, around, owner)``, see workloads.circumstances; None where the runner
    (pinstorm.circumstances) or workloads.user makes all of it. ``workloads``: those around which it
    can be made; ``spares``: those of them that take no notice of it.
    """

    name: str
    summary: str
    cause: str
    workloads: tuple[str, ...]
    module: str | None = None
    needs: tuple[Need, ...] = ()
    spares: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AntagonistSpec:
    """What disturbs memory beside a load: a workload of kind antagonist. It pins nothing.

    ``module``: its engine, see workloads.load.engine. ``params``: the keys of a job's ``params``
    that it takes, with their ``defaults``; ``choices``: what those of them may be that are words,
    and ``choice_needs``: what such a word asks of the machine besides.
    ``whole_machine``: what it does reaches beyond its own memory, so on a host it wants --setup.
    ``size_bytes``, ``rate_ops_s``: of each process, where the job gives none; None: no limit.
    ``copies``: how many times its size it may hold at a time.
    """

    name: str
    module: str
    summary: str
    needs: tuple[Need, ...] = ()
    params: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choice_needs: Mapping[str, Need] = field(default_factory=dict)
    whole_machine: bool = False
    size_bytes: int = 64 * MIB
    rate_ops_s: float | None = None
    copies: int = 1


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
    # what it says it can do: workloads.verbs.capabilities
    device_can: Mapping[str, Any] = field(default_factory=dict)
    # kind of scratch ("ext4", "xfs", "btrfs", "tmpfs", "dax", "target") -> directory
    scratch: Mapping[str, str] = field(default_factory=dict)
    # "devdax" -> /dev/daxN.N, "vfio" -> PCI address, "v4l2" -> /dev/videoN
    nodes: Mapping[str, str] = field(default_factory=dict)
    # NUMA nodes with memory
    numa_nodes: tuple[int, ...] = (0,)
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
        # Of a load: the name of the job that was refused, and which of its processes.
        self.job: str | None = None
        self.process: int | None = None


def errno_name(number: int) -> str:
    """The errno's name as the kernel's own documents spell it."""
    # Python's table calls 95 ENOTSUP, which on Linux is the same number.
    return "EOPNOTSUPP" if number == EOPNOTSUPP else errorcode.get(number, f"errno-{number}")


class PrepareFailed(Exception):
    """The memory or the device could not be brought into the state that the case is about."""
