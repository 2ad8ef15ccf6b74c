"""Engines that misbehave on purpose, for loads: named by a test, never part of pinstorm."""

import os
import signal
import time

import numpy as np

import workloads
from workloads import libc, memory
from workloads.load.engine import Mismatch, Work, pages_of
from workloads.owner import Owner
from workloads.spec import CallFailed, WorkloadSpec

FORGETS_ONE_IN = 1000


class Count:
    """Does nothing, a thousand times a second."""

    def __init__(self, work: Work):
        self.work = work
        self.done = 0

    def open(self) -> None:
        pass

    def act(self) -> None:
        time.sleep(0.001)

    def run(self, until_ns: int) -> bool:
        recorder, count = self.work.recorder, self.work.job.count
        while time.monotonic_ns() < until_ns and not self.work.stopped:
            if count is not None and self.done >= count:
                return False
            if not self.work.pace.wait(until_ns):
                break
            began_ns = time.monotonic_ns()
            self.act()
            self.done += 1
            self.work.pace.begun()
            recorder.note("act", np.array([time.monotonic_ns() - began_ns]))
            recorder.operations += 1
            recorder.bytes += self.work.job.largest_bytes
        return True

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


class Refuse(Count):
    """Is refused from the tenth time on."""

    def act(self) -> None:
        super().act()
        if self.done >= 10:
            self.work.recorder.refuse(CallFailed("planted_call", 12, "on purpose"))


class RefuseToOpen(Count):
    def open(self) -> None:
        raise CallFailed("planted_open", 1, "on purpose")


class Corrupt(Count):
    def act(self) -> None:
        super().act()
        if self.done >= 10:
            raise Mismatch("block at offset 40960 holds generation 3, expected 4")


class Die(Count):
    def act(self) -> None:
        super().act()
        if self.done >= 10:
            os.kill(os.getpid(), signal.SIGKILL)


class Hang(Count):
    def act(self) -> None:
        while True:
            signal.pause()


class Leak(Count):
    """Registers a buffer with a ring of its own, and forgets one ring in a thousand."""

    def __init__(self, work: Work, owner: Owner):
        super().__init__(work)
        size_bytes = work.job.largest_bytes
        region = memory.prepare(workloads.memory_spec("anon"), size_bytes, work.around, owner)
        self.buffers = libc.iovecs([(region.address, region.size_bytes)])
        self.forgotten: list[int] = []

    def act(self) -> None:
        ring = libc.io_uring_setup(1)
        result = libc.io_uring_register(ring, libc.IORING_REGISTER_BUFFERS, self.buffers, 1)
        libc.check("io_uring_register", result)
        self.work.recorder.pins += pages_of(self.work.job.largest_bytes)
        if self.done % FORGETS_ONE_IN == FORGETS_ONE_IN - 1:
            self.forgotten.append(ring)
            return
        libc.io_uring_register(ring, libc.IORING_UNREGISTER_BUFFERS, None, 0)
        os.close(ring)


ENGINES = {
    "planted-count": Count,
    "planted-refuse": Refuse,
    "planted-refuse-open": RefuseToOpen,
    "planted-corrupt": Corrupt,
    "planted-die": Die,
    "planted-hang": Hang,
}


def prepare(work: Work, owner: Owner) -> Count:
    if work.job.workload == "planted-leak":
        return Leak(work, owner)
    return ENGINES[work.job.workload](work)


WORKLOADS = tuple(
    WorkloadSpec(
        name,
        __name__,
        "misbehaves in a load",
        pin_class="pin-longterm" if name == "planted-leak" else "none",
        scope="held",
        writes=True,
        engine=__name__,
    )
    for name in (*ENGINES, "planted-leak")
)
