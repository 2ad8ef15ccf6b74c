"""RDMA: devices, ports and firmware, what they can do on demand, modules, and who may open them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.needed_by import needed_by
from pinstorm.doctor.sight import Sight
from pinstorm.units import format_bytes
from telemetry import modules, rdma, rdma_resource
from telemetry.rdma import Port
from telemetry.rdma_resource import InUse
from workloads.spec import Need

_NODES: Final = Path("/dev/infiniband")
_REGISTERS: Final = "fewer regions are left; beyond max_mr a registration is refused"
# Those of them that are loaded are told.
_CORE: Final = ("ib_core", "ib_uverbs", "rdma_cm", "rdma_ucm")
_PYVERBS: Final = "apt-get install python3-pyverbs"


def findings(sight: Sight) -> Iterator[Finding]:
    yield _devices(sight)
    in_use = {one.device: one for one in rdma_resource.read() or []} if sight.devices else {}
    for device in sight.devices:
        yield from _of_device(device, sight, in_use.get(device.name))
    yield _modules(sight)
    if sight.devices:
        yield _nodes(sight)
    yield _pyverbs(sight)


def _devices(sight: Sight) -> Finding:
    names = [device.name for device in sight.devices]
    return Finding(
        "rdma-devices",
        Topic.RDMA,
        Status.OK if names else Status.MISSING,
        f"devices: {', '.join(names)}" if names else "this machine has no rdma device",
        needed_by(Need.RDMA_DEVICE),
        None if names else _add_device(sight),
        {"devices": names},
    )


def _add_device(sight: Sight) -> str:
    """Soft-RoCE, where this kernel has it."""
    link = "rdma link add rxe0 type rxe netdev NETDEV"
    built = (sight.about.get("config") or {}).get("CONFIG_RDMA_RXE", "n")
    if built == "n" or (built == "m" and modules.can_load("rdma_rxe") is False):
        return "pinstorm lab run quick"
    return link if built == "y" else f"modprobe rdma_rxe && {link}"


def _of_device(device: rdma.Device, sight: Sight, in_use: InUse | None) -> Iterator[Finding]:
    said = sight.answers.of(device.name)
    yield _about(device)
    for port in device.ports:
        yield _port(device.name, port, (said.get("mtu_bytes") or {}).get(str(port.number)))
    yield _on_demand(device.name, said, sight)
    yield _regions(device.name, said, in_use)


def _about(device: rdma.Device) -> Finding:
    words = [f"{device.name}: driver {device.driver or 'not known'}"]
    words.append(f"firmware {device.firmware}" if device.firmware else "no firmware version")
    words += [word for word in (device.hca_type, device.board_id) if word]
    if device.numa_node is not None:
        words.append(f"NUMA node {device.numa_node}")
    figures = {
        "driver": device.driver,
        "firmware": device.firmware,
        "board_id": device.board_id,
        "numa_node": device.numa_node,
    }
    return Finding(
        f"rdma-device-{device.name}",
        Topic.RDMA,
        Status.OK,
        ", ".join(words),
        "results differ by driver and firmware, and by the node of the memory",
        None,
        figures,
    )


def _port(device: str, port: Port, mtu_bytes: int | None) -> Finding:
    words = [
        f"{device} port {port.number}: {port.state or 'state not known'}",
        port.link_layer or "link layer not known",
        port.rate or "rate not known",
        f"path MTU {mtu_bytes}" if mtu_bytes else "path MTU not known",
    ]
    up = port.state == "ACTIVE"
    return Finding(
        f"rdma-port-{device}-{port.number}",
        Topic.RDMA,
        Status.OK if up else Status.LIMITED,
        ", ".join(words),
        "memory can be registered without a link; RDMA traffic, with which rdma-register-odp "
        "faults its pages in, needs one",
        None if up else _raise_port(device, port),
        {
            "state": port.state,
            "link_layer": port.link_layer,
            "rate": port.rate,
            "mtu_bytes": mtu_bytes,
        },
    )


def _raise_port(device: str, port: Port) -> str | None:
    """RoCE follows its network interface; InfiniBand, once its link is up, a subnet manager."""
    if port.link_layer == "InfiniBand":
        return "opensm --daemon" if port.state == "INIT" else None
    interface = rdma.interface_of(device, port.number)
    return f"ip link set {interface} up" if interface else None


def _on_demand(device: str, said: Mapping[str, Any], sight: Sight) -> Finding:
    why = needed_by(Need.RDMA_ODP)
    if "error" in said:
        asked = sight.answers.pyverbs_error or said["error"]
        seen = f"{device}: what it can do on demand is not known: {asked}"
        command = _PYVERBS if sight.answers.pyverbs_error else None
        return Finding(f"rdma-odp-{device}", Topic.RDMA, Status.LIMITED, seen, why, command)
    served = [
        f"{transport} {', '.join(operations)}"
        for transport, operations in (("RC", said["odp_rc"]), ("UD", said["odp_ud"]))
        if operations
    ]
    able = bool(said["odp"] and said["odp_rc_write"] and said["odp_rc_read"])
    seen = f"{device}: on-demand paging of {'; '.join(served)}" if served else ""
    if said["odp_implicit"]:
        seen += "; implicit, of the whole address space"
    return Finding(
        f"rdma-odp-{device}",
        Topic.RDMA,
        Status.OK if able else Status.MISSING,
        seen or f"{device}: no on-demand paging on this kernel",
        why,
        None if able else "pinstorm lab run quick --kernel backports",
        {key: said[key] for key in ("odp", "odp_implicit", "odp_rc", "odp_ud")},
    )


def _regions(device: str, said: Mapping[str, Any], in_use: InUse | None) -> Finding:
    most, size = said.get("max_mr"), said.get("max_mr_size_bytes")
    mrs = None if in_use is None else in_use.mrs
    words = [f"{device}: max_mr {most if most is not None else 'not known'}"]
    words.append(f"max_mr_size {format_bytes(size) if size else 'not known'}")
    words.append("in use not known" if mrs is None else f"{mrs} regions in use")
    full = most is not None and mrs is not None and mrs >= most
    unseen = (
        ("what is in use: the program rdma (iproute2) is missing or failed",)
        if in_use is None
        else ()
    )
    return Finding(
        f"rdma-regions-{device}",
        Topic.RDMA,
        Status.LIMITED if full or most is None or unseen else Status.OK,
        ", ".join(words),
        _REGISTERS,
        "apt-get install iproute2" if in_use is None else None,
        {"max_mr": most, "max_mr_size_bytes": size},
        {"in_use": None if in_use is None else dict(in_use.counts)},
        unseen,
    )


def _modules(sight: Sight) -> Finding:
    why = "ib_uverbs makes the nodes through which programs register memory"
    loaded = modules.read()
    if loaded is None:
        built_in = rdma.VERBS.is_dir()
        seen = "this kernel has no modules" + (", and verbs built in" if built_in else "")
        status = Status.OK if built_in else Status.MISSING
        return Finding("rdma-modules", Topic.RDMA, status, seen, why, None, {"loaded": None})
    drivers = loaded["ib_core"].used_by if "ib_core" in loaded else ()
    names = sorted({name for name in (*_CORE, *drivers) if name in loaded})
    there = "ib_uverbs" in loaded or rdma.VERBS.is_dir()
    return Finding(
        "rdma-modules",
        Topic.RDMA,
        Status.OK if there else Status.MISSING,
        f"loaded: {', '.join(names)}" if names else "no rdma module is loaded",
        why,
        None if there else "modprobe ib_uverbs",
        {"loaded": names},
    )


def _nodes(sight: Sight) -> Finding:
    nodes = sorted(_NODES.glob("uverbs*")) if _NODES.is_dir() else []
    closed = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    seen = f"{len(nodes)} nodes below {_NODES}, which this user may open"
    if not nodes:
        seen = f"there is no uverbs node below {_NODES}"
    elif closed:
        seen = f"this user may not open {', '.join(closed)}"
    status = Status.MISSING if not nodes else Status.LIMITED if closed else Status.OK
    command = None
    if not nodes:
        command = "modprobe ib_uverbs"
    elif closed:
        command = f"chmod a+rw {' '.join(closed)}"
    return Finding(
        "rdma-nodes",
        Topic.RDMA,
        status,
        seen,
        needed_by(Need.RDMA_DEVICE),
        command,
        {"nodes": [node.name for node in nodes], "closed": closed},
    )


def _pyverbs(sight: Sight) -> Finding:
    error, silent = sight.answers.pyverbs_error, sight.answers.unanswered
    seen = "pyverbs is there"
    if error or silent:
        seen = f"pyverbs cannot be used: {error}" if error else f"not known: {silent}"
    return Finding(
        "pyverbs",
        Topic.RDMA,
        Status.MISSING if error else Status.LIMITED if silent else Status.OK,
        seen,
        f"{needed_by(Need.RDMA_DEVICE)}; and what a device can do is asked through it",
        _PYVERBS if error else None,
        {"usable": None if silent else error is None},
    )
