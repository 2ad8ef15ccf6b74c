"""Every ctypes call of the project: what the standard library does not offer.

Functions that are timed by a workload return what the C function returned (-1 for a failure) and
leave errno to ``check``, which is called outside the timing. The others check for themselves. Both
raise CallFailed with the name of the C function.
"""

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workloads.spec import CallFailed

# include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MAP_HUGETLB = 0x40000
MAP_HUGE_2MB = 21 << 26
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_POPULATE_READ = 22  # since v5.14
MADV_COLLAPSE = 25  # since v6.1

# include/uapi/linux/uio.h, include/linux/fs.h
UIO_MAXIOV = 1024
MAX_RW_COUNT = 0x7FFFF000

# include/linux/splice.h
SPLICE_F_NONBLOCK = 0x2

# include/uapi/asm-generic/unistd.h: the same numbers on every architecture
NR_IO_URING_SETUP = 425
NR_IO_URING_REGISTER = 427

# include/uapi/linux/io_uring.h
IORING_REGISTER_BUFFERS = 0
IORING_UNREGISTER_BUFFERS = 1
IO_URING_BUFFER_BYTES = 1 << 30  # 6.1 and 6.12 refuse a longer iovec with EFAULT
IO_URING_PARAMS_BYTES = 120

# include/uapi/linux/stat.h
STATX_ATTR_DAX = 0x00200000
STATX_BYTES = 256
STATX_ATTRIBUTES_OFFSET = 8

# include/uapi/linux/fcntl.h
AT_EMPTY_PATH = 0x1000

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Iovec(ctypes.Structure):
    """struct iovec, include/uapi/linux/uio.h."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


Iovecs = ctypes.Array[Iovec]

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_libc, name)
    function.restype = result
    function.argtypes = arguments
    return function


_int, _uint, _long, _ulong = ctypes.c_int, ctypes.c_uint, ctypes.c_long, ctypes.c_ulong
_size, _ssize, _pointer = ctypes.c_size_t, ctypes.c_ssize_t, ctypes.c_void_p

# An address as a signed number: MAP_FAILED is then -1, as everywhere else.
_mmap = _function("mmap", _ssize, _size, _size, _int, _int, _int, _long)
_munmap = _function("munmap", _int, _size, _size)
_madvise = _function("madvise", _int, _size, _size, _int)
_prctl = _function("prctl", _int, _int, _ulong, _ulong, _ulong, _ulong)
_statx = _function("statx", _int, _int, ctypes.c_char_p, _int, _uint, _pointer)
_syscall = _function("syscall", _long, _long, _long, _long, _pointer, _long)
_vmsplice = _function("vmsplice", _ssize, _int, _pointer, _size, _uint)
_process_vm_writev = _function(
    "process_vm_writev", _ssize, _int, _pointer, _ulong, _pointer, _ulong, _ulong
)


def check(call: str, result: int, detail: str = "", elapsed_ns: int = 0) -> int:
    """``result``, or CallFailed with the errno of the latest call when it is -1."""
    if result == -1:
        raise CallFailed(call, ctypes.get_errno(), detail, elapsed_ns)
    return result


@contextmanager
def refusal_of(call: str, detail: str = "") -> Iterator[None]:
    """Turns the OSError of a standard library function into CallFailed, outside any timing."""
    try:
        yield
    except OSError as error:
        raise CallFailed(call, error.errno or 0, detail) from error


def mmap(address: int, size_bytes: int, prot: int, flags: int, fd: int = -1) -> int:
    """The address of the new mapping, which starts at the file's offset 0."""
    return check("mmap", int(_mmap(address, size_bytes, prot, flags, fd, 0)))


def munmap(address: int, size_bytes: int) -> None:
    check("munmap", int(_munmap(address, size_bytes)))


def madvise(address: int, size_bytes: int, advice: int) -> None:
    check("madvise", int(_madvise(address, size_bytes, advice)), f"advice {advice}")


def populate_read(address: int, size_bytes: int) -> bool:
    """Fault a mapped range in for reading; False where a part of it cannot be read."""
    return int(_madvise(address, size_bytes, MADV_POPULATE_READ)) == 0


def view(address: int, size_bytes: int) -> memoryview:
    """Mapped memory as writable bytes. It owns nothing: to use it after munmap is a segfault."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def address_of(buffer: Any) -> int:
    """Where a writable buffer (an mmap, a bytearray) lies, as long as it lives."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def is_dax(fd: int) -> bool:
    """Whether the file bypasses the page cache (statx; the flag is there since v5.8)."""
    status = ctypes.create_string_buffer(STATX_BYTES)
    check("statx", int(_statx(fd, b"", AT_EMPTY_PATH, 0, status)))
    attributes = status.raw[STATX_ATTRIBUTES_OFFSET : STATX_ATTRIBUTES_OFFSET + 8]
    return bool(int.from_bytes(attributes, "little") & STATX_ATTR_DAX)


def iovecs(pieces: list[tuple[int, int]]) -> Iovecs:
    """A struct iovec array of (address, bytes) pieces."""
    return (Iovec * len(pieces))(*(Iovec(base, length) for base, length in pieces))


def pieces(address: int, size_bytes: int, piece_bytes: int) -> list[tuple[int, int]]:
    """A range cut into (address, bytes) pieces of at most ``piece_bytes``."""
    return [
        (address + offset, min(piece_bytes, size_bytes - offset))
        for offset in range(0, size_bytes, piece_bytes)
    ]


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """A signal for this process when the thread that forked it ends; forks do not inherit it."""
    check("prctl", int(_prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)), "PR_SET_PDEATHSIG")


def adopt_orphans() -> None:
    """Orphaned descendants become this process's children, so that it can reap them."""
    check("prctl", int(_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)), "PR_SET_CHILD_SUBREAPER")


def io_uring_setup(entries: int) -> int:
    """A new ring's file descriptor. The kernel sets close-on-exec."""
    params = ctypes.create_string_buffer(IO_URING_PARAMS_BYTES)
    address = ctypes.addressof(params)
    return check("io_uring_setup", int(_syscall(NR_IO_URING_SETUP, entries, address, None, 0)))


def io_uring_register(ring: int, opcode: int, buffers: Iovecs | None, count: int) -> int:
    """0 or -1."""
    return int(_syscall(NR_IO_URING_REGISTER, ring, opcode, buffers, count))


def vmsplice(pipe: int, vectors: Iovecs, flags: int) -> int:
    """Bytes that the pipe now refers to, or -1."""
    return int(_vmsplice(pipe, vectors, len(vectors), flags))


def process_vm_writev(pid: int, local: Iovecs, remote: Iovecs) -> int:
    """Bytes written, or -1."""
    return int(_process_vm_writev(pid, local, len(local), remote, len(remote), 0))
