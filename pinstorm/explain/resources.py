"""What can be used up: memory, mappings, the rdma cgroup, the device's table, a page's pins."""

import re
from typing import Final

from pinstorm.evidence import Group
from pinstorm.explain.causes import Cause
from pinstorm.explain.check import Hit, Stage, guess, hit, size
from pinstorm.explain.finding import Confidence
from pinstorm.explain.view import View
from workloads.spec import PAGE_BYTES

_OOM_KILL: Final = re.compile(r"[Oo]ut of memory: Killed process (\d+)")
_OOM: Final = re.compile(r"[Oo]ut of memory|oom-kill|invoked oom-killer")
# try_grab_page() in v6.1, try_grab_folio() later: WARN_ON_ONCE(folio_ref_count(folio) <= 0)
_PIN_COUNT: Final = re.compile(r"WARNING:.*(mm/gup\.c|try_grab_(page|folio)|gup_)")
# A call in the middle of a mapping splits it twice.
_VMA_SLACK: Final = 2
# Of a device without IBK_LOCAL_DMA_LKEY the kernel has a region in each protection domain of its
# own (__ib_alloc_pd() in drivers/infiniband/core/verbs.c), which no list shows: Soft-RoCE refuses
# when 524286 of 524287 are seen, measured on 7.2.
_KERNEL_REGIONS: Final = 8
_DEFAULT_VMAS: Final = 262144
_GROUPS: Final = "/sys/fs/cgroup"
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
    command, machine, asked = None, view.evidence.machine, view.page_bytes
    for group in view.evidence.groups or ():
        needs_it = group.failures or not _is_mapped(view)
        if group.controller == "memory" and needs_it and _is_full(group, asked or 0):
            told.append(
                f"memory.max of {group.group} is {size(group.limit)}, {size(group.used)} are used"
                + (f", and it was met {group.failures} times" if group.failures else "")
            )
            command = command or _raise_memory_max(group, asked)
    if machine is not None and asked is not None:
        left = machine.available_bytes
        if left is not None and left < asked and not _is_mapped(view):
            told.append(f"{size(asked)} were asked for, and {size(left)} are available")
    if view.failure.call == "mmap":
        told_of, helps = _pool_or_space(view)
        told += told_of
        command = command or helps
    log = [f"the kernel log: {line.strip()}" for line in view.kernel_log if _OOM.search(line)][:2]
    if told or log:
        stage = Stage.PAGES if view.walks_pages else Stage.ARGUMENTS
        sure: Confidence = "certain" if told else "likely"
        return [hit(Cause.NO_MEMORY, sure, stage, errnos, *told, *log, command=command)]
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


def _is_full(group: Group, asked_bytes: int) -> bool:
    return group.used is not None and group.used + asked_bytes > group.limit


def _is_mapped(view: View) -> bool:
    """Pages that are there already need no more memory to be pinned."""
    placement = view.record.get("placement") or {}
    there = sum((placement.get("zones") or {}).values()) * PAGE_BYTES
    return view.page_bytes is not None and there >= view.page_bytes


def _raise_memory_max(group: Group, asked_bytes: int | None) -> str:
    used = max(group.limit, group.used or 0)
    limit = used + (asked_bytes or 0) + _GROUP_SLACK_BYTES
    return f"echo {limit} > {_path(group.group)}/memory.max"


def _pool_or_space(view: View) -> tuple[list[str], str | None]:
    """What only mmap meets: an empty pool, RLIMIT_AS, strict overcommit."""
    machine, process, asked = view.evidence.machine, view.process, view.page_bytes
    if asked is None:
        return [], None
    if view.backing == "hugetlb" and view.memory is not None and machine is not None:
        page = view.memory.granule_bytes
        free = machine.free_huge_bytes.get(str(page))
        needed = view.memory.mapped_bytes(asked)
        if free is not None and free < needed:
            pool = f"/sys/kernel/mm/hugepages/hugepages-{page // 1024}kB/nr_hugepages"
            more = (needed - free) // page
            told = f"{size(needed)} of {size(page)} pages were asked for, {size(free)} are free"
            return [told], f"echo $(( $(cat {pool}) + {more} )) > {pool}"
    if process is not None and process.address_space_bytes not in (None, -1):
        limit, used = process.address_space_bytes, process.vmsize_bytes or 0
        if limit is not None and used + asked > limit:
            told = f"RLIMIT_AS is {size(limit)}, VmSize {size(used)}, and {size(asked)} more"
            return [told], f"prlimit --pid {process.pid} --as=unlimited:unlimited"
    if machine is not None and machine.commit_left_bytes is not None:
        left = machine.commit_left_bytes
        if left < asked:
            told = (
                f"strict overcommit leaves {size(max(0, left))} of CommitLimit, {size(asked)} asked"
            )
            return [told], "sysctl -w vm.overcommit_memory=0"
    return [], None


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
    limit = max(2 * process.vma_limit, _DEFAULT_VMAS)
    certain = view.mechanism.name in ("mapping", "mlock")
    return [
        hit(
            Cause.VMA_LIMIT,
            "certain" if certain else "likely",
            stage,
            errnos,
            told,
            "" if certain else "libibverbs splits mappings where it guards against fork",
            command=f"sysctl -w vm.max_map_count={limit}",
        )
    ]


def cgroup_rdma(view: View) -> list[Hit]:
    """rdmacg_try_charge(): EAGAIN."""
    if view.mechanism is None or not view.mechanism.verbs or view.outcome != "EAGAIN":
        return []
    kind = "hca_handle" if view.failure.call == "ibv_open_device" else "hca_object"
    limits = [one for one in view.evidence.groups or () if one.controller == "rdma"]
    ours = [one for one in limits if one.resource == kind] or limits
    for one in ours:
        if one.used is not None and one.used < one.limit:
            continue
        device = one.device or view.device_name
        used = "" if one.used is None else f", {one.used} are used"
        return [
            hit(
                Cause.CGROUP_RDMA_LIMIT,
                "certain" if one.used is not None else "likely",
                Stage.GROUP,
                {"EAGAIN"},
                f"rdma.max of {one.group} allows {device} {one.limit} {one.resource}{used}",
                command=f"echo '{device} {one.resource}=max' > {_path(one.group)}/rdma.max"
                if device is not None
                else None,
            )
        ]
    if limits and all(one.used is not None for one in limits):
        return []
    if view.evidence.groups is not None:
        return []
    return [
        hit(
            Cause.CGROUP_RDMA_LIMIT,
            "likely",
            Stage.GROUP,
            {"EAGAIN"},
            f"{view.failure.call} gives EAGAIN where the rdma cgroup refuses a charge",
        )
    ]


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
    warned = [line for line in view.kernel_log if _PIN_COUNT.search(line)]
    if warned:
        told = f"the kernel log: {warned[0].strip().splitlines()[0]}"
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
