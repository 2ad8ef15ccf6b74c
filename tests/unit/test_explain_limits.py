"""Limits on locked memory and what else can be used up: the figures told, and the exact command."""

import shlex
from typing import Any

import pytest
from made_failures import (
    KIB,
    a_piece,
    a_process,
    a_record,
    an_ordinary_process,
    causes,
    explained,
)

from pinstorm.evidence import Evidence, Group, Holding
from pinstorm.explain import Cause


@pytest.mark.parametrize(
    ("workload", "call", "outcome"),
    [
        ("rdma-register", "ibv_reg_mr", "ENOMEM"),
        ("io-uring-register", "io_uring_register", "ENOMEM"),
        ("af-xdp-umem", "XDP_UMEM_REG", "ENOBUFS"),
        ("msg-zerocopy", "send", "ENOBUFS"),
        ("vfio-map", "VFIO_IOMMU_MAP_DMA", "ENOMEM"),
    ],
)
def test_memlock_limit_is_told_with_its_figures_and_raised(
    workload: str, call: str, outcome: str
) -> None:
    evidence = Evidence(process=an_ordinary_process(32 * KIB))
    record = a_record(workload, "anon", outcome, call, params={"uid": 65534})
    first = explained(record, evidence).first
    assert (first.cause, first.confidence) == (Cause.MEMLOCK_LIMIT, "certain")
    assert "RLIMIT_MEMLOCK is 32 KiB" in first.evidence[0]
    assert "already holds 0 B in Vm" in first.evidence[0]
    assert first.command is not None
    words = shlex.split(first.command)
    assert words[:3] == ["prlimit", "--pid", "4242"]
    soft, hard = (int(word) for word in words[3].removeprefix("--memlock=").split(":"))
    assert soft == hard >= 64 * KIB


def test_the_limit_counts_what_the_process_holds() -> None:
    record = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", params={"uid": 65534})
    process = an_ordinary_process(128 * KIB, vmpin_bytes=96 * KIB, memlock_hard_bytes=-1)
    first = explained(record, Evidence(process=process)).first
    assert first.cause == Cause.MEMLOCK_LIMIT
    assert "already holds 96 KiB in VmPin, and 64 KiB were asked for" in first.evidence[0]
    assert first.command == f"prlimit --pid 4242 --memlock={160 * KIB}:unlimited"


def test_vfio_and_mlock_share_vmlck_and_rdma_does_not() -> None:
    process = an_ordinary_process(128 * KIB, vmlck_bytes=96 * KIB)
    vfio = a_record("vfio-map", "anon", "ENOMEM", "VFIO_IOMMU_MAP_DMA")
    assert explained(vfio, Evidence(process=process)).first.cause == Cause.MEMLOCK_LIMIT
    rdma = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr")
    assert Cause.MEMLOCK_LIMIT not in {
        one.cause for one in explained(rdma, Evidence(process=process)).findings
    }


def test_a_limit_of_zero_is_eperm_of_rdma() -> None:
    record = a_record("rdma-register", "anon", "EPERM", "ibv_reg_mr", params={"uid": 65534})
    found = explained(record, Evidence(process=an_ordinary_process(0)))
    assert (found.first.cause, found.first.confidence) == (Cause.MEMLOCK_LIMIT, "certain")


@pytest.mark.parametrize(
    "changes",
    [
        {"cap_ipc_lock_permitted": True},
        {"cap_ipc_lock_inheritable": True},
        {"cap_ipc_lock": True, "cap_ipc_lock_permitted": True, "initial_userns": False},
    ],
)
def test_a_capability_in_vain(changes: dict[str, Any]) -> None:
    record = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", params={"uid": 65534})
    found = explained(record, Evidence(process=an_ordinary_process(32 * KIB, **changes)))
    assert causes(found)[:2] == ["capability-missing", "memlock-limit"]
    assert found.first.command == f"prlimit --pid 4242 --memlock={64 * KIB}:{64 * KIB}"


@pytest.mark.parametrize(
    ("workload", "call", "outcome"),
    [
        ("io-uring-register", "io_uring_register", "ENOMEM"),
        ("af-xdp-umem", "XDP_UMEM_REG", "ENOBUFS"),
        ("msg-zerocopy", "send", "ENOBUFS"),
    ],
)
def test_others_of_the_user_hold_the_rest(workload: str, call: str, outcome: str) -> None:
    rival = Holding(99, "python3", "io_uring buffers", 992 * KIB)
    evidence = Evidence(process=an_ordinary_process(1 << 20), holdings=(rival,))
    first = explained(
        a_record(workload, "anon", outcome, call, params={"uid": 65534}), evidence
    ).first
    assert (first.cause, first.confidence) == (Cause.PIN_BUDGET_OF_USER, "certain")
    assert "process 99 (python3) holds 992 KiB" in " ".join(first.evidence)
    assert first.command is not None
    soft = int(first.command.rpartition("=")[2].split(":")[0])
    assert soft >= (992 + 64) * KIB


def test_rdma_has_no_budget_of_the_user() -> None:
    rival = Holding(99, "python3", "io_uring buffers", 992 * KIB)
    evidence = Evidence(process=an_ordinary_process(1 << 20), holdings=(rival,))
    record = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", params={"uid": 65534})
    assert "pin-budget-of-user" not in causes(explained(record, evidence))


def test_commands_name_the_group_and_the_device() -> None:
    full = Group("/sys/fs/cgroup/job", "rdma", "hca_object", 4, 4, None, "rxe0")
    record = a_record("rdma-register", "anon", "EAGAIN", "ibv_reg_mr")
    command = explained(record, Evidence(a_process(), groups=(full,))).first.command
    assert command == "echo 'rxe0 hca_object=max' > /sys/fs/cgroup/job/rdma.max"


def test_the_memory_cgroup_is_raised_beyond_what_was_asked() -> None:
    full = Group("/sys/fs/cgroup/c", "memory", "memory", 1 << 20, 1 << 20, 3)
    record = a_record("rdma-register", "anon-untouched", "ENOMEM", "ibv_reg_mr")
    first = explained(record, Evidence(a_process(), (a_piece(),), groups=(full,))).first
    assert first.cause == Cause.NO_MEMORY
    assert first.command is not None
    echo, limit, arrow, path = first.command.split()
    assert (echo, arrow, path) == ("echo", ">", "/sys/fs/cgroup/c/memory.max")
    assert int(limit) >= (1 << 20) + 64 * KIB


def test_mappings_are_raised_well_beyond_the_limit() -> None:
    evidence = Evidence(process=a_process(vma_count=65530, vma_limit=65530))
    first = explained(a_record("rdma-register", "anon", "EAGAIN", "madvise"), evidence).first
    assert first.command == "sysctl -w vm.max_map_count=262144"


def test_a_hard_limit_that_is_not_known_is_never_lowered() -> None:
    params = {"uid": 65534, "memlock_bytes": 32 * KIB}
    first = explained(
        a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", params=params)
    ).first
    assert first.command == f"prlimit --pid 4242 --memlock={64 * KIB}:unlimited"
