"""pagemap, kpageflags, placement, CMA areas and the kernel log, from saved files."""

import struct
from itertools import pairwise
from pathlib import Path

import pytest

from telemetry import cma, kmsg, kpageflags, meminfo, pagemap, placement, zoneinfo
from telemetry.kmsg import Line

DATA = Path(__file__).parent / "data" / "telemetry"

BASE, N = kpageflags.MMAP, kpageflags.NOPAGE
H, T = kpageflags.COMPOUND_HEAD, kpageflags.COMPOUND_TAIL


def test_pagemap_of_a_huge_page_touched_pages_and_untouched_ones() -> None:
    # Saved from a buffer: one THP, then 8 touched base pages, then 8 untouched.
    pages = pagemap.parse((DATA / "6.18-host" / "pagemap.bin").read_bytes())
    assert len(pages.frames) == 512 + 16
    assert pages.present_pages == 520
    assert not pages.hidden
    huge = [pfn for pfn in pages.frames[:512] if pfn is not None]
    assert huge[0] % 512 == 0
    assert all(after == before + 1 for before, after in pairwise(huge))
    assert pages.frames[520:] == [None] * 8


def test_pagemap_tells_hidden_from_absent_and_swapped() -> None:
    present, swapped = pagemap.PRESENT, pagemap.SWAPPED | 1234
    assert pagemap.parse(struct.pack("3Q", present, present, 0)).hidden
    absent = pagemap.parse(struct.pack("2Q", 0, swapped))
    assert (absent.frames, absent.hidden, absent.swapped_pages) == ([None, None], False, 1)


def test_kinds_agree_with_the_flags_on_a_real_huge_page() -> None:
    data = (DATA / "6.18-host" / "kpageflags.bin").read_bytes()
    flags = kpageflags.parse(data)
    kinds = kpageflags.kinds(data)
    # One frame before the THP, its 512, one after.
    assert kinds[1:513] == bytes([kpageflags.HEAD]) + bytes([kpageflags.TAIL]) * 511
    for word, kind in zip(flags, kinds, strict=True):
        assert bool(word & H) == (kind == kpageflags.HEAD)
        assert bool(word & T) == (kind == kpageflags.TAIL)


class FakeFlags(kpageflags.PageFlags):
    """/proc/kpageflags of a machine whose frames are given; all else has no page."""

    def __init__(self, frames: dict[int, int]):
        self.frames = frames
        self.reads = 0

    def read(self, pfn: int, count: int) -> bytes:
        self.reads += 1
        return struct.pack(f"{count}Q", *(self.frames.get(pfn + i, N) for i in range(count)))

    def close(self) -> None:
        pass


def folio(first: int, order: int) -> dict[int, int]:
    return {first + i: (T if i else H) for i in range(1 << order)}


def orders(
    monkeypatch: pytest.MonkeyPatch, frames: dict[int, int], pfns: list[int]
) -> kpageflags.FolioOrders:
    monkeypatch.setattr(kpageflags, "PageFlags", lambda: FakeFlags(frames))
    found = kpageflags.folio_orders(sorted(pfns))
    assert found is not None
    return found


def test_orders_of_whole_folios_and_base_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = folio(512, 9) | folio(1024, 2) | {1028: BASE, 1029: BASE}
    found = orders(monkeypatch, frames, list(range(512, 1030)))
    assert found.pages == {9: 512, 2: 4, 0: 2}
    assert found.without_page == []


@pytest.mark.parametrize("pfn", [512, 513, 800, 1023])
def test_the_order_of_one_page_inside_a_huge_page(
    monkeypatch: pytest.MonkeyPatch, pfn: int
) -> None:
    assert orders(monkeypatch, folio(512, 9), [pfn]).pages == {9: 1}


@pytest.mark.parametrize("pfn", [1 << 18, (1 << 18) + 5000, (1 << 19) - 1])
def test_the_order_of_a_page_inside_a_gigantic_page(
    monkeypatch: pytest.MonkeyPatch, pfn: int
) -> None:
    assert orders(monkeypatch, folio(1 << 18, 18), [pfn]).pages == {18: 1}


def test_a_frame_that_is_mapped_twice_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert orders(monkeypatch, {7: BASE}, [7, 7, 7]).pages == {0: 3}


def test_neighbouring_folios_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = folio(16, 2) | folio(20, 2) | folio(24, 3)
    assert orders(monkeypatch, frames, [19, 20, 25]).pages == {2: 2, 3: 1}


def test_frames_without_an_online_page_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = orders(monkeypatch, {5: BASE}, [5, 6, 7])
    assert found.pages == {0: 1}
    assert found.without_page == [6, 7]


def test_runs_join_near_frames_and_split_far_ones() -> None:
    assert list(kpageflags.runs([])) == []
    assert list(kpageflags.runs([3])) == [(3, 4)]
    assert list(kpageflags.runs([3, 4, 20])) == [(3, 21)]
    assert list(kpageflags.runs([3, 4, 2000, 2000])) == [(3, 5), (2000, 2001)]
    dense = list(range(10_000))
    assert list(kpageflags.runs(dense)) == [(0, 10_000)]
    scattered = list(range(0, 1_000_000, 1000))
    assert list(kpageflags.runs(scattered)) == [(pfn, pfn + 1) for pfn in scattered]


def test_placement_by_zone_cma_and_node(monkeypatch: pytest.MonkeyPatch) -> None:
    zones = zoneinfo.parse((DATA / "7.2-guest" / "zoneinfo").read_text())
    ranges = cma.ranges((DATA / "7.2-guest" / "dmesg").read_text())
    first = ranges[0][0]
    pfns = [5000, first - 1, first, first + 1, ranges[0][1]]
    frames = {pfn: BASE for pfn in pfns}
    monkeypatch.setattr(kpageflags, "PageFlags", lambda: FakeFlags(frames))
    place = placement.place(pfns, 3, ranges, zones)
    assert place.zones == {"DMA32": 1, "Normal": 4}
    assert place.nodes == {"0": 5}
    assert place.cma_pages == 2
    assert place.folio_orders == {"0": 5}
    assert (place.present_pages, place.absent_pages) == (5, 3)
    assert place.to_json()["zones"] == {"DMA32": 1, "Normal": 4}


def test_pmem_inside_the_span_of_another_zone_is_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # Measured with memmap=512M!4G: Normal spans from 4 GiB, the pmem's frames read as NOPAGE.
    zones = zoneinfo.parse((DATA / "6.12-guest" / "zoneinfo").read_text())
    pmem = [(1 << 20) + i for i in range(4)]
    assert all(zoneinfo.zone_of(pfn, zones) is not None for pfn in pmem)
    monkeypatch.setattr(kpageflags, "PageFlags", lambda: FakeFlags({}))
    place = placement.place(pmem, 0, (), zones)
    assert place.zones == {"Device": 4}
    assert place.nodes == {}
    assert place.cma_pages == 0


def test_placement_without_kpageflags(monkeypatch: pytest.MonkeyPatch) -> None:
    zones = zoneinfo.parse((DATA / "6.12-guest" / "zoneinfo").read_text())
    monkeypatch.setattr(kpageflags, "folio_orders", lambda pfns: None)
    place = placement.place([1180672, 1 << 40], 0, None, zones)
    assert place.zones == {"Movable": 1, "none": 1}
    assert place.cma_pages is None
    assert place.folio_orders is None


def test_the_cma_area_of_a_real_log_is_as_large_as_meminfo_says() -> None:
    total = meminfo.parse((DATA / "7.2-guest" / "meminfo").read_text()).cma_total_bytes
    ranges = cma.ranges((DATA / "7.2-guest" / "dmesg").read_text())
    assert ranges == ((0x120000, 0x120000 + 2600 * 256),)
    assert (ranges[0][1] - ranges[0][0]) * 4096 == total


@pytest.mark.parametrize("kernel", ["6.1-guest", "6.12-guest"])
def test_a_kernel_without_cma_announces_none(kernel: str) -> None:
    assert cma.ranges((DATA / kernel / "dmesg").read_text()) == ()


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("cma: Reserved 16 MiB at 0x3f000000\n", ((0x3F000, 0x40000),)),
        (
            "[    0.0] cma: Reserved 16 MiB at 0x000000003f000000 on node -1\n",
            ((0x3F000, 0x40000),),
        ),
        (
            "cma: Reserved 4 MiB at 0x80000000\ncma: Reserved 4 MiB at 0x40000000\n",
            ((0x40000, 0x40400), (0x80000, 0x80400)),
        ),
        (
            "Reserved memory: created CMA memory pool at 0x0000000078000000, size 64 MiB\n",
            ((0x78000, 0x7C000),),
        ),
        ("cma: Reserved 4096 MiB in 2 ranges\n", ()),
        ("cma: Failed to reserve 16 MiB\n", ()),
        ("Memory: 5542304K/5766644K available (0K cma-reserved)\n", ()),
    ],
)
def test_log_formats_of_cma(text: str, ranges: tuple[tuple[int, int], ...]) -> None:
    assert cma.ranges(text) == ranges


def test_an_area_without_a_place_is_still_an_area() -> None:
    assert cma.parse("cma: Reserved 4096 MiB in 2 ranges\n") == [cma.Area("", None, 1 << 20)]


@pytest.mark.parametrize(
    ("cma_total", "log", "found"),
    [
        ("", "cma: Reserved 16 MiB at 0x3f000000\n", ()),
        ("CmaTotal: 0 kB\n", None, ()),
        ("CmaTotal: 16384 kB\n", "cma: Reserved 16 MiB at 0x3f000000\n", ((0x3F000, 0x40000),)),
        ("CmaTotal: 16384 kB\n", None, None),
        ("CmaTotal: 32768 kB\n", "cma: Reserved 16 MiB at 0x3f000000\n", None),
    ],
)
def test_a_log_that_lost_an_area_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    cma_total: str,
    log: str | None,
    found: tuple[tuple[int, int], ...] | None,
) -> None:
    monkeypatch.setattr(meminfo, "read", lambda: meminfo.parse(cma_total))
    monkeypatch.setattr(cma, "DEBUGFS", Path("/nonexistent"))
    assert cma.find(log) == found


def test_cma_from_debugfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, base, count in (("reserved", 0x3F000, 0x1000), ("hugetlb0", 0x80000, 0x400)):
        area = tmp_path / name
        area.mkdir()
        (area / "base_pfn").write_text(f"{base}\n")
        (area / "count").write_text(f"{count}\n")
    monkeypatch.setattr(cma, "DEBUGFS", tmp_path)
    assert cma.read_debugfs() == [
        cma.Area("hugetlb0", 0x80000, 0x400),
        cma.Area("reserved", 0x3F000, 0x1000),
    ]
    (tmp_path / "hugetlb0" / "ranges" / "0").mkdir(parents=True)
    (tmp_path / "hugetlb0" / "ranges" / "1").mkdir()
    assert cma.Area("hugetlb0", None, 0x400) in (cma.read_debugfs() or [])


def test_a_kmsg_record() -> None:
    line = kmsg.parse("4,339,5140900,-;a; b\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP\n")
    assert line == Line(seq=339, level=4, t_ns=5140900000, text="a; b", facility=0)
    assert kmsg.parse("12,340,1,-;hello\n").facility == 1
    assert kmsg.parse("6,341,2,c,caller=T1;cont\n").text == "cont"


# As printed by kernels 6.1 to 7.2.
SERIOUS = """\
WARNING: CPU: 0 PID: 431 at mm/gup.c:133 try_grab_folio+0x6a/0x90
WARNING: mm/gup.c:148 at try_grab_folio+0x6a/0x90, CPU#0: python/123
WARNING: possible circular locking dependency detected
WARNING: possible recursive locking detected
WARNING: suspicious RCU usage
WARNING: inconsistent lock state
BUG: kernel NULL pointer dereference, address: 0000000000000000
BUG: unable to handle page fault for address: ffffc90000000000
BUG: Bad page state in process python  pfn:12345
BUG: KASAN: use-after-free in foo+0x1/0x2
BUG: sleeping function called from invalid context at mm/gup.c:1
BUG: workqueue lockup - pool cpus=0 node=0
kernel BUG at mm/gup.c:100!
Oops: 0000 [#1] PREEMPT SMP NOPTI
Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP
general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1]
UBSAN: array-index-out-of-bounds in mm/gup.c:1:2
rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
rcu: INFO: rcu_preempt self-detected stall on CPU
INFO: task python:123 blocked for more than 120 seconds.
watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [python:123]
watchdog: Watchdog detected hard LOCKUP on cpu 1
refcount_t: underflow; use-after-free.
list_del corruption. prev->next should be ffff, but was 0000
Kernel panic - not syncing: Fatal exception
"""

HARMLESS = """\
vmstat_refresh: nr_foll_pin_released -3
vmstat_refresh: nr_zone_write_pending -1
vfio_pin_pages_remote: RLIMIT_MEMLOCK (65536) exceeded
PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug
debug: unmapping init memory
rdma_rxe: loaded
python[123]: segfault at 0 ip 0000 sp 0000 error 4 in libc.so
rcu: Hierarchical RCU implementation.
systemd[1]: Started Oopsie.
"""


@pytest.mark.parametrize("text", SERIOUS.splitlines())
def test_what_is_serious(text: str) -> None:
    assert kmsg.serious(Line(1, 4, 0, text))
    assert not kmsg.serious(Line(1, 4, 0, text, facility=1)), "userspace wrote it"


@pytest.mark.parametrize("text", HARMLESS.splitlines())
def test_what_is_not(text: str) -> None:
    assert not kmsg.serious(Line(1, 4, 0, text))


def test_a_saved_boot_has_nothing_serious() -> None:
    for kernel in ("6.1-guest", "6.12-guest", "7.2-guest"):
        for text in (DATA / kernel / "dmesg").read_text().splitlines():
            assert not kmsg.serious(Line(1, 6, 0, text))


def test_reports_hold_what_follows_up_to_the_end_marker() -> None:
    texts = [
        "rdma_rxe: loaded",
        "WARNING: CPU: 0 PID: 1 at mm/gup.c:133 f+0x1/0x2",
        "Call Trace:",
        " </TASK>",
        "eth0: link up",
        "BUG: Bad page state in process a  pfn:1",
        "page dumped because: x",
        "---[ end trace 0000000000000000 ]---",
        "quiet again",
        "int3: 0000 [#1] PREEMPT SMP NOPTI",  # Linux 6.1 says no "Oops" here
        "Call Trace:",
    ]
    reports = kmsg.suspicious(Line(i, 4, 0, text) for i, text in enumerate(texts))
    assert [report.splitlines()[0] for report in reports] == [
        texts[1],
        texts[5],
        texts[9],
    ]
    assert reports[0] == "\n".join(texts[1:4])
    assert reports[1] == "\n".join(texts[5:8])


def test_an_endless_report_is_cut() -> None:
    lines = [Line(i, 4, 0, "WARNING: x" if i == 0 else "more") for i in range(500)]
    reports = kmsg.suspicious(lines)
    assert len(reports) == 1
    assert reports[0].count("\n") == kmsg.REPORT_LINES - 1
