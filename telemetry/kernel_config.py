"""The configuration the running kernel was built with, where it can be found.

/proc/config.gz (CONFIG_IKCONFIG_PROC, since Linux 2.6), else the file that distributions install as
/boot/config-RELEASE or /lib/modules/RELEASE/config. Constant for a kernel.
"""

import gzip
import os
from pathlib import Path

CONFIG_GZ = Path("/proc/config.gz")

# What decides whether a case can run, what it may answer, or how fast it is.
# fmt: off
RELEVANT = (
    "CONFIG_CMA", "CONFIG_CMA_SYSFS", "CONFIG_CMA_DEBUGFS", "CONFIG_CMA_SIZE_MBYTES",
    "CONFIG_ZONE_DEVICE", "CONFIG_FS_DAX", "CONFIG_DEV_DAX", "CONFIG_HUGETLBFS",
    "CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP", "CONFIG_TRANSPARENT_HUGEPAGE",
    "CONFIG_TRANSPARENT_HUGEPAGE_ALWAYS", "CONFIG_TRANSPARENT_HUGEPAGE_MADVISE",
    "CONFIG_READ_ONLY_THP_FOR_FS", "CONFIG_KSM", "CONFIG_SPARSEMEM_VMEMMAP", "CONFIG_MIGRATION",
    "CONFIG_COMPACTION", "CONFIG_MEMORY_FAILURE", "CONFIG_MEMORY_HOTPLUG",
    "CONFIG_MEMORY_HOTREMOVE", "CONFIG_NUMA", "CONFIG_NUMA_BALANCING", "CONFIG_GUP_TEST",
    "CONFIG_SECRETMEM", "CONFIG_USERFAULTFD", "CONFIG_IO_URING", "CONFIG_PROC_PAGE_MONITOR",
    "CONFIG_VM_EVENT_COUNTERS", "CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS",
    "CONFIG_FPROBE_EVENTS", "CONFIG_FTRACE", "CONFIG_DEBUG_INFO_BTF", "CONFIG_BPF_SYSCALL",
    "CONFIG_HZ", "CONFIG_PREEMPT", "CONFIG_PREEMPT_VOLUNTARY", "CONFIG_PREEMPT_NONE",
    "CONFIG_PREEMPT_DYNAMIC", "CONFIG_PREEMPT_LAZY", "CONFIG_PREEMPT_RT", "CONFIG_NO_HZ_FULL",
    "CONFIG_LOCKDEP", "CONFIG_PROVE_LOCKING", "CONFIG_KASAN", "CONFIG_DEBUG_VM",
    "CONFIG_PAGE_OWNER", "CONFIG_INFINIBAND", "CONFIG_INFINIBAND_USER_ACCESS",
    "CONFIG_INFINIBAND_ON_DEMAND_PAGING", "CONFIG_RDMA_RXE", "CONFIG_RDMA_SIW",
    "CONFIG_XDP_SOCKETS", "CONFIG_VFIO", "CONFIG_VFIO_IOMMU_TYPE1", "CONFIG_IOMMUFD",
    "CONFIG_VHOST_VDPA", "CONFIG_UDMABUF", "CONFIG_CGROUP_RDMA", "CONFIG_MEMCG",
    "CONFIG_MODULES",
)
# fmt: on


def parse(text: str) -> dict[str, str]:
    """``CONFIG_X`` -> ``y``, ``m``, a number or a string; options that are not set are absent."""
    pairs = (line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_"))
    return {pair[0]: pair[1].strip('"') for pair in pairs if len(pair) == 2}


def read() -> tuple[str, dict[str, str]] | None:
    """(where it was found, options); None where no source is readable."""
    release = os.uname().release
    places = (CONFIG_GZ, Path(f"/boot/config-{release}"), Path(f"/lib/modules/{release}/config"))
    for path in places:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        return str(path), parse(text.decode("utf-8", errors="replace"))
    return None


def relevant(options: dict[str, str]) -> dict[str, str]:
    """RELEVANT options; ``n`` for those that are not set."""
    return {name: options.get(name, "n") for name in RELEVANT}
