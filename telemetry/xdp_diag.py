"""NETLINK_SOCK_DIAG: AF_XDP sockets and the umem (packet memory) of each.

A level, per network namespace (that of the asking thread). Anyone may ask. Since Linux 5.1
(net/xdp/xsk_diag.c, include/uapi/linux/xdp_diag.h); the module xsk_diag is loaded by the kernel at
the first question, and kernels without CONFIG_XDP_SOCKETS_DIAG answer ENOENT. ``num_pages`` is what
the kernel pinned. A umem that sockets share has one id. A socket whose device has gone ends the
kernel's list (xsk_diag_fill() gives EMSGSIZE for XSK_UNBOUND): those behind it are not listed.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass

_AF_XDP = 44
_NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h
_SOCK_DIAG_BY_FAMILY = 20  # include/uapi/linux/sock_diag.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_XDP_SHOW_INFO, _XDP_SHOW_UMEM = 1 << 0, 1 << 2
_XDP_DIAG_INFO, _XDP_DIAG_UID, _XDP_DIAG_UMEM = 1, 2, 5

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_REQUEST = struct.Struct("=BBHII2I")  # struct xdp_diag_req
_MESSAGE = struct.Struct("=BBHI2I")  # struct xdp_diag_msg
_UMEM = struct.Struct("=Q8I")  # struct xdp_diag_umem
_ANSWER_BYTES = 1 << 16
_DEADLINE_S = 2.0


class NotOffered(OSError):
    """The kernel has no xsk_diag, built in or as a module that could be loaded."""


@dataclass(frozen=True, slots=True)
class Umem:
    """``id``: the same of sockets that share it. ``pages``: pinned, of PAGE_SIZE. ``refs``: the
    sockets that use it."""

    id: int
    size_bytes: int
    pages: int
    chunk_bytes: int
    refs: int


@dataclass(frozen=True, slots=True)
class XdpSocket:
    """``inode``: the low 32 bits of that of ``socket:[…]`` in /proc/PID/fd (more does not fit into
    xdiag_ino). ``interface``: 0 while it is not bound. ``umem``: None before XDP_UMEM_REG."""

    inode: int
    uid: int | None
    interface: int | None
    umem: Umem | None


def request() -> bytes:
    """A question for every socket of the network namespace."""
    asked = _REQUEST.pack(_AF_XDP, 0, 0, 0, _XDP_SHOW_INFO | _XDP_SHOW_UMEM, 0, 0)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    return _HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + asked


def parse(data: bytes) -> tuple[list[XdpSocket], bool]:
    """The sockets of one answer, and whether it was the last. OSError for the kernel's error."""
    found: list[XdpSocket] = []
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        body = data[_HEADER.size : length]
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", body)[0]
            error = NotOffered if code == errno.ENOENT else OSError
            raise error(code, os.strerror(code), "AF_XDP socket diagnosis")
        found.append(_parse_socket(body))
        data = data[_aligned(length) :]
    return found, False


def _parse_socket(body: bytes) -> XdpSocket:
    _, _, _, inode, _, _ = _MESSAGE.unpack_from(body)
    attributes = _attributes(body[_MESSAGE.size :])
    info, uid, umem = (
        attributes.get(kind) for kind in (_XDP_DIAG_INFO, _XDP_DIAG_UID, _XDP_DIAG_UMEM)
    )
    return XdpSocket(
        inode=inode,
        uid=None if uid is None else struct.unpack_from("=I", uid)[0],
        interface=None if info is None else struct.unpack_from("=I", info)[0],
        umem=None if umem is None else _parse_umem(umem),
    )


def _parse_umem(payload: bytes) -> Umem:
    size_bytes, number, pages, chunk_bytes, _, _, _, _, refs = _UMEM.unpack_from(payload)
    return Umem(number, size_bytes, pages, chunk_bytes, refs)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def read() -> list[XdpSocket]:
    """Raises NotOffered where the kernel cannot tell, OSError for anything else."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asked:
        asked.settimeout(_DEADLINE_S)
        asked.send(request())
        found: list[XdpSocket] = []
        done = False
        while not done:
            more, done = parse(asked.recv(_ANSWER_BYTES))
            found += more
    return found
