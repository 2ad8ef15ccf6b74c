"""Calls and device nodes of the kernel that pin: whether this process may use them.

Each is tried, and nothing is kept: a socket, a ring, a file that is closed again.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from pinstorm.needs.unmet import Unmet, lacks
from workloads import libc
from workloads.antagonists import COMPACT_MEMORY, DROP_CACHES
from workloads.gup_overflow import CLEAR_WARN_ONCE
from workloads.spec import CallFailed, Need

UDMABUF = Path("/dev/udmabuf")
GUP_TEST = Path("/sys/kernel/debug/gup_test")
LOOPBACK_DOWN = "the loopback interface is down"

# include/uapi/linux/sockios.h, if.h: struct ifreq
_SIOCGIFFLAGS = 0x8913
_IFREQ_FLAGS = struct.Struct("=16sH22x")
_IFF_UP = 1


def unmet() -> list[Unmet]:
    """The calls and nodes that cannot be used, each with the reason that the kernel gave."""
    found = []
    for need, probe in _PROBES.items():
        if (refusal := _refusal(probe)) is not None:
            found.append(lacks(need, refusal))
    return found


def _refusal(probe: Callable[[], str | None]) -> str | None:
    try:
        return probe()
    except CallFailed as error:
        return f"{error.call}: {os.strerror(error.errno)}"
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return place + (error.strerror or str(error))


def _io_uring() -> None:
    os.close(libc.io_uring_setup(1))


def _process_vm() -> None:
    """This process may at least write to itself."""
    byte = bytearray(1)
    place = libc.iovecs([(libc.address_of(byte), 1)])
    libc.check("process_vm_writev", libc.process_vm_writev(os.getpid(), place, place))


def _af_xdp() -> str | None:
    try:
        socket.socket(libc.AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        return f"socket(AF_XDP): {error.strerror}"
    return None


def _msg_zerocopy() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        try:
            stream.setsockopt(socket.SOL_SOCKET, libc.SO_ZEROCOPY, 1)
        except OSError as error:
            return f"setsockopt(SO_ZEROCOPY): {error.strerror}"
        # of this network namespace, of which /sys may show another
        answer = fcntl.ioctl(stream, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(b"lo", 0))
    _, flags = _IFREQ_FLAGS.unpack(answer)
    return None if flags & _IFF_UP else LOOPBACK_DOWN


def _udmabuf() -> None:
    os.close(os.open(UDMABUF, os.O_RDWR | os.O_CLOEXEC))


def _clear_warn_once() -> None:
    os.close(os.open(CLEAR_WARN_ONCE, os.O_WRONLY | os.O_CLOEXEC))


def _compaction() -> None:
    os.close(os.open(COMPACT_MEMORY, os.O_WRONLY | os.O_CLOEXEC))


def _drop_caches() -> None:
    os.close(os.open(DROP_CACHES, os.O_WRONLY | os.O_CLOEXEC))


def _gup_test() -> None:
    os.close(os.open(GUP_TEST, os.O_RDWR | os.O_CLOEXEC))


_PROBES: dict[Need, Callable[[], str | None]] = {
    Need.IO_URING: _io_uring,
    Need.PROCESS_VM: _process_vm,
    Need.AF_XDP: _af_xdp,
    Need.MSG_ZEROCOPY: _msg_zerocopy,
    Need.UDMABUF: _udmabuf,
    Need.GUP_TEST: _gup_test,
    Need.CLEAR_WARN_ONCE: _clear_warn_once,
    Need.COMPACTION: _compaction,
    Need.DROP_CACHES: _drop_caches,
}
