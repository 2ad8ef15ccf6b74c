"""A case in one process: its memory and the operation on it."""

import importlib
import time
from typing import Any

import workloads
from telemetry import placement
from workloads import disturbance, memory, user
from workloads.channel import Channel
from workloads.circumstances import Made
from workloads.memory import evacuation
from workloads.owner import Owner
from workloads.spec import Case, Operation, PrepareFailed, Surroundings


class Prepared:
    """A case's memory and its operation. The memory can be made anew under the same operation."""

    def __init__(self, case: Case, around: Surroundings):
        self.case = case
        self._around = around
        self._spec = workloads.memory_spec(case.memory)
        self._module = importlib.import_module(workloads.workload_spec(case.workload).module)
        self._memory = Owner()
        self._tools = Owner()
        self._where: dict[str, Any] | None = None
        self.errors: list[str] = []
        self.memory_ns = 0

    def prepare(self) -> None:
        """Make the memory, open what the workload needs. Raises CallFailed or PrepareFailed."""
        circumstance = self._make_circumstance()
        self._region = self._make_memory()
        if "uid" in self.case.params:
            self._where = self._see()
        user.become(self.case)
        self.operation: Operation = self._module.prepare(
            self.case, self._region, self._around, self._tools
        )
        self.operation = circumstance.around(self.operation, self._region)
        if self.case.params.get("during") == "thread-exit":
            alone = disturbance.InThread(self.operation)
            self._tools.release_with("thread", alone.end_thread)
            self.operation = alone

    def renew_memory(self) -> None:
        """The same memory again, in the state it had before the first cycle."""
        self._memory.close()
        self._region = self._make_memory()
        self.operation.aim_at(self._region)

    def disturb(self) -> int:
        """What must not touch the pins that are held: ``during``. See workloads.disturbance."""
        during = str(self.case.params["during"])
        return disturbance.disturb(during, self._region, self.operation)

    def region_bytes(self) -> tuple[int, int]:
        """Address and length of what is handed to the kernel."""
        return self._region.address, self._region.size_bytes

    def members(self) -> list[dict[str, int]]:
        """No other process than this."""
        return []

    def load(self, runner: Channel) -> dict[str, Any]:
        raise PrepareFailed("the case is no load")

    def placement(self) -> dict[str, Any] | None:
        """Where the pages lie now; None where page frames are hidden.

        An ordinary user cannot see it: then where they lay when they were made.
        """
        return self._see() if "uid" not in self.case.params else self._where

    def _see(self) -> dict[str, Any] | None:
        if not self._around.page_frames_visible:
            return None
        region, areas = self._region, self._around.cma_ranges
        where = placement.of(region.address, region.size_bytes, areas, evacuation.zone_layout())
        return None if where is None else where.to_json()

    def close(self) -> None:
        """The operation first: it may still refer to the memory. Never raises; see ``errors``."""
        for owner in (self._tools, self._memory):
            owner.close()
            self.errors += owner.errors

    def _make_circumstance(self) -> Made:
        """The child's half of what is wrong around the case, if anything is."""
        name = self.case.params.get("under")
        module = None if name is None else workloads.circumstance_spec(str(name)).module
        if module is None:
            return Made()
        made: Made = importlib.import_module(module).prepare(self.case, self._around, self._tools)
        return made

    def _make_memory(self) -> memory.Region:
        start_ns = time.monotonic_ns()
        region = memory.prepare(
            self._spec, self.case.size_bytes, self._around, self._memory, self.case.offset_bytes
        )
        self.memory_ns = time.monotonic_ns() - start_ns
        return region
