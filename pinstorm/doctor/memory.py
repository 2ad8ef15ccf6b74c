"""Kinds of memory: huge pages, transparent ones, CMA and ZONE_MOVABLE, NUMA nodes."""

from collections.abc import Iterator
from typing import Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.needed_by import needed_by
from pinstorm.doctor.sight import Sight
from pinstorm.needs.memory import POOLS
from pinstorm.units import format_bytes
from telemetry import hugepages, meminfo, numa, thp, zoneinfo
from telemetry.hugepages import Pool
from workloads.spec import PAGE_BYTES, Need

# What the command makes of an empty pool: enough for the cases of quick.toml.
_PAGES_OF: Final = {2 << 20: 64, 1 << 30: 1}
_THP_ENABLED: Final = thp.THP / "enabled"


def findings(sight: Sight) -> Iterator[Finding]:
    pools = hugepages.read()
    for page_bytes in sorted({*pools, *POOLS.values()}):
        yield _pool(page_bytes, pools.get(page_bytes))
    yield _transparent()
    yield _cma(sight)
    yield _movable()
    yield _numa()
    yield _page_frames(sight)


def _pool(page_bytes: int, pool: Pool | None) -> Finding:
    size = format_bytes(page_bytes)
    needs = [need for need, known in POOLS.items() if known == page_bytes]
    why = needed_by(*needs) or "hugetlb memory of that size"
    name = f"hugepages-{size.replace(' ', '')}"
    if pool is None:
        seen = f"this kernel has no pool of {size} pages"
        command = None
        if page_bytes == 1 << 30:
            seen += " (the CPU's pdpe1gb, or hugepagesz= on the command line)"
        return Finding(name, Topic.MEMORY, Status.MISSING, seen, why, command, {"total": None})
    usable = pool.usable or 0
    command = None
    if not usable:
        wanted = (pool.total or 0) + _PAGES_OF.get(page_bytes, 1)
        command = f"echo {wanted} > {hugepages.pool_size_file(page_bytes)}"
    return Finding(
        name,
        Topic.MEMORY,
        Status.OK if usable else Status.LIMITED,
        f"{pool.total} pages of {size}, {usable} free",
        why,
        command,
        {"total": pool.total},
        {"free": pool.free, "reserved": pool.reserved, "surplus": pool.surplus},
    )


def _transparent() -> Finding:
    huge = thp.read()
    why = needed_by(Need.THP)
    figures = {"enabled": huge.enabled, "defrag": huge.defrag, "shmem": huge.shmem_enabled}
    if huge.enabled is None:
        seen = "this kernel has no transparent huge pages"
        return Finding("thp", Topic.MEMORY, Status.MISSING, seen, why, None, figures)
    seen = f"transparent huge pages: {huge.enabled}, defrag {huge.defrag or 'not known'}"
    if huge.shmem_enabled:
        seen += f", shmem {huge.shmem_enabled}"
    able = huge.on_request
    command = None if able else f"echo madvise > {_THP_ENABLED}"
    status = Status.OK if able else Status.LIMITED
    return Finding("thp", Topic.MEMORY, status, seen, why, command, figures)


def _cma(sight: Sight) -> Finding:
    info = meminfo.read()
    why = f"{needed_by(Need.MOVABLE)}; a long-term pin moves its pages out of CMA first"
    if not info.cma_total_bytes:
        seen = "this kernel has no CMA area" + ("" if info.cma_total_bytes == 0 else " (no CMA)")
        figures = {"total_bytes": info.cma_total_bytes}
        return Finding("cma", Topic.MEMORY, Status.MISSING, seen, why, None, figures)
    placed = bool(sight.survey.around.cma_ranges)
    unseen = () if placed else ("where CMA lies: the kernel log and debugfs are for root",)
    free = "" if info.cma_free_bytes is None else f", {format_bytes(info.cma_free_bytes)} free"
    return Finding(
        "cma",
        Topic.MEMORY,
        Status.LIMITED if unseen else Status.OK,
        f"CMA of {format_bytes(info.cma_total_bytes)}{free}",
        why,
        None,
        {"total_bytes": info.cma_total_bytes},
        {"free_bytes": info.cma_free_bytes},
        unseen,
    )


def _movable() -> Finding:
    zones = [zone for zone in zoneinfo.read() if zone.name == "Movable" and zone.present_pages]
    total = sum(zone.present_pages for zone in zones) * PAGE_BYTES
    free = sum(zone.free_pages or 0 for zone in zones) * PAGE_BYTES
    seen = "there is no ZONE_MOVABLE"
    if total:
        seen = f"ZONE_MOVABLE of {format_bytes(total)}, {format_bytes(free)} free"
    return Finding(
        "zone-movable",
        Topic.MEMORY,
        Status.OK if total else Status.MISSING,
        seen,
        f"{needed_by(Need.MOVABLE)}; it is made by movablecore= or kernelcore= at boot, or by "
        "memory that was added",
        None,
        {"total_bytes": total},
        {"free_bytes": free},
    )


def _numa() -> Finding:
    nodes = [node for node in numa.read() if node.total_bytes]
    words = [
        f"node {node.node}: {format_bytes(node.total_bytes or 0)}, "
        f"{format_bytes(node.free_bytes or 0)} free, CPUs {node.cpus or 'none'}"
        for node in nodes
    ]
    return Finding(
        "numa",
        Topic.MEMORY,
        Status.OK if len(nodes) > 1 else Status.MISSING,
        "; ".join(words) or "this kernel tells no node",
        f"{needed_by(Need.NUMA)}: two nodes with memory",
        None,
        {"nodes": {str(node.node): node.total_bytes for node in nodes}},
        {"free_bytes": {str(node.node): node.free_bytes for node in nodes}},
    )


def _page_frames(sight: Sight) -> Finding:
    visible = sight.survey.around.page_frames_visible
    return Finding(
        "page-frames",
        Topic.MEMORY,
        Status.OK if visible else Status.LIMITED,
        f"page frame numbers are {'visible' if visible else 'hidden without CAP_SYS_ADMIN'}",
        "the record's placement (zone, CMA, node, folio sizes), and memories that are verified by "
        f"it: {needed_by(Need.MOVABLE)}",
        None,
        {"visible": visible},
        {},
        () if visible else ("in which zone and on which node pages lie: run as root",),
    )
