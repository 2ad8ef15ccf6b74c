"""The parts of evidence: what was seen of a refused process and around it, and what was not.

Plain data, kept in the record and read back from it; pinstorm.evidence fills it.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pinstorm.pieces import Piece

__all__ = ["Device", "Evidence", "Group", "Holding", "Machine", "Piece", "Process", "readable"]

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
    ``device``. ``failures``: how often it was met since the group was made. Of memory: the name of
    the ``limit_file``, and what of ``used`` is page cache that is given up first, ``reclaimable``.
    """

    group: str
    controller: str
    resource: str
    limit: int
    used: int | None
    failures: int | None = None
    device: str | None = None
    limit_file: str | None = None
    reclaimable: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """An RDMA device: what it can have, and what is in use. None: not known.

    ``others_open``: of somebody else's program, whether it has more devices open than this one.
    """

    name: str
    present: bool
    driver: str | None = None
    odp: bool | None = None
    max_mr: int | None = None
    max_mr_size_bytes: int | None = None
    mrs: int | None = None
    port_states: tuple[str, ...] = ()
    others_open: bool | None = None


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

    ``own_holdings``: what the process itself holds, of the same kinds as ``holdings``. ``hidden``:
    what could not be read, one sentence each, with the reason. ``kernel_log``: the lines that came
    since the case began.
    """

    process: Process | None = None
    pieces: tuple[Piece, ...] | None = None
    holdings: tuple[Holding, ...] | None = None
    groups: tuple[Group, ...] | None = None
    device: Device | None = None
    machine: Machine | None = None
    kernel_log: tuple[str, ...] | None = None
    hidden: tuple[str, ...] = ()
    own_holdings: tuple[Holding, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, message: Mapping[str, Any]) -> "Evidence":
        """Of a record; unknown keys of a newer pinstorm are left out. ValueError: damaged."""
        if not isinstance(message, Mapping):
            raise ValueError(f"evidence is {type(message).__name__}, not an object")

        def one(kind: type[_Value], name: str) -> _Value | None:
            value = message.get(name)
            return None if value is None else _made(kind, value)

        def several(kind: type[_Value], name: str) -> tuple[_Value, ...] | None:
            values = message.get(name)
            if not isinstance(values, list | tuple | None):
                raise ValueError(f"{name} is {type(values).__name__}, not a list")
            return None if values is None else tuple(_made(kind, value) for value in values)

        def lines(name: str) -> tuple[str, ...] | None:
            value = message.get(name)
            return None if value is None else _checked(name, value, tuple[str, ...])

        return cls(
            process=one(Process, "process"),
            pieces=several(Piece, "pieces"),
            holdings=several(Holding, "holdings"),
            groups=several(Group, "groups"),
            device=one(Device, "device"),
            machine=one(Machine, "machine"),
            kernel_log=lines("kernel_log"),
            hidden=lines("hidden") or (),
            own_holdings=several(Holding, "own_holdings"),
        )


def readable(text: str) -> str:
    """Of names and paths, which are any bytes: nothing in them speaks to a terminal."""
    with suppress(UnicodeEncodeError):  # half a character, which only JSON can spell
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _made(kind: type[_Value], message: Any) -> _Value:
    """A part of what JSON kept; what an older pinstorm did not know is None where it may be."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{kind.__name__} is {type(message).__name__}, not an object")
    known: Any = fields(kind)  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values = {}
    for entry in known:
        required = entry.default is MISSING and entry.default_factory is MISSING
        if entry.name in message or required:
            what = f"{kind.__name__}.{entry.name}"
            values[entry.name] = _checked(what, message.get(entry.name), hints[entry.name])
    return kind(**values)


def _checked(what: str, value: Any, hint: Any) -> Any:
    """That value as the type that these parts are made of. ValueError when it is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        if value is None:
            return None
        return _checked(what, value, next(one for one in inner if one is not type(None)))
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(what, one, inner[0]) for one in value)
    if origin is not None and isinstance(value, Mapping) and issubclass(origin, Mapping):
        return {key: _checked(what, one, inner[1]) for key, one in value.items()}
    if origin is None and isinstance(value, hint):
        return readable(value) if isinstance(value, str) else value
    raise ValueError(f"{what} is {value!r}")
