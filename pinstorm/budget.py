"""How much a run may pin on this machine: by default a quarter of the memory that is available."""

from collections.abc import Iterable

import workloads
from pinstorm.errors import UsageError
from pinstorm.units import format_bytes
from telemetry import cgroup, meminfo
from workloads.spec import Case

_SHARE = 4


def default_bytes() -> int:
    """A quarter of MemAvailable, or of what the tightest memory cgroup leaves, if that is less."""
    available = meminfo.read().available_bytes or 0
    limit = cgroup.tightest(cgroup.memory_limits())
    if limit is not None:
        available = min(available, limit.available_bytes)
    return available // _SHARE


def check(cases: Iterable[Case], budget_bytes: int) -> None:
    """UsageError when a case pins more than the budget. Cases run one at a time."""
    for case in cases:
        wanted_bytes = workloads.mapped_bytes(case)
        if wanted_bytes > budget_bytes:
            raise UsageError(
                f"case {case.id} would pin {format_bytes(wanted_bytes)}, more than the budget of "
                f"{format_bytes(budget_bytes)} (when left out, a quarter of the available memory); "
                "make it smaller, or raise --pin-budget"
            )
