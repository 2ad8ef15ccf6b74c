"""Memory that is shared, barred, merged or somebody else's: each against a second source.

What only a guest can give (1 GiB pages, DAX, XFS, a second node) is checked here as far as it is
refused.
"""

import errno
import fcntl
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
from test_memory import EVERY_FRAME, SPECS, need, need_frames, prepare, scratch, smaps

import workloads.memory as memory_kinds
from telemetry import kpageflags, maps, pagemap
from workloads import libc
from workloads.memory import Region, cow
from workloads.memory.proof import require_pages
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, PrepareFailed, Surroundings

__all__ = ["scratch"]  # a fixture

ROOT = Path(__file__).parents[2]
SHM = "/dev/shm"
AROUND = {"scratch": {"tmpfs": SHM}, "page_frames_visible": pagemap.visible()}
HERE = (
    "zero-page",
    "anon-shared",
    "mlocked",
    "numa-bound",
    "forked",
    "prot-none",
    "prot-read",
    "hole",
    "unmapped",
    "past-eof",
    "tmpfs-file",
)


def needs_of(name: str) -> None:
    if name == "secretmem":
        try:
            os.close(libc.memfd_secret())
        except CallFailed as error:
            need(False, f"memfd_secret: {os.strerror(error.errno)}")
    if name == "tmpfs-file":
        need(os.access(SHM, os.W_OK), f"no {SHM}")


def prepare_secret(size_bytes: int, owner: Owner) -> Region:
    """Other processes of this user may have used its RLIMIT_MEMLOCK up."""
    needs_of("secretmem")
    try:
        return prepare("secretmem", size_bytes, owner, **AROUND)
    except PrepareFailed as error:
        need("RLIMIT_MEMLOCK" not in str(error), str(error))
        raise


def write_all(region: Region) -> int:
    """Bytes that process_vm_writev can write into the region, -1 with errno for none."""
    source = mmap.mmap(-1, region.size_bytes)
    local = libc.iovecs([(libc.address_of(source), region.size_bytes)])
    remote = libc.iovecs([(region.address, region.size_bytes)])
    return libc.process_vm_writev(os.getpid(), local, remote)


def refused(region: Region) -> int:
    """The errno of a write that must not write a byte."""
    with pytest.raises(CallFailed) as failure:
        libc.check("process_vm_writev", write_all(region))
    return failure.value.errno


def map_line(region: Region) -> maps.Mapping:
    mapping = maps.mapping_of(region.address, maps.read())
    assert mapping is not None
    return mapping


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, 64 << 10, MIB])
def test_nothing_stays_behind(name: str, size_bytes: int) -> None:
    needs_of(name)
    descriptors, forks = os.listdir("/proc/self/fd"), children()
    owner = Owner()
    region = prepare(name, size_bytes, owner, **AROUND)
    assert (region.size_bytes, region.mapped_bytes, region.offset_bytes) == (
        size_bytes,
        size_bytes,
        0,
    )
    owner.close()
    assert owner.errors == []
    assert not any(
        vma.start < region.address + size_bytes and region.address < vma.end for vma in maps.read()
    )
    assert (os.listdir("/proc/self/fd"), children()) == (descriptors, forks)


@pytest.mark.parametrize("name", HERE)
def test_an_offset_shifts_the_range_and_maps_one_page_more(name: str, owner: Owner) -> None:
    needs_of(name)
    region = memory_kinds.prepare(SPECS[name], MIB, Surroundings(**AROUND), owner, 512)  # type: ignore[arg-type]
    assert region.address % PAGE_BYTES == 512
    assert (region.size_bytes, region.mapped_bytes) == (MIB, MIB + PAGE_BYTES)


def test_the_zero_page_is_there_and_counts_as_nothing(owner: Owner) -> None:
    region = prepare("zero-page", MIB, owner, **AROUND)
    assert pagemap.read(region.address, MIB).present_pages == 256
    sizes = smaps(region)
    assert (sizes["Rss"], sizes["Anonymous"]) == (0, 0)
    need_frames()
    assert len(set(pagemap.frames(region.address, MIB))) == 1
    region.buffer[PAGE_BYTES] = 1
    with pytest.raises(PrepareFailed, match="1 of 256 pages of zero-page are not the zero page"):
        require_pages(region, Surroundings(**AROUND), "the zero page", kpageflags.ZERO_PAGE)  # type: ignore[arg-type]


def test_shared_anonymous_memory_is_shmem(owner: Owner) -> None:
    region = prepare("anon-shared", MIB, owner, **AROUND)
    mapping = map_line(region)
    assert mapping.shared
    assert mapping.path == "/dev/zero (deleted)"
    assert smaps(region)["Rss"] == MIB


def test_locked_memory(owner: Owner) -> None:
    region = prepare("mlocked", MIB, owner, **AROUND)
    assert smaps(region)["Locked"] == MIB


def test_memory_bound_to_a_node(owner: Owner) -> None:
    region = prepare("numa-bound", MIB, owner, **AROUND)
    numa_maps = Path("/proc/self/numa_maps")
    need(numa_maps.exists(), "a kernel without NUMA")
    line = re.search(rf"^{region.address:x} (\S+) .*\bN0=(\d+)", numa_maps.read_text(), re.M)
    assert line is not None
    assert (line[1], line[2]) == ("bind:0", "256")


def test_pages_on_another_node_are_told(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "nodes_of_pages", lambda addresses: [1] + [0] * 255)
    with pytest.raises(PrepareFailed, match="1 of 256 pages are not on node 0"):
        prepare("numa-bound", MIB, owner, **AROUND)


def test_a_child_has_the_same_pages(owner: Owner) -> None:
    region = prepare("forked", MIB, owner, **AROUND)
    sizes = smaps(region)
    assert (sizes["Shared_Dirty"], sizes["Private_Dirty"]) == (MIB, 0)
    (child,) = children()
    assert len(os.listdir(f"/proc/{child}/fd")) == 1, "the child holds the parent's descriptors"
    need_frames()
    ours = pagemap.frames(region.address, MIB)
    assert pagemap.frames(region.address, MIB, child) == ours
    assert write_all(region) == MIB
    assert not set(pagemap.frames(region.address, MIB)) & set(ours)
    assert pagemap.frames(region.address, MIB, child) == ours


FORKED = """
import os, sys
from workloads import memory_spec
from workloads.memory import prepare
from workloads.owner import Owner
from workloads.spec import Surroundings
owner = Owner()
prepare(memory_spec("forked"), 65536, Surroundings(), owner)
{then}
"""
CHILDREN = "open(f'/proc/self/task/{os.getpid()}/children').read()"


def run_forked(then: str) -> subprocess.Popen[str]:
    code = FORKED.format(then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("drop", ["", "os.setresuid(65534, 65534, 65534); "])
def test_the_child_dies_with_a_killed_parent(drop: str) -> None:
    need(not drop or os.geteuid() == 0, "only root can become an ordinary user")
    parent = run_forked(f"{drop}print({CHILDREN}, flush=True); import time; time.sleep(60)")
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _state(child) in ("R", "S")
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = monotonic() + 10
    while _state(child) not in ("", "Z", "X"):
        assert monotonic() < deadline, "the child outlived its parent"
        sleep(0.01)


def _state(pid: int) -> str:
    """The state letter, empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_the_child_ends_for_an_ordinary_user_too() -> None:
    need(os.geteuid() == 0, "only root can become an ordinary user")
    then = f"os.setresuid(65534, 65534, 65534); owner.close(); print(owner.errors, {CHILDREN}, '.')"
    out, _ = run_forked(then).communicate(timeout=30)
    assert out == "[]  .\n"


def test_a_child_that_died_is_told(owner: Owner) -> None:
    own = Owner()
    prepare("forked", 64 << 10, own, **AROUND)
    (child,) = children()
    os.kill(child, signal.SIGKILL)
    own.close()
    assert own.errors == ["child: the child that shared the memory ended with status 9"]


@pytest.mark.parametrize(("name", "permissions"), [("prot-none", "---p"), ("prot-read", "r--p")])
def test_protected_pages_are_there(name: str, permissions: str, owner: Owner) -> None:
    region = prepare(name, MIB, owner, **AROUND)
    assert map_line(region).permissions == permissions
    assert smaps(region)["Private_Dirty"] == MIB
    assert refused(region) == errno.EFAULT


def test_read_only_pages_can_be_read(owner: Owner) -> None:
    region = prepare("prot-read", MIB, owner, **AROUND)
    assert bytes(region.buffer[::PAGE_BYTES]) == b"\x5a" * 256


def test_a_hole_ends_a_write_before_it(owner: Owner) -> None:
    region = prepare("hole", MIB, owner, **AROUND)
    assert write_all(region) == 128 * PAGE_BYTES
    behind = region.address + 129 * PAGE_BYTES
    assert pagemap.read(behind, 127 * PAGE_BYTES).present_pages == 127
    single = prepare("hole", PAGE_BYTES, owner, **AROUND)
    assert refused(single) == errno.EFAULT


def test_unmapped_memory(owner: Owner) -> None:
    region = prepare("unmapped", MIB, owner, **AROUND)
    assert maps.mapping_of(region.address + MIB // 2, maps.read()) is None
    assert refused(region) == errno.EFAULT


@pytest.mark.parametrize("name", ["hole", "unmapped"])
def test_nothing_is_mapped_where_nothing_may_be(name: str, owner: Owner) -> None:
    """The kernel fills gaps from above: single pages would land in the hole first."""
    region = prepare(name, 64 << 10, owner, **AROUND)
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
    pages = [libc.mmap(0, PAGE_BYTES, libc.PROT_READ, flags) for _ in range(200)]
    middle = region.address + 8 * PAGE_BYTES
    found = maps.mapping_of(middle, maps.read())
    for page in pages:
        libc.munmap(page, PAGE_BYTES)
    assert found is None


@pytest.mark.parametrize("name", ["hole", "unmapped"])
def test_what_was_mapped_there_nevertheless_is_told(name: str) -> None:
    owner = Owner()
    region = prepare(name, 64 << 10, owner, **AROUND)
    middle = region.address + 8 * PAGE_BYTES
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED
    libc.mmap(middle, PAGE_BYTES, libc.PROT_READ, flags)
    owner.close()
    (error,) = owner.errors
    assert "something was mapped within" in error


@pytest.mark.parametrize(("pages", "good"), [(1, 0), (2, 1), (3, 1), (256, 128)])
def test_a_file_that_ends_before_its_mapping(pages: int, good: int, owner: Owner) -> None:
    region = prepare("past-eof", pages * PAGE_BYTES, owner, **AROUND)
    assert region.fd is not None
    assert os.fstat(region.fd).st_size == good * PAGE_BYTES
    assert map_line(region).end == region.address + pages * PAGE_BYTES
    assert write_all(region) == good * PAGE_BYTES if good else refused(region) == errno.EFAULT


@pytest.mark.parametrize("name", ["memfd", "past-eof"])
def test_a_memfd_can_be_sealed_and_is_not(name: str, owner: Owner) -> None:
    region = prepare(name, 64 << 10, owner, **AROUND)
    assert region.fd is not None
    assert fcntl.fcntl(region.fd, fcntl.F_GET_SEALS) == 0
    fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def test_a_file_on_tmpfs(owner: Owner) -> None:
    needs_of("tmpfs-file")
    region = prepare("tmpfs-file", MIB, owner, **AROUND)
    assert map_line(region).path.startswith(f"{SHM}/")
    assert smaps(region)["Rss"] == MIB
    assert region.fd is not None
    assert os.pread(region.fd, 2, 0) == b"\x5a\xa5"


@pytest.mark.parametrize(
    ("name", "kind"), [("tmpfs-file", "tmpfs"), ("xfs-shared", "xfs"), ("btrfs-shared", "btrfs")]
)
def test_a_file_on_another_file_system_is_refused(
    name: str, kind: str, owner: Owner, scratch: Path
) -> None:
    with pytest.raises(PrepareFailed, match=f"is on ext4, not on {kind}"):
        prepare(name, MIB, owner, scratch={kind: str(scratch)})


@pytest.mark.parametrize("name", ["dax-private", "dax-private-cowed"])
def test_private_dax_memory_needs_dax(name: str, owner: Owner, scratch: Path) -> None:
    with pytest.raises(PrepareFailed, match="lacks DAX"):
        prepare(name, MIB, owner, scratch={"dax": str(scratch)})


def test_secret_memory_cannot_be_had_by_the_kernel(owner: Owner) -> None:
    region = prepare_secret(64 << 10, owner)
    assert map_line(region).path.startswith("/secretmem")
    region.buffer[-1] = 1
    assert refused(region) == errno.EFAULT


def test_secret_memory_is_given_back() -> None:
    descriptors = os.listdir("/proc/self/fd")
    owner = Owner()
    prepare_secret(64 << 10, owner)
    owner.close()
    assert owner.errors == []
    assert "/secretmem" not in Path("/proc/self/maps").read_text()
    assert os.listdir("/proc/self/fd") == descriptors


SECRET = """
import resource
from workloads import memory_spec
from workloads.memory import prepare
from workloads.owner import Owner
from workloads.spec import CallFailed, PrepareFailed, Surroundings
resource.setrlimit(resource.RLIMIT_MEMLOCK, (16384, 16384))
try:
    prepare(memory_spec("secretmem"), 65536, Surroundings(), Owner())
except PrepareFailed as error:
    print(error)
except CallFailed as error:
    print("RLIMIT_MEMLOCK", error.call, error.errno)
else:
    print("exempt")
"""


def test_secret_memory_over_the_limit_is_a_refusal_and_no_crash() -> None:
    needs_of("secretmem")
    done = subprocess.run(
        [sys.executable, "-c", SECRET], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert re.match(
        r"the kernel gives \d+ of 65536 .*RLIMIT_MEMLOCK is 16384|RLIMIT_MEMLOCK mmap 11|exempt",
        done.stdout,
    )


def pool_pages(huge_kib: int) -> int:
    free = Path(f"/sys/kernel/mm/hugepages/hugepages-{huge_kib}kB/free_hugepages")
    return int(free.read_text()) if free.exists() else 0


@pytest.mark.parametrize(("name", "huge_kib"), [("memfd-hugetlb", 2048), ("hugetlb-1g", 1 << 20)])
def test_huge_pages_of_the_pool(name: str, huge_kib: int, owner: Owner) -> None:
    need(pool_pages(huge_kib) > 0, f"the pool has no free page of {huge_kib} KiB")
    region = prepare(name, 64 << 10, owner, **AROUND)
    assert region.address % (huge_kib << 10) == 0
    assert region.mapped_bytes == huge_kib << 10
    sizes = smaps(region)
    assert sizes["Private_Hugetlb"] + sizes["Shared_Hugetlb"] == region.mapped_bytes


@pytest.mark.parametrize("name", ["memfd-hugetlb", "hugetlb-1g"])
def test_a_pool_that_is_too_small_refuses_at_mmap(name: str, owner: Owner) -> None:
    with pytest.raises(CallFailed) as failure:
        prepare(name, 1 << 44, owner, **AROUND)
    assert (failure.value.call, failure.value.errno) == ("mmap", errno.ENOMEM)


def test_pages_that_ksm_does_not_merge_are_told(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path("/sys/kernel/mm/ksm/run")
    need(run.exists() and run.read_text().strip() != "1", "KSM runs here, or is not built in")
    monkeypatch.setattr(cow, "MERGE_DEADLINE_S", 0.01)
    with pytest.raises(PrepareFailed, match=r"16 of 16 pages were not merged .*ksm/run"):
        prepare("ksm", 64 << 10, owner, **AROUND)


def test_pages_merged_by_ksm(owner: Owner) -> None:
    run = Path("/sys/kernel/mm/ksm/run")
    need(run.exists() and run.read_text().strip() == "1", "KSM does not run here")
    region = prepare("ksm", 64 << 10, owner, **AROUND)
    assert smaps(region)["KSM"] == 64 << 10


@pytest.mark.parametrize(
    ("node", "error"),
    [("/dev/null", CallFailed), ("/dev/zero", PrepareFailed), ("/dev/dax99.0", CallFailed)],
)
def test_a_node_that_is_no_device_dax(node: str, error: type[Exception], owner: Owner) -> None:
    need_frames()
    with pytest.raises(error):
        prepare("devdax", MIB, owner, nodes={"devdax": node}, page_frames_visible=True)


@pytest.mark.parametrize(
    "name", ["anon-shared", "mlocked", "numa-bound", "forked", "prot-none", "hole", "tmpfs-file"]
)
def test_pages_of_these_must_leave_cma(name: str, owner: Owner) -> None:
    need_frames()
    needs_of(name)
    with pytest.raises(PrepareFailed, match=rf"256 of 256 pages of {name} still lie"):
        prepare(name, MIB, owner, cma_ranges=EVERY_FRAME, **AROUND)


@pytest.mark.parametrize("name", ["zero-page", "unmapped"])
def test_these_have_no_page_that_could_leave(name: str, owner: Owner) -> None:
    prepare(name, MIB, owner, cma_ranges=EVERY_FRAME, **AROUND)


def made(act: Callable[[], object]) -> bool:
    try:
        act()
    except PrepareFailed:
        return False
    return True


def test_proof_sees_what_is_absent_and_what_is_of_another_kind(owner: Owner) -> None:
    need_frames()
    around = Surroundings(**AROUND)  # type: ignore[arg-type]
    untouched = prepare("anon-untouched", MIB, owner)
    with pytest.raises(PrepareFailed, match="256 of 256 pages of anon-untouched are absent"):
        require_pages(untouched, around, "there")
    region = prepare("anon", MIB, owner)
    assert made(lambda: require_pages(region, around, "anonymous", have=kpageflags.ANON))
    assert not made(lambda: require_pages(region, around, "shmem", lack=kpageflags.ANON))
    assert not made(lambda: require_pages(region, around, "merged", have=kpageflags.KSM))
