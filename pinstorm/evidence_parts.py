"""The parts of evidence: what was seen of a refused process and around it, and what was not.

Plain data, kept in the record and read back from it; pinstorm.evidence fills it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from pinstorm.pieces import Piece

__all__ = ["Device", "Evidence", "Group", "Holding", "Machine", "Piece", "Process"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Process:
    """Limits and privileges as the process had them. -1: unlimited. Bytes.

    ``uid``: the effective one; ``real_uid``: the user that the kernel charges. ``cap_ipc_lock``:
    effective; ``permitted``/``inheritable``: it could have it, and does not use it.
    ``initial_userns``: whether its capabilities count for the kernel (False in a container's
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
    real_uid: int | None = None

    @property
    def exempt(self) -> bool:
        """Whether RLIMIT_MEMLOCK does not bind it: CAP_IPC_LOCK that counts for the kernel."""
        return bool(self.cap_ipc_lock) and self.initial_userns is not False


@dataclass(frozen=True, slots=True)
class Holding:
    """What one other process of the same user holds against the user's budget.

    ``pid`` is None of what outlived its process, or is in none that can be seen.
    """

    pid: int | None
    name: str
    kind: str
    size_bytes: int | None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One limit of a control group on the way up from the process: tightest first.

    ``resource``: ``memory``, in bytes; of the rdma controller ``hca_handle`` or ``hca_object`` of
    ``device``. ``failures``: how often it was met since the group was made.
    """

    group: str
    controller: str
    resource: str
    limit: int
    used: int | None
    failures: int | None = None
    device: str | None = None


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
    """What the machine has left. Bytes; ``free_huge_bytes`` by huge page size in bytes, what is
    free and promised to nobody. ``commit_left_bytes``: None where overcommitting is allowed."""

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

        def one(kind: type[_Value], name: str) -> _Value | None:
            value = message.get(name)
            return None if value is None else _made(kind, value)

        def several(kind: type[_Value], name: str) -> tuple[_Value, ...] | None:
            values = message.get(name)
            return None if values is None else tuple(_made(kind, value) for value in values)

        log = message.get("kernel_log")
        return cls(
            process=one(Process, "process"),
            pieces=several(Piece, "pieces"),
            holdings=several(Holding, "holdings"),
            groups=several(Group, "groups"),
            device=one(Device, "device"),
            machine=one(Machine, "machine"),
            kernel_log=None if log is None else tuple(log),
            hidden=tuple(message.get("hidden") or ()),
        )


def _made(kind: type[_Value], message: Mapping[str, Any]) -> _Value:
    """A part of what JSON kept; what an older pinstorm did not know is None."""
    known: Any = fields(kind)  # type: ignore[arg-type]
    values = {}
    for entry in known:
        if entry.name in message:
            value = message[entry.name]
            values[entry.name] = tuple(value) if isinstance(value, list) else value
        elif entry.default is MISSING and entry.default_factory is MISSING:
            values[entry.name] = None
    return kind(**values)
