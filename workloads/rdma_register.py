"""rdma-register: ibv_reg_mr, CASE 2 of pin_user_pages.rst (FOLL_PIN | FOLL_LONGTERM).

The kernel pins every page in ib_umem_get() and keeps the pins until ibv_dereg_mr. They are charged
to mm->pinned_vm, which is VmPin.
"""

from pyverbs.mr import MR
from pyverbs.pd import PD

from workloads import verbs
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import Case, Surroundings


class Register:
    """Register the region for the device, and deregister it."""

    done_bytes: int | None = None

    def __init__(self, domain: PD, region: Region, flags: int):
        self._domain = domain
        self.aim_at(region)
        self._flags = flags
        self._registered: MR | None = None

    def aim_at(self, region: Region) -> None:
        self._region = region

    def acquire(self) -> int:
        self._registered, elapsed_ns = verbs.register(
            self._domain, self._region.address, self._region.size_bytes, self._flags
        )
        return elapsed_ns

    def release(self) -> int:
        assert self._registered is not None
        elapsed_ns = verbs.deregister(self._registered)
        self._registered = None
        return elapsed_ns

    def close(self) -> None:
        if self._registered is not None:
            self.release()


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Register:
    _, domain = verbs.open_device(around.device, owner)
    operation = Register(domain, region, verbs.access_flags(case.params["access"]))
    owner.release_with("ibv_dereg_mr", operation.close)
    return operation
