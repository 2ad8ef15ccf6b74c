"""``pinstorm doctor`` on this kernel: what it predicts happens, and it changes nothing.

As an ordinary user under a small RLIMIT_MEMLOCK: the size at which a registration is refused is
named beforehand, and a run fails there and not below.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import ENOMEM
from pathlib import Path
from typing import Any

import pytest

from pinstorm.doctor.finding import Status, Topic
from pinstorm.errors import UsageError
from pinstorm.lock import only_run, running
from pinstorm.needs.memory import has_capability
from telemetry import cgroup

Need = Callable[[bool, str], None]

SCRIPT = Path(sys.executable).parent / "pinstorm"
HOLDER = Path(__file__).with_name("pin_holder.py")
ROOT = Path(__file__).parents[2]
NOBODY = 65534
KIB = 1 << 10
MIB = 1 << 20
PAGE = 4096
# Others on this machine may run pinstorm as well; while one does, doctor does not ask the kernel.
TURN_DEADLINE_S = 600.0
BUSY = "another pinstorm run"

# The command line, everything loaded, and begun when it is told.
WAITS = """
import sys
from pinstorm import cli, session
from pinstorm.report import doctor_listing
print("ready", flush=True)
sys.stdin.readline()
sys.argv[0] = "pinstorm"
cli.main()
"""

SUITE = """
[run]
name = "around-the-limit"
repeat = 0

[[matrix]]
workload = "{workload}"
memory = "anon"
size = [{sizes}]
"""

# mlock() of so many bytes, then of a page more.
MLOCK = """
import sys
from workloads import libc
from workloads.spec import CallFailed
for size in map(int, sys.argv[1:]):
    address = libc.mmap(0, size, libc.PROT_READ | libc.PROT_WRITE,
                        libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
    try:
        libc.mlock(address, size)
        print(0)
    except CallFailed as error:
        print(error.errno)
    libc.munmap(address, size)
"""


@pytest.fixture
def place(need: Need) -> Iterator[Path]:
    """A directory of an ordinary user that nobody else of this machine uses."""
    need(os.geteuid() == 0, "becoming another user needs root")
    try:
        subprocess.run([SCRIPT, "--help"], capture_output=True, user=NOBODY, cwd="/", check=True)
    except (OSError, subprocess.CalledProcessError) as error:  # a checkout below root's home
        need(False, f"uid {NOBODY} cannot run {SCRIPT}: {error}")
    directory = Path(tempfile.mkdtemp(prefix="pinstorm-test-"))
    try:
        os.chown(directory, NOBODY, NOBODY)
        yield directory
    finally:
        shutil.rmtree(directory)


def as_nobody(*words: str | Path, cwd: Path, limit_bytes: int | None) -> Any:
    """Run it as an ordinary user under that limit, to its end."""
    process = as_user(*words, cwd=cwd, limit_bytes=limit_bytes)
    with process:
        output, errors = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def as_user(
    *words: str | Path, cwd: Path, limit_bytes: int | None, uid: int = NOBODY
) -> subprocess.Popen[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit_bytes, limit_bytes))

    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "HOME": str(cwd),
        "XDG_CACHE_HOME": str(cwd / "cache"),
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        user=uid,
        group=uid,
        extra_groups=[],
        preexec_fn=limit,
    )


def doctor(cwd: Path, limit_bytes: int | None) -> dict[str, Any]:
    """As that user, when no run is under way: while one is, doctor does not ask the kernel."""
    deadline = time.monotonic() + TURN_DEADLINE_S
    while True:
        done = in_turn("doctor", "--json", cwd=cwd, limit_bytes=limit_bytes)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        if finding(document, "memory-charged")["figures"]["asked_kernel"]:
            return document
        assert time.monotonic() < deadline, finding(document, "memory-charged")


def looked(cwd: Path, limit_bytes: int) -> dict[str, Any]:
    """As that user, whether a run is under way or not."""
    done = as_nobody(SCRIPT, "doctor", "--json", cwd=cwd, limit_bytes=limit_bytes)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def in_turn(*words: str, cwd: Path, limit_bytes: int | None, uid: int = NOBODY) -> Any:
    """The command, begun in the moment in which no other run has the machine."""
    process = as_user(
        sys.executable, "-c", WAITS, *words, cwd=cwd, limit_bytes=limit_bytes, uid=uid
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        wait_for_others()
        output, errors = process.communicate("\n")
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def wait_for_others() -> None:
    """Until the machine was ours for a moment."""
    deadline = time.monotonic() + TURN_DEADLINE_S
    while True:
        try:
            with only_run():
                return
        except UsageError:
            assert time.monotonic() < deadline, "another run has the machine"
            time.sleep(0.01)


def finding(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in document["findings"] if one["id"] == name]
    return dict(found)


def budget(document: Mapping[str, Any], mechanism: str) -> dict[str, Any]:
    (found,) = [one for one in document["budget"] if one["mechanism"] == mechanism]
    return dict(found)


def outcomes(
    place: Path, workload: str, sizes: list[int], limit_bytes: int | None, suite: str = SUITE
) -> dict[int, str]:
    """By size, of a real run as that user."""
    path = place / f"{workload}.toml"
    texts = ", ".join(f'"{size}B"' for size in sizes)
    path.write_text(suite.format(workload=workload, sizes=texts))
    uid = NOBODY if suite is SUITE else 0
    while True:
        words = ("run", str(path), "--json", "--no-refresh")
        done = in_turn(*words, cwd=place, limit_bytes=limit_bytes, uid=uid)
        if BUSY not in done.stderr:
            break
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == len(sizes), done.stderr
    return {record["params"]["size_bytes"]: record["outcome"] for record in records}


@contextmanager
def held(size_bytes: int) -> Iterator[None]:
    """Another process of the user has so much registered with an io_uring."""
    if not size_bytes:
        yield
        return
    holder = subprocess.Popen(
        [sys.executable, str(HOLDER), "io-uring", str(size_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )
    with holder:
        assert holder.stdout is not None
        assert "ready" in json.loads(holder.stdout.readline())
        yield
        holder.communicate()


@pytest.mark.parametrize(
    ("limit_bytes", "held_bytes"), [(64 * KIB, 0), (1000 * KIB, 0), (256 * KIB, 96 * KIB)]
)
def test_io_uring_register_fails_at_the_size_that_is_predicted(
    place: Path, need: Need, limit_bytes: int, held_bytes: int
) -> None:
    with held(held_bytes):
        predicted = doctor(place, limit_bytes)
        need(finding(predicted, "io-uring")["figures"]["usable"], "io_uring is not to be had")
        row = budget(predicted, "io-uring")
        assert row["bound_by"] == "memlock"
        assert row["fails_from_bytes"] == row["largest_bytes"] + PAGE
        # what another process holds is missing, and the ring's own pages where they are charged
        charged = finding(predicted, "memory-charged")
        used_bytes = charged["levels"]["used_bytes"]
        assert limit_bytes - used_bytes - 4 * PAGE <= row["largest_bytes"]
        assert row["largest_bytes"] <= limit_bytes - used_bytes <= limit_bytes - held_bytes
        assert charged["levels"]["holders"] == (1 if held_bytes else 0)
        sizes = [PAGE, row["largest_bytes"], row["largest_bytes"] + 1, row["fails_from_bytes"]]
        seen = outcomes(place, "io-uring-register", sizes, limit_bytes)
    refused = row["errno"]
    assert [seen[size] for size in sizes] == ["ok", "ok", refused, refused]


def test_zerocopy_fails_at_the_size_that_is_predicted(place: Path, need: Need) -> None:
    """Which sends less than a page beyond it, and has it charged."""
    predicted = doctor(place, 64 * KIB)
    need(finding(predicted, "msg-zerocopy")["figures"]["usable"], "no MSG_ZEROCOPY here")
    row = budget(predicted, "msg-zerocopy")
    sizes = [row["largest_bytes"], row["fails_from_bytes"]]
    seen = outcomes(place, "msg-zerocopy", sizes, 64 * KIB)
    assert [seen[size] for size in sizes] == ["ok", row["errno"]] == ["ok", "ENOBUFS"]


def test_af_xdp_fails_at_the_size_that_is_predicted(place: Path, need: Need) -> None:
    """The run is root's, which gives the user CAP_NET_RAW, and the same limit."""
    row = budget(doctor(place, 64 * KIB), "af-xdp")
    need(has_capability("CAP_NET_RAW"), "AF_XDP sockets need CAP_NET_RAW")
    sizes = [row["largest_bytes"], row["fails_from_bytes"]]
    suite = SUITE + f'user = {NOBODY}\nmemlock = "64KiB"\n'
    seen = outcomes(place, "af-xdp-umem", sizes, None, suite)
    need("skip" not in seen.values() and None not in seen.values(), f"no AF_XDP here: {seen}")
    assert [seen[size] for size in sizes] == ["ok", row["errno"]] == ["ok", "ENOBUFS"]


def test_mlock_fails_at_the_size_that_is_predicted(place: Path) -> None:
    row = budget(looked(place, 64 * KIB), "mlock")
    sizes = [str(row["largest_bytes"]), str(row["fails_from_bytes"])]
    done = as_nobody(sys.executable, "-c", MLOCK, *sizes, cwd=place, limit_bytes=64 * KIB)
    assert done.stdout.split() == ["0", str(ENOMEM)], done.stderr
    assert row["errno"] == "ENOMEM"


def test_a_limit_of_nothing(place: Path) -> None:
    document = looked(place, 0)
    for mechanism, errno in (("io-uring", "ENOMEM"), ("rdma", "EPERM"), ("mlock", "EPERM")):
        row = budget(document, mechanism)
        assert (row["largest_bytes"], row["fails_from_bytes"], row["errno"]) == (0, PAGE, errno)
    # what is charged nothing is not bounded by it
    assert budget(document, "direct-io")["bound_by"] != "memlock"


def test_the_command_raises_the_limit_of_what_comes_next(place: Path, need: Need) -> None:
    """It names the process that started doctor: what that starts next has the limit."""
    need(has_capability("CAP_SYS_RESOURCE"), "raising a hard limit needs CAP_SYS_RESOURCE")
    ask = f"{SCRIPT} doctor --json"
    shell = f"ulimit -l 64; {ask}; read line; {ask}"
    with subprocess.Popen(
        ["/bin/sh", "-c", shell],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=place,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={**os.environ, "HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = document_of(process.stdout)
        command = finding(first, "memlock-limit")["command"]
        subprocess.run(["/bin/sh", "-c", command], check=True)
        process.stdin.write("\n")
        process.stdin.flush()
        second = document_of(process.stdout)
    assert finding(first, "memlock-limit")["status"] == "limited"
    assert finding(second, "memlock-limit")["status"] == "ok"
    assert finding(second, "memlock-limit")["figures"] == {"soft_bytes": -1, "hard_bytes": -1}


def document_of(stream: Any) -> dict[str, Any]:
    """The next document that doctor --json prints: it ends with a brace of its own."""
    lines = []
    for line in stream:
        lines.append(line)
        if line == "}\n":
            return dict(json.loads("".join(lines)))
    raise AssertionError("".join(lines))


# -- what it says of others ---------------------------------------------------------------------


def test_an_ordinary_user_is_told_what_it_cannot_see(place: Path) -> None:
    document = doctor(place, 64 * KIB)
    for name in ("counters-refresh", "page-frames", "memlock-limit", "cap-ipc-lock"):
        assert finding(document, name)["status"] == "limited", finding(document, name)
    assert any("root" in sentence for sentence in finding(document, "counters-refresh")["unseen"])
    assert finding(document, "counters-move")["figures"] == {"moving": True}


def test_a_user_namespace_of_its_own(place: Path, need: Need) -> None:
    """There CAP_IPC_LOCK is effective, and lifts nothing."""
    probe = as_nobody("unshare", "-r", "true", cwd=place, limit_bytes=None)
    need(probe.returncode == 0, f"unshare -r: {probe.stderr}")
    done = as_nobody("unshare", "-r", SCRIPT, "doctor", "--json", cwd=place, limit_bytes=64 * KIB)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert finding(document, "user-namespace")["status"] == "limited"
    capability = finding(document, "cap-ipc-lock")
    assert capability["figures"]["effective"]
    assert not capability["figures"]["counts"]
    assert "initial one" in capability["seen"]
    assert budget(document, "rdma")["largest_bytes"] == 64 * KIB
    assert budget(document, "rdma")["bound_by"] == "memlock"


def test_a_pid_namespace_whose_proc_is_another_ones(place: Path, need: Need) -> None:
    """There /proc/PID of our own number is somebody else: root's first process, say."""
    probe = subprocess.run(["unshare", "-pf", "true"], capture_output=True, text=True)
    need(probe.returncode == 0, f"unshare -p: {probe.stderr}")
    user = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    script = f"ulimit -l 64; exec unshare -pf --kill-child {user} {SCRIPT} doctor --json"
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    memlock = finding(document, "memlock-limit")
    assert memlock["figures"] == {"soft_bytes": 64 * KIB, "hard_bytes": 64 * KIB}
    assert memlock["command"] is None, "what started it has no number here"
    assert not finding(document, "cap-ipc-lock")["figures"]["effective"]
    assert document["where"]["parent"] is None
    assert budget(document, "rdma")["largest_bytes"] == 64 * KIB


def test_a_loopback_of_this_network_namespace(need: Need) -> None:
    """/sys still shows that of another, which is up."""
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    need(probe.returncode == 0, f"unshare -n: {probe.stderr}")
    words = ["unshare", "-n", SCRIPT, "doctor", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = finding(json.loads(done.stdout), "msg-zerocopy")
    assert (found["status"], found["command"]) == ("missing", "ip link set lo up")
    script = f"{found['command']} && exec {SCRIPT} doctor --json"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, check=True)
    assert finding(json.loads(done.stdout), "msg-zerocopy")["status"] == "ok"


def test_root_in_the_initial_namespace_is_free(need: Need) -> None:
    need(has_capability("CAP_IPC_LOCK"), "CAP_IPC_LOCK is not to be had")
    done = subprocess.run([SCRIPT, "doctor", "--json"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert finding(document, "cap-ipc-lock")["figures"]["counts"]
    assert {row["bound_by"] for row in document["budget"]} <= {"memory", "cgroup", "module", None}


LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")


@pytest.fixture
def group(need: Need) -> Iterator[Path]:
    """A control group of 512 MiB, of whichever hierarchy limits memory here."""
    need(os.geteuid() == 0, "making a control group needs root")
    made = limited_group()
    need(made is not None, "no control group may limit memory here")
    assert made is not None
    yield made
    made.rmdir()


def limited_group() -> Path | None:
    for parent in reversed(cgroup.groups_upwards("memory")):
        made = parent / f"pinstorm-test-{os.getpid()}"
        with suppress(OSError):
            made.mkdir()
            for name in LIMIT_FILES:
                if (made / name).exists():
                    (made / name).write_text(str(512 * MIB))
                    return made
            made.rmdir()
    return None


def test_a_memory_cgroup(group: Path) -> None:
    script = f"echo $$ > {group}/cgroup.procs && exec {SCRIPT} doctor --json"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    found = finding(document, "memory-cgroup")
    assert (found["status"], found["figures"]) == ("limited", {"limit_bytes": 512 * MIB})
    assert str(group) in found["command"]
    row = budget(document, "direct-io")
    assert (row["bound_by"], row["errno"]) == ("cgroup", None)
    assert 256 * MIB < row["largest_bytes"] < 512 * MIB


def test_a_run_that_is_under_way_is_left_alone(place: Path) -> None:
    wait_for_others()
    with only_run():
        assert running() == os.getpid()
        document = looked(place, 64 * KIB)
    moving = finding(document, "counters-move")
    assert (moving["status"], moving["figures"]) == ("limited", {})
    assert f"pid {os.getpid()}" in moving["seen"]
    assert not finding(document, "memory-charged")["figures"]["asked_kernel"]
    # the most that a ring can be charged is taken off
    assert budget(document, "io-uring")["largest_bytes"] == 56 * KIB


@pytest.mark.parametrize("hidden", ["/sys", "/proc", "/dev"])
def test_an_odd_host(need: Need, hidden: str) -> None:
    """Every room is looked into, or it is told why not."""
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    need(probe.returncode == 0, f"unshare -m: {probe.stderr}")
    script = f"mount -t tmpfs none {hidden} && exec {SCRIPT} doctor --json"
    done = subprocess.run(
        ["unshare", "-m", "/bin/sh", "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert {one["topic"] for one in document["findings"]} == {*Topic}
    unseen = {one["id"] for one in document["findings"] if one["id"].endswith("-unseen")}
    if hidden == "/sys":
        for name in ("thp", "hugepages-2MiB", "rdma-devices", "iommu"):
            assert finding(document, name)["status"] == "missing"
        for name in ("memory-cgroup", "rdma-cgroup"):
            # that no limit is seen does not say that there is none
            member = any(not group.controllers for group in cgroup.read())
            assert (finding(document, name)["status"] == "limited") == member
        assert unseen == set()
    if hidden == "/proc":
        assert unseen >= {"memory-unseen", "interfaces-unseen", "counters-unseen"}
        # what a process knows of itself all the same
        soft_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        found = budget(document, "rdma")["largest_bytes"]
        assert found == (None if soft_bytes == -1 else soft_bytes // PAGE * PAGE)
        assert "could not be read" in finding(document, "cap-ipc-lock")["seen"]
        assert budget(document, "direct-io")["bound_by"] is None


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("doctor >&-", 0, ""),
        ("doctor --json >&-", 0, ""),
        ("doctor --against - <&-", 2, "standard input is no output of pinstorm doctor"),
        ("doctor --against - < /dev/zero", 2, "is no output of pinstorm doctor"),
        ("doctor --against nothing 2>&-", 2, ""),
        ("doctor > /dev/full", 4, "the output cannot be written"),
    ],
)
def test_streams_that_are_closed_or_never_end(script: str, code: int, words: str) -> None:
    done = subprocess.run(["/bin/sh", "-c", f"{SCRIPT} {script}"], capture_output=True, text=True)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == (1 if words else 0)
    assert "pinstorm:" not in done.stdout


def test_ctrl_c(tmp_path: Path) -> None:
    there = tmp_path / "there"
    os.mkfifo(there)
    with subprocess.Popen(
        [SCRIPT, "doctor", "--against", there],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        with there.open("w"):  # which returns once it is opened there, too
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate()
    assert (process.returncode, output, errors) == (130, "", "pinstorm: interrupted\n")


def test_a_current_directory_that_is_gone(place: Path) -> None:
    """The rest can be seen all the same."""
    script = f"mkdir gone && cd gone && rmdir ../gone && exec {SCRIPT} doctor --json"
    done = as_nobody("/bin/sh", "-c", script, cwd=place, limit_bytes=64 * KIB)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert not [one["id"] for one in document["findings"] if one["id"].endswith("-unseen")]
    assert finding(document, "scratch")["figures"] == {"directories": []}


def test_a_user_without_name_home_and_environment(place: Path) -> None:
    words = ("env", "-i", SCRIPT, "doctor", "--json")
    done = as_user(*words, cwd=place, limit_bytes=64 * KIB, uid=54321)
    with done:
        output, errors = done.communicate()
    assert (done.returncode, errors) == (0, "")
    document = json.loads(output)
    assert document["where"]["user"] is None
    assert "--clear-groups" in finding(document, "cap-ipc-lock")["command"]


def test_the_capability_lifts_the_limit(place: Path, need: Need) -> None:
    """As the command gives it: to a program that is no root."""
    need(has_capability("CAP_IPC_LOCK"), "CAP_IPC_LOCK is not to be had")
    command = finding(looked(place, 64 * KIB), "cap-ipc-lock")["command"]
    assert command.endswith(" COMMAND")
    ask = command.removesuffix("COMMAND") + f"{SCRIPT} doctor --json"
    script = f"ulimit -l 64; exec {ask}"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["where"]["uid"] == NOBODY
    assert finding(document, "memlock-limit")["figures"]["soft_bytes"] == 64 * KIB
    assert finding(document, "cap-ipc-lock")["figures"]["counts"]
    assert budget(document, "rdma")["bound_by"] != "memlock"


@pytest.mark.parametrize("pages", [1, 2])
def test_a_limit_without_room_for_a_ring_is_not_taken_for_used_up(place: Path, pages: int) -> None:
    document = looked(place, pages * PAGE)
    assert budget(document, "rdma")["largest_bytes"] == pages * PAGE
    assert budget(document, "af-xdp")["largest_bytes"] == pages * PAGE
    ring = finding(document, "io-uring")
    if not ring["figures"]["usable"] and not ring["figures"]["io_uring_disabled"]:
        assert "--memlock=unlimited" in ring["command"]


def test_an_address_space_that_is_limited_for_good(place: Path) -> None:
    script = f"ulimit -v {4 * MIB}; exec {SCRIPT} doctor --json"
    done = as_nobody("/bin/sh", "-c", script, cwd=place, limit_bytes=64 * KIB)
    assert (done.returncode, done.stderr) == (0, "")
    found = finding(json.loads(done.stdout), "address-space")
    assert found["figures"] == {"soft_bytes": 4 << 30}
    assert found["command"].endswith("--as=unlimited:unlimited")


def test_it_is_fast_and_fits_its_columns(place: Path) -> None:
    begin = time.monotonic()
    done = as_nobody(SCRIPT, "doctor", cwd=place, limit_bytes=64 * KIB)
    took_s = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for topic in ("pin budget", "rdma", "memory", "counters", "kernel", "scratch"):
        body = lines[lines.index(topic) + 1 :]
        body = body[: body.index("")]
        statuses = [line[2:9].strip() for line in body if line[2:9].strip() in [*Status]]
        assert statuses == sorted(statuses, key=["missing", "limited", "ok"].index)
        assert statuses
    # a machine that others keep busy takes longer
    assert took_s < 10


def test_every_finding_is_documented(place: Path) -> None:
    """Those that are there once for a device or a size, by the word before it."""
    text = (ROOT / "docs/doctor.md").read_text()
    document = looked(place, 64 * KIB)
    for row in document["findings"]:
        name = re.sub(r"^(hugepages|rdma-(?:device|port|odp|regions))-.+", r"\1-*", row["id"])
        assert name in text, f"docs/doctor.md does not name {row['id']}"
    for row in document["budget"]:
        assert all(f"`{key}`" in text for key in row), row


def test_it_leaves_nothing_behind(place: Path) -> None:
    looked(place, 64 * KIB)
    assert list(place.iterdir()) == []


# -- against ------------------------------------------------------------------------------------


def test_against_itself_nothing_differs(place: Path) -> None:
    (place / "there.json").write_text(json.dumps(doctor(place, 64 * KIB)))
    deadline = time.monotonic() + TURN_DEADLINE_S
    while True:
        done = in_turn("doctor", "--against", "there.json", cwd=place, limit_bytes=64 * KIB)
        assert done.returncode == 0, done.stderr
        if "no finding and no limit differs" in done.stdout:
            return
        # a run that began in between is a difference
        assert "counters-move" in done.stdout, done.stdout
        assert time.monotonic() < deadline


def test_against_another_limit(place: Path) -> None:
    there = looked(place, 64 * KIB)
    (place / "there.json").write_text(json.dumps(there))
    words = ("doctor", "--against", "there.json")
    done = as_nobody(SCRIPT, *words, "--json", cwd=place, limit_bytes=128 * KIB)
    document = json.loads(done.stdout)
    assert document["there"]["made_at"] == there["where"]["made_at"]
    found = {(one["id"], one["figure"]): one for one in document["differences"]}
    soft = found["memlock-limit", "soft_bytes"]
    assert (soft["here"], soft["there"]) == (128 * KIB, 64 * KIB)
    assert "LimitMEMLOCK" in soft["means"]
    sizes = found["budget/rdma", "largest"]
    assert (sizes["here"]["largest_bytes"], sizes["there"]["largest_bytes"]) == (
        128 * KIB,
        64 * KIB,
    )
    done = as_nobody(SCRIPT, *words, cwd=place, limit_bytes=128 * KIB)
    assert "128 KiB" in done.stdout
    assert "64 KiB" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "no output of pinstorm doctor --json"),
        ("[1]", "no output of pinstorm doctor --json"),
        ('{"doctor_schema": "1"}', "no output of pinstorm doctor --json"),
        ('{"doctor_schema": 1, "where": {}}', "no output of pinstorm doctor --json"),
        ('{"doctor_schema": 99, "findings": []}', "reads up to 1"),
        ("\udcff", "no output of pinstorm doctor --json"),
    ],
)
def test_what_is_no_doctors(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "there.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = subprocess.run(
        [SCRIPT, "doctor", "--against", path], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pinstorm: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_against_standard_input(tmp_path: Path) -> None:
    one = subprocess.run([SCRIPT, "doctor", "--json"], capture_output=True, check=True)
    document = json.loads(one.stdout)
    finding_of = {row["id"]: row for row in document["findings"]}
    finding_of["max-map-count"]["figures"]["limit"] = 1
    done = subprocess.run(
        [SCRIPT, "doctor", "--against", "-", "--json"],
        input=json.dumps(document).encode(),
        capture_output=True,
        check=True,
    )
    differences = {row["id"]: row for row in json.loads(done.stdout)["differences"]}
    assert differences["max-map-count"]["there"] == 1
