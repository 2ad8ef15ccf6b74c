"""The engine of rdma-register-odp: regions on demand, which pin nothing, and the faults they take.

Registering looks at no page. Two things make the device look:

- ``prefetch``: ibv_advise_mr of each region that was registered, with IBV_ADVISE_MR_FLAG_FLUSH,
  which waits for the pages; latencies ``prefetch``. Debian 12's provider for Soft-RoCE (rdma-core
  44) does not pass it on: EOPNOTSUPP.
- ``params.storm``: a storm of page faults. Before a region is given back its pages go to
  MADV_DONTNEED, which invalidates what the device has mapped; after one was registered the device
  touches all of it, by RDMA traffic that comes back to this process: latencies ``fault``. So every
  page is made and mapped anew in each turn. ``verify``: the bytes that were sent must be there.

Both may be refused, where the job allows it: then that is counted, and the region stays registered.
"""

from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic_ns

from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD

from workloads import libc, verbs
from workloads.load.churn import Churn, Memory
from workloads.load.engine import Mismatch, Work
from workloads.owner import Owner
from workloads.rdma_register_odp import bounce_buffer
from workloads.spec import CallFailed, PrepareFailed


def prepare(work: Work, owner: Owner) -> Churn:
    memory = Memory(work, owner)
    context, domain = verbs.open_device(work.around.device, owner)
    regions = OnDemand(work, memory, domain)
    if work.job.params.get("storm", False):
        regions.storm = _storm(work, memory, context, domain, owner)
    elif work.job.verify:
        raise PrepareFailed("no bytes are sent that verify could look for; add storm = true")
    return Churn(work, regions, pinned=False)


def _storm(work: Work, memory: Memory, context: Context, domain: PD, owner: Owner) -> "Storm":
    flags = verbs.access_flags(work.job.access)
    writes = bool(flags & verbs.access_flags("REMOTE_WRITE"))
    if not writes and not flags & verbs.access_flags("REMOTE_READ"):
        raise PrepareFailed(
            f"the device cannot touch memory with access {work.job.access}; "
            "give REMOTE_READ or REMOTE_WRITE, or storm = false"
        )
    if work.job.verify and not writes:
        raise PrepareFailed(
            f"nothing is sent with access {work.job.access} that verify could look for; "
            "give REMOTE_WRITE, or verify = false"
        )
    bounce = bounce_buffer(work.around, owner)
    return Storm(work, memory, verbs.Loopback(context, domain, bounce, owner), writes)


class OnDemand:
    """A region on demand for each slot."""

    storm: "Storm | None" = None

    def __init__(self, work: Work, memory: Memory, domain: PD):
        self._recorder = work.recorder
        self._memory = memory
        self._domain = domain
        self._flags = verbs.access_flags(work.job.access) | verbs.access_flags("ON_DEMAND")
        self._prefetch = work.job.prefetch
        self._regions: dict[int, tuple[MR, int]] = {}
        self._prefetched, self._faulted = array("q"), array("q")
        self.extra: Mapping[str, array[int]] = {
            "prefetch": self._prefetched,
            "fault": self._faulted,
        }

    def acquire(self, slot: int, size_bytes: int) -> int:
        address = self._memory.address(slot)
        region, elapsed_ns = verbs.register(self._domain, address, size_bytes, self._flags)
        self._regions[slot] = region, size_bytes
        try:
            if self._prefetch != "none":
                self._attempt(
                    self._prefetched,
                    lambda: verbs.prefetch(
                        self._domain, region, address, size_bytes, self._prefetch
                    ),
                )
            if (storm := self.storm) is not None:
                self._attempt(self._faulted, lambda: storm.touch(slot, size_bytes, region.rkey))
        except Exception:
            with suppress(CallFailed):  # the first cause is what is told
                self._deregister(slot)
            raise
        return elapsed_ns

    def release(self, slot: int) -> int:
        if self.storm is not None:
            self.storm.drop(slot, self._regions[slot][1])
        return self._deregister(slot)

    def _deregister(self, slot: int) -> int:
        elapsed_ns = verbs.deregister(self._regions[slot][0])
        del self._regions[slot]
        return elapsed_ns

    def _attempt(self, latencies: "array[int]", touch: Callable[[], int]) -> None:
        """Note how long it took, or count the refusal; one that is not allowed is raised."""
        try:
            latencies.append(touch())
        except CallFailed as error:
            self._recorder.refuse(error)


class Storm:
    """Device accesses to every page of a region, and the end of those pages."""

    def __init__(self, work: Work, memory: Memory, loopback: verbs.Loopback, writes: bool):
        self._recorder = work.recorder
        self._verify = work.job.verify
        self._memory = memory
        self._loopback = loopback
        self._writes = writes

    def touch(self, slot: int, size_bytes: int, rkey: int) -> int:
        """Nanoseconds until the device has touched all of the region, its page faults included."""
        address = self._memory.address(slot)
        sweep = self._loopback.write if self._writes else self._loopback.read
        start_ns = monotonic_ns()
        try:
            sweep(address, size_bytes, rkey)
        except CallFailed:
            self._loopback.recover()
            raise
        elapsed_ns = monotonic_ns() - start_ns
        if self._verify:
            self._look_for_bytes(slot, size_bytes)
        return elapsed_ns

    def drop(self, slot: int, size_bytes: int) -> None:
        libc.madvise(self._memory.address(slot), size_bytes, libc.MADV_DONTNEED)

    def _look_for_bytes(self, slot: int, size_bytes: int) -> None:
        start = slot * self._memory.stride_bytes
        sent = bytes(self._loopback.bounce.buffer[: self._loopback.bounce.size_bytes])
        for offset in range(0, size_bytes, len(sent)):
            length = min(len(sent), size_bytes - offset)
            found = self._memory.region.buffer[start + offset : start + offset + length]
            if bytes(found) != sent[:length]:
                wrong = next(at for at in range(length) if found[at] != sent[at])
                raise Mismatch(
                    f"RDMA WRITE: byte {offset + wrong} of a region of {size_bytes} bytes is "
                    f"{found[wrong]:#04x}, and {sent[wrong]:#04x} was sent"
                )
        self._recorder.verified += 1
