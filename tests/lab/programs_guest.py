"""Runs in a guest: programs that are refused memory regions, and what pinstorm makes of it.

Started by test_explain_program.py with the name of a result file, in which stands what each step
saw; the host judges.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinstorm import evidence
from pinstorm.lab import setup
from workloads.spec import Case, Surroundings

NOBODY = 65534
LIMIT_BYTES = 64 << 10
# ib_write_bw registers two buffers of its message size: more than the limit.
MESSAGE_BYTES = 64 << 10
# perftest's own port, 18515, as /proc/net/tcp prints it; 0A is TCP_LISTEN, include/net/tcp_states.h
_LISTENS = ":4853 00000000:0000 0A", ":4853 00000000000000000000000000000000:0000 0A"
_DEADLINE_S = 60.0
# An ordinary user may not reach the virtual environment of a checkout below root's home.
PYTHON = "/usr/bin/python3"

# What a library does that goes on without its region.
REGISTERS = """
import ctypes, mmap, sys
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsRDMAError
domain = PD(Context(name="rxe0"))
memory = mmap.mmap(-1, 1 << 20)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
while True:
    try:
        region = MR(domain, 1 << 20, 1, address=address)
        print(0, flush=True)
    except PyverbsRDMAError as error:
        print(error.error_code, flush=True)
    if not sys.stdin.readline():
        break
"""


# Everything that stands in the way of a long-term pin, and an rdma cgroup that is used up.
OBSTRUCTED = """
import json, mmap, os, sys
from pathlib import Path
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsRDMAError
from workloads import libc
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
context = Context(name="rxe0")
domain = PD(context)
regions = []
try:
    while True:
        regions.append(MR(domain, 65536, 1))
except PyverbsRDMAError as error:
    refused = error.error_code
files = {}
for kind, path in json.loads(sys.argv[2]).items():
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 65536)
    files[kind] = libc.mmap(0, 65536, 3, libc.MAP_SHARED, fd)
secret = libc.memfd_secret()
os.ftruncate(secret, 65536)
files["secret"] = libc.mmap(0, 65536, 3, libc.MAP_SHARED, secret)
print(json.dumps({"refused": refused, "regions": len(regions), "at": files}), flush=True)
sys.stdin.readline()
"""


def as_nobody() -> None:
    """Between fork and exec: an ordinary user whose limit is small."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT_BYTES, LIMIT_BYTES))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def start(argv: Sequence[str], before: Callable[[], None] | None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=before,
    )


def explained(pid: int | None, size: str | None = None) -> dict[str, Any]:
    """What ``pinstorm explain`` says, as it would be typed."""
    words = ["explain", "--errno", "ENOMEM", "--call", "ibv_reg_mr"]
    words += ["--pid", str(pid)] if pid is not None else []
    words += ["--size", size] if size is not None else []
    pinstorm = [sys.executable, "-S", "-m", "pinstorm", *words]
    done = subprocess.run([*pinstorm, "--json"], capture_output=True, text=True)
    if done.returncode:
        return {"exit": done.returncode, "said": done.stdout + done.stderr}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def apply(command: str) -> int:
    return subprocess.run(["/bin/sh", "-c", command]).returncode


def bandwidth(look: Callable[[int], Any]) -> dict[str, Any]:
    """ib_write_bw between two processes; the server, an ordinary user, waits for its partner while
    ``look`` is called with its pid."""
    argv = ["ib_write_bw", "-d", setup.DEVICE, "-F", "-n", "5", "-s", str(MESSAGE_BYTES)]
    server = start(argv, as_nobody)
    try:
        listening = wait_for(server)
        seen = look(server.pid) if listening else None
        client = start([*argv, "127.0.0.1"], None)
        client_said, _ = client.communicate(timeout=_DEADLINE_S)
        server_said, _ = server.communicate(timeout=_DEADLINE_S)
    finally:
        server.kill()
    return {
        "listening": listening,
        "seen": seen,
        "server": {"exit": server.returncode, "said": server_said},
        "client": {"exit": client.returncode, "said": client_said},
    }


def wait_for(server: subprocess.Popen[str]) -> bool:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline and server.poll() is None:
        lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        if any(listens in lines for listens in _LISTENS):
            return True
        time.sleep(0.05)
    return False


def explain_and_remedy(pid: int, size: str | None = None) -> dict[str, Any]:
    found = explained(pid, size)
    command = found.get("explanation", {}).get("command")
    return {**found, "applied": apply(command) if command else None}


def registration() -> dict[str, Any]:
    """A program that lives on after the refusal, and tries again when it is told to."""
    program = start([PYTHON, "-S", "-c", REGISTERS], as_nobody)
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        first = program.stdout.readline().strip()
        seen = explain_and_remedy(program.pid, "1MiB")
        program.stdin.write("again\n")
        program.stdin.flush()
        second = program.stdout.readline().strip()
        program.stdin.close()
        program.wait(timeout=_DEADLINE_S)
    finally:
        program.kill()
    return {"first": first, "seen": seen, "second": second}


def obstructed(scratch: Mapping[str, str]) -> dict[str, Any]:
    """A process in trouble of every kind, as of_process and as a case's collect see it."""
    group = Path("/sys/fs/cgroup/upper/leaf")
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+rdma")
    group.mkdir(parents=True)
    Path("/sys/fs/cgroup/upper/cgroup.subtree_control").write_text("+rdma")
    (group.parent / "rdma.max").write_text(f"{setup.DEVICE} hca_handle=7")
    (group / "rdma.max").write_text(f"{setup.DEVICE} hca_object=12")
    files = {kind: f"{scratch[kind]}/obstructed" for kind in ("dax", "ext4")}
    argv = [sys.executable, "-S", "-c", OBSTRUCTED, str(group), json.dumps(files)]
    program = start(argv, None)
    assert program.stdout is not None
    try:
        state = json.loads(program.stdout.readline())
        foreign = evidence.of_process(program.pid, "ibv_reg_mr", "EAGAIN")
        case = Case("rdma-register", "dax-shared", {"size_bytes": 65536, "access": "rw"})
        around = Surroundings(device=setup.DEVICE, device_can={"max_mr": 5, "odp": True})
        failure = {"outcome": "EOPNOTSUPP", "failed_call": "ibv_reg_mr"}
        own = {
            kind: evidence.collect(
                case, program.pid, {**failure, "region": [address, 65536]}, around
            ).to_json()
            for kind, address in state["at"].items()
        }
        program.communicate("end\n", timeout=_DEADLINE_S)
    finally:
        program.kill()
    return {"state": state, "files": files, "foreign": foreign.to_json(), "own": own}


def main() -> None:
    given = setup.set_up(["rxe", "loopback", "pmem-dax", "scratch-ext4"])
    result = {
        "setup": given.to_json(),
        "bandwidth": bandwidth(explained),
        "ended": explained(None),
        "remedied": bandwidth(lambda pid: explain_and_remedy(pid, "128KiB")),
        "registration": registration(),
        "obstructed": obstructed(given.scratch),
    }
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
