"""The closed list of causes: why a call that was to pin memory failed.

``unknown`` is an honest answer; a wrong cause is a defect. docs/causes.md is ``markdown()``.
"""

import textwrap
from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Each is one thing that stands in the way, and has one kind of remedy."""

    LONGTERM_ON_DAX = "longterm-on-dax"
    LONGTERM_ON_FILE = "longterm-on-file"
    MIGRATION_FAILED = "migration-failed"
    MEMLOCK_LIMIT = "memlock-limit"
    CAPABILITY_MISSING = "capability-missing"
    PIN_BUDGET_OF_USER = "pin-budget-of-user"
    NO_MEMORY = "no-memory"
    VMA_LIMIT = "vma-limit"
    BAD_ADDRESS = "bad-address"
    NOT_MAPPED = "not-mapped"
    PROTECTION = "protection"
    SECRET_MEMORY = "secret-memory"
    IO_MAPPING = "io-mapping"
    ODP_UNSUPPORTED = "odp-unsupported"
    DEVICE_LIMIT = "device-limit"
    CGROUP_RDMA_LIMIT = "cgroup-rdma-limit"
    DEVICE_GONE = "device-gone"
    MISALIGNED = "misaligned"
    PIN_COUNT_LIMIT = "pin-count-limit"
    KERNEL_UNSUPPORTED = "kernel-unsupported"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is to be said of a cause whatever the case.

    ``meaning``: half a sentence, for tables. ``refused``: the calls and their errnos. ``tell``:
    what to look at. ``remedy``: what to do.
    """

    meaning: str
    refused: str
    tell: str
    remedy: str


RAISE_MEMLOCK = (
    "raise RLIMIT_MEMLOCK of the process; for its next start, where it is started: `memlock "
    "unlimited` in /etc/security/limits.conf for a login, LimitMEMLOCK=infinity in its systemd "
    "unit, `docker run --ulimit memlock=-1` for a container"
)
GIVE_CAPABILITY = (
    "or give the program CAP_IPC_LOCK, which lifts the limit: `setcap cap_ipc_lock+ep PROGRAM`, "
    "AmbientCapabilities=CAP_IPC_LOCK in its unit, `docker run --cap-add IPC_LOCK`"
)

KNOWLEDGE: dict[Cause, Knowledge] = {
    Cause.LONGTERM_ON_DAX: Knowledge(
        "a long-term pin of a file on a DAX file system",
        "EOPNOTSUPP of ibv_reg_mr, io_uring_register, XDP_UMEM_REG, VFIO_IOMMU_MAP_DMA and "
        "VIDIOC_PREPARE_BUF (check_vma_flags() in mm/gup.c), rw or ro, shared or private; EFAULT "
        "of io_uring and V4L2, ENOMEM of AF_XDP, when only a later part of the range is such a "
        "file",
        "the file system of the mapping is mounted with dax, or statx says STATX_ATTR_DAX of the "
        "file; a device-DAX node (/dev/daxN.N) is not meant",
        "use device DAX (/dev/daxN.N), or on-demand paging, which pins nothing; or mount without "
        "dax; short-term pins (direct IO, process_vm) are allowed",
    ),
    Cause.LONGTERM_ON_FILE: Knowledge(
        "a writable long-term pin of a shared file with dirty tracking",
        "EFAULT of ibv_reg_mr with write access, io_uring_register, XDP_UMEM_REG, "
        "VFIO_IOMMU_MAP_DMA and VIDIOC_PREPARE_BUF from v6.5 on (8ac268436e6d); before it only of "
        "io_uring_register, EOPNOTSUPP",
        "the mapping is shared (`s` in /proc/PID/maps) and its file lies on ext4, xfs, btrfs, nfs "
        "or any other file system that writes pages back; tmpfs, memfd and hugetlbfs are not meant",
        "register it read-only, or map the file MAP_PRIVATE, or use a memfd, tmpfs or hugetlbfs "
        "and copy; on-demand paging pins nothing",
    ),
    Cause.MIGRATION_FAILED: Knowledge(
        "pages in CMA or ZONE_MOVABLE that cannot be moved out",
        "ENOMEM of every long-term pin (migrate_longterm_unpinnable_folios() in mm/gup.c)",
        "pgmigrate_fail in /proc/vmstat moves with each attempt; memory is free; a pipe, a socket "
        "or a direct IO holds a reference on the pages, or no memory is free outside",
        "have the other references given back (drain the pipe, wait for the IO) and try again; or "
        "use memory outside CMA and ZONE_MOVABLE: huge pages of the pool, movable_node and cma= of "
        "the kernel command line",
    ),
    Cause.MEMLOCK_LIMIT: Knowledge(
        "this process's RLIMIT_MEMLOCK is too small for this request",
        "ibv_reg_mr ENOMEM before pinning (mm->pinned_vm, VmPin), EPERM when the limit is 0; "
        "io_uring_register ENOMEM after pinning and XDP_UMEM_REG and MSG_ZEROCOPY ENOBUFS before "
        "it (user->locked_vm, all processes of the user); VFIO_IOMMU_MAP_DMA ENOMEM after pinning "
        "(mm->locked_vm, VmLck), mlock ENOMEM; mmap of secret memory EAGAIN. On-demand paging, "
        "V4L2, udmabuf, direct IO and process_vm are charged to nobody",
        "Max locked memory in /proc/PID/limits, against VmPin (RDMA) or VmLck (vfio, mlock) of "
        "/proc/PID/status plus what was asked for; CapEff has no CAP_IPC_LOCK",
        f"{RAISE_MEMLOCK}; {GIVE_CAPABILITY}",
    ),
    Cause.CAPABILITY_MISSING: Knowledge(
        "CAP_IPC_LOCK is there and not effective, or a capability is missing",
        "what memlock-limit gives, in a process that has CAP_IPC_LOCK permitted, inheritable or "
        "in a user namespace of its own; EPERM of socket(AF_XDP) without CAP_NET_RAW, of "
        "process_vm_* without CAP_SYS_PTRACE, of io_uring_setup where kernel.io_uring_disabled "
        "forbids it",
        "CapEff, CapPrm and CapInh of /proc/PID/status (bit 14 is CAP_IPC_LOCK), and whether "
        "/proc/PID/ns/user is the initial one: RDMA, io_uring, AF_XDP and vfio ask there",
        "make the capability effective: `setcap cap_ipc_lock+ep PROGRAM` (e is effective, p is "
        "permitted), AmbientCapabilities= in its systemd unit, or capset() in the program; in a "
        f"container with a user namespace it never counts: {RAISE_MEMLOCK}",
    ),
    Cause.PIN_BUDGET_OF_USER: Knowledge(
        "other processes of this user hold the rest of the limit",
        "io_uring_register ENOMEM, XDP_UMEM_REG and MSG_ZEROCOPY ENOBUFS: they share "
        "user->locked_vm. RDMA and vfio don't: each process has the whole limit",
        "RLIMIT_MEMLOCK alone would be enough; `pinstorm pins` lists what other processes of the "
        "user hold. An AF_XDP registration that failed half-way leaves its charge behind (v6.1 to "
        "v7.2)",
        "end what holds the rest, or run it as another user; or raise RLIMIT_MEMLOCK of the "
        "process that is refused to what all of them need together: it is compared with the sum",
    ),
    Cause.NO_MEMORY: Knowledge(
        "no memory can be had: the machine's, the cgroup's, or the huge page pool's",
        "ENOMEM of any call, EFAULT of io_uring_register when the first pages could be had; of "
        "mmap also for an empty huge page pool, RLIMIT_AS and strict overcommit; a process "
        "killed by the OOM killer has no errno at all",
        "MemAvailable, memory.max of the cgroup against memory.current less what is page cache "
        "(inactive_file of memory.stat), HugePages_Free, RLIMIT_AS against VmSize, CommitLimit; "
        "`Out of memory` in the kernel log",
        "give it more: memory of the machine, memory.max of the cgroup, vm.nr_hugepages of the "
        "pool; or ask for less",
    ),
    Cause.VMA_LIMIT: Knowledge(
        "the process has as many mappings as vm.max_map_count allows",
        "ENOMEM of mprotect, munmap and mmap, EAGAIN of madvise, and of ibv_reg_mr where "
        "libibverbs guards against fork (ibv_fork_init, RDMAV_FORK_SAFE: MADV_DONTFORK splits a "
        "mapping at each region); nothing in the kernel log",
        "lines of /proc/PID/maps against /proc/sys/vm/max_map_count",
        "raise vm.max_map_count; or register few large ranges instead of many small ones; on "
        "kernels that copy pinned pages at fork and say so (RDMA_NLDEV_SYS_ATTR_COPY_ON_FORK) "
        "libibverbs asks for no guard: use a newer kernel or rdma-core",
    ),
    Cause.BAD_ADDRESS: Knowledge(
        "an address range that no process can have: it wraps or lies beyond",
        "EINVAL of ibv_reg_mr, EOVERFLOW of io_uring_register and VFIO_IOMMU_MAP_DMA where address "
        "plus length wraps, or the length is 0 (io_uring EFAULT); EFAULT beyond the address space",
        "address and length as they were passed: a sign extension, a pointer of a device",
        "pass the address and length of memory that the process has mapped",
    ),
    Cause.NOT_MAPPED: Knowledge(
        "part of the range is not mapped, or lies behind the end of its file",
        "EFAULT of every call; a short transfer of direct IO through btrfs, process_vm, vmsplice "
        "and send when it begins well; ENOMEM of XDP_UMEM_REG when it begins well; EINVAL of "
        "UDMABUF_CREATE behind the file's end",
        "/proc/PID/maps for the whole range, and the length of the file behind it",
        "map the whole range before it is registered, make the file long enough (ftruncate), and "
        "keep both until it is deregistered",
    ),
    Cause.PROTECTION: Knowledge(
        "the mapping does not allow the access that was asked for",
        "EFAULT of every call; io_uring, AF_XDP, vfio and V4L2 capture always pin for writing; "
        "RDMA with LOCAL_WRITE, REMOTE_WRITE, REMOTE_ATOMIC or MW_BIND",
        "the permissions in /proc/PID/maps: `w` for what is written, `r` for what is read",
        "map it readable and writable (mprotect), or register it read-only where the interface can",
    ),
    Cause.SECRET_MEMORY: Knowledge(
        "memfd_secret memory, which the kernel itself cannot reach",
        "EFAULT of every call that gets user pages (check_vma_flags() in mm/gup.c)",
        "the mapping is called /secretmem in /proc/PID/maps",
        "use other memory and copy: secret memory is made to be unreachable, and mlock'ed already",
    ),
    Cause.IO_MAPPING: Knowledge(
        "a mapping of device memory (VM_IO, VM_PFNMAP), which has no pages to pin",
        "EFAULT of every call (check_vma_flags() in mm/gup.c), but VFIO_IOMMU_MAP_DMA, which maps "
        "VM_PFNMAP",
        "`io` or `pf` among the VmFlags of the mapping in /proc/PID/smaps",
        "register memory of a GPU or another device as a dma-buf (ibv_reg_dmabuf_mr) or through "
        "its peer-memory driver; a bounce buffer of ordinary memory always works",
    ),
    Cause.ODP_UNSUPPORTED: Knowledge(
        "the device or its driver has no on-demand paging",
        "ibv_reg_mr with IBV_ACCESS_ON_DEMAND: EOPNOTSUPP from v6.2 on (53c2d5b14a82), EINVAL "
        "before",
        "odp_caps of `ibv_devinfo -v`: Soft-RoCE has it from v6.15 on",
        "register without IBV_ACCESS_ON_DEMAND, which pins the pages; or use a device that has it",
    ),
    Cause.DEVICE_LIMIT: Knowledge(
        "the device has no more memory regions, or none of that size",
        "ENOMEM, EINVAL or ENOSPC of ibv_reg_mr, driver by driver (Soft-RoCE: ENOMEM in v6.1, "
        "EINVAL in v7.2); ENOSPC of VFIO_IOMMU_MAP_DMA (dma_entry_limit); EINVAL of UDMABUF_CREATE "
        "(size_limit_mb)",
        "max_mr and max_mr_size of `ibv_devinfo -v` against `rdma resource show`",
        "deregister what is not used, and register few large regions instead of many small ones",
    ),
    Cause.CGROUP_RDMA_LIMIT: Knowledge(
        "the rdma cgroup's limit of handles or objects is used up",
        "EAGAIN of ibv_reg_mr, ibv_alloc_pd, ibv_create_cq, ibv_create_qp (hca_object) and "
        "ibv_open_device (hca_handle): rdmacg_try_charge() in kernel/cgroup/rdma.c",
        "rdma.max against rdma.current of the process's cgroup and of each above it",
        "raise the limit in rdma.max of that group, or free objects of processes in it",
    ),
    Cause.DEVICE_GONE: Knowledge(
        "the device was removed or reset",
        "EIO of every verbs call on a context whose device went away, ENODEV of V4L2, ENODEV or "
        "ENOENT of opening it",
        "the device is missing in /sys/class/infiniband; the kernel log tells of a reset or "
        "removal",
        "open the device anew when it is back; a process cannot go on with the old context",
    ),
    Cause.MISALIGNED: Knowledge(
        "an address, length or offset that the interface wants aligned",
        "EINVAL of XDP_UMEM_REG (page-aligned address, whole chunks), VFIO_IOMMU_MAP_DMA and "
        "UDMABUF_CREATE (whole pages), and of direct IO (logical block size of the device)",
        "address, length and file offset modulo 4096, for direct IO modulo the device's "
        "queue/logical_block_size",
        "begin on a page boundary and end on one (posix_memalign, mmap)",
    ),
    Cause.PIN_COUNT_LIMIT: Knowledge(
        "one page has as many pins as its reference count can hold",
        "ENOMEM of ibv_reg_mr and XDP_UMEM_REG, EFAULT of io_uring_register, after about 2^21 pins "
        "of one small page (try_grab_folio() in mm/gup.c)",
        "a WARNING of try_grab_page() or try_grab_folio() in the kernel log, once a boot",
        "register the page once and share the registration; large folios count to 2^31",
    ),
    Cause.KERNEL_UNSUPPORTED: Knowledge(
        "this kernel does not have the call, or not for this memory",
        "ENOSYS of any call, ENOTTY of an ioctl, EAFNOSUPPORT of socket; EBADFD or EINVAL of "
        "UDMABUF_CREATE for what is no memfd or is not sealed against shrinking; EOPNOTSUPP of "
        "io_uring_register for any file but shmem and hugetlbfs before v6.5; a registered buffer "
        "over 1 GiB before the limit of 1 TiB",
        "the release (`uname -r`) and the configuration of the kernel; docs/cases.md has what "
        "three releases take",
        "use memory that the call takes, or a newer kernel",
    ),
    Cause.UNKNOWN: Knowledge(
        "the evidence does not tell",
        "anything else",
        "the kernel log, and a trace of the call",
        "run the case again as root with tracing, or ask `pinstorm explain --call … --errno … "
        "--pid …` while the process lives",
    ),
}

# What each one says of itself, for tables.
MEANING: dict[Cause, str] = {cause: known.meaning for cause, known in KNOWLEDGE.items()}

# Of causes that fit alike, those that people meet most come first.
COMMON: tuple[Cause, ...] = (
    Cause.MEMLOCK_LIMIT,
    Cause.PIN_BUDGET_OF_USER,
    Cause.CAPABILITY_MISSING,
    Cause.NOT_MAPPED,
    Cause.PROTECTION,
    Cause.LONGTERM_ON_FILE,
    Cause.LONGTERM_ON_DAX,
    Cause.IO_MAPPING,
    Cause.NO_MEMORY,
    Cause.VMA_LIMIT,
    Cause.MIGRATION_FAILED,
    Cause.CGROUP_RDMA_LIMIT,
    Cause.DEVICE_LIMIT,
    Cause.ODP_UNSUPPORTED,
    Cause.MISALIGNED,
    Cause.KERNEL_UNSUPPORTED,
    Cause.DEVICE_GONE,
    Cause.BAD_ADDRESS,
    Cause.SECRET_MEMORY,
    Cause.PIN_COUNT_LIMIT,
    Cause.UNKNOWN,
)

_HEAD = """\
# Why it failed

<!-- made by scripts/docs from pinstorm/explain/causes.py; edit that -->

`pinstorm explain BUNDLE CASE` says why a case was refused, `pinstorm explain --call ibv_reg_mr
--errno ENOMEM --pid PID` why another program was. The cause comes from a closed list and from
evidence, not from the errno alone: several causes share each errno.

Each finding has a confidence. `certain`: the figures or the mapping show it. `likely`: what the
case says of itself, or a part of the evidence, shows it. `possible`: the call can give that errno
for it, and nothing that was seen speaks against it. When a case has several causes, the one that
the kernel meets first is named and the others are listed behind it: arguments, limits charged
before pinning, the mapping, the pages, limits charged after pinning. `unknown` is an honest answer.

With `--pid` a finding may have a `command`, which helps that process as it stands. Of a bundle it
is told as history only: the process is gone, its pid and its control group may be others by now,
and in the lab they were a guest's.
"""


def markdown() -> str:
    """docs/causes.md: every cause with its calls and errnos, what tells it, and what to do."""
    parts = [_HEAD]
    for cause in Cause:
        known = KNOWLEDGE[cause]
        told = (("Refused", known.refused), ("To tell", known.tell), ("To do", known.remedy))
        bullets = [_wrapped(f"- **{word}**: {words}.") for word, words in told]
        meaning = f"{known.meaning[:1].upper()}{known.meaning[1:]}."
        parts.append("\n".join((f"## {cause}", "", meaning, "", *bullets, "")))
    return "\n".join(parts)


def _wrapped(words: str) -> str:
    return textwrap.fill(
        words, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
