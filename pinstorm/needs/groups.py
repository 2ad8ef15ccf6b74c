"""Control groups that a case's limits are made in: whether this process may."""

import os
from pathlib import Path

from pinstorm.needs.unmet import Unmet, lacks
from telemetry import cgroup
from workloads.spec import Need

_CONTROLLERS = {Need.CGROUP_RDMA: "rdma", Need.CGROUP_MEMORY: "memory"}


def unmet(may_change: bool) -> list[Unmet]:
    """What cannot be limited. ``may_change``: this run may change the machine, and give it back."""
    found = []
    own = cgroup.own_v2()
    for need, controller in _CONTROLLERS.items():
        refusal = "no cgroup v2 is mounted" if own is None else _refusal(own, controller)
        if refusal is None and not may_change:
            refusal = "it would be enabled for the groups below this process's own"
        if refusal is not None:
            found.append(lacks(need, f"{controller} controller: {refusal}"))
    return found + _changes(may_change)


def _refusal(own: Path, controller: str) -> str | None:
    """Why groups below our own cannot have the controller; None when they can."""
    try:
        if controller not in (own / "cgroup.controllers").read_text().split():
            return f"{own} does not have it"
        if controller in (own / "cgroup.subtree_control").read_text().split():
            return None
        # "no internal processes" of Documentation/admin-guide/cgroup-v2.rst; the root is exempt,
        # and the only group without this file
        if (own / "cgroup.type").exists():
            return f"{own} has processes of its own, so groups below it may not have controllers"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if not os.access(own / "cgroup.subtree_control", os.W_OK):
        return f"{own} may not be changed"
    return None


def _changes(may_change: bool) -> list[Unmet]:
    if not may_change:
        detail = "it changes a setting of the whole machine for a moment, which nobody asked for"
        return [lacks(Need.MACHINE_CHANGES, detail)]
    if os.geteuid() != 0:
        return [lacks(Need.MACHINE_CHANGES, "this process may not change the machine")]
    return []
