"""What is done to memory. The registry: an explicit tuple of specs that imports no workload."""

from importlib import import_module

from workloads.spec import MIB, MemorySpec, Need, WorkloadSpec

WORKLOADS = (
    WorkloadSpec(
        "rdma-register",
        "workloads.rdma_register",
        "ibv_reg_mr: a pinned memory region",
        pin_class="pin-longterm",
        scope="held",
        writes="access",
        needs=(Need.RDMA_DEVICE,),
        params=("access",),
        defaults={"access": "rw"},
    ),
    WorkloadSpec(
        "rdma-register-odp",
        "workloads.rdma_register_odp",
        "ibv_reg_mr on demand: the device faults every page in, nothing is pinned",
        pin_class="none",
        scope="held",
        writes="access",
        needs=(Need.RDMA_DEVICE, Need.RDMA_ODP),
        params=("access", "touch"),
        defaults={"access": "rw"},
    ),
    WorkloadSpec(
        "dio-read",
        "workloads.direct_io",
        "O_DIRECT preadv from a file into the memory",
        pin_class="pin",
        scope="call",
        writes=True,
        needs=(Need.TARGET_DIO,),
    ),
    WorkloadSpec(
        "dio-write",
        "workloads.direct_io",
        "O_DIRECT pwritev from the memory to a file",
        pin_class="pin",
        scope="call",
        writes=False,
        needs=(Need.TARGET_DIO,),
    ),
    WorkloadSpec(
        "io-uring-register",
        "workloads.io_uring_register",
        "IORING_REGISTER_BUFFERS: a registered buffer",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.IO_URING,),
    ),
    WorkloadSpec(
        "process-vm-write",
        "workloads.process_vm_write",
        "process_vm_writev into the memory",
        pin_class="pin",
        scope="call",
        writes=True,
        needs=(Need.PROCESS_VM,),
    ),
    WorkloadSpec(
        "vmsplice",
        "workloads.vmsplice",
        "vmsplice into pipes: the negative control, which moves no pin counter",
        pin_class="get",
        scope="held",
        writes=False,
    ),
)

MEMORY = (
    MemorySpec("anon", "workloads.memory.anon", "private anonymous base pages", backing="anon"),
    MemorySpec(
        "anon-untouched",
        "workloads.memory.anon",
        "private anonymous memory that was never touched",
        backing="anon",
        touched=False,
        fresh_each_cycle=True,
    ),
    MemorySpec(
        "thp",
        "workloads.memory.anon",
        "private anonymous transparent huge pages",
        backing="anon",
        granule_bytes=2 * MIB,
        needs=(Need.THP,),
    ),
    MemorySpec(
        "hugetlb-2m",
        "workloads.memory.hugetlb",
        "private 2 MiB pages of the hugetlb pool",
        backing="hugetlb",
        granule_bytes=2 * MIB,
        needs=(Need.HUGETLB_2M,),
    ),
    MemorySpec(
        "memfd",
        "workloads.memory.memfd",
        "a shared mapping of a memfd",
        backing="shmem",
        shared=True,
    ),
    MemorySpec(
        "ext4-shared",
        "workloads.memory.file",
        "a shared mapping of an ext4 file",
        backing="file",
        shared=True,
        needs=(Need.SCRATCH_EXT4,),
    ),
    MemorySpec(
        "ext4-private",
        "workloads.memory.file",
        "a private mapping of an ext4 file, read but not written",
        backing="file",
        fresh_each_cycle=True,
        needs=(Need.SCRATCH_EXT4,),
    ),
    MemorySpec(
        "dax-shared",
        "workloads.memory.file",
        "a shared mapping of a file on a DAX file system",
        backing="fsdax",
        shared=True,
        needs=(Need.SCRATCH_DAX,),
    ),
    MemorySpec(
        "movable",
        "workloads.memory.movable",
        "anonymous pages that lie in CMA or ZONE_MOVABLE",
        backing="anon",
        movable=True,
        fresh_each_cycle=True,
        needs=(Need.MOVABLE,),
        shape="movable",
    ),
    MemorySpec(
        "movable-held",
        "workloads.memory.movable",
        "the same, with a foreign reference held through a pipe",
        backing="anon",
        movable=True,
        foreign_reference=True,
        fresh_each_cycle=True,
        needs=(Need.MOVABLE,),
        shape="movable",
    ),
)


def workload_spec(name: str) -> WorkloadSpec:
    """The spec of that name; KeyError when there is none."""
    return _WORKLOAD_BY_NAME[name]


def memory_spec(name: str) -> MemorySpec:
    """The spec of that name; KeyError when there is none."""
    return _MEMORY_BY_NAME[name]


def include(module_name: str) -> None:
    """Add the WORKLOADS of a module that is not part of pinstorm: tests plant faulty ones."""
    for spec in import_module(module_name).WORKLOADS:
        _WORKLOAD_BY_NAME[spec.name] = spec


_WORKLOAD_BY_NAME = {spec.name: spec for spec in WORKLOADS}
_MEMORY_BY_NAME = {spec.name: spec for spec in MEMORY}
