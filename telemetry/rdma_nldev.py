"""NETLINK_RDMA: how many objects an RDMA device has, and what its on-demand regions went through.

A level, and monotonic counts; per device of this network namespace. The same figures as
rdma_resource, which asks the ``rdma`` program: here the kernel is asked directly, in microseconds
instead of milliseconds, so that they can be had often. RDMA_NLDEV_CMD_RES_GET since Linux 4.17;
RDMA_NLDEV_CMD_STAT_GET of memory regions is in v6.1, v6.12 and v7.2. Of their drivers mlx5 alone
fills it, for regions on demand (fill_stat_mr_entry() in drivers/infiniband/hw/mlx5/restrack.c):
page_faults, page_faults_handled, page_invalidations, page_invalidations_handled, page_prefetch. An
ordinary user gets the counts. See include/uapi/rdma/rdma_netlink.h and nldev.c in
drivers/infiniband/core.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

_NETLINK_RDMA = 20  # include/uapi/linux/netlink.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_TYPE_MASK = 0x3FFF  # include/uapi/linux/netlink.h, NLA_TYPE_MASK

# include/uapi/rdma/rdma_netlink.h
_NLDEV = 5 << 10
_RES_GET, _STAT_GET = 9, 17
_DEV_INDEX, _DEV_NAME = 1, 2
_SUMMARY, _SUMMARY_ENTRY, _ENTRY_NAME, _ENTRY_CURR = 15, 16, 17, 18
_RES_MR, _RES_MR_ENTRY = 40, 41
_STAT_RES, _STAT_COUNTERS, _STAT_COUNTER, _COUNTER_NAME, _COUNTER_VALUE = 75, 80, 81, 82, 83

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_ANSWER_BYTES = 1 << 16
_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Objects:
    """How many of each kind a device has: ``pd``, ``cq``, ``qp``, ``mr``, ``ctx``, ``srq``, …"""

    index: int
    device: str
    counts: dict[str, int]


def parse(data: bytes) -> tuple[list[Objects], bool]:
    """The devices of one answer, and whether it was the last. OSError for the kernel's error."""
    found: list[Objects] = []
    for body in _messages(data):
        if body is None:
            return found, True
        attributes = dict(_attributes(body))
        if _DEV_INDEX in attributes:
            counts = {}
            for _, entry in _attributes(attributes.get(_SUMMARY, b"")):
                fields = dict(_attributes(entry))
                counts[_text(fields[_ENTRY_NAME])] = _number(fields[_ENTRY_CURR])
            name = _text(attributes.get(_DEV_NAME, b""))
            found.append(Objects(_number(attributes[_DEV_INDEX]), name, counts))
    return found, False


def parse_statistics(data: bytes) -> tuple[dict[str, int], bool]:
    """What the regions of one answer counted, added up by name, and whether it was the last."""
    sums: dict[str, int] = {}
    for body in _messages(data):
        if body is None:
            return sums, True
        for _, region in _attributes(dict(_attributes(body)).get(_RES_MR, b"")):
            for _, counter in _attributes(dict(_attributes(region)).get(_STAT_COUNTERS, b"")):
                fields = dict(_attributes(counter))
                name, value = _text(fields[_COUNTER_NAME]), _number(fields[_COUNTER_VALUE])
                sums[name] = sums.get(name, 0) + value
    return sums, False


class Asked:
    """A question to the kernel that can be asked again and again. OSError without RDMA."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_RDMA)
        self._socket.settimeout(_DEADLINE_S)

    def objects(self) -> list[Objects]:
        """Of every device."""
        self._send(_RES_GET)
        found: list[Objects] = []
        done = False
        while not done:
            more, done = parse(self._socket.recv(_ANSWER_BYTES))
            found += more
        return found

    def region_statistics(self, index: int) -> dict[str, int]:
        """Over all regions of the device; empty where the driver counts nothing."""
        self._send(_STAT_GET, (_DEV_INDEX, index), (_STAT_RES, _RES_MR))
        sums: dict[str, int] = {}
        done = False
        while not done:
            more, done = parse_statistics(self._socket.recv(_ANSWER_BYTES))
            for name, value in more.items():
                sums[name] = sums.get(name, 0) + value
        return sums

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, operation: int, *attributes: tuple[int, int]) -> None:
        data = b"".join(struct.pack("=HHI", 8, kind, value) for kind, value in attributes)
        length, flags = _HEADER.size + len(data), _NLM_F_REQUEST | _NLM_F_DUMP
        self._socket.send(_HEADER.pack(length, _NLDEV + operation, flags, 1, 0) + data)


def _messages(data: bytes) -> Iterator[bytes | None]:
    """The body of each message; None for the one that says that all was told."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        body = data[_HEADER.size : length]
        if kind == _NLMSG_DONE:
            yield None
            return
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            raise OSError(code, os.strerror(code), "RDMA netlink")
        yield body
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("ascii", "replace")


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, "little" if struct.pack("=H", 1)[0] else "big")
