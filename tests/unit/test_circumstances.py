"""What the runner changes around a case, in files of a machine that is not there; and the list."""

import importlib
from pathlib import Path

import pytest

import workloads
from pinstorm import circumstances, host, suite
from pinstorm.circumstances import Circumstance, CircumstanceFailed
from pinstorm.containment import Containment
from pinstorm.errors import UsageError
from pinstorm.explain import Cause
from pinstorm.needs import groups, needs_of
from telemetry import cgroup, sysctl
from workloads.spec import MIB, Case, Need, Surroundings

RXE = Surroundings(device="rxe0")


@pytest.fixture(autouse=True)
def undo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run" / "undo.json"
    monkeypatch.setattr(host, "UNDO", path)
    return path


@pytest.fixture
def own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group with a leaf of the case, as files of a directory."""
    own = tmp_path / "group"
    (own / "leaf").mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory rdma\n")
    (own / "cgroup.subtree_control").write_text("cpu\n")
    (own / "leaf/rdma.current").write_text("rxe0 hca_handle=1 hca_object=3\n")
    (own / "leaf/rdma.max").write_text("rxe0 hca_handle=max hca_object=max\n")
    monkeypatch.setattr(cgroup, "own_v2", lambda: own)
    return own


def around(workload: str, under: str, leaf: Path | None) -> Circumstance:
    case = Case(workload, "anon", {"size_bytes": MIB, "under": under})
    return Circumstance(case, RXE, Containment(leaf, 1, "mark"))


def test_objects_are_limited_to_what_is_held(own_group: Path, undo_file: Path) -> None:
    leaf = own_group / "leaf"
    with around("rdma-register", "rdma-objects-limited", leaf) as made:
        assert (own_group / "cgroup.subtree_control").read_text() == "+rdma"
        made.tighten(1)
        assert (leaf / "rdma.max").read_text() == "rxe0 hca_object=3"
        assert undo_file.exists()
    assert (leaf / "rdma.max").read_text() == "rxe0 hca_object=max"
    assert (own_group / "cgroup.subtree_control").read_text() == "-rdma"
    assert not undo_file.exists()


def test_a_controller_that_is_there_stays(own_group: Path) -> None:
    (own_group / "cgroup.subtree_control").write_text("rdma\n")
    with around("rdma-register", "rdma-objects-limited", own_group / "leaf"):
        pass
    assert (own_group / "cgroup.subtree_control").read_text() == "rdma\n"


def test_an_earlier_change_outlives_the_case(own_group: Path, tmp_path: Path) -> None:
    """What --setup gave to the whole run is given back at its end, not after the first case."""
    pool = tmp_path / "nr_hugepages"
    pool.write_text("0\n")
    host.change(pool, "8")
    with around("rdma-register", "rdma-objects-limited", own_group / "leaf") as made:
        made.tighten(1)
    assert pool.read_text() == "8"
    host.undo()
    assert pool.read_text() == "0"


def test_mappings_are_lowered_above_what_anybody_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "vm" / "max_map_count"
    limit.parent.mkdir()
    limit.write_text("65530\n")
    monkeypatch.setattr(sysctl, "SYS", tmp_path)
    monkeypatch.setattr(circumstances.psutil, "pids", lambda: [1, 2, 3])
    monkeypatch.setattr(circumstances.maps, "vma_count", lambda pid: 100 * pid)
    with around("io-uring-register", "mappings-used-up", None):
        assert limit.read_text() == "1300"
    assert limit.read_text() == "65530"


def test_a_group_that_is_gone_needs_no_undoing(tmp_path: Path, undo_file: Path) -> None:
    limit = tmp_path / "leaf" / "memory.max"
    limit.parent.mkdir()
    limit.write_text("max")
    host.change(limit, "4096", undo=(limit, "max"))
    limit.unlink()
    limit.parent.rmdir()
    host.undo()
    assert not undo_file.exists()


def test_what_cannot_be_changed_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot change .*nowhere"):
        host.change(tmp_path / "nowhere" / "file", "1")


def test_without_a_circumstance_nothing_is_touched(undo_file: Path) -> None:
    case = Case("io-uring-register", "anon", {"size_bytes": MIB})
    with Circumstance(case, RXE, Containment(None, 1, "mark")) as made:
        made.tighten(1)
    assert not undo_file.parent.exists()


@pytest.mark.parametrize("spec", workloads.CIRCUMSTANCES, ids=lambda spec: spec.name)
def test_a_circumstance_names_what_there_is(spec: workloads.CircumstanceSpec) -> None:
    assert spec.cause in set(Cause)
    assert set(spec.spares) < set(spec.workloads)
    for name in spec.workloads:
        workload = workloads.workload_spec(name)
        assert workload.scope == "held"
        case = Case(name, "anon", {"size_bytes": MIB, "under": spec.name})
        assert set(spec.needs) <= set(needs_of(case))


def test_changes_of_the_machine_want_leave() -> None:
    unmet = {entry.code for entry in groups.unmet(may_change=False)}
    assert unmet >= {Need.MACHINE_CHANGES, Need.CGROUP_RDMA, Need.CGROUP_MEMORY}


def test_groups_below_one_with_processes_cannot_be_limited(own_group: Path) -> None:
    assert not {e.code for e in groups.unmet(may_change=True)} & {Need.CGROUP_RDMA}
    (own_group / "cgroup.type").write_text("domain\n")
    unmet = {entry.code: entry.detail for entry in groups.unmet(may_change=True)}
    assert "has processes of its own" in unmet[Need.CGROUP_RDMA]
    (own_group / "cgroup.controllers").write_text("cpu\n")
    unmet = {entry.code: entry.detail for entry in groups.unmet(may_change=True)}
    assert "does not have it" in unmet[Need.CGROUP_MEMORY]


def test_every_module_of_the_child_is_named() -> None:
    folder = Path(workloads.__file__).parent / "circumstances"
    found = {f"workloads.circumstances.{path.stem}" for path in folder.glob("*.py")}
    named = {spec.module for spec in workloads.CIRCUMSTANCES if spec.module is not None}
    assert found - {"workloads.circumstances.__init__"} == named
    for name in named:
        assert callable(importlib.import_module(name).prepare)


def test_every_cause_is_made() -> None:
    """But those of which the suites of their own speak, and what nobody can make."""
    made = {spec.cause for spec in workloads.CIRCUMSTANCES}
    others = {"gup-overflow": "pin-count-limit"}
    cases = suite.expand(suite.load("failures")).cases
    by_memory = {
        "longterm-on-dax": "dax-shared",
        "longterm-on-file": "ext4-shared",
        "migration-failed": "movable-held",
        "not-mapped": "hole",
        "bad-address": "beyond",
        "protection": "prot-none",
        "secret-memory": "secretmem",
        "io-mapping": "io-mapping",
    }
    memories = {case.memory for case in cases}
    made |= {cause for cause, memory in by_memory.items() if memory in memories}
    made |= {"memlock-limit"} if any("memlock_bytes" in case.params for case in cases) else set()
    made |= {"misaligned"} if any(case.offset_bytes for case in cases) else set()
    made |= {"odp-unsupported"} if any(case.params.get("force") for case in cases) else set()
    made |= {"kernel-unsupported"} if any(case.workload == "udmabuf" for case in cases) else set()
    assert {str(cause) for cause in Cause} == made | set(others.values()) | {"unknown"}


def test_what_could_not_be_made_is_told_and_taken_back(own_group: Path, undo_file: Path) -> None:
    """Half of it is nothing: the controller that was enabled is switched off again."""
    (own_group / "leaf/rdma.max").unlink()
    (own_group / "leaf/rdma.max").mkdir()
    with (
        pytest.raises(CircumstanceFailed, match="rdma-objects-limited could not be made"),
        around("rdma-register", "rdma-objects-limited", own_group / "leaf") as made,
    ):
        made.tighten(1)
    assert (own_group / "cgroup.subtree_control").read_text() == "-rdma"
