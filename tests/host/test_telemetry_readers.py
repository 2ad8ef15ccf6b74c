"""Readers of this kernel's files, each against a second source or a state the test itself made."""

import ctypes
import json
import mmap
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from telemetry import (
    cgroup,
    clock,
    cma,
    fingerprint,
    hugepages,
    kmsg,
    kpageflags,
    maps,
    meminfo,
    mountinfo,
    numa,
    packages,
    pagemap,
    placement,
    process_status,
    sysctl,
    thp,
    zoneinfo,
)

PAGE = mmap.PAGESIZE
NOBODY = 65534


def private(pages: int) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address_of(region: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def touch(region: mmap.mmap, pages: range) -> None:
    for page in pages:
        region[page * PAGE] = 1


@pytest.fixture
def visible_frames() -> None:
    if not pagemap.visible():
        pytest.skip("page frame numbers are for CAP_SYS_ADMIN only")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process at rest: it has loaded all it needs, and waits for input."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"ready\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"ready\n"
    with process:
        yield process
        process.kill()


def test_vmlck_is_what_was_locked() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    region = private(64)
    before = process_status.read().vmlck_bytes
    assert before is not None
    address = ctypes.c_void_p(address_of(region))
    if libc.mlock(address, ctypes.c_size_t(10 * PAGE)) != 0:
        pytest.skip("RLIMIT_MEMLOCK allows no 10 pages")
    assert process_status.read().vmlck_bytes == before + 10 * PAGE
    assert libc.munlock(address, ctypes.c_size_t(10 * PAGE)) == 0
    assert process_status.read().vmlck_bytes == before


def test_status_agrees_with_psutil(child: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(child.pid)
    status = process_status.read(child.pid)
    assert status.name == process.name() == "cat"
    assert status.parent == os.getpid()
    assert status.uid == process.uids().effective
    assert status.threads == process.num_threads()
    assert status.vmsize_bytes == process.memory_info().vms
    assert status.vmrss_bytes is not None
    # Both are sums of per-CPU counters that are folded in batches (since v6.2).
    slack = 64 * PAGE * (os.cpu_count() or 1) * 3
    assert abs(status.vmrss_bytes - process.memory_info().rss) <= slack


def test_a_process_that_is_gone_is_an_error(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        process_status.read(child.pid)


def test_each_mapping_that_cannot_merge_counts() -> None:
    region = private(40)
    libc = ctypes.CDLL(None, use_errno=True)
    for page in range(1, 40, 2):
        address = ctypes.c_void_p(address_of(region) + page * PAGE)
        assert libc.mprotect(address, ctypes.c_size_t(PAGE), 1) == 0
    # 20 read-only pages, 20 writable ones between them: 40 mappings where 1 was
    start, end = address_of(region), address_of(region) + 40 * PAGE
    assert sum(start <= mapping.start < end for mapping in maps.read()) == 40
    assert abs(maps.vma_count() - len(maps.read())) <= 2  # the interpreter maps as it goes
    mapping = maps.mapping_of(address_of(region) + PAGE, maps.read())
    assert mapping is not None
    assert mapping.permissions == "r--p"


def test_pagemap_shows_the_pages_that_were_touched(visible_frames: None) -> None:
    region = private(32)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    touch(region, range(4, 9))
    frames = pagemap.frames(address_of(region), len(region))
    assert [page for page, pfn in enumerate(frames) if pfn is not None] == list(range(4, 9))
    assert len(set(frames)) == 6


def test_pagemap_of_a_part_covers_every_page_it_touches(visible_frames: None) -> None:
    region = private(8)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    touch(region, range(8))
    whole = pagemap.frames(address_of(region), len(region))
    assert pagemap.frames(address_of(region) + PAGE - 1, 2) == whole[:2]
    assert pagemap.frames(address_of(region) + PAGE, PAGE) == whole[1:2]


def test_two_mappings_of_one_file_have_the_same_frames(visible_frames: None) -> None:
    fd = os.memfd_create("frames")
    os.ftruncate(fd, 16 * PAGE)
    first, second = mmap.mmap(fd, 16 * PAGE), mmap.mmap(fd, 16 * PAGE)
    os.close(fd)
    touch(first, range(16))
    assert sum(second[page * PAGE] for page in range(16)) == 16
    frames = pagemap.frames(address_of(first), len(first))
    assert None not in frames
    assert frames == pagemap.frames(address_of(second), len(second))


def test_frames_are_hidden_from_nobody() -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    region = private(4)
    touch(region, range(4))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            hidden = placement.of(address_of(region), len(region), ()) is None
            status = 0 if hidden and not pagemap.visible() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_placement_of_touched_and_untouched_base_pages(visible_frames: None) -> None:
    region = private(64)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    touch(region, range(40))
    place = placement.of(address_of(region), len(region), cma.find(None))
    assert place is not None
    assert (place.present_pages, place.absent_pages) == (40, 24)
    assert sum(place.nodes.values()) == 40
    if place.folio_orders is not None:
        assert place.folio_orders == {"0": 40}


def test_placement_tells_huge_pages(visible_frames: None) -> None:
    settings = thp.read()
    if not settings.on_request or settings.pmd_bytes is None:
        pytest.skip("transparent huge pages are off: echo madvise > .../enabled")
    pages = settings.pmd_bytes // PAGE
    region = private(4 * pages)
    region.madvise(mmap.MADV_HUGEPAGE)
    touch(region, range(4 * pages))
    address = address_of(region)
    place = placement.of(address, len(region), ())
    assert place is not None
    if place.folio_orders is None:
        pytest.skip("/proc/kpageflags is not readable")
    # Second source: smaps says how much of this mapping is mapped by huge entries.
    huge = 0
    for block in re.split(r"(?m)^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()):
        start, _, end = block.partition(" ")[0].partition("-")
        if start and int(start, 16) < address + len(region) and int(end, 16) > address:
            anon = re.search(r"AnonHugePages: +(\d+) kB", block)
            huge += int(anon[1]) * 1024 // PAGE if anon else 0
    assert place.folio_orders.get("9", 0) == huge
    assert sum(place.folio_orders.values()) == 4 * pages


def test_kpageflags_marks_the_zero_page(visible_frames: None) -> None:
    region = private(2)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    assert region[0] == 0  # a read fault maps the zero page
    touch(region, range(1, 2))
    zero, own = pagemap.frames(address_of(region), len(region))
    assert zero is not None
    assert own is not None
    try:
        flags = kpageflags.PageFlags()
    except PermissionError:
        pytest.skip("/proc/kpageflags is not readable")
    with flags:
        assert kpageflags.parse(flags.read(zero, 1))[0] & kpageflags.ZERO_PAGE
        assert not kpageflags.parse(flags.read(own, 1))[0] & kpageflags.ZERO_PAGE


def test_zones_agree_with_buddyinfo() -> None:
    buddy = {
        (int(match[1]), match[2])
        for match in re.finditer(r"Node (\d+), zone +(\S+)", Path("/proc/buddyinfo").read_text())
    }
    assert {(zone.node, zone.name) for zone in zoneinfo.read() if zone.present_pages} == buddy


def test_node_memory_agrees_with_the_zones() -> None:
    def managed(node: int) -> int:
        return PAGE * sum(zone.managed_pages for zone in zoneinfo.read() if zone.node == node)

    for node in numa.read():
        # A machine whose memory comes up lazily grows meanwhile.
        before, total, after = managed(node.node), numa.read()[node.node].total_bytes, None
        after = managed(node.node)
        assert total is not None
        assert before <= total <= after


def test_meminfo_agrees_with_psutil() -> None:
    info = meminfo.read()
    assert info.total_bytes == psutil.virtual_memory().total
    assert info.swap_total_bytes == psutil.swap_memory().total


def test_huge_page_pools_agree_with_meminfo() -> None:
    info = meminfo.read()
    if info.hugepage_bytes is None:
        pytest.skip("this kernel has no hugetlbfs")
    pool = hugepages.read()[info.hugepage_bytes]
    assert (pool.total, pool.surplus) == (info.hugepages_total, info.hugepages_surplus)


def test_the_mount_of_a_path_is_the_device_that_stat_tells(tmp_path: Path) -> None:
    mount = mountinfo.of_path(tmp_path / "not" / "there")
    assert mount is not None
    if mount.fs_type in ("btrfs", "overlay"):
        pytest.skip(f"{mount.fs_type} gives files other device numbers than its mount")
    device = tmp_path.stat().st_dev
    assert mount.device == f"{os.major(device)}:{os.minor(device)}"


def test_this_process_is_in_its_own_cgroup() -> None:
    folder = cgroup.own_v2()
    if folder is None or not (folder / "cgroup.procs").exists():
        pytest.skip("cgroup v2 is not mounted here")
    assert str(os.getpid()) in (folder / "cgroup.procs").read_text().split()


def test_cgroup_limits_leave_no_more_than_there_is() -> None:
    for limit in cgroup.memory_limits():
        assert limit.limit_bytes > 0
        assert limit.available_bytes <= limit.limit_bytes


def test_a_line_written_to_the_kernel_log_comes_back_once() -> None:
    log = kmsg.KernelLog.open()
    if log is None or not os.access(kmsg.KMSG, os.W_OK):
        pytest.skip("/dev/kmsg needs root")
    with log:
        log.since_last()
        text = f"pinstorm test {os.getpid()} WARNING: written by userspace"
        Path(kmsg.KMSG).write_text(f"<6>{text}\n")
        mine = [line for line in log.since_last() if line.text == text]
        assert len(mine) == 1
        assert mine[0].facility != 0
        assert not kmsg.serious(mine[0])
        assert kmsg.suspicious(mine) == []
        assert text not in [line.text for line in log.since_last()]
        assert text in log.all_text()
        assert log.lost == 0
        # The log's clock is near the monotonic one.
        assert abs(mine[0].t_ns - clock.now_ns()) < 60_000_000_000


def test_clocks() -> None:
    before = time.time_ns()
    pair = clock.pair()
    assert before <= pair["realtime_ns"] <= time.time_ns()
    assert pair["monotonic_ns"] <= clock.now_ns()
    assert re.fullmatch(r"[0-9a-f-]{36}", clock.boot_id() or "")


def test_sysctl_agrees_with_uname() -> None:
    assert sysctl.read("kernel.hostname") == os.uname().nodename
    assert sysctl.read("kernel.osrelease") == os.uname().release
    assert sysctl.read("vm.no_such_setting") is None
    assert sysctl.read_int("kernel.osrelease") is None


def test_the_fingerprint_is_json_and_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from telemetry import fingerprint; "
        "print(json.dumps([fingerprint.collect(), sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(fingerprint.__file__).parents[1],
    )
    found, modules = json.loads(done.stdout)
    assert found["kernel"]["release"] == os.uname().release
    assert found["cpu"]["online"] == psutil.cpu_count()
    assert packages.versions()["python"].startswith(f"{sys.version_info[0]}.")
    assert found["empty_call_ns"]["median"] < 100_000
    heavy = {"polars", "pydantic", "typer", "rich", "numpy", "pyverbs"}
    assert not heavy & set(modules)
