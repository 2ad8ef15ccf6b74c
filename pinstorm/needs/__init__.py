"""What a case needs of the machine, and whether it is there: probed once, before anything runs.

Used by list, run, the lab and the tests. A need that is not met makes a skip, with a code, what was
found and what to do about it; all unmet needs of a case are told together. After the first case has
begun nothing may become a skip: what a kernel refuses then is an outcome, EOPNOTSUPP too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import workloads
from pinstorm.needs import devices, groups, interfaces, memory
from pinstorm.needs import scratch as places
from pinstorm.needs.devices import Capabilities, choose_device
from pinstorm.needs.scratch import BLOCK_BACKED, default_scratch
from pinstorm.needs.unmet import Unmet, lacks
from telemetry import cma, kmsg, mountinfo, rdma
from workloads.load.spec import Job
from workloads.spec import CAPABILITIES, THROUGH, Case, MemorySpec, Need, Surroundings

__all__ = [
    "BLOCK_BACKED",
    "Capabilities",
    "Survey",
    "Unmet",
    "choose_device",
    "default_scratch",
    "needs_of",
    "survey",
]

_REPORT_REMEDY = "see console.log in the bundle"


def needs_of(case: Case) -> tuple[Need, ...]:
    """What the case asks of any machine. With ``force`` it does without a device's capability."""
    if case.load is not None:
        return tuple(dict.fromkeys(need for job in case.load.jobs for need in _of_job(job)))
    workload, backing = workloads.workload_spec(case.workload), workloads.memory_spec(case.memory)
    wanted = dict.fromkeys(workload.needs + backing.needs)
    if "uid" in case.params:
        wanted[Need.ORDINARY_USER] = None
    if "through" in case.params:
        wanted[THROUGH[case.params["through"]]] = None
    if "under" in case.params:
        under = workloads.circumstance_spec(str(case.params["under"]))
        wanted |= dict.fromkeys(under.needs)
    forced = CAPABILITIES if case.params.get("force", False) else frozenset()
    if case.remedy:
        wanted[Need.MACHINE_CHANGES] = None
    return tuple(need for need in wanted if need not in forced)


def _of_job(job: Job) -> tuple[Need, ...]:
    """What one job of a load needs, or an antagonist."""
    if workloads.is_antagonist(job.workload):
        spec = workloads.antagonist_spec(job.workload)
        change = (Need.MACHINE_CHANGES,) if spec.whole_machine else ()
        words = (need for word, need in spec.choice_needs.items() if word in job.params.values())
        return (*spec.needs, *change, *words)
    asked = {"uid": job.uid} if job.uid is not None else {}
    return needs_of(Case(job.workload, job.memory, {"size_bytes": job.buffer_bytes, **asked}))


@dataclass(slots=True)
class Survey:
    """What this machine offers, as found before the first case.

    ``free_huge_bytes``: of each pool that the kernel has.
    """

    around: Surroundings
    lacking: dict[Need, Unmet] = field(default_factory=dict)
    free_huge_bytes: Mapping[Need, int] = field(default_factory=dict)
    movable_bytes: int = 0
    # The highest RLIMIT_MEMLOCK that a case may ask for; None: any
    memlock_ceiling_bytes: int | None = None
    target_fs: str | None = None
    driver: str | None = None

    def unmet(self, case: Case) -> list[Unmet]:
        """Every need of the case that this machine does not meet; empty when it can run."""
        wanted = dict.fromkeys(needs_of(case))
        if any(self._must_evacuate(spec) for spec in workloads.memories(case)):
            wanted[Need.IO_URING] = None
        found = [self.lacking[need] for need in wanted if need in self.lacking]
        mapped_bytes = workloads.mapped_bytes(case)
        for need, free_bytes in self.free_huge_bytes.items():
            if need in wanted and need not in self.lacking:
                found += memory.huge_shortage(need, mapped_bytes, free_bytes)
        if Need.MOVABLE in wanted and Need.MOVABLE not in self.lacking:
            found += memory.movable_shortage(mapped_bytes, self.movable_bytes)
        if "memlock_bytes" in case.params:
            limit_bytes = int(case.params["memlock_bytes"])
            found += memory.memlock_shortage(limit_bytes, self.memlock_ceiling_bytes)
        return found

    def _must_evacuate(self, spec: MemorySpec) -> bool:
        """Plain memory may lie in CMA or ZONE_MOVABLE: io_uring moves it out by a long-term pin."""
        plain = spec.backing in ("anon", "shmem", "hugetlb") and not spec.movable
        written = spec.present in ("own", "copy-on-write")
        return plain and written and bool(self.movable_bytes)


def survey(
    *,
    device: str | None,
    scratch: Sequence[Path],
    capabilities: Capabilities,
    pyverbs_error: str | None,
    log: kmsg.KernelLog | None,
    nodes: Mapping[str, str] | None = None,
    setup_failures: Mapping[Need, str] | None = None,
    destructive: bool = False,
    may_change: bool = False,
    lab: bool = False,
) -> Survey:
    """Look at the machine. A device or scratch directory that is not there is a UsageError.

    ``nodes``: devices by kind (see Surroundings) that somebody named; device-DAX only then.
    ``destructive``: whether somebody said that this machine may crash.
    ``setup_failures``: what the lab's guest set-up could not provide, told in the skip's place.
    ``may_change``: cases may change the machine for a while (the lab, ``--setup``).
    ``lab``: this machine is a guest of the lab, and what is on it was made there.
    """
    areas = cma.find(log.all_text() if log is not None else None)
    chosen = choose_device(device)
    can = dict(capabilities(chosen)) if chosen is not None and pyverbs_error is None else {}
    directories = places.directories(scratch)
    found_nodes, without_node = devices.find(nodes or {})
    found = Survey(
        Surroundings(
            device=chosen,
            device_can=can,
            scratch=directories,
            nodes=found_nodes,
            numa_nodes=memory.nodes_with_memory(),
            cma_ranges=areas,
            page_frames_visible=memory.page_frames_visible(),
        ),
        free_huge_bytes=memory.free_huge_bytes(),
        movable_bytes=memory.movable_bytes(areas or ()),
        memlock_ceiling_bytes=memory.memlock_ceiling_bytes(),
        target_fs=_fs_type(directories.get("target")),
        driver=next((entry.driver for entry in rdma.read() if entry.name == chosen), None),
    )
    lacking = [
        *devices.rdma_unmet(chosen, lambda _: can, pyverbs_error),
        *without_node,
        *interfaces.unmet(),
        *places.unmet(directories),
        *memory.unmet(
            found.free_huge_bytes,
            found.around.numa_nodes,
            found.movable_bytes,
            found.around.page_frames_visible,
            found_nodes.get("devdax"),
        ),
        *_ordinary_user(),
        *_destructive(destructive),
        *groups.unmet(may_change),
        *_lab(lab),
    ]
    for need, failure in (setup_failures or {}).items():
        lacking.append(Unmet(need, f"the guest's set-up failed: {failure}", _REPORT_REMEDY))
    found.lacking = {Need(unmet.code): unmet for unmet in lacking}
    return found


def _fs_type(directory: str | None) -> str | None:
    mount = mountinfo.of_path(directory) if directory is not None else None
    return mount.fs_type if mount is not None else None


def _destructive(allowed: bool) -> list[Unmet]:
    return [] if allowed else [lacks(Need.DESTRUCTIVE, "the case could crash this machine")]


def _lab(here: bool) -> list[Unmet]:
    return [] if here else [lacks(Need.LAB, "the case takes away a device, which may be in use")]


def _ordinary_user() -> list[Unmet]:
    if all(memory.has_capability(name) for name in ("CAP_SETUID", "CAP_SETGID")):
        return []
    return [lacks(Need.ORDINARY_USER, "this process may not become another user")]
