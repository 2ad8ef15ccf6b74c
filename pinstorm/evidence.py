"""What is known about a refusal: gathered from the process that met it while it still stands.

The record's ``evidence`` (null when nothing was refused). Each part is read by the telemetry module
of its interface; a part that was not asked for, or could not be read, is null, and what hides it is
told in ``hidden``. ``collect`` gathers it for a case, ``of_process`` for somebody else's program.
pinstorm.explain draws the conclusions. Nothing is pinned or changed by looking.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import workloads
from pinstorm import census, pieces
from pinstorm.errors import UsageError
from pinstorm.evidence_parts import (
    Device,
    Evidence,
    Group,
    Holding,
    Machine,
    Piece,
    Process,
    readable,
)
from telemetry import (
    cgroup,
    hugepages,
    limits,
    maps,
    meminfo,
    mountinfo,
    process_fds,
    process_status,
    rdma,
    rdma_cgroup,
    rdma_resource,
    smaps,
    sysctl,
    user_namespace,
)
from workloads.spec import Case, Surroundings

__all__ = [
    "Device",
    "Evidence",
    "Group",
    "Holding",
    "Machine",
    "Piece",
    "Process",
    "collect",
    "of_process",
]

_Value = TypeVar("_Value")

# What can come of a limit on what a user or process may pin.
_BUDGET_OUTCOMES = frozenset(("ENOMEM", "ENOBUFS", "EPERM", "EAGAIN", "EINVAL", "EACCES"))
# What can come of a machine, a control group or a pool that has no memory left. None: a SIGBUS, or
# a prepare that failed without an errno.
_MEMORY_OUTCOMES = frozenset(("ENOMEM", "EFAULT", "ENOSPC", "EAGAIN", "SIGBUS", None))
# What an RDMA device answers that has no more of something, or refuses what it cannot do.
_DEVICE_OUTCOMES = frozenset(("ENOMEM", "EINVAL", "EAGAIN", "ENOSPC"))
# rdma-core and the kernel, libfabric, UCX, and what stands on them.
_RDMA_CALLS = ("ibv_", "ib_", "rdma", "fi_", "ucp_", "uct_", "mlx", "cuda", "nccl")
# Reading smaps walks the page tables of all mappings below the range's end.
_MOST_SMAPS = 2000
_MOST_SMAPS_RSS_BYTES = 8 << 30
_MOST_PIECES = 20


class _Eyes:
    """Looks, and remembers what could not be seen."""

    def __init__(self, pid: int):
        self.pid = pid
        self.hidden: list[str] = []

    def see(self, what: str, read: Callable[[], _Value]) -> _Value | None:
        """None when it is gone, forbidden or not understood."""
        try:
            return read()
        except PermissionError:
            why = "permission is denied: run as root or as that user"
        except (FileNotFoundError, ProcessLookupError):
            why = "the process has ended, or this kernel does not show it"
        except (OSError, ValueError) as error:
            why = str(error)
        self.hidden.append(f"{what} cannot be read: {why}")
        return None

    def see_its(self, what: str, read: Callable[[], _Value]) -> _Value | None:
        """The same of something of the process."""
        return self.see(f"the {what} of process {self.pid}", read)


# -- a case ------------------------------------------------------------------------------------


def collect(case: Case, pid: int, failure: Mapping[str, Any], around: Surroundings) -> Evidence:
    """Look at a case's process, which has just been refused and stands still.

    ``failure``: a record as far as it goes: failed_call, failed_phase, outcome, region. Only what
    can decide between the causes of that failure is read, for this happens at every refusal. Never
    raises for what has vanished or is forbidden.
    """
    eyes = _Eyes(pid)
    spec = workloads.workload_spec(case.workload)
    outcome = failure.get("outcome")
    with_rdma = case.workload.startswith("rdma-")
    text = eyes.see_its("mappings", lambda: maps.read_text(pid))
    process = _process(eyes, text)
    budget = _Budget()
    # secret memory counts as locked by the user in v7.2 (secretmem_fault())
    shared = spec.charged_to == "user" or case.memory == "secretmem"
    if shared and process is not None and _has_budget(process, outcome):
        budget = _holdings(eyes, process)
    if case.processes > 1:
        eyes.hidden.append(
            f"this is what was seen of one of {case.processes} processes; another may be the one"
            " that was refused"
        )
    region = failure.get("region")
    return Evidence(
        process=process,
        pieces=None if text is None or region is None else _pieces(eyes, text, *region),
        holdings=budget.others,
        groups=_groups(eyes, outcome, with_rdma, around.device),
        device=_case_device(eyes, case, outcome, process, around) if with_rdma else None,
        machine=_machine(eyes) if outcome in _MEMORY_OUTCOMES else None,
        hidden=tuple(readable(sentence) for sentence in eyes.hidden),
        own_holdings=budget.own,
    )


def _has_budget(process: Process, outcome: str | None) -> bool:
    return outcome in _BUDGET_OUTCOMES and not process.exempt


def _case_device(
    eyes: _Eyes, case: Case, outcome: str | None, process: Process | None, around: Surroundings
) -> Device | None:
    if around.device is None:
        return None
    counts = outcome in _DEVICE_OUTCOMES and not _limit_says_it_all(process, case.size_bytes)
    return _device(eyes, around.device, around.device_can, counts=counts)


def _limit_says_it_all(process: Process | None, size_bytes: int) -> bool:
    """Starting ``rdma`` is the dearest look of all: not where RLIMIT_MEMLOCK explains it."""
    if process is None or process.exempt:
        return False
    soft_bytes, pinned_bytes = process.memlock_soft_bytes, process.vmpin_bytes
    if soft_bytes in (None, limits.UNLIMITED) or pinned_bytes is None:
        return False
    assert soft_bytes is not None
    return pinned_bytes + size_bytes > soft_bytes


def _pieces(eyes: _Eyes, text: str, address: int, size_bytes: int) -> tuple[Piece, ...] | None:
    """What lies in the range, with the flags of its mappings."""
    pid, end = eyes.pid, address + max(size_bytes, 1)
    mappings = maps.overlapping(text, address, end)
    details: list[smaps.Details] | None = None
    if (count := text.count("\n")) > _MOST_SMAPS:
        eyes.hidden.append(
            f"the flags of process {pid}'s mappings were not read: with {count} of them it is slow"
        )
    elif mappings:
        details = eyes.see_its("flags of mappings", lambda: smaps.read(pid, address, end))
    found = pieces.of_range(address, size_bytes, mappings, details or (), _files(eyes))
    return tuple(_shown(piece) for piece in found)


def _shown(piece: Piece) -> Piece:
    """A file's name can be anything: nothing in it may speak to a terminal."""
    return replace(piece, path=readable(piece.path))


def _files(eyes: _Eyes) -> pieces.Files:
    return pieces.Files(
        eyes.pid, lambda: eyes.see_its("mounts", lambda: mountinfo.read(eyes.pid)) or []
    )


# -- parts of both -----------------------------------------------------------------------------


def _process(eyes: _Eyes, maps_text: str | None) -> Process | None:
    """Limits, privileges and figures; None when the process is gone."""
    pid = eyes.pid
    status = eyes.see_its("status", lambda: process_status.read(pid))
    if status is None:
        return None
    bounds = eyes.see_its("limits", lambda: limits.read(pid)) or {}
    memlock, address_space = bounds.get(limits.MEMLOCK), bounds.get(limits.ADDRESS_SPACE)

    def has(mask: int | None) -> bool | None:
        return None if mask is None else process_status.in_set(mask, "CAP_IPC_LOCK")

    return Process(
        pid=pid,
        name=readable(status.name),
        uid=status.uid,
        memlock_soft_bytes=None if memlock is None else memlock.soft,
        memlock_hard_bytes=None if memlock is None else memlock.hard,
        address_space_bytes=None if address_space is None else address_space.soft,
        vmsize_bytes=status.vmsize_bytes,
        vmrss_bytes=status.vmrss_bytes,
        vmpin_bytes=status.vmpin_bytes,
        vmlck_bytes=status.vmlck_bytes,
        cap_ipc_lock=has(status.cap_eff),
        cap_ipc_lock_permitted=has(status.cap_prm),
        cap_ipc_lock_inheritable=has(status.cap_inh),
        cap_effective=tuple(process_status.capability_names(status.cap_eff or 0)),
        initial_userns=eyes.see_its("user namespace", lambda: user_namespace.is_initial(pid)),
        vma_count=None if maps_text is None else maps.limited_count(maps_text),
        vma_limit=sysctl.read_int("vm.max_map_count"),
        real_uid=status.real_uid,
    )


@dataclass(frozen=True, slots=True)
class _Budget:
    """What others of the user hold, and what the process itself does; the largest first."""

    others: tuple[Holding, ...] | None = None
    own: tuple[Holding, ...] | None = None


def _holdings(eyes: _Eyes, process: Process) -> _Budget:
    """A ring or umem that several processes reach is one's: whose it was met with first."""
    holders, hidden = census.holders(process.real_uid)
    eyes.hidden += hidden
    found = [
        Holding(holder.pid, readable(holder.name), held.kind, held.size_bytes, held.count)
        for holder in holders
        for held in holder.held
        # of no size and without a pin: told in full at the process that it is shared with
        if held.size_bytes is not None or held.most_pages != 0
    ]
    found.sort(key=lambda holding: -(holding.size_bytes or 0))
    looked = eyes.see_its("open files", lambda: process_fds.read(eyes.pid)) is not None
    return _Budget(
        tuple(one for one in found if one.pid != process.pid),
        tuple(one for one in found if one.pid == process.pid) if looked else None,
    )


def _groups(
    eyes: _Eyes, outcome: str | None, with_rdma: bool, device: str | None
) -> tuple[Group, ...] | None:
    """Limits of control groups that can have been met; None when none could."""
    pid = eyes.pid
    memory_counts = outcome in _MEMORY_OUTCOMES
    if not (memory_counts or with_rdma):
        return None
    found = []
    if with_rdma:
        for entry in eyes.see_its("rdma cgroup", lambda: rdma_cgroup.limits(pid, device)) or []:
            found.append(
                Group(
                    readable(entry.group),
                    rdma_cgroup.CONTROLLER,
                    entry.resource,
                    entry.limit,
                    entry.used,
                    entry.refused,
                    entry.device,
                )
            )
    if memory_counts:
        for limit in eyes.see_its("memory cgroup", lambda: cgroup.memory_limits(pid)) or []:
            found.append(
                Group(
                    readable(limit.group),
                    "memory",
                    "memory",
                    limit.limit_bytes,
                    limit.usage_bytes,
                    limit.failures,
                    limit_file=limit.limit_file,
                    reclaimable=limit.inactive_file_bytes,
                )
            )
    return tuple(sorted(found, key=_share_left))


def _share_left(group: Group) -> float:
    """Of different resources, so a share; a limit of nothing is met before it is asked."""
    return 1 - (group.used or 0) / group.limit if group.limit else 0.0


def _device(eyes: _Eyes, name: str, can: Mapping[str, Any], *, counts: bool) -> Device:
    """``counts``: ask what is in use too, which starts a program."""
    seen = rdma.read_one(name)
    in_use = eyes.see("the rdma device's objects", rdma_resource.read) if counts else None
    if counts and in_use is None:
        eyes.hidden.append("what is in use of the rdma device is not known: rdma (iproute2) failed")
    return Device(
        name=name,
        present=seen is not None,
        driver=None if seen is None else seen.driver,
        odp=can.get("odp"),
        max_mr=can.get("max_mr"),
        max_mr_size_bytes=can.get("max_mr_size_bytes"),
        mrs=next((entry.mrs for entry in in_use or [] if entry.device == name), None),
        port_states=tuple(port.state or "" for port in seen.ports) if seen is not None else (),
    )


def _machine(eyes: _Eyes) -> Machine:
    memory = eyes.see("the machine's memory", meminfo.read)
    pools = eyes.see("the huge page pools", hugepages.read) or {}
    commit_left_bytes = None
    # Documentation/mm/overcommit-accounting.rst: 2 refuses what exceeds the limit
    if memory is not None and sysctl.read_int("vm.overcommit_memory") == 2:
        limit_bytes, committed_bytes = memory.commit_limit_bytes, memory.committed_bytes
        if limit_bytes is not None and committed_bytes is not None:
            commit_left_bytes = limit_bytes - committed_bytes
    return Machine(
        available_bytes=None if memory is None else memory.available_bytes,
        commit_left_bytes=commit_left_bytes,
        free_huge_bytes={
            str(page_bytes): pool.usable * page_bytes
            for page_bytes, pool in pools.items()
            if pool.usable is not None
        },
    )


# -- somebody else's program -------------------------------------------------------------------


def of_process(pid: int, call: str, outcome: str) -> Evidence:
    """Look at somebody else's process, as far as it lets itself be looked at.

    Its range is not known, so ``pieces`` are those of its mappings that no long-term pin can take,
    the most suspicious first. UsageError when there is no such process.
    """
    eyes = _Eyes(pid)
    try:
        process_status.read(pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise UsageError(
            f"process {pid} is not there: leave --pid out when it has ended"
        ) from error
    text = eyes.see_its("mappings", lambda: maps.read_text(pid))
    process = _process(eyes, text)
    budget = _Budget()
    if process is not None and _has_budget(process, outcome) and not _is_rdma(call):
        budget = _holdings(eyes, process)
    device = _opened_device(eyes, call)
    return Evidence(
        process=process,
        pieces=None if text is None else _unpinnable(eyes, text, process),
        holdings=budget.others,
        groups=_groups(eyes, outcome, device is not None or _is_rdma(call), None),
        device=device,
        machine=_machine(eyes) if outcome in _MEMORY_OUTCOMES else None,
        hidden=tuple(readable(sentence) for sentence in eyes.hidden),
        own_holdings=budget.own,
    )


def _is_rdma(call: str) -> bool:
    """However it is spelt: ``__ibv_reg_mr()``, ``IBV_REG_MR``."""
    return call.strip().lstrip("_").lower().startswith(_RDMA_CALLS)


def _unpinnable(eyes: _Eyes, text: str, process: Process | None) -> tuple[Piece, ...]:
    pid = eyes.pid
    files = _files(eyes)
    mappings = maps.parse(text)
    details: list[smaps.Details] = []
    if any(pieces.may_be_device_memory(mapping, files) for mapping in mappings):
        rss_bytes = 0 if process is None else process.vmrss_bytes or 0
        if len(mappings) <= _MOST_SMAPS and rss_bytes <= _MOST_SMAPS_RSS_BYTES:
            details = eyes.see_its("flags of mappings", lambda: smaps.read(pid)) or []
        else:
            eyes.hidden.append(
                f"whether process {pid} maps device memory was not looked at: it has"
                f" {len(mappings)} mappings and {rss_bytes >> 20} MiB of memory"
            )
    by_start = {entry.start: entry for entry in details}
    found = [pieces.of_mapping(mapping, by_start.get(mapping.start), files) for mapping in mappings]
    ranked = [(rank, piece) for piece in found if (rank := pieces.suspicion(piece)) is not None]
    ranked.sort(key=lambda pair: (pair[0], pair[1].start - pair[1].end))
    return tuple(_shown(piece) for _, piece in ranked[:_MOST_PIECES])


def _opened_device(eyes: _Eyes, call: str) -> Device | None:
    """The RDMA device that the process has open; with several, the first, and the others told."""
    descriptors = eyes.see_its("open files", lambda: process_fds.read(eyes.pid)) or {}
    names = sorted(
        {name for path in descriptors.values() if (name := rdma.device_of_node(path)) is not None}
    )
    if not names:
        return None
    if len(names) > 1:
        eyes.hidden.append(f"process {eyes.pid} has more rdma devices open: {', '.join(names[1:])}")
    seen = _device(eyes, names[0], _capabilities(eyes, names[0]), counts=True)
    return replace(seen, others_open=len(names) > 1)


def _capabilities(eyes: _Eyes, device: str) -> Mapping[str, Any]:
    """What the device says it can do: asked by opening it, which pins nothing."""
    try:
        from workloads import verbs
    except ImportError as error:
        eyes.hidden.append(f"the limits of {device} are not known without pyverbs: {error}")
        return {}
    try:
        return verbs.capabilities(device)
    except Exception as error:  # whatever a provider's library raises
        eyes.hidden.append(f"the limits of {device} are not known: {error}")
        return {}
