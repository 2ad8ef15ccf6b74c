"""A workload that takes a known time, for tests of ``pinstorm compare``; ``Options(include=…)``.

It is no part of pinstorm. Its call does nothing but work; ``PINSTORM_PACE`` names a case, and how
many percent of the work that one does: ``planted-pace/anon/64KiB=120``. The others do 100.
"""

import hashlib
import os
import time

from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import Case, Surroundings, WorkloadSpec

PACE = "PINSTORM_PACE"
# A call of some hundred us.
_TURNS = 200
_BLOCK = bytes(1024)


class Paced:
    """Hashes as many blocks as it was told."""

    done_bytes: int | None = None

    def __init__(self, percent: int) -> None:
        self.turns = _TURNS * percent // 100

    def acquire(self) -> int:
        begin = time.monotonic_ns()
        digest = hashlib.sha256()
        for _ in range(self.turns):
            digest.update(_BLOCK)
        digest.digest()
        return max(1, time.monotonic_ns() - begin)

    def release(self) -> int:
        return 1


WORKLOADS = (
    WorkloadSpec(
        "planted-pace",
        __name__,
        "works for a known time",
        pin_class="none",
        scope="held",
        writes=True,
    ),
)


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> Paced:
    name, _, percent = os.environ.get(PACE, "").partition("=")
    return Paced(int(percent) if name == case.id else 100)
