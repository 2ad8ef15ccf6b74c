"""What is refused for how it was asked: alignment, what a device or kernel lacks, rights."""

from typing import Final

from pinstorm.explain.causes import Cause
from pinstorm.explain.check import Hit, Stage, guess, hit
from pinstorm.explain.finding import Confidence
from pinstorm.explain.view import View, is_dirty_tracked
from workloads.spec import PAGE_BYTES

_SECTOR_BYTES: Final = 512
_GIB: Final = 1 << 30
_PAGE_CALLS: Final = ("AF_XDP packet memory", "vfio mapping", "udmabuf")
# What a file is, or a seal is missing: udmabuf_create() before it looks at a page.
_NO_MEMFD: Final = {"none": "no file", "other": "no memfd", "tmpfs": "a file that cannot be sealed"}


def misaligned(view: View) -> list[Hit]:
    """Page-aligned address and whole pages; direct IO: the device's logical blocks."""
    if view.mechanism is None or view.outcome != "EINVAL":
        return []
    pages_only = view.mechanism.name in _PAGE_CALLS
    direct = view.mechanism.name == "direct IO"
    if not pages_only and not direct:
        return []
    address, asked = view.address, view.size_bytes
    if view.case is not None:
        # of udmabuf it is the offset in the file; and an old record has no region
        address = view.case.offset_bytes
    unit = PAGE_BYTES if pages_only else _SECTOR_BYTES
    odd = [
        f"{name} is {value % PAGE_BYTES} bytes past a page boundary"
        for name, value in (("the address", address), ("the length", asked))
        if value is not None and value % unit
    ]
    stage = Stage.ARGUMENTS if pages_only else Stage.TRANSFER
    if odd:
        wants = "whole pages" if pages_only else "logical blocks of the device, 512 bytes or more"
        told = f"{view.failure.call} wants {wants}"
        # read() and its kin fail with EINVAL for much else; whether it was direct IO a case knows
        known = pages_only or (view.case is not None and view.case.workload.startswith("dio-"))
        sure: Confidence = "certain" if known else "likely"
        return [hit(Cause.MISALIGNED, sure, stage, {"EINVAL"}, *odd, told)]
    if direct and any(value is not None and value % PAGE_BYTES for value in (address, asked)):
        told = "address and length suit blocks of 512 bytes; the device's may be 4096 bytes"
        return [hit(Cause.MISALIGNED, "likely", stage, {"EINVAL"}, told)]
    if view.case is None and (address is None or asked is None):
        found = guess(view, Cause.MISALIGNED, stage, "EINVAL")
        return [found] if found else []
    return []


def odp_unsupported(view: View) -> list[Hit]:
    """EOPNOTSUPP from v6.2 on, EINVAL before."""
    if view.mechanism is None or view.mechanism.name != "memory region":
        return []
    late = view.since(6, 2)
    errno = {True: "EOPNOTSUPP", False: "EINVAL", None: view.outcome}[late]
    if errno not in ("EOPNOTSUPP", "EINVAL"):
        return []
    device = view.evidence.device
    known = None if device is None else device.odp
    if view.case is not None and not view.on_demand:
        return []
    if known is True:
        return []
    if view.on_demand:
        sure: Confidence = "certain" if known is False else "likely"
        name = view.device_name or "the device"
        told = f"{name} has no on-demand paging" if known is False else "it was asked for on demand"
        rxe = view.record.get("driver") == "rxe" and view.since(6, 15) is False
        more = "Soft-RoCE has on-demand paging from Linux 6.15 on" if rxe else ""
        return [hit(Cause.ODP_UNSUPPORTED, sure, Stage.ARGUMENTS, {errno}, told, more)]
    found = guess(view, Cause.ODP_UNSUPPORTED, Stage.ARGUMENTS, errno)
    return [found] if found else []


def kernel_unsupported(view: View) -> list[Hit]:
    """The call, the ioctl or the address family is not there, or not for this memory."""
    call, outcome = view.failure.call, view.outcome
    if outcome in ("ENOSYS", "ENOTTY", "EAFNOSUPPORT"):
        more = ""
        if call == "memfd_secret":
            more = "up to Linux 6.4 it has to be booted with secretmem.enable=1"
        told = f"{call} gives {outcome}: the running kernel does not have it"
        return [hit(Cause.KERNEL_UNSUPPORTED, "certain", Stage.ARGUMENTS, {outcome}, told, more)]
    name = view.mechanism.name if view.mechanism is not None else ""
    if name == "udmabuf":
        return _no_memfd(view)
    if name == "io_uring buffer":
        return [*_uring_files(view), *_uring_size(view)]
    if name == "memory region" and view.case is None and outcome == "EOPNOTSUPP":
        told = "to tell: an access flag that the driver does not know, or dma-buf memory"
        return [hit(Cause.KERNEL_UNSUPPORTED, "possible", Stage.ARGUMENTS, {outcome}, told)]
    return []


def _no_memfd(view: View) -> list[Hit]:
    remedy = (
        "make the memory with memfd_create(…, MFD_ALLOW_SEALING) and add F_SEAL_SHRINK before "
        "UDMABUF_CREATE, without F_SEAL_WRITE"
    )
    if view.outcome == "EBADFD":
        told = "UDMABUF_CREATE takes files of shmem and hugetlbfs only"
        return [
            hit(
                Cause.KERNEL_UNSUPPORTED,
                "certain",
                Stage.MAPPING,
                {"EBADFD"},
                told,
                remedy=remedy,
            )
        ]
    kind = str(view.facts.get("file", ""))
    if view.outcome != "EINVAL" or (view.case is not None and kind != "tmpfs"):
        return []
    if kind:
        told = f"{_NO_MEMFD[kind]}: UDMABUF_CREATE wants F_SEAL_SHRINK"
        return [
            hit(Cause.KERNEL_UNSUPPORTED, "likely", Stage.MAPPING, {"EINVAL"}, told, remedy=remedy)
        ]
    told = "to tell: fcntl(F_GET_SEALS) of the memfd has F_SEAL_SHRINK, and not F_SEAL_WRITE"
    return [
        hit(Cause.KERNEL_UNSUPPORTED, "possible", Stage.MAPPING, {"EINVAL"}, told, remedy=remedy)
    ]


def _uring_files(view: View) -> list[Hit]:
    """io_pin_pages() up to v6.4: any file VMA but shmem and hugetlbfs, after pinning all."""
    if view.outcome != "EOPNOTSUPP" or view.since(6, 5) is not False:
        return []
    told = "io_uring before 6.5 registers no mapping of a file, but shmem and hugetlbfs"
    if view.sees_mapping:
        files = [
            piece
            for piece in view.pieces
            if piece.fs_type not in (None, "tmpfs", "hugetlbfs", "secretmem")
            and not is_dirty_tracked(piece)  # which longterm-on-file names
        ]
        sure: Confidence = "certain" if view.range_known else "possible"
        if not files:
            return []
        where = f"{files[0].start:#x} is {files[0].path or 'a file'} on {files[0].fs_type}"
        return [hit(Cause.KERNEL_UNSUPPORTED, sure, Stage.ACCOUNT, {"EOPNOTSUPP"}, where, told)]
    if view.memory is None:
        return [hit(Cause.KERNEL_UNSUPPORTED, "possible", Stage.ACCOUNT, {"EOPNOTSUPP"}, told)]
    if view.backing in ("file", "devdax", "fsdax") and not view.facts.get("dirty_tracked"):
        where = f"{view.memory.name} is {view.memory.summary}"
        return [hit(Cause.KERNEL_UNSUPPORTED, "likely", Stage.ACCOUNT, {"EOPNOTSUPP"}, where, told)]
    return []


def _uring_size(view: View) -> list[Hit]:
    """io_buffer_validate() up to some release after v6.12: 1 GiB for each iovec."""
    asked = view.size_bytes
    if view.case is not None or asked is None or asked <= _GIB or view.outcome != "EFAULT":
        return []
    if view.since(7, 2):
        return []
    told = "one iovec may be 1 GiB long at most (v6.1, v6.12); 1 TiB in v7.2"
    return [
        hit(
            Cause.KERNEL_UNSUPPORTED,
            "likely",
            Stage.ARGUMENTS,
            {"EFAULT"},
            told,
            remedy="register it as several iovecs of at most 1 GiB",
        )
    ]


def device_gone(view: View) -> list[Hit]:
    """uverbs answers EIO for ever once the device under a context has gone."""
    if view.failure.call.startswith("VIDIOC_") and view.outcome == "ENODEV":
        # v4l2_ioctl() in drivers/media/v4l2-core/v4l2-dev.c: the node is open, its device is gone
        told = f"{view.failure.call} gives ENODEV only when the device has been unregistered"
        return [hit(Cause.DEVICE_GONE, "certain", Stage.LIBRARY, {"ENODEV"}, told)]
    if view.mechanism is None or not view.mechanism.verbs:
        return []
    errnos = {"EIO", "ENODEV", "ENXIO", "ENOENT", "ESHUTDOWN"}
    if view.outcome not in errnos:
        return []
    device = view.evidence.device
    if device is not None:
        if device.present:
            return []
        told = f"{device.name} is not in /sys/class/infiniband"
        return [hit(Cause.DEVICE_GONE, "certain", Stage.LIBRARY, errnos, told)]
    sure: Confidence = "likely" if view.outcome == "EIO" else "possible"
    told = f"{view.failure.call} gives {view.outcome} when the device under the context has gone"
    return [hit(Cause.DEVICE_GONE, sure, Stage.LIBRARY, errnos, told)]


# call's mechanism -> the capability it asks for, and what else could be behind the errno
_RIGHTS: Final = {
    "socket": ("CAP_NET_RAW", "socket(AF_XDP) wants CAP_NET_RAW"),
    "process_vm": ("CAP_SYS_PTRACE", "process_vm_* wants the rights of ptrace: CAP_SYS_PTRACE"),
    "io_uring": ("CAP_SYS_ADMIN", "kernel.io_uring_disabled is 1 (or 2: for everybody)"),
}


def capability(view: View) -> list[Hit]:
    """EPERM of a call that wants a capability; of CAP_IPC_LOCK speaks pinstorm.explain.limits."""
    if view.mechanism is None or view.outcome not in ("EPERM", "EACCES"):
        return []
    if view.mechanism.name not in _RIGHTS:
        return []
    wanted, words = _RIGHTS[view.mechanism.name]
    process = view.process
    remedy = f"give the program {wanted}: `setcap {wanted.lower()}+ep PROGRAM`, or start it as root"
    if process is None:
        sure: Confidence = "likely" if view.mechanism.name == "socket" else "possible"
    elif wanted not in process.cap_effective:
        sure = "certain" if view.mechanism.name == "socket" else "likely"
        words += f"; process {process.pid} ({process.name}) has it not effective"
    elif process.initial_userns is False:
        sure = "likely"
        words += "; the process has it only in its own user namespace"
    else:
        return []
    return [
        hit(Cause.CAPABILITY_MISSING, sure, Stage.ARGUMENTS, {view.outcome}, words, remedy=remedy)
    ]
