"""The engine of rdma-register: ibv_reg_mr and ibv_dereg_mr, as scripts/peers/register_rdma.c does.

libibverbs is called without pyverbs here, whose MR object costs more than pinning 64 KiB does:
beside a C program that spends 60 µs in ibv_reg_mr, a call through pyverbs takes 190 µs, and one
through workloads.libc 76 µs (Soft-RoCE of v7.2, emulated).
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
        self._acquire: dict[tuple[int, int], libc.Call] = {}
        # How to deregister what each slot has registered.
        self._release: dict[int, libc.Call] = {}

    def acquire(self, slot: int, size_bytes: int) -> int:
        call = self._acquire.get((slot, size_bytes)) or self._acquiring(slot, size_bytes)
        clock = monotonic_ns
        start_ns = clock()
        region = call()
        elapsed_ns = clock() - start_ns
        if region is None:
            libc.check_bound("ibv_reg_mr", -1, elapsed_ns=elapsed_ns)
        self._release[slot] = libc.ibv_dereg_mr_call(region)
        return elapsed_ns

    def release(self, slot: int) -> int:
        call, clock = self._release[slot], monotonic_ns
        start_ns = clock()
        number = call()
        elapsed_ns = clock() - start_ns
        libc.check_number("ibv_dereg_mr", number)
        return elapsed_ns

    def _acquiring(self, slot: int, size_bytes: int) -> libc.Call:
        address = self._memory.address(slot)
        call = libc.ibv_reg_mr_call(self._domain, address, size_bytes, self._flags)
        self._acquire[slot, size_bytes] = call
        return call
