"""The circumstances under which a case fails (``under``): the runner's half of making them.

What a process can do to itself is made in the child (workloads.circumstances). What takes root or
changes the machine is made here, around the child: control groups, sysctls, the device itself. All
of it goes through pinstorm.host's undo file or the case's own cgroup leaf, and is given back when
the case has ended, however it ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import psutil

from pinstorm import host, needs
from pinstorm.containment import Containment
from pinstorm.errors import PinstormError
from telemetry import cgroup, maps, rdma_cgroup, sysctl
from workloads.spec import Case, Need, Surroundings

# Beyond what any process of the machine has now: nobody else is to meet the lowered limit.
_SPARE_MAPPINGS: Final = 1000

_VIVID: Final = Path("/sys/bus/platform/drivers/vivid")


class CircumstanceFailed(PinstormError):
    """What was to be wrong around a case is not: the case says nothing."""


class Circumstance:
    """What surrounds one case. Entered before the child is forked; left when it is gone."""

    def __init__(self, case: Case, around: Surroundings, containment: Containment):
        self._case = case
        self._around = around
        self._leaf = containment.leaf
        self._under = case.params.get("under")
        self._noted = 0
        # What could not be given back, a sentence each.
        self.left: list[str] = []

    def __enter__(self) -> Self:
        """Raises CircumstanceFailed, as ``tighten`` does."""
        self._noted = host.noted()
        with self._told():
            match self._under:
                case "mappings-used-up":
                    _lower_mappings()
                case "rdma-objects-limited":
                    _enable(rdma_cgroup.CONTROLLER)
            if Need.CGROUP_MEMORY in needs.needs_of(self._case):
                _enable("memory")
        return self

    def __exit__(self, *_: object) -> None:
        if host.noted() > self._noted:
            self.left = host.undo(self._noted)

    def tighten(self, pid: int) -> None:
        """The child is prepared and stands before acquire: take from it what the case is about."""
        with self._told():
            match self._under:
                case "rdma-objects-limited":
                    self._limit_objects()
                case "memory-limited":
                    self._limit_memory(pid)
                case "driver-unbound":
                    _unbind_vivid()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (PinstormError, OSError) as error:
            self.__exit__()
            raise CircumstanceFailed(f"{self._under} could not be made: {error}") from error

    def _limit_objects(self) -> None:
        """No more of them on this device than the child has made in prepare."""
        leaf, device = self._own_leaf(), self._around.device
        held = rdma_cgroup.used(leaf, str(device)).get("hca_object") or 0
        host.change(
            leaf / "rdma.max",
            f"{device} hca_object={held}",
            undo=(leaf / "rdma.max", f"{device} hca_object=max"),
        )

    def _limit_memory(self, pid: int) -> None:
        """Room for a quarter of the case's memory; and nobody is killed for want of more."""
        leaf = self._own_leaf()
        Path(f"/proc/{pid}/oom_score_adj").write_text("-1000")
        used = int((leaf / "memory.current").read_text())
        limit_bytes = used + self._case.size_bytes // 4
        host.change(leaf / "memory.max", str(limit_bytes), undo=(leaf / "memory.max", "max"))

    def _own_leaf(self) -> Path:
        if self._leaf is None:
            raise PinstormError(f"the case has no control group of its own: {self._case.id}")
        return self._leaf


def _enable(controller: str) -> None:
    """Let the groups below our own have the controller, as the case's leaf is one."""
    own = cgroup.own_v2()
    if own is None:
        raise PinstormError(f"there is no cgroup v2 for the {controller} controller")
    switch = own / "cgroup.subtree_control"
    if controller not in switch.read_text().split():
        host.change(switch, f"+{controller}", undo=(switch, f"-{controller}"))


def _lower_mappings() -> None:
    counts = []
    for pid in psutil.pids():
        with suppress(OSError):
            counts.append(maps.vma_count(pid))
    path = sysctl.SYS / "vm/max_map_count"
    now = int(path.read_text())
    host.change(path, str(min(now, max(counts) + _SPARE_MAPPINGS)))


def _unbind_vivid() -> None:
    """Take the virtual video device from its driver; it comes back when the case has ended."""
    devices = sorted(_VIVID.glob("vivid.*"))
    if not devices:
        raise PinstormError(f"{_VIVID} has no device")
    for device in devices:
        host.change(_VIVID / "unbind", device.name, undo=(_VIVID / "bind", device.name))
