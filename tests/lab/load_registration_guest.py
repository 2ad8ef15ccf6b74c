"""Runs in a guest: the RDMA registration engines on Soft-RoCE, and the C program beside them.

Started by test_load_registration_run.py with the names of a result file and of the peer's program;
the host judges.
"""

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workloads
from pinstorm.lab import setup
from telemetry import process_status, rdma_resource, vmstat
from workloads.load.churn import Churn
from workloads.load.engine import Mismatch, Recorder, Work
from workloads.load.spec import Job
from workloads.owner import Owner
from workloads.spec import PAGE_BYTES, CallFailed, Surroundings

SIZE = 64 << 10
_LONG_NS = 60_000_000_000


def prepare(owner: Owner, workload: str, **keys: Any) -> tuple[Churn, Work]:
    device = keys.pop("device", setup.DEVICE)
    job = Job("churn", workload, **{"sizes": ((SIZE, 1.0),), **keys})
    recorder = Recorder(allowed=job.allowed)
    work = Work(job, 0, Surroundings(device=device), 1, mmap.mmap(-1, PAGE_BYTES), recorder)
    return workloads.import_engine(workload).prepare(work, owner), work


def regions() -> list[int | None]:
    """Bytes of the memory regions of this process, as the kernel tracks them."""
    found = rdma_resource.read_regions() or []
    return sorted(region.size_bytes or 0 for region in found if region.pid == os.getpid())


def vmpin() -> int | None:
    return process_status.read().vmpin_bytes


def faults() -> int:
    """Page faults of all the machine so far, the device's among them."""
    return vmstat.parse(Path(vmstat.VMSTAT).read_bytes())["pgfault"]


def churned(counters: vmstat.Counters, workload: str, **keys: Any) -> dict[str, Any]:
    """One load of ``count`` turns, and the state of the machine around each step."""
    owner = Owner()
    engine, work = prepare(owner, workload, **keys)
    seen: dict[str, Any] = {"prepared": [vmpin(), regions()]}
    before = counters.snapshot(per_node=False)
    engine.open()
    seen["opened"] = [vmpin(), regions()]
    opened = counters.snapshot(per_node=False)
    faults_before = faults()
    seen["ended"] = not engine.run(time.monotonic_ns() + _LONG_NS)
    seen["faults"] = faults() - faults_before
    ran = counters.snapshot(per_node=False)
    seen["standing"] = [vmpin(), regions()]
    engine.drain()
    engine.close()
    closed = counters.snapshot(per_node=False)
    seen["closed"] = [vmpin(), regions()]
    seen["taken"] = work.recorder.take()
    steps = (("open", before, opened), ("run", opened, ran), ("all", before, closed))
    for name, first, last in steps:
        seen[f"{name}_pins"] = [
            (last.acquired or 0) - (first.acquired or 0),
            (last.released or 0) - (first.released or 0),
        ]
    owner.close()
    return {**seen, "errors": owner.errors, "left": [vmpin(), regions()]}


def refused(workload: str, **keys: Any) -> dict[str, Any]:
    """How it is refused, and what is registered afterwards."""
    owner = Owner()
    engine: Churn | None = None
    found: dict[str, Any] = {}
    try:
        engine, _ = prepare(owner, workload, **keys)
        engine.open()
    except CallFailed as error:
        found = {"call": error.call, "errno": error.errno}
    found["standing"] = regions()
    if engine is not None:
        engine.close()
    found["left"] = regions()
    owner.close()
    return {**found, "errors": owner.errors}


def shortened(pages: int) -> dict[str, Any]:
    """A storm with ``verify`` whose traffic leaves the last pages out."""
    owner = Owner()
    engine, _ = prepare(
        owner, "rdma-register-odp", params={"storm": True}, verify=True, count=3, depth=2
    )
    engine.open()
    loopback = engine._slots.storm._loopback  # type: ignore[attr-defined]
    whole: Callable[[int, int, int], None] = loopback.write
    loopback.write = lambda start, size, key: whole(start, size - pages * PAGE_BYTES, key)
    try:
        engine.run(time.monotonic_ns() + _LONG_NS)
        mismatch = None
    except Mismatch as error:
        mismatch = str(error)
    engine.close()
    left = regions()
    owner.close()
    return {"mismatch": mismatch, "left": left, "errors": owner.errors}


def peer(program: str, counters: vmstat.Counters, *arguments: str) -> dict[str, Any]:
    before = counters.snapshot(per_node=False)
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    after = counters.snapshot(per_node=False)
    return {
        "exit": done.returncode,
        "said": done.stdout,
        "complained": done.stderr,
        "acquired": (after.acquired or 0) - (before.acquired or 0),
        "released": (after.released or 0) - (before.released or 0),
    }


def main() -> None:
    given = setup.set_up(["rxe", "loopback"])
    mixed = ((SIZE, 3.0), (16 * SIZE, 1.0))
    storm = {"params": {"storm": True}, "verify": True}
    with vmstat.Counters() as counters:
        result = {
            "setup": given.to_json(),
            "pinned": churned(counters, "rdma-register", depth=1, count=20),
            "mixed": churned(counters, "rdma-register", depth=3, count=20, sizes=mixed),
            "read": churned(counters, "rdma-register", depth=2, count=5, access="ro"),
            "demand": churned(counters, "rdma-register-odp", depth=3, count=20),
            "storm": churned(counters, "rdma-register-odp", depth=3, count=10, **storm),
            "read-storm": churned(
                counters,
                "rdma-register-odp",
                depth=1,
                count=5,
                access="ro",
                params={"storm": True},
            ),
            "prefetch": churned(
                counters,
                "rdma-register-odp",
                depth=2,
                count=10,
                prefetch="write",
                allowed=("EOPNOTSUPP",),
            ),
            "shortened": shortened(pages=3),
            "hole": refused("rdma-register", memory="hole", depth=2),
            "odp-hole": refused(
                "rdma-register-odp", memory="hole", depth=1, params={"storm": True}
            ),
            "prefetch-refused": refused("rdma-register-odp", prefetch="write", depth=2),
            "no-device": refused("rdma-register", device="rxe9"),
            "peer": peer(sys.argv[2], counters, setup.DEVICE, str(SIZE), "0.5"),
            "peer-no-device": peer(sys.argv[2], counters, "rxe9", str(SIZE), "0.5"),
        }
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
