"""The pin budget and the differences of two examinations, from states made by hand."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pinstorm.doctor import (
    against,
    limits,
    pin_budget,
    raised_limit,
    rdma_devices,
    virtualisation,
)
from pinstorm.doctor.device_probe import Answers
from pinstorm.doctor.finding import SCHEMA, Budget, Examination, Finding, Status, Topic
from pinstorm.doctor.locked_memory import Charged
from pinstorm.doctor.needed_by import needed_by
from pinstorm.doctor.sight import Options, Sight
from pinstorm.errors import UsageError
from pinstorm.evidence_parts import Evidence, Group, Holding, Machine, Process
from pinstorm.lab import accel
from pinstorm.lab.accel import Accel
from pinstorm.needs import Survey
from pinstorm.needs.unmet import lacks
from pinstorm.report import doctor_listing
from telemetry import modules, rdma_resource
from telemetry.rdma import Device, Port
from telemetry.rdma_resource import InUse
from workloads import WORKLOADS
from workloads.spec import PAGE_BYTES, Need, Surroundings

KIB = 1 << 10
GIB = 1 << 30


def process(
    soft_bytes: int | None = 64 * KIB, hard_bytes: int | None = 64 * KIB, **changes: Any
) -> Process:
    values: dict[str, Any] = {
        "pid": 42,
        "name": "pinstorm",
        "uid": 1000,
        "memlock_soft_bytes": soft_bytes,
        "memlock_hard_bytes": hard_bytes,
        "address_space_bytes": -1,
        "vmsize_bytes": 0,
        "vmrss_bytes": 0,
        "vmpin_bytes": 0,
        "vmlck_bytes": 0,
        "cap_ipc_lock": False,
        "cap_ipc_lock_permitted": False,
        "cap_ipc_lock_inheritable": False,
        "cap_effective": (),
        "initial_userns": True,
        "vma_count": 100,
        "vma_limit": 65530,
        "real_uid": 1000,
    }
    return Process(**{**values, **changes})


def sight(of: Process | None = None, **changes: Any) -> Sight:
    """An ordinary user of a machine with 4 GiB, of whom the kernel says nothing is charged."""
    machine = Machine(available_bytes=4 * GIB)
    values: dict[str, Any] = {
        "options": Options(),
        "evidence": Evidence(machine=machine, groups=()),
        "process": of or process(),
        "survey": Survey(Surroundings()),
        "devices": (),
        "answers": Answers(),
        "holdings": (),
        "hidden": (),
        "charged": Charged(0, 2 * PAGE_BYTES),
        "uncharged": None,
        "run": None,
        "has_log": True,
        "kernel": None,
    }
    return Sight(**{**values, **changes})


def budgets(seen: Sight) -> dict[str, Budget]:
    return {one.mechanism: one for one in pin_budget.budgets(seen)}


def largest(seen: Sight) -> dict[str, int | None]:
    return {name: one.largest_bytes for name, one in budgets(seen).items()}


# -- the budget ---------------------------------------------------------------------------------


def test_each_mechanism_has_its_own_account() -> None:
    found = budgets(sight(charged=Charged(16 * KIB, 8 * KIB)))
    said = {name: (one.largest_bytes, one.errno) for name, one in found.items()}
    assert said["io-uring"] == (40 * KIB, "ENOMEM")  # the ring takes its part first
    assert said["af-xdp"] == (48 * KIB, "ENOBUFS")
    assert said["msg-zerocopy"] == (40 * KIB, "ENOBUFS")  # two pages more are charged
    assert said["iommufd"] == (48 * KIB, "ENOMEM")
    for alone in ("rdma", "vfio", "mlock"):
        assert said[alone] == (64 * KIB, "ENOMEM")
    for free in ("rdma-odp", "direct-io"):
        assert said[free] == (4 * GIB, None)
        assert found[free].bound_by == "memory"
    assert {one.charged_to for one in found.values()} == {"user", "process", None}


def test_what_is_not_to_be_had_is_told() -> None:
    lacking = {Need.AF_XDP: lacks(Need.AF_XDP, "socket(AF_XDP): Operation not permitted")}
    found = budgets(sight(survey=Survey(Surroundings(), lacking)))
    usable = {name: one.usable for name, one in found.items()}
    assert (usable["af-xdp"], usable["io-uring"], usable["mlock"]) == (False, True, None)


def test_the_next_page_fails() -> None:
    for one in pin_budget.budgets(sight()):
        if one.bound_by == "memlock":
            assert one.largest_bytes is not None
            assert one.fails_from_bytes == one.largest_bytes + PAGE_BYTES
            assert one.command is not None


def test_a_limit_that_is_no_multiple_of_a_page() -> None:
    found = largest(sight(process(10000, 10000), charged=Charged(0, 0)))
    assert found["rdma"] == found["io-uring"] == 8192


def test_nothing_is_left() -> None:
    found = largest(sight(charged=Charged(None, 0)))
    assert (found["io-uring"], found["af-xdp"], found["rdma"]) == (0, 0, 64 * KIB)
    more = largest(sight(charged=Charged(1 << 20, 8 * KIB)))
    assert (more["io-uring"], more["af-xdp"]) == (0, 0)


def test_without_the_kernels_answer_what_processes_show_is_added_up() -> None:
    holdings = (
        Holding(7, "fio", "io-uring", 16 * KIB),
        Holding(8, "ib", "rdma-mr", 32 * KIB),
        Holding(9, "xsk", "xdp-umem", None),
    )
    found = largest(sight(charged=None, uncharged="seccomp", holdings=holdings))
    assert (found["io-uring"], found["af-xdp"], found["rdma"]) == (40 * KIB, 48 * KIB, 64 * KIB)


def test_capabilities_that_count_and_those_that_do_not() -> None:
    def bound(**changes: Any) -> str | None:
        return budgets(sight(process(**changes)))["rdma"].bound_by

    assert bound(cap_ipc_lock=True) == "memory"
    assert bound(cap_ipc_lock=True, initial_userns=False) == "memlock"
    assert bound(cap_ipc_lock_permitted=True) == "memlock"
    assert bound(soft_bytes=-1) == "memory"


def test_a_limit_of_nothing_is_refused_before_it_is_compared() -> None:
    found = budgets(sight(process(0, 0)))
    errnos = {name: found[name].errno for name in ("rdma", "mlock", "vfio", "io-uring")}
    assert errnos == {"rdma": "EPERM", "mlock": "EPERM", "vfio": "ENOMEM", "io-uring": "ENOMEM"}


def test_the_memory_can_be_less_than_the_limit() -> None:
    group = Group("/sys/fs/cgroup/job", "memory", "memory", 2 * GIB, GIB, reclaimable=GIB // 2)
    evidence = Evidence(machine=Machine(available_bytes=4 * GIB), groups=(group,))
    one = budgets(sight(process(-1, -1), evidence=evidence))["rdma"]
    assert (one.bound_by, one.largest_bytes, one.errno) == ("cgroup", 3 * GIB // 2, None)
    assert "/sys/fs/cgroup/job" in one.because


def test_the_mapping_itself_can_be_refused() -> None:
    limited = process(-1, -1, address_space_bytes=2 * GIB, vmsize_bytes=GIB // 2)
    one = budgets(sight(limited))["direct-io"]
    assert (one.bound_by, one.largest_bytes) == ("address-space", 3 * GIB // 2)
    assert (one.errno, one.fails_from_bytes) == ("ENOMEM", None)
    machine = Machine(available_bytes=4 * GIB, commit_left_bytes=GIB)
    strict = sight(process(-1, -1), evidence=Evidence(machine=machine, groups=()))
    one = budgets(strict)["rdma"]
    assert (one.bound_by, one.largest_bytes, one.errno) == ("commit", GIB, "ENOMEM")
    # nor is a small RLIMIT_MEMLOCK hidden by it
    assert budgets(sight(process(address_space_bytes=GIB)))["rdma"].bound_by == "memlock"


def test_a_device_can_be_smaller_than_the_memory() -> None:
    survey = Survey(Surroundings(device="x0", device_can={"max_mr_size_bytes": GIB}))
    found = budgets(sight(process(-1, -1), survey=survey))
    assert (found["rdma"].bound_by, found["rdma"].largest_bytes) == ("device", GIB)
    assert found["vfio"].bound_by == "memory"


@pytest.mark.parametrize(
    ("soft_bytes", "hard_bytes", "command"),
    [
        (64 * KIB, -1, "ulimit -S -l unlimited"),
        (64 * KIB, 128 * KIB, "ulimit -S -l 128"),
    ],
)
def test_a_soft_limit_is_raised_without_root(
    soft_bytes: int, hard_bytes: int, command: str
) -> None:
    assert pin_budget.raise_memlock(process(soft_bytes, hard_bytes)) == command


def test_a_hard_limit_is_raised_for_what_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 7)
    command = "prlimit --pid 7 --memlock=unlimited:unlimited"
    assert pin_budget.raise_memlock(process()) == command
    # whole KiB of the hard limit would be less than the soft one
    assert pin_budget.raise_memlock(process(10000, 10200)) == command
    # the first process of a container: prlimit --pid 0 would be prlimit itself
    monkeypatch.setattr(os, "getppid", lambda: 0)
    assert pin_budget.raise_memlock(process()) is None


@pytest.mark.parametrize(
    ("limits_", "command"),
    [
        ((GIB, -1), "ulimit -S -v unlimited"),
        ((GIB, 2 * GIB), f"ulimit -S -v {2 * GIB // KIB}"),
        ((GIB, GIB), "prlimit --pid 7 --as=unlimited:unlimited"),
    ],
)
def test_an_address_space_is_raised_as_far_as_the_hard_limit_lets(
    monkeypatch: pytest.MonkeyPatch, limits_: tuple[int, int], command: str
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 7)
    monkeypatch.setattr(raised_limit, "getrlimit", lambda name: limits_)
    found = limits_of(sight(process(address_space_bytes=limits_[0])))["address-space"]
    assert (found.status, found.command) == (Status.LIMITED, command)


def test_of_limits_that_are_not_known_no_command_is_made_up() -> None:
    seen = limits_of(sight(process(None, None, real_uid=None, initial_userns=None)))
    for name in ("memlock-limit", "cap-ipc-lock"):
        assert (seen[name].status, seen[name].command) == (Status.LIMITED, None), seen[name]


@pytest.mark.parametrize(
    ("parameter", "loadable", "command"),
    [
        ("64", False, "echo 1024 > /sys/module/udmabuf/parameters/size_limit_mb"),
        (None, True, "modprobe udmabuf size_limit_mb=1024"),
        (None, None, "modprobe udmabuf size_limit_mb=1024"),
        (None, False, None),
    ],
)
def test_a_modules_limit_is_raised_where_the_module_is(
    monkeypatch: pytest.MonkeyPatch,
    parameter: str | None,
    loadable: bool | None,
    command: str | None,
) -> None:
    monkeypatch.setattr(modules, "parameter", lambda *names: parameter)
    monkeypatch.setattr(modules, "can_load", lambda name: loadable)
    one = budgets(sight())["udmabuf"]
    assert (one.bound_by, one.largest_bytes, one.command) == ("module", 64 << 20, command)


# -- findings -----------------------------------------------------------------------------------


def limits_of(seen: Sight) -> dict[str, Finding]:
    return {one.id: one for one in limits.findings(seen)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cap_ipc_lock": True, "initial_userns": False}, "this user namespace only"),
        ({"cap_ipc_lock_permitted": True}, "permitted, and not effective"),
        ({"cap_ipc_lock_inheritable": True}, "inheritable"),
        ({}, "has none"),
    ],
)
def test_the_capability_is_told_as_it_is(changes: dict[str, Any], words: str) -> None:
    found = limits_of(sight(process(**changes)))["cap-ipc-lock"]
    assert words in found.seen
    assert found.status == Status.LIMITED
    assert found.figures["counts"] is False


def test_an_unlimited_user_is_fine() -> None:
    found = limits_of(sight(process(-1, -1)))
    for name in ("memlock-limit", "cap-ipc-lock", "memory-charged"):
        assert (found[name].status, found[name].command) == (Status.OK, None), name


def test_what_others_hold_is_named() -> None:
    holdings = tuple(Holding(pid, "fio", "io-uring", pid * KIB) for pid in range(4, 32, 4))
    found = limits_of(sight(charged=Charged(48 * KIB, 0), holdings=holdings))["memory-charged"]
    assert found.status == Status.LIMITED
    assert "48 KiB charged" in found.seen
    assert "fio (pid 28) 28 KiB of io-uring" in found.seen
    assert "3 more" in found.seen
    assert found.command == "pinstorm pins --uid 1000"


def test_a_group_that_is_larger_than_the_machine_binds_nothing() -> None:
    group = Group("/g", "memory", "memory", 1 << 50, 0, limit_file="memory.max")
    machine = Machine(available_bytes=GIB)
    large = limits_of(sight(evidence=Evidence(machine=machine, groups=(group,))))["memory-cgroup"]
    assert (large.status, large.command) == (Status.OK, None)
    group = Group("/a b", "memory", "memory", 1 << 20, 0, limit_file="memory.max")
    small = limits_of(sight(evidence=Evidence(machine=machine, groups=(group,))))["memory-cgroup"]
    assert (small.status, small.command) == (Status.LIMITED, "echo max > '/a b/memory.max'")


def test_few_mappings() -> None:
    found = limits_of(sight(process(vma_limit=1000)))["max-map-count"]
    assert found.status == Status.LIMITED
    assert found.command is not None
    assert found.command.startswith("sysctl vm.max_map_count=")


def test_why_names_who_needs_it() -> None:
    users = [spec.name for spec in WORKLOADS if Need.VFIO in spec.needs]
    assert users
    assert all(name in needed_by(Need.VFIO) for name in users)
    assert "memory ksm" in needed_by(Need.KSM)


def kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: Accel | None) -> Finding:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(virtualisation, "_KVM", device)
    monkeypatch.setattr(accel, "remembered", lambda: answer)
    found = {one.id: one for one in virtualisation.findings(sight(), lambda text: None)}
    return found["kvm"]


def test_kvm_is_what_booted_a_guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node that can be opened is not enough."""
    unknown = kvm(monkeypatch, tmp_path, None)
    assert (unknown.status, unknown.figures["boots"]) == (Status.LIMITED, None)
    assert unknown.command == "pinstorm doctor --probe-kvm"
    broken = kvm(monkeypatch, tmp_path, Accel("tcg", "7.2", "QEMU ended with -6 under KVM"))
    assert (broken.status, broken.figures["boots"]) == (Status.LIMITED, False)
    assert "ended with -6" in broken.seen
    works = kvm(monkeypatch, tmp_path, Accel("kvm", "7.2"))
    assert (works.status, works.figures["boots"]) == (Status.OK, True)


# -- two of them --------------------------------------------------------------------------------


def examination(seen: Sight) -> dict[str, Any]:
    where = {"host": "h", "kernel": "7.2", "uid": 1000, "user": None, "made_at": "now"}
    made = Examination(where, pin_budget.budgets(seen), tuple(limits.findings(seen)))
    document: dict[str, Any] = json.loads(json.dumps(made.to_json()))
    return document


def test_the_shape_of_the_document() -> None:
    document = examination(sight())
    assert list(document) == ["doctor_schema", "where", "budget", "findings"]
    assert document["doctor_schema"] == SCHEMA
    assert set(document["budget"][0]) == {
        "mechanism",
        "what",
        "call",
        "charged_to",
        "largest_bytes",
        "fails_from_bytes",
        "errno",
        "bound_by",
        "because",
        "command",
        "usable",
    }
    names = {"id", "topic", "status", "seen", "why", "command", "figures", "levels", "unseen"}
    for row in document["findings"]:
        assert set(row) == names
        assert row["status"] in [*Status]
        assert row["topic"] in [*Topic]
        assert row["seen"]
        assert row["why"]
    ids = [row["id"] for row in document["findings"]]
    assert len(ids) == len(set(ids))


def test_levels_are_not_compared() -> None:
    here, there = examination(sight()), examination(sight())
    for row in there["findings"]:
        row["levels"] = {"used_bytes": 1}
        row["seen"] = "something else"
    there["budget"][-1]["largest_bytes"] = 1  # of the memory that is available
    assert against.differences(here, there) == []


def test_a_limit_that_differs() -> None:
    here, there = examination(sight()), examination(sight(process(128 * KIB, 128 * KIB)))
    found = {(one.id, one.figure): one for one in against.differences(here, there)}
    limit = found["memlock-limit", "soft_bytes"]
    assert (limit.here, limit.there) == (64 * KIB, 128 * KIB)
    assert "LimitMEMLOCK" in limit.means
    bound = found["budget/rdma", "largest"]
    assert bound.there == {"bound_by": "memlock", "largest_bytes": 128 * KIB, "errno": "ENOMEM"}
    assert ("budget/direct-io", "largest") not in found


def test_a_finding_that_one_side_lacks() -> None:
    here, there = examination(sight()), examination(sight())
    extra = dict(there["findings"][0], id="rdma-odp-mlx5_0", topic="rdma")
    there["findings"].append({**extra, "figures": {"odp": True}, "status": "ok"})
    found = {one.figure: one for one in against.differences(here, there)}
    assert (found["status"].here, found["status"].there) == (None, "ok")
    assert (found["odp"].here, found["odp"].there) == (None, True)
    assert found["odp"].means


def test_of_a_table_only_what_differs_is_told() -> None:
    here, there = examination(sight()), examination(sight())
    row = here["findings"][0]
    row["figures"] = {"options": {"CONFIG_A": "y", "CONFIG_B": "y"}}
    there["findings"][0] = {**row, "figures": {"options": {"CONFIG_A": "y", "CONFIG_B": "m"}}}
    (one,) = against.differences(here, there)
    assert (one.figure, one.here, one.there) == ("options.CONFIG_B", "y", "m")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"schema": 1}',
        '{"doctor_schema": 1, "where": {}, "findings": {}, "budget": []}',
        '{"doctor_schema": 1, "where": {}, "findings": [{"id": 1}], "budget": []}',
        '{"doctor_schema": true}',
        '{"doctor_schema": true, "where": {}, "findings": [], "budget": []}',
        '{"doctor_schema": 1, "where": {"launched_by": 5}, "findings": [], "budget": []}',
        '{"doctor_schema": 1, "where": {}, "findings": [{"id": "a", "figures": 5}], "budget": []}',
        '{"doctor_schema": 1, "where": {"a": NaN}, "findings": [], "budget": []}',
        '{"doctor_schema": 1, "where": {"a": 1e999}, "findings": [], "budget": []}',
        "[" * 100_000,
        '{"doctor_schema": 1, "where": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    ],
)
def test_what_is_no_doctors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "there.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no output of pinstorm doctor"):
        against.read(path)


def test_what_never_ends_is_not_read_to_the_end() -> None:
    with pytest.raises(UsageError, match="no output of pinstorm doctor"):
        against.read(Path("/dev/zero"))


def test_a_newer_schema(tmp_path: Path) -> None:
    path = tmp_path / "there.json"
    path.write_text(json.dumps({**examination(sight()), "doctor_schema": SCHEMA + 1}))
    with pytest.raises(UsageError, match=f"reads up to {SCHEMA}"):
        against.read(path)


# -- on screen ----------------------------------------------------------------------------------


def test_the_listing_fits_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = sight()
    made = Examination(
        {"host": "h", "kernel": "7.2", "user": "ada", "launched_by": ["ssh"], "parent": "sh"},
        pin_budget.budgets(seen),
        tuple(limits.findings(seen)),
    )
    monkeypatch.setattr(doctor_listing, "examine", lambda options, note: made)
    doctor_listing.show(Options(), None, False, print)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "user ada, started by ssh, sh" in text
    assert "56 KiB  ENOMEM" in text
    command = next(line for line in text.splitlines() if "fix: prlimit" in line)
    assert command.endswith("--memlock=unlimited:unlimited")


def shown_against(
    there: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
) -> str:
    path.write_text(json.dumps(there))
    seen = sight()
    made = Examination({"host": "h"}, pin_budget.budgets(seen), tuple(limits.findings(seen)))
    monkeypatch.setattr(doctor_listing, "examine", lambda options, note: made)
    doctor_listing.show(Options(), path, False, print)
    return capsys.readouterr().out


def test_the_differences_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = examination(sight(process(128 * KIB, 128 * KIB)))
    text = shown_against(there, capsys, monkeypatch, tmp_path / "there.json")
    assert max(map(len, text.splitlines())) <= 100
    assert "128 KiB" in text
    assert "what it means" in text


def test_nothing_in_a_file_speaks_to_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is it a traceback, whatever stands where a name or a number should."""
    there = examination(sight())
    evil = "\x1b[31mred\ud800\u202e" + "x" * 1000
    there["where"] |= {"host": evil, "launched_by": [evil, 1], "parent": [evil], "cgroup": 5}
    row = there["findings"][0]
    row["figures"] = {evil: 1, "a_bytes": 10**4000, "soft_bytes": [evil], "b": {evil: evil}}
    there["findings"].append({"id": evil, "topic": [evil], "status": {}})
    there["budget"][0] |= {"errno": evil, "bound_by": evil, "largest_bytes": 10**4000}
    there["budget"].append({"mechanism": evil, "largest_bytes": 1, "errno": {}})
    text = shown_against(there, capsys, monkeypatch, tmp_path / "there.json")
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "?[31mred" in text


# -- rdma ---------------------------------------------------------------------------------------

SAID: dict[str, Any] = {
    "odp": True,
    "odp_implicit": False,
    "odp_rc": ["send", "recv", "write", "read"],
    "odp_rc_write": True,
    "odp_rc_read": True,
    "odp_ud": [],
    "max_mr": 1000,
    "max_mr_size_bytes": 1 << 40,
    "mtu_bytes": {"1": 4096},
}


def rdma_of(
    monkeypatch: pytest.MonkeyPatch, answers: Answers, state: str = "ACTIVE", mrs: int = 3
) -> dict[str, Finding]:
    """Of one device with one port, which has so many regions in use."""
    port = Port(1, state, "LinkUp", "InfiniBand", "100 Gb/sec (4X EDR)", "0x1")
    device = Device("mlx5_0", "20.1", None, None, "MT4123", None, "mlx5_core", 1, (port,))
    monkeypatch.setattr(rdma_resource, "read", lambda: [InUse("mlx5_0", {"mr": mrs})])
    monkeypatch.setattr(modules, "read", lambda: None)
    seen = sight(devices=(device,), answers=answers)
    return {one.id: one for one in rdma_devices.findings(seen)}


def test_a_device_that_can_do_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rdma_of(monkeypatch, Answers(devices={"mlx5_0": SAID}))
    for name in ("rdma-devices", "rdma-port-mlx5_0-1", "rdma-odp-mlx5_0", "rdma-regions-mlx5_0"):
        assert found[name].status == Status.OK, found[name]
    assert "RC send, recv, write, read" in found["rdma-odp-mlx5_0"].seen
    assert "path MTU 4096" in found["rdma-port-mlx5_0-1"].seen
    assert "firmware 20.1" in found["rdma-device-mlx5_0"].seen
    assert found["rdma-regions-mlx5_0"].levels["in_use"] == {"mr": 3}


def test_a_device_that_is_down_and_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {**SAID, "odp": False, "odp_rc": [], "odp_rc_write": False, "odp_rc_read": False}
    found = rdma_of(monkeypatch, Answers(devices={"mlx5_0": said}), "DOWN", 1000)
    port = found["rdma-port-mlx5_0-1"]
    assert (port.status, port.command) == (Status.LIMITED, None)  # a cable, or its other end
    initial = rdma_of(monkeypatch, Answers(devices={"mlx5_0": said}), "INIT")
    assert initial["rdma-port-mlx5_0-1"].command == "opensm --daemon"
    assert found["rdma-odp-mlx5_0"].status == Status.MISSING
    assert found["rdma-regions-mlx5_0"].status == Status.LIMITED


@pytest.mark.parametrize(
    ("answers", "status", "usable"),
    [
        (Answers(pyverbs_error="No module named 'pyverbs'"), Status.MISSING, False),
        (Answers(unanswered="the devices did not answer within 30 s"), Status.LIMITED, None),
    ],
)
def test_without_an_answer_what_sysfs_has_is_told(
    monkeypatch: pytest.MonkeyPatch, answers: Answers, status: Status, usable: bool | None
) -> None:
    found = rdma_of(monkeypatch, answers)
    assert found["rdma-port-mlx5_0-1"].status == Status.OK
    assert "path MTU not known" in found["rdma-port-mlx5_0-1"].seen
    assert found["rdma-odp-mlx5_0"].status == Status.LIMITED
    assert found["rdma-regions-mlx5_0"].figures["max_mr"] is None
    assert (found["pyverbs"].status, found["pyverbs"].figures["usable"]) == (status, usable)


def test_a_device_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(devices={"mlx5_0": {"error": "Failed to open device. Errno: 13"}})
    found = rdma_of(monkeypatch, answers)["rdma-odp-mlx5_0"]
    assert (found.status, found.command) == (Status.LIMITED, None)
    assert "Errno: 13" in found.seen
