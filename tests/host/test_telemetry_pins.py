"""The pin counters on this kernel, against pins of known number that the test itself makes.

The counters are the machine's, so every measurement is repeated until one falls into a moment when
nobody else pins.
"""

import contextlib
import json
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry import mountinfo, vmstat, window
from telemetry.vmstat import Counters
from workloads import libc

PAGE = mmap.PAGESIZE
FILE_PAGES = 2000
NOBODY = 65534
ATTEMPTS = 40


@pytest.fixture(scope="module")
def direct_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A descriptor whose reads pin the pages of the memory they fill: O_DIRECT on a block device's
    file system, from 6.5 on (a7e689dd1c06 "block: Convert bio_iov_iter_get_pages ...")."""
    if tuple(int(word) for word in os.uname().release.split(".")[:2]) < (6, 5):
        pytest.skip("direct IO takes no pins before Linux 6.5")
    path = tmp_path_factory.mktemp("direct") / "file"
    mount = mountinfo.of_path(path)
    if mount is None or mount.fs_type not in ("ext4", "xfs"):
        pytest.skip(f"{path} is not on ext4 or xfs: set TMPDIR to a folder that is")
    path.write_bytes(os.urandom(PAGE) * FILE_PAGES)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    yield fd
    os.close(fd)


@pytest.fixture(scope="module")
def memory() -> Iterator[mmap.mmap]:
    """Touched base pages, so that no pin faults one in."""
    region = mmap.mmap(-1, FILE_PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, len(region), PAGE):
        region[offset] = 1
    yield region
    region.close()


@pytest.fixture
def exact() -> Iterator[Counters]:
    with Counters() as counters:
        if not counters.refreshes:
            pytest.skip("folding the counters needs root: /proc/sys/vm/stat_refresh")
        if counters.snapshot().acquired is None:
            pytest.skip("this kernel has no nr_foll_pin_acquired")
        yield counters


def pin(fd: int, memory: mmap.mmap, pages: int) -> None:
    """Pins and unpins each page once."""
    with memoryview(memory) as whole, whole[: pages * PAGE] as part:
        assert os.preadv(fd, [part], 0) == pages * PAGE


def when_quiet(exact: Counters, measure: Callable[[], Any], pages: Callable[[Any], int]) -> Any:
    """What ``measure`` gave at a moment when the machine moved only the pages it told of."""
    seen = []
    for _ in range(ATTEMPTS):
        before = exact.snapshot()
        result = measure()
        moved = window.between(before, exact.snapshot())
        if moved.acquired == moved.released == pages(result):
            return result
        seen.append((moved.acquired, moved.released, pages(result)))
    pytest.fail(f"no quiet moment in {ATTEMPTS} attempts; acquired, released, ours: {seen}")


@pytest.mark.parametrize("pages", [1, 7, 10, 100, 2000])
def test_a_direct_read_moves_both_counters_by_its_pages(
    exact: Counters, direct_file: int, memory: mmap.mmap, pages: int
) -> None:
    assert exact.exact
    assert exact.bound_pages == 0

    def measure() -> window.Delta:
        before = exact.snapshot()
        pin(direct_file, memory, pages)
        after, _ = vmstat.settle(exact, lambda now: window.between(before, now).net == 0, 1)
        return window.between(before, after)

    delta = when_quiet(exact, measure, lambda _: pages)
    assert (delta.acquired, delta.released, delta.net) == (pages, pages, 0)
    # Second source: the nodes' own files.
    assert sum(acquired for acquired, _ in delta.per_node.values()) == pages
    assert sum(released for _, released in delta.per_node.values()) == pages


def test_the_hot_path_reads_what_the_full_parse_reads(exact: Counters) -> None:
    for _ in range(ATTEMPTS):
        before = exact.snapshot()
        full = vmstat.parse(Path(vmstat.VMSTAT).read_bytes())
        after = exact.snapshot()
        if (before.acquired, before.released) == (after.acquired, after.released):
            break
    assert full["nr_foll_pin_acquired"] == after.acquired
    assert full["nr_foll_pin_released"] == after.released
    assert before.migrate_success is not None
    assert after.migrate_success is not None
    assert before.migrate_success <= full["pgmigrate_success"] <= after.migrate_success


def test_refresh_can_be_declined(exact: Counters) -> None:
    with Counters(refresh=False) as counters:
        assert not counters.refreshes
        assert not counters.exact
        assert counters.bound_pages > 0
        assert counters.held_bound_pages == 2 * counters.bound_pages


def write_own_memory(memory: mmap.mmap, pages: int) -> None:
    """Pins and unpins each page once inside the call, on every kernel that counts at all."""
    address = libc.address_of(memory)
    vectors = libc.iovecs([(address, pages * PAGE)])
    assert libc.process_vm_writev(os.getpid(), vectors, vectors) == pages * PAGE


def trials(act: Callable[[int], None], count: int) -> dict[str, Any]:
    """Unrefreshed: [pages pinned, acquired seen, released seen] of each trial, with no waiting."""
    cpus = sorted(os.sched_getaffinity(0))
    with Counters() as counters:
        rows = []
        for trial in range(count):
            pages = random.randint(1, FILE_PAGES)
            os.sched_setaffinity(0, {cpus[trial % len(cpus)]})
            before = counters.snapshot()
            act(pages)
            delta = window.between(before, counters.snapshot())
            rows.append([pages, delta.acquired, delta.released])
        return {"exact": counters.exact, "bound": counters.bound_pages, "rows": rows}


def as_nobody(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns in a child that has become uid 65534."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with open(writer, "w") as out:
                json.dump(work(), out)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    result: dict[str, Any] = json.loads(text)
    return result


def hundred_as_nobody(exact: Counters, act: Callable[[int], None]) -> dict[str, Any]:
    result: dict[str, Any] = when_quiet(
        exact,
        lambda: as_nobody(lambda: trials(act, 100)),
        lambda answer: sum(row[0] for row in answer["rows"]),
    )
    assert result["exact"] is False
    assert len(result["rows"]) == 100
    return result


def test_as_nobody_the_bound_contains_the_truth_every_time(
    exact: Counters, direct_file: int, memory: mmap.mmap
) -> None:
    # Acquired only: iomap_dio_bio_end_io() wakes the reader first and unpins then, so that what is
    # released when read() returns is not known. The next test has both.
    result = hundred_as_nobody(exact, lambda pages: pin(direct_file, memory, pages))
    errors = [abs(acquired - pages) for pages, acquired, _ in result["rows"]]
    assert sum(error <= result["bound"] for error in errors) == 100
    assert max(errors) > 0, "the counters were exact without refresh: the test shows nothing"


def test_as_nobody_the_bound_contains_both_counters(exact: Counters, memory: mmap.mmap) -> None:
    result = hundred_as_nobody(exact, lambda pages: write_own_memory(memory, pages))
    bound = result["bound"]
    for pages, acquired, released in result["rows"]:
        assert abs(acquired - pages) <= bound
        assert abs(released - pages) <= bound
        assert abs(acquired - released) <= 2 * bound


def test_the_threshold_of_one_cpu_is_within_the_bound(
    exact: Counters, direct_file: int, memory: mmap.mmap
) -> None:
    """Pins page by page on one CPU until the folded counter moves: that many pages can hide."""
    cpus = os.sched_getaffinity(0)

    def measure() -> tuple[int, int]:
        exact.snapshot()
        start = lazy.snapshot(per_node=False).acquired
        for count in range(1, 1000):
            pin(direct_file, memory, 1)
            moved = lazy.snapshot(per_node=False).acquired
            if moved != start:
                return count, (moved or 0) - (start or 0)
        pytest.fail("1000 pins on one CPU, and the counter did not move")

    with Counters(refresh=False) as lazy:
        os.sched_setaffinity(0, {min(cpus)})
        try:
            hidden = [when_quiet(exact, measure, lambda seen: int(seen[0])) for _ in range(3)]
        finally:
            os.sched_setaffinity(0, cpus)
        per_cpu = lazy.bound_pages // len(cpus)
    # All that was hidden comes at once, so the differential of one CPU never went above count - 1.
    assert all(count == moved for count, moved in hidden)
    assert max(count for count, _ in hidden) - 1 <= per_cpu


def test_ambient_sees_a_process_that_pins_in_a_loop(
    exact: Counters, direct_file: int, memory: mmap.mmap
) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            while os.getppid() != 1:
                pin(direct_file, memory, 16)
        os._exit(0)
    try:
        deadline = time.monotonic() + 10
        while window.ambient(exact, 1_000_000).pages == 0 and time.monotonic() < deadline:
            pass  # until the child runs
        noise = window.ambient(exact, 50_000_000)
        assert noise.pages is not None
        assert noise.pages >= 16
        assert noise.elapsed_ns >= 50_000_000
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    calm = [window.ambient(exact, 1_000_000).pages for _ in range(ATTEMPTS)]
    assert 0 in calm


def test_settle_is_done_at_once_after_a_direct_read(
    exact: Counters, direct_file: int, memory: mmap.mmap
) -> None:
    start = exact.snapshot()
    pin(direct_file, memory, 64)
    last, settle_ns = vmstat.settle(
        exact, lambda snapshot: window.between(start, snapshot).net == 0, deadline_s=5
    )
    assert window.between(start, last).net == 0
    assert settle_ns < 5_000_000_000
