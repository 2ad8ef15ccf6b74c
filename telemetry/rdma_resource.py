"""RDMA objects in use, per device and per process: the kernel's resource tracking.

Counts, lengths in bytes; levels; of this network namespace's devices. Asked of the ``rdma`` program
(iproute2), which asks the kernel over netlink (RDMA_NLDEV_CMD_RES_GET, RDMA_NLDEV_CMD_RES_MR_GET,
since Linux 4.17); starting it takes a few milliseconds, 100 and more in an emulated guest. An
ordinary user gets the counts, and of the objects only those of its own processes' pid namespace.
A memory region on demand counts like a pinned one. See rdma-resource(8).
"""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class InUse:
    """How many of each kind a device has, by the kernel's names (``pd``, ``cq``, ``qp``, ``mr``,
    ``ctx``, ``srq``, ``cm_id``). None: this kernel does not count that kind."""

    device: str
    counts: dict[str, int]

    @property
    def mrs(self) -> int | None:
        return self.counts.get("mr")


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """``pid``: of the thread that registered it (fill_res_name_pid() gives its own id, not that of
    its process). None for the kernel's own, whose ``process`` is in brackets, and when that thread
    has ended, while its process may live: then ``process`` is empty. ``size_bytes``: as registered.
    """

    device: str
    pid: int | None
    size_bytes: int | None
    process: str


def parse(text: str) -> list[InUse]:
    """Of ``rdma -j resource show``. ValueError when it is no such list."""
    return [
        InUse(
            row["ifname"],
            {
                kind: count
                for kind, count in row.items()
                if kind != "ifindex" and isinstance(count, int)
            },
        )
        for row in _rows(text)
    ]


def parse_regions(text: str) -> list[MemoryRegion]:
    """Of ``rdma -j resource show mr``. ValueError when it is no such list."""
    return [
        MemoryRegion(row["ifname"], row.get("pid"), row.get("mrlen"), str(row.get("comm", "")))
        for row in _rows(text)
    ]


def _rows(text: str) -> list[dict[str, Any]]:
    rows = json.loads(text) if text.strip() else []
    if not isinstance(rows, list) or not all("ifname" in row for row in rows):
        raise ValueError(f"{text[:80]!r} is no list of rdma devices")
    return rows


def read() -> list[InUse] | None:
    """None without the program, or on a kernel without RDMA."""
    text = _ask("resource", "show")
    return None if text is None else parse(text)


def read_regions() -> list[MemoryRegion] | None:
    """Every memory region that this user may see. None as in ``read``."""
    text = _ask("resource", "show", "mr")
    return None if text is None else parse_regions(text)


def _ask(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["rdma", "-j", *words],
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
