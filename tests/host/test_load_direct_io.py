"""The engines of direct IO for real: what they count is what was done, and damage is found."""

import errno
import mmap
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telemetry.vmstat import Counters, settle
from workloads import libc
from workloads.load import psync, target, uring
from workloads.load.engine import Mismatch, Pace, Recorder, Work
from workloads.load.integrity import Blocks
from workloads.load.spec import Job
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, PrepareFailed, Surroundings

Need = Callable[[bool, str], None]
KERNEL = tuple(int(word) for word in platform.release().split("-")[0].split(".")[:2])
# What others on the machine pin meanwhile spoils a window: then it is measured again.
QUIET_TRIES = 1000
MINUTE_NS = 60_000_000_000
FILE_BYTES = 4 * MIB

PSYNC = {"workload": "dio-read"}
URING = {"workload": "dio-read-uring", "depth": 8}
REGISTERED = {**URING, "registered": True}
EACH = pytest.mark.parametrize("kind", [PSYNC, URING, REGISTERED], ids=["psync", "uring", "fixed"])


class Loaded:
    """An engine with its work, as a worker has it."""

    def __init__(self, job: Job, around: Surroundings):
        self.owner = Owner()
        self.stop = mmap.mmap(-1, mmap.PAGESIZE)
        self.recorder = Recorder(allowed=job.allowed)
        pace = Pace(job.rate_ops_s, job.think_ns)
        self.work = Work(job, 0, around, 1, self.stop, self.recorder, pace)
        module = uring if job.workload.endswith("-uring") else psync
        try:
            self.engine: Any = module.prepare(self.work, self.owner)
            self.engine.open()
        except BaseException:
            self.owner.close()
            raise

    def run(self, for_ns: int = MINUTE_NS) -> bool:
        left: bool = self.engine.run(time.monotonic_ns() + for_ns)
        return left

    def close(self) -> None:
        self.engine.close()
        self.owner.close()
        assert self.owner.errors == []


Load = Callable[..., Loaded]


@pytest.fixture
def around(need: Need) -> Surroundings:
    here = os.getcwd()
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", here], capture_output=True, text=True, check=True
    ).stdout.strip()
    need(kind in ("ext2/ext3", "xfs"), f"{here} is on {kind}, not on ext4 or xfs")
    try:
        os.close(libc.io_uring_setup(1))
    except CallFailed as error:
        need(False, f"io_uring_setup: {os.strerror(error.errno)}")
    return Surroundings(scratch={"target": here})


@pytest.fixture
def compiled_load(around: Surroundings) -> Iterator[Load]:
    loaded = []

    def make(**keys: Any) -> Loaded:
        job = Job("job", **{"file_bytes": FILE_BYTES, "read_percent": 100, **keys})
        loaded.append(Loaded(job, around))
        return loaded[-1]

    yield make
    for one in loaded:
        one.close()


@pytest.fixture(params=["compiled", "python"])
def load(
    compiled_load: Load, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Load:
    """With the compiled loops, and as under emulation."""
    if request.param == "python":
        monkeypatch.setattr(psync, "_TRANSFERS", None)
        monkeypatch.setattr(uring, "_TURNS", None)
    return compiled_load


@pytest.fixture
def counters(need: Need) -> Iterator[Counters]:
    need(KERNEL >= (6, 5), "before 6.5 direct IO takes references that no counter shows")
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        yield counters


def acquired_by(counters: Counters, step: Callable[[], object]) -> int:
    """Pages that were pinned meanwhile, on the whole machine."""
    before = counters.snapshot()
    step()
    after = counters.snapshot()
    assert before.acquired is not None
    assert after.acquired is not None
    return after.acquired - before.acquired


def latencies(taken: dict[str, Any], kind: str) -> int:
    return sum(count for _, count in taken["latency"].get(kind, {"buckets": []})["buckets"])


# -- what is counted -------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_count_is_kept_and_counted(kind: dict[str, Any], write: bool, load: Load) -> None:
    keys = {**kind, "workload": kind["workload"].replace("read", "write" if write else "read")}
    loaded = load(**keys, count=1500, read_percent=0 if write else 100)
    assert loaded.run() is False
    loaded.engine.drain()
    taken = loaded.recorder.take()
    assert taken["operations"] == 1500
    assert taken["bytes"] == 1500 * 4096
    assert taken["pins"] == (0 if keys.get("registered") else 1500)
    assert latencies(taken, "write" if write else "read") == 1500
    assert latencies(taken, "read" if write else "write") == 0
    # No device answers within a microsecond, and none of these was seconds late.
    assert all(1000 < moments["max"] < MINUTE_NS for moments in taken["latency"].values())
    assert loaded.run() is False
    assert loaded.recorder.take()["operations"] == 0


SIZES = {
    "one": ((4096, 1.0),),
    "large": ((MIB, 1.0),),
    # 6144 bytes behind 6144 others begin in the middle of a page.
    "several": ((512, 1.0), (6144, 1.0), (65536, 1.0)),
    "odd": ((6144, 1.0),),
}


@EACH
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_pins_are_the_kernels(
    kind: dict[str, Any], sizes: tuple[Any, ...], load: Load, counters: Counters
) -> None:
    """Direct IO into plain memory pins every page it moves, and none that was registered."""
    loaded = load(**kind, sizes=sizes, file_bytes=2 * MIB)
    done = 0

    def some() -> None:
        # A few milliseconds, drained: what others pin meanwhile then comes between now and then.
        loaded.run(2_000_000)
        loaded.engine.drain()

    for _ in range(QUIET_TRIES):
        acquired = acquired_by(counters, some)
        taken = loaded.recorder.take()
        assert acquired >= taken["pins"]
        if acquired == taken["pins"]:
            done += taken["operations"]
        if done >= 16:
            break
    else:
        pytest.fail(f"{acquired} pages were pinned, {taken['pins']} counted, {QUIET_TRIES} times")
    assert (taken["pins"] == 0) == bool(kind.get("registered"))


def test_registered_memory_is_held_from_open_to_close(load: Load, counters: Counters) -> None:
    loaded = load(**REGISTERED, sizes=((65536, 1.0),))
    loaded.engine.close()
    pages = 8 * 65536 // PAGE_BYTES
    for _ in range(QUIET_TRIES):
        held_before = counters.snapshot().outstanding
        assert held_before is not None
        loaded.engine.open()
        opened = counters.snapshot()
        loaded.engine.close()
        closed, _ = settle(counters, lambda now, rest=held_before: now.outstanding == rest, 1.0)
        assert opened.outstanding is not None
        held = opened.outstanding - held_before
        if held == pages and closed.outstanding == held_before:
            return
    pytest.fail(f"{held} pages were held, not {pages}")


@EACH
def test_what_is_in_flight_is_counted_by_drain(kind: dict[str, Any], load: Load) -> None:
    loaded = load(**kind)
    operations = 0
    while not operations:
        assert loaded.run(20_000_000) is True
        operations = loaded.recorder.take()["operations"]
    loaded.engine.drain()
    drained = loaded.recorder.take()["operations"]
    assert drained <= kind.get("depth", 0)
    if kind is not PSYNC:
        # With eight in flight the end of the time never comes when none is.
        assert drained > 0
    loaded.engine.drain()
    assert loaded.recorder.take()["operations"] == 0
    while not loaded.recorder.operations:
        assert loaded.run(20_000_000) is True


@EACH
def test_a_mix(kind: dict[str, Any], load: Load) -> None:
    loaded = load(**kind, count=2000, read_percent=70, sizes=((4096, 1.0), (16384, 1.0)))
    loaded.run()
    taken = loaded.recorder.take()
    reads, writes = latencies(taken, "read"), latencies(taken, "write")
    assert reads + writes == 2000
    assert 1250 < reads < 1550
    assert 2000 * 4096 < taken["bytes"] < 2000 * 16384


@EACH
def test_the_compiled_loop_does_the_work(
    kind: dict[str, Any], compiled_load: Load, monkeypatch: pytest.MonkeyPatch, need: Need
) -> None:
    """All but the first of each slot, counted and timed as in Python."""
    module: Any = psync if kind is PSYNC else uring
    name = "_TRANSFERS" if kind is PSYNC else "_TURNS"
    really, done = getattr(module, name), []
    need(really is not None, "emulated: nothing is compiled")

    def loop(*arguments: Any) -> Any:
        result = really(*arguments)
        done.append(result[0])
        return result

    monkeypatch.setattr(module, name, loop)
    loaded = compiled_load(**kind)
    looks = []
    if kind is not PSYNC:
        # What finds the best number to wait for is told of all that was done by then.
        chunk = loaded.engine._chunk
        monkeypatch.setattr(chunk, "look", lambda now_ns, done: looks.append(done))
    while sum(done) < 5000:
        assert loaded.run(20_000_000) is True
    loaded.engine.drain()
    taken = loaded.recorder.take()
    assert latencies(taken, "read") == taken["operations"]
    depth = kind.get("depth", 0)
    assert taken["operations"] == sum(done) + depth
    assert looks[: len(done)] == np.cumsum(done).tolist() * bool(depth)
    # No device answers within a microsecond, and none of these was seconds late.
    read = taken["latency"]["read"]
    assert 1000 < read["sum"] / taken["operations"] <= read["max"] < MINUTE_NS
    assert taken["pins"] == (0 if kind.get("registered") else taken["operations"])
    assert taken["bytes"] == taken["operations"] * 4096


@pytest.mark.parametrize("kind", [URING, REGISTERED], ids=["uring", "fixed"])
def test_a_failure_among_others(kind: dict[str, Any], load: Load) -> None:
    """Every eighth block or so is behind the file's end: the others are read on and on."""
    loaded = load(**kind, allowed=("EIO",), file_bytes=MIB)
    file = os.open(f"/proc/self/fd/{loaded.engine.target}", os.O_RDWR)
    os.ftruncate(file, MIB - MIB // 8)
    os.close(file)
    while loaded.recorder.operations + loaded.recorder.refused.get("EIO", 0) < 256 * 8:
        assert loaded.run(20_000_000) is True
    loaded.engine.drain()
    taken = loaded.recorder.take()
    every = taken["operations"] + taken["refused"]["EIO"]
    # Each block comes once in a pass, but for the passes that were not begun or ended.
    assert abs(taken["refused"]["EIO"] - every / 8) <= 32
    assert latencies(taken, "read") == taken["operations"]
    assert taken["bytes"] == taken["operations"] * 4096


# -- when it ends ----------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_stop_is_noticed(kind: dict[str, Any], rate: float | None, load: Load) -> None:
    """In the midst of work, and of a wait for the next operation, which here takes ten seconds."""
    loaded = load(**kind, rate_ops_s=rate)
    running = threading.Event()

    def stop() -> None:
        running.wait()
        while rate is None and not loaded.recorder.operations:
            time.sleep(0.001)
        loaded.stop[0] = 1

    stopper = threading.Thread(target=stop)
    stopper.start()
    until_ns = time.monotonic_ns() + MINUTE_NS
    running.set()
    loaded.engine.run(until_ns)
    left_ns = until_ns - time.monotonic_ns()
    stopper.join()
    assert left_ns > MINUTE_NS // 2


@EACH
def test_a_rate_is_a_limit(kind: dict[str, Any], load: Load) -> None:
    rate = 400.0
    loaded = load(**kind, rate_ops_s=rate)
    loaded.work.pace.restart()
    began_ns = time.monotonic_ns()
    loaded.run(200_000_000)
    loaded.engine.drain()
    elapsed_s = (time.monotonic_ns() - began_ns) / 1e9
    # The burst is what Pace allows to be made up for.
    assert 1 <= loaded.recorder.operations <= rate * elapsed_s + 0.05 * rate + 1


@EACH
def test_think_time(kind: dict[str, Any], load: Load) -> None:
    """Each place for an operation rests after each: 10 ms leave room for no more than so many."""
    loaded = load(**kind, think_ns=10_000_000)
    began_ns = time.monotonic_ns()
    loaded.run(200_000_000)
    loaded.engine.drain()
    elapsed_ns = time.monotonic_ns() - began_ns
    places = kind.get("depth", 1)
    assert 0 < loaded.recorder.operations <= places * (elapsed_ns // 10_000_000 + 1)


def test_a_thread_of_the_kernel_submits(load: Load, need: Need) -> None:
    """sqpoll, from its first operations to those after it went to sleep."""
    loaded = load(**REGISTERED, sqpoll=True, verify=True, read_percent=50, count=3000)
    assert loaded.run(1_000_000) is True
    loaded.engine.drain()
    idle_until = time.monotonic() + 30
    asleep = libc.IORING_SQ_NEED_WAKEUP
    while not loaded.engine.rings.flags & asleep and time.monotonic() < idle_until:
        time.sleep(0.01)
    assert loaded.engine.rings.flags & asleep
    assert loaded.run() is False
    assert loaded.recorder.operations == 3000


@pytest.mark.parametrize("known", [0, libc.IORING_SETUP_COOP_TASKRUN])
def test_an_older_kernels_ring(known: int, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel answers that does not know the newer flags."""
    really, asked = libc.io_uring_setup, []

    def setup(entries: int, params: Any = None) -> int:
        asked.append(params.flags)
        if params.flags & ~(known | libc.IORING_SETUP_SUBMIT_ALL * bool(known)):
            raise CallFailed("io_uring_setup", errno.EINVAL)
        return really(entries, params)

    monkeypatch.setattr(libc, "io_uring_setup", setup)
    loaded = load(**REGISTERED, count=1000)
    assert len(asked) == (2 if known else 3)
    assert loaded.run() is False
    assert loaded.recorder.operations == 1000


# -- integrity -------------------------------------------------------------------------------------

MIXES: dict[str, dict[str, Any]] = {
    "reads": {"read_percent": 100},
    "mix": {"read_percent": 50},
    "hot": {"read_percent": 50, "pattern": "zipf", "zipf_theta": 2.0},
    "sizes": {"read_percent": 60, "sizes": ((4096, 3.0), (32768, 1.0), (12288, 1.0))},
    "sequential": {"read_percent": 50, "pattern": "sequential", "sizes": ((65536, 1.0),)},
}


@EACH
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_all_is_verified(kind: dict[str, Any], mix: dict[str, Any], load: Load) -> None:
    loaded = load(**kind, **mix, verify=True, count=1500, file_bytes=MIB)
    assert loaded.run() is False
    taken = loaded.recorder.take()
    assert taken["operations"] == 1500
    if len(mix.get("sizes", "1")) == 1:
        size = mix.get("sizes", ((4096, 1),))[0][0]
        assert taken["verified"] == latencies(taken, "read") * size
    assert 0 < taken["verified"] <= taken["bytes"]
    assert (taken["verified"] == taken["bytes"]) == (mix["read_percent"] == 100)


def overwrite(loaded: Loaded, offset: int, data: bytes) -> None:
    """Behind the engine's back, through a descriptor of the test's own."""
    with mmap.mmap(-1, len(data)) as aligned:
        aligned[:] = data
        file = os.open(f"/proc/self/fd/{loaded.engine.target}", os.O_RDWR | os.O_DIRECT)
        try:
            assert os.pwritev(file, [aligned], offset) == len(data)
        finally:
            os.close(file)


@EACH
def test_a_planted_corruption_is_found(kind: dict[str, Any], load: Load) -> None:
    loaded = load(**kind, verify=True)
    offset = 77 * 4096
    overwrite(loaded, offset + 512, b"garbage!" * 64)
    with pytest.raises(Mismatch, match=f"offset {offset} of the target: expected generation 1,"):
        loaded.run()


@EACH
def test_an_old_block_is_found(kind: dict[str, Any], load: Load) -> None:
    """All blocks are written many times over, then what they held in the beginning comes back."""
    loaded = load(**kind, verify=True, read_percent=50, file_bytes=128 * 4096)
    with mmap.mmap(-1, 128 * 4096) as whole:
        assert os.preadv(loaded.engine.target, [whole], 0) == len(whole)
        old = whole[:]
    while loaded.recorder.operations < 128 * 12:
        assert loaded.run(1_000_000) is True
    loaded.engine.drain()
    overwrite(loaded, 0, old)
    with pytest.raises(Mismatch, match=r"offset \d+ .*, found 1: an older write") as found:
        loaded.run()
    assert int(re.findall(r"generation (\d+)", str(found.value))[0]) > 1


@EACH
def test_without_verify_nothing_is_looked_at(kind: dict[str, Any], load: Load) -> None:
    loaded = load(**kind, count=1024)
    overwrite(loaded, 0, b"garbage!" * 512)
    assert loaded.run() is False
    assert loaded.recorder.verified == 0


# -- refusals --------------------------------------------------------------------------------------


@EACH
def test_a_refusal_ends_the_job(kind: dict[str, Any], load: Load) -> None:
    loaded = load(**kind, sizes=((1000, 1.0),))
    with pytest.raises(CallFailed, match=r"read of 1000 bytes at offset \d+") as refusal:
        loaded.run()
    assert refusal.value.errno == errno.EINVAL
    assert refusal.value.call == ("preadv" if kind is PSYNC else "io_uring_enter")


@EACH
def test_refusals_that_are_allowed_are_counted(kind: dict[str, Any], load: Load) -> None:
    sizes = ((1000, 1.0), (4096, 1.0))
    loaded = load(**kind, sizes=sizes, allowed=("EINVAL",), count=400, pattern="sequential")
    assert loaded.run() is False
    taken = loaded.recorder.take()
    assert taken["operations"] + taken["refused"]["EINVAL"] == 400
    assert taken["refused"]["EINVAL"] > 100


@EACH
def test_a_short_read_is_a_failure(kind: dict[str, Any], load: Load) -> None:
    loaded = load(**kind, pattern="sequential")
    os.truncate(f"/proc/self/fd/{loaded.engine.target}", 3 * 4096)
    with pytest.raises(
        CallFailed, match=r"4096 bytes at offset \d+ of the target moved 0"
    ) as short:
        loaded.run()
    assert short.value.errno == errno.EIO
    assert int(re.findall(r"offset (\d+)", str(short.value))[0]) >= 3 * 4096


# -- the target ------------------------------------------------------------------------------------


def test_the_target_is_written_to_its_last_block(load: Load) -> None:
    """A hole, and an extent that is only reserved, would read as zeros."""
    loaded = load(**PSYNC, file_bytes=3 * MIB + 5 * 4096 + 100)
    about = os.fstat(loaded.engine.target)
    assert about.st_size == 3 * MIB + 5 * 4096
    assert about.st_blocks * 512 >= about.st_size
    with mmap.mmap(-1, about.st_size) as whole:
        assert os.preadv(loaded.engine.target, [whole], 0) == about.st_size
        words = np.frombuffer(whole[:], np.uint64).reshape(-1, 512)
    assert words.any(axis=1).all()
    assert (np.count_nonzero(words, axis=1) > 500).all()


@EACH
def test_nothing_is_left_of_a_killed_process(
    kind: dict[str, Any], around: Surroundings, tmp_path: Path
) -> None:
    """No name from the beginning on, and the room comes back."""
    size = 64 * MIB
    job = Job("job", **kind, file_bytes=size)
    here = tmp_path if os.stat(tmp_path).st_dev == os.stat(os.getcwd()).st_dev else Path.cwd()
    before = sorted(os.listdir(here))
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        loaded = Loaded(job, Surroundings(scratch={"target": str(here)}))
        os.write(theirs, os.readlink(f"/proc/self/fd/{loaded.engine.target}").encode())
        loaded.run()
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        name = os.read(pipe.fileno(), 4096).decode()
    try:
        assert name.endswith("(deleted)")
        assert sorted(os.listdir(here)) == before
        free = room(here)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert sorted(os.listdir(here)) == before
    deadline = time.monotonic() + 30
    # Others fill and empty the disk meanwhile.
    while room(here) < free + size // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def room(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bfree * disk.f_frsize


def test_room_for_all_processes_is_asked_for_first(around: Surroundings) -> None:
    here = around.scratch["target"]
    disk = os.statvfs(here)
    free = disk.f_bavail * disk.f_frsize
    fitting = Job("job", **PSYNC, processes=4, file_bytes=free // 16)
    target.require_room([fitting], around)
    target.require_room([Job("job", "io-uring-register", file_bytes=free)], around)
    words = rf"take \d+ bytes in {re.escape(here)}, which has \d+ bytes free .*--scratch"
    with pytest.raises(PrepareFailed, match=words):
        target.require_room([fitting] * 5, around)


def test_no_file_is_begun_without_room(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "nameless_file", lambda *_: pytest.fail("a file was made"))
    disk = os.statvfs(os.getcwd())
    with pytest.raises(PrepareFailed, match="is to keep"):
        load(**PSYNC, file_bytes=disk.f_blocks * disk.f_frsize)


def test_a_stop_ends_the_laying_out(around: Surroundings) -> None:
    owner = Owner()
    blocks = Blocks(4096, 1)
    asked = iter([False, False, True])
    with pytest.raises(PrepareFailed, match="stopped while a target of 8388608 bytes"):
        target.new_target(
            around.scratch["target"], 8 * MIB, blocks, owner, stopped=lambda: next(asked)
        )
    owner.close()
    assert owner.errors == []
