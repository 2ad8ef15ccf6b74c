"""Every kind of memory this host can give, checked against smaps, maps and the directory."""

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

import workloads.memory as memory_kinds
from telemetry import pagemap
from workloads import MEMORY
from workloads.memory import Region
from workloads.memory.evacuation import count_movable
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, PrepareFailed, Surroundings

SPECS = {spec.name: spec for spec in MEMORY}
EVERY_FRAME = ((0, 1 << 52),)  # as if the whole machine were CMA: a pin then moves nothing


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    need(kind == "ext2/ext3", f"{tmp_path} is on {kind}, not on ext4")
    return tmp_path


def need(met: bool, reason: str) -> None:
    if not met and {"host", "all"} & set(os.environ.get("PINSTORM_REQUIRE", "").split(",")):
        pytest.fail(f"unmet need: {reason}")
    if not met:
        pytest.skip(reason)


def need_frames() -> None:
    need(pagemap.visible(), "page frame numbers are hidden: needs CAP_SYS_ADMIN")


def prepare(name: str, size_bytes: int, owner: Owner, **around: object) -> Region:
    return memory_kinds.prepare(SPECS[name], size_bytes, Surroundings(**around), owner)  # type: ignore[arg-type]


def smaps(region: Region) -> dict[str, int]:
    """Bytes by name, of the mapping that is exactly the region."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    bounds = f"{region.address:x}-{region.address + region.mapped_bytes:x} "
    assert f"\n{bounds}" in text, "the region shares its mapping with a neighbour"
    entry = text.split(f"\n{bounds}")[1]
    entry = re.split(r"^VmFlags:", entry, maxsplit=1, flags=re.MULTILINE)[0]
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", entry, re.M)}


@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, 64 << 10, 16 * MIB])
@pytest.mark.parametrize("name", ["anon", "memfd", "ext4-shared"])
def test_every_page_is_there_and_written(
    name: str, size_bytes: int, owner: Owner, scratch: Path
) -> None:
    region = prepare(name, size_bytes, owner, scratch={"ext4": str(scratch)})
    sizes = smaps(region)
    assert region.mapped_bytes == size_bytes
    assert sizes["Rss"] == size_bytes
    assert sizes["Private_Dirty"] + sizes["Shared_Dirty"] == size_bytes
    assert sizes.get("AnonHugePages", 0) + sizes.get("ShmemPmdMapped", 0) == 0
    assert pagemap.read(region.address, size_bytes).present_pages == size_bytes // PAGE_BYTES


def test_odd_sizes_map_whole_pages(owner: Owner) -> None:
    region = prepare("anon", 4097, owner)
    assert (region.size_bytes, region.mapped_bytes, len(region.buffer)) == (4097, 8192, 8192)


def test_untouched_memory_has_no_pages(owner: Owner) -> None:
    region = prepare("anon-untouched", 16 * MIB, owner)
    assert smaps(region)["Rss"] == 0
    assert pagemap.read(region.address, 16 * MIB).present_pages == 0


def test_private_file_memory_is_read_and_not_written(owner: Owner, scratch: Path) -> None:
    region = prepare("ext4-private", 16 * MIB, owner, scratch={"ext4": str(scratch)})
    sizes = smaps(region)
    assert sizes["Rss"] == 16 * MIB
    assert sizes["Anonymous"] == 0
    assert bytes(region.buffer[-PAGE_BYTES:]) == b"\xa5" * PAGE_BYTES


@pytest.mark.parametrize("size_bytes", [64 << 10, 16 * MIB])
def test_huge_pages(size_bytes: int, owner: Owner) -> None:
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    need(mode.exists() and "[never]" not in mode.read_text(), "no transparent huge pages")
    region = prepare("thp", size_bytes, owner)
    assert region.address % (2 * MIB) == 0
    assert region.size_bytes == size_bytes
    assert smaps(region)["AnonHugePages"] == region.mapped_bytes == max(size_bytes, 2 * MIB)


def test_hugetlb(owner: Owner) -> None:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    need(free.exists() and int(free.read_text()) >= 8, "the pool has no 8 free 2 MiB pages")
    region = prepare("hugetlb-2m", 16 * MIB, owner)
    assert smaps(region)["Private_Hugetlb"] == 16 * MIB


def test_an_exhausted_hugetlb_pool_refuses_at_mmap() -> None:
    owner = Owner()
    with pytest.raises(CallFailed) as failure:
        prepare("hugetlb-2m", 1 << 44, owner)
    assert (failure.value.call, failure.value.errno) == ("mmap", errno.ENOMEM)
    owner.close()
    assert owner.errors == []


@pytest.mark.parametrize("name", ["anon", "thp", "memfd", "ext4-shared"])
def test_what_is_released_is_unmapped_and_closed(name: str, scratch: Path) -> None:
    before = os.listdir("/proc/self/fd")
    owner = Owner()
    region = prepare(name, MIB, owner, scratch={"ext4": str(scratch)})
    assert os.listdir(scratch) == [], "a file has a name that SIGKILL would leave behind"
    address = region.address
    owner.close()
    assert owner.errors == []
    assert f"\n{address:x}-" not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert os.listdir("/proc/self/fd") == before


def test_a_file_without_dax_is_no_dax_memory(owner: Owner, tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match="lacks DAX"):
        prepare("dax-shared", MIB, owner, scratch={"dax": str(tmp_path)})


def test_a_directory_that_takes_no_files_is_named(owner: Owner) -> None:
    with pytest.raises(CallFailed) as failure:
        prepare("ext4-shared", MIB, owner, scratch={"ext4": "/proc/self"})
    assert failure.value.call == "open"


@pytest.mark.parametrize(
    "around",
    [{"page_frames_visible": False}, {"page_frames_visible": True, "cma_ranges": ((1, 1),)}],
)
def test_movable_memory_is_proved_or_refused(owner: Owner, around: dict[str, object]) -> None:
    need_frames()
    need("Movable" not in _populated_zones(), "this machine has a ZONE_MOVABLE")
    with pytest.raises(PrepareFailed, match=r"CAP_SYS_ADMIN|at most 0 of 16 pages"):
        prepare("movable", 64 << 10, owner, **around)


def _populated_zones() -> set[str]:
    text = Path("/proc/zoneinfo").read_text(encoding="ascii")
    found = re.findall(r"zone +(\w+).*?present +(\d+)", text, re.DOTALL)
    return {name for name, present in found if int(present)}


@pytest.mark.parametrize("name", ["movable", "movable-held"])
def test_movable_memory_where_all_frames_are_movable(name: str, owner: Owner) -> None:
    need_frames()
    pipes_before = len(os.listdir("/proc/self/fd"))
    region = prepare(name, MIB, owner, page_frames_visible=True, cma_ranges=EVERY_FRAME)
    assert smaps(region)["Private_Dirty"] == MIB
    pipes = len(os.listdir("/proc/self/fd")) - pipes_before
    assert pipes == (2 if SPECS[name].foreign_reference else 0)


@pytest.mark.parametrize("name", ["anon", "memfd"])
def test_pages_that_cannot_leave_are_told(name: str, owner: Owner) -> None:
    need_frames()
    with pytest.raises(PrepareFailed, match=f"256 of 256 pages of {name} still lie"):
        prepare(name, MIB, owner, page_frames_visible=True, cma_ranges=EVERY_FRAME)


@pytest.mark.parametrize("name", ["anon-untouched", "ext4-shared", "ext4-private"])
def test_memory_that_may_lie_anywhere(name: str, owner: Owner, scratch: Path) -> None:
    need_frames()
    around = {"page_frames_visible": True, "cma_ranges": EVERY_FRAME}
    prepare(name, MIB, owner, scratch={"ext4": str(scratch)}, **around)


def test_overlapping_ranges_count_a_page_once(owner: Owner) -> None:
    need_frames()
    region = prepare("anon", MIB, owner)
    frames = sorted(frame for frame in pagemap.frames(region.address, MIB) if frame is not None)
    middle = frames[128]
    assert count_movable(region, [(middle, 1 << 52), (0, middle)]) == 256
    assert count_movable(region, [(0, 1 << 52), (0, middle), (middle, middle + 1)]) == 256
    assert count_movable(region, [(middle, 1 << 52)]) == 128
    assert count_movable(region, []) == 0
