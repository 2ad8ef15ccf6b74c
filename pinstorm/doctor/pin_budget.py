"""The pin budget: how much each mechanism lets this user register in one go, here and now.

What is charged to whom is what pinstorm.explain.calls says of the call, and how much a size is
charged is what the rules of a run go by (pinstorm.oracle). What the user has used up is asked of
the kernel (pinstorm.doctor.locked_memory), or where it cannot be, added up from what processes
show.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import workloads
from pinstorm import oracle
from pinstorm.doctor import raised_limit
from pinstorm.doctor.finding import Budget
from pinstorm.doctor.sight import Sight
from pinstorm.evidence_parts import Group, Holding, Process
from pinstorm.explain import calls
from pinstorm.explain.calls import Mechanism
from pinstorm.units import format_bytes
from telemetry import modules
from workloads.spec import MIB, PAGE_BYTES, Case, Need

# Kinds of pinstorm.held that are charged to the user: user->locked_vm.
OF_USER: Final = ("io-uring", "xdp-umem", "iommufd")
# Kinds that may be, of a process that could not be looked into.
MAYBE_OF_USER: Final = ("vmpin",)
UDMABUF_LIMIT: Final = ("udmabuf", "size_limit_mb")
# drivers/dma-buf/udmabuf.c
_UDMABUF_DEFAULT_MIB: Final = 64


@dataclass(frozen=True, slots=True)
class _Row:
    """``workload``: whose charge it is; None: the bytes themselves. ``need``: what it takes."""

    mechanism: str
    what: str
    call: str
    workload: str | None = None
    need: Need | None = None


# drivers/iommu/iommufd/pages.c, do_update_pinned() and incr_user_locked_vm()
_IOMMUFD: Final = Mechanism(
    "iommufd mapping",
    ("IOMMU_IOAS_MAP",),
    pins="longterm",
    writes=True,
    charge="user",
    charge_errno="ENOMEM",
    exempt="call",
)
_ROWS: Final = (
    _Row(
        "io-uring",
        "io_uring registered buffers",
        "io_uring_register",
        "io-uring-register",
        Need.IO_URING,
    ),
    _Row("rdma", "RDMA memory regions", "ibv_reg_mr", "rdma-register", Need.RDMA_DEVICE),
    _Row("af-xdp", "AF_XDP packet memory", "XDP_UMEM_REG", "af-xdp-umem", Need.AF_XDP),
    _Row(
        "msg-zerocopy",
        "MSG_ZEROCOPY, not yet received",
        "MSG_ZEROCOPY",
        "msg-zerocopy",
        Need.MSG_ZEROCOPY,
    ),
    _Row("vfio", "vfio type1 mappings", "VFIO_IOMMU_MAP_DMA", "vfio-map", Need.VFIO),
    _Row("iommufd", "iommufd mappings", "IOMMU_IOAS_MAP"),
    _Row("mlock", "locked memory", "mlock"),
    _Row("udmabuf", "udmabuf", "UDMABUF_CREATE", None, Need.UDMABUF),
    _Row("rdma-odp", "RDMA on demand", "ibv_advise_mr", None, Need.RDMA_ODP),
    _Row("direct-io", "direct IO, process_vm, vmsplice", "preadv"),
)


def budgets(sight: Sight) -> tuple[Budget, ...]:
    """One for each mechanism, the charged ones first."""
    return tuple(_budget(row, sight) for row in _ROWS)


@dataclass(frozen=True, slots=True)
class _Bound:
    """One thing that ends a size. ``fails_from_bytes``: None where it is not so exact."""

    by: str
    largest_bytes: int
    fails_from_bytes: int | None
    errno: str | None
    because: str
    command: str | None = None


def _budget(row: _Row, sight: Sight) -> Budget:
    mechanism = _IOMMUFD if row.mechanism == "iommufd" else calls.of_call(row.call)
    assert mechanism is not None
    free_of = _free_of_limit(mechanism, sight.process)
    bounds = [
        *([] if free_of else [_memlock(row, mechanism, sight)]),
        *_mapped(sight),
        *_memory(sight),
        *_device(row, sight),
        *_module(row),
    ]
    charged_to = None if mechanism.charge is None else mechanism.charge.partition("-")[0]
    usable = _usable(row, sight)
    first = min(bounds, key=lambda bound: bound.largest_bytes, default=None)
    if first is None:
        words = free_of or "nothing that was seen bounds it"
        return Budget(
            row.mechanism,
            row.what,
            row.call,
            charged_to,
            None,
            None,
            None,
            None,
            words,
            usable=usable,
        )
    because = f"{free_of}; {first.because}" if free_of else first.because
    return Budget(
        row.mechanism,
        row.what,
        row.call,
        charged_to,
        first.largest_bytes,
        first.fails_from_bytes,
        first.errno,
        first.by,
        because,
        first.command,
        usable,
    )


def _usable(row: _Row, sight: Sight) -> bool | None:
    if row.need is None or sight.unsurveyed is not None:
        return None
    return row.need not in sight.survey.lacking


def _free_of_limit(mechanism: Mechanism, process: Process) -> str | None:
    """Why RLIMIT_MEMLOCK does not bound it; None where it does."""
    if mechanism.charge is None:
        return "nothing is charged"
    if process.exempt:
        return "CAP_IPC_LOCK"
    if process.memlock_soft_bytes == -1:
        return "RLIMIT_MEMLOCK unlimited"
    return "RLIMIT_MEMLOCK is not known" if process.memlock_soft_bytes is None else None


def _memlock(row: _Row, mechanism: Mechanism, sight: Sight) -> _Bound:
    limit = sight.process.memlock_soft_bytes or 0
    words = [f"RLIMIT_MEMLOCK is {format_bytes(limit)}"]
    room, first = limit, 0
    if mechanism.charge == "user":
        used = used_bytes(sight)
        room = 0 if used is None else limit - used
        if used is None:
            words.append("this user has used it up")
        elif used:
            words.append(f"this user's processes are charged {format_bytes(used)} already")
    if mechanism.name == "io_uring buffer":
        first = ring_bytes(sight)
        if first:
            words.append(f"a ring of one entry takes {format_bytes(first)}")
    if mechanism.charge != "user":
        words.append("each process has it for itself")
    charge = _charge(row.workload)
    pages = _most_pages(lambda pages: first + charge(pages * PAGE_BYTES), room)
    errno = mechanism.charge_errno
    if limit == 0 and mechanism.name in ("memory region", "mlock"):
        errno = "EPERM"  # can_do_mlock() asks first
    return _Bound(
        "memlock",
        pages * PAGE_BYTES,
        (pages + 1) * PAGE_BYTES,
        errno,
        ", ".join(words),
        raise_memlock(sight.process),
    )


def _charge(workload: str | None) -> Callable[[int], int]:
    """What a size of plain memory is charged, by the symbol that the workload's rules go by."""
    symbol = None if workload is None else workloads.workload_spec(workload).charged
    if workload is None or symbol is None:
        return lambda size_bytes: size_bytes
    plain = workloads.memory_spec("anon")

    def charge(size_bytes: int) -> int:
        case = Case(workload, plain.name, {"size_bytes": size_bytes})
        return oracle.amounts(case, plain)[symbol]

    return charge


def _most_pages(charge: Callable[[int], int], room_bytes: int) -> int:
    """The most whole pages whose charge is within the room; a charge is never below the size."""
    low, high = 0, max(0, room_bytes) // PAGE_BYTES + 1  # fits (nothing is asked), does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if charge(middle) <= room_bytes else (low, middle)
    return low


def used_bytes(sight: Sight) -> int | None:
    """Charged to the user now. None: all that the hard limit allows."""
    if sight.charged is not None:
        return sight.charged.used_bytes
    return sum(one.size_bytes or 0 for one in of_user(sight.holdings))


def ring_bytes(sight: Sight) -> int:
    """What a ring is charged itself; where it was not asked, the most that it can be."""
    return oracle.RING_BYTES if sight.charged is None else sight.charged.ring_bytes


def of_user(holdings: Sequence[Holding]) -> list[Holding]:
    return [one for one in holdings if one.kind in OF_USER]


def raise_memlock(process: Process) -> str | None:
    """For what started this process, and all that it starts from now on."""
    soft, hard = process.memlock_soft_bytes, process.memlock_hard_bytes
    return raised_limit.command(raised_limit.MEMLOCK, soft, hard)


def _mapped(sight: Sight) -> list[_Bound]:
    """What refuses the mapping itself, before anything is pinned."""
    found = []
    limit, mapped = sight.process.address_space_bytes, sight.process.vmsize_bytes or 0
    if limit is not None and limit >= 0:
        why = f"RLIMIT_AS is {format_bytes(limit)}, this process has mapped {format_bytes(mapped)}"
        size = _pages(max(0, limit - mapped))
        command = raised_limit.address_space(limit)
        found.append(_Bound("address-space", size, None, "ENOMEM", why, command))
    machine = sight.evidence.machine
    if machine is not None and machine.commit_left_bytes is not None:
        left = max(0, machine.commit_left_bytes)
        why = f"vm.overcommit_memory is 2, {format_bytes(left)} may still be committed"
        command = "sysctl vm.overcommit_memory=0"
        found.append(_Bound("commit", _pages(left), None, "ENOMEM", why, command))
    return found


def _memory(sight: Sight) -> list[_Bound]:
    """What pages are there for: of the machine, and of the tightest memory cgroup."""
    found = []
    machine = sight.evidence.machine
    if machine is not None and machine.available_bytes is not None:
        why = "available memory"
        found.append(_Bound("memory", _pages(machine.available_bytes), None, None, why))
    for group in sight.evidence.groups or ():
        if group.controller != "memory" or group.used is None:
            continue
        left = left_bytes(group)
        why = (
            f"{format_bytes(left)} of the {format_bytes(group.limit)} that {group.group} may have "
            "are left"
        )
        found.append(_Bound("cgroup", _pages(left), None, None, why))
    return found


def left_bytes(group: Group) -> int:
    """What a memory cgroup has to give, once it has given up its page cache."""
    used = (group.used or 0) - (group.reclaimable or 0)
    return max(0, group.limit - max(0, used))


def _device(row: _Row, sight: Sight) -> list[_Bound]:
    if row.mechanism not in ("rdma", "rdma-odp"):
        return []
    name = sight.survey.around.device
    most = sight.survey.around.device_can.get("max_mr_size_bytes")
    if not most:
        return []
    why = f"max_mr_size of {name} is {format_bytes(most)}"
    return [_Bound("device", most, most + 1, "EINVAL", why)]


def _module(row: _Row) -> list[_Bound]:
    if row.mechanism != "udmabuf":
        return []
    text = modules.parameter(*UDMABUF_LIMIT)
    mebibytes = int(text) if text is not None and text.isdigit() else _UDMABUF_DEFAULT_MIB
    most = mebibytes * MIB
    default = "" if text is not None else " by default"
    why = f"size_limit_mb of the module is {mebibytes}{default}"
    command = None
    if text is not None:
        command = f"echo {16 * mebibytes} > {modules.parameter_file(*UDMABUF_LIMIT)}"
    elif modules.can_load("udmabuf") is not False:  # until it is there, there is no such file
        command = f"modprobe udmabuf size_limit_mb={16 * mebibytes}"
    return [_Bound("module", most, most + PAGE_BYTES, "EINVAL", why, command)]


def _pages(size_bytes: int) -> int:
    return size_bytes // PAGE_BYTES * PAGE_BYTES
