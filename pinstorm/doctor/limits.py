"""What bounds pins: RLIMIT_MEMLOCK and the capability that lifts it, control groups, mappings."""

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from pinstorm.doctor import pin_budget, raised_limit
from pinstorm.doctor.finding import Finding, Status, Topic
from pinstorm.doctor.sight import Sight, user_words
from pinstorm.evidence_parts import Holding, Process
from pinstorm.units import format_bytes
from telemetry import cgroup, meminfo, rdma_cgroup

_CHARGED: Final = "RDMA, io_uring buffers, AF_XDP, MSG_ZEROCOPY, vfio and mlock are charged"
_LAUNCH: Final = (
    "It is inherited: of a login from limits.conf, of a systemd unit from LimitMEMLOCK=, of a "
    "container from --ulimit memlock, of a Slurm step from slurmd"
)
# mm/mmap.c, DEFAULT_MAX_MAP_COUNT; Fedora and others raise it to 1048576
_USUAL_MAPPINGS: Final = 65530
_RAISED_MAPPINGS: Final = 1048576
# Holders that are named; the rest are a sum.
_MOST_NAMED: Final = 4


def findings(sight: Sight) -> Iterator[Finding]:
    yield _memlock(sight)
    yield _capability(sight)
    yield _user_namespace(sight.process)
    yield _held(sight)
    yield _memory_group(sight)
    yield _rdma_group()
    yield _mappings(sight.process)
    yield _address_space(sight.process)


def _limit(limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return "not known"
    return "unlimited" if limit_bytes < 0 else format_bytes(limit_bytes)


def _is_bounded(process: Process) -> bool:
    """Whether RLIMIT_MEMLOCK stands in the way of anything."""
    return not process.exempt and process.memlock_soft_bytes != -1


def _memlock(sight: Sight) -> Finding:
    process = sight.process
    soft, hard = process.memlock_soft_bytes, process.memlock_hard_bytes
    seen = f"RLIMIT_MEMLOCK is {_limit(soft)}, the hard limit {_limit(hard)}"
    if process.exempt and soft != -1:
        seen += "; CAP_IPC_LOCK lifts it"
    bounded = _is_bounded(process)
    return Finding(
        "memlock-limit",
        Topic.PIN_BUDGET,
        Status.LIMITED if bounded else Status.OK,
        seen,
        f"{_CHARGED} against it. {_LAUNCH}",
        pin_budget.raise_memlock(process) if bounded else None,
        {"soft_bytes": soft, "hard_bytes": hard},
    )


def _capability(sight: Sight) -> Finding:
    process = sight.process
    figures = {
        "effective": process.cap_ipc_lock,
        "permitted": process.cap_ipc_lock_permitted,
        "inheritable": process.cap_ipc_lock_inheritable,
        "counts": process.exempt,
    }
    if process.exempt and process.initial_userns:
        seen = "effective, in the initial user namespace"
    elif process.exempt:
        seen = "effective, where this is the initial user namespace"
    elif process.cap_ipc_lock:
        seen = "effective in this user namespace only: the kernel asks for it in the initial one"
    elif process.cap_ipc_lock_permitted:
        seen = "permitted, and not effective"
    elif process.cap_ipc_lock_inheritable:
        seen = "inheritable, and neither permitted nor effective"
    elif process.cap_ipc_lock is None:
        seen = "could not be read"
    else:
        seen = "this process has none"
    command = None
    uid = process.real_uid
    if _is_bounded(process) and process.initial_userns is not False and uid is not None:
        # of a user without an entry there are no groups to look up
        groups = "clear" if user_words(uid) == str(uid) else "init"
        command = (
            f"setpriv --reuid={uid} --regid={os.getgid()} --{groups}-groups "
            "--inh-caps=+ipc_lock --ambient-caps=+ipc_lock COMMAND"
        )
    return Finding(
        "cap-ipc-lock",
        Topic.PIN_BUDGET,
        Status.LIMITED if _is_bounded(process) else Status.OK,
        f"CAP_IPC_LOCK: {seen}",
        "lifts RLIMIT_MEMLOCK: of an io_uring when the ring is made, of the others at each call; "
        "the command, run by root, starts COMMAND with it",
        command,
        figures,
    )


def _user_namespace(process: Process) -> Finding:
    initial = process.initial_userns
    if initial is None:
        seen, status = "which user namespace this is could not be read", Status.LIMITED
    elif initial:
        seen, status = "this is the initial user namespace", Status.OK
    else:
        seen, status = "this is a user namespace of its own", Status.LIMITED
    return Finding(
        "user-namespace",
        Topic.PIN_BUDGET,
        status,
        seen,
        "in one of its own CAP_IPC_LOCK lifts nothing, and no limit can be raised above the hard "
        "one; who else is charged as the same user may not be visible from here",
        None,
        {"initial": initial},
    )


def _held(sight: Sight) -> Finding:
    """What this user has used up already of what its processes share."""
    process = sight.process
    used = pin_budget.used_bytes(sight)
    mine = pin_budget.of_user(sight.holdings)
    seen = f"{_limit(used)} charged to user {user_words(process.real_uid)}"
    if used is None:
        seen = "this user has used up all that the hard limit allows"
    if process.exempt:
        size = sum(one.size_bytes or 0 for one in mine)
        seen = f"{format_bytes(size)} held by user {user_words(process.real_uid)}, and not limited"
    elif sight.charged is None:
        seen += f", as far as its processes show: the kernel was not asked ({sight.uncharged})"
    named = _named(mine)
    if named:
        seen += f": {named}"
    unseen = [*sight.hidden]
    maybe = [one for one in sight.holdings if one.kind in pin_budget.MAYBE_OF_USER]
    if sight.charged is None and not process.exempt and maybe:
        unseen.append(f"of {_named(maybe)} it is not known to whom it is charged: run as root")
    short = bool(used or used is None) and _is_bounded(process)
    guessed = sight.charged is None and _is_bounded(process)
    return Finding(
        "memory-charged",
        Topic.PIN_BUDGET,
        Status.LIMITED if short or guessed else Status.OK,
        seen,
        "io_uring, AF_XDP, MSG_ZEROCOPY and iommufd share one account of the user, so what others "
        "hold is missing here; RDMA, vfio and mlock count for each process alone",
        f"pinstorm pins --uid {process.real_uid}" if mine or maybe else None,
        {"asked_kernel": sight.charged is not None},
        {"used_bytes": used, "holders": len({one.pid for one in mine})},
        tuple(unseen),
    )


def _named(holdings: Sequence[Holding]) -> str:
    ordered = sorted(holdings, key=lambda one: -(one.size_bytes or 0))
    words = [
        f"{one.name} (pid {one.pid}) "
        f"{'?' if one.size_bytes is None else format_bytes(one.size_bytes)} of {one.kind}"
        for one in ordered[:_MOST_NAMED]
    ]
    if len(ordered) > _MOST_NAMED:
        words.append(f"{len(ordered) - _MOST_NAMED} more")
    return ", ".join(words)


def _memory_group(sight: Sight) -> Finding:
    groups = [group for group in sight.evidence.groups or () if group.controller == "memory"]
    machine = sight.evidence.machine
    available = None if machine is None else machine.available_bytes
    why = "pinned pages cannot be given up, so a group that is full has its processes killed"
    levels = {"available_bytes": available}
    if sight.evidence.groups is None:
        seen = "the memory cgroup could not be read"
        return Finding("memory-cgroup", Topic.PIN_BUDGET, Status.LIMITED, seen, why, None, {})
    if not groups and cgroup.is_hidden("memory"):
        return _hidden_group("memory", why)
    if not groups:
        seen = "no memory cgroup limits this process"
        if available is not None:
            seen += f"; {format_bytes(available)} are available on the machine"
        figures = {"limit_bytes": None}
        return Finding(
            "memory-cgroup", Topic.PIN_BUDGET, Status.OK, seen, why, None, figures, levels
        )
    tightest = min(groups, key=pin_budget.left_bytes)
    seen = (
        f"{tightest.group} may have {format_bytes(tightest.limit)}, "
        f"{format_bytes(pin_budget.left_bytes(tightest))} are left"
    )
    total = meminfo.read().total_bytes
    binds = total is None or tightest.limit < total
    command = None
    if binds and tightest.limit_file:
        none = "max" if tightest.limit_file == "memory.max" else "-1"
        path = shlex.quote(f"{tightest.group}/{tightest.limit_file}")
        command = f"echo {none} > {path}"
    return Finding(
        "memory-cgroup",
        Topic.PIN_BUDGET,
        Status.LIMITED if binds else Status.OK,
        seen,
        why,
        command,
        {"limit_bytes": tightest.limit},
        {**levels, "left_bytes": pin_budget.left_bytes(tightest)},
    )


def _rdma_group() -> Finding:
    found = rdma_cgroup.limits()
    why = "handles and objects (regions, queue pairs) beyond it are refused with EAGAIN"
    if not found and cgroup.is_hidden("rdma"):
        return _hidden_group("rdma", why)
    if not found:
        seen = "no rdma cgroup limits this process"
        figures = {"limit": None}
        return Finding("rdma-cgroup", Topic.PIN_BUDGET, Status.OK, seen, why, None, figures)
    tightest = min(found, key=lambda one: one.limit - (one.used or 0))
    path = shlex.quote(f"{tightest.group}/rdma.max")
    return Finding(
        "rdma-cgroup",
        Topic.PIN_BUDGET,
        Status.LIMITED,
        f"{tightest.group} may have {tightest.limit} {tightest.resource} of {tightest.device}, "
        f"{tightest.used or 0} are in use",
        why,
        f"echo '{tightest.device} {tightest.resource}=max' > {path}",
        {"device": tightest.device, "resource": tightest.resource, "limit": tightest.limit},
        {"used": tightest.used},
    )


def _hidden_group(controller: str, why: str) -> Finding:
    name = f"{controller}-cgroup"
    seen = f"the files of the {controller} cgroup are not shown here"
    unseen = "whether a group of this process has a limit: mount its hierarchy at /sys/fs/cgroup"
    return Finding(name, Topic.PIN_BUDGET, Status.LIMITED, seen, why, None, {}, {}, (unseen,))


def _mappings(process: Process) -> Finding:
    most, used = process.vma_limit, process.vma_count
    seen = f"a process may have {most} mappings (vm.max_map_count)"
    if most is None:
        seen = "vm.max_map_count could not be read"
    elif used is not None:
        seen += f"; this one has {used}"
    short = most is not None and most < _USUAL_MAPPINGS
    return Finding(
        "max-map-count",
        Topic.PIN_BUDGET,
        Status.LIMITED if most is None or short else Status.OK,
        seen,
        "a region registered under ibv_fork_init() splits its mapping up to twice; when none are "
        "left, madvise and mmap give ENOMEM",
        f"sysctl vm.max_map_count={_RAISED_MAPPINGS}" if short else None,
        {"limit": most},
        {"used": used},
    )


def _address_space(process: Process) -> Finding:
    limit = process.address_space_bytes
    command = None if limit is None or limit < 0 else raised_limit.address_space(limit)
    return Finding(
        "address-space",
        Topic.PIN_BUDGET,
        Status.OK if limit == -1 else Status.LIMITED,
        f"RLIMIT_AS is {_limit(limit)}",
        "memory that is mapped beyond it is refused with ENOMEM, before anything is pinned",
        command,
        {"soft_bytes": limit},
    )
