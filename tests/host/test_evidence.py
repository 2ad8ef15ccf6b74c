"""Evidence of live processes: each part against a second source, or a state that the test made."""

import contextlib
import mmap
import os
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from standing_programs import NOBODY, as_nobody, program

from pinstorm import evidence
from pinstorm.errors import UsageError
from pinstorm.evidence import Evidence
from pinstorm.pieces import Piece
from telemetry import cgroup, limits, maps, rdma_resource, smaps, sysctl, user_namespace
from workloads import libc
from workloads.spec import Case, Surroundings

PAGE = mmap.PAGESIZE
SIZE = 16 * PAGE
CASE = Case("io-uring-register", "anon", {"size_bytes": SIZE})
ANONYMOUS = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS
WRITABLE = libc.PROT_READ | libc.PROT_WRITE


def failure(outcome: str | None, region: tuple[int, int] | None = None) -> dict[str, Any]:
    return {"outcome": outcome, "failed_call": "x", "failed_phase": "acquire", "region": region}


def look(outcome: str | None, region: tuple[int, int] | None = None, pid: int = 0) -> Evidence:
    return evidence.collect(CASE, pid or os.getpid(), failure(outcome, region), Surroundings())


@pytest.fixture
def mapped() -> Iterator[Callable[..., int]]:
    """Maps memory that goes with the test: ``mapped(size, prot, flags, fd)`` gives the address."""
    made: list[tuple[int, int]] = []

    def make(
        size_bytes: int,
        prot: int = WRITABLE,
        flags: int = ANONYMOUS,
        fd: int = -1,
        offset_bytes: int = 0,
    ) -> int:
        address = libc.mmap(0, size_bytes, prot, flags, fd, offset_bytes)
        made.append((address, size_bytes))
        return address

    yield make
    for address, size_bytes in made:
        libc.munmap(address, size_bytes)


def fs_type_of(path: Path) -> str:
    """By util-linux, not by us."""
    command = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def only(found: Evidence) -> Piece:
    assert found.pieces is not None
    (piece,) = found.pieces
    return piece


# -- the process --------------------------------------------------------------------------------


def test_limits_are_those_of_the_process_that_was_refused() -> None:
    with program("") as process:
        wanted = {
            resource.RLIMIT_MEMLOCK: (65536, 131072),
            resource.RLIMIT_AS: (1 << 40, resource.RLIM_INFINITY),
        }
        for what, pair in wanted.items():
            resource.prlimit(process.pid, what, pair)
        found = look("ENOMEM", pid=process.pid).process
        assert found is not None
        assert (found.memlock_soft_bytes, found.memlock_hard_bytes) == (65536, 131072)
        assert found.address_space_bytes == 1 << 40
        # second source, of every limit that psutil knows too
        told = limits.read(process.pid)
        for name, number in (("Max open files", psutil.RLIMIT_NOFILE),
                             ("Max stack size", psutil.RLIMIT_STACK)):  # fmt: skip
            assert (told[name].soft, told[name].hard) == psutil.Process(process.pid).rlimit(number)
        assert told["Max locked memory"].soft != limits.read()["Max locked memory"].soft


def test_figures_of_the_process_agree_with_psutil() -> None:
    with program("") as process:
        found = look("ENOMEM", pid=process.pid).process
        other = psutil.Process(process.pid)
        assert found is not None
        assert found.vmsize_bytes == other.memory_info().vms
        assert found.uid == found.real_uid == other.uids().real
        assert found.vma_count == len(
            [one for one in other.memory_maps(grouped=False) if one.path != "[vsyscall]"]
        )
        assert found.vma_limit == sysctl.read_int("vm.max_map_count")
        assert found.name == other.name()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_privileges_of_an_ordinary_user() -> None:
    with program("", **as_nobody()) as process:
        found = look("ENOMEM", pid=process.pid).process
        assert found is not None
        assert (found.uid, found.real_uid) == (NOBODY, NOBODY)
        assert found.cap_ipc_lock is False
        assert found.cap_ipc_lock_permitted is False
        assert found.cap_effective == ()
        assert not found.exempt
        assert found.initial_userns == user_namespace.is_initial()


def test_a_user_namespace_of_its_own_is_told() -> None:
    source = "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0"  # CLONE_NEWUSER
    try:
        with program(source, stderr=subprocess.DEVNULL) as process:
            found = look("ENOMEM", pid=process.pid).process
            assert found is not None
            assert found.cap_ipc_lock is True
            assert found.initial_userns is False
            assert not found.exempt
    except AssertionError:
        if Path("/proc/sys/user/max_user_namespaces").read_text().strip() != "0":
            raise
        pytest.skip("user namespaces are switched off")


# -- pieces -------------------------------------------------------------------------------------


def test_anonymous_memory_is_one_piece(mapped: Callable[..., int]) -> None:
    address = mapped(SIZE)
    piece = only(look("ENOMEM", (address, SIZE)))
    assert (piece.start, piece.end) == (address, address + SIZE)
    assert piece.permissions == "rw-p"
    assert (piece.path, piece.fs_type, piece.dax) == ("", None, None)
    assert {"rd", "wr", "ac"} <= {*piece.flags}
    assert piece.kernel_page_bytes == PAGE


def test_prot_none_in_the_middle_and_a_hole(mapped: Callable[..., int]) -> None:
    address = mapped(SIZE)
    libc.mprotect(address + 4 * PAGE, PAGE, libc.PROT_NONE)
    libc.munmap(address + 8 * PAGE, 2 * PAGE)
    found = look("EFAULT", (address + 100, SIZE - 200)).pieces
    assert found is not None
    seen = [
        ((piece.start - address) // PAGE, (piece.end - address) // PAGE, piece.permissions)
        for piece in found
    ]
    assert seen == [
        (0, 4, "rw-p"),
        (4, 5, "---p"),
        (5, 8, "rw-p"),
        (8, 10, None),
        (10, 16, "rw-p"),
    ]


def test_a_file_that_ends_before_its_mapping(mapped: Callable[..., int]) -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 8 * PAGE)
    address = mapped(8 * PAGE, WRITABLE, libc.MAP_SHARED, fd)
    os.ftruncate(fd, 2 * PAGE + 1)
    os.close(fd)
    piece = only(look("EFAULT", (address, 8 * PAGE)))
    assert piece.past_eof_bytes == 5 * PAGE
    assert piece.path == "/memfd:short (deleted)"
    assert piece.fs_type == "tmpfs"
    assert only(look("EFAULT", (address + PAGE, 2 * PAGE))).past_eof_bytes == 0
    assert only(look("EFAULT", (address + 3 * PAGE, PAGE))).past_eof_bytes == PAGE


@pytest.mark.parametrize(("first", "past"), [(0, 4), (2, 6), (4, 8), (6, 8)])
def test_a_mapping_from_the_middle_of_a_file(
    mapped: Callable[..., int], first: int, past: int
) -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4 * PAGE)
    address = mapped(8 * PAGE, WRITABLE, libc.MAP_SHARED, fd, first * PAGE)
    os.close(fd)
    assert only(look("EFAULT", (address, 8 * PAGE))).past_eof_bytes == past * PAGE


def test_a_file_on_a_file_system(mapped: Callable[..., int], tmp_path: Path) -> None:
    path = tmp_path / "with a space"
    path.write_bytes(b"x" * 4 * PAGE)
    fd = os.open(path, os.O_RDWR)
    address = mapped(4 * PAGE, WRITABLE, libc.MAP_SHARED, fd)
    os.close(fd)
    piece = only(look("EFAULT", (address, 4 * PAGE)))
    assert piece.path == str(path)
    assert piece.dax is False
    assert piece.past_eof_bytes == 0
    assert piece.fs_type == fs_type_of(tmp_path)
    # gone from its directory, and still the same file
    path.unlink()
    assert only(look("EFAULT", (address, 4 * PAGE))).fs_type == piece.fs_type
    path.write_bytes(b"another")
    assert only(look("EFAULT", (address, 4 * PAGE))).past_eof_bytes == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_an_ordinary_user_sees_his_own_files_too() -> None:
    """Without CAP_CHECKPOINT_RESTORE map_files stays shut: by the descriptor it goes as well."""
    source = f"""
        import mmap, os, sys
        sys.path[:0] = {sys.path!r}
        from pinstorm import evidence
        from workloads import libc
        from workloads.spec import Case, Surroundings
        fd = os.memfd_create("mine")
        os.ftruncate(fd, {4 * PAGE})
        address = libc.mmap(0, {4 * PAGE}, 3, libc.MAP_SHARED, fd)
        os.ftruncate(fd, {PAGE})
        failed = dict(outcome="EFAULT", failed_call="x", region=(address, {4 * PAGE}))
        case = Case("io-uring-register", "anon", dict(size_bytes={4 * PAGE}))
        found = evidence.collect(case, os.getpid(), failed, Surroundings())
        (piece,) = found.pieces
        print(piece.past_eof_bytes, piece.fs_type)
        foreign = evidence.collect(case, os.getppid(), failed, Surroundings())
        print(foreign.pieces, foreign.process.memlock_soft_bytes)
        print(*foreign.hidden, sep=chr(10))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        **as_nobody(), capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own, foreign, *hidden = done.stdout.splitlines()
    assert own == f"{3 * PAGE} tmpfs"
    soft = limits.read()[limits.MEMLOCK].soft
    assert foreign == f"None {soft}"
    assert any(
        line.startswith(f"the mappings of process {os.getpid()} cannot be read")
        and "run as root or as that user" in line
        for line in hidden
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_secret_memory(mapped: Callable[..., int]) -> None:
    try:
        fd = libc.memfd_secret()
    except libc.CallFailed as error:
        pytest.skip(f"memfd_secret: errno {error.errno}")
    os.ftruncate(fd, 4 * PAGE)
    address = mapped(4 * PAGE, WRITABLE, libc.MAP_SHARED, fd)
    os.close(fd)
    assert only(look("EFAULT", (address, 4 * PAGE))).fs_type == "secretmem"
    suspects = evidence.of_process(os.getpid(), "io_uring_register", "EFAULT").pieces
    assert suspects is not None
    assert suspects[0].start == address


def test_smaps_of_a_range_agrees_with_the_whole_file(mapped: Callable[..., int]) -> None:
    address = mapped(SIZE)
    libc.view(address, SIZE)[: 5 * PAGE : PAGE] = b"xxxxx"
    (found,) = smaps.read(os.getpid(), address + PAGE, address + 2 * PAGE)
    blocks = re.split(r"(?m)^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text())
    (block,) = [
        block for block in blocks if block.startswith(f"{found.start:08x}-{found.end:08x} ")
    ]
    assert found.start <= address < found.end
    assert f"VmFlags: {' '.join(found.flags)} \n" in block
    assert found.rss_bytes is not None
    assert re.search(rf"^Rss: +{found.rss_bytes // 1024} kB$", block, re.MULTILINE)
    assert found.rss_bytes >= 5 * PAGE


@pytest.mark.parametrize("controller", ["memory", "rdma"])
def test_the_groups_of_another_process_are_those_that_list_it(controller: str) -> None:
    with program("") as process:
        found = cgroup.groups_upwards(controller, process.pid)
        own = [
            path
            for path in found
            if (path / "cgroup.procs").exists()
            and str(process.pid) in (path / "cgroup.procs").read_text().split()
        ]
    if not found:
        pytest.skip("no control group is mounted here")
    # one of v2 and one of v1, where both are there
    hierarchies = {os.stat(path).st_dev for path in found}
    assert len(own) == len(hierarchies)


@pytest.fixture
def memory_leaf() -> Iterator[Path]:
    """A group below our own in which memory can be limited."""
    for own in cgroup.groups_upwards("memory"):
        leaf = own / f"pinstorm-test-{os.getpid()}"
        try:
            leaf.mkdir()
        except OSError:
            continue
        try:
            if any((leaf / name).exists() for name in MEMORY_LIMIT_FILES):
                yield leaf
                return
        finally:
            leaf.rmdir()
    pytest.skip("no control group with a memory limit can be made here")


MEMORY_LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")


def test_a_memory_limit_that_was_set_is_found(memory_leaf: Path) -> None:
    with program("") as process:
        for name in MEMORY_LIMIT_FILES:
            if (memory_leaf / name).exists():
                (memory_leaf / name).write_text(str(256 << 20))
        (memory_leaf / "cgroup.procs").write_text(str(process.pid))
        groups = look("ENOMEM", pid=process.pid).groups
        assert groups is not None
        (found,) = [group for group in groups if group.group == str(memory_leaf)]
        assert (found.controller, found.limit) == ("memory", 256 << 20)
        assert found.used is not None
        assert found.failures == 0
        # not for a refusal that memory cannot explain
        assert look("EOPNOTSUPP", pid=process.pid).groups is None


# -- what is looked at for which failure --------------------------------------------------------


def test_the_machine_is_looked_at_where_memory_can_be_the_cause(
    mapped: Callable[..., int],
) -> None:
    region = (mapped(SIZE), SIZE)
    assert look("EOPNOTSUPP", region).machine is None
    machine = look("ENOMEM", region).machine
    assert machine is not None
    assert machine.available_bytes is not None
    assert abs(machine.available_bytes - psutil.virtual_memory().available) < 1 << 30
    for page_bytes, free_bytes in machine.free_huge_bytes.items():
        folder = Path(f"/sys/kernel/mm/hugepages/hugepages-{int(page_bytes) // 1024}kB")
        free = int((folder / "free_hugepages").read_text())
        assert free_bytes <= free * int(page_bytes)


def test_nothing_of_rdma_is_looked_at_for_others() -> None:
    found = look("ENOMEM")
    assert found.device is None
    assert not [group for group in found.groups or () if group.controller == "rdma"]


def test_a_device_that_is_not_there() -> None:
    case = Case("rdma-register", "anon", {"size_bytes": SIZE, "access": "rw"})
    around = Surroundings(device="gone0", device_can={"odp": True, "max_mr": 5})
    found = evidence.collect(case, os.getpid(), failure("EIO"), around).device
    assert found is not None
    assert not found.present
    assert (found.odp, found.max_mr, found.mrs) == (True, 5, None)


def test_rdma_is_not_started_where_the_limit_says_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(rdma_resource, "read", lambda: started.append(1))
    case = Case("rdma-register", "anon", {"size_bytes": 1 << 20, "access": "rw"})
    around = Surroundings(device="gone0")
    for limit_bytes in (65536, 2 << 20):
        started.clear()
        small = f"import resource as r; r.setrlimit(r.RLIMIT_MEMLOCK, ({limit_bytes},) * 2)"
        with program(small, **as_nobody()) as process:
            found = evidence.collect(case, process.pid, failure("ENOMEM"), around).process
            assert found is not None
            assert found.memlock_soft_bytes == limit_bytes
            assert bool(started) is (found.exempt or limit_bytes > case.size_bytes)


def test_a_process_that_has_ended_is_told_and_not_raised() -> None:
    with program("") as process:
        pid = process.pid
    found = look("ENOMEM", (PAGE, SIZE), pid)
    assert (found.process, found.pieces) == (None, None)
    assert f"the mappings of process {pid} cannot be read" in found.hidden[0]


def test_looking_changes_nothing_and_pins_nothing(mapped: Callable[..., int]) -> None:
    address = mapped(SIZE)
    before = maps.read_text()
    open_before = sorted(os.listdir("/proc/self/fd"))
    first = look("ENOMEM", (address, SIZE))
    assert first.process is not None
    assert first.process.vmpin_bytes == 0
    assert sorted(os.listdir("/proc/self/fd")) == open_before
    # the interpreter may grow its heap
    assert abs(maps.read_text().count("\n") - before.count("\n")) <= 2


# -- somebody else's process --------------------------------------------------------------------


def test_a_process_that_is_not_there_is_a_usage_error() -> None:
    with program("") as process:
        pid = process.pid
    with pytest.raises(UsageError, match=f"process {pid} is not there"):
        evidence.of_process(pid, "ibv_reg_mr", "ENOMEM")


def test_mappings_of_another_that_no_pin_can_take(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    if fs_type_of(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} is on a file system without dirty tracking")
    path.write_bytes(bytes(4 * PAGE))
    source = f"""
        import mmap, os
        fd = os.open({str(path)!r}, os.O_RDWR)
        shared = mmap.mmap(fd, {4 * PAGE})
        private = mmap.mmap(fd, {4 * PAGE}, mmap.MAP_PRIVATE)
        readable = mmap.mmap(fd, {4 * PAGE}, mmap.MAP_SHARED, mmap.PROT_READ)
        memfd = os.memfd_create("fine")
        os.ftruncate(memfd, {4 * PAGE})
        fine = mmap.mmap(memfd, {4 * PAGE})
    """
    with program(source) as process:
        found = evidence.of_process(process.pid, "ibv_reg_mr", "EFAULT")
        assert found.process is not None
        assert found.process.pid == process.pid
        assert found.pieces is not None
        (piece,) = found.pieces
        assert (piece.path, piece.permissions) == (str(path), "rw-s")
        assert found.device is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_somebody_elses_process_says_what_to_do() -> None:
    source = f"""
        import os, sys
        sys.path[:0] = {sys.path!r}
        from pinstorm import evidence
        found = evidence.of_process(os.getppid(), "io_uring_register", "EFAULT")
        print(found.pieces, found.process.vmpin_bytes, *found.hidden, sep=chr(10))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        **as_nobody(), capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, pinned, *hidden = done.stdout.splitlines()
    assert (found, pinned) == ("None", "0")
    assert {line.split(" of process")[0] for line in hidden} >= {
        "the mappings",
        "the user namespace",
        "the open files",
    }
    assert all("run as root or as that user" in line for line in hidden), hidden


def test_what_a_users_others_hold_counts_for_a_shared_budget() -> None:
    """A ring of one process, a refusal in another of the same user."""
    holder = f"""
        import mmap, sys
        sys.path[:0] = {sys.path!r}
        from workloads import libc
        ring = libc.io_uring_setup(4)
        address = libc.mmap(0, {SIZE}, 3, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
        assert libc.io_uring_register(
            ring, libc.IORING_REGISTER_BUFFERS, libc.iovecs([(address, {SIZE})]), 1) == 0
    """
    with contextlib.ExitStack() as stack:
        try:
            one = stack.enter_context(program(holder, **as_nobody(), stderr=subprocess.DEVNULL))
        except AssertionError:
            pytest.skip("no ring with a registered buffer can be made here")
        other = stack.enter_context(program("", **as_nobody()))
        found = look("ENOMEM", pid=other.pid)
        assert found.process is not None
        if found.process.exempt:
            pytest.skip("this user is not bound by the limit")
        assert found.holdings is not None
        held = [holding for holding in found.holdings if holding.pid == one.pid]
        assert [(holding.kind, holding.size_bytes) for holding in held] == [("io-uring", SIZE)]
        # what it holds itself is no other's
        seen = look("ENOMEM", pid=one.pid)
        assert seen.holdings is not None
        assert one.pid not in {holding.pid for holding in seen.holdings}
        assert seen.own_holdings is not None
        assert [(held.kind, held.size_bytes) for held in seen.own_holdings] == [("io-uring", SIZE)]
        assert found.own_holdings == ()
        # not for a refusal that no budget explains
        assert look("EINTR", pid=other.pid).holdings is None


def test_a_ring_that_several_processes_reach_counts_once() -> None:
    holder = f"""
        import mmap, os, sys
        sys.path[:0] = {sys.path!r}
        from workloads import libc
        ring = libc.io_uring_setup(4)
        address = libc.mmap(0, {SIZE}, 3, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
        assert libc.io_uring_register(
            ring, libc.IORING_REGISTER_BUFFERS, libc.iovecs([(address, {SIZE})]), 1) == 0
        inherited = os.fork()
        if not inherited:
            os.close(1)
            sys.stdin.read()
            os._exit(0)
    """
    with contextlib.ExitStack() as stack:
        try:
            one = stack.enter_context(program(holder, **as_nobody(), stderr=subprocess.DEVNULL))
        except AssertionError:
            pytest.skip("no ring with a registered buffer can be made here")
        (child,) = psutil.Process(one.pid).children()
        other = stack.enter_context(program("", **as_nobody()))
        if look("ENOMEM", pid=other.pid).holdings is None:
            pytest.skip("this user is not bound by the limit")
        for pid in (one.pid, child.pid, other.pid):
            seen = look("ENOMEM", pid=pid)
            assert seen.holdings is not None
            assert seen.own_holdings is not None
            every = (*seen.holdings, *seen.own_holdings)
            held = [held for held in every if held.pid in (one.pid, child.pid)]
            assert [(held.kind, held.size_bytes) for held in held] == [("io-uring", SIZE)], pid


def test_names_that_speak_to_a_terminal_are_made_harmless(
    mapped: Callable[..., int], tmp_path: Path
) -> None:
    path = tmp_path / "a\x1b[31mred"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file:
        address = mapped(PAGE, WRITABLE, libc.MAP_SHARED, file.fileno())
    assert only(look("EFAULT", (address, PAGE))).path.endswith("a?[31mred")
    named = r"""
        with open("/proc/self/comm", "w") as comm:
            comm.write("x\x1b]0;y\x07")
    """
    with program(named) as one:
        found = evidence.of_process(one.pid, "io_uring_register", "EFAULT")
        assert found.process is not None
        assert found.process.name == "x?]0;y?"


def test_a_users_others_do_not_count_for_whom_the_limit_does_not_bind() -> None:
    found = look("ENOMEM")
    if found.process is None or not found.process.exempt:
        pytest.skip("this process has no CAP_IPC_LOCK")
    assert found.holdings is None
