"""The machine in one dictionary, for a bundle's manifest: whatever can explain a difference.

Put together from the other readers, plus /proc/cmdline and /proc/version (machine-wide, constant
from boot to boot). Cheap enough for an emulated guest; imports nothing heavy.
"""

import os
import platform
import resource
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from telemetry import (
    cgroup,
    cma,
    cpuinfo,
    hugepages,
    kernel_config,
    meminfo,
    mountinfo,
    numa,
    process_status,
    rdma,
    sysctl,
    taint,
    thp,
    zoneinfo,
)

CMDLINE = Path("/proc/cmdline")
VERSION = Path("/proc/version")

LIMITS = ("MEMLOCK", "NOFILE", "NPROC", "AS", "DATA", "STACK", "CORE")
EMPTY_CALLS = 2000


def collect() -> dict[str, Any]:
    """JSON-ready; None or an absent key where this machine does not tell."""
    return {
        "hostname": platform.node(),
        "kernel": kernel(),
        "cpu": asdict(cpuinfo.read()),
        "memory": memory(),
        "numa": [asdict(node) for node in numa.read()],
        "sysctl": sysctl.relevant(),
        "rdma": [asdict(device) for device in rdma.read()],
        "limits": limits(),
        "page_bytes": resource.getpagesize(),
        "empty_call_ns": empty_call_ns(),
    }


def kernel() -> dict[str, Any]:
    uname = os.uname()
    config = kernel_config.read()
    tainted = taint.read()
    return {
        "release": uname.release,
        "version": uname.version,
        "machine": uname.machine,
        "build": _text(VERSION),
        "cmdline": _text(CMDLINE),
        "tainted": None if tainted is None else taint.letters(tainted),
        "config_source": config[0] if config else None,
        "config": kernel_config.relevant(config[1]) if config else None,
    }


def memory() -> dict[str, Any]:
    info = meminfo.read()
    tightest = cgroup.tightest(cgroup.memory_limits())
    return {
        "total_bytes": info.total_bytes,
        "available_bytes": info.available_bytes,
        "swap_bytes": info.swap_total_bytes,
        "cma_bytes": info.cma_total_bytes,
        "cma_areas": [asdict(area) for area in cma.read_sysfs() or []],
        "cgroup_limit": asdict(tightest) if tightest else None,
        "cgroup_v2": mountinfo.cgroup2() is not None,
        "hugepages": {str(size): asdict(pool) for size, pool in hugepages.read().items()},
        "thp": asdict(thp.read()),
        "zones": [
            {
                "node": zone.node,
                "name": zone.name,
                "start_pfn": zone.start_pfn,
                "spanned_pages": zone.spanned_pages,
                "present_pages": zone.present_pages,
            }
            for zone in zoneinfo.read()
            if zone.present_pages
        ],
    }


def limits() -> dict[str, Any]:
    """Of this process: resource limits as [soft, hard] (None: unlimited), who it is, what it may.

    A case's child calls this itself: what it sees is what counts.
    """
    status = process_status.read()
    return {
        "rlimits": {name: _limit(name) for name in LIMITS},
        "uid": status.uid,
        "gid": status.gid,
        "capabilities": process_status.capability_names(status.cap_eff or 0),
        "seccomp": status.seccomp,
        "no_new_privs": status.no_new_privs,
        "affinity": sorted(os.sched_getaffinity(0)),
    }


def _limit(name: str) -> list[int | None]:
    pair = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return [None if value == resource.RLIM_INFINITY else value for value in pair]


def empty_call_ns() -> dict[str, int]:
    """What timing itself costs: the distance of two clock readings with nothing between them."""
    clock = time.monotonic_ns
    distances = []
    for _ in range(EMPTY_CALLS):
        before = clock()
        distances.append(clock() - before)
    return {"median": int(statistics.median(distances)), "maximum": max(distances)}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
