"""DAX, the IOMMU and vfio: what memory and devices beside the ordinary ones are there."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.needed_by import needed_by
from pinstorm.doctor.sight import Sight
from pinstorm.units import format_bytes
from telemetry import dax_devices, iommu, modules, mountinfo
from workloads.spec import Need

_OPTION: Final = re.compile(r"(?:^|\s)((?:\w+_)?iommu(?:\.\w+)?=\S+)")
_VFIO_ENTRIES: Final = ("vfio_iommu_type1", "dma_entry_limit")


def findings(sight: Sight) -> Iterator[Finding]:
    yield _mounts()
    yield _devdax()
    yield _iommu(sight)
    if sight.unsurveyed is None:
        yield _vfio(sight)


def _mounts() -> Finding:
    mounts = [mount for mount in mountinfo.read() if mountinfo.is_dax(mount)]
    words = [f"{mount.mount_point} ({mount.fs_type})" for mount in mounts]
    return Finding(
        "dax-mounts",
        Topic.DEVICES,
        Status.OK if mounts else Status.MISSING,
        f"mounted with dax: {', '.join(words)}" if words else "nothing is mounted with dax",
        f"{needed_by(Need.SCRATCH_DAX)}: long-term pins of its files are refused",
        None,
        {"mounts": [mount.mount_point for mount in mounts]},
    )


def _devdax() -> Finding:
    found = [one for one in dax_devices.read() if one.size_bytes]
    words = [
        f"{one.node if one.driver == 'device_dax' else one.name} "
        f"{format_bytes(one.size_bytes or 0)}, {one.driver or 'bound to no driver'}"
        for one in found
    ]
    able = [one for one in found if one.driver == "device_dax"]
    closed = [str(one.node) for one in able if not os.access(one.node, os.R_OK | os.W_OK)]
    status = Status.OK if able else Status.MISSING
    return Finding(
        "devdax",
        Topic.DEVICES,
        Status.LIMITED if closed else status,
        "; ".join(words) or "there is no device-DAX memory",
        f"{needed_by(Need.DEVDAX)}; on a host its contents are somebody's, and none is used",
        None,
        {"devices": {one.name: one.size_bytes for one in found}},
    )


def _iommu(sight: Sight) -> Finding:
    groups = iommu.read()
    types = Counter(group.type or "type not told" for group in groups)
    asked = _OPTION.findall(sight.about.get("cmdline") or "")
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(types.items()))
    seen = f"{len(groups)} IOMMU groups: {words}" if groups else "there is no IOMMU, or it is off"
    if asked:
        seen += f"; on the command line: {' '.join(asked)}"
    return Finding(
        "iommu",
        Topic.DEVICES,
        Status.OK if groups else Status.MISSING,
        seen,
        f"{needed_by(Need.VFIO)}; and every DMA mapping of pinned pages costs more behind a "
        "translating one (DMA, DMA-FQ) than with identity",
        None,
        {"groups": len(groups), "types": dict(types), "options": asked},
    )


def _vfio(sight: Sight) -> Finding:
    unmet = sight.survey.lacking.get(Need.VFIO)
    device = sight.survey.around.nodes.get("vfio")
    entries = modules.parameter(*_VFIO_ENTRIES)
    seen = unmet.detail if unmet else f"{device} is bound to vfio-pci, and can be opened"
    if entries:
        seen += f"; a container takes {entries} mappings (dma_entry_limit)"
    why = needed_by(Need.VFIO)
    return Finding(
        "vfio",
        Topic.DEVICES,
        Status.MISSING if unmet else Status.OK,
        seen,
        f"{why}: {unmet.remedy}" if unmet else why,
        None,
        {"device": device, "dma_entry_limit": entries},
    )
