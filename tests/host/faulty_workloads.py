"""Workloads that misbehave, each in one way; planted with ``session.Options(include=…)``.

They are no part of pinstorm. ``PINSTORM_FAULTY`` names a directory of the test's own, where they
note the pids that a test must find gone (``pids``) and look for a socket to pass a ring to
(``fence``).
"""

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from workloads import af_xdp, disturbance, libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import (
    CallFailed,
    Case,
    Operation,
    PrepareFailed,
    Surroundings,
    WorkloadSpec,
)

NOTES = "PINSTORM_FAULTY"


class Faulty:
    """Does nothing, twice; the others differ from it in one of the two."""

    done_bytes: int | None = None

    def __init__(self, region: Region) -> None:
        self.region = region
        self.cycle = 0

    def acquire(self) -> int:
        self.cycle += 1
        return 1

    def release(self) -> int:
        return 1


class SegvInAcquire(Faulty):
    def acquire(self) -> int:
        return segfault()


class SegvInCycle(Faulty):
    def acquire(self) -> int:
        return segfault() if self.cycle == 3 else super().acquire()


class Raise(Faulty):
    """A bug of the workload's own."""

    def acquire(self) -> int:
        raise KeyError("faulty on purpose")


class DieStanding(Faulty):
    """Dies while it waits for the go-signal to release."""

    def acquire(self) -> int:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        return 1


class Hang(Faulty):
    """Hangs together with a grandchild in a session of its own."""

    def acquire(self) -> int:
        note_pid()
        ready, writer = os.pipe()
        if os.fork() == 0:
            os.setsid()
            note_pid()
            os.close(writer)
            while True:
                signal.pause()
        os.close(writer)
        os.read(ready, 1)
        while True:
            signal.pause()


class LeaveGrandchild(Faulty):
    """Ends well, and leaves a grandchild in a session of its own behind."""

    def acquire(self) -> int:
        if os.fork() == 0:
            os.setsid()
            note_pid()
            while True:
                signal.pause()
        return 1


class CrashBesideGrandchild(LeaveGrandchild):
    def acquire(self) -> int:
        super().acquire()
        return segfault()


class Leak(Faulty):
    """Registers the region with another ring each time and gives none back."""

    def acquire(self) -> int:
        register(self.region)
        return 1


class LeakUnaccounted(Faulty):
    """Says that it pins nothing, and keeps each umem: only the counters show it."""

    def __init__(self, region: Region) -> None:
        super().__init__(region)
        self.kept: list[af_xdp.Umem] = []

    def acquire(self) -> int:
        self.kept.append(af_xdp.Umem(self.region))
        return self.kept[-1].acquire()


class Orphan(Faulty):
    """Lets a process outside of the case's tree take the ring that has the region registered.

    It takes it with pidfd_getfd(2): a socket refuses to carry a ring.
    """

    def acquire(self) -> int:
        ring = register(self.region)
        with socket.socket(socket.AF_UNIX) as fence:
            fence.connect(os.path.join(os.environ[NOTES], "fence"))
            fence.sendall(f"{os.getpid()} {ring}".encode())
            fence.recv(1)  # until it is taken
        os.close(ring)
        return 1


class DropWhenDisturbed(Faulty):
    """Gives its pins back when its memory is disturbed, as no kernel may."""

    def acquire(self) -> int:
        ring = register(self.region)
        disturb = disturbance.disturb

        def drop(what: str, region: Region, operation: Operation) -> int:
            libc.io_uring_register(ring, libc.IORING_UNREGISTER_BUFFERS, None, 0)
            return disturb(what, region, operation)

        disturbance.disturb = drop
        return 1


class Unstable(Faulty):
    def acquire(self) -> int:
        super().acquire()
        if self.cycle > 2 and self.cycle % 2:
            raise CallFailed("faulty_call", errno.EAGAIN)
        return 1


class BadRelease(Faulty):
    def release(self) -> int:
        raise CallFailed("faulty_release", errno.EBUSY)


class BadReleaseInCycle(Faulty):
    """The release of the second timed cycle fails; its acquire took 1 ns."""

    def release(self) -> int:
        if self.cycle == 4:
            raise CallFailed("faulty_release", errno.EBUSY, elapsed_ns=777)
        return 1


PrepareFunction = Callable[[Region, Owner], Faulty]


def segv_in_prepare(region: Region, owner: Owner) -> Faulty:
    segfault()
    return Faulty(region)


def refuse_call(region: Region, owner: Owner) -> Faulty:
    raise CallFailed("faulty_open", errno.EMFILE, "no more of them")


def refuse_state(region: Region, owner: Owner) -> Faulty:
    raise PrepareFailed("the memory is not what it should be")


def bad_close(region: Region, owner: Owner) -> Faulty:
    owner.release_with("first thing", lambda: os.close(9999))
    owner.release_with("second thing", lambda: raise_oserror(errno.EIO))
    return Faulty(region)


def hang_in_close(region: Region, owner: Owner) -> Faulty:
    owner.release_with("slow thing", signal.pause)
    return Faulty(region)


PREPARE: dict[str, PrepareFunction] = {
    "faulty-ok": lambda region, _: Faulty(region),
    "faulty-segv-prepare": segv_in_prepare,
    "faulty-segv-acquire": lambda region, _: SegvInAcquire(region),
    "faulty-segv-cycle": lambda region, _: SegvInCycle(region),
    "faulty-raise": lambda region, _: Raise(region),
    "faulty-die-standing": lambda region, _: DieStanding(region),
    "faulty-hang": lambda region, _: Hang(region),
    "faulty-grandchild": lambda region, _: LeaveGrandchild(region),
    "faulty-grandchild-crash": lambda region, _: CrashBesideGrandchild(region),
    "faulty-leak": lambda region, _: Leak(region),
    "faulty-leak-unaccounted": lambda region, _: LeakUnaccounted(region),
    "faulty-orphan": lambda region, _: Orphan(region),
    "faulty-drop": lambda region, _: DropWhenDisturbed(region),
    "faulty-unstable": lambda region, _: Unstable(region),
    "faulty-release": lambda region, _: BadRelease(region),
    "faulty-release-cycle": lambda region, _: BadReleaseInCycle(region),
    "faulty-prepare-call": refuse_call,
    "faulty-prepare-state": refuse_state,
    "faulty-close": bad_close,
    "faulty-hang-close": hang_in_close,
}

_PINNING = frozenset({"faulty-leak", "faulty-orphan", "faulty-drop"})

WORKLOADS = tuple(
    WorkloadSpec(
        name,
        __name__,
        "faulty on purpose",
        pin_class="pin-longterm" if name in _PINNING else "none",
        scope="held",
        writes=True,
    )
    for name in PREPARE
)


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Faulty:
    return PREPARE[case.workload](region, owner)


def segfault() -> int:
    ctypes.string_at(8)
    raise AssertionError("address 8 can be read")


def raise_oserror(number: int) -> None:
    raise OSError(number, os.strerror(number))


def register(region: Region) -> int:
    """A new ring with the region as its registered buffer."""
    ring = libc.io_uring_setup(1)
    buffers = libc.iovecs([(region.address, region.size_bytes)])
    result = libc.io_uring_register(ring, libc.IORING_REGISTER_BUFFERS, buffers, 1)
    libc.check("io_uring_register", result)
    return ring


def note_pid() -> None:
    with open(Path(os.environ[NOTES], "pids"), "a", encoding="ascii") as pids:
        pids.write(f"{os.getpid()}\n")
