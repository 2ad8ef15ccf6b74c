"""The closed list of causes: why a call that was to pin memory failed.

``unknown`` is an honest answer; a wrong cause is a defect.
"""

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


# What each one says of itself, for tables and documents.
MEANING: dict[Cause, str] = {
    Cause.LONGTERM_ON_DAX: "a long-term pin of a file on a DAX file system",
    Cause.LONGTERM_ON_FILE: "a writable long-term pin of a shared file with dirty tracking",
    Cause.MIGRATION_FAILED: "pages in CMA or ZONE_MOVABLE that cannot be moved out",
    Cause.MEMLOCK_LIMIT: "this process's RLIMIT_MEMLOCK is too small for this request",
    Cause.CAPABILITY_MISSING: "CAP_IPC_LOCK is there and not effective, or a capability is missing",
    Cause.PIN_BUDGET_OF_USER: "other processes of this user hold the rest of the limit",
    Cause.NO_MEMORY: "no memory can be had: the machine's, the cgroup's, or the huge page pool's",
    Cause.VMA_LIMIT: "the process has as many mappings as vm.max_map_count allows",
    Cause.BAD_ADDRESS: "an address range that no process can have: it wraps or lies beyond",
    Cause.NOT_MAPPED: "part of the range is not mapped, or lies behind the end of its file",
    Cause.PROTECTION: "the mapping does not allow the access that was asked for",
    Cause.SECRET_MEMORY: "memfd_secret memory, which the kernel itself cannot reach",
    Cause.IO_MAPPING: "a mapping of device memory (VM_IO, VM_PFNMAP), which has no pages to pin",
    Cause.ODP_UNSUPPORTED: "the device or its driver has no on-demand paging",
    Cause.DEVICE_LIMIT: "the device has no more memory regions, or none of that size",
    Cause.CGROUP_RDMA_LIMIT: "the rdma cgroup's limit of handles or objects is used up",
    Cause.DEVICE_GONE: "the device was removed or reset",
    Cause.MISALIGNED: "an address, length or offset that the interface wants aligned",
    Cause.PIN_COUNT_LIMIT: "one page has as many pins as its reference count can hold",
    Cause.KERNEL_UNSUPPORTED: "this kernel does not have the call, or not for this memory",
    Cause.UNKNOWN: "the evidence does not tell",
}
