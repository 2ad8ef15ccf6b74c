"""/sys/class/infiniband/DEV: what an RDMA device and its ports counted.

``ports/N/counters``: those of the InfiniBand specification, in its units (port_xmit_data and
port_rcv_data in words of 4 bytes); hardware asks its firmware for them at each read; rxe has them
in v7.2 and not in v6.1. ``ports/N/hw_counters`` and ``hw_counters``: the driver's own, of a port
and of the device: packets, bytes, errors by the driver's names. Monotonic, save where a driver says
otherwise; per device; ``lifespan`` is no counter but for how many ms the kernel keeps a reading of
them (12 where a driver says nothing), so a reading may be that old. Since Linux 4.7. Page faults of
mlx5's regions on demand are not here: rdma_nldev. See
Documentation/ABI/stable/sysfs-class-infiniband.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from telemetry.rdma import INFINIBAND

_READ_BYTES = 64
_NO_COUNTERS = {"lifespan"}
_LARGEST = (1 << 63) - 1


def parse(data: bytes) -> int | None:
    """One counter's file. None of what is no number (``N/A (no PMA)``), or beyond 63 bits."""
    try:
        value = int(data)
    except ValueError:
        return None
    return value if 0 <= value <= _LARGEST else None


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each counter of a device: its place below the device, ``ports/1/hw_counters/sent_pkts``."""
    ports = sorted((folder / "ports").glob("[0-9]*"), key=lambda path: int(path.name))
    groups = [port / kind for port in ports for kind in ("counters", "hw_counters")]
    for group in (folder / "hw_counters", *groups):
        with contextlib.suppress(OSError):
            for path in sorted(group.iterdir()):
                if path.name not in _NO_COUNTERS:
                    yield str(path.relative_to(folder)), path


class DeviceCounters:
    """The counters of one device, their files held open. ``names``: those that are numbers now."""

    def __init__(self, device: str):
        self._fds: dict[str, int] = {}
        for name, path in files(INFINIBAND / device):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if parse(os.pread(fd, _READ_BYTES, 0)) is None:
                    os.close(fd)
                else:
                    self._fds[name] = fd

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._fds)

    def read(self) -> list[bytes]:
        """In the order of ``names``; empty what cannot be read any more."""
        return [_read(fd) for fd in self._fds.values()]

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}


def _read(fd: int) -> bytes:
    with contextlib.suppress(OSError):
        return os.pread(fd, _READ_BYTES, 0)
    return b""
