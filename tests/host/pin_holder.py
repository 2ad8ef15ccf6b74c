"""A process that holds pins until its standard input ends: pin_holder.py KIND BYTES [UID].

Started by tests, on the host and in a guest. Says ``ready`` and its process id in one JSON line
once everything is pinned, or what refused. KIND: io-uring, io-uring-twice (the same buffer in two
slots), io-uring-thp, io-uring-forked (a child has the ring, too), xdp-umem, rdma-mr, rdma-mr-odp,
rdma-mr-thread (registered by a thread that has ended), vfio (of the PCI device in $VFIO_DEVICE,
beside as much that is mlocked), udmabuf, mlock.
"""

import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable

from workloads import libc, memory_spec, udmabuf, vfio
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import CallFailed, Case, Surroundings

HUGE_BYTES = 2 << 20


def anon(size_bytes: int, advice: int = libc.MADV_NOHUGEPAGE) -> int:
    """Touched memory, aligned to a huge page."""
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
    address = libc.mmap(0, size_bytes + HUGE_BYTES, libc.PROT_READ | libc.PROT_WRITE, flags)
    address = -(-address // HUGE_BYTES) * HUGE_BYTES
    libc.madvise(address, size_bytes, advice)
    memory = libc.view(address, size_bytes)
    for offset in range(0, size_bytes, 4096):
        memory[offset] = 1
    return address


def ring(size_bytes: int, advice: int = libc.MADV_NOHUGEPAGE, slots: int = 1) -> int:
    fd = libc.io_uring_setup(1)
    buffers = libc.iovecs([(anon(size_bytes, advice), size_bytes)] * slots)
    opcode = libc.IORING_REGISTER_BUFFERS
    libc.check("io_uring_register", libc.io_uring_register(fd, opcode, buffers, slots))
    return fd


def forked(size_bytes: int) -> int:
    """A ring that a child, which ends with this process, has open as well."""
    fd = ring(size_bytes)
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    return fd


def umem(size_bytes: int) -> socket.socket:
    with libc.refusal_of("socket", "AF_XDP"):
        held = socket.socket(libc.AF_XDP, socket.SOCK_RAW)
        registration = struct.pack("=QQII", anon(size_bytes), size_bytes, 4096, 0)
        held.setsockopt(libc.SOL_XDP, libc.XDP_UMEM_REG, registration)
    return held


def region(size_bytes: int, access: str = "rw", by_thread: bool = False) -> object:
    # here, not above: the host may have no pyverbs
    from workloads import verbs

    owner = Owner()
    _, domain = verbs.open_device("rxe0", owner)
    address, flags = anon(size_bytes), verbs.access_flags(access)
    registered: list[object] = [owner]

    def register() -> None:
        registered.append(verbs.register(domain, address, size_bytes, flags)[0])

    if by_thread:
        thread = threading.Thread(target=register)
        thread.start()
        thread.join()
    else:
        register()
    return registered


def locked(size_bytes: int) -> int:
    address = anon(size_bytes)
    libc.mlock(address, size_bytes)
    return address


def container(size_bytes: int) -> object:
    owner = Owner()
    spec, address = memory_spec("anon"), anon(size_bytes)
    region = Region(spec, address, size_bytes, size_bytes, libc.view(address, size_bytes))
    around = Surroundings(nodes={"vfio": os.environ["VFIO_DEVICE"]})
    mapping = vfio.prepare(Case("vfio-map", "anon", {}), region, around, owner)
    mapping.acquire()
    return owner, mapping, locked(size_bytes)


def dma_buf(size_bytes: int) -> object:
    owner = Owner()
    memfd = os.memfd_create("pins", os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, size_bytes)
    spec, address = memory_spec("memfd"), anon(size_bytes)
    region = Region(spec, address, size_bytes, size_bytes, libc.view(address, size_bytes), memfd)
    made = udmabuf.prepare(Case("udmabuf", "memfd", {}), region, Surroundings(), owner)
    made.acquire()
    return owner, made


KINDS: dict[str, Callable[[int], object]] = {
    "io-uring": ring,
    "io-uring-twice": lambda size: ring(size, slots=2),
    "io-uring-thp": lambda size: ring(size, libc.MADV_HUGEPAGE),
    "io-uring-forked": forked,
    "xdp-umem": umem,
    "rdma-mr": region,
    "rdma-mr-odp": lambda size: region(size, "LOCAL_WRITE|ON_DEMAND"),
    "rdma-mr-thread": lambda size: region(size, by_thread=True),
    "vfio": container,
    "udmabuf": dma_buf,
    "mlock": locked,
}


def main() -> None:
    kind, size_bytes = sys.argv[1], int(sys.argv[2])
    if len(sys.argv) > 3:
        os.setresuid(*[int(sys.argv[3])] * 3)
        libc.stay_readable()
    try:
        held = KINDS[kind](size_bytes)
    except CallFailed as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    print(json.dumps({"ready": os.getpid()}), flush=True)
    sys.stdin.read()
    del held


if __name__ == "__main__":
    main()
