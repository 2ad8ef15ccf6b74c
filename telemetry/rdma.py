"""/sys/class/infiniband: RDMA devices, their firmware and ports.

Levels; per network namespace (devices of others are hidden when the rdma subsystem is exclusive).
Since Linux 2.6.12; ``link_layer`` since 2.6.37. See
Documentation/ABI/stable/sysfs-class-infiniband.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

INFINIBAND = Path("/sys/class/infiniband")
# The device nodes through which verbs go; ``ibdev`` in each names the device.
VERBS = Path("/sys/class/infiniband_verbs")


@dataclass(frozen=True, slots=True)
class Port:
    """``state``: ACTIVE, DOWN, …; ``link_layer``: Ethernet (RoCE) or InfiniBand; ``rate`` as the
    kernel words it (``100 Gb/sec (4X EDR)``)."""

    number: int
    state: str | None
    physical_state: str | None
    link_layer: str | None
    rate: str | None
    lid: str | None


@dataclass(frozen=True, slots=True)
class Device:
    """``driver``: that of the parent device, None for software devices (rxe, siw)."""

    name: str
    firmware: str | None
    node_guid: str | None
    node_type: str | None
    hca_type: str | None
    board_id: str | None
    driver: str | None
    numa_node: int | None
    ports: tuple[Port, ...]


def parse_state(text: str) -> str:
    """``4: ACTIVE`` -> ``ACTIVE``."""
    return text.partition(":")[2].strip() or text.strip()


def read() -> list[Device]:
    """By name; empty on a kernel without RDMA."""
    try:
        folders = sorted(INFINIBAND.iterdir())
    except OSError:
        return []
    return [_read_device(folder) for folder in folders]


def read_one(name: str) -> Device | None:
    """The device of that name; None when it is not there."""
    folder = INFINIBAND / name
    return _read_device(folder) if folder.is_dir() else None


def interface_of(device: str, port: int) -> str | None:
    """The network interface that a RoCE port stands on; None of InfiniBand."""
    return _text(INFINIBAND / device / "ports" / str(port) / "gid_attrs" / "ndevs" / "0")


def device_of_node(path: str) -> str | None:
    """``/dev/infiniband/uverbs0`` -> ``rxe0``; None of what is no such node, or leads to none."""
    node = Path(path)
    return _text(VERBS / node.name / "ibdev") if node.name.startswith("uverbs") else None


def _read_device(folder: Path) -> Device:
    ports = sorted((folder / "ports").glob("[0-9]*"), key=lambda path: int(path.name))
    driver = folder / "device" / "driver"
    numa_node = _text(folder / "device" / "numa_node")
    return Device(
        name=folder.name,
        firmware=_text(folder / "fw_ver"),
        node_guid=_text(folder / "node_guid"),
        node_type=_state(folder / "node_type"),
        hca_type=_text(folder / "hca_type"),
        board_id=_text(folder / "board_id"),
        driver=driver.resolve().name if driver.exists() else _software_driver(folder),
        numa_node=None if numa_node in (None, "-1") else int(numa_node),
        ports=tuple(_read_port(path) for path in ports),
    )


def _software_driver(folder: Path) -> str | None:
    """Soft-RoCE has no device below it, but an attribute ``parent``, its network interface.

    drivers/infiniband/sw/rxe/rxe_verbs.c, parent_show(); siw has none.
    """
    return "rxe" if (folder / "parent").exists() else None


def _read_port(folder: Path) -> Port:
    return Port(
        number=int(folder.name),
        state=_state(folder / "state"),
        physical_state=_state(folder / "phys_state"),
        link_layer=_text(folder / "link_layer"),
        rate=_text(folder / "rate"),
        lid=_text(folder / "lid"),
    )


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    return None


def _state(path: Path) -> str | None:
    text = _text(path)
    return None if text is None else parse_state(text)
