"""Runs in a guest: a sampler beside memory regions that come and go, and loopback traffic.

Arguments: the directory for the spool. One JSON document: ``setup``; by step ``told`` (moment, the
``rdma`` program's objects, its counters, the number of regions registered); ``regions``:
region_statistics(); ``idle``: pins that others took and gave back while the sampler wrote and
nothing else ran, with the spool's bytes; ``report``.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pinstorm import samples
from pinstorm.lab.setup import set_up
from pinstorm.sampling import Sampling
from telemetry import rdma_resource
from telemetry.rdma_nldev import Asked
from telemetry.vmstat import Counters
from workloads import libc, verbs
from workloads.owner import Owner

DEADLINE_S = 60.0
SIZE = 1 << 20
IDLE_S = 5.0


def awaited(bundle: Path, source: str, after_ns: int) -> None:
    """Until a reading of that source, later than the moment, is in the spool."""
    deadline = time.monotonic() + DEADLINE_S
    while not any(r.source == source and r.t_ns > after_ns for r in samples.read(bundle)):
        if time.monotonic() > deadline:
            raise SystemExit(f"no reading of {source}")
        time.sleep(0.1)


def counters() -> dict[str, int]:
    """What ``rdma statistic`` says of the port."""
    done = subprocess.run(
        ["rdma", "-j", "statistic", "show"], capture_output=True, text=True, check=True
    )
    (row,) = json.loads(done.stdout)
    return {name: value for name, value in row.items() if name not in ("ifname", "port")}


def idle(spool: Sampling) -> dict[str, Any]:
    with Counters() as all_pins:
        before, bytes_before = all_pins.snapshot(), spool.report().bytes
        until_ns = time.monotonic_ns() + round(IDLE_S * 1e9)
        while time.monotonic_ns() < until_ns:
            time.sleep(0.1)
        after, bytes_after = all_pins.snapshot(), spool.report().bytes
        assert None not in (before.acquired, after.acquired, before.released, after.released)
        return {
            "acquired": (after.acquired or 0) - (before.acquired or 0),
            "released": (after.released or 0) - (before.released or 0),
            "bytes": bytes_after - bytes_before,
        }


def main() -> None:
    bundle = Path(sys.argv[1])
    said: dict[str, Any] = {"setup": set_up(("rxe",)).to_json(), "told": []}
    owner = Owner()
    _, domain = verbs.open_device("rxe0", owner)
    address = libc.mmap(0, SIZE, 3, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
    sampling = Sampling(samples.spool_of(bundle), hz=50, device="rxe0")
    sampling.start()
    try:
        awaited(bundle, "rdma", 0)
        said["idle"] = idle(sampling)
        regions: list[Any] = []
        for registered in (3, 7, 0):
            while len(regions) < registered:
                regions.append(verbs.register(domain, address, SIZE, verbs.access_flags("rw"))[0])
            while len(regions) > registered:
                regions.pop().close()
            now_ns = time.monotonic_ns()
            awaited(bundle, "rdma_objects", now_ns)
            awaited(bundle, "rdma", now_ns)
            (in_use,) = rdma_resource.read() or []
            said["told"].append([now_ns, in_use.counts, counters(), registered])
        with Asked() as asked:
            said["regions"] = asked.region_statistics(0)
        said["report"] = sampling.stop().to_json()
    finally:
        sampling.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
