"""What is known about a refusal: gathered from the process that met it while it still stands.

The record's ``evidence`` (null when nothing was refused). Each part is read by the telemetry module
of its interface; a part that was not asked for, or could not be read, is null, and what hides it is
told in ``hidden``. ``collect`` gathers it for a case, ``of_process`` for somebody else's program.
pinstorm.explain draws the conclusions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from workloads.spec import Case, Surroundings


@dataclass(frozen=True, slots=True)
class Process:
    """Limits and privileges as the process had them. -1: unlimited. Bytes.

    ``cap_ipc_lock``: effective; ``permitted``/``inheritable``: it could have it, and does not use
    it. ``initial_userns``: whether its capabilities count for the kernel (False in a container's
    user namespace). ``address_space_bytes``: RLIMIT_AS.
    """

    pid: int
    name: str
    uid: int | None
    memlock_soft_bytes: int | None
    memlock_hard_bytes: int | None
    address_space_bytes: int | None
    vmsize_bytes: int | None
    vmrss_bytes: int | None
    vmpin_bytes: int | None
    vmlck_bytes: int | None
    cap_ipc_lock: bool | None
    cap_ipc_lock_permitted: bool | None
    cap_ipc_lock_inheritable: bool | None
    cap_effective: tuple[str, ...]
    initial_userns: bool | None
    vma_count: int | None
    vma_limit: int | None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the range that was to be pinned: one mapping, or a gap (``permissions`` is None).

    ``flags``: VmFlags of smaps, two letters each. ``fs_type``, ``dax``: of the file behind it.
    ``past_eof_bytes``: how much of it lies behind the end of its file.
    """

    start: int
    end: int
    permissions: str | None
    path: str = ""
    flags: tuple[str, ...] = ()
    fs_type: str | None = None
    dax: bool | None = None
    kernel_page_bytes: int | None = None
    past_eof_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Holding:
    """What one other process of the same user holds against the user's budget."""

    pid: int
    name: str
    kind: str
    size_bytes: int | None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One limit of a control group on the way up from the process: tightest first."""

    group: str
    controller: str
    resource: str
    limit: int
    used: int | None
    failures: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """An RDMA device: what it can have, and what is in use. None: not known."""

    name: str
    present: bool
    driver: str | None = None
    odp: bool | None = None
    max_mr: int | None = None
    max_mr_size_bytes: int | None = None
    mrs: int | None = None
    port_states: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine has left. Bytes; ``free_huge_bytes`` by huge page size in bytes."""

    available_bytes: int | None = None
    commit_left_bytes: int | None = None
    free_huge_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of it. Lists are empty where there is nothing, None where nobody could look.

    ``hidden``: what could not be read, one sentence each, with the reason. ``kernel_log``: the
    lines that came since the case began.
    """

    process: Process | None = None
    pieces: tuple[Piece, ...] | None = None
    holdings: tuple[Holding, ...] | None = None
    groups: tuple[Group, ...] | None = None
    device: Device | None = None
    machine: Machine | None = None
    kernel_log: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Evidence":
        """Of a record; unknown keys of a newer pinstorm are left out."""
        raise NotImplementedError


def collect(case: Case, pid: int, failure: Mapping[str, Any], around: Surroundings) -> Evidence:
    """Look at a case's process, which has just been refused and stands still.

    ``failure``: a record as far as it goes: failed_call, failed_phase, outcome, region. Only what
    can decide between the causes of that failure is read, for this happens at every refusal.
    """
    return Evidence()


def of_process(pid: int, call: str, outcome: str) -> Evidence:
    """Look at somebody else's process, as far as it lets itself be looked at.

    UsageError when there is none.
    """
    return Evidence()
