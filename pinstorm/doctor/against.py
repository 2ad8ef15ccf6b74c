"""Two examinations side by side: the same host by two ways in, or two hosts.

Compared is what was read and what follows of it; figures of the moment (``levels``) are not.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pinstorm.doctor.finding import SCHEMA
from pinstorm.errors import UsageError

_STDIN: Final = Path("-")
# doctor writes some 50 KB; of anything endless, /dev/zero say, no more is read than this.
_MOST_LETTERS: Final = 4 << 20
# What a difference means, by finding and figure, else by finding, else by nothing but itself.
_MEANINGS: Final[Mapping[str, str]] = {
    "memlock-limit": "the limit is inherited from what starts the job: pam_limits (limits.conf) of "
    "a login, LimitMEMLOCK= of a systemd unit, --ulimit memlock of a container, slurmd's own and "
    "PropagateResourceLimits of a Slurm step",
    "cap-ipc-lock": "where it counts for the kernel RLIMIT_MEMLOCK is lifted, and only there",
    "user-namespace": "in a user namespace of its own no capability lifts RLIMIT_MEMLOCK",
    "memory-charged": "what the user has used up already is missing for the next registration; it "
    "is asked of the kernel, or else of the user's processes",
    "memory-cgroup": "the control group of the job, not the machine, says how much may be pinned",
    "rdma-cgroup": "the control group says how many regions the job may have",
    "max-map-count": "how many regions a process may have registered under ibv_fork_init()",
    "address-space": "RLIMIT_AS is inherited, as RLIMIT_MEMLOCK is",
    "rdma-devices": "they have other devices, or one is in a network namespace that hides them",
    "rdma-nodes": "whether this user may open the devices: a udev rule, or a container's --device",
    "io-uring": "sysctl kernel.io_uring_disabled, or the seccomp profile of a container",
    "process-vm": "the seccomp profile of a container, or a kernel without it",
    "af-xdp": "CAP_NET_RAW, which root has and an ordinary user or a container has not",
    "counters": "without the counters only outcomes can be judged",
    "counters-move": "counters that do not move prove nothing; beside a run it is not tried",
    "counters-refresh": "figures are exact on one side, and carry a bound on the other",
    "page-frames": "where they are hidden no placement is recorded",
    "kernel": "rules can differ between kernels: pinstorm list --rules --diff A B",
    "trace": "where there is none the calls of GUP are not seen; only root can tell",
    "kernel-log": "where it cannot be read what the kernel reports is not judged",
    "cgroup-leaf": "a case's processes are kept together by other means",
    "kvm": "a guest is emulated on one side, or was never tried; times of an emulated one are no "
    "measure",
}
_BUDGET: Final = "what follows for the size that can be registered; the limits below say why"
_BY_TOPIC: Final[Mapping[str, str]] = {
    "rdma": "they have other devices, links or software",
    "memory": "the kinds of memory differ, and so does which cases can run",
    "devices": "the devices differ, and so does which cases can run",
    "interfaces": "workloads that need it run on one side only",
    "scratch": "files are made in other places, and what direct IO goes to lies there too",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """``id``: of the finding, or ``budget/MECHANISM``. ``figure``: which of its figures, or
    ``status``. ``here`` and ``there``: None where that side does not have it."""

    id: str
    figure: str
    here: Any
    there: Any
    means: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read(place: Path) -> dict[str, Any]:
    """What ``doctor --json`` printed. UsageError: unreadable, something else, or of a newer one."""
    name = "standard input" if place == _STDIN else str(place)
    try:
        text = _text(place)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{name} cannot be read ({reason}): name what doctor --json wrote") from (
            error
        )
    except UnicodeDecodeError:
        raise _not_ours(name) from None
    try:
        document: dict[str, Any] = json.loads(text)
        # what differs is printed again: no NaN, and nested no deeper than can be
        json.dumps(document, indent=2, allow_nan=False)
    except (ValueError, RecursionError):
        raise _not_ours(name) from None
    schema = document.get("doctor_schema") if isinstance(document, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise _not_ours(name)
    if schema > SCHEMA:
        raise UsageError(
            f"{name} has doctor schema {schema}, this pinstorm reads up to {SCHEMA}: update it"
        )
    if not _is_whole(document):
        raise _not_ours(name)
    return document


def _text(place: Path) -> str:
    """All of it; of what is too long, enough to be no JSON. OSError, UnicodeDecodeError."""
    stdin = place == _STDIN
    with open(0 if stdin else place, encoding="utf-8", closefd=not stdin) as file:
        return file.read(_MOST_LETTERS)


def _not_ours(name: str) -> UsageError:
    return UsageError(f"{name} is no output of pinstorm doctor --json: make it with that")


def _is_whole(document: Mapping[str, Any]) -> bool:
    """Whether it has the parts that are compared, each with its name."""
    where = document.get("where")
    if not isinstance(where, dict) or not isinstance(where.get("launched_by") or [], list):
        return False
    for part, key in (("findings", "id"), ("budget", "mechanism")):
        rows = document.get(part)
        if not isinstance(rows, list):
            return False
        for row in rows:
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                return False
            if not isinstance(row.get("figures") or {}, dict):
                return False
    return True


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """The budget first, then findings in their order; equal ones are left out."""
    return [*_of_budget(here, there), *_of_findings(here, there)]


def _of_budget(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Difference]:
    """Of what bounds it in bytes only what is a limit: memory comes and goes."""
    ours, theirs = (
        {row["mechanism"]: _bound(row) for row in document["budget"]} for document in (here, there)
    )
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(name), theirs.get(name)
        if one != other:
            yield Difference(f"budget/{name}", "largest", one, other, _BUDGET)


def _bound(row: Mapping[str, Any]) -> dict[str, Any]:
    by = row.get("bound_by")
    momentary = by in ("memory", "cgroup", "commit", "address-space")
    return {
        "bound_by": by,
        "largest_bytes": None if momentary else row.get("largest_bytes"),
        "errno": row.get("errno"),
    }


def _of_findings(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Difference]:
    ours, theirs = ({row["id"]: row for row in side["findings"]} for side in (here, there))
    for name in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(name, {}), theirs.get(name, {})
        topic = str((one or other).get("topic"))
        means = _MEANINGS.get(name) or _BY_TOPIC.get(topic, "")
        pairs = [("status", one.get("status"), other.get("status"))]
        figures, their_figures = one.get("figures") or {}, other.get("figures") or {}
        pairs += [
            (key, figures.get(key), their_figures.get(key))
            for key in dict.fromkeys([*figures, *their_figures])
        ]
        for figure, value, their_value in pairs:
            if value != their_value:
                yield from _difference(name, figure, value, their_value, means)


def _difference(name: str, figure: str, here: Any, there: Any, means: str) -> Iterator[Difference]:
    """Of a table only the lines that differ."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys([*here, *there]):
            if here.get(key) != there.get(key):
                yield Difference(name, f"{figure}.{key}", here.get(key), there.get(key), means)
    else:
        yield Difference(name, figure, here, there, means)
