"""/sys/devices/system/node/nodeN/meminfo and cpulist: memory and CPUs of each NUMA node.

Bytes; levels; per node. Since Linux 2.6; a machine without NUMA has node 0 only, a kernel without
CONFIG_NUMA may have none. See Documentation/ABI/stable/sysfs-devices-node.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

NODES = Path("/sys/devices/system/node")

_LINE = re.compile(r"^Node \d+ (\w+): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Node:
    """``cpus`` as the kernel lists them (``0-3,8``), empty for a node of memory only."""

    node: int
    total_bytes: int | None
    free_bytes: int | None
    cpus: str


def parse(meminfo: str, cpulist: str, node: int) -> Node:
    kib = {name: int(value) for name, value in _LINE.findall(meminfo)}
    total, free = kib.get("MemTotal"), kib.get("MemFree")
    return Node(
        node=node,
        total_bytes=None if total is None else total * 1024,
        free_bytes=None if free is None else free * 1024,
        cpus=cpulist.strip(),
    )


def read() -> list[Node]:
    folders = sorted(NODES.glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    return [
        parse(_text(path / "meminfo"), _text(path / "cpulist"), int(path.name[4:]))
        for path in folders
    ]


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii")
    return ""
