"""Device nodes: opened for a case, and ioctls that are timed."""

import fcntl
import os
from time import monotonic_ns

from workloads import libc
from workloads.owner import Owner
from workloads.spec import CallFailed


def open_node(path: str, owner: Owner) -> int:
    """A descriptor for reading and writing, closed with ``owner``."""
    with libc.refusal_of("open", path):
        node = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    owner.release_with(path, lambda: os.close(node))
    return node


def timed_ioctl(
    call: str, node: int, request: int, argument: bytes | bytearray, detail: str = ""
) -> int:
    """The nanoseconds that it took. CallFailed, with the name of the request or call as ``call``.

    The kernel's answer is in ``argument`` when that is a bytearray.
    """
    ioctl = fcntl.ioctl
    start_ns = monotonic_ns()
    try:
        ioctl(node, request, argument)
    except OSError as error:
        elapsed_ns = monotonic_ns() - start_ns
        raise CallFailed(call, error.errno or 0, detail, elapsed_ns) from error
    return monotonic_ns() - start_ns
