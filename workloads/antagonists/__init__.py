"""What disturbs memory beside a load. The registry: it imports no antagonist.

An antagonist is the engine of a job (workloads.load.engine): its memory is its own and as large as
the job says, one operation is one act, and the latency of an act has the antagonist's name. What it
changed it gives back: memory and children are gone with its process, however that ends, and the
control group that a killed one leaves is removed at the end of the run, or by the next
(pinstorm.containment).
"""

from pathlib import Path

from workloads.spec import AntagonistSpec, Need

# What two of them write to; their needs are that this may be done. Writing 1 to the first, or to
# a node's own file, compacts all memory: Documentation/admin-guide/sysctl/vm.rst, and
# Documentation/ABI/stable/sysfs-devices-node.
COMPACT_MEMORY = Path("/proc/sys/vm/compact_memory")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")

ANTAGONISTS: tuple[AntagonistSpec, ...] = (
    AntagonistSpec(
        "compaction",
        "workloads.antagonists.switches",
        "compacts all memory of the machine, or of the job's node",
        needs=(Need.MACHINE_CHANGES, Need.COMPACTION),
        whole_machine=True,
        rate_ops_s=1.0,
        copies=0,
    ),
    AntagonistSpec(
        "drop-caches",
        "workloads.antagonists.switches",
        "drops the clean page cache of the machine; 2: dentries and inodes, 3: both",
        needs=(Need.MACHINE_CHANGES, Need.DROP_CACHES),
        params=("value",),
        defaults={"value": "1"},
        choices={"value": ("1", "2", "3")},
        whole_machine=True,
        rate_ops_s=1.0,
        copies=0,
    ),
    AntagonistSpec(
        "dontneed-churn",
        "workloads.antagonists.churn",
        "MADV_DONTNEED of its memory, and touches it again",
    ),
    AntagonistSpec(
        "munmap-churn",
        "workloads.antagonists.churn",
        "maps memory, touches it and unmaps it",
    ),
    AntagonistSpec(
        "fork-storm",
        "workloads.antagonists.fork_storm",
        "forks children that write to memory they share with it, and end",
        params=("alive",),
        defaults={"alive": 4},
        copies=2,
    ),
    AntagonistSpec(
        "thp-split",
        "workloads.antagonists.thp_split",
        "splits transparent huge pages and makes them huge again",
        needs=(Need.THP,),
        params=("how",),
        defaults={"how": "madv-free"},
        choices={"how": ("madv-free", "madv-dontneed", "munmap", "mprotect")},
    ),
    AntagonistSpec(
        "reclaim",
        "workloads.antagonists.reclaim",
        "has page cache reclaimed, by memory.reclaim of a control group or by MADV_PAGEOUT",
        needs=(Need.TARGET_DIO,),
        params=("through",),
        defaults={"through": "any"},
        choices={"through": ("any", "own-group", "load-group", "madv-pageout")},
        choice_needs=dict.fromkeys(("own-group", "load-group"), Need.CGROUP_MEMORY),
    ),
    AntagonistSpec(
        "migrate-pages",
        "workloads.antagonists.migrate_pages",
        "moves memory, its own or that of the whole load, from NUMA node to NUMA node and back",
        needs=(Need.NUMA,),
        params=("whose",),
        defaults={"whose": "own"},
        choices={"whose": ("own", "load")},
    ),
    AntagonistSpec(
        "fill-cma",
        "workloads.antagonists.fill_cma",
        "fills CMA and ZONE_MOVABLE with anonymous memory, holds it, and gives it back",
        needs=(Need.MACHINE_CHANGES, Need.MOVABLE),
        params=("free_percent", "hold_ms"),
        defaults={"free_percent": 50, "hold_ms": 1000},
        whole_machine=True,
        # as much as it takes: what it leaves of the machine's memory bounds it
        size_bytes=1 << 40,
    ),
)


def antagonist_spec(name: str) -> AntagonistSpec:
    """The spec of that name; KeyError when there is none."""
    return _BY_NAME[name]


_BY_NAME = {spec.name: spec for spec in ANTAGONISTS}
