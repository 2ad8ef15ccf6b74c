"""Each cause from constructed evidence, and its near misses: the same errno for another reason."""

from dataclasses import dataclass
from typing import Any

import pytest
from made_failures import (
    KIB,
    START,
    V6_1,
    V6_12,
    V7_2,
    a_piece,
    a_process,
    a_record,
    an_ordinary_process,
    causes,
    explained,
    of_call,
)

from pinstorm import explain
from pinstorm.evidence import Device, Evidence, Group, Machine, Piece
from pinstorm.explain import Cause

UNLIMITED = a_process()
EXT4 = a_piece(permissions="rw-s", path="/mnt/file", fs_type="ext4", flags=("rd", "wr", "sh"))
FSDAX = a_piece(permissions="rw-s", path="/pmem/file", fs_type="ext4", dax=True)
DEVDAX = a_piece(permissions="rw-s", path="/dev/dax0.0", fs_type="devtmpfs", dax=True)
MEMFD = a_piece(permissions="rw-s", path="/memfd:x (deleted)", fs_type="tmpfs")
SECRET = a_piece(permissions="rw-s", path="/secretmem (deleted)", fs_type="secretmem")
READ_ONLY = a_piece(permissions="r--p")
NOTHING = a_piece(permissions="---p")
GAP = Piece(START, START + 64 * KIB, None)
IO = a_piece(permissions="rw-s", path="/dev/mem", flags=("sh", "io", "pf"))
SHORT_FILE = a_piece(permissions="rw-s", path="/memfd:x", fs_type="tmpfs", past_eof_bytes=32 * KIB)
HOLE = (a_piece(32 * KIB), Piece(START + 32 * KIB, START + 36 * KIB, None))


def seen(*pieces: Piece, **more: Any) -> Evidence:
    return Evidence(**{"process": UNLIMITED, "pieces": pieces, **more})


@dataclass(frozen=True, slots=True)
class Refusal:
    """``cause``: the one that is to be named, or that must not be."""

    cause: Cause
    record: dict[str, Any]
    evidence: Evidence

    def __str__(self) -> str:
        return f"{self.cause} {self.record['case']} {self.record['outcome']}"


def refusal(cause: Cause, words: str, evidence: Evidence, **more: Any) -> Refusal:
    """``words``: workload/memory, the call that failed (``-``: none), and the outcome."""
    what, rest = words.split(" ", 1)
    workload, memory = what.split("/")
    call, outcome = rest.split(": ")
    return Refusal(
        cause, a_record(workload, memory, outcome, None if call == "-" else call, **more), evidence
    )


MADE = [
    # The memory is called what it is not in some: what was seen goes before the specs.
    refusal(Cause.LONGTERM_ON_DAX, "rdma-register/dax-shared ibv_reg_mr: EOPNOTSUPP", seen(FSDAX)),
    refusal(
        Cause.LONGTERM_ON_DAX, "io-uring-register/anon io_uring_register: EOPNOTSUPP", seen(FSDAX)
    ),
    refusal(
        Cause.LONGTERM_ON_DAX,
        "io-uring-register/dax-private-cowed io_uring_register: EFAULT",
        seen(FSDAX),
    ),
    refusal(Cause.LONGTERM_ON_FILE, "rdma-register/ext4-shared ibv_reg_mr: EFAULT", seen(EXT4)),
    refusal(
        Cause.LONGTERM_ON_FILE,
        "io-uring-register/ext4-shared io_uring_register: EOPNOTSUPP",
        seen(EXT4),
        kernel=V6_1,
    ),
    refusal(
        Cause.KERNEL_UNSUPPORTED,
        "io-uring-register/devdax io_uring_register: EOPNOTSUPP",
        seen(DEVDAX),
        kernel=V6_1,
    ),
    refusal(Cause.NOT_MAPPED, "vfio-map/hole VFIO_IOMMU_MAP_DMA: EFAULT", seen(*HOLE)),
    refusal(
        Cause.NOT_MAPPED, "af-xdp-umem/hole setsockopt: ENOMEM", seen(*HOLE), detail="XDP_UMEM_REG"
    ),
    refusal(
        Cause.NOT_MAPPED,
        "af-xdp-umem/unmapped setsockopt: EFAULT",
        seen(GAP),
        detail="XDP_UMEM_REG",
    ),
    refusal(Cause.NOT_MAPPED, "rdma-register/past-eof ibv_reg_mr: EFAULT", seen(SHORT_FILE)),
    refusal(Cause.NOT_MAPPED, "process-vm-read/hole -: short", seen(*HOLE), done_bytes=32 * KIB),
    refusal(Cause.PROTECTION, "rdma-register/prot-read ibv_reg_mr: EFAULT", seen(READ_ONLY)),
    refusal(Cause.PROTECTION, "process-vm-read/prot-none process_vm_readv: EFAULT", seen(NOTHING)),
    refusal(Cause.SECRET_MEMORY, "v4l2-userptr/secretmem VIDIOC_PREPARE_BUF: EFAULT", seen(SECRET)),
    refusal(Cause.IO_MAPPING, "rdma-register/anon ibv_reg_mr: EFAULT", seen(IO)),
    refusal(
        Cause.MIGRATION_FAILED,
        "rdma-register/movable-held ibv_reg_mr: ENOMEM",
        seen(a_piece()),
        migrate={"success": 0, "fail": 16, "noise": 0},
        placement={"zones": {"Normal": 16}, "cma_pages": 16},
    ),
    refusal(
        Cause.MIGRATION_FAILED,
        "gup-test/movable-held -: short",
        seen(a_piece()),
        migrate={"success": 0, "fail": 1},
        params={"mode": "PIN_LONGTERM"},
    ),
    refusal(
        Cause.CGROUP_RDMA_LIMIT,
        "rdma-register/anon ibv_reg_mr: EAGAIN",
        seen(groups=(Group("/sys/fs/cgroup/job", "rdma", "hca_object", 4, 4, None, "rxe0"),)),
    ),
    refusal(
        Cause.VMA_LIMIT,
        "rdma-register/anon madvise: EAGAIN",
        seen(process=a_process(vma_count=3000, vma_limit=3000)),
    ),
    refusal(
        Cause.VMA_LIMIT,
        "rdma-register/anon mmap: ENOMEM",
        seen(process=a_process(vma_count=3001, vma_limit=3000)),
    ),
    refusal(
        Cause.DEVICE_LIMIT,
        "rdma-register/anon ibv_reg_mr: EINVAL",
        seen(device=Device("rxe0", True, max_mr=8, mrs=8)),
    ),
    refusal(
        Cause.DEVICE_LIMIT,
        "rdma-register/anon ibv_reg_mr: ENOMEM",
        seen(device=Device("mlx5_0", True, max_mr_size_bytes=KIB)),
    ),
    refusal(
        Cause.DEVICE_GONE,
        "rdma-register/anon ibv_reg_mr: EIO",
        seen(device=Device("mlx5_0", False)),
    ),
    refusal(Cause.DEVICE_GONE, "v4l2-userptr/anon VIDIOC_PREPARE_BUF: ENODEV", Evidence()),
    refusal(
        Cause.ODP_UNSUPPORTED,
        "rdma-register-odp/anon ibv_reg_mr: EOPNOTSUPP",
        seen(device=Device("rxe0", True, odp=False)),
        kernel=V6_12,
    ),
    refusal(
        Cause.ODP_UNSUPPORTED,
        "rdma-register-odp/hole ibv_reg_mr: EINVAL",
        seen(device=Device("rxe0", True, odp=False)),
        kernel=V6_1,
    ),
    refusal(Cause.NOT_MAPPED, "rdma-register-odp/hole RDMA WRITE: EFAULT", seen(*HOLE)),
    refusal(
        Cause.MISALIGNED,
        "af-xdp-umem/anon setsockopt: EINVAL",
        seen(a_piece()),
        detail="XDP_UMEM_REG",
        params={"offset_bytes": 512},
    ),
    refusal(
        Cause.MISALIGNED, "dio-read/anon preadv: EINVAL", Evidence(), params={"offset_bytes": 1}
    ),
    refusal(Cause.KERNEL_UNSUPPORTED, "udmabuf/anon UDMABUF_CREATE: EBADFD", seen(a_piece())),
    refusal(
        Cause.KERNEL_UNSUPPORTED,
        "rdma-register/secretmem memfd_secret: ENOSYS",
        Evidence(),
        failed_phase="prepare",
    ),
    refusal(
        Cause.BAD_ADDRESS,
        "rdma-register/beyond ibv_reg_mr: EFAULT",
        seen(Piece(1 << 56, (1 << 56) + 64 * KIB, None)),
        region=[1 << 56, 64 * KIB],
    ),
    refusal(
        Cause.PIN_COUNT_LIMIT,
        "gup-overflow/one-page ibv_reg_mr: ENOMEM",
        seen(a_piece(), kernel_log=("WARNING: CPU: 1 PID: 77 at mm/gup.c:150 try_grab_folio+0x1",)),
        params={"through": "rdma"},
    ),
    refusal(
        Cause.NO_MEMORY,
        "io-uring-register/anon-untouched io_uring_register: EFAULT",
        seen(
            a_piece(),
            groups=(
                Group(
                    "/sys/fs/cgroup/c",
                    "memory",
                    "memory",
                    1 << 20,
                    (1 << 20) - 8 * KIB,
                    reclaimable=0,
                ),
            ),
        ),
    ),
    refusal(
        Cause.NO_MEMORY,
        "rdma-register/hugetlb-2m mmap: ENOMEM",
        Evidence(machine=Machine(free_huge_bytes={"2097152": 0})),
        failed_phase="prepare",
    ),
    refusal(
        Cause.NO_MEMORY,
        "rdma-register/anon mmap: ENOMEM",
        Evidence(process=a_process(address_space_bytes=100 << 20)),
        failed_phase="prepare",
    ),
    refusal(
        Cause.CAPABILITY_MISSING,
        "af-xdp-umem/anon socket: EPERM",
        Evidence(process=an_ordinary_process(0)),
        failed_phase="prepare",
    ),
]


@pytest.mark.parametrize("made", MADE, ids=str)
def test_what_was_seen_names_the_cause(made: Refusal) -> None:
    found = explained(made.record, made.evidence)
    assert (found.first.cause, found.first.confidence) == (made.cause, "certain"), found
    assert found.first.evidence
    assert found.first.remedy


# The same calls and errnos, where what was seen speaks against the obvious cause.
MISSES = [
    refusal(Cause.LONGTERM_ON_DAX, "rdma-register/anon ibv_reg_mr: EOPNOTSUPP", seen(DEVDAX)),
    refusal(Cause.LONGTERM_ON_FILE, "rdma-register/anon ibv_reg_mr: EFAULT", seen(MEMFD)),
    refusal(
        Cause.LONGTERM_ON_FILE,
        "rdma-register/anon ibv_reg_mr: EFAULT",
        seen(EXT4),
        params={"access": "ro"},
    ),
    refusal(
        Cause.LONGTERM_ON_FILE, "af-xdp-umem/anon XDP_UMEM_REG: EFAULT", seen(EXT4), kernel=V6_1
    ),
    refusal(
        Cause.PROTECTION,
        "rdma-register/anon ibv_reg_mr: EFAULT",
        seen(READ_ONLY),
        params={"access": "ro"},
    ),
    refusal(
        Cause.PROTECTION,
        "rdma-register/anon ibv_reg_mr: EFAULT",
        seen(NOTHING),
        params={"access": "ro"},
        kernel=V6_1,
    ),
    refusal(Cause.IO_MAPPING, "vfio-map/anon VFIO_IOMMU_MAP_DMA: EFAULT", seen(IO)),
    refusal(
        Cause.MIGRATION_FAILED,
        "rdma-register/anon ibv_reg_mr: ENOMEM",
        seen(a_piece()),
        migrate={"success": 0, "fail": 3, "noise": 3},
    ),
    refusal(
        Cause.MIGRATION_FAILED,
        "rdma-register/anon ibv_reg_mr: ENOMEM",
        seen(a_piece()),
        migrate={"success": 0, "fail": 3},
        placement={"zones": {"Normal": 16}, "cma_pages": 0},
    ),
    refusal(
        Cause.CGROUP_RDMA_LIMIT,
        "rdma-register/anon ibv_reg_mr: EAGAIN",
        seen(groups=(Group("/sys/fs/cgroup/job", "rdma", "hca_object", 4, 3, None, "rxe0"),)),
    ),
    refusal(
        Cause.DEVICE_LIMIT,
        "rdma-register/anon ibv_reg_mr: EINVAL",
        seen(device=Device("rxe0", True, max_mr=100, mrs=7)),
    ),
    refusal(
        Cause.DEVICE_GONE, "rdma-register/anon ibv_reg_mr: EIO", seen(device=Device("rxe0", True))
    ),
    refusal(
        Cause.ODP_UNSUPPORTED,
        "rdma-register-odp/anon ibv_reg_mr: EOPNOTSUPP",
        seen(device=Device("rxe0", True, odp=True)),
    ),
    refusal(
        Cause.VMA_LIMIT,
        "rdma-register/anon madvise: EAGAIN",
        seen(process=a_process(vma_count=100)),
    ),
    refusal(
        Cause.MISALIGNED,
        "rdma-register/anon ibv_reg_mr: EINVAL",
        Evidence(),
        params={"offset_bytes": 1},
    ),
    refusal(
        Cause.MEMLOCK_LIMIT,
        "rdma-register/anon ibv_reg_mr: ENOMEM",
        Evidence(process=an_ordinary_process(64 * KIB)),
        params={"uid": 65534},
    ),
    refusal(
        Cause.MEMLOCK_LIMIT,
        "rdma-register/anon ibv_reg_mr: EPERM",
        Evidence(process=an_ordinary_process(64 * KIB)),
        params={"uid": 65534},
    ),
    refusal(
        Cause.MEMLOCK_LIMIT,
        "v4l2-userptr/anon VIDIOC_PREPARE_BUF: ENOMEM",
        Evidence(process=an_ordinary_process(0)),
    ),
    refusal(
        Cause.NO_MEMORY,
        "rdma-register/anon ibv_reg_mr: EFAULT",
        seen(
            a_piece(),
            kernel_log=("Out of memory: Killed process 99 (x)",),
            machine=Machine(available_bytes=1 << 40),
        ),
    ),
]


@pytest.mark.parametrize("miss", MISSES, ids=str)
def test_near_misses_are_not_named(miss: Refusal) -> None:
    found = explained(miss.record, miss.evidence)
    assert found.first.cause != miss.cause, found
    named = [one for one in found.findings if one.cause == miss.cause]
    assert all(one.confidence == "possible" for one in named)


def test_the_oom_killer_is_the_one_cause_without_an_errno() -> None:
    killed = a_record("rdma-register", "anon", None, None, verdict="crash", signal=9)
    assert explain.of_record(killed) is None
    killed["kmsg"] = [{"text": "Memory cgroup out of memory: Killed process 4242 (python3)"}]
    assert explained(killed).first.cause == Cause.NO_MEMORY
    killed["kmsg"] = ["Out of memory: Killed process 42421 (another)"]
    assert explain.of_record(killed) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "ok", "failed_call": None},
        {"outcome": None, "failed_call": None, "verdict": "timeout"},
        {"verdict": "skip", "skip": [{"code": "no-device"}], "outcome": None},
        {"failed_phase": "release"},
    ],
)
def test_what_was_not_refused_has_no_cause(changes: dict[str, Any]) -> None:
    record = a_record("rdma-register", "anon", "EINVAL", "ibv_reg_mr") | changes
    assert explain.of_record(record) is None


def test_a_prepare_that_broke_is_not_explained_by_the_call_behind_it() -> None:
    record = a_record("rdma-register", "prot-none", "EFAULT", None, failed_phase="prepare")
    assert explained(record).first.cause == Cause.UNKNOWN


def test_wrong_bytes_have_no_cause() -> None:
    record = a_record("dio-read", "anon", "EIO", "preadv", detail="wrong bytes arrived")
    found = explained(record).first
    assert found.cause == Cause.UNKNOWN
    assert "wrong bytes arrived" in found.evidence


def test_every_cause_is_made_here() -> None:
    made = {entry.cause for entry in MADE}
    elsewhere = {Cause.MEMLOCK_LIMIT, Cause.PIN_BUDGET_OF_USER, Cause.UNKNOWN}
    assert made | elsewhere == set(Cause)


def test_another_program_gets_every_cause_that_fits() -> None:
    found = of_call("ibv_reg_mr", "ENOMEM")
    assert {one.confidence for one in found.findings} == {"possible"}
    assert causes(found)[0] == "memlock-limit"
    assert {"no-memory", "vma-limit", "migration-failed", "device-limit", "pin-count-limit"} <= set(
        causes(found)
    )
    assert all(one.evidence and one.remedy for one in found.findings)


@pytest.mark.parametrize(
    ("call", "errno", "first"),
    [
        ("ibv_reg_mr", "EAGAIN", "cgroup-rdma-limit"),
        ("ibv_reg_mr", "EPERM", "memlock-limit"),
        ("ibv_reg_mr()", "EFAULT", "not-mapped"),
        ("io_uring_register_buffers", "ENOMEM", "memlock-limit"),
        ("io_uring_register_buffers", "EFAULT", "not-mapped"),
        ("io_uring_setup", "ENOSYS", "kernel-unsupported"),
        ("xsk_umem__create", "ENOBUFS", "memlock-limit"),
        ("VFIO_IOMMU_MAP_DMA", "ENOMEM", "memlock-limit"),
        ("VFIO_IOMMU_MAP_DMA", "EFAULT", "not-mapped"),
        ("ibv_create_cq", "ENOMEM", "memlock-limit"),
        ("ibv_open_device", "EAGAIN", "cgroup-rdma-limit"),
        ("process_vm_readv", "EPERM", "capability-missing"),
    ],
)
def test_the_fields_spellings_are_known(call: str, errno: str, first: str) -> None:
    assert causes(of_call(call, errno))[0] == first


def test_the_process_of_another_program_decides() -> None:
    process = an_ordinary_process(64 * KIB, vmpin_bytes=0)
    small = of_call("ibv_reg_mr", "ENOMEM", Evidence(process=process), size_bytes=64 * KIB)
    assert "memlock-limit" not in causes(small)
    large = of_call("ibv_reg_mr", "ENOMEM", Evidence(process=process), size_bytes=128 * KIB)
    assert (large.first.cause, large.first.confidence) == (Cause.MEMLOCK_LIMIT, "certain")
    assert large.first.command == f"prlimit --pid 4242 --memlock={128 * KIB}:{128 * KIB}"
    unsized = of_call("ibv_reg_mr", "ENOMEM", Evidence(process=process))
    assert unsized.first.cause == Cause.MEMLOCK_LIMIT
    assert unsized.first.confidence == "possible"
    root = of_call("ibv_reg_mr", "ENOMEM", Evidence(process=UNLIMITED), size_bytes=128 * KIB)
    assert "memlock-limit" not in causes(root)


def test_a_suspicious_mapping_of_another_program_is_possible_only() -> None:
    found = of_call("ibv_reg_mr", "EFAULT", seen(EXT4), kernel=V7_2)
    assert (found.first.cause, found.first.confidence) == (Cause.LONGTERM_ON_FILE, "possible")
    assert "/mnt/file" in " ".join(found.first.evidence)
    assert "longterm-on-file" not in causes(of_call("ibv_reg_mr", "EFAULT", seen(), kernel=V7_2))


def test_an_unknown_call_is_unknown_and_the_known_ones_are_told() -> None:
    found = of_call("cuCtxCreate", "ENOMEM")
    assert causes(found) == ["unknown"]
    assert "ibv_reg_mr" in found.first.evidence[0]
