"""What a refusal is looked into with, from saved files: limits, smaps, control groups, RDMA."""

from pathlib import Path

import pytest

from telemetry import (
    cgroup,
    limits,
    maps,
    meminfo,
    process_status,
    rdma_cgroup,
    rdma_resource,
    smaps,
    user_namespace,
)
from telemetry.limits import Limit
from telemetry.rdma_resource import MemoryRegion

DATA = Path(__file__).parent / "data" / "telemetry"


def saved(kernel: str, name: str) -> str:
    return (DATA / kernel / name).read_text()


@pytest.mark.parametrize("kernel", ["6.1-guest", "6.18-host", "7.2-guest"])
def test_limits_of_every_kernel(kernel: str) -> None:
    found = limits.parse(saved(kernel, "limits"))
    assert found[limits.MEMLOCK] == Limit(8 << 20, 8 << 20)
    assert found[limits.ADDRESS_SPACE] == Limit(limits.UNLIMITED, limits.UNLIMITED)
    # the name that ends next to the figures, and the one without a unit
    assert found["Max stack size"].soft == 8 << 20
    assert found["Max nice priority"] == Limit(0, 0)
    assert len(found) == saved(kernel, "limits").count("\n") - 1


def test_soft_and_hard_limits_are_not_mixed_up() -> None:
    line = "Max locked memory         65536                unlimited            bytes     \n"
    assert limits.parse(line) == {limits.MEMLOCK: Limit(65536, limits.UNLIMITED)}


@pytest.mark.parametrize("kernel", ["6.1-guest", "6.18-host", "7.2-guest"])
def test_smaps_of_every_kernel(kernel: str) -> None:
    text = saved(kernel, "smaps")
    found = smaps.parse(text)
    assert len(found) == text.count("VmFlags:")
    assert all(entry.kernel_page_bytes == 4096 for entry in found)
    assert all(entry.locked_bytes == 0 for entry in found)
    assert all({"rd", "ex"} & {*entry.flags} for entry in found)
    rss = [int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:")]
    assert [entry.rss_bytes for entry in found] == [kib * 1024 for kib in rss]


def test_smaps_says_which_mapping_is_device_memory() -> None:
    found = {entry.start: entry for entry in smaps.parse(saved("7.2-guest", "smaps"))}
    device = [start for start, entry in found.items() if smaps.IO in entry.flags]
    lines = saved("7.2-guest", "smaps").splitlines()
    named = [int(line.split("-")[0], 16) for line in lines if "[vvar" in line]
    assert device
    assert sorted(device) == sorted(named)


def test_smaps_of_a_range_gives_what_overlaps_it() -> None:
    text = saved("7.2-guest", "smaps")
    whole = smaps.parse(text)
    middle = whole[3]
    assert smaps.parse(text, middle.start, middle.end) == [middle]
    assert smaps.parse(text, middle.end - 1, middle.end) == [middle]
    assert smaps.parse(text, middle.start - 1, middle.start) == []
    assert smaps.parse(text, whole[0].start + 1, whole[1].start + 1) == whole[:2]


def test_maps_of_a_range_agree_with_all_of_them() -> None:
    text = saved("6.18-host", "maps")
    whole = maps.parse(text)
    assert maps.overlapping(text, 0, 1 << 64) == whole
    for mapping in whole:
        assert maps.overlapping(text, mapping.end - 1, mapping.end) == [mapping]
    assert maps.overlapping(text, whole[0].start - 4096, whole[0].start) == []


def test_vsyscall_is_not_counted_by_the_limit() -> None:
    text = saved("6.18-host", "maps")
    rest = "".join(line for line in text.splitlines(True) if "[vsyscall]" not in line)
    mine = rest + "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"
    assert maps.limited_count(mine) == maps.limited_count(rest) == rest.count("\n")


def test_the_initial_user_namespace_has_a_number_of_its_own() -> None:
    assert user_namespace.parse("user:[4026531837]") == 0xEFFFFFFD
    with pytest.raises(ValueError, match=r"mnt:\[1\]"):
        user_namespace.parse("mnt:[1]")


def test_rdma_cgroup_files() -> None:
    assert rdma_cgroup.parse(saved("7.2-guest", "rdma.max")) == {
        "rxe0": {"hca_handle": None, "hca_object": 12}
    }
    assert rdma_cgroup.parse(saved("7.2-guest", "rdma.current")) == {
        "rxe0": {"hca_handle": 1, "hca_object": 12}
    }
    assert rdma_cgroup.parse(saved("6.1-guest", "rdma.max")) == {
        "rxe0": {"hca_handle": 2, "hca_object": 40}
    }
    assert rdma_cgroup.parse(saved("6.1-guest", "rdma.current")) == {
        "rxe0": {"hca_handle": 0, "hca_object": 0}
    }
    events = rdma_cgroup.parse(saved("7.2-guest", "rdma.events"))
    assert events["rxe0"]["hca_object.max"] == 1
    assert rdma_cgroup.parse("") == {}


def test_rdma_limits_name_the_group_the_device_and_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = tmp_path / "leaf"
    leaf.mkdir()
    for name in ("rdma.max", "rdma.current", "rdma.events"):
        (leaf / name).write_text(saved("7.2-guest", name))
    (tmp_path / "rdma.max").write_text("rxe0 hca_handle=2 hca_object=max\nmlx5_0 hca_handle=1\n")
    monkeypatch.setattr(cgroup, "groups_upwards", lambda controller, pid: [leaf, tmp_path])
    found = rdma_cgroup.limits(1, "rxe0")
    assert [(entry.group, entry.resource, entry.limit) for entry in found] == [
        (str(leaf), "hca_object", 12),
        (str(tmp_path), "hca_handle", 2),
    ]
    assert (found[0].used, found[0].refused) == (12, 1)
    # a kernel that counts no refusals, a group whose use cannot be read
    assert (found[1].used, found[1].refused) == (None, None)
    assert "mlx5_0" in {entry.device for entry in rdma_cgroup.limits(1)}


def test_rdma_objects_in_use() -> None:
    (device,) = rdma_resource.parse(saved("7.2-guest", "rdma_resource.json"))
    assert device.device == "rxe0"
    assert device.mrs == 11
    assert device.counts == {"pd": 2, "cq": 1, "qp": 1, "cm_id": 0, "mr": 11, "ctx": 1, "srq": 0}
    (older,) = rdma_resource.parse(saved("6.1-guest", "rdma_resource.json"))
    assert older.mrs == 0


def test_memory_regions_name_their_process() -> None:
    found = rdma_resource.parse_regions(saved("7.2-guest", "rdma_resource_mr.json"))
    assert len(found) == 11
    assert set(found) == {MemoryRegion("rxe0", 170, 65536, "python")}
    assert rdma_resource.parse_regions("") == []
    with pytest.raises(ValueError, match="no list of rdma devices"):
        rdma_resource.parse_regions('{"error": 1}')


def test_commit_figures_of_meminfo() -> None:
    info = meminfo.parse(saved("7.2-guest", "meminfo"))
    assert info.commit_limit_bytes is not None
    assert info.committed_bytes is not None
    assert 0 < info.committed_bytes < info.commit_limit_bytes


def test_capability_sets_are_told_apart() -> None:
    text = "Name:\tx\nCapInh:\t0000000000004000\nCapPrm:\t0000000000004000\nCapEff:\t0\n"
    status = process_status.parse(text)
    assert process_status.in_set(status.cap_prm, "CAP_IPC_LOCK")
    assert process_status.in_set(status.cap_inh, "IPC_LOCK")
    assert not process_status.has_capability(status, "CAP_IPC_LOCK")


def test_how_often_a_memory_limit_was_met(tmp_path: Path) -> None:
    for folder, name, text in (
        ("v2", "memory.max", "4096\n"),
        ("v2", "memory.events", "low 0\nhigh 3\nmax 7\noom 2\noom_kill 1\n"),
        ("v1", "memory.limit_in_bytes", "8192\n"),
        ("v1", "memory.failcnt", "5\n"),
        ("bare", "memory.max", "4096\n"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    v2 = cgroup._limit(tmp_path / "v2", "memory.max", "memory.current", "inactive_file")
    v1 = cgroup._limit(
        tmp_path / "v1", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )
    bare = cgroup._limit(tmp_path / "bare", "memory.max", "memory.current", "inactive_file")
    assert v2 is not None
    assert v1 is not None
    assert bare is not None
    assert (v2.failures, v1.failures, bare.failures) == (2, 5, None)
