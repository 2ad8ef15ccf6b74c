"""gup-overflow: pin the same memory again and again, to where one small page can take no more.

A pin of a page in a small folio adds GUP_PIN_COUNTING_BIAS (1024) to its reference count, which is
a signed 32-bit number: after about 2^21 pins it is negative, and GUP refuses with ENOMEM and a
WARN_ON_ONCE (mm/gup.c, try_grab_folio()). A large folio has a count of its own for pins, and each
adds 1: there the same number of pins is nothing special. ``through`` says which interface pins.

The kernel warns once a boot for each place in its code, so prepare has it forget that it did:
Documentation/admin-guide/clearing-warn-once.rst. Destructive: whatever else takes a reference on
the page meanwhile fails too, and a kernel with panic_on_warn goes down.
"""

import importlib
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import (
    CallFailed,
    Case,
    Operation,
    PrepareFailed,
    Surroundings,
    overflow_times,
)

CLEAR_WARN_ONCE = Path("/sys/kernel/debug/clear_warn_once")
# A ring or a socket each; with fewer pages in a registration there are more of them.
MOST_TIMES = 8448
_OTHER_DESCRIPTORS = 256


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "Overflow":
    times = overflow_times(region.pages)
    if times > MOST_TIMES:
        raise PrepareFailed(
            f"{region.mapped_bytes} bytes would be registered {times} times, more than "
            f"{MOST_TIMES}: give a size of 1 MiB or more"
        )
    whole = _whole(region)
    if case.params["through"] == "rdma":
        operations = _memory_regions(times, whole, around, owner)
    else:
        _allow_descriptors(times)
        module = importlib.import_module(_MODULES[case.params["through"]])
        operations = [module.prepare(case, whole, around, owner) for _ in range(times)]
    overflow = Overflow(operations)
    owner.release_with("registrations", overflow.give_back)
    _have_warnings_again()
    return overflow


class Overflow:
    """Registrations of the same memory, one after the other until the kernel refuses one.

    A refusal gives back all that came before it: it leaves nothing pinned.
    """

    done_bytes: int | None = None

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._registered: list[Operation] = []

    def aim_at(self, region: Region) -> None:
        for operation in self._operations:
            operation.aim_at(_whole(region))

    def acquire(self) -> int:
        """The time in the calls that pin, the refused one included."""
        pinning_ns = 0
        for operation in self._operations:
            try:
                pinning_ns += operation.acquire()
            except CallFailed as refusal:
                pinning_ns += refusal.elapsed_ns
                detail = f"registration {len(self._registered) + 1} of {len(self._operations)}"
                raise self._refused(refusal, detail, pinning_ns) from refusal
            self._registered.append(operation)
        return pinning_ns

    def _refused(self, refusal: CallFailed, detail: str, pinning_ns: int) -> CallFailed:
        try:
            self.give_back()
        except CallFailed as stuck:  # what stays behind is seen as leaked; the refusal comes first
            detail += f"; and one could not be given back: {stuck}"
        return CallFailed(refusal.call, refusal.errno, detail, pinning_ns)

    def release(self) -> int:
        return self.give_back()

    def give_back(self) -> int:
        """The time in the calls that unpin; the last that failed is raised when all were tried."""
        unpinning_ns = 0
        stuck: CallFailed | None = None
        while self._registered:
            try:
                unpinning_ns += self._registered.pop().release()
            except CallFailed as failure:
                stuck = failure
        if stuck is not None:
            raise stuck
        return unpinning_ns


_MODULES = {"io-uring": "workloads.io_uring_register", "af-xdp": "workloads.af_xdp"}


def _memory_regions(
    times: int, region: Region, around: Surroundings, owner: Owner
) -> Sequence[Operation]:
    """Of one protection domain. The zygote has imported both where pyverbs is."""
    from workloads import rdma_register, verbs

    _, domain = verbs.open_device(around.device, owner)
    flags = verbs.access_flags("rw")
    return [rdma_register.Register(domain, region, flags) for _ in range(times)]


def _whole(region: Region) -> Region:
    """All that is mapped: every interface takes whole pages."""
    return replace(region, size_bytes=region.mapped_bytes)


def _allow_descriptors(times: int) -> None:
    wanted = times + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    ceiling = hard if hard == resource.RLIM_INFINITY else max(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, ceiling))
    except (ValueError, OSError) as error:
        raise PrepareFailed(f"RLIMIT_NOFILE cannot be {wanted}: {error}") from error


def _have_warnings_again() -> None:
    try:
        CLEAR_WARN_ONCE.write_text("1")
    except OSError as error:
        raise PrepareFailed(f"{CLEAR_WARN_ONCE}: {error.strerror}") from error
