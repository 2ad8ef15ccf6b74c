"""rdma.max, rdma.current and rdma.events of a control group: how many handles and objects of each
RDMA device its processes may have.

Counts; levels, the events monotonic; per group and device, each group's limit holds for all below
it. ``hca_handle``: opened devices; ``hca_object``: everything made on them (protection domains,
queue pairs, memory regions, …). A charge beyond a limit is refused with EAGAIN. The files are the
same in v1 and v2; the root group has none. Since Linux 4.11; rdma.events is there in 7.2 and not in
6.12. See Documentation/admin-guide/cgroup-v2.rst and kernel/cgroup/rdma.c.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from telemetry import cgroup

CONTROLLER = "rdma"


@dataclass(frozen=True, slots=True)
class RdmaLimit:
    """``resource``: hca_handle or hca_object. ``refused``: how often this limit was met by it or
    those below it; None where the kernel does not count."""

    group: str
    device: str
    resource: str
    limit: int
    used: int | None
    refused: int | None = None


def parse(text: str) -> dict[str, dict[str, int | None]]:
    """device -> resource (or event) -> number, None for ``max``."""
    found = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        values = (pair.partition("=") for pair in pairs)
        found[device] = {name: None if value == "max" else int(value) for name, _, value in values}
    return found


def limits(pid: int | str = "self", device: str | None = None) -> list[RdmaLimit]:
    """Every limit that holds for the process (on one device), from its own group upwards."""
    found = []
    for group in cgroup.groups_upwards(CONTROLLER, pid):
        allowed, used, events = (_files(group, name) for name in ("max", "current", "events"))
        found += list(_limits(group, device, allowed, used, events))
    return found


def used(group: Path, device: str) -> dict[str, int | None]:
    """resource -> how many the group and those below it have on the device; empty: none."""
    return _files(group, "current").get(device, {})


def _limits(
    group: Path,
    wanted: str | None,
    allowed: dict[str, dict[str, int | None]],
    used: dict[str, dict[str, int | None]],
    events: dict[str, dict[str, int | None]],
) -> Iterator[RdmaLimit]:
    for device, resources in allowed.items():
        for resource, limit in resources.items():
            if limit is None or wanted not in (None, device):
                continue
            yield RdmaLimit(
                group=str(group),
                device=device,
                resource=resource,
                limit=limit,
                used=used.get(device, {}).get(resource),
                refused=events.get(device, {}).get(f"{resource}.max"),
            )


def _files(group: Path, name: str) -> dict[str, dict[str, int | None]]:
    """Empty where the group has no such file."""
    with suppress(OSError, ValueError):
        return parse((group / f"rdma.{name}").read_text(encoding="ascii"))
    return {}
