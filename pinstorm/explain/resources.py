"""What can be used up: memory, mappings, the rdma cgroup, the device's table, a page's pins."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from pinstorm.evidence import Group
from pinstorm.explain.causes import Cause
from pinstorm.explain.check import Hit, Stage, guess, hit, size
from pinstorm.explain.finding import CONFIDENCES, Confidence
from pinstorm.explain.view import View
from workloads.spec import PAGE_BYTES

_OOM_KILL: Final = re.compile(r"[Oo]ut of memory: Killed process (\d+)")
_OOM: Final = re.compile(r"[Oo]ut of memory|oom-kill|invoked oom-killer")
# try_grab_page() in v6.1, try_grab_folio() later: WARN_ON_ONCE(folio_ref_count(folio) <= 0)
_PIN_COUNT: Final = re.compile(r"WARNING:.*\btry_grab_(page|folio(_fast)?)\b")
# A call in the middle of a mapping splits it twice.
_VMA_SLACK: Final = 2
# Of a device without IBK_LOCAL_DMA_LKEY the kernel has a region in each protection domain of its
# own (__ib_alloc_pd() in drivers/infiniband/core/verbs.c), which no list shows: Soft-RoCE refuses
# when 524286 of 524287 are seen, measured on 7.2.
_KERNEL_REGIONS: Final = 8
_DEFAULT_VMAS: Final = 262144
_GROUPS: Final = "/sys/fs/cgroup"
# Beyond what a group has: a call makes few objects, and the limit is there for a reason.
_OBJECTS_MORE: Final = 16
# Of both vm.max_map_count and rdma.max.
_INT_MAX: Final = (1 << 31) - 1
# What a group needs beyond the bytes that were asked for: page tables, kernel memory.
_GROUP_SLACK_BYTES: Final = 16 << 20


def no_memory(view: View) -> list[Hit]:
    """The machine, the memory cgroup, the pool of huge pages, RLIMIT_AS."""
    short = view.mechanism.short_errno if view.mechanism is not None else None
    transfers = view.walks_pages and view.mechanism is not None and not view.longterm
    errnos = {"ENOMEM", *([short] if short else []), *(["short"] if transfers else [])}
    if view.outcome not in errnos:
        return []
    told: list[str] = []
    sure: list[Confidence] = []
    remedy, machine, asked = None, view.evidence.machine, view.page_bytes
    most = _sure_of_need(view)
    full = [one for one in view.evidence.groups or () if _is_full(one, asked)] if most else []
    for group in full:
        told.append(_memory_words(group))
        if most is not None:  # how much of the usage can be given up decides
            sure.append("likely" if most == "certain" and group.reclaimable is None else most)
    commands = [_raise_memory_max(group, asked) for group in full]
    if machine is not None and asked is not None and most is not None:
        left = machine.available_bytes
        if left is not None and left < asked:
            told.append(f"{size(asked)} were asked for, and {size(left)} are available")
            sure.append(most)
    if view.failure.call == "mmap":
        told_of, helps, remedy = _pool_or_space(view)
        told += told_of
        sure += ["certain"] * len(told_of)
        commands += [helps] if told_of else []
    log = [f"the kernel log: {line.strip()}" for line in view.kernel_log if _OOM.search(line)][:2]
    if told or log:
        stage = Stage.PAGES if view.walks_pages else Stage.ARGUMENTS
        sure += ["likely"] if log else []
        best = min(sure, key=CONFIDENCES.index)
        command = _all_of(commands)
        return [
            hit(Cause.NO_MEMORY, best, stage, errnos, *told, *log, remedy=remedy, command=command)
        ]
    if machine is not None and machine.available_bytes is not None and asked is not None:
        return []
    if view.mechanism is None:
        return []
    # a page fault that finds no memory in the middle of the range is a rare EFAULT: no guess
    found = guess(view, Cause.NO_MEMORY, Stage.PAGES, "ENOMEM")
    return [found] if found else []


def killed(view: View) -> list[Hit]:
    """No errno at all: the OOM killer took the process, and the kernel log says so."""
    pid = view.pid
    for line in view.kernel_log:
        found = _OOM_KILL.search(line)
        if found is not None and pid is not None and int(found[1]) == pid:
            return [
                hit(
                    Cause.NO_MEMORY,
                    "certain",
                    Stage.PAGES,
                    {view.outcome},
                    f"the kernel log: {line.strip()}",
                )
            ]
    return []


def _is_full(group: Group, asked_bytes: int | None) -> bool:
    """Page cache that is given up when it is asked for is no usage that stands in the way.

    Nor does it say anything that the limit was met before: each group that reads files meets it.
    """
    if group.controller != "memory" or group.used is None:
        return False
    used = max(0, group.used - (group.reclaimable or 0))
    return used + max(1, asked_bytes or 0) > group.limit


def _memory_words(group: Group) -> str:
    words = f"{group.limit_file or 'the limit'} of {group.group} is {size(group.limit)}"
    words += f", {size(group.used)} are used"
    if group.reclaimable:
        words += f" ({size(group.reclaimable)} of them page cache that is given up first)"
    return words + (f", and it was met {group.failures} times" if group.failures else "")


def _sure_of_need(view: View) -> Confidence | None:
    """How much a lack of memory says here: None where the pages are there already.

    Of a case it is known whether its memory was to be faulted in. Of another program it is not,
    but what is more than the process has in all cannot have been there.
    """
    if view.failure.call == "mmap":
        return "likely"  # it faults nothing in where MAP_POPULATE does not ask for it
    if view.failure.phase == "prepare" and view.case is not None:
        return "certain"
    asked = view.page_bytes
    if view.memory is None:
        resident = view.process.vmrss_bytes if view.process is not None else None
        beyond = asked is not None and resident is not None and asked > resident
        return "likely" if beyond else "possible"
    if view.memory.present in ("zero-page", "copy-on-write"):
        return "certain"  # the copy is made when it is pinned
    placement = view.record.get("placement")
    if not placement:
        return "certain" if view.memory.present == "absent" else None
    there = sum((placement.get("zones") or {}).values()) * PAGE_BYTES
    return "certain" if asked is not None and there < asked else None


def _raise_memory_max(group: Group, asked_bytes: int | None) -> str | None:
    """None where it is not known which file it is: memory.limit_in_bytes in v1."""
    if group.limit_file is None:
        return None
    used = max(group.limit, group.used or 0)
    limit = used + (asked_bytes or 0) + _GROUP_SLACK_BYTES
    return _write(str(limit), f"{_path(group.group)}/{group.limit_file}")


def _all_of(commands: Sequence[str | None]) -> str | None:
    """One that helps only with another one that nobody knows is none."""
    known = [one for one in commands if one is not None]
    return " && ".join(known) if known and len(known) == len(commands) else None


def _write(value: str, path: str) -> str | None:
    """A shell command; None for a path with characters that a terminal would not show as they are.

    Whoever a group was delegated to gives its children any name, and systemd's have backslashes.
    """
    if not (value.isprintable() and path.isprintable()):
        return None
    return f"printf '%s\\n' {shlex.quote(value)} > {shlex.quote(path)}"


def _pool_or_space(view: View) -> tuple[list[str], str | None, str | None]:
    """What only mmap meets: an empty pool, RLIMIT_AS, strict overcommit.

    Sentences, a command, and a remedy where the cause's own does not fit.
    """
    machine, process, asked = view.evidence.machine, view.process, view.page_bytes
    if asked is None:
        return [], None, None
    if view.backing == "hugetlb" and view.memory is not None and machine is not None:
        page = view.memory.granule_bytes
        free = machine.free_huge_bytes.get(str(page))
        needed = view.memory.mapped_bytes(asked)
        if free is not None and free < needed:
            pool = f"/sys/kernel/mm/hugepages/hugepages-{page // 1024}kB/nr_hugepages"
            more = (needed - free) // page
            told = f"{size(needed)} of {size(page)} pages were asked for, {size(free)} are free"
            return [told], f"echo $(( $(cat {pool}) + {more} )) > {pool}", None
    if process is not None and process.address_space_bytes not in (None, -1):
        limit, used = process.address_space_bytes, process.vmsize_bytes or 0
        if limit is not None and used + asked > limit:
            told = f"RLIMIT_AS is {size(limit)}, VmSize {size(used)}, and {size(asked)} more"
            return [told], f"prlimit --pid {process.pid} --as=unlimited:unlimited", None
    if machine is not None and machine.commit_left_bytes is not None:
        left = machine.commit_left_bytes
        if left < asked:
            told = (
                f"strict overcommit leaves {size(max(0, left))} of CommitLimit, {size(asked)} asked"
            )
            remedy = "raise vm.overcommit_ratio (or vm.overcommit_kbytes), or add swap: both raise"
            return [told], None, f"{remedy} CommitLimit; or ask for less"
    return [], None, None


def vma_limit(view: View) -> list[Hit]:
    """Every mapping call, and libibverbs' MADV_DONTFORK before it asks the kernel."""
    # madvise(2) makes EAGAIN of the kernel's ENOMEM, and libibverbs hands that on
    errnos = {"ENOMEM"}
    if view.failure.call == "madvise" or (view.mechanism is not None and view.mechanism.verbs):
        errnos.add("EAGAIN")
    if view.outcome not in errnos or view.mechanism is None:
        return []
    if view.mechanism.name not in ("mapping", "memory region", "mlock", "verbs object"):
        return []
    process = view.process
    stage = Stage.LIBRARY if view.mechanism.verbs else Stage.ARGUMENTS
    if process is None or process.vma_count is None or process.vma_limit is None:
        if view.case is not None and view.mechanism.name != "mapping":
            return []  # pyverbs never asks for fork support
        found = guess(view, Cause.VMA_LIMIT, stage, *sorted(errnos))
        return [found] if found else []
    if process.vma_count < process.vma_limit - _VMA_SLACK:
        return []
    told = f"the process has {process.vma_count} mappings, vm.max_map_count is {process.vma_limit}"
    limit = min(max(2 * process.vma_limit, _DEFAULT_VMAS), _INT_MAX)
    certain = view.mechanism.name in ("mapping", "mlock")
    return [
        hit(
            Cause.VMA_LIMIT,
            "certain" if certain else "likely",
            stage,
            errnos,
            told,
            "" if certain else "libibverbs splits mappings where it guards against fork",
            command=f"sysctl -w vm.max_map_count={limit}" if limit > process.vma_limit else None,
        )
    ]


def cgroup_rdma(view: View) -> list[Hit]:
    """rdmacg_try_charge(): EAGAIN."""
    if view.mechanism is None or not view.mechanism.verbs or view.outcome != "EAGAIN":
        return []
    kind = "hca_handle" if view.failure.call == "ibv_open_device" else "hca_object"
    used_device = _used_device(view, kind)
    full = [
        one
        for one in view.evidence.groups or ()
        if one.controller == "rdma"
        and one.resource == kind
        and (one.device is None or used_device in (None, one.device))
        and (one.used is None or one.used >= one.limit)
    ]
    if full:
        told = [
            f"rdma.max of {one.group} allows {one.device or used_device or 'a device'} {one.limit} "
            f"{kind}" + ("" if one.used is None else f", {one.used} are used")
            for one in full
        ]
        seen = any(one.used is not None and one.device is not None for one in full)
        sure: Confidence = "certain" if seen and used_device is not None else "likely"
        if used_device is None:
            told.append("which device was used is not known")
        command = _all_of([_raise_rdma_max(one, one.device or used_device) for one in full])
        return [hit(Cause.CGROUP_RDMA_LIMIT, sure, Stage.GROUP, {"EAGAIN"}, *told, command=command)]
    if view.evidence.groups is not None:
        return []
    return [
        hit(
            Cause.CGROUP_RDMA_LIMIT,
            "possible",
            Stage.GROUP,
            {"EAGAIN"},
            f"{view.failure.call} gives EAGAIN where the rdma cgroup refuses a charge",
        )
    ]


def _used_device(view: View, kind: str) -> str | None:
    """None where it is not known: another program opens any, or has several open."""
    if view.case is not None:
        return view.device_name
    device = view.evidence.device
    if device is None or kind == "hca_handle" or device.others_open is not False:
        return None
    return device.name


def _raise_rdma_max(group: Group, device: str | None) -> str | None:
    """Without a limit nothing holds back what it was made to hold back: so no ``max``."""
    limit = min(max(2 * group.limit, (group.used or group.limit) + _OBJECTS_MORE), _INT_MAX)
    if device is None or limit <= group.limit:
        return None
    return _write(f"{device} {group.resource}={limit}", f"{_path(group.group)}/rdma.max")


def _path(group: str) -> str:
    return group if group.startswith("/sys/") else f"{_GROUPS}/{group.strip('/')}".rstrip("/")


def device_limit(view: View) -> list[Hit]:
    """max_mr and max_mr_size of the device; the entry limits of vfio and udmabuf."""
    mechanism = view.mechanism
    if mechanism is None:
        return []
    if mechanism.name == "vfio mapping" and view.outcome == "ENOSPC":
        told = "VFIO_IOMMU_MAP_DMA gives ENOSPC when a container has dma_entry_limit mappings"
        return [hit(Cause.DEVICE_LIMIT, "certain", Stage.ARGUMENTS, {"ENOSPC"}, told)]
    if mechanism.name == "udmabuf":
        return _udmabuf_size(view)
    if mechanism.name != "memory region":
        return []
    errnos = {"ENOMEM", "EINVAL", "ENOSPC"}
    device = view.evidence.device
    if device is not None:
        mrs = device.mrs
        if device.max_mr and mrs is not None and mrs + _KERNEL_REGIONS >= device.max_mr:
            told = f"{device.name} has {device.mrs} memory regions, and max_mr is {device.max_mr}"
            return [hit(Cause.DEVICE_LIMIT, "certain", Stage.DEVICE, errnos, told)]
        asked, most = view.size_bytes, device.max_mr_size_bytes
        if most and asked is not None and asked > most:
            told = f"{size(asked)} were asked for, and max_mr_size of {device.name} is {size(most)}"
            return [hit(Cause.DEVICE_LIMIT, "certain", Stage.DEVICE, errnos, told)]
        if device.max_mr and device.mrs is not None:
            return []
    if view.case is not None and view.outcome == "EINVAL" and view.on_demand:
        return []
    found = guess(view, Cause.DEVICE_LIMIT, Stage.DEVICE, *sorted(errnos))
    return [found] if found else []


def _udmabuf_size(view: View) -> list[Hit]:
    """pinstorm never asks for more than the default at once."""
    most = 64 << 20
    if view.outcome != "EINVAL" or view.case is not None or (view.size_bytes or 0) <= most:
        return []
    parameter = "/sys/module/udmabuf/parameters/size_limit_mb"
    megabytes = -(-(view.size_bytes or 0) // (1 << 20))
    told = f"{size(view.size_bytes)} were asked for, and size_limit_mb is 64 by default"
    command = f"echo {megabytes} > {parameter}"
    return [hit(Cause.DEVICE_LIMIT, "likely", Stage.ARGUMENTS, {"EINVAL"}, told, command=command)]


def pin_count(view: View) -> list[Hit]:
    """2^21 pins of one small page: the kernel warns, once a boot."""
    if not view.longterm and not (view.mechanism and view.mechanism.pins == "short"):
        return []
    assert view.mechanism is not None
    errnos = frozenset({view.mechanism.short_errno or "ENOMEM", "ENOMEM"})
    warnings = [match for text in _own_log(view) if (match := _PIN_COUNT.search(text))]
    if warnings:
        told = f"the kernel log: {warnings[0].string[warnings[0].start() :].splitlines()[0]}"
        return [hit(Cause.PIN_COUNT_LIMIT, "certain", Stage.PAGES, errnos, told)]
    if view.memory is not None and view.memory.one_page:
        told = (
            "the case pins one page until its reference count is full; the kernel warns only once"
        )
        return [hit(Cause.PIN_COUNT_LIMIT, "likely", Stage.PAGES, errnos, told)]
    if view.case is not None or view.outcome not in errnos or not view.longterm:
        return []
    found = guess(view, Cause.PIN_COUNT_LIMIT, Stage.PAGES, *sorted(errnos))
    return [found] if found else []


def _own_log(view: View) -> list[str]:
    """The reports that are the case's own: others of the machine do not speak of it.

    Where a record has none, as another program's, the lines since it began.
    """
    reports = view.record.get("kmsg")
    if reports is None:
        return list(view.evidence.kernel_log or ())
    return [
        str(entry.get("text", "")) if isinstance(entry, Mapping) else str(entry)
        for entry in reports
        if not isinstance(entry, Mapping) or entry.get("own", True)
    ]
