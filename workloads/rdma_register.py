"""rdma-register: ibv_reg_mr, CASE 2 of pin_user_pages.rst (FOLL_PIN | FOLL_LONGTERM).

The kernel pins every page in ib_umem_get() and keeps the pins until ibv_dereg_mr. They are charged
to mm->pinned_vm, which is VmPin.
"""

from pyverbs.mr import MR
from pyverbs.pd import PD

from workloads import verbs
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import CallFailed, Case, Surroundings


class Register:
    """Register the region for the device, ``times`` times over, and deregister it."""

    done_bytes: int | None = None

    def __init__(self, domain: PD, region: Region, flags: int, times: int = 1):
        self._domain = domain
        self.aim_at(region)
        self._flags = flags
        self._times = times
        self._registered: list[MR] = []

    def aim_at(self, region: Region) -> None:
        self._region = region

    def acquire(self) -> int:
        """All of them or none: the regions that were made before one is refused are given back."""
        elapsed_ns = 0
        try:
            for _ in range(self._times):
                registered, took_ns = verbs.register(
                    self._domain, self._region.address, self._region.size_bytes, self._flags
                )
                self._registered.append(registered)
                elapsed_ns += took_ns
        except CallFailed:
            self.release()
            raise
        return elapsed_ns

    def release(self) -> int:
        elapsed_ns = 0
        while self._registered:
            elapsed_ns += verbs.deregister(self._registered[-1])
            self._registered.pop()
        return elapsed_ns


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Register:
    _, domain = verbs.open_device(around.device, owner)
    operation = Register(domain, region, verbs.access_flags(case.params["access"]), case.times)
    owner.release_with("ibv_dereg_mr", operation.release)
    return operation
