"""Runs in a guest: processes that hold pins, and what ``pinstorm pins`` says of them.

One JSON document: ``pids`` by holder, ``refused`` by holder, the command's documents as root
(``root``), as an ordinary user (``user``), of that user (``of_user``) and when all have ended
(``after``), and ``text``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pinstorm.lab.setup import set_up

NOBODY = 65534
MIB = 1 << 20
HOLDER = Path(__file__).parents[1] / "host" / "pin_holder.py"
HOLDERS = {
    "mr": ("rdma-mr", 256 * MIB, 0),
    "thread": ("rdma-mr-thread", MIB, 0),
    "odp": ("rdma-mr-odp", MIB, 0),
    "ring": ("io-uring", 64 * MIB, 0),
    "twice": ("io-uring-twice", MIB, 0),
    "huge": ("io-uring-thp", 4 * MIB, 0),
    "nobody": ("io-uring", 4 * MIB, NOBODY),
    "umem": ("xdp-umem", 16 * MIB, 0),
    "elsewhere": ("xdp-umem", 2 * MIB, 0),  # in a network namespace of its own
    "vfio": ("vfio", 8 * MIB, 0),
    "dma-buf": ("udmabuf", MIB, 0),
}


def pins(*words: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pinstorm", "pins", *words]
    done = subprocess.run(command, capture_output=True, text=True, user=uid, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done


def document(*words: str, uid: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pins("--json", *words, uid=uid).stdout)
    return found


def main() -> None:
    lab = set_up(("rxe", "vfio"))
    os.environ["VFIO_DEVICE"] = lab.nodes["vfio"]
    said: dict[str, Any] = {"setup": lab.to_json(), "pids": {}, "refused": {}}
    said["before"] = document()
    running = {}
    for name, (kind, size_bytes, uid) in HOLDERS.items():
        command = [sys.executable, str(HOLDER), kind, str(size_bytes), *([str(uid)] if uid else [])]
        command = ["unshare", "--net", *command] if name == "elsewhere" else command
        pipe = subprocess.PIPE
        running[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    for name, process in running.items():
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        if "ready" in answer:
            said["pids"][name] = answer["ready"]
        else:
            said["refused"][name] = answer["refused"]
    said["root"], said["text"] = document(), pins().stdout
    said["user"] = document(uid=NOBODY)
    said["of_user"] = document("--uid", str(NOBODY))
    for process in running.values():
        process.communicate()
    said["after"] = document()
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    main()
