"""gup-overflow that never has the kernel warn again; planted through lab.run_kernel(include=…)."""

from dataclasses import replace

import workloads
from workloads import gup_overflow
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import Case, Operation, Surroundings

WORKLOADS = (replace(workloads.workload_spec("gup-overflow"), module="unarmed_overflow"),)


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Operation:
    gup_overflow._have_warnings_again = lambda: None
    return gup_overflow.prepare(case, region, around, owner)
