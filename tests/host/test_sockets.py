"""AF_XDP packet memory, MSG_ZEROCOPY and reading page data on this kernel.

That references are held while no counter moves is shown by the file behind the pages: a memfd
cannot be sealed against writing while somebody refers to its pages (mm/memfd.c,
memfd_wait_for_pins()).
"""

import errno
import fcntl
import mmap
import os
import resource
import termios
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

import workloads
import workloads.memory as memory_kinds
from telemetry.vmstat import Counters, Snapshot, settle
from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import MIB, PAGE_BYTES, CallFailed, Case, Surroundings

AROUND = Surroundings()
SETTLE_S = 1.0
QUIET_S = 20.0
NOBODY = 65534
SIZE_BYTES = 64 << 10


def need(met: bool, reason: str) -> None:
    if not met and {"host", "all"} & set(os.environ.get("PINSTORM_REQUIRE", "").split(",")):
        pytest.fail(f"unmet need: {reason}")
    if not met:
        pytest.skip(reason)


@pytest.fixture
def counters() -> Iterator[Counters]:
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
        yield counters


@pytest.fixture
def raw_sockets() -> None:
    need(os.geteuid() == 0, "an AF_XDP socket needs CAP_NET_RAW")


def anon(owner: Owner, size_bytes: int, offset_bytes: int = 0) -> Region:
    spec = workloads.memory_spec("anon")
    return memory_kinds.prepare(spec, size_bytes, AROUND, owner, offset_bytes)


def operation(workload: str, region: Region, owner: Owner) -> Any:
    params = {"size_bytes": region.size_bytes, "offset_bytes": region.offset_bytes}
    case = Case(workload, region.spec.name, params)
    module = import_module(workloads.workload_spec(workload).module)
    return module.prepare(case, region, AROUND, owner)


def moved(before: Snapshot, after: Snapshot) -> tuple[int, int]:
    assert None not in (before.acquired, before.released, after.acquired, after.released)
    return after.acquired - before.acquired, after.released - before.released  # type: ignore[operator]


def undisturbed(counters: Counters, run: Callable[[], object]) -> tuple[int, int]:
    """What ``run`` moves, tried again while somebody else pins pages just before or after."""
    deadline = time.monotonic() + QUIET_S
    while time.monotonic() < deadline:
        idle = counters.snapshot()
        time.sleep(0.01)
        start = counters.snapshot()
        run()
        end = counters.snapshot()
        time.sleep(0.01)
        if moved(idle, start) == moved(end, counters.snapshot()) == (0, 0):
            return moved(start, end)
    pytest.fail("the machine never was quiet: somebody else pins pages")


def make_hole(region: Region, page: int) -> None:
    """Take one page out of the region, and let nothing else be mapped there."""
    hole = region.address // PAGE_BYTES * PAGE_BYTES + page * PAGE_BYTES
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED | libc.MAP_NORESERVE
    libc.mmap(hole, PAGE_BYTES, libc.PROT_NONE, flags)


# -- AF_XDP ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("raw_sockets")
@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, SIZE_BYTES, 16 * MIB])
def test_umem_pins_until_its_socket_is_closed(
    size_bytes: int, owner: Owner, counters: Counters
) -> None:
    umem = operation("af-xdp-umem", anon(owner, size_bytes), owner)
    pages = size_bytes // PAGE_BYTES
    held: list[tuple[int, int]] = []

    def cycle() -> None:
        start = counters.snapshot()
        assert umem.acquire() > 0
        held.append(moved(start, counters.snapshot()))
        assert umem.release() > 0
        # a kernel worker unpins some milliseconds after close()
        settle(counters, lambda now: now.outstanding == start.outstanding, SETTLE_S)

    cycle()  # the second one has another socket
    assert undisturbed(counters, cycle) == (pages, pages)
    assert held[-1] == (pages, 0)


@pytest.mark.usefixtures("raw_sockets")
@pytest.mark.parametrize(
    ("size_bytes", "offset_bytes", "refusal"),
    [
        (SIZE_BYTES, 512, errno.EINVAL),
        (SIZE_BYTES, 1, errno.EINVAL),
        (SIZE_BYTES + 512, 0, errno.EINVAL),
        (SIZE_BYTES, PAGE_BYTES, None),
    ],
)
def test_umem_wants_whole_pages(
    size_bytes: int, offset_bytes: int, refusal: int | None, owner: Owner, counters: Counters
) -> None:
    umem = operation("af-xdp-umem", anon(owner, size_bytes, offset_bytes), owner)
    if refusal is None:
        start = counters.snapshot()
        umem.acquire()
        umem.release()
        settle(counters, lambda now: now.outstanding == start.outstanding, SETTLE_S)
        return

    def refused() -> None:
        with pytest.raises(CallFailed) as raised:
            umem.acquire()
        assert raised.value.errno == refusal

    assert undisturbed(counters, refused) == (0, 0)


@pytest.mark.usefixtures("raw_sockets")
@pytest.mark.parametrize(("page", "refusal"), [(8, errno.ENOMEM), (0, errno.EFAULT)])
def test_umem_over_a_hole_gives_back_what_it_took(
    page: int, refusal: int, owner: Owner, counters: Counters
) -> None:
    region = anon(owner, SIZE_BYTES)
    umem = operation("af-xdp-umem", region, owner)
    make_hole(region, page)

    def refused() -> None:
        with pytest.raises(CallFailed) as raised:
            umem.acquire()
        assert raised.value.errno == refusal

    assert undisturbed(counters, refused) == (page, page)


# -- MSG_ZEROCOPY and vmsplice ---------------------------------------------------------------------


@pytest.mark.parametrize("workload", ["msg-zerocopy", "vmsplice"])
def test_pages_are_referred_to_until_release(workload: str, owner: Owner) -> None:
    fd = os.memfd_create("pinstorm-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    owner.release_with("memfd", lambda: os.close(fd))
    os.ftruncate(fd, SIZE_BYTES)
    with mmap.mmap(fd, SIZE_BYTES) as mapping:
        mapping.write(os.urandom(SIZE_BYTES))
        address = libc.address_of(mapping)
        spec = workloads.memory_spec("memfd")
        region = Region(spec, address, SIZE_BYTES, SIZE_BYTES, memoryview(b""))
        sent = operation(workload, region, owner)
        assert sent.acquire() > 0
        assert sent.done_bytes is None
    # A mapping that may write stands in the way of the seal by itself: it is gone now.
    with pytest.raises(OSError, match="busy"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert sent.release() > 0
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize("offset_bytes", [0, 512, 1])
@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, SIZE_BYTES, 16 * MIB])
@pytest.mark.parametrize("workload", ["msg-zerocopy", "vmsplice"])
def test_references_move_no_counter(
    workload: str, size_bytes: int, offset_bytes: int, owner: Owner, counters: Counters
) -> None:
    sent = operation(workload, anon(owner, size_bytes, offset_bytes), owner)

    def cycle() -> None:
        sent.acquire()
        assert sent.done_bytes is None
        sent.release()

    cycle()  # the second one has other sockets
    assert undisturbed(counters, cycle) == (0, 0)


def test_pages_that_were_sent_after_all_are_noticed(owner: Owner) -> None:
    sent = operation("msg-zerocopy", anon(owner, SIZE_BYTES), owner)
    sent.acquire()
    sender, receiver = sent._connections[0].sender, sent._connections[0].receiver
    receiver.settimeout(5)
    while fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)) != bytes(4):
        receiver.recv(SIZE_BYTES)
    with pytest.raises(CallFailed, match="the kernel copied"):
        sent.release()


def test_send_over_a_hole_ends_before_its_segment(owner: Owner) -> None:
    region = anon(owner, MIB)
    sent = operation("msg-zerocopy", region, owner)
    make_hole(region, 128)
    sent.acquire()
    assert sent.done_bytes is not None
    assert 0 < sent.done_bytes <= 128 * PAGE_BYTES
    sent.release()
    make_hole(region, 0)
    with pytest.raises(CallFailed) as raised:
        sent.acquire()
    assert raised.value.errno == errno.EFAULT


@pytest.mark.parametrize("offset_bytes", [0, 512, 1])
def test_splice_over_a_hole_ends_at_the_hole(offset_bytes: int, owner: Owner) -> None:
    region = anon(owner, MIB, offset_bytes)
    spliced = operation("vmsplice", region, owner)
    make_hole(region, 128)
    spliced.acquire()
    assert spliced.done_bytes == 128 * PAGE_BYTES - offset_bytes
    spliced.release()


# -- the limit on locked memory --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size_bytes", "limit_bytes", "outcome"),
    [
        # two pages more than whole ones are charged for each send
        (SIZE_BYTES, SIZE_BYTES + 2 * PAGE_BYTES, 0),
        (SIZE_BYTES, SIZE_BYTES + PAGE_BYTES, errno.ENOBUFS),
        (4 * MIB, 2 * MIB, errno.ENOBUFS),
        (SIZE_BYTES, 0, errno.ENOBUFS),
    ],
)
def test_zerocopy_limit(size_bytes: int, limit_bytes: int, outcome: int) -> None:
    need(os.geteuid() == 0, "changing to another user needs root")
    assert _as_nobody("msg-zerocopy", size_bytes, limit_bytes) == [outcome] * 3


def _as_nobody(workload: str, size_bytes: int, limit_bytes: int) -> list[int]:
    """The errnos, 0 for none, of three cycles of an ordinary user under that RLIMIT_MEMLOCK."""
    import_module(workloads.workload_spec(workload).module)  # the user may not read the sources
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            owner = Owner()
            region = anon(owner, size_bytes)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_bytes, limit_bytes))
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            acquired = operation(workload, region, owner)
            os.write(writer, bytes(_errno_of(acquired) for _ in range(3)))
            owner.close()
            code = len(owner.errors)
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as answers:
        errnos = list(answers.read())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return errnos


def _errno_of(acquired: Any) -> int:
    try:
        acquired.acquire()
    except CallFailed as error:
        return error.errno
    acquired.release()
    return 0


# -- process_vm_readv ------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_bytes", [0, 512, 1])
@pytest.mark.parametrize("size_bytes", [PAGE_BYTES, SIZE_BYTES, 16 * MIB])
def test_reading_pins_inside_the_call(
    size_bytes: int, offset_bytes: int, owner: Owner, counters: Counters
) -> None:
    region = anon(owner, size_bytes, offset_bytes)
    region.buffer[:size_bytes] = os.urandom(size_bytes)
    read = operation("process-vm-read", region, owner)
    pages = -(-(size_bytes + offset_bytes) // PAGE_BYTES)

    def cycle() -> None:
        assert read.acquire() > 0
        assert read.done_bytes is None
        assert read.release() == 0

    cycle()
    assert undisturbed(counters, cycle) == (pages, pages)


@pytest.mark.parametrize("offset_bytes", [0, 1])
@pytest.mark.parametrize("workload", ["process-vm-read", "process-vm-write"])
def test_copy_over_a_hole_ends_at_the_hole(
    workload: str, offset_bytes: int, owner: Owner, counters: Counters
) -> None:
    region = anon(owner, SIZE_BYTES, offset_bytes)
    copied = operation(workload, region, owner)
    make_hole(region, 8)
    assert undisturbed(counters, copied.acquire) == (8, 8)
    assert copied.done_bytes == 8 * PAGE_BYTES - offset_bytes
    make_hole(region, 0)
    with pytest.raises(CallFailed) as raised:
        copied.acquire()
    assert raised.value.errno == errno.EFAULT


def test_other_bytes_than_are_there_are_noticed(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = operation("process-vm-read", anon(owner, SIZE_BYTES), owner)
    wrong: Callable[..., int] = lambda *_: SIZE_BYTES  # noqa: E731
    monkeypatch.setattr(read, "_call", wrong)
    with pytest.raises(CallFailed, match="other bytes than copied") as raised:
        read.acquire()
    assert raised.value.errno == errno.EIO
