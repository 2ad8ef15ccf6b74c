"""Kinds of memory that not every kernel or every boot has, and how much there is of each."""

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from pinstorm.needs.unmet import Unmet, lacks
from pinstorm.units import format_bytes, format_pages
from telemetry import hugepages, numa, process_status, thp, zoneinfo
from workloads import libc
from workloads.spec import PAGE_BYTES, CallFailed, Need

# The size of a huge page of the pool that a need speaks of.
POOLS = {Need.HUGETLB_2M: 2 << 20, Need.HUGETLB_1G: 1 << 30}
KSM_RUN = Path("/sys/kernel/mm/ksm/run")


def page_frames_visible() -> bool:
    # pagemap shows page frame numbers to CAP_SYS_ADMIN only, since Linux commit 1c90308e7a77
    # ("pagemap: hide physical addresses from non-privileged users") (in v4.2).
    return has_capability("CAP_SYS_ADMIN")


def has_capability(name: str) -> bool:
    status = process_status.read("self")
    return status is not None and bool(process_status.has_capability(status, name))


def free_huge_bytes() -> dict[Need, int]:
    """What each pool has to give; a pool that this kernel does not have is left out."""
    pools = hugepages.read()
    return {
        need: (pools[page_bytes].usable or 0) * page_bytes
        for need, page_bytes in POOLS.items()
        if page_bytes in pools
    }


def nodes_with_memory() -> tuple[int, ...]:
    """NUMA nodes that have memory; node 0 alone where the kernel knows of none."""
    return tuple(node.node for node in numa.read() if node.total_bytes) or (0,)


def movable_bytes(cma_ranges: Sequence[tuple[int, int]]) -> int:
    """How large CMA and ZONE_MOVABLE are together."""
    cma_pages = sum(end - first for first, end in cma_ranges)
    zone_pages = sum(zone.present_pages or 0 for zone in zoneinfo.read() if zone.name == "Movable")
    return (cma_pages + zone_pages) * PAGE_BYTES


def unmet(
    pools: Mapping[Need, int],
    numa_nodes: Sequence[int],
    in_movable_bytes: int,
    frames_visible: bool,
    devdax: str | None,
) -> list[Unmet]:
    """The kinds of memory that cannot be had at all."""
    found = [
        lacks(need, f"this kernel has no {format_bytes(page_bytes)} hugetlb pool")
        for need, page_bytes in POOLS.items()
        if need not in pools
    ]
    huge = thp.read()
    if not huge.on_request:
        detail = "no transparent huge pages" if huge.enabled is None else "they are off: never"
        found.append(lacks(Need.THP, detail))
    if len(numa_nodes) < 2:
        found.append(lacks(Need.NUMA, "this machine has one node with memory"))
    if not in_movable_bytes:
        detail = "this kernel has neither a CMA area nor a ZONE_MOVABLE"
        found.append(lacks(Need.MOVABLE, detail))
    elif not frames_visible:
        detail = "page frame numbers are hidden without CAP_SYS_ADMIN"
        found.append(lacks(Need.MOVABLE, detail))
    return found + _switched_off() + _devdax(devdax)


def _switched_off() -> list[Unmet]:
    found = []
    try:
        os.close(libc.memfd_secret())
    except CallFailed as error:
        found.append(lacks(Need.SECRETMEM, f"memfd_secret: {os.strerror(error.errno)}"))
    try:
        run = KSM_RUN.read_text().strip()
    except OSError as error:
        found.append(lacks(Need.KSM, f"{KSM_RUN}: {error.strerror}"))
    else:
        if run != "1":
            found.append(lacks(Need.KSM, f"ksmd does not run ({KSM_RUN} is {run})"))
    return found


def _devdax(node: str | None) -> list[Unmet]:
    if node is None:
        return [lacks(Need.DEVDAX, "no device-DAX node was named, and none is taken unasked")]
    if not os.access(node, os.R_OK | os.W_OK):
        return [lacks(Need.DEVDAX, f"{node} may not be opened for writing")]
    return []


def huge_shortage(need: Need, wanted_bytes: int, free_bytes: int) -> list[Unmet]:
    """When the pool has pages, but too few for the case."""
    if wanted_bytes <= free_bytes:
        return []
    page_bytes = POOLS[need]
    pages = wanted_bytes // page_bytes
    size = "" if need == Need.HUGETLB_2M else f" of {format_bytes(page_bytes)}"
    detail = f"{format_bytes(free_bytes)} free in the pool, {format_pages(pages)}{size} wanted"
    remedy = f"sysctl vm.nr_hugepages={pages} (or run with --setup, which gives it back)"
    return [Unmet(need, detail, remedy) if not size else lacks(need, detail)]


def movable_shortage(wanted_bytes: int, in_movable_bytes: int) -> list[Unmet]:
    # What is free there is used by others too; half of it is what a case can count on.
    if 2 * wanted_bytes <= in_movable_bytes:
        return []
    detail = f"CMA and ZONE_MOVABLE have {format_bytes(in_movable_bytes)}"
    return [lacks(Need.MOVABLE, detail)]


def memlock_ceiling_bytes() -> int | None:
    """The highest RLIMIT_MEMLOCK that a process of ours may set; None: any. See setrlimit(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY or has_capability("CAP_SYS_RESOURCE"):
        return None
    return hard


def memlock_shortage(wanted_bytes: int, ceiling_bytes: int | None) -> list[Unmet]:
    if ceiling_bytes is None or wanted_bytes <= ceiling_bytes:
        return []
    detail = (
        f"RLIMIT_MEMLOCK of {format_bytes(wanted_bytes)} wanted, the hard limit here is "
        f"{format_bytes(ceiling_bytes)} and this process may not raise it"
    )
    return [lacks(Need.MEMLOCK, detail)]
