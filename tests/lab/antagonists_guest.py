"""Runs in a guest: every antagonist, beside a process that holds long-term pins.

Started by test_antagonists.py with the name of a result file, in which stands what each of them did
and what a second source says of it; the host judges.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from lone_antagonist import counters, job, rise, run, running

from pinstorm import containment
from pinstorm.lab import setup
from telemetry import meminfo, numa, pagemap, process_status, vmstat, zoneinfo
from workloads import libc
from workloads.antagonists import act
from workloads.antagonists import fill_cma as fill_cma_engine
from workloads.channel import Channel
from workloads.load.spec import Job
from workloads.memory import TOUCH_BYTE
from workloads.owner import Owner
from workloads.scratch import nameless_file
from workloads.spec import MIB, PAGE_BYTES, Surroundings

SIZE = 4 * MIB
HELD_BYTES = 8 * MIB
ROOT = Path("/sys/fs/cgroup")
FREE_PERCENT = 90
FREED_LATER_BYTES = 64 * MIB


class Holder:
    """A process with memory that it has registered, and as much that it has not.

    Without CAP_IPC_LOCK, so that what it pins is accounted to it on every kernel.
    """

    def __init__(self) -> None:
        self._channel, theirs = Channel.pair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._hold(Channel(theirs))
            finally:
                os._exit(0)
        theirs.close()
        answer = self._channel.receive()
        assert answer is not None
        self._pinned, self._free = answer["pinned"], answer["free"]
        self._pinned_frames = self._frames(self._pinned)
        self._free_frames = self._frames(self._free)

    def look(self) -> dict[str, Any]:
        """How many pages lie elsewhere than at the last look, and what is accounted to it."""
        pinned, free = self._frames(self._pinned), self._frames(self._free)
        status = process_status.read(self.pid)
        assert status is not None
        found = {
            "pinned_moved": _differing(self._pinned_frames, pinned),
            "free_moved": _differing(self._free_frames, free),
            "vmpin_bytes": status.vmpin_bytes,
        }
        self._pinned_frames, self._free_frames = pinned, free
        return found

    def release(self) -> bool:
        """It gives back and ends; whether both memories held what was written to them."""
        self._channel.send(end=True)
        answer = self._channel.receive()
        os.waitpid(self.pid, 0)
        return answer is not None and bool(answer["intact"])

    def _frames(self, address: int) -> list[int | None]:
        return pagemap.frames(address, HELD_BYTES, self.pid)

    def _hold(self, channel: Channel) -> None:
        libc.die_with_parent()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        libc.set_capabilities(())
        pinned, free = act.own_memory(HELD_BYTES), act.own_memory(HELD_BYTES)
        for address in (pinned, free):
            libc.view(address, HELD_BYTES)[:] = TOUCH_BYTE * HELD_BYTES
        ring = libc.io_uring_setup(1)
        buffers = libc.iovecs([(pinned, HELD_BYTES)])
        taken = libc.io_uring_register(ring, libc.IORING_REGISTER_BUFFERS, buffers, 1)
        libc.check("io_uring_register", taken)
        channel.send(pinned=pinned, free=free)
        channel.receive()
        wanted = TOUCH_BYTE * HELD_BYTES
        intact = all(bytes(libc.view(place, HELD_BYTES)) == wanted for place in (pinned, free))
        os.close(ring)
        channel.send(intact=intact)


def _differing(before: list[int | None], after: list[int | None]) -> int:
    return sum(1 for old, new in zip(before, after, strict=True) if old != new)


class Trials:
    """Runs antagonists beside the holder, and sees each time what it did to it."""

    def __init__(self, around: Surroundings, pins: vmstat.Counters):
        self._around = around
        self._pins = pins
        before = pins.snapshot().outstanding
        self._holder = Holder()
        held = pins.snapshot().outstanding
        assert before is not None
        assert held is not None
        self._before, self.held_pages = before, held - before

    def of(self, one: Job) -> dict[str, Any]:
        before = counters()
        self._holder.look()
        try:
            done = run(one, self._around)
        except RuntimeError as error:
            return {"failed": str(error)}
        return {
            **done,
            "rose": rise(before, counters()),
            "holder": self._holder.look(),
            "held_pages": self._outstanding(),
        }

    def release(self) -> dict[str, Any]:
        intact = self._holder.release()
        after, _ = vmstat.settle(self._pins, lambda seen: seen.outstanding == self._before, 10.0)
        assert after.outstanding is not None
        return {"intact": intact, "leaked_pages": after.outstanding - self._before}

    def _outstanding(self) -> int | None:
        found = self._pins.snapshot().outstanding
        return None if found is None else found - self._before


@contextmanager
def cached_file(directory: str) -> Iterator[int]:
    """The address of a mapped file of HELD_BYTES that is in the page cache, and clean."""
    owner = Owner()
    try:
        file = nameless_file(directory, owner)
        os.write(file, TOUCH_BYTE * HELD_BYTES)
        os.fsync(file)
        address = libc.mmap(0, HELD_BYTES, libc.PROT_READ, libc.MAP_SHARED, file)
        owner.release_with("mapping", lambda: libc.munmap(address, HELD_BYTES))
        yield address
    finally:
        owner.close()


def cached_pages(address: int) -> int:
    return libc.pages_in_memory(address, HELD_BYTES)


def drop_caches(trials: Trials, directory: str) -> dict[str, Any]:
    with cached_file(directory) as file:
        cached = cached_pages(file)
        seen = trials.of(job("drop-caches", rate_ops_s=20.0, count=3))
        return {**seen, "cached": [cached, cached_pages(file)]}


def leaves() -> list[str]:
    return sorted(path.name for path in ROOT.glob("pinstorm_*"))


def reclaim(trials: Trials, around: Surroundings, directory: str) -> dict[str, Any]:
    """Every way; what a killed one leaves; and that the load's group loses what others have."""
    (ROOT / "cgroup.subtree_control").write_text("+memory")
    found: dict[str, Any] = {}
    for through in ("own-group", "madv-pageout"):
        found[through] = trials.of(job("reclaim", SIZE, count=4, params={"through": through}))
        found[through]["leaves"] = leaves()
    with running(job("reclaim", SIZE, params={"through": "own-group"}), around) as antagonist:
        during = leaves()
        antagonist.kill()
        killed = {"during": during, "killed": leaves()}
        containment.remove_stale_leaves()
    found["kill"] = {**killed, "next-run": leaves(), "pid": antagonist.pid}
    group = ROOT / "load"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        with cached_file(directory) as file:
            cached = cached_pages(file)
            one = job("reclaim", 2 * HELD_BYTES, count=2, params={"through": "load-group"})
            found["load-group"] = {**trials.of(one), "cached": [cached, cached_pages(file)]}
    finally:
        (ROOT / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()
    found["any-without-controller"] = without_controller(around)
    return found


def without_controller(around: Surroundings) -> dict[str, Any]:
    (ROOT / "cgroup.subtree_control").write_text("-memory")
    found = run(job("reclaim", SIZE, count=2), around)
    with contextlib.suppress(RuntimeError):
        run(job("reclaim", SIZE, count=1, params={"through": "own-group"}), around)
        found["own-group"] = "did not fail"
    return found


def fill_cma(around: Surroundings) -> dict[str, Any]:
    """How much of such memory was free before, at least while it was held, and after."""
    total_bytes = fill_cma_engine.total_pages() * PAGE_BYTES
    enough_bytes = total_bytes * FREE_PERCENT // 100
    one = job("fill-cma", 1 << 40, params={"free_percent": FREE_PERCENT, "hold_ms": 3_600_000})
    before = least = free_bytes()
    available = []
    with running(one, around) as antagonist:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and least > enough_bytes:
            available.append(meminfo.read().available_bytes or 0)
            time.sleep(0.01)
            least = free_bytes()
        held = process_status.read(antagonist.pid)
        antagonist.stop()
        done = antagonist.done()
    assert held is not None
    # What a CPU freed and keeps to itself is counted as free a moment later.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and free_bytes() < before - FREED_LATER_BYTES:
        time.sleep(0.01)
    return {
        **done,
        "total_bytes": total_bytes,
        "free_bytes": {"before": before, "least": least, "after": free_bytes()},
        "least_available_bytes": min(available, default=None),
        "held_bytes": held.vmrss_bytes,
    }


def free_bytes() -> int:
    """Of CMA as /proc/vmstat counts it, and of ZONE_MOVABLE."""
    movable = sum(zone.free_pages or 0 for zone in zoneinfo.read() if zone.name == "Movable")
    return (counters()["nr_free_cma"] + movable) * PAGE_BYTES


def main() -> None:
    given = setup.set_up(["tracing", "movable", "numa", "scratch-ext4"])
    nodes = tuple(node.node for node in numa.read() if node.total_bytes)
    around = Surroundings(scratch=given.scratch, numa_nodes=nodes, page_frames_visible=True)
    directory = given.scratch["target"]
    result: dict[str, Any] = {"setup": given.to_json(), "took_s": {}}
    with vmstat.Counters() as pins:
        trials = Trials(around, pins)
        result["held_pages"] = trials.held_pages
        steps = {
            "compaction": lambda: trials.of(job("compaction", rate_ops_s=20.0, count=2)),
            "compaction-node": lambda: trials.of(
                job("compaction", rate_ops_s=20.0, count=2, node=0)
            ),
            "drop-caches": lambda: drop_caches(trials, directory),
            "dontneed-churn": lambda: trials.of(job("dontneed-churn", SIZE, count=4)),
            "munmap-churn": lambda: trials.of(job("munmap-churn", SIZE, count=4)),
            "fork-storm": lambda: trials.of(job("fork-storm", SIZE, count=8)),
            "thp-split": lambda: trials.of(job("thp-split", SIZE, count=8)),
            "migrate-own": lambda: trials.of(job("migrate-pages", SIZE, count=4)),
            "migrate-load": lambda: trials.of(
                job("migrate-pages", count=1, params={"whose": "load"})
            ),
            "reclaim": lambda: reclaim(trials, around, directory),
            "fill-cma": lambda: fill_cma(around),
            "release": trials.release,
        }
        for name, step in steps.items():
            began = time.monotonic()
            result[name] = step()
            result["took_s"][name] = round(time.monotonic() - began, 2)
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
