"""What the runner changes around a case, in files of a machine that is not there; and the list."""

import importlib
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

import workloads
from pinstorm import circumstances, containment, host, remedy, suite
from pinstorm.circumstances import Circumstance, CircumstanceFailed
from pinstorm.containment import Containment
from pinstorm.errors import UsageError
from pinstorm.explain import Cause
from pinstorm.needs import groups, needs_of
from telemetry import cgroup, gup_trace, mountinfo, sysctl
from telemetry.mountinfo import Mount
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


def test_a_group_that_is_gone_needs_no_undoing(
    tmp_path: Path, undo_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(str(tmp_path), "cgroup2", "cgroup2", (), (), "0:27", "/")
    monkeypatch.setattr(mountinfo, "cgroup2", lambda mounts: mount)
    limit = tmp_path / "leaf" / "memory.max"
    limit.parent.mkdir()
    limit.write_text("max")
    host.change(limit, "4096", undo=(limit, "max"))
    limit.unlink()
    limit.parent.rmdir()
    assert host.undo() == []
    assert not undo_file.exists()


def test_what_cannot_be_given_back_is_told_and_kept(tmp_path: Path, undo_file: Path) -> None:
    """A file that is gone is not forgotten where it is no control group's; nor is a refusal."""
    bind, pool, gone = tmp_path / "bind", tmp_path / "pool", tmp_path / "driver" / "bind"
    gone.parent.mkdir()
    for path in (bind, pool, gone):
        path.write_text("before")
        host.change(path, "after")
    for path in (bind, gone):
        path.unlink()
    bind.mkdir()
    gone.parent.rmdir()
    told = host.undo()
    assert [sentence.partition(":")[0] for sentence in told] == [
        f"cannot give back {gone} = before",
        f"cannot give back {bind} = before",
    ]
    assert pool.read_text() == "before"
    assert host.noted() == 2
    bind.rmdir()
    gone.parent.mkdir()
    assert host.undo() == []
    assert (bind.read_text(), gone.read_text()) == ("before", "before")
    assert not undo_file.exists()


def test_what_cannot_be_given_back_is_told_when_a_run_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def broken_run() -> None:
        with host.restored():
            host.change(path, "after")
            path.unlink()
            path.mkdir()
            raise UsageError("broken")

    with pytest.raises(UsageError, match="broken"):
        broken_run()
    assert f"cannot give back {path} = before: is a directory" in capsys.readouterr().err
    with host.restored() as failures:
        assert len(failures) == 1
        path.rmdir()
    # at the beginning it failed, and at the end it did not
    assert path.read_text() == "before"


def test_what_a_case_leaves_is_its_own(tmp_path: Path, own_group: Path) -> None:
    with around("rdma-register", "rdma-objects-limited", own_group / "leaf") as made:
        made.tighten(1)
        (own_group / "leaf/rdma.max").unlink()
        (own_group / "leaf/rdma.max").mkdir()
    (sentence,) = made.left
    assert "rdma.max = rxe0 hca_object=max: is a directory" in sentence


# -- leaves of killed runs ---------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(containment, "NOTES", tmp_path / "notes")
    return tmp_path / "notes"


def test_a_leaf_is_noted_for_as_long_as_it_is_there(own_group: Path, notes: Path) -> None:
    leaves = containment.Leaves()
    (note,) = notes.iterdir()
    leaf = Path(note.read_text())
    assert leaf.parent == own_group
    assert leaf.is_dir()
    leaves.close()
    assert not leaf.exists()
    assert not notes.exists()


def test_a_leaf_of_a_killed_run_is_removed_wherever_it_is(
    tmp_path: Path, own_group: Path, notes: Path
) -> None:
    """The run was below another group; and its pid is another process's by now, namely ours."""
    words = gup_trace.own_name().split("_")
    stale = "_".join([*words[:2], str(int(words[2]) - 1), words[3]])
    elsewhere = tmp_path / "elsewhere"
    for name in (stale, gup_trace.own_name(), "pinstorm_1"):
        (elsewhere / name).mkdir(parents=True)
        containment._note(elsewhere / name)
        (own_group / name).mkdir()
    containment.remove_stale_leaves()
    kept = {gup_trace.own_name(), "pinstorm_1"}
    assert {path.name for path in elsewhere.iterdir()} == kept
    assert {path.name for path in own_group.glob("pinstorm*")} == kept
    assert {path.name for path in notes.iterdir()} == {f"leaf-{name}" for name in kept}


# -- remedies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "sysctl -w vm.max_map_count=70000",
        "prlimit --pid 1 --memlock=1:1",
        "prlimit --pid {pid}",
        "prlimit --pid {pid} touch",
        "prlimit --pid {pid} --memlock=1:1; touch {file}",
        "prlimit --pid {pid} --memlock=$(touch {file}):1",
        "prlimit --pid '{pid}",
    ],
)
def test_on_a_host_nothing_is_applied_but_a_limit_of_the_child(
    command: str, tmp_path: Path
) -> None:
    file = tmp_path / "made"
    applied = remedy.apply(command.format(pid=os.getpid(), file=file), os.getpid(), lab=False)
    assert applied["exit"] is None
    assert "only in the lab" in str(applied["said"])
    assert not file.exists()


def test_a_limit_of_the_child_is_applied_on_a_host() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    said = [str(limit).replace("-1", "unlimited") for limit in (soft, hard)]
    command = f"prlimit --pid {os.getpid()} --core={said[0]}:{said[1]}"
    assert remedy.apply(command, os.getpid(), lab=False) == {"exit": 0, "said": ""}


def test_in_the_lab_a_remedy_is_a_line_of_shell(tmp_path: Path) -> None:
    applied = remedy.apply("printf 'one\\377' && exit 3", 1, lab=True)
    assert applied == {"exit": 3, "said": "one\N{REPLACEMENT CHARACTER}"}


def test_a_remedy_wants_leave_and_a_driver_the_lab() -> None:
    case = Case("msg-zerocopy", "anon", {"size_bytes": MIB})
    assert needs_of(replace(case, remedy=True)) == (*needs_of(case), Need.MACHINE_CHANGES)
    unbound = Case("v4l2-userptr", "anon", {"size_bytes": MIB, "under": "driver-unbound"})
    assert needs_of(unbound) == (Need.V4L2, Need.LAB)


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
