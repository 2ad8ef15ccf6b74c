"""Runs in a guest: what ``pinstorm doctor`` says there, and what then happens to registrations.

One JSON document: ``root`` and ``user``, the command's documents; ``beside``, the user's while
another of its processes holds an MR and a ring; ``registered`` and ``registered_beside``, the errno
of ibv_reg_mr for the largest size of these and for the next; ``kernel``, some files as this kernel
has them. Only ``root`` is asked on the command line: starting that takes a guest seconds.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from pinstorm.lab.setup import set_up

NOBODY = 65534
KIB = 1 << 10
LIMIT_BYTES = 64 * KIB
HOLDER = Path(__file__).parents[1] / "host" / "pin_holder.py"
USER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
FILES = ("/proc/modules", "/proc/locks")

# ibv_reg_mr of each size in turn, given back at once.
REGISTERS = """
import json, sys
from workloads import libc, verbs
from workloads.owner import Owner
from workloads.spec import CallFailed
owner = Owner()
_, domain = verbs.open_device("rxe0", owner)
said = []
for size in map(int, sys.argv[1:]):
    address = libc.mmap(0, size, libc.PROT_READ | libc.PROT_WRITE,
                        libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
    try:
        region, _ = verbs.register(domain, address, size, verbs.access_flags("rw"))
        verbs.deregister(region)
        said.append(0)
    except CallFailed as error:
        said.append(error.errno)
owner.close()
print(json.dumps(said))
"""

EXAMINES = """
import json
from pinstorm.doctor.examination import examine
from pinstorm.doctor.sight import Options
print(json.dumps(examine(Options()).to_json()))
"""


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (LIMIT_BYTES, LIMIT_BYTES))


def run(*words: str, as_user: bool) -> str:
    who = {**USER, "preexec_fn": limit} if as_user else {}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, **who)
    if done.returncode:
        raise SystemExit(done.stderr)
    output: str = done.stdout
    return output


def doctor(*, as_user: bool) -> dict[str, Any]:
    words = ("-S", "-c", EXAMINES) if as_user else ("-m", "pinstorm", "doctor", "--json")
    document: dict[str, Any] = json.loads(run(*words, as_user=as_user))
    return document


def registered(document: dict[str, Any]) -> list[int]:
    (row,) = [row for row in document["budget"] if row["mechanism"] == "rdma"]
    sizes = (str(row["largest_bytes"]), str(row["fails_from_bytes"]))
    found: list[int] = json.loads(run("-S", "-c", REGISTERS, *sizes, as_user=True))
    return found


def main() -> None:
    lab = set_up(("rxe", "vfio"))
    said: dict[str, Any] = {"setup": lab.to_json()}
    said["root"], said["user"] = doctor(as_user=False), doctor(as_user=True)
    said["registered"] = registered(said["user"])
    pipe = subprocess.PIPE
    holders = []
    for kind in ("rdma-mr", "io-uring"):
        command = [sys.executable, "-S", str(HOLDER), kind, str(32 * KIB)]
        holders.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **USER))
    for holder in holders:
        assert holder.stdout is not None
        answer = json.loads(holder.stdout.readline())
        assert "ready" in answer, answer
    said["beside"] = doctor(as_user=True)
    said["registered_beside"] = registered(said["beside"])
    for holder in holders:
        holder.communicate()
    said["kernel"] = {path: Path(path).read_text() for path in FILES}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    main()
