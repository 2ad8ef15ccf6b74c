"""The calls that can be explained: what each one makes the kernel do with user pages.

As read in v6.1, v6.12 and v7.2; where a release differs, the check that cares says so.
"""

from dataclasses import dataclass
from typing import Final, Literal

Pins = Literal["longterm", "short", "reference", "fault", "none"]
Charge = Literal["process-pinned", "process-locked", "user"]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One way into the kernel.

    ``pins``: ``longterm`` FOLL_LONGTERM, ``short`` FOLL_PIN in the call, ``reference`` FOLL_GET,
    ``fault`` through the page tables without a reference, ``none`` no user pages. ``writes``: asks
    for write access; None when its arguments say. ``short_errno``: what becomes of a range of which
    GUP gives only the beginning; None: that page's own errno, or a short transfer.
    ``charge``: what counts against RLIMIT_MEMLOCK: ``process-pinned`` mm->pinned_vm (VmPin),
    ``process-locked`` mm->locked_vm (VmLck), ``user`` user->locked_vm. ``charge_late``: after the
    pages have been pinned. ``exempt``: CAP_IPC_LOCK in the initial user namespace lifts the limit,
    judged when the ring was made (``ring``), or at the call. ``verbs``: through an RDMA device.
    """

    name: str
    calls: tuple[str, ...]
    pins: Pins = "none"
    writes: bool | None = None
    short_errno: str | None = None
    charge: Charge | None = None
    charge_errno: str | None = None
    charge_late: bool = False
    exempt: Literal["call", "ring"] | None = None
    verbs: bool = False


MECHANISMS: Final[tuple[Mechanism, ...]] = (
    Mechanism(
        # drivers/infiniband/core/umem.c, ib_umem_get(): each call of pin_user_pages_fast() goes on
        # where the last one ended, so the first bad page's own errno comes out.
        "memory region",
        (
            "ibv_reg_mr",
            "ibv_reg_mr_iova",
            "ibv_reg_mr_iova2",
            "ibv_rereg_mr",
            "ib_umem_get",
            "rdma_reg_msgs",
            "rdma_reg_read",
            "rdma_reg_write",
            "fi_mr_reg",
            "fi_mr_regattr",
            "fi_mr_regv",
            "ucp_mem_map",
            "uct_md_mem_reg",
            "ncclCommRegister",
        ),
        pins="longterm",
        charge="process-pinned",
        charge_errno="ENOMEM",
        exempt="call",
        verbs=True,
    ),
    Mechanism(
        # Many drivers register the queue's own memory with ib_umem_get(); rxe does not.
        "verbs object",
        (
            "ibv_open_device",
            "ibv_alloc_pd",
            "ibv_create_cq",
            "ibv_create_cq_ex",
            "ibv_create_qp",
            "ibv_create_qp_ex",
            "ibv_create_srq",
            "ibv_create_ah",
            "ibv_alloc_mw",
            "ibv_modify_qp",
            "rdma_create_qp",
            "rdma_create_ep",
        ),
        verbs=True,
    ),
    Mechanism(
        # drivers/infiniband/core/umem_odp.c: hmm_range_fault()
        "on-demand paging",
        ("ibv_advise_mr", "RDMA WRITE", "RDMA READ"),
        pins="fault",
        verbs=True,
    ),
    Mechanism(
        # io_uring/rsrc.c: io_pin_pages(), then io_buffer_account_pin()
        "io_uring buffer",
        (
            "io_uring_register",
            "io_uring_register_buffers",
            "io_uring_register_buffers_tags",
            "io_uring_register_buffers_update_tag",
            "io_uring_register_buffers_sparse",
            "IORING_REGISTER_BUFFERS",
            "IORING_REGISTER_BUFFERS2",
            "IORING_REGISTER_BUFFERS_UPDATE",
        ),
        pins="longterm",
        writes=True,
        short_errno="EFAULT",
        charge="user",
        charge_errno="ENOMEM",
        charge_late=True,
        exempt="ring",
    ),
    Mechanism(
        "io_uring",
        (
            "io_uring_setup",
            "io_uring_queue_init",
            "io_uring_queue_init_params",
            "io_uring_queue_init_mem",
        ),
        charge="user",
        charge_errno="ENOMEM",
        exempt="call",
    ),
    Mechanism(
        # net/xdp/xdp_umem.c: xdp_umem_account_pages(), then xdp_umem_pin_pages()
        "AF_XDP packet memory",
        ("XDP_UMEM_REG", "setsockopt", "xsk_umem__create", "xsk_umem__create_opts"),
        pins="longterm",
        writes=True,
        short_errno="ENOMEM",
        charge="user",
        charge_errno="ENOBUFS",
        exempt="call",
    ),
    Mechanism("socket", ("socket", "AF_XDP", "xsk_socket__create")),
    Mechanism(
        # drivers/vfio/vfio_iommu_type1.c, vfio_pin_pages_remote(): batches of 512 pages
        "vfio mapping",
        (
            "VFIO_IOMMU_MAP_DMA",
            "vfio_dma_map",
            "vfio_dma_do_map",
            "rte_vfio_container_dma_map",
            "spdk_mem_register",
        ),
        pins="longterm",
        writes=True,
        charge="process-locked",
        charge_errno="ENOMEM",
        charge_late=True,
        exempt="call",
    ),
    Mechanism(
        # drivers/media/common/videobuf2/frame_vector.c, get_vaddr_frames()
        "V4L2 buffer",
        ("VIDIOC_PREPARE_BUF", "VIDIOC_QBUF"),
        pins="longterm",
        writes=True,
        short_errno="EFAULT",
    ),
    # drivers/dma-buf/udmabuf.c goes by the file and never by page tables.
    Mechanism("udmabuf", ("UDMABUF_CREATE", "UDMABUF_CREATE_LIST")),
    Mechanism(
        # lib/iov_iter.c, iov_iter_extract_pages(); references only before v6.5
        "direct IO",
        (
            "preadv",
            "preadv2",
            "pread",
            "read",
            "readv",
            "pwritev",
            "pwritev2",
            "pwrite",
            "write",
            "writev",
            "io_submit",
            "io_uring_enter",
            "IORING_OP_READ",
            "IORING_OP_WRITE",
            "IORING_OP_READ_FIXED",
            "IORING_OP_WRITE_FIXED",
        ),
        pins="short",
    ),
    Mechanism(
        # mm/process_vm_access.c, process_vm_rw_single_vec()
        "process_vm",
        ("process_vm_readv", "process_vm_writev"),
        pins="short",
    ),
    Mechanism("vmsplice", ("vmsplice",), pins="reference", writes=False),
    Mechanism(
        # net/core/skbuff.c, mm_account_pinned_pages() before skb_zerocopy_iter_stream()
        "MSG_ZEROCOPY",
        ("send", "sendmsg", "sendto", "sendmmsg", "MSG_ZEROCOPY"),
        pins="reference",
        writes=False,
        charge="user",
        charge_errno="ENOBUFS",
        exempt="call",
    ),
    # mm/gup_test.c: the first page that cannot be had ends it, with the size that was reached.
    Mechanism("gup_test", ("gup_test", "PIN_LONGTERM_BENCHMARK"), pins="short"),
    Mechanism(
        "mapping",
        ("mmap", "madvise", "mprotect", "munmap", "mremap", "brk"),
    ),
    Mechanism(
        # mm/mlock.c, do_mlock(); can_do_mlock() gives EPERM for a limit of 0
        "mlock",
        ("mlock", "mlock2", "mlockall", "MAP_LOCKED"),
        charge="process-locked",
        charge_errno="ENOMEM",
        exempt="call",
    ),
    Mechanism("secret memory", ("memfd_secret",)),
)

# Calls of a case's own preparation: known, and nothing about pinning is behind their refusal.
PLAIN: Final = (
    "ibv_get_device_list",
    "set_mempolicy",
    "statvfs",
    "mincore",
    "migrate_pages",
    "fork",
    "prepare",
    "open",
    "pipe2",
    "memfd_create",
    "ftruncate",
    "fsync",
    "splice",
    "connect",
    "listen",
    "recvmsg",
    "mbind",
    "move_pages",
    "setresuid",
    "setns",
    "unshare",
    "prctl",
    "capset",
    "statx",
    "readlink",
    "unlink",
    "VIDIOC_REQBUFS",
    "VIDIOC_S_FMT",
    "VIDIOC_S_INPUT",
    "VFIO_GROUP_GET_STATUS",
    "VFIO_GROUP_SET_CONTAINER",
    "VFIO_SET_IOMMU",
    "VFIO_IOMMU_UNMAP_DMA",
    "ibv_dereg_mr",
    "RDMA traffic",
)

# What a workload's failing call is when its record names none: a short transfer.
_OF_WORKLOAD: Final = {
    "rdma-register": "ibv_reg_mr",
    "rdma-register-odp": "ibv_advise_mr",
    "io-uring-register": "io_uring_register",
    "af-xdp-umem": "XDP_UMEM_REG",
    "vfio-map": "VFIO_IOMMU_MAP_DMA",
    "v4l2-userptr": "VIDIOC_PREPARE_BUF",
    "udmabuf": "UDMABUF_CREATE",
    "gup-test": "gup_test",
    "vmsplice": "vmsplice",
    "msg-zerocopy": "MSG_ZEROCOPY",
    "process-vm-read": "process_vm_readv",
    "process-vm-write": "process_vm_writev",
    "dio-read": "preadv",
    "dio-write": "pwritev",
    "dio-read-uring": "IORING_OP_READ",
    "dio-write-uring": "IORING_OP_WRITE",
}

_BY_CALL: Final = {call.lower(): mechanism for mechanism in MECHANISMS for call in mechanism.calls}
_SPELLING: Final = {
    **{call.lower(): call for call in PLAIN},
    **{call.lower(): call for mechanism in MECHANISMS for call in mechanism.calls},
}
# Which of those names write to the memory, and which only read it.
_WRITING: Final = ("read", "preadv", "preadv2", "pread", "readv", "process_vm_writev")
_READING: Final = ("write", "pwritev", "pwritev2", "pwrite", "writev", "process_vm_readv")


def of_call(call: str) -> Mechanism | None:
    """However it is spelt: with ``()`` behind it, a leading ``__``, in any case."""
    return _BY_CALL.get(_plain(call))


def canonical(call: str) -> str:
    """As it is spelt here, however a person or a library did; one that is not known as it came."""
    return _SPELLING.get(_plain(call)) or call.strip().removesuffix("()").rstrip()


def of_workload(workload: str) -> str | None:
    """The name of the call that a workload's acquire is about."""
    return _OF_WORKLOAD.get(workload)


def writes(call: str) -> bool | None:
    """Whether that call has the kernel write to the memory; None when its arguments say."""
    mechanism, name = of_call(call), _plain(call)
    if mechanism is not None and mechanism.writes is not None:
        return mechanism.writes
    if name in _WRITING or name.startswith("ioring_op_read"):
        return True
    return False if name in _READING or name.startswith("ioring_op_write") else None


def is_plain(call: str) -> bool:
    return call in PLAIN


def known_calls() -> tuple[str, ...]:
    """One name for each mechanism and the others beside it, for a person who gave none of them."""
    return tuple(call for mechanism in MECHANISMS for call in mechanism.calls)


def _plain(call: str) -> str:
    # perftest, UCX and NCCL print "ibv_reg_mr()" or "ibv_reg_mr failed: …"
    words = call.strip().split("(")[0].split()
    name = " ".join(words) if call.strip().upper().startswith("RDMA ") else (words or [""])[0]
    return name.removeprefix("__").rstrip(":").lower()
