"""The engine of rdma-register: ibv_reg_mr and ibv_dereg_mr, as scripts/peers/register_rdma.c does.

libibverbs is called without pyverbs here, whose MR object costs more than pinning 64 KiB does: to
the 31 µs that a C program spends in ibv_reg_mr a call through workloads.libc adds 11 µs, and one
through pyverbs over 100 µs; to the 11 µs of ibv_dereg_mr 7 µs and 20 µs (Soft-RoCE of v7.2,
emulated, 64 KiB).
"""

from array import array
from collections.abc import Mapping
from functools import partial
from time import monotonic_ns

from workloads import libc, verbs
from workloads.load.churn import Churn, Memory
from workloads.load.engine import Work
from workloads.owner import Owner
from workloads.spec import PrepareFailed


def prepare(work: Work, owner: Owner) -> Churn:
    return Churn(work, Regions(work, Memory(work, owner), owner))


class Regions:
    """A memory region for each slot, in one protection domain of a context of its own."""

    extra: Mapping[str, "array[int]"] = {}

    def __init__(self, work: Work, memory: Memory, owner: Owner):
        if work.around.device is None:
            raise PrepareFailed("no rdma device was chosen")
        context = libc.ibv_open_device(work.around.device)
        owner.release_with("ibv_close_device", partial(libc.ibv_close_device, context))
        self._domain = libc.ibv_alloc_pd(context)
        owner.release_with("ibv_dealloc_pd", partial(libc.ibv_dealloc_pd, self._domain))
        self._flags = verbs.access_flags(work.job.access)
        self._memory = memory
        self._acquire = memory.calls()
        self._dereg_mr = libc.ibv_dereg_mr()
        # What it is called with, for what each slot has registered.
        self._regions: list[object] = [None] * memory.depth

    def acquire(self, slot: int, size_bytes: int) -> int:
        call = self._acquire[size_bytes][slot] or self._acquiring(slot, size_bytes)
        clock = monotonic_ns
        start_ns = clock()
        region = call()
        elapsed_ns = clock() - start_ns
        if region is None:
            libc.check_bound("ibv_reg_mr", -1, elapsed_ns=elapsed_ns)
        self._regions[slot] = libc.pointer_argument(region)
        return elapsed_ns

    def release(self, slot: int) -> int:
        call, region, clock = self._dereg_mr, self._regions[slot], monotonic_ns
        start_ns = clock()
        number = call(region)
        elapsed_ns = clock() - start_ns
        if number:
            libc.check_number("ibv_dereg_mr", number)
        return elapsed_ns

    def _acquiring(self, slot: int, size_bytes: int) -> libc.Call:
        address = self._memory.address(slot)
        call = libc.ibv_reg_mr_call(self._domain, address, size_bytes, self._flags)
        self._acquire[size_bytes][slot] = call
        return call
