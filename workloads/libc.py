"""Every ctypes call of the project: what the standard library does not offer.

Functions that are timed by a workload return what the C function returned (-1 for a failure) and
leave errno to ``check``, which is called outside the timing. The others check for themselves. Both
raise CallFailed with the name of the C function.
"""

import ctypes
import functools
import os
import platform
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import ENODEV
from typing import Any, cast

from workloads.spec import PAGE_BYTES, CallFailed, PrepareFailed

# include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
PROT_NONE = 0x0
PROT_READ = 0x1
PROT_WRITE = 0x2
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_HUGETLB = 0x40000
MAP_FIXED_NOREPLACE = 0x100000  # since v4.17
MAP_HUGE_2MB = 21 << 26
MAP_HUGE_1GB = 30 << 26
MADV_DONTNEED = 4
MADV_FREE = 8  # since v4.5
MADV_DONTFORK = 10
MADV_DOFORK = 11
MADV_MERGEABLE = 12
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_PAGEOUT = 21  # since v5.4
MADV_POPULATE_READ = 22  # since v5.14
MADV_COLLAPSE = 25  # since v6.1

# include/uapi/linux/uio.h, include/linux/fs.h
UIO_MAXIOV = 1024
MAX_RW_COUNT = 0x7FFFF000

# include/linux/splice.h
SPLICE_F_NONBLOCK = 0x2

# include/linux/socket.h, include/uapi/asm-generic/socket.h
AF_XDP = 44
SOL_XDP = 283
SO_ZEROCOPY = 60
MSG_ZEROCOPY = 0x4000000

# include/uapi/linux/if_xdp.h
XDP_UMEM_REG = 4

# include/uapi/linux/in.h, include/uapi/linux/errqueue.h
IP_RECVERR = 11
SO_EE_ORIGIN_ZEROCOPY = 5
SO_EE_CODE_ZEROCOPY_COPIED = 1

# include/uapi/asm-generic/unistd.h: the same numbers on every architecture
NR_IO_URING_SETUP = 425
NR_IO_URING_ENTER = 426
NR_IO_URING_REGISTER = 427
NR_MEMFD_SECRET = 447

# include/uapi/linux/io_uring.h
IORING_REGISTER_BUFFERS = 0
IORING_UNREGISTER_BUFFERS = 1
IORING_REGISTER_BUFFERS2 = 15  # since v5.13
IORING_REGISTER_BUFFERS_UPDATE = 16  # since v5.13
IORING_RSRC_REGISTER_SPARSE = 1 << 0  # since v5.19
IORING_REGISTER_FILES = 2
IO_URING_BUFFER_BYTES = 1 << 30  # 6.1 and 6.12 refuse a longer iovec with EFAULT
IORING_OP_READ_FIXED = 4
IORING_OP_WRITE_FIXED = 5
IORING_OP_READ = 22
IORING_OP_WRITE = 23
IOSQE_FIXED_FILE = 1 << 0
IORING_ENTER_GETEVENTS = 1 << 0
IORING_ENTER_SQ_WAKEUP = 1 << 1
IORING_ENTER_EXT_ARG = 1 << 3
IORING_SQ_NEED_WAKEUP = 1 << 0
IORING_SETUP_SQPOLL = 1 << 1
IORING_SETUP_SUBMIT_ALL = 1 << 7  # since v5.18
IORING_SETUP_COOP_TASKRUN = 1 << 8  # since v5.19
IORING_SETUP_SINGLE_ISSUER = 1 << 12  # since v6.0
IORING_SETUP_DEFER_TASKRUN = 1 << 13  # since v6.1
IORING_OFF_SQ_RING = 0  # the completion queue too, as IORING_FEAT_SINGLE_MMAP says
IORING_OFF_SQES = 0x10000000
IORING_FEAT_SINGLE_MMAP = 1 << 0  # since v5.4
IORING_FEAT_EXT_ARG = 1 << 8  # since v5.11

# (mbind, move_pages): arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
NR_MBIND, NR_MOVE_PAGES = (237, 279) if platform.machine() == "x86_64" else (235, 239)
NR_SET_MEMPOLICY = 238 if platform.machine() == "x86_64" else 237
NR_MIGRATE_PAGES = 256 if platform.machine() == "x86_64" else 238

# include/uapi/linux/mempolicy.h
MPOL_BIND = 2
MPOL_MF_MOVE = 1 << 1

# include/uapi/linux/stat.h
STATX_ATTR_DAX = 0x00200000
STATX_BYTES = 256
STATX_ATTRIBUTES_OFFSET = 8

# include/uapi/linux/fcntl.h
AT_EMPTY_PATH = 0x1000

# include/uapi/linux/sched.h
CLONE_NEWNET = 0x40000000

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_CHILD_SUBREAPER = 36


# include/uapi/linux/capability.h: a set is two words of 32 bits
CAPABILITY_VERSION_3 = 0x20080522
CAP_NET_RAW = 13
CAP_IPC_LOCK = 14


class Iovec(ctypes.Structure):
    """struct iovec, include/uapi/linux/uio.h."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


Iovecs = ctypes.Array[Iovec]


class RingOffsets(ctypes.Structure):
    """struct io_sqring_offsets and struct io_cqring_offsets, include/uapi/linux/io_uring.h.

    The two differ in the names of three fields, which are named after both.
    """

    _fields_ = (
        ("head", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("ring_mask", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32),
        ("flags_or_overflow", ctypes.c_uint32),
        ("dropped_or_cqes", ctypes.c_uint32),
        ("array_or_flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("user_address", ctypes.c_uint64),
    )


class IoUringParams(ctypes.Structure):
    """struct io_uring_params, include/uapi/linux/io_uring.h."""

    _fields_ = (
        ("sq_entries", ctypes.c_uint32),
        ("cq_entries", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("sq_thread_cpu", ctypes.c_uint32),
        ("sq_thread_idle", ctypes.c_uint32),
        ("features", ctypes.c_uint32),
        ("wq_fd", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 3),
        ("sq_off", RingOffsets),
        ("cq_off", RingOffsets),
    )


class IoUringSqe(ctypes.Structure):
    """struct io_uring_sqe as reads and writes fill it, include/uapi/linux/io_uring.h."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("ioprio", ctypes.c_uint16),
        ("fd", ctypes.c_int32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("user_data", ctypes.c_uint64),
        ("buffer_index", ctypes.c_uint16),
        ("personality", ctypes.c_uint16),
        ("splice_fd", ctypes.c_int32),
        ("reserved", ctypes.c_uint64 * 2),
    )


class IoUringRsrcRegister(ctypes.Structure):
    """struct io_uring_rsrc_register, include/uapi/linux/io_uring.h."""

    _fields_ = (
        ("nr", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint64),
        ("data", ctypes.c_uint64),
        ("tags", ctypes.c_uint64),
    )


class IoUringRsrcUpdate2(ctypes.Structure):
    """struct io_uring_rsrc_update2, include/uapi/linux/io_uring.h."""

    _fields_ = (
        ("offset", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("data", ctypes.c_uint64),
        ("tags", ctypes.c_uint64),
        ("nr", ctypes.c_uint32),
        ("reserved2", ctypes.c_uint32),
    )


class IoUringCqe(ctypes.Structure):
    """struct io_uring_cqe, include/uapi/linux/io_uring.h."""

    _fields_ = (
        ("user_data", ctypes.c_uint64),
        ("result", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


class KernelTimespec(ctypes.Structure):
    """struct __kernel_timespec, include/uapi/linux/time_types.h."""

    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


class IoUringGeteventsArg(ctypes.Structure):
    """struct io_uring_getevents_arg, include/uapi/linux/io_uring.h; no signal mask."""

    _fields_ = (
        ("signal_mask", ctypes.c_uint64),
        ("signal_mask_bytes", ctypes.c_uint32),
        ("min_wait_us", ctypes.c_uint32),
        ("timespec", ctypes.c_uint64),
    )


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
_mprotect = _function("mprotect", _int, _size, _size, _int)
_mincore = _function("mincore", _int, _size, _size, _pointer)
_mlock = _function("mlock", _int, _size, _size)
_capset = _function("capset", _int, _pointer, _pointer)
_prctl = _function("prctl", _int, _int, _ulong, _ulong, _ulong, _ulong)
_statx = _function("statx", _int, _int, ctypes.c_char_p, _int, _uint, _pointer)
_syscall = _function("syscall", _long, _long, _long, _long, _pointer, _long)
# By subscript: a function object of its own, whose argument types do not change those of _syscall.
_syscall6 = _libc["syscall"]
_syscall6.restype = _long
_syscall6.argtypes = (_long, _long, _ulong, _pointer, _pointer, _pointer, _ulong)
# The same function again, with as many arguments as io_uring_enter has.
_syscall_enter = _libc["syscall"]
_syscall_enter.restype = _long
_syscall_enter.argtypes = (_long, _long, _long, _long, _long, _pointer, _long)
# For bound(), which see.
_bare = ctypes.PyDLL(None)
_syscall_bound = _bare["syscall"]
_syscall_bound.restype = _long
_errno_location = _bare["__errno_location"]
_errno_location.restype = _pointer
_vmsplice = _function("vmsplice", _ssize, _int, _pointer, _size, _uint)
_process_vm_readv = _function(
    "process_vm_readv", _ssize, _int, _pointer, _ulong, _pointer, _ulong, _ulong
)
_process_vm_writev = _function(
    "process_vm_writev", _ssize, _int, _pointer, _ulong, _pointer, _ulong, _ulong
)
_send = _function("send", _ssize, _int, _size, _size, _int)
_connect = _function("connect", _int, _int, ctypes.c_char_p, _uint)
_setns = _function("setns", _int, _int, _int)


Call = Callable[[], int]


def bound(function: Any, *arguments: Any, keep: object = None) -> Call:
    """A C function with arguments of the right C types, made by ``from_param``: call it bare.

    The quickest call that ctypes has, for what is called 100 000 times a second. Measured with five
    arguments, where a C program spends 1.9 µs in the call (CPython 3.11): this way 2.4 µs, of which
    the clock is 0.03 µs, ctypes 0.18 µs, and caches that the interpreter and the kernel take from
    each other the rest; 0.15 µs on top by swapping errno and giving up the interpreter lock,
    neither of which a process of one thread needs, and 0.3 µs by converting the arguments at each
    call. ``keep``: what must live as long as the call can be made. Failures: check_bound().
    """
    call: Any = functools.partial(function, *arguments)
    call.keep = keep
    return cast(Call, call)


def check_bound(call: str, result: int, detail: str = "", elapsed_ns: int = 0) -> int:
    """``result`` of what bound() made, or CallFailed with the thread's errno when it is -1.

    To be called at once: any other call may change errno.
    """
    if result == -1:
        raise CallFailed(call, bare_errno(), detail, elapsed_ns)
    return result


def bare_errno() -> int:
    """errno itself, not the copy of it that ctypes keeps."""
    return int(_int.from_address(_errno_location()).value)


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


def mmap(
    address: int, size_bytes: int, prot: int, flags: int, fd: int = -1, offset: int = 0
) -> int:
    """The address of the new mapping, which starts at that offset of the file."""
    return check("mmap", int(_mmap(address, size_bytes, prot, flags, fd, offset)))


def munmap(address: int, size_bytes: int) -> None:
    check("munmap", int(_munmap(address, size_bytes)))


def madvise(address: int, size_bytes: int, advice: int) -> None:
    check("madvise", int(_madvise(address, size_bytes, advice)), f"advice {advice}")


def mprotect(address: int, size_bytes: int, prot: int) -> None:
    check("mprotect", int(_mprotect(address, size_bytes, prot)))


def mlock(address: int, size_bytes: int) -> None:
    check("mlock", int(_mlock(address, size_bytes)))


def memfd_secret() -> int:
    """The descriptor of an empty file whose pages the kernel's direct map does not have."""
    close_on_exec = os.O_CLOEXEC
    return check("memfd_secret", int(_syscall(NR_MEMFD_SECRET, close_on_exec, 0, None, 0)))


def _node_mask(nodes: list[int], highest: int = 0) -> tuple[bytes, int]:
    """The words with a bit for each node, and how many bits to tell the kernel of: it looks at one
    less. ``highest``: the mask has room for that node, too."""
    mask = sum(1 << node for node in nodes)
    length = max([*nodes, highest]) // 64 * 8 + 8
    return mask.to_bytes(length, "little"), length * 8 + 1


def bind_to_node(address: int, size_bytes: int, node: int) -> None:
    """mbind: pages of the range that are not there yet come from this node only."""
    mask, bits = _node_mask([node])
    result = _syscall6(NR_MBIND, address, size_bytes, MPOL_BIND, mask, bits, 0)
    check("mbind", int(result), f"node {node}")


def take_memory_from(node: int) -> None:
    """set_mempolicy: what this process touches first from now on comes from this node only."""
    mask, bits = _node_mask([node])
    nodes = ctypes.create_string_buffer(mask, len(mask))
    result = _syscall6(NR_SET_MEMPOLICY, MPOL_BIND, ctypes.addressof(nodes), bits, None, None, 0)
    check("set_mempolicy", int(result), f"node {node}")


def nodes_of_pages(addresses: list[int]) -> list[int]:
    """The NUMA node of each page of this process, a negative errno where none is present.

    move_pages(2) without a target. Needs no privilege.
    """
    count = len(addresses)
    pages = (_pointer * count)(*addresses)
    status = (_int * count)()
    check("move_pages", int(_syscall6(NR_MOVE_PAGES, 0, count, pages, None, status, 0)))
    return list(status)


class Pages:
    """Pages of this process that are moved between NUMA nodes, time and again."""

    def __init__(self, addresses: list[int]):
        self.count = len(addresses)
        self._addresses = (_pointer * self.count)(*addresses)
        self._status = (_int * self.count)()
        self._targets: dict[int, ctypes.Array[ctypes.c_int]] = {}

    def move(self, node: int) -> int:
        """How many of them lie there now: move_pages(2), of pages that nobody else maps."""
        if node not in self._targets:
            self._targets[node] = (_int * self.count)(*[node] * self.count)
        result = _syscall6(
            NR_MOVE_PAGES,
            0,
            self.count,
            self._addresses,
            self._targets[node],
            self._status,
            MPOL_MF_MOVE,
        )
        check("move_pages", int(result), f"node {node}")
        return list(self._status).count(node)


def migrate_pages(pid: int, sources: Iterable[int], target: int) -> int:
    """How many pages of a process's memory on ``sources`` could not be moved to ``target``."""
    nodes = list(sources)
    highest = max([*nodes, target])
    old, bits = _node_mask(nodes, highest)
    new, _ = _node_mask([target], highest)
    result = _syscall6(NR_MIGRATE_PAGES, pid, bits, old, new, None, 0)
    return check("migrate_pages", int(result), f"process {pid} to node {target}")


def populate_read(address: int, size_bytes: int) -> bool:
    """Fault a mapped range in for reading; False where a part of it cannot be read."""
    return int(_madvise(address, size_bytes, MADV_POPULATE_READ)) == 0


def pages_in_memory(address: int, size_bytes: int) -> int:
    """Of a mapped file, the pages that are in the page cache, whoever brought them there.

    mincore(2), which tells it to those who may write to the file.
    """
    vector = (ctypes.c_uint8 * -(-size_bytes // PAGE_BYTES))()
    check("mincore", int(_mincore(address, size_bytes, vector)))
    return sum(byte & 1 for byte in vector)


def view(address: int, size_bytes: int) -> memoryview:
    """Mapped memory as writable bytes. It owns nothing: to use it after munmap is a segfault."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def size_of(structure: type[ctypes.Structure]) -> int:
    return ctypes.sizeof(structure)


def word_at(address: int) -> ctypes.c_uint32:
    """32 bits of memory that somebody else changes too: ``value`` reads and writes them."""
    return ctypes.c_uint32.from_address(address)


def last_errno() -> int:
    """errno of this thread's latest call through here."""
    return ctypes.get_errno()


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


def keep_capabilities_over_setuid() -> None:
    check("prctl", int(_prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)), "PR_SET_KEEPCAPS")


def stay_readable() -> None:
    """A process that changed its user may read its own /proc files again."""
    check("prctl", int(_prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)), "PR_SET_DUMPABLE")


def set_capabilities(numbers: Iterable[int], unused: Iterable[int] = ()) -> None:
    """These capabilities permitted and effective, and no others.

    ``unused``: permitted and inheritable too, but not effective.
    """
    used = sum(1 << number for number in numbers)
    idle = sum(1 << number for number in unused)
    # struct __user_cap_header_struct and two of struct __user_cap_data_struct
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (used, used | idle, idle)  # effective, permitted, inheritable
    low, high = [mask & 0xFFFFFFFF for mask in sets], [mask >> 32 for mask in sets]
    data = (ctypes.c_uint32 * 6)(*low, *high)
    check("capset", int(_capset(header, data)))


def adopt_orphans() -> None:
    """Orphaned descendants become this process's children, so that it can reap them."""
    check("prctl", int(_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)), "PR_SET_CHILD_SUBREAPER")


def io_uring_setup(entries: int, params: IoUringParams | None = None) -> int:
    """A new ring's file descriptor. The kernel sets close-on-exec, and fills ``params``."""
    filled = params or IoUringParams()
    address = ctypes.addressof(filled)
    return check("io_uring_setup", int(_syscall(NR_IO_URING_SETUP, entries, address, None, 0)))


def io_uring_enter(ring: int, to_submit: int, min_complete: int, flags: int) -> int:
    """Requests submitted, or -1."""
    return int(_syscall_enter(NR_IO_URING_ENTER, ring, to_submit, min_complete, flags, None, 0))


class IoUringWait:
    """io_uring_enter with a limit of time (IORING_ENTER_EXT_ARG) for one ring."""

    def __init__(self, ring: int) -> None:
        self._ring = ring
        self._limit = KernelTimespec()
        self._argument = IoUringGeteventsArg(timespec=ctypes.addressof(self._limit))
        self._address = ctypes.addressof(self._argument)
        self._bytes = ctypes.sizeof(self._argument)

    @property
    def words(self) -> tuple[int, int, memoryview]:
        """The argument's address and bytes, and its limit: seconds and nanoseconds."""
        return self._address, self._bytes, memoryview(self._limit)

    def limit_to(self, limit_ns: int) -> None:
        """How long the following calls wait at most."""
        self._limit.seconds, self._limit.nanoseconds = divmod(limit_ns, 1_000_000_000)

    def enter(self, to_submit: int, min_complete: int, flags: int) -> int:
        """Requests submitted, or -1; ETIME when none was and the limit passed."""
        return int(
            _syscall_enter(
                NR_IO_URING_ENTER,
                self._ring,
                to_submit,
                min_complete,
                flags | IORING_ENTER_EXT_ARG,
                self._address,
                self._bytes,
            )
        )


def io_uring_register_files(ring: int, files: list[int]) -> None:
    """The descriptors become the ring's fixed files, numbered from 0."""
    numbers = (ctypes.c_int32 * len(files))(*files)
    result = _syscall(NR_IO_URING_REGISTER, ring, IORING_REGISTER_FILES, numbers, len(files))
    check("io_uring_register", int(result), "IORING_REGISTER_FILES")


def io_uring_register(ring: int, opcode: int, buffers: Iovecs | None, count: int) -> int:
    """0 or -1."""
    return int(_syscall(NR_IO_URING_REGISTER, ring, opcode, buffers, count))


def io_uring_register_call(
    ring: int, opcode: int, argument: ctypes.Structure | Iovecs | None, count: int
) -> Call:
    """io_uring_register(2) with these arguments, ready to be called: 0 or more, or -1.

    What ``argument`` refers to in turn must be kept.
    """
    address = 0 if argument is None else ctypes.addressof(argument)
    numbers = (NR_IO_URING_REGISTER, ring, opcode, address, count)
    return bound(_syscall_bound, *map(_long.from_param, numbers), keep=argument)


def io_uring_sparse_table(ring: int, slots: int) -> None:
    """Give the ring a table of empty buffers, to be filled with IORING_REGISTER_BUFFERS_UPDATE."""
    table = IoUringRsrcRegister(nr=slots, flags=IORING_RSRC_REGISTER_SPARSE)
    call = io_uring_register_call(ring, IORING_REGISTER_BUFFERS2, table, ctypes.sizeof(table))
    check_bound("io_uring_register", call(), f"a sparse table of {slots} buffers")


def io_uring_update_call(ring: int, first: int, buffers: Iovecs, tag: int = 0) -> Call:
    """IORING_REGISTER_BUFFERS_UPDATE of the table's slots from ``first`` on, ready to be called.

    It returns how many were changed, or -1. An iovec of nulls empties its slot. With a tag, each
    buffer that is given back posts a completion.
    """
    tags = (ctypes.c_uint64 * len(buffers))(*[tag] * len(buffers))
    update = IoUringRsrcUpdate2(
        offset=first,
        data=ctypes.addressof(buffers),
        tags=ctypes.addressof(tags) if tag else 0,
        nr=len(buffers),
    )
    # What it points to must live as long as the call can be made.
    update.buffers, update.tag_words = buffers, tags
    size_bytes = ctypes.sizeof(update)
    return io_uring_register_call(ring, IORING_REGISTER_BUFFERS_UPDATE, update, size_bytes)


def vmsplice(pipe: int, vectors: Iovecs, flags: int) -> int:
    """Bytes that the pipe now refers to, or -1."""
    return int(_vmsplice(pipe, vectors, len(vectors), flags))


def process_vm_readv(pid: int, local: Iovecs, remote: Iovecs) -> int:
    """Bytes read, or -1."""
    return int(_process_vm_readv(pid, local, len(local), remote, len(remote), 0))


def process_vm_writev(pid: int, local: Iovecs, remote: Iovecs) -> int:
    """Bytes written, or -1."""
    return int(_process_vm_writev(pid, local, len(local), remote, len(remote), 0))


def send(sock: int, address: int, size_bytes: int, flags: int) -> int:
    """Bytes that the socket took, or -1."""
    return int(_send(sock, address, size_bytes, flags))


def enter_network_namespace(fd: int) -> None:
    """This thread is in it from now on; ``fd`` is an open /proc/PID/ns/net."""
    check("setns", int(_setns(fd, CLONE_NEWNET)), "CLONE_NEWNET")


def disconnect(sock: int) -> int:
    """Abort a TCP connection and keep the socket: 0 or -1."""
    unspecified = bytes(16)  # struct sockaddr with AF_UNSPEC, which is 0
    return int(_connect(sock, unspecified, len(unspecified)))


# -- libibverbs: registering without pyverbs, whose MR object costs as much as 64 KiB to pin -------


@functools.cache
def _verbs() -> ctypes.CDLL:
    """infiniband/verbs.h. Pointers to its structures are plain numbers here."""
    try:
        library = ctypes.PyDLL("libibverbs.so.1")
    except OSError as error:
        raise PrepareFailed(f"{error}: install the distribution's libibverbs1") from error
    for name, result, arguments in (
        ("ibv_get_device_list", _pointer, (_pointer,)),
        ("ibv_free_device_list", None, (_pointer,)),
        ("ibv_get_device_name", ctypes.c_char_p, (_pointer,)),
        ("ibv_open_device", _pointer, (_pointer,)),
        ("ibv_close_device", _int, (_pointer,)),
        ("ibv_alloc_pd", _pointer, (_pointer,)),
        ("ibv_dealloc_pd", _int, (_pointer,)),
        # bound() converts their arguments
        ("ibv_reg_mr", _pointer, None),
        ("ibv_dereg_mr", _int, None),
    ):
        function = getattr(library, name)
        function.restype = result
        if arguments is not None:
            function.argtypes = arguments
    return library


def ibv_open_device(name: str) -> int:
    """The context of the device of that name."""
    verbs, count = _verbs(), _int()
    devices = verbs.ibv_get_device_list(ctypes.byref(count))
    if not devices:
        raise CallFailed("ibv_get_device_list", bare_errno())
    try:
        for device in (_pointer * count.value).from_address(devices):
            if verbs.ibv_get_device_name(device) == name.encode():
                return _pointer_of("ibv_open_device", verbs.ibv_open_device(device), name)
    finally:
        verbs.ibv_free_device_list(devices)
    raise CallFailed("ibv_open_device", ENODEV, name)


def ibv_close_device(context: int) -> None:
    check_number("ibv_close_device", _verbs().ibv_close_device(context))


def ibv_alloc_pd(context: int) -> int:
    return _pointer_of("ibv_alloc_pd", _verbs().ibv_alloc_pd(context))


def ibv_dealloc_pd(domain: int) -> None:
    check_number("ibv_dealloc_pd", _verbs().ibv_dealloc_pd(domain))


def ibv_reg_mr_call(domain: int, address: int, size_bytes: int, access: int) -> Callable[[], Any]:
    """ibv_reg_mr(3) of that range, ready to be called: the region, or None and errno is set."""
    return bound(
        _verbs().ibv_reg_mr,
        _pointer.from_param(domain),
        _pointer.from_param(address),
        _size.from_param(size_bytes),
        _int.from_param(access),
    )


def ibv_dereg_mr() -> Callable[[object], int]:
    """ibv_dereg_mr(3): to be called with a pointer_argument(), it returns 0 or an errno."""
    return cast(Callable[[object], int], _verbs().ibv_dereg_mr)


def pointer_argument(address: int) -> object:
    """A pointer as a C function takes it without any conversion; see bound()."""
    return _pointer.from_param(address)


def _pointer_of(call: str, result: int | None, detail: str = "") -> int:
    if result is None:
        raise CallFailed(call, bare_errno(), detail)
    return result


def check_number(call: str, result: int) -> None:
    """Of functions that return an errno itself."""
    if result:
        raise CallFailed(call, result)
