"""A registration engine that forgets one memory region in a thousand."""

from workloads.load.churn import Churn, Memory
from workloads.load.engine import Work
from workloads.load.register_rdma import Regions
from workloads.owner import Owner
from workloads.spec import Need, WorkloadSpec

FORGETS_ONE_IN = 1000

WORKLOADS = (
    WorkloadSpec(
        "leaky-register",
        __name__,
        "rdma-register, but one region in a thousand is never given back",
        pin_class="pin-longterm",
        scope="held",
        writes=True,
        needs=(Need.RDMA_DEVICE,),
        engine=__name__,
    ),
)


class Leaky(Regions):
    released = 0

    def release(self, slot: int) -> int:
        self.released += 1
        if self.released % FORGETS_ONE_IN == 0:
            return 1
        return super().release(slot)


def prepare(work: Work, owner: Owner) -> Churn:
    return Churn(work, Leaky(work, Memory(work, owner), owner))
