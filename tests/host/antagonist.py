"""Another program that pins and unpins beside the case: for tests, and to try by hand.

``python antagonist.py KIND BYTES BURST_MS PAUSE_MS [FILE]`` prints a line when it has pinned once,
then goes on until its standard input ends. KIND: ``register`` (an io_uring's buffers,
and back), ``copy`` (process_vm_writev to itself), ``read`` (O_DIRECT reads of FILE), ``hold`` (as
``register``, and the pins are held in every other pause). BURST_MS: at full speed for so long, 0
for one operation; then it pauses for PAUSE_MS, 0 for never.
"""

import mmap
import os
import select
import sys
import time
from collections.abc import Callable

from workloads import libc

Operation = Callable[[], object]
# An iovec does not keep the memory alive that it names.
KEPT: list[mmap.mmap] = []


def register(size_bytes: int) -> tuple[Operation, Operation]:
    ring = libc.io_uring_setup(1)
    memory = touched(size_bytes)
    buffers = libc.iovecs([(libc.address_of(memory), size_bytes)])

    def take() -> None:
        libc.check("io_uring_register", libc.io_uring_register(ring, 0, buffers, 1))

    def give_back() -> None:
        libc.check("io_uring_register", libc.io_uring_register(ring, 1, None, 0))

    return take, give_back


def copy(size_bytes: int) -> Operation:
    memory, source = touched(size_bytes), touched(1 << 20)
    pieces = libc.pieces(0, size_bytes, 1 << 20)
    local = libc.iovecs([(libc.address_of(source), length) for _, length in pieces])
    remote = libc.iovecs([(libc.address_of(memory), size_bytes)])
    pid = os.getpid()
    return lambda: libc.check("process_vm_writev", libc.process_vm_writev(pid, local, remote))


def read(size_bytes: int, path: str) -> Operation:
    with open(path, "wb") as file:
        file.write(b"x" * size_bytes)
        os.fsync(file.fileno())
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    memory = touched(size_bytes)
    return lambda: os.preadv(direct, [memory], 0)


def touched(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:] = b"a" * size_bytes
    KEPT.append(memory)
    return memory


def main() -> int:
    kind, size_bytes = sys.argv[1], int(sys.argv[2])
    burst_s, pause_s = float(sys.argv[3]) / 1e3, float(sys.argv[4]) / 1e3
    take: Operation
    give_back: Operation = lambda: None  # noqa: E731
    if kind == "copy":
        take = copy(size_bytes)
    elif kind == "read":
        take = read(size_bytes, sys.argv[5])
    else:
        take, give_back = register(size_bytes)
    take()
    give_back()
    print("pinned", flush=True)
    while True:
        ends_s = time.monotonic() + burst_s
        while True:
            take()
            if kind == "hold" and pauses(pause_s):
                return 0
            give_back()
            if time.monotonic() >= ends_s and pause_s:
                break
            if not pause_s and pauses(0):
                return 0
        if pauses(pause_s):
            return 0


def pauses(pause_s: float) -> bool:
    """Wait that long; True when standard input has ended meanwhile."""
    return bool(select.select([sys.stdin], [], [], pause_s)[0])


if __name__ == "__main__":
    sys.exit(main())
