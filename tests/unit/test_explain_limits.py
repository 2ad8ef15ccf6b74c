"""Limits on locked memory and what else can be used up: the figures told, and the exact command."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
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
    of_call,
)

from pinstorm.evidence import Device, Evidence, Group, Holding, Machine
from pinstorm.explain import Cause, resources

FULL = Group(
    "/sys/fs/cgroup/c",
    "memory",
    "memory",
    1 << 20,
    1 << 20,
    3,
    limit_file="memory.max",
    reclaimable=0,
)


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
    process = an_ordinary_process(32 * KIB)
    evidence = Evidence(process=process, holdings=(), own_holdings=())
    record = a_record(workload, "anon", outcome, call, params={"uid": 65534})
    first = explained(record, evidence).first
    assert (first.cause, first.confidence) == (Cause.MEMLOCK_LIMIT, "certain")
    assert "RLIMIT_MEMLOCK is 32 KiB" in first.evidence[0]
    assert "already holds 0 B in " in first.evidence[0]
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
    rival = Holding(99, "python3", "io-uring", 992 * KIB)
    process = an_ordinary_process(1 << 20)
    evidence = Evidence(process=process, holdings=(rival,), own_holdings=())
    first = explained(
        a_record(workload, "anon", outcome, call, params={"uid": 65534}), evidence
    ).first
    assert (first.cause, first.confidence) == (Cause.PIN_BUDGET_OF_USER, "certain")
    assert "process 99 (python3) holds 992 KiB" in " ".join(first.evidence)
    assert first.command is not None
    soft = int(first.command.rpartition("=")[2].split(":")[0])
    assert soft >= (992 + 64) * KIB


def test_rdma_has_no_budget_of_the_user() -> None:
    rival = Holding(99, "python3", "io-uring", 992 * KIB)
    evidence = Evidence(process=an_ordinary_process(1 << 20), holdings=(rival,))
    record = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", params={"uid": 65534})
    assert "pin-budget-of-user" not in causes(explained(record, evidence))


def test_commands_name_the_group_and_the_device() -> None:
    full = Group("/sys/fs/cgroup/job", "rdma", "hca_object", 4, 4, None, "rxe0")
    record = a_record("rdma-register", "anon", "EAGAIN", "ibv_reg_mr")
    command = explained(record, Evidence(a_process(), groups=(full,))).first.command
    assert command == r"printf '%s\n' 'rxe0 hca_object=20' > /sys/fs/cgroup/job/rdma.max"
    many = replace(full, limit=1000, used=1000)
    command = explained(record, Evidence(a_process(), groups=(many,))).first.command
    assert command == r"printf '%s\n' 'rxe0 hca_object=2000' > /sys/fs/cgroup/job/rdma.max"
    most = replace(full, limit=(1 << 31) - 1, used=(1 << 31) - 1)
    assert explained(record, Evidence(a_process(), groups=(most,))).first.command is None


def test_the_memory_cgroup_is_raised_beyond_what_was_asked() -> None:
    record = a_record("rdma-register", "anon-untouched", "ENOMEM", "ibv_reg_mr")
    first = explained(record, Evidence(a_process(), (a_piece(),), groups=(FULL,))).first
    assert (first.cause, first.confidence) == (Cause.NO_MEMORY, "certain")
    assert first.command is not None
    program, form, limit, arrow, path = shlex.split(first.command)
    assert (program, form, arrow, path) == (
        "printf",
        r"%s\n",
        ">",
        "/sys/fs/cgroup/c/memory.max",
    )
    assert int(limit) >= (1 << 20) + 64 * KIB


def test_the_file_of_a_v1_group_is_the_one_that_is_written() -> None:
    record = a_record("rdma-register", "anon-untouched", "ENOMEM", "ibv_reg_mr")
    old = replace(FULL, group="/sys/fs/cgroup/memory/c", limit_file="memory.limit_in_bytes")
    first = explained(record, Evidence(a_process(), (a_piece(),), groups=(old,))).first
    assert first.command is not None
    assert first.command.endswith(" > /sys/fs/cgroup/memory/c/memory.limit_in_bytes")
    unknown = replace(FULL, limit_file=None)
    first = explained(record, Evidence(a_process(), (a_piece(),), groups=(unknown,))).first
    assert (first.cause, first.command) == (Cause.NO_MEMORY, None)


@pytest.mark.parametrize("name", ["a;touch pwned", "$(touch pwned)", r"dev-a\x2db.scope", "it's"])
def test_the_name_of_a_group_is_nothing_but_a_name_to_the_shell(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    place.mkdir()
    command = resources._write("rxe0 hca_object=4", str(place / "rdma.max"))
    assert command is not None
    subprocess.run(["/bin/sh", "-c", command], check=True, cwd=tmp_path, timeout=60)
    assert (place / "rdma.max").read_text() == "rxe0 hca_object=4\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    group = f"/sys/fs/cgroup/{name}"
    record = a_record("rdma-register", "anon", "EAGAIN", "ibv_reg_mr")
    rdma = Group(group, "rdma", "hca_object", 4, 4, None, "rxe0")
    told = explained(record, Evidence(a_process(), groups=(rdma,))).first.command
    assert told is not None
    assert shlex.split(told)[-1] == f"{group}/rdma.max"
    record = a_record("rdma-register", "anon-untouched", "ENOMEM", "ibv_reg_mr")
    full = replace(FULL, group=group)
    told = explained(record, Evidence(a_process(), (a_piece(),), groups=(full,))).first.command
    assert told is not None
    assert shlex.split(told)[-1] == f"{group}/memory.max"


def test_a_name_that_a_terminal_would_obey_is_in_no_command() -> None:
    group = Group("/sys/fs/cgroup/\x1b[2J", "rdma", "hca_object", 4, 4, None, "rxe0")
    first = of_call("ibv_reg_mr", "EAGAIN", Evidence(a_process(), groups=(group,))).first
    assert (first.cause, first.command) == (Cause.CGROUP_RDMA_LIMIT, None)


def test_every_group_that_is_full_is_raised() -> None:
    record = a_record("rdma-register", "anon", "EAGAIN", "ibv_reg_mr")
    inner = Group("/sys/fs/cgroup/a/b", "rdma", "hca_object", 4, 4, None, "rxe0")
    outer = replace(inner, group="/sys/fs/cgroup/a")
    command = explained(record, Evidence(a_process(), groups=(inner, outer))).first.command
    assert command is not None
    assert command.count(" && ") == 1
    assert "/a/b/rdma.max" in command
    assert command.endswith("/cgroup/a/rdma.max")


def test_page_cache_that_can_be_given_up_is_no_lack_of_memory() -> None:
    record = a_record("rdma-register", "anon-untouched", "ENOMEM", "ibv_reg_mr")
    roomy = replace(FULL, reclaimable=512 * KIB)
    evidence = Evidence(
        a_process(), (a_piece(),), groups=(roomy,), machine=Machine(available_bytes=1 << 40)
    )
    assert "no-memory" not in causes(explained(record, evidence))
    # what is not known of the usage may be page cache
    unknown = replace(FULL, reclaimable=None)
    first = explained(record, replace(evidence, groups=(unknown,))).first
    assert (first.cause, first.confidence) == (Cause.NO_MEMORY, "likely")


def test_memory_that_is_there_already_meets_no_limit_of_a_group() -> None:
    placement = {"zones": {"Normal": 16}, "cma_pages": 0}
    machine = Machine(available_bytes=1 << 40)
    evidence = Evidence(a_process(), (a_piece(),), groups=(FULL,), machine=machine)
    for known in (placement, None):
        record = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", placement=known)
        assert "no-memory" not in causes(explained(record, evidence))


@pytest.mark.parametrize(
    ("asked", "confidence"),
    [(64 * KIB, "possible"), (20 << 20, "likely"), (None, "possible")],
)
def test_of_another_program_it_is_not_known_whether_its_memory_was_there(
    asked: int | None, confidence: str
) -> None:
    process = a_process(vmrss_bytes=10 << 20)
    found = of_call("ibv_reg_mr", "ENOMEM", Evidence(process, groups=(FULL,)), size_bytes=asked)
    named = [one for one in found.findings if one.cause == Cause.NO_MEMORY]
    assert [one.confidence for one in named] == [confidence]
    short = Evidence(process, machine=Machine(available_bytes=KIB))
    found = of_call("ibv_reg_mr", "ENOMEM", short, size_bytes=asked)
    assert all(one.confidence != "certain" for one in found.findings)


def test_overcommit_is_not_switched_off() -> None:
    evidence = Evidence(a_process(), machine=Machine(commit_left_bytes=0, available_bytes=1 << 40))
    record = a_record("rdma-register", "anon", "ENOMEM", "mmap", failed_phase="prepare")
    first = explained(record, evidence).first
    assert (first.cause, first.confidence, first.command) == (Cause.NO_MEMORY, "certain", None)
    assert "vm.overcommit_ratio" in first.remedy
    assert "swap" in first.remedy


@pytest.mark.parametrize(
    ("changes", "call", "errno"),
    [
        ({"resource": "hca_handle"}, "ibv_reg_mr", "EAGAIN"),
        ({"device": "mlx5_9"}, "ibv_reg_mr", "EAGAIN"),
    ],
)
def test_another_resource_or_device_refuses_nothing(
    changes: dict[str, str], call: str, errno: str
) -> None:
    full = replace(Group("/sys/fs/cgroup/a", "rdma", "hca_object", 4, 4, None, "rxe0"), **changes)
    found = explained(a_record("rdma-register", "anon", errno, call), Evidence(groups=(full,)))
    assert "cgroup-rdma-limit" not in causes(found)


def test_the_limit_of_a_device_that_nobody_knows_is_likely_at_most() -> None:
    full = Group("/sys/fs/cgroup/a", "rdma", "hca_object", 4, 4, None, "rxe0")
    handles = replace(full, resource="hca_handle")

    def sure(call: str, group: Group, device: Device | None) -> list[str]:
        found = of_call(call, "EAGAIN", Evidence(groups=(group,), device=device))
        return [one.confidence for one in found.findings if one.cause == Cause.CGROUP_RDMA_LIMIT]

    only = Device("rxe0", True, others_open=False)
    assert sure("ibv_reg_mr", full, None) == ["likely"]
    assert sure("ibv_reg_mr", full, replace(only, others_open=True)) == ["likely"]
    assert sure("ibv_reg_mr", full, only) == ["certain"]
    assert sure("ibv_reg_mr", full, replace(only, name="mlx5_0")) == []
    # the one that is open is not the one that is to be opened
    assert sure("ibv_open_device", handles, replace(only, name="mlx5_0")) == ["likely"]
    assert sure("ibv_open_device", full, only) == []


def test_mappings_are_never_raised_beyond_what_the_kernel_takes() -> None:
    most = (1 << 31) - 1
    for limit, command in ((1 << 30, f"sysctl -w vm.max_map_count={most}"), (most, None)):
        evidence = Evidence(process=a_process(vma_count=limit, vma_limit=limit))
        record = a_record("rdma-register", "anon", "EAGAIN", "madvise")
        assert explained(record, evidence).first.command == command


TOO_MANY = "WARNING: mm/gup.c:143 at try_grab_folio_fast+0x77/0xc0, CPU#1: python/154"
OLD_TOO_MANY = "WARNING: CPU: 1 PID: 151 at mm/gup.c:224 try_grab_page+0xd6/0x100"


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (TOO_MANY, True),
        (f"{OLD_TOO_MANY}\nModules linked in:", True),
        ({"text": TOO_MANY, "own": True}, True),
        ({"text": TOO_MANY, "own": False}, False),
        ("WARNING: CPU: 1 PID: 151 at mm/gup.c:2001 __get_user_pages+0xd6/0x100", False),
        ("WARNING: CPU: 0 PID: 9 at mm/gup_test.c:9 gup_test_ioctl+0x1", False),
        ("WARNING: CPU: 0 PID: 9 at mm/slub.c:9 kfree+0x1\n try_grab_folio+0x1", False),
    ],
)
def test_only_the_warning_of_the_pin_count_tells_of_it(entry: Any, named: bool) -> None:
    record = a_record("rdma-register", "anon", "ENOMEM", "ibv_reg_mr", kmsg=[entry])
    evidence = Evidence(a_process(), (a_piece(),), kernel_log=(TOO_MANY,))
    found = explained(record, evidence)
    assert (found.first.cause == Cause.PIN_COUNT_LIMIT) is named
    assert ("pin-count-limit" in causes(found)) is named


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
