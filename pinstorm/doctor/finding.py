"""What doctor found: one thing of this machine that a workload depends on, and what to do about it.

Plain data. Names and shapes are those of ``pinstorm doctor --json`` (docs/doctor.md); keys are
added freely, and a change of meaning raises SCHEMA.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

SCHEMA: Final = 1


class Status(StrEnum):
    """``limited``: there, with a bound or a part missing, or not visible to this user."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


class Topic(StrEnum):
    """What a finding is about; printed in this order."""

    PIN_BUDGET = "pin budget"
    RDMA = "rdma"
    MEMORY = "memory"
    DEVICES = "devices"
    INTERFACES = "interfaces"
    COUNTERS = "counters"
    KERNEL = "kernel"
    SCRATCH = "scratch"
    VIRTUALISATION = "virtualisation"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    ``id`` names it for good, and no other. ``seen``: what was found. ``why``: what depends on it.
    ``command``: what fixes it, in a shell; None where nothing needs fixing, or no command can.
    ``figures``: what was read, for ``--against``; ``levels``: figures of the moment, which are not
    compared. Bytes, pages, counts. ``unseen``: what this user could not see, one sentence each; a
    finding that rests on it is ``limited``.
    """

    id: str
    topic: Topic
    status: Status
    seen: str
    why: str
    command: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, Any] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "topic": self.topic.value, "status": self.status.value}


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one mechanism can register in one go, as this process is allowed to. Bytes.

    ``mechanism``: its name for good; ``call``: what is refused. ``charged_to``: whose account the
    limit is compared with: ``user`` (all of the user's processes together), ``process``, or None:
    nothing is charged. ``largest_bytes``: the most, page-aligned; None: nothing bounds it.
    ``fails_from_bytes``: the next size that is refused, with ``errno``; ``errno`` is None where the
    memory itself runs out, and something is killed. ``bound_by``: ``memlock``, ``memory``,
    ``cgroup``, ``address-space`` or ``commit`` (the mapping is refused), ``device``, ``module``, or
    None. ``because``: in words. ``usable``: whether what it takes is there at all; the finding of
    that name says what is not. None: it was not asked.
    """

    mechanism: str
    what: str
    call: str
    charged_to: str | None
    largest_bytes: int | None
    fails_from_bytes: int | None
    errno: str | None
    bound_by: str | None
    because: str
    command: str | None = None
    usable: bool | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Examination:
    """All of it. ``where``: which host, kernel and user, and what started the process."""

    where: Mapping[str, Any]
    budget: tuple[Budget, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "doctor_schema": SCHEMA,
            "where": dict(self.where),
            "budget": [one.to_json() for one in self.budget],
            "findings": [one.to_json() for one in self.findings],
        }
