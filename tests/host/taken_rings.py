"""What the workload ``orphan`` of faulty_workloads wants: somebody who takes its ring from it."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workloads import libc

_PIDFD_GETFD = 438  # on every architecture


@contextmanager
def taken_rings(directory: Path) -> Iterator[None]:
    """Until the end a copy of the ring that came last, at the fence in that directory, is held.

    A case that is run again comes again.
    """
    rings: list[int] = []
    with socket.socket(socket.AF_UNIX) as fence:
        fence.bind(str(directory / "fence"))
        fence.listen()
        receiver = threading.Thread(target=_take, args=(fence, rings))
        receiver.start()
        try:
            yield
        finally:
            fence.shutdown(socket.SHUT_RDWR)
            receiver.join(5)
            for ring in rings:
                os.close(ring)


def _take(fence: socket.socket, rings: list[int]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = fence.accept()
            with connection:
                pid, ring = (int(word) for word in connection.recv(64).split())
                while rings:
                    os.close(rings.pop())
                process = os.pidfd_open(pid)
                rings.append(
                    libc.check("pidfd_getfd", libc._syscall(_PIDFD_GETFD, process, ring, None, 0))
                )
                os.close(process)
