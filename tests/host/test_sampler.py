"""The sampler as a process: what it sees of states that the test makes, and how it ends."""

import ctypes
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pinstorm import samples, series_tables, spool
from pinstorm.sampling import Sampling
from telemetry import maps, process_fds, process_io, vm_events, vmstat
from telemetry.vmstat import Counters
from workloads import libc
from workloads.spec import CallFailed

PAGE = mmap.PAGESIZE
DEADLINE_S = 30.0
Need = Callable[[bool, str], None]
Reading = samples.Reading


@pytest.fixture
def sampling(tmp_path: Path) -> Iterator[Sampling]:
    """One at 50 Hz, started."""
    started = Sampling(samples.spool_of(tmp_path), hz=50, device=None)
    started.start()
    yield started
    started.close()


def awaited(
    bundle: Path, wanted: Callable[[Reading], bool], after_ns: int = 0, source: str = "vmstat"
) -> Reading:
    """The first reading of the source after that moment that is as wanted, once it is there."""
    deadline = time.monotonic() + DEADLINE_S
    seen = []
    while time.monotonic() < deadline:
        seen = [r for r in samples.read(bundle) if r.source == source and r.t_ns > after_ns]
        for reading in seen:
            if wanted(reading):
                return reading
        time.sleep(0.05)
    raise AssertionError(f"none of {len(seen)} readings of {source}, the last being {seen[-1:]}")


def test_a_registered_buffer_shows_in_the_series(
    tmp_path: Path, sampling: Sampling, need: Need
) -> None:
    """Pins of io_uring, held: as many more are outstanding as before, and as few again after."""
    with Counters() as counters:
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        bound = counters.unrefreshed_bound_pages * 2
    try:
        ring = libc.io_uring_setup(1)
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")
    pages = 16 * bound
    region = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    pieces = libc.pieces(libc.address_of(region), pages * PAGE, 1 << 30)

    def outstanding(reading: Reading) -> int:
        value = reading.values["outstanding_pages"]
        assert value is not None
        assert "outstanding_pages" in reading.inexact
        return value

    try:
        # Others pin too, here: less than half of these.
        before = awaited(tmp_path, lambda r: True)
        begin_ns = time.monotonic_ns()
        registered = libc.io_uring_register(ring, 0, libc.iovecs(pieces), len(pieces))
        need(registered == 0, f"registration: {os.strerror(libc.last_errno())}")
        level = outstanding(before) + pages // 2
        awaited(tmp_path, lambda r: outstanding(r) > level, begin_ns)
        end_ns = time.monotonic_ns()
    finally:
        os.close(ring)
    awaited(tmp_path, lambda r: outstanding(r) < level, end_ns)
    points = sampling.stop().trends["outstanding_pages"]
    assert max(low for _, low, _ in points) <= max(mean for _, _, mean in points)
    assert max(mean for _, _, mean in points) > level


def test_counters_lie_between_snapshots_of_another_reader(
    tmp_path: Path, sampling: Sampling
) -> None:
    with Counters() as counters:
        first = counters.snapshot()
        reading = awaited(tmp_path, lambda r: True, time.monotonic_ns())
        last = counters.snapshot()
        slack = counters.unrefreshed_bound_pages
    for key, low, high in (
        ("nr_foll_pin_acquired", first.acquired, last.acquired),
        ("nr_foll_pin_released", first.released, last.released),
        ("pgmigrate_success", first.migrate_success, last.migrate_success),
    ):
        if low is not None and high is not None:
            value = reading.values[key]
            assert value is not None
            assert low - slack <= value <= high + slack
            assert (key in reading.inexact) == (not vm_events.exact(key))


def test_the_only_nodes_figures_are_those_of_the_machine(need: Need) -> None:
    """Snapshots do not read the node's file then; here it is read, between two of them."""
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*/vmstat"))
    need(len(nodes) == 1, f"{len(nodes)} NUMA nodes")
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        first = counters.snapshot()
        need(first.acquired is not None, "this kernel does not count pins")
        node = vmstat.parse(nodes[0].read_bytes())
        last = counters.snapshot()
    number = int(nodes[0].parent.name.removeprefix("node"))
    assert first.per_node == {number: (first.acquired, first.released)}
    for name, low, high in zip(
        vm_events.PINS, first.per_node[number], last.per_node[number], strict=True
    ):
        assert low <= node[name] <= high


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[str]]:
    """A process with 40 mappings of its own, 7 open files and some CPU time; says when it is so."""
    program = """
import mmap, os, sys, time
region = mmap.mmap(-1, 40 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(7)]
while time.process_time() < 0.3: pass
print("ready", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_figures_of_a_process_are_those_of_psutil(
    tmp_path: Path, sampling: Sampling, busy: subprocess.Popen[str]
) -> None:
    sampling.watch([busy.pid], [os.getpid()])
    values = awaited(tmp_path, lambda r: r.pid == busy.pid, source="process").values
    other = psutil.Process(busy.pid)
    times, memory, io = other.cpu_times(), other.memory_info(), other.io_counters()
    assert values["user_ns"] == round(times.user * 1e9)
    assert values["system_ns"] == round(times.system * 1e9)
    assert abs((values["vmrss_bytes"] or 0) - memory.rss) <= 64 * PAGE * (os.cpu_count() or 1) * 3
    assert (values["read_bytes"], values["write_bytes"]) == (io.read_bytes, io.write_bytes)
    assert values["threads"] == other.num_threads() == 1
    tables = awaited(tmp_path, lambda r: r.pid == busy.pid, source="process_tables").values
    assert tables == {
        "vma_count": len(other.memory_maps(grouped=False)) + vsyscall(busy.pid),
        "fd_count": other.num_fds(),
    }
    own = awaited(tmp_path, lambda r: r.pid == os.getpid(), source="own").values
    assert (own["vmrss_bytes"] or 0) > 1 << 20
    report = sampling.stop()
    assert report.trends["fd_count"][-1][1] == tables["fd_count"]
    assert report.trends["vma_count"][-1][1] == tables["vma_count"]
    assert report.trends["own_rss_bytes"][-1][1] > own["vmrss_bytes"]  # and the sampler's


def vsyscall(pid: int) -> int:
    """psutil leaves out what has no line in smaps; [vsyscall] has one on some kernels."""
    with_smaps = Path(f"/proc/{pid}/smaps").read_text().count("[vsyscall]")
    return maps.read_text(pid).count("[vsyscall]") - with_smaps


def test_open_files_are_counted_as_they_are_listed() -> None:
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(30)]
    try:
        listed = len(os.listdir("/proc/self/fd")) - 1  # the listing's own
        assert process_fds.count() == listed
    finally:
        for fd in opened:
            os.close(fd)
    assert process_fds.count() == listed - 30


def test_mappings_are_counted_beyond_one_read_of_the_file() -> None:
    before = maps.vma_count()
    region = mmap.mmap(-1, 1000 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in range(1, 1000, 2):
        libc.mprotect(address + page * PAGE, PAGE, mmap.PROT_READ)
    assert maps.vma_count() == len(maps.read())
    assert maps.vma_count() >= before + 998


def test_direct_reads_count_as_read_from_storage(tmp_path: Path, need: Need) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        need(False, f"{tmp_path} has no direct IO")
    buffer = mmap.mmap(-1, 1 << 20)
    io = process_io.open_file(os.getpid())
    try:
        os.fsync(fd)
        before, _ = process_io.storage_bytes(process_io.read_from(io))
        assert os.preadv(fd, [buffer], 0) == 1 << 20
        after, _ = process_io.storage_bytes(process_io.read_from(io))
    finally:
        os.close(fd)
        os.close(io)
    assert before is not None
    assert after is not None
    need(after > before, f"{tmp_path} is on no block device")
    assert after - before == 1 << 20


def test_marks_divide_the_readings_at_their_time(tmp_path: Path, sampling: Sampling) -> None:
    awaited(tmp_path, lambda r: True)
    moments = []
    for seq, phase in ((1, "ramp"), (1, "hold"), (2, "hold")):
        before_ns = time.monotonic_ns()
        sampling.mark(seq, f"load/{seq}", phase)
        moments.append((before_ns, time.monotonic_ns(), seq, phase))
        awaited(tmp_path, lambda r: True, time.monotonic_ns())
    end_ns = time.monotonic_ns()
    sampling.mark(None, None, None)
    report = sampling.stop()
    # What is judged is the hold.
    assert report.began_ns is not None
    assert moments[-1][0] <= report.began_ns <= moments[-1][1]
    times = [report.began_ns + point[0] * 1e9 for point in report.trends["outstanding_pages"]]
    assert moments[-1][0] <= times[0] <= times[-1] <= time.monotonic_ns()
    readings = list(samples.read(tmp_path))
    assert readings[0].seq is None
    ends_ns = [*(before_ns for before_ns, *_ in moments[1:]), end_ns]
    for (_, marked_ns, seq, phase), next_ns in zip(moments, ends_ns, strict=True):
        inside = [r for r in readings if marked_ns < r.t_ns < next_ns]
        assert inside
        assert {(r.seq, r.case, r.phase) for r in inside} == {(seq, f"load/{seq}", phase)}


def test_the_report_counts_what_the_spool_has(tmp_path: Path, sampling: Sampling) -> None:
    sampling.watch([os.getpid()], [])
    awaited(tmp_path, lambda r: True, source="process_tables")
    going = sampling.report()
    assert not going.died
    report = sampling.stop()
    counts: dict[str, int] = {}
    for reading in samples.read(tmp_path):
        counts[reading.source] = counts.get(reading.source, 0) + 1
    for name in ("vmstat", "meminfo", "zoneinfo", "vm_events"):
        assert report.sources[name]["readings"] == counts[name] > 0
        assert report.sources[name]["ns_per_reading"] > 0
    assert report.sources["vmstat"]["readings"] > going.sources["vmstat"]["readings"]
    assert report.sources["vmstat"]["hz_asked"] == 50
    size = sum(path.stat().st_size for path in spool.segments(samples.spool_of(tmp_path)))
    assert report.bytes == size
    assert 0 < report.cost["cpu_ns"] < report.cost["elapsed_ns"]
    assert json.loads(json.dumps(report.to_json()))["died"] is False
    assert sampling.stop() == report


def test_ticks_lie_on_one_grid_and_those_between_were_missed(
    tmp_path: Path, sampling: Sampling
) -> None:
    """Stopped for a while, it goes on with the grid as it was and does not catch up."""
    assert sampling.pid is not None
    awaited(tmp_path, lambda r: True)
    os.kill(sampling.pid, signal.SIGSTOP)
    stopped_ns = time.monotonic_ns()
    while time.monotonic_ns() < stopped_ns + 600_000_000:
        time.sleep(0.05)
    os.kill(sampling.pid, signal.SIGCONT)
    went_on_ns = time.monotonic_ns()
    awaited(tmp_path, lambda r: True, went_on_ns + 200_000_000)
    report = sampling.stop()
    times = [r.t_ns for r in samples.read(tmp_path) if r.source == "vmstat"]
    period_ns = 20_000_000
    assert report.sources["vmstat"]["missed"] >= 600_000_000 // period_ns - 2
    # No more than one reading for each point of the grid.
    assert report.began_ns is not None
    slots = [(t_ns - report.began_ns) // period_ns for t_ns in times]
    assert len(set(slots)) >= len(slots) - report.sources["vmstat"]["missed"]
    total = (times[-1] - report.began_ns) // period_ns + 1
    assert abs(len(times) + report.sources["vmstat"]["missed"] - total) <= 1


def test_a_killed_sampler_is_told_and_disturbs_nothing(tmp_path: Path, sampling: Sampling) -> None:
    assert sampling.pid is not None
    awaited(tmp_path, lambda r: True)
    os.kill(sampling.pid, signal.SIGKILL)
    pid = sampling.pid
    gone = os.pidfd_open(pid)
    try:
        select.select([gone], [], [], DEADLINE_S)
        sampling.mark(1, "load/a", "hold")
        sampling.watch([os.getpid()], [os.getpid()])
        report = sampling.stop()
    finally:
        os.close(gone)
    assert report.died
    assert report.bytes > 0
    assert report.trends == {}
    assert report.to_json()["died"] is True
    readings = list(samples.read(tmp_path))
    assert readings
    assert series_tables.finish_samples(tmp_path, "r") is not None
    assert series_tables.samples_frame(tmp_path)["t_ns"].n_unique() >= len(
        {r.t_ns for r in readings}
    )
    assert not psutil.pid_exists(pid)


def test_it_dies_with_its_runner_and_writes_what_it_had(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from pinstorm import samples
from pinstorm.sampling import Sampling
sampling = Sampling(samples.spool_of(Path(sys.argv[1])), hz=50, device=None)
sampling.start()
print(sampling.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(samples.__file__).parents[1],
    ) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        sampler = os.pidfd_open(pid)
        try:
            awaited(tmp_path, lambda r: True)
            killed_ns = time.monotonic_ns()
            runner.kill()
            assert select.select([sampler], [], [], DEADLINE_S)[0]
        finally:
            os.close(sampler)
    last_ns = max(r.t_ns for r in samples.read(tmp_path))
    assert abs(last_ns - killed_ns) < 500_000_000


def test_close_ends_a_sampler_that_does_not_listen(tmp_path: Path, sampling: Sampling) -> None:
    assert sampling.pid is not None
    process = psutil.Process(sampling.pid)
    os.kill(sampling.pid, signal.SIGSTOP)
    sampling.close()
    assert not process.is_running()
    sampling.close()


def test_rates_are_halved_each_time_half_of_what_is_left_is_used(tmp_path: Path) -> None:
    limit_bytes = 60_000
    sampling = Sampling(
        samples.spool_of(tmp_path), hz=200, device=None, limit_bytes=limit_bytes, segment_bytes=8000
    )
    sampling.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while (report := sampling.report()).halved < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        sampling.close()
    assert report.halved == 2
    assert report.bytes <= limit_bytes
    assert report.error is None
    assert len(spool.segments(samples.spool_of(tmp_path))) > 2


def test_a_source_that_costs_too_much_is_read_less_often(tmp_path: Path) -> None:
    """So many mappings that to count them once a second is more than a hundredth of a core."""
    program = """
import mmap, sys
from workloads import libc
size = 60_000 * mmap.PAGESIZE
region = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = libc.address_of(region)
for page in range(1, 60_000, 2):
    libc.mprotect(address + page * mmap.PAGESIZE, mmap.PAGESIZE, 1)
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(samples.__file__).parents[1],
    ) as many:
        assert many.stdout is not None
        assert many.stdout.readline() == "ready\n"
        sampling = Sampling(samples.spool_of(tmp_path), hz=10, device=None)
        sampling.start()
        try:
            sampling.watch([many.pid], [])
            reading = awaited(tmp_path, lambda r: True, source="process_tables")
            deadline = time.monotonic() + DEADLINE_S
            while not (told := sampling.report().sources["process_tables"])["slower"]:
                assert time.monotonic() < deadline, told
                time.sleep(0.2)
        finally:
            sampling.close()
            many.kill()
    assert (reading.values["vma_count"] or 0) > 59_000
    assert told["ns_per_reading"] > 0.01e9 / told["hz_asked"] / 2


def test_a_sampler_never_forces_a_refresh(sampling: Sampling, tmp_path: Path) -> None:
    awaited(tmp_path, lambda r: True)
    opened = process_fds.read(sampling.pid or 0).values()
    assert "/proc/vmstat" in opened
    assert not [target for target in opened if "stat_refresh" in target]


def test_a_device_that_is_not_there_is_missing_and_no_error(tmp_path: Path) -> None:
    sampling = Sampling(samples.spool_of(tmp_path), hz=10, device="no_such_device")
    sampling.start()
    try:
        awaited(tmp_path, lambda r: True)
        report: Any = sampling.stop()
    finally:
        sampling.close()
    assert {"rdma", "rdma_objects", "rdma_odp"} <= set(report.missing)
    assert "rdma" not in report.sources
    assert not report.died
