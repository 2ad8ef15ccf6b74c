"""status, maps, cgroup, mountinfo and the small machine-wide readers, from saved files."""

from pathlib import Path

import pytest

from telemetry import (
    cgroup,
    cpuinfo,
    hugepages,
    kernel_config,
    maps,
    meminfo,
    mountinfo,
    numa,
    packages,
    process_status,
    rdma,
    taint,
    thp,
)
from telemetry.cgroup import Membership, MemoryLimit
from telemetry.mountinfo import Mount

DATA = Path(__file__).parent / "data" / "telemetry"
KERNELS = ("6.1-guest", "6.12-guest", "6.18-host", "7.2-guest")


def saved(kernel: str, name: str) -> str:
    return (DATA / kernel / name).read_text()


@pytest.mark.parametrize("kernel", KERNELS)
def test_status_of_every_kernel(kernel: str) -> None:
    status = process_status.parse(saved(kernel, "status"))
    assert status.name == "cat"
    assert status.state == "R"
    assert status.uid == 0
    assert status.threads == 1
    assert status.vmpin_bytes == 0
    assert status.vmlck_bytes == 0
    assert status.vmrss_bytes is not None
    assert status.vmrss_bytes % 4096 == 0
    assert process_status.has_capability(status, "CAP_IPC_LOCK")
    assert process_status.has_capability(status, "IPC_LOCK")


def test_status_gives_bytes_and_the_effective_user() -> None:
    text = "Name:\ta b\nUid:\t1\t2\t3\t4\nVmPin:\t   16384 kB\nVmLck:\t 4 kB\nThreads:\t7\n"
    status = process_status.parse(text)
    assert status.vmpin_bytes == 16777216
    assert status.vmlck_bytes == 4096
    assert (status.name, status.uid, status.threads) == ("a b", 2, 7)


def test_a_zombie_has_no_memory_lines() -> None:
    status = process_status.parse("Name:\tx\nState:\tZ (zombie)\nPid:\t5\nThreads:\t1\n")
    assert status.state == "Z"
    assert status.vmpin_bytes is None
    assert status.vmrss_bytes is None
    assert status.seccomp is None


def test_a_missing_capability_is_seen() -> None:
    status = process_status.parse(saved("6.18-host", "status"))
    assert not process_status.has_capability(status, "CAP_SYS_RESOURCE")
    with pytest.raises(KeyError):
        process_status.has_capability(status, "CAP_NONSENSE")
    names = process_status.capability_names(status.cap_eff or 0)
    assert "CAP_CHECKPOINT_RESTORE" in names
    assert "CAP_SYS_RESOURCE" not in names


def test_maps() -> None:
    mappings = maps.parse(saved("6.18-host", "maps"))
    assert len(mappings) == saved("6.18-host", "maps").count("\n")
    first = mappings[0]
    assert first.path == "/usr/bin/cat"
    assert first.permissions == "r--p"
    assert first.end - first.start == 0x2000
    assert not first.shared
    assert maps.mapping_of(first.start, mappings) is first
    assert maps.mapping_of(first.start - 1, mappings) is None
    assert {"[stack]", "[heap]"} <= {mapping.path for mapping in mappings}


def test_maps_keeps_spaces_in_paths() -> None:
    line = "7f0000000000-7f0000001000 rw-s 00000000 00:01 9  /dev/zero (deleted)\n"
    assert maps.parse(line)[0].path == "/dev/zero (deleted)"
    assert maps.parse(line)[0].shared


@pytest.mark.parametrize("kernel", KERNELS)
def test_meminfo_of_every_kernel(kernel: str) -> None:
    info = meminfo.parse(saved(kernel, "meminfo"))
    assert info.total_bytes is not None
    assert info.available_bytes is not None
    assert 0 < info.available_bytes <= info.total_bytes
    assert info.hugepage_bytes == 2 << 20
    assert info.hugepages_total == 0


def test_cma_is_in_meminfo_only_where_the_kernel_has_it() -> None:
    assert meminfo.parse(saved("7.2-guest", "meminfo")).cma_total_bytes == 2600 << 20
    assert meminfo.parse(saved("6.18-host", "meminfo")).cma_total_bytes is None
    assert meminfo.parse(saved("6.12-guest", "meminfo")).cma_total_bytes is None


def test_mountinfo_finds_cgroup2_beside_v1_and_alone() -> None:
    host = mountinfo.cgroup2(mountinfo.parse(saved("6.18-host", "mountinfo")))
    guest = mountinfo.cgroup2(mountinfo.parse(saved("7.2-guest", "mountinfo")))
    assert host is not None
    assert guest is not None
    assert host.mount_point == "/sys/fs/cgroup/unified"
    assert guest.mount_point == "/sys/fs/cgroup"


def test_mountinfo_knows_dax() -> None:
    mounts = mountinfo.parse(saved("6.12-guest", "mountinfo"))
    dax = mountinfo.of_path("/mnt/pindax/some/file", mounts)
    assert dax is not None
    assert (dax.fs_type, dax.source, dax.device) == ("ext4", "/dev/pmem0", "259:0")
    assert mountinfo.is_dax(dax)
    root = mountinfo.of_path("/nonexistent", mounts)
    assert root is not None
    assert root.fs_type == "9p"
    assert not mountinfo.is_dax(root)


def mount(point: str, options: str = "rw", source: str = "none") -> Mount:
    return Mount(point, "ext4", source, tuple(options.split(",")), (), "1:1", "/")


@pytest.mark.parametrize(
    ("options", "dax"),
    [("rw,dax", True), ("rw,dax=always", True), ("rw,dax=never", False), ("rw,dax=inode", False)],
)
def test_is_dax(options: str, dax: bool) -> None:
    assert mountinfo.is_dax(mount("/a", options)) is dax


def test_the_mount_of_a_path_is_the_deepest_and_the_latest() -> None:
    mounts = [mount("/"), mount("/x"), mount("/x", source="later"), mount("/xy")]
    assert mountinfo.of_path("/x/file", mounts) == mounts[2]
    assert mountinfo.of_path("/xyz", mounts) == mounts[0]
    assert mountinfo.of_path("/xy", mounts) == mounts[3]


def test_mountinfo_unescapes_and_skips_optional_fields() -> None:
    line = "36 35 98:0 /a\\040b /mnt\\134x rw,noatime master:1 shared:2 - ext3 /dev/r\\011 rw,e=c\n"
    parsed = mountinfo.parse(line)[0]
    assert parsed.root == "/a b"
    assert parsed.mount_point == "/mnt\\x"
    assert parsed.source == "/dev/r\t"
    assert parsed.super_options == ("rw", "e=c")


def test_cgroup_membership_of_both_versions() -> None:
    host = cgroup.parse(saved("6.18-host", "cgroup"))
    assert Membership(0, (), "/") in host
    assert Membership(4, ("memory",), "/system.slice/session.scope") in host
    assert Membership(9, ("name=systemd",), "/") in host
    assert cgroup.parse(saved("7.2-guest", "cgroup")) == [Membership(0, (), "/")]
    assert cgroup.parse("3:cpu,cpuacct:/a:b\n") == [Membership(3, ("cpu", "cpuacct"), "/a:b")]


@pytest.mark.parametrize(
    ("path", "root", "folder"),
    [
        ("/", "/", "/sys/fs/cgroup"),
        ("/user.slice/a", "/", "/sys/fs/cgroup/user.slice/a"),
        ("/docker/1/b", "/docker/1", "/sys/fs/cgroup/b"),
        ("/docker/1", "/docker/1", "/sys/fs/cgroup"),
        ("/other", "/docker/1", "/sys/fs/cgroup"),
        ("/../sibling", "/", "/sys/fs/cgroup"),
    ],
)
def test_the_folder_of_a_group(path: str, root: str, folder: str) -> None:
    where = Mount("/sys/fs/cgroup", "cgroup2", "cgroup2", (), (), "0:1", root)
    assert cgroup.folder(Membership(0, (), path), where) == Path(folder)


def test_the_tightest_limit_is_the_one_that_leaves_least() -> None:
    roomy = MemoryLimit("/", 1000, 100, 0)
    small = MemoryLimit("/a", 500, 450, 100)
    assert small.available_bytes == 150
    assert cgroup.tightest([roomy, small]) == small
    assert cgroup.tightest([]) is None
    assert MemoryLimit("/b", 10, 50, 0).available_bytes == 0


def test_limits_are_collected_up_the_tree(tmp_path: Path) -> None:
    leaf = tmp_path / "a" / "b"
    leaf.mkdir(parents=True)
    (leaf / "memory.max").write_text("max\n")
    (tmp_path / "a" / "memory.max").write_text("4096\n")
    (tmp_path / "a" / "memory.current").write_text("1024\n")
    (tmp_path / "a" / "memory.stat").write_text("anon 1\ninactive_file 512\n")
    found = [
        cgroup._limit(path, "memory.max", "memory.current", "inactive_file")
        for path in cgroup._upwards(leaf, tmp_path)
    ]
    assert found == [None, MemoryLimit(str(tmp_path / "a"), 4096, 1024, 512), None]


def test_the_limit_of_v1_is_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("4096\n")
    (tmp_path / "memory.usage_in_bytes").write_text("1024\n")
    found = cgroup._limit(
        tmp_path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )
    assert found is not None
    assert (found.limit_file, found.limit_bytes) == ("memory.limit_in_bytes", 4096)


def test_a_huge_page_pool() -> None:
    files = {"nr_hugepages": "8\n", "free_hugepages": "5\n", "resv_hugepages": "2\n"}
    pool = hugepages.parse(files, 2 << 20)
    assert (pool.total, pool.usable, pool.surplus) == (8, 3, None)


def test_the_chosen_word() -> None:
    assert thp.parse_choice("always [madvise] never\n") == "madvise"
    assert thp.parse_choice("\n") is None


@pytest.mark.parametrize(
    ("mask", "letters"), [(0, ""), (1 << 9, "W"), (1 << 12 | 1 << 13, "OE"), (1 << 25, "?25")]
)
def test_taint_letters(mask: int, letters: str) -> None:
    assert taint.letters(mask) == letters


def test_new_taint_is_what_came_in_between() -> None:
    assert taint.new(1 << 12, 1 << 12 | 1 << 9) == "W"
    assert taint.new(1 << 9, 1 << 9) == ""
    assert taint.new(None, 0) is None


def test_cpuinfo_of_x86_and_arm() -> None:
    cpu = cpuinfo.parse(saved("6.18-host", "cpuinfo"), 2)
    assert cpu.model == "Intel(R) Xeon(R) Processor"
    assert cpu.hypervisor is True
    assert not cpu.emulated
    emulated = "flags\t\t: fpu hypervisor\nmodel name\t: QEMU TCG CPU version 2.5+\n"
    assert cpuinfo.parse(emulated, 2).emulated
    arm = cpuinfo.parse("processor\t: 0\nBogoMIPS\t: 50\nCPU implementer\t: 0x41\n", 1)
    assert (arm.model, arm.hypervisor) == ("0x41", None)


def test_numa_node() -> None:
    node = numa.parse(saved("6.18-host", "node0_meminfo"), "0-1\n", 0)
    assert node.cpus == "0-1"
    assert node.total_bytes is not None
    assert node.free_bytes is not None
    assert 0 < node.free_bytes < node.total_bytes


def test_kernel_config_separates_modules_from_absent() -> None:
    text = (
        '# CONFIG_KPROBES is not set\nCONFIG_CMA=y\nCONFIG_RDMA_RXE=m\nCONFIG_HZ=250\nCONFIG_V=""\n'
    )
    options = kernel_config.parse(text)
    assert options == {
        "CONFIG_CMA": "y",
        "CONFIG_RDMA_RXE": "m",
        "CONFIG_HZ": "250",
        "CONFIG_V": "",
    }
    assert kernel_config.relevant(options)["CONFIG_KPROBES"] == "n"
    assert kernel_config.relevant(options)["CONFIG_RDMA_RXE"] == "m"


def test_rdma_state() -> None:
    assert rdma.parse_state("4: ACTIVE\n") == "ACTIVE"


def test_rdma_core_version_from_the_library_name() -> None:
    names = ["libibverbs.so.1", "libibverbs.so.1.14.44.0"]
    assert packages.parse_libibverbs(names) == "44.0"
    assert packages.parse_libibverbs(["libibverbs.so.1"]) is None
