"""``compaction`` and ``drop-caches``: a number written to a file of the kernel's.

Neither is a setting: the file keeps nothing, so that there is nothing to give back. Compaction of
a large machine takes seconds, in one system call. To drop_caches bit 2 (the value 4) is never
written: it silences the kernel's line in the log, and that until the next boot
(drop_caches_sysctl_handler() in fs/drop_caches.c, in v6.1 and v7.2).
"""

import os
from pathlib import Path
from time import monotonic_ns

from telemetry import numa
from workloads import libc
from workloads.antagonists import COMPACT_MEMORY, DROP_CACHES
from workloads.antagonists.act import Acting, Done, parameters, take_own_pace
from workloads.load.engine import Engine, Work
from workloads.owner import Owner


def prepare(work: Work, owner: Owner) -> Engine:
    take_own_pace(work)
    path, text = _file_of(work), b"1"
    if work.job.workload == "drop-caches":
        text = str(parameters(work)["value"]).encode()
    with libc.refusal_of("open", str(path)):
        switch = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    owner.release_with(str(path), lambda: os.close(switch))

    def act() -> Done:
        start_ns = monotonic_ns()
        with libc.refusal_of("write", str(path)):
            os.pwrite(switch, text, 0)
        return monotonic_ns() - start_ns, 0

    return Acting(work, act)


def _file_of(work: Work) -> Path:
    if work.job.workload == "drop-caches":
        return DROP_CACHES
    if work.job.node is None:
        return COMPACT_MEMORY
    return numa.NODES / f"node{work.job.node}" / "compact"
