"""All rooms in turn. One that cannot be looked into is told, and the others go on."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from pinstorm.doctor import (
    counters,
    devices,
    interfaces,
    kernel,
    limits,
    memory,
    pin_budget,
    rdma_devices,
    scratch_places,
    virtualisation,
)
from pinstorm.doctor import sight as sights
from pinstorm.doctor.finding import Examination, Finding, Status, Topic
from pinstorm.doctor.sight import Options, Sight

_Room = Callable[[Sight], Iterable[Finding]]

_ROOMS: Final[tuple[tuple[Topic, _Room], ...]] = (
    (Topic.PIN_BUDGET, limits.findings),
    (Topic.RDMA, rdma_devices.findings),
    (Topic.MEMORY, memory.findings),
    (Topic.DEVICES, devices.findings),
    (Topic.INTERFACES, interfaces.findings),
    (Topic.COUNTERS, counters.findings),
    (Topic.KERNEL, kernel.findings),
    (Topic.SCRATCH, scratch_places.findings),
)


def examine(options: Options, note: Callable[[str], None] = lambda text: None) -> Examination:
    """Look at this host as this user, in less than two seconds where KVM is not tried.

    UsageError for a device or a directory that was named and is not there.
    """
    sight = sights.look(options)
    found: list[Finding] = []
    for topic, room in _ROOMS:
        found += _looked(topic, room, sight)
    lab = partial(virtualisation.findings, note=note)
    found += _looked(Topic.VIRTUALISATION, lab, sight)
    return Examination(sights.where(), pin_budget.budgets(sight), tuple(found))


def _looked(topic: Topic, room: _Room, sight: Sight) -> list[Finding]:
    """What a room found before something of this host was not as it is anywhere else."""
    found: list[Finding] = []
    try:
        found.extend(room(sight))
    except (OSError, ValueError) as error:
        name = topic.value.replace(" ", "-")
        seen = f"the rest could not be looked at: {error}"
        why = "what is not seen here may be missing, or hidden by a container"
        found.append(Finding(f"{name}-unseen", topic, Status.LIMITED, seen, why, unseen=(seen,)))
    return found
