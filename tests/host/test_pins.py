"""``pinstorm pins`` on this kernel, beside processes that the test itself made hold pins."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinstorm import census
from pinstorm.census import Held, Holder
from telemetry import pagemap, process_fds, xdp_diag
from telemetry.vmstat import Counters

Need = Callable[[bool, str], None]

SCRIPT = Path(sys.executable).parent / "pinstorm"
HOLDER = Path(__file__).with_name("pin_holder.py")
NOBODY = 65534
MIB = 1 << 20
RING_BYTES = 64 * MIB
SMALL_BYTES = 4 * MIB


class Started:
    """Processes of pin_holder.py, ended with the test."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def hold(self, kind: str, size_bytes: int, uid: int | None = None) -> int:
        command = [sys.executable, str(HOLDER), kind, str(size_bytes)]
        command += [] if uid is None else [str(uid)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.running.append(process)
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        if "refused" in answer:
            pytest.skip(f"{kind} of {size_bytes} bytes: {answer['refused']}")
        pid: int = answer["ready"]
        return pid

    def end(self) -> None:
        for process in self.running:
            process.communicate()
        self.running = []


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    started = Started()
    yield started
    started.end()


@pytest.fixture
def root(need: Need) -> None:
    need(os.geteuid() == 0, "looks into processes of other users: needs root")


def of_process(found: tuple[Holder, ...], pid: int) -> dict[str, Held]:
    (holder,) = [holder for holder in found if holder.pid == pid]
    return {held.kind: held for held in holder.held}


def pins(*words: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "pins", *words], capture_output=True, text=True, user=uid)


def document(*words: str, uid: int | None = None) -> dict[str, Any]:
    done = pins("--json", *words, uid=uid)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def kinds_in(found: dict[str, Any], pid: int) -> dict[str, dict[str, Any]]:
    (holder,) = [holder for holder in found["holders"] if holder["pid"] == pid]
    return {held["kind"]: held for held in holder["held"]}


def test_a_ring_is_named_with_its_size_and_pages(root: None, need: Need, start: Started) -> None:
    need(pagemap.visible(), "page frame numbers are for CAP_SYS_ADMIN only")
    pid = start.hold("io-uring", RING_BYTES)
    held = of_process(census.holders(thorough=True)[0], pid)
    assert list(held) == ["io-uring"], "VmPin of a ring must not be counted again"
    ring = held["io-uring"]
    assert (ring.count, ring.size_bytes) == (1, RING_BYTES)
    assert (ring.pages, ring.most_pages) == (RING_BYTES // 4096, RING_BYTES // 4096)
    quick = of_process(census.holders()[0], pid)["io-uring"]
    assert (quick.size_bytes, quick.pages, quick.most_pages) == (RING_BYTES, None, ring.pages)


def test_a_ring_over_huge_pages_has_no_known_number_of_pins(
    root: None, need: Need, start: Started
) -> None:
    need(pagemap.visible(), "page frame numbers are for CAP_SYS_ADMIN only")
    pid = start.hold("io-uring-thp", SMALL_BYTES)
    ring = of_process(census.holders(thorough=True)[0], pid)["io-uring"]
    assert (ring.size_bytes, ring.pages, ring.most_pages) == (SMALL_BYTES, None, 1024)


def test_the_same_buffer_twice_counts_twice(root: None, need: Need, start: Started) -> None:
    need(pagemap.visible(), "page frame numbers are for CAP_SYS_ADMIN only")
    pid = start.hold("io-uring-twice", SMALL_BYTES)
    ring = of_process(census.holders(thorough=True)[0], pid)["io-uring"]
    assert (ring.count, ring.size_bytes, ring.pages) == (2, 2 * SMALL_BYTES, 2048)


def test_packet_memory_is_named(root: None, start: Started) -> None:
    """Its size where the kernel has xsk_diag; without it a socket's protocol still tells."""
    pid = start.hold("xdp-umem", SMALL_BYTES)
    found, hidden = census.holders()
    umem = of_process(found, pid)["xdp-umem"]
    assert umem.count == 1
    try:
        xdp_diag.read()
    except xdp_diag.NotOffered:
        assert (umem.size_bytes, umem.pages, umem.most_pages) == (None, None, None)
        assert any("xsk_diag" in sentence for sentence in hidden)
    else:
        assert (umem.size_bytes, umem.pages) == (SMALL_BYTES, SMALL_BYTES // 4096)


def test_mlock_is_listed_and_pins_nothing(root: None, start: Started) -> None:
    pid = start.hold("mlock", MIB)
    lock = of_process(census.holders()[0], pid)["mlock"]
    assert (lock.size_bytes, lock.pages, lock.most_pages) == (MIB, 0, 0)


def test_accounted_and_outstanding_agree(root: None, need: Need, start: Started) -> None:
    """What the counters gain by a ring is what the census says that it holds."""
    need(pagemap.visible(), "page frame numbers are for CAP_SYS_ADMIN only")
    with Counters() as counters:
        need(counters.refreshes, "/proc/sys/vm/stat_refresh cannot be read: needs root")
        need(counters.snapshot().acquired is not None, "this kernel does not count pins")
    deadline = 10
    for _ in range(deadline):  # others may pin and unpin meanwhile
        before = census.census()
        pid = start.hold("io-uring", RING_BYTES)
        after = census.census()
        start.end()
        assert before.outstanding_pages is not None
        assert after.outstanding_pages is not None
        gained = after.outstanding_pages - before.outstanding_pages
        told = of_process(after.holders, pid)["io-uring"].pages
        if gained == told == RING_BYTES // 4096:
            assert after.accounted_pages - before.accounted_pages >= gained - RING_BYTES // 8192
            return
    pytest.fail(f"in {deadline} tries the counters gained {gained} pages, the ring has {told}")


def test_of_one_user(root: None, start: Started) -> None:
    ours, theirs = start.hold("io-uring", SMALL_BYTES), start.hold("io-uring", MIB, NOBODY)
    for words in (("--uid", str(NOBODY)), ("--user", str(NOBODY))):
        found = document(*words)
        assert ours not in [holder["pid"] for holder in found["holders"]]
        assert kinds_in(found, theirs)["io-uring"]["size_bytes"] == MIB
        assert found["unaccounted_pages"] is None
    assert {holder.uid for holder in census.holders(NOBODY)[0]} == {NOBODY}


def test_an_ordinary_user_sees_its_own_and_says_what_it_cannot(root: None, start: Started) -> None:
    ours, theirs = start.hold("io-uring", SMALL_BYTES), start.hold("io-uring", MIB, NOBODY)
    found = document(uid=NOBODY)
    ring = kinds_in(found, theirs)["io-uring"]
    assert (ring["size_bytes"], ring["pages"], ring["most_pages"]) == (MIB, None, 256)
    assert found["bound_pages"] > 0
    assert any("other users could not be looked into" in one for one in found["hidden"])
    # What is not seen is not claimed: at most what VmPin says, where the kernel charges rings.
    others = [holder for holder in found["holders"] if holder["pid"] == ours]
    assert all(held["pages"] is None for holder in others for held in holder["held"])


def test_a_shared_ring_counts_once(root: None, start: Started) -> None:
    """A forked child has the descriptor, too."""
    pid = start.hold("io-uring-forked", MIB)
    found, _ = census.holders()
    assert of_process(found, pid)["io-uring"].size_bytes == MIB
    (child,) = [holder for holder in found if f"process {pid}" in holder.held[0].detail]
    assert (child.held[0].pages, child.held[0].most_pages) == (0, 0)


def test_socket_protocols_are_told() -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        target = process_fds.read()[made.fileno()]
        assert process_fds.socket_inode(target) == os.fstat(made.fileno()).st_ino
        assert process_fds.socket_protocol("self", made.fileno()) == "UDP"


def test_the_text_fits(start: Started) -> None:
    pid = start.hold("io-uring", MIB)
    done = pins()
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert str(pid) in done.stdout
    assert "1 MiB" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--user", "nobody-here"), "no user is called 'nobody-here'"),
        (("--user", "root", "--uid", "0"), "give one of them"),
        (("--uid", "-1"), "--uid"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], says: str) -> None:
    done = pins(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("pinstorm: ")
    assert says in sentence
