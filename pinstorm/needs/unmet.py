"""What is said of a need that is not met: a code, what was found, and what to do about it."""

from dataclasses import dataclass

from workloads.spec import Need

_LAB = "run in the lab: pinstorm lab run SUITE"
REMEDIES = {
    Need.RDMA_DEVICE: f"{_LAB}, or add one: rdma link add",
    Need.RDMA_ODP: "a device or kernel with ODP (rxe: Linux 6.15 and later), or the lab",
    Need.IO_URING: "sysctl kernel.io_uring_disabled=0, or a container profile that allows it; "
    "where a ring finds no memory, a higher RLIMIT_MEMLOCK",
    Need.PROCESS_VM: "a kernel with CONFIG_CROSS_MEMORY_ATTACH and a container that allows ptrace",
    Need.AF_XDP: "run as root, on a kernel with CONFIG_XDP_SOCKETS",
    Need.MSG_ZEROCOPY: "ip link set lo up, or the lab",
    Need.VFIO: f"{_LAB}, or bind an unused PCI device behind an IOMMU to vfio-pci",
    Need.V4L2: "modprobe vivid n_devs=1, or the lab",
    Need.UDMABUF: "modprobe udmabuf as root, on a kernel with CONFIG_UDMABUF",
    Need.GUP_TEST: "a kernel with CONFIG_GUP_TEST, or pinstorm lab run SUITE --gup-test",
    Need.THP: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    Need.HUGETLB_2M: _LAB,
    Need.HUGETLB_1G: "boot with hugepagesz=1G hugepages=1, or run in the lab",
    Need.DEVDAX: _LAB,
    Need.SECRETMEM: "boot with secretmem.enable=1, or run in the lab",
    Need.KSM: "echo 1 > /sys/kernel/mm/ksm/run",
    Need.NUMA: _LAB,
    Need.MOVABLE: "boot with cma= or kernelcore= and run as root, or run in the lab",
    Need.ORDINARY_USER: "run as root",
    Need.DESTRUCTIVE: f"{_LAB}, or add --destructive on a machine that may crash",
    Need.CLEAR_WARN_ONCE: "run as root, with debugfs: mount -t debugfs none /sys/kernel/debug",
    Need.COMPACTION: f"run as root, on a kernel with CONFIG_COMPACTION, or {_LAB}",
    Need.DROP_CACHES: f"run as root, where /proc/sys may be written, or {_LAB}",
    Need.CGROUP_RDMA: f"run as root on a kernel with CONFIG_CGROUP_RDMA and cgroup v2, or {_LAB}",
    Need.CGROUP_MEMORY: f"run as root where cgroup v2 has the memory controller, or {_LAB}",
    Need.MACHINE_CHANGES: f"run with --setup, as root, or {_LAB}",
    Need.LAB: _LAB,
    Need.MEMLOCK: "give a smaller memlock, or raise it first: ulimit -H -l unlimited (root)",
}

# What each asks of the machine, for whoever has not met it yet.
ASKED = {
    Need.RDMA_DEVICE: "an RDMA device whose port is active, and pyverbs",
    Need.RDMA_ODP: "on-demand paging of that device",
    Need.IO_URING: "io_uring, for this user",
    Need.PROCESS_VM: "process_vm_writev to itself",
    Need.TARGET_DIO: "a scratch directory whose files take O_DIRECT",
    Need.AF_XDP: "AF_XDP sockets, and CAP_NET_RAW",
    Need.MSG_ZEROCOPY: "MSG_ZEROCOPY over a loopback that is up",
    Need.VFIO: "a PCI device bound to vfio-pci behind an IOMMU",
    Need.V4L2: "a capture device that takes user pointers: vivid",
    Need.UDMABUF: "/dev/udmabuf",
    Need.GUP_TEST: "the kernel's GUP test in debugfs",
    Need.THP: "transparent huge pages, at least on request",
    Need.HUGETLB_2M: "free pages of 2 MiB in the hugetlb pool",
    Need.HUGETLB_1G: "free pages of 1 GiB in the hugetlb pool",
    Need.SCRATCH_EXT4: "a scratch directory on ext4",
    Need.SCRATCH_XFS: "a scratch directory on XFS",
    Need.SCRATCH_BTRFS: "a scratch directory on btrfs",
    Need.SCRATCH_TMPFS: "a scratch directory on tmpfs",
    Need.SCRATCH_DAX: "a scratch directory on a file system mounted with dax",
    Need.DEVDAX: "a device-DAX node that was named",
    Need.SECRETMEM: "memfd_secret",
    Need.KSM: "ksmd at work",
    Need.NUMA: "two NUMA nodes with memory",
    Need.MOVABLE: "free memory in CMA or ZONE_MOVABLE, and page frames that may be seen",
    Need.ORDINARY_USER: "to be allowed to become another user",
    Need.DESTRUCTIVE: "the word of somebody that this machine may crash",
    Need.CGROUP_RDMA: "a control group with the rdma controller, to be made",
    Need.CGROUP_MEMORY: "a control group with the memory controller, to be made",
    Need.MACHINE_CHANGES: "that the machine may be changed for a while",
    Need.LAB: "a guest of the lab: nobody else uses its devices",
    Need.MEMLOCK: "to be allowed to set the RLIMIT_MEMLOCK that the case asks for",
    Need.CLEAR_WARN_ONCE: "/sys/kernel/debug/clear_warn_once",
    Need.COMPACTION: "/proc/sys/vm/compact_memory",
    Need.DROP_CACHES: "/proc/sys/vm/drop_caches",
}


@dataclass(frozen=True, slots=True)
class Unmet:
    """Why a case is skipped. ``code`` is the need's name."""

    code: str
    detail: str
    remedy: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail, "remedy": self.remedy}


def lacks(need: Need, detail: str) -> Unmet:
    return Unmet(need, detail, REMEDIES[need])
