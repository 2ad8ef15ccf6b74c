"""What is done to memory. The registry: an explicit tuple of specs that imports no workload."""

from importlib import import_module
from types import ModuleType

from workloads.antagonists import antagonist_spec as antagonist_spec
from workloads.load.spec import Job, Load
from workloads.spec import MIB, Case, CircumstanceSpec, MemorySpec, Need, WorkloadSpec

# Parameters that say under which conditions a case runs, whatever its workload does.
COMMON = ("offset_bytes", "uid", "memlock_bytes", "processes")

# Of workloads that hold pins: what is done to the memory or the process meanwhile.
HELD = ("during", "kill")

WORKLOADS = (
    WorkloadSpec(
        "rdma-register",
        "workloads.rdma_register",
        "ibv_reg_mr: a pinned memory region",
        pin_class="pin-longterm",
        scope="held",
        writes="access",
        needs=(Need.RDMA_DEVICE,),
        params=("access", "times", *HELD, *COMMON),
        defaults={"access": "rw"},
        charged="bytes",
        engine="workloads.load.register_rdma",
    ),
    WorkloadSpec(
        "rdma-register-odp",
        "workloads.rdma_register_odp",
        "ibv_reg_mr on demand: the device faults every page in, nothing is pinned",
        pin_class="none",
        scope="held",
        writes="access",
        needs=(Need.RDMA_DEVICE, Need.RDMA_ODP),
        params=("access", "touch", "offset_bytes", "force", "kill"),
        defaults={"access": "rw"},
        engine="workloads.load.register_odp",
    ),
    WorkloadSpec(
        "dio-read",
        "workloads.direct_io",
        "O_DIRECT preadv from a file into the memory",
        pin_class="pin",
        scope="call",
        writes=True,
        needs=(Need.TARGET_DIO,),
        params=("offset_bytes", "processes", "kill"),
        engine="workloads.load.psync",
    ),
    WorkloadSpec(
        "dio-write",
        "workloads.direct_io",
        "O_DIRECT pwritev from the memory to a file",
        pin_class="pin",
        scope="call",
        writes=False,
        needs=(Need.TARGET_DIO,),
        params=("offset_bytes", "processes", "kill"),
        engine="workloads.load.psync",
    ),
    WorkloadSpec(
        "dio-read-uring",
        "workloads.direct_io_uring",
        "O_DIRECT read through io_uring; registered = true: into a registered buffer",
        pin_class="pin",
        scope="call",
        writes=True,
        needs=(Need.TARGET_DIO, Need.IO_URING),
        params=("registered", "offset_bytes", "kill"),
        engine="workloads.load.uring",
    ),
    WorkloadSpec(
        "dio-write-uring",
        "workloads.direct_io_uring",
        "O_DIRECT write through io_uring; registered = true: from a registered buffer",
        pin_class="pin",
        scope="call",
        writes=False,
        needs=(Need.TARGET_DIO, Need.IO_URING),
        params=("registered", "offset_bytes", "kill"),
        engine="workloads.load.uring",
    ),
    WorkloadSpec(
        "io-uring-register",
        "workloads.io_uring_register",
        "IORING_REGISTER_BUFFERS: a registered buffer",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.IO_URING,),
        params=("times", *HELD, *COMMON),
        charged="folio-bytes",
        charged_to="user",
        engine="workloads.load.register_uring",
    ),
    WorkloadSpec(
        "af-xdp-umem",
        "workloads.af_xdp",
        "XDP_UMEM_REG: the packet memory of an AF_XDP socket",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.AF_XDP,),
        params=(*HELD, *COMMON),
        keeps=("CAP_NET_RAW",),
        charged="bytes",
        charged_to="user",
    ),
    WorkloadSpec(
        "vfio-map",
        "workloads.vfio",
        "VFIO_IOMMU_MAP_DMA of a type1 container: memory for a device behind an IOMMU",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.VFIO,),
        params=("offset_bytes", *HELD),
        charged="bytes",
    ),
    WorkloadSpec(
        "v4l2-userptr",
        "workloads.v4l2",
        "VIDIOC_PREPARE_BUF of a V4L2_MEMORY_USERPTR capture buffer",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.V4L2,),
        params=("offset_bytes", *HELD),
    ),
    WorkloadSpec(
        "udmabuf",
        "workloads.udmabuf",
        "UDMABUF_CREATE: a dma-buf of a memfd's pages",
        pin_class="pin-longterm",
        scope="held",
        writes=False,
        needs=(Need.UDMABUF,),
        params=("offset_bytes", *HELD),
    ),
    WorkloadSpec(
        "gup-test",
        "workloads.gup_test",
        "the kernel's own GUP test: one ioctl gets and puts every page",
        pin_class="pin",
        scope="call",
        writes=True,
        needs=(Need.GUP_TEST,),
        params=("mode", "offset_bytes", "kill"),
        defaults={"mode": "PIN_FAST"},
    ),
    WorkloadSpec(
        "process-vm-read",
        "workloads.process_vm",
        "process_vm_readv from the memory",
        pin_class="pin",
        scope="call",
        writes=False,
        needs=(Need.PROCESS_VM,),
        params=("offset_bytes", "kill"),
    ),
    WorkloadSpec(
        "process-vm-write",
        "workloads.process_vm",
        "process_vm_writev into the memory",
        pin_class="pin",
        scope="call",
        writes=True,
        needs=(Need.PROCESS_VM,),
        params=("offset_bytes", "kill"),
    ),
    WorkloadSpec(
        "vmsplice",
        "workloads.vmsplice",
        "vmsplice into pipes: the negative control, which moves no pin counter",
        pin_class="get",
        scope="held",
        writes=False,
        params=("offset_bytes", "kill"),
    ),
    WorkloadSpec(
        "msg-zerocopy",
        "workloads.msg_zerocopy",
        "send with MSG_ZEROCOPY over loopback: references, which move no pin counter",
        pin_class="get",
        scope="held",
        writes=False,
        needs=(Need.MSG_ZEROCOPY,),
        params=("offset_bytes", "uid", "memlock_bytes", "kill"),
        charged="zerocopy-bytes",
        charged_to="user",
    ),
    WorkloadSpec(
        "gup-overflow",
        "workloads.gup_overflow",
        "more pins than a small page can have, through io_uring, RDMA or AF_XDP",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.DESTRUCTIVE, Need.CLEAR_WARN_ONCE),
        params=("through",),
        defaults={"through": "io-uring"},
        memories=frozenset({"one-page", "hugetlb-2m"}),
    ),
)

MEMORY = (
    MemorySpec("anon", "workloads.memory.anon", "private anonymous base pages", backing="anon"),
    MemorySpec(
        "anon-untouched",
        "workloads.memory.anon",
        "private anonymous memory that was never touched",
        backing="anon",
        present="absent",
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
        file="memfd",
        shared=True,
    ),
    MemorySpec(
        "one-page",
        "workloads.memory.one_page",
        "one page of a memfd, mapped over and over in the range",
        backing="shmem",
        file="memfd",
        shared=True,
        one_page=True,
        workloads=frozenset({"gup-overflow"}),
    ),
    MemorySpec(
        "ext4-shared",
        "workloads.memory.file",
        "a shared mapping of an ext4 file",
        backing="file",
        file="other",
        shared=True,
        needs=(Need.SCRATCH_EXT4,),
    ),
    MemorySpec(
        "ext4-private",
        "workloads.memory.file",
        "a private mapping of an ext4 file, read but not written",
        backing="file",
        file="other",
        present="copy-on-write",
        fresh_each_cycle=True,
        needs=(Need.SCRATCH_EXT4,),
    ),
    MemorySpec(
        "xfs-shared",
        "workloads.memory.file",
        "a shared mapping of an XFS file",
        backing="file",
        file="other",
        shared=True,
        needs=(Need.SCRATCH_XFS,),
    ),
    MemorySpec(
        "btrfs-shared",
        "workloads.memory.file",
        "a shared mapping of a btrfs file",
        backing="file",
        file="other",
        shared=True,
        needs=(Need.SCRATCH_BTRFS,),
    ),
    MemorySpec(
        "tmpfs-file",
        "workloads.memory.file",
        "a shared mapping of a file on tmpfs",
        backing="shmem",
        file="tmpfs",
        shared=True,
        needs=(Need.SCRATCH_TMPFS,),
    ),
    MemorySpec(
        "dax-shared",
        "workloads.memory.file",
        "a shared mapping of a file on a DAX file system",
        backing="fsdax",
        file="other",
        shared=True,
        needs=(Need.SCRATCH_DAX,),
    ),
    MemorySpec(
        "dax-private",
        "workloads.memory.file",
        "a private mapping of a file on a DAX file system, read but not written",
        backing="fsdax",
        file="other",
        present="copy-on-write",
        fresh_each_cycle=True,
        needs=(Need.SCRATCH_DAX,),
    ),
    MemorySpec(
        "dax-private-cowed",
        "workloads.memory.file",
        "the same, every page written and so copied into anonymous memory",
        backing="fsdax",
        file="other",
        needs=(Need.SCRATCH_DAX,),
    ),
    MemorySpec(
        "devdax",
        "workloads.memory.devdax",
        "a shared mapping of a device-DAX node: persistent memory without a file system",
        backing="devdax",
        file="other",
        shared=True,
        granule_bytes=2 * MIB,
        needs=(Need.DEVDAX,),
    ),
    MemorySpec(
        "zero-page",
        "workloads.memory.anon",
        "private anonymous memory that was read and never written: the zero page",
        backing="anon",
        present="zero-page",
        fresh_each_cycle=True,
    ),
    MemorySpec(
        "anon-shared",
        "workloads.memory.anon",
        "shared anonymous memory, which is shmem",
        backing="shmem",
        shared=True,
    ),
    MemorySpec(
        "mlocked",
        "workloads.memory.anon",
        "private anonymous memory under mlock",
        backing="anon",
        locked=True,
    ),
    MemorySpec(
        "numa-bound",
        "workloads.memory.anon",
        "private anonymous memory bound to the last node that has memory",
        backing="anon",
        needs=(Need.NUMA,),
    ),
    MemorySpec(
        "forked",
        "workloads.memory.cow",
        "private anonymous memory shared copy-on-write with a child that lives",
        backing="anon",
        present="copy-on-write",
        fresh_each_cycle=True,
    ),
    MemorySpec(
        "ksm",
        "workloads.memory.cow",
        "private anonymous pages of equal content, merged by KSM",
        backing="anon",
        present="copy-on-write",
        fresh_each_cycle=True,
        needs=(Need.KSM,),
    ),
    MemorySpec(
        "memfd-hugetlb",
        "workloads.memory.memfd",
        "a shared mapping of a memfd of 2 MiB pages",
        backing="hugetlb",
        file="memfd",
        shared=True,
        granule_bytes=2 * MIB,
        needs=(Need.HUGETLB_2M,),
    ),
    MemorySpec(
        "hugetlb-1g",
        "workloads.memory.hugetlb",
        "a private 1 GiB page of the hugetlb pool",
        backing="hugetlb",
        granule_bytes=1 << 30,
        needs=(Need.HUGETLB_1G,),
    ),
    MemorySpec(
        "secretmem",
        "workloads.memory.secretmem",
        "memfd_secret: pages that the kernel itself cannot reach",
        backing="secretmem",
        file="other",
        shared=True,
        needs=(Need.SECRETMEM,),
    ),
    MemorySpec(
        "prot-none",
        "workloads.memory.barred",
        "private anonymous pages that may not be touched",
        backing="anon",
        prot="none",
    ),
    MemorySpec(
        "prot-read",
        "workloads.memory.barred",
        "private anonymous pages that may only be read",
        backing="anon",
        prot="r",
    ),
    MemorySpec(
        "hole",
        "workloads.memory.barred",
        "private anonymous pages, and none in the middle",
        backing="anon",
        extent="hole",
    ),
    MemorySpec(
        "unmapped",
        "workloads.memory.barred",
        "addresses at which nothing is mapped",
        backing="nothing",
        extent="unmapped",
    ),
    MemorySpec(
        "beyond",
        "workloads.memory.barred",
        "addresses that no process has",
        backing="nothing",
        extent="unmapped",
    ),
    MemorySpec(
        "io-mapping",
        "workloads.memory.io_mapping",
        "the clock's page, which the kernel maps into every process without a struct page",
        backing="io",
        prot="r",
        workloads=frozenset({"rdma-register", "io-uring-register", "af-xdp-umem"}),
    ),
    MemorySpec(
        "past-eof",
        "workloads.memory.memfd",
        "a shared mapping of a memfd that is half as long",
        backing="shmem",
        file="memfd",
        shared=True,
        extent="past-eof",
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


_CHARGED_TO_USER = tuple(spec.name for spec in WORKLOADS if spec.charged_to == "user")

CIRCUMSTANCES = (
    CircumstanceSpec(
        "rival-io-uring",
        "another process of the user holds all but 32 KiB of the limit in a registered buffer",
        cause="pin-budget-of-user",
        workloads=(*_CHARGED_TO_USER, "rdma-register"),
        module="workloads.circumstances.rival",
        needs=(Need.IO_URING,),
        spares=("rdma-register",),
    ),
    CircumstanceSpec(
        "rival-af-xdp",
        "another process of the user holds all but 32 KiB of the limit in an AF_XDP umem",
        cause="pin-budget-of-user",
        workloads=(*_CHARGED_TO_USER, "rdma-register"),
        module="workloads.circumstances.rival",
        needs=(Need.AF_XDP,),
        spares=("rdma-register",),
    ),
    CircumstanceSpec(
        "ipc-lock-unused",
        "CAP_IPC_LOCK is permitted and inheritable, and not effective",
        cause="capability-missing",
        workloads=("rdma-register", *_CHARGED_TO_USER),
    ),
    CircumstanceSpec(
        "mappings-used-up",
        "the process has as many mappings as vm.max_map_count, which is lowered, allows",
        cause="vma-limit",
        workloads=("rdma-register", "io-uring-register"),
        module="workloads.circumstances.mappings",
        needs=(Need.MACHINE_CHANGES,),
    ),
    CircumstanceSpec(
        "rdma-objects-limited",
        "the rdma cgroup allows no more objects than the process has",
        cause="cgroup-rdma-limit",
        workloads=("rdma-register",),
        needs=(Need.CGROUP_RDMA,),
    ),
    CircumstanceSpec(
        "regions-used-up",
        "the device has as many memory regions as it can, which takes minutes to make",
        cause="device-limit",
        workloads=("rdma-register",),
        module="workloads.circumstances.regions",
        needs=(Need.DESTRUCTIVE,),
    ),
    CircumstanceSpec(
        "memory-limited",
        "the memory cgroup has room for a quarter of what was not touched yet",
        cause="no-memory",
        workloads=("rdma-register", "io-uring-register"),
        module="workloads.circumstances.memory_group",
        needs=(Need.CGROUP_MEMORY,),
    ),
    CircumstanceSpec(
        "driver-unbound",
        "the device is taken from its driver while the process has it open",
        cause="device-gone",
        workloads=("v4l2-userptr",),
        needs=(Need.LAB,),
    ),
)


def circumstance_spec(name: str) -> CircumstanceSpec:
    """The spec of that name; KeyError when there is none."""
    return _CIRCUMSTANCE_BY_NAME[name]


def workload_spec(name: str) -> WorkloadSpec:
    """The spec of that name; KeyError when there is none."""
    return LOAD if name == LOAD.name else _WORKLOAD_BY_NAME[name]


def memory_spec(name: str) -> MemorySpec:
    """The spec of that name; KeyError when there is none."""
    return _MEMORY_BY_NAME[name]


def go_together(workload: str, memory: str) -> bool:
    """Whether the two make a case: some workloads and memories are there for each other alone."""
    theirs, chosen = memory_spec(memory).workloads, workload_spec(workload).memories
    return (theirs is None or workload in theirs) and (chosen is None or memory in chosen)


def job_case(job: Job) -> Case:
    """One operation of a job as the case that it would be alone."""
    given = {
        "uid": job.uid,
        "memlock_bytes": job.memlock_bytes,
        "access": job.access if job.workload.startswith("rdma-") else None,
        "registered": job.registered or None,
    }
    params = {name: value for name, value in given.items() if value is not None}
    return Case(job.workload, job.memory, {"size_bytes": job.buffer_bytes, **params})


def is_antagonist(workload: str) -> bool:
    """Whether a job's workload disturbs memory and pins none."""
    return workload not in _WORKLOAD_BY_NAME


def jobs(case: Case) -> list[Job]:
    """What a load pins with; antagonists only disturb. Empty of every other case."""
    if case.load is None:
        return []
    return [job for job in case.load.jobs if not is_antagonist(job.workload)]


def memories(case: Case) -> list[MemorySpec]:
    """The memories that a case works on: its own, or those of a load's jobs."""
    return [memory_spec(job.memory) for job in jobs(case)] or [memory_spec(case.memory)]


def shape(case: Case) -> str:
    """The guest shape that it wants (pinstorm.lab.shape)."""
    movable = case.load is not None and any(
        is_antagonist(job.workload) and Need.MOVABLE in antagonist_spec(job.workload).needs
        for job in case.load.jobs
    )
    wanted = {spec.shape for spec in memories(case)}
    return "movable" if movable or "movable" in wanted else "plain"


def engine_module(workload: str) -> str:
    """The module of a load's engine; KeyError where no load can have that workload."""
    if not is_antagonist(workload):
        module = _WORKLOAD_BY_NAME[workload].engine
        if module is None:
            raise KeyError(workload)
        return module
    return antagonist_spec(workload).module


def import_engine(workload: str) -> ModuleType:
    """The same, imported: its ``prepare`` gives the engine."""
    return import_module(engine_module(workload))


def load_case(load: Load, deadline_s: float) -> Case:
    """The case that a load is."""
    size_bytes = sum(
        memory_spec(job.memory).mapped_bytes(job.buffer_bytes) * job.processes
        for job in load.jobs
        if not is_antagonist(job.workload)
    )
    return Case(
        LOAD.name,
        JOBS.name,
        {"size_bytes": size_bytes},
        repeat=0,
        warmup=0,
        deadline_s=deadline_s,
        hold_s=load.ramp_s + load.duration_s,
        load=load,
    )


def mapped_bytes(case: Case) -> int:
    """What all processes of a case map, and so the most that they can pin, in whole granules."""
    if case.load is not None:
        return case.size_bytes
    wanted_bytes = case.offset_bytes + case.size_bytes
    return memory_spec(case.memory).mapped_bytes(wanted_bytes) * case.processes


def include(module_name: str) -> None:
    """Add the WORKLOADS of a module that is not part of pinstorm: tests plant faulty ones."""
    for spec in import_module(module_name).WORKLOADS:
        _WORKLOAD_BY_NAME[spec.name] = spec


# What the records of a load say in the place of a workload and a memory: each job has its own.
LOAD = WorkloadSpec(
    "load",
    "workloads.load",
    "jobs that run for a time, several at once",
    pin_class="pin-longterm",
    scope="held",
    writes=True,
)
JOBS = MemorySpec("jobs", "workloads.memory.anon", "the memory of each job", backing="anon")

_WORKLOAD_BY_NAME = {spec.name: spec for spec in WORKLOADS}
_MEMORY_BY_NAME = {spec.name: spec for spec in (*MEMORY, JOBS)}
_CIRCUMSTANCE_BY_NAME = {spec.name: spec for spec in CIRCUMSTANCES}
