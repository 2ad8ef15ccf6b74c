"""RDMA, VFIO and video devices: which one a run uses, and what it can do.

On a host nothing is bound, loaded or configured: what is found is used, or the case is skipped.
"""

import errno
import fcntl
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pinstorm.errors import UsageError
from pinstorm.needs.unmet import Unmet, lacks
from telemetry import rdma
from workloads.spec import Need

Capabilities = Callable[[str], Mapping[str, Any]]

_PCI = Path("/sys/bus/pci")
_VIDEO = Path("/sys/class/video4linux")
# A camera may be in use, or somebody may sit before it; vivid is nobody's.
_VIVID_CAPTURE = re.compile(r"vivid-\d+-vid-cap")

# include/uapi/linux/videodev2.h: VIDIOC_REQBUFS, struct v4l2_requestbuffers, V4L2_BUF_TYPE_*,
# V4L2_MEMORY_*
_VIDIOC_REQBUFS = 0xC0145608
_REQUESTBUFFERS = struct.Struct("=IIIIB3x")
_VIDEO_CAPTURE = 1
_USERPTR = 2


def choose_device(wanted: str | None) -> str | None:
    """The device named, or else the first whose port is active; UsageError when it is not there."""
    devices = rdma.read()
    present = [entry.name for entry in devices]
    if wanted is not None:
        if wanted not in present:
            there = ", ".join(present) or "none"
            raise UsageError(
                f"rdma device {wanted!r} is not there (found: {there}); "
                "name one that is, or leave --device out"
            )
        return wanted
    active = [entry.name for entry in devices if any(p.state == "ACTIVE" for p in entry.ports)]
    return next(iter(active or present), None)


def rdma_unmet(
    device: str | None, capabilities: Capabilities, pyverbs_error: str | None
) -> list[Unmet]:
    """What the device and pyverbs lack for registrations, pinned and on demand."""
    if pyverbs_error is not None:
        remedy = (
            "apt install python3-pyverbs, and run under /usr/bin/python3 or a venv made from it"
        )
        detail = f"pyverbs cannot be used: {pyverbs_error}"
        return [Unmet(Need.RDMA_DEVICE, detail, remedy), Unmet(Need.RDMA_ODP, detail, remedy)]
    if device is None:
        detail = "this machine has no rdma device"
        return [lacks(Need.RDMA_DEVICE, detail), lacks(Need.RDMA_ODP, detail)]
    can = capabilities(device)
    if "error" in can:
        detail = f"{device} cannot be opened: {can['error']}"
        return [lacks(Need.RDMA_DEVICE, detail), lacks(Need.RDMA_ODP, detail)]
    if not (can["odp"] and can["odp_rc_write"] and can["odp_rc_read"]):
        detail = f"{device} has no on-demand paging for reads and writes over RC on this kernel"
        return [lacks(Need.RDMA_ODP, detail)]
    return []


def find(given: Mapping[str, str]) -> tuple[dict[str, str], list[Unmet]]:
    """The nodes of workloads.spec.Surroundings, and the needs for which there is none.

    ``given``: those that somebody named, which are used or refused; the others are looked for.
    """
    nodes = {kind: node for kind, node in given.items() if kind not in ("vfio", "v4l2")}
    unmet = []
    for kind, need, candidates, refusal, nothing in (
        ("vfio", Need.VFIO, _vfio_devices, _vfio_refusal, "no PCI device is bound to vfio-pci"),
        ("v4l2", Need.V4L2, _vivid_nodes, _v4l2_refusal, "no capture node of vivid"),
    ):
        reasons = []
        for node in [given[kind]] if kind in given else candidates():
            reason = refusal(node)
            if reason is None:
                nodes[kind] = node
                break
            reasons.append(f"{node}: {reason}")
        else:
            unmet.append(lacks(need, reasons[0] if reasons else nothing))
    return nodes, unmet


def _vfio_devices() -> list[str]:
    return sorted(path.name for path in (_PCI / "drivers/vfio-pci").glob("*:*:*.*"))


def _vfio_refusal(address: str) -> str | None:
    """Why the device's group or the container cannot be opened; None when both can."""
    group = _PCI / "devices" / address / "iommu_group"
    if not group.exists():
        return "it is behind no IOMMU"
    for node in (Path("/dev/vfio/vfio"), Path("/dev/vfio", group.resolve().name)):
        if (reason := _open_refusal(node)) is not None:
            return reason
    return None


def _vivid_nodes() -> list[str]:
    found = []
    for path in sorted(_VIDEO.glob("video*"), key=lambda path: (len(path.name), path.name)):
        if _VIVID_CAPTURE.fullmatch(_text(path / "name").strip()):
            found.append(f"/dev/{path.name}")
    return found


def _v4l2_refusal(node: str) -> str | None:
    """Why the node takes no user pointers for capture; asking for no buffers changes nothing."""
    try:
        fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return str(error.strerror)
    try:
        fcntl.ioctl(fd, _VIDIOC_REQBUFS, _REQUESTBUFFERS.pack(0, _VIDEO_CAPTURE, _USERPTR, 0, 0))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "it takes no user pointers"
        return f"VIDIOC_REQBUFS: {error.strerror}"
    finally:
        os.close(fd)
    return None


def _open_refusal(node: Path) -> str | None:
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{node}: {error.strerror}"
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
