"""A workload that is not of the pin class it says; planted through lab.run_kernel(include=…)."""

from workloads import vmsplice
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import Case, Need, Operation, Surroundings, WorkloadSpec

# It says that it is a direct write, which pins; it fills pipes, which take references only.
WORKLOADS = (
    WorkloadSpec(
        "gets-but-says-it-pins",
        "faulty_witness",
        "a test's",
        pin_class="pin",
        scope="call",
        writes=False,
        needs=(Need.TARGET_DIO,),
    ),
)


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Operation:
    return vmsplice.prepare(case, region, around, owner)
