"""/sys/kernel/iommu_groups: the groups of devices that an IOMMU keeps apart, and how it maps them.

Levels; machine-wide; readable by anyone. Since Linux 3.6, ``type`` since 5.11: ``identity`` (what a
device is given is the physical address), ``DMA`` and ``DMA-FQ`` (translated, unmapped at once or
later), ``blocked``, ``unmanaged`` (vfio has it). No group: no IOMMU, or it is off. See
Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/kernel/iommu_groups")


@dataclass(frozen=True, slots=True)
class Group:
    """``type``: None on a kernel that does not tell. ``devices``: PCI addresses and the like."""

    number: int
    type: str | None
    devices: tuple[str, ...]


def parse_type(text: str) -> str | None:
    return text.strip() or None


def read() -> list[Group]:
    """By number; empty without an IOMMU."""
    groups = []
    with contextlib.suppress(OSError):
        groups = [_read(path) for path in GROUPS.iterdir() if path.name.isdigit()]
    return sorted(groups, key=lambda group: group.number)


def _read(path: Path) -> Group:
    kind, devices = None, []
    with contextlib.suppress(OSError):
        kind = parse_type((path / "type").read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        devices = sorted(entry.name for entry in (path / "devices").iterdir())
    return Group(int(path.name), kind, tuple(devices))
