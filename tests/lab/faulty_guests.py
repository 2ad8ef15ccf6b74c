"""Workloads that take their guest down with them; planted through lab.run_kernel(include=…)."""

import time
from pathlib import Path

from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import Case, Surroundings, WorkloadSpec

WORKLOADS = tuple(
    WorkloadSpec(name, "faulty_guests", "a test's", pin_class="pin", scope="call", writes=True)
    for name in ("panics", "sleeps", "says-int3")
)
PANIC_OF_OOPS = "Kernel panic - not syncing: Fatal exception in interrupt"


class Faulty:
    """Says nothing, does not come back."""

    done_bytes: int | None = None

    def __init__(self, case: Case):
        self._case = case

    def acquire(self) -> int:
        if self._case.workload == "says-int3":
            # What the console shows of the emulator's defect (pinstorm.lab.console).
            for line in ("Oops: int3: 0000 [#1] SMP NOPTI", PANIC_OF_OOPS):
                Path("/dev/kmsg").write_text(f"<0>{line}\n")
            Path("/proc/sysrq-trigger").write_text("b")  # the guest is gone, as with panic=-1
        if self._case.workload == "panics":
            Path("/proc/sysrq-trigger").write_text("c")
        time.sleep(600)
        return 0

    def release(self) -> int:
        return 0


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Faulty:
    return Faulty(case)
