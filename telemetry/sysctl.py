"""/proc/sys: kernel settings, by their dotted names.

Machine-wide (some per namespace); levels, changed by administrators only. Read-only here: what
changes the machine belongs to pinstorm.host. See Documentation/admin-guide/sysctl/.
"""

from pathlib import Path

SYS = Path("/proc/sys")

# What can change the outcome or the figures of a case.
RELEVANT = (
    "vm.stat_interval",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.overcommit_ratio",
    "vm.nr_hugepages",
    "vm.nr_overcommit_hugepages",
    "vm.swappiness",
    "vm.compaction_proactiveness",
    "vm.compact_unevictable_allowed",
    "vm.zone_reclaim_mode",
    "vm.min_free_kbytes",
    "vm.memfd_noexec",
    "vm.unprivileged_userfaultfd",
    "kernel.io_uring_disabled",
    "kernel.io_uring_group",
    "kernel.numa_balancing",
    "kernel.perf_event_paranoid",
    "kernel.kptr_restrict",
    "kernel.dmesg_restrict",
    "kernel.yama.ptrace_scope",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.panic_on_warn",
    "kernel.hung_task_timeout_secs",
    "kernel.sched_rt_runtime_us",
    "fs.aio-max-nr",
    "fs.pipe-max-size",
    "fs.pipe-user-pages-hard",
    "fs.pipe-user-pages-soft",
    "net.core.optmem_max",
)


def read(name: str) -> str | None:
    """The text of one setting, white space trimmed; None where absent or not readable."""
    try:
        return (SYS / name.replace(".", "/")).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def read_int(name: str) -> int | None:
    """None also where the setting is not one number."""
    text = read(name)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def relevant() -> dict[str, str]:
    """RELEVANT settings that this kernel has and shows."""
    values = {name: read(name) for name in RELEVANT}
    return {name: value for name, value in values.items() if value is not None}
