"""What is said of a need that is not met: a code, what was found, and what to do about it."""

from dataclasses import dataclass

from workloads.spec import Need

_LAB = "run in the lab: pinstorm lab run SUITE"
REMEDIES = {
    Need.RDMA_DEVICE: f"{_LAB}, or add one: rdma link add",
    Need.RDMA_ODP: "a device or kernel with ODP (rxe: Linux 6.15 and later), or the lab",
    Need.IO_URING: "sysctl kernel.io_uring_disabled=0, or a container profile that allows it",
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
