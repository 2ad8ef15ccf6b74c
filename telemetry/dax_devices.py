"""/sys/bus/dax/devices: device-DAX memory, its size, and whether it is a device or system memory.

Bytes; levels; machine-wide; readable by anyone. Since Linux 5.1 (before: /sys/class/dax). A device
bound to the driver ``kmem`` is system memory and has no node below /dev. See
Documentation/ABI/testing/sysfs-bus-dax.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/sys/bus/dax/devices")


@dataclass(frozen=True, slots=True)
class DaxDevice:
    """``driver``: ``device_dax``, ``kmem``, or None. ``node``: where it can be mapped."""

    name: str
    size_bytes: int | None
    driver: str | None
    node: Path


def parse_size(text: str) -> int | None:
    """None for what is no number, as of a device that is just being made."""
    return int(text) if text.strip().isdigit() else None


def read() -> list[DaxDevice]:
    """By name; empty without any, or on a kernel without device-DAX. Of no size: a seed."""
    try:
        folders = sorted(DEVICES.iterdir())
    except OSError:
        return []
    found = []
    for folder in folders:
        size = None
        with contextlib.suppress(OSError):
            size = parse_size((folder / "size").read_text(encoding="ascii"))
        driver = folder / "driver"
        name = driver.resolve().name if driver.exists() else None
        found.append(DaxDevice(folder.name, size, name, Path("/dev", folder.name)))
    return found
