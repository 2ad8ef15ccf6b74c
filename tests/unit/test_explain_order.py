"""Several causes at once: the one that the kernel meets first is named, the others are told."""

from typing import Any

import pytest
from made_failures import (
    KIB,
    START,
    V6_1,
    a_piece,
    a_process,
    a_record,
    an_ordinary_process,
    causes,
    explained,
)

from pinstorm.evidence import Device, Evidence, Group, Holding, Piece

FSDAX = a_piece(permissions="rw-s", path="/pmem/file", fs_type="ext4", dax=True)
EXT4 = a_piece(permissions="rw-s", path="/mnt/file", fs_type="ext4")
SMALL = an_ordinary_process(32 * KIB)
FULL = Group("/sys/fs/cgroup/job", "rdma", "hca_object", 4, 4, None, "rxe0")
USER = {"params": {"uid": 65534}}


@pytest.mark.parametrize(
    ("workload", "call", "outcome", "evidence", "named"),
    [
        # RDMA charges before it looks at the mapping, io_uring after it has pinned.
        (
            "rdma-register",
            "ibv_reg_mr",
            "ENOMEM",
            Evidence(SMALL, (FSDAX,)),
            ["memlock-limit", "longterm-on-dax"],
        ),
        (
            "io-uring-register",
            "io_uring_register",
            "EOPNOTSUPP",
            Evidence(SMALL, (FSDAX,)),
            ["longterm-on-dax", "memlock-limit"],
        ),
        (
            "af-xdp-umem",
            "XDP_UMEM_REG",
            "ENOBUFS",
            Evidence(SMALL, (EXT4,)),
            ["memlock-limit", "longterm-on-file"],
        ),
        (
            "vfio-map",
            "VFIO_IOMMU_MAP_DMA",
            "EFAULT",
            Evidence(SMALL, (EXT4,)),
            ["longterm-on-file", "memlock-limit"],
        ),
        # The cgroup refuses before the driver is called at all.
        (
            "rdma-register",
            "ibv_reg_mr",
            "EAGAIN",
            Evidence(SMALL, (a_piece(),), groups=(FULL,)),
            ["cgroup-rdma-limit", "memlock-limit"],
        ),
        # rxe takes a place in its table before it charges: the same errno.
        (
            "rdma-register",
            "ibv_reg_mr",
            "ENOMEM",
            Evidence(SMALL, (a_piece(),), device=Device("rxe0", True, max_mr=1, mrs=1)),
            ["device-limit", "memlock-limit"],
        ),
        # With the limit raised, what it hid.
        (
            "rdma-register",
            "ibv_reg_mr",
            "EOPNOTSUPP",
            Evidence(an_ordinary_process(64 * KIB), (FSDAX,)),
            ["longterm-on-dax"],
        ),
    ],
)
def test_the_first_in_the_kernel_is_the_first_told(
    workload: str, call: str, outcome: str, evidence: Evidence, named: list[str]
) -> None:
    found = explained(a_record(workload, "anon", outcome, call, **USER), evidence)
    assert causes(found) == named
    for later in found.others:
        met_alike = outcome == "ENOMEM" and "device-limit" in named
        assert met_alike or "would be met next" in later.evidence[-1]


def test_gup_goes_from_the_beginning_of_the_range_to_its_end() -> None:
    gap = Piece(START + 32 * KIB, START + 36 * KIB, None)
    late = a_piece(28 * KIB, at=36 * KIB, permissions="r--p")
    record = a_record("rdma-register", "anon", "EFAULT", "ibv_reg_mr")
    found = explained(record, Evidence(a_process(), (a_piece(32 * KIB), gap, late)))
    assert causes(found) == ["not-mapped", "protection"]
    early = a_piece(32 * KIB, permissions="r--p")
    found = explained(record, Evidence(a_process(), (early, gap, a_piece(28 * KIB, at=36 * KIB))))
    assert causes(found) == ["protection", "not-mapped"]


def test_of_one_mapping_the_kernel_asks_for_device_memory_first() -> None:
    clock = a_piece(permissions="r--p", path="[vvar]", flags=("rd", "io", "pf"))
    record = a_record("rdma-register", "anon", "EFAULT", "ibv_reg_mr")
    assert causes(explained(record, Evidence(a_process(), (clock,)))) == [
        "io-mapping",
        "protection",
    ]


def test_the_budget_and_then_the_mapping() -> None:
    rival = Holding(99, "python3", "xdp-umem", 1008 * KIB)
    evidence = Evidence(an_ordinary_process(1 << 20), (EXT4,), (rival,))
    record = a_record("af-xdp-umem", "anon", "ENOBUFS", "XDP_UMEM_REG", **USER)
    assert causes(explained(record, evidence)) == ["pin-budget-of-user", "longterm-on-file"]


def test_a_case_names_no_guess_when_there_are_several() -> None:
    """Without evidence an ENOMEM of root's registration on plain memory may be many things."""
    found = explained(a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr"))
    assert causes(found)[0] == "unknown"
    assert {"no-memory", "device-limit"} <= set(causes(found))
    assert all(one.confidence == "possible" for one in found.others)


@pytest.mark.parametrize(
    ("workload", "memory", "call", "outcome", "more", "cause", "confidence"),
    [
        (
            "rdma-register",
            "dax-shared",
            "ibv_reg_mr",
            "EOPNOTSUPP",
            {},
            "longterm-on-dax",
            "likely",
        ),
        (
            "rdma-register",
            "anon",
            "ibv_reg_mr",
            "ENOMEM",
            {"params": {"uid": 65534, "memlock_bytes": 32 * KIB}},
            "memlock-limit",
            "likely",
        ),
        (
            "io-uring-register",
            "anon",
            "io_uring_register",
            "ENOMEM",
            {"params": {"uid": 65534, "memlock_bytes": 96 * KIB, "processes": 2}},
            "pin-budget-of-user",
            "likely",
        ),
        (
            "rdma-register",
            "movable-held",
            "ibv_reg_mr",
            "ENOMEM",
            {"migrate": None},
            "migration-failed",
            "likely",
        ),
        (
            "rdma-register",
            "secretmem",
            "mmap",
            "EAGAIN",
            {"failed_phase": "prepare", "params": {"uid": 65534, "memlock_bytes": 0}},
            "memlock-limit",
            "likely",
        ),
        (
            "io-uring-register",
            "ext4-private",
            "io_uring_register",
            "EOPNOTSUPP",
            {"kernel": V6_1},
            "kernel-unsupported",
            "likely",
        ),
    ],
)
def test_an_old_bundle_is_explained_by_what_it_says(
    workload: str,
    memory: str,
    call: str,
    outcome: str,
    more: dict[str, Any],
    cause: str,
    confidence: str,
) -> None:
    first = explained(a_record(workload, memory, outcome, call, **more)).first
    assert (str(first.cause), first.confidence) == (cause, confidence)


def test_the_same_is_certain_with_evidence() -> None:
    record = a_record("rdma-register", "dax-shared", "EOPNOTSUPP", "ibv_reg_mr")
    assert explained(record).first.confidence == "likely"
    assert explained(record, Evidence(pieces=(FSDAX,))).first.confidence == "certain"


def test_an_explanation_survives_json() -> None:
    found = explained(
        a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", **USER), Evidence(SMALL, (FSDAX,))
    )
    assert type(found).from_json(found.to_json()) == found
    assert found.others
